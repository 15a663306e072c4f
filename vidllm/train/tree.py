"""Exact attention over trees: packed samples, answers that share a prompt, prompts that share a video. One mechanism.

    sequence   | prompt          | chosen   | rejected   | another prompt   | ...
    forest       node 0, a root    node 1     node 2       node 3, a root
                 parent -1         parent 0   parent 0     parent -1

A node attends to all of its ancestors and causally to itself, and to nothing else; a child's positions go on where its
parent's end. Where a model reads pictures in both directions, the tokens of each see all of it; a layer with a window
sees so many tokens of a path, its own the last. So every path from a root to a leaf is computed exactly as if it stood
alone, while a shared prefix is computed once. Plain `scaled_dot_product_attention`: no kernel of its own, on a CPU as
on CUDA, forward and backward.

    T tokens of the forest   A of a node's ancestors   R of nodes that are siblings   H heads, h of keys   d their width
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vidllm.model.attention import TREE as TREE

SIBLING_TOKENS = 256
"""Short siblings share one call up to so many tokens: each looks in vain at the others, cheaper than a call."""
ROWS = 1024
"""Of a longer child so many rows at a time, which bounds its mask to (ROWS, A + R)."""

Run = tuple[int, int]
"""(start, length) of neighbouring tokens."""


@dataclass(frozen=True)
class Node:
    """One piece of text: `parent` is the number of the node it continues, -1 for a root."""

    parent: int
    length: int
    visuals: tuple[Run, ...] = ()
    """Which of its tokens each picture has."""


@dataclass(frozen=True)
class Forest:
    """Nodes one after another in a sequence: parents before children, a tree's nodes together."""

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        for number, node in enumerate(self.nodes):
            self._check(number, node)

    def _check(self, number: int, node: Node) -> None:
        if node.length < 1:
            raise ValueError(f"node {number} has {node.length} tokens; leave an empty one out")
        if any(start < 0 or start + length > node.length for start, length in node.visuals):
            raise ValueError(f"node {number} has {node.length} tokens and a visual that is not among them")
        if not -1 <= node.parent < number:
            raise ValueError(f"node {number} names node {node.parent} as its parent; parents come first, roots name -1")
        if node.parent >= 0 and self.roots[node.parent] != max(self.roots[:number]):
            raise ValueError(f"node {number} continues node {node.parent} of a tree that ended before it")

    @property
    def length(self) -> int:
        """Tokens of all nodes."""
        return sum(node.length for node in self.nodes)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each node begins in the sequence."""
        return tuple(sum(node.length for node in self.nodes[:i]) for i in range(len(self.nodes)))

    @cached_property
    def roots(self) -> tuple[int, ...]:
        """The root each node descends from."""
        found: list[int] = []
        for number, node in enumerate(self.nodes):
            found.append(number if node.parent < 0 else found[node.parent])
        return tuple(found)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """The position of each node's first token: the tokens of all its ancestors."""
        found: list[int] = []
        for node in self.nodes:
            found.append(0 if node.parent < 0 else found[node.parent] + self.nodes[node.parent].length)
        return tuple(found)

    def ancestors(self, number: int) -> tuple[int, ...]:
        """The nodes above one, its root first."""
        parent = self.nodes[number].parent
        return () if parent < 0 else (*self.ancestors(parent), parent)

    @property
    def depth(self) -> int:
        """Tokens of its longest path."""
        return max(offset + node.length for offset, node in zip(self.offsets, self.nodes, strict=True))


