"""Chat templates: the checkpoint's own through jinja2's sandbox, else one per family. Torch-free."""

from __future__ import annotations

import json
import os
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidllm.errors import IncompleteModel
from vidllm.model.spec import ModelSpec, known_json

if TYPE_CHECKING:
    from jinja2 import Template


def special_tokens(folder: Path) -> dict[str, str]:
    """bos_token, eos_token and their like from tokenizer_config.json, as chat templates name them."""
    config = known_json(folder / "tokenizer_config.json")
    for own in ("extra_special_tokens", "model_specific_special_tokens"):  # one dictionary, by two releases' names
        if isinstance(more := config.get(own), dict):
            config = {**config, **more}
    named = {key: value.get("content") if isinstance(value, dict) else value for key, value in config.items()}
    return {key: value for key, value in named.items() if key.endswith("_token") and isinstance(value, str)}


def chat_template(spec: ModelSpec, *, video: bool) -> str:
    """The checkpoint's own jinja template, else its family's. `video`: whether the conversation shows one."""
    own = _own_template(spec.folder)
    # SmolVLM checkpoints were published with templates that know no video; its processor, too, then takes its own.
    if own is not None and not (video and spec.model_type == "smolvlm"):
        return own
    if spec.model_type in _FAMILY_TEMPLATES:
        return _FAMILY_TEMPLATES[spec.model_type]
    return _TEXT_TEMPLATES.get(spec.text_type, _VICUNA)


def _own_template(folder: Path) -> str | None:
    jinja = folder / "chat_template.jinja"
    if os.path.lexists(jinja):
        try:
            return jinja.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise IncompleteModel(f"{jinja}: no readable chat template ({error}); download the model again") from error
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = known_json(folder / name).get("chat_template")
        if isinstance(template, list):  # several named ones
            named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
            template = named.get("default")
        if isinstance(template, str):
            return template
    return None


_RAISED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a template's own sums and calls may raise besides jinja2's errors."""


def render(template: str, messages: list[dict[str, Any]], tokens: dict[str, str], reply: bool) -> str:
    """A chat template rendered in jinja2's sandbox; ValueError when it raises or is no valid template."""
    from jinja2 import TemplateError

    try:
        # tools and documents as transformers says them, none: to `tools is not none` an unsaid word would be something.
        # A model that can think or not (Qwen3.5) answers at once: the reply's room is for what is asked.
        return _compiled(template).render(
            messages=messages, tools=None, documents=None, enable_thinking=False, add_generation_prompt=reply, **tokens
        )
    except (TemplateError, *_RAISED) as error:
        raise ValueError(" ".join(str(error).split())) from error


@lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    # A template comes with a download: it runs sandboxed. Blocks are trimmed as transformers trims them.
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    from vidllm.model.jinja import GenerationBlock, refuse

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def _family(turn_start: str, media: str, turn_end: str, reply: str) -> str:
    """A jinja template: for every message its start, its media and texts, and its end; then where the reply begins."""
    return (
        "{% for m in messages %}" + turn_start + "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}"
        "{% else %}" + media + "{% endif %}{% endfor %}" + turn_end
        + "{% endfor %}{% if add_generation_prompt %}" + reply + "{% endif %}"
    )


