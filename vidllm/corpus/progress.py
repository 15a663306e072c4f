"""How far a run is: counts by status, clips a second, times real time, when it will end; as one line."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TextIO

from vidllm.corpus.rows import STATUSES
from vidllm.counts import count_of

if TYPE_CHECKING:
    from vidllm.corpus.rows import CaptionRow

TERMINAL_SECONDS = 0.2
PLAIN_SECONDS = 30.0
"""Between two lines where nobody watches: in a log file they stay."""


@dataclass
class Tally:
    """The run's figures so far. Clips done by an earlier run are `skipped` and in no rate."""

    listed: int | None = None
    """Clips that the inputs name; None while they are still being counted, and for a list on stdin."""
    parts: int = 0
    """How many more rows there are because long ones were cut."""
    skipped: int = 0
    in_flight: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    """Rows written by this run, by status."""
    causes: Counter[str] = field(default_factory=Counter)
    """Why rows have no good caption, the clips' own names and places left out."""
    notes: Counter[str] = field(default_factory=Counter)
    """What is not as it should be with the frames of captioned clips, numbers and times left out."""
    video_seconds: float = 0.0
    """Of the clips in `counts`, as long as they run."""
    tokens: int = 0
    """Read and written by the model for them."""
    retries: int = 0
    """Answers that were not taken and asked for again."""
    began: float = field(default_factory=time.monotonic)
    early: tuple[int, float] = (0, 0.0)
    """Rows from before the clock began, and seconds of video in them: of what can not be read, say; in no rate."""
    loading: bool = False
    """The model is not there yet."""

    def set_loading(self, loading: bool) -> None:
        """Say whether the model is still loaded; the clock stands until it is there."""
        if loading or self.loading:
            self.began, self.early = time.monotonic(), (self.written, self.video_seconds)
        self.loading = loading

    def add(self, row: CaptionRow, video_seconds: float) -> None:
        """Count a row that was written."""
        self.counts[row.status] += 1
        if row.error is not None:
            cause = re.sub(r"#\d+\b", "", row.error.removeprefix(row.video).lstrip(": "))  # of a data set's row
            self.causes[f"{row.status}: {cause}"] += 1
        self.notes.update({_kind_of(note) for note in row.notes})
        self.video_seconds += video_seconds
        self.retries += max(row.attempts - 1, 0)
        if row.usage is not None and row.status != "duplicate":
            self.tokens += (row.usage.video_tokens or 0) + row.usage.text_tokens + row.usage.answer_tokens

    @property
    def total(self) -> int | None:
        """Rows there will be, as far as is known."""
        return None if self.listed is None else self.listed + self.parts

    @property
    def written(self) -> int:
        """Rows written by this run."""
        return self.counts.total()

    @property
    def seconds(self) -> float:
        """Since the first clip was asked for and the model was there."""
        return time.monotonic() - self.began

    @property
    def clips_a_second(self) -> float:
        """0 before the first row since the clock began."""
        rows = self.written - self.early[0]
        return rows / self.seconds if rows else 0.0

    @property
    def times_real_time(self) -> float:
        """Seconds of video captioned in a second."""
        captioned = self.video_seconds - self.early[1]
        return captioned / self.seconds if captioned else 0.0

    @property
    def eta_seconds(self) -> float | None:
        """Until the last clip at the pace so far; None when that is not known."""
        if self.total is None or not self.clips_a_second:
            return None
        return max(self.total - self.skipped - self.written, 0) / self.clips_a_second

    def line(self) -> str:
        """All of it in one line."""
        done = self.skipped + self.written
        parts = [count_of(done, "clip") if self.total is None else f"{done:,} of {count_of(self.total, 'clip')}"]
        if self.clips_a_second:
            parts.append(f"{self.clips_a_second:.2f} clips/s, {self.times_real_time:.0f}x real time")
        if (eta := self.eta_seconds) is not None:
            parts.append(f"{duration(eta)} left")
        if self.counts:
            parts.append(statuses(self.counts))
        if self.skipped:
            parts.append(f"{self.skipped:,} done before")
        if self.loading:
            parts.append("loading the model")
        return " · ".join(parts)


def statuses(counts: Counter[str]) -> str:
    """`ok 12, undecodable 1`: what there is, in the order of the contract."""
    return ", ".join(f"{status} {counts[status]:,}" for status in STATUSES if counts[status])


def _kind_of(note: str) -> str:
    """`pictures are damaged` of `6 pictures are damaged (at 1.46, ... s)`."""
    return " ".join(re.sub(r"\([^()]*\)|\b\d+ of \d+\b|\b\d+( |(?=;))", "", note).replace(" ;", ";").split())


def duration(seconds: float) -> str:
    """For people: 42 s, 3:07, 2:03:07, 3 d 04 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole >= 2 * 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


class Told(Protocol):
    """How far a run is, whatever it does."""

    def line(self) -> str:
        """All of it in one line."""


class ProgressLine:
    """A `Tally` on stderr: one line that stays in its place on a terminal, else a line every half minute."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._live = self._stream.isatty()
        self._next = clock() + (0.0 if self._live else PLAIN_SECONDS)
        self._shown = False

    def __call__(self, tally: Told) -> None:
        """Show it, if it is time to; cheap when it is not."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + (TERMINAL_SECONDS if self._live else PLAIN_SECONDS)
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._write("\r\x1b[2K" + tally.line()[:width])
            self._shown = True
        else:
            self._write(tally.line() + "\n")

    def say(self, text: str) -> None:
        """A line that stays, above the one that moves."""
        self.clear()
        self._write(text + "\n")

    def clear(self) -> None:
        """Wipe the moving line."""
        if self._shown:
            self._write("\r\x1b[2K")
            self._shown = False

    def _write(self, text: str) -> None:
        """What nobody reads any more (`| head`), or has no room left on the log's disk, ends no run."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()
