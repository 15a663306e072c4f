"""How much of a clip the frames of each policy show: `uniform`, `change`, and `change` by packet sizes alone.

    python benchmarks/coverage.py [--clips ../shared/videos/natural] [--frames 8 16 32 64]

Every frame of a clip is decoded at 32x32 pixels and compared with the nearest, in looks, of those chosen: the
mean over the clip, and its 95th percentile, as shares of what uniform frames reach. Below 1 the frames show more. The
comparison is the one that `change` itself chooses by, over all frames instead of its glances. The seconds are those of
glancing and of reading the chosen frames at 336 pixels.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean, median

import numpy as np
import report
from numpy.typing import NDArray

from vidllm.errors import VideoError
from vidllm.reads import Reads
from vidllm.video.decode import read_frames
from vidllm.video.glances import covering, unlike
from vidllm.video.info import VideoInfo, probe
from vidllm.video.sampling import change, uniform
from vidllm.video.thumbs import SIDE

BATCH = 512
Distances = tuple[float, float]


def main() -> None:
    """Score every clip and write results/coverage.md and .json."""
    parser = report.parser(__doc__)
    parser.add_argument("--clips", type=Path, default=report.VIDEOS / "natural")
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32, 64])
    told = parser.parse_args()
    scored: dict[int, list[dict[str, float]]] = {n: [] for n in told.frames}
    for path in sorted(told.clips.iterdir()):
        try:
            info = probe(path)
            pixels = every_frame(info)
        except VideoError as error:
            print(error)
            continue
        for n in told.frames:
            if 2 * n <= info.num_frames:
                scored[n].append(score(info, pixels, n))
        print(f"{path.name}: {info.num_frames} frames")
    rows = [row(n, marks) for n, marks in scored.items() if marks]
    notes = ("geometric means over clips of at least twice as many frames; worse: clips whose mean is over 1.1",)
    report.write("coverage", "What the chosen frames leave unseen, uniform frames being 1", rows, notes)


def every_frame(info: VideoInfo) -> NDArray[np.uint8]:
    """(frames, 32, 32)."""
    times = info.pts_seconds
    parts = [read_frames(info, times[i : i + BATCH], size=(SIDE, SIDE)) for i in range(0, len(times), BATCH)]
    return np.concatenate([part.pixels for part in parts])


def score(info: VideoInfo, pixels: NDArray[np.uint8], n: int) -> dict[str, float]:
    """Of one clip: what either way of `change` leaves unseen, uniform being 1, and the seconds it took."""
    began = time.perf_counter()
    glances = Reads(None).glances(info, 0.0, float("inf"))
    glanced = time.perf_counter()
    chosen = glances.pts_seconds[covering(glances, n)] if n < len(glances) else change(info, n).times
    settled = time.perf_counter()
    read_frames(info, chosen, max_side=336)
    read = time.perf_counter()
    even = unseen(info, pixels, uniform(info.pts_seconds, n).times)
    marks = {"glances s": glanced - began, "choosing s": settled - glanced, "reading s": read - settled}
    for name, times in (("change", chosen), ("packets", change(info, n).times)):
        mean, most = unseen(info, pixels, times)
        marks |= {name: mean / even[0] if even[0] else 1.0, f"{name} p95": most / even[1] if even[1] else 1.0}
    return marks


def unseen(info: VideoInfo, pixels: NDArray[np.uint8], times: Sequence[float] | NDArray[np.float64]) -> Distances:
    """How unlike a frame of the clip is to the nearest at `times`: mean and 95th percentile, grey levels."""
    shown = info.index_at(np.asarray(times))
    nearest = np.min([unlike(pixels, pixels[i]) for i in shown], axis=0)
    return float(nearest.mean()), float(np.percentile(nearest, 95))


def row(n: int, marks: Sequence[dict[str, float]]) -> report.Row:
    """All clips at one number of frames."""
    ways = ("change", "change p95", "packets", "packets p95")
    means = {way: round(geometric_mean([max(m[way], 0.05) for m in marks]), 3) for way in ways}
    worse = {f"{way} worse": sum(m[way] > 1.1 for m in marks) for way in ("change", "packets")}
    costs = {name: round(median(m[name] for m in marks), 4) for name in ("glances s", "choosing s", "reading s")}
    return {"frames": n, "clips": len(marks), **means, **worse, **costs}


if __name__ == "__main__":
    main()
