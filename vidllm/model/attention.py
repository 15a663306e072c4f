"""transformers' SDPA attention for keys and values that are wider than the query, or seen along a tree.

`kv` keeps them in float32 on a CPU that computes in bf16 (see `reader.WIDE_BYTES`); queries are widened to meet them.
Who learns lays samples out as trees and brings what sees along them with each call, under the keyword `TREE`: no state
is kept between calls, and a layer that is computed again for its gradient is computed the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

NAME = "sdpa_wide_keys"
TREE = "vidllm_tree"
"""Keyword of the language model's forward: `vidllm.train.tree.TreeAttention`."""


def attend_wide(language: nn.Module) -> None:
    """Let a transformers language model that attends by SDPA take wider keys; one that does not stays as it is."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config: Any = language.config
    if config._attn_implementation == "sdpa":
        config._attn_implementation = NAME


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """(B, H, L, d) queries over (B, h, T, d) keys and values -> (B, L, H, d), in the query's dtype."""
    tree: Callable[[Tensor, Tensor, Tensor, float | None, int | None], Tensor] | None = more.pop(TREE, None)
    if tree is not None:
        return tree(query, key, value, more.get("scaling"), more.get("sliding_window") or None), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    seen, _ = sdpa_attention_forward(module, query.to(key.dtype), key, value, attention_mask, **more)
    return seen.to(query.dtype), None
