"""Integers before pixels: how many tokens every frame costs, and which RoPE factor the whole prompt needs.

    video_tokens + text_tokens + max_new_tokens  <=  context x rope_factor

holds for every `TokenPlan` there is (it is checked when one is born), or `BudgetError` says the sum. Nothing here
reads a file or imports more than the standard library.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from vidllm.errors import BudgetError

Pooling = Literal["average", "max", "bilinear"]
Newline = Literal["none", "one", "frame", "grid"]
Policy = Literal["uniform", "slowfast", "focus", "auto"]
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
    """How a native family's own processor turns frames into tokens; the budget works through number and pixels.

    Frames travel in groups of `temporal_patch`. A frame is resized so that its sides are multiples of
    `patch * merge` and its area lies in [min_pixels, max_pixels]; or, with `fixed_tokens`, costs that many whatever
    its size. `group_overhead` counts the marker tokens the processor puts around each group (not timestamps, which
    are text and counted with the real tokenizer).
    """

    patch: int
    merge: int
    temporal_patch: int
    min_pixels: int
    max_pixels: int
    fixed_tokens: int = 0
    group_overhead: int = 0


@dataclass(frozen=True)
class PlannedFrame:
    """One moment the model will see: seconds on the viewer's clock, pooling stride (1 for native), tokens it costs.

    In a native family a group of frames shares one lot of tokens: the group's first frame carries them.
    """

    time: float
    stride: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class TokenPlan:
    """What will be shown and what it costs; impossible ones raise BudgetError at birth.

    `frames` is sorted by time. `text_tokens` is everything that is no visual token: template, question, timestamps,
    subtitles and `reserve`. `frame_size` (height, width) in pixels is what the decoder is asked for (None: as it is).
    `tolerance` is how far, in seconds, a key frame may stand in for a requested time.
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
    notes: tuple[str, ...] = field(default=())

    @property
    def total(self) -> int:
        """Tokens of prompt and reply together."""
        return self.video_tokens + self.text_tokens + self.max_new_tokens

    @property
    def times(self) -> tuple[float, ...]:
        """Seconds of every frame, in order: what the decoder is asked for."""
        return tuple(frame.time for frame in self.frames)

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
