"""Files as whisper writes them, one set for every video, in a folder that mirrors the one that was given.

    clips/a/b.mp4  ->  captions/a/b.srt  captions/a/b.vtt  captions/a/b.txt  captions/a/b.tsv  captions/a/b.json

A video's ranges are the lines; a video without ranges is one line from 0:00 to its last seen frame.
"""

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal, get_args

from vidllm.corpus.rows import FAILED, CaptionRow
from vidllm.corpus.sidefolder import SideFolder
from vidllm.corpus.webdataset import TAR_SUFFIXES
from vidllm.errors import ConfigError

Format = Literal["srt", "vtt", "txt", "tsv", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)
Named = tuple[str, str | None]
"""A video as rows name it, and the folder that was given, if one was."""
LEAST_SECONDS = 1.0
"""A line that would be shown for less is shown so long."""


@dataclass(frozen=True)
class Line:
    """One caption and when it holds, seconds on the source's clock."""

    start: float
    end: float
    text: str


def parse_formats(words: str) -> tuple[Format, ...]:
    """The formats of "srt,vtt"; "all" is all of them. Raises ConfigError."""
    named = FORMATS if words == "all" else tuple(word.strip() for word in words.split(","))
    for name in named:
        if name not in FORMATS:
            raise ConfigError(f"{name!r} is no format; use {', '.join(FORMATS)} or all")
    return tuple(name for name in FORMATS if name in named)


@dataclass(frozen=True)
class SideFiles:
    """The good captions of videos: every row is told, then all are written."""

    _videos: dict[Named, list[Line]] = field(default_factory=dict)

    def add(self, row: CaptionRow) -> None:
        """One more row, good or not."""
        if row.status not in FAILED:
            self._videos.setdefault((row.video, row.root), []).append(_line(row))

    def write(self, formats: Sequence[Format], folder: SideFolder, others: Collection[Named] = ()) -> list[Path]:
        """Write them into `folder`; returns the files.

        A video named outside of any folder that was given lies at the top. Videos that would share a name lie in
        folders of their own: `cat/1.srt` and `dog/1.srt`; or keep their endings: `a.mp4.srt` and `a.mkv.srt`. So does
        one that shares its name with `others`, which other shards caption, or with a file that another run made of
        another video. Each file is whole or not there, and a file that vidllm did not write is never replaced.
        `folder.unnamed` are those whose names are too long. Raises OutputError.
        """
        files: dict[PurePath, tuple[str, set[Line]]] = {}
        names = _names([*self._videos, *others])
        for named, lines in self._videos.items():
            owner = _real(named[0])
            free = (name for name in names[named] if not _is_anothers(folder, name, formats, owner))
            name = next(free, names[named][-1])
            files.setdefault(name, (owner, set()))[1].update(lines)  # one file may have been named in two ways
        written = []
        for name, (owner, told) in files.items():
            ordered = sorted(told, key=lambda line: (line.start, line.end, line.text))
            for format in formats:
                file = folder.write(_file(name, format), _WRITERS[format](ordered), owner)
                written += [file] if file is not None else []
        return written


def _file(name: PurePath, format: Format) -> PurePath:
    return name.with_name(f"{name.name}.{format}")


def _is_anothers(folder: SideFolder, name: PurePath, formats: Sequence[Format], owner: str) -> bool:
    """Whether a file of that name was made of another video, which is still there: moved ones keep their names."""
    owners = {folder.owner(_file(name, format)) or owner for format in formats} - {owner}
    return any(os.path.exists(_parted(other)[0]) for other in owners)


def _real(video: str) -> str:
    """The one name of a video, from wherever and however it was named."""
    path, member = _parted(video)
    return os.path.realpath(path) + member


def _line(row: CaptionRow) -> Line:
    start = row.start or 0.0
    last = row.end if row.end is not None else max((frame.time for frame in row.frames), default=start)
    return Line(start, max(last, start + LEAST_SECONDS), " ".join(row.caption.split()))


