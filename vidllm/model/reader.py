"""TextReader: the part every model shares, embeddings in, keys and values kept, the next token's logits out.

Who asks and who teaches walk one road:

    ids, visuals -> see -> tokens -> embedded -> language model, at `positions_of` the ids -> next token
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vidllm.errors import ModelError
from vidllm.model.attention import NAME
from vidllm.model.decoder import RUNNING_LAYERS, like, row_limit, table_width, turning_length
from vidllm.model.kv import Foothold, KeyValues, Past, State, rewind, writable
from vidllm.model.rope import scaled_positions, scaled_rows
from vidllm.model.slots import Slots, Step

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from vidllm.model.extras import Extras
    from vidllm.model.families import ModelSpec
    from vidllm.model.features import FeatureCache
    from vidllm.prompt import Prompt
    from vidllm.visuals import Visual

Seen = tuple[list[Tensor], int]
"""The features of every visual of a prompt, and how many pictures went through the tower for them."""

ALONG = frozenset({"visual_pos_masks", "per_layer_inputs"})
"""What of `Ready.deep` has an entry for every token."""
REPLY_ROOM = 320
"""Tokens of KV buffer beyond the prompt taken at prefill: the default reply of 256 and a short follow-up."""
WIDE_BYTES = 2 * 2**30
"""Keys and values kept in float32 on a CPU that computes in bf16, at most. One query row against bf16 keys takes
PyTorch's CPU attention 7 times as long as against float32 ones (width 64, 500 to 2000 tokens), at prefill it is even;
beyond this size the memory is worth more than the time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ready:
    """A prompt whose visuals are encoded: all that is left is the language model's work."""

    embeddings: Tensor
    """(1, L, D): text, and every visual's features in their places."""
    positions: Tensor
    """(1, L), or (3, 1, L) where time, rows and columns are counted apart; already over the RoPE factor."""
    rope_factor: float = 1.0
    position_offset: int = 0
    """As in `State`."""
    deep: Mapping[str, Any] = field(default_factory=dict)
    """What else `read` is told: vision features of deeper layers, or how far tokens see."""
    frames_encoded: int = 0
    encode_seconds: float = 0.0

    @property
    def length(self) -> int:
        """Tokens."""
        return self.embeddings.shape[1]

    def part(self, start: int, end: int | None = None) -> Ready:
        """The same from token `start` to `end`; nothing but text may be left out."""
        cut = slice(start, end)
        deep = {name: value[:, cut] if name in ALONG else value for name, value in self.deep.items()}
        return replace(self, embeddings=self.embeddings[:, cut], positions=self.positions[..., cut], deep=deep)


