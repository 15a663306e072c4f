"""Tiny random checkpoints of families that vidllm has no adapter for, complete as those of `tiny_models` are.

    python -m tests.tiny_unlisted OUT            one folder per family under OUT

What they prove is that a family runs by what its own processor and its own `get_image_features` say of it. So their
ways of writing a picture differ as much as those of the real ones do; their towers and pictures are small and square.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import (
    CLIP_MEAN,
    CLIP_STD,
    GEMMA,
    MISTRAL_3,
    SMOL,
    TEXT,
    VICUNA,
    VISION,
    _qwen_processor,
    _save,
    _siglip_vision,
    _text,
    make_tokenizer,
)

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
"""In the manner of DeepSeek-VL and Janus: every part of a turn on a line of its own."""

PLAIN = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ eos_token if message['role'] == 'assistant' }}{% endfor %}"
)
"""Of the ones that were taught no turns."""

GRANITE = (
    "{% for message in messages %}{{ '<|start_of_role|>' + message['role'] + '<|end_of_role|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% elif part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}{{ '<|end_of_text|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)
"""In the manner of Granite 4 Vision."""

PADDLE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '\\n' }}{% elif message['role'] == 'assistant' %}{{ 'Assistant:\\n' }}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ eos_token }}"
    "{% elif message['role'] == 'system' %}{% for part in message['content'] %}{{ part['text'] + '\\n' }}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)
"""As PaddleOCR-VL prints it: the pictures of a turn stand before its texts, whatever their order was."""

HUNYUAN = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ message['content'] + '<｜hy_place▁holder▁no▁3｜>' }}{% else %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}"
    "{{ '<｜hy_place▁holder▁no▁100｜><｜hy_place▁holder▁no▁102｜><｜hy_place▁holder▁no▁101｜>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<｜hy_User｜>' if message['role'] == 'user' else eos_token }}{% endif %}{% endfor %}"
)
"""As HunyuanOCR prints it: a turn ends with the name of who said it."""

LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|image|>' }}{% elif part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
"""As Llama 3.2 Vision prints it."""

ERNIE = (
    "{{ bos_token }}{% set seen = namespace(pictures=0) %}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' }}{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' }}"
    "{% endif %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{% set seen.pictures = seen.pictures + 1 %}"
    "{{ 'Picture ' ~ seen.pictures ~ ':<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
"""In the manner of ERNIE 4.5 VL: the pictures of a conversation are numbered."""

KIMI = (
    "{% for message in messages %}{{ '<|im_' + message['role'] + '|>' + message['role'] + '<|im_middle|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|media_begin|>image<|media_content|><|media_pad|><|media_end|>\\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_assistant|>assistant<|im_middle|>' }}{% endif %}"
)
"""In the manner of Kimi K2: every role has a token of its own."""


def _tokenizer(
    template: str, *special: str, bos: str | None = None, eos: str = "<|im_end|>", **named: str
) -> PreTrainedTokenizerFast:
    return make_tokenizer(special, bos=bos, eos=eos, pad="<pad>", template=template, **named)


def _chatml(picture: str, *special: str, **named: str) -> PreTrainedTokenizerFast:
    return _tokenizer(CHATML.replace("PICTURE", picture), "<|im_start|>", *special, **named)


def _deepseek(*special: str, **named: str) -> PreTrainedTokenizerFast:
    begin, end = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    return _tokenizer(DEEPSEEK, *special, bos=begin, eos=end, **named)


def _processor(
    folder: Path, processor: type[Any], images: Any, tokenizer: PreTrainedTokenizerFast, **more: object
) -> None:
    processor(images, tokenizer, chat_template=tokenizer.chat_template, **more).save_pretrained(folder)


def _saved(folder: Path, network: type[Any], config: Any, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The same weights at every run: to some of those that a class draws, noise is only added."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return _save(folder, network(config), tokenizer)


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
    return _saved(folder, transformers.Ovis2ForConditionalGeneration, config, tokenizer)


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
    return _saved(folder, transformers.AriaForConditionalGeneration, config, tokenizer)


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
    return _saved(folder, transformers.Idefics2ForConditionalGeneration, config, tokenizer)


def deepseek_vl(folder: Path) -> Path:
    """DeepSeek-VL: SigLIP and nothing around a picture's tokens."""
    tokenizer = _deepseek("<image_placeholder>", image_token="<image_placeholder>")
    config = transformers.DeepseekVLConfig(
        text_config=_text(transformers.LlamaConfig, tokenizer), vision_config=_siglip_vision(56),
        image_token_id=_id(tokenizer, "<image_placeholder>"),
    )  # fmt: skip
    images = transformers.DeepseekVLImageProcessorPil(size={"height": 56, "width": 56})
    _processor(folder, transformers.DeepseekVLProcessor, images, tokenizer, num_image_tokens=16)
    return _saved(folder, transformers.DeepseekVLForConditionalGeneration, config, tokenizer)


def deepseek_vl_hybrid(folder: Path) -> Path:
    """DeepSeek-VL 7B: the tower of SAM looks at a larger copy of every picture."""
    tokenizer = _deepseek("<image_placeholder>", image_token="<image_placeholder>")
    larger = transformers.SamVisionConfig(
        hidden_size=32, mlp_dim=64, num_hidden_layers=2, num_attention_heads=4, output_channels=8, image_size=112,
        patch_size=14, window_size=3, global_attn_indexes=[1],
    )  # fmt: skip
    config = transformers.DeepseekVLHybridConfig(
        text_config=_text(transformers.LlamaConfig, tokenizer), high_res_vision_config=larger,
        vision_config=_siglip_vision(56),
        image_token_id=_id(tokenizer, "<image_placeholder>"),
    )  # fmt: skip
    sizes = {"size": {"height": 56, "width": 56}, "high_res_size": {"height": 112, "width": 112}}
    images = transformers.DeepseekVLHybridImageProcessorPil(**sizes)
    _processor(folder, transformers.DeepseekVLHybridProcessor, images, tokenizer, num_image_tokens=16)
    return _saved(folder, transformers.DeepseekVLHybridForConditionalGeneration, config, tokenizer)


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
    return _saved(folder, transformers.JanusForConditionalGeneration, config, tokenizer)


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
    return _saved(folder, transformers.QianfanOCRForConditionalGeneration, config, tokenizer)


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
    return _saved(folder, transformers.LightOnOcrForConditionalGeneration, config, tokenizer)


