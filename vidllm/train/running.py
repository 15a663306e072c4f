"""Linear attention, and short convolutions, over trees: a node goes on with the state its parent ended with, a root
with none.

    sequence   | video       | question 1  | question 2  |
    state      0 ──────────▶ s ──────────▶ .             |      what both questions learn goes back through s
                             └─────────────────────────▶ .

Such a layer knows the past by its state alone, see `vidllm.model.running`: no mask could part two samples. So each node
is a call of transformers' own layer. Nodes that nothing continues share one, padded behind, where no token looks; of
the others each has its own, for its last state must be that of its last token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.model.attention import TREE
from vidllm.model.kv import KeyValues
from vidllm.model.running import Running

if TYPE_CHECKING:
    from vidllm.train.tree import Forest, TreeAttention

CHUNK = 64
"""Tokens that such a layer computes at a time, and fills up with nothing by itself."""


_PAST = {"linear_attn": "cache_params", "conv": "past_key_values"}
"""What transformers calls such layers, and which of their arguments the past is."""


def run_along_trees(language: nn.Module) -> None:
    """Let a language model's layers that keep a state, where it has any, run along what is handed over as `TREE`."""
    layers: Any = language.layers
    for layer, (name, past) in product(layers, _PAST.items()):
        if (running := getattr(layer, name, None)) is not None:
            running.forward = partial(_forward, running.forward, past)


def _forward(plain: Callable[..., Tensor], past: str, hidden_states: Tensor, **more: Any) -> Tensor:
    tree: TreeAttention | None = more.pop(TREE, None)
    if tree is None:
        return plain(hidden_states, **more)
    tree.calls += 1
    return _run(lambda hidden, kept: plain(hidden, **{past: kept}), hidden_states, tree.forest)


def _run(layer: Callable[[Tensor, KeyValues], Tensor], hidden: Tensor, forest: Forest) -> Tensor:
    """(1, T, D) of a forest -> (1, T, D)."""
    pieces = torch.split(hidden[0], [node.length for node in forest.nodes])
    seen: dict[int, Tensor] = {}
    ends = {-1: Running()}
    for group, room in _groups(forest):
        past = KeyValues((), 0)  # such a layer asks only for its running state: there are no keys or values
        past.running = Running.gathered([ends[forest.nodes[number].parent] for number in group])
        padded = [F.pad(pieces[number], (0, 0, 0, room - len(pieces[number]))) for number in group]
        read = layer(torch.stack(padded), past)
        seen |= {number: row[: len(pieces[number])] for number, row in zip(group, read, strict=True)}
        ends[group[0]] = past.running  # looked up for nodes with children alone, which are groups of one
    return torch.cat([seen[number] for number in range(len(pieces))])[None]


def _groups(forest: Forest) -> Iterator[tuple[list[int], int]]:
    """Nodes that are read together, parents before children, and how many tokens of room each takes."""
    parents = {node.parent for node in forest.nodes}
    leaves: dict[tuple[bool, int], list[int]] = {}
    for number, node in enumerate(forest.nodes):
        if number in parents:
            yield [number], node.length
        else:
            leaves.setdefault((node.parent < 0, -(-node.length // CHUNK)), []).append(number)
    for group in leaves.values():
        # The layer takes a single token for a step of decoding, and its fast code for that has no gradient.
        yield group, max(2, *(forest.nodes[number].length for number in group))
