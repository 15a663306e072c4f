"""The pieces of `timewords.py`: how a clock and an amount of time are written, and how many seconds they are.

`marked` draws every clock and every amount of a text as a run of one private character as long as the words it stands
for, so that the rules about them stay short (spelled out they took 0.6 s to compile) and places keep their meaning:

    what happens between 0:10 and half a minute      ->      what happens between CCCC and AAAAAAAAAAAAA
"""

import re

_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_BY_TEN = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NTH = (
    *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh"),
    *("twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth"),
)
_WORDS = {word: value for value, word in enumerate(_SMALL)}
_TENS = {word: 10 * value for value, word in enumerate(_BY_TEN, 2)}
_ORDINALS = {word: value for value, word in enumerate(_NTH, 1)}
_ORDINALS |= {f"{word.removesuffix('y')}ieth": value for word, value in _TENS.items()}
_HAN = {char: value for value, char in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}

_ONES = "|".join(sorted(_WORDS, key=len, reverse=True))
SPELLED = rf"(?:(?:{'|'.join(_TENS)})(?:[\s-](?:{_ONES}))?|{_ONES})"
"""A whole number in English words: `thirty-two`."""
ORDINAL = rf"(?:(?:(?:{'|'.join(_TENS)})[\s-])?(?:{'|'.join(reversed(_ORDINALS))})|\d+(?:st|nd|rd|th))"
"""`third`, `twenty-fifth`, `30th`."""
_FRACTIONS = {"½": 0.5, "¼": 0.25, "¾": 0.75, "1/2": 0.5, "1/4": 0.25, "3/4": 0.75}
_FRACTION = r"(?:(?:\d+\s?)?[½¼¾]|(?:\d+\s+)?(?:[13]/4|1/2)(?=(?:\s+an?)?[\s-]*[mh]))(?:\s+an?)?"
"""`½`, `1 1/2`; but "at 1/2 seconds" is two moments."""
_NUMBER = (
    rf"(?:{_FRACTION}|(?:\d+(?:\.\d+)?|{SPELLED})(?:[\s-]+and[\s-]+a[\s-]+half)?"
    r"|half(?:\s+(?:of\s+)?an?|[\s-]+(?=m|h))|an?|one\s+half)"
)
_HAN_NUMBER = (  # 三五 is some; without a bound a text of 半 alone takes the square of its length
    r"(?:\d+(?:\.\d+)?|(?!.?[一二两兩三四五六七八九]{2})[零〇一二两兩三四五六七八九十百半]{1,12})"
)

_H, _M, _S = r"(?:hours?|hrs?|h)", r"(?:minutes?|mins?)", r"(?:seconds?|secs?|s)"
_STOP = r"(?![A-Za-z0-9_]|/(?!\d)|-(?:style|era|long|old))"
_JOIN = r"(?:\s*,?\s*(?:and\s+)?|-)"
_HALF = r"(?:\s+and\s+a\s+half)?"
_TAIL = (  # the number after "1 minute": 30 is seconds in "at 1 minute 30, what", not in "1 minute 30 people"
    rf"(?:[0-5]?\d|{SPELLED})(?![\d:.,]*\d|[\s-]*"
    r"(?!(?:what|who|where|which|how|when|why|is|are|does|do|in|into|mark|point|and|to(?!\s+go)|until|till)\b)[A-Za-z%])"
)
_AMOUNT_EN = (
    r"(?<![A-Za-z0-9_.$'])(?<!\d,)(?<![A-Za-z0-9_]:)(?:(?<![A-RT-Za-rt-z]-)|(?<=sec-)|(?<=min-))(?:"
    rf"\d+\s?h\s?\d+\s?m(?:in)?(?:\s?\d+(?:\.\d+)?\s?s(?:ec)?)?{_STOP}"
    rf"|\d+\s?m(?:in)?\s?\d+(?:\.\d+)?\s?s(?:ec)?{_STOP}|\d+m(?:in)?[0-5]\d(?![\d:.]*\d){_STOP}"  # 1m30s, 1m30
    r"|\d+'\s?[0-5]?\d(?:\"|'')(?![A-Za-z0-9_])"
    rf"|{_NUMBER}[\s-]*(?:{_H}|{_M})\s+{_TAIL}"  # 1 minute 30, one hour twenty
    rf"|{_NUMBER}[\s-]*{_H}\s+and\s+a\s+half{_STOP}"
    rf"|{_NUMBER}[\s-]*{_H}(?:{_JOIN}{_NUMBER}[\s-]*{_M})?(?:{_JOIN}{_NUMBER}[\s-]*{_S})?{_STOP}"
    rf"|{_NUMBER}[\s-]*(?:{_M}|min\.){_JOIN}(?![6-9]\d|\d{{3}}){_NUMBER}[\s-]*{_S}{_STOP}"  # no 90 seconds
    rf"|{_NUMBER}[\s-]*{_M}{_HALF}{_STOP}"
    rf"|{_NUMBER}[\s-]*{_S}{_HALF}{_STOP}"
    r")"
)
_AMOUNT_HAN = (
    r"(?<!\d:)(?<![0-9.零〇一二两兩三四五六七八九十百点])(?:"
    rf"{_HAN_NUMBER}\s*个?小时半"
    rf"|{_HAN_NUMBER}\s*个?半?小时(?:零?\s*{_HAN_NUMBER}\s*分钟?)?(?:零?\s*{_HAN_NUMBER}\s*秒钟?)?"
    rf"|{_HAN_NUMBER}时{_HAN_NUMBER}分零?{_HAN_NUMBER}秒"
    rf"|{_HAN_NUMBER}\s*分钟?零?\s*{_HAN_NUMBER}\s*秒钟?|{_HAN_NUMBER}\s*分半钟?"
    r"|(?:\d+分[0-5]\d|[一二三四五六七八九十两]+分[二三四五]?十[一二三四五六七八九]?)"  # 1分20, 一分三十
    r"(?![\d:.]*\d|\s*[A-Za-z%个人元块名次级位岁只条张台万度一二三四五六七八九十钟])"
    rf"|{_HAN_NUMBER}\s*分钟半?|{_HAN_NUMBER}\s*秒钟?"
    r")"
)

