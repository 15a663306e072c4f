"""URLs as videos, from a real HTTP server on this machine. The bytes need not be a video: fetch never looks at them."""

import errno
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vidllm.errors import CacheError, FetchError, NotAVideo
from vidllm.sources import open_source
from vidllm.still import is_still
from vidllm.video.address import is_url
from vidllm.video.fetch import FetchLimits, fetch
from vidllm.video.info import probe

DATA = bytes(range(256)) * 4000  # 1 MB


@dataclass
class Server:
    """What the handler serves, and what it was asked for."""

    url: str = ""
    etag: str | None = '"one"'
    data: bytes = DATA
    asked: list[str] = field(default_factory=list)
    logins: list[str | None] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    """One path, one way for a server to behave."""

    state: Server

    def log_message(self, format: str, *args: object) -> None:
        """Tests are silent."""

    def do_GET(self) -> None:
        self.state.asked.append(self.path)
        self.state.logins.append(self.headers.get("Authorization"))
        kind = self.path.strip("/").split("?")[0]
        if kind.startswith("missing"):
            self.send_error(404)
        elif kind.startswith("moved"):
            self.head(302, {"Location": "/clip.mp4"})
        elif kind.startswith("circle"):
            self.head(302, {"Location": "/circle.mp4"})
        elif kind.startswith("file"):
            self.head(302, {"Location": "file:///etc/hostname"})
        elif self.state.etag and self.headers.get("If-None-Match") == self.state.etag:
            self.head(304, {})
        else:
            self.answer(kind)

    def answer(self, kind: str) -> None:
        data = self.state.data
        headers = {"Content-Type": "video/mp4", "Content-Length": str(len(data))}
        if self.state.etag:
            headers["ETag"] = self.state.etag
        if kind.startswith("page"):
            headers["Content-Type"] = "text/html; charset=utf-8"
        if kind.startswith("picture"):
            headers["Content-Type"] = "image/jpeg"
        if kind.startswith("short"):
            headers["Content-Length"] = str(len(data) + 1000)
        if kind.startswith(("unsized", "endless")):
            del headers["Content-Length"]
        if kind.startswith("empty"):
            data, headers["Content-Length"] = b"", "0"
        self.head(200, headers)
        self.body(kind, data)

    def body(self, kind: str, data: bytes) -> None:
        try:
            if kind.startswith("slow"):
                while True:  # until the client leaves
                    self.wfile.write(data[:10])
                    time.sleep(0.05)
            elif kind.startswith("silent"):
                time.sleep(5)
            elif kind.startswith("endless"):
                for _ in range(400):
                    self.wfile.write(data)
            else:
                self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has given up, as it should

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.state.statuses.append(status)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()
    handler = type("BoundHandler", (Handler,), {"state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        http_server.daemon_threads = True
        http_server.block_on_close = False
        state.url = f"http://127.0.0.1:{http_server.server_address[1]}"
        thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield state
        http_server.shutdown()
        thread.join()


def copies(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix != ".json"] if folder.is_dir() else []


def one_line(caught: pytest.ExceptionInfo[Exception]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("video", "is_one"),
    [
        ("http://a/b.mp4", True),
        ("HTTPS://a/b", True),
        ("clip.mp4", False),
        ("ftp://a/b", False),
        (Path("http:/a"), False),
    ],
)
def test_what_is_a_url(video: object, is_one: bool) -> None:
    assert is_url(video) == is_one


def test_a_url_becomes_a_file_with_progress(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = fetch(f"{server.url}/clip.mp4", lambda done, total: seen.append((done, total)), folder=tmp_path / "new")
    assert path.read_bytes() == DATA
    assert path.suffix == ".mp4"
    assert seen[-1] == (len(DATA), len(DATA))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_second_time_the_copy_is_used(server: Server, tmp_path: Path) -> None:
    first = fetch(f"{server.url}/clip.mp4", folder=tmp_path)
    stamp = first.stat().st_mtime_ns
    os.utime(first, ns=(0, 0))
    assert fetch(f"{server.url}/clip.mp4", folder=tmp_path) == first
    assert server.statuses == [200, 304]
    assert first.stat().st_mtime_ns >= stamp  # used just now: the last to be thrown out


def test_a_changed_file_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    fetch(f"{server.url}/clip.mp4", folder=tmp_path)
    server.etag, server.data = '"two"', b"changed"
    assert fetch(f"{server.url}/clip.mp4", folder=tmp_path).read_bytes() == b"changed"


def test_without_a_mark_to_know_it_by_a_file_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    server.etag = None
    fetch(f"{server.url}/clip.mp4", folder=tmp_path)
    server.data = b"changed"
    assert fetch(f"{server.url}/clip.mp4", folder=tmp_path).read_bytes() == b"changed"


def test_a_copy_serves_when_the_network_is_away(server: Server, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/clip.mp4"
    with pytest.raises(FetchError, match="check the address and the network") as caught:
        fetch(url, folder=tmp_path)
    one_line(caught)
    copy = fetch(f"{server.url}/clip.mp4", folder=tmp_path)
    server.statuses.clear()
    server_url = f"{server.url}/clip.mp4"
    note = next(tmp_path.glob("*.json"))
    assert note.stem == copy.stem
    from vidllm.video.fetch import _digest

    copy.rename(copy.with_stem(_digest(url)))
    note.write_text(note.read_text().replace(_digest(server_url), _digest(url)))
    note.rename(note.with_stem(_digest(url)))
    assert fetch(url, folder=tmp_path).read_bytes() == DATA


def test_a_damaged_copy_is_not_used(server: Server, tmp_path: Path) -> None:
    path = fetch(f"{server.url}/clip.mp4", folder=tmp_path)
    path.write_bytes(b"short")
    assert fetch(f"{server.url}/clip.mp4", folder=tmp_path).read_bytes() == DATA
    next(tmp_path.glob("*.json")).write_text("{not json")
    assert fetch(f"{server.url}/clip.mp4", folder=tmp_path).read_bytes() == DATA


def test_redirects_are_followed(server: Server, tmp_path: Path) -> None:
    assert fetch(f"{server.url}/moved.mp4", folder=tmp_path).read_bytes() == DATA


def test_an_address_is_taken_as_people_write_it(server: Server, tmp_path: Path) -> None:
    for written in ("我的 clip.mp4?day=1 May&x=é", "already%20told.mp4?a=%C3%A9&b=[1]#t=30", "100% fun.mp4"):
        assert fetch(f"{server.url}/{written}", folder=tmp_path).read_bytes() == DATA
    assert server.asked == [
        "/%E6%88%91%E7%9A%84%20clip.mp4?day=1%20May&x=%C3%A9",
        "/already%20told.mp4?a=%C3%A9&b=[1]",
        "/100%25%20fun.mp4",
    ]
    with pytest.raises(FetchError, match="could not be fetched"):  # looked up under its name in the network
        fetch("http://例え.invalid/clip.mp4", folder=tmp_path)


def test_name_and_password_are_told_to_their_server_alone(server: Server, tmp_path: Path) -> None:
    address = server.url.replace("http://", "http://ann:open%20sesame@")
    assert fetch(f"{address}/moved.mp4", folder=tmp_path).read_bytes() == DATA
    assert server.asked == ["/moved.mp4", "/clip.mp4"]
    assert server.logins == ["Basic YW5uOm9wZW4gc2VzYW1l", None]


def test_a_name_without_an_ending_gets_one(server: Server, tmp_path: Path) -> None:
    assert fetch(f"{server.url}/clip?id=7", folder=tmp_path).suffix == ".mp4"
    assert fetch(f"{server.url}/clip.WebM?id=7", folder=tmp_path).suffix == ".webm"
    assert fetch(f"{server.url}/clip.json", folder=tmp_path).suffix == ".mp4"
    for name in ("picture", "picture.php?id=7"):
        assert is_still(fetch(f"{server.url}/{name}", folder=tmp_path))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing.mp4", "404"),
        ("page", "web page"),
        ("short.mp4", "try again"),
        ("empty.mp4", "0 of"),
        ("circle.mp4", "302"),
        ("file.mp4", "302"),
    ],
)
def test_what_can_not_be_fetched_is_one_line_and_leaves_nothing(
    server: Server, tmp_path: Path, path: str, words: str
) -> None:
    with pytest.raises(FetchError, match=words) as caught:
        fetch(f"{server.url}/{path}", folder=tmp_path)
    assert path in one_line(caught)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:1/x.mp4", "check the address"),
        ("http://nowhere.invalid/x.mp4", "check the address"),
        ("http://[bad/x.mp4", "not an address"),
        ("http://", "no host given"),
        ("file:///etc/hostname", "not an address"),
        ("http://a b/c.mp4", "check the address|not an address"),
    ],
)
def test_a_bad_address_is_one_line(tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(FetchError, match=words) as caught:
        fetch(url, folder=tmp_path)
    one_line(caught)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["clip.mp4", "unsized.mp4", "endless.mp4"])
