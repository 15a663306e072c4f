"""The same stages on a Ray cluster: clips are decoded on its CPUs, captioned on its GPUs, and written here.

    driver:   items -> DecodePool threads -> ledger -> Output          one writer, as on one machine
                          |  ^                 ^
                    item  |  | clip, blind     | Said                  pictures go from node to node, never through here
    nodes:         [DecodeActor] ==pictures==> [ModelActor]

A `FarClip` is a clip whose pictures stayed on the node that decoded them. When a node dies, what it was decoding is
decoded elsewhere, what its model was answering is asked of another, and pictures that went with it are decoded again:
the clip is still the driver's, so it is neither lost nor done twice. Paths must mean the same files on every node.

Ray is an extra: pip install 'vidllm[ray]'.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vidllm.corpus.captioner import Engine, Said
from vidllm.corpus.ray_crew import LOOK_UP_SECONDS, LOST_SECONDS, MOST_DEATHS, Crew, FarDecoder
from vidllm.corpus.ray_nodes import DecodeActor, FarClip, ModelActor, Told
from vidllm.errors import ConfigError, EngineError, VidllmError
from vidllm.interrupts import stop_at_sigterm
from vidllm.model.quiet import one_line
from vidllm.model.resolve import ABOUT_BUILTIN, BUILTIN, model_name

if TYPE_CHECKING:
    from vidllm.clip import Clip
    from vidllm.corpus.caption import CaptionOptions
    from vidllm.options import GenerationOptions

STEP_SECONDS = 0.2
"""How long a model works before it looks for new clips."""
CONNECT_SECONDS = 10.0
"""Longest wait for a cluster's address to take a connection."""


@dataclass(kw_only=True)
class _Job:
    """One question on its way."""

    ticket: int
    clip: FarClip | None
    prompt: str
    options: GenerationOptions
    deaths: int = 0


@dataclass(kw_only=True, eq=False)
class _Hand:
    """One model actor and what it has in hand."""

    actor: Any
    room: int
    jobs: dict[int, _Job] = field(default_factory=dict)
    submits: dict[Any, int] = field(default_factory=dict)
    """Tickets by the reference of their submit, until it is known to have arrived."""
    polling: Any = None


