"""Decoding beside the model: killable worker processes, a bounded number of bytes ahead of it.

    items --> [look_at] --wanted?--> [clip_of] --> ready clips --> take()          one thread and one process a worker
                                        `-- waits while the clips not yet released hold `ahead_bytes`

A clip that hangs, crashes or eats memory costs its own time limit and its worker, which is replaced. Frames come
through the guard's pipe into the array they stay in (`wire`): 16 frames of 336 px took 0.7 ms of processor time there
and 75 to decode, 64 frames 3 and 103, so shared memory would gain nothing.
"""

from __future__ import annotations

import base64
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from vidllm.corpus.looking import Look, Opened, Seen, status_of, unread_id
from vidllm.corpus.scenes import Cut
from vidllm.corpus.scratch import Scratch
from vidllm.corpus.webdataset import not_extracted
from vidllm.errors import VideoError, VidllmError
from vidllm.machine import cores
from vidllm.video.guard import Killed, NotBegun, Worker, error_of

if TYPE_CHECKING:
    from vidllm.corpus.item import Item
    from vidllm.corpus.rows import Status
    from vidllm.corpus.scenes import Range

AHEAD_BYTES = 256 << 20
"""Frames decoded or being decoded and not yet read by the model, by default."""
LEAST_SECONDS = 0.5
"""What the frames get of a time limit that looking at the clip has nearly used up."""


class Decoding(Protocol):
    """Whoever opens clips, here or on another machine; see `Decoder` for what is promised."""

    def look_at(self, item: Item) -> Seen: ...

    def open(self, item: Item, seen: Seen, seconds: float) -> Opened: ...

    def ranges(self, item: Item, split: str) -> tuple[Range, ...]: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...


class Decoder:
    """One worker process, started when first needed and again after it was killed. Belongs to one thread.

    No method raises for bad media. `kill` may come from any thread and ends the work in hand as undecodable. What a
    process that somebody else killed had in hand is begun once more.
    """

    def __init__(self, look: Look, *, cores: int = 1) -> None:
        """`cores` is its share of them: a decoder's threads wake each other at a price (`benchmarks/NOTES.md`), and
        clips side by side need none.
        """
        self._look, self._cores = look, cores
        self._worker: Worker | None = None
        self._folder: Scratch | None = None
        """Where the process extracts members of tars: it is killed, in the end at the latest, with one in hand."""
        self._killed = False

    def look_at(self, item: Item) -> Seen:
        """Who the clip is and what its frames will cost."""
        try:
            seen: Seen = self._call("look", item, self._look.limits.seconds)
        except VidllmError as error:
            return Seen(id=unread_id(item), status=status_of(error), error=str(error))
        if seen.bytes > self._look.limits.memory_bytes:
            most = self._look.limits.memory_bytes >> 20
            said = f"{item.video}: its frames take {seen.bytes >> 20} MB, the limit is {most} MB; ask for fewer frames"
            return Seen(id=seen.id, status="undecodable", error=said)
        return seen

    def open(self, item: Item, seen: Seen, seconds: float) -> Opened:
        """The frames of a clip that was looked at, within `seconds`."""
        began = time.perf_counter()
        clip = None
        if seen.status is None:
            try:
                clip = self._call("clip", item, max(seconds, LEAST_SECONDS))
            except VidllmError as error:
                seen = replace(seen, status=status_of(error), error=str(error))
        return Opened(item=item, seen=seen, clip=clip, seconds=time.perf_counter() - began)

    def ranges(self, item: Item, split: str) -> tuple[Range, ...]:
        """Where `split` cuts the clip, seconds on its own clock. Raises VidllmError."""
        return tuple((start, end) for start, end in self._call("ranges", item, self._look.limits.seconds, split))

    def kill(self) -> None:
        """End the process; nothing starts it again."""
        self._killed = True
        if (worker := self._worker) is not None:
            worker.process.kill()  # the pipes are closed by the thread that reads them

    def close(self) -> None:
        """End the process; for the thread that the decoder belongs to."""
        self.kill()
        if self._worker is not None:
            self._drop(self._worker)

    def _call(self, do: str, item: Item, seconds: float, words: str = "") -> Any:
        packed = base64.b64encode(pickle.dumps((item, self._look, words))).decode()
        limits = replace(self._look.limits, seconds=seconds)
        job: dict[str, object] = {
            "do": do, "path": item.video, "packed": packed, "cores": self._cores, "limits": vars(limits),
        }  # fmt: skip
        is_again = False
        while not self._killed:
            job["folder"] = self._folder_of(item)
            worker = self._worker = self._worker or Worker("vidllm.corpus.decode_child")
            try:
                reply = worker.call(job, limits)
            except NotBegun:
                self._drop(worker)
                continue
            except Killed:
                self._drop(worker)
                if is_again:
                    raise
                is_again = True
                continue
            except BaseException:
                self._drop(worker)
                raise
            if worker.is_spent():
                self._drop(worker)
            if "error" in reply:
                raise error_of(str(reply["error"]), str(reply["message"]))
            return reply["value"]
        raise VideoError(f"{item.video}: the run was stopped")

    def _folder_of(self, item: Item) -> str | None:
        """Where a member is extracted, made with the first; None for a plain file."""
        if item.member is None:
            return None
        try:
            self._folder = self._folder or Scratch()
        except OSError as error:
            raise not_extracted(item, error) from error
        return self._folder.name

    def _drop(self, worker: Worker) -> None:
        worker.kill()
        self._worker = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