def test_too_large_is_one_line_and_leaves_nothing(server: Server, tmp_path: Path, path: str) -> None:
    with pytest.raises(FetchError, match="limit of 500000"):
        fetch(f"{server.url}/{path}", folder=tmp_path, limits=FetchLimits(file_bytes=500_000))
    assert not list(tmp_path.iterdir())


def test_a_slow_server_ends_at_the_limit(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"after 0.3 s"):
        fetch(f"{server.url}/slow.mp4", folder=tmp_path, limits=FetchLimits(total_seconds=0.3))
    assert not list(tmp_path.iterdir())


def test_a_silent_server_ends_at_the_limit(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="timed out"):
        fetch(f"{server.url}/silent.mp4", folder=tmp_path, limits=FetchLimits(silence_seconds=0.3))
    assert not list(tmp_path.iterdir())


def test_half_a_file_is_never_seen_and_an_interrupt_leaves_nothing(server: Server, tmp_path: Path) -> None:
    seen: list[list[Path]] = []

    def interrupt(done: int, total: int | None) -> None:
        seen.append([path for path in copies(tmp_path) if not path.name.startswith(".")])
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(f"{server.url}/clip.mp4", interrupt, folder=tmp_path)
    assert seen
    assert not any(seen)
    assert not list(tmp_path.iterdir())


