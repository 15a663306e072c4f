"""Ids and loss mask: what is trained, decoded again, is what the assistant says; a prompt begins its conversation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.planned import COMPOSABLE, FAMILIES, clip_of, picture, spec_of
from vidllm.errors import BudgetError, ConfigError, IncompleteModel
from vidllm.model.families import ModelSpec, load_tokenizer
from vidllm.model.resolve import builtin_folder
from vidllm.model.spec import read_json, stop_ids
from vidllm.prompt import Example, Message, build_example, build_prompt

ANSWERS = ("The red circle moves right.", "Two: 圆 and 正方形.", "At 0:14,\n\nthen  twice.")


def example_of(spec: ModelSpec, messages: list[Message], rope_max: float = 8.0) -> Example:
    return build_example(messages, spec, load_tokenizer(spec.folder), rope_max=rope_max)


def said_in(example: Example) -> list[str]:
    """The trained ids, decoded run by run, special tokens and all."""
    tokenizer = load_tokenizer(example.prompt.spec.folder)
    runs: list[list[int]] = []
    for i, token in enumerate(example.prompt.input_ids):
        if not example.trained[i]:
            continue
        if i == 0 or not example.trained[i - 1]:
            runs.append([])
        runs[-1].append(token)
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs]


def dialogue(spec: ModelSpec) -> list[Message]:
    """Three questions, videos and pictures in two of them, after a word of the system's."""
    media = (clip_of(spec, frames=2), picture(100, 200))
    more = (clip_of(spec, frames=3),)
    return [
        Message("system", "Be short."),
        Message("user", "what happens?", media), Message("assistant", ANSWERS[0]),
        Message("user", "how many?", more), Message("assistant", f"  {ANSWERS[1]} \n"),
        Message("user", "when?"), Message("assistant", ANSWERS[2]),
    ]  # fmt: skip


TAUGHT = [family for family in FAMILIES if family != "pixtral"]
"""Its template says the system's words before the last question, wherever that is."""


@pytest.mark.parametrize("family", TAUGHT)
def test_the_assistants_words_and_its_end_token_are_trained_and_nothing_else(family: str) -> None:
    spec = spec_of(family)
    example = example_of(spec, dialogue(spec))
    ends = [load_tokenizer(spec.folder).id_to_token(i) for i in stop_ids(spec.folder, load_tokenizer(spec.folder))]
    said = said_in(example)
    closing = "<|END_RESPONSE|>" if family in ("aya_vision", "cohere2_vision") else ""
    for text, answer in zip(said, ANSWERS, strict=True):
        assert text.strip() in [answer + closing + end for end in ends]  # GLM's end where the next question begins
    assert not any(example.trained[v.position + k] for v in example.prompt.visuals for k in range(v.tokens))


@pytest.mark.parametrize("as_said", [False, True])
@pytest.mark.parametrize("family", TAUGHT)
def test_a_prompt_is_the_beginning_of_its_conversation(family: str, as_said: bool) -> None:
    """Asked in the middle of a dialogue, a model sees exactly the ids it was taught behind."""
    spec = replace(spec_of(family), as_said=as_said)
    messages, tokenizer = dialogue(spec), load_tokenizer(spec.folder)
    example = example_of(spec, messages)
    for turn in (2, 4, 6) if as_said else (2,):
        prompt = build_prompt(messages[:turn], spec, tokenizer, rope_max=8, max_new_tokens=8)
        assert example.prompt.input_ids[: prompt.length] == prompt.input_ids
        assert example.trained[prompt.length]
        assert not example.trained[prompt.length - 1], "the first id the model says follows the prompt at once"


@pytest.mark.parametrize("family", COMPOSABLE)
def test_pixels_and_runs_are_those_of_asking(family: str) -> None:
    spec = spec_of(family)
    messages = dialogue(spec)[1:3]
    example = example_of(spec, messages)
    prompt = build_prompt(messages[:1], spec, load_tokenizer(spec.folder), rope_max=8)
    assert [(v.position, v.tokens, v.stride, v.newline) for v in example.prompt.visuals] == [
        (v.position, v.tokens, v.stride, v.newline) for v in prompt.visuals
    ]
    assert example.prompt.max_new_tokens == 0
    assert example.targets == sum(example.trained)


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
SLY = st.sampled_from(["</s>", "<image>", "<|im_end|>", "ASSISTANT:", "\ufdd0", "\ufdd1", "assistant\n", " ", "\n"])


@settings(deadline=None, max_examples=60)
@given(st.lists(TEXT | SLY, min_size=1, max_size=5), st.lists(TEXT | SLY, max_size=5), st.sampled_from(COMPOSABLE))
def test_whatever_is_said_one_run_is_trained_and_it_ends_once(
    pieces: list[str], asked: list[str], family: str
) -> None:
    spec, answer = spec_of(family), "".join(pieces)
    messages = [Message("user", "".join(asked)), Message("assistant", answer)]
    if not answer.strip():
        with pytest.raises(ConfigError, match="empty answer"):
            example_of(spec, messages)
        return
    example = example_of(spec, messages)
    trained = [i for i, learnt in enumerate(example.trained) if learnt]
    assert trained == list(range(trained[0], trained[-1] + 1))
    ends = stop_ids(spec.folder, load_tokenizer(spec.folder))
    assert [example.prompt.input_ids[i] in ends for i in trained] == [False] * (len(trained) - 1) + [True]


