"""A mixture: several files of rows, how many of each, how often. What is drawn of a file depends on the seed and its
name, not on where it stands among the others or on the disk.

    sources:
      - {path: images.json, media: /data/coco, sampling: "random:20%"}
      - {path: videos.jsonl, weight: 2}
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, TypeVar

from vidllm.config import load_config
from vidllm.errors import ConfigError
from vidllm.train.order import shuffled
from vidllm.train.row import AnyRow, Problem, ReadRows

T = TypeVar("T")
Read: TypeAlias = Callable[[Path, Path | None], ReadRows[AnyRow]]
"""A file of rows, and the folder of their media: `rows.read_rows` or `rows.read_pairs`."""
SAMPLING = re.compile(r"all|(first|random):(\d+(?:\.\d+)?)(%?)")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file of rows."""

    path: Path
    media: Path | None = None
    """Folder that paths of media are relative to; None: the file's own."""
    sampling: str = "all"
    """all, first:N, first:P%, random:N or random:P% of its rows."""
    weight: float = 1.0
    """How often an epoch sees each row of the sample: 2 twice, 0.5 half of them."""

    def __post_init__(self) -> None:
        share = _share(self.sampling)
        if share is None:
            raise ValueError(f"sampling {self.sampling!r} is none of all, first:N, first:P%, random:N, random:P%")
        if not self.weight > 0:
            raise ValueError(f"weight is {self.weight}; leave the source out, or give it more than 0")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Sources in the order they are read."""

    sources: tuple[Source, ...]


def load_mixture(path: Path) -> Mixture:
    """A YAML file with `sources`; paths in it are relative to its folder. ConfigError for what is no mixture."""
    mixture = load_config(Mixture, path)
    if not mixture.sources:
        raise ConfigError(f"{path}: sources is empty; name at least one file of rows")
    return Mixture(sources=tuple(_below(source, path.parent) for source in mixture.sources))


def mixture_of(path: Path) -> Mixture:
    """What a user means by one path: a YAML mixture, or a single file of rows."""
    if path.suffix in (".yaml", ".yml"):
        return load_mixture(path)
    return Mixture(sources=(Source(path=path),))


def draw(rows: Sequence[T], source: Source, seed: int, taken: Container[int] = frozenset()) -> tuple[T, ...]:
    """The rows of a source that an epoch sees, in the file's order; a row of weight 2 stands twice. `taken` are the
    places of rows that sources before it took of the same file: by chance others are drawn, as long as there are some.
    """
    numbers = (seed, zlib.crc32(source.path.name.encode("utf-8", "surrogateescape")), 0)
    kept = _sample(range(len(rows)), source.sampling, taken, *numbers)
    whole, part = divmod(source.weight, 1)
    extra = _sample(kept, f"random:{part * 100:.6f}%", taken, *numbers, 1) if part else []
    times = {**dict.fromkeys(kept, int(whole))}
    for number in extra:
        times[number] += 1
    return tuple(rows[number] for number in kept for _ in range(times[number]))


def read_mixture(mixture: Mixture, seed: int, read: Read[AnyRow]) -> ReadRows[AnyRow]:
    """The rows of all sources, drawn and repeated, and the problems of those drawn.

    Raises:
        RowError: as `read`.
        ConfigError: a source of which no row is drawn.
    """
    rows: list[AnyRow] = []
    problems: dict[Problem, None] = {}  # once each, also of a source that is drawn twice
    taken: dict[Path, set[int]] = {}
    for source in mixture.sources:
        found = read(source.path, source.media)
        entries: list[AnyRow | Problem] = [*found.rows, *found.problems]
        entries.sort(key=lambda entry: entry.origin.line)
        before = taken.setdefault(source.path.resolve(), set())  # one file may be named in two ways
        drawn = draw(range(len(entries)), source, seed, before)
        if not drawn:
            raise ConfigError(
                f"{source.path}: sampling {source.sampling} and weight {source.weight:g} take none of its "
                f"{len(entries)} rows; take more of them, or leave the source out"
            )
        before.update(drawn)
        for entry in (entries[number] for number in drawn):
            if isinstance(entry, Problem):
                problems[entry] = None
            else:
                rows.append(entry)
    return ReadRows(rows=tuple(rows), problems=tuple(problems))


def _share(sampling: str) -> tuple[str, float, bool] | None:
    """(which, how many, whether that is a percentage); None for what is no sampling."""
    match = SAMPLING.fullmatch(sampling)
    if match is None:
        return None
    which, number, percent = match[1] or "first", float(match[2] or 100), bool(match[3]) or not match[1]
    possible = number <= 100 if percent else number.is_integer()  # 0.2 for 20% would be no row
    return (which, number, percent) if possible else None


def _sample(rows: Sequence[int], sampling: str, taken: Container[int], *numbers: int) -> list[int]:
    """The rows that a sampling keeps, in their order; by chance those that are taken come last."""
    share = _share(sampling)
    assert share is not None
    which, number, percent = share
    count = min(len(rows), round(len(rows) * number / 100) if percent else int(number))
    if which == "first":
        return list(rows[:count])
    return sorted(sorted(shuffled(rows, *numbers), key=lambda row: row in taken)[:count])


def _below(source: Source, folder: Path) -> Source:
    return replace(source, path=folder / source.path, media=None if source.media is None else folder / source.media)
