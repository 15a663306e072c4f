"""http(s) URL -> a file in a capped cache folder, whole or not at all.

A download is written under a hidden name and renamed when its last byte is there, so nobody ever sees half a clip. The
next request for the same URL asks the server whether the file has changed (ETag, Last-Modified) and reuses it if not.
"""

import base64
import hashlib
import http.client
import json
import mimetypes
import os
import re
import stat
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

from vidllm.caches import cache_folder
from vidllm.errors import CacheError, FetchError, VideoError
from vidllm.video.address import is_url
from vidllm.video.container import opened, pick_stream

Progress = Callable[[int, int | None], None]
"""Called with the bytes here so far and the bytes in all, None where the server does not tell."""

CHUNK_BYTES = 1 << 18
STALE_PART_SECONDS = 24 * 3600
"""An unfinished download this old belongs to nobody any more."""
_PART_PREFIX = ".part-"
_NOT_A_FILE = {
    "text/html": "a web page, not a video file; download the clip first (yt-dlp does it for most sites)",
    "application/vnd.apple.mpegurl": "a streaming playlist, not a video file; download the clip first",
    "application/x-mpegurl": "a streaming playlist, not a video file; download the clip first",
    "application/dash+xml": "a streaming playlist, not a video file; download the clip first",
}


@dataclass(frozen=True, kw_only=True)
class FetchLimits:
    """What one download and the cache as a whole may take."""

    file_bytes: int = 4 << 30
    """Most bytes of one clip."""
    cache_bytes: int = 16 << 30
    """Most bytes of all cached clips; the longest unused go first."""
    total_seconds: float = 3600.0
    """Longest whole download."""
    silence_seconds: float = 30.0
    """Longest wait for the server to say anything."""

    def __post_init__(self) -> None:
        if min(self.file_bytes, self.cache_bytes, self.total_seconds, self.silence_seconds) <= 0:
            raise ValueError(f"every limit must be positive, got {self}")


DEFAULT_LIMITS = FetchLimits()


def fetch_clip(url: str, progress: Progress | None = None) -> Path:
    """`fetch`, and a look at what came: no video is told by its address, not by its name in the cache."""
    path = fetch(url, progress)
    try:
        with opened(path, look_inside=False) as container:
            pick_stream(container, path)
    except VideoError as error:
        raise type(error)(str(error).replace(str(path), _shown(url))) from error
    return path


def fetch(
    url: str,
    progress: Progress | None = None,
    *,
    limits: FetchLimits = DEFAULT_LIMITS,
    folder: Path | None = None,
) -> Path:
    """The local file of `url`, downloaded into `folder` (default: the cache folder for videos) unless it is there.

    A copy that is there is used when the server says it has not changed, and when the server can not be reached.
    Raises `FetchError` (network, status, size, time, not a file) or `CacheError` (the folder can not be written).
    """
    if not is_url(url):
        raise FetchError(f"{url!r} is not an address that can be fetched; give an http:// or https:// one")
    shown = _shown(url)
    place = folder or cache_folder("videos")
    with _as_one_line(shown, place):
        place.mkdir(parents=True, exist_ok=True)
        known = _Copy.of(url, place)
        try:
            return _download(url, shown, place, known, limits, progress)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != http.client.NOT_MODIFIED or known is None:
                raise
        except urllib.error.URLError:
            if known is None:
                raise
        with suppress(OSError):  # a folder of somebody else's is read all the same
            os.utime(known.path)  # the cache throws out what was unused longest
        return known.path


