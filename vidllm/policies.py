"""Which moments, and which of them fine: four policies of one allotment, each a function of how many frames.

    uniform    . . . . . . . . . .      one stride
    slowfast   # . . . # . . . # .      every fourth frame fine, the rest coarse
    focus      .   . #########   . .    fine near the times the question names, coarse elsewhere
    change     . .. .  .   ....  .      one stride, frames that show what the others do not

Pure over the clip's index, and its glances for `change`; the budget decides how many frames, `sampling`
and `glances` which times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vidllm.video import sampling
from vidllm.video.glances import Glance, covering
from vidllm.video.info import VideoInfo
from vidllm.video.sampling import SamplePlan

Chosen = Literal["uniform", "slowfast", "focus", "change"]
Spans = Sequence[tuple[float, float]]

SLOW_EVERY = 4
"""In slowfast, one frame in so many is fine."""
FINE_SHARE = 0.75
"""Most of the frames the user asked for that focus may spend near the named times."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """Where to look: the clip, the range and the spans a question names in seconds, a rate if set."""

    info: VideoInfo
    policy: Chosen
    start: float = 0.0
    end: float = float("inf")
    spans: tuple[tuple[float, float], ...] = ()
    fps: float | None = None
    glance: Glance
    """How `change` looks at the clip before it chooses."""

    @property
    def available(self) -> int:
        """Frames the range holds; NoFrames when it holds none."""
        return len(sampling.frames_in_range(self.info.pts_seconds, self.start, self.end))

    def moments(self, frames: int | None) -> SamplePlan:
        """Exactly min(frames, available) moments; None leaves the number to the rate or to the focus layout."""
        if self.fps is not None:
            plan = sampling.at_fps(self.info.pts_seconds, self.fps, self.start, self.end, most=frames)
        elif self.policy == "focus":
            return _focus(self, frames)
        elif self.policy == "change":
            return self._change(frames or self.available)
        else:
            plan = sampling.uniform(self.info.pts_seconds, frames or self.available, self.start, self.end)
        return replace(plan, fine=self._fine(plan.times))

    def _change(self, frames: int) -> SamplePlan:
        """By glances where they are more than the frames wanted, else by packet sizes."""
        if 2 < frames < self.available:
            glances = self.glance(self.info, self.start, self.end)
            if frames < len(glances):
                chosen = glances.pts_seconds[covering(glances, frames)].tolist()
                return SamplePlan(tuple(chosen), (False,) * frames, "change")
        return sampling.change(self.info, frames, self.start, self.end)

    def _fine(self, times: Sequence[float]) -> tuple[bool, ...]:
        if self.policy == "slowfast":
            return tuple(i % SLOW_EVERY == 0 for i in range(len(times)))
        if self.policy == "uniform":
            return (False,) * len(times)
        reach = sampling.POINT_RADIUS * sampling.STEP_SECONDS
        return tuple(any(a - reach <= t <= b + reach for a, b in self.spans) for t in times)


def _focus(look: Look, frames: int | None) -> SamplePlan:
    spans = _spans_seen(look)
    if frames is None:
        return sampling.focus(look.info.pts_seconds, spans, look.start, look.end)
    frames = min(frames, look.available)
    most_fine = max(min(int(frames * FINE_SHARE), frames - 2), 1)  # two show where the clip begins and ends

    def plan(coarse: int) -> SamplePlan:
        return sampling.focus(look.info.pts_seconds, spans, look.start, look.end, coarse=coarse, most_fine=most_fine)

    coarse = frames - sum(plan(0).fine)
    while len(plan(coarse + 1)) <= frames and len(plan(coarse)) < frames:
        coarse += 1  # a coarse frame that coincides with a fine one is counted once
    return _filled(look, plan(coarse), frames)


def _spans_seen(look: Look) -> Spans:
    """The named spans; when no frame is on screen in any of them (they lie just past the end), the last moment."""
    if sampling.focus(look.info.pts_seconds, look.spans, look.start, look.end, coarse=1).method == "focus":
        return look.spans
    last = max(float(sampling.frames_in_range(look.info.pts_seconds, look.start, look.end)[-1]), look.start)
    return ((last, last),)


def _filled(look: Look, plan: SamplePlan, frames: int) -> SamplePlan:
    """`plan` grown to `frames` moments with coarse ones, where the widest gaps are."""
    pts = sampling.frames_in_range(look.info.pts_seconds, look.start, look.end)
    held = np.searchsorted(pts, plan.times)
    fine = set(held[np.asarray(plan.fine)].tolist())
    every = sampling.fill(held, frames, pts)
    return SamplePlan(tuple(float(t) for t in pts[every]), tuple(int(i) in fine for i in every), plan.method)
