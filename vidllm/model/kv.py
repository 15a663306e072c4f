"""Keys and values of a conversation, what runs along beside them, and the State that points into them.

A language model's cache grows by one token a step. Concatenating it each time copies everything that is already there;
here each layer writes into a buffer with room to spare and shows a view of the part that is filled. `slots` keeps those
of many conversations side by side.

    buffer   | v v v v v v q q a a . . . . |      v video, q question, a answer, . room
    states            ^P      ^A  ^tip

Several states may point into one buffer. Extending the tip writes behind it. Extending an older state (P) copies its
prefix to a buffer of its own first, so no state's past is ever overwritten; to continue P without that copy, rewind to
it, which gives up what came after. Layers of linear attention have no such buffer: each state holds what they kept at
its point, see `running`.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from vidllm.model.running import Running


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer's keys and values, in buffers (S, h, C, d) with room for C tokens in each of S rows.

    They are float32, whatever comes in, as long as both fit into `wide_bytes`; else of the `dtype` that came.
    """

    keys: Tensor
    values: Tensor
    dtype: torch.dtype
    wide_bytes: int

    @classmethod
    def like(
        cls, keys: Tensor, values: Tensor, rows: int, capacity: int, wide_bytes: int, dtype: torch.dtype | None = None
    ) -> Layer:
        """Buffers for tokens like (.., h, .., d) each, which know h, d and, unless told, the dtype."""
        shapes = [(rows, like.shape[1], capacity, like.shape[3]) for like in (keys, values)]
        dtype = dtype or keys.dtype
        wide = 4 * sum(map(math.prod, shapes)) <= wide_bytes
        # Zeros: what lies beyond a row's end is masked, but a NaN left in memory would reach the sum as 0 x NaN.
        of_keys, of_values = (keys.new_zeros(shape, dtype=torch.float32 if wide else dtype) for shape in shapes)
        return cls(of_keys, of_values, dtype, wide_bytes)

    def resized(self, rows: int, capacity: int, length: int | None = None) -> Layer:
        """The same tokens in other buffers, as many rows and tokens as fit; or the first `length`."""
        other = Layer.like(self.keys, self.values, rows, capacity, self.wide_bytes, self.dtype)
        kept, length = min(rows, len(self.keys)), min(capacity, self.capacity if length is None else length)
        other.write(slice(kept), 0, self.keys[:kept, :, :length], self.values[:kept, :, :length])
        return other

    def write(self, rows: slice, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write tokens (.., h, L, d) behind the first `start` of these rows; all that is filled there, as views."""
        end = start + keys.shape[-2]
        self.keys[rows, :, start:end] = keys
        self.values[rows, :, start:end] = values
        return self.keys[rows, :, :end], self.values[rows, :, :end]

    def first(self, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first `length` tokens of every row, as views."""
        return self.keys[:, :, :length], self.values[:, :, :length]

    @property
    def capacity(self) -> int:
        """Tokens there is room for in each row."""
        return self.keys.shape[2]

    @property
    def token_bytes(self) -> int:
        """Bytes of one token of one row."""
        return sum(part.shape[1] * part.shape[3] * part.element_size() for part in (self.keys, self.values))


class Past(Protocol):
    """What a language model is given of the past: its attention layers `update` it, mask code asks for lengths, and
    layers of linear attention get and update their states.
    """

    running: Running
    """What such layers keep of what was read, so far."""

    @property
    def length(self) -> int:
        """Tokens before the ones being read."""

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append to one layer; all its keys and values."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens filled."""
        return self.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Where the next query token stands."""
        return self.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """(tokens visible to the next queries, offset of the first)."""
        return self.get_seq_length(layer_idx) + query_length, 0

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """What the layer's convolution saw last, to be written to: reading one token moves it on in place."""
        last = self.running.parts.get(("conv", layer_idx))
        if last is not None:
            last = self.running.parts["conv", layer_idx] = last.clone()
        return last

    def update_conv_state(self, inputs: Tensor, layer_idx: int, *, conv_kernel_size: int) -> Tensor:
        """Keep the last of these inputs (B, width, L); all of them behind those kept before."""
        last = self.running.parts.get(("conv", layer_idx))
        seen = inputs if last is None else torch.cat([last, inputs], dim=-1)
        self.running.parts["conv", layer_idx] = pad(seen, (conv_kernel_size - seen.shape[-1], 0))  # below 0 it cuts
        return seen

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """The layer's state behind all that was read."""
        return self.running.parts.get(("recurrent", layer_idx))

    def update_recurrent_state(self, state: Tensor, layer_idx: int) -> Tensor:
        """Keep the layer's next state."""
        self.running.parts["recurrent", layer_idx] = state
        return state

    def is_recording_past(self, layer_idx: int) -> bool:
        """Whether states of before are kept, too: they are, by each `State`."""
        return False


class KeyValues(Past):
    """Keys and values of the layers that have them: what a transformers model takes as `past_key_values`.

    Its methods are the part of transformers' cache that models call; not inheriting from it keeps a second of imports
    away from those who need no transformers.
    """

    length: int = 0
    """Tokens filled; it counts up at the last layer: a read that was interrupted leaves nothing behind."""

    def __init__(self, numbers: Collection[int], capacity: int, *, wide_bytes: int = 0) -> None:
        """Nothing filled of the layers with these numbers, room for `capacity` tokens before the first growth; float32
        if all fits into `wide_bytes`.
        """
        self.layers: dict[int, Layer] = {}  # made when the first token comes
        self.running = Running()  # of the read under way, which begins with that of its `State`
        self.cuts: list[int] = []
        """Every length this was ever rewound to; a state longer than a later cut has lost its past."""
        self._numbers, self._last = numbers, max(numbers, default=0)
        self._capacity, self._wide_bytes = capacity, wide_bytes

    def fork(self, length: int) -> KeyValues:
        """The first `length` tokens in buffers of their own, with the same room behind them."""
        twin = KeyValues(self._numbers, self._capacity, wide_bytes=self._wide_bytes)
        twin.layers = {n: layer.resized(len(layer.keys), layer.capacity, length) for n, layer in self.layers.items()}
        twin.length = length
        return twin

    def rewind(self, length: int) -> None:
        """Give up everything behind the first `length` tokens, in place and without copying."""
        self.cuts.append(length)
        self.length = length

    # Nothing is forgotten here: of a model with a sliding window, its own mask hides what is too old.

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append to one layer; all its keys and values."""
        end, layer = self.length + keys.shape[-2], self.layers.get(layer_idx)
        if layer is None:
            room, share = max(end, self._capacity), self._wide_bytes // len(self._numbers)
            layer = self.layers[layer_idx] = Layer.like(keys, values, len(keys), room, share)
        elif end > layer.capacity:  # half as much again: copying stays a constant share of the work
            room = max(end, layer.capacity * 3 // 2)
            layer = self.layers[layer_idx] = layer.resized(len(keys), room, self.length)
        filled = layer.write(slice(None), self.length, keys, values)
        if layer_idx == self._last:
            self.length = end
        return filled


@dataclass(frozen=True, eq=False)
class Foothold:
    """A point of a conversation that can be gone back to though its layers run along: behind its visuals, mostly."""

    length: int
    """Tokens before it."""
    running: Running
    """What those layers kept there."""


@dataclass(frozen=True, eq=False)
class State:
    """A point in a conversation: all before it is in `kv`, the model's opinion of what comes next in `logits`.

    Frozen, and safe to continue in several ways: `extend` never changes what an existing state means.
    """

    logits: Tensor
    """(V,) float32 for the next token; (0,) right after a rewind to a shorter length, until something is added."""
    length: int
    """Tokens before this point."""
    kv: KeyValues
    rope_factor: float = 1.0
    position_offset: int = 0
    """Next position = length + offset; native families number a video's tokens by time and place, not by count."""
    encode_seconds: float = 0.0
    """Vision time of the prefill this descends from."""
    prefill_seconds: float = 0.0
    """Language time of that prefill."""
    frames_encoded: int = 0
    """Frames that went through the vision tower for it; the rest were repeats or came from the cache."""
    pieces: tuple[Tensor, ...] = ()
    """Embeddings (1, n, D) of all that was read, in order; none unless the model may have to read it again."""
    turned: bool = False
    """Whether it was read with the positions of a long text (`longrope`)."""
    running: Running = field(default_factory=Running)
    """What layers of linear attention keep at this point."""
    foothold: Foothold | None = None
    """Where going back into it leads; None where keys and values are all there is, which can be cut anywhere."""
    mark: int = field(default=0, repr=False)
    """How many cuts `kv` had seen when this state was made."""

    def grown(self, logits: Tensor, kv: KeyValues) -> State:
        """The state after more text in `kv`, which is this one's own or a copy of it."""
        return replace(self, logits=logits, length=kv.length, kv=kv, running=kv.running, mark=len(kv.cuts))

    @property
    def alive(self) -> bool:
        """False once the conversation was rewound to before this point."""
        return all(cut >= self.length for cut in self.kv.cuts[self.mark :])


def writable(state: State) -> KeyValues:
    """The cache to extend `state` in: its own when it is the tip, else a copy of its prefix.

    Raises:
        ValueError: the state was given up by a rewind.
    """
    if not state.alive:
        raise ValueError(f"this state of {state.length} tokens was given up when its conversation was rewound")
    kv = state.kv if state.kv.length == state.length else state.kv.fork(state.length)
    kv.running = state.running.copy()
    return kv


def rewind(state: State, length: int | None = None) -> State:
    """Make `state` (or its first `length` tokens) the tip again, giving up what came after; nothing is copied.

    What runs can not be cut: going back into a state with a foothold leads there, to fewer tokens than `length`.

    Raises:
        ValueError: the state was itself given up, or `length` lies beyond it, or before its foothold.
    """
    length = state.length if length is None else length
    back = state.foothold
    if not state.alive or not (back.length if back else 0) <= length <= state.length:
        raise ValueError(f"can not rewind a state of {state.length} tokens to {length}, alive: {state.alive}")
    logits, running = state.logits, state.running
    if length < state.length:
        logits = torch.empty(0)
        if back is not None:
            length, running = back.length, back.running
    state.kv.rewind(length)
    pieces = (torch.cat(state.pieces, dim=1)[:, :length],) if state.pieces else ()
    mark = len(state.kv.cuts)
    return replace(state, logits=logits, length=length, running=running, pieces=pieces, mark=mark)
