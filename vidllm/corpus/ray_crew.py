"""Which actors of a Ray cluster live, and decoding with whichever of them is free."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vidllm.corpus.looking import Opened, Seen, unread_id
from vidllm.corpus.ray_nodes import FarClip
from vidllm.errors import EngineError, VideoError, VidllmError

if TYPE_CHECKING:
    from vidllm.corpus.item import Item
    from vidllm.corpus.scenes import Range

LOOK_UP_SECONDS = 0.5
"""How often a thread that waits for a node looks whether the run was stopped."""
RESCUE_SECONDS = 20.0
"""Without a single worker of a kind for so long, one is started that asks for no CPU of its own."""
LOST_SECONDS = 300.0
"""Without one for so long, the run ends."""
CLOSE_SECONDS = 5.0
"""What threads get to hear that their crew is closed."""
MOST_DEATHS = 5
"""So many workers may die with a clip in hand before that is the clip's error."""


class Crew:
    """The actors of one kind that live: a dead one is replaced when the cluster has a place for it.

    Every actor is raised in a thread of its own, because it may wait for its place for ever. Thread-safe.
    """

    def __init__(self, kind: str, size: int, start: Callable[[bool], Any]) -> None:
        self._kind, self._start = kind, start
        self._lock = threading.Condition()
        self._idle: deque[tuple[Any, Any]] = deque()
        self._alive = 0
        self._last_seen = time.monotonic()
        self._rescuing = False
        self._refused: Exception | None = None
        self.closed = threading.Event()
        self._asking = 0
        self._threads: list[threading.Thread] = []
        for _ in range(size):
            self._raise_one()

    def borrow(self, wait: float) -> tuple[Any, Any] | None:
        """An actor that has nothing to do and what it said when it was ready; None when there is none in time.

        Raises EngineError when none can be started or there has been none for too long.
        """
        with self._lock:
            self._lock.wait_for(lambda: self._idle or self._refused, wait)
            if self._idle:
                return self._idle.popleft()
            if self._refused is not None:
                raise self._refused
            gone = 0.0 if self._alive else time.monotonic() - self._last_seen
            rescue = gone > RESCUE_SECONDS and not self._rescuing
            self._rescuing = self._rescuing or rescue
        if rescue:
            self._raise_one(rescue=True)
        if gone > LOST_SECONDS:
            raise EngineError(
                f"the cluster has had no place for a {self._kind} for {gone:.0f} s; "
                "what is finished is kept: add nodes and run the same command again"
            )
        return None

    def give_back(self, one: tuple[Any, Any]) -> None:
        """It has nothing to do again."""
        with self._lock:
            self._idle.append(one)
            self._lock.notify()

    def lost(self) -> None:
        """A borrowed one died: another is raised."""
        with self._lock:
            self._alive -= 1
            self._last_seen = time.monotonic()
        self._raise_one()

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Whoever asks its actors something does so in here, and no longer than until the crew is `closed`."""
        with self._lock:
            self._asking += 1
        try:
            yield
        finally:
            with self._lock:
                self._asking -= 1
                self._lock.notify_all()

    def close(self) -> None:
        """Raise nobody any more. Who still asked Ray for something after it has shut down would end the process."""
        self.closed.set()
        for thread in self._threads:
            thread.join(CLOSE_SECONDS)
        with self._lock:
            self._lock.wait_for(lambda: not self._asking, CLOSE_SECONDS)

    def _raise_one(self, rescue: bool = False) -> None:
        thread = threading.Thread(target=self._muster, args=(rescue,), daemon=True, name=f"vidllm-{self._kind}")
        self._threads.append(thread)
        thread.start()

    def _muster(self, rescue: bool) -> None:
        """Start an actor, wait until it lives, and again if it does not get that far."""
        import ray

        while not self.closed.is_set():
            try:
                actor = self._start(rescue)
                told = self._ready(actor)
            except ray.exceptions.RayTaskError as error:
                return self._refuse(self._not_startable(error))
            except ray.exceptions.RayActorError as error:
                if "creation task" in str(error):  # it can not be made, on any node; else its node died
                    return self._refuse(self._not_startable(error))
            except (ray.exceptions.RayError, RuntimeError):
                pass  # Ray is being shut down
            except Exception as error:  # a thread's end: `borrow` raises it where somebody can answer
                return self._refuse(error)
            else:
                with self._lock:
                    self._alive += 1
                    self._rescuing = False
                    self._idle.append((actor, told))
                    self._lock.notify()
                return None
            self.closed.wait(1.0)
        return None

    def _ready(self, actor: Any) -> Any:
        """What it says when it lives; None when the crew has been closed before that."""
        import ray

        ref = actor.ready.remote()
        while not self.closed.is_set():
            try:
                return ray.get(ref, timeout=LOOK_UP_SECONDS)
            except ray.exceptions.GetTimeoutError:
                continue
        return None

    def _refuse(self, error: Exception) -> None:
        with self._lock:
            self._refused = error
            self._lock.notify_all()

    def _not_startable(self, error: Exception) -> EngineError:
        said = re.sub(r"^[\w.]+: ", "", str(error).strip().splitlines()[-1].strip())  # the last line of a traceback
        return EngineError(f"a {self._kind} can not be started on the cluster: {said}")


class FarDecoder:
    """A `Decoding` that borrows whichever decode actor is free. Belongs to one thread of the pool."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._stopped = False

    def look_at(self, item: Item) -> Seen:
        """As `Decoder.look_at`, on some node."""
        try:
            seen: Seen = self._call(item, lambda actor: actor.look_at.remote(item))
        except VideoError as error:
            return Seen(id=unread_id(item), status="error", error=str(error))
        return seen

    def open(self, item: Item, seen: Seen, seconds: float) -> Opened:
        """As `Decoder.open`; the clip is a FarClip."""
        refs: list[Any] = []

        def begin(actor: Any) -> Any:
            refs[:] = actor.open.options(num_returns=2).remote(item, seen, seconds)
            return refs[0]

        try:
            opened: Opened = self._call(item, begin)
        except VideoError as error:
            return Opened(item=item, seen=replace(seen, status="error", error=str(error)))
        if opened.clip is None:
            return opened
        return replace(opened, clip=FarClip(**vars(opened.clip), pictures=refs[1], item=item, seen=seen))

    def ranges(self, item: Item, split: str) -> tuple[Range, ...]:
        """As `Decoder.ranges`."""
        ranges = self._call(item, lambda actor: actor.ranges.remote(item, split))
        if isinstance(ranges, VidllmError):
            raise ranges
        return tuple(ranges)

    def kill(self) -> None:
        """The thread stops waiting; the node finishes for nobody."""
        self._stopped = True

    close = kill

    def _call(self, item: Item, begin: Callable[[Any], Any]) -> Any:
        """The result of `begin`, on another actor when one dies with it. Raises VideoError when many do."""
        import ray

        with self._crew.asked():
            for _ in range(MOST_DEATHS):
                one, lives = self._borrow(item), True
                try:
                    return self._wait(item, begin(one[0]))
                except ray.exceptions.RayActorError:
                    lives = False
                except ray.exceptions.ObjectLostError:  # a long clip's index stays with the node until it is fetched
                    pass  # if it died, the next to ask it hears that
                finally:
                    if lives:
                        self._crew.give_back(one)
                    else:
                        self._crew.lost()
        raise VideoError(f"{item.video}: {MOST_DEATHS} decode workers of the cluster died with it; convert the clip")

    def _borrow(self, item: Item) -> tuple[Any, Any]:
        one = None
        while one is None:
            self._check(item)
            one = self._crew.borrow(LOOK_UP_SECONDS)
        return one

    def _wait(self, item: Item, ref: Any) -> Any:
        import ray

        while True:
            self._check(item)
            try:
                return ray.get(ref, timeout=LOOK_UP_SECONDS)
            except ray.exceptions.GetTimeoutError:
                continue

    def _check(self, item: Item) -> None:
        if self._stopped or self._crew.closed.is_set():
            raise VideoError(f"{item.video}: the run was stopped")