def test_the_cache_is_capped_and_the_longest_unused_go(server: Server, tmp_path: Path) -> None:
    server.etag = None
    room = FetchLimits(cache_bytes=2 * len(DATA) + 1)
    first, second = (fetch(f"{server.url}/{name}.mp4", folder=tmp_path, limits=room) for name in ("a", "b"))
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    third = fetch(f"{server.url}/c.mp4", folder=tmp_path, limits=room)
    assert set(copies(tmp_path)) == {second, third}
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert fetch(f"{server.url}/d.mp4", folder=tmp_path, limits=FetchLimits(cache_bytes=1)).is_file()


def test_a_clip_that_another_process_throws_out_meanwhile_is_no_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders are listed first: what stands in the list may be gone when it is looked at."""
    (tmp_path / "gone.mp4").write_bytes(DATA)
    listed = Path.iterdir

    def iterdir(folder: Path) -> Iterator[Path]:
        names = list(listed(folder))
        (tmp_path / "gone.mp4").unlink(missing_ok=True)
        return iter(names)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    monkeypatch.setattr(Path, "is_file", lambda path: True)  # as it was a moment ago
    assert fetch(f"{server.url}/a.mp4", folder=tmp_path, limits=FetchLimits(cache_bytes=1)).name in os.listdir(tmp_path)


def test_a_cache_of_somebody_elses_is_read_and_added_to(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others' clips can not be removed when room is short, nor marked as used: neither keeps a clip from being had."""
    copy = fetch(f"{server.url}/clip.mp4", folder=tmp_path)
    plain = tmp_path / "plain"
    plain.touch()
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {plain.stat().st_mode}, "who shares it may read it"
    (tmp_path / ".part-old").write_bytes(b"x")
    os.utime(tmp_path / ".part-old", (1, 1))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert fetch(f"{server.url}/clip.mp4", folder=tmp_path) == copy
    other = fetch(f"{server.url}/other.mp4", folder=tmp_path, limits=FetchLimits(cache_bytes=1))
    assert other.read_bytes() == copy.read_bytes() == DATA


