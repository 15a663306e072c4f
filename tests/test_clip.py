"""The one road from a path to frames: planned without decoding, then seen, and nothing said that is not so."""

from __future__ import annotations

import re
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import read_code, write_clip
from tests.planned import MINUTE, index_only, tiny_folder
from vidllm.clip import Clip, PlanOptions, open_clip, open_clips, plan_clips, plan_video
from vidllm.errors import BudgetError, NoFrames, VideoNotFound, VidllmError
from vidllm.model.families import ModelSpec, bare_spec, load_tokenizer, read_spec
from vidllm.video import subtitles
from vidllm.video.fit import decoded_size, fit_pixels, inner_size
from vidllm.video.guard import Limits

ROOT = Path(__file__).resolve().parents[1]
FRAMES, RATE = 240, 8


@pytest.fixture(scope="module")
def thirty_seconds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 numbered frames, eight a second; frame 8 * t is on screen at t."""
    path = tmp_path_factory.mktemp("clip") / "thirty seconds.mp4"
    return write_clip(path, [i / RATE for i in range(FRAMES)], gop=24)


@pytest.fixture
def llava() -> ModelSpec:
    return read_spec(tiny_folder("llava"))


def opened(path: Path, spec: ModelSpec, question: str = "", **options: object) -> Clip:
    return open_clip(path, question, spec, load_tokenizer(spec.folder), PlanOptions(**options))


def strides(clip_or_plan: object) -> list[int]:
    return [frame.stride for frame in clip_or_plan.plan.frames]  # type: ignore[attr-defined]


# ---- without a model


def test_the_published_plan_without_a_model() -> None:
    plan = plan_video(MINUTE, "", bare_spec(24, 24, 4096), None, PlanOptions(stride=2, frames=56)).plan
    assert (len(plan.frames), plan.video_tokens) == (56, 8064)
    assert plan.total <= 8192
    assert 1 < plan.rope_factor <= 2
    assert plan.max_new_tokens >= 64


@pytest.mark.parametrize("family", ["llava", "smolvlm"])
def test_both_ways_out_of_a_full_context_lead_out(family: str, thirty_seconds: Path) -> None:
    """Stamps are counted with the frames that are left: they alone would fill the context."""
    spec = read_spec(tiny_folder(family))
    reply = spec.context - 400
    with pytest.raises(BudgetError) as caught:
        opened(thirty_seconds, spec, "hi", frames=240, max_new_tokens=reply, rope_max=1.0)
    ways = dict(re.findall(r"--(frames|stride|rope-max) ([\d.]+)", str(caught.value)))
    assert "frames" in ways
    most = int(ways["frames"])
    assert len(opened(thirty_seconds, spec, "hi", frames=most, max_new_tokens=reply, rope_max=1.0).plan.frames) == most
    with pytest.raises(BudgetError):
        opened(thirty_seconds, spec, "hi", frames=most + 4, max_new_tokens=reply, rope_max=1.0)
    assert "shorter question" not in str(caught.value)
    assert "subtitles" not in str(caught.value)


def test_planning_needs_no_torch(thirty_seconds: Path, llava: ModelSpec) -> None:
    code = (
        "import sys; from pathlib import Path; from vidllm.clip import plan_video, PlanOptions;"
        "from vidllm.model.families import read_spec, load_tokenizer; spec = read_spec(Path(sys.argv[1]));"
        "plan_video(sys.argv[2], 'what happens at 0:10?', spec, load_tokenizer(spec.folder));"
        "sys.exit(bool({'torch', 'transformers', 'PIL', 'decord'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code, str(llava.folder), str(thirty_seconds)], check=True, cwd=ROOT)


# ---- seen


def test_what_is_seen_is_what_was_planned(thirty_seconds: Path, llava: ModelSpec) -> None:
    clip = opened(thirty_seconds, llava, "what happens at 0:10?")
    assert clip.plan == replace(
        plan_video(thirty_seconds, "what happens at 0:10?", llava, load_tokenizer(llava.folder)).plan, reader="pyav"
    )
    assert [read_code(p) for p in clip.frames.pixels] == [round(t * RATE) for t in clip.plan.times]
    assert clip.frames.pts_seconds.tolist() == list(clip.plan.times)


def test_a_range_keeps_the_source_clock(thirty_seconds: Path, llava: ModelSpec) -> None:
    clip = opened(thirty_seconds, llava, start=10.0, end=20.0, frames=5)
    assert clip.plan.times[0] == 10.0
    assert clip.plan.times[-1] == 19.875
    assert [read_code(p) for p in clip.frames.pixels] == [round(t * RATE) for t in clip.plan.times]


def test_more_frames_than_there_are_shows_all_and_says_so(thirty_seconds: Path, llava: ModelSpec) -> None:
    """The reference's sampler fails when asked for more frames than a clip holds."""
    clip = opened(thirty_seconds, llava, start=0.0, end=1.0, frames=32)
    assert len(clip.frames) == RATE
    assert clip.plan.notes == ("32 frames were asked for and the range holds 8; all of them are shown",)


