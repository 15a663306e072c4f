"""All rows looked at before the first step: every file opened once, every row counted in tokens, every fault told.

A run of days must not end on row 40,000 because its clip was never copied whole. What was found is kept beside the
run's output, so that a resume starts at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from statistics import median
from typing import Generic, cast

from vidllm.clip import PlanOptions
from vidllm.errors import NotAVideo, RowError, VidllmError
from vidllm.linefile import LineFile, not_writable
from vidllm.model.chat import AnyTokenizer
from vidllm.model.spec import ModelSpec
from vidllm.train.files import shown_files, stamp
from vidllm.train.loading import open_picture
from vidllm.train.looks import Size, count_row
from vidllm.train.row import AnyRow, Conversation, Kind, Media, Problem, advice
from vidllm.video.guard import DEFAULT_LIMITS, Limits, probe_guarded, read_frames_guarded
from vidllm.video.info import VideoInfo

Progress = Callable[[int, int], None]
"""Hears (rows looked at, rows in all)."""
INFOS = 64
"""Packet indices kept at a time: some 50 kB for a minute of video, and a file's rows are looked at together."""
THERE = 0.9
"""A file that holds less than this share of the frames its header promises was not copied whole."""
TINY = 64
"""Longest side, in pixels, of the frames decoded to see whether a clip can be."""
SHORTEN = "shorten the row, plan fewer frames, or leave it out"


@dataclass(frozen=True, kw_only=True)
class Checked(Generic[AnyRow]):
    """The rows that can be learnt from, and why the others can not. `lengths` and `kinds` go with `rows`."""

    rows: tuple[AnyRow, ...]
    lengths: tuple[int, ...]
    """Tokens of each, visual ones included; of a pair, with its longer answer."""
    kinds: tuple[Kind, ...]
    problems: tuple[Problem, ...]

    def refuse_problems(self) -> None:
        """Raise RowError, one line, when there is any problem."""
        if self.problems:
            more = f" and {len(self.problems) - 1} more" if len(self.problems) > 1 else ""
            raise RowError(f"{self.problems[0]}{more}: mend the rows, or leave them out with bad_rows=skip")

    def lines(self) -> list[str]:
        """A table for people: how many rows of each kind, and how long."""
        told: list[str] = [f"{'rows':<8}{'number':>9}{'shortest':>10}{'median':>8}{'longest':>9}{'tokens':>14}"]
        for kind in ("video", "image", "text"):
            sizes = [length for length, other in zip(self.lengths, self.kinds, strict=True) if other == kind]
            if sizes:
                told.append(
                    f"{kind:<8}{len(sizes):>9,}{min(sizes):>10,}{median(sizes):>8,.0f}{max(sizes):>9,}{sum(sizes):>14,}"
                )
        return [*told, *([f"{'bad':<8}{len(self.problems):>9,}"] if self.problems else [])]


def check(
    rows: Sequence[AnyRow], spec: ModelSpec, tokenizer: AnyTokenizer, plan: PlanOptions, *,
    window: int | None = None, problems: Sequence[Problem] = (), cache: Path | None = None,
    threads: int = 2, progress: Progress = lambda done, total: None,
) -> Checked[AnyRow]:  # fmt: skip
    """Look at every row: its files open (in a guarded child, where a frame in the middle and the last one are decoded),
    and it fits the model's context as it will be loaded, and the `window` (`model.reader.branch_limit`).

    `problems` found while reading are handed on before those found here. `cache` is a file, made if it is not there.
    Nothing is raised for a bad row; OutputError when the cache can not be written.
    """
    memory = _Lengths(cache, spec, plan)
    checker = _Checker(spec, tokenizer, replace(plan, guard=plan.guard or DEFAULT_LIMITS))
    found: list[int | Problem] = [0] * len(rows)
    groups = _by_media(rows)
    done = 0

    def look(numbers: Sequence[int]) -> list[tuple[int, int | Problem]]:
        found = [(number, memory.recall(rows[number]) or checker.look(rows[number])) for number in numbers]
        return [(number, _within(window, rows[number], result)) for number, result in found]

    with ThreadPoolExecutor(max(threads, 1), thread_name_prefix="check") as pool:
        for results in pool.map(look, groups):
            for number, result in results:
                found[number] = result
                if isinstance(result, int):
                    memory.keep(rows[number], result)
            done += len(results)
            progress(done, len(rows))
    memory.close()
    return _checked(rows, found, problems)


def kind_of(row: Conversation) -> Kind:
    """video where a row shows one, else image where it shows a picture, else text."""
    kinds = {medium.kind for medium in row.media}
    return "video" if "video" in kinds else "image" if kinds else "text"


def _within(window: int | None, row: Conversation, found: int | Problem) -> int | Problem:
    """The row's length, if it is within what rows of this model may have."""
    if window is None or isinstance(found, Problem) or found <= window:
        return found
    what = f"{found} tokens, and {window} is the most that this model can be taught"
    return Problem(origin=row.origin, what=what, do=SHORTEN)


def _checked(
    rows: Sequence[AnyRow], found: Sequence[int | Problem], problems: Sequence[Problem]
) -> Checked[AnyRow]:
    good = tuple(row for row, length in zip(rows, found, strict=True) if isinstance(length, int))
    return Checked(
        rows=good, lengths=tuple(length for length in found if isinstance(length, int)),
        kinds=tuple(kind_of(row) for row in good),
        problems=(*problems, *(problem for problem in found if isinstance(problem, Problem))),
    )  # fmt: skip


