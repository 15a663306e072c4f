"""Captions put back where the clips came from: ids kept, the old caption kept, the new one in a column of its version.

    train.json   row {"id": 7, "video": ..., "conversations": [...]}  +  "caption_v1": "...", "caption_v1_recipe": "..."
    000.tar      a.mp4 a.txt a.json                                   +  a.caption_v1.txt
    rows.jsonl, rows.parquet                                          +  columns caption_v1, caption_v1_recipe

Each file is written anew beside itself and takes its name in one step, so that a reader sees the old one or the new.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from vidllm.corpus.formats import array_rows, lines_of, need_parquet, parquet_rows
from vidllm.corpus.inputs import old_caption
from vidllm.corpus.item import SourceRow
from vidllm.corpus.reading import any_row, standing_rows
from vidllm.corpus.rows import FAILED, CaptionRow
from vidllm.corpus.webdataset import sample_key, tar_items
from vidllm.errors import InputError
from vidllm.linefile import not_writable

COLUMN = "caption_v"
_VERSION = re.compile(r"caption_v(\d+)(?:_recipe|\.txt)?$")


@dataclass(frozen=True)
class Change:
    """One row's caption, before and now."""

    file: str
    index: int
    id: str | None
    old: str | None
    new: str


@dataclass(frozen=True)
class Recaptioned:
    """One file that has a new column."""

    file: str
    column: str
    changes: tuple[Change, ...]


def recaption(output: Path, tag: str, mine: Callable[[CaptionRow], bool] = any_row) -> tuple[Recaptioned, ...]:
    """Put the good captions of `output` that are `mine` into the data sets that its clips came from.

    A row with several ranges gets their captions in order, one a line. Captions whose `tag` stands there already renew
    their own column, and leave what it has for other rows; others get the next version. Raises InputError or
    OutputError; a file is changed whole or not at all.
    """
    found: dict[tuple[str, str], dict[int, list[CaptionRow]]] = {}
    for row in standing_rows(output):
        if row.source is not None and row.status not in FAILED and mine(row):
            place = (str(row.source["kind"]), str(row.source["file"]))
            found.setdefault(place, {}).setdefault(int(row.source["index"]), []).append(row)
    return tuple(
        _renew(kind, file, {index: _joined(parts) for index, parts in rows.items()}, tag)
        for (kind, file), rows in found.items() if file != "-"
    )  # fmt: skip


def _joined(rows: Sequence[CaptionRow]) -> str:
    return "\n".join(row.caption for row in sorted(rows, key=lambda row: row.start or 0.0))


def _renew(kind: str, file: str, captions: Mapping[int, str], tag: str) -> Recaptioned:
    column = _free_column(kind, file, tag)
    changes: list[Change] = []
    part = Path(file).with_name(f".{Path(file).name}.part")
    try:
        _WRITERS[kind](Path(file), part, _Column(column, tag, captions, changes))
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        os.replace(part, file)
    except OSError as error:
        raise not_writable(Path(file), error) from error
    finally:
        part.unlink(missing_ok=True)
    return Recaptioned(file, column, tuple(changes))


@dataclass(frozen=True)
class _Column:
    """The column to add, and where changes are noted."""

    name: str
    tag: str
    captions: Mapping[int, str]
    changes: list[Change]

    def into(self, row: Any, index: int, file: Path) -> Any:
        """The row with its caption, where there is one."""
        if not isinstance(row, dict) or index not in self.captions:
            return row
        self.note(file, index, None if row.get("id") is None else str(row["id"]), old_caption(row))
        return {**row, self.name: self.captions[index], f"{self.name}_recipe": self.tag}

    def note(self, file: Path, index: int, id: str | None, old: str | None) -> None:
        """One row changed."""
        self.changes.append(Change(str(file), index, id, old, self.captions[index]))


def _free_column(kind: str, file: str, tag: str) -> str:
    """The tag's own column if the file has one, else the next version."""
    taken = 0
    for row in _NAMES[kind](file):
        for name, value in row.items():
            if (version := _VERSION.search(name)) is None:
                continue
            taken = max(taken, int(version[1]))
            if name.endswith("_recipe") and value == tag:
                return f"{COLUMN}{version[1]}"
    return f"{COLUMN}{taken + 1}"


def _rows_of_lines(file: str | Path) -> Iterator[dict[str, Any]]:
    for line in lines_of(file):
        row = _parsed(line)
        yield row if isinstance(row, dict) else {}


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _rows_of_array(file: str) -> Iterator[dict[str, Any]]:
    return (row for row in array_rows(file) if isinstance(row, dict))


def _names_in_tar(file: str) -> Iterator[dict[str, Any]]:
    """Members as columns; the recipe of a version stands in a member of its own."""
    with tarfile.open(file) as tar:
        for member in tar:
            if not (member.name.endswith("_recipe.txt") and _VERSION.search(member.name.removesuffix(".txt"))):
                yield {member.name: None}
                continue
            data = tar.extractfile(member)
            yield {member.name.removesuffix(".txt"): data.read().decode("utf-8", "replace") if data else ""}


