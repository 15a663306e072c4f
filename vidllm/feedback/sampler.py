"""Candidates from a model: its prompt read once, k answers written side by side, each then measured.

    prompt --read once--> State --k rows side by side--> texts --distinct--> each read behind the same State -> logp
                            ^ the next question about the same clip goes on from its frames

Log-probs are measured after sampling, by reading the text again: the ids that were drawn need not be those the text is
taught with.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidllm.engine import Past, Reply, Written, read, shared_prefix
from vidllm.errors import ModelError
from vidllm.feedback.candidates import SAMPLED, Candidate, Sampled, SamplingOptions
from vidllm.model.kv import writable
from vidllm.model.memory import free_bytes
from vidllm.model.reader import TextReader
from vidllm.model.rope import scaled_positions
from vidllm.model.slots import RUNNING_COPIES, Slots, Start
from vidllm.prompt import Example, Message, Prompt, build_example, build_prompt

if TYPE_CHECKING:
    from vidllm.ask import VideoModel
    from vidllm.feedback.twins import Twin
    from vidllm.model.kv import State
    from vidllm.options import GenerationOptions

MEMORY_SHARE = 0.5
"""Of free memory, so much may be keys and values of answers under way."""


class Sampler:
    """Asks one model. Questions about one clip should follow each other: its frames are then read once."""

    def __init__(self, model: VideoModel, options: SamplingOptions, *, rope_max: float = 2.0) -> None:
        if not isinstance(model.lmm, TextReader):
            raise ModelError(f"{model.name}: its family gives no log-probs of an answer; use another model")
        self._model, self._lmm, self._options = model, model.lmm, options
        self._rope_max = rope_max
        self._spec = replace(model.spec, as_said=True)
        """Earlier answers of a dialogue stand as they are taught, whatever this model was taught so far."""
        self._shown: Past | None = None
        """What was read of the clip that is being asked about."""
        self._state: tuple[Prompt, State] | None = None
        """The question read last, and the state behind it."""

    @property
    def fingerprint(self) -> str:
        """What the log-probs are of: weights, and the number format they were computed in."""
        return f"{self._lmm.fingerprint}|{str(self._lmm.dtype).removeprefix('torch.')}"

    def sample(
        self, messages: Sequence[Message], key: str, others: Sequence[tuple[str, Sequence[Message]]] = (),
        twin: Callable[[str], Twin | None] | None = None,
    ) -> Sampled:  # fmt: skip
        """Candidates for the question `messages` end with. `key` names it: with the seed it decides every draw.

        `others` are (source, the same messages about a changed clip): one answer each, whose `logp` is that of saying
        it about the clip as it is. What `twin` makes of an answer becomes a candidate beside it. Raises
        BudgetError, ModelError.
        """
        prompt = self._prompt(messages)
        # Changed clips first: what is read last is the clip as it is, behind which all candidates are measured.
        asides = [(s, w) for s, changed in others for w in self._draw(self._prompt(changed), f"{key}/{s}", 1)]
        told = [(SAMPLED, written) for written in self._draw(prompt, key, self._options.k)]
        kept, dropped = _distinct([*told, *asides])
        scored = [self._score(messages, prompt, text, source) for text, source in kept]
        if twin is not None:
            both = [(text, twin(text)) for text, source in kept if source == SAMPLED]
            scored += [replace(self._score(messages, prompt, made.text, made.source), twin_of=text)
                       for text, made in both if made is not None]  # fmt: skip
        return Sampled(candidates=tuple(scored), dropped=dropped, model=self.fingerprint)

    def _prompt(self, messages: Sequence[Message]) -> Prompt:
        """The question, with room for a reply as when asking: what is left of it, unless somebody named its length."""
        room = self._options.max_new_tokens
        return build_prompt(
            messages, self._spec, self._lmm.tokenizer, max_new_tokens=room, shrink=room is None,
            rope_max=self._rope_max,
        )  # fmt: skip

    def _read(self, prompt: Prompt) -> State:
        """The state behind the prompt, read in two parts: all that is shown, once for all its questions, then the rest.

        Always in two parts, so that log-probs are the same to the last bit whatever was asked before.
        """
        if self._state is not None and self._state[0] is prompt:
            return self._state[1]
        end = self._end_of_shown(prompt)
        known = self._shown
        if known is None or len(known.ids) != end or shared_prefix(known, prompt) != end:
            self._state = self._shown = known = None  # their memory is free before the new prompt takes its own
            shown = replace(prompt, input_ids=prompt.input_ids[:end])
            self._shown = read(self._lmm, shown, cache=self._model.cache)
        assert self._shown is not None
        begun = self._lmm.rewind(self._shown.state)
        self._state = prompt, self._lmm.extend(begun, prompt.input_ids[begun.length :])
        return self._state[1]

    def _end_of_shown(self, prompt: Prompt) -> int:
        """The index behind the last token that stands for a picture; before the last token where there is none.

        Where positions have three axes it is a token later: only behind text do all three say where the next stands.
        """
        end = prompt.end_of_visuals or prompt.length - 1
        return min(end + (prompt.spec.kind == "native"), prompt.length - 1)

    def _draw(self, prompt: Prompt, key: str, count: int) -> list[Written]:
        state = self._read(prompt)
        seeds = [seed_of(self._options.seed, key, number) for number in range(count)]
        return draw(self._lmm, state, [self._options.generation(seed, prompt.max_new_tokens) for seed in seeds])

    def _score(self, messages: Sequence[Message], prompt: Prompt, text: str, source: str) -> Candidate:
        example = build_example(
            [*messages, Message("assistant", text)], self._spec, self._lmm.tokenizer, rope_max=self._rope_max
        )
        ids, factor = answer_ids(example, prompt), example.prompt.rope_factor
        # An example keeps no room for a longer reply, so its positions may need less stretching than the prompt's.
        same = factor == prompt.rope_factor
        state = self._read(prompt if same else replace(prompt, rope_factor=factor))
        logp = answer_logp(self._lmm, state, ids)
        return Candidate(text=text, logp=logp, tokens=len(ids), source=source, rope_factor=factor)


def seed_of(seed: int, key: str, number: int) -> int:
    """The seed of draw `number` for question `key`: the same whatever was asked before it, and in whatever order."""
    digest = hashlib.blake2b(f"{seed}\0{key}\0{number}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")


def answer_ids(example: Example, prompt: Prompt) -> tuple[int, ...]:
    """The ids of the last answer of `example` that are learnt; `prompt` asks for it.

    Raises:
        ModelError: the conversation does not begin with the prompt, so that no log-prob would be the answer's.
    """
    start = prompt.length
    if example.prompt.input_ids[:start] != prompt.input_ids:
        raise ModelError("the conversation to learn from does not begin with the prompt that was asked; its chat "
                         "template prints a prompt otherwise once it is answered")  # fmt: skip
    rest = zip(example.prompt.input_ids[start:], example.trained[start:], strict=True)
    return tuple(token for token, trained in rest if trained)


# ----------------------------------------------------------------------------------------- drawing and measuring


def _distinct(told: Sequence[tuple[str, Written]]) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """(text, source) of each answer that is whole and new, and how many others there were by reason."""
    kept: dict[str, str] = {}
    dropped: Counter[str] = Counter()
    for source, written in told:
        text = written.text.strip()
        if written.finish_reason != "stop":
            dropped["cut off" if written.finish_reason == "length" else "ran in a loop"] += 1
        elif not text:
            dropped["empty"] += 1
        elif text in kept:
            dropped["said before"] += 1
        else:
            kept[text] = source
    return list(kept.items()), dict(dropped)


def draw(model: TextReader, state: State, options: Sequence[GenerationOptions]) -> list[Written]:
    """One answer after `state` for each of `options`, side by side where the model and memory allow it.

    Each is what `engine.generate` would write alone with the same seed. `state` stays as it is.
    """
    replies = [Reply(model, wish) for wish in options]
    for reply in replies:
        reply.push(reply.choose(state.logits))
    together = _rows_together(model, state, options)
    for first in range(0, len(replies), together):
        some = replies[first : first + together]
        if together > 1:
            _write_together(model, state, some)
        else:
            _write_alone(model, state, some[0])
    return [reply.written(0.0) for reply in replies]


def _rows_together(model: TextReader, state: State, options: Sequence[GenerationOptions]) -> int:
    """How many answers may share steps; 1 where the model can not, or memory has no room for two."""
    longest = state.length + max(wish.max_new_tokens for wish in options)
    if not model.batches or (model.window is not None and longest > model.window):
        return 1
    first = state.kv.layers[model.layers[0]].first(1)
    row_bytes = len(model.layers) * longest * sum(part.nbytes for part in first)
    row_bytes += RUNNING_COPIES * state.running.nbytes
    return max(1, min(len(options), int(MEMORY_SHARE * free_bytes(model.device) / row_bytes)))


def _write_together(model: TextReader, state: State, replies: Sequence[Reply]) -> None:
    """One step a token for all; a finished row's place is taken by the last one."""
    running = [reply for reply in replies if reply.finish_reason is None]
    slots = _filled_slots(model, state, len(running), max(reply.options.max_new_tokens for reply in replies))
    while running:
        logits = model.step(
            slots, [reply.token_ids[-1] for reply in running], [state.position_offset] * len(running),
            [state.rope_factor] * len(running),
        ).cpu()  # the step's one wait for the device
        for reply, own in zip(running, logits, strict=True):
            reply.push(reply.choose(own))
        for index in reversed(range(len(running))):
            if running[index].finish_reason is not None:
                last = running.pop()
                if index < len(running):
                    running[index] = last
                    slots.move(len(running), index)


