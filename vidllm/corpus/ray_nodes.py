"""What `--engine ray` runs on the nodes: decode processes and models, and the clip whose pictures stay there."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vidllm.clip import Clip
from vidllm.corpus.looking import Opened, Seen
from vidllm.corpus.workers import Decoder
from vidllm.errors import VidllmError

if TYPE_CHECKING:
    from vidllm.corpus.caption import CaptionOptions
    from vidllm.corpus.captioner import Said
    from vidllm.corpus.item import Item
    from vidllm.corpus.looking import Look
    from vidllm.corpus.scenes import Range
    from vidllm.model.spec import ModelSpec
    from vidllm.options import GenerationOptions

IDLE_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class FarClip(Clip):
    """A clip whose `frames.pixels` are (N, 0, 0, 3) here: `pictures` refers to the real ones."""

    pictures: Any
    item: Item
    seen: Seen

    @property
    def blind(self) -> Clip:
        """The same as a plain clip, small enough to send anywhere."""
        return Clip(**{name: getattr(self, name) for name in Clip.__dataclass_fields__})


def _without_pictures(clip: Clip) -> Clip:
    blank = np.zeros((len(clip.frames), 0, 0, 3), np.uint8)
    return replace(clip, frames=replace(clip.frames, pixels=blank))


def _enter(folder: str) -> None:
    """Go where the run was started, for names that begin there: Ray leaves its workers where `ray start` was called.

    A node without that folder understands whole names only.
    """
    with contextlib.suppress(OSError):
        os.chdir(folder)


class DecodeActor:
    """One killable decode process on a node."""

    def __init__(self, look: Look, folder: str) -> None:
        _enter(folder)
        self._decoder = Decoder(look)

    def ready(self) -> None:
        """Answers when the actor lives."""

    def look_at(self, item: Item) -> Seen:
        """As `Decoder.look_at`."""
        return self._decoder.look_at(item)

    def open(self, item: Item, seen: Seen, seconds: float) -> tuple[Opened, Any]:
        """As `Decoder.open`, the clip blind and its pictures beside it, so that only the first is sent home."""
        opened = self._decoder.open(item, seen, seconds)
        if opened.clip is None:
            return opened, None
        return replace(opened, clip=_without_pictures(opened.clip)), opened.clip.frames.pixels

    def ranges(self, item: Item, split: str) -> tuple[Range, ...] | VidllmError:
        """As `Decoder.ranges`; an error is returned, since one that is raised comes home as a page of traceback."""
        try:
            return self._decoder.ranges(item, split)
        except VidllmError as error:
            return error


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a model actor is, once it is loaded."""

    model: str
    fingerprint: str
    spec: ModelSpec
    room: int


class ModelActor:
    """One model on a node: the captioner of one machine, called from afar."""

    def __init__(self, options: CaptionOptions, folder: str) -> None:
        from vidllm.corpus.local import open_local

        _enter(folder)
        self._captioner = open_local(options)
        self._running = 0

    def ready(self) -> Told:
        """Answers when the model is loaded."""
        one = self._captioner
        return Told(model=one.model, fingerprint=one.fingerprint, spec=one.spec, room=one.room())

    def submit(self, ticket: int, clip: Clip | None, pictures: Any, prompt: str, options: GenerationOptions) -> None:
        """As `Captioner.submit`; `pictures` have come from where they were decoded."""
        if clip is not None:  # copied: what Ray shares between processes can not be written to
            clip = replace(clip, frames=replace(clip.frames, pixels=np.array(pictures)))
        self._captioner.submit(ticket, clip, prompt, options)
        self._running += 1

    def poll(self, seconds: float) -> tuple[list[Said], int] | VidllmError:
        """What is finished after working for a while, and how many more clips there is room for."""
        until = time.monotonic() + seconds
        said: list[Said] = []
        try:
            while self._running and not said and time.monotonic() < until:
                said = self._captioner.poll(0.0)
        except VidllmError as error:
            return error
        if not self._running:
            time.sleep(IDLE_SECONDS)  # what was sent is still on its way
        self._running -= len(said)
        return said, self._captioner.room()