class DecodePool:
    """Items in, opened clips out, in the order they are ready.

    `skip` says of an item that it is done, before its file is touched; `wanted` says whether a clip that was looked at
    shall be decoded (`skip` and `wanted` are called from the pool's threads). With `split` a clip without a range
    becomes the ranges that it is cut into, which `known_cut` may know from an earlier run, by (item, split, stamp);
    `on_cut` hears of them before the first. `decoders` take the place of `workers` processes on this machine; each
    belongs to one thread of the pool.
    """

    def __init__(
        self,
        items: Iterator[Item],
        look: Look,
        *,
        workers: int = 1,
        ahead_bytes: int = AHEAD_BYTES,
        ahead: int = 16,
        skip: Callable[[Item], bool] = lambda item: False,
        wanted: Callable[[Item, Seen], bool] = lambda item, seen: True,
        split: str = "none",
        known_cut: Callable[[Item, str, str], Cut | None] = lambda item, split, stamp: None,
        on_cut: Callable[[Item, Cut], None] = lambda item, cut: None,
        decoders: Sequence[Decoding] | None = None,
    ) -> None:
        self._items, self._look, self._split = items, look, split
        self._skip, self._wanted, self._known_cut, self._on_cut = skip, wanted, known_cut, on_cut
        self._ahead_bytes, self._ahead = ahead_bytes, ahead
        self._lock = threading.Condition()
        self._feed = threading.Lock()
        self._parts: deque[Item] = deque()
        self._ready: deque[Opened] = deque()
        self._held = 0  # bytes of clips being decoded, ready, or taken and not released
        self._cutting = 0
        self._closed = False
        self._error: BaseException | None = None
        share = max(cores() // workers, 1)
        self._decoders: Sequence[Decoding] = decoders or [Decoder(look, cores=share) for _ in range(workers)]
        self._alive = len(self._decoders)
        for decoder in self._decoders:
            threading.Thread(target=self._work, args=(decoder,), daemon=True, name="vidllm-decode").start()

    def take(self, wait: float = 0.0) -> Opened | None:
        """The next clip, within `wait` seconds; None when there is none yet. Raises what reading the items raised."""
        with self._lock:
            self._lock.wait_for(lambda: self._ready or self._error or not self._alive, wait)
            if self._ready:
                self._lock.notify_all()
                return self._ready.popleft()
            if self._error is not None:
                raise self._error
            return None

    def release(self, opened: Opened) -> None:
        """The model has read its frames: as many bytes may be decoded ahead again."""
        if opened.clip is not None:
            self._give_back(opened.seen.bytes)

    @property
    def finished(self) -> bool:
        """Whether nothing will come any more."""
        with self._lock:
            return not self._alive and not self._ready and self._error is None

    def close(self) -> None:
        """End the workers and forget what is ready; what they were doing is given up."""
        with self._lock:
            self._closed = True
            self._ready.clear()
            self._lock.notify_all()
        for decoder in self._decoders:
            decoder.kill()

    def _work(self, decoder: Decoding) -> None:
        try:
            while (found := self._next()) is not None:
                item, is_cut = found
                self._handle(decoder, item, is_cut)
        except BaseException as error:  # a thread's end: `take` raises it where somebody can answer
            with self._lock:
                self._error = self._error or error
        finally:
            decoder.close()
            with self._lock:
                self._alive -= 1
                self._lock.notify_all()

    def _next(self) -> tuple[Item, bool] | None:
        """A range that waits (True), else the next item that is not done; None at the end."""
        while not self._closed:
            with self._lock:
                if self._parts:
                    return self._parts.popleft(), True
            with self._feed:
                item = next(self._items, None)
                while item is not None and not self._cuts(item) and self._skip(item) and not self._closed:
                    item = next(self._items, None)
                if item is not None and self._cuts(item):  # told before another thread can find the feed empty
                    with self._lock:
                        self._cutting += 1
            if item is not None:
                return item, False
            with self._lock:  # another worker may still be cutting a long clip into ranges for all
                self._lock.wait_for(lambda: self._parts or not self._cutting or self._closed)
                if not self._parts:
                    return None
        return None

    def _cuts(self, item: Item) -> bool:
        return self._split != "none" and item.problem is None and item.start is None and item.end is None

    def _handle(self, decoder: Decoding, item: Item, is_cut: bool) -> None:
        if item.problem is not None:
            self._refuse(item, "error", item.problem)
        elif not is_cut and self._cuts(item):
            self._cut(decoder, item)
        else:
            self._open(decoder, item)

    def _cut(self, decoder: Decoding, item: Item) -> None:
        """Put the ranges of a long clip before the next items; one that can not be cut gets its row as a whole."""
        parts: list[Item] = []
        stamp = self._look.stamp_of(item)
        try:
            cut = self._known_cut(item, self._split, stamp)
            cut = cut or Cut(self._split, stamp, decoder.ranges(item, self._split))
            self._on_cut(item, cut)
            parts = [part for part in cut.parts(item) if not self._skip(part)]
        except VidllmError as error:
            # Closed, it was only the end of the run; and one that has its row as a whole is to be cut by the next run.
            if not self._closed and not self._skip(item):
                self._on_cut(item, Cut(self._split, stamp))
                self._refuse(item, status_of(error), str(error))
        finally:
            with self._lock:
                self._parts.extend(parts)
                self._cutting -= 1
                self._lock.notify_all()

    def _refuse(self, item: Item, status: Status, error: str) -> None:
        stamp = self._look.stamp_of(item)
        self._put(Opened(item=item, seen=Seen(id=unread_id(item), stamp=stamp, status=status, error=error)))

    def _open(self, decoder: Decoding, item: Item) -> None:
        began, stamp = time.perf_counter(), self._look.stamp_of(item)
        seen = replace(decoder.look_at(item), stamp=stamp)
        looked = time.perf_counter() - began
        if self._closed or not self._wanted(item, seen) or not self._reserve(seen.bytes):
            return
        opened = decoder.open(item, seen, self._look.limits.seconds - looked)
        if opened.clip is not None and self._look.stamp_of(item) != stamp:  # perhaps no frames of what was looked at
            said = f"{item.video}: was changed while it was read; run the same command again"
            opened = replace(opened, clip=None, seen=replace(seen, status="error", error=said))
        if opened.clip is None:
            self._give_back(seen.bytes)
        self._put(replace(opened, seconds=opened.seconds + looked))

    def _reserve(self, size: int) -> bool:
        """Wait until so many bytes fit (a clip larger than all of it goes alone); False when the pool was closed."""
        with self._lock:
            self._lock.wait_for(
                lambda: self._closed
                or (len(self._ready) < self._ahead and (not self._held or self._held + size <= self._ahead_bytes))
            )
            self._held += size
            return not self._closed

    def _give_back(self, size: int) -> None:
        with self._lock:
            self._held -= size
            self._lock.notify_all()

    def _put(self, opened: Opened) -> None:
        with self._lock:
            if not self._closed:
                self._ready.append(opened)
                self._lock.notify_all()
