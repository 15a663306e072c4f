"""VideoLMM: what the engine needs of any model; and ComposableLMM, where vidllm owns the road from pixels to tokens.

    pixels -> vision tower -> (pool) -> projector -> (pool) -> newlines -> scatter -> language model -> next token
               once per frame          stride per frame                    RoPE factor per request
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from vidllm.errors import ModelError
from vidllm.geometry import Geometry
from vidllm.model.decoder import like
from vidllm.model.encode import encode
from vidllm.model.features import FeatureCache
from vidllm.model.pooling import lay_out, pack_tiles, pixel_shuffle, pool
from vidllm.model.reader import Seen, TextReader

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from vidllm.model.extras import Extras
    from vidllm.model.families import ModelSpec
    from vidllm.model.kv import State
    from vidllm.prompt import Prompt
    from vidllm.visuals import Visual


class VideoLMM(Protocol):
    """One conversation at a time: prefill once, extend for every later token."""

    spec: ModelSpec
    tokenizer: Tokenizer
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
        """Go back to `state` (or into it, to `length` tokens or fewer) without copying, giving up what came after."""


class Parts(Protocol):
    """What a Hugging Face LLaVA-like model is made of, by the names they all share."""

    vision_tower: nn.Module
    multi_modal_projector: nn.Module
    language_model: nn.Module


class ComposableLMM(TextReader):
    """A LLaVA-like network taken apart: every frame with its own stride, every request with its own RoPE factor.

    `chunk` frames go through the tower at a time, which bounds the memory of long clips. Frames that differ from the
    one encoded before them by at most `same_within` grey levels in every pixel share its features (0: only frames
    that are equal, so that nothing changes).
    """

    projects = True

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: Tokenizer,
        network: nn.Module,
        fingerprint: str,
        *,
        chunk: int = 8,
        same_within: int = 0,
        extras: Extras | None = None,
    ) -> None:
        self.parts: Parts = network.model  # type: ignore[assignment]
        super().__init__(spec, tokenizer, network, self.parts.language_model, fingerprint)
        self.chunk = chunk
        self.same_within = same_within
        self.extras = extras
        self._vision_key = vision_key(spec, fingerprint, network, like(self.parts.vision_tower))

    @property
    def newline(self) -> Tensor | None:
        """The learned newline (D,): the family's own, else one that was taught; LLaVA-1.5 comes without."""
        own: Tensor | None = getattr(self.parts, "image_newline", None)
        return self.extras.newline if own is None and self.extras is not None else own

    def check(self, prompt: Prompt) -> None:
        """As `TextReader.check`: newlines have to be learned."""
        if self.newline is None and any(visual.newline != "none" for visual in prompt.visuals):
            raise ModelError(
                f"{self.spec.folder}: newline mode {self.spec.newline!r} needs a learned newline token, which this "
                "model has none of; take newline out of its vidllm.json, or teach it one"
            )

    def encode(self, visuals: Sequence[Visual], cache: FeatureCache | None = None) -> tuple[list[Tensor], int]:
        """Tokens (n, D) of each visual, and how many pictures really went through the tower."""
        [(grids, count)] = self.see([visuals], cache)
        return self.tokens_of(visuals, grids), count

    def see(self, prompts: Sequence[Sequence[Visual]], cache: FeatureCache | None = None) -> list[Seen]:
        """Features (T, P, Dv) of every visual: T pictures."""
        pictures = [[list(visual.pixels) for visual in visuals] for visuals in prompts]  # (S, S, 3) each
        return encode(
            pictures, self.tower_features, like=like(self.parts.vision_tower), cache=cache, context=self._vision_key,
            chunk=self.chunk, same_within=self.same_within,
        )  # fmt: skip

    def tokens(self, visual: Visual, features: Tensor) -> Tensor:
        """The tower's features (T, P, Dv) of one visual -> its tokens (n, D), newlines and learned times included."""
        tokens = self._laid_out(visual, features)
        if self.extras is None or visual.kind != "frame":
            return tokens
        return self.extras.timed(tokens, visual.times[0])

    def _laid_out(self, visual: Visual, features: Tensor) -> Tensor:
        """Only a still image of one tile keeps a class token where the family keeps one; a grid has no place for it."""
        if visual.kind == "image" and visual.grid is None:
            return lay_out(self.project(features)[0][:, None], self.newline, visual.newline)
        patches = features[:, 1:] if self.spec.cls == "keep" else features
        if visual.grid is None or visual.source_size is None:
            return lay_out(self._pooled(patches, visual.stride)[0], self.newline, visual.newline)
        tiles = self.project(patches)
        if visual.newline == "none":  # the tiles follow one another
            return tiles.flatten(0, 1)
        return pack_tiles(tiles, visual.source_size, visual.grid, self.newline, self.spec.image_max_tiles)

    def _pooled(self, features: Tensor, stride: int) -> Tensor:
        """(N, R*C, Dv) -> (N, r, c, D): pooling on the side of the projector where the family learned it."""
        geometry = self.spec.geometry
        assert isinstance(geometry, Geometry)
        if self.spec.pool_before_projector:
            pooled = pool(features, geometry.rows, geometry.cols, stride, geometry.pooling)
            return self.project(pooled.flatten(1, 2)).view(*pooled.shape[:3], -1)
        return pool(self.project(features), geometry.rows, geometry.cols, stride, geometry.pooling)

    def project(self, features: Tensor) -> Tensor:
        """Tower features (N, P, Dv) -> (N, n, D)."""
        projected: Tensor = self.parts.multi_modal_projector(features)
        return projected.flatten(1, -2)  # Aya Vision's comes in rows and columns

    def tower_features(self, pixels: Tensor) -> Tensor:
        """Vision features (N, P, Dv) of uint8 pixels (N, S, S, 3); several layers stand side by side in Dv."""
        normal = normalised(pixels, self.spec, like(self.parts.vision_tower))
        layers = list(self.spec.vision_layers)
        seen = self.parts.vision_tower(normal.permute(0, 3, 1, 2), output_hidden_states=layers)
        features = torch.cat([seen.hidden_states[layer] for layer in layers] or [seen.last_hidden_state], dim=-1)
        return pixel_shuffle(features[:, 1:] if self.spec.cls == "drop" else features, self.spec.shuffle)


def normalised(pixels: Tensor, spec: ModelSpec, like: Tensor) -> Tensor:
    """uint8 (..., 3) -> what the tower was trained on, in the dtype and on the device of `like`."""
    mean, std = (torch.tensor(values, device=like.device) for values in (spec.image_mean, spec.image_std))
    return ((pixels.to(like.device) / 255 - mean) / std).to(like.dtype)


def vision_key(spec: ModelSpec, fingerprint: str, network: nn.Module, tower: Tensor) -> str:
    """All that shapes a picture's tower features besides its pixels. `tower` is a tensor where and as it computes: a
    GPU rounds otherwise than a CPU. So does another release of the library whose sums they are: beside frames that it
    encoded, those of today would be of another model.
    """
    library = type(network).__module__.partition(".")[0]
    settings = f"{spec.vision_layers}|{spec.cls}|{spec.image_mean}|{spec.image_std}"
    version = sys.modules[library].__version__
    return f"{fingerprint}|{settings}|{library} {version}|{tower.dtype}|{tower.device.type}"
