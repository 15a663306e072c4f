"""The scripted world: what is drawn, what a picture shows, and answers a person can check by reading the script."""

from collections import Counter
from collections.abc import Iterator, Mapping
from colorsys import rgb_to_hsv
from dataclasses import replace
from functools import partial
from itertools import combinations, pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from vidllm.world.degrade import Wear, degrade, random_wear
from vidllm.world.generate import any_shade, apart, generator, inside, make_script, random_canvas, repaint
from vidllm.world.questions import (
    NOTHING,
    Question,
    clear,
    clip_questions,
    moment_questions,
    pick_moments,
    span_question,
    steady,
    tell,
    visible,
)
from vidllm.world.render import frame
from vidllm.world.script import Canvas, Event, Script, Thing
from vidllm.world.vocabulary import ACTIONS, COLOURS, HUES, SHADES, SHAPES, Shape, place

SEEDS = range(60)
CANVAS = Canvas(width=200, height=200, fps=10, background=(20, 20, 20), softness=1.0)


@pytest.fixture(scope="module")
def scripts() -> list[Script]:
    """Sixty clips of a split that nothing else draws from."""
    return [make_script("tests", seed) for seed in SEEDS]


def moments(script: Script, step: float = 0.2) -> Iterator[float]:
    """Every `step` seconds of a clip."""
    return iter(np.arange(0, script.duration, step).tolist())


# ------------------------------------------------------------------------------------------------ what is drawn


def test_a_seed_is_a_clip(scripts: list[Script]) -> None:
    assert [make_script("tests", seed) for seed in SEEDS] == scripts


def test_no_two_clips_of_any_split_are_alike() -> None:
    drawn = [make_script(split, seed) for split in ("train", "test", "check", "user", "words") for seed in range(40)]
    assert len({replace(script, seed="") for script in drawn}) == len(drawn)


def test_clips_are_as_long_as_the_contract_says(scripts: list[Script]) -> None:
    assert all(10 <= script.duration <= 60 for script in scripts)
    assert all(1 <= len(script.things) <= 3 and script.events for script in scripts)
    assert all(max(script.canvas.background) <= 60 for script in scripts)


def test_events_come_one_at_a_time_and_end_before_the_clip_does(scripts: list[Script]) -> None:
    for script in scripts:
        assert all(event.start < event.end <= script.duration for event in script.events)
        assert all(later.start - earlier.end > 0.4 for earlier, later in pairwise(script.events))


def test_objects_stay_inside_and_apart(scripts: list[Script]) -> None:
    for script in scripts:
        for seconds in moments(script):
            things = script.at(seconds)
            assert all(inside(thing, script.canvas) for thing in things), (script.seed, seconds)
            assert all(apart(a, b, script.canvas) for a, b in combinations(things, 2)), (script.seed, seconds)


def test_a_name_means_one_object(scripts: list[Script]) -> None:
    """Even over time: what was the blue square never becomes another object's name."""
    for script in scripts:
        owners: dict[str, set[int]] = {}
        for seconds in moments(script, 0.5):
            for number, thing in enumerate(script.at(seconds)):
                owners.setdefault(thing.name, set()).add(number)
        assert all(len(numbers) == 1 for numbers in owners.values()), script.seed


def test_an_event_is_named_as_its_object_is_called_when_it_starts(scripts: list[Script]) -> None:
    for script in scripts:
        for event in script.events:
            assert event.name == script.at(event.start)[event.thing].name


def share(counts: Counter[str]) -> dict[str, float]:
    return {key: count / counts.total() for key, count in counts.items()}


def test_a_repainted_clip_is_the_same_in_shades_of_the_same_names(scripts: list[Script]) -> None:
    """No hue is two colours' own, and all that changes is rgb."""
    rng = generator("repaint", 0)
    for script in scripts[:50]:
        other = repaint(script, partial(any_shade, rng))
        assert other != script
        for old, new in zip(script.things + script.events, other.things + other.events, strict=True):
            assert replace(new, rgb=None) == replace(old, rgb=None)
        painted = [(thing.colour, thing.rgb) for thing in other.things]
        for colour, rgb in painted + [(e.colour, e.rgb) for e in other.events if e.colour and e.rgb]:
            hue, saturation, value = rgb_to_hsv(*(part / 255 for part in rgb))
            assert _called(360 * hue, saturation, value) == {colour}


def _called(hue: float, saturation: float, value: float) -> set[str]:
    """Whose range holds a shade, up to the rounding to whole numbers; where it is almost grey hue says nothing."""
    found = set()
    for colour, (hues, saturations, values) in HUES.items():
        slack = 2.0 if saturation > 0.1 else 360.0
        turned = hue - 360 if hue > hues[1] + slack else hue
        inside = hues[0] - slack <= turned <= hues[1] + slack
        inside &= all(a - 0.02 <= x <= b + 0.02 for x, (a, b) in ((saturation, saturations), (value, values)))
        found |= {colour} if inside else set()
    return found


