"""Tiny random checkpoints of families without an adapter that count positions on several axes, beside those of
`tiny_unlisted`; their processors want torchvision, too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import EXPERTS, GLM, GLM_SPECIAL, QWEN_SPECIAL, VISION, _qwen_text
from tests.tiny_unlisted import _chatml, _id, _saved, _tokenizer, _with_videos

SIZE = {"shortest_edge": 56**2, "longest_edge": 112**2}
DEPTH = {"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32}


def _qwen_words(*special: str, **named: str) -> PreTrainedTokenizerFast:
    words = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    return _chatml("<|vision_start|><|image_pad|><|vision_end|>", *QWEN_SPECIAL[:3], *special, **words, **named)


def _ids(tokenizer: PreTrainedTokenizerFast, **words: str) -> dict[str, int]:
    return {f"{name}_id": _id(tokenizer, word) for name, word in words.items()}


def _qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return _ids(tokenizer, image_token="<|image_pad|>", video_token="<|video_pad|>",
                vision_start_token="<|vision_start|>", vision_end_token="<|vision_end|>")  # fmt: skip


HEARD = {"num_mel_bins": 16, "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
         "output_dim": 32, "n_window": 50}  # fmt: skip


def _omni(folder: Path, named: str, network: str, *, patch: int, vision: dict[str, Any], **more: Any) -> Path:
    """The part of an Omni model that thinks: it can hear, too."""
    sounds = {"audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>", "audio_token": "<|AUDIO|>",
              "vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}  # fmt: skip
    tokenizer = _qwen_words(**sounds)
    ids = _qwen_ids(tokenizer)
    more |= _ids(tokenizer, audio_token="<|AUDIO|>", audio_start_token="<|audio_start|>")
    config = getattr(transformers, f"{network}ThinkerConfig")(
        vision_config={**DEPTH, "patch_size": patch, **vision}, audio_config=HEARD, **ids, **more,
        text_config=_qwen_text(tokenizer, **({"head_dim": 8, **EXPERTS} if "Moe" in network else {})),
    )  # fmt: skip
    size = {"size": SIZE, "patch_size": patch}
    _with_videos(
        folder, named, tokenizer, transformers.Qwen2VLImageProcessor(**size),
        transformers.Qwen2VLVideoProcessor(**size),
        feature_extractor=transformers.WhisperFeatureExtractor(feature_size=16),
    )  # fmt: skip
    return _saved(folder, getattr(transformers, f"{network}ThinkerForConditionalGeneration"), config, tokenizer)


def qwen2_5_omni_thinker(folder: Path) -> Path:
    """The thinker of Qwen2.5-Omni: Qwen2.5-VL that hears."""
    vision = {"window_size": 56, "fullatt_block_indexes": [1]}
    return _omni(folder, "Qwen2_5OmniProcessor", "Qwen2_5Omni", patch=14, vision=vision)


def qwen3_omni_moe_thinker(folder: Path) -> Path:
    """The thinker of Qwen3-Omni: Qwen3-VL with experts that hears; what is seen is added to first layers, too."""
    vision = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    return _omni(folder, "Qwen3OmniMoeProcessor", "Qwen3OmniMoe", patch=16, vision=vision)


def cosmos3_omni(folder: Path) -> Path:
    """Cosmos 3: what it reasons with is Qwen3-VL."""
    tokenizer = _qwen_words()
    vision = {**DEPTH, "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    config = transformers.Cosmos3OmniConfig(
        text_config=_qwen_text(tokenizer, head_dim=8), vision_config=vision, **_qwen_ids(tokenizer)
    )
    size = {"size": SIZE, "patch_size": 16}
    parts = transformers.Qwen2VLImageProcessor(**size), transformers.Qwen3VLVideoProcessor(**size)
    _with_videos(folder, "Qwen3VLProcessor", tokenizer, *parts)
    return _saved(folder, transformers.Cosmos3OmniForConditionalGeneration, config, tokenizer)


def cosmos3_edge(folder: Path) -> Path:
    """Cosmos 3 Edge: SigLIP 2's tower, one projector, squared ReLUs."""
    tokenizer = _qwen_words()
    text = _qwen_text(tokenizer, head_dim=8)
    config = transformers.Cosmos3EdgeConfig(
        text_config=text, vision_config={**VISION, "patch_size": 16, "num_patches": 16}, projector_hidden_size=32,
        **_qwen_ids(tokenizer),
    )  # fmt: skip
    size = {"size": SIZE, "patch_size": 16}
    parts = transformers.Cosmos3EdgeImageProcessor(**size), transformers.Cosmos3EdgeVideoProcessor(**size)
    _with_videos(folder, "Cosmos3EdgeProcessor", tokenizer, *parts)
    return _saved(folder, transformers.Cosmos3EdgeForConditionalGeneration, config, tokenizer)


