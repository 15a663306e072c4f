"""An order by chance that only numbers decide: the same on every machine, under every version, in every process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def shuffled(items: Sequence[int], *numbers: int) -> list[int]:
    """The items sorted by a mix of each one's place with `numbers` (a seed, an epoch ...)."""
    key = np.uint64(0)
    for number in numbers:
        key = _mixed(np.asarray([key ^ np.uint64(number & _WORD)]))[0]
    places = np.arange(len(items), dtype=np.uint64)
    order = np.argsort(_mixed(places * _GOLDEN ^ key), kind="stable")
    return [items[i] for i in order]


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finisher: every bit of a word changes about half of the bits of its mix."""
    words = words + _GOLDEN
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