def test_answers_can_not_be_guessed() -> None:
    drawn = [make_script("balance", seed) for seed in range(150)]
    actions = share(Counter(event.action for script in drawn for event in script.events))
    assert set(actions) == set(ACTIONS)
    assert max(actions.values()) < 0.2
    assert min(actions.values()) > 0.04
    answers: dict[str, Counter[str]] = {}
    for script in drawn:
        rng = generator("balance/ask", int(script.seed.split("/")[1]))
        for seconds in pick_moments(script, 0, 4, rng):
            for asked in moment_questions(script, seconds, rng, plain=True):
                answers.setdefault(asked.family, Counter())[asked.answer] += 1
    assert 0.2 < share(answers["what"])[NOTHING] < 0.6
    assert set(answers["count"]) >= {"One.", "Two.", "Three."}
    assert max(share(answers["count"]).values()) < 0.55
    assert len(answers["where"]) == 9
    assert max(share(answers["where"]).values()) < 0.25
    assert set(answers["colour"]) == {f"{colour.capitalize()}." for colour in COLOURS}
    assert max(share(answers["colour"]).values()) < 0.25
    assert 0.4 < share(answers["exists"])["Yes."] < 0.6


# ------------------------------------------------------------------------------------------------ what is shown


def one(shape: Shape = "circle", **changes: float) -> Script:
    """A red object in the middle of a plain picture."""
    thing = Thing(colour="red", shape=shape, x=0.5, y=0.5, radius=0.3, rgb=(220, 40, 40))
    return Script(seed="hand/1", duration=10, canvas=CANVAS, things=(replace(thing, **changes),))


