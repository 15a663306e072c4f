"""VIDEO as the user gave it: looked at before anything slow begins, and fetched when it is a URL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vidllm.errors import ConfigError

if TYPE_CHECKING:
    from .progress import Progress

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
OTHER_FILES = (".bmp", ".gif", ".pdf", ".tif", ".tiff", ".svg", ".mp4", ".mkv", ".webm", ".html")
"""Endings nobody gives a folder: whoever writes one expects a file that is not made here."""


def local_path(video: str, progress: Progress) -> str | Path:
    """The file that VIDEO names; a URL is brought into the cache first. Raises FetchError."""
    from vidllm.video.fetch import fetch, is_url

    if not is_url(video):
        return video
    return fetch(video, lambda done, total: progress(f"fetching {_megabytes(done, total)}"))


def check_before_loading(video: str, sheet: Path | None = None) -> None:
    """Fail at once on a clip that can not be read or a sheet that can not be written: loading a model takes seconds."""
    from vidllm.still import is_still
    from vidllm.video.fetch import is_url

    if sheet is not None:
        check_picture_name(sheet)
        if is_still(video):
            raise ConfigError(f"{video}: a still picture has no contact sheet; leave --sheet out")
    if not is_url(video) and not is_still(video):
        from vidllm.video.info import probe

        probe(video)


def check_picture_name(path: Path) -> None:
    """Refuse, before any work, a picture that could not be written in the end."""
    if path.suffix.lower() not in PICTURES:
        raise ConfigError(f"{path}: a contact sheet is a picture; end its name with {', '.join(PICTURES)}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: its folder does not exist; create it first")
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; give the name of a picture in it")


def is_sheet(output: Path) -> bool:
    """Whether `-o` names a contact sheet rather than a folder. ConfigError for a kind of file that is not made."""
    if output.is_dir():
        return False
    if output.suffix.lower() in OTHER_FILES:
        raise ConfigError(f"{output}: frames go to a folder, or to a sheet ending with {', '.join(PICTURES)}")
    return output.suffix.lower() in PICTURES


def _megabytes(done: int, total: int | None) -> str:
    return f"{done / 1e6:.1f} MB" + (f" of {total / 1e6:.1f}" if total else "")
