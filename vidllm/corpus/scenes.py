"""Where a long video is cut for captions: `none`, `fixed:12s`, or `scenes`, between its shots.

0 --------- cut ------ cut ------------------ end        half-open ranges on the source's clock, without gaps
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from vidllm.errors import ConfigError
from vidllm.video.cuts import hard_cuts
from vidllm.video.info import VideoInfo
from vidllm.video.timecode import parse_time

if TYPE_CHECKING:
    from vidllm.corpus.item import Item

Range = tuple[float | None, float | None]
"""Seconds [start, end); None where the range is open: the whole clip is (None, None)."""

LEAST_SCENE_SECONDS = 2.0
"""What is shorter is no scene of its own: flashes, and the shots of a montage, which are captioned together."""
MOST_SCENE_SECONDS = 60.0
"""A scene longer than this is cut again into equal parts: a lecture without a cut still gets its captions."""
LEAST_TAIL_SHARE = 0.25
"""A rest shorter than this share of a fixed length joins the range before it: no caption of half a second."""


@dataclass(frozen=True)
class Cut:
    """How one clip was cut."""

    split: str
    """The words for it, `check_split`'s."""
    stamp: str
    """Of the clip's file, before it was opened for this."""
    ranges: tuple[Range, ...] = ()
    """None where it could not be cut: then its row as a whole says why."""

    def parts(self, item: Item) -> list[Item]:
        """Who stands for the item: its ranges, or itself."""
        return [replace(item, start=start, end=end) for start, end in self.ranges] or [item]


def check_split(words: str) -> str:
    """A way to split as it is called in a data set: `fixed:12`, `fixed:12s` and `fixed:0:12` are `fixed:12s`.

    Raises ConfigError when it is none.
    """
    if words in ("none", "scenes"):
        return words
    return f"fixed:{_fixed_seconds(words):.6f}".rstrip("0").rstrip(".") + "s"


def ranges_of(info: VideoInfo, words: str) -> tuple[Range, ...]:
    """The ranges that `words` (`scenes`, `fixed:12s`, `fixed:1:30`) cut the clip into, at least one.

    They follow each other without gap or overlap from 0 to the clip's end. Raises ConfigError for other words.
    """
    if words == "scenes":
        return _between(scene_cuts(info), info.duration)
    return _between(fixed_cuts(info.duration, _fixed_seconds(words)), info.duration)


def fixed_cuts(duration: float, length: float) -> list[float]:
    """Cuts every `length` seconds; a rest of less than a quarter stays with the range before it."""
    count = math.floor(duration / length + 1e-6)
    rest = duration - count * length
    pieces = count + (1 if rest > LEAST_TAIL_SHARE * length else 0)
    return [round(length * number, 6) for number in range(1, pieces)]


def scene_cuts(info: VideoInfo) -> list[float]:
    """Times of the first frames of new scenes, seconds: hard cuts, none too soon after another.

    A scene longer than `MOST_SCENE_SECONDS` is divided evenly.
    """
    cuts: list[float] = []
    for time in hard_cuts(info):
        if time - (cuts[-1] if cuts else 0.0) >= LEAST_SCENE_SECONDS and info.duration - time >= LEAST_SCENE_SECONDS:
            cuts.append(round(float(time), 6))
    return _divided(cuts, info.duration)


def _divided(cuts: Sequence[float], duration: float) -> list[float]:
    edges = [0.0, *cuts, duration]
    done: list[float] = []
    for start, end in pairwise(edges):
        parts = max(math.ceil((end - start) / MOST_SCENE_SECONDS), 1)
        done += [round(start + (end - start) * number / parts, 6) for number in range(parts)]
    return done[1:]


def _between(cuts: Sequence[float], duration: float) -> tuple[Range, ...]:
    if not cuts:
        return ((None, None),)
    edges = [0.0, *cuts, round(max(duration, cuts[-1] + 1e-6), 6)]
    return tuple(pairwise(edges))


def _fixed_seconds(words: str) -> float:
    kind, _, length = words.partition(":")
    if kind != "fixed" or not length:
        raise ConfigError(f"{words!r} is no way to split; use scenes, fixed:12s (a length), or none")
    seconds = round(parse_time(length), 6)  # as `check_split` calls it
    if seconds <= 0:
        raise ConfigError(f"{words!r} cuts into pieces of nothing; use a length such as fixed:12s")
    return seconds
