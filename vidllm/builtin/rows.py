"""Clips to training rows: frames drawn once, several layouts a clip, all of a layout's questions in one row.

A row is one video prefix followed by its questions and answers, each of which sees the prefix and itself and whose
positions restart after the prefix: one vision pass and one prefill pay for many answers, and each answer is computed
exactly as if asked alone.

    USER: 0:00<tokens>0:02<tokens>...\\n | what happens at 0:30? ASSISTANT: ...</s> | how many ...
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vidllm.builtin.links import Aim, Spot, a_second_earlier, aims, spots
from vidllm.builtin.stills import IMAGE_SIDE
from vidllm.video.sampling import SamplePlan, focus, uniform
from vidllm.video.timecode import format_time
from vidllm.world.degrade import degrade, random_wear
from vidllm.world.generate import any_shade, generator, make_script, random_canvas, random_things, repaint
from vidllm.world.questions import (
    Question,
    clip_questions,
    moment_questions,
    pick_moments,
    picture_question,
    span_question,
    steady,
)
from vidllm.world.render import frame
from vidllm.world.script import Script

FINE_STRIDE, COARSE_STRIDE, COARSE_FRAMES = 2, 6, 12
UNIFORM_STRIDE, UNIFORM_FRAMES = 4, 32
REPAINTED = 0.5
"""The share of training clips in shades that the world itself does not draw."""
MOST_ASKED = {"what": 1, "where": 2, "colour": 2, "shape": 1, "describe": 1, "when": 4, "first": 2, "order": 3}
"""Questions of each family that one training row asks at most; of the others, one row in three asks one."""


@dataclass(frozen=True)
class Row:
    """One layout of one clip: `seen` is (frame number, stride, stamp or None) in order, then the questions about it."""

    seen: tuple[tuple[int, int, str | None], ...]
    asked: tuple[Question, ...]
    spots: tuple[tuple[Spot, ...], ...]
    """For every seen frame, where each object is and what it has been doing since the frame before."""
    earlier: tuple[int, ...]
    """For every seen frame, which one shows what was a second earlier."""
    aims: tuple[tuple[frozenset[Aim], ...], ...]
    """For every question and every sentence of its answer, what has to be looked at to say it."""


class Album:
    """The distinct pictures of one clip: moments between which nothing changes share one."""

    def __init__(self, script: Script, rng: np.random.Generator) -> None:
        self.script, self.rng, self.wear = script, rng, random_wear(rng)
        self.pictures: list[NDArray[np.uint8]] = []
        self._known: dict[object, int] = {}

    def number(self, seconds: float) -> int:
        """The number of the picture on screen at a moment."""
        key = (self.script.at(seconds), tuple(round(o, 3) for o in self.script.opacity(seconds)))
        if key not in self._known:
            self._known[key] = len(self.pictures)
            clean = frame(self.script, seconds, height=IMAGE_SIDE, width=IMAGE_SIDE)
            self.pictures.append(degrade(clean, self.wear, self.rng))
        return self._known[key]


def clip_rows(
    split: str, seed: int, *, moments: int = 2, whole: int = 3, plain: bool = False
) -> tuple[list[NDArray[np.uint8]], list[Row]]:
    """A clip's pictures, (96, 96, 3) uint8, and its rows: moments in focus, perhaps a span or a still, the whole clip
    `whole` times, once with `plain`.

    Strides, numbers of frames, words and the clock's start vary; `plain` keeps to asking's layout and the contract's
    words.
    """
    script, rng = make_script(split, seed), generator(split + "/rows", seed)
    start = float(rng.integers(1, 540)) if rng.random() < 0.08 and not plain else 0.0
    script = shift(script, start)
    if not plain and rng.random() < REPAINTED:
        script = repaint(script, partial(any_shade, rng))
    album = Album(script, rng)
    pts = np.arange(start, script.duration, 1 / script.canvas.fps)
    rows = []
    for moment in pick_moments(script, start, moments, rng):
        asked = moment_questions(script, moment, rng, plain=plain)
        if asked:
            count = COARSE_FRAMES if plain else int(rng.choice([COARSE_FRAMES, int(rng.integers(4, 17))]))
            plan = focus(pts, [(moment, moment)], start, coarse=count)
            asked = asked if plain else _some(asked, rng)
            rows.append(_row(album, plan, asked, _fine(rng, plain), _coarse(rng, plain)))
    if rng.random() < 0.25 and (asked_span := _some_span(script, start, rng)):
        assert asked_span.span is not None
        rows.append(
            _row(album, focus(pts, [asked_span.span], start), [asked_span], _fine(rng, plain), _coarse(rng, plain))
        )
    if rng.random() < 0.25 and not plain:
        rows.append(_still_row(album, start, rng))
    for _ in range(1 if plain else whole):
        frames, stride = _uniform_layout(rng, plain)
        asked = clip_questions(script, rng, plain=plain)
        asked = asked if plain else _some(asked, rng)
        rows.append(_row(album, uniform(pts, frames, start), asked, stride, stride))
    return album.pictures, [row for row in rows if row.asked]


def shift(script: Script, seconds: float) -> Script:
    """The same clip `seconds` later on the clock, as a part of a longer video would be."""
    events = tuple(replace(e, start=e.start + seconds, end=e.end + seconds) for e in script.events)
    return replace(script, events=events, duration=script.duration + seconds)


def _some_span(script: Script, start: float, rng: np.random.Generator) -> Question | None:
    """A question about 2 to 15 seconds, when five tries find a span that cuts no event."""
    for _ in range(5):
        a = float(rng.integers(int(start), int(script.duration - 2)))
        b = float(min(script.duration, a + rng.integers(2, 16)))
        if found := span_question(script, a, b, rng):
            return found
    return None


def _some(asked: list[Question], rng: np.random.Generator) -> list[Question]:
    """At most so many of each family, by chance."""
    mixed = [asked[i] for i in rng.permutation(len(asked))]
    most = {q.family: MOST_ASKED.get(q.family, int(rng.random() < 1 / 3)) for q in asked}
    return [q for n, q in enumerate(mixed) if sum(o.family == q.family for o in mixed[:n]) < most[q.family]]


def still_rows(split: str, seed: int) -> tuple[list[NDArray[np.uint8]], list[Row]]:
    """One picture, crowded more often than not: telling objects apart is what the image stage teaches."""
    rng = generator(split + "/stills", seed)
    canvas = random_canvas(rng)
    things = random_things(rng, canvas, int(rng.choice([1, 2, 3, 3, 4, 4])))
    script = Script(seed=f"{split}/{seed}", duration=1.0, canvas=canvas, things=things)
    if rng.random() < REPAINTED:
        script = repaint(script, partial(any_shade, rng))
    album = Album(script, rng)
    return album.pictures, [_still_row(album, 0.0, rng)]


def _still_row(album: Album, start: float, rng: np.random.Generator) -> Row:
    """A single picture without a stamp, asked about without a time."""
    moment = float(rng.uniform(start, album.script.duration))
    asked = moment_questions(album.script, moment, rng) if steady(album.script, moment) else []
    cut = [replace(q, text=_timeless(q.text), family="still " + q.family) for q in asked if q.family != "what"]
    if asked:
        cut.append(picture_question(album.script, moment, rng))
    stride = int(rng.choice([1, 2, 3, 4], p=[0.05, 0.2, 0.4, 0.35]))
    cut = [q for q in cut if q.text]
    times = np.asarray([moment])
    return Row(
        ((album.number(moment), stride, None),),
        tuple(cut),
        spots(album.script, times),
        (0,),
        tuple(aims(album.script, q, times) for q in cut),
    )


def _timeless(text: str) -> str:
    """ "how many objects are there at 0:30?" -> "how many objects are there?"; "" when the time stands in front."""
    head, _, _ = text.rpartition(" at ")
    return head + "?" if head and not text.startswith("at ") else ""


def _fine(rng: np.random.Generator, plain: bool) -> int:
    return FINE_STRIDE if plain else int(rng.choice([2, 3, 4], p=[0.8, 0.1, 0.1]))


def _coarse(rng: np.random.Generator, plain: bool) -> int:
    return COARSE_STRIDE if plain else int(rng.choice([6, 4, 3], p=[0.8, 0.15, 0.05]))


def _uniform_layout(rng: np.random.Generator, plain: bool) -> tuple[int, int]:
    """(frames, stride)."""
    if plain or rng.random() < 0.6:
        return UNIFORM_FRAMES, UNIFORM_STRIDE
    stride = int(rng.choice([4, 3, 2, 6], p=[0.5, 0.2, 0.2, 0.1]))
    return int(rng.integers(6, {2: 17, 3: 29, 4: 41, 6: 57}[stride])), stride


def _row(album: Album, plan: SamplePlan, asked: Sequence[Question], fine: int, coarse: int) -> Row:
    seen = tuple(
        (album.number(t), fine if is_fine else coarse, format_time(t))
        for t, is_fine in zip(plan.times, plan.fine, strict=True)
    )
    times = np.asarray(plan.times)
    found = tuple(aims(album.script, q, times) for q in asked)
    told = tuple(_as_seen(q, aimed, plan.times) for q, aimed in zip(asked, found, strict=True))
    return Row(seen, told, spots(album.script, times), a_second_earlier(plan.times), found)


def _as_seen(asked: Question, aimed: Sequence[frozenset[Aim]], times: Sequence[float]) -> Question:
    """When an event starts, as the frames tell it: by the first that shows it. The true second lies up to one interval
    before that, and nobody could say where.
    """
    if asked.family != "when" or not aimed or not aimed[0]:
        return asked
    return replace(asked, answer=f"At {format_time(times[min(n for n, _ in aimed[0])])}.")
