"""Where things that can be made again are kept: one folder, one sub-folder per kind, counted by `vidllm doctor`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import platformdirs

from vidllm.errors import CacheError

Kind = Literal["features", "videos", "clips", "references", "families"]
"""features: encoded frames, reused by the next question. videos: clips fetched from a URL. clips: looks at clips, as
training takes them. references: what a frozen model thinks of the answers that another is trained on. families: what
processors said of families without an adapter."""


@dataclass(frozen=True)
class CacheUse:
    """What one kind of cache takes on disk now."""

    kind: str
    folder: Path
    files: int
    bytes: int
    trouble: str = ""
    """Why nothing can be kept there, and what to do; empty when nothing speaks against it."""


def cache_folder(kind: Kind) -> Path:
    """The folder of one kind of cache; not created. $VIDLLM_CACHE moves all of them, and changes no answer.

    Raises:
        CacheError: it lies in the home of nobody: such a user has none, or the name is misspelt.
    """
    root = os.environ.get("VIDLLM_CACHE") or platformdirs.user_cache_dir("vidllm", appauthor=False)
    try:
        return Path(root).expanduser() / kind
    except RuntimeError as error:
        raise CacheError(f"{root}: there is no such home; set VIDLLM_CACHE to a folder that can be written") from error


def measure() -> tuple[CacheUse, ...]:
    """Files and bytes of every kind of cache; a folder that does not exist counts as empty."""
    return tuple(_measure(kind) for kind in get_args(Kind))


def _measure(kind: Kind) -> CacheUse:
    try:
        folder = cache_folder(kind)
    except CacheError as error:
        return CacheUse(kind, Path(), 0, 0, str(error))
    files = (Path(place, name) for place, _, names in os.walk(folder) for name in names)  # passes over what is hidden
    sizes = [size for path in files if (size := _size(path)) is not None]
    above = next((place for place in (folder, *folder.parents) if os.path.exists(place)), Path())
    usable = above.is_dir() and os.access(above, os.W_OK)
    trouble = "" if usable else "can not be written; set VIDLLM_CACHE to a folder that can"
    return CacheUse(kind, folder, len(sizes), sum(sizes), trouble)


def _size(path: Path) -> int | None:
    """Bytes of a plain file; None for a folder, and for a file that was just removed or is hidden from us."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None
