"""Checkpoints that are there or not there: whole, checksummed, found again by what is in them and never by their name.

    write    checkpoints/.part-XXXX/  files -> fsync -> manifest -> fsync -> rename to step-00000120 -> fsync folder
    newest   highest step first: manifest and every file's checksum, a damaged or foreign one is passed over aloud

A process killed at any instant leaves the checkpoints that were there before, and perhaps a `.part-` folder that the
next run removes. A full disk does the same, with one line that says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import torch

from vidllm.errors import CheckpointError
from vidllm.linefile import sync_folder

FORMAT = "vidllm checkpoint 1"
MANIFEST = "manifest.json"
PARTIAL = ".part-"
DIGEST_BYTES = 16
Identity = Mapping[str, str | int | float | bool | None]
"""What a run is: a checkpoint of another one is refused, in the words of the keys that differ."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that was read from end to end and is whole."""

    folder: Path
    step: int
    """Optimizer steps done."""
    identity: Identity

    def load(self, name: str) -> Any:
        """The object in one of its files, on the CPU; tensors and plain values only, nothing that could run code."""
        return torch.load(self.folder / name, map_location="cpu", weights_only=True)


class Saves:
    """The checkpoints of one run, under `folder`. `say` hears of what was passed over."""

    def __init__(self, folder: Path, *, keep: int, say: Callable[[str], None]) -> None:
        self.folder, self._keep, self._say = folder, keep, say

    def newest(self) -> Saved | None:
        """The newest whole checkpoint, None when there is none."""
        found = sorted(self.folder.glob("step-*"), key=lambda path: path.name, reverse=True)
        for path in found:
            try:
                return _verified(path)
            except _DamagedError as error:
                self._say(f"{path}: {error}; passed over")
        return None

    def check_room(self, size: int, coming: int) -> None:
        """Say so where the disk has no room for the checkpoints to come, `coming` of `size` bytes each: those that will
        stay, and one more, which is whole before the oldest goes. The first would end the run, hours later.
        """
        there = len(list(self.folder.glob("step-*")))
        needed = size * min(coming, max(1, self._keep + 1 - there))
        free = psutil.disk_usage(str(_standing(self.folder))).free
        if needed > free:
            self._say(f"{self.folder}: checkpoints will take {needed / 2**30:,.1f} GiB more, and "
                      f"{free / 2**30:,.1f} GiB are free; make room, or keep fewer (keep=1)")  # fmt: skip

    def write(self, step: int, identity: Identity, contents: Mapping[str, Any]) -> Path:
        """Keep `contents` (file name -> what `torch.save` takes) as the checkpoint after `step` steps.

        Older ones beyond `keep` are removed once this one is whole.

        Raises:
            CheckpointError: it could not be written, in one line; those before it are untouched.
        """
        target = self.folder / f"step-{step:08d}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=self.folder))
            try:
                _fill(partial, step, identity, contents)
                self._put(partial, target)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        except (OSError, RuntimeError) as error:
            raise CheckpointError(self._not_written(target, error)) from error
        self._prune(step)
        return target

    def _put(self, partial: Path, target: Path) -> None:
        """Give a whole checkpoint its name. What stands there is one of ours that was damaged, or in the way."""
        if target.exists():
            (self._put_aside if _manifest(target) is None else self._remove)(target)
        partial.rename(target)
        sync_folder(self.folder)

    def _put_aside(self, path: Path) -> None:
        """Ours, spoilt beyond knowing, or somebody else's: nothing of it is lost, and no run ends for it."""
        names = (path.with_name(f"aside-{number}-{path.name}") for number in count())
        aside = next(name for name in names if not name.exists())
        path.rename(aside)
        self._say(f"{path} is no checkpoint of vidllm and in the way of one; it is {aside.name} now")

    def _prune(self, step: int) -> None:
        """Later steps than this are damaged ones that a resume passed over; they count for nothing."""
        ours = [path for path in sorted(self.folder.glob("step-*")) if _manifest(path) is not None]
        known = [path for path in ours if path.name <= f"step-{step:08d}"]
        for path in known[: -self._keep]:
            self._remove(path)

    def _remove(self, path: Path) -> None:
        """Its name goes first: a process killed here leaves no half checkpoint under a checkpoint's name."""
        gone = path.with_name(f"{PARTIAL}{path.name}")
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what a killed process had begun."""
        for path in self.folder.glob(PARTIAL + "*"):
            shutil.rmtree(path, ignore_errors=True)

    def _not_written(self, target: Path, error: Exception) -> str:
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        whole = [path.name for path in sorted(self.folder.glob("step-*"))]
        stands = f"{whole[-1]} before it is untouched" if whole else "there is none before it"
        return f"{target}: can not be written ({reason}); {stands}; make room and run the same command again"


def _standing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def differences(kept: Identity, now: Identity) -> list[str]:
    """`batch 8, now 16` for every key in which two runs differ."""
    keys = [key for key in {**kept, **now} if kept.get(key) != now.get(key)]
    return [f"{key} {_word(kept.get(key))}, now {_word(now.get(key))}" for key in keys]


def _word(value: object) -> str:
    return "unset" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


class _DamagedError(Exception):
    """Why a folder is no whole checkpoint, in a few words."""


def _fill(folder: Path, step: int, identity: Identity, contents: Mapping[str, Any]) -> None:
    """Every file, then the manifest that says what they must be; all of it on the disk when this returns."""
    files = {}
    for name, content in contents.items():
        with (folder / name).open("wb") as file:
            told = _DigestedFile(file)
            told.save(content)
            _sync(file)
        files[name] = {"bytes": told.size, "digest": told.digest.hexdigest()}
    manifest = {"format": FORMAT, "step": step, "identity": dict(identity), "files": files}
    with (folder / MANIFEST).open("wb") as file:
        file.write(json.dumps(manifest | {"digest": _digest_of(manifest)}, indent=1).encode() + b"\n")
        _sync(file)
    sync_folder(folder)


class _DigestedFile:
    """A file that is written once, and what was written to it: told from memory, so that the disk can be doubted."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.size, self.digest = file, 0, _hasher()
        self._refused: OSError | None = None

    def save(self, content: Any) -> None:
        """Put an object there. Raises OSError."""
        try:
            torch.save(content, self)  # type: ignore[arg-type]  # it only ever writes and flushes
        except RuntimeError as error:  # torch's own words for it tell of positions and not of disks
            raise self._refused or error from error

    def write(self, data: Any) -> int:
        """Write and remember."""
        view = memoryview(data).cast("B")
        self.digest.update(view)
        self.size += len(view)
        try:
            self._file.write(view)
        except OSError as error:
            self._refused = error
            raise
        return len(view)

    def flush(self) -> None:
        """Hand it to the system."""
        self._file.flush()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest as it stands, checked for being ours only; None when there is none that can be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "format" in manifest else None


def _verified(folder: Path) -> Saved:
    """The checkpoint with every byte accounted for, or _DamagedError."""
    manifest = _manifest(folder)
    if manifest is None:
        raise _DamagedError(f"no checkpoint of vidllm (no readable {MANIFEST})")
    if manifest["format"] != FORMAT:
        raise _DamagedError(f"written by another version ({manifest['format']}, this one reads {FORMAT})")
    digest = manifest.pop("digest", None)
    if digest != _digest_of(manifest):
        raise _DamagedError(f"{MANIFEST} is damaged")
    for name, wanted in manifest["files"].items():
        if (found := _facts(folder / name)) != wanted:
            raise _DamagedError(f"{name} is {'missing' if found is None else 'damaged'}")
    return Saved(folder=folder, step=manifest["step"], identity=manifest["identity"])


def _facts(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, _hasher).hexdigest()
            return {"bytes": file.tell(), "digest": digest}
    except OSError:
        return None


def _hasher() -> Any:
    return hashlib.blake2b(digest_size=DIGEST_BYTES)


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(manifest, sort_keys=True).encode(), digest_size=DIGEST_BYTES).hexdigest()