def paligemma(folder: Path) -> Path:
    """PaliGemma: its whole prompt is read both ways, and begins behind its last picture."""
    tokenizer = _tokenizer(PLAIN, bos="<bos>", eos="<eos>", image_token="<image>")
    images = transformers.SiglipImageProcessorPil(size={"height": 56, "width": 56}, image_seq_length=16)
    _processor(folder, transformers.PaliGemmaProcessor, images, tokenizer)  # which adds words to the tokenizer
    config = transformers.PaliGemmaConfig(
        text_config=_text(transformers.GemmaConfig, tokenizer, num_key_value_heads=2, head_dim=8),
        vision_config=_siglip_vision(56), projection_dim=32, hidden_size=32, vocab_size=len(tokenizer),
        image_token_index=_id(tokenizer, "<image>"),
    )  # fmt: skip
    return _saved(folder, transformers.PaliGemmaForConditionalGeneration, config, tokenizer)


def granite4_vision(folder: Path) -> Path:
    """Granite 4 Vision: LLaVA-NeXT's tiles; what is seen is added to the layers of the language model, one by one."""
    roles = ("<|start_of_role|>", "<|end_of_role|>")
    tokenizer = _tokenizer(GRANITE, *roles, eos="<|end_of_text|>", image_token="<image>")
    pinpoints = [[56, 112], [112, 56], [112, 112]]
    text = _text(transformers.Granite4VisionTextConfig, tokenizer, num_hidden_layers=6, num_key_value_heads=2,
                 attention_multiplier=0.125)  # fmt: skip
    wide = {**VISION, "hidden_size": 64}
    config = transformers.Granite4VisionConfig(
        text_config=text, image_grid_pinpoints=pinpoints, image_token_index=_id(tokenizer, "<image>"),
        vision_config=transformers.SiglipVisionConfig(**wide, image_size=56, patch_size=14, vision_use_head=False),
        vision_feature_select_strategy="full", downsample_rate="1/2", deepstack_layer_map=[[1, 0], [2, 1]],
        spatial_vision_layer=-1, spatial_target_layers=[2, 3, 4, 5],
        qformer_config={"model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 64,
                        "cross_attention_frequency": 1, "vocab_size": 1},
    )  # fmt: skip
    side = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    images = transformers.LlavaNextImageProcessorPil(**side, image_grid_pinpoints=pinpoints)
    how = {"patch_size": 14, "vision_feature_select_strategy": "full", "downsample_rate": "1/2"}
    _processor(folder, transformers.Granite4VisionProcessor, images, tokenizer, **how)
    return _saved(folder, transformers.Granite4VisionForConditionalGeneration, config, tokenizer)


def paddleocr_vl(folder: Path) -> Path:
    """PaddleOCR-VL: pictures of any size stand before all texts; positions of three axes, told by kinds of tokens."""
    marks = ("<|IMAGE_START|>", "<|IMAGE_END|>", "<|video_pad|>")
    named = {"image_token": "<|IMAGE_PLACEHOLDER|>"}
    tokenizer = _tokenizer(PADDLE, *marks, bos="<|begin_of_sentence|>", eos="</s>", **named)
    start, end, video = tokenizer.convert_tokens_to_ids(list(marks))
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 5e5}
    config = transformers.PaddleOCRVLConfig(
        text_config=_text(transformers.PaddleOCRTextConfig, tokenizer, num_key_value_heads=2, head_dim=8,
                          rope_parameters=rope).to_dict(),
        vision_config={**VISION, "image_size": 56, "patch_size": 14}, vision_start_token_id=start,
        vision_end_token_id=end, video_token_id=video, image_token_id=_id(tokenizer, named["image_token"]),
    )  # fmt: skip
    images = transformers.PaddleOCRVLImageProcessorPil(size={"shortest_edge": 56**2, "longest_edge": 112**2})
    _processor(folder, transformers.PaddleOCRVLProcessor, images, tokenizer)
    return _saved(folder, transformers.PaddleOCRVLForConditionalGeneration, config, tokenizer)


