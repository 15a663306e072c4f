"""GlmV: GLM-4.1V, GLM-4.5V and GLM-4.6V, which see as Qwen2.5-VL does; a video is pictures with times between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from vidllm.model.qwen import QwenVL

if TYPE_CHECKING:
    from vidllm.visuals import Visual


class GlmV(QwenVL):
    """Every group of frames stands where a picture would: at one moment, and text goes on behind its longer side."""

    def _places(self, ids: Tensor, visuals: Sequence[Visual]) -> Tensor:
        grids = self._grids(visuals)
        assert grids is not None
        pictures = grids.repeat_interleave(grids[:, 0], dim=0)
        pictures[:, 0] = 1
        positions: Tensor = self.model.get_rope_index(ids, self._kinds(ids), image_grid_thw=pictures)[0]
        return positions
