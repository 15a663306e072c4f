"""Instruction rows from scripted clips: questions by template, answers by the script, pictures from the clip itself.

    clips/7.mp4 + 7.json ──> {"id": "7/00", "video": "clips/7.mp4", "conversations": [..], "families": ["when"]}
                         ──> {"id": "7/p0/00", "image": "rows.images/7-0012.png", ..}
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidllm.errors import ConfigError, OutputError, RowError
from vidllm.linefile import check_regular, json_line
from vidllm.train.lessons import FAMILIES, choose, clip_lessons, picture_lessons
from vidllm.video.decode import read_frames
from vidllm.world.generate import generator
from vidllm.world.make import whole_file
from vidllm.world.questions import Question, pick_moments, steady
from vidllm.world.script import Script

Row = dict[str, Any]
PICTURE_QUESTIONS = 4
"""Most questions about one picture."""


@dataclass(frozen=True, kw_only=True)
class InstructOptions:
    """How much is asked of every clip."""

    per_clip: int = 8
    """Questions about the video, families in turn; 0: none."""
    images: int = 0
    """Frames written out as pictures, each asked about."""
    turns: int = 1
    """Questions in one row, as a dialogue."""
    families: tuple[str, ...] = ()
    """Only these; empty: all."""
    seed: int = 0
    """The same seed asks the same questions."""

    def __post_init__(self) -> None:
        if self.per_clip < 0 or self.images < 0 or self.turns < 1 or not (self.per_clip or self.images):
            raise ConfigError("nothing would be asked; give --per-clip or --images at least 1, and --turns at least 1")
        for family in self.families:
            if family not in FAMILIES:
                raise ConfigError(f"no questions of family {family!r}; there are {', '.join(FAMILIES)}")


@dataclass(frozen=True, kw_only=True)
class Instructed:
    """What was written."""

    clips: int
    rows: int
    families: Counter[str]
    """Questions of each family."""
    bare: tuple[Path, ...]
    """Videos without a script beside them: nothing is known of them."""


def instruct(
    folder: Path, output: Path, options: InstructOptions, *, progress: Callable[[int, int], None] = lambda done, n: None
) -> Instructed:
    """Rows about every scripted clip of `folder` into `output` (JSONL), which appears when it is whole.

    Pictures go into a folder beside it. The same clips and options give the same bytes. `progress` hears how many clips
    of how many are done.

    Raises:
        RowError: no scripted clip in the folder, or a script that is none.
    """
    videos = sorted(folder.glob("*.mp4"))
    scripted = [video for video in videos if video.with_suffix(".json").is_file()]
    if not scripted:
        raise RowError(f"{folder}: no mp4 with its script beside it; make some with `vidllm world make -o {folder}`")
    _check_output(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    families: Counter[str] = Counter()
    rows = 0
    with whole_file(Path(os.path.realpath(output))) as partial:  # a link stays one
        with partial.open("wb") as file:
            for number, video in enumerate(scripted):
                for row in rows_of(video, output, options):
                    file.write(json_line(row))
                    families.update(row["families"])
                    rows += 1
                progress(number + 1, len(scripted))
            file.flush()
            os.fsync(file.fileno())
        if not rows:
            raise RowError(f"{folder}: nothing to ask of {', '.join(options.families)}; name more --families, or give "
                           "--per-clip for questions about videos, --images for those about pictures")  # fmt: skip
    bare = tuple(video for video in videos if video not in set(scripted))
    return Instructed(clips=len(scripted), rows=rows, families=families, bare=bare)


def _check_output(output: Path) -> None:
    """Only rows that were made so before are written over: a language model's may have cost money."""
    if output.is_dir():
        raise OutputError(f"{output}: is a folder; name a file such as {output / 'rows.jsonl'}")
    check_regular(output)
    if output.is_file() and output.stat().st_size:
        with output.open(encoding="utf-8", errors="replace") as file:
            if not all('"families": ' in line for line in file):  # captions may have added rows behind ours
                raise RowError(f"{output}: is there already and holds other rows; give the new ones another name")


def rows_of(video: Path, output: Path, options: InstructOptions) -> Iterator[Row]:
    """The rows about one clip; its pictures are written beside `output`."""
    script = _script(video.with_suffix(".json"))
    rng = generator(f"instruct {options.seed}", _number(video.stem))
    asked = choose(_of(options, clip_lessons(script, rng)), options.per_clip, rng)
    yield from _rows(video.stem, "video", as_named_in(output, video), asked, options.turns)
    moments = [moment for moment in pick_moments(script, 0.0, options.images * 3, rng) if steady(script, moment)]
    for number, (moment, picture) in enumerate(_pictures(video, output, moments[: options.images])):
        lessons = choose(_of(options, picture_lessons(script, moment, rng)), PICTURE_QUESTIONS, rng)
        path = as_named_in(output, picture)
        yield from _rows(f"{video.stem}/p{number}", "image", path, lessons, options.turns)


def as_named_in(output: Path, path: Path) -> str:
    """A file as the rows in `output` name it: by the way from there, also where `output`'s folder is a link, whose ..
    is another one."""
    near = os.path.relpath(path, output.parent)
    if (output.parent / near).resolve() != path.resolve():
        near = os.path.relpath(path, output.parent.resolve())
    return Path(near).as_posix()


def _of(options: InstructOptions, questions: Sequence[Question]) -> list[Question]:
    return [question for question in questions if not options.families or question.family in options.families]


def _rows(name: str, kind: str, path: str, asked: Sequence[Question], turns: int) -> Iterator[Row]:
    for number, start in enumerate(range(0, len(asked), turns)):
        said: list[dict[str, str]] = []
        for question in asked[start : start + turns]:
            shown = "" if said else f"<{kind}>\n"
            said += [{"from": "human", "value": shown + question.text}, {"from": "gpt", "value": question.answer}]
        families = [question.family for question in asked[start : start + turns]]
        yield {"id": f"{name}/{number:02d}", kind: path, "conversations": said, "families": families}


def _pictures(video: Path, output: Path, moments: Sequence[float]) -> Iterator[tuple[float, Path]]:
    """Frames on screen at these moments as PNG files; those that are there already are kept."""
    from PIL import Image

    folder = output.with_suffix(".images")
    mark = hashlib.blake2b(video.with_suffix(".json").read_bytes(), digest_size=4).hexdigest()  # stems may be equal
    paths = [folder / f"{video.stem}-{mark}-{moment:04.0f}.png" for moment in moments]
    missing = [moment for moment, path in zip(moments, paths, strict=True) if not path.is_file()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        frames = dict(zip(missing, read_frames(video, missing).pixels, strict=True))
        for moment, path in zip(moments, paths, strict=True):
            if moment in frames:
                with whole_file(path) as partial:
                    Image.fromarray(np.ascontiguousarray(frames[moment])).save(partial, "PNG")
    return zip(moments, paths, strict=True)


def _script(path: Path) -> Script:
    try:
        return Script.load(path)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise RowError(f"{path}: no script of a clip ({error}); make the clip again, or take it out") from error


def _number(stem: str) -> int:
    """A clip's own number, or one made of its name."""
    return int(stem) if stem.isdecimal() else int.from_bytes(os.fsencode(stem)[-7:], "big")
