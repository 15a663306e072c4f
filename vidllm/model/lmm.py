"""VideoLMM: what the engine needs of any model; and ComposableLMM, where vidllm owns the road from pixels to tokens.

    pixels -> vision tower -> (pool) -> projector -> (pool) -> newlines -> scatter -> language model -> next token
               once per frame          stride per frame                    RoPE factor per request
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from vidllm.budget import Geometry
from vidllm.errors import ModelError
from vidllm.model.encode import encode_once
from vidllm.model.features import FeatureCache
from vidllm.model.kv import KeyValues, State, rewind, writable
from vidllm.model.pooling import lay_out, pack_tiles, pool
from vidllm.model.rope import scaled_positions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vidllm.model.families import ModelSpec
    from vidllm.prompt import Prompt, Visual

REPLY_ROOM = 320
"""Tokens of KV buffer beyond the prompt taken at prefill: the default reply of 256 and a short follow-up."""


class VideoLMM(Protocol):
    """One conversation at a time: prefill once, extend for every later token."""

    spec: ModelSpec
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""

    def prefill(self, prompt: Prompt, cache: FeatureCache | None = None) -> State:
        """Read a whole prompt, visuals and text."""

    def extend(self, state: State, input_ids: Sequence[int]) -> State:
        """Read more text after `state`: one id is a decoding step, several are a follow-up turn."""

    def rewind(self, state: State, length: int | None = None) -> State:
        """Go back to `state` (or into it) without copying, giving up what came after."""


class Parts(Protocol):
    """What a Hugging Face LLaVA-like model is made of, by the names they all share."""

    vision_tower: nn.Module
    multi_modal_projector: nn.Module
    language_model: nn.Module


class ComposableLMM:
    """A LLaVA-like network taken apart: every frame with its own stride, every request with its own RoPE factor.

    `chunk` frames go through the tower at a time, which bounds the memory of long clips. Frames that differ from the
    one encoded before them by at most `same_within` grey levels in every pixel share its features (0: only frames
    that are equal, so that nothing changes).
    """

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: PreTrainedTokenizerBase,
        network: nn.Module,
        fingerprint: str,
        *,
        chunk: int = 8,
        same_within: int = 0,
    ) -> None:
        self.spec = spec
        self.tokenizer = tokenizer
        self.network = network
        self.fingerprint = fingerprint
        self.chunk = chunk
        self.same_within = same_within
        self.parts: Parts = network.model  # type: ignore[assignment]
        self.head: nn.Module = network.lm_head  # type: ignore[assignment]
        self.embed: nn.Module = network.get_input_embeddings()  # type: ignore[operator]
        self.layers = len(self.parts.language_model.layers)  # type: ignore[arg-type]
        self.newline: Tensor | None = getattr(network.model, "image_newline", None)  # families without one: LLaVA-1.5
        self._vision_key = f"{vision_key(spec, fingerprint)}|{self.dtype}"

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return next(self.embed.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.embed.parameters()).dtype

    @torch.inference_mode()
    def prefill(self, prompt: Prompt, cache: FeatureCache | None = None) -> State:
        """Encode the prompt's visuals, read all its tokens, and predict the one after the last.

        Raises:
            ModelError: visual tokens and visual features differ in number; the message holds both.
        """
        started = time.perf_counter()
        features, encoded = self.encode(prompt.visuals, cache)
        embeddings = self.embed_prompt(prompt, features)
        between = time.perf_counter()
        kv = KeyValues.empty(self.layers, len(prompt.input_ids) + REPLY_ROOM)
        logits = self._read(embeddings, kv, prompt.rope_factor)
        return State(
            logits, kv.length, kv, prompt.rope_factor, encode_seconds=between - started,
            prefill_seconds=time.perf_counter() - between, frames_encoded=encoded,
        )  # fmt: skip

    @torch.inference_mode()
    def extend(self, state: State, input_ids: Sequence[int]) -> State:
        """Read more token ids after `state`, which stays valid; see `kv` for when its prefix is copied.

        Raises:
            ValueError: no ids, or the state was given up by a rewind.
        """
        if not input_ids:
            raise ValueError("extend needs at least one token id")
        kv = writable(state)
        ids = torch.tensor([list(input_ids)], device=self.device)
        logits = self._read(self.embed(ids), kv, state.rope_factor)
        return State(
            logits, kv.length, kv, state.rope_factor, state.position_offset, state.encode_seconds,
            state.prefill_seconds, state.frames_encoded, len(kv.cuts),
        )  # fmt: skip

    def rewind(self, state: State, length: int | None = None) -> State:
        """Go back to `state` (or to its first `length` tokens), giving up what came after."""
        return rewind(state, length)

    def encode(self, visuals: Sequence[Visual], cache: FeatureCache | None = None) -> tuple[list[Tensor], int]:
        """Tokens (n, D) of each visual, and how many pictures really went through the tower."""
        pictures = [picture for visual in visuals for picture in visual.pixels]  # each (S, S, 3)
        features, encoded = encode_once(
            pictures, self.tower_features, cache=cache, context=self._vision_key, chunk=self.chunk,
            same_within=self.same_within,
        )  # fmt: skip
        tower = next(self.parts.vision_tower.parameters())
        rows = iter(features)
        grids = [torch.stack([next(rows).to(tower) for _ in visual.pixels]) for visual in visuals]  # each (T, P, Dv)
        return [self._tokens(visual, grid) for visual, grid in zip(visuals, grids, strict=True)], encoded

    def embed_prompt(self, prompt: Prompt, features: Sequence[Tensor]) -> Tensor:
        """Token embeddings (1, L, D) with every visual's features (n, D) in the place its placeholders hold."""
        ids = torch.tensor([prompt.input_ids], device=self.device)
        holes = ids == self.spec.image_token_id
        _check_counts(prompt.visuals, features, int(holes.sum()))
        embeddings: Tensor = self.embed(ids.masked_fill(holes, 0))  # a placeholder's id may lie beyond the table
        for visual, tokens in zip(prompt.visuals, features, strict=True):
            embeddings[0, visual.position : visual.position + visual.tokens] = tokens.to(embeddings)
        return embeddings

    def _read(self, embeddings: Tensor, kv: KeyValues, factor: float) -> Tensor:
        """Run (1, L, D) through the language model behind what `kv` holds; logits (V,) of the last position only."""
        positions = scaled_positions(kv.length, embeddings.shape[1], factor, embeddings.device)
        hidden = self.parts.language_model(
            inputs_embeds=embeddings, position_ids=positions, past_key_values=kv, use_cache=True
        ).last_hidden_state
        logits: Tensor = self.head(hidden[0, -1])
        return logits.float()

    def _tokens(self, visual: Visual, features: Tensor) -> Tensor:
        """Patch features (T, R*C, Dv) of one visual -> its tokens (n, D)."""
        if visual.grid is not None and visual.source_size is not None:
            tiles = self.parts.multi_modal_projector(features)
            return pack_tiles(tiles, visual.source_size, visual.grid, self.newline, self.spec.image_max_tiles)
        if visual.kind == "image" and visual.stride == 1:
            projected: Tensor = self.parts.multi_modal_projector(features)[0]
            return lay_out(projected[:, None], self.newline, visual.newline)
        return lay_out(self._pooled(features, visual.stride)[0], self.newline, visual.newline)

    def _pooled(self, features: Tensor, stride: int) -> Tensor:
        """(N, R*C, Dv) -> (N, r, c, D): pooling on the side of the projector where the family learned it."""
        geometry = self.spec.geometry
        assert isinstance(geometry, Geometry)
        if self.spec.pool_before_projector:
            pooled = pool(features, geometry.rows, geometry.cols, stride, geometry.pooling)
            projected: Tensor = self.parts.multi_modal_projector(pooled.flatten(1, 2))
            return projected.view(*pooled.shape[:3], -1)
        projected = self.parts.multi_modal_projector(features)
        return pool(projected, geometry.rows, geometry.cols, stride, geometry.pooling)

    def tower_features(self, pixels: Tensor) -> Tensor:
        """Vision features (N, P, Dv) of uint8 pixels (N, S, S, 3); several layers stand side by side in Dv."""
        normal = normalised(pixels, self.spec, next(self.parts.vision_tower.parameters()))
        layers = list(self.spec.vision_layers)
        states = self.parts.vision_tower(normal.permute(0, 3, 1, 2), output_hidden_states=layers).hidden_states
        features = torch.cat([states[layer] for layer in layers], dim=-1)
        return features[:, 1:] if self.spec.cls == "drop" else features


