"""Everything worth asking about a scripted clip or one of its pictures, with the one right answer to each.

The world's own questions, and what instruction data adds to them: descriptions with times, probes for what never
happened, and questions that take a step of reasoning. Answers are spelled with the world's words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, zip_longest

import numpy as np

from vidllm.video.timecode import format_time
from vidllm.world.questions import (
    Question,
    base_form,
    clip_questions,
    moment_questions,
    pick_moments,
    picture_question,
    span_question,
    steady,
    tell,
    visible,
)
from vidllm.world.script import Event, Script
from vidllm.world.vocabulary import ACTIONS, COLOURS, NUMBERS, SHAPES

FAMILIES = {
    "describe": "what happens in the whole clip",
    "timeline": "the same with the time of each event",
    "what": "what happens at a moment",
    "span": "what happens between two moments",
    "when": "the moment of an event",
    "order": "first, last, before, after",
    "first": "which of two events comes first",
    "count": "how many objects",
    "colour": "an object's colour",
    "shape": "an object's shape",
    "where": "an object's place",
    "exists": "whether an object is there: half of them never are",
    "happens": "whether an event is in the clip: half of them never happen",
    "reasoning": "how many events, whether one is before another, what one object does, what is left at the end",
    "picture": "everything in one picture",
}
"""Kinds of questions; of a picture: picture, count, colour, shape, where, exists."""

TIMELINE = (
    "describe the video with the time of each event.", "list what happens and when.",
    "describe the video in detail, with times.", "what happens, and at which times?",
)  # fmt: skip
HAPPENS = (
    "does the {e} in the video?", "does the {e} at any time?", "is there a moment when the {s}?",
    "does it ever happen that the {s}?",
)  # fmt: skip
BEFORE = ("does the {a} before the {b}?", "is it true that the {s} before the {b}?")
EVENTS = ("how many events are there in the video?", "how many things happen in the video?", "how often does something "
          "happen?")  # fmt: skip
LEFT = ("how many objects are left at the end?", "how many objects can be seen when the video ends?")
DOES = ("what does the {o} do?", "what does the {o} do in the video?", "tell me everything that the {o} does.")
MOMENTS = 6
"""Moments asked about in one clip, before a choice is made."""


def clip_lessons(script: Script, rng: np.random.Generator) -> list[Question]:
    """All questions about a clip, several families, no wording twice."""
    asked = [*clip_questions(script, rng), _timeline(script, rng), *_probes(script, rng), *_reasoning(script, rng)]
    for moment in pick_moments(script, 0.0, MOMENTS, rng):
        asked += moment_questions(script, moment, rng)
    for start in rng.integers(0, max(1, int(script.duration) - 8), 2):
        span = span_question(script, float(start), float(start + rng.integers(5, 12)), rng)
        asked += [span] if span is not None and span.span is not None and span.span[1] <= script.duration else []
    return list({question.text: question for question in asked}.values())


def picture_lessons(script: Script, moment: float, rng: np.random.Generator) -> list[Question]:
    """All questions about the picture at a moment: those about the moment that need no clock, and what it shows."""
    at = f" at {format_time(moment)}"
    still = [q for q in moment_questions(script, moment, rng, plain=True) if q.family != "what"]
    asked = [Question(q.family, q.text.replace(at, ""), q.answer, moment=moment) for q in still]
    return [picture_question(script, moment, rng), *asked] if steady(script, moment) else []


def choose(questions: Sequence[Question], count: int, rng: np.random.Generator) -> list[Question]:
    """Up to `count` of the questions, families in turn: a clip with many events is not only asked when."""
    by_family: dict[str, list[Question]] = {}
    for place in rng.permutation(len(questions)):
        by_family.setdefault(questions[place].family, []).append(questions[place])
    families = list(by_family.values())
    order = [families[place] for place in rng.permutation(len(families))]
    rounds = zip_longest(*order)  # one of each family, then a second of each that has one, ...
    return [question for each in rounds for question in each if question is not None][:count]


def _pick(ways: Sequence[str], rng: np.random.Generator) -> str:
    return ways[int(rng.integers(len(ways)))]


def _timeline(script: Script, rng: np.random.Generator) -> Question:
    told = " ".join(f"At {format_time(int(e.start))} the {e.phrase}." for e in script.events) or "Nothing happens."
    return Question("timeline", _pick(TIMELINE, rng), told)


def _probes(script: Script, rng: np.random.Generator) -> Iterator[Question]:
    """As many events that never happen as such that do, each near to a true one."""
    for event in script.events:
        yield Question("happens", _pick(HAPPENS, rng).format(e=base_form(event), s=event.phrase), "Yes.")
        other = _never(script, event, rng)
        yield Question("happens", _pick(HAPPENS, rng).format(e=base_form(other), s=other.phrase), "No.")


def _never(script: Script, event: Event, rng: np.random.Generator) -> Event:
    """The event with its object or its action changed, so that it is in no moment of the clip."""
    happening = {one.phrase for one in script.events}
    while True:
        colour, shape = event.name.split()
        action, turned = event.action, event.colour
        match rng.integers(3):
            case 0:
                colour = COLOURS[rng.integers(len(COLOURS))]
            case 1:
                shape = SHAPES[rng.integers(len(SHAPES))]
            case _:
                action = ACTIONS[rng.integers(len(ACTIONS))]
                turned = COLOURS[rng.integers(len(COLOURS))] if action == "turns" else None
        other = replace(event, name=f"{colour} {shape}", action=action, colour=turned)
        if other.phrase not in happening and turned != colour:
            return other


def _reasoning(script: Script, rng: np.random.Generator) -> Iterator[Question]:
    events = script.events
    if len(events) < len(NUMBERS):
        yield Question("reasoning", _pick(EVENTS, rng), f"{NUMBERS[len(events)]}.")
    yield Question("reasoning", _pick(LEFT, rng), f"{NUMBERS[len(visible(script, script.duration))]}.")
    for name in dict.fromkeys(event.name for event in events):
        mine = [event for event in events if event.name == name]
        yield Question("reasoning", _pick(DOES, rng).format(o=name), tell(mine))
    once = [event for event in events if sum(other.phrase == event.phrase for other in events) == 1]
    for one, two in combinations(once, 2):
        if rng.random() < 0.5:
            yield _before(one, two, "Yes.", rng)
        else:
            yield _before(two, one, "No.", rng)


def _before(one: Event, two: Event, answer: str, rng: np.random.Generator) -> Question:
    text = _pick(BEFORE, rng).format(a=base_form(one), s=one.phrase, b=two.phrase)
    return Question("reasoning", text, answer)