@torch.inference_mode()
def _filled_slots(model: TextReader, state: State, rows: int, room: int) -> Slots:
    """So many rows that all begin with what `state` has read."""
    slots = Slots(model.layers, rows, state.length + room, wide_bytes=model.wide_bytes)
    slots.layers = {n: layer.resized(rows, slots.capacity, state.length) for n, layer in state.kv.layers.items()}
    read = {number: layer.first(state.length) for number, layer in slots.layers.items()}
    start = Start({number: (keys[0], values[0]) for number, (keys, values) in read.items()}, state.running)
    for row in range(rows):
        slots.row(row, start)
    return slots


def _write_alone(model: TextReader, state: State, reply: Reply) -> None:
    told = state
    while reply.finish_reason is None:
        told = model.extend(told, reply.token_ids[-1:])
        reply.push(reply.choose(told.logits))
    told.kv.rewind(state.length)


@torch.inference_mode()
def answer_logp(model: TextReader, state: State, ids: Sequence[int]) -> float:
    """Log-prob of saying exactly `ids` after `state`, summed in float32; `state` stays as it is."""
    targets = torch.tensor(ids, device=model.device)
    logits = [state.logits[None].to(model.device)]
    if len(ids) > 1:
        positions = scaled_positions(state.length + state.position_offset, len(ids) - 1, state.rope_factor,
                                     model.device)  # fmt: skip
        kv = writable(state)
        hidden: Tensor = model.language(
            inputs_embeds=model.embed(targets[None, :-1]), position_ids=positions, past_key_values=kv, use_cache=True,
            **model.beside(targets[None, :-1]),
        ).last_hidden_state  # fmt: skip
        kv.rewind(state.length)
        logits.append(model.logits(hidden[0]))
    found = torch.log_softmax(torch.cat(logits), dim=-1).gather(-1, targets[:, None])
    return float(found.sum())
