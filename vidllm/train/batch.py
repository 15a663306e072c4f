"""What one forward pass learns from: pieces of text and video, laid out as a forest, and the tokens to be predicted.

A target is an id with `trained` true. The position before it predicts it; for a piece's first id that is the last
position of its parent, which so predicts the first token of every answer that continues it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from vidllm.model.windows import pictures
from vidllm.train.tree import Forest, Node

if TYPE_CHECKING:
    from vidllm.visuals import Visual

Stage = Literal["tower", "tokens"]
"""How far ready features have come: out of the frozen tower, (T, P, Dv) a visual; or tokens (n, D), laid out whole."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """One node of a batch: token ids, the visuals among them, and which ids must be learned."""

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    """Per id: True where it is to be predicted."""
    visuals: tuple[Visual, ...] = ()
    """Their `position` counts from the beginning of this piece."""
    parent: int = -1
    """Number of the piece this one continues; -1 for none."""
    rope_factor: float = 1.0
    """Linear scaling of its positions; a whole tree has one."""
    features: tuple[Tensor, ...] | None = None
    """The visuals already encoded, one tensor each, up to `Learner.stage`: their pixels are not looked at then."""

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.trained):
            raise ValueError(f"a piece has {len(self.ids)} ids and {len(self.trained)} marks of what is trained")
        if self.features is not None and len(self.features) != len(self.visuals):
            raise ValueError(f"a piece has {len(self.visuals)} visuals and features of {len(self.features)}")
        for visual in self.visuals:
            if any(self.trained[visual.position : visual.position + visual.tokens]):
                raise ValueError(f"the {visual.kind} at {visual.position} is marked as text to learn")


@dataclass(frozen=True, eq=False)
class Targets:
    """N ids to predict, in the order of the sequence; each (N,) int64."""

    predictors: Tensor
    """Index in the sequence of the position that predicts each."""
    ids: Tensor
    owners: Tensor
    """Number of the piece each belongs to."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Pieces in the order they stand in the sequence."""

    pieces: tuple[Piece, ...]

    def __post_init__(self) -> None:
        for number, piece in enumerate(self.pieces):
            if piece.parent < 0 and piece.trained[:1] == (True,):
                raise ValueError(f"piece {number} begins with a trained id, which nothing predicts")
            if piece.parent >= 0 and self.pieces[piece.parent].rope_factor != piece.rope_factor:
                raise ValueError(f"piece {number} has RoPE factor {piece.rope_factor}, its parent another")

    @cached_property
    def forest(self) -> Forest:
        """The pieces as nodes, each with the places of its pictures.

        Raises:
            ValueError: a piece is empty, or stands where its tree does not.
        """
        return Forest(tuple(
            Node(p.parent, len(p.ids), tuple(run for v in p.visuals for run in pictures(p.ids, v)))
            for p in self.pieces
        ))  # fmt: skip

    @property
    def length(self) -> int:
        """Tokens, visual ones included."""
        return sum(len(piece.ids) for piece in self.pieces)

    @cached_property
    def targets(self) -> Targets:
        """All ids to predict, and where each is predicted."""
        rows = [row for number in range(len(self.pieces)) for row in self._targets_of(number)]
        table = torch.tensor(rows, dtype=torch.int64).view(-1, 3)
        return Targets(*table.unbind(dim=1))

    def _targets_of(self, number: int) -> list[tuple[int, int, int]]:
        """(predictor, id, owner) of every target of one piece."""
        piece, start = self.pieces[number], self.forest.starts[number]
        before = -1  # of a root's first id, which is never trained
        if piece.parent >= 0:
            before = self.forest.starts[piece.parent] + len(self.pieces[piece.parent].ids) - 1
        places = enumerate(zip(piece.ids, piece.trained, strict=True))
        return [(start + i - 1 if i else before, token, number) for i, (token, trained) in places if trained]
