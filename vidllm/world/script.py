"""A clip as a script: objects, events, canvas. Truth is read off the script, pixels are drawn from it.

Positions are fractions of the picture (0..1 from the top left), radii fractions of its shorter side, times seconds.
"""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vidllm.world.vocabulary import ACTIONS, COLOURS, NUMBERS, SHAPES, Action, Colour, Shape

VERSION = 1
"""Raised whenever the same seed would draw another clip."""
LONGEST = 86_400
"""Seconds of the longest clip: a day."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object as it stands before the first event. `rgb` is its shade of `colour`."""

    colour: Colour
    shape: Shape
    x: float
    y: float
    radius: float
    rgb: tuple[int, int, int]
    visible: bool = True
    angle: float = 0.0
    thickness: float = 0.33

    @property
    def name(self) -> str:
        """What people call it: "red circle"."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something happens to object number `thing` during [start, end] seconds.

    `name` is what the object is called when it starts; `amount` is the distance moved (fraction of the picture's width
    or height) or the factor of growth; `colour` and `rgb` are where a turn ends.
    """

    thing: int
    name: str
    action: Action
    start: float
    end: float
    amount: float = 0.0
    colour: Colour | None = None
    rgb: tuple[int, int, int] | None = None

    @property
    def phrase(self) -> str:
        """ "red circle turns blue": the event without article and period."""
        return f"{self.name} {self.action}" + (f" {self.colour}" if self.colour else "")

    @property
    def sentence(self) -> str:
        """ "The red circle turns blue." """
        return f"The {self.phrase}."


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """How the picture looks apart from its objects. `noise` is the standard deviation of grain in grey levels."""

    width: int
    height: int
    fps: float
    background: tuple[int, int, int]
    gradient: tuple[int, int, int] = (0, 0, 0)
    noise: float = 0.0
    softness: float = 1.0
    crf: int = 23
    gop_seconds: float = 4.0


@dataclass(frozen=True, kw_only=True)
class Script:
    """A whole clip. Events are in order of time and never overlap."""

    seed: str
    duration: float
    canvas: Canvas
    things: tuple[Thing, ...]
    events: tuple[Event, ...] = field(default=())
    version: int = VERSION

    @classmethod
    def load(cls, path: Path) -> "Script":
        """Read a clip's JSON; the questions beside the script are left aside.

        Raises OSError, or ValueError, LookupError, TypeError or AttributeError for what is no script.
        """
        raw = json.loads(path.read_text(encoding="utf-8"))
        raw.pop("questions", None)
        raw["canvas"] = Canvas(**_hashable(raw["canvas"]))
        raw["things"] = tuple(Thing(**_hashable(thing)) for thing in raw["things"])
        raw["events"] = tuple(Event(**_hashable(event)) for event in raw["events"])
        script = cls(**raw)
        _check(script)
        return script

    def at(self, seconds: float) -> tuple[Thing, ...]:
        """Every object as it is at one moment, hidden ones included (`visible` False, or fading: see `opacity`)."""
        things = list(self.things)
        for event in self.events:
            if event.start <= seconds:
                things[event.thing] = progress(things[event.thing], event, _done(event, seconds))
        return tuple(things)

    def opacity(self, seconds: float) -> tuple[float, ...]:
        """How solid each object is at one moment, 0..1: fades are linear in time."""
        alpha = [1.0 if thing.visible else 0.0 for thing in self.things]
        for event in self.events:
            if event.start <= seconds and event.action in ("appears", "disappears"):
                done = _done(event, seconds)
                alpha[event.thing] = done if event.action == "appears" else 1.0 - done
        return tuple(alpha)

    def event_at(self, seconds: float) -> Event | None:
        """The event that is going on at one moment, both ends included; of two that meet there the one that starts."""
        return next((event for event in reversed(self.events) if event.start <= seconds <= event.end), None)


def progress(thing: Thing, event: Event, done: float) -> Thing:
    """The object when `done` (0..1) of the event has passed."""
    match event.action:
        case "moves left":
            return replace(thing, x=thing.x - done * event.amount)
        case "moves right":
            return replace(thing, x=thing.x + done * event.amount)
        case "moves up":
            return replace(thing, y=thing.y - done * event.amount)
        case "moves down":
            return replace(thing, y=thing.y + done * event.amount)
        case "grows" | "shrinks":
            return replace(thing, radius=thing.radius * event.amount**done)
        case "appears" | "disappears":
            return replace(thing, visible=(done >= 0.5) == (event.action == "appears"))
        case "turns":
            return _turn(thing, event, done)


def _turn(thing: Thing, event: Event, done: float) -> Thing:
    if event.rgb is None or event.colour is None:
        raise ValueError(f"a turn needs a colour: {event}")
    red, green, blue = (round(a + (b - a) * done) for a, b in zip(thing.rgb, event.rgb, strict=True))
    return replace(thing, rgb=(red, green, blue), colour=event.colour if done >= 0.5 else thing.colour)


def _check(script: Script) -> None:
    """Raises ValueError or TypeError for what no clip can be drawn of: people write scripts, too."""
    numbers = [script.duration, *(n for t in script.things for n in (t.x, t.y, t.radius, t.angle, t.thickness, *t.rgb))]
    numbers += [n for event in script.events for n in (event.start, event.end, event.amount, *(event.rgb or ()))]
    hash(script)  # a list or an object where a value belongs
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("a number in it is none")
    if not 1 <= script.duration <= LONGEST or len(script.things) >= len(NUMBERS):
        raise ValueError(f"a clip has 1 to {LONGEST} seconds and at most {len(NUMBERS) - 1} objects")
    for thing in script.things:
        if thing.colour not in COLOURS or thing.shape not in SHAPES or len(thing.rgb) != 3:
            raise ValueError(f"there is no {thing.name} of {thing.rgb}")
    for event in script.events:
        colour, shape = event.name.split()
        known = isinstance(event.thing, int) and 0 <= event.thing < len(script.things)
        if not (known and colour in COLOURS and shape in SHAPES):
            raise ValueError(f"{event.phrase!r} happens to no object of it")
        turns = event.colour in COLOURS and event.rgb is not None and len(event.rgb) == 3
        if event.action not in ACTIONS or turns != (event.action == "turns"):
            raise ValueError(f"{event.phrase!r} is no event")
    times = [0.0, *(time for event in script.events for time in (event.start, event.end)), script.duration]
    if times != sorted(times):
        raise ValueError("events are out of order, overlap, or do not lie in the clip")


def _hashable(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows lists only; a script's sequences are tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _done(event: Event, seconds: float) -> float:
    """The share of an event that has passed, 0..1, at a moment not before its start."""
    return (seconds - event.start) / (event.end - event.start) if seconds < event.end else 1.0