class TreeAttention:
    """What a forest's tokens see, ready to be called by every layer; hand it to the language model as `TREE`.

    `two_way`: the tokens of a picture see each other, the later ones, too; where it is not `far`, only in layers with a
    window. `together`: so do those of all pictures of a node.
    A plain object on purpose: what wraps modules for several processes copies dataclasses that pass through it.
    """

    def __init__(
        self, forest: Forest, device: torch.device | str | None = None, *, two_way: bool = False, far: bool = True,
        together: bool = False,
    ) -> None:
        self.forest = forest
        self.length = forest.length
        self.calls = 0
        """Layers that have looked along it: one that attends otherwise would let samples see each other."""
        self.windowed = 0
        """Those of them that saw a window."""
        firsts = [i for i, node in enumerate(forest.nodes) if node.parent < 0]
        bounds = [*firsts, len(forest.nodes)]
        trees = [range(a, b) for a, b in pairwise(bounds)]
        self._lengths = [sum(forest.nodes[i].length for i in tree) for tree in trees]
        self._far = far
        self._trees = [
            [_Block(forest, group, device, two_way, together) for group in _groups(forest, tree)] for tree in trees
        ]

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None = None
    ) -> Tensor:
        """Queries (1, H, T, d) over keys and values (1, h, T, d) -> (1, T, H, d); each sees `window` of its path."""
        if query.shape[0] != 1 or query.shape[2] != self.length or key.shape[2] != self.length:
            raise ValueError(f"a forest of {self.length} tokens meets queries {tuple(query.shape)} and keys "
                             f"{tuple(key.shape)}; give all of it as one row, without a cache")  # fmt: skip
        self.calls += 1
        self.windowed += window is not None
        parts = (torch.split(x, self._lengths, dim=2) for x in (query, key, value))
        trees = zip(self._trees, *parts, strict=True)
        look = _Look(scaling, window, self._far or window is not None)
        seen = [_attend_tree(blocks, q, k, v, look) for blocks, q, k, v in trees]
        return torch.cat(seen, dim=2).transpose(1, 2)


class _Look(NamedTuple):
    """How one layer looks along a tree."""

    scaling: float | None
    window: int | None
    two_way: bool
    """Whether it reads pictures so, in a model that does."""


