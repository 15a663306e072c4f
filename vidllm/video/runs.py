"""What must be decoded for the frames that are wanted, and how threads share it. Index and integers; nothing is opened.

    groups    K r b b r | K r b b r | K r b b r | K r b b r
    wanted          ^         ^                       ^
    runs      K r b     K r b                   K r b
    shares    one thread ------------- | another -----------
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidllm.video.info import VideoInfo

MERGE_PACKETS = 4  # a gap shorter than this is decoded: cheaper than draining and refilling the decoder
WORTH_SHARING = 16e6  # pixels to decode (packets x height x width) below which opening the file again costs more
LARGEST_SHARE = 0.67  # of the bytes: with a larger one the thread that has it works alone for too long


@dataclass(frozen=True)
class Run:
    """Packets to feed from one access point: ranks `start` to `stop`, both included, for the frames `wanted`."""

    access: int
    start: int
    stop: int
    wanted: tuple[int, ...]


def plan_runs(info: VideoInfo, wanted: NDArray[np.int64]) -> list[Run]:
    """Group the wanted frames by the access point each must be decoded from; near runs become one.

    A frame starts at the last access point before it in decoding *and* presentation order: frames that lead an open
    GOP come after its key packet but refer to frames before it.
    """
    runs: list[Run] = []
    for run in _groups(info, wanted):
        if runs and run.start <= runs[-1].stop + MERGE_PACKETS:
            last = runs[-1]
            runs[-1] = Run(last.access, last.start, max(run.stop, last.stop), (*last.wanted, *run.wanted))
        else:
            runs.append(run)
    return runs


def share(info: VideoInfo, wanted: NDArray[np.int64], threads: int) -> list[NDArray[np.int64]]:
    """The wanted frames in at most `threads` shares of whole groups, near each other in bytes to decode; one share
    where there is one group, little to do, or most of it in one place.

    A decoder of its own for each share idles nowhere, while frame threads of one decoder wait for each other and cost
    10 to 40 % more.
    """
    groups = _groups(info, wanted)
    packets = sum(max(run.stop - run.start + 1, 0) for run in groups)
    if min(threads, len(groups)) < 2 or packets * info.coded_width * info.coded_height < WORTH_SHARING:
        return [wanted]
    bytes_of = _bytes_of(info, groups)
    middles = np.cumsum(bytes_of) - bytes_of / 2
    owners = np.minimum(middles * threads // bytes_of.sum(), threads - 1)
    shares = [np.flatnonzero(owners == owner) for owner in range(threads)]
    if max(bytes_of[places].sum() for places in shares) > LARGEST_SHARE * bytes_of.sum():
        return [wanted]
    return [np.sort(np.concatenate([groups[place].wanted for place in places])) for places in shares if len(places)]


def _groups(info: VideoInfo, wanted: NDArray[np.int64]) -> list[Run]:
    """A run for every access point from which something wanted is decoded, in order of access; a run may reach past the
    next access point, because frames that lead an open GOP come behind its key packet."""
    by_access: dict[int, list[int]] = {}
    for index in wanted[np.argsort(info.decode_ranks[wanted], kind="stable")].tolist():
        access = _access_for(info, int(info.decode_ranks[index]), int(info.pts[index]))
        by_access.setdefault(access, []).append(index)
    return [
        Run(access, int(info.access_points[access, 0]), int(info.decode_ranks[indices[-1]]), tuple(indices))
        for access, indices in sorted(by_access.items())
    ]


def _access_for(info: VideoInfo, rank: int, pts: int) -> int:
    ranks = info.access_points[:, 0]
    access = int(np.searchsorted(ranks, rank, side="right")) - 1
    while access > 0 and info.access_points[access, 1] > pts:
        access -= 1
    return max(access, 0)


def _bytes_of(info: VideoInfo, groups: list[Run]) -> NDArray[np.float64]:
    """What each group's packets weigh; they are what a decoder's time goes by. Nothing, where what is wanted comes
    before the first access point."""
    order = np.argsort(info.decode_ranks, kind="stable")
    ranks, weights = info.decode_ranks[order], np.concatenate([[0], np.cumsum(info.packet_sizes[order])])
    ends = [np.searchsorted(ranks, [run.start, run.stop + 1]) for run in groups]
    return np.array([max(weights[stop] - weights[start], 0) for start, stop in ends], np.float64)
