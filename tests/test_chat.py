"""How families frame their prompts: native layouts, chat templates, and the ids of the real processors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.planned import MINUTE, clip_of, copied, picture, prompt_of, spec_of
from vidllm.errors import IncompleteModel
from vidllm.geometry import NativeGeometry
from vidllm.model.families import read_spec
from vidllm.model.media import number_words, stamp_decimals
from vidllm.model.templates import chat_template
from vidllm.prompt import Message, build_prompt


def test_qwen3_tells_the_mean_time_of_each_group() -> None:
    spec = spec_of("qwen3_vl")
    text = prompt_of(spec, [Message("user", "?", (clip_of(spec, frames=3),))]).text
    one = "<|vision_start|><|video_pad|><|vision_end|>"
    assert f"<|vision_start|><14.9 seconds>{one}<59.8 seconds>{one}<|vision_end|>?" in text


def test_qwen2_5_has_one_run_for_the_whole_video() -> None:
    spec = spec_of("qwen2_5_vl")
    assert isinstance(spec.geometry, NativeGeometry)
    clip = clip_of(spec, frames=5)
    prompt = prompt_of(spec, [Message("user", "?", (clip,))])
    (visual,) = prompt.visuals
    each = spec.geometry.tokens(*visual.pixels.shape[1:3])
    assert visual.tokens == 3 * each == clip.plan.video_tokens
    assert set(prompt.input_ids[visual.position : visual.position + visual.tokens]) == {spec.video_token_id}
    assert len(visual.times) == 5


def test_smolvlm_counts_and_dates_its_frames() -> None:
    spec = spec_of("smolvlm")
    text = prompt_of(spec, [Message("user", "what happens?", (clip_of(spec, frames=3),))]).text
    frame = "<fake_token_around_image><global-img><image><fake_token_around_image>"
    assert text == (
        "<|im_start|>User: You are provided the following series of three frames from a 0:01:00 [H:MM:SS] video.\n"
        f"\nFrame from 00:00:{frame}\nFrame from 00:29:{frame}\nFrame from 00:59:{frame}\n\nwhat happens?"
        "<end_of_utterance>\nAssistant:"
    )


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "zero"), (13, "thirteen"), (40, "forty"), (64, "sixty-four"), (100, "one hundred"),
     (132, "one hundred and thirty-two"), (1005, "one thousand and five"), (2300, "two thousand, three hundred")],
)  # fmt: skip
def test_number_words(number: int, words: str) -> None:
    assert number_words(number) == words


@pytest.mark.parametrize(
    ("times", "decimals"), [((0, 1, 2), 0), ((0, 0.5, 2), 1), ((0, 0.04), 2), ((5,), 0), ((3, 3, 5), 0)]
)
def test_stamps_gain_decimals_only_when_frames_are_close(times: tuple[float, ...], decimals: int) -> None:
    assert stamp_decimals(times) == decimals


# ---- templates


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("llava", "USER: <image>\n? ASSISTANT:"),
        ("vipllava", "###Human: <image>\n?###Assistant:"),
        ("llava_onevision", "<|im_start|>user\n<image>\n?<|im_end|>\n<|im_start|>assistant\n"),
        ("internvl", "<|im_start|>user\n<img><IMG_CONTEXT></img>\n?<|im_end|>\n<|im_start|>assistant\n"),
        (
            "gemma3",
            "<bos><start_of_turn>user\n\n\n<start_of_image><image_soft_token><end_of_image>\n\n?<end_of_turn>\n"
            "<start_of_turn>model\n",
        ),
        (
            "qwen2_5_vl",
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>?<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("video_llama_3", "<|im_start|>user\n<|image_pad|>\n?<|im_end|>\n<|im_start|>assistant\n"),
        (
            "lfm2_vl",
            "<|startoftext|><|im_start|>user\n<|image_start|><image><|image_end|>?<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("glm4v", "[gMASK]<sop><|user|>\n<|begin_of_image|><|image|><|end_of_image|>?<|assistant|>\n"),
        ("pixtral", "[INST][IMG]?[/INST]"),
        ("gemma4", "<bos><|turn>user\n\n\n<|image><|image|><image|>\n\n?<turn|>\n<|turn>model\n"),
        (
            "aya_vision",
            "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|><|START_OF_IMG|>TILE_GLOBAL<|IMG_PATCH|><|END_OF_IMG|>?"
            "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>",
        ),
        (
            "idefics3",
            "<|im_start|>User:<fake_token_around_image><global-img><image><fake_token_around_image>?"
            "<end_of_utterance>\nAssistant:",
        ),
    ],
)
def test_a_checkpoint_without_template_gets_its_family_s(family: str, text: str, tmp_path: Path) -> None:
    folder = copied(family, tmp_path)
    (folder / "chat_template.jinja").unlink()
    for name in ("tokenizer_config.json", "processor_config.json"):
        if (folder / name).exists():
            values = json.loads((folder / name).read_text())
            values["chat_template"] = [{"name": "tool_use", "template": "x"}, {"name": "default"}, "no template"]
            (folder / name).write_text(json.dumps(values))
    prompt = prompt_of(read_spec(folder), [Message("user", "?", (picture(64, 64),))], rope_max=8)
    assert prompt.text == text


def test_a_family_whose_positions_know_no_seconds_is_told_the_times_in_words() -> None:
    for family, told in (("qwen2_vl", True), ("qwen2_5_vl", False)):
        spec = spec_of(family)
        text = prompt_of(spec, [Message("user", "?", (clip_of(spec),))]).text
        assert ("These frames are located at 0.00s," in text) == told


def test_a_template_for_text_models_still_gets_its_pictures(tmp_path: Path) -> None:
    folder = copied("llava", tmp_path)
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    prompt = prompt_of(read_spec(folder), [Message("user", "?", (picture(9, 9), picture(9, 9)))])
    assert prompt.text == "user: <image>\n<image>\n?"


def test_generation_blocks_are_understood(tmp_path: Path) -> None:
    folder = copied("llava", tmp_path)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% for c in m.content %}{% if c.type == 'text' %}{% generation %}{{ c.text }}"
        "{% endgeneration %}{% else %}<image>{% endif %}{% endfor %}{% endfor %}"
    )
    assert prompt_of(read_spec(folder), [Message("user", "hello", (picture(9, 9),))]).text == "<image>hello"


def test_a_placeholder_in_a_question_is_text_even_where_it_is_no_special_token(tmp_path: Path) -> None:
    folder = copied("llava_next_video", tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    spec = read_spec(folder)
    prompt = prompt_of(spec, [Message("user", "what do <video> and <image> mean?", (clip_of(spec, frames=2),))])
    assert "< video> and < image>" in prompt.text
    assert prompt.input_ids.count(spec.image_token_id) == prompt.video_tokens


def test_no_tools_and_no_documents_are_none(tmp_path: Path) -> None:
    """As transformers renders it: an undefined word is not none, and some templates ask no more than that."""
    folder = copied("llava", tmp_path)
    (folder / "chat_template.jinja").write_text(
        "{% if tools is not none or documents is not none %}You may call {{ tools }}. {% endif %}"
        "{% for m in messages %}{% for c in m.content %}{{ c.text if c.type == 'text' else '<image>' }}{% endfor %}"
        "{% endfor %}"
    )
    assert prompt_of(read_spec(folder), [Message("user", "hello", (picture(9, 9),))]).text == "<image>hello"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | nonsense }}", "{{ raise_exception('no pictures here') }}", "only words", "{% if %}",
        "{{ 1 / 0 }}", "{% for n in range(1000000) %}{% endfor %}", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    ],
)  # fmt: skip
def test_a_template_that_can_not_be_used_is_one_line(template: str, tmp_path: Path) -> None:
    folder = copied("llava", tmp_path)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(IncompleteModel, match="chat template can not be used") as caught:
        prompt_of(read_spec(folder), [Message("user", "?", (picture(9, 9),))])
    assert "\n" not in str(caught.value)


def test_a_template_can_not_reach_out_of_its_sandbox(tmp_path: Path) -> None:
    folder = copied("llava", tmp_path)
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}<image>")
    with pytest.raises(IncompleteModel, match="unsafe"):
        prompt_of(read_spec(folder), [Message("user", "?", (picture(9, 9),))])


@pytest.mark.parametrize("family", ["pixtral", "mistral3", "lfm2_vl"])
@pytest.mark.parametrize("shown", ["a video", "a picture"])
def test_a_follow_up_begins_with_the_first_question(family: str, shown: str) -> None:
    """Also where the template takes parts of who asks and plain words of who answers."""
    spec = spec_of(family)
    medium = clip_of(spec) if shown == "a video" else picture(300, 421)
    first = [Message("user", "what?", (medium,))]
    more = [*first, Message("assistant", "The red circle moves right."), Message("user", "and then?")]
    one, two = prompt_of(spec, first), prompt_of(spec, more)
    assert two.input_ids[: one.length] == one.input_ids
    between = "</s>[INST]and then?[/INST]"
    if family == "lfm2_vl":
        between = "<|im_end|>\n<|im_start|>user\nand then?<|im_end|>\n<|im_start|>assistant\n"
    assert two.text == f"{one.text}The red circle moves right.{between}"


def test_transformers_wrapping_of_a_tokenizer_gives_the_same_ids() -> None:
    from transformers import AutoTokenizer

    spec = spec_of("llava")
    wrapped = AutoTokenizer.from_pretrained(spec.folder)
    wrapped(["a", "a longer one"], padding="max_length", truncation=True, max_length=4)  # leaves its state behind
    messages = [Message("user", "what happens?", (clip_of(spec),))]
    assert build_prompt(messages, spec, wrapped).input_ids == prompt_of(spec, messages).input_ids


# ---- against the real processors


@pytest.mark.parametrize("family", ["llava", "vipllava", "llava_next"])
@pytest.mark.parametrize("size", [(48, 64), (10, 90), (33, 47), (100, 33), (224, 224)])
def test_image_prompts_equal_those_of_the_real_processor(family: str, size: tuple[int, int]) -> None:
    from transformers import AutoProcessor

    spec = spec_of(family)
    real = AutoProcessor.from_pretrained(spec.folder)
    media = (picture(*size), picture(64, 64))
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "what?"}]}]
    text = real.apply_chat_template(messages, add_generation_prompt=True)
    expected = real(text=[text], images=[[m.pixels for m in media]])["input_ids"][0]
    assert list(prompt_of(spec, [Message("user", "what?", media)]).input_ids) == [int(i) for i in expected]


@pytest.mark.parametrize("family", ["llava_next_video", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "smolvlm"])
@pytest.mark.parametrize("frames", [1, 4, 7])
def test_video_prompts_equal_those_of_the_real_processor(family: str, frames: int) -> None:
    pytest.importorskip("torchvision", reason="transformers' video processors need torchvision")
    if family == "smolvlm":
        pytest.importorskip("num2words", reason="transformers' processor of it needs it")
    from transformers import AutoProcessor
    from transformers.video_utils import VideoMetadata

    spec = replace(spec_of(family), stamp="none")
    clip = clip_of(spec, frames=frames, fit="stretch")
    seen = clip.frames
    meta = VideoMetadata(
        total_num_frames=frames, fps=1000.0, duration=MINUTE.duration, width=1, height=1,
        frames_indices=[round(t * 1000) for t in seen.pts_seconds],
    )  # fmt: skip
    real = AutoProcessor.from_pretrained(spec.folder)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what?"}]}]
    template = chat_template(spec, video=True) if family == "smolvlm" else None
    text = real.apply_chat_template(messages, add_generation_prompt=True, chat_template=template)
    expected = real(
        text=[text], videos=[seen.pixels], do_sample_frames=False, do_resize=spec.kind == "composable",
        video_metadata=[meta], return_tensors="pt",
    )["input_ids"][0]  # fmt: skip
    ids = prompt_of(spec, [Message("user", "what?", (clip,))]).input_ids
    if spec.kind == "composable":
        ids = tuple(spec.video_token_id if i == spec.image_token_id else i for i in ids)
    assert list(ids) == [int(i) for i in expected]
