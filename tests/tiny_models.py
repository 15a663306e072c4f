"""Tiny random checkpoints of the real classes, complete: config, weights, tokenizer, processor, chat template.

    python -m tests.tiny_models OUT            one folder per family under OUT

Each is saved through the real class's `save_pretrained` and can be loaded by transformers as well as by vidllm. They
know nothing (answers are noise); what they prove is layout, counting and arithmetic. Widths and depths are as small as
they get; everything that decides a token count is to scale: CLIP with its class token, SigLIP without and with an odd
grid, AnyRes resolutions, newlines, temporal patches, mergers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

CORPUS = (
    "USER: what happens at 0:30? ASSISTANT: The red circle moves right. describe the video. how many objects are there",
    "These frames are located at 0.00s,1.23s. The video lasts for 60.00 seconds, and 16 frames are uniformly sampled.",
    "You are a helpful assistant. Frame from 00:00: user system assistant picture video image question answer",
)

VICUNA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}{{ '<video>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""USER: <image>\\nquestion ASSISTANT:  as the LLaVA-1.5 and LLaVA-NeXT-Video checkpoints on the Hub print it."""

CHATML_LLAVA = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}{{ '<video>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ '\\n' + part['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""As LLaVA-OneVision prints it."""

CHATML_QWEN = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""As Qwen2.5-VL and Qwen3-VL print it."""

CHATML_QWEN3_5 = (
    "{% set ns = namespace(asked=0) %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' and loop.index0 > ns.asked %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}"
    "{% else %}{{ '<think>\\n' }}{% endif %}{% endif %}"
)
"""As Qwen3.5 prints it: an answer is begun with a thought, which an earlier answer is printed without."""

CHATML_INTERN = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}{% elif part['type'] == 'video' %}{{ '<video>\\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""As InternVL3 prints it."""

CHATML_LINES = (
    "{%- set identifier = 'im' %}\n{% for message in messages %}\n"
    "    {% if add_system_prompt and loop.first and message['role'] != 'system' %}\n"
    "        {{- '<|im_start|>system\\nYou are VideoLLaMA3.<|im_end|>\\n' -}}\n    {% endif %}\n"
    "    {{- '<|' + identifier + '_start|>' + message['role'] + '\\n' -}}\n"
    "    {% if message['content'] is string %}\n        {{- message['content'] -}}\n    {% else %}\n"
    "        {% for content in message['content'] %}\n"
    "            {% if content is string %}\n                {{- content -}}\n"
    "            {% elif content['type'] == 'text' or 'text' in content %}\n"
    "                {{- content['text'] -}}\n"
    "            {% elif content['type'] == 'image' or 'image' in content %}\n"
    "                {{- image_token + '\\n' -}}\n"
    "            {% elif content['type'] == 'video' or 'video' in content %}\n"
    "                {{- video_token + '\\n' -}}\n"
    "            {% endif %}\n        {% endfor %}\n    {% endif %}\n"
    "    {{- '<|' + identifier + '_end|>' -}}\n    {{- '\\n' -}}\n{% endfor %}\n"
    "{% if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' -}}\n{% endif %}\n"
)
"""As VideoLLaMA 3 prints it, with a shorter speech of its own, which nobody asks for."""

GLM = (
    "[gMASK]<sop>{% for msg in messages %}{% if msg.role == 'user' %}{{ '<|user|>\\n' }}"
    "{% if msg.content is string %}{{ msg.content }}{% else %}{% for item in msg.content %}"
    "{% if item.type == 'video' %}<|begin_of_video|><|video|><|end_of_video|>"
    "{% elif item.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>"
    "{% elif item.type == 'text' %}{{ item.text }}{% endif %}{% endfor %}{% endif %}"
    "{% else %}{{ '<|' + msg.role + '|>\\n' }}{{ msg.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
"""As GLM-4.1V prints it: answers are texts, whatever is said before them."""

GLM_THINKING = (
    "[gMASK]<sop>{% macro told(content) %}{% if content is string %}{{ content }}{% else %}{% for item in content %}"
    "{% if item.type == 'video' %}<|begin_of_video|><|video|><|end_of_video|>"
    "{% elif item.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>"
    "{% elif item.type == 'text' %}{{ item.text }}{% endif %}{% endfor %}{% endif %}{% endmacro %}"
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' }}{% if m.role == 'assistant' %}"
    "{{ '<think></think>\\n' + told(m.content).split('</think>')[-1].strip() }}"
    "{% else %}{{ told(m.content) }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
"""As GLM-4.5V and GLM-4.6V print it: what was thought before earlier answers is left out."""

GEMMA = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}"
    "{%- set system = messages[0]['content'] if messages[0]['content'] is string"
    " else messages[0]['content'][0]['text'] -%}"
    "{%- set prefix = system + '\n\n' -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set prefix = '' -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- for message in turns -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}"
    "{%- if message['content'] is string -%}{{ message['content'] | trim }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<start_of_image>' }}"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] | trim }}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
"""As Gemma 3 prints it: a picture is one token here, its processor writes the rest."""

GEMMA_4 = (
    "{%- macro unthought(text) -%}{%- set kept = namespace(text='') -%}"
    "{%- for part in text.split('<channel|>') -%}{%- set kept.text = kept.text + part.split('<|channel>')[0] -%}"
    "{%- endfor -%}{{- kept.text | trim -}}{%- endmacro -%}{%- set turns = messages -%}{{ bos_token }}"
    "{%- if (enable_thinking is defined and enable_thinking) or messages[0]['role'] == 'system' -%}"
    "{{- '<|turn>system\n' -}}{%- if enable_thinking is defined and enable_thinking -%}{{- '<|think|>\n' -}}"
    "{%- endif -%}{%- if messages[0]['role'] == 'system' -%}{{- messages[0]['content'] | trim -}}"
    "{%- set turns = messages[1:] -%}{%- endif -%}{{- '<turn|>\n' -}}{%- endif -%}"
    "{%- for message in turns -%}{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{- '<|turn>' + role + '\n' -}}{%- if message['content'] is string -%}"
    "{{- unthought(message['content']) if role == 'model' else message['content'] | trim -}}"
    "{%- else -%}{%- for item in message['content'] -%}{%- if item['type'] == 'text' -%}"
    "{{- unthought(item['text']) if role == 'model' else item['text'] | trim -}}"
    "{%- elif item['type'] in ['image', 'video'] -%}{{- '\n\n<|' + item['type'] + '|>\n\n' -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{- '<turn|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|turn>model\n' -}}"
    "{%- if not enable_thinking | default(false) -%}{{- '<|channel>thought\n<channel|>' -}}{%- endif -%}{%- endif -%}"
)
"""As the larger ones of Gemma 4 print it: a thought is begun and ended before the answer. What was thought before
earlier answers is left out."""

COHERE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|START_OF_TURN_TOKEN|>' }}"
    "{{ '<|SYSTEM_TOKEN|>' if message['role'] == 'system' else '<|USER_TOKEN|>' if message['role'] == 'user' "
    "else '<|CHATBOT_TOKEN|><|START_RESPONSE|>' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ 'MARKER' }}{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{{ '<|END_RESPONSE|>' if message['role'] == 'assistant' }}{{ '<|END_OF_TURN_TOKEN|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>' }}{% endif %}"
)
"""As Aya Vision prints it around <image>, and Command A Vision around <|IMG_PATCH|>."""

