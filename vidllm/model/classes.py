"""model_type -> what it is made of: transformers' network, and who reads it here. Imported when one is loaded."""

from __future__ import annotations

import importlib
from typing import Any

_CLASSES = {
    "llava": ("llava.LlavaForConditionalGeneration", "lmm.ComposableLMM"),
    "vipllava": ("vipllava.VipLlavaForConditionalGeneration", "lmm.ComposableLMM"),
    "llava_next": ("llava_next.LlavaNextForConditionalGeneration", "lmm.ComposableLMM"),
    "llava_next_video": ("llava_next_video.LlavaNextVideoForConditionalGeneration", "lmm.ComposableLMM"),
    "llava_onevision": ("llava_onevision.LlavaOnevisionForConditionalGeneration", "lmm.ComposableLMM"),
    "internvl": ("internvl.InternVLForConditionalGeneration", "lmm.ComposableLMM"),
    "aya_vision": ("aya_vision.AyaVisionForConditionalGeneration", "lmm.ComposableLMM"),
    "cohere2_vision": ("cohere2_vision.Cohere2VisionForConditionalGeneration", "lmm.ComposableLMM"),
    "gemma3": ("gemma3.Gemma3ForConditionalGeneration", "gemma.Gemma3"),
    "gemma4": ("gemma4.Gemma4ForConditionalGeneration", "gemma4.Gemma4"),
    "gemma4_unified": ("gemma4_unified.Gemma4UnifiedForConditionalGeneration", "gemma4.Gemma4Unified"),
    "qwen2_vl": ("qwen2_vl.Qwen2VLForConditionalGeneration", "qwen.QwenVL"),
    "qwen2_5_vl": ("qwen2_5_vl.Qwen2_5_VLForConditionalGeneration", "qwen.QwenVL"),
    "qwen3_vl": ("qwen3_vl.Qwen3VLForConditionalGeneration", "qwen.QwenVL"),
    "qwen3_vl_moe": ("qwen3_vl_moe.Qwen3VLMoeForConditionalGeneration", "qwen.QwenVL"),
    "qwen3_5": ("qwen3_5.Qwen3_5ForConditionalGeneration", "qwen.QwenVL"),
    "qwen3_5_moe": ("qwen3_5_moe.Qwen3_5MoeForConditionalGeneration", "qwen.QwenVL"),
    "glm4v": ("glm4v.Glm4vForConditionalGeneration", "glm.GlmV"),
    "glm4v_moe": ("glm4v_moe.Glm4vMoeForConditionalGeneration", "glm.GlmV"),
    "glm46v": ("glm46v.Glm46VForConditionalGeneration", "glm.GlmV"),
    "pixtral": ("llava.LlavaForConditionalGeneration", "pixtral.Pixtral"),
    "mistral3": ("mistral3.Mistral3ForConditionalGeneration", "pixtral.Pixtral"),
    "video_llama_3": ("video_llama_3.VideoLlama3ForConditionalGeneration", "video_llama.VideoLlama3"),
    "lfm2_vl": ("lfm2_vl.Lfm2VlForConditionalGeneration", "lfm.Lfm2VL"),
    "molmo2": ("molmo2.Molmo2ForConditionalGeneration", "molmo.Molmo2"),
    "smolvlm": ("smolvlm.SmolVLMForConditionalGeneration", "smolvlm.SmolVLM"),
    "idefics3": ("idefics3.Idefics3ForConditionalGeneration", "smolvlm.SmolVLM"),
}


def is_listed(model_type: str) -> bool:
    """Whether there is an adapter for this family."""
    return model_type in _CLASSES


def network_class(model_type: str) -> Any:
    """transformers' own, from the module of its family: importing that alone saves seconds over the Auto classes."""
    if not is_listed(model_type):
        return importlib.import_module("transformers").AutoModelForImageTextToText
    module, _, name = _CLASSES[model_type][0].partition(".")
    return getattr(importlib.import_module(f"transformers.models.{module}.modeling_{module}"), name)


def reader_class(model_type: str) -> Any:
    """A `ComposableLMM` or a `NativeLMM`."""
    module, _, name = _CLASSES.get(model_type, ("", "unlisted.Unlisted"))[1].partition(".")
    return getattr(importlib.import_module(f"vidllm.model.{module}"), name)
