"""SmolVLM: a frame -> a fixed square of patches, shuffled into few tokens; positions count tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from vidllm.model.lmm import normalised
from vidllm.model.native import NativeLMM
from vidllm.model.reader import like


class SmolVLM(NativeLMM):
    """Frames and pictures are squares of one size."""

    tower_name = "vision_model"
    language_name = "text_model"

    def encode_groups(self, groups: Tensor) -> Tensor:
        """Frames (N, 1, S, S, 3) -> (N, n, D)."""
        normal = normalised(groups[:, 0], self.spec, like(self.tower))
        seen = self.model.get_image_features(normal.permute(0, 3, 1, 2)[None], return_dict=True)
        tokens: Tensor = torch.cat(list(seen.pooler_output))
        return tokens.view(len(groups), -1, tokens.shape[-1])
