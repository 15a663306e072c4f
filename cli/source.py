"""What a command is given and is to write, looked at before anything slow begins."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vidllm.errors import ConfigError
from vidllm.starting import unthreaded

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
OTHER_FILES = (".bmp", ".gif", ".pdf", ".tif", ".tiff", ".svg", ".mp4", ".mkv", ".webm", ".html")
"""Endings nobody gives a folder: whoever writes one expects a file that is not made here."""


@unthreaded()
def check_before_loading(
    video: str, look: Mapping[str, Any], question: str | None = None, sheet: Path | None = None
) -> None:
    """Fail at once on what can not be read, looked at, asked or written in the end: loading a model takes seconds."""
    from vidllm.options import check_question, split_options
    from vidllm.still import is_still
    from vidllm.video.address import is_url

    options, _ = split_options(look)
    if question is not None:
        check_question(question)
    if sheet is not None:
        check_picture_name(sheet, video)
    if is_url(video):
        return  # whether it is a picture or moves is known when it was fetched
    if is_still(video):
        if sheet is not None:
            raise no_sheet_of(video)
    else:
        from vidllm.planning import range_of
        from vidllm.video.info import probe

        range_of(probe(video), options)


def no_sheet_of(video: str) -> ConfigError:
    """What to tell of a contact sheet of a picture; that an address leads to one is known when it was fetched."""
    return ConfigError(f"{video}: a still picture has no contact sheet; leave --sheet out")


def check_picture_name(path: Path, video: str) -> None:
    """Refuse, before any work, a picture that could not be written in the end, or only over the video it shows."""
    if path.suffix.lower() not in PICTURES:
        raise ConfigError(f"{path}: a contact sheet is a picture; end its name with {', '.join(PICTURES)}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: its folder does not exist; create it first")
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; give the name of a picture in it")
    with suppress(OSError):  # one of them is not there
        if path.samefile(video):
            raise ConfigError(f"{path}: is the video itself, which its sheet would replace; give another name")


def is_sheet(output: Path) -> bool:
    """Whether `-o` names a contact sheet rather than a folder. ConfigError for a kind of file that is not made."""
    if output.is_dir():
        return False
    if output.suffix.lower() in OTHER_FILES:
        raise ConfigError(f"{output}: frames go to a folder, or to a sheet ending with {', '.join(PICTURES)}")
    return output.suffix.lower() in PICTURES
