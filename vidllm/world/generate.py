"""Seed to script: random objects, canvases and events, widely varied, for clips of other renderers come as well."""

import math
from collections.abc import Callable
from colorsys import hsv_to_rgb
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vidllm.world.script import Canvas, Event, Script, Thing, progress
from vidllm.world.vocabulary import ACTIONS, COLOURS, HUES, SHADES, SHAPES, Action, Colour

Rgb = tuple[int, int, int]
SIZES = ((320, 240), (256, 256), (426, 240), (240, 426), (240, 320), (480, 270), (640, 360), (400, 300), (192, 192))
WEIGHTS: dict[Action, float] = {
    "moves left": 2.2, "moves right": 2.2, "moves up": 2.2, "moves down": 2.2,
    "grows": 1.4, "shrinks": 0.9, "appears": 1.1, "disappears": 0.9, "turns": 0.7,
}  # fmt: skip
"""How often an action is tried. Moves are refused most, for want of room, so they are tried most: it comes out even."""
DARK = 60
"""Backgrounds stay below this grey level, so that every colour of the world stands out."""


def generator(split: str, seed: int) -> np.random.Generator:
    """Numbers for clip `seed` of a split. Splits are separate streams: no training seed can draw a test clip."""
    return np.random.default_rng([int.from_bytes(split.encode(), "big"), seed])


def make_script(split: str, seed: int, *, shortest: float = 10, longest: float = 60) -> Script:
    """One clip: 1-3 objects, one event at a time, `shortest` to `longest` whole seconds."""
    rng = generator(split, seed)
    canvas = random_canvas(rng)
    duration = float(round(rng.uniform(shortest, longest)))
    for _ in range(100):
        things = random_things(rng, canvas, int(rng.integers(1, 4)))
        if script := _with_events(rng, canvas, things, duration, f"{split}/{seed}"):
            return script
    raise RuntimeError(f"no clip fits seed {split}/{seed}")


def random_canvas(rng: np.random.Generator) -> Canvas:
    """Aspect, frame rate, dark background, grain, softness and compression."""
    width, height = SIZES[rng.integers(len(SIZES))]
    grey = rng.integers(0, DARK) if rng.random() < 0.8 else 0
    background = np.clip(grey + rng.normal(0, 8, 3), 0, DARK)
    gradient = rng.normal(0, 10, 3) if rng.random() < 0.3 else np.zeros(3)
    return Canvas(
        width=width,
        height=height,
        fps=float(rng.choice([8, 10, 12.5, 15, 24, 25, 30])),
        background=_rgb(background),
        gradient=_rgb(np.clip(gradient, 0, 30)),
        noise=float(rng.choice([0, 0, rng.uniform(0, 5)])),
        softness=float(rng.uniform(0.6, 2.5)),
        crf=int(rng.integers(18, 32)),
        gop_seconds=float(rng.choice([1, 2, 4, 10])),
    )


