"""Tiny random checkpoints of families that vidllm has no adapter for, complete as those of `tiny_models` are.

    python -m tests.tiny_unlisted OUT            one folder per family under OUT

What they prove is that a family runs by what its own processor and its own `get_image_features` say of it. So their
ways of writing a picture differ as much as those of the real ones do; their towers and pictures are small and square.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import SMOL, VISION, _save, _text, make_tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ 'PICTURE' }}{% elif part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""As many print it, each with a text of its own for a picture."""


DEEPSEEK = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image_placeholder>' }}{% elif part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}{% endif %}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""As DeepSeek-VL and Janus print it."""


def _tokenizer(
    template: str, *special: str, bos: str | None = None, eos: str = "<|im_end|>", **named: str
) -> PreTrainedTokenizerFast:
    """One that knows these special tokens, and those with a name also as its own attributes (`image_token`)."""
    made = make_tokenizer([*special, *named.values()], bos=bos, eos=eos, pad="<pad>", template=template)
    return PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer, bos_token=bos, eos_token=eos, pad_token="<pad>",
        extra_special_tokens=named, chat_template=template,
    )  # fmt: skip


def _chatml(picture: str, *special: str, **named: str) -> PreTrainedTokenizerFast:
    return _tokenizer(CHATML.replace("PICTURE", picture), "<|im_start|>", *special, **named)


def _deepseek(*special: str, **named: str) -> PreTrainedTokenizerFast:
    begin, end = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    return _tokenizer(DEEPSEEK, *special, bos=begin, eos=end, **named)


def _processor(
    folder: Path, processor: type[Any], images: Any, tokenizer: PreTrainedTokenizerFast, **more: object
) -> None:
    processor(images, tokenizer, chat_template=tokenizer.chat_template, **more).save_pretrained(folder)


def _id(tokenizer: PreTrainedTokenizerFast, word: str) -> Any:
    return tokenizer.convert_tokens_to_ids(word)


def ovis2(folder: Path) -> Path:
    """Ovis2: a picture is a mixture of a visual vocabulary's words, five more of which stand around it."""
    marks = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    tokenizer = _chatml("<image>\\n", "<image>", "<IMG_ATOM>", *marks)
    config = transformers.Ovis2Config(
        text_config=_text(transformers.Qwen2Config, tokenizer, num_key_value_heads=2), hidden_size=32,
        vision_config={**VISION, "image_size": 56, "patch_size": 7, "vocab_size": 64, "hidden_stride": 2},
        vocab_size=len(tokenizer), image_token_id=_id(tokenizer, "<IMG_ATOM>"),
        visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(list(marks)),
    )  # fmt: skip
    images = transformers.Ovis2ImageProcessorPil(size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=9)
    _processor(folder, transformers.Ovis2Processor, images, tokenizer, image_seq_length=16)
    return _save(folder, transformers.Ovis2ForConditionalGeneration(config), tokenizer)


def aria(folder: Path) -> Path:
    """Aria: a few learned queries look at a picture of 980 px, padded to a square; experts."""
    tokenizer = _chatml("<fim_prefix><|img|><fim_suffix>", "<fim_prefix>", "<fim_suffix>", image_token="<|img|>")
    experts = {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}
    config = transformers.AriaConfig(
        text_config=_text(transformers.AriaTextConfig, tokenizer, num_key_value_heads=2, **experts),
        vision_config=transformers.Idefics3VisionConfig(**VISION, image_size=980, patch_size=70),
        projector_patch_to_query_dict={49: 8, 196: 16}, image_token_index=_id(tokenizer, "<|img|>"),
    )  # fmt: skip
    images = transformers.AriaImageProcessorPil()
    _processor(folder, transformers.AriaProcessor, images, tokenizer, size_conversion={490: 8, 980: 16})
    return _save(folder, transformers.AriaForConditionalGeneration(config), tokenizer)


def idefics2(folder: Path) -> Path:
    """Idefics2: pictures of any size behind a perceiver; between two pictures stands one mark, not two."""
    template = SMOL.replace("{{ '<|im_start|>' }}", "")
    tokenizer = _tokenizer(template, "<fake_token_around_image>", "<image>", bos="<s>", eos="<end_of_utterance>")
    config = transformers.Idefics2Config(
        text_config=_text(transformers.MistralConfig, tokenizer, num_key_value_heads=2, sliding_window=None),
        vision_config={**VISION, "image_size": 112, "patch_size": 14}, image_token_id=_id(tokenizer, "<image>"),
        perceiver_config={
            "hidden_size": 32, "resampler_n_latents": 8, "resampler_depth": 1, "resampler_n_heads": 4,
            "resampler_head_dim": 8, "num_key_value_heads": 2,
        },
    )  # fmt: skip
    images = transformers.Idefics2ImageProcessorPil(size={"shortest_edge": 42, "longest_edge": 112})
    _processor(folder, transformers.Idefics2Processor, images, tokenizer, image_seq_len=8)
    return _save(folder, transformers.Idefics2ForConditionalGeneration(config), tokenizer)


