"""NativeLMM: what families that lay out frames themselves have in common; `qwen`, `smolvlm` and `pixtral` are three.

`prompt` has made the ids their processors would make; here the pixels follow the same layout. It is done in plain
torch because transformers' own video processors need torchvision, which vidllm does without.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vidllm.budget import NativeGeometry
from vidllm.errors import ModelError
from vidllm.model.encode import encode_clips
from vidllm.model.features import FeatureCache
from vidllm.model.lmm import vision_key
from vidllm.model.reader import Ready, TextReader, check_counts, like
from vidllm.model.rope import scaled_positions

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from vidllm.model.families import ModelSpec
    from vidllm.prompt import Prompt, Visual


class NativeLMM(TextReader):
    """A family with a layout of its own; frames are still encoded once each, and cached.

    `chunk` groups of frames go through the vision tower at a time.
    """

    tower_name: ClassVar[str] = "visual"
    language_name: ClassVar[str] = "language_model"
    """What transformers' class calls them."""

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: Tokenizer,
        network: nn.Module,
        fingerprint: str,
        *,
        chunk: int = 4,
    ) -> None:
        assert isinstance(spec.geometry, NativeGeometry)
        self.geometry = spec.geometry
        model: Any = network.model
        super().__init__(spec, tokenizer, network, getattr(model, self.language_name), fingerprint)
        self.model = model
        self.tower: nn.Module = getattr(model, self.tower_name)
        self.chunk = chunk
        self._vision_key = vision_key(spec, fingerprint, network, like(self.tower))

    @abstractmethod
    def encode_groups(self, groups: Tensor) -> Tensor:
        """uint8 groups (N, T, h, w, 3) -> features (N, n, D), or (N, n, D * (1 + k)) with those of k deeper layers."""

    def positions_of(self, prompt: Prompt) -> tuple[Tensor, int]:
        """Position ids of the prompt, and how far the next token's position is from the number of tokens."""
        return scaled_positions(0, prompt.length, prompt.rope_factor, self.device), 0

    def _prepared(self, prompts: Sequence[Prompt], cache: FeatureCache | None) -> list[Ready]:
        if not self.spec.rope_scalable and any(prompt.rope_factor != 1.0 for prompt in prompts):
            raise ModelError(f"{self.spec.model_type} counts positions its own way; a RoPE factor does not apply")
        clips = [[group for visual in prompt.visuals for group in self._groups(visual)] for prompt in prompts]
        encoded = encode_clips(clips, self.encode_groups, cache=cache, context=self._vision_key, chunk=self.chunk)
        return [self._ready(prompt, *seen) for prompt, seen in zip(prompts, encoded, strict=True)]

    def _ready(self, prompt: Prompt, features: Sequence[Tensor], groups_encoded: int) -> Ready:
        embeddings, deep = self._embed(prompt, features)
        positions, offset = self.positions_of(prompt)
        return Ready(
            embeddings=embeddings, deep=deep, positions=positions, position_offset=offset,
            rope_factor=prompt.rope_factor, frames_encoded=groups_encoded * self.geometry.temporal_patch,
        )

    def _groups(self, visual: Visual) -> list[NDArray[np.uint8]]:
        """The visual as (T, h, w, 3) each: T frames of a video, the last one repeated to fill; or T times an image."""
        size = self.geometry.temporal_patch
        pixels = visual.pixels if visual.kind == "video" else self._fitted(visual.pixels)
        padded = np.concatenate([pixels, np.repeat(pixels[-1:], -len(pixels) % size, axis=0)])
        return list(padded.reshape(-1, size, *padded.shape[1:]))

    def _fitted(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A still image (1, H, W, 3) at the size the family's processor would give it."""
        from PIL import Image

        height, width = self.geometry.image_size(*pixels.shape[1:3])
        return np.asarray(Image.fromarray(pixels[0]).resize((width, height), Image.Resampling.BICUBIC))[None]

    def _embed(self, prompt: Prompt, features: Sequence[Tensor]) -> tuple[Tensor, dict[str, object]]:
        """Token embeddings (1, L, D) with features in their holes; and what Qwen3-VL adds in its first layers."""
        ids = torch.tensor([prompt.input_ids], device=self.device)
        holes = torch.isin(ids, torch.tensor(sorted(self.spec.visual_ids), device=self.device))
        made = iter(features)
        counts = [sum(len(next(made)) for _ in range(self._group_count(v))) for v in prompt.visuals]
        check_counts(prompt.visuals, counts, int(holes.sum()))
        embeddings: Tensor = self.embed(ids.masked_fill(holes, 0))
        if not features:
            return embeddings, {}
        width = embeddings.shape[-1]
        first, *deeper = torch.split(torch.cat([part.to(embeddings) for part in features]), width, dim=-1)
        embeddings[holes] = first
        return embeddings, {"visual_pos_masks": holes, "deepstack_visual_embeds": deeper} if deeper else {}

    def _group_count(self, visual: Visual) -> int:
        return self.geometry.groups(len(visual.pixels)) if visual.kind == "video" else 1
