"""What a question about a world clip asks, in any of its wordings, and what the script says to that.

Each family's wordings (`world.questions`, `train.lessons`) become patterns, so a question needs no label: its words are
enough.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from vidllm.feedback.claims import Claim, read_claim
from vidllm.train import lessons
from vidllm.video.timecode import find_times
from vidllm.world import questions as world
from vidllm.world.script import Event, Script, Thing
from vidllm.world.vocabulary import place

Holes = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is so. One of the fields that follow `family` is filled, by the family."""

    family: str
    events: tuple[Event, ...] = ()
    """describe, timeline, span: all of them, in order. what, order: the one, or none when nothing happens. first: the
    earlier one."""
    also: tuple[Event, ...] = ()
    """what: an event so near that telling it is no mistake."""
    nothing_too: bool = False
    """what: so near an event's edge that "Nothing happens." is no mistake either."""
    seconds: tuple[float, ...] = ()
    """when: the starts, any of which will do."""
    count: int | None = None
    word: str = ""
    """colour, shape, where, exists (and all else that is yes or no): the answer, in lower case."""


def find_truth(question: str, script: Script) -> Truth | None:
    """What the script says to `question`; None when the question is none of the world's, or asks what is not there."""
    words = question.strip().rstrip("?.!？。 ")
    for family, pattern in _patterns():
        if (match := pattern.fullmatch(words)) and (truth := _PROGRAMS[family](match.groupdict(), script)):
            return truth
    return None


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """(family, pattern) of every wording; a hole {t} becomes a group t."""
    wordings: Sequence[tuple[str, tuple[str, ...]]] = (
        ("first event", world.FIRST), ("last event", world.LAST), ("before", world.BEFORE), ("after", world.AFTER),
        ("first", world.FIRST_OF), ("describe", world.DESCRIBE), ("span", world.WHAT_SPAN), ("what", world.WHAT),
        ("when", world.WHEN), ("count", world.COUNT), ("colour", world.COLOUR), ("where", world.WHERE),
        ("shape", world.SHAPE), ("exists", world.EXISTS), ("timeline", lessons.TIMELINE), ("happens", lessons.HAPPENS),
        ("is before", lessons.BEFORE), ("events", lessons.EVENTS), ("left", lessons.LEFT), ("does", lessons.DOES),
    )  # fmt: skip
    return tuple((family, _pattern(wording)) for family, ways in wordings for wording in ways)


def _pattern(wording: str) -> re.Pattern[str]:
    plain = re.escape(wording.rstrip("?.？。"))
    return re.compile(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>.+?)", plain), re.IGNORECASE)


# ------------------------------------------------------------------------------- one small program for each family


def _what(holes: Holes, script: Script) -> Truth | None:
    moment = _moment(holes["t"], script)
    if moment is None:
        return None
    event = script.event_at(moment)
    if world.clear(script, moment):
        return Truth(family="what", events=(event,) if event else ())
    margin = world.MARGIN
    near = tuple(e for e in script.events if e.start - margin <= moment <= e.end + margin)
    return Truth(family="what", events=near[:1], also=near[1:], nothing_too=True)


def _span(holes: Holes, script: Script) -> Truth | None:
    start, end = _moment(holes["a"], script), _moment(holes["b"], script)
    if start is None or end is None or end <= start:
        return None
    return Truth(family="span", events=tuple(e for e in script.events if e.start < end and e.end > start))


def _when(holes: Holes, script: Script) -> Truth | None:
    events = _named(holes.get("e") or holes["s"], script)
    return Truth(family="when", seconds=tuple(event.start for event in events)) if events else None


def _count(holes: Holes, script: Script) -> Truth | None:
    moment = _moment(holes["t"], script)
    return None if moment is None else Truth(family="count", count=len(world.visible(script, moment)))


def _colour(holes: Holes, script: Script) -> Truth | None:
    things = _seen(holes, script, lambda thing: thing.shape == holes["o"].casefold())
    return Truth(family="colour", word=things[0].colour) if len(things) == 1 else None