class TextReader(ABC):
    """A network's language model with its embedding table and head; ComposableLMM and NativeLMM add the eyes.

    `network` is the whole Hugging Face model, `language` the part of it that reads embeddings.
    """

    projects: ClassVar[bool]
    """Whether what the tower gives goes through the projector in `tokens`; if not, `see` gives what comes out of it."""
    words_in_features: ClassVar[bool] = False
    """Whether what the tower gives holds words of the embedding table, which learn with it."""
    extras: Extras | None = None
    """Learned parts that the network's own class has no place for."""

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: Tokenizer,
        network: nn.Module,
        language: nn.Module,
        fingerprint: str,
    ) -> None:
        self.spec = spec
        self.tokenizer = tokenizer
        self.network = network
        self.language = language
        self.fingerprint = fingerprint
        self.embed: nn.Module = network.get_input_embeddings()  # type: ignore[operator]
        self.head: nn.Module = network.get_output_embeddings()  # type: ignore[operator]
        self._config: Any = getattr(language, "config", None)
        kinds = getattr(self._config, "layer_types", None) or [""] * len(language.layers)  # type: ignore[arg-type]
        own = len(kinds) - getattr(self._config, "num_kv_shared_layers", 0)  # the last ones look at those of others
        self.layers = tuple(number for number, kind in enumerate(kinds[:own]) if kind not in RUNNING_LAYERS)
        """Numbers of those that keep keys and values."""
        self.runs = not RUNNING_LAYERS.isdisjoint(kinds)
        """Whether some keep a running state, see `running`."""
        self.sums = "linear_attention" in kinds
        """Whether some of these keep the sum of all they read, which is slow without kernels of its own."""
        self.turning_length = turning_length(self._config)

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return like(self.embed).device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.embed.parameters()).dtype

    @torch.inference_mode()
    def prepare(self, prompts: Sequence[Prompt], cache: FeatureCache | None = None) -> list[Ready]:
        """Encode the visuals of several prompts together and put them in their places.

        Raises:
            ModelError: visual tokens and visual features differ in number (the message holds both), or the family
                can not do what a prompt asks.
        """
        began = time.perf_counter()
        for prompt in prompts:
            self.check(prompt)
        seen = self.see([prompt.visuals for prompt in prompts], cache)
        prepared = [self._ready(prompt, *features) for prompt, features in zip(prompts, seen, strict=True)]
        share = (time.perf_counter() - began) / len(prompts)
        return [replace(ready, encode_seconds=share) for ready in prepared]

    @abstractmethod
    def check(self, prompt: Prompt) -> None:
        """Raise ModelError where the family can not do what a prompt asks."""

    def sight(self, prompt: Prompt) -> dict[str, Tensor]:
        """What `read` must be told of how far the prompt's tokens see, where that is not back alone."""
        return {}

    def _ready(self, prompt: Prompt, features: Sequence[Tensor], encoded: int) -> Ready:
        ids, visuals = prompt.input_ids, prompt.visuals
        embeddings, deep = self.embedded(ids, visuals, self.tokens_of(visuals, features))
        positions, offset = self.positions_of(ids, visuals, prompt.rope_factor)
        return Ready(
            embeddings=embeddings, deep=deep | self.sight(prompt), positions=positions, position_offset=offset,
            rope_factor=prompt.rope_factor, frames_encoded=encoded,
        )  # fmt: skip

    @abstractmethod
    def see(self, prompts: Sequence[Sequence[Visual]], cache: FeatureCache | None = None) -> list[Seen]:
        """For each prompt what the tower gives of its visuals, equal pictures once."""

    @abstractmethod
    def tokens(self, visual: Visual, features: Tensor) -> Tensor:
        """What `see` gave of one visual -> its tokens (n, D), or (n, D * (1 + k)) with those for k deeper layers."""

    def tokens_of(self, visuals: Sequence[Visual], features: Sequence[Tensor]) -> list[Tensor]:
        """As `tokens`, of several."""
        return [self.tokens(visual, seen) for visual, seen in zip(visuals, features, strict=True)]

    def embedded(
        self, ids: Sequence[int], visuals: Sequence[Visual], tokens: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Embeddings (1, L, D) of the ids, every visual's tokens in the places of its placeholders; and under the
        language model's own keywords what it adds to them in its first layers (Qwen3-VL).

        Raises:
            ModelError: see `check_counts`.
        """
        visual = self.spec.visual_ids
        check_counts(visuals, [len(own) for own in tokens], sum(token in visual for token in ids))
        return self.filled(ids, tokens)

    def filled(self, ids: Sequence[int], tokens: Sequence[Tensor]) -> tuple[Tensor, dict[str, Any]]:
        """As `embedded`, of as many tokens as there are placeholders."""
        words = torch.tensor([ids])  # on the CPU: counting them on a GPU would wait for it
        shown, ends = (torch.isin(words, torch.tensor([*of])) for of in (self.spec.visual_ids, self.spec.row_ends))
        holes = shown & ~ends  # what ends a row is a word of the table, and learns with it
        known = words.masked_fill(holes, self.blank).to(self.device)  # a placeholder's id may lie beyond the table
        embeddings, beside = self.embed(known), self.beside(known)
        if not tokens:
            return embeddings, beside
        seen = torch.cat([own.to(embeddings) for own in tokens])
        if self.spec.row_ends:
            seen = seen[holes[shown].to(seen.device)]
        first, *deeper = torch.split(seen, embeddings.shape[-1], dim=-1)
        places = holes[0].nonzero()[:, 0].to(self.device)
        deep = {"visual_pos_masks": holes.to(self.device), "deepstack_visual_embeds": deeper} if deeper else {}
        return embeddings.index_copy(1, places, first[None]), deep | beside

    @property
    def blank(self) -> int:
        """The id in place of a visual token's."""
        return 0

    def beside(self, ids: Tensor) -> dict[str, Any]:
        """What the language model is told of ids (B, L) beside their embeddings, under its own keywords: each id's
        entries (B, L, layers, width) in tables of the layers, where there are such (Gemma 3n, Gemma 4).
        """
        language: Any = self.language
        return {"per_layer_inputs": language.get_per_layer_inputs(ids)} if table_width(self._config) else {}

    @property
    def cap(self) -> float | None:
        """What no logit exceeds: as they come near it they are squeezed (Gemma 4)."""
        return None

    @property
    def scale(self) -> float:
        """What logits are multiplied by before that (Granite, Muse)."""
        return 1.0

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (.., D) -> float32 logits (.., V)."""
        return capped(self.head(hidden * self.scale).float(), self.cap)

    def positions_of(self, ids: Sequence[int], visuals: Sequence[Visual], factor: float = 1.0) -> tuple[Tensor, int]:
        """Position ids (1, L), or (3, 1, L), of a text over its RoPE factor; and how far the position of the next token
        is from the number of tokens. Those of a beginning are the same whatever follows it.
        """
        return scaled_positions(0, len(ids), factor, self.device), 0

    @torch.inference_mode()
    def prefill(self, prompt: Prompt, cache: FeatureCache | None = None) -> State:
        """Encode the prompt's visuals, read all its tokens, and predict the one after the last; raises as `prepare`."""
        ready = self.prepare([prompt], cache)[0]
        began = time.perf_counter()
        kv = self.room(ready.length)
        logits, foothold = self._read_prompt(ready, kv, prompt.end_of_visuals)
        return State(
            logits, kv.length, kv, ready.rope_factor, ready.position_offset, encode_seconds=ready.encode_seconds,
            prefill_seconds=time.perf_counter() - began, frames_encoded=ready.frames_encoded,
            pieces=() if self.turning_length is None else (ready.embeddings,),
            turned=self._turned(ready.length, ready.rope_factor), running=kv.running, foothold=foothold,
        )  # fmt: skip

    def _read_prompt(self, ready: Ready, kv: KeyValues, end_of_visuals: int) -> tuple[Tensor, Foothold | None]:
        """Logits behind it. Where layers run it is read in two parts: later talk may go back to the end of visuals."""
        if not self.runs:
            return self.read(ready.embeddings, kv, ready.positions, **ready.deep), None
        end = min(end_of_visuals, ready.length - 1)
        shown, rest = ready.part(0, end), ready.part(end)
        if end:
            self.read(shown.embeddings, kv, shown.positions, **shown.deep)
        foothold = Foothold(end, kv.running.copy())
        return self.read(rest.embeddings, kv, rest.positions), foothold

    @torch.inference_mode()
    def extend(self, state: State, input_ids: Sequence[int]) -> State:
        """Read more token ids after `state`, which stays valid; see `kv` for when its prefix is copied. Where they turn
        the positions of what was read before, all of it is read again.

        Raises:
            ValueError: no ids, or the state was given up by a rewind.
        """
        if not input_ids:
            raise ValueError("extend needs at least one token id")
        ids = torch.tensor([list(input_ids)], device=self.device)
        embeddings: Tensor = self.embed(ids)
        kv, start = writable(state), state.length + state.position_offset
        if state.pieces:
            state = replace(state, pieces=(*state.pieces, embeddings))
        turned = self._turned(state.length + len(input_ids), state.rope_factor)
        if turned != state.turned:
            state, embeddings = replace(state, turned=turned), torch.cat(state.pieces, dim=1)
            kv, start = self.room(embeddings.shape[1]), 0
        positions = scaled_positions(start, embeddings.shape[1], state.rope_factor, self.device)
        logits = self.read(embeddings, kv, positions, **self.beside(ids))
        return state.grown(logits, kv)

    def _turned(self, length: int, factor: float) -> bool:
        """Whether so many tokens reach positions beyond `turning_length`."""
        return self.turning_length is not None and (length - 1) / factor + 1 > self.turning_length

    def rewind(self, state: State, length: int | None = None) -> State:
        """Go back to `state` (or to its first `length` tokens) without copying, giving up what came after; see `kv` for
        when the result is shorter than that.
        """
        return rewind(state, length)

    def room(self, prompt_tokens: int) -> KeyValues:
        """Empty keys and values with room for a prompt and its reply."""
        return KeyValues(self.layers, prompt_tokens + REPLY_ROOM, wide_bytes=self.wide_bytes)

    @property
    def wide_bytes(self) -> int:
        """Bytes of keys and values that may be wider than the model's own numbers; see `WIDE_BYTES`.

        0 where attention does not take them so: kernels other than `attention`'s, and keys that are kept compressed
        and go through a matrix first (DeepSeek).
        """
        config = self._config
        takes = config is None or (config._attn_implementation == NAME and not hasattr(config, "kv_lora_rank"))
        return WIDE_BYTES if takes and self.device.type == "cpu" and self.dtype == torch.bfloat16 else 0

    @property
    def window(self) -> int | None:
        """Tokens up to which rows can be read together, see `row_limit`; None: any."""
        return row_limit(self._config)

    @property
    def batches(self) -> bool:
        """Whether rows of different lengths may share a step: not where an attention kernel takes no mask per row."""
        return self._config is None or self._config._attn_implementation in ("sdpa", NAME)

    @torch.inference_mode()
    def step(self, slots: Slots, tokens: Sequence[int], offsets: Sequence[int], factors: Sequence[float]) -> Tensor:
        """One more token (n,) for each of the first n rows; float32 logits (n, V) of the next.

        `offsets` and `factors` are each row's position offset and RoPE factor. An exception leaves every row as it was.
        """
        ids = torch.tensor(tokens, device=self.device)[:, None]
        lengths = torch.tensor(slots.lengths[: len(tokens)], device=self.device)
        places = lengths + torch.tensor(offsets, device=self.device)
        kv = slots.step(len(tokens), self.device)
        hidden = self.language(
            inputs_embeds=self.embed(ids), position_ids=scaled_rows(places[:, None], factors), past_key_values=kv,
            attention_mask=self.step_mask(kv), use_cache=True, **self.beside(ids),
        ).last_hidden_state  # fmt: skip
        logits = self.logits(hidden[:, -1])
        slots.stepped(kv)
        return logits

    def step_mask(self, kv: Step) -> Tensor | dict[str, Tensor]:
        """What each row of a step sees, for all layers or by their kind."""
        return kv.mask

    @torch.inference_mode()
    def read(self, embeddings: Tensor, kv: Past, positions: Tensor, **deep: object) -> Tensor:
        """Run (1, L, D) behind what `kv` holds; float32 logits (V,) of the last position only.

        A prompt of thousands of tokens times a vocabulary of a hundred thousand would be gigabytes of logits nobody
        reads. `deep` goes to the language model as it is (vision features of deeper layers).
        """
        hidden = self.language(
            inputs_embeds=embeddings, position_ids=positions, past_key_values=kv, use_cache=True, **deep
        ).last_hidden_state
        return self.logits(hidden[0, -1])


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """Logits, none of which exceeds `cap`."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def check_counts(visuals: Sequence[Visual], made: Sequence[int], placeholders: int) -> None:
    """Stop when a prompt and its features disagree: scattering anyway would shift every later frame.

    Raises:
        ModelError: with both numbers.
    """
    for number, (visual, tokens) in enumerate(zip(visuals, made, strict=True), start=1):
        if visual.tokens != tokens:
            raise ModelError(
                f"{visual.kind} {number}: the prompt holds {visual.tokens} visual tokens, the model made {tokens}; "
                "the plan was made for another model or grid"
            )
    total = sum(visual.tokens for visual in visuals)
    if placeholders != total:
        raise ModelError(
            f"the prompt holds {placeholders} placeholders for {total} visual tokens; "
            "does the question spell the image token?"
        )