SMOL = (
    "{{ '<|im_start|>' }}{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'text' %}{{ ': ' }}{% else %}{{ ':' }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% elif part['type'] == 'video' %}{{ '<video>' }}{% endif %}"
    "{% endfor %}{{ '<end_of_utterance>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""As SmolVLM and Idefics3 print it."""

LFM = (
    "{{bos_token}}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<image>' }}{% elif content['type'] == 'text' %}{{ content['text'] }}"
    "{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\\n' }}{% endif %}"
)
"""As LFM2-VL prints it."""

PIXTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set system, turns = messages[0]['content'], messages[1:] %}"
    "{% else %}{% set system, turns = '', messages %}{% endif %}{{ bos_token }}{% for message in turns %}"
    "{% if message['role'] == 'user' %}{{ '[INST]' }}{{ system + '\\n\\n' if loop.last and system else '' }}"
    "{% if message['content'] is not string %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['content'] }}{% elif part['type'] == 'image' %}{{ '[IMG]' }}"
    "{% else %}{{ raise_exception('Unrecognized content type!') }}{% endif %}{% endfor %}"
    "{% else %}{{ message['content'] }}{% endif %}{{ '[/INST]' }}{% else %}{{ message['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
)
"""As Pixtral 12B printed it at first: texts stand in `content`, and an answer is a text and no list."""

MISTRAL_3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'][0]['text'] %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = 'The current date is ' + strftime_now('%Y') + '.' %}"
    "{% set turns = messages %}{% endif %}{{ '[SYSTEM_PROMPT]' + system + '[/SYSTEM_PROMPT]' }}"
    "{% for message in turns %}{% if message['role'] == 'user' %}{{ '[INST]' }}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'image' %}{{ '[IMG]' }}"
    "{% else %}{{ raise_exception('Only text and images are supported!') }}{% endif %}{% endfor %}{% endif %}"
    "{{ '[/INST]' }}{% elif message['content'] is string %}{{ message['content'] + eos_token }}"
    "{% else %}{{ message['content'][0]['text'] + eos_token }}{% endif %}{% endfor %}"
)
"""As Mistral Small 3.1 prints it, with a shorter speech of its own."""


def make_tokenizer(
    special: Sequence[str], *, bos: str | None, eos: str, pad: str, template: str, **named: str
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few hundred merges: it can spell anything, and common words are one or two tokens.

    It knows the `named` special tokens as attributes of its own, too (`image_token`).
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(CORPUS, trainer)
    names = list(dict.fromkeys([*([bos] if bos else []), eos, pad, *special, *named.values()]))
    bpe.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=bos, eos_token=eos, pad_token=pad, chat_template=template,
        **({"extra_special_tokens": named} if named else {}),
    )  # fmt: skip


