"""Keys and values of many conversations side by side, in buffers that never move while they are written.

    row 0 | v v v v v q q a a . . . . . |        each row has its own length; a decoding step writes one token behind
    row 1 | v v q q a . . . . . . . . . |        every row at once, and a mask hides what lies beyond a row's end
    row 2 | v v v v v v v v q a a a . . |

Running rows are the first ones, without gaps: when one ends, the last takes its place. Concatenating a growing cache
was the larger part of a decoding step; here a step copies one token a row. What layers of linear attention keep is one
value a row, gathered for a step and taken apart behind it.

Shapes: S rows, C capacity in tokens, h key heads, d their width (values may have another).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidllm.model.kv import Layer, Past
from vidllm.model.running import Running

RUNNING_COPIES = 3
"""Of a row's running state in the middle of a step: as it was, gathered with those of others, and as it will be."""


class Slots:
    """`rows` conversations of up to `capacity` tokens each, of the layers with these numbers. `lengths[i]` is what row
    i holds, `running[i]` what runs beside it.
    """

    def __init__(self, numbers: Collection[int], rows: int, capacity: int, *, wide_bytes: int = 0) -> None:
        self.numbers = numbers
        self.layers: dict[int, Layer] = {}  # made when the first token comes
        self.rows = rows
        self.capacity = capacity
        self.lengths: list[int] = [0] * rows
        self.running: dict[int, Running] = {}
        self.wide_bytes = wide_bytes

    @torch.inference_mode()
    def resize(self, rows: int, capacity: int) -> None:
        """Other buffers with the tokens that are there; an exception (no memory) leaves the smaller of both sizes."""
        self.rows, self.capacity = min(rows, self.rows), min(capacity, self.capacity)
        for number, layer in self.layers.items():
            self.layers[number] = layer.resized(rows, capacity)
        self.rows, self.capacity = rows, capacity
        self.lengths = [*self.lengths[:rows], *[0] * (rows - len(self.lengths))]

    @torch.inference_mode()
    def row(self, index: int, start: Start | None = None) -> Row:
        """Row `index` as a past of its own, emptied or beginning with `start`; what is read through it is kept."""
        self.lengths[index] = 0 if start is None else start.length
        for number, (keys, values) in start.layers.items() if start else ():
            self.layers[number].write(slice(index, index + 1), 0, keys, values)
        running = self.running[index] = start.running.copy() if start else Running()
        return Row(self, index, running)

    @torch.inference_mode()
    def start(self, index: int, length: int) -> Start:
        """A copy of the first `length` tokens of row `index`, beside which nothing runs."""
        return Start({
            number: (keys[index].clone(), values[index].clone())
            for number, (keys, values) in ((n, layer.first(length)) for n, layer in self.layers.items())
        })  # fmt: skip

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Row `source` becomes row `target`, whose own tokens are given up."""
        length = self.lengths[source]
        for layer in self.layers.values():
            keys, values = layer.first(length)
            layer.write(slice(target, target + 1), 0, keys[source], values[source])
        self.lengths[target] = length
        self.running[target] = self.running.pop(source)

    def step(self, count: int, device: torch.device) -> Step:
        """The first `count` rows as the past of one more token each."""
        running = Running.gathered([self.running[index] for index in range(count)])
        return Step.of(self, self.lengths[:count], running, device)

    def stepped(self, step: Step) -> None:
        """The token of that step stays: it is part of each row now."""
        self.running = {index: step.running.row(index) for index in range(len(step.ends))}
        for index in self.running:
            self.lengths[index] += 1

    @property
    def token_bytes(self) -> int:
        """Bytes of one token of one row, all layers; 0 before the first was written."""
        return sum(layer.token_bytes for layer in self.layers.values())

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: room for its tokens, and for what runs beside them."""
        running = max((running.nbytes for running in self.running.values()), default=0)
        return self.token_bytes * self.capacity + RUNNING_COPIES * running


@dataclass(frozen=True, eq=False)
class Start:
    """What rows may begin with: (h, L, d) keys and values of each layer, and what runs beside them."""

    layers: Mapping[int, tuple[Tensor, Tensor]]
    running: Running = field(default_factory=Running)

    @property
    def length(self) -> int:
        """Tokens."""
        return next(iter(self.layers.values()))[0].shape[1]

    def first(self, length: int) -> Start:
        """The first `length` tokens of it, beside which nothing runs."""
        return Start({n: (keys[:, :length], values[:, :length]) for n, (keys, values) in self.layers.items()})


@dataclass(frozen=True, eq=False)
class Row(Past):
    """One row while its prompt is read; what a language model takes as `past_key_values`."""

    slots: Slots
    index: int
    running: Running

    @property
    def length(self) -> int:
        """Tokens before the ones being read."""
        return self.slots.lengths[self.index]

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write (1, h, L, d) into one layer; views (1, h, filled, d). The row's length counts up at the last layer."""
        slots, start = self.slots, self.length
        if layer_idx not in slots.layers:
            share = slots.wide_bytes // len(slots.numbers)
            slots.layers[layer_idx] = Layer.like(keys, values, slots.rows, slots.capacity, share)
        filled = slots.layers[layer_idx].write(slice(self.index, self.index + 1), start, keys, values)
        if layer_idx == max(slots.numbers):
            slots.lengths[self.index] = start + keys.shape[2]
        return filled


@dataclass(frozen=True, eq=False)
class Step(Past):
    """Several rows while each reads one token; what a language model takes as `past_key_values`.

    Lengths count up and states run on afterwards, by `Slots.stepped`: a step that failed can be made again.
    """

    slots: Slots
    running: Running
    ends: Tensor
    """(n,) where each row's token is written."""
    longest: int
    """Tokens of the longest row, the new one included."""
    mask: Tensor
    """(n, 1, 1, longest): which tokens each row may see."""

    @classmethod
    def of(cls, slots: Slots, lengths: Sequence[int], running: Running, device: torch.device) -> Step:
        """One more token behind rows of these lengths."""
        ends = torch.tensor(lengths, device=device)
        longest = max(lengths) + 1
        mask = torch.arange(longest, device=device) <= ends[:, None]
        return cls(slots, running, ends, longest, mask[:, None, None])

    @property
    def length(self) -> int:
        """Tokens of the longest row before this one."""
        return self.longest - 1

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write (n, h, 1, d) into one layer; views (n, h, longest, d)."""
        layer = self.slots.layers[layer_idx]
        count, ends = len(keys), self.ends.to(keys.device)
        rows = torch.arange(count, device=keys.device)
        layer.keys[rows, :, ends] = keys[:, :, 0].to(layer.keys.dtype)
        layer.values[rows, :, ends] = values[:, :, 0].to(layer.values.dtype)
        return layer.keys[:count, :, : self.longest], layer.values[:count, :, : self.longest]
