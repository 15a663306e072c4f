"""Captions put back where the clips came from: ids kept, the old caption kept, the new one in a column of its version.

    train.json   row {"id": 7, "video": ..., "conversations": [...]}  +  "caption_v1": "...", "caption_v1_recipe": "..."
    000.tar      a.mp4 a.txt a.json                                   +  a.caption_v1.txt
    rows.jsonl, rows.parquet                                          +  columns caption_v1, caption_v1_recipe

A sample with several clips has a member for each: a.caption_v1.txt, a.left.caption_v1.txt. Each file is written anew
beside itself and takes its name in one step, so that a reader sees the old one or the new; runs that end together (two
shards of one data set) do so one after the other.
"""

from __future__ import annotations

import contextlib
import filecmp
import gzip
import io
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from vidllm.corpus.datarows import old_caption
from vidllm.corpus.formats import array_rows, is_array, lines_of, need_parquet, parquet_rows, parsed, plain_rows
from vidllm.corpus.item import Item
from vidllm.corpus.rows import FAILED, CaptionRow
from vidllm.corpus.webdataset import DAMAGED, tar_items, text_of, walk
from vidllm.errors import InputError, OutputError
from vidllm.linefile import json_line, not_writable, replacing, write_whole

if sys.platform != "win32":
    import fcntl

COLUMN = "caption_v"
_VERSION = re.compile(r"caption_v(\d+)(?:_recipe)?$")


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
    """One file that has a new column; or `problem`, one line, for which it was left as it is."""

    file: str
    column: str
    changes: tuple[Change, ...]
    problem: str | None = None


Captions = Mapping[int, Mapping[str, str]]
"""By row (sample), then by video: a row has one, a tar's sample may have several."""
_Said = tuple[float, str]
"""Where a range begins, and its caption."""


@dataclass(frozen=True)
class NewCaptions:
    """The good captions of data sets' rows: every row is told, then all are put in their places."""

    _found: dict[tuple[str, str], dict[int, dict[str, list[_Said]]]] = field(default_factory=dict)

    def add(self, row: CaptionRow) -> None:
        """One more row, good or not, of a data set or of none. A row's frames are most of it, and not kept."""
        if row.source is not None and row.status not in FAILED:
            place = (str(row.source["kind"]), str(row.source["file"]))
            videos = self._found.setdefault(place, {}).setdefault(int(row.source["index"]), {})
            videos.setdefault(row.video, []).append((row.start or 0.0, row.caption))

    def put(self, tag: str) -> tuple[Recaptioned, ...]:
        """Put them into the data sets that their clips came from.

        A video with several ranges gets their captions in order, one a line. Captions whose `tag` stands there already
        renew their own column, and leave what it has for other rows; others get the next version. A file is changed
        whole or not at all; one that is damaged has its `problem` told, and the others go on. Raises OutputError.
        """
        return tuple(
            _renew(kind, file, {index: _joined(videos) for index, videos in clips.items()}, tag)
            for (kind, file), clips in self._found.items() if file != "-"
        )  # fmt: skip


def _joined(videos: Mapping[str, Sequence[_Said]]) -> dict[str, str]:
    return {
        video: "\n".join(caption for _, caption in sorted(said, key=lambda one: one[0]))
        for video, said in videos.items()
    }


def _renew(kind: str, file: str, captions: Captions, tag: str) -> Recaptioned:
    changes: list[Change] = []
    target = Path(os.path.realpath(file))  # a name that is a link stays one
    part = target.with_name(f".{target.name}.part")
    try:
        with _held(target):
            try:
                column = _free_column(kind, file, tag)
                _WRITERS[kind](Path(file), part, _Column(column, tag, captions, changes))
                if not filecmp.cmp(part, target, shallow=False):  # a file that was touched is looked at again
                    _settle(part, target)
            finally:
                part.unlink(missing_ok=True)
    except InputError as error:
        return Recaptioned(file, "", (), f"{error}; it gets no captions")
    except (*DAMAGED, FileNotFoundError) as error:
        return Recaptioned(file, "", (), f"{file}: gets no captions ({error}); mend it and run again")
    except OSError as error:
        raise not_writable(target, error) from error
    return Recaptioned(file, column, tuple(changes))


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Wait for other runs that write the file anew: each has to begin with what the one before made of it."""
    while True:
        with open(path, "r+b") as file:
            _lock(file)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                yield
                return


def _lock(file: IO[bytes]) -> None:
    if sys.platform == "win32":  # the system lets nobody replace a file that another has open
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        said = f"{file.name}: its file system has no locks ({error.strerror}); copy the data set to a local disk"
        raise OutputError(said) from error


def _settle(part: Path, target: Path) -> None:
    """The new file has the old one's rights and takes its name."""
    old = os.stat(target)
    with replacing(target, part):
        shutil.copymode(target, part)
        if hasattr(os, "chown"):
            with contextlib.suppress(OSError):  # only its owner and root may give it away
                os.chown(part, old.st_uid, old.st_gid)


