"""Questions about a script, and their exact answers: each family is a small program over the script.

Every family knows several ways to ask; the first is the plainest. A question carries the moment or the span that it
names, so a learner can be shown the frames that an asker would look at.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from vidllm.video.timecode import format_time
from vidllm.world.script import Event, Script, Thing
from vidllm.world.vocabulary import COLOURS, NUMBERS, SHAPES, place

NOTHING = "Nothing happens."
MARGIN = 0.25
"""Seconds around an event's ends in which "at T" is a matter of taste; its exact start is not."""


@dataclass(frozen=True)
class Question:
    """A question with its one right answer; without `moment` or `span` (seconds) it is about the whole clip."""

    family: str
    text: str
    answer: str
    moment: float | None = None
    span: tuple[float, float] | None = None


WHAT = (
    "what happens at {t}?", "what is happening at {t}?", "What happens at {t}?", "at {t}, what happens?",
    "what's going on at {t}?", "what can be seen happening at {t}?", "which event happens at {t}?",
    "tell me what happens at {t}", "what occurs at {t}?", "describe what happens at {t}.", "{t}发生了什么？",
)  # fmt: skip
WHAT_SPAN = (
    "what happens between {a} and {b}?", "what happens from {a} to {b}?", "describe what happens between {a} and {b}.",
    "what is going on between {a} and {b}?",
)  # fmt: skip
WHEN = (
    "when does the {e}?", "When does the {e}?", "at what time does the {e}?", "when exactly does the {e}?",
    "at which time does the {e}?", "tell me when the {s}", "find the moment when the {s}.", "what time does the {e}?",
)  # fmt: skip
COUNT = (
    "how many objects are there at {t}?", "how many objects can you see at {t}?", "How many shapes are visible at {t}?",
    "at {t}, how many objects are there?", "count the objects at {t}.", "how many things are in the picture at {t}?",
)  # fmt: skip
COLOUR = (
    "what colour is the {o} at {t}?", "what color is the {o} at {t}?", "What is the color of the {o} at {t}?",
    "which colour does the {o} have at {t}?", "at {t}, what colour is the {o}?",
    "what is the colour of the {o} at {t}?",
)  # fmt: skip
WHERE = (
    "where is the {o} at {t}?", "Where is the {o} at {t}?", "at {t}, where is the {o}?",
    "where can the {o} be found at {t}?", "in which part of the picture is the {o} at {t}?",
    "what is the position of the {o} at {t}?",
)  # fmt: skip
SHAPE = (
    "what shape is the {c} object at {t}?",
    "which shape does the {c} object have at {t}?",
    "what is the {c} object at {t}?",
)
EXISTS = ("is there a {o} at {t}?", "Is there a {o} at {t}?", "can you see a {o} at {t}?", "does a {o} exist at {t}?")
FIRST_OF = (
    "which happens first: {a} or {b}?", "which happens first: the {a} or the {b}?",
    "what happens first, the {a} or the {b}?", "Which of these happens first: the {a} or the {b}?",
    "which comes first: the {a} or the {b}?",
)  # fmt: skip
FIRST = (
    "what happens first?", "what is the first thing that happens?", "what happens first in the video?",
    "what is the first event?",
)  # fmt: skip
LAST = (
    "what happens last?", "what is the last thing that happens?", "what happens last in the video?",
    "what is the last event?",
)  # fmt: skip
BEFORE = ("what happens before the {s}?", "what happens right before the {s}?", "what happens just before the {s}?")
AFTER = ("what happens after the {s}?", "what happens right after the {s}?", "what happens next after the {s}?")
DESCRIBE = (
    "describe the video.", "Describe the video.", "describe what happens in the video.", "what happens in the video?",
    "describe this clip.", "please describe the video", "what is going on in this video?",
    "give a description of the video.", "caption this video.", "summarise the video.", "describe the video in detail.",
    "描述这个视频。",
)  # fmt: skip

PICTURE = ("describe the picture.", "describe the image.", "what can be seen in the picture?", "what is in the image?")

