"""Which moments of a clip to look at. Pure over arrays: nothing is opened, nothing is decoded.

Every function answers with a `SamplePlan` whose times are true presentation times of frames that exist, sorted and
distinct, so a plan can not ask for more frames than there are. Ranges are half-open: `[start, end)` holds the frames
on screen at some moment of it, and the frame already on screen at `start` is one of them.

    uniform   x....x....x....x....x      both ends, equal steps
    at_fps    x..x..x..x..x..x..x..      a fixed rate from the first frame on
    change    x..xx.x......x.....xx      where the picture changes, with a uniform floor
    focus     x....xfffffffff..x....x    fine frames near the times a question names, coarse ones elsewhere
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidllm.errors import NoFrames

if TYPE_CHECKING:
    from vidllm.video.info import VideoInfo

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int64]

STEP_SECONDS = 0.5
"""Distance of neighbouring fine frames around a named time; the built-in model was trained on it."""
POINT_RADIUS = 4
"""Fine frames on each side of a named moment: T + k * 0.5 s, k = -4..4, nine frames over four seconds."""
CLOSEST_SECONDS = 0.25
"""Two more stand so near to the moment itself: what goes on at T has begun or not within them, and ended or not."""
SPAN_FRAMES = 16
"""Most fine frames inside a named range; one more stands a step before it and one a step after."""
COARSE_FRAMES = 12
"""Uniform frames that carry the rest of the clip beside the fine ones."""
UNIFORM_FLOOR = 0.25
"""The share of `change` frames that is spread over time, whatever happens."""
SAME_MOMENT = 1e-6
"""Seconds two times may differ and still be one: PTS divided out of a time base carry rounding of 1e-12 or so."""


@dataclass(frozen=True)
class SamplePlan:
    """The moments to look at, in seconds on the viewer's clock."""

    times: tuple[float, ...]
    """Presentation times of existing frames, ascending and distinct."""
    fine: tuple[bool, ...]
    """True for a frame that deserves the fine grid: it lies near a time the question names."""
    method: str
    """Who chose: uniform | fps | change | focus."""
    tolerance: float = 0.0
    """Seconds by which a key frame may stand in for a planned frame (0: the exact frame only)."""

    def __post_init__(self) -> None:
        if not self.times:
            raise ValueError("a SamplePlan needs at least one time")
        if len(self.times) != len(self.fine):
            raise ValueError(f"{len(self.times)} times but {len(self.fine)} fine flags")
        if any(later <= earlier for earlier, later in pairwise(self.times)):
            raise ValueError(f"times must ascend and be distinct, got {self.times}")
        if self.tolerance < 0:
            raise ValueError(f"tolerance must not be negative, got {self.tolerance}")

    def __len__(self) -> int:
        return len(self.times)


def uniform(pts_seconds: ArrayLike, n: int, start: float = 0.0, end: float = float("inf")) -> SamplePlan:
    """Exactly `min(n, frames in range)` frames at equal steps, the first and the last among them.

    One frame alone is the middle one: it says more of a clip than its first, which is often black.
    """
    pts = frames_in_range(pts_seconds, start, end)
    return _plan(pts, _uniform_indices(pts, n), "uniform")


def at_fps(
    pts_seconds: ArrayLike, fps: float, start: float = 0.0, end: float = float("inf"), *, most: int | None = None
) -> SamplePlan:
    """The frames on screen every `1 / fps` seconds from the first frame on; `uniform` when that is above `most`."""
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    pts = frames_in_range(pts_seconds, start, end)
    if pts[-1] - pts[0] > 2 * len(pts) / fps:  # asks for more than there is: every frame, without a huge grid
        chosen = np.arange(len(pts))
    else:
        ticks = np.arange(int((pts[-1] - pts[0]) * fps + SAME_MOMENT) + 1)
        chosen = np.unique(_on_screen(pts, pts[0] + ticks / fps))
    if most is not None and len(chosen) > most:
        return _plan(pts, _uniform_indices(pts, most), "uniform")
    return _plan(pts, chosen, "fps")


