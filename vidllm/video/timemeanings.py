"""What a match of the time grammar means: moments and ranges that may hang on the clip's ends.

the words              the match                     its meaning
"at 0:30"        ->    a = 0:30               ->     (clock 30, clock 30)
"last 5 s"       ->    a = 5 s                ->     (end - 5, end)
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from vidllm.video.timephrases import AMOUNT, CLOCK, ORDINAL, SPELLED, amount_seconds, amount_unit, number

EDGE_SHARE, EDGE_LEAST, EDGE_MOST = 0.1, 2.0, 10.0
"""How much of a clip "at the end" means: a tenth, at least 2 s and at most 10 s."""


_ITEM = rf"{CLOCK}|{AMOUNT}|{ORDINAL}|{SPELLED}|\d+(?:\.\d+)?|[一二三四五六七八九十]+"
Origin = Literal["clock", "begin", "end", "share"]
_LASTING = {"m": 60.0, "h": 3600.0}
"""Units whose ordinals last: the second minute is a range, the second second a moment."""


class Anchor(NamedTuple):
    """A time that may hang on the clip."""

    origin: Origin
    value: float
    """Seconds on the clip's clock, after its begin or before its end; or a share (0-1) of its length."""
    edges: float = 0.0
    """Edge widths to add (see `EDGE_SHARE`)."""

    def resolve(self, start: float, end: float) -> float:
        """Seconds on the source's clock, for a clip that is watched in `[start, end)`."""
        edge = min(max((end - start) * EDGE_SHARE, EDGE_LEAST), EDGE_MOST) * self.edges
        places = {
            "clock": self.value,
            "begin": start + self.value,
            "end": end - self.value,
            "share": start + self.value * (end - start),
        }
        return places[self.origin] + edge


Meaning = tuple[Anchor, Anchor]
"""A range `[first, last)`, or a moment when both are one."""
FIRST, LAST, MIDDLE = Anchor("begin", 0.0), Anchor("end", 0.0), Anchor("share", 0.5)
BEGIN, END = (FIRST, FIRST._replace(edges=1.0)), (LAST._replace(edges=-1.0), LAST)


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
        value = amount_seconds(self.text(group), self._unit())
        if group == "tail" and value < 60 and ":" not in self.text(group):  # 1:10-20 is 1:10 to 1:20
            value += self.seconds("a") // 60 * 60
        return value

    def items(self) -> list[tuple[int, int, float]]:
        """(first character, end, seconds) of each time of the list in group `many`."""
        first, end = self.match.span("many")
        unit = amount_unit(self.words[first:end]) or self._unit()
        found = re.finditer(_ITEM, self.match["many"], re.IGNORECASE)
        places = [(first + item.start(), first + item.end()) for item in found]
        return [(a, b, amount_seconds(self.words[a:b], unit)) for a, b in places]

    def places(self) -> Iterator[tuple[int, int, float]]:
        """(first character, end, seconds) of every time on the clip's clock that the match holds."""
        groups = self.match.re.groupindex
        if self.is_list:
            yield from self.items()
        for name in ("a", "b", "tail", "nth_second"):
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
    needs: str = ""
    """Words, or parts of words, of which every text that it matches holds one: compiling those patterns that have not
    theirs took nearly all of a first question's tenth of a second."""

    def has_its_words(self, said: str) -> bool:
        """Whether a text, case-folded, can match at all."""
        return not self.needs or any(word in said for word in self.needs.split())


def _at(origin: Origin, value: float) -> list[Meaning]:
    """One moment."""
    return [(Anchor(origin, value), Anchor(origin, value))]


def always(*meanings: Meaning) -> Callable[[Reading], list[Meaning]]:
    """What a rule means whose words are always the same."""
    return lambda _: list(meanings)


nothing = always()
"""A time that hangs on something the words alone do not place."""
begin, end, begin_and_end = always(BEGIN), always(END), always(BEGIN, END)
middle = always((MIDDLE._replace(edges=-0.5), MIDDLE._replace(edges=0.5)))
first_frame, last_frame, end_frames = always((FIRST, FIRST)), always((LAST, LAST)), always((FIRST, FIRST), (LAST, LAST))


def moment(reading: Reading) -> list[Meaning]:
    return _at("clock", reading.seconds("a"))


def span(reading: Reading) -> list[Meaning]:
    return [(reading.clock("a"), reading.clock("b"))]


def span_to_tail(reading: Reading) -> list[Meaning]:
    """A range whose end is cut short: 1:10-20; a moment when that would end before it began."""
    first, last = reading.clock("a"), reading.clock("tail")
    return [(first, last if last.value > first.value else first)]


def moments(reading: Reading) -> list[Meaning]:
    return [(Anchor("clock", seconds), Anchor("clock", seconds)) for _, _, seconds in reading.items()]


def later(reading: Reading) -> list[Meaning]:
    """5 seconds after 0:30."""
    return _at("clock", reading.seconds("a") + reading.seconds("shift"))


def earlier(reading: Reading) -> list[Meaning]:
    """5 seconds before 0:30."""
    return _at("clock", reading.seconds("a") - reading.seconds("shift"))


def up_to(reading: Reading) -> list[Meaning]:
    """The last 5 seconds before 0:30."""
    return [(earlier(reading)[0][0], reading.clock("a"))]


