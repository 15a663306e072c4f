"""The local engine: one model in one or several processes of this machine, each with continuous batching of its own.

    Run --submit--> homeless --most room--> [replica: cuda:0]  --Said--> poll --> Run         one writer, as ever
                                       `--> [replica: cuda:1]  ...

A GPU carries one replica. On a CPU several with few threads each beat one with many: small matrices are split badly,
and threads that wait for one another spin beside the decode workers. Nothing is loaded before the first clip is there,
and no more replicas than clips. One that dies is started again; the clips it had in hand are asked again, each by
itself, so that one that kills models costs only its own row.
"""

from __future__ import annotations

import base64
import os
import pickle
import queue
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import vidllm.corpus.looking  # noqa: F401  (says that a clip may travel)
from vidllm.ahead import capacity_of
from vidllm.clip import Clip
from vidllm.corpus.captioner import Said
from vidllm.corpus.rows import RowUsage
from vidllm.counts import count_of
from vidllm.errors import EngineError, VidllmError
from vidllm.options import GenerationOptions
from vidllm.video import wire
from vidllm.video.guard import child_command, child_environment, error_of, status_name

if TYPE_CHECKING:
    from vidllm.corpus.caption import CaptionOptions
    from vidllm.model.spec import ModelSpec

GUESSED_CAPACITY = 24
"""Clips a replica will take at a time, until it has said so itself."""
MOST_CLIP_DEATHS = 2
"""So many replicas may die with a clip in hand, the last with it alone, before that is the clip's error."""
MOST_DEATHS = 16
"""So many replicas may die one after the other without a caption between, before the run ends. A few clips may kill two
each, one after the other; where all seem to, it is the device, which must not cost every clip an error row."""
OWN_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait sleep: spinning, they took half of two cores from decoding
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a replica runs."""

    device: str
    threads: int | None = None
    """Of torch; None: its own choice."""
    share: float = 1.0
    """Of the device's memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One question on its way."""

    ticket: int
    clip: Clip | None
    prompt: str
    options: GenerationOptions
    deaths: int = 0
    """Replicas that died with it in hand."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What a replica says when it is loaded."""

    fingerprint: str
    capacity: int
    about: str
    """One line for people."""


wire.VALUES.update({kind.__name__: kind for kind in (GenerationOptions, Job, Ready, RowUsage, Said)})
Message = dict[str, Any]


@dataclass(eq=False)
class _Replica:
    """One process, what it has in hand, and the two threads that talk to it."""

    place: Place
    process: subprocess.Popen[bytes]
    capacity: int = 0
    """0 until it is loaded."""
    jobs: dict[int, Job] = field(default_factory=dict)
    outbox: queue.SimpleQueue[object] = field(default_factory=queue.SimpleQueue)
    broke: str = ""
    """Its own last words."""

    @property
    def room(self) -> int:
        """Clips it would take now; one that is suspected of killing replicas is alone with it."""
        return 0 if any(job.deaths for job in self.jobs.values()) else self.capacity - len(self.jobs)

    def give(self, job: Job) -> None:
        """Hand it a job; never waits."""
        self.jobs[job.ticket] = job
        self.outbox.put(job)

    def kill(self) -> None:
        """End the process, and with it the threads."""
        self.process.kill()
        self.outbox.put(None)
        self.process.wait()


