"""Ctrl-C as a wish: the first finishes what is in flight, the second, or too long a wait, stops at once."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def stop_at_sigterm() -> Callable[[], None]:
    """SIGTERM stops what runs as Ctrl-C does, until what this returns is called.

    Only in the main thread, and not where it is ignored.
    """
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        return lambda: None

    def no_longer() -> None:
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return no_longer


class Interrupts:
    """Within the `with` block the first SIGINT or SIGTERM sets `asked`, the second raises KeyboardInterrupt.

    Only the main thread hears signals; elsewhere nothing changes. One that is ignored stays so: a shell has what a
    script runs in the background ignore Ctrl-C. `told` is called at the first one. What is in flight may take
    `patience_seconds` from then on, where `check` is called.
    """

    def __init__(self, told: Callable[[], None] = lambda: None, *, patience_seconds: float = math.inf) -> None:
        self.asked = False
        self._told, self._patience_seconds, self._until = told, patience_seconds, math.inf
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._hear) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def check(self) -> None:
        """Raise KeyboardInterrupt, as a second signal would, when what was in flight took too long."""
        if time.monotonic() > self._until:
            raise KeyboardInterrupt

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked, self._until = True, time.monotonic() + self._patience_seconds
        self._told()