_PICTURE = "{{ image_token }}{{ '\\n' if 'text' not in m.content[:loop.index0] | map(attribute='type') | list }}"
"""Of LLaVA: a line of its own before the words, nothing but itself among them."""
_VICUNA = _family("{% if m.role != 'system' %}{{ m.role | upper }}: {% endif %}", _PICTURE, " ", "ASSISTANT:")
_HUMAN = "{% if m.role != 'system' %}###{{ 'Human' if m.role == 'user' else 'Assistant' }}: {% endif %}"
_INSTRUCT = _family(
    "{% if m.role == 'user' %}[INST] {% endif %}",
    _PICTURE,
    "{% if m.role == 'user' %} [/INST]{% else %}{{ ' ' }}{% endif %}",
    "",
)
_START, _END, _REPLY = "<|im_start|>{{ m.role + '\\n' }}", "<|im_end|>{{ '\\n' }}", "<|im_start|>assistant{{ '\\n' }}"
_CHATML = _family(_START, _PICTURE, _END, _REPLY)
_QWEN_MEDIA = "<|vision_start|>{{ '<|image_pad|>' if c.type == 'image' else '<|video_pad|>' }}<|vision_end|>"
_QWEN = _family(_START, _QWEN_MEDIA, _END, _REPLY)
_LINES = _family(_START, "{{ ('<|image_pad|>' if c.type == 'image' else '<|video_pad|>') + '\\n' }}", _END, _REPLY)
_LFM = "{{ bos_token }}" + _family(_START, "{{ image_token }}", _END, _REPLY)
_GLM_MEDIA = (
    "{{ '<|begin_of_image|><|image|><|end_of_image|>' if c.type == 'image' else"
    " '<|begin_of_video|><|video|><|end_of_video|>' }}"
)
_GLM = "[gMASK]<sop>" + _family("<|{{ m.role }}|>{{ '\\n' }}", _GLM_MEDIA, "", "<|assistant|>{{ '\\n' }}")
_UTTERANCES = _family(
    "{{ m.role | capitalize }}{{ ':' if m.content[0].type == 'image' else ': ' }}",
    "{{ '<' + c.type + '>' }}",
    "<end_of_utterance>{{ '\\n' }}",
    "Assistant:",
)
_COHERE = "{{ bos_token }}" + _family(
    "<|START_OF_TURN_TOKEN|>{{ {'user': '<|USER_TOKEN|>', 'system': '<|SYSTEM_TOKEN|>'}[m.role]"
    " if m.role != 'assistant' else '<|CHATBOT_TOKEN|><|START_RESPONSE|>' }}",
    "{{ image_token }}",
    "{% if m.role == 'assistant' %}<|END_RESPONSE|>{% endif %}<|END_OF_TURN_TOKEN|>",
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>",
)
_PIXTRAL = _family(
    "{% if m.role == 'user' %}[INST]{% endif %}",
    "{{ image_token }}",
    "{{ '[/INST]' if m.role == 'user' else eos_token if m.role == 'assistant' else '\\n\\n' }}",
    "",
)
_GEMMA = "{{ bos_token }}" + _family(
    "{% if loop.first or loop.previtem.role != 'system' %}<start_of_turn>"  # what a system says begins the user's turn
    "{{ ('model' if m.role == 'assistant' else 'user') + '\\n' }}{% endif %}",
    "<start_of_image>",
    "{{ '\\n\\n' if m.role == 'system' else '<end_of_turn>\\n' }}",
    "<start_of_turn>model{{ '\\n' }}",
)
_GEMMA_4 = "{{ bos_token }}" + _family(
    "<|turn>{{ ('model' if m.role == 'assistant' else m.role) + '\\n' }}",
    "{{ '\\n\\n<|' + c.type + '|>\\n\\n' }}",
    "<turn|>{{ '\\n' }}",
    "<|turn>model{{ '\\n' }}",
)
_TEXT_TEMPLATES = {"mistral": _INSTRUCT, "qwen2": _CHATML, "qwen3": _CHATML}
"""By language model, for checkpoints that bring no template; any other gets Vicuna's, as LLaVA-1.5 was trained."""
_FAMILY_TEMPLATES = {
    "vipllava": _family(_HUMAN, _PICTURE, "", "###Assistant:"),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "qwen3_vl_moe": _QWEN,
    "qwen3_5": _QWEN,
    "qwen3_5_moe": _QWEN,
    "video_llama_3": _LINES,
    "lfm2_vl": _LFM,
    "smolvlm": "<|im_start|>" + _UTTERANCES,
    "idefics3": "{{ bos_token }}" + _UTTERANCES,
    "aya_vision": _COHERE,
    "cohere2_vision": _COHERE,
    "glm4v": _GLM,
    "glm4v_moe": _GLM,
    "glm46v": _GLM,
    "pixtral": _PIXTRAL,
    "mistral3": _PIXTRAL,
    "gemma3": _GEMMA,
    "gemma4": _GEMMA_4,
    "gemma4_unified": _GEMMA_4,
}
