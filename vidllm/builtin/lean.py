"""The language model's forward pass, arranged for training on a CPU: transformers' Llama in fewer passes over memory.

At this width memory traffic costs more than matrix products, so norm weights are folded into the projections that
follow them, rotation is a second projection with permuted rows, attention is torch's fused kernel, and everything
between the matrix products keeps the embeddings' dtype.

    B  rows    T  tokens    D  width    H  heads    h  width of a head = D / H
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer


@dataclass(frozen=True)
class Attention:
    """What one layer's heads look with: rotated queries and keys, (B, H, T, h), and `bias` (B, 1, T, T): 0 or -inf.

    The probabilities themselves are not kept: a training step wants a few rows of a few heads, and all of them cost
    more than everything else that attention does.
    """

    queries: Tensor
    keys: Tensor
    bias: Tensor

    def paid(self, row: int, head: int, positions: Tensor) -> Tensor:
        """The attention (N, T) that the tokens at `positions` (N,) of a row pay with a head; each adds up to 1."""
        logits = self.queries[row, head, positions] @ self.keys[row, head].T
        return torch.softmax(logits + self.bias[row, 0, positions], -1)


@dataclass(frozen=True)
class Trace:
    """What every layer hands on, (B, T, D), and how it looked about."""

    hidden: list[Tensor] = field(default_factory=list)
    looks: list[Attention] = field(default_factory=list)


def hidden_states(
    model: LlamaModel, embeds: Tensor, allowed: Tensor, positions: Tensor, trace: Trace | None = None
) -> Tensor:
    """(B, T, D) embeddings -> (B, T, D) last hidden states, in the embeddings' dtype.

    `allowed` (B, T, T) bool: may token t look at token u. `positions` (B, T) may be fractional. Equals `LlamaModel`
    with the same mask and positions up to rounding, for models as `new_model` builds them: as many key heads as query
    heads, no biases. What happens on the way is written into `trace`.
    """
    config, kind = model.config, embeds.dtype
    bias = torch.zeros(allowed.shape, dtype=kind).masked_fill_(~allowed, float("-inf"))[:, None]
    cos, sin = _rotation(config, positions, kind)
    x = embeds
    for layer in cast("Iterable[LlamaDecoderLayer]", model.layers):
        added, look = _attend(layer, config, _scaled(x, config.rms_norm_eps), bias, cos, sin)
        x = x + added
        x = x + _feed(layer, _scaled(x, config.rms_norm_eps))
        if trace is not None:
            trace.hidden.append(x)
            trace.looks.append(look)
    return _scaled(x, config.rms_norm_eps) * model.norm.weight.to(kind)


def _scaled(x: Tensor, eps: float) -> Tensor:
    """RMS norm (B, T, D) without its weight."""
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square() / x.shape[-1]
    return x * torch.rsqrt(mean_square + eps).to(x.dtype)


def _rotation(config: LlamaConfig, positions: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos, sin: (B, 1, T, h)."""
    half = config.hidden_size // config.num_attention_heads // 2
    theta = cast("dict[str, float]", config.rope_parameters)["rope_theta"]
    frequency: Tensor = theta ** -(torch.arange(half, dtype=torch.float32) / half)
    angle = positions.float()[:, None, :, None] * torch.cat([frequency, frequency])
    return angle.cos().to(kind), angle.sin().to(kind)


def _turned(weight: Tensor, heads: int) -> Tensor:
    """A projection (D, D) whose output is `rotate_half` of `weight`'s."""
    low, high = torch.unflatten(weight, 0, (heads, 2, -1)).unbind(1)
    return torch.stack([-high, low], 1).flatten(0, 2)


def _attend(
    layer: LlamaDecoderLayer, config: LlamaConfig, x: Tensor, bias: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Attention]:
    """(B, T, D) normalised -> what attention adds, and what it looked with; `bias` (B, 1, T, T): 0, -inf."""
    heads, norm, part = config.num_attention_heads, layer.input_layernorm.weight, layer.self_attn
    q, k, v = (proj.weight * norm for proj in (part.q_proj, part.k_proj, part.v_proj))
    q = q * (config.hidden_size // heads) ** -0.5
    weight = torch.cat([q, _turned(q, heads), k, _turned(k, heads), v]).to(x.dtype)
    q, q_turned, k, k_turned, v = torch.unflatten(F.linear(x, weight), -1, (5, heads, -1)).permute(2, 0, 3, 1, 4)
    q = torch.addcmul(q * cos, q_turned, sin)  # (B, H, T, h)
    k = torch.addcmul(k * cos, k_turned, sin)
    seen = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
    return F.linear(seen.transpose(1, 2).flatten(2), part.o_proj.weight.to(x.dtype)), Attention(q, k, bias)


def _feed(layer: LlamaDecoderLayer, x: Tensor) -> Tensor:
    """(B, T, D) normalised -> what the gated feed-forward adds."""
    norm, part = layer.post_attention_layernorm.weight, layer.mlp
    both = torch.cat([part.gate_proj.weight * norm, part.up_proj.weight * norm]).to(x.dtype)
    gate, up = F.linear(x, both).chunk(2, -1)
    return F.linear(F.silu(gate) * up, part.down_proj.weight.to(x.dtype))
