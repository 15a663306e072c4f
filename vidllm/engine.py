"""Prompt -> text: one prefill, then tokens one by one until a stop, the limit, or a loop.

    Prompt --read--> Past(ids, state) --generate--> pieces of text ... Generated(text, token_ids, finish_reason, state)
                      ^                                                                                         |
                      +------------------------ the next turn reads on from here ------------------------------+

A new prompt that continues an old one (same media, same RoPE factor, same ids up to some point) is not read again:
`read` rewinds the old state to where the two part and reads only what is new. So a follow-up pays for its question; of
a model that can go back to its pictures only (`model.running`), for what was said since, too.

Nothing here knows files or frames. Shapes: V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from vidllm.clip import Clip
from vidllm.errors import ModelError
from vidllm.model.checkpoint import stop_ids
from vidllm.model.memory import told_when_it_runs_out

if TYPE_CHECKING:
    from vidllm.model.features import FeatureCache
    from vidllm.model.kv import State
    from vidllm.model.lmm import VideoLMM
    from vidllm.options import GenerationOptions
    from vidllm.prompt import Prompt
    from vidllm.visuals import Image

FinishReason = Literal["stop", "length", "repetition"]
"""stop: the model ended its turn, or a stop text came. length: no room left. repetition: it ran in a loop."""

NO_MEMORY = "out of memory; use fewer --frames, a coarser --stride, a smaller model or another --device"
COLDEST = 1e-6
"""A temperature below it is greedy: scores divided by less leave float32."""
LOOP_MAX_UNIT = 64
"""Longest repeated unit looked for, tokens."""
LOOP_MIN_COPIES = 4
"""So many copies in a row, and ..."""
LOOP_MIN_TOKENS = 32
"""... so many tokens in all of them together, make a loop."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """One finished answer. `text` is exactly what was streamed, joined."""

    text: str
    token_ids: tuple[int, ...]
    """Every token chosen; the one that ended the turn is not among them."""
    finish_reason: FinishReason
    seconds: float
    """Spent choosing and reading tokens, without prefill and without waiting for whoever listens."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Generated(Written):
    """A finished answer that a conversation can go on from."""

    state: State
    """What the model remembers now; see `Past.after`."""


# ---------------------------------------------------------------------------------------------- where a turn begins


@dataclass(frozen=True, eq=False)
class Past:
    """A prompt that was read and all ids read since: what a follow-up may continue."""

    prompt: Prompt
    ids: tuple[int, ...]
    """What `state` has read: the prompt's ids, then those of its answer."""
    state: State
    reused: int = 0
    """How many of the prompt's tokens were read before and not again."""

    def after(self, answer: Generated) -> Past:
        """The same with the answer that grew from it."""
        new = answer.state.length - self.state.length
        return Past(self.prompt, self.ids + answer.token_ids[:new], answer.state, self.reused)


def read(model: VideoLMM, prompt: Prompt, *, cache: FeatureCache | None = None, past: Past | None = None) -> Past:
    """Read `prompt`, on from `past` when it continues it; then `generate` from the result's state.

    Whichever way it was read, the state is the same: under greedy decoding in fp32 the answers are equal token for
    token. Continuing gives `past` up: keep the result instead. Raises ModelError when the prompt shows something and
    no visual token would reach the model, or when memory runs out.
    """
    check_shown(prompt)
    shared = shared_prefix(past, prompt) if past is not None else 0
    with told_when_it_runs_out(NO_MEMORY):
        begun = model.rewind(past.state, shared) if past is not None and shared else None
        shared = begun.length if begun is not None else 0
        if begun is not None and shared:
            state = model.extend(begun, prompt.input_ids[shared:])
        else:
            state = model.prefill(prompt, cache)
    return Past(prompt, prompt.input_ids, state, shared)


def check_shown(prompt: Prompt) -> None:
    """Raise ModelError when the prompt shows something and no visual token would reach the model."""
    if prompt.video_tokens == 0 and any(message.media for message in prompt.messages):
        raise ModelError("the prompt shows a video and holds no visual token; the model would invent what it saw")


def shared_prefix(past: Past, prompt: Prompt) -> int:
    """Tokens of `past` that `prompt` begins with, all its visual ones included; 0 when it does not continue it."""
    if prompt.rope_factor != past.state.rope_factor or not past.state.alive or not _same_media(past.prompt, prompt):
        return 0
    shared = common_length(past.ids, prompt.input_ids[:-1])  # the last id is read again: its logits begin the answer
    return 0 if prompt.spec.visual_ids.intersection(prompt.input_ids[shared:]) else shared


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many leading items are equal."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))


def _same_media(one: Prompt, other: Prompt) -> bool:
    a = [medium for message in one.messages for medium in message.media]
    b = [medium for message in other.messages for medium in message.media]
    return len(a) == len(b) and all(_same_medium(x, y) for x, y in zip(a, b, strict=True))