@dataclass(frozen=True)
class _Column:
    """The column to add, and where changes are noted."""

    name: str
    tag: str
    captions: Captions
    changes: list[Change]

    def into(self, row: Any, index: int, file: Path) -> Any:
        """The row with its caption, where there is one."""
        if not isinstance(row, dict) or index not in self.captions:
            return row
        said = "\n".join(self.captions[index].values())
        id = None if row.get("id") is None else str(row["id"])
        self.changes.append(Change(str(file), index, id, old_caption(row), said))
        return {**row, self.name: said, f"{self.name}_recipe": self.tag}


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


def _objects(rows: Iterable[object]) -> Iterator[dict[str, Any]]:
    return (row for row in rows if isinstance(row, dict))


def _names_in_tar(file: str) -> Iterator[dict[str, Any]]:
    """Members as columns; the recipe of a version stands in a member of its own."""
    with tarfile.open(file) as tar:
        for _, _, member in walk(tar):
            is_recipe = member.isfile() and member.name.endswith("_recipe.txt")
            yield {member.name.removesuffix(".txt"): text_of(tar, member) if is_recipe else None}


_NAMES: dict[str, Callable[[str], Iterator[dict[str, Any]]]] = {
    "llava": lambda file: _objects(array_rows(file)), "jsonl": lambda file: _objects(map(parsed, lines_of(file))),
    "parquet": parquet_rows, "webdataset": _names_in_tar,
}  # fmt: skip


def _write_array(file: Path, part: Path, column: _Column) -> None:
    """Row by row: one array, or one row a line, as it was."""
    begin, between, end = (b"[\n", b",\n", b"\n]\n") if is_array(file) else (b"", b"\n", b"\n")
    with open(part, "wb") as new:
        new.write(begin)
        for index, row in enumerate(array_rows(file)):
            new.write((between if index else b"") + json_line(column.into(row, index, file)).rstrip())
        new.write(end)


def _write_lines(file: Path, part: Path, column: _Column) -> None:
    """Lines without a new caption stay as they are, byte by byte."""
    with open(part, "wb") as new:
        for index, line in enumerate(lines_of(file)):
            row = column.into(parsed(line), index, file) if index in column.captions else None
            new.write(line if row is None else json_line(row))


def _utf8(text: str) -> bytes:
    """The text, half characters spelled out."""
    return text.encode("utf-8", "backslashreplace")


def _write_parquet(file: Path, part: Path, column: _Column) -> None:
    """Row group by row group; the file's own columns keep their types, and all are packed as the first was."""
    parquet, arrow = need_parquet(), import_module("pyarrow")
    with parquet.ParquetFile(file) as old:
        writer, index = None, 0
        for group in range(old.num_row_groups):
            table = old.read_row_group(group)
            rows = [column.into(row, index + n, file) for n, row in enumerate(plain_rows(table))]
            index += len(rows)
            for name in (column.name, f"{column.name}_recipe"):
                told = (row.get(name) for row in rows)
                values = arrow.array([None if text is None else _utf8(text) for text in told]).cast(arrow.string())
                at = table.schema.get_field_index(name)
                table = table.append_column(name, values) if at < 0 else table.set_column(at, name, values)
            packed = old.metadata.row_group(group).column(0).compression
            writer = writer or parquet.ParquetWriter(part, table.schema, compression=_PACKED.get(packed, packed))
            writer.write_table(table)
        if writer is None:
            raise InputError(f"{file}: has no rows any more; caption it again")
        writer.close()


_PACKED = {"UNCOMPRESSED": "NONE", "LZ4_RAW": "LZ4", "LZO": "SNAPPY"}
"""What Parquet calls otherwise than pyarrow does when it writes; LZO it only reads."""


