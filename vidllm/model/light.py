"""A small LLaVA without transformers: CLIP tower, projector and Llama in plain torch, from the same weight files.

Importing transformers' classes takes two seconds on a machine where the built-in model answers in less than one. For a
checkpoint of exactly this shape (LLaVA-1.5 layout, CLIP, Llama with default rotary positions) the same sums are written
out here, under the same names, and a test holds them to transformers' logits. Anything else, and anything large, goes
through transformers: see `fits`.

    N pictures   P patches and a class token   L tokens   H heads   D width
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from vidllm.model.kv import Past
from vidllm.model.spec import read_json

Json = Mapping[str, Any]

LARGEST_BYTES = 512 * 2**20
"""Weights beyond this take longer to load than transformers does to import."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}

_VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
_TEXT = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "hidden_act": "silu", "rms_norm_eps": 1e-6,
}  # fmt: skip
"""What transformers' config classes fall back to for a key that config.json leaves out."""


def fits(folder: Path, config: Json) -> bool:
    """Whether this file computes what the checkpoint says, and the checkpoint is small enough to gain by it."""
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    ropes = [text.get(key) or {} for key in ("rope_parameters", "rope_scaling")]  # the new spelling and the old
    return (
        config.get("model_type") == "llava"
        and not config.get("quantization_config")
        and vision.get("model_type") == "clip_vision_model"
        and text.get("model_type") == "llama"
        and all(rope.get("rope_type", rope.get("type", "default")) == "default" for rope in ropes)
        and not any(rope.get("partial_rotary_factor") for rope in ropes)
        and not text.get("attention_bias")
        and not text.get("mlp_bias")
        and isinstance(config.get("vision_feature_layer", -2), int)
        and config.get("multimodal_projector_bias", True)
        and all(name in [*_ACTIVATIONS] for name in (
            vision.get("hidden_act", "gelu"), text.get("hidden_act", "silu"), config.get("projector_hidden_act", "gelu")
        ))
        and 0 < sum(path.stat().st_size for path in _files(folder)) <= LARGEST_BYTES
    )  # fmt: skip


def _files(folder: Path) -> list[Path]:
    """The weight files transformers would read: others may lie beside them under any name. None it does not find."""
    whole = folder / "model.safetensors"
    index = (read_json(folder / "model.safetensors.index.json") or {}).get("weight_map") or {}
    named = [whole] if whole.is_file() else [folder / name for name in sorted(set(index.values()))]
    return [path for path in named if path.is_file()]


def load_light(folder: Path, config: Json, device: torch.device, dtype: torch.dtype) -> nn.Module | None:
    """The network; None when the weights are not those the config promises, which transformers may explain.

    Raises:
        SafetensorError, OSError: a weight file can not be read.
        RuntimeError, TypeError, ValueError, ZeroDivisionError: the config's numbers make no network.
    """
    with torch.device("meta"):
        network = LightLlava(config)
    weights = _weights(folder, dtype)
    tied = any(part.get("tie_word_embeddings") for part in (config, config["text_config"]))
    if "lm_head.weight" not in weights and tied:
        weights["lm_head.weight"] = weights.get("language_model.embed_tokens.weight", torch.empty(0))
    wanted = network.state_dict()
    if any(name not in weights or weights[name].shape != wanted[name].shape for name in wanted):
        return None
    if any(name.startswith(f"language_model.layers.{len(network.language_model.layers)}.") for name in weights):
        return None
    network.load_state_dict({name: weights[name] for name in wanted}, assign=True)
    network.to(device)
    return network