def change(info: "VideoInfo", n: int, start: float = 0.0, end: float = float("inf")) -> SamplePlan:
    """Exactly `min(n, frames in range)` frames, more of them where the picture changes; first and last always.

    The frames stand at equal steps of the accumulated change that packet sizes tell of, of which `UNIFORM_FLOOR` is
    time itself: no stretch goes unseen. A frame that repeats the one chosen before it gives its place to a stretch that
    moves. A clip that never changes is sampled uniformly. Nothing is decoded; `glances` look again.
    """
    from vidllm.video.changes import packet_changes

    pts = frames_in_range(info.pts_seconds, start, end)
    if n < 3 or len(pts) <= n:
        return _plan(pts, _uniform_indices(pts, n), "change")
    first = int(np.searchsorted(info.pts_seconds, pts[0]))
    inside = slice(first, first + len(pts))
    changes = packet_changes(info)
    moving = _share(changes.motion[inside] * ~changes.still[inside]) + _share(changes.spikes[inside])
    elapsed = _running(np.diff(pts, prepend=pts[0]))
    mass = UNIFORM_FLOOR * elapsed + (1 - UNIFORM_FLOOR) * _running(moving) if moving.any() else elapsed
    wanted = np.searchsorted(mass, np.linspace(0, 1, n) - SAME_MOMENT).clip(0, len(pts) - 1)
    wanted[[0, -1]] = 0, len(pts) - 1  # the last frames of a long clip may weigh less than the slack
    chosen = fill(np.unique(wanted), n, mass)
    return _plan(pts, _without_repeats(chosen, changes.still[inside], mass, n), "change")


def focus(
    pts_seconds: ArrayLike,
    spans: Sequence[tuple[float, float]],
    start: float = 0.0,
    end: float = float("inf"),
    *,
    coarse: int = COARSE_FRAMES,
    most_fine: int | None = None,
) -> SamplePlan:
    """Fine frames near the named `spans`, plus `coarse` uniform ones over the range.

    A span `(T, T)` is a moment: nine frames half a second apart around it, and one a quarter before and after it. A
    longer one gets up to sixteen, evenly, and one half a second before and after it. Frames are clipped to the range
    and counted once, as fine when both layouts hold them. Spans outside the range are left out, and with none left this
    is `uniform` over `coarse` frames.

    Who counts frames says `most_fine`: each span is then shown in so few of its fine frames, a moment by the nearest of
    the nine, a longer one from end to end; and fewer coarse frames than `COARSE_FRAMES` cover what no fine one shows,
    the range's first and last frame before all. With as many coarse frames as that, they are uniform, as the built-in
    model knows.
    """
    pts = frames_in_range(pts_seconds, start, end)
    inside = [(a, b) for a, b in spans if b >= start and a <= min(end, _screen_end(pts))]
    if not inside:
        return _plan(pts, _uniform_indices(pts, coarse), "uniform")
    fine = np.unique(_on_screen(pts, np.concatenate([_fine_moments(a, b) for a, b in inside])))
    if most_fine is not None and len(fine) > most_fine:
        fine = _fewer_fine(pts, inside, max(most_fine, 1))
    if coarse < 1:
        every = fine
    elif most_fine is not None and coarse < COARSE_FRAMES:
        every = _outside(pts, fine, coarse)
    else:
        every = np.union1d(fine, _uniform_indices(pts, coarse))
    return _plan(pts, every, "focus", np.isin(every, fine))


def allow_snap(plan: SamplePlan) -> SamplePlan:
    """The plan with the widest tolerance that can not make two of its frames one: under half its smallest gap.

    A plan with fine frames keeps tolerance 0: who names a moment wants that moment, not a key frame near it.
    """
    if any(plan.fine) or len(plan) < 2:
        return replace(plan, tolerance=0.0)
    return replace(plan, tolerance=0.49 * float(np.diff(plan.times).min()))


