"""The pieces of `timewords.py`: how a clock and an amount of time are written, and what only looks like one.

`marked` draws every clock and every amount of a text as a run of one private character as long as the words it stands
for, so that the rules about them stay short (spelled out they took 0.6 s to compile) and places keep their meaning:

    what happens between 0:10 and half a minute      ->      what happens between CCCC and AAAAAAAAAAAAA
"""

import re
from functools import cache

_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_BY_TEN = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NTH = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_WORDS = {word: value for value, word in enumerate(_SMALL)}
_TENS = {word: 10 * value for value, word in enumerate(_BY_TEN, 2)}
_ORDINALS = {word: value for value, word in enumerate(_NTH, 1)}
_HAN = {char: value for value, char in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}

_ONES = "|".join(sorted(_WORDS, key=len, reverse=True))
_SPELLED = rf"(?:{'|'.join(_TENS)})(?:[\s-](?:{_ONES}))?|{_ONES}"
_NUMBER = rf"(?:(?:\d+(?:\.\d+)?|{_SPELLED})(?:\s+and\s+a\s+half)?|half(?:\s+an?|[\s-]+(?=m|h))|an?|one\s+half)"
_HAN_NUMBER = r"(?:\d+(?:\.\d+)?|[零〇一二两兩三四五六七八九十百半]+)"

_H, _M, _S = r"(?:hours?|hrs?|h)", r"(?:minutes?|mins?)", r"(?:seconds?|secs?|s)"
_STOP = r"(?![A-Za-z0-9_/]|-(?:style|era|long|old))"
_JOIN = r"(?:\s*,?\s*(?:and\s+)?|-)"
_HALF = r"(?:\s+and\s+a\s+half)?"
_AMOUNT_EN = (
    r"(?<![A-Za-z0-9_.:,$'])(?<![A-RT-Za-rt-z]-)(?:"
    rf"\d+\s?h\s?\d+\s?m(?:in)?(?:\s?\d+(?:\.\d+)?\s?s(?:ec)?)?{_STOP}"
    rf"|\d+\s?m(?:in)?\s?\d+(?:\.\d+)?\s?s(?:ec)?{_STOP}"
    r"|\d+'\s?[0-5]?\d(?:\"|'')(?!\w)"
    rf"|{_NUMBER}[\s-]*{_H}(?:{_JOIN}{_NUMBER}[\s-]*{_M})?(?:{_JOIN}{_NUMBER}[\s-]*{_S})?{_STOP}"
    rf"|{_NUMBER}[\s-]*{_M}{_JOIN}{_NUMBER}[\s-]*{_S}{_STOP}"
    rf"|{_NUMBER}[\s-]*{_M}\s+[0-5]?\d(?![\d:.,]*\d|[\s-]*[A-Za-z%])"  # 1 minute 30
    rf"|{_NUMBER}[\s-]*{_M}{_HALF}{_STOP}"
    rf"|{_NUMBER}[\s-]*{_S}{_HALF}{_STOP}"
    r")"
)
_AMOUNT_HAN = (
    r"(?<![0-9.:零〇一二两兩三四五六七八九十百点])(?:"
    rf"{_HAN_NUMBER}\s*个?半?小时(?:零?\s*{_HAN_NUMBER}\s*分钟?)?(?:零?\s*{_HAN_NUMBER}\s*秒钟?)?"
    rf"|{_HAN_NUMBER}\s*分钟?零?\s*{_HAN_NUMBER}\s*秒钟?|{_HAN_NUMBER}\s*分半钟?|{_HAN_NUMBER}\s*分钟半?|{_HAN_NUMBER}\s*秒钟?"
    r")"
)

_CLOCK = r"(?<![A-Za-z0-9_:.])\d{1,3}:[0-5]\d(?::[0-5]\d)?(?:\.\d{1,6}|,\d{3}(?!\d))?(?!\d|:\d|\.\d|'|/)"

