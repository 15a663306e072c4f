"""An output as readers see it: nothing locked, nothing mended, each clip's standing row once, while a run may go on."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern

from vidllm.corpus.formats import lines_of, parquet_rows
from vidllm.corpus.index import RowIndex
from vidllm.corpus.rows import CaptionRow
from vidllm.corpus.stores import is_parquet, manifest_of
from vidllm.errors import InputError


@dataclass(frozen=True)
class BadLine:
    """A line of an output that is no row."""

    file: str
    line: int
    reason: str


def written_rows(path: Path) -> Iterator[CaptionRow | BadLine]:
    """Every row in the order written, those that later ones stand for included; a half-written last line is not there.

    Raises InputError when there is no such output.
    """
    _check_there(path)
    if not path.is_dir():
        yield from parquet_file(path) if is_parquet(path) else _lines(path)
        return
    names = {part.stem.lstrip("_") for part in (*path.glob("part-*.parquet"), *path.glob("_part-*.jsonl"))}
    for name in sorted(names):
        sealed = path / f"{name}.parquet"  # perhaps since the folder was listed
        yield from parquet_file(sealed) if sealed.exists() else _lines(path / f"_{name}.jsonl")


def _check_there(path: Path) -> None:
    if not path.exists():
        raise InputError(f"{path}: no such output; name the OUT of a caption run")
    if path.is_dir() and not is_parquet(path):
        raise InputError(f"{path}: is a folder; name the output, such as {path / 'captions.jsonl'}")


def standing_rows(path: Path) -> Iterator[CaptionRow]:
    """The rows that stand: the last of every clip and recipe. Lines that are no rows are passed over."""
    index = RowIndex.of(
        ((row.id, row.key, row.recipe, row.stamp, row.status), number)
        for number, row in enumerate(written_rows(path)) if isinstance(row, CaptionRow)
    )  # fmt: skip
    gone = set(index.superseded())
    for number, row in enumerate(written_rows(path)):
        if number not in gone and isinstance(row, CaptionRow):
            yield row


def parquet_file(path: Path) -> Iterator[CaptionRow | BadLine]:
    """The rows of one sealed part."""
    for number, fields in enumerate(parquet_rows(path), 1):
        try:
            yield CaptionRow.from_dict(fields)
        except ValueError as error:
            yield BadLine(str(path), number, str(error))


def _lines(path: Path) -> Iterator[CaptionRow | BadLine]:
    for number, line in enumerate(lines_of(path), 1):
        try:
            yield CaptionRow.from_line(line)
        except ValueError as error:
            if line.endswith(b"\n"):
                yield BadLine(str(path), number, " ".join(str(error).split())[:200])


@dataclass
class Manifest:
    """What was admitted: (key, recipe) -> how to call it; and the last cut of every clip."""

    admitted: dict[tuple[str, str], tuple[str, float | None, float | None]] = field(default_factory=dict)
    cuts: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    """(key of the whole, recipe) -> keys of the parts that stand for it now."""
    withdrawn: set[tuple[str, str]] = field(default_factory=set)
    """Parts of cuts that were made anew."""


def read_manifest(path: Path) -> Manifest:
    """The manifest beside the output at `path`. Raises InputError when one of both is missing, or it is broken."""
    _check_there(path)
    file = manifest_of(path)
    if not file.exists():
        raise InputError(f"{path}: {file.name} is missing, so nothing tells which clips were admitted; put it back")
    manifest = Manifest()
    for number, line in enumerate(lines_of(file), 1):
        try:
            _note(manifest, json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if line.endswith(b"\n"):
                raise InputError(f"{file}: line {number} is not ours; remove it and caption again") from error
    return manifest


def _note(manifest: Manifest, fields: dict[str, object]) -> None:
    recipe = intern(str(fields["recipe"]))
    if "cut" in fields:
        whole, parts = (str(fields["cut"]), recipe), fields["parts"]
        if not isinstance(parts, list):
            raise TypeError(f"parts are {parts!r}")
        manifest.withdrawn.update((key, recipe) for key in manifest.cuts.get(whole, ()))
        manifest.withdrawn.difference_update((key, recipe) for key in parts)
        manifest.cuts[whole] = tuple(parts)
    elif "is" not in fields:  # else it tells a recipe in plain words
        start, end = (float(t) if isinstance(t, (int, float)) else None for t in (fields["start"], fields["end"]))
        if not all(math.isfinite(t or 0) for t in (start, end)):
            raise ValueError(f"from {start} to {end}")
        manifest.admitted[str(fields["key"]), recipe] = (str(fields["video"]), start, end)
