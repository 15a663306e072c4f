"""The one road: path -> probe -> focus -> sample -> plan -> decode -> Clip. ask, caption, teach and serve all walk it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vidllm.budget import Fit, Policy, TokenPlan

if TYPE_CHECKING:
    from vidllm.video.decode import FrameSet, Reader
    from vidllm.video.info import VideoInfo
    from vidllm.video.timecode import Focus


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What a user may say about the look at a clip; None leaves the choice to the plan."""

    start: float | None = None
    """Seconds, viewer's clock; the range is half-open [start, end)."""
    end: float | None = None
    frames: int | None = None
    """Exactly so many frames (fewer only when the range holds fewer, and then the plan's notes say so)."""
    fps: float | None = None
    """Frames per second of the range; with `frames` too, whichever gives fewer."""
    policy: Policy = "auto"
    stride: int | None = None
    """Pooling stride of every frame; None: the model's own (fine and coarse)."""
    rope_max: float = 2.0
    max_new_tokens: int | None = None
    """Room for the reply; None: 256, shrinking to 64 when room is short."""
    reserve: int = 0
    """Tokens of the context that are spoken for: earlier turns, other videos of the same prompt."""
    reader: Reader = "auto"
    subtitles: bool = True
    fit: Fit | None = None
    """How frames meet the square tile; None: the model's own."""
    snap: bool = False
    """Let a key frame stand in for a time within half the distance between frames (faster on long clips)."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video as planned and really seen. `frames.pts_seconds[i]` is the true time of `plan.frames[i]`.

    `frames.pixels` is uint8 (N, H, W, 3): model-ready when the fit is "stretch", else the aspect kept and small
    enough (`prompt` pads or crops). `subtitles` are lines within the range, ready to print.
    """

    info: VideoInfo
    plan: TokenPlan
    frames: FrameSet
    focus: Focus | None
    subtitles: tuple[str, ...] = ()
    probe_seconds: float = 0.0
    decode_seconds: float = 0.0
