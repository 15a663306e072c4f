"""transformers' SDPA attention for keys and values that are wider than the query.

`kv` keeps them in float32 on a CPU that computes in bf16 (see `reader.WIDE_BYTES`); queries are widened to meet them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

NAME = "sdpa_wide_keys"


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
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    seen, _ = sdpa_attention_forward(module, query.to(key.dtype), key, value, attention_mask, **more)
    return seen.to(query.dtype), None
