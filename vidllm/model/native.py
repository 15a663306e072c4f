"""NativeLMM: families that lay out frames themselves, Qwen2-VL, Qwen2.5-VL, Qwen3-VL and SmolVLM.

`prompt` has made the ids their processors would make; here the pixels follow the same layout. It is done in plain
torch because transformers' own video processors need torchvision, which vidllm does without.

    Qwen      T frames -> one group of T x (2p x 2p) patches per token, merged 2x2; positions count time, rows, columns
    SmolVLM   one frame -> a fixed square of patches, shuffled into few tokens; positions count tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vidllm.budget import NativeGeometry, fitted_size
from vidllm.errors import ModelError
from vidllm.model.encode import encode_clips
from vidllm.model.features import FeatureCache
from vidllm.model.lmm import normalised, vision_key
from vidllm.model.reader import Ready, TextReader, check_counts, like

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from vidllm.model.families import ModelSpec
    from vidllm.prompt import Prompt, Visual


class NativeLMM(TextReader):
    """A family with a layout of its own; frames are still encoded once each, and cached.

    `chunk` groups of frames go through the vision tower at a time.
    """

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
        smol = spec.model_type == "smolvlm"
        super().__init__(spec, tokenizer, network, model.text_model if smol else model.language_model, fingerprint)
        self.model = model
        self.chunk = chunk
        self._encode = self._encode_smolvlm if smol else self._encode_qwen
        self._vision_key = vision_key(spec, fingerprint, network, like(model.vision_model if smol else model.visual))

    def _prepared(self, prompts: Sequence[Prompt], cache: FeatureCache | None) -> list[Ready]:
        if any(prompt.rope_factor != 1.0 for prompt in prompts):
            raise ModelError(f"{self.spec.model_type} has rotary positions of three axes; a RoPE factor does not apply")
        clips = [[group for visual in prompt.visuals for group in self._groups(visual)] for prompt in prompts]
        encoded = encode_clips(clips, self._encode, cache=cache, context=self._vision_key, chunk=self.chunk)
        return [self._ready(prompt, *seen) for prompt, seen in zip(prompts, encoded, strict=True)]

    def _ready(self, prompt: Prompt, features: Sequence[Tensor], groups_encoded: int) -> Ready:
        embeddings, deep = self._embed(prompt, features)
        positions, offset = self._positions(prompt)
        return Ready(
            embeddings=embeddings, deep=deep, positions=positions, position_offset=offset,
            frames_encoded=groups_encoded * self.geometry.temporal_patch,
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

        height, width = pixels.shape[1:3]
        geometry, square = self.geometry, self.geometry.square
        bounds = (geometry.unit, geometry.image_min_pixels, geometry.image_max_pixels)
        rows, cols = (square, square) if square else fitted_size(height, width, *bounds)
        kernel = Image.Resampling.LANCZOS if square else Image.Resampling.BICUBIC
        return np.asarray(Image.fromarray(pixels[0]).resize((cols, rows), kernel))[None]

    def _encode_qwen(self, groups: Tensor) -> Tensor:
        """Groups (N, T, h, w, 3) -> (N, n, D * (1 + k)): merged patches, then those of k deeper layers (Qwen3-VL)."""
        patches, rows, cols = self._patches(groups)
        grid = torch.tensor([[1, rows, cols]] * len(groups), device=patches.device)
        seen = self.model.get_video_features(patches, grid, return_dict=True)
        deeper = getattr(seen, "deepstack_features", None) or []
        return torch.stack([torch.cat(layers, dim=-1) for layers in zip(seen.pooler_output, *deeper, strict=True)])

    def _patches(self, groups: Tensor) -> tuple[Tensor, int, int]:
        """(N, T, h, w, 3) -> patches (N * rows * cols, 3 * T * p * p), merged neighbours in a row; rows; cols."""
        patch, merge = self.geometry.patch, self.geometry.merge
        normal = normalised(groups, self.spec, like(self.model.visual))
        count, frames, height, width, _ = normal.shape
        rows, cols = height // patch, width // patch
        if (rows % merge, cols % merge) != (0, 0) or (rows * patch, cols * patch) != (height, width):
            raise ModelError(f"frames of {height}x{width} pixels are no multiple of {self.geometry.unit}")
        cells = normal.view(count, frames, rows // merge, merge, patch, cols // merge, merge, patch, 3)
        #               N  r/m c/m  m  m  3  T  p  p
        ordered = cells.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
        return ordered.reshape(count * rows * cols, 3 * frames * patch * patch), rows, cols

    def _encode_smolvlm(self, groups: Tensor) -> Tensor:
        """Frames (N, 1, S, S, 3) -> (N, n, D)."""
        normal = normalised(groups[:, 0], self.spec, like(self.model.vision_model))
        seen = self.model.get_image_features(normal.permute(0, 3, 1, 2)[None], return_dict=True)
        tokens: Tensor = torch.cat(list(seen.pooler_output))
        return tokens.view(len(groups), -1, tokens.shape[-1])

    def _embed(self, prompt: Prompt, features: Sequence[Tensor]) -> tuple[Tensor, dict[str, object]]:
        """Token embeddings (1, L, D) with features in their holes; and what Qwen3-VL adds in its first layers."""
        ids = torch.tensor([prompt.input_ids], device=self.device)
        holes = self._kinds(ids) > 0
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

    def _kinds(self, ids: Tensor) -> Tensor:
        """0 text, 1 image, 2 video, for every token id."""
        images, video_id = torch.eq(ids, self.spec.image_token_id).int(), self.spec.video_token_id
        return images if video_id is None else images + 2 * torch.eq(ids, video_id).int()

    def _positions(self, prompt: Prompt) -> tuple[Tensor, int]:
        """Position ids of the prompt, and how far the next token's position is from the number of tokens.

        Qwen's numbering is the installed transformers' own, so that it changes when theirs does: since 5.0 the text
        behind a long Qwen2.5-VL video stands within the video's span of time (behind it before, as in training).
        Decoding goes on from the last token's position, as `generate` does and as reading the text at once would.
        """
        ids = torch.tensor([prompt.input_ids], device=self.device)
        videos = [visual for visual in prompt.visuals if visual.kind == "video"]
        images = [visual for visual in prompt.visuals if visual.kind == "image"]
        if self.spec.model_type == "smolvlm" or not prompt.visuals:
            return torch.arange(ids.shape[1], device=self.device)[None], 0
        positions, _ = self.model.get_rope_index(
            ids, self._kinds(ids), image_grid_thw=self._grids(images), video_grid_thw=self._grids(videos),
            second_per_grid_ts=[self._seconds_per_group(visual) for visual in videos] or None,
        )  # fmt: skip
        return positions, int(positions[0, 0, -1]) + 1 - ids.shape[1]

    def _grids(self, visuals: Sequence[Visual]) -> Tensor | None:
        """(groups, rows, cols) in patches of each visual."""
        sizes = [(self._group_count(v), *self._groups(v)[0].shape[1:3]) for v in visuals]
        patch = self.geometry.patch
        grids = [[count, height // patch, width // patch] for count, height, width in sizes]
        return torch.tensor(grids, device=self.device) if grids else None

    def _seconds_per_group(self, visual: Visual) -> Tensor:
        """Seconds from the first group to group g, over g: (G,) float32. One number for evenly spaced frames.

        The family multiplies it by g and by its positions per second and drops the fraction, so each group stands at
        its true time, evenly spaced or not. Half a position is added behind what the time comes to, or a product that
        should be whole would sometimes fall below it; a Mac's GPU has no wider numbers to save it.
        """
        rate = float(getattr(self.model.config.vision_config, "tokens_per_second", 1))
        starts = np.array(visual.times[:: self.geometry.temporal_patch])
        places = np.floor(rate * (starts - starts[0]) + 1e-6) + 0.5
        steps = rate * np.arange(len(starts)).clip(min=1)
        return torch.tensor(places / steps, dtype=torch.float32, device=self.device)