def _noise(network: torch.nn.Module) -> torch.nn.Module:
    """Redraw all weights at a scale where logits differ by about one: a wrong token must show in them."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in network.parameters():
            fan_in = weight[0].numel() if weight.dim() > 1 else 100
            noise = torch.randn(weight.shape, generator=generator) / fan_in**0.5
            weight.copy_(noise if weight.dim() > 1 else weight + noise)
    return network.eval()


def _text(config: type[Any], tokenizer: PreTrainedTokenizerFast, **more: object) -> Any:
    return config(
        vocab_size=len(tokenizer), max_position_embeddings=4096, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **{**TEXT, **more},
    )  # fmt: skip


def _llama_tokenizer(*special: str) -> PreTrainedTokenizerFast:
    return make_tokenizer(special, bos="<s>", eos="</s>", pad="<pad>", template=VICUNA)


def _qwen_tokenizer(template: str, *special: str, **named: str) -> PreTrainedTokenizerFast:
    names = ("<|im_start|>", *special)
    return make_tokenizer(names, bos=None, eos="<|im_end|>", pad="<|endoftext|>", template=template, **named)


def _clip_vision() -> Any:
    return transformers.CLIPVisionConfig(**VISION, image_size=112, patch_size=14)


def _siglip_vision(side: int) -> Any:
    return transformers.SiglipVisionConfig(**VISION, image_size=side, patch_size=14, vision_use_head=False)


def _network(named: str, **config: Any) -> Any:
    """A model of the classes that begin with this name."""
    made = getattr(transformers, f"{named}Config")(**config)
    return getattr(transformers, f"{named}ForConditionalGeneration")(made)


def _write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _save(folder: Path, network: Any, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Weights, config, generation config and tokenizer; what the family's processor needs is written by its builder."""
    _noise(network).save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    return folder


TILE = {"size": {"shortest_edge": 112}, "crop_size": {"height": 112, "width": 112}}


def _llava_like(folder: Path, named: str, processor: type[Any], images: Any, **more: object) -> Path:
    """The families that are LLaVA-1.5 but for a detail: CLIP 8x8 behind its class token, Llama, `<image>`."""
    tokenizer = _llama_tokenizer("<image>")
    network = _network(
        named, vision_config=_clip_vision(), text_config=_text(transformers.LlamaConfig, tokenizer),
        image_seq_length=64, image_token_index=tokenizer.convert_tokens_to_ids("<image>"), **more,
    )  # fmt: skip
    processor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=VICUNA,
    ).save_pretrained(folder)  # fmt: skip
    return _save(folder, network, tokenizer)


def llava(folder: Path) -> Path:
    """LLaVA-1.5: one square tile per picture."""
    images = transformers.CLIPImageProcessorPil(**TILE)
    return _llava_like(folder, "Llava", transformers.LlavaProcessor, images, vision_feature_layer=-2)


def vipllava(folder: Path) -> Path:
    """VipLLaVA: as LLaVA-1.5, with several vision layers side by side."""
    images = transformers.CLIPImageProcessorPil(**TILE)
    return _llava_like(folder, "VipLlava", transformers.LlavaProcessor, images, vision_feature_layers=[-2, -3, 1])


PINPOINTS = [[112, 224], [224, 112], [224, 224], [336, 112], [112, 336], [448, 112], [112, 448]]
"""AnyRes grids 1x2, 2x1, 2x2, 3x1, 1x3, 4x1, 1x4 of 112-pixel tiles."""


def llava_next(folder: Path) -> Path:
    """LLaVA-NeXT: AnyRes tiles and a learned newline, CLIP, Llama."""
    images = transformers.LlavaNextImageProcessorPil(**TILE, image_grid_pinpoints=PINPOINTS)
    return _llava_like(folder, "LlavaNext", transformers.LlavaNextProcessor, images, image_grid_pinpoints=PINPOINTS)


