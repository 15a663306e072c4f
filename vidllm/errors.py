"""Everything that can go wrong, as one tree: a caller catches the branch it can answer for.

    VidllmError                 one line for a person: what, where, what to do next
    ├── ConfigError             an option or key is unknown, or two contradict each other
    ├── VideoError              a clip can not give what was asked of it
    │   ├── VideoNotFound       no such file, or it is a folder
    │   ├── NotAVideo           the bytes are no video: text, zero bytes, encrypted, audio only
    │   ├── NoFrames            a video, but no frame where one was asked for
    │   ├── LimitExceeded       wall time, memory, pixels, frames or bytes past the guard's limit
    │   ├── ReaderUnavailable   a reader was named that is not installed or does not read this clip
    │   └── FetchError          a URL could not be brought here
    ├── BudgetError             frames + text + answer do not fit; the message holds the sum
    ├── ModelError              a checkpoint can not be used
    │   ├── ModelNotFound       neither a folder nor a reachable Hub id
    │   ├── NotAVisionModel     a text-only checkpoint
    │   ├── UnsupportedModel    a vision model that can not be read as its family reads it
    │   └── IncompleteModel     weights, processor or tokenizer missing, or not matching the config
    ├── CacheError              a cache folder can not be written
    ├── TrainError              a training run can not begin, or must not go on
    │   ├── RowError            a row can not be learnt from, or a file of rows can not be read
    │   ├── CheckpointError     a checkpoint can not be written, or belongs to another run
    │   └── NotFinite           a loss or a gradient is no number any more; nothing was learnt from it
    ├── EngineError             what captions the clips is gone: a server that is dead or refuses, a cluster of no nodes
    └── CorpusError             caption's inputs or outputs can not be used
        ├── InputError          a list, data set or tar of clips can not be read
        └── OutputError         an output can not be opened, is in use, or takes no more rows
"""


from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


class VidllmError(Exception):
    """One line for a person; the command line prints it and exits with 1."""


class ConfigError(VidllmError):
    """An option or key is unknown, or two contradict each other."""


class VideoError(VidllmError):
    """A clip can not give what was asked of it."""


class VideoNotFound(VideoError):
    """No such file, or it is a folder."""


class NotAVideo(VideoError):
    """The bytes are no video: text, zero bytes, encrypted, audio only."""


class NoFrames(VideoError):
    """A video, but no frame where one was asked for."""


class LimitExceeded(VideoError):
    """Wall time, memory, pixels, frames or bytes past the guard's limit."""


class ReaderUnavailable(VideoError):
    """A reader was named that is not installed or does not read this clip."""


class FetchError(VideoError):
    """A URL could not be brought here."""


@dataclass(frozen=True)
class Way:
    """One change that makes room: an option of `PlanOptions` and its value; str() is for who asks on a command line.

    No option, but a way too: a shorter "question", a shorter "conversation", another model's "context" in tokens.
    """

    change: str
    value: int | float | bool | None = None

    @property
    def words(self) -> str:
        """A change that is no option, in words; empty for an option."""
        return {
            "question": "a shorter question", "conversation": "a shorter conversation",
            "context": f"a model with a context of {self.value} tokens",
        }.get(self.change, "")  # fmt: skip

    def __str__(self) -> str:
        flag = self.change.replace("_", "-")
        return self.words or (f"--no-{flag}" if self.value is False else f"--{flag} {self.value}")


class BudgetError(VidllmError):
    """Frames, text and answer do not fit the context: the sum, by how many tokens it is `short`, and `ways` out.

    Ways are looked for when somebody reads them: who tries several looks at a clip throws most of these away.
    """

    def __init__(self, line: str, ways: Callable[[], Sequence[Way]] | Sequence[Way] = (), short: int = 0) -> None:
        super().__init__(line)
        self.line = line
        """The sum."""
        self.short = short
        self._ways = ways

    @property
    def ways(self) -> tuple[Way, ...]:
        """Changes of which each by itself makes it fit; none where nobody looked."""
        self._ways = tuple(self._ways() if callable(self._ways) else self._ways)
        return self._ways

    def __str__(self) -> str:
        return self.advised(str)

    def advised(self, say: Callable[[Way], str]) -> str:
        """The line and its ways out, each as `say` words it."""
        return f"{self.line}; use {' or '.join(map(say, self.ways))}" if self.ways else self.line

    def __reduce__(self) -> tuple[type[BudgetError], tuple[str, tuple[Way, ...], int]]:
        return type(self), (self.line, self.ways, self.short)


class ModelError(VidllmError):
    """A checkpoint can not be used."""


class ModelNotFound(ModelError):
    """Neither a folder nor a reachable Hub id."""


class NotAVisionModel(ModelError):
    """A text-only checkpoint."""


class UnsupportedModel(ModelError):
    """A vision model that can not be read as its family reads it."""


class IncompleteModel(ModelError):
    """Weights, processor or tokenizer are missing or do not match the config."""


class CacheError(VidllmError):
    """A cache folder can not be written."""


class TrainError(VidllmError):
    """A training run can not begin, or must not go on."""


class RowError(TrainError):
    """A row can not be learnt from, or a file of rows can not be read."""


class CheckpointError(TrainError):
    """A checkpoint can not be written, or belongs to another run."""


class NotFinite(TrainError):
    """A loss or a gradient is no number any more; nothing was learnt from it."""


class CorpusError(VidllmError):
    """Caption's inputs or outputs can not be used."""


class InputError(CorpusError):
    """A list, data set or tar of clips can not be read."""


class OutputError(CorpusError):
    """An output can not be opened, is in use by another run, or takes no more rows."""


class EngineError(VidllmError):
    """What captions the clips is gone: a server that is dead or refuses all work, a cluster without nodes."""
