"""What the planning tests share: one set of tiny checkpoints per run, and clips that exist only as an index."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidllm.clip import Clip, PlanOptions, plan_video
from vidllm.model.families import ModelSpec, load_tokenizer, read_spec
from vidllm.prompt import Message, Prompt, build_prompt
from vidllm.video.decode import FrameSet
from vidllm.video.glances import glance_times
from vidllm.video.info import VideoInfo
from vidllm.video.thumbs import SIDE
from vidllm.visuals import Image

COMPOSABLE = ("llava", "vipllava", "llava_next", "llava_next_video", "llava_onevision", "internvl", "gemma3",
              "aya_vision", "cohere2_vision")  # fmt: skip
FAMILIES = (
    *COMPOSABLE, "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "smolvlm", "idefics3", "glm4v", "pixtral", "mistral3",
    "video_llama_3", "lfm2_vl", "gemma4",
)  # fmt: skip
QUESTION = "what happens at 0:30?"


@cache
def tiny_folder(family: str) -> Path:
    """A tiny checkpoint of the real classes, built when first asked for and removed when the run ends; read it only."""
    from tests.tiny_models import FAMILIES

    folder = Path(tempfile.mkdtemp(prefix=f"vidllm-{family}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return FAMILIES[family](folder)


def index_only(times: Sequence[float], *, size: tuple[int, int] = (360, 640), path: str = "clip.mp4") -> VideoInfo:
    """A clip that is only its packet index: frames at `times` (seconds), `size` (height, width)."""
    pts = np.round(np.asarray(times, dtype=np.float64) * 1000).astype(np.int64)
    seconds = (pts - pts[0]) / 1000
    count, gap = len(pts), float(np.diff(seconds).mean()) if len(pts) > 1 else 0.0
    height, width = size
    return VideoInfo(
        path=path, stream_index=0, container="mp4", codec="h264", pix_fmt="yuv420p", width=width, height=height,
        coded_width=width, coded_height=height, rotation=0, mirrored=False, sample_aspect_ratio=Fraction(1),
        time_base=Fraction(1, 1000), pts=pts, pts_seconds=seconds, key_frames=np.arange(count) % 50 == 0,
        packet_sizes=np.full(count, 1000), decode_ranks=np.arange(count), access_points=np.zeros((0, 3), np.int64),
        num_packets=count, num_frames_from_header=count, has_true_pts=True, has_edits=False,
        duration=float(seconds[-1]) + gap, fps=1 / gap if gap else 0.0, is_vfr=False, subtitle_streams=(),
    )  # fmt: skip


def glances_at_index(info: VideoInfo, start: float, end: float) -> FrameSet:
    """What a clip that is only its index shows at a glance: every frame another grey."""
    times = glance_times(info, start, end)
    greys = (info.index_at(times) * 37 % 256).astype(np.uint8)
    return FrameSet(np.broadcast_to(greys[:, None, None, None], (len(times), SIDE, SIDE, 3)), times, times, "pyav")


MINUTE = index_only(np.arange(0, 60, 0.25))


def spec_of(family: str) -> ModelSpec:
    return read_spec(tiny_folder(family))


def clip_of(
    spec: ModelSpec, question: str = "what happens?", *, subtitles: tuple[str, ...] = (), **options: object
) -> Clip:
    """A clip of the minute, its pictures numbered by brightness instead of decoded."""
    planned = plan_video(MINUTE, question, spec, load_tokenizer(spec.folder), PlanOptions(**{"frames": 6, **options}))
    height, width = planned.plan.frame_size or (64, 64)
    times = np.asarray(planned.plan.times)
    pixels = np.stack([np.full((height, width, 3), 10 + i, np.uint8) for i in range(len(times))])
    frames = FrameSet(pixels, times, times, "pyav")
    return Clip(info=MINUTE, plan=planned.plan, frames=frames, focus=planned.focus, subtitles=subtitles)


def prompt_of(spec: ModelSpec, messages: Sequence[Message], **options: object) -> Prompt:
    return build_prompt(messages, spec, load_tokenizer(spec.folder), **options)


def copied(family: str, tmp_path: Path) -> Path:
    """A tiny checkpoint that a test may spoil."""
    return Path(shutil.copytree(tiny_folder(family), tmp_path / "model"))


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A picture with no two pixels alike, (height, width, 3)."""
    return np.random.default_rng(seed + height).integers(0, 256, (height, width, 3)).astype(np.uint8)


def noisy(spec: ModelSpec, **options: object) -> Clip:
    """A clip of such frames, of the size that is planned for them."""
    clip = clip_of(spec, QUESTION, **options)
    pixels = np.random.default_rng(3).integers(0, 256, clip.frames.pixels.shape).astype(np.uint8)
    return replace(clip, frames=replace(clip.frames, pixels=pixels))


def picture(height: int, width: int) -> Image:
    return Image(np.full((height, width, 3), 128, np.uint8))
