"""The policies: which moments, how many, how fine; and that what does not fit is said, never dropped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.planned import MINUTE, glances_at_index, index_only, tiny_folder
from vidllm.clip import PlanOptions, plan_video
from vidllm.errors import BudgetError, NoFrames
from vidllm.geometry import Geometry
from vidllm.model.families import ModelSpec, bare_spec, load_tokenizer, read_spec
from vidllm.policies import Look


@pytest.fixture
def llava() -> ModelSpec:
    return read_spec(tiny_folder("llava"))


def strides(clip_or_plan: object) -> list[int]:
    return [frame.stride for frame in clip_or_plan.plan.frames]  # type: ignore[attr-defined]


def test_auto_is_uniform_until_a_time_is_named(llava: ModelSpec) -> None:
    tokenizer = load_tokenizer(llava.folder)
    plain = plan_video(MINUTE, "what happens?", llava, tokenizer)
    assert (plain.plan.policy, len(plain.plan.frames), plain.focus) == ("uniform", llava.default_frames, None)
    timed = plan_video(MINUTE, "what happens at 0:30?", llava, tokenizer)
    assert timed.plan.policy == "focus"
    assert timed.focus is not None
    assert timed.focus.spans == ((30.0, 30.0),)


def test_focus_is_eleven_fine_frames_and_twelve_coarse_ones(llava: ModelSpec) -> None:
    planned = plan_video(MINUTE, "what happens at 0:30?", llava, load_tokenizer(llava.folder))
    fine = [f.time for f in planned.plan.frames if f.stride == llava.fine_stride]
    coarse = [f.time for f in planned.plan.frames if f.stride == llava.coarse_stride]
    assert fine == [28, 28.5, 29, 29.5, 29.75, 30, 30.25, 30.5, 31, 31.5, 32]
    assert len(coarse) == 12
    assert (coarse[0], coarse[-1]) == (0.0, 59.75)


def test_slowfast_makes_every_fourth_frame_fine(llava: ModelSpec) -> None:
    planned = plan_video(MINUTE, "", llava, load_tokenizer(llava.folder), PlanOptions(policy="slowfast", frames=8))
    assert strides(planned) == [2, 4, 4, 4, 2, 4, 4, 4]


def test_focus_without_a_named_time_says_that_it_is_uniform(llava: ModelSpec) -> None:
    planned = plan_video(MINUTE, "what?", llava, load_tokenizer(llava.folder), PlanOptions(policy="focus"))
    assert planned.plan.policy == "uniform"
    assert planned.plan.notes == ("the question names no time, so the frames are uniform",)


def test_a_stride_the_user_names_is_every_frame_s(llava: ModelSpec) -> None:
    """The reference reads a stride from its configuration and pools by 2 whatever it says."""
    for policy in ("uniform", "slowfast", "focus"):
        options = PlanOptions(policy=policy, stride=3, frames=6)
        planned = plan_video(MINUTE, "at 0:30?", llava, load_tokenizer(llava.folder), options)
        assert strides(planned) == [3] * 6
        assert planned.plan.video_tokens == 6 * 4


def test_a_time_outside_the_clip_is_said(llava: ModelSpec) -> None:
    planned = plan_video(MINUTE, "what happens at 5:00?", llava, load_tokenizer(llava.folder))
    assert planned.plan.policy == "uniform"
    assert any("outside the clip" in note for note in planned.plan.notes)


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"end": 20.0}, '"0:30" lies outside the range looked at (0:00-0:20); no focus on it'),
        ({"start": 40.0}, '"0:30" lies outside the range looked at (0:40-1:00); no focus on it'),
        ({"start": 0.0, "end": 300.0}, None),
    ],
)
def test_a_time_within_the_clip_is_not_called_outside_it(
    bounds: dict[str, float], said: str | None, llava: ModelSpec
) -> None:
    options = PlanOptions(**bounds)
    planned = plan_video(MINUTE, "what happens at 0:30?", llava, load_tokenizer(llava.folder), options)
    assert [note for note in planned.plan.notes if "outside" in note] == ([said] if said else [])


def test_the_default_takes_fewer_frames_when_room_is_short(llava: ModelSpec) -> None:
    for question in ("what happens?", "what happens at 0:30?"):
        small = replace(llava, context=300)
        plan = plan_video(MINUTE, question, small, load_tokenizer(llava.folder), PlanOptions(rope_max=2)).plan
        assert 1 <= len(plan.frames) < 21
        assert plan.max_new_tokens == 256
        assert plan.total <= 600


def test_a_question_too_long_for_any_frame_is_refused(llava: ModelSpec) -> None:
    with pytest.raises(BudgetError, match=r"1 frames x 16 \+ \d+ text \+ 64 reply = \d+ tokens"):
        plan_video(MINUTE, "word " * 3000, replace(llava, context=512), load_tokenizer(llava.folder))


@pytest.mark.parametrize("policy", ["uniform", "slowfast"])
@pytest.mark.parametrize("side", [1, 3])
def test_a_model_s_own_stride_leaves_a_token_of_every_frame(side: int, policy: str) -> None:
    """Of 3x3 patches a coarse stride of 4 would leave nothing, and nobody asked for it."""
    plan = plan_video(MINUTE, "", bare_spec(side, side, 4096), None, PlanOptions(policy=policy, frames=5)).plan
    assert len(plan.frames) == 5
    assert all(frame.tokens >= 1 for frame in plan.frames)
    with pytest.raises(BudgetError, match=f"stride 4 on a {side}x{side} grid leaves no token"):
        plan_video(MINUTE, "", bare_spec(side, side, 4096), None, PlanOptions(policy=policy, stride=4))


def test_even_steps_do_not_follow_the_picture_and_say_so(llava: ModelSpec) -> None:
    options = PlanOptions(policy="change", fps=0.5)
    plan = plan_video(MINUTE, "", llava, load_tokenizer(llava.folder), options).plan
    assert plan.policy == "uniform"
    assert any("--policy change has no effect" in note for note in plan.notes)


@pytest.mark.parametrize("rate", [1.0, 2.0, 0.25])
def test_a_frame_rate_is_kept(llava: ModelSpec, rate: float) -> None:
    plan = plan_video(MINUTE, "", llava, load_tokenizer(llava.folder), PlanOptions(fps=rate)).plan
    assert np.allclose(np.diff(plan.times), 1 / rate)
    assert len(plan.frames) == pytest.approx(60 * rate, abs=1)


def test_a_frame_rate_with_a_number_gives_the_fewer(llava: ModelSpec) -> None:
    tokenizer = load_tokenizer(llava.folder)
    assert len(plan_video(MINUTE, "", llava, tokenizer, PlanOptions(fps=1, frames=10)).plan.frames) == 10
    plan = plan_video(MINUTE, "", llava, tokenizer, PlanOptions(fps=0.1, frames=10)).plan
    assert len(plan.frames) == 6
    assert plan.notes == ()


def test_native_frames_shrink_before_they_are_dropped() -> None:
    spec = read_spec(tiny_folder("qwen2_5_vl"))
    tokenizer = load_tokenizer(spec.folder)
    sizes = []
    for frames in (4, 32, 100):
        plan = plan_video(MINUTE, "", spec, tokenizer, PlanOptions(frames=frames)).plan
        assert len(plan.frames) == frames
        assert plan.rope_factor == 1.0
        assert plan.frame_size is not None
        sizes.append(plan.frame_size[0] * plan.frame_size[1])
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


specs = st.builds(
    lambda side, context, pooling, newline: replace(
        read_spec(tiny_folder("llava")), geometry=Geometry(rows=side, cols=side, pooling=pooling, newline=newline),
        context=context,
    ),
    st.integers(8, 27), st.integers(256, 16384), st.sampled_from(["average", "max", "bilinear"]),
    st.sampled_from(["none", "one", "frame", "grid"]),
)  # fmt: skip


@pytest.mark.usefixtures("index_glances")
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    specs, st.none() | st.integers(1, 120), st.sampled_from(["uniform", "slowfast", "focus", "change", "auto"]),
    st.none() | st.integers(1, 6), st.sampled_from(["", "what happens at 0:30?", "between 0:10 and 0:20?"]),
    st.floats(1, 4),
)  # fmt: skip
def test_a_plan_fits_and_shows_the_frames_asked_for(
    spec: ModelSpec, frames: int | None, policy: str, stride: int | None, question: str, rope_max: float
) -> None:
    options = PlanOptions(frames=frames, policy=policy, stride=stride, rope_max=rope_max)
    try:
        plan = plan_video(MINUTE, question, spec, load_tokenizer(spec.folder), options).plan
    except BudgetError:
        assert frames is not None or spec.context * rope_max < 1500, "without a number of frames, some fit"
        return
    assert plan.total <= plan.context * plan.rope_factor + 1e-6
    assert plan.rope_factor <= rope_max
    if frames is not None:
        assert len(plan.frames) == frames
    assert set(plan.times) <= set(MINUTE.pts_seconds)


@pytest.mark.parametrize("policy", ["uniform", "slowfast", "focus"])
@pytest.mark.parametrize("frames", [1, 2, 3, 9, 21, 100, 240])
def test_every_number_of_frames_can_be_had(policy: str, frames: int) -> None:
    look = Look(info=MINUTE, policy=policy, spans=((10.0, 12.0), (30.0, 30.0)), glance=glances_at_index)
    plan = look.moments(frames)
    assert len(plan) == frames
    assert any(plan.fine) == (policy != "uniform")


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.integers(1, 3000), max_size=60), st.integers(1, 80),
    st.sampled_from(["uniform", "slowfast", "focus"]), st.lists(st.floats(0, 120), min_size=1, max_size=3),
    st.floats(0, 5), st.floats(0, 60), st.floats(0.01, 100),
)  # fmt: skip
def test_any_clip_any_span_any_range_gives_the_number_asked_for(
    gaps: list[int], frames: int, policy: str, marks: list[float], length: float, start: float, width: float
) -> None:
    info = index_only(np.cumsum([0, *gaps]) / 1000)
    spans = tuple(sorted((mark, mark + length) for mark in marks))
    look = Look(info=info, policy=policy, spans=spans, start=start, end=start + width, glance=glances_at_index)
    try:
        available = look.available
    except NoFrames:
        return
    plan = look.moments(frames)
    assert len(plan) == min(frames, available)
    assert set(plan.times) <= set(info.pts_seconds.tolist())
    assert policy == "uniform" or any(plan.fine)


def test_a_time_named_just_past_the_last_frame_means_the_last_frame() -> None:
    look = Look(info=index_only(np.arange(10) / 25), policy="focus", spans=((1.0, 1.0),), glance=glances_at_index)
    for frames in (None, 1, 4, 30):
        plan = look.moments(frames)
        assert plan.fine[-1]
        assert len(plan) == min(frames or 10, 10)