def test_the_builtin_models_template_needs_no_help() -> None:
    """Its own template ends every answer, so asking and teaching print one text whatever `as_said` says."""
    from vidllm.model.families import read_spec

    spec = read_spec(builtin_folder())
    messages = [Message("user", "what happens?"), Message("assistant", "Nothing happens.")] * 2
    example = example_of(spec, messages)
    tokenizer = load_tokenizer(spec.folder)
    plain = build_prompt(messages, spec, tokenizer, reply=False)
    assert example.prompt.input_ids == plain.input_ids
    assert said_in(example) == [" Nothing happens.</s>"] * 2


def test_a_conversation_over_the_context_is_refused_with_its_sum() -> None:
    spec = spec_of("llava")
    with pytest.raises(BudgetError, match=r"text \+ 0 reply = \d+ tokens, over context 4096"):
        example_of(spec, [Message("user", "?"), Message("assistant", "圆" * 4096)], rope_max=1.0)


def test_scaling_starts_where_the_context_ends() -> None:
    spec = replace(spec_of("llava"), context=64)
    short = example_of(spec, [Message("user", "?"), Message("assistant", "Two.")])
    long = example_of(spec, [Message("user", "?"), Message("assistant", "Two. " * 40)])
    assert short.prompt.rope_factor == 1.0
    assert long.prompt.rope_factor == pytest.approx(long.prompt.length / 64, abs=1e-4)


def test_a_model_that_never_stops_can_not_be_taught(tmp_path_factory: pytest.TempPathFactory) -> None:
    spec = spec_of("llava")
    folder = tmp_path_factory.mktemp("endless")
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        if (spec.folder / name).is_file():
            (folder / name).write_bytes((spec.folder / name).read_bytes())
    config = read_json(folder / "tokenizer_config.json") or {}
    config.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(IncompleteModel, match="no token ends an answer"):
        example_of(replace(spec, folder=folder), [Message("user", "?"), Message("assistant", "Two.")])


MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] "
    "{% for c in m.content if c.type == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %} [/INST]{% else %} "
    "{% for c in m.content if c.type == 'text' %}{% generation %}{{ c.text }}{% endgeneration %}{% endfor %}</s> "
    "{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n\\n' }}"
    "{% for c in m.content if c.type == 'image' %}<image>{% endfor %}"
    "{% for c in m.content if c.type == 'text' %}{{ c.text | trim }}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n\\n' }}{% endif %}"
)
TEXT_ONLY = (
    "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\nA:"
    "{% else %} {{ m.content }}\n{% endif %}{% endfor %}"
)
TRIMMED = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n\\n' }}{{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n\\n' }}{% endif %}"
)
"""As a Llama 3 of text alone prints it: a list of parts would be trimmed, too, and printed as Python writes it."""
FORGETFUL = (
    "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.role }}: {% for c in m.content %}"
    "{{ '<image>' if c.type == 'image' else c.text }}{% endfor %}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def with_template(template: str, folder: Path) -> ModelSpec:
    spec = spec_of("llava")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((spec.folder / name).read_bytes())
    (folder / "chat_template.jinja").write_text(template)
    return replace(spec, folder=folder, as_said=True)


TEMPLATES = {"mistral": MISTRAL, "llama3": LLAMA3, "text-only": TEXT_ONLY, "trimmed": TRIMMED}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_templates_of_other_models(template: str, tmp_path: Path) -> None:
    spec = with_template(template, tmp_path)
    messages = [m for m in dialogue(spec) if m.role != "system"]
    example = example_of(spec, messages)
    assert [text.strip() for text in said_in(example)] == [f"{answer}</s>" for answer in ANSWERS]
    for turn in (1, 3, 5):
        prompt = build_prompt(messages[:turn], spec, load_tokenizer(spec.folder), rope_max=8, max_new_tokens=8)
        assert example.prompt.input_ids[: prompt.length] == prompt.input_ids
        assert example.trained[prompt.length]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_templates_print_what_is_said_where_nothing_is_shown(template: str, tmp_path: Path) -> None:
    spec = with_template(template, tmp_path)
    example = example_of(spec, [Message("user", "what is red?"), Message("assistant", "A colour.")])
    assert "{" not in example.prompt.text
    assert "what is red?" in example.prompt.text
    assert [text.strip() for text in said_in(example)] == ["A colour.</s>"]


def test_a_template_that_forgets_answers_can_not_be_taught(tmp_path: Path) -> None:
    spec = with_template(FORGETFUL, tmp_path)
    with pytest.raises(IncompleteModel, match=r"can not be taught \(it prints 1 of 3 answers\)"):
        example_of(spec, [m for m in dialogue(spec) if m.role != "system"])