def llava_next_video(folder: Path) -> Path:
    """LLaVA-NeXT-Video: as LLaVA-NeXT, with average pooling by 2 before the projector for video frames."""
    tokenizer = _llama_tokenizer("<video>", "<image>")
    network = _network(
        "LlavaNextVideo", vision_config=_clip_vision(), text_config=_text(transformers.LlamaConfig, tokenizer),
        image_grid_pinpoints=PINPOINTS, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        spatial_pool_mode="average", spatial_pool_stride=2, image_seq_length=64, video_seq_length=16,
    )  # fmt: skip
    _save(folder, network, tokenizer)
    transformers.LlavaNextImageProcessorPil(**TILE, image_grid_pinpoints=PINPOINTS).save_pretrained(folder)
    video = {"video_processor_type": "LlavaNextVideoVideoProcessor", "do_center_crop": True, "do_resize": True,
             "do_normalize": True, "do_rescale": True, "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "resample": 3}
    _write(folder, "video_preprocessor_config.json", video | TILE)
    _write(folder, "processor_config.json", {
        "processor_class": "LlavaNextVideoProcessor", "patch_size": 14, "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default", "image_token": "<image>", "video_token": "<video>",
    })  # fmt: skip
    return folder


def llava_onevision(folder: Path) -> Path:
    """LLaVA-OneVision: SigLIP without a class token and with an odd 9x9 grid, Qwen2, one newline after a video."""
    tokenizer = _qwen_tokenizer(CHATML_LLAVA, "<image>", "<video>")
    pinpoints = [[126 * rows, 126 * cols] for rows in range(1, 7) for cols in range(1, 7)]
    network = _network(
        "LlavaOnevision", vision_config=_siglip_vision(126),
        text_config=_text(transformers.Qwen2Config, tokenizer, num_key_value_heads=2),
        image_grid_pinpoints=pinpoints, vision_aspect_ratio="anyres_max_9",
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
    )  # fmt: skip
    _save(folder, network, tokenizer)
    side = {"size": {"height": 126, "width": 126}}
    transformers.LlavaOnevisionImageProcessorPil(**side, image_grid_pinpoints=pinpoints).save_pretrained(folder)
    video = {"video_processor_type": "LlavaOnevisionVideoProcessor", "do_resize": True, "do_normalize": True,
             "do_rescale": True, "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "resample": 3}
    _write(folder, "video_preprocessor_config.json", video | side)
    _write(folder, "processor_config.json", {
        "processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 81, "vision_feature_select_strategy": "full",
        "image_token": "<image>", "video_token": "<video>", "vision_aspect_ratio": "anyres_max_9",
    })  # fmt: skip
    return folder


def internvl(folder: Path) -> Path:
    """InternVL: a tower with a class token, 8x8 patches shuffled into 4x4 tokens, stretched tiles, numbered frames."""
    tokenizer = _qwen_tokenizer(CHATML_INTERN, "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
    vision = transformers.InternVLVisionConfig(**VISION, image_size=112, patch_size=14)
    text = _text(transformers.Qwen2Config, tokenizer, num_key_value_heads=2)
    network = _network(
        "InternVL", vision_config=vision, text_config=text, image_seq_length=16,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
    )  # fmt: skip
    _save(folder, network, tokenizer)
    side = {"size": {"height": 112, "width": 112}}
    transformers.GotOcr2ImageProcessorPil(**side, max_patches=6, crop_to_patches=True).save_pretrained(folder)
    video = {"video_processor_type": "InternVLVideoProcessor", "do_resize": True, "do_normalize": True,
             "do_rescale": True, "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "resample": 3}
    _write(folder, "video_preprocessor_config.json", video | side)
    _write(folder, "processor_config.json", {"processor_class": "InternVLProcessor", "image_seq_length": 16})
    return folder


GEMMA_PICTURE = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}


def gemma3(folder: Path) -> Path:
    """Gemma 3: 8x8 SigLIP patches averaged to 4x4, pictures read both ways, layers with and without a window."""
    ends = {"bos": "<bos>", "eos": "<end_of_turn>", "pad": "<pad>"}
    tokenizer = make_tokenizer(("<start_of_turn>", "<eos>"), **ends, template=GEMMA, **GEMMA_PICTURE)
    rope = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip
    text = _text(
        transformers.Gemma3TextConfig, tokenizer, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8,
        rope_parameters=rope, sliding_window=24, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    ids = {f"{name[:3]}_token_index": tokenizer.convert_tokens_to_ids(GEMMA_PICTURE[name])
           for name in ("boi_token", "eoi_token")}  # fmt: skip
    network = _network(
        "Gemma3", text_config=text, vision_config=_siglip_vision(112), mm_tokens_per_image=16,
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"), **ids,
    )  # fmt: skip
    images = transformers.Gemma3ImageProcessorPil(size={"height": 112, "width": 112})
    transformers.Gemma3Processor(images, tokenizer, GEMMA, image_seq_length=16).save_pretrained(folder)
    return _save(folder, network, tokenizer)


GEMMA_4_WORDS = {
    "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>",
    "boa_token": "<|audio>", "eoa_token": "<audio|>", "sot_token": "<|turn>", "soc_token": "<|channel>",
    "eoc_token": "<channel|>", "think_token": "<|think|>",
}  # fmt: skip


def gemma4(folder: Path) -> Path:
    """Gemma 4 E2B: layers told of each token by a table of their own, the last two without keys of their own, ears."""
    shared = {"num_hidden_layers": 5, "num_kv_shared_layers": 2, "use_double_wide_mlp": True,
              "hidden_size_per_layer_input": 8}  # fmt: skip
    kinds = ["sliding_attention", "full_attention"]
    audio = transformers.Gemma4AudioConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, output_proj_dims=16,
        subsampling_conv_channels=[4, 4],
    )  # fmt: skip
    return _gemma4(folder, "Gemma4", GEMMA_4_TOWER, audio, layer_types=[kinds[0], *kinds, *kinds], **shared)


def gemma4_larger(folder: Path) -> Path:
    """Gemma 4 26B-A4B: experts, values that are keys, pictures read both ways in layers with a window; it is deaf."""
    experts = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}
    values = {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0}
    two_way = {"use_bidirectional_attention": "vision"}
    return _gemma4(folder, "Gemma4", GEMMA_4_TOWER, None, **experts, **values, **two_way)


def gemma4_unified(folder: Path) -> Path:
    """Gemma 4 12B: 3x3 patches of a picture go into the projector as one, there is no tower."""
    pixels = {"mm_embed_dim": 32, "mm_posemb_size": 70, "output_proj_dims": 32}
    untied = {"tie_word_embeddings": False}  # or it would say one word for ever
    return _gemma4(folder, "Gemma4Unified", pixels, None, **untied)


GEMMA_4_TOWER = {
    **VISION, "num_key_value_heads": 4, "head_dim": 8, "position_embedding_size": 256, "standardize": True,
    "use_clipped_linears": True,
}  # fmt: skip


def _gemma4(folder: Path, named: str, vision: dict[str, Any], audio: Any, **text: Any) -> Path:
    """3x3 patches of 4 px are a token, at most 70 of them a picture; layers with and without a window of 24."""
    names = (*GEMMA_4_WORDS.values(), "<|video|>", "<eos>")
    tokenizer = make_tokenizer(names, bos="<bos>", eos="<turn|>", pad="<pad>", template=GEMMA_4)
    layers = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    kinds = {"num_hidden_layers": len(layers), "layer_types": layers, "num_key_value_heads": 2, "sliding_window": 24}
    table = {"vocab_size_per_layer_input": len(tokenizer)} if "hidden_size_per_layer_input" in text else {}
    language = _text(
        getattr(transformers, f"{named}TextConfig"), tokenizer, **{**kinds, **text}, **table, head_dim=8,
        global_head_dim=16, final_logit_softcapping=8.0,
    )  # fmt: skip
    words = {**GEMMA_4_WORDS, "video_token": "<|video|>"}
    marks = ("image_token", "video_token", "boi_token", "eoi_token", "boa_token", "audio_token")
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(words[name]) for name in marks}
    grid = {"patch_size": 4, "pooling_kernel_size": 3}
    made = _network(
        named, text_config=language, vision_config={**vision, **grid}, audio_config=audio,
        eoa_token_index=tokenizer.convert_tokens_to_ids(words["eoa_token"]), **ids,
        tie_word_embeddings=text.get("tie_word_embeddings", True),
    )  # fmt: skip
    for name, weight in made.named_parameters():
        if name.endswith("q_norm.weight"):  # nothing else scales its attention, which would look at one token alone
            torch.nn.init.constant_(weight, 0.3)
    _save(folder, made, tokenizer)
    edit(folder / "tokenizer_config.json", extra_special_tokens=["<|video|>"], **GEMMA_4_WORDS)
    both = {**grid, "max_soft_tokens": 70}
    _write(folder, "processor_config.json", {
        "processor_class": f"{named}Processor", "image_seq_length": 70,
        "image_processor": {"image_processor_type": f"{named}ImageProcessor", **both},
        "video_processor": {"video_processor_type": f"{named}VideoProcessor", **both},
    })  # fmt: skip
    return folder


def _cohere(folder: Path, named: str, marker: str) -> Path:
    """What Cohere's two have in common: SigLIP, 8x8 patches joined to 4x4 tokens in the projector, every other layer of
    the language model with a window and rotary positions."""
    turns = ("START_OF_TURN_TOKEN", "USER_TOKEN", "CHATBOT_TOKEN", "SYSTEM_TOKEN", "START_RESPONSE", "END_RESPONSE")
    media = ("START_OF_IMG", "END_OF_IMG", "IMG_PATCH", "IMG_LINE_BREAK")
    tokenizer = make_tokenizer(
        [f"<|{name}|>" for name in (*turns, *media)], bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>", pad="<PAD>",
        template=COHERE.replace("MARKER", marker),
    )  # fmt: skip
    network = _network(
        named, vision_config=_siglip_vision(112), alignment_intermediate_size=64,
        text_config=_text(transformers.Cohere2Config, tokenizer, num_key_value_heads=2, sliding_window_pattern=2),
        image_token_id=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
    )  # fmt: skip
    return _save(folder, network, tokenizer)


COHERE_TILES = {
    "size": {"height": 112, "width": 112}, "max_patches": 6, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip


def aya_vision(folder: Path) -> Path:
    """Aya Vision: stretched tiles, each behind its name."""
    _cohere(folder, "AyaVision", "<image>")
    transformers.GotOcr2ImageProcessorPil(**COHERE_TILES).save_pretrained(folder)
    words = {"patch_size": 28, "img_size": 112, "image_token": "<image>", "downsample_factor": 1}
    _write(folder, "processor_config.json", {"processor_class": "AyaVisionProcessor", **words})
    return folder


def cohere2_vision(folder: Path) -> Path:
    """Command A Vision: nameless tiles of the grid that covers a picture, a tower that normalises its end."""
    _cohere(folder, "Cohere2Vision", "<|IMG_PATCH|>")
    words = {"boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>", "image_token": "<|IMG_PATCH|>",
             "img_line_break_token": "<|IMG_LINE_BREAK|>"}  # fmt: skip
    edit(folder / "tokenizer_config.json", extra_special_tokens=words)
    _write(folder, "preprocessor_config.json", {
        "image_processor_type": "Cohere2VisionImageProcessor", "processor_class": "Cohere2VisionProcessor",
        "patch_size": 4, "crop_to_patches": True, "resample": 3, **COHERE_TILES,
    })  # fmt: skip
    return folder


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
QWEN_SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")


def _qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    keys = ("vision_start_token_id", "vision_end_token_id", "_", "image_token_id", "video_token_id")
    ids = dict(zip(keys, tokenizer.convert_tokens_to_ids(list(QWEN_SPECIAL)), strict=True))
    del ids["_"]
    return ids


def _qwen_text(tokenizer: PreTrainedTokenizerFast, **more: object) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer), **TEXT, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e6},
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, **more,
    }  # fmt: skip


