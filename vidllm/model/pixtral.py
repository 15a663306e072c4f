"""Pixtral: a picture of any size -> rows of tokens, each ended by a token of the text; positions count tokens.

Its tower stands in a LLaVA (Pixtral 12B), and in Mistral Small 3 and Ministral 3, which merge 2x2 of its patches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidllm.model.lmm import normalised
from vidllm.model.native import NativeLMM
from vidllm.model.reader import like


class Pixtral(NativeLMM):
    """Frames and pictures of any size; what ends their rows stands among their features, as the prompt counts it."""

    tower_name = "vision_tower"

    def encode_groups(self, groups: Tensor) -> Tensor:
        """Pictures (N, 1, h, w, 3) -> (N, rows * (cols + 1), D).

        One after the other: the tower would lay them end to end, and compute much attention only to mask it.
        """
        size = groups.shape[2:4]
        normal = normalised(groups[:, 0], self.spec, like(self.tower)).permute(0, 3, 1, 2)
        seen = [self.model.get_image_features(one[None], image_sizes=[size], return_dict=True) for one in normal]
        tokens = torch.stack([one.pooler_output[0] for one in seen])
        count, rows = len(tokens), size[0] // self.geometry.unit
        row_end, picture_end = self.spec.row_ends
        ends: Tensor = self.embed(torch.tensor([row_end] * (rows - 1) + [picture_end], device=self.device))
        grids = tokens.view(count, rows, -1, tokens.shape[-1])
        return torch.cat([grids, ends.to(grids)[:, None].expand(count, -1, -1, -1)], dim=2).flatten(1, 2)
