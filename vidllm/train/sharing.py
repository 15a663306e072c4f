"""Conversations that begin alike, laid out as trees: what several of them show is encoded and read once.

    three questions about one video      video ──┬─ question ── answer          a pair      prompt ──┬─ chosen
                                                 ├─ question ── answer                               └─ rejected
                                                 └─ question ── answer

Every path from a root to a leaf is computed exactly as if it stood alone. A beginning is shared only where ids *and*
media agree: two clips of as many frames have the same ids.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from vidllm.prompt import Example
from vidllm.train.batch import Piece
from vidllm.train.cache import visual_digest

LEAST_SHARED = 32
"""Tokens: a shorter common beginning (the template's first words) is not worth a node of its own."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stem:
    """What others may have too, and the ways it goes on: conversations with the index behind the last id of each."""

    length: int
    """Ids that may be shared, the same in all of `ends`: none of them is trained."""
    ends: tuple[tuple[Example, int], ...]

    @property
    def example(self) -> Example:
        """One of those that begin so."""
        return self.ends[0][0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Planted:
    """Pieces depth first, as `Forest` wants them; `leaves` are the pieces that end each stem's conversations."""

    pieces: tuple[Piece, ...]
    leaves: tuple[tuple[int, ...], ...]


def plant(stems: Sequence[Stem], *, sharing: bool = True) -> Planted:
    """Grow one tree for every common beginning; `sharing` False writes every conversation out, one after another."""
    return _Planter(stems).planted() if sharing else _apart(stems)


def _apart(stems: Sequence[Stem]) -> Planted:
    pieces: list[Piece] = []
    leaves = []
    for stem in stems:
        leaves.append(tuple(range(len(pieces), len(pieces) + len(stem.ends))))
        pieces += [_piece(example, 0, end, -1) for example, end in stem.ends]
    return Planted(pieces=tuple(pieces), leaves=tuple(leaves))


class _Planter:
    def __init__(self, stems: Sequence[Stem]) -> None:
        self._stems = stems
        self._signs = [_signs(stem) for stem in stems]
        self._pieces: list[Piece] = []
        self._leaves: dict[int, tuple[int, ...]] = {}

    def planted(self) -> Planted:
        self._grow(range(len(self._stems)), 0, -1)
        return Planted(pieces=tuple(self._pieces), leaves=tuple(self._leaves[i] for i in range(len(self._stems))))

    def _grow(self, numbers: Sequence[int], begin: int, parent: int) -> None:
        """Plant what these stems have from `begin` on, below piece `parent`."""
        for group in self._groups(numbers, begin):
            if len(group) == 1 and len(self._stems[group[0]].ends) == 1:
                [(example, last)] = self._stems[group[0]].ends
                self._leaves[group[0]] = (self._add(example, begin, last, parent),)
                continue
            end = self._common_end(group, begin)
            node = self._add(self._stems[group[0]].example, begin, end, parent)
            for number in group:
                if self._stems[number].length == end:
                    ends = self._stems[number].ends
                    self._leaves[number] = tuple(self._add(example, end, last, node) for example, last in ends)
            self._grow([number for number in group if number not in self._leaves], end, node)

    def _groups(self, numbers: Sequence[int], begin: int) -> list[list[int]]:
        """Stems that go on alike for `LEAST_SHARED` tokens, or to their end."""
        groups: dict[Hashable, list[int]] = {}
        for number in numbers:
            head = tuple(self._signs[number][begin : begin + LEAST_SHARED])
            factor = self._stems[number].example.prompt.rope_factor
            groups.setdefault((factor, head), []).append(number)
        return list(groups.values())

    def _common_end(self, group: Sequence[int], begin: int) -> int:
        first, *others = (self._signs[number] for number in group)
        end = len(first)
        for signs in others:
            pairs = zip(first[begin:end], signs[begin:], strict=False)
            end = begin + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return end

    def _add(self, example: Example, begin: int, end: int, parent: int) -> int:
        self._pieces.append(_piece(example, begin, end, parent))
        return len(self._pieces) - 1


def _signs(stem: Stem) -> list[Hashable]:
    """What the stem has at each place: its id, or for the first token of a picture what is seen there."""
    signs: list[Hashable] = list(stem.example.prompt.input_ids[: stem.length])
    for visual in stem.example.prompt.visuals:
        if visual.position < stem.length:
            signs[visual.position] = visual_digest(visual)
    return signs


def _piece(example: Example, begin: int, end: int, parent: int) -> Piece:
    """Ids `begin` to `end` of a conversation, and the visuals that begin among them."""
    prompt = example.prompt
    visuals = tuple(replace(v, position=v.position - begin) for v in prompt.visuals if begin <= v.position < end)
    return Piece(
        ids=prompt.input_ids[begin:end], trained=example.trained[begin:end], visuals=visuals, parent=parent,
        rope_factor=prompt.rope_factor,
    )  # fmt: skip
