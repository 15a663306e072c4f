"""The language model's forward pass, arranged for training on a CPU: the same sum as transformers' Llama, in fewer passes.

At this width memory traffic costs more than matrix products, so norm weights are folded into the projections that follow them,
rotation is a second projection with permuted rows, and everything between the matrix products stays bfloat16.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel


def hidden_states(model: LlamaModel, embeds: Tensor, allowed: Tensor, positions: Tensor) -> Tensor:
    """(B, T, D) embeddings -> (B, T, D) last hidden states, in the embeddings' dtype.

    `allowed` (B, T, T) bool: may row t look at column u. `positions` (B, T) may be fractional. Equals `LlamaModel` with the same
    mask and positions up to rounding.
    """
    config, kind = model.config, embeds.dtype
    bias = torch.zeros(allowed.shape, dtype=kind).masked_fill_(~allowed, float("-inf"))[:, None]
    cos, sin = _rotation(config, positions, kind)
    x = embeds
    for layer in model.layers:
        x = x + _attend(layer, config, _scaled(x, config.rms_norm_eps), bias, cos, sin)
        x = x + _feed(layer, _scaled(x, config.rms_norm_eps))
    return _scaled(x, config.rms_norm_eps) * model.norm.weight.to(kind)


def _scaled(x: Tensor, eps: float) -> Tensor:
    """RMS norm without its weight."""
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square() / x.shape[-1]
    return x * torch.rsqrt(mean_square + eps).to(x.dtype)


def _rotation(config: LlamaConfig, positions: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos, sin: (B, 1, T, head_dim)."""
    half = config.hidden_size // config.num_attention_heads // 2
    theta = config.rope_parameters["rope_theta"]
    frequency = theta ** -(torch.arange(half, dtype=torch.float32) / half)
    angle = positions.float()[:, None, :, None] * torch.cat([frequency, frequency])
    return angle.cos().to(kind), angle.sin().to(kind)


def _turned(weight: Tensor, heads: int) -> Tensor:
    """Rows of a projection such that its output is the first one's `rotate_half`."""
    low, high = weight.unflatten(0, (heads, 2, -1)).unbind(1)
    return torch.stack([-high, low], 1).flatten(0, 2)


def _attend(layer: torch.nn.Module, config: LlamaConfig, x: Tensor, bias: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    heads, norm, part = config.num_attention_heads, layer.input_layernorm.weight, layer.self_attn
    q, k, v = (proj.weight * norm for proj in (part.q_proj, part.k_proj, part.v_proj))
    q = q * (config.hidden_size // heads) ** -0.5
    weight = torch.cat([q, _turned(q, heads), k, _turned(k, heads), v]).to(x.dtype)
    q, q_turned, k, k_turned, v = F.linear(x, weight).unflatten(-1, (5, heads, -1)).permute(2, 0, 3, 1, 4)
    q = torch.addcmul(q * cos, q_turned, sin)
    k = torch.addcmul(k * cos, k_turned, sin)
    chances = torch.softmax(q @ k.transpose(-1, -2) + bias, -1)
    return F.linear((chances @ v).transpose(1, 2).flatten(2), part.o_proj.weight.to(x.dtype))


def _feed(layer: torch.nn.Module, x: Tensor) -> Tensor:
    norm, part = layer.post_attention_layernorm.weight, layer.mlp
    both = torch.cat([part.gate_proj.weight * norm, part.up_proj.weight * norm]).to(x.dtype)
    gate, up = F.linear(x, both).chunk(2, -1)
    return F.linear(F.silu(gate) * up, part.down_proj.weight.to(x.dtype))