def test_a_clip_of_one_frame(tmp_path: Path, llava: ModelSpec) -> None:
    clip = opened(write_clip(tmp_path / "one.mp4", [0.0]), llava)
    assert clip.plan.times == (0.0,)


@pytest.mark.parametrize(
    ("fit", "size"), [("pad", (67, 112)), ("stretch", (112, 112)), ("crop", (112, 187))]
)
def test_the_decoder_is_asked_for_the_size_the_fit_needs(
    thirty_seconds: Path, llava: ModelSpec, fit: str, size: tuple[int, int]
) -> None:
    clip = opened(thirty_seconds, llava, frames=2, fit=fit)
    assert clip.plan.fit == fit
    assert clip.plan.frame_size == clip.frames.pixels.shape[1:3] == size
    assert clip.plan.notes == (("the crop shows the middle 60% of every frame",) if fit == "crop" else ())


def test_key_frames_may_stand_in_when_allowed_and_their_times_are_told(thirty_seconds: Path, llava: ModelSpec) -> None:
    clip = opened(thirty_seconds, llava, frames=4, snap=True)
    assert 0 < clip.plan.tolerance < 30 / 4
    assert [f.time for f in clip.plan.frames] == clip.frames.pts_seconds.tolist()
    assert all(t % 3 == 0 for t in clip.plan.times[:-1]), "a key frame every three seconds"
    assert any("key frame" in note for note in clip.plan.notes)
    assert [read_code(p) for p in clip.frames.pixels] == [round(t * RATE) for t in clip.plan.times]
    planned = plan_video(
        thirty_seconds, "", llava, load_tokenizer(llava.folder), PlanOptions(frames=4, snap=True)
    ).plan  # fmt: skip
    assert replace(clip.plan, reader="auto") == planned, "times, stamps and notes are planned as they are shown"


def test_no_key_frame_outside_the_range_stands_in(thirty_seconds: Path, llava: ModelSpec) -> None:
    """There is one at 3 s and one at 6 s, each nearer to an end of the range than the frames within it."""
    clip = opened(thirty_seconds, llava, frames=4, snap=True, start=3.2, end=5.9)
    assert clip.plan.tolerance > 0.4
    assert clip.plan.times[0] > 3.1
    assert clip.plan.times[-1] < 5.9
    assert clip.frames.pts_seconds.tolist() == list(clip.plan.times)


def test_no_snapping_where_a_moment_is_named(thirty_seconds: Path, llava: ModelSpec) -> None:
    assert opened(thirty_seconds, llava, "what happens at 0:10?", snap=True).plan.tolerance == 0


def test_the_same_frames_through_the_guard(thirty_seconds: Path, llava: ModelSpec) -> None:
    from vidllm.video.guard import Limits

    free = opened(thirty_seconds, llava, frames=3)
    guarded = opened(thirty_seconds, llava, frames=3, guard=Limits(seconds=60))
    np.testing.assert_array_equal(free.frames.pixels, guarded.frames.pixels)
    assert free.plan == guarded.plan


def test_several_videos_share_one_context(thirty_seconds: Path, llava: ModelSpec) -> None:
    from vidllm.prompt import Message, build_prompt

    small = replace(llava, context=700)
    tokenizer = load_tokenizer(llava.folder)
    clips = open_clips([thirty_seconds, thirty_seconds], "compare them", small, tokenizer, PlanOptions(rope_max=1))
    prompt = build_prompt([Message("user", "compare them", clips)], small, tokenizer, rope_max=1)
    assert prompt.length + prompt.max_new_tokens <= 700
    assert len(clips[0].plan.frames) == len(clips[1].plan.frames) >= 2


