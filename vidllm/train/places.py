"""Which turn shows which file: placeholders in the text and files named beside it, brought together or refused.

    said                      given             shown
    <video>\\n what?           a.mp4             a.mp4 in that turn
    what?                     a.mp4             a.mp4 before the first user turn
    <image>\\n what?           a.mp4             a.mp4 in that turn (LLaVA writes its videos so)
    <video>\\n what?           nothing           a problem, as is any other difference in number
    1: <image> 2: <image>     a.jpg, b.jpg      each in its place among the words
    what?\\n<image>           a.jpg             before the words (`led`)
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from vidllm.train.row import Bad, Media, Role, Turn
from vidllm.video.address import plain_path

Shown = Literal["video", "image"]
KEYS: dict[Shown, tuple[str, str]] = {"video": ("video", "videos"), "image": ("image", "images")}
PLACEHOLDER = re.compile(r"<(image|video)>")


@dataclass(frozen=True)
class RawTurn:
    """A turn whose text still holds its placeholders, and the media its own content names."""

    role: Role
    text: str
    own: tuple[Media, ...] = ()


@dataclass(frozen=True)
class Folder:
    """Where a file's media lie, and which of them are known to be there."""

    root: Path
    known: dict[str, bool] = field(default_factory=dict)

    def find(self, name: str) -> str:
        """The path of a medium. Raises Bad when it is not there."""
        plain = str(plain_path(name))
        if "://" in plain:
            raise Bad(f"{name} is a URL", "download it first and give the file's path")
        path = str(self.root / plain)
        if path not in self.known:
            self.known[path] = os.path.isfile(path)  # Path's own ends in an OSError where a name is too long
        if not self.known[path]:
            raise Bad(f"no file {path}", "put it there, or name the folder it lies in with media")
        return path


def place_media(row: Mapping[str, Any], turns: Sequence[RawTurn], folder: Folder) -> tuple[Turn, ...]:
    """The turns with their files, and where they stand. Raises Bad when what is said and what is given differ."""
    for turn in turns:
        check_says(turn)
    given = _given(row)
    if given["video"] or any(medium.kind == "video" for turn in turns for medium in turn.own):
        check_whole(row, "it")
    wanted = [kind for turn in turns if not turn.own for kind in PLACEHOLDER.findall(turn.text)]
    if given["video"] and not given["image"] and wanted == ["image"] * len(given["video"]):
        given = {"video": [], "image": given["video"]}
    _check_spelling(row)
    if not any(given.values()) and not any(turn.own for turn in turns):
        _check_other_keys(row)
    _check_counts(wanted, {kind: len(media) for kind, media in given.items()})
    waiting = {kind: list(media) for kind, media in given.items()}
    unsaid = [m for kind in _order(row) for m in waiting[kind] if kind not in wanted]
    if twice := [m.path for turn in turns for m in turn.own if m in unsaid]:
        raise Bad(f"{twice[0]} is named in a turn and beside the turns", "name it once, it would be shown twice")
    placed = [_placed(turn, waiting, folder) for turn in turns]
    return tuple(_before_first(placed, [_found(m, folder) for m in unsaid]))


def led(text: str) -> str:
    """The text, its one medium before the words where that stands alone on the last line. LLaVA's data have it before
    or behind them by chance, and its training moves it to the front; several it leaves where they are.
    """
    words, *last = PLACEHOLDER.split(text.rstrip())
    return f"<{last[0]}>\n{words}" if last[1:] == [""] and words.endswith("\n") else text


def check_says(turn: RawTurn) -> None:
    """Raise Bad for media that somebody else than the user shows."""
    if turn.role != "user" and (said := PLACEHOLDER.search(turn.text)):
        raise Bad(f"the {turn.role} says {said[0]}", "only the user shows media")


RANGE = ("start", "end", "video_start", "video_end")
"""What captions' rows, and Qwen's parts, call the ends of a part of a clip."""


def check_whole(shown: Mapping[str, Any], where: str) -> None:
    """Raise Bad where a row, or a part of its content, shows a part of a video: all of it would be learnt from."""
    for key in RANGE:
        if isinstance(value := shown.get(key), int | float | str) and value not in (0, ""):
            raise Bad(f"{where} shows a part of its video ({key!r}: {value!r})",
                      "cut that part out into a file of its own, or take the key out")  # fmt: skip