def red_share(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """How red each pixel is, 0 the background, 1 the object, (H, W)."""
    return np.clip((picture[..., 0] - 20.0) / 200, 0, 1)


def centre(weights: NDArray[np.float64]) -> tuple[float, float]:
    """Centre of mass (x, y) in fractions of the picture."""
    height, width = weights.shape
    x = (weights.sum(0) * (np.arange(width) + 0.5)).sum() / weights.sum() / width
    y = (weights.sum(1) * (np.arange(height) + 0.5)).sum() / weights.sum() / height
    return float(x), float(y)


AREAS: Mapping[Shape, float] = {
    "circle": np.pi,
    "square": 1.7**2,
    "triangle": 3 * np.sqrt(3) * 0.55**2,
    "star": 5 * 1.1 * (0.3 + 0.33 * 0.45) * np.sin(np.pi / 5),
    "ring": np.pi * (1 - 0.67**2),
    "cross": 8 * 0.95 * 0.33 - 4 * (0.95 * 0.33) ** 2,
}
"""Areas in squared radii, by school geometry, at the default thickness of 0.33."""


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_covers_what_geometry_says(shape: Shape) -> None:
    covered = red_share(frame(one(shape), 0)).mean()
    assert covered == pytest.approx(AREAS[shape] * 0.3**2, rel=0.02)


@pytest.mark.parametrize("radius", [0.07, 0.2])
def test_shapes_differ_at_the_size_the_model_sees(radius: float) -> None:
    masks = {shape: red_share(frame(one(shape, radius=radius), 0, height=96, width=96)) for shape in SHAPES}
    for a, b in combinations(SHAPES, 2):
        differing = np.abs(masks[a] - masks[b]).sum() / max(masks[a].sum(), masks[b].sum())
        assert differing > 0.13, (a, b)


@pytest.mark.parametrize("size", [(96, 96), (240, 320), (100, 400), (480, 270)])
@pytest.mark.parametrize("shape", SHAPES)
def test_truth_holds_at_any_size(shape: Shape, size: tuple[int, int]) -> None:
    script = one(shape, x=0.3, y=0.7, radius=0.15)
    x, y = centre(red_share(frame(script, 0, height=size[0], width=size[1])))
    assert (x, y) == pytest.approx((0.3, 0.7), abs=0.006)


def test_a_wide_picture_shows_round_circles() -> None:
    wide = replace(one(), canvas=replace(CANVAS, width=400))
    red = red_share(frame(wide, 0)) > 0.5
    assert red.any(0).sum() == pytest.approx(red.any(1).sum(), abs=1)  # as many columns as rows


def test_a_picture_is_a_pure_function_of_script_and_time() -> None:
    script = replace(one(), canvas=replace(CANVAS, noise=4.0))
    assert np.array_equal(frame(script, 3.2), frame(script, 3.2))
    assert not np.array_equal(frame(script, 3.2), frame(script, 3.3)), "grain must live"


def test_fades_are_linear_and_hidden_objects_are_not_drawn() -> None:
    event = Event(thing=0, name="red circle", action="disappears", start=2, end=4)
    script = replace(one(), events=(event,))
    solid, half, gone = (red_share(frame(script, seconds)).sum() for seconds in (1, 3, 5))
    assert half == pytest.approx(solid / 2, rel=0.02)
    assert gone == 0
    assert red_share(frame(replace(one(), things=(replace(one().things[0], visible=False),)), 0)).sum() == 0


def test_every_shade_is_bright_and_the_backgrounds_are_not() -> None:
    assert min(max(rgb) for shades in SHADES.values() for rgb in shades) >= 120
    rng = generator("tests/canvas", 0)
    assert max(max(random_canvas(rng).background) for _ in range(100)) <= 60


def test_wear_keeps_size_and_leaves_a_picture_alone_when_there_is_none() -> None:
    picture, rng = frame(one(), 0), np.random.default_rng(0)
    assert np.array_equal(degrade(picture, Wear(blur=0, jpeg_quality=0, shrink=1, grain=0), rng), picture)
    worn = [degrade(picture, random_wear(rng), rng) for _ in range(12)]
    assert all(w.shape == picture.shape and w.dtype == np.uint8 for w in worn)
    assert max(float(np.abs(w.astype(int) - picture).mean()) for w in worn) < 12


# ------------------------------------------------------------------------------------------------ what is asked


STORY = Script(
    seed="hand/2",
    duration=20,
    canvas=CANVAS,
    things=(
        Thing(colour="red", shape="circle", x=0.2, y=0.2, radius=0.1, rgb=(220, 40, 40)),
        Thing(colour="blue", shape="square", x=0.5, y=0.5, radius=0.1, rgb=(50, 80, 230)),
        Thing(colour="green", shape="star", x=0.85, y=0.85, radius=0.1, rgb=(40, 180, 60), visible=False),
    ),
    events=(
        Event(thing=0, name="red circle", action="moves right", start=4, end=6, amount=0.3),
        Event(thing=1, name="blue square", action="turns", start=8, end=10, colour="yellow", rgb=(240, 220, 50)),
        Event(thing=2, name="green star", action="appears", start=12, end=13),
        Event(thing=0, name="red circle", action="grows", start=15, end=16, amount=1.5),
    ),
)
"""The red circle moves right at 4 s, the blue square turns yellow at 8, a green star comes at 12, the circle grows."""


def ask(question: str, seconds: float | None = None) -> str:
    """The world's own answer about STORY, in the contract's words; the question has to be one it asks."""
    rng = np.random.default_rng(0)
    known: list[Question] = clip_questions(STORY, rng, plain=True)
    for _ in range(20):  # `exists` and `first` are drawn
        known += [] if seconds is None else moment_questions(STORY, seconds, rng, plain=True)
        known += clip_questions(STORY, rng, plain=True)
    answers = {asked.answer for asked in known if asked.text == question}
    assert len(answers) == 1, (question, answers)
    return answers.pop()


@pytest.mark.parametrize(
    ("seconds", "question", "answer"),
    [
        (5, "what happens at 0:05?", "The red circle moves right."),
        (4, "what happens at 0:04?", "The red circle moves right."),
        (9, "what happens at 0:09?", "The blue square turns yellow."),
        (2, "what happens at 0:02?", "Nothing happens."),
        (2, "how many objects are there at 0:02?", "Two."),
        (14, "how many objects are there at 0:14?", "Three."),
        (2, "what colour is the square at 0:02?", "Blue."),
        (11, "what colour is the square at 0:11?", "Yellow."),
        (2, "where is the red circle at 0:02?", "At the top left."),
        (7, "where is the red circle at 0:07?", "At the top center."),
        (2, "where is the blue square at 0:02?", "At the center."),
        (18, "where is the green star at 0:18?", "At the bottom right."),
        (11, "is there a yellow square at 0:11?", "Yes."),
    ],
)
def test_answers_about_a_moment(seconds: float, question: str, answer: str) -> None:
    assert ask(question, seconds) == answer


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("when does the red circle move right?", "At 0:04."),
        ("when does the blue square turn yellow?", "At 0:08."),
        ("when does the green star appear?", "At 0:12."),
        ("when does the red circle grow?", "At 0:15."),
        ("what happens first?", "The red circle moves right."),
        ("what happens last?", "The red circle grows."),
        ("what happens before the green star appears?", "The blue square turns yellow."),
        ("what happens after the green star appears?", "The red circle grows."),
        (
            "describe the video.",
            "The red circle moves right. Then the blue square turns yellow. "
            "Then the green star appears. Then the red circle grows.",
        ),
    ],
)
def test_answers_about_the_whole_clip(question: str, answer: str) -> None:
    assert ask(question) == answer