def qwen2_vl(folder: Path) -> Path:
    """Qwen2-VL: as Qwen2.5-VL, with full attention in its tower and positions that count groups of frames."""
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 4, "hidden_size": 32, "mlp_ratio": 2, "patch_size": 14}
    return _qwen2(folder, "Qwen2VL", vision)


def qwen2_5_vl(folder: Path) -> Path:
    """Qwen2.5-VL: 14-pixel patches merged 2x2, frames in pairs, three-axis rotary positions that know seconds."""
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32,
              "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2}
    return _qwen2(folder, "Qwen2_5_VL", vision)


def _qwen2(folder: Path, named: str, vision: dict[str, Any]) -> Path:
    tokenizer = _qwen_tokenizer(CHATML_QWEN, *QWEN_SPECIAL)
    text = _qwen_text(tokenizer)
    _save(folder, _network(named, text_config=text, vision_config=vision, **_qwen_ids(tokenizer)), tokenizer)
    _qwen_processor(folder, f"{named}Processor", "Qwen2VLVideoProcessor", 14, CLIP_MEAN, CLIP_STD,
                    {"min_pixels": 3136, "max_pixels": 12845056})  # fmt: skip
    return folder


def qwen3_vl(folder: Path) -> Path:
    """Qwen3-VL: 16-pixel patches, a timestamp as text before every pair of frames, deep vision features."""
    return _qwen3(folder, "Qwen3VL")


