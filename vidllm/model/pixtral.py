"""Pixtral: a picture of any size -> rows of tokens, each ended by a token of the text; positions count tokens.

Its tower stands in a LLaVA (Pixtral 12B), and in Mistral Small 3 and Ministral 3, which merge 2x2 of its patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vidllm.model.native import NativeLMM


class Pixtral(NativeLMM):
    """Frames and pictures of any size; among their features is room for what ends the rows, as the prompt counts it."""

    def encode_groups(self, groups: Tensor) -> Tensor:
        """Pictures (N, 1, h, w, 3) -> (N, rows * (cols + 1), D).

        One after the other: the tower would lay them end to end, and compute much attention only to mask it.
        """
        size = groups.shape[2:4]
        normal = self.normal(groups[:, 0]).permute(0, 3, 1, 2)
        seen = [self.model.get_image_features(one[None], image_sizes=[size], return_dict=True) for one in normal]
        tokens = torch.stack([one.pooler_output[0] for one in seen])
        grids = tokens.view(len(tokens), size[0] // self.geometry.unit, -1, tokens.shape[-1])
        return F.pad(grids, (0, 0, 0, 1)).flatten(1, 2)
