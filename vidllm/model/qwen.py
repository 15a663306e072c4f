"""QwenVL: Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5.

T frames -> one group of T x (2p x 2p) patches per token, merged 2x2; positions count time, rows, columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vidllm.errors import ModelError
from vidllm.model.native import NativeLMM, behind

if TYPE_CHECKING:
    from vidllm.visuals import Visual


class QwenVL(NativeLMM):
    """Groups of frames of any size; their tokens stand at places in time and picture."""

    def encode_groups(self, groups: Tensor) -> Tensor:
        """Groups (N, T, h, w, 3) -> (N, n, D * (1 + k)): merged patches, then those of k deeper layers (Qwen3-VL)."""
        patches, rows, cols = self._patches(groups)
        grid = torch.tensor([[1, rows, cols]] * len(groups), device=patches.device)
        seen = self.model.get_video_features(patches, grid, return_dict=True)
        deeper = getattr(seen, "deepstack_features", None) or []
        return torch.stack([torch.cat(layers, dim=-1) for layers in zip(seen.pooler_output, *deeper, strict=True)])

    def _patches(self, groups: Tensor) -> tuple[Tensor, int, int]:
        """(N, T, h, w, 3) -> patches (N * rows * cols, 3 * T * p * p), merged neighbours in a row; rows; cols."""
        patch, merge = self.geometry.patch, self.geometry.merge
        normal = self.normal(groups)
        count, frames, height, width, _ = normal.shape
        rows, cols = height // patch, width // patch
        if (rows % merge, cols % merge) != (0, 0) or (rows * patch, cols * patch) != (height, width):
            raise ModelError(f"frames of {height}x{width} pixels are no multiple of {self.geometry.unit}")
        cells = normal.view(count, frames, rows // merge, merge, patch, cols // merge, merge, patch, 3)
        #               N  r/m c/m  m  m  3  T  p  p
        ordered = cells.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
        return ordered.reshape(count * rows * cols, 3 * frames * patch * patch), rows, cols

    def positions_of(self, ids: Sequence[int], visuals: Sequence[Visual], factor: float = 1.0) -> tuple[Tensor, int]:
        """Time, row and column (3, 1, L) of each, and how far the next token's are from the number of tokens.

        Qwen's numbering is the installed transformers' own, so that it changes when theirs does: since 5.0 the text
        behind a long Qwen2.5-VL video stands within the video's span of time (behind it before, as in training).
        """
        words = torch.tensor([ids])  # on the CPU: counting on a GPU would wait for it at every picture
        positions = self._places(words, visuals) if visuals else torch.arange(len(ids)).expand(3, 1, -1)
        return positions.to(self.device), behind(positions)

    def _places(self, ids: Tensor, visuals: Sequence[Visual]) -> Tensor:
        """Time, row and column (3, 1, L) of all ids (1, L), as transformers counts them."""
        videos = [visual for visual in visuals if visual.kind == "video"]
        images = [visual for visual in visuals if visual.kind == "image"]
        positions: Tensor = self.model.get_rope_index(
            ids, self._kinds(ids), image_grid_thw=self._grids(images), video_grid_thw=self._grids(videos),
            second_per_grid_ts=[self._seconds_per_group(visual) for visual in videos] or None,
        )[0]  # fmt: skip
        return positions

    def _kinds(self, ids: Tensor) -> Tensor:
        """0 text, 1 image, 2 video, for every token id."""
        images, video_id = torch.eq(ids, self.spec.image_token_id).int(), self.spec.video_token_id
        return images if video_id is None else images + 2 * torch.eq(ids, video_id).int()

    def _grids(self, visuals: Sequence[Visual]) -> Tensor | None:
        """(groups, rows, cols) in patches of each visual."""
        sizes = [(self._group_count(v), *self._size(v)) for v in visuals]
        patch = self.geometry.patch
        grids = [[count, height // patch, width // patch] for count, height, width in sizes]
        return torch.tensor(grids) if grids else None

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
        return torch.tensor(places / steps, dtype=torch.float32)
