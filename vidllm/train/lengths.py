"""What rows were found to be long, kept in a file beside the run's output: a resume does not look at them again."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from vidllm.clip import PlanOptions
from vidllm.linefile import LineFile, not_writable
from vidllm.model.spec import ModelSpec
from vidllm.train.files import shown_files, stamp
from vidllm.train.row import Media, PairRow, TrainRow, said_in


class Lengths:
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

    def recall(self, row: TrainRow | PairRow) -> int:
        """The row's length, 0 when it is not known."""
        return self._known.get(self._key(row), 0) if self._known else 0

    def keep(self, row: TrainRow | PairRow, tokens: int) -> None:
        """Remember a row's length. OutputError when the disk takes no more."""
        if self._file is not None and (key := self._key(row)) not in self._known:
            self._known[key] = tokens
            told = {"key": key, "tokens": tokens, "check": _digest(key, str(tokens))}
            self._file.append(json.dumps(told).encode() + b"\n")

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def _key(self, row: TrainRow | PairRow) -> str:
        """Names the row by all that its length depends on."""
        turns, answers = said_in(row)
        told = [[turn.role, turn.text, [medium.kind for medium in turn.media]] for turn in turns]
        words = json.dumps([told, answers])
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