def _names(videos: Iterable[Named]) -> dict[Named, tuple[PurePath, ...]]:
    """Where each video's files may lie, without ending, the best name first; one that several share gets the video's
    own ending too, and so does `a.mp4.mkv` beside an `a.mp4`, which may have to keep its own. The last is its alone.
    """
    places = _told_apart({(video, root): _place(video, root) for video, root in videos})
    shared: dict[PurePath, set[PurePath]] = {}
    for place in places.values():
        shared.setdefault(place.with_suffix(""), set()).add(place)
        shared.setdefault(place, set()).add(place)
    return {
        name: (
            *([place.with_suffix("")] if len(shared[place.with_suffix("")]) == 1 else []),
            place,
            _place(name[0], os.path.abspath(os.sep)),
        )
        for name, place in places.items()
    }


def _told_apart(places: dict[Named, PurePath]) -> dict[Named, PurePath]:
    """Videos of the same name in different folders get as much of their paths as differs; if need be, all of it."""
    for whole in (False, True):
        groups: dict[PurePath, list[Named]] = {}
        for name, place in places.items():
            groups.setdefault(place, []).append(name)
        for group in groups.values():
            folders = {os.path.dirname(os.path.abspath(_below_tar(video))) for video, _ in group}
            if len(folders) > 1:
                common = os.path.abspath(os.sep) if whole else os.path.commonpath(folders)
                places.update({(video, root): _place(video, common) for video, root in group})
    return places


def _place(video: str, root: str | None) -> PurePath:
    """The video below the folder that was given, else its name alone; never above it, whatever the name says."""
    if root is None:
        root = os.path.dirname(_parted(video)[0])
    path = os.path.relpath(_below_tar(video), root or os.curdir)
    return PurePath(*(part for part in PurePath(path).parts if part not in ("..", os.sep)))


def _parted(video: str) -> tuple[str, str]:
    """The file that holds the video, and where in it: `!member.mp4` of a tar."""
    tar = _TAR.search(video)
    end = tar.end() - 1 if tar else len(video)
    return video[:end], video[end:]


def _below_tar(video: str) -> str:
    """A tar is a folder of its members."""
    return _TAR.sub(rf"\1{re.escape(os.sep)}", video, count=1)


_TAR = re.compile(f"({'|'.join(map(re.escape, TAR_SUFFIXES))})!", re.IGNORECASE)


def _clock(seconds: float, comma: str) -> str:
    millis = round(seconds * 1000)
    return f"{millis // 3600000:02d}:{millis // 60000 % 60:02d}:{millis // 1000 % 60:02d}{comma}{millis % 1000:03d}"


def _span(line: Line, comma: str) -> str:
    return f"{_clock(line.start, comma)} --> {_clock(line.end, comma)}"


def _safe(text: str) -> str:
    """Text that ends no cue early."""
    return re.sub("--+>", "->", text) or "-"


def _srt(lines: Sequence[Line]) -> str:
    return "\n".join(f"{n}\n{_span(line, ',')}\n{_safe(line.text)}\n" for n, line in enumerate(lines, 1))


def _vtt(lines: Sequence[Line]) -> str:
    escaped = (line.text.replace("&", "&amp;").replace("<", "&lt;") for line in lines)
    return "WEBVTT\n" + "".join(
        f"\n{_span(line, '.')}\n{_safe(text)}\n" for line, text in zip(lines, escaped, strict=True)
    )


def _txt(lines: Sequence[Line]) -> str:
    return "".join(f"{line.text}\n" for line in lines)


def _tsv(lines: Sequence[Line]) -> str:
    """Milliseconds, as whisper has them."""
    return "start\tend\ttext\n" + "".join(
        f"{round(line.start * 1000)}\t{round(line.end * 1000)}\t{line.text}\n" for line in lines
    )


def _json(lines: Sequence[Line]) -> str:
    segments = [{"id": n, "start": line.start, "end": line.end, "text": line.text} for n, line in enumerate(lines)]
    whole = {"text": " ".join(line.text for line in lines), "segments": segments}
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


_WRITERS: dict[Format, Callable[[Sequence[Line]], str]] = {
    "srt": _srt, "vtt": _vtt, "txt": _txt, "tsv": _tsv, "json": _json,
}  # fmt: skip