def _by_media(rows: Sequence[Conversation]) -> list[list[int]]:
    """Row numbers, those of the same files together."""
    groups: dict[tuple[Media, ...], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.media, []).append(number)
    return list(groups.values())


class _Checker:
    """Looks at rows, each file once; used by several threads."""

    def __init__(self, spec: ModelSpec, tokenizer: AnyTokenizer, plan: PlanOptions) -> None:
        self._spec, self._tokenizer, self._plan = spec, tokenizer, plan
        self._limits = cast(Limits, plan.guard)
        self._info = lru_cache(INFOS)(partial(probe_guarded, limits=self._limits))
        self._size = lru_cache(None)(_size)
        self._fault = lru_cache(None)(self._look_at)

    def look(self, row: Conversation) -> int | Problem:
        """The row's length in tokens, or why it can not be learnt from."""
        for medium in row.media:
            if fault := self._fault(medium):
                return Problem(origin=row.origin, what=fault, do="or leave the row out")
        try:
            videos = [self._info(m.path) for m in row.media if m.kind == "video"]
            stills = [self._size(m.path) for m in row.media if m.kind == "image"]
            return count_row(row.turns, videos, stills, self._spec, self._tokenizer, self._plan, answers=row.answers)
        except VidllmError as error:
            return Problem(origin=row.origin, what=advice(error), do=SHORTEN)

    def _look_at(self, medium: Media) -> str:
        """What is wrong with a file, "" when nothing is."""
        try:
            if medium.kind == "image":
                self._size(medium.path)
            else:
                self._try_video(self._info(medium.path))
        except VidllmError as error:
            return advice(error)
        return ""

    def _try_video(self, info: VideoInfo) -> None:
        promised = info.num_frames_from_header
        if promised and info.num_packets < THERE * promised:
            there = f"{info.num_packets} of its {promised} frames are there"
            raise NotAVideo(f"{info.path}: cut off, {there}; copy it again")
        times = [info.duration / 2, float(info.pts_seconds[-1])]
        seen = read_frames_guarded(info, times, self._limits, max_side=TINY, reader=self._plan.reader)
        if seen.notes:
            raise NotAVideo(f"{info.path}: {seen.notes[0]}; copy or convert it again")


def _size(path: str) -> Size:
    return open_picture(path).pixels.shape[:2]


class _Lengths:
    """Rows that were found good before, in a file of lines {"key", "tokens", "check"}; `path` None remembers nothing.

    A row's key covers its words, the sizes and times of its files (subtitles that lie beside a clip are one), the plan
    and the model's prompt; a fault is not kept.
    """

    def __init__(self, path: Path | None, spec: ModelSpec, plan: PlanOptions) -> None:
        self._known: dict[str, int] = {}
        shape = repr((replace(spec, folder=Path()), replace(plan, guard=None)))
        self._salt = _digest(_folder_digest(spec.folder), shape)
        self._stamps: dict[Media, str] = {}
        self._subtitles = plan.subtitles
        self._file = None
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise not_writable(path.parent, error) from error
            self._file = LineFile(path)
            self._known = dict(filter(None, (_entry(line) for _, line in self._file.lines())))

    def recall(self, row: Conversation) -> int:
        """The row's length, 0 when it is not known."""
        return self._known.get(self._key(row), 0) if self._known else 0

    def keep(self, row: Conversation, tokens: int) -> None:
        """Remember a row's length. OutputError when the disk takes no more."""
        if self._file is not None and (key := self._key(row)) not in self._known:
            self._known[key] = tokens
            told = {"key": key, "tokens": tokens, "check": _digest(key, str(tokens))}
            self._file.append(json.dumps(told).encode() + b"\n")

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def _key(self, row: Conversation) -> str:
        """Names the row by all that its length depends on."""
        told = [[turn.role, turn.text, [medium.kind for medium in turn.media], *turn.at] for turn in row.turns]
        words = json.dumps([told, row.answers])
        return _digest(self._salt, words, *map(self._stamp, row.media))

    def _stamp(self, medium: Media) -> str:
        if medium not in self._stamps:
            seen = (f"{path}|{_told(path)}" for path in shown_files(medium, subtitles=self._subtitles))
            self._stamps[medium] = "|".join(seen)
        return self._stamps[medium]


def _told(path: str) -> str:
    try:
        return "|".join(map(str, stamp(path)))
    except OSError:
        return "absent"


def _entry(line: bytes) -> tuple[str, int] | None:
    """A row's key and length; None for a line that is not as it was written: its row is looked at again."""
    try:
        entry = json.loads(line)
        key, tokens = entry["key"], entry["tokens"]
        return (key, tokens) if entry.get("check") == _digest(key, str(tokens)) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _digest(*parts: str) -> str:
    return blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def _folder_digest(folder: Path) -> str:
    """Of all that shapes a prompt in a model's folder: tokenizer, template, settings; not of its weights."""
    digest = blake2b(digest_size=12)
    for path in sorted(folder.glob("*")):
        if path.suffix in (".json", ".jinja"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