class Replicas:
    """A `Captioner` over model processes at `places`; `remark` hears a line about the model, and of deaths."""

    name = "local"

    def __init__(
        self, options: CaptionOptions, places: Sequence[Place], *, model: str, fingerprint: str, spec: ModelSpec,
        remark: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        self.model, self.fingerprint, self.spec = model, fingerprint, spec
        self._options, self._remark = options, remark
        self.size = len(places)
        """Replicas there may be."""
        self._places = deque(places)  # where none runs yet
        self._replicas: list[_Replica] = []
        self._homeless: deque[Job] = deque()
        self._heard: queue.SimpleQueue[tuple[_Replica, Message | None]] = queue.SimpleQueue()
        self._guess = min(GUESSED_CAPACITY, capacity_of(options.batch or GUESSED_CAPACITY))
        self._was_ready = False
        self._failure: VidllmError | OSError | None = None
        self._deaths = 0
        self._remarked: set[str] = set()

    def submit(self, ticket: int, clip: Clip | None, prompt: str, options: GenerationOptions) -> None:
        """See `Captioner`."""
        self._homeless.append(Job(ticket=ticket, clip=clip, prompt=prompt, options=options))
        self._house()

    def room(self) -> int:
        """Of all replicas, those included that are not loaded yet."""
        capacity = sum(one.capacity or self._guess for one in self._replicas)
        return capacity + self._guess * len(self._places) - self._in_hand - len(self._homeless)

    def poll(self, wait: float) -> list[Said]:
        """See `Captioner`. Raises what the model raised, and EngineError when replicas do nothing but die.

        What was said before it went wrong is told first; the next poll raises.
        """
        said: list[Said] = []
        try:
            if self._failure is None:
                self._hear_all(said, wait)
        except (VidllmError, OSError) as error:
            self._failure = error
        if self._failure is not None and not said:
            raise self._failure
        return said

    @property
    def loaded(self) -> int:
        """Replicas that can answer now."""
        return sum(one.capacity > 0 for one in self._replicas)

    @property
    def loading(self) -> bool:
        """See `Captioner`. A replica that takes a dead one's place is no new beginning."""
        return bool(self._replicas) and not self._was_ready

    def close(self) -> None:
        """See `Captioner`."""
        for one in self._replicas:
            one.kill()

    @property
    def _in_hand(self) -> int:
        return sum(len(one.jobs) for one in self._replicas)

    def _house(self) -> None:
        """Start as many replicas as there are questions, and give each question to the one with the most room.

        None takes more than its share of them: the first to be loaded would leave the others nothing.
        """
        questions = self._in_hand + len(self._homeless)
        while self._places and len(self._replicas) < questions:
            self._replicas.append(self._start(self._places.popleft()))
        while self._homeless:
            suspect = self._homeless[0].deaths > 0
            able = [one for one in self._replicas if one.room > 0 and not (suspect and one.jobs)
                    and len(one.jobs) * len(self._replicas) < questions]  # fmt: skip
            if not able:
                return
            max(able, key=lambda one: one.room).give(self._homeless.popleft())

    def _start(self, place: Place) -> _Replica:
        environment = {**OWN_ENVIRONMENT, **child_environment()}
        if place.threads is not None:
            environment.setdefault("OMP_NUM_THREADS", str(place.threads))
        process = subprocess.Popen(
            child_command("vidllm.corpus.model_child"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment,
            stderr=None if os.environ.get("VIDLLM_DEBUG") else subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches this process only, which lets replicas finish or ends them
        )  # fmt: skip
        one = _Replica(place, process)
        options = replace(self._options, device=place.device)
        one.outbox.put(base64.b64encode(pickle.dumps((options, self.model, place))).decode())
        threading.Thread(target=_tell, args=(one,), daemon=True, name="vidllm-tell").start()
        threading.Thread(target=_hear, args=(one, self._heard), daemon=True, name="vidllm-hear").start()
        return one

    def _hear_all(self, said: list[Said], wait: float) -> None:
        """Add to `said` what the replicas have said, waiting up to `wait` seconds for the first of it."""
        self._house()
        while self._in_hand or self._homeless:
            try:
                replica, message = self._heard.get(timeout=wait)
            except queue.Empty:
                return
            said += self._hear(replica, message)
            self._house()
            wait = 0.0

    def _hear(self, one: _Replica, message: Message | None) -> list[Said]:
        """Act on what a replica says; None: it has ended."""
        match message:
            case None:
                return self._bury(one)
            case {"ready": Ready() as ready}:
                self._welcome(one, ready)
            case {"note": text}:
                self._remark_once(text)
            case {"broke": text}:
                one.broke = text
            case {"failed": kind, "message": text}:
                if one.capacity or not any(other.capacity for other in self._replicas):
                    raise error_of(kind, text)
                one.broke = text
            case {"said": said, "capacity": capacity}:
                one.capacity = capacity
                for answer in said:
                    del one.jobs[answer.ticket]
                self._deaths = 0
                return list(said)
        return []

    def _welcome(self, one: _Replica, ready: Ready) -> None:
        if ready.fingerprint != self.fingerprint:
            raise EngineError(f"{self.model}: its files changed while it was loaded; run the same command again")
        one.capacity, self._was_ready = ready.capacity, True
        self._remark_once(ready.about)

    def _remark_once(self, text: str) -> None:
        if text not in self._remarked:
            self._remarked.add(text)
            self._remark(text)

    def _bury(self, one: _Replica) -> list[Said]:
        """A replica died: what it had in hand is asked again, another takes its place."""
        self._replicas.remove(one)
        one.kill()
        cause = one.broke or status_name(one.process.returncode)
        self._deaths += 1
        if one.capacity:
            self._places.append(one.place)
        if self._deaths >= MOST_DEATHS or not (one.capacity or self._replicas):
            when = f"{self._deaths} times with no caption between" if one.capacity else "while it loaded the model"
            raise EngineError(
                f"the model's process on {one.place.device} ended {when} ({cause}); what is finished is kept: "
                "if memory ran out take fewer --replicas or a smaller --batch, and run the same command again, "
                "with --retry-errors where clips have an error row for it"
            )
        kept = f"asking its {count_of(len(one.jobs), 'clip')} again" if one.capacity else "going on without it"
        self._remark(f"vidllm: a model's process on {one.place.device} ended ({cause}); {kept}")
        again = [replace(job, deaths=job.deaths + 1) for job in one.jobs.values()]
        self._homeless.extend(job for job in again if job.deaths < MOST_CLIP_DEATHS)
        error = f"the model's process ended with it in hand, the last time with it alone ({cause})"
        return [Said(ticket=job.ticket, error=error) for job in again if job.deaths >= MOST_CLIP_DEATHS]


def _tell(one: _Replica) -> None:
    """A replica's own thread: what is in its outbox, until there is None."""
    stdin = cast(BinaryIO, one.process.stdin)
    try:
        while (value := one.outbox.get()) is not None:
            wire.send(stdin, value)
    except OSError:
        pass  # it died, which the other thread tells
    finally:
        stdin.close()


def _hear(one: _Replica, heard: queue.SimpleQueue[tuple[_Replica, Message | None]]) -> None:
    """A replica's own thread: what it says, and None when it has ended."""
    stdout = cast(BinaryIO, one.process.stdout)
    try:
        while True:
            heard.put((one, wire.receive(stdout)))
    except wire.BrokenMessage:
        pass  # it has ended
    finally:
        heard.put((one, None))
        stdout.close()
