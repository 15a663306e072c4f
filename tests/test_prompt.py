"""Prompts: the ids a model is fed, counted before they exist and exactly as they turn out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.planned import COMPOSABLE, FAMILIES, MINUTE, clip_of, index_only, picture, prompt_of, spec_of
from vidllm.errors import BudgetError, ConfigError, IncompleteModel
from vidllm.geometry import Geometry
from vidllm.model.chat import count_text_tokens
from vidllm.model.families import load_tokenizer
from vidllm.model.lmm import normalised
from vidllm.model.media import Shown, time_sentence
from vidllm.model.stills import shown_still
from vidllm.prompt import Message
from vidllm.visuals import Image


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "question", ["what happens at 0:30?", "", "第30秒发生了什么？ " * 20, "<image> </s> <|im_end|>"]
)
def test_the_plan_counts_exactly_the_prompt_that_is_made(family: str, question: str) -> None:
    spec = spec_of(family)
    clip = clip_of(spec, question, frames=None)
    prompt = prompt_of(spec, [Message("user", question, (clip,))])
    assert prompt.text_tokens == clip.plan.text_tokens
    assert prompt.video_tokens == clip.plan.video_tokens == sum(v.tokens for v in prompt.visuals)
    assert prompt.length == len(prompt.input_ids) == prompt.text_tokens + prompt.video_tokens
    assert prompt.max_new_tokens == clip.plan.max_new_tokens
    assert prompt.rope_factor == clip.plan.rope_factor


PIECES = st.sampled_from([
    "<image>", "<video>", "<|image|>", "<|video|>", "</s>", "<s>", "<|im_start|>", "<|video_pad|>", "[IMG]",
    "[IMG_BREAK]", " ", "\n", "0:30",
])  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(max_size=8) | PIECES, max_size=12), st.integers(1, 9), st.sampled_from(FAMILIES))
def test_whatever_is_asked_the_count_holds(pieces: list[str], frames: int, family: str) -> None:
    question, spec = "".join(pieces), spec_of(family)
    clip = clip_of(spec, question, frames=frames)
    prompt = prompt_of(spec, [Message("user", question, (clip,))])
    assert prompt.text_tokens == clip.plan.text_tokens
    assert prompt.video_tokens == clip.plan.video_tokens


@pytest.mark.parametrize("family", COMPOSABLE)
@pytest.mark.parametrize("stamp", ["none", "interleaved", "sentence"])
def test_every_stamp_is_counted(family: str, stamp: str) -> None:
    spec = replace(spec_of(family), stamp=stamp)
    clip = clip_of(spec, frames=11, subtitles=("[0:01] hello", "[0:02] world"))
    tokenizer = load_tokenizer(spec.folder)
    shown = Shown(kind="video", times=clip.plan.times, duration=MINUTE.duration, subtitles=clip.subtitles)
    prompt = prompt_of(spec, [Message("user", "what happens?", (clip,))])
    assert prompt.text_tokens == count_text_tokens("what happens?", spec, tokenizer, shown)
    assert prompt.text_tokens == len(tokenizer.encode(prompt.text).ids) - len(prompt.visuals)


@pytest.mark.parametrize("family", COMPOSABLE)
def test_each_frame_fills_its_own_run_of_placeholders(family: str) -> None:
    spec = spec_of(family)
    clip = clip_of(spec, "what happens at 0:30?", frames=None)
    prompt = prompt_of(spec, [Message("user", "what happens at 0:30?", (clip,))])
    assert len({v.stride for v in prompt.visuals}) == 2, "focus has fine and coarse frames"
    covered = [i for v in prompt.visuals for i in range(v.position, v.position + v.tokens)]
    assert covered == [i for i, token in enumerate(prompt.input_ids) if token == spec.image_token_id]
    for frame, visual in zip(clip.plan.frames, prompt.visuals, strict=True):
        assert visual.tokens == frame.tokens
        assert visual.times == (frame.time,)
        assert visual.pixels.shape == (1, spec.image_size, spec.image_size, 3)


def test_newline_one_is_carried_by_the_last_frame() -> None:
    spec = spec_of("llava_onevision")
    visuals = prompt_of(spec, [Message("user", "?", (clip_of(spec),))]).visuals
    assert [v.newline for v in visuals] == ["none"] * 5 + ["frame"]
    assert [v.tokens for v in visuals] == [25] * 5 + [26]


def test_newline_grid_is_on_every_frame() -> None:
    spec = spec_of("llava_onevision")
    assert isinstance(spec.geometry, Geometry)
    spec = replace(spec, geometry=replace(spec.geometry, newline="grid"))
    visuals = prompt_of(spec, [Message("user", "?", (clip_of(spec),))]).visuals
    assert {(v.newline, v.tokens) for v in visuals} == {("grid", 5 * 6)}


def test_interleaved_stamps_stand_before_their_frames() -> None:
    spec = spec_of("llava")
    text = prompt_of(spec, [Message("user", "what happens?", (clip_of(spec, frames=3),))]).text
    assert text == "USER: [0:00] <image>\n[0:29] <image>\n[0:59] <image>\nwhat happens? ASSISTANT:"


def test_the_frame_text_is_the_models_own() -> None:
    spec = replace(spec_of("llava"), frame_text="{time}{image}", stamp_decimals=0)
    text = prompt_of(spec, [Message("user", "what happens?", (clip_of(spec, frames=3),))]).text
    assert text == "USER: 0:00<image>0:29<image>0:59<image>\nwhat happens? ASSISTANT:"


def test_llava_video_sentence_is_byte_exact() -> None:
    spec = spec_of("llava_next_video")
    text = prompt_of(spec, [Message("user", "what happens?", (clip_of(spec, frames=3),))]).text
    assert text == (
        "USER: <image><image><image>\n"
        "The video lasts for 60.00 seconds, and 3 frames are uniformly sampled from it. These frames are located at "
        "0.00s,29.75s,59.75s.Please answer the following questions related to this video.\nwhat happens? ASSISTANT:"
    )


def test_stamps_do_not_drift_at_an_odd_frame_rate() -> None:
    """The reference divides a frame number by a rounded rate: at 12.5 fps its last stamp of ten minutes is 624 s."""
    info = index_only(np.arange(0, 600, 0.08))
    shown = Shown(kind="video", times=(0.0, float(info.pts_seconds[-1])), duration=info.duration)
    assert "located at 0.00s,599.92s." in time_sentence(shown)


def test_subtitles_stand_before_the_question() -> None:
    spec = spec_of("llava")
    clip = clip_of(spec, frames=1, subtitles=("[0:01] hello", "[0:02] world"))
    text = prompt_of(spec, [Message("user", "what is said?", (clip,))]).text
    assert text.endswith("<image>\nSubtitles:\n[0:01] hello\n[0:02] world\nwhat is said? ASSISTANT:")


def test_a_special_token_in_the_question_is_text() -> None:
    spec = spec_of("llava")
    honest = prompt_of(spec, [Message("user", "x", (clip_of(spec),))])
    sly = prompt_of(spec, [Message("user", "x </s> <image> <s>", (clip_of(spec),))])
    assert len(sly.visuals) == len(honest.visuals)
    tokenizer = load_tokenizer(spec.folder)
    assert sly.input_ids.count(tokenizer.token_to_id("</s>")) == honest.input_ids.count(tokenizer.token_to_id("</s>"))


def test_turns_follow_each_other_in_the_models_template() -> None:
    spec = spec_of("llava")
    messages = [
        Message("user", "what happens?", (clip_of(spec, frames=1),)),
        Message("assistant", "The red circle moves right."),
        Message("user", "and then?"),
    ]
    prompt = prompt_of(spec, messages)
    assert prompt.text == (
        "USER: [0:29] <image>\nwhat happens? ASSISTANT: The red circle moves right. USER: and then? ASSISTANT:"
    )
    assert len(prompt.visuals) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_several_videos_and_images_in_one_prompt(family: str) -> None:
    spec = spec_of(family)
    media = (clip_of(spec, frames=2), picture(100, 200), clip_of(spec, frames=4), picture(300, 120))
    prompt = prompt_of(spec, [Message("user", "compare", media)], rope_max=8)
    tiles = [shown_still(*size, spec).tiles for size in ((100, 200), (300, 120))]  # each with words before it
    clips = [["frame"] * 2, ["frame"] * 4] if spec.kind == "composable" else [["video"]] * 2
    kinds = [*clips[0], *["image"] * tiles[0], *clips[1], *["image"] * tiles[1]]
    assert [v.kind for v in prompt.visuals] == kinds
    assert [v.position for v in prompt.visuals] == sorted(v.position for v in prompt.visuals)
    assert prompt.video_tokens == sum(v.tokens for v in prompt.visuals)
    for visual in prompt.visuals:
        token = spec.video_token_id if visual.kind == "video" and spec.video_token_id else spec.image_token_id
        assert prompt.input_ids[visual.position] == token
        assert prompt.input_ids[visual.position - 1] != token or visual.position == 0 or visual.kind == "frame"


@pytest.mark.parametrize("family", ["llava_next", "llava_next_video", "llava_onevision"])
def test_anyres_images_bring_their_tiles(family: str) -> None:
    spec = spec_of(family)
    visual = prompt_of(spec, [Message("user", "?", (picture(300, 100),))], rope_max=8).visuals[0]
    assert visual.grid is not None
    assert visual.source_size == (300, 100)
    rows, cols = visual.grid
    assert visual.pixels.shape == (1 + rows * cols, spec.image_size, spec.image_size, 3)
    assert visual.newline == "grid"


def test_onevision_cuts_a_picture_only_when_it_is_alone() -> None:
    spec = spec_of("llava_onevision")
    visuals = prompt_of(spec, [Message("user", "?", (picture(300, 100), picture(100, 100)))]).visuals
    assert {(v.grid, v.tokens, v.newline) for v in visuals} == {(None, 82, "frame")}


def test_several_pictures_of_onevision_are_padded_as_its_processor_pads_them() -> None:
    from transformers import LlavaOnevisionImageProcessorPil

    spec = spec_of("llava_onevision")
    noise = np.random.default_rng(0).integers(0, 256, (126, 62, 3)).astype(np.uint8)
    processor = LlavaOnevisionImageProcessorPil.from_pretrained(spec.folder)
    expected = processor([[noise, noise]], return_tensors="pt")["pixel_values"][0, 0]
    visual = prompt_of(spec, [Message("user", "?", (Image(noise), Image(noise)))]).visuals[0]
    ours = normalised(torch.from_numpy(visual.pixels), spec, torch.empty(0))[0].permute(2, 0, 1)
    torch.testing.assert_close(ours, expected, atol=0.02, rtol=0)  # a border one grey level lighter


def test_a_kept_class_token_is_counted_for_images() -> None:
    spec = replace(spec_of("llava"), cls="keep")
    assert prompt_of(spec, [Message("user", "?", (picture(50, 50),))]).visuals[0].tokens == 65


@pytest.mark.parametrize(
    ("fit", "borders", "top_left"), [("pad", True, 122), ("stretch", False, 10), ("crop", False, 10)]
)
def test_frames_meet_the_square_tile_as_planned(fit: str, borders: bool, top_left: int) -> None:
    spec = spec_of("llava")
    clip = clip_of(spec, frames=1, fit=fit)
    assert clip.plan.fit == fit
    pixels = prompt_of(spec, [Message("user", "?", (clip,))]).visuals[0].pixels[0]
    assert pixels.shape == (112, 112, 3)
    assert (pixels != 10).any() == borders
    assert abs(int(pixels[0, 0].mean()) - top_left) <= 12


def test_a_conversation_that_does_not_fit_is_refused_and_never_cut() -> None:
    spec = replace(spec_of("llava"), context=256)
    messages = [Message("user", "word " * 600, ())]
    with pytest.raises(BudgetError, match=r"over context 256 x RoPE 2 = 512; use --rope-max [\d.]+ or a shorter quest"):
        prompt_of(spec, messages)


def test_a_talk_that_has_grown_too_long_is_told_to_begin_anew_where_that_helps() -> None:
    spec = replace(spec_of("llava"), context=256)
    first = Message("user", "what?", (picture(30, 40),))
    talk = [first, Message("assistant", "word " * 600), Message("user", "and then?")]
    with pytest.raises(BudgetError) as caught:
        prompt_of(spec, talk, rope_max=1)
    begin_anew, rope = caught.value.ways
    assert str(begin_anew) == "a shorter conversation"
    assert rope.change == "rope_max"
    assert prompt_of(spec, talk, rope_max=rope.value).rope_factor <= rope.value
    with pytest.raises(BudgetError) as caught:
        prompt_of(spec, [*talk[:2], Message("user", "word " * 600)], rope_max=1)
    assert "conversation" not in str(caught.value)


def test_a_reply_shrinks_to_what_is_left_and_no_further() -> None:
    """It fell from 256 to 64 at once when a talk had no room for the 256."""
    spec = replace(spec_of("llava"), context=300)
    short = prompt_of(spec, [Message("user", "word " * 50)], rope_max=1, shrink=True)
    assert 64 < short.max_new_tokens == 300 - short.length < 256
    with pytest.raises(BudgetError, match="64 reply"):
        prompt_of(spec, [Message("user", "word " * 150)], rope_max=1, shrink=True)


def test_a_prompt_built_to_be_counted_may_be_of_any_length() -> None:
    spec = replace(spec_of("llava"), context=64)
    prompt = prompt_of(spec, [Message("user", "word " * 600, ())], rope_max=float("inf"))
    assert prompt.rope_factor > 8


def test_the_clip_s_own_rope_factor_is_kept() -> None:
    spec = replace(spec_of("llava"), context=128)
    clip = clip_of(spec, frames=20, rope_max=8.0)
    prompt = prompt_of(spec, [Message("user", "what happens?", (clip,))])
    assert prompt.rope_factor == clip.plan.rope_factor > 2


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8), np.zeros((1, 8, 8, 3), np.uint8), [[0]], "picture.png",
    ],
)  # fmt: skip
def test_a_picture_is_checked_at_birth(pixels: object) -> None:
    with pytest.raises(ConfigError, match="pixels must be"):
        Image(pixels)  # type: ignore[arg-type]


def test_a_template_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe\x00")
    spec = replace(spec_of("llava"), folder=tmp_path)
    with pytest.raises(IncompleteModel, match="no readable chat template"):
        count_text_tokens("what?", spec, load_tokenizer(spec_of("llava").folder))
