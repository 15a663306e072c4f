"""Many prompts, one model: continuous batching. A finished row's place is taken at once.

    submit -> waiting -> prepare (visuals of several prompts together) -> ready -> prefill into a free row -> running
                                                                                          ^                     |
                                                                     one decoding step for all running rows <---+

Every row has its own length, RoPE factor, options and random draws; what it says is what `engine.read` and `generate`
would make it say alone, token for token (greedy, float32). One row's error ends that row only. When memory runs out,
fewer rows run at a time, and those that had to go begin again.

A row that can not share a step (no mask per row in the attention kernel, longer than a sliding window, or so long that
buffers of its length for every row would not fit) runs beside the others, by itself, under the same interface.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from vidllm.ahead import capacity_of
from vidllm.engine import Reply, Written, check_shown, common_length, greedy
from vidllm.errors import ModelError
from vidllm.model.memory import free_bytes, give_back, is_out_of_memory
from vidllm.model.reader import Ready, TextReader
from vidllm.model.slots import Slots, Start

if TYPE_CHECKING:
    from torch import Tensor

    from vidllm.model.features import FeatureCache
    from vidllm.model.kv import State
    from vidllm.model.lmm import VideoLMM
    from vidllm.options import GenerationOptions
    from vidllm.prompt import Prompt

MOST_SLOTS = {"cpu": 16, "cuda": 64, "mps": 16}
"""Rows beyond which a step takes as much longer as it says more; measured on two cores, assumed elsewhere."""
MEMORY_SHARE = 0.5
"""Of the memory that is free, so much may be keys and values; the rest is for the sums and for the caller."""
ASKED_SHARE = 0.9
"""The same for rows that were asked for. A CPU's memory is given out beyond its end, and then the process is killed."""
AHEAD = 8
"""Prompts whose visuals are encoded together when so many wait."""
LEAST_SHARED = 32
"""Tokens two prompts must begin with alike before the second copies them: reading fewer is no dearer than copying."""
STEP_TOKENS = 64
"""Buffers hold a multiple of so many tokens: prompts that differ by a few need no new ones."""
NO_MEMORY = "out of memory with nothing left to give up; use fewer --frames, a smaller model or another device"


@dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """A prompt that is done: `generated`, or the `error` that ended it in one line."""

    ticket: int
    generated: Written | None = None
    error: str | None = None
    encode_seconds: float = 0.0
    """Its share of what was encoded together."""
    prefill_seconds: float = 0.0
    frames_encoded: int = 0
    alone: bool = False
    """It could not share steps with others."""


@dataclass(frozen=True, eq=False)
class _Job:
    """A prompt as it was submitted."""

    ticket: int
    prompt: Prompt
    options: GenerationOptions

    @property
    def tokens(self) -> int:
        """The most it will ever hold."""
        return self.prompt.length + self.options.max_new_tokens

    @property
    def leading_text(self) -> tuple[int, ...]:
        """The ids before its first visual; of text alone, all but the last, whose reading begins the answer."""
        ends = [visual.position for visual in self.prompt.visuals]
        return self.prompt.input_ids[: min(ends, default=self.prompt.length - 1)]


@dataclass(eq=False)
class _Row:
    """A prompt that is being answered: `ready` when it has a row of the buffers, `state` when it runs alone."""

    job: _Job
    reply: Reply
    ready: Ready | None = None
    state: State | None = None
    prefill_seconds: float = 0.0
    seconds: float = 0.0
    error: str | None = None

    def take(self, logits: Tensor, likeliest: int | None = None) -> None:
        """Choose the next token from logits (V,); a greedy row takes `likeliest` where that is known."""
        try:
            is_known = likeliest is not None and self.job.options.temperature == 0
            self.reply.push(likeliest if likeliest is not None and is_known else self.reply.choose(logits))
        except ModelError as error:
            self.error = str(error)

    @property
    def is_done(self) -> bool:
        return self.error is not None or self.reply.finish_reason is not None

    def finished(self) -> Finished:
        """What its submitter is told."""
        vision: Ready | State | None = self.ready or self.state
        return Finished(
            ticket=self.job.ticket, error=self.error,
            generated=None if self.error else self.reply.written(self.seconds),
            encode_seconds=vision.encode_seconds if vision else 0.0, prefill_seconds=self.prefill_seconds,
            frames_encoded=vision.frames_encoded if vision else 0, alone=self.state is not None,
        )  # fmt: skip