def test_reserved_tokens_are_left_alone(llava: ModelSpec) -> None:
    tokenizer = load_tokenizer(llava.folder)
    free = plan_video(MINUTE, "", llava, tokenizer, PlanOptions(frames=4)).plan
    held = plan_video(MINUTE, "", llava, tokenizer, PlanOptions(frames=4, reserve=100)).plan
    assert held.text_tokens == free.text_tokens + 100


# ---- subtitles

SRT = "".join(
    f"{i + 1}\n00:00:{i * 2:02d},000 --> 00:00:{i * 2 + 1:02d},500\nline number {i}\n\n" for i in range(15)
)


@pytest.fixture
def subtitled(thirty_seconds: Path, tmp_path: Path) -> Path:
    path = tmp_path / "talk.mp4"
    path.write_bytes(thirty_seconds.read_bytes())
    path.with_suffix(".srt").write_text(SRT)
    return path


def test_subtitles_in_the_range_are_shown_and_counted(subtitled: Path, llava: ModelSpec) -> None:
    tokenizer = load_tokenizer(llava.folder)
    with_lines = plan_video(subtitled, "", llava, tokenizer, PlanOptions(start=10.0, end=14.0, frames=2))
    assert with_lines.subtitles == ("[0:10] line number 5", "[0:12] line number 6")
    without = plan_video(subtitled, "", llava, tokenizer, PlanOptions(start=10.0, end=14.0, frames=2, subtitles=False))
    assert without.subtitles == ()
    assert with_lines.plan.text_tokens > without.plan.text_tokens


def test_under_a_guard_subtitles_are_read_in_its_child(
    subtitled: Path, llava: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(*_: object) -> None:
        raise AssertionError("read in this process")

    monkeypatch.setattr(subtitles, "read_subtitles", here)
    look = PlanOptions(start=10.0, end=14.0, frames=2, guard=Limits())
    planned = plan_video(subtitled, "", llava, load_tokenizer(llava.folder), look)
    assert planned.subtitles == ("[0:10] line number 5", "[0:12] line number 6")


def test_subtitles_that_crowd_out_the_frames_keep_to_the_named_time(subtitled: Path, llava: ModelSpec) -> None:
    small = replace(llava, context=250)
    planned = plan_video(subtitled, "what is said at 0:20?", small, load_tokenizer(llava.folder))
    assert "[0:20] line number 10" in planned.subtitles
    assert 0 < len(planned.subtitles) < 15
    assert any("subtitle lines were left out" in note for note in planned.plan.notes)


def test_subtitles_of_several_videos_share_what_one_may_have(subtitled: Path, llava: ModelSpec) -> None:
    """A quarter of the whole context for each of five would leave none of them a frame."""
    small, options = replace(llava, context=900), PlanOptions(rope_max=1.0)
    several = plan_clips([subtitled] * 5, "compare them.", small, load_tokenizer(llava.folder), options)
    assert all(0 < len(planned.subtitles) < 15 and len(planned.plan.frames) > 1 for planned in several)


# ---- refusals


def test_a_missing_file(llava: ModelSpec) -> None:
    with pytest.raises(VideoNotFound):
        plan_video("no such clip.mp4", "", llava, load_tokenizer(llava.folder))


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (40.0, 50.0, "no frame at 0:40 or later, it ends at 0:30; choose an earlier --from"),
        (40.0, None, "no frame at 0:40 or later, it ends at 0:30; choose an earlier --from"),
        (20.0, 10.0, "the range 0:20.00-0:10.00 is empty; choose a --to after --from"),
        (5.0, 5.0, "the range 0:05.00-0:05.00 is empty; choose a --to after --from"),
    ],
)
def test_a_range_without_frames(
    thirty_seconds: Path, llava: ModelSpec, start: float, end: float | None, message: str
) -> None:
    with pytest.raises(NoFrames) as caught:
        plan_video(thirty_seconds, "", llava, load_tokenizer(llava.folder), PlanOptions(start=start, end=end))
    assert str(caught.value) == f"{thirty_seconds}: {message}"


