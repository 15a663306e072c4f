"""Where rows are kept: JSON lines in one file, or Parquet parts in a folder. Both only grow, and survive kill -9.

    out.jsonl             rows                    out.parquet/   part-000001.parquet ...   sealed rows
    out.jsonl.admitted    what was admitted                      _part-000003.jsonl        rows not yet sealed
                                                                 _admitted.jsonl           what was admitted

A part is either a journal of lines or a sealed file, never both: it is sealed under another name, takes its own in one
step, and only then is the journal removed. Readers of Parquet folders pass over names that begin with "_".
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from vidllm.corpus.formats import arrow_table, need_parquet, parquet_rows, parsed
from vidllm.corpus.index import Head
from vidllm.corpus.rows import STATUSES, CaptionRow, RowUsage
from vidllm.errors import OutputError
from vidllm.linefile import LineFile, not_writable, replacing, sync_folder

PARQUET_SUFFIX = ".parquet"
OTHER_SUFFIXES = frozenset({".json", ".csv", ".tsv", ".txt", ".srt", ".vtt", ".html", ".htm", ".diff", ".tar"})
"""Names that promise another format than rows have; -f, --report and --in-place write those, in the rows' own place."""
DIFF_SUFFIX = ".diff"
"""Of the report of old and new captions beside an output."""
ROWS_PER_PART = 4096
"""Rows of a sealed part; the last part of a run may hold fewer."""
_PART = re.compile(r"part-\d{6,}\.parquet")
_PART_BITS = 32
MOST_LINE_BYTES = 16 << 20

HEAD_NAMES = ("id", "key", "recipe", "stamp", "status")
_HEAD = re.compile(
    rb'\{"id": "([0-9a-f]{32})", "key": "([0-9a-f]{32})", "recipe": "([0-9a-f]{16})", "stamp": "([0-9a-f]{16})", '
    rb'"status": "(%s)"' % "|".join(STATUSES).encode()
)
"""How every line written here begins."""
_BEGIN = b'{"id": "'
_ID_AND_KEY = re.compile(_BEGIN + rb'.{0,40}", "key": "', re.DOTALL)
"""A line of ours, whatever happened to it."""


class Store(Protocol):
    """Rows that can be added, listed by their heads, found again by place, and dropped when superseded."""

    def heads(self) -> Iterator[tuple[Head, int]]:
        """(id, key, recipe, stamp, status) and place of every row."""

    def append(self, row: CaptionRow) -> int:
        """Add one; its place. It survives this process from then on."""

    def row_at(self, place: int) -> CaptionRow:
        """The row at `place`. Raises ValueError if it is none any more."""

    def drop(self, places: Iterable[int]) -> None:
        """Remove these rows; places change. Whole or not at all, file by file."""

    def close(self) -> None:
        """Everything is on disk."""


def is_parquet(path: Path) -> bool:
    """Whether this output is Parquet, by its name."""
    return path.suffix.lower() == PARQUET_SUFFIX


def manifest_of(path: Path) -> Path:
    """The file that keeps what was admitted; one for all names of an output, for its lock lets one run in."""
    real = _real(path)
    return real / "_admitted.jsonl" if is_parquet(path) else real.with_name(real.name + ".admitted")


def _real(path: Path) -> Path:
    """The file itself where its name is a link to it, and may stay one."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def own_files(path: Path) -> tuple[Path, ...]:
    """What a run writes beside the output at `path`, and that itself."""
    return path, manifest_of(path), _part_of(path), path.with_suffix(DIFF_SUFFIX)


def _part_of(path: Path) -> Path:
    """Where lines are written anew."""
    return _real(path).with_name(_real(path).name + ".part")


def head_of(line: bytes) -> Head:
    """The head of a row's line: no parse where this program wrote it.

    Raises ValueError for what is no caption row.
    """
    if (head := _HEAD.match(line)) is not None:
        id, key, recipe, stamp, status = head.groups()
        return id.decode(), key.decode(), recipe.decode(), stamp.decode(), status.decode()
    row = CaptionRow.from_line(line)
    return row.id, row.key, row.recipe, row.stamp, row.status


def _is_begun(line: bytes) -> bool:
    """Whether it can be the first line, half-written; rows of data sets begin as ours do, and are whole."""
    begins = line.startswith(_BEGIN) or _BEGIN.startswith(line)
    return begins and line[-1:] != b"\n" and parsed(line) is None


class JsonLines:
    """One file, one row a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = LineFile(path)
        _part_of(path).unlink(missing_ok=True)  # of a run that was killed while it removed rows

    def heads(self) -> Iterator[tuple[Head, int]]:
        """By how the lines begin."""
        for number, (place, line) in enumerate(self._file.lines(), 1):
            try:
                head = head_of(line)
            except ValueError as error:
                raise OutputError(
                    f"{self.path}: line {number} is no caption row; name another output, or mend the line"
                ) from error
            yield head, place

    def append(self, row: CaptionRow) -> int:
        """One write; the kernel has it."""
        return self._file.append(row.to_line())

    def row_at(self, place: int) -> CaptionRow:
        """One read."""
        return CaptionRow.from_line(self._file.line_at(place))

    def drop(self, places: Iterable[int]) -> None:
        """A new file without them takes the name."""
        gone = set(places)
        with replacing(_real(self.path), _part_of(self.path), name=self.path) as part:
            with open(part, "wb") as new:
                new.writelines(line + b"\n" for place, line in self._file.lines() if place not in gone)
            shutil.copymode(self.path, part)
        self._file.reopen()

    def close(self) -> None:
        """Sync."""
        self._file.close()


