"""Molmo 2: SigLIP's patches of a frame, 3 x 3 of them looked at for a token; all that is seen sees all that is seen.

    frame -> tower, two of its layers -> attention over 3 x 3 patches, projection -> added to a placeholder's embedding
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vidllm.model.attention import Sight
from vidllm.model.native import NativeLMM, cells_of
from vidllm.model.spec import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from vidllm.model.families import ModelSpec
    from vidllm.model.kv import Past
    from vidllm.prompt import Prompt


class Molmo2(NativeLMM):
    """A frame's tokens here are its two marks as well: they see and are seen with the rest."""

    words_in_features = True

    def __init__(
        self, spec: ModelSpec, tokenizer: Tokenizer, network: nn.Module, fingerprint: str, *, chunk: int = 4
    ) -> None:
        super().__init__(spec, tokenizer, network, fingerprint, chunk=chunk)
        settings, config = read_json(spec.folder / "processor_config.json") or {}, self.model.config
        own = config.frame_start_token_id, config.image_patch_id, config.frame_end_token_id
        usual = config.image_start_token_id, config.image_patch_id, config.image_end_token_id
        self._words = own if settings.get("use_frame_special_tokens", True) else usual
        """Ids of the mark before a frame, of each of its tokens, and of the mark behind it."""
        self._vision_key += f"|{self._words}"

    def encode_groups(self, groups: Tensor) -> Tensor:
        """Frames (N, 1, S, S, 3) -> (N, n, D)."""
        patches = cells_of(self.normal(groups[:, 0]), self.geometry.patch).flatten(2)
        rows = groups.shape[2] // self.geometry.unit
        seen = self.model.get_video_features(
            patches, video_token_pooling=self._pooled(len(groups)), return_dict=True,
            video_grids=torch.tensor([[1, rows, rows]] * len(groups), device=patches.device),
        )  # fmt: skip
        start, place, end = self.embed(torch.tensor(self._words, device=self.device))
        begins, ends = (mark.expand(len(groups), 1, -1) for mark in (start, end))
        return torch.cat([begins, torch.stack(seen.pooler_output) + place, ends], dim=1)

    def _pooled(self, frames: int) -> Tensor:
        """The numbers (n, merge * merge) of the patches that go into each token."""
        merge, across = self.geometry.merge, self.spec.image_size // self.geometry.patch
        rows = across // merge
        numbers = torch.arange(frames * across**2, device=self.device).view(frames, rows, merge, rows, merge)
        return numbers.transpose(2, 3).reshape(-1, merge * merge)

    def sight(self, prompt: Prompt) -> dict[str, Tensor]:
        """(L,) which tokens see each other."""
        visual = torch.tensor([*self.spec.visual_ids])
        return {"sight": torch.isin(torch.tensor(prompt.input_ids), visual).to(self.device)}

    @torch.inference_mode()
    def read(self, embeddings: Tensor, kv: Past, positions: Tensor, **deep: object) -> Tensor:
        """As `TextReader.read`; `sight` says what of a whole prompt is seen, of which `kv` may hold a text it begins
        with.
        """
        sight, begun = deep.pop("sight", None), kv.length
        if isinstance(sight, Tensor) and sight[begun:].any():
            seen, places = sight, torch.arange(len(sight), device=sight.device)

            def rows(start: int, stop: int) -> Tensor:
                here = slice(begun + start, begun + stop)
                return ((places <= places[here, None]) | (seen & seen[here, None]))[None, None]

            deep |= Sight(embeddings.shape[1], rows).told(self._config)
        return super().read(embeddings, kv, positions, **deep)
