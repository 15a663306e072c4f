"""Captions from a server: any OpenAI-compatible one (vLLM, SGLang, `transformers serve`), as fast as it can answer.

    submit ──JPEG──> wait for the pace ──POST──> answered ─────────────────────────────> Said
                          ^                  │ 429, 503: wait as it says, try again
                          │                  │ 5xx, hung up, nonsense: back off, try again, a few times; silence: once
                          └──────────────────┘ 4xx: this clip's error
                                             no server any more, or it refuses everything: EngineError, the run ends

Requests run in one thread's event loop. A clip's end is one `Said`, whatever the server does; a run that ends loses
nothing, because what was not answered has no row.
"""

from __future__ import annotations

import asyncio
import queue
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vidllm.corpus.asking import (
    LATE_TRIES,
    MISPLACED,
    Absent,
    HttpOptions,
    Late,
    Unable,
    list_models,
    open_client,
    post,
    wants_key,
)
from vidllm.corpus.captioner import Said
from vidllm.corpus.endpoint import SENT, Body, Endpoint, Reply, chat_body
from vidllm.corpus.pacing import Pace, backoff_seconds
from vidllm.corpus.rows import RowUsage
from vidllm.errors import ConfigError, EngineError
from vidllm.geometry import NativeGeometry
from vidllm.model.spec import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from vidllm.clip import Clip
    from vidllm.options import GenerationOptions

STOP_SECONDS = 20.0
"""How long requests under way are waited for when the run is to stop: less than schedulers leave before they kill."""
OTHERWISE = {"max_tokens": "max_completion_tokens", "temperature": "", "seed": "", "top_p": "", "top_k": ""}
"""What a model may want a field of the request called; "": it can be left out."""
_UNHEARD = re.compile("unsupported|not support|unknown|unexpected|unrecognized|not permitted|deprecated|instead", re.I)
"""What is said of a field that a model does not take; of a value out of its range other words are said."""
AFTER_A_RESTART = "what is finished is kept: start the server and run the same command again"


def server_spec(pixels: int = 448 * 448) -> ModelSpec:
    """What a model behind a server is planned as: 16 frames of so many pixels, each about 256 tokens.

    A server does not say what its model is like. This is what most take; `--frames` and `--fps` choose otherwise.
    """
    return ModelSpec(
        folder=Path(), model_type="none", text_type="none", kind="native",
        geometry=NativeGeometry(patch=14, merge=2, max_pixels=pixels), context=32768, rope_scalable=False,
        image_token="", image_token_id=-1, stamp="none", default_frames=16,
    )  # fmt: skip