def normalised(pixels: Tensor, spec: ModelSpec, like: Tensor) -> Tensor:
    """uint8 (..., 3) -> what the tower was trained on, in the dtype and on the device of `like`."""
    mean, std = (torch.tensor(values, device=like.device) for values in (spec.image_mean, spec.image_std))
    return ((pixels.to(like.device) / 255 - mean) / std).to(like.dtype)


def vision_key(spec: ModelSpec, fingerprint: str) -> str:
    """All that shapes a picture's tower features besides its pixels."""
    return f"{fingerprint}|{spec.vision_layers}|{spec.cls}|{spec.image_mean}|{spec.image_std}"


def _check_counts(visuals: Sequence[Visual], features: Sequence[Tensor], placeholders: int) -> None:
    """Stop when a prompt and its features disagree: scattering anyway would shift every later frame.

    Raises:
        ModelError: with both numbers.
    """
    for number, (visual, tokens) in enumerate(zip(visuals, features, strict=True), start=1):
        if visual.tokens != tokens.shape[0]:
            raise ModelError(f"{visual.kind} {number}: the prompt holds {visual.tokens} visual tokens, the model made "
                             f"{tokens.shape[0]}; the plan was made for another model or grid")  # fmt: skip
    total = sum(visual.tokens for visual in visuals)
    if placeholders != total:
        raise ModelError(f"the prompt holds {placeholders} placeholders for {total} visual tokens; "
                         "does the question spell the image token?")  # fmt: skip
