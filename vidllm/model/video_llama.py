"""VideoLLaMA 3: pictures of any size, the patches of a frame averaged 2 x 2; positions count tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidllm.model.native import NativeLMM, cells_of
from vidllm.model.pooling import pool

if TYPE_CHECKING:
    from vidllm.visuals import Visual


class VideoLlama3(NativeLMM):
    """What the tower gives of a picture is the same whether it is a frame or a still one: every patch of it."""

    projects = True

    def encode_groups(self, groups: Tensor) -> Tensor:
        """Pictures (N, 1, h, w, 3) -> (N, rows * cols, Dv), none merged."""
        patch = self.geometry.patch
        cells = cells_of(self.normal(groups[:, 0]), patch).movedim(-1, 2)
        rows, cols = (side // patch for side in groups.shape[2:4])
        grid = torch.tensor([[len(groups), rows, cols]], device=cells.device)
        seen = self.tower(cells.reshape(-1, 3 * patch * patch), grid_thw=grid, merge_sizes=torch.ones_like(grid[:, 0]))
        features: Tensor = seen.last_hidden_state
        return features.view(len(groups), rows * cols, -1)

    def tokens(self, visual: Visual, features: Tensor) -> Tensor:
        """The patches (G, rows * cols, Dv) of one visual -> its tokens (n, D), averaged as its kind is."""
        rows, cols = (side // self.geometry.patch for side in self._size(visual))
        merge = self.geometry.merge if visual.kind == "video" else self.geometry.image_merge
        tokens: Tensor = self.model.projector(pool(features, rows, cols, merge, "average"))
        return tokens.flatten(0, 2)
