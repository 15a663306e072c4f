"""What a row's files are, told without decoding one: by size and time, or by what stands in them. No torch.

    stamp     size and time of change: one look at the folder            for what may be found anew at little cost
    sampled   size and samples spread over the content, some reads       for what must not change, wherever it is copied

A clip's sidecar of subtitles is shown with it, and counts as one of its files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from vidllm.errors import VideoNotFound
from vidllm.train.row import Media
from vidllm.video.subtitles import find_sidecar

WHOLE_BYTES = 2**18
"""A file up to this size is digested whole."""
SAMPLES, SAMPLE_BYTES = 16, 2**12
ENDS = 2
"""Samples that are its beginning and its end: two reads, where a hundred thousand clips wait to be looked at."""


def shown_files(medium: Media, *, subtitles: bool) -> tuple[str, ...]:
    """The medium's own path, and its sidecar's where one is there and `subtitles` are shown."""
    sidecar = find_sidecar(medium.path) if subtitles and medium.kind == "video" else None
    return (medium.path,) if sidecar is None else (medium.path, str(sidecar))


def stamp(path: str) -> tuple[int, int]:
    """(bytes, nanoseconds of its last change). Raises OSError."""
    stat = Path(path).stat()
    return stat.st_size, stat.st_mtime_ns


def sampled_digest(path: str, samples: int = SAMPLES) -> str:
    """Hex digest of a file's size and of so many samples (at least 2) spread over it evenly. Raises VideoNotFound."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.blake2b(f"{size}|".encode(), digest_size=20)
            if size <= WHOLE_BYTES:
                digest.update(file.read())
            else:
                for sample in range(samples):
                    file.seek((size - SAMPLE_BYTES) * sample // (samples - 1))
                    digest.update(file.read(SAMPLE_BYTES))
    except OSError as error:
        raise VideoNotFound(f"{path}: {error.strerror or error}; it was there when the rows were checked") from error
    return digest.hexdigest()


def files_mark(media: Iterable[Media], *, subtitles: bool) -> str:
    """All these files by number and content, each counted once. Raises VideoNotFound."""
    paths = dict.fromkeys(path for medium in dict.fromkeys(media) for path in shown_files(medium, subtitles=subtitles))
    digest = hashlib.blake2b(digest_size=6)
    for path in paths:
        digest.update(sampled_digest(path, ENDS).encode())
    return f"{len(paths)} files {digest.hexdigest()}"
