"""The words that make a time of a clock or an amount, in English and Chinese, and what each form of them means.

Patterns read text that `timephrases.marked` went over; the rules run in the order they stand, most specific first.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from vidllm.video.timephrases import AMOUNT, CLOCK, ENGLISH, HAN, amount_seconds, amount_unit, number

EDGE_SHARE, EDGE_LEAST, EDGE_MOST = 0.1, 2.0, 10.0
"""How much of a clip "at the end" means: a tenth, at least 2 s and at most 10 s."""


class Anchor(NamedTuple):
    """A time that may hang on the clip."""

    origin: Literal["clock", "begin", "end", "share"]
    value: float
    """Seconds on the clip's clock, after its begin or before its end; or a share (0-1) of its length."""
    edges: float = 0.0
    """Edge widths to add (see `EDGE_SHARE`)."""

    def resolve(self, start: float, end: float) -> float:
        """Seconds on the source's clock, for a clip that is watched in `[start, end)`."""
        edge = min(max((end - start) * EDGE_SHARE, EDGE_LEAST), EDGE_MOST) * self.edges
        match self.origin:
            case "clock":
                return self.value + edge
            case "begin":
                return start + self.value + edge
            case "end":
                return end - self.value + edge
            case "share":
                return start + self.value * (end - start) + edge


Meaning = tuple[Anchor, Anchor]
"""A range `[first, last)`, or a moment when both are one."""


class Reading:
    """A rule's match over the marked text, with the words that really stand there."""

    def __init__(self, match: re.Match[str], words: str) -> None:
        self.match, self.words = match, words

    @property
    def is_list(self) -> bool:
        """Whether the match is a list of moments, in group `many`."""
        return "many" in self.match.re.groupindex

    def text(self, group: str | int) -> str:
        """The words of a group; empty when it took no part."""
        return self.words[self.match.start(group) : self.match.end(group)] if self.match[group] is not None else ""

    def clock(self, group: str) -> Anchor:
        """The group's time on the clip's clock."""
        return Anchor("clock", self.seconds(group))

    def seconds(self, group: str) -> float:
        """Seconds of the group; a bare number counts in the unit that the group `unit` or `b` names ("10 to 20 s")."""
        return amount_seconds(self.text(group), self._unit())

    def items(self) -> list[tuple[int, int, float]]:
        """(first character, end, seconds) of each time of the list in group `many`."""
        first, end = self.match.span("many")
        unit = amount_unit(self.words[first:end])
        found = re.finditer(rf"{CLOCK}|{AMOUNT}|\d+(?:\.\d+)?", self.match["many"])
        places = [(first + item.start(), first + item.end()) for item in found]
        return [(a, b, amount_seconds(self.words[a:b], unit)) for a, b in places]

    def places(self) -> Iterator[tuple[int, int, float]]:
        """(first character, end, seconds) of every time on the clip's clock that the match holds."""
        groups = self.match.re.groupindex
        if self.is_list:
            yield from self.items()
        for name in ("a", "b", "nth_second"):
            if name in groups and "relative" not in groups:
                seconds = number(self.text(name)) if name == "nth_second" else self.seconds(name)
                yield *self.match.span(name), seconds

    def _unit(self) -> str:
        groups = self.match.re.groupindex
        return self.text("unit") if "unit" in groups else amount_unit(self.text("b")) if "b" in groups else ""


@dataclass(frozen=True)
class Rule:
    """A pattern over marked text and what its match means."""

    pattern: str
    meaning: Callable[[Reading], list[Meaning]]


# What a match means --------------------------------------------------------------------------------------------------


def _moment(reading: Reading) -> list[Meaning]:
    return [(reading.clock("a"), reading.clock("a"))]


def _range(reading: Reading) -> list[Meaning]:
    return [(reading.clock("a"), reading.clock("b"))]


def _moments(reading: Reading) -> list[Meaning]:
    return [(Anchor("clock", seconds), Anchor("clock", seconds)) for _, _, seconds in reading.items()]


def _later(reading: Reading) -> list[Meaning]:
    """5 seconds after 0:30."""
    anchor = Anchor("clock", reading.seconds("a") + reading.seconds("shift"))
    return [(anchor, anchor)]


def _earlier(reading: Reading) -> list[Meaning]:
    """5 seconds before 0:30."""
    anchor = Anchor("clock", reading.seconds("a") - reading.seconds("shift"))
    return [(anchor, anchor)]