class ParquetParts:
    """A folder of sealed parts and one journal. A row's place: its part's number and its number therein."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._parquet = need_parquet()
        self._schema = parquet_schema()
        self._seal_what_was_left()
        self._number = max(self._sealed(), default=0) + 1
        self._journal: LineFile | None = None
        self._places: list[int] = []
        self._cache: tuple[int, list[dict[str, Any]]] = (0, [])

    def heads(self) -> Iterator[tuple[Head, int]]:
        """Only their columns are read."""
        for number in self._sealed():
            columns = self._heads_of(number)
            if len(columns) < len(HEAD_NAMES):
                raise OutputError(f"{self._part_path(number)}: is no part of captions; name another output")
            for row, head in enumerate(zip(*(columns[name] for name in HEAD_NAMES), strict=True)):
                yield head, number << _PART_BITS | row

    def append(self, row: CaptionRow) -> int:
        """A line in the journal; the part is sealed when it is full."""
        if self._journal is None:
            self._journal = LineFile(self._journal_path(self._number))
        self._places.append(self._journal.append(row.to_line()))
        place = self._number << _PART_BITS | len(self._places) - 1
        if len(self._places) >= ROWS_PER_PART:
            self._seal()
        return place

    def row_at(self, place: int) -> CaptionRow:
        """From the journal, or from a part, the last of which is remembered."""
        number, row = place >> _PART_BITS, place & (1 << _PART_BITS) - 1
        if number == self._number and self._journal is not None:
            return CaptionRow.from_line(self._journal.line_at(self._places[row]))
        if self._cache[0] != number:
            self._cache = (number, list(parquet_rows(self._part_path(number))))
        return CaptionRow.from_dict(self._cache[1][row])

    def drop(self, places: Iterable[int]) -> None:
        """Every part that holds one is written again without it."""
        self._seal()
        gone: dict[int, set[int]] = {}
        for place in places:
            gone.setdefault(place >> _PART_BITS, set()).add(place & (1 << _PART_BITS) - 1)
        self._cache = (0, [])
        for number, rows in gone.items():
            fields = enumerate(parquet_rows(self._part_path(number)))
            self._write(number, [kept for row, kept in fields if row not in rows])

    def close(self) -> None:
        """What the journal holds becomes the last part."""
        self._seal()

    def _sealed(self) -> list[int]:
        return sorted(int(path.stem[5:]) for path in self.path.glob("part-*.parquet") if _is_part(path))

    def _part_path(self, number: int) -> Path:
        return self.path / f"part-{number:06d}.parquet"

    def _journal_path(self, number: int) -> Path:
        return self.path / f"_part-{number:06d}.jsonl"

    def _seal(self) -> None:
        """Journal to part; rows that can not be sealed stay in the journal."""
        if self._journal is None:
            return
        self._journal.sync()
        self._write(self._number, [json.loads(line) for _, line in self._journal.lines()])
        journal, self._journal, self._places = self._journal, None, []
        self._number += 1
        journal.close()  # a second Ctrl-C in here finds nothing to seal
        journal.path.unlink()

    def _seal_what_was_left(self) -> None:
        """Journals of a run that was killed: one whose part is there was sealed already."""
        for path in self.path.glob("_part-*.parquet.part"):
            path.unlink()
        for path in sorted(self.path.glob("_part-*.jsonl")):
            number = int(path.stem[6:])
            if not self._part_path(number).exists():
                journal = LineFile(path)
                rows = [json.loads(line) for _, line in journal.lines()]
                journal.close()
                if rows:
                    self._write(number, rows)
            path.unlink()

    def _write(self, number: int, rows: list[dict[str, Any]]) -> None:
        target = self._part_path(number)
        table = arrow_table(rows, self._schema)
        with replacing(target, target.with_name(f"_{target.name}.part")) as part:
            self._parquet.write_table(table, part, compression="zstd")
        try:
            sync_folder(self.path)  # its journal goes next
        except OSError as error:
            raise not_writable(self.path, error) from error

    def _heads_of(self, number: int) -> Any:
        path = self._part_path(number)
        try:
            return self._parquet.ParquetFile(path).read(columns=list(HEAD_NAMES)).to_pydict()
        except (OSError, import_module("pyarrow").ArrowException) as error:
            reason = " ".join(str(error).split())[:100]
            raise OutputError(f"{path}: is no part of captions ({reason}); remove it and caption again") from error


def check_output(path: Path) -> None:
    """Raise OutputError for what no rows can be kept in, has no folder, or holds something else than captions; nothing
    is made. ConfigError without pyarrow.
    """
    if not (folder := _real(path).absolute().parent).is_dir():
        raise not_writable(path, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), folder))
    if is_parquet(path):
        need_parquet()
        if path.exists() and not path.is_dir():
            raise OutputError(f"{path}: is one file; Parquet output is a folder of parts, name another")
    elif path.is_dir():
        raise OutputError(f"{path}: is a folder; name a file in it, such as {path / 'captions.jsonl'}")
    elif path == Path("-") or (path.exists() and not path.is_file()):
        raise OutputError(f"{path}: rows go into a file, not to a pipe or a device; name one, like captions.jsonl")
    elif path.suffix.lower() in OTHER_SUFFIXES and not path.exists():
        raise OutputError(f"{path}: an output is JSON lines or Parquet; name it {path.with_suffix('.jsonl').name}")
    try:
        is_ours = not path.exists() or (_holds_parts(path) if is_parquet(path) else _holds_lines(path))
    except OSError as error:
        raise not_writable(path, error) from error
    if not is_ours:
        raise OutputError(f"{path}: is there already and holds no captions; name another output")


def _holds_parts(folder: Path) -> bool:
    """Our manifest, or nothing but what may be parts of ours; hidden files are nobody's."""
    names = (path for path in folder.iterdir() if not path.name.startswith(("_", ".")))
    return manifest_of(folder).exists() or all(map(_is_part, names))


