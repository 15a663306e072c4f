"""Each picture through the vision tower once: repeats found, cached features taken, the rest run in chunks.

A picture is whatever a family's tower takes as one: a frame, a tile of a still image, a pair of frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vidllm.model.features import FeatureCache, pixel_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

Tower = Callable[[Tensor], Tensor]
"""uint8 (N, ...) pictures of one shape -> features (N, P, D)."""


def encode_once(
    pictures: Sequence[NDArray[np.uint8]],
    tower: Tower,
    *,
    cache: FeatureCache | None,
    context: str,
    chunk: int,
    same_within: int = 0,
) -> tuple[list[Tensor], int]:
    """Features (P, D) of every picture, in order, and how many really went through the tower.

    `context` names all that shapes the features besides pixels (checkpoint, layers, normalisation). `chunk` pictures
    run at a time. `same_within`: see `stand_ins`.
    """
    digests = [pixel_digest(picture, context) for picture in pictures]
    firsts = stand_ins(pictures, digests, same_within)
    wanted = sorted(set(firsts))
    found = {} if cache is None else {i: hit for i in wanted if (hit := cache.get(digests[i])) is not None}
    missing = [index for index in wanted if index not in found]
    for group in _chunks(pictures, missing, chunk):
        for index, features in zip(group, tower(torch.from_numpy(np.stack([pictures[i] for i in group]))), strict=True):
            found[index] = features
            if cache is not None:
                cache.put(digests[index], features)
    return [found[first] for first in firsts], len(missing)


def stand_ins(pictures: Sequence[NDArray[np.uint8]], digests: Sequence[str], within: int = 0) -> list[int]:
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


def _chunks(pictures: Sequence[NDArray[np.uint8]], wanted: Sequence[int], size: int) -> list[list[int]]:
    """Consecutive wanted pictures of one shape, at most `size` together."""
    groups: list[list[int]] = []
    for index in wanted:
        fits = groups and len(groups[-1]) < size and pictures[groups[-1][0]].shape == pictures[index].shape
        if fits:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
