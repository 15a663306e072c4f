"""Where each token ought to look: attention told by the script, so that nobody has to stumble upon it.

Answers alone teach attention late: a word is right by chance long before the right frame and object were found. The
script knows which tokens hold what an answer says, where an object was a frame ago and which stamp a frame bears, so a
few heads are told. They are ordinary heads of the model that ships.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidllm.builtin.lean import Attention
from vidllm.world.questions import Question, base_form, reading_order
from vidllm.world.script import Event, Script, Thing

Kind = Literal["stamp", "before", "earlier", "answer", "clock"]
"""stamp: an object's token to its frame's time. before: to the same object a frame earlier. earlier: to the same object
a second earlier, for what is slow. answer: a word being said to the object it is about, in the frames that show it.
clock: what says a time to the stamp of the frame it says."""
HEADS: dict[Kind, tuple[tuple[float, int], ...]] = {
    "stamp": ((1 / 6, 0),),
    "before": ((2 / 6, 0), (3 / 6, 0)),
    "earlier": ((2 / 6, 1),),
    "answer": ((4 / 6, 0), (5 / 6, 0)),
    "clock": ((5 / 6, 1),),
}
"""Which heads are told: (depth in the language model, number). Looking back twice tells a change that goes on from one
that begins: the second look finds what the first has told of the frame before."""
Motion = tuple[float, ...]
"""What an object has done since the frame before, and since the one a second earlier: of each x, y (of the picture's
sides), log radius, opacity."""
MOTIONS = 8
"""Numbers of a `Motion`."""
Aim = tuple[int, int]
"""(number of a seen frame, number of an object)."""
CORE = 0.6
"""The part of an object's radius that counts as showing it; its rim is mostly background."""
AROUND = tuple((math.cos(angle), math.sin(angle)) for angle in np.linspace(0, 2 * math.pi, 32, endpoint=False))
"""Where a ring is looked at."""
NEAREST = 4
"""Frames in which "what happens at T" may be seen: at the start of what is slow the nearest show next to nothing."""
EARLIER_SECONDS = 1.0
"""How far back an object is compared with itself, besides the frame before."""


@dataclass(frozen=True)
class Spot:
    """Where an object is in a frame (0..1; where it was, if it has gone) and what has been happening to it."""

    thing: int
    x: float
    y: float
    reach: tuple[float, float]
    """Its core's extent to each side, fractions of the width and the height; a ring's is the middle of its band."""
    hollow: bool = False
    """Whether its middle shows the background."""
    event: Event | None = None
    began: bool = False
    """Whether the event has begun since the frame before."""
    motion: Motion = (0.0,) * MOTIONS

    def cell(self, cells: int) -> int:
        """The cell of a `cells` x `cells` grid to ask about it, counted row by row: its centre's, or, where that shows
        a ring's hole, the one straight below it on the ring.
        """
        column = int(self.x * cells)
        centre = int(self.y * cells) * cells + column
        below = min(int((self.y + self.reach[1]) * cells), cells - 1) * cells + column
        return centre if centre in self.cells(cells) else below

    def cells(self, cells: int) -> list[int]:
        """All cells that its core touches."""
        if self.hollow:
            around = [(self.x + self.reach[0] * c, self.y + self.reach[1] * s) for c, s in AROUND]
            touched = {(int(y * cells), int(x * cells)) for x, y in around if 0 <= x < 1 and 0 <= y < 1}
            return sorted(row * cells + column for row, column in touched)
        columns, rows = (
            range(max(0, int((at - reach) * cells)), min(cells - 1, int((at + reach) * cells)) + 1)
            for at, reach in zip((self.x, self.y), self.reach, strict=True)
        )
        return [row * cells + column for row in rows for column in columns]


@dataclass(frozen=True)
class Link:
    """One token's wish: of all positions it may look at, `keys` are the ones."""

    kind: Kind
    query: int
    keys: tuple[int, ...]


@dataclass(frozen=True)
class Links:
    """The links of one kind in padded rows: `row` and `query` (L,) int64 ascending by row; `key` and `link` (N,), one
    of each for every key of every link, `link` numbering the links.
    """

    row: Tensor
    query: Tensor
    key: Tensor
    link: Tensor

    def missed(self, look: Attention, head: int) -> Tensor:
        """Mean of -log of the attention that a head gives to a link's keys."""
        paid = [look.paid(row, head, self.query[self.row == row]) for row in range(int(self.row[-1]) + 1)]
        given = torch.cat(paid)[self.link, self.key].float()
        total = given.new_zeros(len(self.row)).index_add(0, self.link, given)
        return -(total + 1e-4).log().mean()


def padded_links(rows: Sequence[Sequence[Link]]) -> dict[Kind, Links]:
    """The links of several rows by kind; kinds without any are left out."""
    found: dict[Kind, Links] = {}
    for kind in HEADS:
        wanted = [(r, link) for r, links in enumerate(rows) for link in links if link.kind == kind]
        if wanted:
            heads = torch.tensor([(r, link.query) for r, link in wanted])
            flat = torch.tensor([(key, n) for n, (_, link) in enumerate(wanted) for key in link.keys])
            found[kind] = Links(*heads.T.contiguous(), *flat.T.contiguous())
    return found