def frames_in_range(pts_seconds: ArrayLike, start: float, end: float) -> FloatArray:
    """Those of the ascending `pts_seconds` (frames,) that are on screen in `[start, end)`; `NoFrames` when none is."""
    pts = np.asarray(pts_seconds, dtype=np.float64)
    if pts.ndim != 1 or len(pts) == 0:
        raise NoFrames("the clip holds no frames to sample")
    if not start < end:
        raise NoFrames(f"the range {start:g}-{end:g} s is empty; its end must lie after its start")
    if start >= _screen_end(pts) or end <= pts[0]:
        raise NoFrames(f"no frame in {start:g}-{end:g} s: the clip's frames lie at {pts[0]:.2f}-{pts[-1]:.2f} s")
    first = max(int(np.searchsorted(pts, start + SAME_MOMENT, side="right")) - 1, 0)
    stop = int(np.searchsorted(pts, end - SAME_MOMENT, side="left"))
    return pts[first : max(stop, first + 1)]


def fill(indices: IndexArray, n: int, mass: FloatArray) -> IndexArray:
    """`indices` grown to `n` distinct ones: each time the heaviest stretch between two neighbours is halved.

    `mass` (frames,) is an ascending running total (time, or cumulative change); its middle is where a stretch splits.
    A leap at a neighbour itself does not count: that neighbour shows it already.
    """
    chosen = sorted({int(i) for i in indices})
    stretches = [_stretch(mass, low, high) for low, high in pairwise([-1, *chosen, len(mass)]) if high - low > 1]
    heapify(stretches)
    while len(chosen) < min(n, len(mass)):
        *_, low, high = heappop(stretches)
        middle = (mass[max(low, 0)] + mass[high - 1]) / 2
        best = low + 1 + int(np.argmin(np.abs(mass[low + 1 : high] - middle)))
        chosen.append(best)
        for ends in ((low, best), (best, high)):
            if ends[1] - ends[0] > 1:
                heappush(stretches, _stretch(mass, *ends))
    return np.sort(np.asarray(chosen, dtype=np.int64))


def _stretch(mass: FloatArray, low: int, high: int) -> tuple[float, int, int, int]:
    """What lies between two neighbours, so that the heaviest, then the longest, then the first sorts first."""
    return -float(mass[high - 1] - mass[max(low, 0)]), low - high, low, high


def _share(values: FloatArray) -> FloatArray:
    """`values` (frames,) as shares of their sum, the first of them being 0; all 0 where they are."""
    return np.concatenate([[0.0], values[1:] / (values[1:].sum() or 1.0)])


def _running(values: FloatArray) -> FloatArray:
    """The running total as a share of the whole: 0 at the first frame, 1 at the last."""
    total = np.cumsum(values) - values[0]
    return np.asarray(total / total[-1] if total[-1] > 0 else np.linspace(0, 1, len(values)), dtype=np.float64)


def _without_repeats(chosen: IndexArray, still: NDArray[np.bool_], mass: FloatArray, n: int) -> IndexArray:
    """Inner frames that repeat the chosen one before them, given to stretches that move as long as there are some."""
    moves = np.cumsum(~still)
    repeats = [later for earlier, later in pairwise(chosen[:-1].tolist()) if moves[later] == moves[earlier]]
    if not repeats or not moves[-1] > moves[0]:
        return chosen
    kept = np.setdiff1d(chosen, repeats)
    fresh = np.where(still, 0.0, np.diff(mass, prepend=0.0))
    return fill(kept, n, np.asarray(np.cumsum(fresh), dtype=np.float64))


def _uniform_indices(pts: FloatArray, n: int) -> IndexArray:
    if n < 1:
        raise ValueError(f"at least one frame is needed, got {n}")
    if n >= len(pts):
        return np.arange(len(pts))
    if n == 1:
        return _on_screen(pts, np.asarray([(pts[0] + pts[-1]) / 2]))
    wanted = np.unique(_on_screen(pts, np.linspace(pts[0], pts[-1], n)))
    return fill(wanted, n, pts)  # a variable frame rate shows one frame at several of the moments


def _fine_moments(start: float, end: float) -> FloatArray:
    if end - start < STEP_SECONDS / 2:
        moment = (start + end) / 2
        return np.sort(np.append(_half_seconds(moment), [moment - CLOSEST_SECONDS, moment + CLOSEST_SECONDS]))
    inside = np.linspace(start, end, min(SPAN_FRAMES, max(2, int((end - start) / STEP_SECONDS) + 1)))
    return np.asarray([start - STEP_SECONDS, *inside, end + STEP_SECONDS], dtype=np.float64)