def _given(row: Mapping[str, Any]) -> dict[Shown, list[Media]]:
    """The files named beside the turns, by kind."""
    found: dict[Shown, list[Media]] = {"video": [], "image": []}
    for kind, keys in KEYS.items():
        for key in keys:
            value = row.get(key)
            names = value if isinstance(value, list) else [value] if value else []
            if not all(isinstance(name, str) and name for name in names):
                raise Bad(f"{key!r} names no file", "give a path or a list of paths")
            found[kind] += [Media(kind=kind, path=name) for name in names]
    return found


def _order(row: Mapping[str, Any]) -> list[Shown]:
    """Kinds as the row names them first."""
    return sorted(KEYS, key=lambda kind: next((i for i, key in enumerate(row) if key in KEYS[kind]), len(row)))


def _check_counts(wanted: Sequence[str], given: Mapping[Shown, int]) -> None:
    for kind, count in given.items():
        said = wanted.count(kind)
        if said and not count:
            raise Bad(f"the text says <{kind}> and no {kind} is given", f'add "{kind}": a path')
        if said and said != count:
            raise Bad(f"the text says <{kind}> {said} times and {count} are given", "let the numbers agree")


def _check_spelling(row: Mapping[str, Any]) -> None:
    """Raise Bad for a key that all but names a kind of media which the row does not: passed over, it would leave a row
    of words alone."""
    for kind, keys in KEYS.items():
        if not any(key in row for key in keys):
            check_absent(row, keys, f"it shows no {kind}", str | list)


_OTHER_KEYS = re.compile(r"(video|vid|clip|image|img|picture)s?(_?(path|file|url)s?)?", re.IGNORECASE)


def _check_other_keys(row: Mapping[str, Any]) -> None:
    """Raise Bad for a row that shows nothing and has, under a key that is not read, what others call a medium."""
    for key, value in row.items():
        if value and isinstance(value, str | list) and _OTHER_KEYS.fullmatch(key):
            raise Bad(f"it shows nothing, and {key!r} is not read", "call it 'video' or 'image', or rename that key")


def check_absent(row: Mapping[str, Any], keys: Sequence[str], what: str, kind: Any = str) -> None:
    """Raise Bad for a key of the row that all but names one of `keys`, which are absent, and holds a value of that
    kind: it would be passed over in silence. `what` is wrong then.

    A letter is wrong, too many or not there, or letters changed places: "vidoe", "imags", "Video", not "videoid".
    """
    for key in (key for key, value in row.items() if value and isinstance(value, kind)):
        word = key.casefold()
        near = bool(difflib.get_close_matches(word, keys, n=1, cutoff=0.8)) and len(word) <= len(keys[0]) + 1
        if near or sorted(word) in map(sorted, keys):
            raise Bad(what, f"did you mean {keys[0]!r} where it says {key!r}? else rename that key")


def _placed(turn: RawTurn, waiting: dict[Shown, list[Media]], folder: Folder) -> Turn:
    kinds: list[Shown] = PLACEHOLDER.findall(turn.text)
    if turn.own and len(turn.own) != len(kinds):
        raise Bad(f"a turn names {len(turn.own)} files for {len(kinds)} media", "name the file of each part or of none")
    media = turn.own or [waiting[kind].pop(0) for kind in kinds]
    pieces = PLACEHOLDER.split(turn.text.strip())[::2]
    lead = next((i for i, piece in enumerate(pieces[:-1]) if piece.strip()), len(kinds))
    words = [pieces[lead].lstrip(), *pieces[lead + 1 :]]
    at = tuple(accumulate(map(len, words[:-1])))
    return Turn(role=turn.role, text="".join(words), media=tuple(_found(m, folder) for m in media), at=at)


def _found(medium: Media, folder: Folder) -> Media:
    return Media(kind=medium.kind, path=folder.find(medium.path))


def _before_first(turns: Sequence[Turn], media: Sequence[Media]) -> list[Turn]:
    """`media` stand in the first turn of the user, before what it shows already."""
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if media and first is None:
        raise Bad("no turn of the user's could show its media", "add the question")
    return [replace(turn, media=(*media, *turn.media)) if i == first else turn for i, turn in enumerate(turns)]
