"""TextReader: the part every model shares, embeddings in, keys and values kept, the next token's logits out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vidllm.errors import ModelError
from vidllm.model.kv import KeyValues, State, rewind, writable
from vidllm.model.rope import scaled_positions

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from vidllm.model.families import ModelSpec
    from vidllm.prompt import Visual

REPLY_ROOM = 320
"""Tokens of KV buffer beyond the prompt taken at prefill: the default reply of 256 and a short follow-up."""


WIDE_BYTES = 2 * 2**30
"""Keys and values kept in float32 on a CPU that computes in bf16, at most. One query row against bf16 keys takes
PyTorch's CPU attention 7 times as long as against float32 ones (width 64, 500 to 2000 tokens), at prefill it is even;
beyond this size the memory is worth more than the time."""


class TextReader:
    """A network's language model with its embedding table and head; ComposableLMM and NativeLMM add the eyes.

    `network` is the whole Hugging Face model, `language` the part of it that reads embeddings.
    """

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
        self.head: nn.Module = network.lm_head  # type: ignore[assignment]
        self.layers = len(language.layers)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return next(self.embed.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.embed.parameters()).dtype

    @torch.inference_mode()
    def extend(self, state: State, input_ids: Sequence[int]) -> State:
        """Read more token ids after `state`, which stays valid; see `kv` for when its prefix is copied.

        Raises:
            ValueError: no ids, or the state was given up by a rewind.
        """
        if not input_ids:
            raise ValueError("extend needs at least one token id")
        kv = writable(state)
        start = state.length + state.position_offset
        positions = scaled_positions(start, len(input_ids), state.rope_factor, self.device)
        logits = self.read(self.embed(torch.tensor([list(input_ids)], device=self.device)), kv, positions)
        return state.grown(logits, kv)

    def rewind(self, state: State, length: int | None = None) -> State:
        """Go back to `state` (or to its first `length` tokens) without copying, giving up what came after."""
        return rewind(state, length)

    def room(self, prompt_tokens: int) -> KeyValues:
        """Empty keys and values with room for a prompt and its reply."""
        narrow_cpu = self.device.type == "cpu" and self.dtype == torch.bfloat16
        return KeyValues.empty(self.layers, prompt_tokens + REPLY_ROOM, wide_bytes=WIDE_BYTES if narrow_cpu else 0)

    def read(self, embeddings: Tensor, kv: KeyValues, positions: Tensor, **deep: object) -> Tensor:
        """Run (1, L, D) behind what `kv` holds; float32 logits (V,) of the last position only.

        A prompt of thousands of tokens times a vocabulary of a hundred thousand would be gigabytes of logits nobody
        reads. `deep` goes to the language model as it is (vision features of deeper layers).
        """
        hidden = self.language(
            inputs_embeds=embeddings, position_ids=positions, past_key_values=kv, use_cache=True, **deep
        ).last_hidden_state
        logits: Tensor = self.head(hidden[0, -1])
        return logits.float()


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
