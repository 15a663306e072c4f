"""NativeLMM: what families that lay out frames themselves have in common; `qwen` and `gemma4` are two.

`prompt` has made the ids their processors would make; here the pixels follow the same layout. It is done in plain
torch because transformers' own video processors need torchvision, which vidllm does without.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from vidllm.errors import ModelError
from vidllm.geometry import NativeGeometry
from vidllm.model.decoder import language_of, like
from vidllm.model.encode import encode
from vidllm.model.features import FeatureCache
from vidllm.model.lmm import normalised, vision_key
from vidllm.model.reader import Seen, TextReader
from vidllm.video.fit import scaled

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from vidllm.model.families import ModelSpec
    from vidllm.prompt import Prompt
    from vidllm.visuals import Visual


def cells_of(pictures: Tensor, side: int) -> Tensor:
    """Pictures (N, h, w, 3) -> the squares of so many pixels a side that they are made of (N, n, side, side, 3), row by
    row.
    """
    count, height, width, _ = pictures.shape
    cells = pictures.view(count, height // side, side, width // side, side, 3).transpose(2, 3)
    return cells.reshape(count, -1, side, side, 3)


def behind(positions: Tensor) -> int:
    """How far the next token's position is from the number of tokens at these (A, 1, L).

    Decoding goes on from the last token's position, as `generate` does and as reading the text at once would.
    """
    return int(positions[0, 0, -1]) + 1 - positions.shape[-1]


class NativeLMM(TextReader):
    """A family with a layout of its own; frames are still encoded once each, and cached.

    `chunk` groups of frames go through the vision tower at a time.
    """

    projects = False

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
        self.model: Any = network.base_model
        super().__init__(spec, tokenizer, network, language_of(network), fingerprint)
        self.tower: nn.Module = network.get_encoder(modality="image")  # type: ignore[operator]
        self.chunk = chunk
        self._vision_key = vision_key(spec, fingerprint, network, like(self.tower))

    @abstractmethod
    def encode_groups(self, groups: Tensor) -> Tensor:
        """uint8 groups (N, T, h, w, 3) -> features (N, n, D), or (N, n, D * (1 + k)) with those of k deeper layers."""

    def normal(self, groups: Tensor) -> Tensor:
        """uint8 groups as the tower takes them: where and as it computes, in the numbers it was trained on."""
        return normalised(groups, self.spec, like(self.tower))

    def check(self, prompt: Prompt) -> None:
        """As `TextReader.check`: positions of most families can not be stretched."""
        if not self.spec.rope_scalable and prompt.rope_factor != 1.0:
            raise ModelError(f"{self.spec.model_type} counts positions its own way; a RoPE factor does not apply")

    def see(self, prompts: Sequence[Sequence[Visual]], cache: FeatureCache | None = None) -> list[Seen]:
        """Features (G, n, D) of every visual: G groups of frames."""
        groups = [[self._groups(visual) for visual in visuals] for visuals in prompts]
        seen = encode(
            groups, self.encode_groups, like=like(self.tower), cache=cache, context=self._vision_key, chunk=self.chunk
        )
        return [(features, count * self.geometry.temporal_patch) for features, count in seen]

    def tokens(self, visual: Visual, features: Tensor) -> Tensor:
        """The features (G, n, D) of one visual -> its tokens, one group after the other."""
        return features.flatten(0, 1)

    def _groups(self, visual: Visual) -> list[NDArray[np.uint8]]:
        """The visual as (T, h, w, 3) each: T frames of a video, the last one repeated to fill; or T times an image."""
        size = self.geometry.temporal_patch
        pixels = visual.pixels if visual.kind == "video" else self._fitted(visual.pixels)
        padded = np.concatenate([pixels, np.repeat(pixels[-1:], -len(pixels) % size, axis=0)])
        return list(padded.reshape(-1, size, *padded.shape[1:]))

    def _fitted(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A still image (1, H, W, 3) at the size the family's processor would give it."""
        return scaled(pixels[0], *self.geometry.image_size(*pixels.shape[1:3]), self.spec.resample)[None]

    def _size(self, visual: Visual) -> tuple[int, int]:
        """(height, width) at which the tower sees it."""
        height, width = visual.pixels.shape[1:3]
        return (height, width) if visual.kind == "video" else self.geometry.image_size(height, width)

    def _group_count(self, visual: Visual) -> int:
        return self.geometry.groups(len(visual.pixels)) if visual.kind == "video" else 1
