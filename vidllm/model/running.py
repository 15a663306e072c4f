"""Running: what layers of linear attention keep of a conversation, in place of the keys and values of all its tokens.

Such a layer has one state that changes with every token. It can not be cut to fewer tokens, as keys and values can; to
go back, what it was has to be kept. So it is handled as a value: a next state takes the place of the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Part = tuple[Literal["conv", "recurrent"], int]
"""What a layer keeps, and its number: what its convolution saw last (B, width, kernel), or the sum of all it read
(B, heads, keys, values)."""


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
