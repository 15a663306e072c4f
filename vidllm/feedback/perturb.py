"""The same look at a clip with its frames tampered with: what a model says then, it does not say because of the clip.

    as it is   a b c d e f g h
    dropped    a a a a e e e e      the picture stands still where frames are gone
    shuffled   d a h c b g e f
    reversed   h g f e d c b a
    blank      . . . . . . . .

Times and tokens stay those of the plan: only pixels change, so that nothing else can be what the answer came from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vidllm.clip import Clip
from vidllm.errors import ConfigError
from vidllm.prompt import Message
from vidllm.visuals import Image

Change = Literal["dropped", "shuffled", "reversed", "blank"]
CHANGES: tuple[Change, ...] = get_args(Change)
KEPT = 4
"""Of so many frames in a row, `dropped` keeps the first."""
GREY = 127

Pixels = NDArray[np.uint8]


def _dropped(pixels: Pixels, _: np.random.Generator) -> Pixels:
    places = np.arange(len(pixels))
    kept: Pixels = pixels[places - places % KEPT]
    return kept


def _shuffled(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """In another order, whatever was drawn; two equal orders of few frames are drawn again."""
    order = rng.permutation(len(pixels))
    while len(pixels) > 1 and np.array_equal(order, np.arange(len(pixels))):
        order = rng.permutation(len(pixels))
    return pixels[order]


def _reversed(pixels: Pixels, _: np.random.Generator) -> Pixels:
    return pixels[::-1].copy()


def _blank(pixels: Pixels, _: np.random.Generator) -> Pixels:
    return np.full_like(pixels, GREY)


_HOW: dict[Change, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "dropped": _dropped, "shuffled": _shuffled, "reversed": _reversed, "blank": _blank,
}  # fmt: skip


def perturb(clip: Clip, change: Change, seed: int) -> Clip:
    """The clip with its frames changed; the same seed gives the same shuffle."""
    pixels = _HOW[change](clip.frames.pixels, np.random.default_rng(seed))
    return replace(clip, frames=replace(clip.frames, pixels=pixels), key="", features=None)


def perturb_messages(messages: Sequence[Message], change: Change, seed: int) -> tuple[Message, ...] | None:
    """The same conversation about changed media; None when nothing in it changes (a still has no order)."""

    def changed(medium: Clip | Image) -> Clip | Image:
        if isinstance(medium, Clip):
            return perturb(medium, change, seed)
        return Image(np.full_like(medium.pixels, GREY), medium.source) if change == "blank" else medium

    made = tuple(replace(message, media=tuple(changed(m) for m in message.media)) for message in messages)
    before = [medium for message in messages for medium in message.media]
    after = [medium for message in made for medium in message.media]
    return made if any(not _same(a, b) for a, b in zip(before, after, strict=True)) else None


def _same(one: Clip | Image, other: Clip | Image) -> bool:
    a, b = (m.frames.pixels if isinstance(m, Clip) else m.pixels for m in (one, other))
    return np.array_equal(a, b)


def parse_changes(text: str) -> tuple[Change, ...]:
    """ "shuffled,blank", "all" or "none". Raises ConfigError for an unknown word."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if words in ([], ["none"]):
        return ()
    if words == ["all"]:
        return CHANGES
    known: dict[str, Change] = {change: change for change in CHANGES}
    for word in words:
        if word not in known:
            raise ConfigError(f"{word!r} is no change of a clip; there are {', '.join(CHANGES)}, or all")
    return tuple(dict.fromkeys(known[word] for word in words))