def _half_seconds(moment: float) -> FloatArray:
    return moment + STEP_SECONDS * np.arange(-POINT_RADIUS, POINT_RADIUS + 1, dtype=np.float64)


def _fewer_fine(pts: FloatArray, spans: Sequence[tuple[float, float]], most: int) -> IndexArray:
    """At most `most` fine frames: one of each span as long as there are some, then more to those that lost most."""
    layouts = [np.unique(_on_screen(pts, _fine_moments(a, b))) for a, b in spans]
    kept = [0] * len(spans)
    for _ in range(min(most, sum(map(len, layouts)))):
        left = [i for i, layout in enumerate(layouts) if kept[i] < len(layout)]
        kept[max(left, key=lambda i: (kept[i] == 0, len(layouts[i]) / (kept[i] + 1)))] += 1
    return np.unique(np.concatenate([_of_span(pts, a, b, n) for (a, b), n in zip(spans, kept, strict=True)]))


def _of_span(pts: FloatArray, start: float, end: float, n: int) -> IndexArray:
    """`n` of a span's fine frames: the nearest to a moment, an even row from end to end of a longer span.

    Nearest of all is the frame on screen at that moment, even where it began long before and the next begins at once;
    a quarter of a second away is looked at when nothing else is left, for it shows the least that is new.
    """
    moments = _fine_moments(start, end)
    layout = np.unique(_on_screen(pts, moments))
    inner = np.unique(_on_screen(pts, moments[1:-1]))
    if end - start < STEP_SECONDS / 2:
        middle = (start + end) / 2
        distance = np.where(layout == _on_screen(pts, np.asarray(middle)), 0.0, np.abs(pts[layout] - middle))
        closest = ~np.isin(layout, _on_screen(pts, _half_seconds(middle)))
        return np.sort(layout[np.lexsort((distance, closest))[:n]])
    if n > len(inner):
        return np.union1d(inner, np.setdiff1d(layout, inner)[: n - len(inner)])
    places = np.linspace(0, len(inner) - 1, n) if n != 1 else np.asarray([(len(inner) - 1) / 2])
    return inner[places.astype(np.int64)]


def _outside(pts: FloatArray, fine: IndexArray, n: int) -> IndexArray:
    """`fine` and `n` more: the first and the last frame, then equal steps where the gaps are widest."""
    ends = np.setdiff1d([0, len(pts) - 1], fine)
    if n < len(ends):  # one for two ends: the middle of the wider side says more than either
        return fill(fine, len(fine) + n, pts)
    kept = np.union1d(fine, ends)
    widths, parts = np.diff(pts[kept]), np.ones(max(len(kept) - 1, 0))
    for _ in range(n - len(ends) if len(kept) > 1 else 0):
        parts[int(np.argmax(widths / parts))] += 1
    inner = [np.linspace(a, b, int(k) + 1)[1:-1] for (a, b), k in zip(pairwise(pts[kept]), parts, strict=True)]
    every = np.union1d(kept, _on_screen(pts, np.concatenate([[pts[0]], *inner])))
    return fill(every, len(fine) + n, pts)  # a variable frame rate shows one frame at several of the moments


def _on_screen(pts: FloatArray, times: FloatArray) -> IndexArray:
    """Index of the frame on screen at each time: the last with pts <= time, clamped to the first and the last."""
    found = np.searchsorted(pts, times + SAME_MOMENT, side="right") - 1
    return np.clip(found, 0, len(pts) - 1).astype(np.int64)


def _screen_end(pts: FloatArray) -> float:
    """When the last frame leaves the screen, as far as PTS can say; a lone frame stays for ever."""
    return float("inf") if len(pts) == 1 else float(2 * pts[-1] - pts[-2])


def _plan(pts: FloatArray, indices: IndexArray, method: str, fine: NDArray[np.bool_] | None = None) -> SamplePlan:
    flags = (False,) * len(indices) if fine is None else tuple(bool(flag) for flag in fine)
    return SamplePlan(tuple(float(t) for t in pts[indices]), flags, method)
