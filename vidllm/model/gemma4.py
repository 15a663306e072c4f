"""Gemma 4: a picture of any size -> its patches, averaged 3x3 in its tower if it has one; positions count tokens.

    own layers       keep keys and values; those with a window read a picture in both directions, in the larger models
    shared layers    the last ones of the smaller models: they look at what the last own layer of their kind keeps
    every layer      may be told of each token a second time, by a table of its own
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidllm.model.decoder import like
from vidllm.model.lmm import normalised
from vidllm.model.native import NativeLMM, cells_of
from vidllm.model.windows import Windows

if TYPE_CHECKING:
    from vidllm.model.kv import Past


class Gemma4(Windows, NativeLMM):
    """Frames and pictures of any size, scaled to fill a number of tokens; what is heard is left out."""

    @property
    def blank(self) -> int:
        """Its tables tell of a picture's tokens as of padding."""
        return self._config.pad_token_id or 0

    @property
    def cap(self) -> float | None:
        """What no logit exceeds."""
        most: float | None = self._config.final_logit_softcapping
        return most

    @torch.inference_mode()
    def read(self, embeddings: Tensor, kv: Past, positions: Tensor, **deep: object) -> Tensor:
        """As `Windows.read`. Shared layers keep nothing, so they are computed for the last token alone."""
        return super().read(embeddings, kv, positions, logits_to_keep=1, **deep)

    @property
    def cell(self) -> int:
        """Side of the squares that pictures are cut into, in pixels."""
        return self.geometry.patch

    def encode_groups(self, groups: Tensor) -> Tensor:
        """Pictures (N, 1, h, w, 3) -> (N, n, D). What takes the pixels rounds them itself."""
        exact = like(self.tower).new_empty(0, dtype=torch.float32)
        cells = cells_of(normalised(groups[:, 0], self.spec, exact), self.cell).flatten(2)
        down, right = (torch.arange(side // self.cell, device=exact.device) for side in groups.shape[2:4])
        places = torch.cartesian_prod(down, right).flip(-1)  # across before down
        seen = self.model.get_image_features(cells, places.expand(len(cells), -1, -1), return_dict=True)
        return torch.stack(seen.pooler_output)


class Gemma4Unified(Gemma4):
    """Gemma 4 12B has no tower: its projector takes the pixels of each token as they are."""

    @property
    def cell(self) -> int:
        """As wide as a token."""
        return self.geometry.unit