CLOCK = "\ue000+"
"""`0:30`, `1:02:03.5`, `00:01:02,500`: minutes and two digits of seconds at least, so `16:9` and `3:2` are none."""
ENGLISH, HAN = "\ue001+", "\ue002+"
AMOUNT = "[\ue001\ue002]+"
"""`30 seconds`, `1m20s`, `two and a half minutes`, `half a minute` (English); `1分20秒`, `半分钟` (Han)."""

_ANY = rf"(?:{CLOCK}|{AMOUNT})"
_LOOSE = (
    r"(?:(?:only|just|about|around|roughly|approximately|nearly|almost|up\s+to|the|between|from|exactly|another|a\s+full)"
    r"\s+)*"
)
_BOOKS = (
    "Genesis|Exodus|Leviticus|Numbers|Deuteronomy|Joshua|Judges|Ruth|Samuel|Kings|Chronicles|Ezra|Nehemiah|Esther|Job|"
    "Psalms?|Proverbs|Ecclesiastes|Isaiah|Jeremiah|Ezekiel|Daniel|Hosea|Joel|Amos|Micah|Matthew|Mark|Luke|John|Acts|"
    "Romans|Corinthians|Galatians|Ephesians|Philippians|Colossians|Thessalonians|Timothy|Titus|Hebrews|James|Peter|Jude|"
    "Revelation|Surah|Sura|Quran|Koran"
)
_NO_PREPOSITION = r"(?:\s+(?!at\b|from\b|around\b|between\b|near\b|before\b|after\b|until\b|in\b|on\b|and\b)\w+){0,3}"

NOT_NUMBERS: tuple[str, ...] = (
    r"\b(?:last|first)[\s-]minute\s+(?:goal|decision|change|winner|equali[sz]er|deal|shopping|save|rush|panic|penalty)\b",
    r"\S+://\S+|\S+\.(?:mp4|mkv|mov|avi|webm|gif|m4v|srt|vtt)\b",
    r"\b(?:the|early|late|mid|')[\s-]*(?:\d{2})?\d0'?s\b(?!\s*(?:mark|in\b|into\b|point|to\b|-|on\b))|'\d0s\b|\b(?:19|20)\d0'?s\b",
    r"\d+\s*点\s*\d+\s*分(?:钟)?(?:\d+\s*秒)?|[一二两三四五六七八九十]+点[零一二三四五六七八九十]+分",
)
"""Idioms, addresses, decades and hours of the day in Chinese: blanked out before numbers are read."""