def cohere_compass(folder: Path) -> Path:
    """Cohere Compass: Qwen3-VL's way of seeing before layers with windows, whose positions turn by kind of layer."""
    words = {"image_token": "<|IMAGE_PAD|>", "video_token": "<|VIDEO_PAD|>", "vision_start_token": "<|VISION_START|>",
             "vision_end_token": "<|VISION_END|>"}  # fmt: skip
    tokenizer = _chatml("<|VISION_START|><|IMAGE_PAD|><|VISION_END|>", **words)
    kinds = ["sliding_attention", "full_attention"]
    text = _qwen_text(tokenizer, head_dim=8, layer_types=kinds, sliding_window=24, logit_scale=0.25)
    text["rope_parameters"] = dict.fromkeys(kinds, text["rope_parameters"])
    vision = {**DEPTH, "patch_size": 16, "num_position_embeddings": 64}
    config = transformers.CohereCompassConfig(text_config=text, vision_config=vision, **_ids(tokenizer, **words))
    size = {"size": SIZE, "patch_size": 16}
    parts = transformers.CohereCompassImageProcessor(**size), transformers.CohereCompassVideoProcessor(**size)
    _with_videos(folder, "CohereCompassProcessor", tokenizer, *parts)
    return _saved(folder, transformers.CohereCompassForConditionalGeneration, config, tokenizer)


def _glm_like(folder: Path, network: Any, make: Any, parts: tuple[Any, Any], **more: Any) -> Path:
    words = {"image_token": "<|image|>", "video_token": "<|video|>"}
    tokenizer = _tokenizer(GLM, *GLM_SPECIAL[:-2], eos="<|endoftext|>", **words)
    names = ("image_start", "image_end", "video_start", "video_end", "image", "video")
    ids = _ids(tokenizer, **{f"{name}_token": word for name, word in zip(names, GLM_SPECIAL[-6:], strict=True)})
    text = _qwen_text(tokenizer, **more)
    text["rope_parameters"]["partial_rotary_factor"] = 0.5
    config = make(text_config=text, vision_config={**DEPTH, "patch_size": 14, "image_size": 112}, **ids)
    _with_videos(folder, "Glm46VProcessor", tokenizer, *parts)
    return _saved(folder, network, config, tokenizer)


def glm_ocr(folder: Path) -> Path:
    """GLM-OCR: GLM-4.1V's way of seeing."""
    parts = transformers.Glm46VImageProcessor(size=SIZE), transformers.Glm46VVideoProcessor(size=SIZE)
    network = transformers.GlmOcrForConditionalGeneration
    return _glm_like(folder, network, transformers.GlmOcrConfig, parts, num_attention_heads=2)


def glmga(folder: Path) -> Path:
    """GLM for agents: GLM-4.6V with image processors of its own."""
    parts = transformers.GlmgaImageProcessor(size=SIZE), transformers.GlmgaVideoProcessor(size=SIZE)
    network = transformers.Glm46VForConditionalGeneration
    return _glm_like(folder, network, transformers.GlmgaConfig, parts, num_attention_heads=2)


AXES: dict[str, Callable[[Path], Path]] = {
    build.__name__: build
    for build in (
        qwen2_5_omni_thinker, qwen3_omni_moe_thinker, cosmos3_omni, cosmos3_edge, cohere_compass, glm_ocr, glmga,
    )
}