def deepseek_vl(folder: Path) -> Path:
    """DeepSeek-VL: SigLIP and nothing around a picture's tokens."""
    tokenizer = _deepseek("<image_placeholder>", image_token="<image_placeholder>")
    vision = transformers.SiglipVisionConfig(**VISION, image_size=56, patch_size=14, vision_use_head=False)
    config = transformers.DeepseekVLConfig(
        text_config=_text(transformers.LlamaConfig, tokenizer), vision_config=vision,
        image_token_id=_id(tokenizer, "<image_placeholder>"),
    )  # fmt: skip
    images = transformers.DeepseekVLImageProcessorPil(size={"height": 56, "width": 56})
    _processor(folder, transformers.DeepseekVLProcessor, images, tokenizer, num_image_tokens=16)
    return _save(folder, transformers.DeepseekVLForConditionalGeneration(config), tokenizer)


def janus(folder: Path) -> Path:
    """Janus: it can also draw, with a codebook that reading leaves alone."""
    words = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = _deepseek("<image_placeholder>", **words)
    seen = {"hidden_size": 32, "mlp_ratio": 2, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56,
            "patch_size": 14, "projection_dim": 32, "num_image_tokens": 16}  # fmt: skip
    drawn = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "latent_channels": 32,
             "num_embeddings": 16, "projection_dim": 32, "image_token_embed_dim": 32}  # fmt: skip
    config = transformers.JanusConfig(
        text_config=_text(transformers.LlamaConfig, tokenizer), vision_config=seen, vq_config=drawn,
        image_token_id=_id(tokenizer, "<image_placeholder>"),
    )  # fmt: skip
    images = transformers.JanusImageProcessorPil(size={"height": 56, "width": 56})
    _processor(folder, transformers.JanusProcessor, images, tokenizer, num_image_tokens=16)
    return _save(folder, transformers.JanusForConditionalGeneration(config), tokenizer)


def qianfan_ocr(folder: Path) -> Path:
    """Qianfan-OCR: InternVL's way of seeing; what the template writes for a picture is no token of a picture."""
    words = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer = _chatml("<image>\\n", "<image>", **words)
    config = transformers.QianfanOCRConfig(
        text_config=_text(transformers.Qwen3Config, tokenizer, num_key_value_heads=2, head_dim=8),
        vision_config={**VISION, "image_size": 112, "patch_size": 14},
        image_token_id=_id(tokenizer, "<IMG_CONTEXT>"), image_seq_length=16,
    )  # fmt: skip
    images = transformers.GotOcr2ImageProcessorPil(size={"height": 112, "width": 112}, max_patches=6)
    _processor(folder, transformers.QianfanOCRProcessor, images, tokenizer, image_seq_length=16)
    return _save(folder, transformers.QianfanOCRForConditionalGeneration(config), tokenizer)


def lighton_ocr(folder: Path) -> Path:
    """LightOnOCR: Pixtral's tower with patches merged 2x2, and none of its marks between rows."""
    words = {"image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>", "image_end_token": "<|vision_end|>"}
    tokenizer = _chatml("<|image_pad|>", **words)
    config = transformers.LightOnOcrConfig(
        text_config=_text(transformers.Qwen3Config, tokenizer, num_key_value_heads=2, head_dim=8),
        vision_config=transformers.PixtralVisionConfig(**VISION, image_size=112, patch_size=14),
        image_token_id=_id(tokenizer, "<|image_pad|>"),
    )  # fmt: skip
    images = transformers.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size=28)
    _processor(folder, transformers.LightOnOcrProcessor, images, tokenizer, patch_size=14)
    return _save(folder, transformers.LightOnOcrForConditionalGeneration(config), tokenizer)


UNLISTED: dict[str, Callable[[Path], Path]] = {build.__name__: build for build in (
        ovis2, aria, idefics2, deepseek_vl, janus, qianfan_ocr, lighton_ocr,
    )}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.tiny_unlisted OUT")
    for family, build in UNLISTED.items():
        made = Path(sys.argv[1]) / family
        made.mkdir(parents=True, exist_ok=True)
        print(f"{family}: {build(made)}")
