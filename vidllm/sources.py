"""What a user asks about, a file, an http(s) URL, a picture -> a local file or an opened picture. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Protocol

from vidllm.errors import ConfigError
from vidllm.still import is_still, open_still
from vidllm.video.address import is_url, plain_path
from vidllm.video.container import check_file, refuse_pipe
from vidllm.visuals import Image

Source = str | Path | Image
"""A video file, a picture file, an http(s) URL of one, or a picture already in memory."""
Stage = Literal["load", "fetch", "look", "encode", "answer"]
"""look: probe, plan and decode. encode: the vision tower and reading the prompt."""


class Progress(Protocol):
    """Called when a stage begins, and again with more to say ("3.1 of 20.0 MB") while it goes on."""

    def __call__(self, stage: Stage, detail: str = "", /) -> None: ...


def tell(progress: Progress | None, stage: Stage, detail: str = "") -> None:
    """Say so to whoever listens."""
    if progress is not None:
        progress(stage, detail)


def sources_of(video: Source | Iterable[Source]) -> tuple[Source, ...]:
    """One source or several of them, in order. ConfigError for none, and for what is no source."""
    if isinstance(video, Source):
        return (video,)
    given: object = video
    several = isinstance(given, Iterable) and not isinstance(given, bytes)  # a file's bytes are no list of numbers
    sources: tuple[Any, ...] = tuple(video) if several else (video,)
    if not sources:
        raise ConfigError("no video to ask about; give a path, a URL or a list of them")
    for source in sources:
        if not isinstance(source, Source):
            kind = type(source).__name__
            raise ConfigError(f"a video can not be of type {kind}; give a path, a URL or a vidllm.Image, or several")
    return sources


def name_of(source: Source) -> str:
    """What the user calls it: answers and plans are about that, wherever the bytes lie."""
    return source.source if isinstance(source, Image) else str(source)


def open_source(source: Source, progress: Progress | None = None) -> Path | Image:
    """A video's local path, or a picture opened; URLs are fetched. Raises VideoError."""
    if isinstance(source, Image):
        return source
    path = local_file(source, progress)
    return open_still(path) if is_still(path) else path


def local_file(video: str | Path, progress: Progress | None = None) -> Path:
    """The file that holds the video; a URL's is in the cache. Raises FetchError, or NotAVideo for a pipe or for what
    a URL leads to.
    """
    if not is_url(video):
        path = plain_path(video)
        check_file(path)
        refuse_pipe(path)
        return Path(path)
    from vidllm.video.fetch import fetch_clip  # http's libraries, which no local file needs

    tell(progress, "fetch")
    return fetch_clip(str(video), lambda done, total: tell(progress, "fetch", _megabytes(done, total)))


def _megabytes(done: int, total: int | None) -> str:
    return f"{done / 1e6:.1f} MB" if total is None else f"{done / 1e6:.1f} of {total / 1e6:.1f} MB"
