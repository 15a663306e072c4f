"""When nothing fits: every way out that is told, taken literally, leads out."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.planned import index_only, picture, spec_of
from vidllm.advice import Wish
from vidllm.clip import PlanOptions, open_clips, plan_clips, plan_video
from vidllm.errors import BudgetError, VideoNotFound, Way
from vidllm.model.chat import count_text_tokens
from vidllm.model.families import bare_spec, load_tokenizer
from vidllm.model.media import Shown
from vidllm.planned import plan_source
from vidllm.video.info import VideoInfo
from vidllm.video.subtitles import Line, read_subtitles

MINUTE = index_only(np.arange(0, 60, 0.25))
SRT = "".join(f"{i + 1}\n00:00:{i:02d},000 --> 00:00:{i:02d},900\nThis is line number {i}.\n\n" for i in range(58))


def taken(wish: Wish, way: Way) -> Wish:
    """What who follows the advice asks next."""
    if way.change == "question":
        return replace(wish, question="?")
    if way.change == "context":
        return replace(wish, spec=replace(wish.spec, context=way.value))  # type: ignore[arg-type]
    return replace(wish, options=replace(wish.options, **{way.change: way.value}))  # type: ignore[arg-type]


def check(wish: Wish, plan: Callable[[Wish], object]) -> tuple[Way, ...]:
    """The ways told, each of which was taken; none when there was no need."""
    try:
        plan(wish)
    except BudgetError as error:
        ways = error.ways
    else:
        return ()
    assert ways
    for way in ways:
        plan(taken(wish, way))
    return ways


def any_wish(rng: random.Random, family: str) -> Wish:
    options = PlanOptions(
        policy=rng.choice(["auto", "uniform", "slowfast", "focus", "change"]),
        frames=rng.choice([None, 1, 5, 56, 200]),
        fps=rng.choice([None, None, 1.0]),
        stride=rng.choice([None, None, 1, 3]),
        rope_max=rng.choice([1.0, 1.1, 2.0, 4.0]),
        max_new_tokens=rng.choice([None, 1, 64, 300]),
        reserve=rng.choice([0, 0, 100]),
        snap=rng.random() < 0.2,
    )
    question = rng.choice(["what happens?", "what happens between 0:10 and 0:20?", "and at the end? " * 10])
    spec = replace(spec_of(family), context=rng.choice([64, 200, 512, 1024]))
    return Wish(question=question, spec=spec, options=options)


@pytest.mark.usefixtures("index_glances")
@pytest.mark.parametrize("videos", [1, 3])
@pytest.mark.parametrize("family", ["llava", "llava_onevision", "internvl", "gemma3", "qwen3_vl"])
def test_every_way_out_leads_out(family: str, videos: int, tmp_path: Path) -> None:
    """With subtitles, of which more room shows more, and beside other videos, of which each has its share."""
    (tmp_path / "talk.srt").write_text(SRT)
    rng = random.Random(f"{family}{videos}")
    tokenizer = load_tokenizer(spec_of(family).folder)
    told: set[str] = set()
    for _ in range(10):
        name = rng.choice(["talk.mp4", "silent.mp4"])
        infos = [index_only(np.arange(0, rng.choice([3, 60, 300]), 0.25), path=str(tmp_path / name))] * videos

        def plan(wish: Wish, infos: list[VideoInfo] = infos) -> object:
            return plan_clips(infos, wish.question, wish.spec, tokenizer, wish.options)

        told |= {way.change for way in check(any_wish(rng, family), plan)}
    assert "context" in told, "nothing was too much"


def test_the_published_grid_is_told_its_frames_and_its_stride() -> None:
    with pytest.raises(BudgetError) as caught:
        plan_video(MINUTE, "", bare_spec(24, 24, 4096), None, PlanOptions(frames=64, stride=2))
    assert caught.value.ways == (Way("frames", 56), Way("stride", 3))
    assert str(caught.value).endswith("; use --frames 56 or --stride 3")


def test_a_way_is_the_least_change_that_suffices() -> None:
    """2001 tokens in 1024 positions."""
    options = PlanOptions(frames=1, stride=24, rope_max=1.0, max_new_tokens=2000)
    with pytest.raises(BudgetError) as caught:
        plan_video(MINUTE, "", bare_spec(24, 24, 1024), None, options)
    assert caught.value.ways == (Way("max_new_tokens", 1023), Way("rope_max", 1.96))


def test_a_rounding_adds_no_hundredth_to_the_factor() -> None:
    """838 tokens in 200 positions: 838 / 200 * 100 is 419.00000000000006."""
    options = PlanOptions(frames=1, stride=24, rope_max=1.0, max_new_tokens=837)
    with pytest.raises(BudgetError) as caught:
        plan_video(MINUTE, "", bare_spec(24, 24, 200), None, options)
    assert caught.value.ways == (Way("max_new_tokens", 199), Way("rope_max", 4.19))


def test_a_model_whose_positions_can_not_be_scaled_is_not_told_to_scale_them() -> None:
    spec = replace(spec_of("smolvlm"), context=256)
    with pytest.raises(BudgetError) as caught:
        plan_video(MINUTE, "what?", spec, load_tokenizer(spec.folder), PlanOptions(max_new_tokens=300))
    reply, context = caught.value.ways
    assert (reply.change, context.change) == ("max_new_tokens", "context")
    assert isinstance(context.value, int)
    narrow = replace(spec, context=context.value - 1)
    with pytest.raises(BudgetError):
        plan_video(MINUTE, "what?", narrow, load_tokenizer(spec.folder), PlanOptions(max_new_tokens=300))


def test_where_little_is_missing_a_short_reply_is_a_second_way() -> None:
    spec = replace(spec_of("smolvlm"), context=120)
    wish = Wish(question="?", spec=spec, options=PlanOptions(frames=1))

    def plan(wish: Wish) -> object:
        return plan_video(MINUTE, wish.question, wish.spec, load_tokenizer(spec.folder), wish.options)

    assert [way.change for way in check(wish, plan)] == ["max_new_tokens", "context"]


def test_a_picture_too_large_is_told_ways_out_too() -> None:
    still = picture(300, 400)
    for rope_max, reply in ((1.0, None), (1.0, 300), (2.0, 1000)):
        spec = replace(spec_of("llava_next"), context=280)
        wish = Wish(question="what?", spec=spec, options=PlanOptions(rope_max=rope_max, max_new_tokens=reply))

        def plan(wish: Wish) -> object:
            return plan_source(still, wish.question, wish.spec, load_tokenizer(wish.spec.folder), wish.options)

        assert len(check(wish, plan)) == 2


def test_a_prompt_without_room_for_a_share_is_a_sum_not_a_broken_option() -> None:
    """The share of each of several videos was negative then, and a `reserve` nobody had named was complained of."""
    spec = replace(spec_of("llava"), context=32)
    with pytest.raises(BudgetError, match="over context 32 x RoPE 2 = 64"):
        plan_clips([MINUTE, MINUTE], "what?", spec, load_tokenizer(spec.folder))


def test_subtitles_are_read_once_however_many_plans_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "talk.srt").write_text(SRT)
    talk = index_only(np.arange(0, 60, 0.25), path=str(tmp_path / "talk.mp4"))
    reads: list[str] = []

    def counted(info: VideoInfo, start: float, end: float) -> tuple[Line, ...]:
        reads.append(info.path)
        return read_subtitles(info, start, end)

    monkeypatch.setattr("vidllm.video.subtitles.read_subtitles", counted)
    spec = replace(spec_of("llava"), context=200)
    with pytest.raises(BudgetError) as caught:
        plan_clips([talk, MINUTE], "what?", spec, load_tokenizer(spec.folder), PlanOptions(frames=56))
    assert len(caught.value.ways) == 2
    assert len(reads) == 2


@pytest.mark.parametrize("reply", [None, 20])
def test_several_videos_that_were_planned_fit_together(reply: int | None) -> None:
    """Each let the one reply shrink for itself: together they were over, which was found when all were decoded."""
    spec, refused = spec_of("llava"), 0
    tokenizer = load_tokenizer(spec.folder)
    options = PlanOptions(frames=8, rope_max=1, max_new_tokens=reply)
    for context in range(500, 760, 5):
        narrow = replace(spec, context=context)
        try:
            planned = plan_clips([MINUTE] * 3, "compare them", narrow, tokenizer, options)
        except BudgetError:
            refused += 1
            continue
        shown = [Shown(kind="video", times=p.plan.times, duration=MINUTE.duration) for p in planned]
        text = count_text_tokens("compare them", narrow, tokenizer, *shown)
        assert sum(p.plan.video_tokens for p in planned) + text + (reply or 64) <= context
    assert 5 < refused < 45


def test_no_frame_is_decoded_before_all_are_planned(clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("vidllm.reads.read_frames", never)
    spec = spec_of("llava")
    with pytest.raises(VideoNotFound):
        open_clips([clips["constant"], "nowhere.mp4"], "what?", spec, load_tokenizer(spec.folder))


def test_an_error_crosses_from_process_to_process_with_its_ways() -> None:
    error = BudgetError("a sum", lambda: [Way("frames", 3)], 7)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.ways, again.short) == ("a sum; use --frames 3", (Way("frames", 3),), 7)
