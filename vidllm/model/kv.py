"""Keys and values of a running conversation, and the State that points into them.

A language model's cache grows by one token a step. Concatenating it each time copies everything that is already there;
here each layer writes into a buffer with room to spare and shows a view of the part that is filled.

    buffer   | v v v v v v q q a a . . . . |      v video, q question, a answer, . room
    states            ^P      ^A  ^tip

Several states may point into one buffer. Extending the tip writes behind it. Extending an older state (P) copies its
prefix to a buffer of its own first, so no state's past is ever overwritten; to continue P without that copy, rewind to
it, which gives up what came after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class GrowingLayer(CacheLayerMixin):
    """One layer's keys and values, (B, heads, length, width), as views into buffers that hold `capacity` tokens."""

    is_croppable = True

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take buffers of the shape, dtype and device of the first keys and values seen."""
        self.key_buffer = _buffer(key_states, self.capacity)
        self.value_buffer = _buffer(value_states, self.capacity)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write new tokens behind the filled part and return all that is filled, as views."""
        end = self.length + key_states.shape[-2]
        if not self.is_initialized:
            self.capacity = max(self.capacity, end)
            self.lazy_initialization(key_states, value_states)
        elif end > self.capacity:
            self._grow(end)
        self.key_buffer[:, :, self.length : end] = key_states
        self.value_buffer[:, :, self.length : end] = value_states
        self.crop_to(end)
        return self.keys, self.values

    def crop_to(self, length: int) -> None:
        """Show the first `length` tokens; what is behind stays in the buffer until it is written over."""
        self.length = length
        self.keys = self.key_buffer[:, :, :length]
        self.values = self.value_buffer[:, :, :length]

    def copy(self, length: int) -> GrowingLayer:
        """A layer with buffers of its own that hold the first `length` tokens of this one."""
        twin = GrowingLayer(self.capacity)
        twin.update(self.key_buffer[:, :, :length], self.value_buffer[:, :, :length])
        return twin

    def _grow(self, end: int) -> None:
        """Half as much again each time: copying stays a constant share of the work, however long the answer gets."""
        self.capacity = max(end, self.capacity * 3 // 2)
        old_keys, old_values = self.key_buffer, self.value_buffer
        self.lazy_initialization(old_keys, old_values)
        self.key_buffer[:, :, : self.length] = old_keys[:, :, : self.length]
        self.value_buffer[:, :, : self.length] = old_values[:, :, : self.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens visible to the next query, offset of the first)."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens filled."""
        return self.length

    def get_max_length(self) -> int:
        """-1: it grows."""
        return -1


def _buffer(like: Tensor, capacity: int) -> Tensor:
    return like.new_empty((like.shape[0], like.shape[1], capacity, like.shape[3]))


class KeyValues(Cache):
    """Every layer's keys and values; what a transformers model takes as `past_key_values`."""

    layers: list[GrowingLayer]

    def __init__(self, layers: Sequence[GrowingLayer]) -> None:
        super().__init__(layers=list(layers))
        self.cuts: list[int] = []
        """Every length this was ever rewound to; a state longer than a later cut has lost its past."""

    @classmethod
    def empty(cls, num_layers: int, capacity: int) -> KeyValues:
        """Nothing filled, room for `capacity` tokens before the first growth."""
        return cls([GrowingLayer(capacity) for _ in range(num_layers)])

    @property
    def length(self) -> int:
        """Tokens filled."""
        return self.layers[0].length

    def fork(self, length: int) -> KeyValues:
        """The first `length` tokens in buffers of their own."""
        return KeyValues([layer.copy(length) for layer in self.layers])

    def rewind(self, length: int) -> None:
        """Give up everything behind the first `length` tokens, in place and without copying."""
        self.cuts.append(length)
        for layer in self.layers:
            layer.crop_to(length)


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
    mark: int = field(default=0, repr=False)
    """How many cuts `kv` had seen when this state was made."""

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
    return state.kv if state.kv.length == state.length else state.kv.fork(state.length)


def rewind(state: State, length: int | None = None) -> State:
    """Make `state` (or its first `length` tokens) the tip again, giving up what came after; nothing is copied.

    Raises:
        ValueError: the state was itself given up, or `length` lies beyond it.
    """
    length = state.length if length is None else length
    if not state.alive or not 0 <= length <= state.length:
        raise ValueError(f"can not rewind a state of {state.length} tokens to {length}, alive: {state.alive}")
    state.kv.rewind(length)
    logits = state.logits if length == state.length else torch.empty(0)
    return State(logits, length, state.kv, state.rope_factor, state.position_offset, mark=len(state.kv.cuts))
