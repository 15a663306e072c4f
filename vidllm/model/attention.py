"""transformers' SDPA attention for keys wider than the queries, along a tree, and where many queries have a mask.

`kv` keeps them in float32 on a CPU that computes in bf16 (see `reader.WIDE_BYTES`); queries are widened to meet them.
Who learns lays samples out as trees and brings what sees along them with each call, under the keyword `TREE`: no state
is kept between calls, and a layer that is computed again for its gradient is computed the same way.

What many queries see is never one table, whose size would be that of a prompt squared (1 GiB at 32,000 tokens, 5 where
PyTorch makes numbers of it): so many rows of it are made at a time, and attended by. A softmax is over one row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

NAME = "sdpa_wide_keys"
TREE = "vidllm_tree"
"""Keyword of the language model's forward: `vidllm.train.tree.TreeAttention`."""
_SIGHT = "vidllm_sight"
"""Keyword of the same: a `Sight` in place of a mask, which transformers takes as a tensor alone."""
ROWS = 1024
"""Of a longer text so many rows of its mask at a time."""


class Sight:
    """A mask (B, 1, L, T) whose rows are made when they are asked for, as those of a tensor: `sight[:, :, 3:5]`."""

    def __init__(self, length: int, made: Callable[[int, int], Any]) -> None:
        self.length = length
        self._made = made

    def __getitem__(self, at: tuple[slice, ...]) -> Tensor:
        start, stop, _ = at[2].indices(self.length)
        rows: Tensor = self._made(start, stop)
        return rows

    def told(self, config: Any) -> dict[str, Any]:
        """To the forward of a language model of this config; one that attends otherwise has all of it as a mask."""
        if config._attn_implementation != NAME:
            return {"attention_mask": self[:, :, :]}
        return {"attention_mask": self[:, :, :1], _SIGHT: self}  # given any mask, transformers makes none itself


def attend_wide(language: nn.Module) -> None:
    """Let a transformers language model that attends by SDPA take wider keys; one that does not stays as it is."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)
    config: Any = language.config
    if config._attn_implementation == "sdpa":
        config._attn_implementation = NAME


def _mask(*, q_length: int, q_offset: int = 0, **more: Any) -> Tensor | Sight | None:
    """As transformers' `sdpa_mask`; of many queries a few at a time."""
    from transformers.masking_utils import sdpa_mask

    if q_length <= ROWS:
        return sdpa_mask(q_length=q_length, q_offset=q_offset, **more)
    all_ = more | {"mask_function": lambda *_: torch.ones(1, 1, 1, 1, dtype=torch.bool), "use_vmap": False}
    if sdpa_mask(q_length=q_length, q_offset=q_offset, **all_) is None:
        return None  # the kernels' own causal flag says it all
    more |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return Sight(q_length, lambda start, stop: sdpa_mask(q_length=stop - start, q_offset=q_offset + start, **more))


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | Sight | None, **more: Any
) -> tuple[Tensor, None]:
    """(B, H, L, d) queries over (B, h, T, d) keys and values -> (B, L, H, d), in the query's dtype."""
    tree: Callable[[Tensor, Tensor, Tensor, float | None, int | None], Tensor] | None = more.pop(TREE, None)
    if tree is not None:
        return tree(query, key, value, more.get("scaling"), more.get("sliding_window") or None), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    sight, wide = more.pop(_SIGHT, attention_mask), query.to(key.dtype)
    if not isinstance(sight, Sight):
        seen, _ = sdpa_attention_forward(module, wide, key, value, sight, **more)
        return seen.to(query.dtype), None
    parts = []
    for start in range(0, sight.length, ROWS):
        rows = slice(start, start + ROWS)
        mask = sight[:, :, rows].to(query.device)  # accelerate brings tensors, and nothing else, to a layer's device
        looked_at = mask.flatten(0, 2).any(dim=0).nonzero()  # half of all keys, few where there is a window
        keys = slice(int(looked_at[0]), int(looked_at[-1]) + 1)
        asked = wide[:, :, rows], key[:, :, keys], value[:, :, keys], mask[..., keys]
        part, _ = sdpa_attention_forward(module, *asked, **more)
        parts.append(part)
    return torch.cat(parts, dim=1).to(query.dtype), None
