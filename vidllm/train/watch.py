"""A run for those who watch it: on a terminal a bar that stays in its place, elsewhere a line now and then.

    step 120 of 400 · loss 1.2345 · 5,210 tokens/s · 1.9 GiB · 3:07 left
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from vidllm.video.timecode import format_time

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from vidllm.train.metrics import Record

PLAIN_SECONDS = 30.0
"""Between two lines where nobody watches: in a log file they stay."""


class Pace:
    """How fast a run is, from the steps of this run alone."""

    def __init__(self, done: int, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.first, self.total, self._clock, self._began = done, total, clock, clock()
        self._tokens = 0.0

    def line(self, record: Record) -> str:
        """Count a step, and tell of it in one line."""
        self._tokens += record["tokens"]
        seconds = self._clock() - self._began
        rate = self._tokens / max(1e-9, seconds)
        left = (self.total - record["step"]) * seconds / max(1, record["step"] - self.first)
        more = [f"{name} {record[name]:.3g}" for name in SHOWN if name in record]
        parts = [f"loss {record['loss']:.4f}", *more, f"{rate:,.0f} tokens/s", f"{record['peak_memory_gib']:.1f} GiB"]
        parts += [f"{format_time(round(left))} left"] if record["step"] < self.total else []
        return " · ".join(parts)


SHOWN = ("rewards/accuracies", "rewards/margins")
"""Figures of a task that are worth a place in the line."""


class TrainWatch:
    """A `Watch` on stderr; a `with` block, which leaves the terminal clean."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._pace: Pace | None = None
        self._next = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            with suppress(OSError):  # its reader is gone, and the run goes on: metrics.jsonl tells the figures
                self._stream.write(text + "\n")
                self._stream.flush()

    def begin(self, done: int, total: int) -> None:
        """Show the bar."""
        self._pace = Pace(done, total, self._clock)
        self._next = self._clock()
        if self._stream.isatty():
            self._bar = _bar(self._stream)
            self._task = self._bar.add_task("", total=total, completed=done, figures="")
            self._bar.start()

    def step(self, record: Record) -> None:
        """Show a step, if it is time to."""
        assert self._pace is not None
        line = self._pace.line(record)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=record["step"], figures=line)
        elif self._clock() >= self._next or record["step"] == self._pace.total:
            self._next = self._clock() + PLAIN_SECONDS
            self.say(f"step {int(record['step']):,} of {self._pace.total:,} · {line}")


def _bar(stream: TextIO) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    # redirecting would catch what other libraries print and repaint it; whatever comes from here goes through say
    return Progress(
        TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=24), TextColumn("{task.fields[figures]}"),
        console=Console(file=stream), redirect_stdout=False, redirect_stderr=False,
    )  # fmt: skip