@dataclass(frozen=True)
class _Copy:
    """A file that is in the cache already, and what the server said to recognise it by."""

    path: Path
    etag: str | None
    modified: str | None

    @staticmethod
    def of(url: str, folder: Path) -> "_Copy | None":
        note = folder / f"{_digest(url)}.json"
        try:
            said = json.loads(note.read_text(encoding="utf-8"))
            copy = _Copy(folder / said["file"], said["etag"], said["modified"])
            return copy if copy.path.stat().st_size == said["bytes"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # no copy, a damaged one, or one that is closed to us: fetch it anew


def _download(
    url: str, shown: str, folder: Path, known: _Copy | None, limits: FetchLimits, progress: Progress | None
) -> Path:
    with _network():
        opened = urllib.request.urlopen(_request(url, known), timeout=limits.silence_seconds)
    with opened as answer:
        total = _announced(answer, shown, limits)
        name = f"{_digest(url)}{_suffix(url, answer.headers.get_content_type())}"
        _sweep(folder)
        with _whole(folder / name) as part:
            size = _copy_bytes(answer, part, shown, total, limits, progress)
        etag, modified = answer.headers["ETag"], answer.headers["Last-Modified"]
    with _whole(folder / f"{_digest(url)}.json") as note:
        note.write(json.dumps({"file": name, "bytes": size, "etag": etag, "modified": modified}).encode())
    _make_room(folder, limits.cache_bytes, keep=folder / name)
    return folder / name


_KEPT = "%/:;=&?~+!$,'()*@[]"
"""Characters of a path or query that are left as they stand: a % before two digits has escaped something already."""


def _request(url: str, known: _Copy | None) -> urllib.request.Request:
    """Asks for `url` as people write it: with spaces and letters of any script, or as `http://name:password@host/`."""
    parts = urllib.parse.urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    name, colon, port = host.partition(":")
    if not name.isascii():
        host = name.encode("idna").decode() + colon + port
    path, query = (
        urllib.parse.quote(re.sub("%(?![0-9A-Fa-f]{2})", "%25", part), safe=_KEPT) for part in (parts.path, parts.query)
    )
    address = urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))
    request = urllib.request.Request(address, headers=_headers(known))
    if login:  # not told to where a redirect may lead
        secret = base64.b64encode(urllib.parse.unquote(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    return request


def _headers(known: _Copy | None) -> dict[str, str]:
    headers = {"User-Agent": "vidllm", "Accept-Encoding": "identity"}
    if known and known.etag:
        headers["If-None-Match"] = known.etag
    if known and known.modified:
        headers["If-Modified-Since"] = known.modified
    return headers


def _announced(answer: http.client.HTTPResponse, shown: str, limits: FetchLimits) -> int | None:
    """Bytes the server promises; raises when what it offers can not be a clip, or is too large."""
    if reason := _NOT_A_FILE.get(answer.headers.get_content_type().lower()):
        raise FetchError(f"{shown}: this is {reason}")
    length = answer.headers.get("Content-Length")
    total = int(length) if length and length.isdecimal() else None
    if total is not None and total > limits.file_bytes:
        raise _too_large(shown, total, limits)
    return total


def _copy_bytes(
    answer: http.client.HTTPResponse,
    part: IO[bytes],
    shown: str,
    total: int | None,
    limits: FetchLimits,
    progress: Progress | None,
) -> int:
    done, until = 0, time.monotonic() + limits.total_seconds
    while chunk := _arrived(answer):
        part.write(chunk)
        done += len(chunk)
        if done > limits.file_bytes:
            raise _too_large(shown, done, limits)
        if time.monotonic() > until:
            raise FetchError(f"{shown}: not here after {limits.total_seconds:g} s ({done} bytes); download it yourself")
        if progress is not None:
            progress(done, total)
    if done == 0 or (total is not None and done != total):
        raise FetchError(f"{shown}: the connection ended after {done} of {total or 'unknown'} bytes; try again")
    return done


def _arrived(answer: http.client.HTTPResponse) -> bytes:
    """What has come, however little, so that a slow server can not hide from the clock; empty at the end."""
    with _network():
        return answer.read1(CHUNK_BYTES)


@contextmanager
def _network() -> Iterator[None]:
    """What goes wrong inside, such as a lost route or broken TLS, is the network's fault, not that of our folder."""
    try:
        yield
    except urllib.error.URLError:
        raise
    except OSError as error:
        raise urllib.error.URLError(error) from error


def _too_large(shown: str, size: int, limits: FetchLimits) -> FetchError:
    return FetchError(f"{shown}: {size} bytes are more than the limit of {limits.file_bytes}; download it yourself")


@contextmanager
def _whole(target: Path) -> Iterator[IO[bytes]]:
    """A file to write that gets its name with its last byte; Ctrl-C too leaves nothing half-written."""
    part = target.with_name(f"{_PART_PREFIX}{uuid4().hex}")
    try:
        with open(part, "xb") as file:  # unlike a temporary file, everybody may read it who shares the cache
            yield file
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _sweep(folder: Path) -> None:
    """Removes what a killed download left behind."""
    for part in folder.glob(f"{_PART_PREFIX}*"):
        with suppress(OSError):  # gone meanwhile, or somebody else's
            if time.time() - part.stat().st_mtime > STALE_PART_SECONDS:
                part.unlink()


def _make_room(folder: Path, cap_bytes: int, *, keep: Path) -> None:
    used = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process makes room, too
            status = path.stat()
            if stat.S_ISREG(status.st_mode) and path.suffix != ".json" and not path.name.startswith("."):
                used.append((status.st_mtime, status.st_size, path))
    excess = sum(size for _, size, _ in used) - cap_bytes
    for _, size, path in sorted(used):
        if excess <= 0:
            return
        with suppress(OSError):  # somebody else's
            if path != keep:
                path.unlink(missing_ok=True)
                excess -= size
                path.with_suffix(".json").unlink(missing_ok=True)


def _digest(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:24]


def _suffix(url: str, content_type: str) -> str:
    """The clip's file name ending: some containers are told by it alone, and so are pictures."""
    kind = content_type.partition("/")[0]
    told = mimetypes.guess_extension(content_type, strict=False) if kind in ("image", "video") else None
    named = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).suffix.lower()
    if told and kind == "image":
        return told  # whatever the script is called that sends it
    return named if re.fullmatch(r"\.[a-z0-9]{1,5}", named) and named != ".json" else told or ".video"


def _shown(url: str) -> str:
    """The URL without name, password and query: those may be secret."""
    scheme, _, rest = url.partition("://")
    login = rest.partition("/")[0].rpartition("@")[0]
    return f"{scheme}://{re.split('[?#]', rest[len(login) :].removeprefix('@'))[0]}"


@contextmanager
def _as_one_line(shown: str, folder: Path) -> Iterator[None]:
    """Foreign exceptions -> one line: what, where, what to do next."""
    try:
        yield
    except urllib.error.HTTPError as error:
        reason = " ".join(str(error.reason).split())
        raise FetchError(f"{shown}: the server answered {error.code} {reason}; check the address") from error
    except (urllib.error.URLError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error) or type(error).__name__).split())
        raise FetchError(f"{shown}: could not be fetched ({reason}); check the address and the network") from error
    except ValueError as error:
        raise FetchError(f"{shown}: not an address that can be fetched ({error})") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise CacheError(f"{folder}: can not be written ({reason}); free space or set VIDLLM_CACHE") from error