class RayCaptioner:
    """A `Captioner` over the model actors of a cluster."""

    name = "ray"
    loading = False

    def __init__(self, models: Crew, first: tuple[Any, Told], close: Callable[[], None]) -> None:
        told = first[1]
        self.model, self.fingerprint, self.spec = told.model, told.fingerprint, told.spec
        self.decoders: Crew | None = None
        self._models, self._close = models, close
        self._hands = [_Hand(actor=first[0], room=told.room)]
        self._homeless: deque[_Job] = deque()
        self._said: deque[Said] = deque()
        self._again = ThreadPoolExecutor(4, thread_name_prefix="vidllm-again")
        self._decoding: list[Future[None]] = []
        """Clips whose pictures are made anew."""

    def submit(self, ticket: int, clip: Clip | None, prompt: str, options: GenerationOptions) -> None:
        """See `Captioner`; given to a model with the next `poll`."""
        assert clip is None or isinstance(clip, FarClip)
        self._homeless.append(_Job(ticket=ticket, clip=clip, prompt=prompt, options=options))

    def room(self) -> int:
        """Of all models that live."""
        return max(sum(hand.room for hand in self._hands) - len(self._homeless), 0)

    def poll(self, wait: float) -> list[Said]:
        """See `Captioner`. Raises EngineError when there has been no model for too long."""
        self._muster()
        self._house()
        for hand in self._hands:
            if hand.jobs and hand.polling is None:
                hand.polling = hand.actor.poll.remote(STEP_SECONDS)
        self._collect(wait)
        said = list(self._said)
        self._said.clear()
        return said

    def close(self) -> None:
        """Give up what runs and leave the cluster."""
        self._again.shutdown(wait=False, cancel_futures=True)
        self._models.close()
        if self.decoders is not None:
            self.decoders.close()
        self._close()

    def _muster(self) -> None:
        """Take on models that have become ready; when none is left, wait for one."""
        while (one := self._models.borrow(0.0 if self._hands else LOOK_UP_SECONDS)) is not None:
            if one[1].fingerprint != self.fingerprint:
                raise EngineError(
                    f"the nodes load different models ({self.fingerprint} and {one[1].fingerprint}); "
                    "put the same files on all of them"
                )
            self._hands.append(_Hand(actor=one[0], room=one[1].room))

    def _house(self) -> None:
        """Give waiting questions to the models with the most room."""
        while self._homeless and self._hands:
            hand = max(self._hands, key=lambda hand: hand.room)
            if hand.room <= 0:
                return
            job = self._homeless.popleft()
            clip, pictures = (None, None) if job.clip is None else (job.clip.blind, job.clip.pictures)
            hand.room -= 1
            hand.jobs[job.ticket] = job
            hand.submits[hand.actor.submit.remote(job.ticket, clip, pictures, job.prompt, job.options)] = job.ticket

    def _collect(self, wait: float) -> None:
        """Wait until something is known of any question, and act on all that is."""
        import ray

        for done in [future for future in self._decoding if future.done()]:
            self._decoding.remove(done)
            done.result()  # a defect is raised here: unheard, its clip would be waited for without end
        refs = [ref for hand in self._hands for ref in (*hand.submits, hand.polling) if ref is not None]
        if not refs:
            if self._homeless or self._decoding:
                time.sleep(min(wait, STEP_SECONDS))
            return
        ray.wait(refs, timeout=wait)
        ready = set(ray.wait(refs, num_returns=len(refs), timeout=0)[0])
        for hand in list(self._hands):
            self._hear(hand, ready)

    def _hear(self, hand: _Hand, ready: set[Any]) -> None:
        import ray

        try:
            for ref in [ref for ref in hand.submits if ref in ready]:
                self._arrived(hand, ref)
            if hand.polling in ready:
                told, hand.polling = ray.get(hand.polling), None
                if isinstance(told, VidllmError):
                    raise told
                for said in told[0]:
                    del hand.jobs[said.ticket]
                    self._said.append(said)
                hand.room = told[1] - len(hand.submits)
        except ray.exceptions.RayActorError:
            self._bury(hand)
        except ray.exceptions.RayTaskError as error:  # a defect: it would meet every model
            raise EngineError(f"a model of the cluster failed: {str(error).strip().splitlines()[-1]}") from error

    def _arrived(self, hand: _Hand, ref: Any) -> None:
        """A submit is over; when its pictures are gone, the clip is decoded again."""
        import ray

        ticket = hand.submits.pop(ref)
        try:
            ray.get(ref)
        except ray.exceptions.RayActorError:
            raise
        except ray.exceptions.RayError as error:
            job = hand.jobs.pop(ticket)
            hand.room += 1
            job.deaths += 1
            if job.clip is None or job.deaths >= MOST_DEATHS:
                self._said.append(Said(ticket=ticket, error=f"the cluster lost it: {one_line(error)}"))
            else:
                self._decoding.append(self._again.submit(self._decode_again, job))

    def _bury(self, hand: _Hand) -> None:
        """A model died: its questions go to others."""
        self._hands.remove(hand)
        self._models.lost()
        for job in hand.jobs.values():
            job.deaths += 1
            if job.deaths >= MOST_DEATHS:
                error = f"{MOST_DEATHS} models of the cluster died while they had it in hand"
                self._said.append(Said(ticket=job.ticket, error=error))
            else:
                self._homeless.append(job)

    def _decode_again(self, job: _Job) -> None:
        """In a thread: pictures anew, then the question as before."""
        assert job.clip is not None
        assert self.decoders is not None
        try:
            opened = FarDecoder(self.decoders).open(job.clip.item, job.clip.seen, LOST_SECONDS)
        except VidllmError as error:
            self._said.append(Said(ticket=job.ticket, error=str(error)))
            return
        if isinstance(opened.clip, FarClip):
            job.clip = opened.clip
            self._homeless.append(job)
        else:
            cause = opened.seen.error or "its pictures were lost with their node"
            self._said.append(Said(ticket=job.ticket, error=cause))


