"""A file of lines that only grows: one writer, whole lines or none, and what was written survives the writer's death.

open   lock -> cut off a half-written last line -> append ... append -> close
       a line is handed to the kernel before `append` returns: kill -9 takes nothing; the disk hears every 5 s
"""

import errno
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vidllm.errors import OutputError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

SYNC_SECONDS = 5.0
"""A power cut may take what was written in so many seconds; waiting for the disk at every line would cost its time."""
BLOCK_BYTES = 8 << 20
LEAST_BLOCK = 1 << 16
_OPEN = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class LineFile:
    """Lines of bytes at `path`, made if it is not there. Every method raises OutputError, one line, when it can not.

    `name` is what errors call it: the output that the file belongs to.
    """

    def __init__(self, path: Path, *, name: Path | None = None, lock: bool = False) -> None:
        self.path, self.name = path, name or path
        self._synced = time.monotonic()
        try:
            self._handle = os.open(path, _OPEN | os.O_CREAT, 0o666)
        except OSError as error:
            raise not_writable(self.name, error) from error
        try:
            if lock:
                self._lock()
            self.size = self._repaired()
        except BaseException:
            os.close(self._handle)
            raise

    def append(self, line: bytes) -> int:
        """Write one line, or many; returns where it begins. A line that does not fit on the disk leaves no trace."""
        place = self.size
        try:
            os.lseek(self._handle, place, os.SEEK_SET)
            left = memoryview(line)
            while left:
                left = left[os.write(self._handle, left) :]
        except OSError as error:
            self._forget_half(place)
            raise not_writable(self.name, error) from error
        self.size = place + len(line)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()
        return place

    def sync(self) -> None:
        """Wait until the disk has it."""
        try:
            os.fsync(self._handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a pipe or device has no disk behind it
                raise not_writable(self.name, error) from error
        self._synced = time.monotonic()

    def line_at(self, place: int) -> bytes:
        """The line that begins at `place`, without its line feed."""
        size = LEAST_BLOCK
        while True:
            data = self._read(size, place)
            end = data.find(b"\n")
            if end >= 0 or len(data) < size:
                return data[: end if end >= 0 else len(data)]
            size *= 4

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(place, line without line feed) from the first to the last; blocks are read, not lines."""
        place, rest = 0, b""
        read = 0
        while read < self.size:
            block = self._read(BLOCK_BYTES, read)
            if not block:
                return
            read += len(block)
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                yield place, line
                place += len(line) + 1

    def cut(self, size: int) -> int:
        """Keep the first `size` bytes: whole lines, told by `lines`. Returns `size`."""
        try:
            os.ftruncate(self._handle, size)
        except OSError as error:
            raise not_writable(self.name, error) from error
        self.size = size
        return size

    def close(self) -> None:
        """Sync and let go of the lock."""
        try:
            self.sync()
        finally:
            os.close(self._handle)

    def reopen(self) -> None:
        """Follow the path to the file that was put in its place."""
        handle = os.open(self.path, _OPEN)
        os.close(self._handle)
        self._handle = handle
        self.size = os.fstat(handle).st_size

    def _read(self, size: int, place: int) -> bytes:
        try:
            os.lseek(self._handle, place, os.SEEK_SET)
            return os.read(self._handle, size)
        except OSError as error:
            raise OutputError(f"{self.path}: can not be read ({error.strerror}); check the disk") from error

    def _lock(self) -> None:
        try:
            if sys.platform == "win32":
                os.lseek(self._handle, 0, os.SEEK_SET)
                msvcrt.locking(self._handle, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise OutputError(
                    f"{self.name}: another run is writing it; wait for its end, or give this one an output of its own"
                ) from error
            raise OutputError(
                f"{self.name}: this file system has no locks ({error.strerror}); choose a local disk"
            ) from error

    def _repaired(self) -> int:
        """The size after a last line without its end was cut off; a whole object only gets its line feed."""
        size = os.fstat(self._handle).st_size
        start, tail = _last_line(self._handle, size)
        whole = tail.rstrip(b"\0")  # after a power cut the end may be zeros
        if not whole:
            return self.cut(start) if tail else size
        try:
            json.loads(whole)
        except ValueError:
            return self.cut(start)
        self.size = self.cut(start + len(whole))
        self.append(b"\n")
        return self.size

    def _forget_half(self, size: int) -> None:
        """Take back what a full disk let through; if even that fails, the next opening does it."""
        try:
            os.ftruncate(self._handle, size)
        except OSError:
            return


def _last_line(handle: int, size: int) -> tuple[int, bytes]:
    """(place, bytes) behind the last line feed; empty when the file ends with one."""
    tail, place = b"", size
    while place:
        step = min(LEAST_BLOCK, place)
        place -= step
        os.lseek(handle, place, os.SEEK_SET)
        tail = os.read(handle, step) + tail
        if (end := tail.rfind(b"\n")) >= 0:
            return place + end + 1, tail[end + 1 :]
    return 0, tail


def json_line(value: object) -> bytes:
    """A value as one line of JSON in UTF-8, its line feed included; half a character (a lone surrogate: servers and
    names of files may hold one) is escaped."""
    try:
        return json.dumps(value, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value).encode() + b"\n"


def write_whole(path: Path, text: str | Iterable[str]) -> None:
    """Put a text, or many one after the other, in `path`'s place: a reader sees the old file or the new one. Raises
    OutputError.

    A link stays one: who made it wants the bytes where it leads.
    """
    check_regular(path)
    target, part = _target_and_part(path)
    with replacing(target, part, name=path), open(part, "w", encoding="utf-8") as file:
        file.writelines([text] if isinstance(text, str) else text)


def check_whole_place(path: Path) -> None:
    """Raise OutputError, hours before it, where `write_whole` could not put a file; nothing is left there."""
    check_regular(path)
    check_place(_target_and_part(path)[1], name=path)


def check_place(part: Path, *, name: Path) -> None:
    """Raise OutputError, which calls the file `name`, where no file can be begun at `part`; none is left there."""
    try:
        with suppress(FileExistsError):  # somebody is writing there just now
            open(part, "xb").close()
            part.unlink()
    except OSError as error:
        raise not_writable(name, error) from error


def _target_and_part(path: Path) -> tuple[Path, Path]:
    """Where the bytes go in the end, and until they are whole."""
    target = Path(os.path.realpath(path))
    return target, target.with_name(target.name + ".part")


@contextmanager
def replacing(target: Path, part: Path, *, name: Path | None = None) -> Iterator[Path]:
    """What the block writes at `part` takes `target`'s place behind it, on the disk and whole, or leaves no trace.

    Raises OutputError, which calls the file `name`; None: as it is called.
    """
    try:
        yield part
        # Windows flushes only for who may write; elsewhere the part may be read-only by now, as what it replaces
        with open(part, "r+b" if sys.platform == "win32" else "rb") as written:
            os.fsync(written.fileno())
        os.replace(part, target)
    except OSError as error:
        raise not_writable(name or target, error) from error
    finally:
        with suppress(OSError):  # it has taken the place, or never was
            part.unlink()


def sync_folder(folder: Path) -> None:
    """Make names as lasting as contents; Windows does it by itself and knows no handle of a folder."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_regular(path: Path) -> None:
    """Raises OutputError for what is there and no file: what is put in the place of /dev/null is gone for everybody."""
    if path.exists() and not path.is_file() and not path.is_dir():  # opening a folder tells of itself
        raise OutputError(f"{path}: is a device or a pipe, no file; name a file, it is replaced as a whole")


def not_writable(path: Path, error: OSError) -> OutputError:
    """What to tell of a file that takes no more, by the system's reason."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"{path}: no room left on the disk; every row before this is safe, make room and run again")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return OutputError(f"{path}: may not be written ({reason}); choose another place or change its permissions")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return OutputError(f"{path}: its folder is not there; make it first, or choose another place")
    if error.errno == errno.EISDIR:
        return OutputError(f"{path}: is a folder; name a file such as {path}/captions.jsonl")
    return OutputError(f"{path}: can not be written ({reason}); every row before this is safe")
