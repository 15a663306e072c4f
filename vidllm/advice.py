"""What to change so that something fits: every way out is tried before it is told, for each change moves more than it
names. More frames are more stamps; more context holds more subtitles, and leaves more to the other videos of a prompt.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from vidllm.budget import LEAST_REPLY_TOKENS
from vidllm.errors import BudgetError, Way
from vidllm.geometry import Geometry
from vidllm.planning import PlanOptions, room_of

if TYPE_CHECKING:
    from vidllm.model.spec import ModelSpec

WAYS = 2
"""So many are told."""
TRIES = 40
"""Guesses at how much is enough; each guess is the sum of the one before it."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What somebody asked for, as far as a plan depends on it."""

    question: str
    spec: ModelSpec
    options: PlanOptions


Short = Callable[[Wish], int]
"""By how many tokens a wish does not fit; 0: it does."""


def shortage(attempt: Callable[[], object]) -> int:
    """By how many tokens what is attempted does not fit; 0: it does."""
    try:
        attempt()
    except BudgetError as error:
        return max(error.short, 1)
    return 0


def ways_out(wish: Wish, short: Short, *, frames: int = 0, videos: int = 1) -> tuple[Way, ...]:
    """Two changes of which each makes `wish` fit, those that show most of what was asked for first.

    `frames` is how many frames there are to give up, at most, in each of so many `videos`.
    """
    return tuple(islice(_found(wish, short, frames, videos), WAYS))


def _found(wish: Wish, short: Short, frames: int, videos: int) -> Iterator[Way]:
    yield from _fewer_frames(wish, short, frames)
    yield from _coarser(wish, short)
    if wish.options.max_new_tokens is not None:
        yield from _shorter_reply(wish, short, videos, wish.options.max_new_tokens)
    yield from _more_rope(wish, short, videos)
    if wish.options.subtitles and not short(_with(wish, subtitles=False)):
        yield Way("subtitles", False)
    if len(wish.question) > 1 and not short(replace(wish, question="?")):
        yield Way("question")
    if wish.options.max_new_tokens is None:  # it has shrunk as far as is sensible; some answers are a word
        yield from _shorter_reply(wish, short, videos, LEAST_REPLY_TOKENS)
    yield from _more_context(wish, short, videos)


def _with(wish: Wish, **options: object) -> Wish:
    return replace(wish, options=replace(wish.options, **options))  # type: ignore[arg-type]


def _fewer_frames(wish: Wish, short: Short, frames: int) -> Iterator[Way]:
    """As many as fit; only where their number was named, for else there are as few as can be."""
    if wish.options.frames is None and wish.options.fps is None:
        return
    most = min(frames, wish.options.frames or frames)  # so many do not fit
    found = bisect_left(range(1, most), True, key=lambda count: short(_with(wish, frames=count)) > 0)
    if found:
        yield Way("frames", found)


def _coarser(wish: Wish, short: Short) -> Iterator[Way]:
    """The smallest stride that does."""
    geometry = wish.spec.geometry
    if not isinstance(geometry, Geometry):
        return
    strides = range(1, min(geometry.rows, geometry.cols) + 1)
    found = bisect_left(strides, True, key=lambda stride: not short(_with(wish, stride=stride)))
    if found < len(strides):
        yield Way("stride", strides[found])


def _shorter_reply(wish: Wish, short: Short, videos: int, tokens: int) -> Iterator[Way]:
    """As many tokens as fit, fewer than so many."""
    for _ in range(TRIES):
        if tokens < 1:
            return
        missing = short(_with(wish, max_new_tokens=tokens))
        if not missing:
            yield Way("max_new_tokens", tokens)
            return
        tokens -= missing * videos  # each of several videos is given its share of what becomes free


def _more_rope(wish: Wish, short: Short, videos: int) -> Iterator[Way]:
    room = room_of(wish.spec, wish.options)
    factor = wish.options.rope_max
    for _ in range(TRIES if room.scalable else 0):
        missing = short(_with(wish, rope_max=factor))
        if not missing:
            yield Way("rope_max", factor)
            return
        enough = (math.floor(room.context * factor) + missing * videos) / room.context
        factor = math.ceil(enough * 100 - 1e-6) / 100  # 838 / 200 is a rounding more than 4.19


def _more_context(wish: Wish, short: Short, videos: int) -> Iterator[Way]:
    """A model that holds it without scaling."""
    context = room_of(wish.spec, wish.options).capacity + short(wish)
    for _ in range(TRIES):
        missing = short(replace(wish, spec=replace(wish.spec, context=context)))
        if not missing:
            yield Way("context", context)
            return
        context += missing * videos
