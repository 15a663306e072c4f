"""Folders for what is taken out of tars while it is decoded. The process that made one holds a lock on it: so what a
killed one has left is known, and the next one clears it away.
"""

import contextlib
import glob
import os
import shutil
import sys
from functools import cache
from tempfile import TemporaryDirectory, gettempdir

if sys.platform != "win32":
    import fcntl

PREFIX = "vidllm-tar-"


class Scratch:
    """One folder where temporary files go, until `cleanup` or the end of this process. Raises OSError."""

    def __init__(self) -> None:
        _clear_left()
        while True:
            self._folder = TemporaryDirectory(prefix=PREFIX)
            self.name = self._folder.name
            self._lock = _locked(self.name, wait=True)
            if os.path.exists(self.name):  # else another process began just now and took it for one that was left
                return
            self.cleanup()

    def cleanup(self) -> None:
        """Remove it with all that is in it."""
        self._folder.cleanup()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@cache
def _clear_left() -> None:
    """Once is enough: nobody is killed and goes on."""
    for path in glob.glob(os.path.join(glob.escape(gettempdir()), PREFIX + "*")):
        lock = _locked(path, wait=False)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _locked(path: str, *, wait: bool) -> int | None:
    """An open handle that has the folder's lock; None where another has it, or there are none."""
    if sys.platform == "win32":
        return None
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BaseException:
            os.close(handle)
            raise
        return handle
    return None
