"""Gemma 3: SigLIP's patches averaged to a grid of soft tokens, and each picture read in both directions.

    64 x 64 patches -> average -> 16 x 16 (what is cached) -> a frame's own stride -> norm, projection -> tokens
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from vidllm.geometry import Geometry
from vidllm.model.decoder import like
from vidllm.model.lmm import ComposableLMM, normalised
from vidllm.model.pooling import pool
from vidllm.model.windows import Windows


class Gemma3(Windows, ComposableLMM):
    """All layers read pictures in both directions."""

    def tower_features(self, pixels: Tensor) -> Tensor:
        """uint8 pixels (N, S, S, 3) -> (N, P, Dv): the tower's output, averaged as the projector would."""
        assert isinstance(self.spec.geometry, Geometry)
        normal = normalised(pixels, self.spec, like(self.parts.vision_tower))
        patches = self.parts.vision_tower(normal.permute(0, 3, 1, 2)).last_hidden_state
        side = math.isqrt(patches.shape[1])
        return pool(patches, side, side, side // self.spec.geometry.rows, "average").flatten(1, 2)

    def project(self, features: Tensor) -> Tensor:
        """(N, P, Dv) -> (N, P, D) by the family's own projector, less its average, over a grid of any side."""
        projector: Any = self.parts.multi_modal_projector
        projector.avg_pool, projector.patches_per_image = nn.Identity(), math.isqrt(features.shape[1])
        return super().project(features)
