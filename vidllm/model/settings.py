"""What the JSON files of a checkpoint say of its parts, checked: processors, pixels, positions, visual tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vidllm.errors import IncompleteModel
from vidllm.model.spec import Cls, Json, Mean, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def processor_settings(folder: Path, config: Json, part: Literal["image", "video"]) -> Json:
    """Settings of the image or video processor, from where transformers takes them: what it saves today stands in
    processor_config.json, beside files that older releases left there."""
    own = {"image": "preprocessor_config.json", "video": "video_preprocessor_config.json"}[part]
    nested = (read_json(folder / "processor_config.json") or {}).get(f"{part}_processor")
    settings = nested or read_json(folder / own)
    if settings is None and part == "image":
        raise IncompleteModel(
            f"{folder}: no preprocessor_config.json; save the processor of the {config['model_type']} model there "
            "(AutoProcessor.from_pretrained(...).save_pretrained(folder))"
        )
    return settings or {}


def processor_class(folder: Path) -> str | None:
    """The class transformers takes for the whole processor, from the files it looks into; None where none names one."""
    files = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
    said = ((read_json(folder / name) or {}).get("processor_class") for name in files)
    return next(filter(None, said), None)


def normalisation(settings: Json, mean: Mean, std: Mean) -> tuple[Mean, Mean]:
    """(mean, std) of pixels between 0 and 1, whatever the processor scales pixels to and whether it normalises them."""
    scale = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255.0
    mean, std = _three(settings, "image_mean", mean), _three(settings, "image_std", std)
    if not settings.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    scale = round(scale, 9)  # files print 1/255 with a rounding of their own
    if not all(map(math.isfinite, mean)) or not all(0 < value < math.inf for value in std):
        raise ValueError(f"image_mean {mean} and image_std {std} are to be numbers, the latter above 0")
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)  # type: ignore[return-value]


def _three(settings: Json, key: str, default: Mean) -> Mean:
    """A number for each colour; one alone is all three."""
    said = settings.get(key) or default
    red, green, blue = (said,) * 3 if isinstance(said, float | int) else said
    return float(red), float(green), float(blue)


def whole(values: Json, key: str, default: int) -> int:
    """A size or a number of things: at least one."""
    value = values.get(key, default)
    if type(value) is not int or value < 1:  # true is an int to Python
        raise ValueError(f"{key} is {value!r}, a whole number above 0 is needed")
    return value


def tower_layers(folder: Path, chosen: int | list[int], depth: int) -> tuple[int, ...]:
    """The hidden states that features are taken from, of a vision tower of so many layers."""
    layers = [chosen] if isinstance(chosen, int) else [int(layer) for layer in chosen]
    if any(not -depth - 1 <= layer <= depth for layer in layers):
        raise IncompleteModel(
            f"{folder}: config.json takes features from layer {layers} of a vision tower of {depth} layers; "
            "download the model again"
        )
    return tuple(layers)


def class_token(folder: Path, has_one: bool, strategy: str) -> Cls:
    """What becomes of the tower's class token under this vision_feature_select_strategy."""
    if strategy not in ("default", "full"):
        raise IncompleteModel(
            f"{folder}: vision_feature_select_strategy is {strategy!r} in config.json; it is default or full"
        )
    if not has_one and strategy == "default":
        raise IncompleteModel(
            f"{folder}: config.json drops a class token its vision tower does not have; "
            'set "vision_feature_select_strategy": "full"'
        )
    if not has_one:
        return "none"
    return "drop" if strategy == "default" else "keep"


_CONTEXTS = {
    "llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768, "qwen3_moe": 32768, "gpt_oss": 131072,
    "cohere": 8192, "cohere2": 8192, "granite": 2048, "gemma": 8192, "gemma2": 8192, "gemma3_text": 131072,
    "gemma4_text": 131072, "gemma4_unified_text": 262144,
    "phi": 2048, "phi3": 4096, "ministral3": 262144, "lfm2": 128000, "molmo2_text": 36864,
}  # fmt: skip
"""Positions of a text config that leaves them out: the default of that Hugging Face config class."""
_STRETCHED = {"gemma3_text"}
"""Whose max_position_embeddings counts its linear factor in."""


def context_of(folder: Path, text: Json) -> int:
    """max_position_embeddings, stretched by a factor the checkpoint is configured with: always by a linear one; YaRN
    stretches what it names as original, and whoever switches it on by hand leaves max_position_embeddings as it was."""
    positions = text.get("max_position_embeddings", _CONTEXTS.get(str(text.get("model_type", "llama"))))
    if type(positions) is not int or positions < 1:
        raise IncompleteModel(f"{folder}: config.json names no max_position_embeddings; add it to its text_config")
    rope, kind = rope_of(text), rope_kind(text)
    factor = float(rope.get("factor") or 1.0)
    if kind == "yarn":
        return max(positions, int((rope.get("original_max_position_embeddings") or positions) * factor))
    return int(positions * factor) if kind == "linear" and text.get("model_type") not in _STRETCHED else positions


def rope_of(text: Json) -> Json:
    """How a language model's positions turn; where its layers differ, in those that see beyond a window."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    return rope.get("full_attention") or rope


def rope_kind(text: Json) -> str:
    """Like "linear"; "default" where nothing is stretched."""
    rope = rope_of(text)
    return str(rope.get("rope_type", rope.get("type", "default")))


def token_id_of(folder: Path, tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that a processor names."""
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise IncompleteModel(f"{folder}: tokenizer.json has no {token!r}; save tokenizer and processor from the same "
                              "model")  # fmt: skip
    return token_id


def token_text(folder: Path, tokenizer: Tokenizer, token_id: int) -> str:
    """How a visual token is spelt, which is to be one added token."""
    text = tokenizer.id_to_token(token_id)
    if text is None or tokenizer.encode(text, add_special_tokens=False).ids != [token_id]:
        raise IncompleteModel(
            f"{folder}: config.json's visual token {token_id} is no added token of tokenizer.json; "
            "save tokenizer and config from the same model"
        )
    return text