_RENAMED = (
    ("model.vision_tower.", "vision_tower."),
    ("model.language_model.", "language_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("vision_tower.vision_model.", "vision_tower."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "language_model."),
)
"""Spellings of three generations of transformers, in the order in which they are undone."""


def _weights(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    weights = {}
    for path in _files(folder):
        for name, weight in load_file(path).items():
            for old, new in _RENAMED:
                name = new + name.removeprefix(old) if name.startswith(old) else name
            weights[name] = weight.to(dtype, copy=True)  # aligned memory, and no file mapped behind a running model
    return weights


class LightLlava(nn.Module):
    """The three parts under the names `ComposableLMM` looks for."""

    def __init__(self, config: Json) -> None:
        super().__init__()
        vision = {**_VISION, **config["vision_config"]}
        text = {**_TEXT, **config["text_config"]}
        self.vision_tower = ClipTower(SimpleNamespace(**vision))
        self.multi_modal_projector = Projector(
            vision["hidden_size"], text["hidden_size"], config.get("projector_hidden_act", "gelu")
        )
        self.language_model = Llama(SimpleNamespace(**text))
        self.lm_head = nn.Linear(text["hidden_size"], text["vocab_size"], bias=False)

    @property
    def model(self) -> LightLlava:
        """transformers wraps the parts once more; here they are at hand."""
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The table of token embeddings."""
        return self.language_model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head


@dataclass(frozen=True)
class Seen:
    """Hidden states after each layer, the embedding first, None for those that were not asked for."""

    hidden_states: tuple[Tensor | None, ...]


class ClipTower(nn.Module):
    """CLIP's vision transformer up to the last layer asked for."""

    def __init__(self, c: SimpleNamespace) -> None:
        super().__init__()
        self.embeddings = PatchEmbeddings(c)
        self.pre_layrnorm = nn.LayerNorm(c.hidden_size, eps=float(c.layer_norm_eps))  # so spelt in every checkpoint
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(ClipLayer(c) for _ in range(c.num_hidden_layers))

    def forward(self, pixels: Tensor, output_hidden_states: Sequence[int]) -> Seen:
        """Pixels (N, 3, S, S) -> states (N, 1 + P, D) at the given indices; layers behind the last are not run."""
        layers: nn.ModuleList = self.encoder.layers  # type: ignore[assignment]
        wanted = {index % (len(layers) + 1) for index in output_hidden_states}
        x = self.pre_layrnorm(self.embeddings(pixels))
        states: list[Tensor | None] = [x if 0 in wanted else None]
        for index, layer in enumerate(layers, start=1):
            x = layer(x) if index <= max(wanted) else x
            states.append(x if index in wanted else None)
        return Seen(tuple(states))


class PatchEmbeddings(nn.Module):
    """Patches, a class token before them, and where each of them stands."""

    def __init__(self, c: SimpleNamespace) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(c.hidden_size))
        self.patch_embedding = nn.Conv2d(c.num_channels, c.hidden_size, c.patch_size, c.patch_size, bias=False)
        self.position_embedding = _table((c.image_size // c.patch_size) ** 2 + 1, c.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        placed: Tensor = torch.cat([first, patches], dim=1) + self.position_embedding.weight
        return placed


class ClipLayer(nn.Module):
    """Attention and a two-layer perceptron, each behind its norm."""

    def __init__(self, c: SimpleNamespace) -> None:
        super().__init__()
        self.heads = c.num_attention_heads
        if c.hidden_size % self.heads:
            raise ValueError(f"a tower {c.hidden_size} wide can not have {self.heads} heads")
        self.act = _ACTIVATIONS[c.hidden_act]
        self.layer_norm1 = nn.LayerNorm(c.hidden_size, eps=float(c.layer_norm_eps))
        self.layer_norm2 = nn.LayerNorm(c.hidden_size, eps=float(c.layer_norm_eps))
        self.self_attn = nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.self_attn.add_module(name, nn.Linear(c.hidden_size, c.hidden_size))
        self.mlp = nn.Module()
        self.mlp.fc1 = nn.Linear(c.hidden_size, c.intermediate_size)
        self.mlp.fc2 = nn.Linear(c.intermediate_size, c.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        part: Any = self.self_attn
        y = self.layer_norm1(x)
        q, k, v = (_heads(proj(y), self.heads) for proj in (part.q_proj, part.k_proj, part.v_proj))
        x = x + part.out_proj(_joined(F.scaled_dot_product_attention(q, k, v)))
        mlp: Any = self.mlp
        out: Tensor = x + mlp.fc2(self.act(mlp.fc1(self.layer_norm2(x))))
        return out


class Projector(nn.Module):
    """LLaVA's two layers between the widths of tower and language model."""

    def __init__(self, vision: int, text: int, act: str) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision, text)
        self.linear_2 = nn.Linear(text, text)
        self.act = _ACTIVATIONS[act]

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.linear_2(self.act(self.linear_1(features)))
        return projected


@dataclass(frozen=True)
class Read:
    """What the language model makes of its input: (1, L, D)."""

    last_hidden_state: Tensor


class Llama(nn.Module):
    """Llama over given embeddings; positions may be fractions."""

    def __init__(self, c: SimpleNamespace) -> None:
        super().__init__()
        self.embed_tokens = _table(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(LlamaLayer(c) for _ in range(c.num_hidden_layers))
        self.norm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        rope = getattr(c, "rope_parameters", None) or {}
        self.theta = float(rope.get("rope_theta") or getattr(c, "rope_theta", None) or 10000.0)

    def forward(
        self, *, inputs_embeds: Tensor, position_ids: Tensor, past_key_values: Past,
        attention_mask: Tensor | None = None, use_cache: bool = True,
    ) -> Read:  # fmt: skip
        """(B, L, D) behind what `past_key_values` holds; it is appended there.

        `attention_mask` (B, 1, L, T), true where a token may be seen; None for a single row: all before it.
        """
        del use_cache  # always
        x, past = inputs_embeds, past_key_values
        turn = self._angles(position_ids, x.dtype)
        mask = _mask(x.shape[1], past.length, x.device) if attention_mask is None else attention_mask
        for index, layer in enumerate(self.layers):
            x = layer(x, turn, mask, past, index)
        return Read(self.norm(x))

    def _angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin (1, 1, L, head_dim), computed in float32 whatever the model computes in."""
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=positions.device) / self.head_dim
        angles = positions[:, None, :, None].float() * (1.0 / self.theta**exponent)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def _mask(length: int, past: int, device: torch.device) -> Tensor | None:
    """Which of past + length tokens each of the last `length` may see; None where all or plainly causal."""
    if length == 1 or past == 0:
        return None
    return torch.ones(length, past + length, dtype=torch.bool, device=device).tril(past)


class LlamaLayer(nn.Module):
    """Attention over the past and a gated perceptron, each behind its norm."""

    def __init__(self, c: SimpleNamespace) -> None:
        super().__init__()
        self.heads = c.num_attention_heads
        self.kv_heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
        head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        self.act = _ACTIVATIONS[c.hidden_act]
        self.input_layernorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = nn.Module()
        self.self_attn.q_proj = nn.Linear(c.hidden_size, self.heads * head, bias=False)
        self.self_attn.k_proj = nn.Linear(c.hidden_size, self.kv_heads * head, bias=False)
        self.self_attn.v_proj = nn.Linear(c.hidden_size, self.kv_heads * head, bias=False)
        self.self_attn.o_proj = nn.Linear(self.heads * head, c.hidden_size, bias=False)
        self.mlp = nn.Module()
        self.mlp.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.mlp.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.mlp.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor | None, past: Past, index: int
    ) -> Tensor:
        part: Any = self.self_attn
        y = self.input_layernorm(x)
        q = _turned(_heads(part.q_proj(y), self.heads), turn)
        k = _turned(_heads(part.k_proj(y), self.kv_heads), turn)
        causal = mask is None and x.shape[1] > 1
        k, v = past.update(k, _heads(part.v_proj(y), self.kv_heads), index)
        if x.shape[1] == 1:  # one token: heads that share keys ask them together, as if they were several tokens
            q = q.view(len(q), self.kv_heads, -1, q.shape[-1])
        grouped = self.kv_heads < q.shape[1]
        seen = F.scaled_dot_product_attention(q.to(k.dtype), k, v, mask, is_causal=causal, enable_gqa=grouped)
        x = x + part.o_proj(_joined(seen.to(x.dtype).view(len(x), self.heads, x.shape[1], -1)))
        y = self.post_attention_layernorm(x)
        mlp: Any = self.mlp
        out: Tensor = x + mlp.down_proj(self.act(mlp.gate_proj(y)) * mlp.up_proj(y))
        return out


class RmsNorm(nn.Module):
    """Scaled to mean square one in float32, then weighted."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = float(eps)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def _table(rows: int, width: int) -> nn.Embedding:
    """An embedding that is not drawn at random first: drawing on the meta device imports torch's compiler (1 s)."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


def _heads(x: Tensor, heads: int) -> Tensor:
    """(N, L, H * d) -> (N, H, L, d)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """(N, H, L, d) -> (N, L, H * d)."""
    return x.transpose(1, 2).flatten(2)


def _turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions: pairs are (i, i + d/2)."""
    low, high = x.chunk(2, dim=-1)
    return x * turn[0] + torch.cat([-high, low], dim=-1) * turn[1]
