"""What is read of a clip besides its index: frames, subtitles and glances. Here, or in a child that can be killed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from vidllm.video.decode import FrameSet, Reader
from vidllm.video.decode import read_frames as read_here
from vidllm.video.glances import glance_times, glances_of
from vidllm.video.info import VideoInfo, probe
from vidllm.video.thumbs import SIDE

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from vidllm.video.guard import Limits
    from vidllm.video.subtitles import Line


def read_frames(
    video: VideoInfo | str | Path, times: Sequence[float] | NDArray[np.float64], *,
    max_side: int | None = None, size: tuple[int, int] | None = None, reader: Reader = "auto", tolerance: float = 0.0,
) -> FrameSet:  # fmt: skip
    """The frame on screen at each of `times` (seconds on the viewer's clock, any order), with its true time.

    `max_side` bounds the longer side, `size` is (height, width) exactly; neither: the size shown. With `tolerance`
    seconds above 0 a time may be answered by the nearest key frame within it, which is much cheaper; a note says so.
    Where a frame can not be decoded, the nearest earlier one that can stands in with its own time, and a note says so.
    So does the first or the last frame for a time outside the clip. HDR (PQ, HLG) is shown in standard range
    (`video.hdr`). A URL is fetched into the cache first.

    decord can crash, or spin for ever on a header that over-reports: it never runs where it could not be killed.

    Raises VideoError (VideoNotFound, NotAVideo, NoFrames, ReaderUnavailable, FetchError, of decord LimitExceeded) or
    ConfigError.
    """
    if reader != "decord":
        return read_here(video, times, max_side=max_side, size=size, reader=reader, tolerance=tolerance)
    from vidllm.video.guard import DEFAULT_LIMITS, read_frames_guarded

    info = video if isinstance(video, VideoInfo) else probe(video)
    return read_frames_guarded(
        info, times, DEFAULT_LIMITS, max_side=max_side, size=size, reader=reader, tolerance=tolerance
    )


def read_shown(
    info: VideoInfo, times: Sequence[float] | NDArray[np.float64], guard: Limits | None, *,
    size: tuple[int, int] | None = None, reader: Reader = "auto",
) -> FrameSet:  # fmt: skip
    """`read_frames`, in a child with `guard`."""
    if guard is None:
        return read_frames(info, times, size=size, reader=reader)
    from vidllm.video.guard import read_frames_guarded

    return read_frames_guarded(info, times, guard, size=size, reader=reader)


class Reads:
    """Reads each range of a clip once, however many plans are tried: it may mean reading all of a file.

    With `guard` in a child, as the frames. Ranges are in seconds on the viewer's clock.
    """

    def __init__(self, guard: Limits | None) -> None:
        self._guard = guard
        self.lines, self.glances = cache(self._lines), cache(self._glances)

    def _lines(self, info: VideoInfo, start: float, end: float) -> tuple[Line, ...]:
        """The subtitles on screen in it."""
        if self._guard is None:
            from vidllm.video.subtitles import read_subtitles

            return read_subtitles(info, start, end)
        from vidllm.video.guard import read_subtitles_guarded

        return read_subtitles_guarded(info, start, end, self._guard)

    def _glances(self, info: VideoInfo, start: float, end: float) -> FrameSet:
        """It, small and at many moments. Raises what the reader raises."""
        return glances_of(read_shown(info, glance_times(info, start, end), self._guard, size=(SIDE, SIDE)))