def qwen3_vl_moe(folder: Path) -> Path:
    """Qwen3-VL with experts in its language model."""
    return _qwen3(folder, "Qwen3VLMoe", **EXPERTS)


def _qwen3(folder: Path, named: str, **experts: int) -> Path:
    tokenizer = _qwen_tokenizer(CHATML_QWEN, *QWEN_SPECIAL)
    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32,
              "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    text = _qwen_text(tokenizer, head_dim=8, **experts)
    _save(folder, _network(named, text_config=text, vision_config=vision, **_qwen_ids(tokenizer)), tokenizer)
    half = [0.5, 0.5, 0.5]
    _qwen_processor(folder, "Qwen3VLProcessor", "Qwen3VLVideoProcessor", 16, half, half,
                    {"size": {"shortest_edge": 4096, "longest_edge": 25165824}})  # fmt: skip
    return folder


def qwen3_5(folder: Path) -> Path:
    """Qwen3.5: as Qwen3-VL without deep vision features; most layers of its language model keep a running state."""
    return _qwen3_5(folder, "Qwen3_5")


def qwen3_5_moe(folder: Path) -> Path:
    """Qwen3.5 with experts in its language model."""
    return _qwen3_5(folder, "Qwen3_5Moe", **EXPERTS, shared_expert_intermediate_size=16)


def _qwen3_5(folder: Path, named: str, **experts: int) -> Path:
    tokenizer = _qwen_tokenizer(CHATML_QWEN3_5, *QWEN_SPECIAL, "<think>", "</think>")
    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32,
              "patch_size": 16, "num_position_embeddings": 64}  # fmt: skip
    layers = {"num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"]}
    sums = {"linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 64,
            "linear_value_head_dim": 32}  # fmt: skip
    text = _qwen_text(tokenizer, head_dim=32, **layers, **sums, **experts)
    text["rope_parameters"]["partial_rotary_factor"] = 0.25
    made = _network(named, text_config=text, vision_config=vision, **_qwen_ids(tokenizer))
    for name, weight in made.named_parameters():
        if name.endswith("A_log"):  # a memory of some ten tokens; drawn by the class, it may be of less than one
            torch.nn.init.constant_(weight, -2.0)
    _save(folder, made, tokenizer)
    half = [0.5, 0.5, 0.5]
    _qwen_processor(folder, "Qwen3VLProcessor", "Qwen3VLVideoProcessor", 16, half, half,
                    {"size": {"shortest_edge": 4096, "longest_edge": 25165824}})  # fmt: skip
    return folder


def _qwen_processor(
    folder: Path, processor: str, video: str, patch: int, mean: list[float], std: list[float], pixels: dict[str, Any]
) -> None:
    """Processor files as the Hub has them. The image side of Qwen3-VL is Qwen2-VL's with 16-pixel patches."""
    shared = {"patch_size": patch, "temporal_patch_size": 2, "merge_size": 2, "image_mean": mean, "image_std": std}
    size = {"size": {"shortest_edge": 65536, "longest_edge": 16777216}} if patch == 16 else pixels
    image = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": processor, **shared, **size}
    _write(folder, "preprocessor_config.json", image)
    _write(folder, "video_preprocessor_config.json", {"video_processor_type": video, **shared, **pixels})


def video_llama_3(folder: Path) -> Path:
    """VideoLLaMA 3: 14-pixel patches of pictures of any size, those of a frame averaged 2x2 behind its time."""
    tokens = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    tokenizer = _qwen_tokenizer(CHATML_LINES, **tokens)
    image_id, video_id = tokenizer.convert_tokens_to_ids(list(tokens.values()))
    network = _network(
        "VideoLlama3", text_config=_text(transformers.Qwen2Config, tokenizer, num_key_value_heads=2).to_dict(),
        vision_config={**VISION, "patch_size": 14}, image_token_id=image_id, video_token_id=video_id,
    )  # fmt: skip
    _save(folder, network, tokenizer)
    half, named = [0.5, 0.5, 0.5], {"processor_class": "VideoLlama3Processor"}
    transformers.VideoLlama3ImageProcessorPil(min_pixels=3136, max_pixels=16384 * 14**2).save_pretrained(folder)
    edit(folder / "preprocessor_config.json", image_processor_type="VideoLlama3ImageProcessor", **named)
    _write(folder, "video_preprocessor_config.json", {
        "video_processor_type": "VideoLlama3VideoProcessor", "patch_size": 14, "temporal_patch_size": 1,
        "merge_size": 2, "image_mean": half, "image_std": half, "use_token_compression": True,
        "size": {"shortest_edge": 16 * 28**2, "longest_edge": 16384 * 28**2}, **named,
    })  # fmt: skip
    return folder


LFM_SPECIAL = (
    "<|im_start|>", "<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>",
    *(f"<|img_row_{row}_col_{col}|>" for row in range(1, 5) for col in range(1, 5)),
)  # fmt: skip