class Batcher:
    """Continuous batching over one model: `submit` as many prompts as you like, `step` until nothing is left.

    `slots` rows run at a time, None: as many as pay off on this device, if they fit into free memory. When memory runs
    out it goes down. `share` of the device's memory is this batcher's, where several processes stand on one device.
    Belongs to one thread. After an exception (Ctrl-C) every row is as before the step.
    """

    def __init__(
        self, model: VideoLMM, *, slots: int | None = None, cache: FeatureCache | None = None, share: float = 1.0
    ) -> None:
        if slots is not None and slots < 1:
            raise ValueError(f"slots is {slots}; at least one row must run")
        self._share = share * (MEMORY_SHARE if slots is None else ASKED_SHARE)
        self._model = model
        self._cache = cache
        self._reader = model if isinstance(model, TextReader) and model.batches else None
        self._limit = slots or MOST_SLOTS.get(model.device.type, 16)
        self._ahead = AHEAD
        self._buffers: Slots | None = None
        self._waiting: deque[_Job] = deque()
        self._ready: deque[tuple[_Job, Ready | None]] = deque()
        self._rows: list[_Row | None] = []  # row i of the buffers; None: its place is free
        self._alone: list[_Row] = []
        self._done: list[Finished] = []  # ended and not yet told
        self._start: tuple[tuple[int, ...], float, Start] | None = None  # ids, RoPE factor and what was read of them

    @property
    def waiting(self) -> int:
        """Prompts submitted and not begun."""
        return len(self._waiting) + len(self._ready)

    @property
    def running(self) -> int:
        """Prompts being answered."""
        return len(self._running)

    @property
    def slots(self) -> int:
        """Rows that may run at a time."""
        return self._limit

    @property
    def capacity(self) -> int:
        """Prompts to submit at a time."""
        return capacity_of(self._limit)

    def submit(self, ticket: int, prompt: Prompt, options: GenerationOptions) -> None:
        """Queue a prompt; `ticket` comes back with its answer. At most `options.max_new_tokens` are written."""
        self._waiting.append(_Job(ticket, prompt, options))

    def step(self) -> list[Finished]:
        """Begin what there is room for, then one token for every running row; tells those that ended.

        Nothing to do is an empty list. Errors of a prompt are told in its `Finished`; what is raised is none of theirs.
        """
        self._collect()  # those that ended in a step that was interrupted behind them
        self._admit()
        self._close_gaps()
        try:
            self._advance()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._step_down()
        self._collect()
        done, self._done = self._done, []
        return done

    @property
    def _running(self) -> list[_Row]:
        return [*(row for row in self._rows if row is not None), *self._alone]

    # ------------------------------------------------------------------------------------------------ beginning

    def _admit(self) -> None:
        """Fill every free place."""
        while self.waiting and self.running < self._limit:
            try:
                if self._ready:
                    self._begin(*self._ready[0])
                else:
                    self._prepare()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink()

    def _prepare(self) -> None:
        """Encode the visuals of the next few prompts; those that can not be shown are done."""
        told = self._prepared(list(islice(self._waiting, self._ahead)))
        for got in told:
            job = self._waiting.popleft()
            if isinstance(got, str):
                self._done.append(Finished(ticket=job.ticket, error=got))
            else:
                self._ready.append((job, got))

    def _prepared(self, jobs: Sequence[_Job]) -> list[Ready | str | None]:
        """Of each: ready to be read, None when it must run alone, or the error; an error costs only its own prompt."""
        together = [job for job in jobs if self._may_share(job)]
        made: Iterator[Ready] = iter(())
        try:
            for job in jobs:
                check_shown(job.prompt)
            if self._reader is not None and together:
                made = iter(self._reader.prepare([job.prompt for job in together], self._cache))
        except ModelError as error:
            return [str(error)] if len(jobs) == 1 else [got for job in jobs for got in self._prepared([job])]
        return [next(made) if job in together else None for job in jobs]

    def _may_share(self, job: _Job) -> bool:
        """Whether every layer sees all of this row, so that one mask is true for all of them."""
        if self._reader is None:
            return False
        return self._reader.window is None or job.tokens <= self._reader.window

    def _begin(self, job: _Job, ready: Ready | None) -> None:
        """Read one prompt and choose its first token, which may be its last."""
        began = time.perf_counter()
        fits = ready is not None and self._make_room(job)
        row = self._begin_in_slot(job, ready) if ready is not None and fits else self._begin_alone(job)
        self._ready.popleft()
        encoded = row.state.encode_seconds if row.state else 0.0
        row.prefill_seconds = time.perf_counter() - began - encoded
        self._settle()
        self._collect()

    def _begin_alone(self, job: _Job) -> _Row:
        row = _Row(job, Reply(self._model, job.options))
        try:
            row.state = self._model.prefill(job.prompt, self._cache)
            row.take(row.state.logits)
        except ModelError as error:
            row.error = str(error)
        self._alone.append(row)
        return row

    def _begin_in_slot(self, job: _Job, ready: Ready) -> _Row:
        assert self._reader is not None
        assert self._buffers is not None
        index = self._rows.index(None) if None in self._rows else len(self._rows)
        start = self._shared_start(job)
        rest = ready.part(start.length) if start else ready
        past = self._buffers.row(index, start)
        row = _Row(job, Reply(self._model, job.options), ready)
        row.take(self._reader.read(rest.embeddings, past, rest.positions, **rest.deep))
        self._rows[index : index + 1] = [row]
        self._keep_start(job, index)
        return row

    def _shared_start(self, job: _Job) -> Start | None:
        """What was read before of the text this prompt begins with."""
        if self._start is None or self._start[1] != job.prompt.rope_factor:
            return None
        shared = common_length(self._start[0], job.leading_text)
        return self._start[2].first(shared) if shared >= LEAST_SHARED else None

    def _keep_start(self, job: _Job, index: int) -> None:
        """Remember the text this prompt begins with, if the one remembered is another and there is memory for it: the
        row runs already, and must not begin a second time. What ran behind that text is gone by now.
        """
        text = job.leading_text
        known = self._start is not None and self._start[:2] == (text, job.prompt.rope_factor)
        if len(text) < LEAST_SHARED or known or self._buffers is None or self._buffers.running[index].parts:
            return
        self._start = None
        try:
            self._start = (text, job.prompt.rope_factor, self._buffers.start(index, len(text)))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise

    # --------------------------------------------------------------------------------------------------- memory

    def _make_room(self, job: _Job) -> bool:
        """Buffers that hold this job beside the others; False when they would not fit into memory."""
        reader, buffers = self._reader, self._buffers
        assert reader is not None
        capacity = -(-job.tokens // STEP_TOKENS) * STEP_TOKENS
        if buffers is None:  # one row first: what a token takes is known when one was written
            self._buffers = Slots(reader.layers, 1, capacity, wide_bytes=reader.wide_bytes)
        elif capacity > buffers.capacity:
            taken = buffers.rows * buffers.token_bytes
            if capacity * taken > self._share * (free_bytes(reader.device) + buffers.capacity * taken):
                return False
            buffers.resize(buffers.rows, capacity)
        return True

    def _settle(self) -> None:
        """After the first prompt: buffers for as many rows as free memory allows."""
        buffers = self._buffers
        if buffers is None or buffers.rows >= self._limit:
            return
        room = self._share * free_bytes(self._model.device)
        self._limit = max(1, min(self._limit, int(room / buffers.row_bytes)))
        while buffers.rows < self._limit:
            try:
                buffers.resize(self._limit, buffers.capacity)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._limit //= 2
                give_back(self._model.device)

    def _shrink(self) -> None:
        """Beginning took more memory than there is: begin fewer at a time, then run fewer, then let go of the buffers
        of those that ran; else give the prompt up.
        """
        give_back(self._model.device)
        if not self._ready and self._ahead > 1:
            self._ahead = 1
        elif self.running:
            self._limit = self.running
        elif self._buffers is not None and self._buffers.rows > 1:  # nobody is in them, and one row is enough to begin
            self._buffers = self._start = None
        else:
            self._buffers = self._start = None
            job = self._ready.popleft()[0] if self._ready else self._waiting.popleft()
            self._done.append(Finished(ticket=job.ticket, error=NO_MEMORY))

    def _step_down(self) -> None:
        """A step took more memory than there is: all rows begin again, half as many at a time; one alone is given up.

        Keeping half of them would need memory for smaller buffers while the larger ones are still there.
        """
        running = self._running
        if len(running) == 1:
            running[0].error = NO_MEMORY
            return
        self._limit = len(running) // 2
        for row in reversed(running):
            self._ready.appendleft((row.job, row.ready))
        self._rows, self._alone, self._buffers, self._start = [], [], None, None
        give_back(self._model.device)

    # -------------------------------------------------------------------------------------------------- running

    def _close_gaps(self) -> None:
        """Running rows are the first ones: the last takes a free place."""
        while None in self._rows:
            last = self._rows.pop()
            if last is not None:
                index = self._rows.index(None)
                assert self._buffers is not None
                self._buffers.move(len(self._rows), index)
                self._rows[index] = last

    def _advance(self) -> None:
        """One more token for every row."""
        self._advance_together([row for row in self._rows if row is not None])
        for row in self._alone:
            began = time.perf_counter()
            assert row.state is not None
            row.state = self._model.extend(row.state, row.reply.token_ids[-1:])
            row.take(row.state.logits)
            row.seconds += time.perf_counter() - began

    def _advance_together(self, rows: Sequence[_Row]) -> None:
        if not rows or self._reader is None or self._buffers is None:
            return
        began = time.perf_counter()
        tokens = [row.reply.token_ids[-1] for row in rows]
        offsets = [row.ready.position_offset for row in rows if row.ready]
        factors = [row.ready.rope_factor for row in rows if row.ready]
        logits = self._reader.step(self._buffers, tokens, offsets, factors)
        for row, own, likeliest in zip(rows, logits, greedy(logits), strict=True):
            row.take(own, likeliest)
        share = (time.perf_counter() - began) / len(rows)
        for row in rows:
            row.seconds += share

    def _collect(self) -> None:
        """The places of those that ended are free."""
        self._done += [row.finished() for row in self._running if row.is_done]
        self._rows = [None if row is None or row.is_done else row for row in self._rows]
        self._alone = [row for row in self._alone if not row.is_done]