# --------------------------------------------------------------------------------------------------- a cluster to use


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How a cluster's CPUs and GPUs are shared out: how many of each actor, and what each claims."""

    models: int
    model_cpus: float
    model_gpus: float
    decoders: int
    decoder_cpus: float

    @classmethod
    def of(cls, nodes: Sequence[dict[str, float]], workers: int | None, whole_nodes: bool) -> Shares:
        """From what each node has. One model a GPU (`whole_nodes`: a node), or without GPUs half of every node's CPUs;
        the other CPUs decode. A cluster too small for that is shared anyway.
        """
        cpus, gpus = sum(node.get("CPU", 0.0) for node in nodes), sum(node.get("GPU", 0.0) for node in nodes)
        if gpus:
            per_node = max(node.get("GPU", 0.0) for node in nodes)
            each = per_node if whole_nodes else 1.0
            models, model_cpus = max(int(gpus // each), 1), 1.0 if cpus > gpus else 0.0
        else:
            each, models = 0.0, max(len([node for node in nodes if node.get("CPU", 0.0) >= 1]), 1)
            model_cpus = max(min((node["CPU"] for node in nodes if node.get("CPU", 0.0) >= 1), default=0.0) // 2, 1.0)
        left = cpus - models * model_cpus
        if left < 1:  # a model on every node is all there is a CPU for: decoders squeeze in
            return cls(
                models=models, model_cpus=model_cpus, model_gpus=each, decoders=workers or models, decoder_cpus=0.0
            )
        return cls(
            models=models, model_cpus=model_cpus, model_gpus=each, decoders=min(workers or int(left), int(left)),
            decoder_cpus=1.0,
        )  # fmt: skip


def open_ray(options: CaptionOptions, remark: Callable[[str], None]) -> Engine:
    """The cluster at `options.address` (None: $RAY_ADDRESS, else one started on this machine) with models loaded.

    Raises ConfigError (Ray is not installed) or EngineError (no such cluster, or the model can not be loaded there).
    """
    ray = _import_ray()
    mine = not ray.is_initialized()
    no_longer = stop_at_sigterm() if mine else lambda: None

    def leave() -> None:
        if mine:
            ray.shutdown()
            no_longer()

    options = with_model(options)
    try:
        if mine:
            _join(options.address)
            stop_at_sigterm()  # again: Ray has taken it for itself, to print a trace and exit
        engine = _engine(options, leave)
    except BaseException:
        leave()
        raise
    if options.model in BUILTIN:
        remark(f"{options.model}: {ABOUT_BUILTIN}")
    return engine


def with_model(options: CaptionOptions) -> CaptionOptions:
    """The options with their model's name: a node has another environment, and would choose by its own."""
    return replace(options, model=model_name(options.model))


def _engine(options: CaptionOptions, leave: Callable[[], None]) -> Engine:
    import ray

    folder = os.getcwd()
    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    shares = Shares.of(nodes, options.workers, options.device == "auto")
    model_class, decode_class = ray.remote(ModelActor), ray.remote(DecodeActor)

    def start_model(rescue: bool) -> Any:
        return model_class.options(
            num_cpus=0 if rescue else shares.model_cpus, num_gpus=shares.model_gpus, scheduling_strategy="SPREAD",
            allow_out_of_order_execution=True,
        ).remote(options, folder)  # fmt: skip

    models = Crew("model", shares.models, start_model)
    try:
        first = None
        while first is None:
            first = models.borrow(LOOK_UP_SECONDS)
        captioner = RayCaptioner(models, first, leave)
        look = options.look(captioner)
    except BaseException:
        models.close()
        raise

    def start_decoder(rescue: bool) -> Any:
        cpus = 0 if rescue else shares.decoder_cpus
        return decode_class.options(num_cpus=cpus, scheduling_strategy="SPREAD").remote(look, folder)

    crew = captioner.decoders = Crew("decode worker", shares.decoders, start_decoder)
    return Engine(captioner, lambda: [FarDecoder(crew) for _ in range(shares.decoders)])


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a CPU-only actor must not hide the GPUs
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--engine ray needs Ray; pip install 'vidllm[ray]'") from error
    return ray


def _join(address: str | None) -> None:
    import logging
    import socket

    import ray

    try:
        if address is not None and (place := re.fullmatch(r"(?:ray://)?([^/]+):(\d+)", address)):
            # Ray itself goes on trying for many minutes
            socket.create_connection((place[1], int(place[2])), timeout=CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except SystemExit as error:  # what Ray makes of SIGTERM while it starts
        raise KeyboardInterrupt from error
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        where = address or os.environ.get("RAY_ADDRESS") or "this machine"
        said = f"no Ray cluster at {where} ({one_line(error)}); start one with `ray start`, or check --address"
        raise EngineError(said) from error
