"""Plans of moments. Truths are worked out by hand; the properties hold for any ascending PTS."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.planned import index_only
from vidllm.errors import NoFrames
from vidllm.video.changes import packet_changes
from vidllm.video.info import VideoInfo, probe
from vidllm.video.sampling import SamplePlan, allow_snap, at_fps, change, fill, focus, frames_in_range, uniform

settings.register_profile("steady", deadline=None, max_examples=60)  # a busy machine is no failure
settings.load_profile("steady")

TEN_FPS = np.arange(600) / 10  # 60 s: 0.0 ... 59.9

gaps = st.lists(st.floats(0.001, 3.0), min_size=1, max_size=120)
clips = gaps.map(lambda steps: np.concatenate([[0.0], np.cumsum(steps)]))
ranges = st.tuples(st.floats(0, 1), st.floats(0.05, 1))


def made_info(sizes: np.ndarray, keys: np.ndarray, fps: float = 10.0) -> VideoInfo:
    """A clip's index as `probe` would give it, from packet sizes in bytes and key-frame flags; 320x240."""
    return replace(
        index_only(np.arange(len(sizes)) / fps, size=(240, 320)), key_frames=np.asarray(keys, np.bool_),
        packet_sizes=np.asarray(sizes, np.int64), access_points=np.zeros((1, 3), np.int64),
    )  # fmt: skip


def assert_real(plan: SamplePlan, pts: np.ndarray) -> None:
    """Times are ascending, distinct and those of existing frames."""
    assert np.isin(plan.times, pts).all()
    assert (np.diff(plan.times) > 0).all()


# uniform -------------------------------------------------------------------------------------------------------------


def test_uniform_is_a_linspace_over_the_frames_both_ends_included() -> None:
    assert uniform(TEN_FPS, 3).times == (0.0, 29.9, 59.9)  # the frame on screen at 29.95 s came at 29.9 s
    assert uniform(TEN_FPS, 2).times == (0.0, 59.9)
    assert uniform(TEN_FPS, 1).times == (29.9,)


@given(clips, st.integers(1, 200))
def test_uniform_gives_exactly_n_or_every_frame(pts: np.ndarray, n: int) -> None:
    plan = uniform(pts, n)
    assert_real(plan, pts)
    assert len(plan) == min(n, len(pts))
    if n > 1:
        assert (plan.times[0], plan.times[-1]) == (pts[0], pts[-1])


def test_uniform_of_more_than_all_frames_is_all_frames_at_no_cost() -> None:
    pts = np.arange(300) * 1001 / 30000
    assert uniform(pts, 10**18).times == tuple(pts)


@given(st.integers(2, 40))
def test_uniform_steps_differ_by_one_frame_at_most(n: int) -> None:
    steps = np.diff(uniform(TEN_FPS, n).times)
    assert steps.max() - steps.min() < 0.1 + 1e-9


def test_a_frame_held_for_long_does_not_cost_frames() -> None:
    slides = np.asarray([0.0, 0.1, 0.2, 30.0, 30.1])
    assert uniform(slides, 4).times[0] == 0.0
    assert len(uniform(slides, 4)) == 4


def test_the_range_is_half_open_and_holds_the_frame_on_screen_at_its_start() -> None:
    assert frames_in_range(TEN_FPS, 10.0, 10.3).tolist() == [10.0, 10.1, 10.2]
    assert frames_in_range(TEN_FPS, 10.05, 10.06).tolist() == [10.0]
    assert frames_in_range([0.0, 30.0], 5.0, 6.0).tolist() == [0.0]
    assert len(frames_in_range(TEN_FPS, 0.0, float("inf"))) == 600


@pytest.mark.parametrize(("start", "end"), [(10.0, 10.0), (20.0, 10.0), (60.0, 70.0), (600.0, float("inf")), (-2, 0)])
def test_a_range_without_a_frame_is_one_line(start: float, end: float) -> None:
    with pytest.raises(NoFrames) as caught:
        uniform(TEN_FPS, 4, start, end)
    assert "\n" not in str(caught.value)


def test_a_clip_without_frames_is_one_line() -> None:
    with pytest.raises(NoFrames, match="no frames"):
        uniform([], 4)