def test_which_of_two_happens_first_whatever_their_order_in_the_question() -> None:
    rng = np.random.default_rng(1)
    asked = {q.text: q.answer for _ in range(30) for q in clip_questions(STORY, rng, plain=True) if q.family == "first"}
    pair = "red circle moves right", "blue square turns yellow"
    for a, b in (pair, pair[::-1]):
        assert asked[f"which happens first: {a} or {b}?"] == "The red circle moves right."


def test_what_happens_in_a_span() -> None:
    def span(start: float, end: float) -> str | None:
        asked = span_question(STORY, start, end, np.random.default_rng(0))
        return asked.answer if asked else None

    assert span(3, 7) == "The red circle moves right."
    assert span(3, 11) == "The red circle moves right. Then the blue square turns yellow."
    assert span(6, 8) == NOTHING
    assert span(5, 11) is None, "half an event has no undisputed answer"


def test_an_event_that_comes_twice_has_no_one_time() -> None:
    back = Event(thing=0, name="red circle", action="moves left", start=17, end=18, amount=0.2)
    again = replace(STORY.events[0], start=18.6, end=19.4, amount=0.2)
    script = replace(STORY, events=(*STORY.events, back, again))
    asked = clip_questions(script, np.random.default_rng(0), plain=True)
    assert not [q for q in asked if q.family == "when" and "move right" in q.text]
    assert [q for q in asked if q.family == "when" and "move left" in q.text]


@pytest.mark.parametrize(
    ("seconds", "undisputed"), [(4, True), (3.9, False), (4.2, False), (5, True), (6.2, False), (6.5, True), (2, True)]
)
def test_what_happens_is_asked_only_where_nobody_would_argue(seconds: float, undisputed: bool) -> None:
    assert clear(STORY, seconds) is undisputed
    asked = moment_questions(STORY, seconds, np.random.default_rng(0))
    assert ("what" in {q.family for q in asked}) is undisputed


@pytest.mark.parametrize(
    ("seconds", "undisputed"),
    [
        (4.2, True),  # the circle is under way at x = 0.23
        (4.9, False),  # at x = 0.335 it crosses from the left third to the middle one
        (9, False),  # the square is neither blue nor yellow
        (12.5, False),  # half a star
        (15.5, True),  # growing changes neither place nor colour nor number
    ],
)
def test_state_is_asked_only_where_nobody_would_argue(seconds: float, undisputed: bool) -> None:
    assert steady(STORY, seconds) is undisputed
    asked = moment_questions(STORY, seconds, np.random.default_rng(0))
    assert ("count" in {q.family for q in asked}) is undisputed


def test_of_two_events_that_meet_the_one_that_starts_is_going_on() -> None:
    back = Event(thing=0, name="red circle", action="moves left", start=6, end=7, amount=0.3)
    script = replace(STORY, events=(STORY.events[0], back))
    asked = moment_questions(script, 6, np.random.default_rng(0), plain=True)
    assert [q.answer for q in asked if q.family == "what"] == ["The red circle moves left."]


def test_what_changes_in_no_time_has_changed() -> None:
    gone = Event(thing=0, name="red circle", action="disappears", start=20, end=20)
    assert [thing.name for thing in visible(replace(STORY, events=(gone,)), 20)] == ["blue square"]


def test_an_object_that_has_left_the_picture_is_not_seen() -> None:
    away = replace(STORY, events=(replace(STORY.events[0], action="moves left"),))
    assert [len(visible(away, seconds)) for seconds in (4, 6)] == [2, 1]


def test_of_two_of_a_name_nobody_asks_where_it_is() -> None:
    script = replace(STORY, things=(STORY.things[0], replace(STORY.things[0], x=0.8)), events=())
    assert [q.family for q in moment_questions(script, 2, np.random.default_rng(0), plain=True)][:3] == [
        "what", "count", "exists",
    ]  # fmt: skip


def test_colour_is_asked_only_of_a_shape_that_is_alone() -> None:
    twin = replace(STORY.things[0], colour="white", x=0.8)
    script = replace(STORY, things=(*STORY.things, twin))
    asked = moment_questions(script, 2, np.random.default_rng(0), plain=True)
    assert [q.text for q in asked if q.family == "colour"] == ["what colour is the square at 0:02?"]


def test_describe_tells_every_event_in_order(scripts: list[Script]) -> None:
    for script in scripts:
        told = tell(script.events)
        assert told.count("The ") == 1
        assert told.count("Then the ") == len(script.events) - 1
        places = [told.index(event.phrase) for event in script.events[:1]]
        assert places == [4]


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (0.1, 0.1, "top left"),
        (0.5, 0.5, "center"),
        (0.9, 0.5, "middle right"),
        (0.5, 0.99, "bottom center"),
        (1, 1, "bottom right"),
    ],
)
def test_places_are_thirds(x: float, y: float, words: str) -> None:
    assert place(x, y) == words