_CLOCK = (
    r"(?:(?<![A-Za-z0-9_.])(?<![A-Za-z0-9_]:)|(?<=\.\.))\d{1,3}:[0-5]\d(?::[0-5]\d)?(?:\.\d{1,6}|,\d{3}(?!\d))?"
    r"(?!\d|:\d|\.\d|'|/(?!\d{1,3}:[0-5]\d))"  # 0:30/0:40 are two, 4:30/km is a pace
    r"|(?:(?<=\bat )|(?<=@)|(?<=在))0:\d(?![\d:.]*\d|/)"  # 0:5 could be a score elsewhere
)

_TOLD = (  # what every one of them holds, quick to compile
    rf"(?:\d|[½¼¾]|half|(?<![A-Za-z])an?|{_ONES}|{'|'.join(_TENS)})[\s-]*(?:{_H}|{_M}|{_S})(?![A-Za-z])|\d[m']"
)

BLANK = "\0"
CLOCK = "\ue000(?<!\ue000\ue000)\ue000*+"  # all of a run, from its first character
"""`0:30`, `1:02:03.5`, `00:01:02,500`: two digits of seconds (or `at 0:5`), so `16:9` and `3:2` are none."""
ENGLISH, HAN = "\ue001(?<!\ue001\ue001)\ue001*+", "\ue002(?<!\ue002\ue002)\ue002*+"
AMOUNT = "[\ue001\ue002](?<![\ue001\ue002]{2})[\ue001\ue002]*+"
"""`30 seconds`, `1m20s`, `two and a half minutes`, `half a minute` (English); `1分20秒`, `半分钟` (Han)."""
AMOUNTS = f"{ENGLISH[0]} {HAN[0]}"
"""Both marks of them, as words."""

_KINDS = ((_CLOCK, CLOCK, ":"), (_AMOUNT_EN, ENGLISH, _TOLD), (_AMOUNT_HAN, HAN, "[时分秒]"))
"""How each is written, its mark, and without what no text holds one: the longer patterns take 20 ms to compile."""

_PLAIN_CLOCK = r"\d{1,3}:[0-5]\d(?::[0-5]\d)?(?:\.\d{1,6}|,\d{3})?"
_BRACKETED = rf"[\[(<\"]({_PLAIN_CLOCK})[\])>\"]"
_BARE = (
    r"(?P<bare>(?<![A-Za-z0-9_.:])\d+(?:\.\d+)?\s?m)(?![A-Za-z0-9_/])(?!\s*(?!(?:what|who|where|which|how|when|why|is|are"
    r"|does|do|did|in|into|of|and|to|until|till|there|the|a|he|she|it|they|we)\b)[A-Za-z])"
)
_BARE_HAN = r"(?P<bare>(?<![\d.:])\d+分)(?![钟球数\d])"
_ENDS = r"\s*(?:-|~|\bto\b|until|till|到|至)\s*"
_ANY_MARK = "[\ue000-\ue002]"
_JOINED = tuple(
    (pattern.format(bare=bare), mark)
    for bare, mark in ((_BARE, ENGLISH), (_BARE_HAN, HAN))
    for pattern in (
        rf"{_ANY_MARK}{_ENDS}{{bare}}", rf"{{bare}}(?={_ENDS}{_ANY_MARK})",
        rf"\bbetween\s+{_ANY_MARK}+\s+and\s+{{bare}}", rf"(?<=\bbetween ){{bare}}(?=\s+and\s+{_ANY_MARK})",
    )
)  # fmt: skip
"""`2m` is minutes in "1m30s to 2m", and else may be the height of a door; so is 2分, else perhaps a score."""


