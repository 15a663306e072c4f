"""What a language model's config and network tell of it: how long rows may be, what its layers keep, where it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vidllm.errors import UnsupportedModel

RUNNING_LAYERS = frozenset({"linear_attention", "conv"})
"""Layers that keep a running state in place of keys and values, by transformers' names of kinds of layers."""


def row_limit(config: Any) -> int | None:
    """Tokens up to which rows can go through the language model of this config together and none feels another; None:
    however long they are.

    A longer one does not see all of itself through a sliding window; for what else there is see `branch_limit`.
    """
    limits = (getattr(config, "sliding_window", None), branch_limit(config))
    return min((limit for limit in limits if limit), default=None)


def branch_limit(config: Any) -> int | None:
    """The same where every layer is held to its own window, as along a tree.

    A longer row does not see all of itself (chunks), or its length turns the positions of every row beside it:
    transformers stretches `longrope` and `dynamic` ones by the longest of a call.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    dynamic = getattr(config, "max_position_embeddings", None) if rope.get("rope_type") == "dynamic" else None
    limits = (getattr(config, "attention_chunk_size", None), dynamic, turning_length(config))
    return min((limit for limit in limits if limit), default=None)


def turning_length(config: Any) -> int | None:
    """Positions after which `longrope` turns all of them otherwise, those read before, too; None: it never does."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return None
    first: int | None = rope.get("original_max_position_embeddings")
    return first or getattr(config, "original_max_position_embeddings", None)


def table_width(config: Any) -> int:
    """Numbers that all layers of this config know of a token by tables of their own, beside its embedding."""
    width: int = getattr(config, "hidden_size_per_layer_input", None) or 0
    return width and width * int(config.num_hidden_layers)


def like(part: nn.Module) -> Tensor:
    """A tensor where and as `part` computes: its first weight, or an empty one where accelerate keeps the weights
    elsewhere (`meta`) and brings them when they are needed.
    """
    weight = next(part.parameters())
    if not weight.is_meta:
        return weight
    hooked: Any = next(module for module in part.modules() if hasattr(module, "_hf_hook"))
    return torch.empty(0, dtype=weight.dtype, device=hooked._hf_hook.execution_device)


def language_of(network: nn.Module) -> nn.Module:
    """The part of transformers' network that reads embeddings; in some it stands in a model with a head of its own.

    Raises:
        UnsupportedModel: it is not a stack of layers.
    """
    part: Any = network.get_decoder()  # type: ignore[operator]
    part = part if hasattr(part, "layers") else getattr(part, "model", part)
    if not hasattr(part, "layers"):
        raise UnsupportedModel(f"{type(network).__name__}: its language model is not made of layers that can be told")
    return part  # type: ignore[no-any-return]
