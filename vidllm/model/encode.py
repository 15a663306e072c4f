"""Each picture through the vision tower once: repeats found, cached features taken, the rest run in chunks.

A picture is whatever a family's tower takes as one: a frame, a tile of a still image, a pair of frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vidllm.model.features import FeatureCache, pixel_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

Tower = Callable[[Tensor], Tensor]
"""uint8 (N, ...) pictures of one shape -> features (N, P, D)."""


def encode(
    prompts: Sequence[Sequence[Sequence[NDArray[np.uint8]]]], tower: Tower, *, like: Tensor,
    cache: FeatureCache | None, context: str, chunk: int, same_within: int = 0,
) -> list[tuple[list[Tensor], int]]:  # fmt: skip
    """For every prompt the features (T, P, D) of each of its visuals, which have T pictures, and how many pictures
    really went through the tower.

    What is left to encode of several prompts runs in common chunks of `chunk` pictures. Equal pictures are found across
    prompts, nearly equal ones (see `stand_ins`) only within their own: a prompt has the features it would have alone.
    `context` names all that shapes the features besides pixels (checkpoint, layers, normalisation); `like` is a tensor
    where and as the tower computes, as what is taken from the cache will be, too.
    """
    clips = [[picture for pictures in visuals for picture in pictures] for visuals in prompts]
    digests = [[pixel_digest(picture, context) for picture in clip] for clip in clips]
    firsts = [stand_ins(clip, keys, same_within) for clip, keys in zip(clips, digests, strict=True)]
    found: dict[str, Tensor] = {}
    missing: dict[str, NDArray[np.uint8]] = {}
    encoded = [0] * len(clips)
    for number, (clip, keys) in enumerate(zip(clips, digests, strict=True)):
        for index in sorted(set(firsts[number])):
            key = keys[index]
            if key in found or key in missing:
                continue
            if cache is not None and (hit := cache.get(key)) is not None:
                found[key] = hit
            else:
                missing[key] = clip[index]
                encoded[number] += 1
    for key, features in _run(missing, tower, chunk):
        found[key] = features
        if cache is not None:
            cache.put(key, features)
    seen = []
    for visuals, keys, mine, count in zip(prompts, digests, firsts, encoded, strict=True):
        rows = (found[keys[first]].to(like) for first in mine)
        seen.append(([torch.stack([next(rows) for _ in pictures]) for pictures in visuals], count))
    return seen


def _run(missing: Mapping[str, NDArray[np.uint8]], tower: Tower, chunk: int) -> Iterator[tuple[str, Tensor]]:
    """Every missing picture's features under its key."""
    keys, pictures = list(missing), list(missing.values())
    for group in _chunks(pictures, chunk):
        features = tower(torch.from_numpy(np.stack([pictures[index] for index in group])))
        yield from zip((keys[index] for index in group), features, strict=True)


def stand_ins(pictures: Sequence[NDArray[np.uint8]], digests: Sequence[str], within: int) -> list[int]:
    """For each picture the index of the one whose features it takes: its own, or that of one before it.

    Equal pictures are found anywhere. Pictures that differ by at most `within` grey levels in every pixel are compared
    only with the last one encoded, so that a slow pan can not creep along a chain of small steps.
    """
    seen: dict[str, int] = {}
    firsts: list[int] = []
    last = -1
    for index, picture in enumerate(pictures):
        first = seen.setdefault(digests[index], index)
        if first == index and within and last >= 0 and _close(pictures[last], picture, within):
            first = last
        last = index if first == index else last
        firsts.append(first)
    return firsts


def _close(one: NDArray[np.uint8], other: NDArray[np.uint8], within: int) -> bool:
    if one.shape != other.shape:
        return False
    return int(np.abs(one.astype(np.int16) - other).max()) <= within


def _chunks(pictures: Sequence[NDArray[np.uint8]], size: int) -> list[list[int]]:
    """Indices of pictures of one shape, at most `size` together, whatever stands between them."""
    full: list[list[int]] = []
    open_: dict[tuple[int, ...], list[int]] = {}
    for index, picture in enumerate(pictures):
        group = open_.setdefault(picture.shape, [])
        if not group:
            full.append(group)
        group.append(index)
        if len(group) == size:
            del open_[picture.shape]
    return full