class _Block:
    """Siblings that are looked after together: where their tokens stand in their tree, and those they may see."""

    def __init__(
        self, forest: Forest, nodes: Sequence[int], device: torch.device | str | None, two_way: bool, together: bool
    ) -> None:
        base = forest.starts[forest.roots[nodes[0]]]
        above = forest.ancestors(nodes[0])
        spans = [(forest.starts[i] - base, forest.nodes[i].length) for i in (*above, *nodes)]
        self.queries = _merged(spans[len(above) :])
        self.keys = _merged(spans)
        self.seen = sum(forest.nodes[i].length for i in above)
        self.lengths = [forest.nodes[i].length for i in nodes]
        begins = zip(accumulate(self.lengths, initial=0), nodes, strict=False)
        self.visuals = [(begin + at, n) for begin, i in begins for at, n in forest.nodes[i].visuals if two_way]
        self._together = together
        self._device = device
        self._masks: dict[tuple[int, int, int, int | None, bool], tuple[int, Tensor]] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, look: _Look) -> Tensor:
        """(1, H, R, d) over (1, h, A + R, d) -> (1, H, R, d)."""
        scaling, window, two_way = look.scaling, look.window, look.two_way and bool(self.visuals)
        if window is not None and window >= self.seen + max(self.lengths):
            window = None  # nothing is further back
        if not self.seen and len(self.lengths) == 1 and not two_way and window is None:
            return _causal(query, key, value, scaling)
        rows = sum(self.lengths)
        parts = []
        for start in range(0, rows, ROWS):
            stop = min(start + ROWS, rows)
            first, mask = self._mask(start, stop, query.shape[1] // key.shape[1], window, two_way)
            k, v = (_take(x, [(first, mask.shape[1])]) for x in (key, value))
            parts.append(_masked(_take(query, [(start, stop - start)]), k, v, mask, scaling))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _mask(self, start: int, stop: int, repeat: int, window: int | None, two_way: bool) -> tuple[int, Tensor]:
        """The first of the K keys that are looked at, and (repeat * rows, K): which of them each row sees. Made once,
        for all layers of a kind.
        """
        named = start, stop, repeat, window, two_way
        if named not in self._masks:
            first, seen = self._seen(start, stop, window, two_way)
            self._masks[named] = first, seen.repeat(repeat, 1).to(self._device)
        return self._masks[named]

    def _seen(self, start: int, stop: int, window: int | None, two_way: bool) -> tuple[int, Tensor]:
        """(rows, K): all ancestors, and of the node a row is of what it may; no further back than the window."""
        node = torch.tensor([i for i, length in enumerate(self.lengths) for _ in range(length)])
        rows = torch.arange(len(node))
        own = rows <= rows[start:stop, None]
        if two_way:
            picture = self._pictures()
            own |= (picture == picture[start:stop, None]) & (picture >= 0)
        own &= node == node[start:stop, None]
        own = own[:, : int(own.any(dim=0).nonzero()[-1]) + 1]
        seen = F.pad(own, (self.seen, 0), value=True)
        if window is None:
            return 0, seen
        places = torch.cat([torch.arange(self.seen), *(self.seen + torch.arange(n) for n in self.lengths)])
        seen &= places[: seen.shape[1]] > places[self.seen + start : self.seen + stop, None] - window
        first = int(seen.any(dim=0).nonzero()[0])
        return first, seen[:, first:]

    def _pictures(self) -> Tensor:
        """(R,) the number of the picture each row is of, one for all that are seen together; -1 of none."""
        numbers = torch.full((sum(self.lengths),), -1)
        for number, (start, length) in enumerate(self.visuals):
            numbers[start : start + length] = 0 if self._together else number
        return numbers


def _groups(forest: Forest, tree: range) -> Iterator[list[int]]:
    """The nodes of a tree, short siblings together."""
    open_: dict[int, list[int]] = {}
    for number in tree:
        node = forest.nodes[number]
        group = open_.get(node.parent)
        if node.parent >= 0 and group is not None:
            if sum(forest.nodes[i].length for i in group) + node.length <= SIBLING_TOKENS:
                group.append(number)
                continue
            yield group
        open_[node.parent] = [number]
    yield from open_.values()


def _merged(spans: Sequence[Run]) -> list[Run]:
    """The same tokens in fewer runs: neighbours joined."""
    runs: list[Run] = []
    for start, length in spans:
        if runs and sum(runs[-1]) == start:
            runs[-1] = (runs[-1][0], runs[-1][1] + length)
        else:
            runs.append((start, length))
    return runs


def _attend_tree(blocks: Sequence[_Block], query: Tensor, key: Tensor, value: Tensor, look: _Look) -> Tensor:
    """One tree: (1, H, t, d) over (1, h, t, d) -> (1, H, t, d)."""
    placed: list[tuple[int, Tensor]] = []
    for block in blocks:
        q, k, v = _take(query, block.queries), _take(key, block.keys), _take(value, block.keys)
        seen = block.attend(q, k, v, look)
        pieces = torch.split(seen, [length for _, length in block.queries], dim=2)
        placed += [(start, piece) for (start, _), piece in zip(block.queries, pieces, strict=True)]
    placed.sort(key=lambda entry: entry[0])
    return torch.cat([piece for _, piece in placed], dim=2)


def _take(tokens: Tensor, runs: Sequence[Run]) -> Tensor:
    """Some of a tree's tokens (1, H, t, d); a view where they are neighbours: a prompt's keys are not copied."""
    if list(runs) == [(0, tokens.shape[2])]:
        return tokens
    parts = [tokens.narrow(2, start, length) for start, length in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _causal(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """A root: nothing before it, so the kernels' own causal flag says it all."""
    grouped = key.shape[1] < query.shape[1]
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)


def _masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """(1, H, R, d) under a mask (H/h * R, A + R); heads that share keys ask them as further rows: no key is copied."""
    batch, heads, rows, width = query.shape
    folded = query.reshape(batch, key.shape[1], -1, width)
    seen = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return seen.view(batch, heads, rows, -1)
