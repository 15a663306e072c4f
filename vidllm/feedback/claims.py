"""What a text claims of the world: events and objects, read from free words.

A model says "The red circle moves right." and "a red circle slowly moving to the right" and means the same. Only
claims are read: who they are true of is `oracle`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from vidllm.world.script import Event
from vidllm.world.vocabulary import COLOURS, SHAPES

_COLOUR = "|".join(COLOURS)
_SHAPE = "|".join(SHAPES)
_SUBJECT = rf"\b(?:(?P<colour>{_COLOUR})(?:[- ]coloured|[- ]colored)? )?(?P<shape>{_SHAPE})\b"
_BETWEEN = r"(?: (?:that|which|then|also|now|slowly|quickly|suddenly|just|is|are|was|starts?|begins?|to|by)\b){0,4} "
_ACTION = (
    r"(?:"
    r"mov(?:es?|ed|ing)(?: (?:to|towards?)(?: the)?)? (?P<direction>left|right|up|down)(?:wards?)?"
    rf"|(?:turn(?:s|ed|ing)?|becom(?:es?|ing)|became|chang(?:es?|ed|ing)(?: its)?(?: colou?r)?)"
    rf"(?: (?:to|into|from (?:{_COLOUR}) to))? (?P<into>{_COLOUR})"
    r"|(?P<grows>grow(?:s|n|ing)?|grew|expand(?:s|ed|ing)?|(?:gets?|getting|becom(?:es?|ing)) (?:bigger|larger))"
    r"|(?P<shrinks>shr(?:inks?|ank|unk|inking)|(?:gets?|getting|becom(?:es?|ing)) smaller)"
    r"|(?P<disappears>disappear(?:s|ed|ing)?|vanish(?:es|ed|ing)?|fad(?:es?|ed|ing)(?: away| out)?(?! in))"
    r"|(?P<appears>appear(?:s|ed|ing)?|show(?:s|ed|ing)? up|fad(?:es?|ed|ing) in|emerg(?:es?|ed|ing))"
    r")\b"
)
_EVENT = re.compile(_SUBJECT + _BETWEEN + _ACTION)
_OBJECT = re.compile(_SUBJECT)
_NOTHING = re.compile(r"\bnothing\b|\bno (?:event|change|movement|motion|action)s?\b|没有")
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
    sentences: int
    understood: int
    """Sentences that tell an event or that there is none."""


def read_claims(text: str) -> Reading:
    """Events and objects that `text` tells."""
    words = " ".join(text.casefold().split())
    sentences = [part for part in _SENTENCE.findall(words) if part.strip()]
    understood = sum(bool(_EVENT.search(part) or _NOTHING.search(part)) for part in sentences)
    claims = tuple(_claims(words))
    return Reading(
        claims=claims, objects=tuple(_name(match) for match in _OBJECT.finditer(words)),
        says_nothing=bool(_NOTHING.search(words)) and not claims, sentences=len(sentences), understood=understood,
    )  # fmt: skip


def _name(match: re.Match[str]) -> str:
    return " ".join(word for word in (match["colour"], match["shape"]) if word)


def read_claim(phrase: str) -> Claim | None:
    """The one event that "red circle move right" or "red circle moves right" names; None when it names none."""
    verbless = re.sub(r"\bmove\b", "moves", re.sub(r"\bturn\b", "turns", phrase.casefold()))
    return next(iter(_claims(verbless)), None)


def _claims(words: str) -> Iterator[Claim]:
    for match in _EVENT.finditer(words):
        said = match.groupdict()
        action = next((name for name in _PLAIN if said[name]), "turns")
        if said["direction"]:
            action = f"moves {said['direction']}"
        yield Claim(said["colour"], said["shape"], action, said["into"])