MOMENTS = (
    ("{c}", 10), ("{s} s", 1), ("{s} seconds", 2), ("second {s}", 1), ("{s}s", 1), ("the {s}-second mark", 0.5),
)  # fmt: skip
"""How people write a moment, and how often: {c} is a clock time, {s} plain seconds."""


def spell_moment(seconds: float, rng: np.random.Generator) -> str:
    """A whole second the way somebody may write it."""
    weights = np.asarray([weight for _, weight in MOMENTS])
    pattern = MOMENTS[rng.choice(len(MOMENTS), p=weights / weights.sum())][0]
    return pattern.format(c=format_time(seconds), s=f"{seconds:g}")


def base_form(event: Event) -> str:
    """ "red circle move right": the phrase after "does the"."""
    verb, _, rest = event.phrase.removeprefix(event.name + " ").partition(" ")
    return " ".join(word for word in (event.name, verb.removesuffix("s"), rest) if word)


def moment_questions(
    script: Script, seconds: float, rng: np.random.Generator, *, plain: bool = False
) -> list[Question]:
    """What nobody would dispute about one moment. `plain` asks in the contract's own words and clock times."""
    t = format_time(seconds) if plain else spell_moment(seconds, rng)
    things = visible(script, seconds)
    found: list[tuple[str, str, str]] = []
    if clear(script, seconds):
        event = script.event_at(seconds)
        found.append(("what", _pick(WHAT, rng, plain).format(t=t), event.sentence if event else NOTHING))
    if steady(script, seconds):
        found.append(("count", _pick(COUNT, rng, plain).format(t=t), NUMBERS[len(things)] + "."))
        found.extend(_about_things(things, t, rng, plain))
    return [Question(family, text, answer, moment=seconds) for family, text, answer in found]


def _about_things(things: list[Thing], t: str, rng: np.random.Generator, plain: bool) -> Iterator[tuple[str, str, str]]:
    names = [thing.name for thing in things]
    for thing in things:
        if sum(other.shape == thing.shape for other in things) == 1:
            yield "colour", _pick(COLOUR, rng, plain).format(o=thing.shape, t=t), thing.colour.capitalize() + "."
        if sum(other.colour == thing.colour for other in things) == 1 and not plain:
            yield "shape", _pick(SHAPE, rng, plain).format(c=thing.colour, t=t), f"A {thing.shape}."
        if names.count(thing.name) == 1:
            yield "where", _pick(WHERE, rng, plain).format(o=thing.name, t=t), f"At the {place(thing.x, thing.y)}."
    if names:
        there = rng.random() < 0.5
        name = names[rng.integers(len(names))] if there else _absent(names, rng)
        yield "exists", _pick(EXISTS, rng, plain).format(o=name, t=t), "Yes." if there else "No."


def span_question(script: Script, start: float, end: float, rng: np.random.Generator) -> Question | None:
    """What happens in a span, or None when an event lies across one of its ends."""
    inside = [event for event in script.events if event.start >= start and event.end <= end]
    touching = [event for event in script.events if event.start < end and event.end > start]
    if inside != touching:
        return None
    text = _pick(WHAT_SPAN, rng, False).format(a=format_time(start), b=format_time(end))
    return Question("span", text, tell(inside), span=(start, end))


def clip_questions(script: Script, rng: np.random.Generator, *, plain: bool = False) -> list[Question]:
    """Everything worth asking about the whole clip."""
    events = script.events
    unique = [event for event in events if sum(other.phrase == event.phrase for other in events) == 1]
    ask = partial(_pick, rng=rng, plain=plain)
    found = [("describe", ask(DESCRIBE), tell(events))]
    for event in unique:
        text = ask(WHEN).format(e=base_form(event), s=event.phrase)
        found.append(("when", text, f"At {format_time(int(event.start))}."))
    if events:
        found.append(("order", ask(FIRST), events[0].sentence))
        found.append(("order", ask(LAST), events[-1].sentence))
    for one, two in pairwise(events):
        if one in unique and two in unique:
            a, b = (one, two) if rng.random() < 0.5 else (two, one)
            found.append(("first", ask(FIRST_OF).format(a=a.phrase, b=b.phrase), one.sentence))
        if two in unique:
            found.append(("order", ask(BEFORE).format(s=two.phrase), one.sentence))
        if one in unique:
            found.append(("order", ask(AFTER).format(s=one.phrase), two.sentence))
    return [Question(family, text, answer) for family, text, answer in found]


