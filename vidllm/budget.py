"""Integers before pixels: how many tokens every frame costs, and which RoPE factor the whole prompt needs.

    video_tokens + text_tokens + max_new_tokens  <=  context x rope_factor

holds for every `TokenPlan` there is (it is checked when one is born), or `BudgetError` says the sum. Nothing here
reads a file or imports more than the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, Literal

from vidllm.errors import BudgetError
from vidllm.geometry import Geometry, NativeGeometry

Policy = Literal["uniform", "slowfast", "focus", "change", "auto"]
Fit = Literal["pad", "stretch", "crop"]


@dataclass(frozen=True)
class PlannedFrame:
    """One moment the model will see: seconds on the viewer's clock, pooling stride (1 for native), tokens it costs.

    A picture is a frame without a time.
    In a native family a group of frames shares one lot of tokens: the group's first frame carries them, the others 0.
    """

    time: float | None
    stride: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class TokenPlan:
    """What will be shown and what it costs; impossible ones raise BudgetError at birth.

    `frames` is sorted by time. `text_tokens` is everything that is no visual token: template, question, timestamps,
    subtitles and `reserve`. `frame_size` (height, width) in pixels is what the decoder is asked for (None: as it is).
    `tolerance` is how far, in seconds, a key frame may stand in for a requested time; `fit` is how a frame meets the
    model's square, None where it meets none (a picture in tiles, a native family's); `notes` are wishes that can not
    be met.
    """

    frames: tuple[PlannedFrame, ...]
    video_tokens: int
    text_tokens: int
    max_new_tokens: int
    context: int
    rope_factor: float
    policy: Policy
    fit: Fit | None = None
    tolerance: float = 0.0
    frame_size: tuple[int, int] | None = None
    reader: str = "auto"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(b < a for a, b in pairwise(self.times)):
            raise ValueError(f"planned frames are out of order: {self.times}")
        if sum(f.tokens for f in self.frames) != self.video_tokens:
            raise ValueError(f"frames hold {sum(f.tokens for f in self.frames)} tokens, not {self.video_tokens}")
        if self.total > self.context * self.rope_factor * (1 + 1e-12):
            raise BudgetError(_sum_line(self.frames, self.text_tokens, self.max_new_tokens, self.context,
                                        self.rope_factor) + "; use fewer frames")

    @property
    def total(self) -> int:
        """Tokens of prompt and reply together."""
        return self.video_tokens + self.text_tokens + self.max_new_tokens

    @property
    def times(self) -> tuple[float, ...]:
        """Seconds of every frame, in order: what the decoder is asked for."""
        return tuple(frame.time for frame in self.frames if frame.time is not None)

    def to_dict(self) -> dict[str, Any]:
        """Plan JSON without its `video` part."""
        return {
            "frames": [{"time": f.time, "stride": f.stride, "tokens": f.tokens} for f in self.frames],
            "video_tokens": self.video_tokens, "text_tokens": self.text_tokens,
            "max_new_tokens": self.max_new_tokens, "total": self.total, "context": self.context,
            "rope_factor": self.rope_factor, "policy": self.policy, "fit": self.fit, "tolerance": self.tolerance,
            "frame_size": list(self.frame_size) if self.frame_size else None, "reader": self.reader,
            "notes": list(self.notes),
        }


REPLY_TOKENS = 256
"""Room kept for the reply when the user names none."""
LEAST_REPLY_TOKENS = 64
"""What that room may shrink to when the frames the user asked for need it (then the plan says so)."""
_BOUNDLESS = 2**53
"""The capacity under an infinite `rope_max`, which is how a prompt is built only to be counted."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """The positions one prompt may use: `context` of them, or up to `rope_max` times as many under scaled RoPE."""

    context: int
    rope_max: float = 2.0
    max_new_tokens: int | None = None
    scalable: bool = True
    """Whether the model's positions can be scaled at all; if not, `rope_max` has no effect."""

    def __post_init__(self) -> None:
        if self.context < 1 or self.rope_max < 1 or (self.max_new_tokens is not None and self.max_new_tokens < 1):
            raise BudgetError(f"context {self.context}, RoPE factor {self.rope_max:g} and reply {self.max_new_tokens} "
                              "must each be at least 1")

    @property
    def capacity(self) -> int:
        """Most tokens prompt and reply may have together."""
        return math.floor(min(self.context * self.largest_factor + 1e-9, _BOUNDLESS))

    @property
    def largest_factor(self) -> float:
        """The most this model's positions may be scaled here."""
        return self.rope_max if self.scalable else 1.0

    @property
    def reply(self) -> int:
        """Tokens kept for the reply before anything shrinks."""
        return REPLY_TOKENS if self.max_new_tokens is None else self.max_new_tokens

    @property
    def least_reply(self) -> int:
        """Tokens the reply must have."""
        return LEAST_REPLY_TOKENS if self.max_new_tokens is None else self.max_new_tokens

    def fits(self, prompt_tokens: int) -> bool:
        """Whether a prompt of so many tokens leaves the reply its whole room."""
        return prompt_tokens + self.reply <= self.capacity

    def reply_for(self, prompt_tokens: int) -> int:
        """The reply's room beside such a prompt, shrunk when it must be; 0 when not even the least is left."""
        left = min(self.reply, self.capacity - prompt_tokens)
        return left if left >= self.least_reply else 0

    def rope_factor(self, total: int) -> float:
        """The smallest factor, in steps of 0.0001, under which `total` tokens fit the context (1.0: no scaling)."""
        if total <= self.context:
            return 1.0
        return min(math.ceil(total / self.context * 10_000 - 1e-6) / 10_000, self.largest_factor)