def random_things(rng: np.random.Generator, canvas: Canvas, count: int) -> tuple[Thing, ...]:
    """Up to `count` objects with different names that do not touch each other; one that finds no room is left out."""
    names = rng.permutation(len(COLOURS) * len(SHAPES))[:count]
    things: list[Thing] = []
    for name in names:
        colour, shape = COLOURS[name // len(SHAPES)], SHAPES[name % len(SHAPES)]
        for _ in range(50):
            thing = Thing(
                colour=colour,
                shape=shape,
                x=_coordinate(rng),
                y=_coordinate(rng),
                radius=float(np.exp(rng.uniform(math.log(0.07), math.log(0.2)))),
                rgb=shade(rng, colour),
                angle=random_angle(rng),
                thickness=float(rng.uniform(0.24, 0.42)),
            )
            if all(apart(thing, other, canvas) for other in things) and inside(thing, canvas):
                things.append(thing)
                break
    return tuple(things)


def shade(rng: np.random.Generator, colour: Colour) -> Rgb:
    """One of a colour's shades, jittered."""
    anchor = np.asarray(SHADES[colour][rng.integers(len(SHADES[colour]))], float)
    return _rgb(np.clip(anchor * rng.uniform(0.88, 1.05) + rng.normal(0, 6, 3), 0, 255))


def repaint(script: Script, shade: Callable[[Colour], Rgb]) -> Script:
    """The same clip in other shades of the same names; a turn ends in one as well."""
    things = tuple(replace(thing, rgb=shade(thing.colour)) for thing in script.things)
    events = tuple(replace(e, rgb=shade(e.colour)) if e.colour else e for e in script.events)
    return replace(script, things=things, events=events)


def any_shade(rng: np.random.Generator, colour: Colour) -> Rgb:
    """One that its name allows, as another renderer's palette may have it."""
    hue, saturation, value = (float(rng.uniform(*ends)) for ends in HUES[colour])
    return _rgb(255 * np.asarray(hsv_to_rgb(hue / 360 % 1, saturation, value)))


def apart(one: Thing, other: Thing, canvas: Canvas) -> bool:
    """Whether two objects leave a gap between them."""
    short = min(canvas.width, canvas.height)
    dx, dy = (one.x - other.x) * canvas.width / short, (one.y - other.y) * canvas.height / short
    return math.hypot(dx, dy) > (one.radius + other.radius) * 1.15


def inside(thing: Thing, canvas: Canvas) -> bool:
    """Whether the whole object is in the picture."""
    short = min(canvas.width, canvas.height)
    rx, ry = thing.radius * short / canvas.width, thing.radius * short / canvas.height
    return rx <= thing.x <= 1 - rx and ry <= thing.y <= 1 - ry


def _with_events(
    rng: np.random.Generator, canvas: Canvas, things: tuple[Thing, ...], duration: float, seed: str
) -> Script | None:
    """Fill the time with events, one at a time with a pause between them, most of them starting on a whole second.

    None when nothing could happen to these objects.
    """
    hidden = [rng.random() < 0.2 for _ in things]
    if all(hidden):
        hidden[0] = False
    start_things = tuple(replace(thing, visible=not gone) for thing, gone in zip(things, hidden, strict=True))
    now, clock = list(start_things), float(rng.uniform(0.5, 6))
    events: list[Event] = []
    wanted = int(rng.integers(1, int(max(2, min(7, duration / 5)) + 1)))
    names = {thing.name for thing in now}
    while len(events) < wanted:
        start = round(clock) if rng.random() < 0.65 else round(clock, 1)
        length = float(rng.choice([rng.uniform(0.6, 1.5), rng.uniform(1, 4)]))
        if start + length > duration - 0.8:
            break
        if event := _random_event(rng, canvas, tuple(now), names, float(start), float(start) + length):
            now[event.thing] = progress(now[event.thing], event, 1.0)
            names.add(now[event.thing].name)
            events.append(event)
        clock = start + length + 1.0 + float(rng.exponential(max(0.5, duration / (wanted + 1) - 3)))
    if not events:
        return None
    return Script(seed=seed, duration=duration, canvas=canvas, things=start_things, events=tuple(events))


def _random_event(
    rng: np.random.Generator, canvas: Canvas, now: tuple[Thing, ...], names: set[str], start: float, end: float
) -> Event | None:
    """An action that the picture allows just now, or None after fifty tries."""
    chances = np.asarray([WEIGHTS[action] for action in ACTIONS])
    for _ in range(50):
        action: Action = ACTIONS[rng.choice(len(ACTIONS), p=chances / chances.sum())]
        which = int(rng.integers(len(now)))
        thing = now[which]
        if thing.visible == (action == "appears") or not _still_populated(now, action):
            continue
        event = _with_amount(rng, Event(thing=which, name=thing.name, action=action, start=start, end=end))
        if _fits(event, now, names, canvas):
            return event
    return None


def _fits(event: Event, now: tuple[Thing, ...], names: set[str], canvas: Canvas) -> bool:
    """Whether the object ends inside, of fair size, off the lines, under a fresh name, and touches none on its way."""
    path = [progress(now[event.thing], event, done) for done in (0.0, 0.25, 0.5, 0.75, 1.0)]
    after = path[-1]
    if not inside(after, canvas) or not 0.05 <= after.radius <= 0.3 or _on_line(after):
        return False
    if event.colour and after.name in names:
        return False
    others = [other for i, other in enumerate(now) if i != event.thing]
    return all(apart(step, other, canvas) for step in path for other in others)


def _with_amount(rng: np.random.Generator, event: Event) -> Event:
    """The event with its distance, factor, colour, or the length of its fade."""
    match event.action:
        case "moves left" | "moves right" | "moves up" | "moves down":
            return replace(event, amount=float(rng.uniform(0.15, 0.6)))
        case "grows":
            return replace(event, amount=float(rng.uniform(1.45, 2.4)))
        case "shrinks":
            return replace(event, amount=float(1 / rng.uniform(1.45, 2.4)))
        case "turns":
            colour = COLOURS[rng.integers(len(COLOURS))]
            return replace(event, colour=colour, rgb=shade(rng, colour))
        case "appears" | "disappears":
            fade = event.end - event.start if rng.random() < 0.6 else 0.1
            return replace(event, end=event.start + fade)


def _still_populated(now: tuple[Thing, ...], action: Action) -> bool:
    """Whether something stays to be seen, unless there is one object only."""
    return action != "disappears" or sum(thing.visible for thing in now) > 1 or len(now) == 1


def _coordinate(rng: np.random.Generator) -> float:
    """Anywhere but on the lines between thirds, where "left" and "center" are a matter of taste."""
    while True:
        value = float(rng.uniform(0.06, 0.94))
        if min(abs(value - 1 / 3), abs(value - 2 / 3)) > 0.03:
            return value


def _on_line(thing: Thing) -> bool:
    return min(abs(c - line) for c in (thing.x, thing.y) for line in (1 / 3, 2 / 3)) < 0.03


def random_angle(rng: np.random.Generator) -> float:
    """Radians: upright for two of three, else a little turned."""
    return float(rng.choice([0.0, 0.0, rng.uniform(-0.25, 0.25)]))


def _rgb(values: NDArray[np.float64]) -> Rgb:
    red, green, blue = (round(float(v)) for v in values)
    return red, green, blue
