"""In which encoding a text was written: UTF-8, UTF-16, UTF-32 as the bytes say, else by whose language comes out of it.

Of each reading is counted what part of its letters beyond ASCII its language would have written; ties go to the first.

    cp1252             few together in a word (é in "été"), or one alone; not those that only other languages write
    cp1250, 1254, 1257 the same, but all are letters of one language
    gb18030, big5      among the most frequent signs
    cp932, euc_jp      kana
    cp949              among the most frequent syllables
    cp1253             words of Greek, short or with an accent
    cp1255             words of Hebrew, in which final letters come last
    cp1256             words of Arabic letters alone
    cp874              Thai consonants, and vowels where such may stand
    cp1251, koi8-r     words of Cyrillic, and these have vowels
"""

import codecs
import re

JUDGED_BYTES = 40_000
"""Of the lines with letters beyond ASCII so much is looked at: some 500 lines."""
BROKEN_COSTS = 10
"""A byte that the encoding does not know speaks against it as loudly as so many letters for it."""
ZEROS_OF_UTF16 = 0.1
"""Of the bytes of subtitles in it; fewer are damage."""
_HAN = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家事成方多经么去法学"
    "如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日者意无力它与长把机十民第公此已工使情明性知全三又关點這個們來"
    "為國說時會對於著過發後裡經學現當沒動還進樣開從實無與長機關見問話給讓吧呢啊哪嗎誰什請謝再见很吗给让话问谁请谢"
)
_HANGUL = (
    "이다는을에의가고하지은를로도한아어니나사그기리서인자시라대만일게"
    "여해있었요우모제내안말들수보거정오구것저너때무않야왜뭐네당신좋습면"
)
_MARKS = "，。？！、：；…—「」《》（）"
_CYRILLIC = (
    r"(?<![A-Za-z\u0400-\u04ff])(?=[\u0400-\u04ff]*[аеиоуыэюяёіїєАЕИОУЫЭЮЯЁІЇЄ])"
    r"(?:[А-ЯЁІЇЄҐЎЈЉЊЋЂЏ]?[а-яёіїєґўјљњћђџѓќѕ]+|[А-ЯЁІЇЄҐЎЈЉЊЋЂЏ]+)(?![A-Za-z\u0400-\u04ff])"
)
_HEBREW = r"(?<![A-Za-zא-ת])[אבגדהוזחטיכלמנסעפצקרשת]+[אבגדהוזחטיכלמנסעפצקרשתךםןףץ](?![A-Za-zא-ת])"
_GREEK = (
    r"(?<![A-Za-z\u0370-\u03ff])(?:[α-ω]{2,3}|(?=[Α-ωϊϋ]*[άέήίόύώΆΈΉΊΌΎΏ])[Α-ΩΆΈΉΊΌΎΏ]?[α-ωάέήίόύώϊϋ]+)"
    r"(?![A-Za-z\u0370-\u03ff])"
)
_ARABIC = r"(?<![A-Za-zÀ-ÿ\u0621-\u06d2])(?=[\u0621-\u06d2]+[لمنهوي])[\u0621-\u06d2]+(?![A-Za-zÀ-ÿ\u0621-\u06d2])"
_THAI = "[{0}][\u0e30-\u0e39\u0e47-\u0e4d]+|[เ-ไ][{0}]".format("กขคงจฉชซณดตถทธนบปผพฟภมยรลวศสหอ")


def _latin(letters: str) -> str:
    """Of such letters, few together in a word, or one alone."""
    return (
        rf"(?<=[A-Za-z])[{letters}]{{1,3}}(?![^\x00-\x7f])"
        rf"|(?<![^\x00-\x7f])(?:[{letters}]{{1,3}}(?=[A-Za-z])|[{letters}](?![^\x00-\x7f]))"
    )


def _letters(of: str) -> str:
    """The letters `of` a language, small and large, and the marks that stand by them."""
    return _latin("".join(letter for letter in of + of.upper() if not letter.isascii()) + "“”„‘’…–—«»")


_EXPECTED = (
    ("cp1252", _latin(r"^\x00-\x7f³¹ºõýþðÝŸÞÐšžŠŽ")), ("cp1252", _letters("áéíóúýðþæö")),
    ("cp1254", _letters("çğıİöşüâîû")),
    ("cp1250", _letters("ąćęłńóśźż")), ("cp1250", _letters("áčďéěíňóřšťúůýžäľĺŕô")), ("cp1250", _letters("áéíóöőúüű")),
    ("cp1250", _letters("ăâîşţ")), ("cp1250", _letters("čćđšž")), ("cp1257", _letters("ąčęėįšųūžāēģīķļņ")),
    ("gb18030", f"[{_HAN}{_MARKS}]"), ("big5hkscs", f"[{_HAN}{_MARKS}]"),
    ("cp932", f"[ぁ-んァ-ヶー{_MARKS}]"), ("euc_jp", f"[ぁ-んァ-ヶー{_MARKS}]"), ("cp949", f"[{_HANGUL}]"),
    ("cp1255", _HEBREW), ("cp1251", _CYRILLIC), ("koi8-r", _CYRILLIC), ("cp1253", _GREEK), ("cp1256", _ARABIC),
    ("cp874", _THAI),
)  # fmt: skip
"""Encodings, and what texts in them hold of what is beyond ASCII."""


def decoded(data: bytes) -> str:
    """The text; what its encoding does not know becomes U+FFFD."""
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return data.decode("utf-32", "replace")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    data = re.sub(rb"\0{3,}", b"", data)  # in no UTF-16: room that was made for a file and never filled
    if data.count(0) < ZEROS_OF_UTF16 * len(data):
        data = data.replace(b"\0", b"")
    else:  # UTF-16 without its mark: the zeros of digits and line ends tell the order of bytes
        little = data[1::2].count(0) >= data[::2].count(0)
        return data.decode("utf-16-le" if little else "utf-16-be", "replace")
    text = data.decode("utf-8-sig", "replace")
    if text.count("\ufffd") * BROKEN_COSTS <= _beyond_ascii(text):  # a few bytes may be broken
        return text
    judged = b"\n".join(re.findall(rb"[^\n]*[\x80-\xff][^\n]*", data))[:JUDGED_BYTES]
    encoding, _ = max(_EXPECTED, key=lambda row: _share(judged, *row))
    return data.decode(encoding, "replace")


def _share(data: bytes, encoding: str, expected: str) -> float:
    """Of the letters beyond ASCII, those that are expected."""
    text = data.decode(encoding, "replace")
    found = sum(map(len, re.findall(expected, text)))
    return (found - BROKEN_COSTS * text.count("\ufffd")) / max(_beyond_ascii(text), 1)


def _beyond_ascii(text: str) -> int:
    return len(re.findall(r"[^\x00-\x7f]", text))
