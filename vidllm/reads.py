"""What a plan reads of a clip besides its index: subtitles and glances. Here, or in a child that can be killed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from vidllm.video.decode import read_frames
from vidllm.video.glances import Glances, glance_times, glances_of
from vidllm.video.thumbs import SIDE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vidllm.video.decode import FrameSet, Reader
    from vidllm.video.guard import Limits
    from vidllm.video.info import VideoInfo
    from vidllm.video.subtitles import Line


def read_shown(
    info: VideoInfo, times: Sequence[float] | NDArray[np.float64], guard: Limits | None, *,
    max_side: int | None = None, size: tuple[int, int] | None = None, reader: Reader = "auto",
) -> FrameSet:  # fmt: skip
    """`read_frames`, in a child with `guard`. decord can spin for ever on a header that over-reports: it never runs
    where it could not be killed.
    """
    if guard is None and reader != "decord":
        return read_frames(info, times, max_side=max_side, size=size, reader=reader)
    from vidllm.video.guard import DEFAULT_LIMITS, read_frames_guarded

    return read_frames_guarded(info, times, guard or DEFAULT_LIMITS, max_side=max_side, size=size, reader=reader)


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

    def _glances(self, info: VideoInfo, start: float, end: float) -> Glances:
        """It, small and at many moments. Raises what the reader raises."""
        return glances_of(read_shown(info, glance_times(info, start, end), self._guard, size=(SIDE, SIDE)))
