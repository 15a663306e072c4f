"""Which files of a folder, or of what a pattern matches, are clips; and which only lie beside one under its name.

    a.mp4  a.json  a.en.srt  b.mp4 -> ../b.mp4  more/ -> /mnt/disk2/more          clips: a.mp4, b.mp4, more/...
"""

import errno
import glob
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import PurePath

from vidllm.corpus.webdataset import VIDEO_SUFFIXES

SIDE_SUFFIXES = frozenset({".json", ".txt", ".srt", ".vtt", ".ass", ".ssa", ".tsv"})
"""Files that belong to the clip they are named after: truth, captions, subtitles."""
LISTED_FOLDERS = 8


def is_clip(path: str) -> bool:
    """Whether a file is one by its ending."""
    return PurePath(path).suffix.lower() in VIDEO_SUFFIXES


def is_side_file(path: str, clips: Collection[str]) -> bool:
    """Whether one of `clips` (see `clips_of`) has the file's name up to one of its dots; what is no text beside a clip
    is a clip itself.
    """
    stem, suffix = os.path.splitext(path)
    if suffix.lower() not in SIDE_SUFFIXES:
        return False
    while suffix and stem not in clips:
        stem, suffix = os.path.splitext(stem)
    return stem in clips


def clips_beside(path: str) -> Collection[str]:
    """The clips in its folder, as `clips_of` has them."""
    folder = os.path.dirname(path) or os.curdir
    try:
        return _clips_in(folder, os.stat(folder).st_mtime_ns)
    except (OSError, ValueError):
        return ()


def clips_of(paths: Collection[str]) -> Collection[str]:
    """The clips among `paths`, with and without their endings."""
    return {name for path in paths if is_clip(path) for name in (path, os.path.splitext(path)[0])}


@lru_cache(LISTED_FOLDERS)
def _clips_in(folder: str, mtime_ns: int) -> Collection[str]:
    return clips_of(os.listdir(folder))


def matching(pattern: str) -> Iterator[str]:
    """What a pattern matches; `**` is any number of folders.

    `glob` would go into links to folders above them again and again, and with two of them never come back.
    """
    parts = pattern.rstrip(os.sep).split(os.sep)
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    first = parts.index("**")
    above = os.sep.join(parts[:first]) or (os.sep if pattern.startswith(os.sep) else "")
    for root in filter(os.path.isdir, glob.iglob(above)) if above else [""]:
        for folder, folders, names in _walk(root or os.curdir, lambda error: None):
            inside = os.path.relpath(folder, root or os.curdir)
            for name in (*folders, *names):
                path = name if inside == os.curdir else os.path.join(inside, name)
                if _fits(path.split(os.sep), parts[first:]):
                    yield os.path.join(root, path)


def _fits(names: Sequence[str], parts: Sequence[str]) -> bool:
    if not parts or not names:
        return not parts and not names
    if parts[0] != "**":
        return fnmatchcase(names[0], parts[0]) and _fits(names[1:], parts[1:])
    return len(parts) == 1 or any(_fits(names[number:], parts[1:]) for number in range(len(names)))


def files_below(root: str, trouble: Callable[[OSError], None]) -> Iterator[tuple[str, str]]:
    """(folder, name) of every file below `root`, sorted folder by folder, hidden ones left out.

    Links to folders elsewhere are followed, each of those once; what lies below `root` itself is met on its own.
    """
    for folder, _, names in _walk(root, trouble):
        yield from ((folder, name) for name in names)


def _walk(root: str, trouble: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
    met = [os.path.realpath(root)]

    def is_entered(folder: str) -> bool:
        if not os.path.islink(folder):
            return True
        target = os.path.realpath(folder)
        if any(_is_met(target, other) for other in met):
            return False
        if any(_is_below(other, target) for other in met):
            trouble(OSError(errno.ELOOP, os.strerror(errno.ELOOP), folder))
            return False
        met.append(target)
        return True

    for folder, folders, names in os.walk(root, onerror=trouble, followlinks=True):
        shown = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in shown if is_entered(os.path.join(folder, name))]
        yield folder, folders, sorted(name for name in names if not name.startswith("."))


def _is_met(folder: str, root: str) -> bool:
    """Whether the walk of `root` comes by `folder`: hidden ones it passes."""
    below = os.path.relpath(folder, root).split(os.sep) if _is_below(folder, root) else []
    return folder == root or (bool(below) and not any(part.startswith(".") for part in below))


def _is_below(path: str, folder: str) -> bool:
    """Whether `path` is the folder or in it, both real paths."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
