"""Windows: Gemma's language models, whose layers differ in how far they see, and which see a picture at once.

    full layers      everything before a token, and in Gemma 3 all of its own picture
    sliding layers   as far back as their window, and all of its own picture
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidllm.model.reader import TextReader

if TYPE_CHECKING:
    from vidllm.model.kv import Past
    from vidllm.model.slots import Step
    from vidllm.prompt import Prompt
    from vidllm.visuals import Visual

READ = 2048
"""Tokens read at a time, all of a picture together: what each sees is a table of so many rows, however long it is."""


class Windows(TextReader):
    """A picture's tokens see each other; what is read behind a prompt, a follow-up or a step, is text and sees back."""

    @property
    def window(self) -> int | None:
        """Rows of any length share a step: `step_mask` says what their sliding layers see."""
        return None

    def sight(self, prompt: Prompt) -> dict[str, Tensor]:
        """(L,) the last token that each sees."""
        if not self.spec.two_way:
            return {}
        return {"sight": torch.tensor(last_seen(prompt.input_ids, prompt.visuals), device=self.device)}

    @torch.inference_mode()
    def read(self, embeddings: Tensor, kv: Past, positions: Tensor, **deep: object) -> Tensor:
        """As `TextReader.read`; with the `sight` of a whole prompt, of which `kv` may hold the beginning."""
        sight = deep.pop("sight", None)
        if not isinstance(sight, Tensor):
            return super().read(embeddings, kv, positions, **deep)
        logits, begun = torch.empty(0), kv.length
        while (start := kv.length) < len(sight):
            end = int(sight[min(start + READ, len(sight)) - 1]) + 1
            here = slice(start - begun, end - begun)
            along = {name: value[:, here] if isinstance(value, Tensor) else value for name, value in deep.items()}
            mask = self._mask(sight[start:end], start, end)
            logits = super().read(embeddings[:, here], kv, positions[:, here], attention_mask=mask, **along)
        return logits

    def _mask(self, sight: Tensor, start: int, end: int) -> dict[str, Tensor]:
        """What the tokens from `start` to `end` see of all before `end`, by kind of layer: (1, 1, end - start, end)."""
        keys = torch.arange(end, device=sight.device)
        seen = keys <= sight[:, None]
        return self._by_kind(seen[None, None], keys, keys[start:, None])

    def step_mask(self, kv: Step) -> dict[str, Tensor]:
        """What each row of a step sees, by kind of layer."""
        keys = torch.arange(kv.longest, device=kv.mask.device)
        return self._by_kind(kv.mask, keys, kv.ends[:, None, None, None])

    def _by_kind(self, seen: Tensor, keys: Tensor, queries: Tensor) -> dict[str, Tensor]:
        window: int = self._config.sliding_window
        full = seen if self.spec.far_two_way else seen & (keys <= queries)
        return {"full_attention": full, "sliding_attention": seen & (keys > queries - window)}


def last_seen(ids: Sequence[int], visuals: Sequence[Visual]) -> list[int]:
    """The last token each sees: itself, or its picture's last."""
    seen = list(range(len(ids)))
    for start, length in (run for visual in visuals for run in pictures(ids, visual)):
        seen[start : start + length] = [start + length - 1] * length
    return seen


def pictures(ids: Sequence[int], visual: Visual) -> list[tuple[int, int]]:
    """(start, length) of each run of a visual's tokens: words may stand between a native video's frames."""
    start, count = visual.position, visual.tokens
    if visual.kind != "video" or len({*ids[start : start + count]}) == 1:
        return [(start, count)]
    token = ids[start]
    places = [place for place in range(start, len(ids)) if ids[place] == token][:count]
    firsts = [place for place in places if place == start or ids[place - 1] != token]
    ends = [place + 1 for place in places if place == places[-1] or ids[place + 1] != token]
    return [(first, end - first) for first, end in zip(firsts, ends, strict=True)]