class HttpCaptioner:
    """A `Captioner` that asks a server. Make one with `connect`. `remark` is called by `poll`."""

    name = "http"
    loading = False

    def __init__(
        self, endpoint: Endpoint, model: str | None, options: HttpOptions, remark: Callable[[str], None]
    ) -> None:
        self.model = model or "default"
        # The name is all that is known of a server's model; how frames are sent shapes the caption too.
        self.fingerprint = f"server:{self.model}:{SENT[options.form]}"
        self.spec = server_spec()
        self.pace = Pace(most=options.most_at_once, first=min(4, options.most_at_once))
        self._endpoint, self._asked_model, self._options = endpoint, model, options
        self._remark, self._remarks = remark, queue.SimpleQueue[str]()
        self._was_late = False
        self._names: dict[str, str] = {}  # of `OTHERWISE`, what this server wants
        self._said: queue.Queue[Said] = queue.Queue()
        self._running = 0  # submitted, not polled
        self._over: EngineError | None = None
        self._has_answered = False
        self._failed_in_a_row = 0
        self._absent_since: float | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="vidllm-http")
        self._thread.start()
        self._changed = asyncio.Condition()
        self._client = open_client(endpoint, options)

    @classmethod
    def connect(
        cls, url: str, model: str | None = None, options: HttpOptions | None = None, *,
        remark: Callable[[str], None] = lambda line: None,
    ) -> HttpCaptioner:  # fmt: skip
        """The server at `url`, with the model of that name, else the one it serves.

        Raises ConfigError (no address, or several models to choose from) or EngineError (nobody there, key refused).
        """
        endpoint, options = Endpoint.of(url), options or HttpOptions()
        listed = list_models(endpoint)
        if model is None and len(listed) > 1:
            some = ", ".join(listed[:5]) + (", ..." if len(listed) > 5 else "")
            raise ConfigError(f"{endpoint}: the server offers several models ({some}); name one with --model")
        if model is None and listed:
            model = listed[0]
        captioner = cls(endpoint, model, options, remark)
        if model is None:
            captioner._ask_its_name()
        return captioner

    def submit(self, ticket: int, clip: Clip | None, prompt: str, options: GenerationOptions) -> None:
        """Send a request when the pace allows; its pictures are made now, so that frames are not kept."""
        self._running += 1
        asyncio.run_coroutine_threadsafe(self._caption(ticket, clip, prompt, options), self._loop)

    def poll(self, wait: float) -> list[Said]:
        """What was answered. Raises EngineError, once, when the server is gone and all that was answered was given."""
        said: list[Said] = []
        try:
            said.append(self._said.get(self._running > 0 and self._over is None, wait))
            while True:
                said.append(self._said.get_nowait())
        except queue.Empty:
            pass
        while not self._remarks.empty():  # behind the answers: what was remarked of the last of them is told, too
            self._remark(self._remarks.get())
        self._running -= len(said)
        if not said and self._over is not None:
            raise self._over
        return said

    def room(self) -> int:
        """As many as may be under way, and a few whose pictures are made meanwhile."""
        limit = self.pace.limit
        return max(limit + max(2, limit // 4) - self._running, 0)

    def close(self) -> None:
        """Break off what is under way; the server sees its connections closed."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result(timeout=30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=30)
        self._loop.close()

    # -------------------------------------------------------------------------------- in the thread of the event loop

    async def _shut_down(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    async def _caption(self, ticket: int, clip: Clip | None, prompt: str, options: GenerationOptions) -> None:
        """One clip to its `Said`; nothing is said of it when the run ends instead."""
        began = time.monotonic()
        try:
            body = await asyncio.to_thread(chat_body, self._asked_model, clip, prompt, options, form=self._options.form)
            clip = None  # its pictures are in the body now
            said = _said(ticket, await self._ask(body), time.monotonic() - began, self.spec.context)
        except Unable as error:
            said = Said(ticket=ticket, error=error.cause, seconds=time.monotonic() - began, model=self.model)
        except EngineError as error:
            self._over = self._over or error
            return
        except Exception as error:  # a thread's end: what went wrong here must not look like a clip that hangs
            self._over = self._over or EngineError(f"asking {self._endpoint} failed: {type(error).__name__}: {error}")
            return
        self._said.put(said)

    async def _ask(self, body: Body) -> Reply:
        """The server's reply, after as many tries as it takes. Raises Unable (this clip) or EngineError (all)."""
        since: float | None = None  # the first failure: before it, the clip may have waited for its turn
        failed = put_off = late = 0
        while True:
            sent = {self._names.get(name, name): value for name, value in body.items() if self._names.get(name, name)}
            try:
                reply = await self._ask_once(sent)
            except Absent as error:
                put_off, wish = put_off + 1, None
                self._check_absence(error)
            except Unable as error:
                if error.is_refusal and self._learns(sent, error):
                    continue
                if error.is_refusal:
                    raise self._refusal(error) from error
                failed, put_off = (failed, put_off + 1) if error.is_busy else (failed + 1, put_off)
                late += self._is_late(error)
                wish = error.retry_after
                patience, now = self._options, time.monotonic()
                since = now if since is None else since
                is_used_up = late >= LATE_TRIES or failed >= patience.attempts
                if is_used_up or now - since > patience.busy_seconds:
                    raise self._failure(error, failed + put_off) from error
            else:
                self._has_answered, self._failed_in_a_row = True, 0
                return reply
            # the pace keeps a Retry-After for all; here it only says that no longer wait is wanted
            await asyncio.sleep(backoff_seconds(failed + put_off, most=30.0 if wish is None else max(wish, 0.5)))

    async def _ask_once(self, body: Body) -> Reply:
        """One request, under the pace. Raises Unable."""
        await self._turn()
        serial = self.pace.sent()
        try:
            reply = await post(self._client, self._endpoint, body, self._options.request_seconds)
            self.pace.answered(serial)
            self._absent_since = None
            return reply
        except Unable as error:
            if not isinstance(error, Absent):
                self._absent_since = None
            if error.is_refusal or error.is_nonsense:
                self.pace.answered(serial)
            else:
                self.pace.refused(serial, error.retry_after)
            raise
        except BaseException:
            self.pace.dropped()
            raise
        finally:
            async with self._changed:
                self._changed.notify_all()

    async def _turn(self) -> None:
        """Wait until the pace lets another request go."""
        async with self._changed:
            while (delay := self.pace.delay()) > 0:
                try:
                    await asyncio.wait_for(self._changed.wait(), None if delay == float("inf") else delay)
                except TimeoutError:
                    continue

    # ----------------------------------------------------------------------------------------- what a failure means

    def _refusal(self, error: Unable) -> Unable | EngineError:
        """One clip's error; everyone's when the server has never answered and will not."""
        if error.status in (401, 403) and not self._has_answered:
            return wants_key(self._endpoint, error.cause)
        if error.status in MISPLACED and not self._has_answered:
            return EngineError(f"{self._endpoint}: {error.cause}; check the address and --model")
        # A server that answers others has a reason to refuse this one: however many, they are no sign of its end.
        return Unable(error.cause) if self._has_answered else self._failure(error, 1)

    def _failure(self, error: Unable, tries: int) -> Unable | EngineError:
        """This request got no answer; after many in a row the run ends, before a whole corpus becomes errors."""
        self._failed_in_a_row += 1
        cause = error.cause + (f", {tries} times" if tries > 1 else "")
        if self._failed_in_a_row >= self._options.in_a_row:
            return EngineError(
                f"{self._endpoint}: {self._failed_in_a_row} requests in a row got no answer, the last because {cause}; "
                "when the server is well, run the same command again with --retry-errors"
            )
        return Unable(cause)

    def _is_late(self, error: Unable) -> bool:
        """Whether the server gave no answer in time; the first time somebody is told how long is waited."""
        late = isinstance(error, Late)
        if late and not self._was_late:
            self._was_late = True
            self._remarks.put(f"{self._endpoint}: {error.cause}; --request-timeout says how long one is waited for")
        return late

    def _learns(self, sent: Body, error: Unable) -> bool:
        """Whether the server only wants a field left out, or under its newer name: so it is from now on, and of
        what is left out somebody is told."""
        said = error.cause if _UNHEARD.search(error.cause) else ""
        found = {name: other for name, other in OTHERWISE.items()
                 if name in sent and re.search(rf"\b{other or name}\b", said)}  # fmt: skip
        for name in (name for name, other in found.items() if not other and name not in self._names):
            self._remarks.put(f"{self._endpoint}: the model takes no {name}; it is asked without")
        self._names |= found
        return bool(found)

    def _check_absence(self, error: Absent) -> None:
        now = time.monotonic()
        self._absent_since = now if self._absent_since is None else self._absent_since
        if (gone := now - self._absent_since) >= self._options.absent_seconds:
            raise EngineError(f"{error.cause} for {gone:.0f} s; {AFTER_A_RESTART}")

    def _ask_its_name(self) -> None:
        """Learn the name of the only model of a server that lists none, from a one-token answer."""
        body: Body = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 1}
        try:
            reply = asyncio.run_coroutine_threadsafe(self._ask(body), self._loop).result()
        except (Unable, EngineError) as error:
            self.close()
            raise EngineError(f"{self._endpoint}: {error}; name the server's model with --model") from error
        self.model = reply.model or self.model
        self.fingerprint = f"server:{self.model}:{SENT[self._options.form]}"


def _said(ticket: int, reply: Reply, seconds: float, context: int) -> Said:
    """A reply as the loop takes it. A server counts the prompt's tokens in one."""
    usage = RowUsage(
        video_tokens=None, text_tokens=reply.prompt_tokens, answer_tokens=reply.answer_tokens, context=context,
        rope_factor=1.0,
    )  # fmt: skip
    error = None
    if reply.thought:
        error = "the server's model only thought; raise --max-new-tokens"
    elif reply.finish_reason == "content_filter":
        error = "the server's content filter stopped the answer"
    return Said(
        ticket=ticket, text=reply.text, finish_reason=reply.finish_reason, usage=usage, seconds=seconds, error=error,
        model=reply.model,
    )  # fmt: skip