def hunyuan_vl(folder: Path) -> Path:
    """HunyuanOCR: its projector writes the begin, the end and the line ends of a picture; positions of four axes."""
    word = "<｜hy_place▁holder▁no▁{}｜>".format
    named = {"image_start_token": word(100), "image_end_token": word(101), "image_token": word(102)}
    ends = {"eos": "<｜hy_Assistant｜>", "bos": "<｜hy_begin▁of▁sentence｜>"}
    tokenizer = _tokenizer(HUNYUAN, word(3), word(103), "<｜hy_User｜>", **ends, **named)
    rope = {"rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0, "mrope_section": [1, 1, 1, 1], "rope_theta": 1e4}
    config = transformers.HunYuanVLConfig(
        text_config=_text(transformers.HunYuanVLTextConfig, tokenizer, num_key_value_heads=2, head_dim=8,
                          rope_parameters=rope).to_dict(),
        vision_config={**VISION, "out_hidden_size": 32, "patch_size": 14, "max_image_size": 112},
        image_token_id=_id(tokenizer, word(102)), im_start_id=_id(tokenizer, word(100)),
        im_end_id=_id(tokenizer, word(101)), im_newline_id=_id(tokenizer, word(103)),
    )  # fmt: skip
    area = {"shortest_edge": 56**2, "longest_edge": 112**2}
    images = transformers.HunYuanVLImageProcessorPil(size=area, patch_size=14)
    _processor(folder, transformers.HunYuanVLProcessor, images, tokenizer)
    return _saved(folder, transformers.HunYuanVLForConditionalGeneration, config, tokenizer)


def chameleon(folder: Path) -> Path:
    """Chameleon: a picture is read as 16 words of a codebook that the language model knows by its own words."""
    words = [f"IMGIMG{code}Z" for code in "ABCDEFGHIJ"]
    tokenizer = _tokenizer(
        PLAIN, *words, bos="<s>", eos="</s>", image_token="<image>", boi_token="<racm3:break>", eoi_token="<eoss>",
        sep_token="<reserved08706>",
    )  # fmt: skip
    vocabulary = {word: _id(tokenizer, word) for word in ("<image>", *words)}
    codes = {"resolution": 32, "base_channels": 32, "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1,
             "embed_dim": 8, "latent_channels": 8, "num_embeddings": len(words)}  # fmt: skip
    config = _text(transformers.ChameleonConfig, tokenizer, num_key_value_heads=4, vq_config=codes,
                   vocabulary_map=vocabulary)  # fmt: skip
    images = transformers.ChameleonImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    transformers.ChameleonProcessor(images, tokenizer, image_seq_length=16).save_pretrained(folder)
    return _saved(folder, transformers.ChameleonForConditionalGeneration, config, tokenizer)


def mllama(folder: Path) -> Path:
    """Llama 3.2 Vision: a picture is one token; what is in it is asked for by layers of their own."""
    marks = ("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", "<|image|>")
    tokenizer = _tokenizer(LLAMA_3, *marks, bos="<|begin_of_text|>", eos="<|eot_id|>")
    text = _text(transformers.MllamaTextConfig, tokenizer, num_hidden_layers=3, num_key_value_heads=2,
                 cross_attention_layers=[1])  # fmt: skip
    text.vocab_size = _id(tokenizer, "<|image|>")  # its last word, and one that it can not say
    seen = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "attention_heads": 4,
            "num_global_layers": 1, "intermediate_layers_indices": [0, 1], "vision_output_dim": 96, "image_size": 56,
            "patch_size": 14}  # fmt: skip
    config = transformers.MllamaConfig(
        text_config=text.to_dict(), vision_config=seen, image_token_index=_id(tokenizer, "<|image|>")
    )
    images = transformers.MllamaImageProcessorPil(size={"height": 56, "width": 56}, max_image_tiles=4)
    _processor(folder, transformers.MllamaProcessor, images, tokenizer)
    return _saved(folder, transformers.MllamaForConditionalGeneration, config, tokenizer)


def blip_2(folder: Path) -> Path:
    """BLIP-2: one picture stands before all words, whatever its prompt says of pictures."""
    tokenizer = _tokenizer(PLAIN.replace("<image>", ""), "<image>", bos="</s>", eos="</s>")
    config = transformers.Blip2Config(
        vision_config={**VISION, "image_size": 56, "patch_size": 14}, num_query_tokens=8,
        qformer_config={**VISION, "num_hidden_layers": 2, "vocab_size": len(tokenizer)},
        text_config=transformers.OPTConfig(
            vocab_size=len(tokenizer), hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
            word_embed_proj_dim=32, max_position_embeddings=512, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        ), image_token_index=_id(tokenizer, "<image>"),
    )  # fmt: skip
    images = transformers.BlipImageProcessorPil(size={"height": 56, "width": 56})
    transformers.Blip2Processor(images, tokenizer, num_query_tokens=8).save_pretrained(folder)
    return _saved(folder, transformers.Blip2ForConditionalGeneration, config, tokenizer)


def exaone4_5(folder: Path) -> Path:
    """EXAONE 4.5: its processor is for videos as well, and that half of it is torchvision's."""
    words = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    tokenizer = _chatml("<vision><|image_pad|></vision>", "<vision>", "</vision>", **words)
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "num_key_value_heads": 2,
              "out_hidden_size": 32, "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
    config = transformers.Exaone4_5_Config(
        text_config=_text(transformers.Exaone4Config, tokenizer, num_key_value_heads=2, sliding_window=24,
                          sliding_window_pattern=2),
        vision_config=vision, **{f"{name}_id": _id(tokenizer, word) for name, word in words.items()},
    )  # fmt: skip
    _saved(folder, transformers.Exaone4_5_ForConditionalGeneration, config, tokenizer)
    _qwen_processor(folder, "Exaone4_5_Processor", "Qwen2VLVideoProcessor", 14, CLIP_MEAN, CLIP_STD,
                    {"size": {"shortest_edge": 56**2, "longest_edge": 112**2}})  # fmt: skip
    return folder


def _with_videos(
    folder: Path, named: str, tokenizer: PreTrainedTokenizerFast, images: Any, videos: Any, **more: object
) -> None:
    """The processor of this name, of which a half is for videos; only where there is torchvision has it a class."""
    processor = getattr(transformers, named)
    parts = {"image_processor": images, "video_processor": videos, "tokenizer": tokenizer}
    processor(**parts, chat_template=tokenizer.chat_template, **more).save_pretrained(folder)


def llama4(folder: Path) -> Path:
    """Llama 4: tiles of one size with a mark between two of them, and the whole picture behind its own name."""
    marks = ("<|header_start|>", "<|header_end|>", "<|image_start|>", "<|image_end|>", "<|image|>", "<|patch|>",
             "<|tile_x_separator|>", "<|tile_y_separator|>")  # fmt: skip
    template = LLAMA_3.replace("start_header_id", "header_start").replace("end_header_id", "header_end")
    tokenizer = _tokenizer(template.replace("eot_id", "eot"), *marks, bos="<|begin_of_text|>", eos="<|eot|>")
    seen = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32, "image_size": 56,
            "patch_size": 14}  # fmt: skip
    text = _text(transformers.Llama4TextConfig, tokenizer, num_key_value_heads=2, head_dim=8, intermediate_size_mlp=64,
                 num_local_experts=4, interleave_moe_layer_step=2, no_rope_layer_interval=2,
                 attention_chunk_size=64)  # fmt: skip
    config = transformers.Llama4Config(
        text_config=text, vision_config=seen, image_token_index=_id(tokenizer, "<|patch|>"),
        boi_token_index=_id(tokenizer, "<|image_start|>"), eoi_token_index=_id(tokenizer, "<|image_end|>"),
    )  # fmt: skip
    images = transformers.Llama4ImageProcessor(size={"height": 56, "width": 56}, max_patches=4)
    _processor(folder, transformers.Llama4Processor, images, tokenizer, patch_size=14)
    return _saved(folder, transformers.Llama4ForConditionalGeneration, config, tokenizer)