def test_what_a_killed_download_left_is_swept(server: Server, tmp_path: Path) -> None:
    old, young = tmp_path / ".part-old", tmp_path / ".part-young"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(old, (1, 1))
    fetch(f"{server.url}/clip.mp4", folder=tmp_path)
    assert not old.exists()
    assert young.exists()


def test_a_folder_that_can_not_be_written_is_one_line(server: Server, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(CacheError, match="VIDLLM_CACHE") as caught:
        fetch(f"{server.url}/clip.mp4", folder=blocked)
    one_line(caught)


@pytest.mark.parametrize("lost", ["begin", "read1"])
def test_a_network_that_goes_away_is_not_told_of_the_folder(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    monkeypatch.setattr(http.client.HTTPResponse, lost, fail)
    with pytest.raises(FetchError, match=r"No route to host.*check the address and the network") as caught:
        fetch(f"{server.url}/clip.mp4", folder=tmp_path)
    one_line(caught)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_leaves_nothing(server: Server) -> None:
    """/dev/shm-like small file systems need root; a file-size limit makes a write fail the same way, in a child."""
    import subprocess
    import sys
    import tempfile

    if sys.platform == "win32":
        pytest.skip("file-size limits are POSIX")
    code = (
        "import resource, signal, sys, pathlib; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from vidllm.video.fetch import fetch; from vidllm.errors import CacheError\n"
        "try: fetch(sys.argv[1], folder=pathlib.Path(sys.argv[2]))\n"
        "except CacheError as error: print(error)"
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code, f"{server.url}/clip.mp4", folder]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "can not be written" in said
        assert said.count("\n") == 1
        assert not os.listdir(folder)


def test_a_note_that_finds_no_room_leaves_nothing_half_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(CacheError, match="No space left"):
        fetch(f"{server.url}/clip.mp4", folder=tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [DATA]


def test_what_an_address_leads_to_is_told_by_the_address(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clips: dict[str, Path]
) -> None:
    """In the cache it has a name that says nothing to whoever gave the address."""
    monkeypatch.setenv("VIDLLM_CACHE", str(tmp_path))
    for read in (open_source, probe):
        with pytest.raises(NotAVideo, match=f"^{server.url}/clip.mp4: not a readable video") as caught:
            read(f"{server.url}/clip.mp4?token=secret")
        assert "secret" not in one_line(caught)
    server.data = clips["constant"].read_bytes()
    assert probe(f"{server.url}/sound.mp4").num_frames == 60


def test_secrets_of_a_url_are_not_repeated(server: Server, tmp_path: Path) -> None:
    address = server.url.removeprefix("http://")
    with pytest.raises(FetchError) as caught:
        fetch(f"http://{address}/missing.mp4?token=secret", folder=tmp_path)
    assert "secret" not in one_line(caught)
    with pytest.raises(FetchError) as caught:
        fetch("http://me:secret@127.0.0.1:1/x.mp4", folder=tmp_path)
    assert "secret" not in one_line(caught)
    with pytest.raises(FetchError) as caught:
        fetch("http://127.0.0.1:1?token=sec/secret", folder=tmp_path)
    assert "sec" not in one_line(caught)


def test_two_at_once_both_end_with_the_whole_file(server: Server, tmp_path: Path) -> None:
    got: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: got.append(fetch(f"{server.url}/clip.mp4", folder=tmp_path).read_bytes()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [DATA] * 4
    assert len(copies(tmp_path)) == 1


def test_limits_are_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        FetchLimits(file_bytes=0)
