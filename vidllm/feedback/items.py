"""What the model is asked: questions about clips, from training rows, plain questions, or a folder of clips.

    rows.jsonl          conversations as `vidllm sft` reads them: every user turn is a question, the answer its truth
                        {"id", "video", "question", "answer"?, "caption"?}: a question; so is "prompt" for "question"
    clips/              every clip of the folder: with a file of questions (one a line) each of them, else the questions
                        that stand in NAME.json beside a world clip

Bad rows are told of with file and line, all of them, before anything is asked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vidllm.corpus.listing import files_below
from vidllm.corpus.webdataset import VIDEO_SUFFIXES
from vidllm.errors import ConfigError, RowError
from vidllm.feedback.judge import Case
from vidllm.train.files import shown_files, stamp
from vidllm.train.places import PLACEHOLDER, Folder, check_absent, place_media
from vidllm.train.row import Bad, Conversation, Media, Origin, Problem, Turn
from vidllm.train.rows import Json, check_order, one_of, read_each, turns_of, whole
from vidllm.video.timecode import format_time

if TYPE_CHECKING:
    from vidllm.corpus.rows import CaptionRow


@dataclass(frozen=True, kw_only=True)
class Asked(Conversation):
    """One question: `turns` end with it. Two with equal `key` are the same question about the same files."""

    id: str
    truth: str | None = None
    """The answer that the data set gives."""
    evidence: str | None = None
    """A detailed caption of the clip."""

    @property
    def question(self) -> str:
        """The words of the last turn."""
        return self.turns[-1].text

    @property
    def before(self) -> str:
        """What was said before the question, a line a turn."""
        return "\n".join(f"{turn.role.capitalize()}: {turn.text}" for turn in self.turns[:-1])

    @property
    def key(self) -> str:
        """32 hex digits over everything that is said and the paths of what is shown."""
        return self._digest(lambda path: path)

    @property
    def draw(self) -> str:
        """As `key`, of the files' names alone: what seeds its draws, so that another folder gives the same answers."""
        return self._digest(lambda path: Path(path).name)

    def _digest(self, name: Callable[[str], str]) -> str:
        said = [[turn.role, turn.text, [[m.kind, name(m.path)] for m in turn.media], *turn.at] for turn in self.turns]
        return hashlib.blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()

    def stamp(self) -> str:
        """16 hex digits over size and time of change of the files shown: a changed clip is asked about again, and one
        whose subtitles have changed.
        """
        seen = [stamp(path) for medium in self.media for path in shown_files(medium, subtitles=True)]
        return hashlib.blake2b(repr(seen).encode(), digest_size=8).hexdigest()

    def case(self, answer: str) -> Case:
        """What a judge is given of one answer."""
        videos = [medium.path for medium in self.media if medium.kind == "video"]
        video = Path(videos[0]) if len(videos) == 1 == len(self.media) else None
        return Case(
            question=self.question, answer=answer, video=video, truth=self.truth, evidence=self.evidence,
            before=self.before,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Questions:
    """All there is to ask: each question once, those about the same files next to each other."""

    asked: tuple[Asked, ...]
    problems: tuple[Problem, ...] = ()
    repeated: int = 0
    """Questions that stood there already."""


def read_questions(
    source: Path, *, questions: Path | None = None, media: Path | None = None, captions: Path | None = None,
    dialogue: bool = True, limit: int | None = None,
) -> Questions:  # fmt: skip
    """Everything `source` asks. `captions` is an output of `vidllm caption`, whose captions are evidence.

    `dialogue` False asks every turn alone, right behind its media: for models that were never taught to go on.

    Raises:
        RowError: no such file, no question in it; ConfigError: options that contradict each other.
    """
    if source.is_dir():
        if media is not None:
            raise ConfigError(f"{source} is a folder of clips; --media goes with a file of rows")
        found, problems = _of_folder(source, questions)
    elif questions is not None:
        raise ConfigError(f"{source} is a file; --questions goes with a folder of clips")
    else:
        read = read_each(source, media, lambda row, origin, folder: _of_row(row, origin, folder, dialogue))
        found, problems = [one for several in read.rows for one in several], list(read.problems)
    if captions is not None:
        found = _with_captions(found, captions)
    if not found and not problems:
        raise RowError(f"{source}: asks nothing; give rows of questions, or a folder of clips and --questions")
    once = {one.key: one for one in reversed(found)}
    ordered = _by_media([one for one in found if once.pop(one.key, None) is not None])
    return Questions(
        asked=tuple(ordered[:limit]), problems=tuple(problems), repeated=len(found) - len(ordered)
    )  # fmt: skip


def _by_media(found: Sequence[Asked]) -> list[Asked]:
    """Those that show the same files together, in the order the files come first: a clip is then read once."""
    first: dict[tuple[Media, ...], int] = {}
    for one in found:
        first.setdefault(one.media, len(first))
    return sorted(found, key=lambda one: first[one.media])


# ---------------------------------------------------------------------------------------------------- files of rows


def _of_row(row: Json, origin: Origin, folder: Folder, dialogue: bool) -> tuple[Asked, ...]:
    """The questions of one row. Raises Bad."""
    key = one_of(row, ("question", "conversations", "messages", "prompt"))
    said = [{"role": "user", "content": row[key]}] if isinstance(row[key], str) else row[key]
    turns = place_media(row, turns_of({key: said}, key), folder)
    check_order(turns, row)
    if not all(turn.text for turn in turns if turn.role == "user"):
        raise Bad("a question has no words", "write what is asked, or leave the row out")
    evidence, answer = _text(row, "caption"), _text(row, "answer")
    found = []
    for number, turn in enumerate(turns):
        if turn.role == "user":
            after = turns[number + 1].text if number + 1 < len(turns) else answer
            found.append((turns[: number + 1] if dialogue else _alone(turns[: number + 1]), after))
    name = origin.id or str(origin.line)
    return tuple(
        Asked(origin=origin, id=name if len(found) == 1 else f"{name}/{n}", turns=asked, truth=after, evidence=evidence)
        for n, (asked, after) in enumerate(found, 1)
    )


def _alone(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The last turn without the talk before it, showing all that was shown so far."""
    shown = tuple(medium for turn in turns for medium in turn.media)
    system = tuple(turn for turn in turns if turn.role == "system")
    return (*system, Turn(role="user", text=turns[-1].text, media=shown, at=turns[-1].at))


def _text(row: Json, key: str) -> str | None:
    value = row.get(key)
    if value is None:
        check_absent(row, (key,), f"it has no {key!r}")
        return None
    if not isinstance(value, str) or not value.strip():
        raise Bad(f"{key!r} has no words", "write a text, or leave the key out")
    return whole(value, repr(key)).strip()


# ------------------------------------------------------------------------------------------------ folders of clips


def _of_folder(folder: Path, questions: Path | None) -> tuple[list[Asked], list[Problem]]:
    clips = _clips(folder)
    if not clips:
        raise RowError(f"{folder}: not one clip in it; give a folder of videos, or a JSONL of questions")
    words = None if questions is None else _lines(questions)
    found: list[Asked] = []
    problems: list[Problem] = []
    for clip in clips:
        name = clip.relative_to(folder).with_suffix("").as_posix()  # two folders may hold clips of one name
        try:
            if not clip.is_file():
                raise Bad("no such file: the link leads nowhere", "put it there, or take the link out")
            if words is not None:
                found += [_of_clip(clip, f"{name}/{n}", n, text, None) for n, text in enumerate(words, 1)]
                continue
            listed = _beside(clip)
            told = next((answer for family, _, answer in listed if family == "describe"), None)
            found += [_of_clip(clip, f"{name}/{n}", n, text, answer, told)
                      for n, (_, text, answer) in enumerate(listed, 1)]  # fmt: skip
        except Bad as bad:
            problems.append(Problem(origin=Origin(file=str(clip), line=0, id=""), what=bad.what, do=bad.do))
    return found, problems


def _clips(folder: Path) -> list[Path]:
    """Every clip below a folder, as `vidllm caption` finds them: hidden names are left out."""

    def trouble(error: OSError) -> None:
        what = f"can not be entered ({error.strerror})"
        raise RowError(f"{error.filename}: {what}; name a folder whose folders may be read") from error

    names = (Path(place) / name for place, name in files_below(str(folder), trouble))
    return sorted(path for path in names if path.suffix.lower() in VIDEO_SUFFIXES)


def _lines(path: Path) -> list[str]:
    """The questions of a file, a line each; placeholders are taken out as they are of rows: every clip is shown."""
    try:
        words = [PLACEHOLDER.sub("", line).strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise RowError(f"{path}: questions can not be read ({error}); give a text file, one question a line") from error
    asked = [line for line in words if line]
    if not asked:
        raise RowError(f"{path}: no question in it; write one a line")
    return asked


def _of_clip(clip: Path, id: str, number: int, text: str, answer: str | None, evidence: str | None = None) -> Asked:
    turn = Turn(role="user", text=text, media=(Media(kind="video", path=str(clip)),))
    origin = Origin(file=str(clip), line=number, id="")
    return Asked(origin=origin, id=id, turns=(turn,), truth=answer, evidence=evidence)


def _beside(clip: Path) -> list[tuple[str, str, str]]:
    """(family, question, true answer) of the JSON beside a world clip. Raises Bad."""
    path = clip.with_suffix(".json")
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["questions"]
        return [(str(asked["family"]), str(asked["text"]), str(asked["answer"])) for asked in listed]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise Bad(f"no questions in {path.name} beside it", "give a file of them with --questions") from error


# ------------------------------------------------------------------------------------------------------- evidence


TELLING = ("ok", "duplicate")
"""The statuses of rows that tell of their clip; a copy has its original's caption."""


def _with_captions(found: Sequence[Asked], captions: Path) -> list[Asked]:
    """The questions with the captions of their clips as evidence; what a row brings stays where there is none.

    Raises RowError when the captions tell of none of the clips: nobody names them to no end.
    """
    told = _read_evidence(captions)
    evidence = [_evidence(one.media, told) for one in found]
    if found and not any(evidence):
        raise RowError(f"{captions}: no good caption in it is of one of these clips; run this where the captions were "
                       "made, or caption the clips that are asked about")  # fmt: skip
    return [replace(one, evidence=text or one.evidence) for one, text in zip(found, evidence, strict=True)]


def _evidence(media: Sequence[Media], told: Mapping[Path, str]) -> str | None:
    texts = [told[path] for path in (Path(medium.path).resolve() for medium in media) if path in told]
    return "\n".join(texts) or None


def _read_evidence(captions: Path) -> dict[Path, str]:
    """Resolved path of a clip -> what the run says of it: its last caption, or those of its parts (--split, --from),
    each with its time, in their order: a part is not the clip. Raises InputError when there is no such output."""
    from vidllm.corpus.reading import standing_rows

    rows: dict[Path, list[CaptionRow]] = {}
    for row in standing_rows(captions):
        if row.status in TELLING:
            rows.setdefault(_clip_of(row, captions), []).append(row)
    return {clip: _told(several) for clip, several in rows.items()}


def _clip_of(row: CaptionRow, captions: Path) -> Path:
    """Where its clip lies: the run may have been in this folder, or beside its output."""
    places = (Path(row.video), captions.parent / row.video)
    return next((place for place in places if os.path.isfile(place)), places[0]).resolve()


def _told(rows: Sequence[CaptionRow]) -> str:
    whole = [row for row in rows if row.start is None and row.end is None]
    if whole:
        return whole[-1].caption
    cut = [row for row in rows if row.recipe == rows[-1].recipe]
    return "\n".join(f"{_span(row)}: {row.caption}" for row in sorted(cut, key=lambda row: row.start or 0.0))


def _span(row: CaptionRow) -> str:
    """ "From 0:05 to 0:10", or "From 0:05 on"."""
    start = f"From {format_time(row.start or 0.0)}"
    return f"{start} on" if row.end is None else f"{start} to {format_time(row.end)}"