def on_from(reading: Reading) -> list[Meaning]:
    """The first 5 seconds after 0:30."""
    return [(reading.clock("a"), later(reading)[0][0])]


def to_clip_end(reading: Reading) -> list[Meaning]:
    return [(reading.clock("a"), LAST)]


def from_clip_begin(reading: Reading) -> list[Meaning]:
    return [(FIRST, reading.clock("a"))]


def one_side(reading: Reading) -> list[Meaning]:
    """Everything after 0:30, the rest of it before."""
    before = reading.text("side").lower().startswith(("before", "prior"))
    return from_clip_begin(reading) if before else to_clip_end(reading)


def ordinal_minute(reading: Reading) -> list[Meaning]:
    """The 2nd minute is 1:00 to 2:00."""
    scale = _LASTING[amount_unit(reading.text("unit"))]
    last = scale * number(reading.text("nth"))
    return [(Anchor("clock", last - scale), Anchor("clock", last))]


def ordinal_mark(reading: Reading) -> list[Meaning]:
    """The 2nd minute mark is 2:00."""
    return [(last, last) for _, last in ordinal_minute(reading)]


def ordinal_span(reading: Reading) -> list[Meaning]:
    """From the first to the third minute are three; between the first and the third, from mark to mark, are two."""
    lasting = 0.0 if reading.text("two") else _LASTING.get(amount_unit(reading.text("unit")), 0.0)
    return [(Anchor("clock", reading.seconds("a") - lasting), reading.clock("b"))]


def ordinal_second(reading: Reading) -> list[Meaning]:
    """The 30th second."""
    return _at("clock", number(reading.text("nth_second")))


def ordinal_han(reading: Reading) -> list[Meaning]:
    """第30秒 and 第1分20秒 are moments, 第2分钟 is a minute that lasts."""
    return [_ordinal(reading.text("a"), reading.seconds("a"))]


def each_ordinal_han(reading: Reading) -> list[Meaning]:
    """第3、5秒, 第1、2分钟."""
    unit = amount_unit(reading.text("many"))
    return [_ordinal(unit, seconds) for _, _, seconds in reading.items()]


def ordinal_from_end(reading: Reading) -> list[Meaning]:
    """倒数第10秒, 倒数第二分钟."""
    first, last = _ordinal(reading.text("a"), reading.seconds("a"))
    return [(Anchor("end", last.value), Anchor("end", first.value))]


def nth_before_end(reading: Reading) -> list[Meaning]:
    """The tenth second from the end."""
    return _at("end", number(reading.text("nth")))


def _ordinal(words: str, seconds: float) -> Meaning:
    units = re.findall(r"时|分|秒|[hms]", words)
    scale = _LASTING.get(amount_unit(words), 0.0) if len(units) == 1 else 0.0
    lasts = scale > 0 and seconds % scale == 0
    return Anchor("clock", seconds - scale if lasts else seconds), Anchor("clock", seconds)


def first(reading: Reading) -> list[Meaning]:
    return [(FIRST, Anchor("begin", reading.seconds("a")))]


def last(reading: Reading) -> list[Meaning]:
    return [(Anchor("end", reading.seconds("a")), LAST)]


def both_ends(reading: Reading) -> list[Meaning]:
    """The first and last 5 seconds; the first 10 and the last 5."""
    count = reading.text("n")
    width = amount_seconds(count, amount_unit(reading.text("a"))) if count else reading.seconds("a")
    return [(FIRST, Anchor("begin", width)), *last(reading)]


def after_begin(reading: Reading) -> list[Meaning]:
    return _at("begin", reading.seconds("a"))


def before_end(reading: Reading) -> list[Meaning]:
    return _at("end", reading.seconds("a"))


def part(reading: Reading) -> list[Meaning]:
    """One of equal parts: "the second third of the video"."""
    parts = {"half": 2, "third": 3, "quarter": 4, "半": 2, "三": 3, "四": 4}[reading.text("part").lower()]
    known = {"first": 0, "former": 0, "second": 1, "third": 2, "fourth": 3, "前": 0, "上": 0}
    known |= dict.fromkeys(("middle", "中间"), parts // 2)
    nth = known.get(reading.text("nth").lower(), parts - 1)
    if reading.text("nth").lower() in ("middle", "中间") and parts != 3:
        return []
    return [(Anchor("share", nth / parts), Anchor("share", (nth + 1) / parts))] if nth < parts else []


def share_of_end(reading: Reading) -> list[Meaning]:
    """The last 20 % of the video."""
    share = float(reading.text("share")) / 100
    low, high = (
        (0.0, share) if reading.text("nth").lower() in ("first", "opening", "initial", "前") else (1 - share, 1.0)
    )
    return [(Anchor("share", low), Anchor("share", high))] if share <= 1 else []


def way_through(reading: Reading) -> list[Meaning]:
    """One moment: "a third of the way through", "80 % in"."""
    shares = {"third": 1 / 3, "quarter": 0.25, "two thirds": 2 / 3, "three quarters": 0.75}
    words = " ".join(re.split(r"[\s-]+", reading.text("share").lower())).removeprefix("a ").removeprefix("one ")
    over = re.fullmatch(r"(\d)/(\d)", words)
    share = shares[words] if words in shares else int(over[1]) / int(over[2]) if over else float(words) / 100
    return _at("share", share) if share <= 1 else []
