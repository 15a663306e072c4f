"""Times as people write them: "0:30" to seconds and back, and the times a question or an answer names.

Seconds are on the viewer's clock: 0:00 is the clip's first presented frame. Ranges are half-open. What the words mean
lives in `timewords.py`, which is imported when the first text is read: the command line imports this file at start.
"""

import math
import re
from dataclasses import dataclass

from vidllm.errors import ConfigError

PAST_END_SECONDS = 1.0
"""How far beyond the last frame a named time may lie and still mean the end: players show 0:30 for 29.97 s."""

_WRITTEN = (
    re.compile(r"(?:(\d{1,3}):)?(\d{1,3}):(\d+(?:[.,]\d*)?)", re.ASCII),  # 0:30, 1:02:03.5; .srt writes 00:00:20,500
    re.compile(r"()()(\d+(?:\.\d*)?|\.\d+)\s?s?", re.ASCII),  # 90, 1.5, 90s
    re.compile(r"(?:(\d{1,3})\s?h)?\s?(?:(\d{1,3})\s?m)?\s?(?:(\d+(?:\.\d*)?)\s?s?)?", re.ASCII),  # 1h2m3s, 1m30
)
"""The ways to write a time: hours, minutes and seconds of each, whichever are there."""


@dataclass(frozen=True)
class Focus:
    """The times a question names."""

    spans: tuple[tuple[float, float], ...]
    """Half-open ranges in seconds, ascending; a moment T is `(T, T)`."""


@dataclass(frozen=True)
class TimeMention:
    """A time that a text names."""

    text: str
    start: int
    """Where it stands: `source[start:end] == text`."""
    end: int
    seconds: float


def parse_time(value: str | float) -> float:
    """Seconds of `90`, `"90"`, `"90s"`, `"1:30"`, `"0:01:30.5"`, `"00:01:30,5"` or `"1m30s"`; a bare number is seconds.

    Raises `ConfigError`.
    """
    seconds = _clock_seconds(value.strip().lower()) if isinstance(value, str) else float(value)
    if not 0 <= seconds < math.inf:
        raise _not_a_time(value)
    return seconds


def format_time(seconds: float, *, decimals: int = 0) -> str:
    """`0:30`, `1:02:03`; cut, not rounded, so that a shown time never lies after its frame. Negative: `-0:30`."""
    if not math.isfinite(seconds):
        raise ValueError(f"only a finite time can be shown, got {seconds}")
    scale = 10**decimals
    ticks = round(abs(seconds) * 1_000_000) * scale // 1_000_000  # by the microsecond: 29.9999999999 is 30
    minutes, ticks = divmod(ticks, 60 * scale)
    hours, minutes = divmod(minutes, 60)
    whole, part = divmod(ticks, scale)
    head = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    tail = f".{part:0{decimals}d}" if decimals else ""
    return f"{'-' if seconds < 0 else ''}{head}:{whole:02d}{tail}"


def find_focus(question: str, duration: float, start: float = 0.0) -> Focus | None:
    """The times `question` names within `[start, duration)`, or None when it names none: never a guess.

    Clock times are the source's (`at 0:30`); relative ones (`the first ten seconds`, `at the end`) belong to the range
    `[start, duration)`, in seconds. Times outside it are no focus (`focus_notes` says so), but one at most a second
    past the end means the end.
    """
    from vidllm.video.timewords import find_hits

    found = (hit.resolve(start, duration) for hit in find_hits(question))
    spans = {inside for span in found for inside in _clip(span, start, duration)}
    return Focus(tuple(sorted(spans))) if spans else None


def focus_notes(question: str, duration: float, start: float = 0.0, *, of: str = "clip") -> tuple[str, ...]:
    """One line for each time in `question` that focuses nothing: outside `[start, duration)`, or not understood.

    `of` is what these are the bounds of.
    """
    from vidllm.video.timewords import find_hits, find_unread

    outside = tuple(
        f'"{hit.text}" lies outside the {of} ({format_time(start)}-{format_time(duration)}); no focus on it'
        for hit in find_hits(question)
        if not _clip(hit.resolve(start, duration), start, duration)
    )
    unread = find_unread(question)
    return (*outside, *(f'"{words}" was not read as a time; write 0:30 or 30 s; no focus on it' for words in unread))


def find_times(text: str) -> tuple[TimeMention, ...]:
    """Every absolute time that `text` names, in the order it stands there; both ends of a range are mentions."""
    from vidllm.video.timewords import find_hits

    places = sorted(place for hit in find_hits(text) for place in hit.mentions)
    return tuple(TimeMention(text[start:end], start, end, seconds) for start, end, seconds in places)


def _clip(span: tuple[float, float], start: float, end: float) -> list[tuple[float, float]]:
    """`span` cut to `[start, end]` as a list of one, or of none when it lies outside."""
    low, high = span
    if high < low or low > end + PAST_END_SECONDS or (low < start and high <= start):
        return []
    return [(min(max(low, start), end), min(max(high, start), end))]


def _clock_seconds(text: str) -> float:
    match = next(filter(None, (form.fullmatch(text) for form in _WRITTEN)), None)
    hours, minutes, seconds = match.groups() if match else (None, None, None)
    if not (hours or minutes or seconds) or (hours and int(minutes or 0) >= 60):
        raise _not_a_time(text)
    parts = int(hours or 0), int(minutes or 0), float((seconds or "0").replace(",", "."))
    if (hours or minutes) and parts[2] >= 60:
        raise _not_a_time(text)
    return parts[0] * 3600 + parts[1] * 60 + parts[2]


def _not_a_time(value: object) -> ConfigError:
    return ConfigError(f"{str(value)!r} is not a time; write seconds (90), m:ss (1:30) or h:mm:ss (0:01:30.5)")