def plan_tokens(
    frames: Sequence[PlannedFrame],
    *,
    text_tokens: int,
    room: Room,
    policy: Policy = "uniform",
    fit: Fit | None = None,
    tolerance: float = 0.0,
    frame_size: tuple[int, int] | None = None,
    reader: str = "auto",
    notes: tuple[str, ...] = (),
) -> TokenPlan:
    """The plan that shows exactly these frames, with the smallest RoPE factor that makes room for text and reply.

    Raises:
        BudgetError: they do not fit; the message is the sum. Who knows what could be changed adds the ways out.
    """
    video = sum(frame.tokens for frame in frames)
    reply = room.reply_for(video + text_tokens)
    if reply == 0:
        line = _sum_line(frames, text_tokens, room.least_reply, room.context, room.largest_factor)
        raise BudgetError(line, short=video + text_tokens + room.least_reply - room.capacity)
    if reply < room.reply:
        notes = (*notes, f"the reply's room shrank from {room.reply} to {reply} tokens")
    return TokenPlan(
        frames=tuple(frames), video_tokens=video, text_tokens=text_tokens, max_new_tokens=reply, context=room.context,
        rope_factor=room.rope_factor(video + text_tokens + reply), policy=policy, fit=fit, tolerance=tolerance,
        frame_size=frame_size, reader=reader, notes=notes,
    )


def composable_frames(moments: Sequence[tuple[float, int]], geometry: Geometry) -> tuple[PlannedFrame, ...]:
    """Frames of (time, stride), each with the tokens its stride makes on this grid."""
    tokens = geometry.frame_tokens(stride for _, stride in moments)
    return tuple(PlannedFrame(t, stride, n) for (t, stride), n in zip(moments, tokens, strict=True))


def native_frames(times: Sequence[float], geometry: NativeGeometry, size: tuple[int, int]) -> tuple[PlannedFrame, ...]:
    """Frames at these times, all of `size` (height, width); the first of each group carries the group's tokens."""
    each = geometry.tokens(*size)
    return tuple(PlannedFrame(t, 1, 0 if i % geometry.temporal_patch else each) for i, t in enumerate(times))


def _sum_line(frames: Sequence[PlannedFrame], text: int, reply: int, context: int, factor: float) -> str:
    total = sum(f.tokens for f in frames) + text + reply
    return f"{_frames_line(frames)} + {text} text + {reply} reply = {total} tokens, over {limit_line(context, factor)}"


def limit_line(context: int, factor: float) -> str:
    """Like "context 4096 x RoPE 2 = 8192", or "context 4096" where nothing is stretched."""
    return f"context {context}" + ("" if factor == 1 else f" x RoPE {factor:g} = {math.floor(context * factor + 1e-9)}")


def _frames_line(frames: Sequence[PlannedFrame]) -> str:
    """Like "9 frames x 144 + 12 frames x 36 tokens", "7 frames in 4 groups x 99" where frames share their tokens; a
    `one` newline shows as a frame one token longer."""
    carriers = [frame.tokens for frame in frames if frame.tokens]
    unit = "frames" if len(carriers) == len(frames) else "groups"
    counts = groupby(sorted(carriers, reverse=True))
    line = " + ".join(f"{len(list(group))} {unit} x {tokens}" for tokens, group in counts) or "0 frames"
    return line if unit == "frames" else f"{len(frames)} frames in {line}"