NOT_TIMES: tuple[str, ...] = (
    # hours of the day
    rf"{CLOCK}\s*(?:[ap]\.?\s?m\b\.?|o'?\s?clock|uhr\b|hrs\b|hours\b|sharp\b|(?:gmt|utc|cet|est|edt|pst|pdt|cst|bst|ist)\b)",
    rf"{CLOCK}\s+(?:in\s+the\s+(?:morning|afternoon|evening)|at\s+night|tonight|today|tomorrow|yesterday|this\s+(?:morning|afternoon|evening))",
    rf"\b(?:(?:mon|tues|wednes|thurs|fri|satur|sun)days?|noon|midnight|today|tomorrow|yesterday)\b,?\s+(?:at\s+)?{CLOCK}",
    rf"\d{{1,4}}[-/.]\d{{1,2}}(?:[-/.]\d{{1,4}})?(?:T|,?\s+){CLOCK}",
    rf"{AMOUNT}\s+(?:to|past|before|after)\s+(?:noon|midnight|{_ONES}|\d+)\b(?![:\d-])",
    rf"(?:上午|下午|早上|早晨|晚上|中午|凌晨|傍晚|夜里|北京时间|周[一二三四五六日末]|星期[一二三四五六日天])\s*的?{CLOCK}",
    rf"\b(?:the|an?)\s+{CLOCK}\s+(?:train|bus|flight|ferry|show|showing|appointment|meeting|class|alarm|news|service|departure|deadline)\b",
    # what a clock, a sign or a board in the picture says
    rf"\b(?:shows?|showing|shown\s+as|reads?|reading|says?|saying|displays?|displaying|set\s+(?:to|for)|strikes?|(?:time|clock|timer|watch)\s+(?:is|was|at|of))\s+(?:the\s+time\s+)?(?:as\s+)?{CLOCK}",
    rf"(?:显示|写着|指向|指着)(?:的?时间)?(?:是|为|着)?\s*{CLOCK}",
    # ratios, scales, scores, verses
    rf"{CLOCK}[\s-]*(?:aspect|ratio|scale|odds|dilution|mix(?:ture)?|widescreen|gear|gradient|slope|incline|model)\b",
    rf"\b(?:ratios?|scales?|odds|aspect|slope|gradient|gear(?:ing)?|dilution|dilut\w+|mix(?:ture|ed)?|proportions?)(?:\s+(?:is|was|are|of|to|at|about|in|the|a)|\s*[:=])*\s*{CLOCK}",
    rf"\b(?:scores?|scoreline|scored|result|standings?)(?:\s+(?:is|was|of|reads|stands\s+at|stood\s+at|being)|\s*[:=])*\s*{CLOCK}",
    rf"\b(?:w[io]ns?|winning|won|beats?|beaten|beating|leads?|leading|led|los[et]s?|losing|defeat\w*|tied|trail\w*){_NO_PREPOSITION}(?:\s+by)?\s+{CLOCK}",
    rf"{CLOCK}\s+(?:win|lead|loss|defeat|victory|score|scoreline|draw|tie)\b",
    rf"(?:比分|比例|比率|宽高比|长宽比|赔率|以)(?:是|为|到了?)?\s*{CLOCK}|{CLOCK}\s*的?(?:比分|比例|比率|宽高比|长宽比|领先|获胜|战胜|落后)",
    rf"\b(?-i:{_BOOKS})\s+{CLOCK}(?:-\d+)?|\b(?:verses?|chapters?|psalms?|bible|gospel|scripture|hymn)\s+(?:of\s+)?{CLOCK}(?:-\d+)?",
    # lengths of time
    rf"\b(?:lasts|lasting|lasted|(?:will|would|can|should|to|do|does|did)\s+last|takes?|taking|took|every|each|within|under|spend\w*|spent|wait\w*|hold(?:s|ing)?|held|less\s+than|more\s+than|at\s+least|at\s+most|longer\s+than|shorter\s+than|duration|length|runtime|running\s+time)(?:\s+(?:of|is|was|for)|\s*[:=])*\s+{_LOOSE}{_ANY}(?:\s*(?:-|to|and)\s*{_ANY})?",
    rf"\b(?:for|per|of|in|over|next|another|additional|extra|previous|past|following|by|delay\w*|paus\w+)\s+{_LOOSE}{AMOUNT}(?!\s*(?:mark|point|in\b|into\b|from\b|-|to\b|~|until|and\s+(?:\d|the))|\s*-?(?:mark|point))",
    rf"\b(?:lasts|takes?|took|every|within|for)\s+{_LOOSE}\d+(?:\.\d+)?\s*(?:-|to|and)\s*{AMOUNT}",
    rf"{CLOCK}\s+(?:long|in\s+(?:length|total|duration|all)|minutes?\s+long|runtime)\b",
    rf"{AMOUNT}[\s-]+(?:long|later|earlier|ago|apart|each|per|old|of\s+age|tall|left|remaining|faster|slower|in\s+(?:length|total|duration|all|a\s+row)|intervals?)\b",
    rf"\b(?:an?|the|this|every|each|one|two|three)\s+{AMOUNT}[\s-]+(?:video|clip|movie|film|timer|countdown|delay|break|pause|ad|advert|commercial|penalty|limit|summary|version|recording|interval|window|loop|gif|shot|sequence|span|period)s?\b",
    rf"(?:持续了?|长达|时长|花了?|用了?|耗时|每隔?|需要|等了?|超过|不到|至少|过了|共|内容长)(?:约|大约|大概|为|是)?\s*{_ANY}(?:左右)?",
    rf"{AMOUNT}(?:之内|以内|内|钟?的(?:视频|短片|片段|时间|电影|倒计时|长)|长|一次|左右的(?:视频|短片|片段))",
)
"""What looks like a time and is none; blanked out before the rules read on."""

