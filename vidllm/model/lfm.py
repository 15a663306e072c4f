"""LFM2-VL: pictures of any size up to that of a tile, 2 x 2 patches a token; most layers keep a running state."""

from __future__ import annotations

import torch
from torch import Tensor

from vidllm.model.native import NativeLMM, cells_of


class Lfm2VL(NativeLMM):
    """Frames are pictures; so are the tiles of a large one, and its thumbnail."""

    def encode_groups(self, groups: Tensor) -> Tensor:
        """Pictures (N, 1, h, w, 3) -> (N, n, D)."""
        patch = self.geometry.patch
        patches = cells_of(self.normal(groups[:, 0]), patch).flatten(2)
        size = [side // patch for side in groups.shape[2:4]]
        seen = self.model.get_image_features(
            patches, spatial_shapes=torch.tensor([size] * len(groups), device=patches.device),
            pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.int32, device=patches.device),
            return_dict=True,
        )  # fmt: skip
        return torch.stack(list(seen.pooler_output))