def pick_moments(script: Script, start: float, count: int, rng: np.random.Generator) -> list[float]:
    """Up to `count` different whole seconds from `start` on: half within an event, the rest near one or anywhere."""
    found: list[float] = []
    for _ in range(count):
        event = script.events[rng.integers(len(script.events))] if script.events else None
        within = [] if event is None else _whole_seconds(event)
        kind = rng.random() if event is not None else 1.0
        if kind < 0.55 and within:
            moment = float(within[rng.integers(len(within))])
        elif event is not None and kind < 0.8:
            edge = event.start if rng.random() < 0.5 else event.end
            moment = float(round(edge + rng.uniform(-3, 3)))
        else:
            moment = float(rng.integers(int(start), int(script.duration)))
        moment = min(max(moment, start), float(int(script.duration - 1)))
        if moment not in found:
            found.append(moment)
    return found


def _whole_seconds(event: Event) -> list[int]:
    return [s for s in range(int(np.ceil(event.start - 1e-6)), int(event.end) + 1) if s <= event.end]


def picture_question(script: Script, seconds: float, rng: np.random.Generator) -> Question:
    """Everything in one picture, in reading order: "A red circle at the top left. A blue square at the center." """
    things = sorted(visible(script, seconds), key=reading_order)
    told = " ".join(f"{_article(t.name)} {t.name} at the {place(t.x, t.y)}." for t in things) or "Nothing."
    return Question("picture", _pick(PICTURE, rng, False), told, moment=seconds)


def reading_order(thing: Thing) -> tuple[int, int, str]:
    """Sorts objects as a page is read: by the third they stand in, row by row."""
    return int(thing.y * 3), int(thing.x * 3), thing.name


def _article(name: str) -> str:
    """ "A", or "An" before "orange", the one colour that begins with a vowel."""
    return "An" if name.startswith("o") else "A"


def tell(events: Sequence[Event]) -> str:
    """ "The red circle moves right. Then the blue square disappears." """
    if not events:
        return NOTHING
    return " ".join([events[0].sentence, *(f"Then the {event.phrase}." for event in events[1:])])


def visible(script: Script, seconds: float) -> list[Thing]:
    """The objects that can be seen at one moment: solid by more than half, their middle in the picture."""
    things = zip(script.at(seconds), script.opacity(seconds), strict=True)
    return [t for t, opacity in things if opacity > 0.5 and 0 <= t.x <= 1 and 0 <= t.y <= 1]


def clear(script: Script, seconds: float) -> bool:
    """Whether nobody would argue about what happens at this moment: it is an event's very start, or no edge is near."""
    if any(abs(event.start - seconds) < 1e-6 for event in script.events):
        return True
    return all(abs(edge - seconds) > MARGIN for event in script.events for edge in (event.start, event.end))


def steady(script: Script, seconds: float) -> bool:
    """Whether no object is fading, changing colour or crossing a line between thirds just now."""
    event = script.event_at(seconds)
    if event is None:
        return True
    if event.action in ("appears", "disappears", "turns"):
        return False
    thing = script.at(seconds)[event.thing]
    return all(abs(c - line) > 0.04 for c in (thing.x, thing.y) for line in (1 / 3, 2 / 3))


def _pick(ways: tuple[str, ...], rng: np.random.Generator, plain: bool) -> str:
    """The first way half of the time: it is the contract's."""
    return ways[0] if plain or rng.random() < 0.5 else ways[rng.integers(len(ways))]


def _absent(names: list[str], rng: np.random.Generator) -> str:
    """A name near to one that is there: half of it right."""
    while True:
        colour, shape = names[rng.integers(len(names))].split()
        other = f"{rng.choice(COLOURS)} {shape}" if rng.random() < 0.5 else f"{colour} {rng.choice(SHAPES)}"
        if other not in names:
            return other
