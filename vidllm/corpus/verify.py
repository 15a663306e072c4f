"""Proof of an output: every admitted clip ended in exactly one status, and every row's frames are its video's own.

Nothing is decoded. A clip is read once more by its packets: its content must still have the row's id, and every frame
time of the row must be the time of one of its frames, inside the row's range. A row's own checksum ties its caption to
its clip.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from sys import intern

import numpy as np

from vidllm.corpus.identity import content_id
from vidllm.corpus.item import Item
from vidllm.corpus.prompts import is_summary
from vidllm.corpus.reading import BadLine, Manifest, read_manifest, written_rows
from vidllm.corpus.rows import FAILED, CaptionRow
from vidllm.corpus.webdataset import opened_path, tar_items
from vidllm.errors import InputError, VidllmError
from vidllm.video.guard import probe_guarded
from vidllm.video.info import VideoInfo
from vidllm.video.timecode import format_time

SAME_TIME = 2e-5
"""Seconds; rows keep microseconds."""
SAME_TIME_REMUXED = 2e-3
"""A duplicate's frames were seen in a copy whose container may round to milliseconds."""


@dataclass(frozen=True)
class Problem:
    """One clip or line that is not in order."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What an output holds, and what is wrong with it."""

    output: Path
    admitted: int
    """Clips times recipes; a clip that was cut counts by its parts."""
    statuses: Counter[str]
    recipes: Counter[str]
    frames_checked: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether every clip has exactly one status and every row is in order."""
        return not self.problems

    @classmethod
    def unread(cls, output: Path, error: InputError) -> VerifyReport:
        """Of an output that can not be read."""
        problem = Problem(str(output), str(error).removeprefix(f"{output}: "))
        return cls(
            output=output, admitted=0, statuses=Counter(), recipes=Counter(), frames_checked=0, problems=(problem,)
        )


def verify(path: Path, *, frames: bool = True, tell: Callable[[int], None] = lambda done: None) -> VerifyReport:
    """Check the output at `path`; with `frames` every video is opened (in a child that can be killed).

    `tell` hears how many rows are done. Raises InputError when the output or its manifest can not be read.
    """
    manifest = read_manifest(path)
    books = _Books()
    for row in written_rows(path):
        books.note(row)
        if isinstance(row, CaptionRow) and _is_misplaced(row, manifest):
            books.problems.append(Problem(name_of(row), "has the key of another clip; remove it and run again"))
    problems = [*books.problems, *_missing(manifest, books), *_twins(books)]
    checked = 0
    if frames:
        for row in written_rows(path):
            if isinstance(row, CaptionRow) and row.frames and books.stands(row):
                problems += [Problem(name_of(row), why) for why in _frame_problems(row)]
                checked += len(row.frames)
                tell(checked)
    return VerifyReport(
        output=path, admitted=len(_awaited(manifest, books)), statuses=books.statuses(), recipes=books.recipes(),
        frames_checked=checked, problems=tuple(problems),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is remembered of a standing row."""

    number: int
    id: str
    stamp: str
    status: str
    said: int
    """Hash of the caption."""
    subtitles: str
    """Of the row: the same clip with other subtitles has another caption."""
    video: str
    copy_of: str | None
    """`video` of the row that a duplicate copies."""


@dataclass
class _Books:
    """The standing row of every clip and recipe, and what was wrong on the way."""

    entries: dict[tuple[str, str], _Entry] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    number: int = 0

    def note(self, row: CaptionRow | BadLine) -> None:
        """One more row, in the order written."""
        self.number += 1
        if isinstance(row, BadLine):
            self.problems.append(Problem(f"{row.file}:{row.line}", f"is no caption row ({row.reason})"))
            return
        before = self.entries.get((row.key, row.recipe))
        if before is not None and before.status not in FAILED and (before.id, before.stamp) == (row.id, row.stamp):
            self.problems.append(Problem(name_of(row), f"has two rows, {before.status} and {row.status}"))
        self.entries[row.key, intern(row.recipe)] = _Entry(
            self.number, row.id, row.stamp, intern(row.status), hash(row.caption), row.subtitles, row.video,
            row.duplicate_of if row.status == "duplicate" else None,
        )  # fmt: skip
        self.problems += [Problem(name_of(row), why) for why in _row_problems(row)]

    def stands(self, row: CaptionRow) -> bool:
        """Whether no later row took its place."""
        entry = self.entries[row.key, row.recipe]
        return (entry.id, entry.stamp, entry.status) == (row.id, row.stamp, row.status)

    def statuses(self) -> Counter[str]:
        """Standing rows by status."""
        return Counter(entry.status for entry in self.entries.values())

    def recipes(self) -> Counter[str]:
        """Standing rows by recipe."""
        return Counter(recipe for _, recipe in self.entries)


def _row_problems(row: CaptionRow) -> Iterator[str]:
    if row.status in FAILED and not row.error:
        yield f"is {row.status} without a cause"
    if row.status not in FAILED and not row.caption.strip():
        yield f"is {row.status} and has no caption"
    if row.status not in FAILED and not row.frames and not is_summary(row.prompt):
        yield f"is {row.status} and names no frame that was seen"
    if row.status == "duplicate" and not row.duplicate_of:
        yield "is a duplicate and does not say of what"
    high = float("inf") if row.end is None else row.end
    if late := [frame.time for frame in row.frames if frame.time >= high]:
        yield f"has a frame at {format_time(late[0], decimals=3)}, outside its range"
    if row.check not in (None, row.checksum()):
        yield "was changed since it was written (clip, caption, status or frames); remove it and run again"