@given(clips, ranges, st.integers(1, 50))
def test_every_plan_stays_in_its_range(pts: np.ndarray, share: tuple[float, float], n: int) -> None:
    start = share[0] * float(pts[-1])
    end = start + max(share[1] * float(pts[-1]), 0.001)
    allowed = frames_in_range(pts, start, end)
    for plan in (
        uniform(pts, n, start, end),
        at_fps(pts, n / 5, start, end),
        focus(pts, [(start, start), (start, end)], start, end),
    ):
        assert np.isin(plan.times, allowed).all()


# fps -----------------------------------------------------------------------------------------------------------------


def test_fps_counts_from_the_first_frame() -> None:
    assert at_fps(TEN_FPS, 0.1).times == (0.0, 10.0, 20.0, 30.0, 40.0, 50.0)
    assert at_fps(TEN_FPS, 1, 30.0, 33.0).times == (30.0, 31.0, 32.0)


def test_fps_above_the_clips_own_is_every_frame_and_never_a_huge_grid() -> None:
    assert len(at_fps(TEN_FPS, 1e9)) == len(at_fps(TEN_FPS, 1e308)) == 600


def test_fps_gives_way_to_the_most_frames_allowed() -> None:
    plan = at_fps(TEN_FPS, 2, most=10)
    assert len(plan) == 10
    assert plan.method == "uniform"
    assert plan.times[-1] == 59.9


