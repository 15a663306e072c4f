"""Glances: a clip seen small and often, and the few frames that show the most of it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_sampling import TEN_FPS, made_info
from vidllm import Limits
from vidllm.clip import PlanOptions, plan_video
from vidllm.errors import VideoError
from vidllm.model.families import bare_spec
from vidllm.policies import Look
from vidllm.reads import Reads
from vidllm.shots import choose_moments
from vidllm.video import glances as module
from vidllm.video.decode import FrameSet, read_frames
from vidllm.video.glances import EVENLY, MOST, covering, glance_times, glances_of
from vidllm.video.info import VideoInfo, probe
from vidllm.video.sampling import change, uniform
from vidllm.video.thumbs import SIDE


def scenes(path: Path, seconds: Sequence[float], greys: Sequence[int], *, gop: int = 1000) -> VideoInfo:
    """A clip of 10 frames a second, 160x120: plain scenes of some length and grey, one after another."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": str(gop), "sc_threshold": "0", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for length, grey in zip(seconds, greys, strict=True):
            for _ in range(round(length * 10)):
                picture = np.full((120, 160, 3), grey, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return probe(path)


def glanced(seconds: np.ndarray, pixels: np.ndarray) -> FrameSet:
    return FrameSet(pixels, seconds, seconds, "pyav")


def grey_at(times: Sequence[float], seconds: Sequence[float], greys: Sequence[int]) -> set[int]:
    """Which scenes these times show."""
    ends = np.cumsum(seconds)
    return {greys[int(np.searchsorted(ends, t + 1e-6, side="right"))] for t in times}


GREYS, LENGTHS = (20, 200, 20, 90, 20, 150), (12.0, 0.5, 12.0, 0.5, 12.0, 0.5)


def test_change_shows_what_is_on_screen_for_half_a_second(tmp_path: Path) -> None:
    """Six frames of 37.5 s; three scenes of half a second and one that returns. Even steps meet none of the short ones
    but the last."""
    info = scenes(tmp_path / "clip.mp4", LENGTHS, GREYS)
    plan, _ = choose_moments(info, options=PlanOptions(policy="change", frames=6))
    assert len(plan) == 6
    assert grey_at(plan.times, LENGTHS, GREYS) == {20, 200, 90, 150}
    assert grey_at(uniform(info.pts_seconds, 6).times, LENGTHS, GREYS) == {20, 150}


def test_the_plan_and_the_guarded_plan_glance_alike(tmp_path: Path) -> None:
    info = scenes(tmp_path / "clip.mp4", LENGTHS, GREYS)
    plans = [
        plan_video(info, "", bare_spec(4, 4, 4096), None, PlanOptions(policy="change", frames=9, guard=guard))
        for guard in (None, Limits(seconds=60))
    ]
    times = [[frame.time for frame in planned.plan.frames] for planned in plans]
    assert times[0] == times[1]
    assert grey_at(times[0], LENGTHS, GREYS) == set(GREYS)


def test_a_range_is_glanced_at_alone(tmp_path: Path) -> None:
    info = scenes(tmp_path / "clip.mp4", LENGTHS, GREYS)
    seen = Reads(None).glances(info, 11.0, 14.0)
    assert (seen.pts_seconds[0], seen.pts_seconds[-1]) == (11.0, 13.9)
    assert seen.pixels.shape == (30, SIDE, SIDE, 3)


def test_a_clip_is_read_once_for_all_plans_of_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many frames fit is searched for; each trial asks for its own moments."""
    info = scenes(tmp_path / "clip.mp4", LENGTHS, GREYS)
    reads = []

    def reading(info: VideoInfo, start: float, end: float) -> np.ndarray:
        reads.append((start, end))
        return glance_times(info, start, end)

    monkeypatch.setattr("vidllm.reads.glance_times", reading)
    plan = plan_video(info, "", bare_spec(8, 8, 700), None, PlanOptions(policy="change", stride=1)).plan
    assert 2 < len(plan.frames) < 32
    assert reads == [(0.0, float("inf"))]


def test_a_long_clip_is_glanced_at_in_its_key_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = scenes(tmp_path / "clip.mp4", LENGTHS, GREYS, gop=15)
    assert EVENLY <= len(glance_times(info)) <= MOST
    monkeypatch.setattr(module, "DECODED_PIXELS", 1e5)
    times = glance_times(info)
    assert np.allclose(times, [*np.arange(0, 37.5, 1.5), 37.4])
    assert np.allclose(glance_times(info, 2.0, 4.0), [2.0, 3.0, 3.9])


def test_more_frames_than_glances_go_by_packets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = scenes(tmp_path / "clip.mp4", LENGTHS, GREYS, gop=100)
    monkeypatch.setattr(module, "DECODED_PIXELS", 1e6)
    glance = Reads(None).glances
    assert len(glance(info, 0.0, float("inf"))) == 5
    look = Look(info=info, policy="change", glance=glance)
    assert len(look.moments(4)) == 4
    assert look.moments(40) == change(info, 40)


def test_what_can_not_be_read_is_said(tmp_path: Path) -> None:
    info = scenes(tmp_path / "clip.mp4", LENGTHS, GREYS)
    (tmp_path / "clip.mp4").unlink()
    with pytest.raises(VideoError, match=r"clip\.mp4"):
        choose_moments(info, options=PlanOptions(policy="change", frames=6))


def test_pictures_that_stood_in_count_once(tmp_path: Path) -> None:
    info = scenes(tmp_path / "clip.mp4", (1.0,), (50,))
    seen = glances_of(read_frames(info, [0.0, 0.04, 0.3, 0.3], size=(SIDE, SIDE)))
    assert np.allclose(seen.pts_seconds, [0.0, 0.3])
    assert np.abs(seen.pixels.astype(int) - 50).max() < 4


def test_a_picture_that_stands_in_from_before_the_range_is_none_of_it() -> None:
    """Damage at the begin of a range is answered with what could be decoded before it."""
    seconds, pixels = np.asarray([2.0, 2.0, 5.0, 6.0]), np.zeros((4, SIDE, SIDE, 3), np.uint8)
    seen = glances_of(FrameSet(pixels, seconds, np.asarray([3.0, 4.0, 5.0, 6.0]), "pyav"))
    assert seen.pts_seconds.tolist() == [5.0, 6.0]


@given(
    st.lists(st.integers(0, 255), min_size=3, max_size=40), st.integers(3, 39),
    st.lists(st.floats(0.001, 5.0), min_size=40, max_size=40),
)  # fmt: skip
def test_covering_gives_exactly_n_first_and_last(greys: list[int], n: int, gaps: list[float]) -> None:
    seconds = np.cumsum(gaps)[: len(greys)]
    pixels = np.broadcast_to(np.asarray(greys, np.uint8)[:, None, None, None], (len(greys), SIDE, SIDE, 3))
    n = min(n, len(greys))
    chosen = covering(glanced(seconds, pixels), n).tolist()
    assert len(set(chosen)) == n
    assert chosen == sorted(chosen)
    assert (chosen[0], chosen[-1]) == (0, len(greys) - 1)


def test_a_small_object_counts_as_much_as_a_scene() -> None:
    """A patch of 4x4 of 32x32 appears at one glance of sixty."""
    pixels = np.zeros((60, SIDE, SIDE, 3), np.uint8)
    pixels[37, 8:12, 20:24] = 255
    assert 37 in covering(glanced(TEN_FPS[:60], pixels), 5)


def test_a_still_clip_is_shown_from_end_to_end() -> None:
    chosen = covering(glanced(TEN_FPS[:128], np.full((128, SIDE, SIDE, 3), 7, np.uint8)), 9)
    assert np.diff(chosen).max() < 2.1 * 127 / 8


@pytest.mark.parametrize("frames", [1, 2, 600, 601])
def test_nobody_looks_where_it_changes_nothing(frames: int) -> None:
    """Two frames are the ends, and all of them are all."""
    info = made_info(np.full(600, 1000), np.arange(600) == 0)
    look = Look(info=info, policy="change", glance=lambda *_: pytest.fail("it looked"))
    assert len(look.moments(frames)) == min(frames, 600)
    with pytest.raises(pytest.fail.Exception, match="it looked"):
        look.moments(3)


@pytest.mark.parametrize("name", ["natural/bikes.mp4", "natural/psd_testvideo_2cuts.mp4", "odd/black_10s.mp4"])
def test_real_clips(name: str, real_clip: Callable[[str], Path]) -> None:
    info = probe(real_clip(name))
    plan, _ = choose_moments(info, options=PlanOptions(policy="change", frames=12))
    assert np.isin(plan.times, info.pts_seconds).all()
    assert (len(plan), plan.times[0], plan.times[-1]) == (12, 0.0, info.pts_seconds[-1])