def _same_medium(one: Clip | Image, other: Clip | Image) -> bool:
    """The same pixels under the same plan; identity first, because comparing 56 frames costs milliseconds."""
    if one is other:
        return True
    if isinstance(one, Clip) and isinstance(other, Clip):
        if one.features is not None or other.features is not None:
            return bool(one.key) and one.key == other.key  # there are no pixels; the key names file and look
        same_plan = one.plan.frames == other.plan.frames and one.plan.fit == other.plan.fit
        same_times = np.array_equal(one.frames.pts_seconds, other.frames.pts_seconds)
        return same_plan and same_times and np.array_equal(one.frames.pixels, other.frames.pixels)
    if isinstance(one, Clip) or isinstance(other, Clip):
        return False
    return np.array_equal(one.pixels, other.pixels)


# ------------------------------------------------------------------------------------------------- how it goes on


def generate(model: VideoLMM, state: State, options: GenerationOptions) -> Generation:
    """Begin an answer after `state`; nothing is computed before the result is iterated or asked for its `result`."""
    return Generation(model, state, options)


class Generation:
    """An answer being written: iterate it for pieces of text; `result` finishes it and gives the whole.

    Pieces are ready for the screen: whole characters only (a Chinese character may be three tokens), no leading or
    trailing space, no part of a stop text. An exception, Ctrl-C included, leaves the state it began from untouched.
    """

    def __init__(self, model: VideoLMM, state: State, options: GenerationOptions) -> None:
        self._model = model
        self._options = options
        self._result: Generated | None = None
        self._pieces = self._run(state)

    def __iter__(self) -> Generator[str]:
        return self._pieces

    @property
    def result(self) -> Generated:
        """The finished answer; what has not been iterated yet is written first."""
        for _ in self._pieces:
            pass
        if self._result is None:
            raise ModelError("the answer was interrupted and has no result; generate it again")
        return self._result

    def _run(self, state: State) -> Generator[str]:
        reply = Reply(self._model, self._options)
        seconds = 0.0
        while reply.finish_reason is None:
            began = time.perf_counter()
            if reply.token_ids:  # the token chosen last; the very last one needs no successor and is never read
                with told_when_it_runs_out(NO_MEMORY):
                    state = self._model.extend(state, reply.token_ids[-1:])
            token = reply.choose(state.logits)
            seconds += time.perf_counter() - began
            if piece := reply.push(token):
                yield piece
        self._result = Generated(**vars(reply.written(seconds)), state=state)


class Reply:
    """One answer while it is written: chooses tokens, takes them, and knows when it is finished."""

    def __init__(self, model: VideoLMM, options: GenerationOptions) -> None:
        self.options = options
        self.token_ids: list[int] = []
        """Chosen so far, without the one that ended the turn."""
        self.finish_reason: FinishReason | None = None
        """None while it goes on."""
        self._tokenizer = model.tokenizer
        self._ends = stop_ids(model.spec.folder, model.tokenizer)
        self._generator = torch.Generator().manual_seed(options.seed % 2**63)  # as many digits as torch takes
        self._text = TextStream(self._decode, options.stop)
        self._watch = LoopWatch()
        self._parts: list[str] = []

    def choose(self, logits: Tensor) -> int:
        """The next token's id from logits (V,); see `choose`."""
        return choose(logits, self.options, self._generator)

    def push(self, token: int) -> str:
        """Take the next token; the text it makes certain, all of the rest when it is the last."""
        if token in self._ends:
            self.finish_reason = "stop"
            piece = ""
        else:
            self.token_ids.append(token)
            piece = self._text.push(token)
            self.finish_reason = self._finish_reason(token)
        if self.finish_reason is not None:
            piece += self._text.finish()
        self._parts.append(piece)
        return piece

    def _finish_reason(self, token: int) -> FinishReason | None:
        if self._text.stopped:
            return "stop"
        if self.options.stop_on_loop and self._watch.push(token):
            return "repetition"
        return "length" if len(self.token_ids) == self.options.max_new_tokens else None

    def written(self, seconds: float) -> Written:
        """The finished answer."""
        assert self.finish_reason is not None
        return Written(
            text="".join(self._parts), token_ids=tuple(self.token_ids), finish_reason=self.finish_reason,
            seconds=seconds,
        )  # fmt: skip

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def choose(logits: Tensor, options: GenerationOptions, generator: torch.Generator) -> int:
    """The next token's id from logits (V,): the likeliest, or a draw from what temperature, top_k and top_p leave.

    Draws happen on the CPU: one seed means one answer on every device. Raises ModelError on logits that are no numbers.
    """
    logits = logits.float().cpu()  # the step's one wait for the device
    best = int(logits.argmax())
    if not bool(torch.isfinite(logits[best])):
        raise ModelError(
            "the model's output is not a number: its precision overflowed, load it with dtype float32; if it is so "
            "already, its weights are damaged, download it again"
        )
    if options.temperature < COLDEST:
        return best
    most = min(options.top_k or len(logits), len(logits))
    scores, ids = torch.topk(logits, most)  # both (most,), likeliest first
    probabilities = torch.softmax((scores - scores[0]) / options.temperature, dim=0)
    before = probabilities.cumsum(0) - probabilities  # probability of everything likelier
    least = torch.finfo(before.dtype).tiny  # a smaller top_p would be 0 here, and leave no token at all
    drawn = torch.multinomial(probabilities * (before < max(options.top_p, least)), 1, generator=generator)
    return int(ids[drawn])


