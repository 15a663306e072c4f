"""read_frames(): moments in, pictures with their true times out.

`auto` picks the reader by the table that `benchmarks/decode.py` prints; the answer names who read it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from vidllm.checks import check_number
from vidllm.errors import ConfigError
from vidllm.video.harvest import Harvest
from vidllm.video.hdr import in_standard_range
from vidllm.video.info import VideoInfo, probe
from vidllm.video.picture import fitted_size
from vidllm.video.read_decord import read_decord
from vidllm.video.read_pyav import read_pyav
from vidllm.video.read_torchcodec import read_torchcodec

Reader: TypeAlias = Literal["auto", "pyav", "decord", "torchcodec"]
ReaderFunction: TypeAlias = Callable[[VideoInfo, NDArray[np.int64], tuple[int, int]], Harvest]

READERS: dict[str, ReaderFunction] = {"pyav": read_pyav, "decord": read_decord, "torchcodec": read_torchcodec}

AUTO_READER = "pyav"
"""What `auto` means. Of the three it alone is right on every clip of the battery, and told what the index knows it
decodes less than the others (`benchmarks/NOTES.md`). A rule that picked another reader for some clips would gain
little there and cost a second set of native libraries in the process."""


@dataclass(frozen=True, eq=False)
class FrameSet:
    """Pictures and when each is on screen: `pixels` uint8 (N, H, W, 3) RGB, `pts_seconds` float64 (N,).

    `requested_seconds` (N,) are the times asked for; `notes` say where an answer is not the frame on screen then.
    """

    pixels: NDArray[np.uint8] = field(repr=False)
    pts_seconds: NDArray[np.float64]
    requested_seconds: NDArray[np.float64]
    reader: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[3] != 3 or self.pixels.dtype != np.uint8:
            raise ValueError(f"pixels must be uint8 (N, H, W, 3), not {self.pixels.dtype} {self.pixels.shape}")
        if not len(self.pixels) == len(self.pts_seconds) == len(self.requested_seconds):
            raise ValueError(
                f"{len(self.pixels)} pictures, {len(self.pts_seconds)} times and "
                f"{len(self.requested_seconds)} requests must be as many"
            )

    def __len__(self) -> int:
        return len(self.pixels)


def read_frames(
    video: VideoInfo | str | Path,
    times: Sequence[float] | NDArray[np.float64],
    *,
    max_side: int | None = None,
    size: tuple[int, int] | None = None,
    reader: Reader = "auto",
    tolerance: float = 0.0,
) -> FrameSet:
    """`reads.read_frames`, which says what the words mean, in this process whichever the reader."""
    info = video if isinstance(video, VideoInfo) else probe(video)
    requested = checked_times(times)
    check_number("tolerance", tolerance, 0)
    height, width = fitted_size((info.height, info.width), max_side, size)
    exact = info.index_at(requested)
    chosen = snapped(info, requested, tolerance)
    wanted, places = np.unique(chosen, return_inverse=True)
    name = _choose_reader(reader)
    harvest = READERS[name](info, wanted, (height, width))
    notes = (
        *_outside_notes(info, requested), *snap_notes(exact, chosen), *_loss_notes(info, wanted, harvest),
        *_damage_notes(info, wanted, harvest),
    )  # fmt: skip
    seconds = (harvest.pts - info.pts[0]) * float(info.time_base)
    pixels = in_standard_range(harvest.pixels, info.transfer)
    if len(wanted) != len(places) or (np.diff(places) <= 0).any():
        pixels = pixels[places]
    return FrameSet(pixels, seconds[places], requested, name, notes)


def checked_times(times: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """`times` as an array (N,). Raises ConfigError for what are no times."""
    try:
        requested = np.atleast_1d(np.asarray(times, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"times must be numbers of seconds, such as 30.0 or 90.5 ({error})") from error
    if requested.ndim != 1 or not len(requested) or not np.isfinite(requested).all():
        raise ConfigError("times must be a list of at least one finite number of seconds")
    return requested


def _choose_reader(reader: str) -> str:
    if reader not in get_args(Reader):
        raise ConfigError(f"unknown reader {reader!r}; choose one of {', '.join(get_args(Reader))}")
    return AUTO_READER if reader == "auto" else reader


def snapped(info: VideoInfo, times: NDArray[np.float64], tolerance: float) -> NDArray[np.int64]:
    """Frame numbers with each time moved to its nearest key frame where that is within `tolerance` seconds."""
    exact = info.index_at(times)
    keys = info.start_frames
    if tolerance <= 0 or not len(keys):
        return exact
    seconds = info.pts_seconds[keys]
    after = np.clip(np.searchsorted(seconds, times), 0, len(keys) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(np.abs(seconds[before] - times) <= np.abs(seconds[after] - times), before, after)
    return np.where(np.abs(seconds[nearest] - times) <= tolerance, keys[nearest], exact)


def _outside_notes(info: VideoInfo, requested: NDArray[np.float64]) -> tuple[str, ...]:
    before, after = requested[requested < 0], requested[requested > info.duration]
    first = (f"{_listed(before)}: before the start; the first frame stands in",) if len(before) else ()
    last = (f"{_listed(after)}: past the end at {info.duration:.2f} s; the last frame stands in",) if len(after) else ()
    return (*first, *last)


SNAPPED = "times answered by the nearest key frame"


def snap_notes(exact: NDArray[np.int64], chosen: NDArray[np.int64]) -> tuple[str, ...]:
    """How many of the `exact` frame numbers (N,) became others in `chosen` (N,)."""
    moved = int((exact != chosen).sum())
    return (f"{moved} of {len(exact)} {SNAPPED}",) if moved else ()


def _loss_notes(info: VideoInfo, wanted: NDArray[np.int64], harvest: Harvest) -> tuple[str, ...]:
    lost = info.pts_seconds[wanted][harvest.pts != info.pts[wanted]]
    if not len(lost):
        return ()
    return (f"{len(lost)} frames could not be decoded (at {_listed(lost)}); the nearest ones that could stand in",)


def _damage_notes(info: VideoInfo, wanted: NDArray[np.int64], harvest: Harvest) -> tuple[str, ...]:
    damaged = info.pts_seconds[wanted][harvest.damaged]
    return (f"{len(damaged)} pictures are damaged (at {_listed(damaged)})",) if len(damaged) else ()


def _listed(seconds: NDArray[np.float64]) -> str:
    return ", ".join(f"{second:.2f}" for second in seconds[:5]) + (", ... s" if len(seconds) > 5 else " s")