def _to_clip_end(reading: Reading) -> list[Meaning]:
    return [(reading.clock("a"), Anchor("end", 0.0))]


def _from_clip_begin(reading: Reading) -> list[Meaning]:
    return [(Anchor("begin", 0.0), reading.clock("a"))]


def _ordinal_minute(reading: Reading) -> list[Meaning]:
    """The 2nd minute is 1:00 to 2:00."""
    minute = number(reading.text("nth"))
    return [(Anchor("clock", 60 * (minute - 1)), Anchor("clock", 60 * minute))]


def _ordinal_second(reading: Reading) -> list[Meaning]:
    anchor = Anchor("clock", number(reading.text("nth_second")))
    return [(anchor, anchor)]


def _ordinal_han(reading: Reading) -> list[Meaning]:
    """第30秒 and 第1分20秒 are moments, 第2分钟 is a minute that lasts."""
    seconds = reading.seconds("a")
    if amount_unit(reading.text("a")) == "m" and seconds % 60 == 0:
        return [(Anchor("clock", seconds - 60), Anchor("clock", seconds))]
    return _moment(reading)


def _first(reading: Reading) -> list[Meaning]:
    return [(Anchor("begin", 0.0), Anchor("begin", reading.seconds("a")))]


def _last(reading: Reading) -> list[Meaning]:
    return [(Anchor("end", reading.seconds("a")), Anchor("end", 0.0))]


def _after_begin(reading: Reading) -> list[Meaning]:
    anchor = Anchor("begin", reading.seconds("a"))
    return [(anchor, anchor)]


def _before_end(reading: Reading) -> list[Meaning]:
    anchor = Anchor("end", reading.seconds("a"))
    return [(anchor, anchor)]


def _begin(_: Reading) -> list[Meaning]:
    return [(Anchor("begin", 0.0), Anchor("begin", 0.0, 1.0))]


def _end(_: Reading) -> list[Meaning]:
    return [(Anchor("end", 0.0, -1.0), Anchor("end", 0.0))]


def _middle(_: Reading) -> list[Meaning]:
    return [(Anchor("share", 0.5, -0.5), Anchor("share", 0.5, 0.5))]


def _part(reading: Reading) -> list[Meaning]:
    """One of equal parts: "the second third of the video"."""
    parts = {"half": 2, "third": 3, "quarter": 4, "半": 2}[reading.text("part").lower()]
    nth = {"first": 0, "second": 1, "third": 2, "fourth": 3, "前": 0, "上": 0}.get(
        reading.text("nth").lower(), parts - 1
    )
    return [(Anchor("share", nth / parts), Anchor("share", (nth + 1) / parts))] if nth < parts else []


def _way_through(reading: Reading) -> list[Meaning]:
    """One moment: "a third of the way through", "80 % in"."""
    shares = {"third": 1 / 3, "quarter": 0.25, "two thirds": 2 / 3, "three quarters": 0.75}
    words = " ".join(re.split(r"[\s-]+", reading.text("share").lower())).removeprefix("a ").removeprefix("one ")
    share = shares[words] if words in shares else float(words) / 100
    return [(Anchor("share", share), Anchor("share", share))] if share <= 1 else []


# The rules, most specific first --------------------------------------------------------------------------------------

_T = rf"(?:{CLOCK}|{AMOUNT})"
_NUM = r"\d+(?:\.\d+)?"
_SECONDS = r"(?P<unit>seconds?|secs?|minutes?|mins?)"
_MARK = r"(?:[\s-]*(?:mark|point|timestamp)s?)?"
_TO = r"\s*(?:-|~|to|until|till|through|up\s+to)\s*"
_THE = (
    r"(?:(?:the|around|about|roughly|approximately|approx\.?|exactly|precisely|say|time|second|timestamp|time\s*code"
    r"|ca\.?|circa)\s+|~\s*|t\s*=\s*)*"
)
_NOUN = r"(?:video|clip|movie|film|footage|recording|sequence|animation|gif|vid|tape)s?\b"
_THIS_CLIP = rf"(?:the|this|that|our)\s+(?:whole\s+)?{_NOUN}"
_CLIP = rf"(?:(?:the|this|that|our)\s+)?(?:whole\s+)?{_NOUN}"
_NOT_OF = rf"(?!\s+of\s+(?!{_CLIP}))"
_ASKS = r"(?:what|who|where|which|how|when|why|does|do|did|is|are|was|were|can|tell|describe|there)\b"
_STOPS = rf"(?=\s*(?:[?.!,;:)\]\0]|$|\s{_ASKS}|(?:of|in|from)\s+{_CLIP}))"
_LONG = r"(?!\s*(?:per|each|long|apart|intervals?|old|of\s+age|later|earlier|ago|tall|left|remaining|faster|slower)\b)"
_WORDED = "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth"
_WHOLE = rf"{AMOUNT}|(?:half\s+)?(?:second|minute|hour)\b|half[\s-](?:minute|hour)\b"
_NOT_THAT = r"(?!\s+(?:with|that|where|when|in\s+which))"
_PICTURE = r"(?:frame|scene|moments?|image|picture)s?\b"
_ZH_AT = (
    r"(?:处|时(?!长|间)|的时候|的地方|左右|附近|前后|那一刻|那一秒|这一刻|那里|之?后|以后|之前|以前|的?画面|的?位置"
    r"|发生|出现|有什么|是什么|看到|能看)"
)