def minicpmv4_6(folder: Path) -> Path:
    """MiniCPM-V 4.6: slices that fit a picture's sides, each picture behind its number; sums of linear attention."""
    return _minicpm(folder, "MiniCPMV4_6")


def minicpmv4_7(folder: Path) -> Path:
    """MiniCPM-V 4.7: 4.6 that counts positions on three axes, slices and all."""
    return _minicpm(folder, "MiniCPMV4_7")


def _minicpm(folder: Path, named: str) -> Path:
    words = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    for name, mark in {"image": "image", "slice": "slice", "image_id": "image_id"}.items():
        words |= {f"{name}_start_token": f"<{mark}>", f"{name}_end_token": f"</{mark}>"}
    tokenizer = _chatml("<|image_pad|>\\n", **words)
    sums = {"linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 64,
            "linear_value_head_dim": 32}  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e6, "partial_rotary_factor": 0.25}
    text = _text(transformers.Qwen3_5TextConfig, tokenizer, num_key_value_heads=2, head_dim=32, rope_parameters=rope,
                 layer_types=["linear_attention", "full_attention"], **sums)  # fmt: skip
    vision = {**VISION, "image_size": 112, "patch_size": 14, "insert_layer_id": 1}
    ids = {f"{name}_id": _id(tokenizer, words[name]) for name in ("image_token", "video_token")}
    for name in ("image", "slice"):
        ids |= {f"{name}_{end}_id": _id(tokenizer, words[f"{name}_{end}_token"]) for end in ("start", "end")}
    config = getattr(transformers, f"{named}Config")(
        text_config=text, vision_config=vision, insert_layer_id=1, image_size=112, **ids
    )
    sides = {"scale_resolution": 112, "max_slice_nums": 4}
    images = transformers.MiniCPMV4_6ImageProcessor(**sides)
    videos = transformers.MiniCPMV4_6VideoProcessor(**sides)
    _with_videos(folder, f"{named}Processor", tokenizer, images, videos)
    return _saved(folder, getattr(transformers, f"{named}ForConditionalGeneration"), config, tokenizer)


def hyperclovax_vision_v2(folder: Path) -> Path:
    """HyperCLOVA X Vision 2: Qwen2.5-VL's tower before a language model that knows one axis."""
    words = {"image_token": "<|IMAGE_PAD|>", "video_token": "<|VIDEO_PAD|>"}
    marks = ("<|image_start|>", "<|image_end|>", "<|endoftext|>")
    tokenizer = _chatml("<|image_start|><|IMAGE_PAD|><|image_end|>", *marks, **words)
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32,
              "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}  # fmt: skip
    config = transformers.HyperCLOVAXVisionV2Config(
        text_config=_text(transformers.HyperCLOVAXConfig, tokenizer, num_key_value_heads=2),
        vision_config=transformers.models.qwen2_5_vl.configuration_qwen2_5_vl.Qwen2_5_VLVisionConfig(**vision),
        **{f"{name}_id": _id(tokenizer, word) for name, word in words.items()},
    )  # fmt: skip
    size = {"size": {"shortest_edge": 56**2, "longest_edge": 112**2}}
    parts = transformers.Qwen2VLImageProcessor(**size), transformers.Qwen2VLVideoProcessor(**size)
    _with_videos(folder, "HyperCLOVAXVisionV2Processor", tokenizer, *parts)
    return _saved(folder, transformers.HyperCLOVAXVisionV2ForConditionalGeneration, config, tokenizer)


def ernie4_5_vl_moe(folder: Path) -> Path:
    """ERNIE 4.5 VL: every picture behind its number; experts of two kinds, for texts and for what is seen."""
    words = {"image_token": "<|IMAGE_PLACEHOLDER|>", "video_token": "<|VIDEO_PLACEHOLDER|>"}
    for name in ("IMAGE", "VIDEO"):
        words |= {f"{name.lower()}_{end}_token": f"<|{name}_{end.upper()}|>" for end in ("start", "end")}
    tokenizer = _tokenizer(ERNIE, bos="<|begin_of_sentence|>", eos="</s>", **words)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 5e5}
    text = _text(transformers.Ernie4_5_VLMoeTextConfig, tokenizer, num_hidden_layers=3, num_key_value_heads=2,
                 rope_parameters=rope, moe_num_experts=4, moe_k=2, moe_num_shared_experts=1,
                 moe_intermediate_size=[32, 16])  # fmt: skip
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 14}
    config = transformers.Ernie4_5_VLMoeConfig(
        text_config=text, vision_config=vision, **{f"{name}_id": _id(tokenizer, word) for name, word in words.items()}
    )
    size = {"shortest_edge": 56**2, "longest_edge": 112**2}
    images = transformers.Ernie4_5_VLMoeImageProcessor(size=size)
    videos = transformers.Ernie4_5_VLMoeVideoProcessor(size=size, draw_on_frames=False)
    _with_videos(folder, "Ernie4_5_VLMoeProcessor", tokenizer, images, videos)
    return _saved(folder, transformers.Ernie4_5_VLMoeForConditionalGeneration, config, tokenizer)


