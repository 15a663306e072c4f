"""Running: what layers of linear attention, and short convolutions, keep of a conversation in place of all its tokens.

Such a layer has one state that changes with every token. It can not be cut to fewer tokens, as keys and values can; to
go back, what it was has to be kept. So it is handled as a value: a next state takes the place of the one before.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

log = logging.getLogger("vidllm")

Part = tuple[Literal["conv", "recurrent"], int]
"""What a layer keeps, and its number: what its convolution saw last (B, width, kernel), or the sum of all it read
(B, heads, keys, values)."""
KERNELS = {"fla": "flash-linear-attention", "causal_conv1d": "causal-conv1d"}
"""Modules that transformers computes such layers with on a GPU where they are there, and the packages they come in."""


def absent_kernels() -> list[str]:
    """Packages without which it does so in plain torch: rightly and slowly."""
    return [package for module, package in KERNELS.items() if find_spec(module) is None]


def note_slow_layers(model_type: str, device: torch.device) -> None:
    """Say so where such layers will be slow on this device, and what would help."""
    if device.type == "cuda" and (absent := absent_kernels()):
        log.warning("%s: its linear attention is computed in plain torch, slow on a GPU; in bfloat16 it is faster "
                    "after pip install %s", model_type, " ".join(absent))  # fmt: skip


@dataclass(frozen=True, eq=False)
class Running:
    """The states of B rows at one point of each; none before the first token, or where all layers keep keys and values.

    No tensor is written to once it is in `parts`, so a copy shares them.
    """

    parts: dict[Part, Tensor] = field(default_factory=dict)

    def copy(self) -> Running:
        """The same, to go on from."""
        return Running(dict(self.parts))

    @classmethod
    def gathered(cls, rows: Sequence[Running]) -> Running:
        """Several rows as one batch."""
        return cls({part: torch.cat([row.parts[part] for row in rows]) for part in rows[0].parts})

    def row(self, index: int) -> Running:
        """One row of the batch."""
        return Running({part: states[index : index + 1] for part, states in self.parts.items()})

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return sum(states.nbytes for states in self.parts.values())