def a_second_earlier(times: Sequence[float]) -> tuple[int, ...]:
    """For each of the frames at `times` the number of the last one at least a second before it; the first has none and
    is given itself.
    """
    found = np.searchsorted(times, np.asarray(times) - EARLIER_SECONDS + 1e-6, side="right") - 1
    return tuple(np.maximum(found, 0).tolist())


def spots(script: Script, times: NDArray[np.float64]) -> tuple[tuple[Spot, ...], ...]:
    """For each of the frames at `times`, where every object is seen and what it did since the frame before.

    An object that has gone is told of once, where it was.
    """
    befores = [times[0], *times[:-1]]
    earliers = times[list(a_second_earlier(times.tolist()))]
    return tuple(
        _spots_since(script, float(a), float(b), float(now))
        for a, b, now in zip(earliers, befores, times, strict=True)
    )


def _spots_since(script: Script, earlier: float, before: float, now: float) -> tuple[Spot, ...]:
    """Quiet objects first: where two share a cell, the one that does something is told of."""
    short = min(script.canvas.width, script.canvas.height)
    event = next((e for e in reversed(script.events) if e.start < now and e.end > before), None)
    found: list[Spot] = []
    opacity = script.opacity(now)
    for number, thing in enumerate(script.at(now)):
        mine = event if event is not None and event.thing == number else None
        if mine is None and opacity[number] <= 0.5:
            continue
        hollow = thing.shape == "ring"
        core = (1 - thing.thickness / 2 if hollow else CORE) * thing.radius * short
        spot = Spot(
            thing=number, x=thing.x, y=thing.y, event=mine, began=mine is not None and mine.start >= before,
            reach=(core / script.canvas.width, core / script.canvas.height), hollow=hollow,
            motion=_motion(script, number, before, now) + _motion(script, number, earlier, now),
        )  # fmt: skip
        found.insert(len(found) if mine else 0, spot)
    return tuple(found)


def _motion(script: Script, number: int, before: float, now: float) -> Motion:
    """One half of a `Motion`."""
    old, new = script.at(before)[number], script.at(now)[number]
    faded = script.opacity(now)[number] - script.opacity(before)[number]
    return new.x - old.x, new.y - old.y, math.log(new.radius / old.radius), faded


def aims(script: Script, asked: Question, times: NDArray[np.float64]) -> tuple[frozenset[Aim], ...]:
    """For each sentence of a question's answer, the objects and frames (at `times`) that show it."""
    if asked.family == "picture":
        things = sorted(_seen(script, asked), key=lambda numbered: reading_order(numbered[1]))
        return tuple(frozenset({(0, number)}) for number, _ in things)
    events = _events_told(script, asked)
    if events:
        return tuple(_shown(event, asked, times) for event in events)
    if asked.moment is None or asked.family == "what":
        return ()
    same = np.flatnonzero(np.floor(times) == math.floor(asked.moment))  # frames of one stamp look alike to a question
    frames = same.tolist() or [int(np.abs(times - asked.moment).argmin())]
    return (frozenset((n, number) for n in frames for number in _named(script, asked)),)


def _events_told(script: Script, asked: Question) -> list[Event]:
    """The events that an answer tells, in its order."""
    match asked.family:
        case "what" | "span" | "describe":
            a, b = asked.span or ((asked.moment, asked.moment) if asked.moment is not None else (0, script.duration))
            return [event for event in script.events if event.start <= b and event.end >= a]
        case "first" | "order":
            return [event for event in script.events if event.sentence == asked.answer][:1]
        case "when":
            return [e for e in script.events if e.phrase in asked.text or base_form(e) in asked.text][:1]
    return []


def _shown(event: Event, asked: Question, times: NDArray[np.float64]) -> frozenset[Aim]:
    """The frames by which an event has been going on since the one before: which of them the question needs."""
    ends = np.append(times[1:], np.inf)
    during = [n + 1 for n, (a, b) in enumerate(zip(times, ends, strict=True)) if event.start < b and event.end > a]
    during = [n for n in during if n < len(times)]
    if asked.moment is not None:
        moment = asked.moment
        during = sorted(during, key=lambda n: abs(float(times[n]) - moment))[:NEAREST]
    elif asked.family == "when":
        during = during[:1]  # its start is asked for
    return frozenset((n, event.thing) for n in during)


def _named(script: Script, asked: Question) -> list[int]:
    """The visible objects a question about a moment is about: all when it counts, else the one it names."""
    return [n for n, thing in _seen(script, asked) if asked.family.endswith("count") or _is_named(thing, asked)]


def _seen(script: Script, asked: Question) -> list[tuple[int, Thing]]:
    """The objects on screen at a question's moment, with their numbers."""
    assert asked.moment is not None
    opacity = script.opacity(asked.moment)
    return [(n, thing) for n, thing in enumerate(script.at(asked.moment)) if opacity[n] > 0.5]


def _is_named(thing: Thing, asked: Question) -> bool:
    if asked.family.endswith("colour"):
        return thing.shape in asked.text
    if asked.family.endswith("shape"):
        return thing.colour in asked.text
    return thing.name in asked.text
