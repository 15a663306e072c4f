"""Rows of data sets, one after the other whatever the file's size: JSON lines, one JSON array, Parquet."""

import json
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from vidllm.errors import ConfigError, InputError

READ_CHARS = 1 << 20
PARQUET_HINT = "Parquet needs pyarrow: pip install 'vidllm[parquet]'"


def lines_of(path: str | Path) -> Iterator[bytes]:
    """The file's lines, with their line feeds. Raises InputError."""
    try:
        with open(path, "rb") as file:
            yield from file
    except OSError as error:
        raise InputError(f"{path}: can not be read ({error.strerror}); check the name") from error


def split_at_nul(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines; from one that holds a NUL on, what NULs end: no name has one in it, so it is a list of `-print0`."""
    rest = b""
    for line in lines:
        if rest or b"\0" in line:
            *whole, rest = (rest + line).split(b"\0")
            yield from whole
        else:
            yield line
    if rest:
        yield rest


def parsed(line: str | bytes) -> Any:
    """The JSON value of a line; None for what is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def array_rows(path: str | Path) -> Iterator[object]:
    """The elements of the file's one JSON array, read bit by bit: data sets of gigabytes are written this way.

    JSON lines under the same name are understood too. Raises InputError where it is neither.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            yield from _elements(file, path)
    except OSError as error:
        raise InputError(f"{path}: can not be read ({error.strerror}); check the name") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 text; save it as UTF-8") from error


def is_array(path: str | Path) -> bool:
    """Whether `array_rows` reads one array there, and not JSON lines."""
    with open(path, encoding="utf-8-sig") as file:
        return file.read(READ_CHARS).lstrip().startswith("[")


def _elements(file: Any, path: str | Path) -> Iterator[object]:
    text = file.read(READ_CHARS).lstrip()
    if text.startswith("{"):
        yield from _objects(file, text, path)
        return
    if not text.startswith("["):
        raise InputError(f"{path}: holds no JSON array of rows; use JSON lines, or one array")
    yield from _objects(file, text[1:], path, end="]")


def _objects(file: Any, text: str, path: str | Path, end: str = "") -> Iterator[object]:
    """JSON values one after the other, commas and blanks between them, until `end`."""
    decode = json.JSONDecoder().raw_decode
    count, at, more = 0, 0, True
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        if end and text.startswith(end, at):
            return
        try:
            value, after = decode(text, at)
            # a number could go on behind the end of what was read; rows are objects and can not
            if not isinstance(value, dict) and after == len(text) and more:
                raise ValueError
        except (ValueError, RecursionError) as error:
            block = file.read(max(READ_CHARS, len(text) - at)) if more else ""
            more = bool(block)
            text, at = text[at:] + block, 0
            if more:
                continue
            if not text.strip(" \t\r\n,") and not end:
                return
            raise InputError(f"{path}: is no valid JSON after its row {count}; mend it or cut it there") from error
        yield value
        count, at = count + 1, after


def parquet_rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """The file's rows as dicts, a few thousand in memory at once. Raises InputError, ConfigError without pyarrow."""
    parquet, arrow = need_parquet(), import_module("pyarrow")
    try:
        with parquet.ParquetFile(path) as file:
            kept, number = _kept_rows(file.schema_arrow), 0
            for batch in file.iter_batches(batch_size=1024):
                for row in plain_rows(batch):
                    yield kept.get(number, row)
                    number += 1
    except (OSError, arrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: can not be read as Parquet ({reason}); check the file") from error


def plain_rows(table: Any) -> list[dict[str, Any]]:
    """The rows of an Arrow table or batch as dicts. A value that Python has no kind for, such as a time to the
    nanosecond, a day in the year 34865 or bytes that are no text, is None: nothing that is asked for here stands in its
    column.
    """
    columns = [_values(column) for column in table.columns]
    return [dict(zip(table.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        return None


KEPT = b"vidllm_rows"
"""Metadata of a part: rows that UTF-8 can not hold (names of files may be any bytes), as JSON, by number."""


def arrow_table(rows: Sequence[dict[str, Any]], schema: Any) -> Any:
    """A table of `rows`; `parquet_rows` gives back whole those that it can only hold with letters spelled out."""
    arrow = import_module("pyarrow")
    try:
        return arrow.Table.from_pylist(rows, schema=schema)
    except UnicodeEncodeError:
        plain = [_spelled_out(row) for row in rows]
        kept = {number: row for number, (row, other) in enumerate(zip(rows, plain, strict=True)) if row != other}
        return arrow.Table.from_pylist(plain, schema=schema.with_metadata({KEPT: json.dumps(kept)}))


def _kept_rows(schema: Any) -> dict[int, dict[str, Any]]:
    """The rows that `arrow_table` had to spell out, by number."""
    kept = json.loads((schema.metadata or {}).get(KEPT, b"{}"))
    return {int(number): row for number, row in kept.items()}


def _spelled_out(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {name: _spelled_out(inner) for name, inner in value.items()}
        case list():
            return [_spelled_out(inner) for inner in value]
        case _:
            return value


def need_parquet() -> Any:
    """pyarrow's Parquet module. Raises ConfigError with what to install."""
    try:
        return import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(PARQUET_HINT) from error
