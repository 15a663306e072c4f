"""The feature cache: a picture that went through a vision tower once does not go again, in this run or the next.

A key is the digest of the picture's own pixels together with everything else that shapes its features (checkpoint,
layers, normalisation). Bytes, plan, size and fit of the clip all act through those pixels, so a hit can not be wrong,
and two plans that share a frame share its features. Values are kept in the model's dtype: cached equals computed, bit
for bit.

On disk each entry is one safetensors file with a digest of its data in the header. An entry that does not match is
removed and computed again. A folder that can not be written costs one warning line and the disk part, nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vidllm.caches import cache_folder
from vidllm.errors import CacheError

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger("vidllm")

MEBIBYTE = 2**20
FREED_SHARE = 0.1
"""Share of a full disk cache given up at once, so that a full cache is not swept at every entry."""
RECOUNTED_SHARE = 0.02
"""Share of a disk cache that one process writes before it counts again what all of them wrote."""


def pixel_digest(pixels: NDArray[np.uint8], context: str = "") -> str:
    """Hex digest of a picture's shape and pixels, and of whatever else `context` says shapes the result."""
    digest = hashlib.blake2b(f"{pixels.shape}|{context}|".encode(), digest_size=20)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


class FeatureCache:
    """Least recently used features in memory and, unless `folder` is None, on disk; safe to share between threads.

    `memory_bytes` and `disk_bytes` cap what is kept; `folder` defaults to vidllm's own cache folder.
    """

    def __init__(
        self,
        folder: Path | str | None = "auto",
        *,
        memory_bytes: int = 512 * MEBIBYTE,
        disk_bytes: int = 2048 * MEBIBYTE,
    ) -> None:
        self.memory_bytes = memory_bytes
        self._memory: OrderedDict[str, Tensor] = OrderedDict()
        self._used = 0
        self._lock = threading.Lock()
        place = _own_folder() if folder == "auto" else folder
        self._disk = None if place is None else TensorFiles(Path(place), disk_bytes)

    def get(self, key: str) -> Tensor | None:
        """The features kept under `key` (on the CPU), or None."""
        with self._lock:
            if key in self._memory:
                self._memory.move_to_end(key)
                return self._memory[key]
        found = self._disk.get(key).get("features") if self._disk else None
        if found is not None:
            with self._lock:
                self._remember(key, found)
        return found

    def put(self, key: str, features: Tensor) -> None:
        """Keep a copy of `features`; a copy of its own, so that no larger tensor stays alive behind it."""
        with torch.inference_mode(False):  # an inference tensor could not take part in training later
            kept = features.detach().to("cpu", copy=True)
        with self._lock:
            self._remember(key, kept)
        if self._disk:
            self._disk.put(key, {"features": kept})

    def _remember(self, key: str, features: Tensor) -> None:
        if key in self._memory or features.nbytes > self.memory_bytes:
            return
        self._memory[key] = features
        self._used += features.nbytes
        while self._used > self.memory_bytes:
            self._used -= self._memory.popitem(last=False)[1].nbytes


def _own_folder() -> Path | None:
    """Vidllm's own cache folder; None, and a line, where that would lie in the home of nobody."""
    try:
        return cache_folder("features")
    except CacheError as error:
        log.warning("feature cache off: %s", error)
        return None


PART = ".part-"
"""What the name of an entry begins with while it is written."""
ABANDONED_SECONDS = 3600
"""So old, nobody writes it any more."""
HEX = "[0-9a-f]"
"""One digit of a key, as a pattern of file names."""


class TensorFiles:
    """Named tensors by key, one safetensors file per entry; safe to share between threads and processes.

    Writes are atomic, the oldest use is the first to go when `cap` bytes are full, an entry whose digest does not match
    counts as absent, and a folder that takes no more costs one warning line and nothing else.
    """

    def __init__(self, folder: Path, cap: int) -> None:
        self.folder = folder
        self.cap = cap
        self._used: int | None = None  # bytes, counted at the first write: reading needs no walk through the folder
        self._uncounted = 0  # bytes written since; other processes have written, too, and nobody told
        self._broken = False
        self._lock = threading.Lock()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> dict[str, Tensor]:
        """The tensors kept under `key`; none where there is no whole entry."""
        path = self._path(key)
        try:
            tensors = _read(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (SafetensorError, ValueError, KeyError, OSError, RuntimeError) as error:
            log.debug("feature cache: %s: %s", path, error)
            tensors = {}
        if not tensors:
            self.drop(key)
            return {}
        with suppress(OSError):  # a folder of somebody else's is read all the same
            os.utime(path)
        return tensors

    def drop(self, key: str) -> None:
        """Remove a damaged entry, so that it is made again; in a read-only folder it just stays unused."""
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            log.debug("feature cache: %s: %s", key, error)

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep `tensors` (on the CPU) under `key`, unless something is kept there or they alone are over the cap."""
        path, needed = self._path(key), sum(tensor.nbytes for tensor in tensors.values())
        with self._lock:
            if self._broken or needed > self.cap:
                return
            try:
                if path.exists():
                    return
                self._make_room(needed)
                whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
                _write(path, save(whole, {"digest": _digest(whole)}))
            except OSError as error:
                self._broken = True
                log.warning("feature cache off: %s: %s; set VIDLLM_CACHE to a folder with room", self.folder,
                            error.strerror or error)  # fmt: skip

    def _make_room(self, needed: int) -> None:
        self._uncounted += needed
        if self._used is not None and self._uncounted <= self.cap * RECOUNTED_SHARE:
            self._used += needed
            if self._used <= self.cap:
                return
        entries = sorted(self._entries())
        self._used = needed + sum(size for _, size, _ in entries)
        self._uncounted = 0
        if self._used <= self.cap:
            return
        for _, size, path in entries:
            if self._used <= self.cap * (1 - FREED_SHARE):
                break
            path.unlink(missing_ok=True)
            self._used -= size

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of every entry, and of what killed processes left half-written.

        One removed meanwhile by another process is left out.
        """
        found = []
        ours = (f"{HEX * 2}/{HEX * 40}.safetensors", f"{HEX * 2}/{PART}*")  # the rest is not
        for path in (path for pattern in ours for path in self.folder.glob(pattern)):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if not path.name.startswith(PART) or time.time() - status.st_mtime > ABANDONED_SECONDS:
                found.append((status.st_mtime, status.st_size, path))
        return found


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest_tensors(digest, sorted(tensors.items()))
    return digest.hexdigest()


def digest_tensors(digest: hashlib.blake2b, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Feed names, types, shapes and bytes, in the order they come."""
    for name, tensor in tensors:
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _read(content: bytes) -> dict[str, Tensor]:
    """The tensors of an entry's bytes, none when their digest does not match.

    Read whole rather than mapped: a mapped file that another process truncates would end this one with a bus error.
    """
    tensors = load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tensors if header["__metadata__"]["digest"] == _digest(tensors) else {}


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing: a reader never sees half an entry, a full disk leaves none behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=PART)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    finally:
        with suppress(OSError):  # it has taken its place
            os.unlink(name)
