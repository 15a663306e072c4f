"""What an engine is to the caption loop: clips go in as it has room, what was said of them comes out in any order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vidllm.clip import Clip
    from vidllm.corpus.rows import RowUsage
    from vidllm.corpus.workers import Decoding
    from vidllm.model.spec import ModelSpec
    from vidllm.options import GenerationOptions


@dataclass(frozen=True, kw_only=True)
class Said:
    """One answer, by the ticket it was asked under; or `error`, one line, when this clip got none."""

    ticket: int
    text: str = ""
    finish_reason: str | None = None
    """stop, length or repetition; a server's own word otherwise."""
    usage: RowUsage | None = None
    seconds: float = 0.0
    """Spent on this answer alone; what a batch shares is counted in part."""
    error: str | None = None
    model: str = ""
    """Who answered: the model's name, what a server calls itself."""


class Captioner(Protocol):
    """One model, here or behind a server. Called from one thread.

    An error of one clip is a `Said` with `error`; what ends the run (the server is gone, the model overflows) is raised
    as a VidllmError by `submit` or `poll`.
    """

    name: str
    """local, http, ray: the row's `engine`."""
    model: str
    """For people: the row's `model` unless the answer names another."""
    fingerprint: str
    """For the recipe: another value is another model."""
    spec: ModelSpec
    """What the workers plan with; see `workers.Look`."""

    @property
    def loading(self) -> bool:
        """Whether it has clips and can answer none yet: clips a second are counted from its end on."""

    def submit(self, ticket: int, clip: Clip | None, prompt: str, options: GenerationOptions) -> None:
        """Ask `prompt` about `clip`, or (None) about nothing but itself; the answer comes from a later `poll`."""

    def poll(self, wait: float) -> list[Said]:
        """What is finished. Works on, or waits up to `wait` seconds, when nothing is; at once when nothing runs."""

    def room(self) -> int:
        """How many more clips it would take now; the loop submits no more than that."""

    def close(self) -> None:
        """Give up what is running."""


@dataclass(frozen=True)
class Engine:
    """Who answers; and who decodes: `decoders` makes new ones each time, None: this machine's workers."""

    captioner: Captioner
    decoders: Callable[[], Sequence[Decoding] | None] = lambda: None
    patience_seconds: float = math.inf
    """How long what is in flight may take when the run is to stop: a model here works on, a server may hang."""