def greedy(logits: Tensor) -> list[int | None]:
    """Each row's likeliest token of logits (n, V), found where they are; None where they are no numbers."""
    best = logits.argmax(-1)
    broken = ~logits.gather(-1, best[:, None])[:, 0].isfinite()
    return [token if token >= 0 else None for token in best.masked_fill(broken, -1).tolist()]  # the one wait


class LoopWatch:
    """Tells when the newest tokens are one unit over and over: it will not end by itself.

    Rule: a unit of 1 to 64 tokens stands at least 4 times in a row at the end, exactly equal, in at least 32 tokens
    together. So one word needs 32 copies, a line of 8 tokens 4. Lists whose lines differ in any token (a number, a
    time, a name) never match, nor does a phrase said three times. Each step costs 64 comparisons, whatever the length.
    """

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._runs = [0] * (LOOP_MAX_UNIT + 1)  # [unit]: how many newest tokens equal the one `unit` before them

    def push(self, token: int) -> bool:
        """Take the next token; True when the tail is a loop now."""
        ids, runs = self._ids, self._runs
        ids.append(token)
        found = False
        for unit in range(1, min(LOOP_MAX_UNIT, len(ids) - 1) + 1):
            runs[unit] = runs[unit] + 1 if ids[-1 - unit] == token else 0
            copies = max(LOOP_MIN_COPIES, -(-LOOP_MIN_TOKENS // unit))
            found = found or runs[unit] >= unit * (copies - 1)
        return found


# ------------------------------------------------------------------------------------------------- ids -> letters


Decode = Callable[[list[int]], str]
"""Token ids -> text, special tokens left out."""


class TextStream:
    """Token ids in, printable text out as soon as it is certain: whole characters, no stop text, no outer space.

    Of several stop texts the one that is complete first ends the answer.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._letters = _Letters(decode)
        self._stop = tuple(stop)
        self._held = ""  # decoded, not yet certain to belong to the answer
        self._begun = False
        self.stopped = False
        """A stop text has come; what was held back with it is gone."""

    def push(self, token: int) -> str:
        """The text this token makes certain; often one word, sometimes nothing."""
        return self._add(self._letters.push(token))

    def finish(self) -> str:
        """What is still held: it belongs to the answer after all. Nothing after a stop text."""
        released = self._add(self._letters.finish())
        return released + self._release(len(self._held))

    def _add(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        if (cut := self._find_stop()) is not None:
            self.stopped = True
            self._held = self._held[:cut]
            return self._release(cut)
        return self._release(len(self._held) - self._possible_stop())

    def _release(self, length: int) -> str:
        """Let go the first `length` letters of what is held, but keep the spaces at their end back."""
        body = self._held[:length].rstrip()
        self._held = self._held[len(body) :] if not self.stopped else ""
        if not self._begun:
            body = body.lstrip()
            self._begun = bool(body)
        return body

    def _find_stop(self) -> int | None:
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        return min(found, default=None)

    def _possible_stop(self) -> int:
        """Length of the longest end of what is held that some stop text begins with."""
        lengths = (n for stop in self._stop for n in range(len(stop) - 1, 0, -1) if self._held.endswith(stop[:n]))
        return max(lengths, default=0)


class _Letters:
    """Token ids -> text, a piece per token, never half a character.

    One token alone can not be decoded: a byte token is a third of a character, and a leading space may belong to the
    join of two words. So the last piece is decoded again together with what is new, and the difference is the text.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._window: list[int] = []  # the tokens of the last piece, then those not yet text
        self._done = 0  # how many of them are the last piece

    def push(self, token: int) -> str:
        self._window.append(token)
        text = self._new()
        if not text or text.endswith("\ufffd"):
            return ""  # nothing to join on to, or half a character: the next token completes it
        self._window = self._window[self._done :]
        self._done = len(self._window)
        return text

    def finish(self) -> str:
        """What never became a whole character, as the tokenizer prints it (U+FFFD)."""
        text = self._new()
        self._window, self._done = [], 0
        return text

    def _new(self) -> str:
        """What the tokens after the last piece add to it."""
        before, now = self._decode(self._window[: self._done]), self._decode(self._window)
        if now.startswith(before):
            return now[len(before) :]
        # Of bytes in a row, one broken character spoils them all, those of the last piece too (Llama's byte tokens).
        return self._decode(self._window[self._done :])