def _shape(holes: Holes, script: Script) -> Truth | None:
    things = _seen(holes, script, lambda thing: thing.colour == holes["c"].casefold())
    return Truth(family="shape", word=things[0].shape) if len(things) == 1 else None


def _where(holes: Holes, script: Script) -> Truth | None:
    things = _seen(holes, script, lambda thing: thing.name == holes["o"].casefold())
    return Truth(family="where", word=place(things[0].x, things[0].y)) if len(things) == 1 else None


def _exists(holes: Holes, script: Script) -> Truth | None:
    if _moment(holes["t"], script) is None:
        return None
    things = _seen(holes, script, lambda thing: thing.name == holes["o"].casefold())
    return Truth(family="exists", word="yes" if things else "no")


def _first(holes: Holes, script: Script) -> Truth | None:
    found = [_named(holes[name], script) for name in "ab"]
    if not all(len(events) == 1 for events in found):
        return None
    return Truth(family="first", events=(min((events[0] for events in found), key=script.events.index),))


def _happens(holes: Holes, script: Script) -> Truth | None:
    claim = read_claim(holes.get("e") or holes["s"])
    if claim is None:
        return None
    return Truth(family="exists", word="yes" if any(claim.fits(event) for event in script.events) else "no")


def _is_before(holes: Holes, script: Script) -> Truth | None:
    one, two = _named(holes.get("a") or holes["s"], script), _named(holes["b"], script)
    if len(one) != 1 or len(two) != 1:
        return None
    return Truth(family="exists", word="yes" if script.events.index(one[0]) < script.events.index(two[0]) else "no")


def _events(_: Holes, script: Script) -> Truth | None:
    return Truth(family="count", count=len(script.events))


def _left(_: Holes, script: Script) -> Truth | None:
    return Truth(family="count", count=len(world.visible(script, script.duration)))


def _does(holes: Holes, script: Script) -> Truth | None:
    events = tuple(event for event in script.events if event.name == holes["o"].casefold())
    return Truth(family="span", events=events) if events else None


def _all_events(family: str) -> Callable[[Holes, Script], Truth | None]:
    return lambda _, script: Truth(family=family, events=script.events)


def _end_of(index: int) -> Callable[[Holes, Script], Truth | None]:
    return lambda _, script: Truth(family="order", events=(script.events[index],)) if script.events else None


def _neighbour(step: int) -> Callable[[Holes, Script], Truth | None]:
    def program(holes: Holes, script: Script) -> Truth | None:
        named = _named(holes["s"], script)
        if len(named) != 1:
            return None
        place_ = script.events.index(named[0]) + step
        inside = 0 <= place_ < len(script.events)
        return Truth(family="order", events=(script.events[place_],) if inside else ())

    return program


_PROGRAMS: dict[str, Callable[[Holes, Script], Truth | None]] = {
    "what": _what, "span": _span, "describe": _all_events("describe"), "when": _when, "count": _count,
    "colour": _colour, "shape": _shape, "where": _where, "exists": _exists, "first": _first, "first event": _end_of(0),
    "last event": _end_of(-1), "before": _neighbour(-1), "after": _neighbour(1), "timeline": _all_events("timeline"),
    "happens": _happens, "is before": _is_before, "events": _events, "left": _left, "does": _does,
}  # fmt: skip


def _moment(words: str, script: Script) -> float | None:
    """The seconds that "0:30" or "12 seconds" names, if they lie in the clip."""
    times = find_times(f"at {words}")
    return times[0].seconds if len(times) == 1 and times[0].seconds <= script.duration else None


def _named(phrase: str, script: Script) -> list[Event]:
    claim: Claim | None = read_claim(phrase)
    return [event for event in script.events if claim is not None and claim.fits(event)]


def _seen(holes: Holes, script: Script, wanted: Callable[[Thing], bool]) -> list[Thing]:
    """The objects that can be seen at the moment the question names, and that are wanted."""
    moment = _moment(holes["t"], script)
    return [] if moment is None else [thing for thing in world.visible(script, moment) if wanted(thing)]