def lfm3_vl(folder: Path) -> Path:
    """LFM3-VL: convolutions in the tower as well as in the language model; frames in pairs."""
    names = ("image_token", "video_token", "vision_start_token", "vision_end_token")
    words = dict(zip(names, ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"), strict=True))
    tokenizer = _chatml("<|vision_start|><|image_pad|><|vision_end|>", **words)
    text = _text(transformers.Lfm3Config, tokenizer, num_hidden_layers=3, num_key_value_heads=2, head_dim=8,
                 layer_types=["conv", "full_attention", "sliding_attention"], sliding_window=24)  # fmt: skip
    vision = {**VISION, "num_key_value_heads": 2, "layer_types": ["conv", "conv", "full_attention"]}
    config = transformers.Lfm3VlConfig(
        text_config=text, vision_config=vision, projector_hidden_size=32,
        **{f"{name}_id": _id(tokenizer, word) for name, word in words.items()},
    )  # fmt: skip
    size = {"size": {"shortest_edge": 64**2, "longest_edge": 128**2}, "patch_size": 16}
    parts = transformers.Qwen2VLImageProcessor(**size), transformers.Qwen3VLVideoProcessor(**size)
    _with_videos(folder, "Lfm3VlProcessor", tokenizer, *parts)
    return _saved(folder, transformers.Lfm3VlForConditionalGeneration, config, tokenizer)


def kimi_k25(folder: Path) -> Path:
    """Kimi K2.5: latent attention and experts behind a tower for pictures and for frames of any size."""
    marks = ("<|media_begin|>", "<|media_content|>", "<|media_end|>")
    words = {"image_token": "<|media_pad|>", "video_token": "<|kimi_k25_video_placeholder|>"}
    tokenizer = _tokenizer(KIMI, "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>", *marks, **words)
    latent = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    text = _text(transformers.DeepseekV3Config, tokenizer, num_key_value_heads=4, moe_intermediate_size=16,
                 n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1,
                 **latent)  # fmt: skip
    vision = {**VISION, "pos_emb_height": 8, "pos_emb_width": 8}
    config = transformers.Kimi_K25Config(
        text_config=text, vision_config=vision, projection_hidden_size=32,
        vision_start_token_id=_id(tokenizer, marks[0]), vision_end_token_id=_id(tokenizer, marks[2]),
        **{f"{name}_id": _id(tokenizer, word) for name, word in words.items()},
    )  # fmt: skip
    size = {"size": {"max_height": 112, "max_width": 112}, "max_patches": 64}
    parts = transformers.Kimi_K25ImageProcessor(**size), transformers.Kimi_K25VideoProcessor(**size)
    _with_videos(folder, "Kimi_K25Processor", tokenizer, *parts)
    return _saved(folder, transformers.Kimi_K25ForConditionalGeneration, config, tokenizer)


def video_llava(folder: Path) -> Path:
    """Video-LLaVA: a tower for pictures and another one for frames."""
    words = {"image_token": "<image>", "video_token": "<video>"}
    tokenizer = _tokenizer(VICUNA, bos="<s>", eos="</s>", **words)
    config = transformers.VideoLlavaConfig(
        text_config=_text(transformers.LlamaConfig, tokenizer), image_seq_length=16, video_seq_length=17,
        vision_config=transformers.CLIPVisionConfig(**VISION, image_size=56, patch_size=14, projection_dim=32),
        image_token_index=_id(tokenizer, "<image>"), video_token_index=_id(tokenizer, "<video>"),
    )  # fmt: skip
    size = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    parts = transformers.VideoLlavaImageProcessor(**size), transformers.VideoLlavaVideoProcessor(**size)
    _with_videos(folder, "VideoLlavaProcessor", tokenizer, *parts)
    return _saved(folder, transformers.VideoLlavaForConditionalGeneration, config, tokenizer)


def step3p7(folder: Path) -> Path:
    """Step 3.7: of a large picture a few windows, one after another, and behind them the whole."""
    marks = ("<patch_start>", "<patch_end>", "<patch_newline>", "<im_start>", "<im_end>")
    tokenizer = _chatml("<im_patch>", "<im_patch>", *marks)
    text = _text(transformers.Step3p7TextConfig, tokenizer, num_hidden_layers=3, num_key_value_heads=2, head_dim=8,
                 layer_types=["full_attention", "sliding_attention", "full_attention"], sliding_window=24,
                 mlp_layer_types=["dense", "sparse", "sparse"], moe_intermediate_size=16, share_expert_dim=16,
                 n_routed_experts=4, num_experts_per_tok=2)  # fmt: skip
    config = transformers.Step3p7Config(
        text_config=text, vision_config={**VISION, "image_size": 112, "patch_size": 14},
        image_token_id=_id(tokenizer, "<im_patch>"),
    )  # fmt: skip
    images = transformers.Step3p7ImageProcessor(size={"height": 112, "width": 112}, patch_size=56, max_image_size=224)
    _processor(folder, transformers.Step3p7Processor, images, tokenizer)
    return _saved(folder, transformers.Step3p7ForConditionalGeneration, config, tokenizer)


def mistral_large4(folder: Path) -> Path:
    """Mistral Large 4: Pixtral's way of seeing before latent attention that picks the tokens it looks at."""
    marks = ("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
    tokenizer = _tokenizer(MISTRAL_3, *marks, bos="<s>", eos="</s>")
    latent = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    picks = {"index_topk": 512, "index_head_dim": 16, "index_n_heads": 2}
    text = _text(transformers.MistralLarge4TextConfig, tokenizer, num_key_value_heads=4, moe_intermediate_size=16,
                 n_routed_experts=4, num_experts_per_tok=2, **latent, **picks)  # fmt: skip
    config = transformers.MistralLarge4Config(
        text_config=text, vision_config=transformers.PixtralVisionConfig(**VISION, image_size=112, patch_size=14),
        image_token_index=_id(tokenizer, "[IMG]"),
    )  # fmt: skip
    images = transformers.PixtralImageProcessor(size={"longest_edge": 112}, patch_size=14)
    _processor(folder, transformers.PixtralProcessor, images, tokenizer, patch_size=14, spatial_merge_size=2)
    return _saved(folder, transformers.MistralLarge4ForConditionalGeneration, config, tokenizer)


def nemotron_h_omni(folder: Path) -> Path:
    """Nemotron Nano Omni: RADIO's tower, sums of Mamba beside attention; it could hear, too."""
    words = {"image_token": "<image>", "video_token": "<video>", "audio_token": "<so_embedding>",
             "image_start_token": "<img>", "image_end_token": "</img>"}  # fmt: skip
    tokenizer = _chatml("<image>\\n", "<so_start>", "<so_end>", **words)
    blocks = ["mamba", "full_attention", "mlp"]
    text = _text(transformers.NemotronHConfig, tokenizer, num_key_value_heads=2, head_dim=8, layers_block_type=blocks,
                 ssm_state_size=16, mamba_num_heads=8, mamba_head_dim=8, n_groups=2)  # fmt: skip
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2.0, "image_size": 64,
              "max_img_size": 128, "num_registers": 2, "video_temporal_patch_size": 2}  # fmt: skip
    ids = {f"{name}_id": _id(tokenizer, words[name]) for name in ("image_token", "video_token", "audio_token")}
    config = transformers.NemotronH_Omni_Reasoning_V3_Config(
        text_config=text, vision_config=transformers.RadioConfig(**vision), projector_hidden_size=32,
        vision_hidden_size=32, **ids,
    )  # fmt: skip
    images = transformers.NemotronH_Omni_Reasoning_V3ImageProcessor(min_num_patches=16, max_num_patches=64)
    videos = transformers.NemotronH_Omni_Reasoning_V3VideoProcessor(
        norm_mean=CLIP_MEAN, norm_std=CLIP_STD, video_target_num_patches=16
    )
    heard = transformers.ParakeetFeatureExtractor()
    named = "NemotronH_Omni_Reasoning_V3Processor"
    _with_videos(folder, named, tokenizer, images, videos, feature_extractor=heard)
    return _saved(folder, transformers.NemotronH_Omni_Reasoning_V3, config, tokenizer)


def muse_spark(folder: Path) -> Path:
    """Muse Spark: windows in the tower, gated residuals and experts; it can hear, too."""
    words = {"image_token": "<|patch|>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>",
             "video_token": "<|video|>", "video_sep_token": "<|vid_frame_separator|>",
             "video_start_token": "<|vid_start|>", "video_end_token": "<|vid_end|>", "audio_token": "<|audio|>",
             "audio_start_token": "<|soft_audio_start|>", "audio_end_token": "<|soft_audio_end|>"}  # fmt: skip
    template = LLAMA_3.replace("_header_id", "_header").replace("eot_id", "eot").replace("<|image|>", "<|patch|>")
    turns = ("<|start_header|>", "<|end_header|>")
    tokenizer = _tokenizer(template, *turns, bos="<|begin_of_text|>", eos="<|eot|>", **words)
    text = _text(transformers.MuseSparkTextConfig, tokenizer, num_key_value_heads=2, head_dim=8, sliding_window=24,
                 moe_intermediate_size=16, moe_hidden_size=32, num_local_experts=4, num_experts_per_tok=2,
                 output_multiplier=1.0)  # fmt: skip
    heard = {"patch_sizes": [4, 4], "hidden_sizes": [16, 32], "depths": [1, 1], "num_hidden_layers": 2,
             "out_hidden_size": 32}  # fmt: skip
    vision = {**VISION, "pos_emb_height": 4, "pos_emb_width": 4, "max_position_embeddings": 16}
    ids = {f"{name}_id": _id(tokenizer, words[name]) for name in ("image_token", "video_token", "audio_token")}
    config = transformers.MuseSparkConfig(
        text_config=text, vision_config=vision, audio_config=heard, out_hidden_size=128, projector_hidden_size=32,
        **ids,
    )  # fmt: skip
    images = transformers.MuseGlimmerImageProcessor(max_image_tokens=16)
    videos = transformers.MuseGlimmerVideoProcessor(max_video_frame_tokens=4)
    ears = transformers.MuseSparkFeatureExtractor(samples_per_token=16)
    _with_videos(folder, "MuseSparkProcessor", tokenizer, images, videos, feature_extractor=ears)
    return _saved(folder, transformers.MuseSparkForConditionalGeneration, config, tokenizer)


def gemma3n(folder: Path) -> Path:
    """Gemma 3n: tables in every layer, marks of a picture that only its projector knows, empty lines around it."""
    words = {"image_token": "<image_soft_token>", "audio_token": "<audio_soft_token>", "boi_token": "<start_of_image>",
             "eoi_token": "<end_of_image>", "boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>"}
    template = GEMMA.replace("'<start_of_image>'", "'<image_soft_token>'")
    bare = make_tokenizer(["<start_of_turn>"], bos="<bos>", eos="<end_of_turn>", pad="<pad>", template=template)
    tokenizer = PreTrainedTokenizerFast(  # which puts these words behind all others
        tokenizer_object=bare.backend_tokenizer, bos_token="<bos>", eos_token="<end_of_turn>", pad_token="<pad>",
        extra_special_tokens=words, chat_template=template,
    )  # fmt: skip
    first = min(_id(tokenizer, word) for word in words.values())
    kinds = ["sliding_attention", "full_attention"]
    text = _text(transformers.Gemma3nTextConfig, tokenizer, num_hidden_layers=6, num_key_value_heads=2, head_dim=8,
                 layer_types=kinds * 3, sliding_window=24, num_kv_shared_layers=2, vocab_size_per_layer_input=first,
                 hidden_size_per_layer_input=8, laurel_rank=4, activation_sparsity_pattern=[0.5] + [0.0] * 5,
                 final_logit_softcapping=8.0)  # fmt: skip
    seen = {"architecture": "test_efficientnet", "hidden_size": 256, "vocab_offset": first, "vocab_size": len(words)}
    heard = {"hidden_size": 16, "conf_num_attention_heads": 2, "conf_num_hidden_layers": 1, "vocab_size": 4,
             "vocab_offset": len(tokenizer), "sscp_conv_channel_size": [4, 4]}  # fmt: skip
    config = transformers.Gemma3nConfig(
        text_config=text, vision_config=transformers.Gemma3nVisionConfig(**seen), audio_config=heard,
        vision_soft_tokens_per_image=16, **{f"{name}_id": _id(tokenizer, word) for name, word in words.items()},
    )  # fmt: skip
    images = transformers.SiglipImageProcessorPil(size={"height": 128, "width": 128})
    processor = transformers.Gemma3nProcessor(
        transformers.Gemma3nAudioFeatureExtractor(), images, tokenizer, template, image_seq_length=16
    )
    processor.save_pretrained(folder)
    return _saved(folder, transformers.Gemma3nForConditionalGeneration, config, tokenizer)


def perception_lm(folder: Path) -> Path:
    """Perception LM: of a picture the whole and its tiles, averaged 2x2, one run of tokens; a tower of timm's."""
    marks = ("<|start_header_id|>", "<|end_header_id|>")
    words = {"image_token": "<|image|>", "video_token": "<|video|>"}
    tokenizer = _tokenizer(LLAMA_3, *marks, bos="<|begin_of_text|>", eos="<|eot_id|>", **words)
    tower = {"img_size": [64, 64], "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 4,
             "ref_feat_shape": [4, 4], "global_pool": ""}  # fmt: skip
    vision = {"architecture": "vit_pe_lang_large_patch14_448", "do_pooling": False, "model_args": tower}
    config = transformers.PerceptionLMConfig(
        text_config=_text(transformers.LlamaConfig, tokenizer), projector_pooling_ratio=2,
        vision_config=transformers.TimmWrapperConfig(**vision),
        **{f"{name}_id": _id(tokenizer, word) for name, word in words.items()},
    )  # fmt: skip
    size = {"size": {"height": 64, "width": 64}}
    images = transformers.PerceptionLMImageProcessor(**size, tile_size=64, max_num_tiles=4)
    videos = transformers.PerceptionLMVideoProcessor(**size)
    _with_videos(folder, "PerceptionLMProcessor", tokenizer, images, videos, patch_size=16, pooling_ratio=2)
    return _saved(folder, transformers.PerceptionLMForConditionalGeneration, config, tokenizer)


def fast_vlm(folder: Path) -> Path:
    """FastVLM: a tower of timm's, mostly convolutions, behind LLaVA's processor."""
    tokenizer = _chatml("<image>\\n", image_token="<image>")
    tower = {"architecture": "test_efficientnet", "hidden_size": 256, "do_pooling": True, "global_pool": "avg"}
    config = transformers.FastVlmConfig(
        text_config=_text(transformers.Qwen2Config, tokenizer, num_key_value_heads=2), image_seq_length=16,
        vision_config=transformers.TimmWrapperConfig(**tower), image_token_index=_id(tokenizer, "<image>"),
    )  # fmt: skip
    side = {"size": {"shortest_edge": 128}, "crop_size": {"height": 128, "width": 128}}
    images = transformers.CLIPImageProcessorPil(**side)
    how = {"patch_size": 32, "num_additional_image_tokens": 0, "vision_feature_select_strategy": "full"}
    _processor(folder, transformers.LlavaProcessor, images, tokenizer, **how)
    return _saved(folder, transformers.FastVlmForConditionalGeneration, config, tokenizer)


def minimax_m3_vl(folder: Path) -> Path:
    """MiniMax M3: an index of its own picks the blocks of tokens that its sparse layers look at, and is kept beside."""
    words = {"image_token": "]<]image[>[", "video_token": "]<]video[>["}
    marks = ("]<]start of image[>[", "]<]end of image[>[")
    tokenizer = _chatml("]<]image[>[", *marks, **words)
    picks = {"index_n_heads": 2, "index_head_dim": 8, "index_block_size": 16, "index_topk_blocks": 2}
    text = _text(transformers.MiniMaxM3VLTextConfig, tokenizer, num_key_value_heads=2, head_dim=8, rotary_dim=4,
                 num_local_experts=4, num_experts_per_tok=2, dense_intermediate_size=64, shared_intermediate_size=32,
                 layer_types=["full_attention", "minimax_m3_sparse"], mlp_layer_types=["dense", "sparse"],
                 **picks)  # fmt: skip
    config = transformers.MiniMaxM3VLConfig(
        text_config=text, vision_config={**VISION, "image_size": 112, "patch_size": 14}, projector_hidden_size=32,
        **{f"{name}_index": _id(tokenizer, word) for name, word in words.items()},
    )  # fmt: skip
    size = {"size": {"shortest_edge": 56**2, "longest_edge": 112**2}}
    parts = transformers.MiniMaxM3VLImageProcessor(**size), transformers.MiniMaxM3VLVideoProcessor(**size)
    _with_videos(folder, "MiniMaxM3VLProcessor", tokenizer, *parts)
    return _saved(folder, transformers.MiniMaxM3SparseForConditionalGeneration, config, tokenizer)


def muse_glimmer(folder: Path) -> Path:
    """Muse Glimmer: windows in its tower and in most layers, others that know no places, logits that are squeezed."""
    words = {"image_token": "<|patch|>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>",
             "video_token": "<|video|>", "video_sep_token": "<|vid_frame_separator|>",
             "video_start_token": "<|vid_start|>", "video_end_token": "<|vid_end|>"}  # fmt: skip
    template = LLAMA_3.replace("_header_id", "_header").replace("eot_id", "eot").replace("<|image|>", "<|patch|>")
    turns = ("<|start_header|>", "<|end_header|>")
    tokenizer = _tokenizer(template, *turns, bos="<|begin_of_text|>", eos="<|eot|>", **words)
    text = _text(transformers.MuseGlimmerTextConfig, tokenizer, num_hidden_layers=5, num_key_value_heads=2, head_dim=8,
                 sliding_window=24, final_logit_softcapping=2.0, output_multiplier=0.5)  # fmt: skip
    vision = {**VISION, "pos_emb_height": 4, "pos_emb_width": 4, "max_position_embeddings": 16}
    config = transformers.MuseGlimmerConfig(
        text_config=text, vision_config=vision, out_hidden_size=128, projector_hidden_size=32,
        **{f"{name}_id": _id(tokenizer, words[name]) for name in ("image_token", "video_token")},
    )  # fmt: skip
    images = transformers.MuseGlimmerImageProcessor(max_image_tokens=16)
    videos = transformers.MuseGlimmerVideoProcessor(max_video_frame_tokens=4)
    _with_videos(folder, "MuseGlimmerProcessor", tokenizer, images, videos)
    return _saved(folder, transformers.MuseGlimmerForConditionalGeneration, config, tokenizer)


def granite_docling(folder: Path) -> Path:
    """Granite Docling: what is seen is added to the first layers as well; multipliers; each tile tells its place."""
    roles = ("<|start_of_role|>", "<|end_of_role|>")
    places = [f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5)]
    marks = (*roles, "<fake_token_around_image>", "<global-img>", *places)
    template = GRANITE.replace("<image>\\n", "<image>")
    tokenizer = _tokenizer(template, *marks, eos="<|end_of_text|>", image_token="<image>")
    text = _text(transformers.GraniteDoclingTextConfig, tokenizer, num_hidden_layers=4, num_key_value_heads=2,
                 logits_scaling=4.0, embedding_multiplier=12.0, attention_multiplier=0.125)  # fmt: skip
    vision = {**VISION, "image_size": 64, "patch_size": 8, "out_hidden_size": 32, "scale_factor": 4,
              "deepstack_visual_indexes": [0, 1], "use_fine_route": False}  # fmt: skip
    config = transformers.GraniteDoclingConfig(
        text_config=text, vision_config=vision, image_token_id=_id(tokenizer, "<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    images = transformers.GraniteDoclingImageProcessorPil(size={"height": 64, "width": 64})
    _processor(folder, transformers.GraniteDoclingProcessor, images, tokenizer, image_seq_len=4)
    return _saved(folder, transformers.GraniteDoclingForConditionalGeneration, config, tokenizer)


def deepseek_ocr2(folder: Path) -> Path:
    """DeepSeek-OCR 2: the tower of SAM, then queries that read its patches both ways; experts."""
    template, ends = DEEPSEEK.replace("<image_placeholder>", "<image>"), {"bos": "<s>", "eos": "</s>"}
    tokenizer = _tokenizer(template, **ends, image_token="<image>")
    sam = {"hidden_size": 32, "mlp_ratio": 2.0, "num_hidden_layers": 2, "num_attention_heads": 4, "output_channels": 8,
           "image_size": 1024, "patch_size": 16, "window_size": 8, "global_attn_indexes": [],
           "downsample_channels": [16, 32]}  # fmt: skip
    between = {**TEXT, "num_key_value_heads": 2}
    text = _text(transformers.DeepseekOcr2TextConfig, tokenizer, num_key_value_heads=4, n_routed_experts=4,
                 num_experts_per_tok=2, moe_intermediate_size=16, n_shared_experts=1,
                 mlp_layer_types=["dense", "sparse"])  # fmt: skip
    config = transformers.DeepseekOcr2Config(
        text_config=text, vision_config={"sam_config": sam, "encoder_config": between},
        image_token_id=_id(tokenizer, "<image>"),
    )  # fmt: skip
    _processor(folder, transformers.DeepseekOcr2Processor, transformers.DeepseekOcr2ImageProcessorPil(), tokenizer)
    return _saved(folder, transformers.DeepseekOcr2ForConditionalGeneration, config, tokenizer)


UNLISTED: dict[str, Callable[[Path], Path]] = {
    build.__name__: build
    for build in (
        ovis2, aria, idefics2, deepseek_vl, deepseek_vl_hybrid, janus, qianfan_ocr, lighton_ocr, paligemma,
        granite4_vision, paddleocr_vl, hunyuan_vl, mllama, granite_docling, deepseek_ocr2,
    )
}
"""Families whose processors print a conversation with pictures, and turn it into what their models take."""

UNSPOKEN: dict[str, Callable[[Path], Path]] = {build.__name__: build for build in (chameleon, blip_2)}
"""Families whose processors keep no chat template, whatever stands in their folders."""

WANTING_TORCHVISION: dict[str, Callable[[Path], Path]] = {
    build.__name__: build
    for build in (
        exaone4_5, llama4, minicpmv4_6, minicpmv4_7, hyperclovax_vision_v2, ernie4_5_vl_moe, lfm3_vl, kimi_k25,
        video_llava, step3p7, mistral_large4, nemotron_h_omni, muse_spark, muse_glimmer, minimax_m3_vl,
    )
}
"""Families whose processors do not load where torchvision is missing; but EXAONE 4.5's, they are not built there."""

WANTING_TIMM: dict[str, Callable[[Path], Path]] = {
    build.__name__: build for build in (gemma3n, perception_lm, fast_vlm)
}
"""Families whose towers are timm's, which wants torchvision, too."""


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.tiny_unlisted OUT")
    buildable = UNLISTED | UNSPOKEN | (WANTING_TORCHVISION if find_spec("torchvision") else {})
    buildable |= WANTING_TIMM if find_spec("timm") else {}
    for family, build in buildable.items():
        made = Path(sys.argv[1]) / family
        made.mkdir(parents=True, exist_ok=True)
        print(f"{family}: {build(made)}")