def _is_misplaced(row: CaptionRow, manifest: Manifest) -> bool:
    """Whether its key was admitted for another clip or range."""
    place = row.video, row.start, row.end
    return manifest.admitted.get((row.key, row.recipe), place) != place


def _awaited(manifest: Manifest, books: _Books) -> set[tuple[str, str]]:
    """Who must have a row: the admitted, without those that were cut into parts and parts of cuts made anew."""
    cut = {whole for whole, parts in manifest.cuts.items() if whole[0] not in parts}  # else it stands for itself
    waived = (cut | manifest.withdrawn) - books.entries.keys()
    return manifest.admitted.keys() - waived


def _missing(manifest: Manifest, books: _Books) -> Iterator[Problem]:
    for key in sorted(_awaited(manifest, books) - books.entries.keys()):
        video, start, end = manifest.admitted[key]
        yield Problem(
            _named(video, start, end), f"was admitted under recipe {key[1]} and has no row; run caption again"
        )
    for key in sorted(books.entries.keys() - manifest.admitted.keys()):
        yield Problem(f"row {books.entries[key].number}", "is of a clip that was never admitted")


def _twins(books: _Books) -> Iterator[Problem]:
    """Copies of a caption that say something else than the caption they copy, or that are of other content than the
    clip they name: its row tells what that is, and its frames are checked as theirs are. A clip whose row is younger
    than the copy was of the same content then, and has been replaced by another video since.
    """
    good = [(recipe, entry) for (_, recipe), entry in books.entries.items() if entry.status not in FAILED]
    copies = [(recipe, entry) for recipe, entry in good if entry.status == "duplicate"]
    contents = {entry.id for _, entry in copies}
    named = {entry.copy_of for _, entry in copies}
    said = {(e.id, e.subtitles, recipe): e.said for recipe, e in good if e.id in contents and e.status != "duplicate"}
    rows = Counter((e.video, e.id, recipe) for recipe, e in good if e.video in named)
    latest: dict[tuple[str, str], int] = {}
    for (_, recipe), entry in books.entries.items():
        if entry.video in named:
            latest[entry.video, recipe] = max(entry.number, latest.get((entry.video, recipe), 0))
    for recipe, entry in copies:
        if said.get((entry.id, entry.subtitles, recipe), entry.said) != entry.said:
            yield Problem(f"row {entry.number}", "is a duplicate with another caption than the row it copies")
        itself = entry.copy_of == entry.video
        if not entry.copy_of or latest.get((entry.copy_of, recipe), 0) > entry.number:
            continue
        if rows[entry.copy_of, entry.id, recipe] <= itself:
            yield Problem(
                entry.video, f"is a duplicate of {entry.copy_of}, which has no row of the same content; remove the row "
                "and run again",
            )  # fmt: skip


def _frame_problems(row: CaptionRow) -> Iterator[str]:
    """What speaks against the row's frames being frames of its video; nothing is decoded."""
    try:
        with opened_row(row) as path:
            info = _probed(path, os.stat(path).st_mtime_ns) if path.exists() else probe_guarded(path)
            id = content_id(path, row.start, row.end)
    except VidllmError as error:
        yield f"can not be looked at again ({error})"
        return
    if id != row.id:
        yield "is another video now than when it was captioned; caption it again"
        return
    times = np.array([frame.time for frame in row.frames])
    nearest = np.abs(info.pts_seconds[None, :] - times[:, None]).argmin(axis=1)  # (frames of the row,)
    far = np.abs(info.pts_seconds[nearest] - times) > (SAME_TIME if row.duplicate_of is None else SAME_TIME_REMUXED)
    if far.any():
        yield f"has no frame at {format_time(float(times[far][0]), decimals=3)}, which its row says was seen"
    gone = np.append(info.pts_seconds[1:], np.inf)[nearest] <= (row.start or 0.0) - SAME_TIME_REMUXED
    if gone.any():  # the frame on screen when the range begins was presented a little before
        yield f"has a frame at {format_time(float(times[gone][0]), decimals=3)}, outside its range"


@lru_cache(16)
def _probed(path: Path, mtime_ns: int) -> VideoInfo:
    """One look for all ranges of a video."""
    return probe_guarded(path)


def opened_row(row: CaptionRow) -> AbstractContextManager[Path]:
    """A local file with the row's video, as long as the block lasts. Raises InputError for a tar that has changed."""
    return opened_path(_item_of(row))


def _item_of(row: CaptionRow) -> Item:
    if row.source is None or row.source.get("kind") != "webdataset":
        return Item(video=row.video, path=row.video)
    tar = str(row.source["file"])
    mtime = os.stat(tar).st_mtime_ns if os.path.exists(tar) else 0
    if (item := _members(tar, mtime).get((row.video, int(row.source["index"])))) is None:
        raise InputError(f"{row.video}: is no longer in its tar; put it back, or caption the tar again")
    return item


@lru_cache(2)
def _members(tar: str, mtime_ns: int) -> dict[tuple[str, int], Item]:
    """By name and sample: a name may come twice."""
    return {(item.video, item.source.index): item for item in tar_items(tar) if item.source is not None}


def name_of(row: CaptionRow) -> str:
    """The clip as people are told of it: `film.mkv [0:12.00-0:24.00)`."""
    return _named(row.video, row.start, row.end)


def _named(video: str, start: float | None, end: float | None) -> str:
    if start is None and end is None:
        return video
    last = "" if end is None else format_time(end, decimals=2)
    return f"{video} [{format_time(start or 0.0, decimals=2)}-{last})"