_NAMES: dict[str, Callable[[str], Iterator[dict[str, Any]]]] = {
    "llava": _rows_of_array, "jsonl": _rows_of_lines, "parquet": parquet_rows, "webdataset": _names_in_tar,
}  # fmt: skip


def _write_array(file: Path, part: Path, column: _Column) -> None:
    """Row by row, indented as such files are: one array."""
    with open(part, "w", encoding="utf-8") as new:
        new.write("[")
        for index, row in enumerate(array_rows(file)):
            new.write(("," if index else "") + "\n")
            new.write(json.dumps(column.into(row, index, file), ensure_ascii=False))
        new.write("\n]\n")
        new.flush()


def _write_lines(file: Path, part: Path, column: _Column) -> None:
    """Lines without a new caption stay as they are, byte by byte."""
    with open(part, "wb") as new:
        for index, line in enumerate(lines_of(file)):
            row = column.into(_parsed(line), index, file) if index in column.captions else None
            new.write(line if row is None else json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _write_parquet(file: Path, part: Path, column: _Column) -> None:
    """Row group by row group; the file's own columns keep their types."""
    parquet, arrow = need_parquet(), import_module("pyarrow")
    with parquet.ParquetFile(file) as old:
        writer, index = None, 0
        for group in range(old.num_row_groups):
            table = old.read_row_group(group)
            rows = [column.into(row, index + n, file) for n, row in enumerate(table.to_pylist())]
            index += len(rows)
            for name in (column.name, f"{column.name}_recipe"):
                values = arrow.array([row.get(name) for row in rows], arrow.string())
                at = table.schema.get_field_index(name)
                table = table.append_column(name, values) if at < 0 else table.set_column(at, name, values)
            writer = writer or parquet.ParquetWriter(part, table.schema)
            writer.write_table(table)
        if writer is None:
            raise InputError(f"{file}: has no rows any more; caption it again")
        writer.close()


def _write_tar(file: Path, part: Path, column: _Column) -> None:
    """Every member as it was, and behind a sample's last one its caption."""
    indexes = {item.source.id: item.source for item in tar_items(str(file)) if item.source is not None}
    mine = (f".{column.name}.txt", f".{column.name}_recipe.txt")
    mode = "w:gz" if file.name.endswith((".gz", ".tgz")) else "w"
    with tarfile.open(file) as old, tarfile.open(part, mode) as new:  # type: ignore[call-overload]
        key: str | None = None
        for member in old:
            if member.name.endswith(mine) and _is_said(sample_key(member.name), indexes, column):
                continue
            if key is not None and key != sample_key(member.name):
                _close_sample(new, key, indexes.get(key), file, column)
            key = sample_key(member.name) if member.isfile() else key
            data = old.extractfile(member) if member.isfile() else None
            new.addfile(member, data)
        if key is not None:
            _close_sample(new, key, indexes.get(key), file, column)


def _is_said(key: str, indexes: Mapping[str | None, SourceRow], column: _Column) -> bool:
    """Whether the sample gets a caption; the others keep what an earlier run, of another shard, put there."""
    return key in indexes and indexes[key].index in column.captions


def _close_sample(new: tarfile.TarFile, key: str, source: Any, file: Path, column: _Column) -> None:
    if source is None or source.index not in column.captions:
        return
    column.note(file, source.index, key, source.caption)
    for name, text in ((column.name, column.captions[source.index]), (f"{column.name}_recipe", column.tag)):
        data = text.encode("utf-8", "backslashreplace")
        member = tarfile.TarInfo(f"{key}.{name}.txt")
        member.size = len(data)
        new.addfile(member, io.BytesIO(data))


_WRITERS: dict[str, Callable[[Path, Path, _Column], None]] = {
    "llava": _write_array, "jsonl": _write_lines, "parquet": _write_parquet, "webdataset": _write_tar,
}  # fmt: skip


def write_diff(changes: Sequence[Recaptioned], target: Path) -> None:
    """The old caption beside the new of every row, as text a person reads: `-` old, `+` new. Raises OutputError."""
    try:
        with open(target, "w", encoding="utf-8", errors="backslashreplace") as file:
            for renewed in changes:
                _write_changes(file, renewed)
    except OSError as error:
        raise not_writable(target, error) from error


def _write_changes(file: IO[str], renewed: Recaptioned) -> None:
    same = sum(change.old == change.new for change in renewed.changes)
    file.write(f"{renewed.file}: {renewed.column}, {len(renewed.changes)} captions, {same} as before\n\n")
    for change in renewed.changes:
        file.write(f"@ {change.id if change.id is not None else f'row {change.index + 1}'}\n")
        file.writelines(f"- {line}\n" for line in (change.old or "").splitlines())
        file.writelines(f"+ {line}\n" for line in change.new.splitlines())
        file.write("\n")