def _holds_lines(file: Path) -> bool:
    """Whether the first line is one of ours, whatever happened to it, or there is none."""
    with open(file, "rb") as lines:
        line = lines.readline(MOST_LINE_BYTES)
    if not line or _ID_AND_KEY.match(line) or _is_begun(line):
        return True
    try:
        head_of(line)
    except ValueError:
        return False
    return True


def prepare(path: Path) -> None:
    """Make the folder of a Parquet output, if nothing is in the way. Raises as `check_output`."""
    check_output(path)
    if is_parquet(path):
        try:
            _real(path).mkdir(exist_ok=True)
        except OSError as error:
            raise not_writable(path, error) from error


def _is_part(path: Path) -> bool:
    """Whether a file is called as a part of ours is; other tools have other names for theirs."""
    return _PART.fullmatch(path.name) is not None


def open_store(path: Path) -> Store:
    """The rows at `path`, made if they are not there."""
    return ParquetParts(path) if is_parquet(path) else JsonLines(path)


def parquet_schema() -> Any:
    """The columns of a part: those of `CaptionRow`, in its order."""
    pa = import_module("pyarrow")
    text, number, whole = pa.string(), pa.float64(), pa.int64()
    frames = pa.list_(pa.struct([("time", number), ("tokens", whole)]))
    usage = pa.struct([(name, number if name == "rope_factor" else whole) for name in RowUsage.__dataclass_fields__])
    source = pa.struct([("kind", text), ("file", text), ("index", whole), ("id", text)])
    kinds = {
        "start": number, "end": number, "frames": frames, "usage": usage, "seconds": number, "attempts": whole,
        "source": source, "notes": pa.list_(text),
    }  # fmt: skip
    return pa.schema([(name, kinds.get(name, text)) for name in CaptionRow.__dataclass_fields__])
