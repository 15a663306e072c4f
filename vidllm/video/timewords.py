"""Reads a text for the times it names: the grammar behind `timecode.find_focus`.

Three steps. Clocks and amounts of time are marked. What only looks like a time is blanked out: hours of the day,
ratios, scores, verses, and lengths of time that no moment stands beside. Then the rules run, each blanking out what it
took. A clock like `0:30` names a moment wherever it stands; an amount like `30 seconds` only in words that make it one
("at", "mark", "in", "第").
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from typing import NamedTuple

from vidllm.video.timelookalikes import LENGTHS, NOT_CLOCKS, NOT_NUMBERS
from vidllm.video.timemeanings import Anchor, Reading, Rule
from vidllm.video.timephrases import AMOUNT, BLANK, CLOCK, ENGLISH, HAN, marked
from vidllm.video.timerules import RULES, STRETCHES


class Hit(NamedTuple):
    """A range or a moment, and the words that name it."""

    first: Anchor
    last: Anchor
    text: str
    place: int
    mentions: tuple[tuple[int, int, float], ...]
    """(first character, end, seconds) of every time on the clip's clock among them."""

    def resolve(self, start: float, end: float) -> tuple[float, float]:
        """The range in seconds, which may lie outside the clip."""
        low, high = self.first.resolve(start, end), self.last.resolve(start, end)
        if self.first.origin == self.last.origin == "clock":
            return min(low, high), max(low, high)  # "between 2:00 and 1:00"
        return low, high


_UNREAD = re.compile(
    r"(?:\bat|@)\s*(?P<what>\d+:[6-9]\d|-\s?\d+:[0-5]\d|(?<=happens at )\d+(?:\.\d+)?)(?=\s*(?:[?!]|\.?\s*$))",
    re.IGNORECASE,
)
"""Strict, for who asks about a model at 1:64 scale is not to be told of times."""
MARKS = CLOCK[0], ENGLISH[0], HAN[0]


@lru_cache(maxsize=8)  # a question is read for its focus and its notes, and again for everything that could be advised
def find_hits(text: str) -> tuple[Hit, ...]:
    """What `text` names, moments and ranges, in the order it stands there."""
    words = fold(text)
    left = marked(_without(NOT_NUMBERS, words))
    there = [mark for mark in MARKS if mark in left]
    found: list[Hit] = []
    for lookalikes, rules in ((NOT_CLOCKS, STRETCHES), (LENGTHS, RULES)):
        left = _without([pattern for pattern in lookalikes if any(mark in pattern for mark in there)], left)
        left = _read(rules, left, words, text, found)
    return tuple(sorted(found, key=lambda hit: hit.place))


def find_unread(text: str) -> tuple[str, ...]:
    """What stands where a moment does, "at 1:60" or "what happens at 30?", and was not read as one."""
    taken = [(hit.place, hit.place + len(hit.text)) for hit in find_hits(text)]
    found = (match.span("what") for match in _UNREAD.finditer(fold(text)))
    return tuple(text[a:b] for a, b in found if not any(first < b and a < end for first, end in taken))


def _read(rules: Iterable[Rule], left: str, words: str, text: str, found: list[Hit]) -> str:
    """Adds what the rules take of `left` to `found`; gives back what they leave of it."""
    said = left.casefold()
    for rule in rules:
        can_match = rule.has_its_words(said) and _speaks_as(rule.pattern, left)
        readings = [Reading(match, words) for match in matches(rule, left)] if can_match else []
        for reading in readings:
            found.extend(_take(reading, rule, text))
        left = _blanked(left, readings)
    return left


def _without(patterns: Iterable[str], text: str) -> str:
    """`text` with what the patterns match blanked out; places do not move."""
    for pattern in patterns:
        if _speaks_as(pattern, text):
            text = _compiled(pattern).sub(lambda match: BLANK * len(match[0]), text)
    return text


def matches(rule: Rule, text: str) -> Iterator[re.Match[str]]:
    """Where a rule's pattern matches, but for what only looks like a list of moments."""
    found = _compiled(rule.pattern).finditer(text)
    return (match for match in found if match.groupdict("").get("many", "many"))


def _blanked(text: str, readings: list[Reading]) -> str:
    """`text` without what was read; places do not move."""
    spans = [(0, 0), *(reading.match.span() for reading in readings)]
    kept = itertools.pairwise([*spans, (len(text), len(text))])
    return "".join(BLANK * (end - first) + text[end:until] for (first, end), (until, _) in kept)


def _take(reading: Reading, rule: Rule, text: str) -> Iterator[Hit]:
    places = tuple(reading.places())
    for i, (begin, last) in enumerate(rule.meaning(reading)):
        if reading.is_list:  # each item of a list is a moment in its own words
            first, end, _ = places[i]
            yield Hit(begin, last, text[first:end], first, places[i : i + 1])
        else:
            first, end = reading.match.span()
            yield Hit(begin, last, text[first:end].strip(" ,.;?!，。？！"), first, places)


def _speaks_as(pattern: str, left: str) -> bool:
    """Spares compiling Chinese patterns for a text without Chinese."""
    return pattern.isascii() or not _is_chinese(pattern) or _is_chinese(left)


@lru_cache(maxsize=256)
def _is_chinese(text: str) -> bool:
    return _CHINESE.search(text.replace(AMOUNT, "")) is not None


_CHINESE = re.compile(f"[\u4e00-\u9fff{HAN[0]}]")


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


_FOLD = str.maketrans(
    "０１２３４５６７８９：．，、～≈–—−‐‑‘’′＇“”″＂【】？！（）　\u00a0鐘個後時間從開結尾點視頻發現什麼見處幀幾內這裡頭畫場過長約顯對為",  # noqa: E501
    "0123456789:.,,~~-----''''\"\"\"\"[]?!()  钟个后时间从开结尾点视频发现什么见处帧几内这里头画场过长约显对为",
)


def fold(text: str) -> str:
    """`text` with full-width, typographic and some traditional characters as plain ones; places do not move."""
    return text.translate(_FOLD)