BLANK = "\0"


def marked(text: str) -> str:
    """`text`, same length, with addresses blanked out, clocks drawn as `CLOCK` and amounts as `ENGLISH` or `HAN`."""
    for pattern in _compiled(NOT_NUMBERS):
        text = pattern.sub(lambda match: BLANK * len(match[0]), text)
    for pattern, mark in zip(_compiled((_CLOCK, _AMOUNT_EN, _AMOUNT_HAN)), (CLOCK, ENGLISH, HAN), strict=True):
        text = pattern.sub(lambda match, mark=mark: mark[0] * len(match[0]), text)  # type: ignore[misc]
    return text


@cache
def _compiled(patterns: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)


def amount_seconds(text: str, unit: str = "") -> float:
    """Seconds of a match of `CLOCK` or `AMOUNT`, or of a bare number counted in `unit`."""
    words = text.strip().lower()
    if re.search(r"\d:\d", words):
        return _clock_seconds(words)
    if feet := re.fullmatch(r"(\d+)'\s?(\d+)(?:\"|'')", words):
        return 60.0 * int(feet[1]) + int(feet[2])
    if re.fullmatch(r"\d+(?:\.\d+)?", words):
        return float(words) * _unit_seconds(unit or "s")
    if re.search(r"[秒分时]", words):
        return _han_seconds(words)
    return _english_seconds(words)


def amount_unit(text: str) -> str:
    """The last unit that an amount names, as h, m or s: "1 min 20 sec" -> "s", "两分钟" -> "m"; empty when none."""
    units = re.findall(r"(?<![a-z])[hms](?=[a-z]*)|小时|分|秒", text.lower())
    return {"小时": "h", "分": "m", "秒": "s"}.get(units[-1], units[-1]) if units else ""


def number(text: str) -> float:
    """The value of a number or ordinal in digits, English or Chinese: `30`, `thirty-two`, `half a`, `third`, `二十`."""
    words = text.strip().lower()
    if re.fullmatch(r"\d+(?:\.\d+)?", words):
        return float(words)
    if words.endswith("and a half"):
        return number(words.removesuffix("and a half")) + 0.5
    if re.search(r"[零〇一二两兩三四五六七八九十百半]", words):
        return _han_number(words)
    if words.startswith("half") or words == "one half":
        return 0.5
    parts = re.split(r"[\s-]+", words)
    return float(sum(_WORDS.get(part, _TENS.get(part, _ORDINALS.get(part, part in ("a", "an")))) for part in parts))


def _clock_seconds(text: str) -> float:
    fields = text.replace(",", ".").split(":")
    return sum(float(field) * 60.0**power for power, field in enumerate(reversed(fields)))


def _english_seconds(words: str) -> float:
    if tail := re.search(r"\s(\d+)$", words):  # 1 minute 30
        return _english_seconds(words[: tail.start()]) + float(tail[1])
    total, scale = 0.0, 1.0
    for count, unit in re.findall(
        rf"({_NUMBER})?[\s-]*(hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s)(?![a-z])", words
    ):
        scale = _unit_seconds(unit)
        total += scale * (number(count) if count else 1)
    return total + (0.5 * scale if re.search(r"(?:hour|min|minute|second)s?\s+and\s+a\s+half$", words) else 0.0)


def _han_seconds(words: str) -> float:
    total, scale = 0.0, 1.0
    for count, half, unit in re.findall(rf"({_HAN_NUMBER}?)\s*个?(半?)(小时|分钟?|秒钟?)", words):
        scale = {"小": 3600.0, "分": 60.0, "秒": 1.0}[unit[0]]
        total += scale * ((number(count) if count else 0) + (0.5 if half else 0))
    return total + (scale / 2 if re.search(r"分半钟?$|分钟半$", words) else 0.0)


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