def lfm2_vl(folder: Path) -> Path:
    """LFM2-VL: SigLIP2 for pictures of any size, tiles of 4x4 tokens, short convolutions around attention."""
    tokenizer = make_tokenizer(LFM_SPECIAL, bos="<|startoftext|>", eos="<|im_end|>", pad="<|pad|>", template=LFM)
    text = transformers.Lfm2Config(
        **{**TEXT, "num_hidden_layers": 3}, num_key_value_heads=2, block_auto_adjust_ff_dim=False,
        layer_types=["conv", "full_attention", "conv"], vocab_size=len(tokenizer), max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    network = _network(
        "Lfm2Vl", text_config=text, downsample_factor=2, projector_hidden_size=32,
        vision_config=transformers.Siglip2VisionConfig(**VISION, patch_size=16, num_patches=64, vision_use_head=False),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    _save(folder, network, tokenizer)
    half = [0.5, 0.5, 0.5]
    _write(folder, "preprocessor_config.json", {
        "image_processor_type": "Lfm2VlImageProcessorFast", "processor_class": "Lfm2VlProcessor", "resample": 2,
        "do_image_splitting": True, "downsample_factor": 2, "encoder_patch_size": 16, "image_mean": half,
        "image_std": half, "min_image_tokens": 4, "max_image_tokens": 16, "max_pixels_tolerance": 2.0, "min_tiles": 2,
        "max_tiles": 4, "tile_size": 128, "use_thumbnail": True,
    })  # fmt: skip
    return folder


def smolvlm(folder: Path) -> Path:
    """SmolVLM: SigLIP-like tower, pixel shuffle, every frame a fixed number of tokens, times as text."""
    sampling = {"max_frames": 64, "fps": 1, "video_size": {"longest_edge": 128}}
    return _idefics3_like(folder, "SmolVLM", video_sampling=sampling)


def idefics3(folder: Path) -> Path:
    """Idefics3: as SmolVLM, which came from it, without a layout of videos."""
    return _idefics3_like(folder, "Idefics3")


def _idefics3_like(folder: Path, named: str, **videos: object) -> Path:
    rows = [f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5)]
    names = ("<|im_start|>", "<fake_token_around_image>", "<image>", "<global-img>", "<video>", *rows)
    tokenizer = make_tokenizer(names, bos="<|im_start|>", eos="<end_of_utterance>", pad="<|endoftext|>", template=SMOL)
    text = {
        "model_type": "llama", "vocab_size": len(tokenizer), **TEXT, "max_position_embeddings": 4096,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }  # fmt: skip
    vision = {**VISION, "image_size": 128, "patch_size": 16}
    network = _network(
        named, text_config=text, vision_config=vision, scale_factor=4, pad_token_id=tokenizer.pad_token_id,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    _save(folder, network, tokenizer)
    half = [0.5, 0.5, 0.5]
    image = {
        "image_processor_type": f"{named}ImageProcessor", "do_convert_rgb": True, "do_resize": True, "do_pad": True,
        "do_image_splitting": True, "do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255,
        "size": {"longest_edge": 512}, "max_image_size": {"longest_edge": 128}, "image_mean": half, "image_std": half,
        "resample": 1, "processor_class": f"{named}Processor", **videos,
    }  # fmt: skip
    _write(folder, "preprocessor_config.json", image)
    _write(folder, "processor_config.json", {"processor_class": f"{named}Processor", "image_seq_len": 4})
    return folder


GLM_SPECIAL = (
    "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|begin_of_image|>", "<|end_of_image|>",
    "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>",
)  # fmt: skip


def glm4v(folder: Path) -> Path:
    """GLM-4.1V: frames in pairs, each pair a picture with its second behind it."""
    return _glm(folder, "Glm4v", "Glm4v", GLM)


def glm4v_moe(folder: Path) -> Path:
    """GLM-4.5V: GLM-4.1V with experts in its language model, but in the first layer."""
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return _glm(folder, "Glm4vMoe", "Glm4v", GLM_THINKING, **experts)


def glm46v(folder: Path) -> Path:
    """GLM-4.6V: GLM-4.1V again, with tenths of seconds in words."""
    return _glm(folder, "Glm46V", "Glm46V", GLM_THINKING)


def _glm(folder: Path, named: str, processor: str, template: str, **experts: int) -> Path:
    tokenizer = make_tokenizer(GLM_SPECIAL, bos=None, eos="<|endoftext|>", pad="<|endoftext|>", template=template)
    keys = ("image_start", "image_end", "video_start", "video_end", "image", "video")
    made = tokenizer.convert_tokens_to_ids(list(GLM_SPECIAL[-len(keys) :]))
    ids = {f"{key}_token_id": one for key, one in zip(keys, made, strict=True)}
    text = _qwen_text(tokenizer, num_attention_heads=2, **experts)
    text["rope_parameters"]["partial_rotary_factor"] = 0.5
    text["eos_token_id"] = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|user|>"])
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32,
              "patch_size": 14, "image_size": 112}
    _save(folder, _network(named, text_config=text, vision_config=vision, **ids), tokenizer)
    shared = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "image_mean": CLIP_MEAN,
              "image_std": CLIP_STD, "processor_class": f"{processor}Processor"}
    for kind, prefix, most in (("image", "", 9633792), ("video", "video_", 47040000)):
        own = {f"{kind}_processor_type": f"{processor}{kind.title()}Processor", **shared,
               "size": {"shortest_edge": 12544, "longest_edge": most}}
        _write(folder, f"{prefix}preprocessor_config.json", own)
    return folder


PIXTRAL_SPECIAL = ("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")