def _write_tar(file: Path, part: Path, column: _Column) -> None:
    """Every member as it was, and behind a sample's last one its captions."""
    clips: dict[int, list[Item]] = {}
    for item in tar_items(str(file)):
        if item.source is not None:
            clips.setdefault(item.source.index, []).append(item)
    with tarfile.open(file) as old, _new_tar(part, _compression(file)) as new:
        at, added = -1, dict[str, str]()
        for number, key, member in walk(old):
            if key is not None and number != at:
                _close_sample(new, added)
                at, added = number, _added(clips.get(number, []), file, column)
            if key is None or member.name not in added:
                data = old.extractfile(member) if member.isfile() else None
                _add(new, _without_holes(member), data)
        _close_sample(new, added)


def _without_holes(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """As it is read, and so as it is to be written: `tarfile` would call a sparse member sparse again."""
    if not member.issparse():
        return member
    told = {name: value for name, value in member.pax_headers.items() if not name.startswith("GNU.sparse.")}
    whole = member.replace(deep=False)
    whole.type, whole.sparse, whole.pax_headers = tarfile.REGTYPE, None, told
    return whole


def _compression(tar: Path) -> str:
    """As `tarfile` calls it, by how the file begins: its name may say nothing, or another."""
    with open(tar, "rb") as file:
        head = file.read(max(map(len, _COMPRESSED)))
    return next((name for magic, name in _COMPRESSED.items() if head.startswith(magic)), "")


@contextlib.contextmanager
def _new_tar(part: Path, compression: str) -> Iterator[tarfile.TarFile]:
    """A tar to write; of the same members it is the same bytes, which gzip's time of writing would not let it be."""
    if compression == "gz":
        with gzip.GzipFile(part, "wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as new:
            yield new
    else:
        with tarfile.open(part, f"w:{compression}") as new:  # type: ignore[call-overload]
            yield new


_COMPRESSED = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ": "xz"}


def _added(clips: Sequence[Item], file: Path, column: _Column) -> dict[str, str]:
    """Members that a sample gets for its clips that were captioned; the others keep what an earlier run, of another
    shard, put there.
    """
    members: dict[str, str] = {}
    for clip in clips:
        assert clip.source is not None
        said = column.captions.get(clip.source.index, {}).get(clip.video)
        if said is None:
            continue
        name = clip.source.id if len(clips) == 1 else os.path.splitext(clip.member or "")[0]
        text = members.get(f"{name}.{column.name}.txt")
        members[f"{name}.{column.name}.txt"] = said if text is None else f"{text}\n{said}"  # a.mp4 and a.webm
        members[f"{name}.{column.name}_recipe.txt"] = column.tag
        column.changes.append(Change(str(file), clip.source.index, name, clip.source.caption, said))
    return members


def _close_sample(new: tarfile.TarFile, added: Mapping[str, str]) -> None:
    for name, text in added.items():
        data = _utf8(text)
        member = tarfile.TarInfo(name)
        member.size = len(data)
        _add(new, member, io.BytesIO(data))


def _add(new: tarfile.TarFile, member: tarfile.TarInfo, data: IO[bytes] | None) -> None:
    new.addfile(member, data)
    new.__dict__["members"] = []  # as in `walk`: tarfile would keep every header


_WRITERS: dict[str, Callable[[Path, Path, _Column], None]] = {
    "llava": _write_array, "jsonl": _write_lines, "parquet": _write_parquet, "webdataset": _write_tar,
}  # fmt: skip


def write_diff(changes: Sequence[Recaptioned], target: Path) -> None:
    """The old caption beside the new of every row, as text a person reads: `-` old, `+` new. Raises OutputError."""
    write_whole(target, (_utf8(line).decode() for renewed in changes for line in _told(renewed)))


def _told(renewed: Recaptioned) -> Iterator[str]:
    same = sum(change.old == change.new for change in renewed.changes)
    yield f"{renewed.file}: {renewed.column}, {len(renewed.changes)} captions, {same} as before\n\n"
    for change in renewed.changes:
        yield f"@ {change.id if change.id is not None else f'row {change.index + 1}'}\n"
        yield from (f"- {line}\n" for line in (change.old or "").splitlines())
        yield from (f"+ {line}\n" for line in change.new.splitlines())
        yield "\n"
