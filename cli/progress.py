"""What is going on, as one line on a terminal's stderr that is gone when the answer comes; nothing elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .output import note

if TYPE_CHECKING:
    from rich.status import Status

    from vidllm.sources import Stage

STAGES: dict[Stage, str] = {
    "load": "loading the model",
    "fetch": "fetching the video",
    "look": "decoding frames",
    "encode": "reading the video",
    "answer": "answering",
}


class Progress:
    """Call it with what is happening now; leaving the `with` block, or `clear`, wipes the line."""

    def __init__(self) -> None:
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status("")
        return self

    def __call__(self, happening: str) -> None:
        """Show `happening` until the next call."""
        if self._status is not None:
            from rich.text import Text  # a file's name may hold [what rich takes for markup]

            self._status.update(Text(f"{happening}…"))
            self._status.start()

    def stage(self, stage: Stage, detail: str = "", /) -> None:
        """What the library says it is doing now."""
        self(f"{STAGES[stage]} {detail}".rstrip())

    def clear(self) -> None:
        """Wipe the line: something else wants the terminal."""
        if self._status is not None:
            self._status.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        self.clear()
        note(text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()