def _pixtral_like(folder: Path, named: str, template: str, patch: int, merge: int, **more: Any) -> Path:
    """The families that see with Pixtral's tower: sides of at most 8 tokens, a word behind each of their rows."""
    tokenizer = make_tokenizer(PIXTRAL_SPECIAL, bos="<s>", eos="</s>", pad="<pad>", template=template)
    side = 8 * patch * merge
    text = _text(transformers.MistralConfig, tokenizer, num_key_value_heads=2, head_dim=8, sliding_window=None)
    network = _network(
        named, vision_config=transformers.PixtralVisionConfig(**VISION, image_size=side, patch_size=patch),
        text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"), vision_feature_layer=-1, **more,
    )  # fmt: skip
    _save(folder, network, tokenizer)
    transformers.PixtralImageProcessorPil(size={"longest_edge": side}, patch_size=patch).save_pretrained(folder)
    _write(folder, "processor_config.json", {
        "processor_class": "PixtralProcessor", "patch_size": patch, "spatial_merge_size": merge, "image_token": "[IMG]",
        "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]",
    })  # fmt: skip
    return folder


def pixtral(folder: Path) -> Path:
    """Pixtral 12B: a LLaVA whose tower takes pictures of any size, 16-pixel patches."""
    more = {"image_seq_length": 1, "vision_feature_select_strategy": "full"}
    return _pixtral_like(folder, "Llava", PIXTRAL, 16, 1, **more)


def mistral3(folder: Path) -> Path:
    """Mistral Small 3.1: the same tower with 14-pixel patches, merged 2x2."""
    return _pixtral_like(folder, "Mistral3", MISTRAL_3, 14, 2, spatial_merge_size=2)


def with_text(folder: Path, kind: str, **said: object) -> Path:
    """LLaVA-1.5 over a language model of this kind, with what is said of it."""
    config: Any = transformers.LlavaConfig.from_pretrained(llava(folder))
    size = {"vocab_size": config.text_config.vocab_size, "max_position_embeddings": 4096, **TEXT}
    config.text_config = transformers.AutoConfig.for_model(kind, **size, **said)
    network: Any = _noise(transformers.LlavaForConditionalGeneration(config))
    network.save_pretrained(folder)
    return folder


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON object, and of the objects in it; None takes one out."""

    def edited(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
        for key, change in changes.items():
            inner = values.pop(key, None)
            if change is not None:
                merge = isinstance(change, dict) and isinstance(inner, dict)
                values[key] = edited(inner, change) if merge else change
        return values

    path.write_text(json.dumps(edited(json.loads(path.read_text()), changes)))


MOLMO_WORDS = ("<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>", "<frame_end>",
               "<im_low>")  # fmt: skip
"""Of what is seen, marks included: all of these see one another."""

CHATML_MOLMO = (
    "{% for message in messages if message['content'] is not string %}{% for part in message['content'] %}"
    "{% if part['type'] != 'text' %}{{ '<|' + part['type'] + '|>' }}{% endif %}{% endfor %}{% endfor %}"
    "{% for message in messages %}{% if message['role'] == 'user' and not loop.first %}{{ '<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""In the manner of Molmo 2's: what is shown stands before all turns; what its processor puts before that, nowhere."""


def molmo2(folder: Path) -> Path:
    """Molmo 2: frames of 6x6 patches, 3x3 a token, features of two layers; words that are only read, not said."""
    tokenizer = _qwen_tokenizer(CHATML_MOLMO, *MOLMO_WORDS, "<|image|>", "<|video|>")
    read = len(MOLMO_WORDS) + 2
    words = {"additional_vocab_size": read}
    text = _text(transformers.Molmo2TextConfig, tokenizer, num_key_value_heads=2, head_dim=8, **words)
    text.vocab_size -= read
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    between = {"hidden_size": 32, "intermediate_size": 64, "text_hidden_size": 32, "vision_feature_layer": [2, 1]}
    names = ("image_patch_id", "", "image_start_token_id", "low_res_image_start_token_id", "frame_start_token_id",
             "image_end_token_id", "frame_end_token_id", "")  # fmt: skip
    ids = {name: tokenizer.convert_tokens_to_ids(word) for name, word in zip(names, MOLMO_WORDS, strict=True) if name}
    network = _network(
        "Molmo2", text_config=text, vision_config={**VISION, **heads, "image_size": [84, 84], "patch_size": 14},
        adapter_config={**heads, **between}, **ids,
    )  # fmt: skip
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 84, "width": 84}, "patch_size": 14,
            "do_rescale": True, "do_normalize": True}  # fmt: skip
    images = {**half, "pooling_size": [2, 2], "max_crops": 4, "overlap_margins": [1, 1]}
    _write(folder, "processor_config.json", {
        "processor_class": "Molmo2Processor", "use_frame_special_tokens": False,
        "image_processor": {"image_processor_type": "Molmo2ImageProcessor", **images},
        "video_processor": {"video_processor_type": "Molmo2VideoProcessor", **half, "pooling_size": [3, 3]},
    })  # fmt: skip
    return _save(folder, network, tokenizer)


FAMILIES: dict[str, Callable[[Path], Path]] = {
    build.__name__: build
    for build in (
        llava, vipllava, llava_next, llava_next_video, llava_onevision, internvl, gemma3, aya_vision, cohere2_vision,
        qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe, qwen3_5, qwen3_5_moe, smolvlm, idefics3, glm4v, glm4v_moe, glm46v,
        pixtral, mistral3, video_llama_3, lfm2_vl, gemma4, gemma4_unified, molmo2,
    )
}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.tiny_models OUT")
    for family, build in FAMILIES.items():
        made = Path(sys.argv[1]) / family
        made.mkdir(parents=True, exist_ok=True)
        print(f"{family}: {build(made)}")
