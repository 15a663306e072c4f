"""What a text claims of the world: events and objects, read from free words.

A model says "The red circle moves right." and "a red circle slowly moving to the right" and means the same. Only
claims are read: who they are true of is `oracle`'s business.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass

from vidllm.world.script import Event
from vidllm.world.vocabulary import COLOURS, SHAPES

_COLOUR = "|".join(COLOURS)
_SHAPE = "|".join(SHAPES)
_SUBJECT = rf"\b(?:(?P<colour>{_COLOUR})(?:[- ]coloured|[- ]colored)? )?(?P<shape>{_SHAPE})\b"
_FILLER = r"(?:that|which|then|also|now|just|is|are|was|will|starts?|begins?|to|by|[a-z]+ly)\b"
_BETWEEN = rf"(?:,? {_FILLER}){{0,4}},? "
# Repeats have bounds: without, a text that only says "ring, ring, ring" or "then then" took the square of its length.
_ALSO = r"(?:,|/| and| or| then){1,6} ?"
_WAY = r"(?:left|right|up|down)(?:wards?)?"
_ACTION = (
    r"(?:"
    r"(?:mov(?:es?|ed|ing)|slid(?:es?|ing)?|(?:shift|drift|travel)(?:s|ed|ing)?|go(?:es|ing)?|went)(?: [a-z]+ly)?"
    rf"(?:(?: from [a-z ]{{1,30}}?)? (?:to|towards?)(?: the)?)? (?P<ways>{_WAY}(?:{_ALSO}(?:to )?(?:the )?{_WAY})*)"
    r"|(?:turn(?:s|ed|ing)?|becom(?:es?|ing)|became|chang(?:es?|ed|ing)(?: its)?(?: colou?r)?)"
    rf"(?: (?:to|into|from (?:{_COLOUR}) to))? "
    rf"(?P<hues>(?:{_COLOUR})(?:{_ALSO}(?:{_COLOUR})(?![- ](?:colou?r|{_SHAPE})))*)"
    r"|(?P<grows>grow(?:s|n|ing)?|grew|expand(?:s|ed|ing)?|increas(?:es?|ed|ing) in size"
    r"|(?:gets?|getting|becom(?:es?|ing)) (?:bigger|larger))"
    r"|(?P<shrinks>shr(?:inks?|ank|unk|inking)|decreas(?:es?|ed|ing) in size"
    r"|(?:gets?|getting|becom(?:es?|ing)) smaller)"
    r"|(?P<disappears>disappear(?:s|ed|ing)?|vanish(?:es|ed|ing)?|fad(?:es?|ed|ing)(?: away| out)?(?! in)|gone)"
    r"|(?P<appears>appear(?:s|ed|ing)?|show(?:s|ed|ing)? up|fad(?:es?|ed|ing) in|emerg(?:es?|ed|ing)"
    r"|comes? into view|becomes? visible)"
    r")\b"
)
_OTHERS = rf"(?P<others>(?:\b(?:(?:{_COLOUR}) )?(?:{_SHAPE})(?:,|/|,? and|,? or) (?:an? |the )?){{0,12}})"
_EVENT = re.compile(rf"{_OTHERS}{_SUBJECT}(?P<doing>{_BETWEEN}{_ACTION})")
_MORE = re.compile(rf"{_ALSO}(?:{_FILLER} ){{0,6}}{_ACTION}")
"""What else the same object does: " and then grows"."""
_OBJECT = re.compile(_SUBJECT)
_TURN = re.compile(r"(?P<denies>\b(?:not|never|false)\b|n't\b)|\b(?:and|but|then)\b|[.!?;,。]")
"""Where a denial begins, and what ends one."""
_NOTHING = re.compile(r"\bnothing\b(?P<else> else)?|\bno (?:event|change|movement|motion|action)s?\b|没有")
_SENTENCE = re.compile(r"[^.!?;。]+")
_PLAIN = ("grows", "shrinks", "disappears", "appears")


@dataclass(frozen=True)
class Claim:
    """One event a text tells. `colour` is None where it was not said; `into` only of a turn."""

    colour: str | None
    shape: str
    action: str
    into: str | None = None

    def __str__(self) -> str:
        """ "red circle moves right", as `Event.phrase` spells it."""
        return " ".join(word for word in (self.colour, self.shape, self.action, self.into) if word)

    def fits(self, event: Event) -> bool:
        """Whether it tells this event; what was left unsaid contradicts nothing."""
        colour, shape = event.name.split()
        same_thing = self.shape == shape and self.colour in (None, colour)
        return same_thing and self.action == event.action and self.into == event.colour

    def nearness(self, event: Event) -> float:
        """How much of the event is right, 0..1: a quarter for colour and for shape, half for what it does."""
        colour, shape = event.name.split()
        doing = 0.5 * (self.action == event.action and self.into == event.colour)
        if not doing and self.action.split()[0] == event.action.split()[0]:
            doing = 0.25  # it moves, but another way; it turns, but into another colour
        return 0.25 * (self.colour in (None, colour)) + 0.25 * (self.shape == shape) + doing


@dataclass(frozen=True)
class Reading:
    """What a text tells, in its order."""

    claims: tuple[Claim, ...]
    objects: tuple[str, ...]
    """Every mention: "red circle", or "circle" where no colour was said."""
    says_nothing: bool
    """It says that nothing happens."""
    torn: bool
    """It says so, and tells an event."""
    sentences: int
    understood: int
    """Sentences that tell an event or that there is none."""


def read_claims(text: str) -> Reading:
    """Events and objects that `text` tells."""
    words = " ".join(text.casefold().split())
    sentences = [part for part in _SENTENCE.findall(words) if part.strip()]
    understood = sum(bool(_EVENT.search(part) or _NOTHING.search(part)) for part in sentences)
    claims = tuple(_claims(words))
    nothing = _asserted(_NOTHING, words)
    return Reading(
        claims=claims, objects=tuple(_name(match) for match in _OBJECT.finditer(words)),
        says_nothing=bool(nothing) and not claims, torn=bool(claims) and any(not match["else"] for match in nothing),
        sentences=len(sentences), understood=understood,
    )  # fmt: skip


def _name(match: re.Match[str]) -> str:
    return " ".join(word for word in (match["colour"], match["shape"]) if word)


def read_claim(phrase: str) -> Claim | None:
    """The one event that "red circle move right" or "red circle moves right" names; None when it names none."""
    verbless = re.sub(r"\bmove\b", "moves", re.sub(r"\bturn\b", "turns", phrase.casefold()))
    return next(iter(_claims(verbless)), None)


def _claims(words: str) -> Iterator[Claim]:
    """In the order told; "the star or the ring grows", "the star grows or shrinks": either is told."""
    for match in _asserted(_EVENT, words):
        actions = list(_actions(words, match))
        alone = " or " not in match["others"] and re.search(r"s\b", match["doing"])  # "a star and a ring that grows"
        for subject in (*([] if alone else _OBJECT.finditer(match["others"])), match):
            yield from (Claim(subject["colour"], subject["shape"], action, into) for action, into in actions)


def _asserted(pattern: re.Pattern[str], words: str) -> list[re.Match[str]]:
    """Where it matches, but for what has "it is not true that" or the like before it, in its clause."""
    turns = [(0, False), *((turn.end(), bool(turn["denies"])) for turn in _TURN.finditer(words))]
    matches = pattern.finditer(words)
    return [match for match in matches if not turns[bisect(turns, (match.start(), True)) - 1][1]]


def _actions(words: str, match: re.Match[str] | None) -> Iterator[tuple[str, str | None]]:
    """What the object of an event does, and into which colour it turns: several where it tells "left or right"."""
    while match is not None:
        said = match.groupdict()
        yield from ((name, None) for name in _PLAIN if said[name])
        ways, hues = re.findall("left|right|up|down", said["ways"] or ""), re.findall(_COLOUR, said["hues"] or "")
        yield from ((f"moves {way}", None) for way in dict.fromkeys(ways))
        yield from (("turns", hue) for hue in hues)
        match = _MORE.match(words, match.end())
