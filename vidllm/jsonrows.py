"""The rows of JSON lines. What goes on over several lines is one row that is wrong, not one a line:

    {"video": "a.mp4"}      a row
    {                       one that is none: a document that was pretty-printed
      "video": "b.mp4"
    }
    {"video":               one that is none: it was cut off
    {"video": "c.mp4"}      a row
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any, AnyStr


def json_rows(lines: Iterable[AnyStr]) -> Iterator[tuple[int, Any]]:
    """(number of its first line, value) of every row; of one that is no JSON on one line the exception that says so."""
    begun: list[str] = []
    first = 0
    for number, line in enumerate(lines, 1):
        if begun and line[:1] not in ("{", b"{"):
            begun.append(_text(line))
            continue
        if begun:
            yield first, _fault(begun, first)
            begun = []
        if line.strip():
            value = _value(line)
            if _goes_on(value):
                begun, first = [_text(line)], number
            else:
                yield number, value
    if begun:
        yield first, _fault(begun, first)


def _value(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return error


def _goes_on(value: Any) -> bool:
    """Whether it is what an object is called whose end is not on its line."""
    if not isinstance(value, json.JSONDecodeError):
        return False
    return value.doc.startswith("{") and value.pos >= len(value.doc.rstrip())


def _text(line: str | bytes) -> str:
    return line if isinstance(line, str) else line.decode("utf-8-sig", "replace")


def _fault(lines: list[str], first: int) -> Exception:
    ends = ("" if line.endswith("\n") else "\n" for line in lines)
    text = "".join(line + end for line, end in zip(lines, ends, strict=True))
    value = _value("\n" * (first - 1) + text)  # so that what is wrong is told with its line in the file
    last = first + text.rstrip().count("\n")
    return value if isinstance(value, Exception) else ValueError(f"the row goes on to line {last}")
