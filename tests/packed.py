"""Examples one after another in a batch, each for itself, as training lays them out where nothing is shared."""

from __future__ import annotations

from collections.abc import Sequence

from vidllm.prompt import Example
from vidllm.train.batch import Batch
from vidllm.train.sharing import Stem, plant


def pack(examples: Sequence[Example]) -> Batch:
    """Each a root of its own."""
    stems = [Stem(length=0, ends=((example, len(example.trained)),)) for example in examples]
    return Batch(pieces=plant(stems, sharing=False).pieces)
