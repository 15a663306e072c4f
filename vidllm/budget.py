"""Integers before pixels: how many tokens every frame costs, and which RoPE factor the whole prompt needs.

    video_tokens + text_tokens + max_new_tokens  <=  context x rope_factor

holds for every `TokenPlan` there is (it is checked when one is born), or `BudgetError` says the sum. Nothing here
reads a file or imports more than the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, Literal

from vidllm.errors import BudgetError

Pooling = Literal["average", "max", "bilinear"]
Newline = Literal["none", "one", "frame", "grid"]
Policy = Literal["uniform", "slowfast", "focus", "change", "auto"]
Fit = Literal["pad", "stretch", "crop"]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """One frame's patch grid, and how it is pooled and marked into tokens (composable models).

    `newline` is where the learned end-of-line token goes: after every pooled row of every frame (`grid`), after
    every frame (`frame`), once after the whole video (`one`), nowhere (`none`).
    """

    rows: int
    cols: int
    pooling: Pooling = "average"
    newline: Newline = "none"

    def pooled(self, stride: int) -> tuple[int, int]:
        """(rows, cols) after pooling by `stride`: average and max drop a ragged edge, bilinear keeps it."""
        if stride < 1 or (self.pooling != "bilinear" and stride > min(self.rows, self.cols)):
            raise BudgetError(f"stride {stride} on a {self.rows}x{self.cols} grid leaves no token; use 1 to "
                              f"{min(self.rows, self.cols)}")
        if self.pooling == "bilinear":
            return -(-self.rows // stride), -(-self.cols // stride)
        return self.rows // stride, self.cols // stride

    def tokens(self, stride: int) -> int:
        """Tokens of one frame, its own newlines included (a `one` newline belongs to the video's last frame)."""
        rows, cols = self.pooled(stride)
        return rows * cols + {"grid": rows, "frame": 1}.get(self.newline, 0)

    def frame_tokens(self, strides: Iterable[int]) -> tuple[int, ...]:
        """Tokens of each frame of one video, in order; with newline `one` the last frame carries it."""
        counts = [self.tokens(stride) for stride in strides]
        if counts and self.newline == "one":
            counts[-1] += 1
        return tuple(counts)


@dataclass(frozen=True, kw_only=True)
class NativeGeometry:
    """How a native family's own tower turns frames and still pictures into tokens; the budget works through their
    number and pixels. Sides are multiples of `unit`; 0 is no bound, and nothing of its kind.
    """

    patch: int
    merge: int
    """Patches a side that become one token."""
    temporal_patch: int = 1
    """Frames that travel together, the last one repeated to fill a group."""
    min_pixels: int = 0
    max_pixels: int = 0
    """Of one frame."""
    video_pixels: int = 0
    """Most of all frames of a video together."""
    image_merge: int = 0
    """As `merge`, of a still picture, where that differs."""
    image_min_pixels: int = 0
    image_max_pixels: int = 0
    """Of a still picture."""
    image_longest: int = 0
    """What its longer side is made before it becomes a square."""
    square: int = 0
    """Width and height of every frame and picture, of any aspect."""
    squares: tuple[tuple[int, int], ...] = ()
    """(side in pixels, tokens) of all that frames may be, the largest first, where no arithmetic tells; still pictures
    are the first."""
    fits_itself: bool = False
    """Whether the family's processor makes the one square there is of any picture: it then comes with its own aspect,
    its longer side that of the square."""
    longest_edge: int = 0
    """Most of a side, in place of bounds on the area."""
    row_end: int = 0
    """Tokens behind every row."""
    fills: bool = False
    """Small pictures are enlarged to the most pixels there may be."""
    enlarges: bool = False
    """A picture thinner than a token is made as thick as one before its size is rounded ..."""
    thickens: bool = False
    """... or only its thickness is."""

    @property
    def unit(self) -> int:
        """Side in pixels of the square one token stands for."""
        return self.patch * self.merge

    @property
    def image_unit(self) -> int:
        """The same of a still image."""
        return self.patch * (self.image_merge or self.merge)

    def tokens(self, height: int, width: int) -> int:
        """Tokens of one group of frames of this size (multiples of `unit`)."""
        if self.squares:
            return dict(self.squares)[max(height, width)]
        return (height // self.unit) * self.row_tokens(width)

    def row_tokens(self, width: int) -> int:
        """Tokens of one row of a picture of this width, with what ends it."""
        return width // self.unit + self.row_end

    def image_tokens(self, height: int, width: int) -> int:
        """Tokens of a still image that is height x width before the family's processor scales it."""
        if self.squares:
            return self.squares[0][1]
        rows, cols = (side // self.image_unit for side in self.image_size(height, width))
        return rows * (cols + self.row_end)

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) to which the family's processor scales a still image."""
        if self.squares:
            return self.sizes(height, width)[0]
        if self.square:
            return self.square, self.square
        if self.longest_edge:
            return bounded_size(height, width, self.image_unit, self.longest_edge)
        if self.enlarges and min(height, width) < self.image_unit:
            scale = self.image_unit / min(height, width)
            height, width = int(height * scale), int(width * scale)
        if self.fills:
            return filled_size(height, width, self.image_unit, self.image_max_pixels)
        bounds = self.image_min_pixels, self.image_max_pixels
        return fitted_size(height, width, self.image_unit, *bounds, thickens=self.thickens)

    def rounded_area(self, height: int, width: int) -> int:
        """Pixels of a still image whose sides are rounded to whole tokens, of a thin one to a patch."""
        rows, cols = (max(round(side / self.image_unit) * self.image_unit, self.patch) for side in (height, width))
        return rows * cols

    def groups(self, frames: int) -> int:
        """How many groups so many frames make."""
        return -(-frames // self.temporal_patch)

    def sizes(self, height: int, width: int, frames: int = 1) -> list[tuple[int, int]]:
        """Sizes (height, width) that so many frames of this aspect may be given, from the largest to the smallest.

        Never larger than the frame itself unless `min_pixels` or the family asks for it: invented pixels cost real
        tokens.
        """
        if self.fits_itself:
            [(longest, _)] = self.squares
            scale = longest / max(height, width)
            return [(max(round(height * scale), 1), max(round(width * scale), 1))]
        if self.squares:
            return [(side, side) for side, _ in self.squares]
        if self.square:
            return [(self.square, self.square)]
        if self.longest_edge:
            height, width = self.image_size(height, width)
        most = min(self.max_pixels, (self.video_pixels or math.inf) // frames)
        largest = fitted_size(height, width, self.unit, self.min_pixels, most, thickens=self.thickens)
        if self.fills:
            largest = filled_size(height, width, self.unit, most)
        sizes, area = [largest], self.unit**2
        for cells in range(math.prod(largest) // area - 1, max(self.min_pixels // area, 1) - 1, -1):
            size = fitted_size(height, width, self.unit, 0, cells * area)
            if self.fills:
                size = filled_size(height, width, self.unit, cells * area)
            if self.tokens(*size) < self.tokens(*sizes[-1]):  # of a strip, fewer pixels may round to more tokens
                sizes.append(size)
        return sizes


def fitted_size(
    height: int, width: int, unit: int, min_pixels: int, max_pixels: float, *, thickens: bool = False
) -> tuple[int, int]:
    """(height, width) in multiples of `unit`, the aspect kept as well as may be, the area within the two bounds.

    The rounding is that of Qwen's image processors (to the nearest multiple; down when over, up when under, as is what
    is so thin that it rounds to nothing, unless that `thickens` first).
    """
    least = 1 if thickens or not min_pixels else 0
    rows, cols = max(round(height / unit), least), max(round(width / unit), least)
    if rows * cols * unit**2 > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        rows, cols = (max(1, math.floor(side / scale / unit)) for side in (height, width))
    elif rows * cols * unit**2 < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        rows, cols = (math.ceil(side * scale / unit) for side in (height, width))
    return rows * unit, cols * unit


def filled_size(height: int, width: int, unit: int, max_pixels: float) -> tuple[int, int]:
    """The largest (height, width) in multiples of `unit` that keeps the aspect and has at most so many pixels.

    The rounding is that of Gemma 4's processors: down; a strip is one row or column as long as there is room for.
    """
    scale = math.sqrt(max_pixels / (height * width))
    rows, cols = (math.floor(scale * side / unit) for side in (height, width))
    if not rows or not cols:
        longest = min(max(height, width) // min(height, width), int(max_pixels // unit**2))
        rows, cols = (1, longest) if cols else (longest, 1)
    return rows * unit, cols * unit


def bounded_size(height: int, width: int, unit: int, longest: int) -> tuple[int, int]:
    """(height, width) in multiples of `unit` of a picture shrunk, the aspect kept, until no side is over `longest`.

    The rounding is that of Pixtral's image processor: down to the bound, then up to the multiple. Of a strip so narrow
    that nothing would be left of it (there the processor fails) one row is.
    """
    ratio = max(height / longest, width / longest)
    if ratio > 1:
        height, width = max(math.floor(height / ratio), 1), max(math.floor(width / ratio), 1)
    return -(-height // unit) * unit, -(-width // unit) * unit


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