def marked(text: str) -> str:
    """`text`, same length, with clocks drawn as `CLOCK` and amounts of time as `ENGLISH` or `HAN`."""
    text = re.sub(rf"(?<!\w)'({_PLAIN_CLOCK})'", r'"\1"', text)  # behind a clock a lone prime means something else
    text = re.sub(rf"{_BRACKETED}({_ENDS}|\s+and\s+){_BRACKETED}", r" \1 \2 \3 ", text, flags=re.IGNORECASE)
    for pattern, mark, sign in _KINDS:
        if re.search(sign, text, re.IGNORECASE):
            text = re.sub(pattern, lambda match, mark=mark: mark[0] * len(match[0]), text, flags=re.IGNORECASE)  # type: ignore[misc]
    if re.search(r"\d\s?(?:m\b|分)", text, re.IGNORECASE) and re.search(_ANY_MARK, text):
        for pattern, mark in _JOINED:
            for match in re.finditer(pattern, text, re.IGNORECASE):
                first, end = match.span("bare")
                text = text[:first] + mark[0] * (end - first) + text[end:]
    return text


def amount_seconds(text: str, unit: str = "") -> float:
    """Seconds of a match of `CLOCK` or `AMOUNT`, or of a bare number counted in `unit`."""
    words = text.strip().lower()
    if re.search(r"\d:\d", words):
        return _clock_seconds(words)
    if feet := re.fullmatch(r"(\d+)'\s?(\d+)(?:\"|'')", words):
        return 60.0 * int(feet[1]) + int(feet[2])
    if re.fullmatch(rf"\d+(?:\.\d+)?|{SPELLED}|{_HAN_NUMBER}", words) or (unit and re.fullmatch(ORDINAL, words)):
        return number(words) * _unit_seconds(unit or "s")
    if re.search(r"[秒分时]", words):
        return _han_seconds(words)
    return _english_seconds(words)


def amount_unit(text: str) -> str:
    """The last unit that an amount names, as h, m or s: "1 min 20 sec" -> "s", "两分钟" -> "m"; empty when none."""
    units = re.findall(r"(?<![a-z])[hms]|时|分|秒", text.lower())
    return {"时": "h", "分": "m", "秒": "s"}.get(units[-1], units[-1]) if units else ""


def number(text: str) -> float:
    """The value of a number or ordinal in digits, English or Chinese: `30`, `thirty-two`, `half a`, `third`, `二十`."""
    words = re.sub(r"(?<=\d)(?:st|nd|rd|th)$", "", re.sub(r"[\s-]+", " ", text.strip().lower()))
    if re.fullmatch(r"\d+(?:\.\d+)?", words):
        return float(words)
    if part := re.search(r"[½¼¾]|\d/\d", words):
        return float(words[: part.start()] or 0) + _FRACTIONS[part[0]]
    if words.endswith("and a half"):
        return number(words.removesuffix("and a half")) + 0.5
    if re.search(r"[零〇一二两兩三四五六七八九十百半]", words):
        return _han_number(words)
    if words.startswith("half") or words == "one half":
        return 0.5
    parts = words.split()
    return float(sum(_WORDS.get(part, _TENS.get(part, _ORDINALS.get(part, part in ("a", "an")))) for part in parts))


def _clock_seconds(text: str) -> float:
    fields = text.replace(",", ".").split(":")
    return sum(float(field) * 60.0**power for power, field in enumerate(reversed(fields)))


def _english_seconds(words: str) -> float:
    if tail := re.search(rf"(?:\s|(?<=[a-z]))(\d+|{SPELLED})$", words):  # 1 minute 30, 1m30, one hour twenty
        head = words[: tail.start()]
        return _english_seconds(head) + number(tail[1]) * _unit_seconds(head) / 60
    total, scale = 0.0, 1.0
    for count, unit in re.findall(
        rf"({_NUMBER})?[\s-]*(hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s)(?![a-z])", words
    ):
        scale = _unit_seconds(unit)
        total += scale * (number(count) if count else 1)
    return total + (0.5 * scale if re.search(r"(?:hour|min|minute|second)s?\s+and\s+a\s+half$", words) else 0.0)


def _han_seconds(words: str) -> float:
    total, scale = 0.0, 1.0
    for count, half, unit in re.findall(rf"({_HAN_NUMBER}?)\s*个?(半?)(小?时|分钟?|秒钟?)", words):
        scale = {"小": 3600.0, "时": 3600.0, "分": 60.0, "秒": 1.0}[unit[0]]
        total += scale * ((number(count) if count else 0) + (0.5 if half else 0))
    if tail := re.search(rf"分({_HAN_NUMBER})$", words):  # 1分20; the half of 1分半 is no number of seconds
        return total + (30.0 if tail[1] == "半" else number(tail[1]))
    return total + (scale / 2 if re.search(r"分半钟?$|分钟半$|小时半$", words) else 0.0)


def _han_number(text: str) -> float:
    if text == "半":
        return 0.5
    total, digit = 0, 0
    for char in text:
        if char in ("十", "百"):
            total, digit = total + (digit or 1) * (10 if char == "十" else 100), 0
        elif char in _HAN:
            digit = _HAN[char]
    return total + digit + (0.5 if text.endswith("半") else 0.0)


def _unit_seconds(unit: str) -> float:
    return {"h": 3600.0, "m": 60.0}.get(amount_unit(unit), 1.0)