_RANGES = (
    Rule(rf"\bfrom\s+the\s+(?:very\s+)?(?:start|beginning){_TO}{_THE}(?P<a>{_T}){_MARK}", _from_clip_begin),
    Rule(
        rf"(?:\b(?:from|between|after|at)\s+)?{_THE}(?P<a>{_T}){_MARK}\s*(?:to|until|till|through|-|and)\s*"
        rf"the\s+(?:very\s+)?(?:end|finish)\b{_NOT_OF}",
        _to_clip_end,
    ),
    Rule(rf"从?(?:视频)?(?:开头|开始|一开始)(?:到|至)第?(?P<a>{_T})", _from_clip_begin),
    Rule(rf"从?第?(?P<a>{_T})(?:开始)?(?:一直)?[到至](?:视频)?的?(?:结尾|结束|最后|末尾|片尾)", _to_clip_end),
    Rule(rf"\bbetween\s+{_THE}(?P<a>{_T}){_MARK}\s*(?:and|to|&|-)\s*{_THE}(?P<b>{_T}){_MARK}", _range),
    Rule(
        rf"\b(?:from|during|over|in|at|between)\s+{_THE}(?P<a>{_T}){_MARK}{_TO}{_THE}(?P<b>{_T}){_MARK}{_LONG}", _range
    ),
    Rule(rf"(?P<a>{CLOCK}){_TO}(?P<b>{CLOCK})", _range),
    Rule(rf"^\s*(?P<a>{_T}){_TO}(?P<b>{_T}){_LONG}", _range),
    Rule(rf"[\[(]\s*(?P<a>{_T})\s*,\s*(?P<b>{_T})\s*[\])]", _range),
    Rule(
        rf"\b(?:between|from|during|in|at)\s+(?:the\s+)?(?P<a>{_NUM})\s*(?:and|to|&|-|until|till|~)\s*"
        rf"(?P<b>{ENGLISH}){_MARK}{_LONG}",
        _range,
    ),
    Rule(
        rf"\b(?:between|from|during|in)\s+the\s+(?P<a>\d+)(?:st|nd|rd|th)\s*(?:and|to|&|-|until|till)\s*"
        rf"(?:the\s+)?(?P<b>\d+)(?:st|nd|rd|th)\s+{_SECONDS}",
        _range,
    ),
    Rule(
        rf"(?<![A-Za-z]){_SECONDS}\s+(?P<a>{_NUM}|{CLOCK})\s*(?:and|to|&|-|until|till|through|~)\s*"
        rf"(?:(?:seconds?|secs?|minutes?|mins?)\s+)?(?P<b>{_NUM}|{CLOCK})(?![\d:A-Za-z])",
        _range,
    ),
    Rule(rf"[从由在]?第?(?P<a>{_T})\s*[到至~-]\s*第?(?P<b>{_T})(?:之间|期间)?", _range),
    Rule(rf"[从由在]?第?(?P<a>{_T})\s*[和与跟]\s*第?(?P<b>{_T})之间", _range),
    Rule(rf"[从由在]?第?(?P<a>{_NUM}|[一二三四五六七八九十]+)\s*[到至~-]\s*第?(?P<b>{HAN})(?:之间|期间)?", _range),
    Rule(
        rf"\b(?:from|since|starting\s+(?:at|from))\s+{_THE}(?P<a>{_T}){_MARK}\s+(?:on(?:wards?)?|forward)\b",
        _to_clip_end,
    ),
    Rule(rf"\b(?:since|starting\s+from)\s+{_THE}(?P<a>{CLOCK})", _to_clip_end),
    Rule(rf"(?P<a>{_T}){_MARK}\s+onwards?\b", _to_clip_end),
    Rule(rf"\b(?:until|till|up\s+to|up\s+until)\s+{_THE}(?P<a>{_T}){_MARK}{_LONG}", _from_clip_begin),
)
_FROM_AN_END = (
    Rule(rf"\bafter\s+(?:the\s+)?first\s+(?P<a>{AMOUNT})(?P<relative>)", _after_begin),
    Rule(rf"\bbefore\s+(?:the\s+)?(?:last|final)\s+(?P<a>{AMOUNT})(?P<relative>)", _before_end),
    Rule(
        rf"(?P<a>{AMOUNT})\s+(?:from|before|to|until)\s+"
        rf"(?:the\s+(?:very\s+)?(?:end|finish)\b{_NOT_OF}|(?:it|{_CLIP})\s+(?:ends|finishes))(?P<relative>)",
        _before_end,
    ),
    Rule(
        rf"(?P<a>{AMOUNT})\s+(?:from|after|past)\s+the\s+(?:very\s+)?(?:start|beginning)\b{_NOT_OF}(?P<relative>)",
        _after_begin,
    ),
    Rule(rf"\b(?:first|opening|initial)\s+(?P<a>{_WHOLE})(?P<relative>)", _first),
    Rule(rf"\b(?:last|final|closing|ending)\s+(?P<a>{_WHOLE})(?P<relative>)", _last),
    Rule(r"\b(?:first|opening|initial)\s+(?:few|couple\s+of|several)\s+(?:seconds|moments)\b", _begin),
    Rule(r"\b(?:last|final|closing)\s+(?:few|couple\s+of|several)\s+(?:seconds|moments)\b", _end),
    Rule(rf"(?:开头|最初|最开始|起初|开场|头|(?<![之以从提目])前)的?(?P<a>{AMOUNT})(?P<relative>)", _first),
    Rule(rf"(?:最后|末尾|结尾|最末|结束前|倒数|(?<![之以然])后)的?(?P<a>{AMOUNT})(?P<relative>)", _last),
)
_MOMENTS = (
    Rule(rf"(?P<shift>{AMOUNT})\s+(?:after|past)\s+{_THE}(?P<a>{CLOCK})", _later),
    Rule(rf"(?P<shift>{AMOUNT})\s+(?:before|prior\s+to)\s+{_THE}(?P<a>{CLOCK})", _earlier),
    Rule(
        rf"\bat\s+{_THE}(?P<many>(?:{_T}|{_NUM})(?:\s*(?:,\s*and|,\s*or|,|and|or|&)\s*(?:at\s+)?(?:{_T}|{_NUM}))*"
        rf"\s*(?:,\s*and|,\s*or|,|and|or|&)\s*(?:at\s+)?{_T}){_MARK}{_LONG}",
        _moments,
    ),
    Rule(
        rf"\b(?:in|during|at)\s+the\s+(?P<nth>\d+(?=st|nd|rd|th)|{_WORDED})(?:st|nd|rd|th)?\s+minute\b", _ordinal_minute
    ),
    Rule(rf"\bthe\s+(?P<nth_second>\d+(?=st|nd|rd|th)|{_WORDED})(?:st|nd|rd|th)?\s+second\s+mark\b", _ordinal_second),
    Rule(r"(?:\bthe\s+)?(?P<nth_second>\d+)(?:st|nd|rd|th)\s+second\b", _ordinal_second),
    Rule(rf"第(?P<a>{AMOUNT})", _ordinal_han),
    Rule(
        rf"(?:\b(?:at|around|near|after|before|by|the)\s+|@\s*)?{_THE}(?P<a>{AMOUNT})[\s-]*(?:mark|point|timestamp)(?![A-Za-z])",
        _moment,
    ),
    Rule(rf"(?:\b(?:at|around|near|after|before)\s+|@\s*){_THE}(?P<a>{AMOUNT}){_LONG}", _moment),
    Rule(
        rf"(?P<a>{AMOUNT})\s+(?:in(?:to)?(?=\s+{_THIS_CLIP}|\s+it\b|{_STOPS})|(?:through|of)\s+{_THIS_CLIP})", _moment
    ),
    Rule(
        rf"(?:\b(?:at|around|near|in|after|before|by)\s+|@\s*|^\s*){_SECONDS}\s+(?P<a>{_NUM})(?![\d:A-Za-z%-]|\.\d|\s*%)",
        _moment,
    ),
    Rule(rf"(?<![A-Za-z0-9_])t\s*=\s*(?P<a>{AMOUNT}|{CLOCK}|{_NUM})(?![\d:.]*\d|[A-Za-z])", _moment),
    Rule(rf"(?P<a>{HAN})(?=\s*(?:{_ZH_AT}|,|\?|$))(?:时|左右|处|附近)?", _moment),
    Rule(rf"(?P<a>{ENGLISH})(?=\s*(?:{_ZH_AT}))(?:时|左右|处|附近)?", _moment),
    Rule(rf"在(?:视频)?的?\s*(?P<a>{AMOUNT})(?!\s*(?:内|之内|以内|里))", _moment),
    Rule(rf"(?P<a>{CLOCK})", _moment),
)
_PLACES = (
    Rule(rf"\b(?P<nth>first|second|third|fourth|last|final)\s+(?P<part>half|third|quarter)\s+of\s+{_CLIP}", _part),
    Rule(r"视频的?(?P<nth>[前上后下])(?P<part>半)(?:段|部分|程)?", _part),
    Rule(
        rf"\b(?P<share>(?:a\s+|one[\s-])?(?:third|quarter)|two[\s-]thirds|three[\s-]quarters|{_NUM}(?=\s*(?:%|percent)))"
        rf"(?:\s*(?:%|percent))?\s+(?:of\s+the\s+way\s+)?(?:through|into|in)\b(?:\s+{_CLIP}|{_STOPS})",
        _way_through,
    ),
    Rule(
        rf"\b(?:half|mid)[\s-]?way\s+(?:through|in(?:to)?)(?:\s+{_THIS_CLIP}|{_STOPS})"
        rf"|\bat\s+the\s+half[\s-]?way\s+(?:point|mark)\b{_NOT_OF}"
        rf"|\b(?:middle|midpoint)\s+of\s+{_CLIP}|\bmid-(?:video|clip)\b",
        _middle,
    ),
    Rule(  # "what is in the middle?" asks for a place in the picture, "what happens in the middle?" for a time
        r"(?:(?<=happens )|(?<=happening )|(?<=going on ))(?:in|at|around)\s+the\s+(?:very\s+)?middle\b(?!\s+of)"
        r"|^\s*in\s+the\s+middle,",
        _middle,
    ),
    Rule(
        rf"\b(?:at|in|near|around|by|from|after)\s+the\s+(?:very\s+)?(?:start|beginning|outset)\b{_NOT_OF}"
        r"(?!\s+(?:line|button|gate|grid|position|menu)\b)"
        rf"|\b(?:start|beginning|opening|outset)\s+of\s+{_CLIP}|\b{_CLIP}\s+(?:starts?|begins?|opens?)\b"
        rf"|\b(?:first|opening)\s+{_PICTURE}{_NOT_THAT}",
        _begin,
    ),
    Rule(
        rf"\b(?:at|in|near|by|towards?|until|before)\s+the\s+(?:very\s+)?(?:end|ending|finish)\b{_NOT_OF}"
        r"(?!\s+(?:zone|line|table|user|product|cap)\b)"
        rf"|\b(?:end|ending|conclusion|close|finish)\s+of\s+{_CLIP}"
        rf"|\b{_CLIP}\s+(?:ends?|finish(?:es)?|stops?|closes?|is\s+over)\b"
        rf"|\b(?:last|final|closing)\s+{_PICTURE}{_NOT_THAT}",
        _end,
    ),
    Rule(r"一开始|最开始|刚开始|开头|开场|开始时|开始的时候|开始部分|片头|视频开始", _begin),
    Rule(
        r"结尾|末尾|片尾|结束时|结束的时候|快结束|临结束|视频的?(?:最后|结束)"
        r"|最后(?=发生|出现|怎么|怎样|如何|,|\?|$|的?时候|时刻|一幕|画面|阶段|部分)",
        _end,
    ),
    Rule(
        r"视频的?(?:中间|中段|中部|中途)|中间(?:部分|阶段|的时候|时段)|中间(?=发生)|(?:播放|进行)到?一半|一半(?:处|的时候|时)",
        _middle,
    ),
)
RULES: tuple[Rule, ...] = _RANGES + _FROM_AN_END + _MOMENTS + _PLACES
