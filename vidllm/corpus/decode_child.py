"""The decode worker's other half: a process that identifies, cuts and opens clips, and may be killed at any moment.

What goes in was written by this program and travels as a pickle; what comes out was touched by a decoder, and does not
(see `wire`). Neither torch nor transformers is imported here.
"""

from __future__ import annotations

import base64
import pickle
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidllm.corpus.looking import clip_of, look_at, named
from vidllm.corpus.scenes import ranges_of
from vidllm.errors import VideoError
from vidllm.machine import take_share
from vidllm.video import guard_child
from vidllm.video.info import VideoInfo

if TYPE_CHECKING:
    from vidllm.corpus.item import Item


def main() -> None:
    """Answer jobs from stdin until it closes."""
    held = _Held()

    def do(job: guard_child.Job, limits: dict[str, Any]) -> object:
        item, look, words = pickle.loads(base64.b64decode(job["packed"]))
        take_share(job["cores"])
        path = held.path_of(item, job["folder"])
        try:
            match job["do"]:
                case "look":
                    return look_at(item, look, path, lambda: _checked(path, limits))
                case "ranges":
                    return list(ranges_of(_checked(path, limits), words))
                case _:
                    return clip_of(item, look, _checked(path, limits))
        except VideoError as error:
            raise type(error)(named(error, path, item)) from error

    guard_child.serve(do)


def _checked(path: Path, limits: dict[str, Any]) -> VideoInfo:
    info = guard_child.probed(str(path), None)
    guard_child.check(info, limits)
    return info


class _Held:
    """The file of the clip in work: a tar's member is extracted once for all that is done with it."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._place: tuple[str, str, int | None] | None = None
        self._path = Path()

    def path_of(self, item: Item, folder: str | None) -> Path:
        """A local file with the item's bytes, extracted into `folder`, until the next item's is asked for."""
        if item.member is None:
            return Path(item.path)
        from vidllm.corpus.webdataset import opened_path

        place = (item.path, item.member, item.offset)
        if place != self._place:
            self._place = None
            self._stack.close()
            self._path = Path(self._stack.enter_context(opened_path(item, folder)))
            self._place = place
        return self._path
