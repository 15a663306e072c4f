"""Frames for people: the moments `ask` would choose, without its budget, as picture files. No model, no torch."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vidllm.errors import VideoError
from vidllm.planning import PlanOptions, look_at, shortfall
from vidllm.reads import Reads
from vidllm.video.sampling import SamplePlan
from vidllm.video.timecode import format_time

if TYPE_CHECKING:
    from vidllm.video.decode import FrameSet
    from vidllm.video.info import VideoInfo

    Read = Callable[[Sequence[float]], FrameSet]

DEFAULT_FRAMES = 16
BATCH = 32
"""Frames in memory at once: 200 MB of 1080p."""


@dataclass(frozen=True)
class Shot:
    """One frame written to disk: its true time in seconds, viewer's clock, and its file."""

    time: float
    path: Path


def choose_moments(
    info: VideoInfo, question: str = "", options: PlanOptions | None = None
) -> tuple[SamplePlan, tuple[str, ...]]:
    """The moments that `options` ask for, and what should be said about them.

    16 frames, or `frames`, or `fps` a second, or the focus layout around the times that `question` names. Raises
    NoFrames when the range holds none.
    """
    options = options or PlanOptions()
    look, _, notes = look_at(info, question, options, Reads(options.guard))
    free = look.policy == "focus" or look.fps is not None
    plan = look.moments(options.frames if free else options.frames or DEFAULT_FRAMES)
    return plan, (*notes, *shortfall(look, options.frames, len(plan)))


def save_pictures(times: Sequence[float], folder: Path, read: Read) -> tuple[Shot, ...]:
    """One PNG a frame, `003_1-30.500.png`, in `folder`; when one fails none is left there.

    `read` decodes a few of the `times` (seconds) at once, so memory does not grow with their number. Raises VideoError
    when the folder can not be written, and what `read` raises.
    """
    made = next((above for above in [*reversed(folder.parents), folder] if not above.exists()), None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _save_all(times, folder, read)
    except BaseException as error:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or error
        raise VideoError(f"{folder}: can not be written ({reason}); choose another place") from error


def _save_all(times: Sequence[float], folder: Path, read: Read) -> tuple[Shot, ...]:
    from PIL import Image

    shots: list[Shot] = []
    digits = max(len(str(len(times) - 1)), 3)  # as many for all: by name they stand in the order of time
    with tempfile.TemporaryDirectory(dir=folder, prefix=".vidllm-") as scratch:
        for first in range(0, len(times), BATCH):
            frames = read(times[first : first + BATCH])
            for pixels, time in zip(frames.pixels, frames.pts_seconds.tolist(), strict=True):
                name = f"{len(shots):0{digits}d}_{format_time(time, decimals=3).replace(':', '-')}.png"
                Image.fromarray(pixels).save(Path(scratch, name), compress_level=1)
                shots.append(Shot(time, folder / name))
        for shot in shots:
            os.replace(Path(scratch, shot.path.name), shot.path)
    return tuple(shots)


def save_shot_sheet(times: Sequence[float], path: Path, read: Read) -> tuple[Shot, ...]:
    """All frames on one contact sheet, each with its time."""
    from vidllm.video.sheet import save_sheet

    frames = read(times)
    save_sheet(frames, path)
    return tuple(Shot(float(time), path) for time in frames.pts_seconds)
