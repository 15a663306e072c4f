"""What the small files of a checkpoint say of its parts, checked: processors, pixels, positions, visual tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from vidllm.errors import IncompleteModel, UnsupportedModel
from vidllm.model.spec import Cls, Json, Mean, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CONTEXTS = {
    "llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768, "qwen3_moe": 32768, "gpt_oss": 131072,
    "cohere": 8192, "cohere2": 8192, "granite": 2048, "gemma": 8192, "gemma2": 8192, "gemma3_text": 131072,
    "gemma4_text": 131072, "gemma4_unified_text": 262144,
    "phi": 2048, "phi3": 4096, "ministral3": 262144, "lfm2": 128000, "molmo2_text": 36864,
}  # fmt: skip
"""Positions of a text config that leaves them out: the default of that Hugging Face config class."""
_NOTHING: Json = MappingProxyType({})
_STRETCHED = {"gemma3_text"}
"""Language models whose max_position_embeddings counts their linear factor in already."""


@dataclass(frozen=True, eq=False)
class Files:
    """The small files in `folder`: its config.json, parsed, its tokenizer, and the processor's, read when asked for.

    Methods raise IncompleteModel where one is missing or contradicts another.
    """

    folder: Path
    config: Json
    tokenizer: Tokenizer

    @property
    def vision(self) -> Json:
        """config.json's vision_config; empty where there is none."""
        return self.config.get("vision_config") or {}

    @property
    def text(self) -> Json:
        """config.json's text_config; empty where there is none."""
        return self.config.get("text_config") or {}

    def assuming(self, config: Json = _NOTHING, *, text: Json = _NOTHING, vision: Json = _NOTHING) -> Files:
        """The same with what config.json, its text_config and its vision_config leave out."""
        parts = {"text_config": {**text, **self.text}, "vision_config": {**vision, **self.vision}}
        return replace(self, config={**config, **self.config, **parts})

    def visual_id(self, kind: Literal["image", "video"], usual: int) -> int:
        """The id of a picture's or a video's tokens, under either name that config.json may give it."""
        found: int = self.config.get(f"{kind}_token_index", self.config.get(f"{kind}_token_id", usual))
        return found

    def json(self, name: str) -> Json:
        """The object in one of the files; empty where there is no such file."""
        return read_json(self.folder / name) or {}

    def processor(self, part: Literal["image", "video"]) -> Json:
        """Settings of the image or video processor, from where transformers takes them: what it saves today stands in
        processor_config.json, beside files that older releases left there."""
        own = {"image": "preprocessor_config.json", "video": "video_preprocessor_config.json"}[part]
        settings = self.json("processor_config.json").get(f"{part}_processor") or read_json(self.folder / own)
        if settings is None and part == "image":
            raise IncompleteModel(
                f"{self.folder}: no preprocessor_config.json; save the processor of the {self.config['model_type']} "
                "model there (AutoProcessor.from_pretrained(...).save_pretrained(folder))"
            )
        return settings or {}

    def processor_class(self) -> str | None:
        """The class transformers takes for the whole processor, from the files it looks into; None where none says."""
        names = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
        return next(filter(None, (self.json(name).get("processor_class") for name in names)), None)

    def vision_layers(self, chosen: int | list[int], depth: int) -> tuple[int, ...]:
        """The hidden states that features are taken from, of a vision tower of so many layers."""
        layers = [chosen] if isinstance(chosen, int) else [int(layer) for layer in chosen]
        if any(not -depth - 1 <= layer <= depth for layer in layers):
            raise IncompleteModel(
                f"{self.folder}: config.json takes features from layer {layers} of a vision tower of {depth} layers; "
                "download the model again"
            )
        return tuple(layers)

    def class_token(self, has_one: bool, usual: str) -> Cls:
        """What becomes of the tower's class token, by vision_feature_select_strategy or what is `usual`."""
        strategy = self.config.get("vision_feature_select_strategy", usual)
        if strategy not in ("default", "full"):
            raise IncompleteModel(
                f"{self.folder}: vision_feature_select_strategy is {strategy!r} in config.json; it is default or full"
            )
        if not has_one and strategy == "default":
            raise IncompleteModel(
                f"{self.folder}: config.json drops a class token its vision tower does not have; "
                'set "vision_feature_select_strategy": "full"'
            )
        if not has_one:
            return "none"
        return "drop" if strategy == "default" else "keep"

    def context(self, text: Json) -> int:
        """max_position_embeddings, stretched by a factor the checkpoint is configured with: always by a linear one;
        YaRN stretches what it names as original, and whoever switches it on by hand leaves max_position_embeddings as
        it was."""
        positions = text.get("max_position_embeddings", _CONTEXTS.get(str(text.get("model_type", "llama"))))
        if type(positions) is not int or positions < 1:
            raise IncompleteModel(
                f"{self.folder}: config.json names no max_position_embeddings; add it to its text_config"
            )
        rope, kind = rope_of(text), rope_kind(text)
        factor = float(rope.get("factor") or 1.0)
        if kind == "yarn":
            return max(positions, int((rope.get("original_max_position_embeddings") or positions) * factor))
        return int(positions * factor) if kind == "linear" and text.get("model_type") not in _STRETCHED else positions

    def check_turning(self) -> None:
        """Refuse a language model whose positions a long text turns otherwise than a short one."""
        if (kind := rope_kind(self.text)) in ("dynamic", "longrope"):
            raise self.unsupported(f"{self.config['model_type']} with positions that are {kind}")

    def token_id(self, token: str) -> int:
        """The id of a token that a processor names."""
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise IncompleteModel(f"{self.folder}: tokenizer.json has no {token!r}; save tokenizer and processor from "
                                  "the same model")  # fmt: skip
        return found

    def token(self, token_id: int) -> str:
        """How a visual token is spelt, which is to be one added token."""
        text = self.tokenizer.id_to_token(token_id)
        if text is None or self.tokenizer.encode(text, add_special_tokens=False).ids != [token_id]:
            raise IncompleteModel(
                f"{self.folder}: config.json's visual token {token_id} is no added token of tokenizer.json; "
                "save tokenizer and config from the same model"
            )
        return text

    def disagree(self, how: str) -> IncompleteModel:
        """Says `how` the processor's files and config.json contradict each other."""
        return IncompleteModel(f"{self.folder}: {how}; save config and processor from the same model")

    def unsupported(self, what: str) -> UnsupportedModel:
        """Says that `what` has no adapter, in a family that has one."""
        return UnsupportedModel(f"{self.folder}: no adapter for {what}")


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


def rope_of(text: Json) -> Json:
    """How a language model's positions turn; where its layers differ, in those that see beyond a window."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    return rope.get("full_attention") or rope


def rope_kind(text: Json) -> str:
    """Like "linear"; "default" where nothing is stretched."""
    rope = rope_of(text)
    return str(rope.get("rope_type", rope.get("type", "default")))