def test_a_last_frame_that_stays_is_found_while_it_stays(llava: ModelSpec) -> None:
    slides = index_only([0.0, 2.0, 4.0, 4.04])
    assert slides.duration > 5.3
    planned = plan_video(slides, "what?", llava, load_tokenizer(llava.folder), PlanOptions(start=5.3))
    assert planned.plan.times == (4.04,)


def test_options_a_native_family_can_not_follow_are_said() -> None:
    spec = read_spec(tiny_folder("smolvlm"))
    options = PlanOptions(stride=2, fit="pad", rope_max=4.0, frames=2)
    plan = plan_video(MINUTE, "", spec, load_tokenizer(spec.folder), options).plan
    assert [note.rsplit(", so ")[1] for note in plan.notes] == [
        "--rope-max has no effect", "--stride has no effect", "--fit has no effect"
    ]  # fmt: skip
    assert (plan.fit, plan.rope_factor) == ("stretch", 1.0)


@pytest.mark.usefixtures("index_glances")
def test_change_takes_as_many_frames_at_one_stride(llava: ModelSpec) -> None:
    plan = plan_video(MINUTE, "", llava, load_tokenizer(llava.folder), PlanOptions(policy="change", frames=7))
    assert strides(plan) == [2] * 7
    assert plan.plan.policy == "change"


def test_every_real_clip_is_planned_or_refused_in_one_line(llava: ModelSpec, real_clips: Path) -> None:
    tokenizer, planned, refused = load_tokenizer(llava.folder), 0, []
    for path in sorted(p for p in real_clips.rglob("*") if p.is_file() and p.suffix not in (".md", ".json", ".txt")):
        try:
            plan = plan_video(path, "what happens at 0:02?", llava, tokenizer, PlanOptions(frames=6)).plan
        except VidllmError as error:
            refused.append((path.name, str(error)))
            continue
        planned += 1
        assert len(plan.frames) == 6 or plan.notes
    assert planned > 50
    assert all(name in line and "\n" not in line for name, line in refused)


# ---- fit


def test_fitting_is_padding_or_cropping_of_what_was_decoded_to_size() -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (2, 63, 112, 3), np.uint8)
    assert inner_size(720, 1280, 112, "pad") == (63, 112)
    padded = fit_pixels(pixels, 112, "pad", fill=(0.6, 2, 3.4))
    np.testing.assert_array_equal(padded[:, 24:87], pixels)
    assert (padded[:, :24] == (1, 2, 3)).all()
    upright = fit_pixels(pixels.swapaxes(1, 2), 112, "pad", fill=(0.6, 2, 3.4))
    np.testing.assert_array_equal(upright, padded.swapaxes(1, 2))
    wide = np.random.default_rng(1).integers(0, 255, (2, 112, 199, 3), np.uint8)
    assert inner_size(720, 1280, 112, "crop") == (112, 199)
    np.testing.assert_array_equal(fit_pixels(wide, 112, "crop"), wide[:, :, 43:155])
    assert fit_pixels(wide, 112, "stretch").shape == (2, 112, 112, 3)


def test_a_strip_is_cropped_before_it_is_scaled() -> None:
    """As a whole, a line of text of 20,000 x 20 pixels would be decoded to a thousand tiles a frame."""
    strip = np.zeros((1, 20, 20_000, 3), np.uint8)
    strip[:, :, 9_990:10_010] = 200
    strip[:, :2] //= 2
    assert decoded_size(20, 20_000, 336, "crop") is decoded_size(20, 161, 336, "crop") is None
    assert decoded_size(20, 160, 336, "crop") == inner_size(20, 160, 336, "crop") == (336, 2688)
    assert decoded_size(20, 20_000, 336, "pad") == decoded_size(20_000, 20, 336, "pad")[::-1] == (1, 336)
    tracemalloc.start()
    cropped = fit_pixels(strip, 336, "crop")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (cropped[:, 0] == 100).all()
    assert (cropped[:, 100:] == 200).all()
    assert most < 10 * cropped.nbytes
    assert not fit_pixels(strip, 336, "pad")[:, 0].any(), "whole, it leaves a border"


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (7, 3)])
def test_odd_pictures_fit_too(size: tuple[int, int]) -> None:
    for fit in ("pad", "stretch", "crop"):
        assert fit_pixels(np.zeros((1, *size, 3), np.uint8), 32, fit).shape == (1, 32, 32, 3)