@pytest.mark.parametrize("fps", [0, -1, float("nan")])
def test_fps_must_be_positive(fps: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        at_fps(TEN_FPS, fps)


# focus ---------------------------------------------------------------------------------------------------------------


def fine_times(plan: SamplePlan) -> list[float]:
    return [t for t, is_fine in zip(plan.times, plan.fine, strict=True) if is_fine]


def test_a_moment_gets_nine_fine_frames_half_a_second_apart_and_two_between() -> None:
    """The two are a quarter of a second away, as near as ten frames a second allow."""
    plan = focus(TEN_FPS, [(30.0, 30.0)])
    assert fine_times(plan) == [28.0, 28.5, 29.0, 29.5, 29.7, 30.0, 30.2, 30.5, 31.0, 31.5, 32.0]
    coarse = [t for t in plan.times if t not in fine_times(plan)]
    assert coarse == list(uniform(TEN_FPS, 12).times)
    assert plan.method == "focus"


def test_at_the_clips_edge_moments_are_clipped_and_counted_once() -> None:
    assert fine_times(focus(TEN_FPS, [(0.0, 0.0)])) == [0.0, 0.2, 0.5, 1.0, 1.5, 2.0]
    assert fine_times(focus(TEN_FPS, [(60.0, 60.0)])) == [58.0, 58.5, 59.0, 59.5, 59.7, 59.9]


def test_a_span_gets_up_to_sixteen_and_one_step_on_each_side() -> None:
    long = fine_times(focus(TEN_FPS, [(20.0, 35.0)]))
    assert len(long) == 18
    assert (long[0], long[1], long[-2], long[-1]) == (19.5, 20.0, 35.0, 35.5)
    assert fine_times(focus(TEN_FPS, [(20.0, 22.0)])) == [19.5, 20.0, 20.5, 21.0, 21.5, 22.0, 22.5]
    assert fine_times(focus(TEN_FPS, [(30.0, 30.3)])) == [29.5, 30.0, 30.3, 30.8]
    assert len(fine_times(focus(TEN_FPS, [(30.0, 30.2)]))) == 11, "shorter than a quarter of a second is a moment"


def test_a_frame_in_both_layouts_is_one_fine_frame() -> None:
    plan = focus(TEN_FPS, [(0.0, 0.0)])
    assert plan.times[0] == 0.0
    assert plan.fine[0]
    assert len(plan) == 6 + 12 - 1


def test_the_fine_frames_can_be_bounded_and_the_nearest_stay() -> None:
    assert fine_times(focus(TEN_FPS, [(30.0, 30.0)], most_fine=3)) == [29.5, 30.0, 30.5]
    nine = [28.0, 28.5, 29.0, 29.5, 30.0, 30.5, 31.0, 31.5, 32.0]
    assert fine_times(focus(TEN_FPS, [(30.0, 30.0)], most_fine=9)) == nine, "a quarter of a second shows the least"


def test_of_a_slide_show_the_slide_on_screen_is_the_nearest() -> None:
    slides = [0.0, 25.0, 30.5, 60.0]
    assert fine_times(focus(slides, [(30.2, 30.2)], most_fine=1)) == [25.0]
    assert fine_times(focus(slides, [(30.2, 30.2)], most_fine=2)) == [25.0, 30.5]


def coarse_times(plan: SamplePlan) -> list[float]:
    return [t for t, is_fine in zip(plan.times, plan.fine, strict=True) if not is_fine]


def test_a_span_with_few_fine_frames_is_seen_from_end_to_end() -> None:
    assert fine_times(focus(TEN_FPS, [(54.0, 59.9)], most_fine=4)) == [
        54.0,
        55.6,
        57.7,
        59.9,
    ]  # of twelve, 0.54 s apart
    assert fine_times(focus(TEN_FPS, [(20.0, 22.0)], most_fine=1)) == [21.0]
    assert fine_times(focus(TEN_FPS, [(20.0, 22.0)], most_fine=6)) == [19.5, 20.0, 20.5, 21.0, 21.5, 22.0]


def test_every_named_time_gets_a_fine_frame_while_there_are_some() -> None:
    assert fine_times(focus(TEN_FPS, [(10.0, 30.0), (50.0, 50.0)], most_fine=2)) == [19.3, 50.0]
    assert fine_times(focus(TEN_FPS, [(10.0, 10.0), (50.0, 50.0)], most_fine=6)) == [9.5, 10.0, 10.5, 49.5, 50.0, 50.5]


def test_a_moment_at_the_end_is_seen_up_to_the_end() -> None:
    assert fine_times(focus(TEN_FPS, [(60.0, 60.0)], most_fine=3)) == [59.0, 59.5, 59.9]


def test_few_coarse_frames_cover_what_no_fine_one_shows() -> None:
    """Nine fine frames at 28-32 s of 60: two coarse for the ends, the others halve the empty stretches in turn."""
    assert coarse_times(focus(TEN_FPS, [(30.0, 30.0)], coarse=2, most_fine=9)) == [0.0, 59.9]
    assert coarse_times(focus(TEN_FPS, [(30.0, 30.0)], coarse=4, most_fine=9)) == [0.0, 14.0, 45.9, 59.9]
    assert coarse_times(focus(TEN_FPS, [(60.0, 60.0)], coarse=3, most_fine=5)) == [0.0, 19.3, 38.6]


def test_one_coarse_frame_stands_in_the_widest_gap() -> None:
    assert coarse_times(focus(TEN_FPS, [(10.0, 10.0)], coarse=1, most_fine=3)) == [35.2]


def test_coarse_frames_beside_a_single_fine_one_are_even() -> None:
    assert coarse_times(focus(TEN_FPS, [(0.0, 0.0)], coarse=3, most_fine=1)) == [19.9, 39.9, 59.9]
    assert focus([5.0], [(5.0, 5.0)], coarse=3, most_fine=9).times == (5.0,)


def test_with_the_trained_number_of_coarse_frames_they_are_uniform() -> None:
    """The built-in model was trained so, and a number of frames that leaves it room gets the very same times."""
    for moment in (0.0, 7.3, 30.0, 59.9):
        trained = focus(TEN_FPS, [(moment, moment)])
        assert focus(TEN_FPS, [(moment, moment)], coarse=12, most_fine=15) == trained
        assert set(uniform(TEN_FPS, 12).times) <= set(trained.times)


@given(
    clips, st.lists(st.tuples(st.floats(0, 300), st.floats(0, 20)), max_size=3), st.integers(0, 11), st.integers(1, 20)
)
def test_a_counted_focus_keeps_its_count_and_shows_both_ends(
    pts: np.ndarray, named: list[tuple[float, float]], coarse: int, fine: int
) -> None:
    spans = [(a, a + length) for a, length in named if a <= pts[-1]]
    if not spans:
        return
    plan = focus(pts, spans, coarse=coarse, most_fine=fine)
    assert_real(plan, pts)
    assert 1 <= sum(plan.fine) <= fine
    assert len(plan) == min(sum(plan.fine) + coarse, len(pts))
    if coarse >= 2:
        assert (plan.times[0], plan.times[-1]) == (pts[0], pts[-1])


@given(st.floats(0, 59.9), st.integers(3, 11))
def test_coarse_steps_beside_a_moment_are_as_even_as_they_can_be(moment: float, coarse: int) -> None:
    """No stretch could be split better: moving a frame to the widest gap from any other would leave a wider one."""
    times = np.asarray(focus(TEN_FPS, [(moment, moment)], coarse=coarse, most_fine=9).times)
    before, after = times[times <= moment - 1.9], times[times >= moment + 1.9]
    sides = [side for side in (before, after) if len(side) > 1]
    widest = max(float(np.diff(side).max()) for side in sides)
    for side in sides:
        if len(side) > 2:
            assert (side[-1] - side[0]) / (len(side) - 2) >= widest - 0.3  # within the frames' own 0.1 s


def test_without_a_span_in_the_range_focus_is_uniform() -> None:
    plan = focus(TEN_FPS, [(50.0, 50.0)], 0.0, 20.0)
    assert plan == uniform(TEN_FPS, 12, 0.0, 20.0)
    assert focus(TEN_FPS, [(70.0, 70.0)]) == uniform(TEN_FPS, 12)
    assert focus(TEN_FPS, [(5.0, 19.0)], 20.0, 40.0) == uniform(TEN_FPS, 12, 20.0, 40.0)


@given(clips, st.lists(st.tuples(st.floats(0, 400), st.floats(0, 20)), max_size=3))
def test_focus_holds_real_frames_and_the_named_one(pts: np.ndarray, named: list[tuple[float, float]]) -> None:
    spans = [(a, a + length) for a, length in named]
    plan = focus(pts, spans)
    assert_real(plan, pts)
    for a, b in spans:
        if a == b and a <= pts[-1]:
            assert pts[np.searchsorted(pts, a, side="right") - 1] in fine_times(plan)


# snapping ------------------------------------------------------------------------------------------------------------


def test_snapping_can_not_make_two_frames_one() -> None:
    plan = allow_snap(uniform(TEN_FPS, 7))
    assert 0 < 2 * plan.tolerance < min(np.diff(plan.times))


def test_a_named_moment_is_never_snapped() -> None:
    assert allow_snap(focus(TEN_FPS, [(30.0, 30.0)])).tolerance == 0.0
    assert allow_snap(uniform(TEN_FPS, 1)).tolerance == 0.0


def test_a_plan_is_checked_at_birth() -> None:
    with pytest.raises(ValueError, match="ascend"):
        SamplePlan((1.0, 1.0), (False, False), "uniform")
    with pytest.raises(ValueError, match="fine flags"):
        SamplePlan((1.0,), (), "uniform")
    with pytest.raises(ValueError, match="at least one"):
        SamplePlan((), (), "uniform")
    with pytest.raises(ValueError, match="negative"):
        replace(uniform(TEN_FPS, 2), tolerance=-1.0)


def test_filling_halves_the_heaviest_stretch() -> None:
    mass = np.arange(11, dtype=np.float64)
    assert fill(np.asarray([0, 10]), 3, mass).tolist() == [0, 4, 10]
    assert fill(np.asarray([0, 10]), 99, mass).tolist() == list(range(11))
    assert fill(np.asarray([5]), 99, mass).tolist() == list(range(11)), "what lies before the first, too"
    leaps = np.asarray([0.0, 1, 1, 5, 5, 6, 7, 8, 9, 19])
    assert fill(np.asarray([0, 4, 9]), 4, leaps).tolist() == [0, 1, 4, 9], "a leap at a neighbour is none of it"
    assert fill(np.asarray([0, 2, 10]), 4, np.zeros(11)).tolist() == [0, 2, 3, 10], "of equally heavy ones the longest"


# change --------------------------------------------------------------------------------------------------------------


def test_change_looks_where_the_bytes_are() -> None:
    """60 s at 10 fps: calm but for 20-30 s. More than half of the frames must be there."""
    sizes = np.full(600, 100)
    sizes[200:300] = 3000
    sizes[0] = 9000
    plan = change(made_info(sizes, np.arange(600) == 0), 16)
    inside = [t for t in plan.times if 19.5 <= t <= 30]
    assert len(inside) >= 10
    assert (plan.times[0], plan.times[-1]) == (0.0, 59.9)
    assert sum(t < 19 for t in plan.times) >= 2  # the uniform floor
    sizes = np.where((TEN_FPS > 5) & (TEN_FPS < 15), 3000, 100)
    assert 5 < change(made_info(sizes, np.arange(600) == 0), 3).times[1] < 15


def test_change_finds_a_cut() -> None:
    """One packet ten times its neighbours' size, 41.7 s in: a frame from just after it is chosen."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(800, 1200, 600)
    sizes[417] = 12000
    assert 41.7 in change(made_info(sizes, np.arange(600) == 0), 8).times


def test_an_early_key_frame_is_a_cut_and_a_regular_one_is_not() -> None:
    sizes = np.full(600, 1000)
    keys = np.isin(np.arange(600), [0, 250, 313, 563])
    sizes[keys] = 8000
    changes = packet_changes(made_info(sizes, keys))
    assert np.flatnonzero(changes.spikes).tolist() == [313]
    regular = np.arange(600) % 50 == 0
    assert not packet_changes(made_info(np.where(regular, 8000, 1000), regular)).spikes.any()


def test_changes_by_hand() -> None:
    """Motion in bytes, a key frame's told by its neighbours; spikes in doublings beyond the first; stills by size."""
    sizes, frames = np.full(200, 1000), np.arange(200)
    sizes[[0, 50, 100, 150]], sizes[170:175], sizes[180] = (4000, 8000, 8000, 100_000), 55, 56
    changes = packet_changes(made_info(sizes, frames == 100))
    assert changes.motion[[0, 1, 50, 100]].tolist() == [0, 1000, 8000, 1000], "before the first there is none"
    assert changes.spikes[[0, 1, 50, 100, 150]].tolist() == [0, 0, 2, 0, 4]
    assert np.flatnonzero(changes.still).tolist() == [170, 171, 172, 173, 174]
    assert packet_changes(made_info(sizes, frames < 90)).motion[40] == 1000, "without a neighbour by all others"


@pytest.mark.parametrize("size", [0, 20, 1000])
@pytest.mark.parametrize("all_keys", [False, True])
def test_constant_packets_are_sampled_uniformly(size: int, all_keys: bool) -> None:
    info = made_info(np.full(100, size), np.full(100, all_keys))
    assert np.abs(np.subtract(change(info, 8).times, uniform(info.pts_seconds, 8).times)).max() < 0.11


def test_frames_that_repeat_give_their_place_to_what_moves() -> None:
    """A talk with 40 s of one slide: no two inner frames show the slide while others move unseen."""
    sizes = np.full(600, 2000)
    sizes[100:500] = 15
    plan = change(made_info(sizes, np.arange(600) == 0), 20)
    assert sum(10.0 <= t < 50.0 for t in plan.times) <= 2
    assert len(plan) == 20


@given(st.lists(st.integers(0, 20_000), min_size=1, max_size=200), st.sets(st.integers(0, 199)), st.integers(1, 40))
def test_change_gives_exactly_n_first_and_last(sizes: list[int], keys: set[int], n: int) -> None:
    info = made_info(np.asarray(sizes), np.isin(np.arange(len(sizes)), list(keys)))
    plan = change(info, n)
    assert_real(plan, info.pts_seconds)
    assert len(plan) == min(n, len(sizes))
    if n > 1 and len(sizes) > 1:
        assert (plan.times[0], plan.times[-1]) == (info.pts_seconds[0], info.pts_seconds[-1])


def test_change_gives_exactly_n_of_a_clip_of_hours() -> None:
    sizes = np.where(np.arange(500_000) < 490_000, 2000, 10)  # then the credits stand still
    plan = change(made_info(sizes, np.arange(500_000) % 250 == 0, fps=50.0), 16)
    assert (len(plan), plan.times[0], plan.times[-1]) == (16, 0.0, 499_999 / 50)


@pytest.mark.parametrize(
    "name", ["natural/bikes.mp4", "natural/psd_testvideo_2cuts.mp4", "odd/black_10s.mp4", "natural/pigs_in_a_polka.gif"]
)
def test_change_on_real_clips(name: str, real_clip: Callable[[str], Path]) -> None:
    info = probe(real_clip(name))
    for plan in (change(info, 12), change(info, 12, 2.0, 2.7)):
        assert_real(plan, info.pts_seconds)
    assert len(change(info, 12)) == 12


def test_packet_sizes_tell_the_cuts_of_a_street_montage(real_clip: Callable[[str], Path]) -> None:
    """bikes.mp4 has hard cuts at 1.20, 3.04, 5.48, 7.48 and 9.68 s; twelve frames show at least four at once."""
    info = probe(real_clip("natural/bikes.mp4"))
    plan = change(info, 12)
    cuts = [1.20, 3.04, 5.48, 7.48, 9.68]
    assert sum(any(abs(t - cut) < 0.05 for t in plan.times) for cut in cuts) >= 4


def test_a_black_clip_has_no_change_anywhere(real_clip: Callable[[str], Path]) -> None:
    info = probe(real_clip("odd/black_10s.mp4"))
    assert packet_changes(info).still[1:].all()
