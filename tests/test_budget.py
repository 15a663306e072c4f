"""The budget: the published token tables, the smallest RoPE factor, and errors that hold the sum."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vidllm.budget import PlannedFrame, Room, TokenPlan, composable_frames, native_frames, plan_tokens
from vidllm.errors import BudgetError
from vidllm.geometry import Geometry, NativeGeometry, fitted_size

CLIP_GRID = Geometry(rows=24, cols=24)
SIGLIP_GRID = Geometry(rows=27, cols=27)


def uniform(geometry: Geometry, frames: int, stride: int) -> tuple[PlannedFrame, ...]:
    return composable_frames([(float(i), stride) for i in range(frames)], geometry)


@pytest.mark.parametrize(
    ("grid", "pooling", "tokens"),
    [
        (CLIP_GRID, "average", [576, 144, 64, 36, 16, 16]),
        (CLIP_GRID, "max", [576, 144, 64, 36, 16, 16]),
        (CLIP_GRID, "bilinear", [576, 144, 64, 36, 25, 16]),
        (SIGLIP_GRID, "average", [729, 169, 81, 36, 25, 16]),
        (SIGLIP_GRID, "max", [729, 169, 81, 36, 25, 16]),
        (SIGLIP_GRID, "bilinear", [729, 196, 81, 49, 36, 25]),
    ],
)
def test_tokens_of_a_frame_at_strides_one_to_six(grid: Geometry, pooling: str, tokens: list[int]) -> None:
    assert [replace(grid, pooling=pooling).tokens(stride) for stride in range(1, 7)] == tokens


@pytest.mark.parametrize(
    ("newline", "tokens"),
    [("none", [169, 169, 169]), ("one", [169, 169, 170]), ("frame", [170] * 3), ("grid", [182] * 3)],
)
def test_newline_tokens_are_counted(newline: str, tokens: list[int]) -> None:
    geometry = replace(SIGLIP_GRID, newline=newline)
    assert list(geometry.frame_tokens([2, 2, 2])) == tokens


def test_an_empty_video_has_no_newline() -> None:
    assert replace(SIGLIP_GRID, newline="one").frame_tokens([]) == ()


def test_each_frame_has_its_own_stride() -> None:
    assert CLIP_GRID.frame_tokens([1, 2, 4]) == (576, 144, 36)


@pytest.mark.parametrize(
    ("context_factor", "side", "frames", "video_tokens"),
    [
        # LLaVA-NeXT-Video's table of tokens per frame x frames, at 4096 positions, and under RoPE x2 and x4
        (1, 6, 32, 1152),
        (1, 6, 64, 2304),
        (1, 12, 16, 2304),
        (1, 24, 4, 2304),
        (2, 12, 32, 4608),
        (2, 24, 8, 4608),
        (2, 12, 56, 8064),
        (4, 12, 64, 9216),
        (4, 24, 16, 9216),
    ],
)
def test_the_published_layouts_fit_where_the_reference_ran_them(
    context_factor: int, side: int, frames: int, video_tokens: int
) -> None:
    planned = uniform(CLIP_GRID, frames, 24 // side)
    plan = plan_tokens(planned, text_tokens=40, room=Room(context=4096, rope_max=context_factor))
    assert plan.video_tokens == video_tokens
    assert plan.total <= 4096 * plan.rope_factor <= 4096 * context_factor
    assert (plan.rope_factor == 1.0) == (context_factor == 1)


def test_four_thousand_positions_hold_sixteen_frames_unscaled() -> None:
    plan = plan_tokens(uniform(CLIP_GRID, 16, 2), text_tokens=60, room=Room(context=4096))
    assert (plan.video_tokens, plan.total, plan.rope_factor, plan.notes) == (2304, 2620, 1.0, ())


def test_the_reference_command_gets_the_factor_it_needs_and_no_more() -> None:
    """What the reference's README asks for, and what its RoPE gate, keyed on a word in a path, never scaled."""
    plan = plan_tokens(uniform(CLIP_GRID, 32, 2), text_tokens=60, room=Room(context=4096))
    assert plan.total == 32 * 144 + 60 + 256
    assert plan.rope_factor == pytest.approx(4924 / 4096, abs=1e-4)
    assert plan.rope_factor >= 4924 / 4096
    assert Room(context=10_000).rope_factor(12_345) == 1.2345, "a step that suffices is not passed"


def test_fifty_six_frames_fit_twice_the_context_with_a_shorter_reply_and_say_so() -> None:
    plan = plan_tokens(uniform(CLIP_GRID, 56, 2), text_tokens=20, room=Room(context=4096))
    assert (plan.video_tokens, plan.max_new_tokens, plan.total, plan.rope_factor) == (8064, 108, 8192, 2.0)
    assert plan.notes == ("the reply's room shrank from 256 to 108 tokens",)


def test_a_reply_the_user_named_never_shrinks() -> None:
    room = Room(context=4096, max_new_tokens=256)
    with pytest.raises(BudgetError, match="256 reply"):
        plan_tokens(uniform(CLIP_GRID, 56, 2), text_tokens=20, room=room)


def test_the_error_is_the_sum_and_says_how_much_is_missing() -> None:
    with pytest.raises(BudgetError) as caught:
        plan_tokens(uniform(CLIP_GRID, 64, 2), text_tokens=60, room=Room(context=4096))
    assert str(caught.value) == "64 frames x 144 + 60 text + 64 reply = 9340 tokens, over context 4096 x RoPE 2 = 8192"
    assert caught.value.short == 9340 - 8192


def test_the_sum_tells_frames_of_different_sizes_apart() -> None:
    frames = composable_frames([(0.0, 1), (1.0, 4), (2.0, 4)], CLIP_GRID)
    with pytest.raises(BudgetError, match=r"1 frames x 576 \+ 2 frames x 36 \+ 10 text"):
        plan_tokens(frames, text_tokens=10, room=Room(context=512, rope_max=1))


geometries = st.builds(
    Geometry, rows=st.integers(4, 32), cols=st.integers(4, 32), pooling=st.sampled_from(["average", "max", "bilinear"]),
    newline=st.sampled_from(["none", "one", "frame", "grid"]),
)  # fmt: skip
rooms = st.builds(
    Room, context=st.integers(100, 20_000), rope_max=st.floats(1, 8), scalable=st.booleans(),
    max_new_tokens=st.none() | st.integers(1, 600),
)  # fmt: skip
cases = st.tuples(geometries, rooms, st.lists(st.integers(1, 4), min_size=1, max_size=80), st.integers(0, 3000))


def attempt(case: tuple[Geometry, Room, list[int], int]) -> TokenPlan:
    geometry, room, strides, text = case
    frames = composable_frames([(float(i), stride) for i, stride in enumerate(strides)], geometry)
    return plan_tokens(frames, text_tokens=text, room=room)


@given(cases)
def test_what_is_planned_always_fits_and_nothing_is_dropped(case: tuple[Geometry, Room, list[int], int]) -> None:
    geometry, room, strides, text = case
    try:
        plan = attempt(case)
    except BudgetError:
        least = sum(geometry.frame_tokens(strides)) + text + room.least_reply
        assert least > room.capacity
        return
    assert plan.total <= plan.context * plan.rope_factor + 1e-6
    assert [frame.stride for frame in plan.frames] == strides
    assert plan.text_tokens == text
    assert room.least_reply <= plan.max_new_tokens <= room.reply
    assert plan.rope_factor == 1.0 or plan.total > plan.context, "scaled although not needed"
    assert 1.0 <= plan.rope_factor <= room.largest_factor
    assert plan.context * (plan.rope_factor - 2e-4) < plan.total or plan.rope_factor == 1.0, "more than suffices"


def test_a_stride_that_leaves_no_token_is_refused() -> None:
    with pytest.raises(BudgetError, match="stride 25 on a 24x24 grid"):
        CLIP_GRID.tokens(25)
    with pytest.raises(BudgetError, match="stride 0"):
        CLIP_GRID.tokens(0)
    assert replace(CLIP_GRID, pooling="bilinear").tokens(25) == 1
    with pytest.raises(BudgetError, match="use 1 to 9"):
        Geometry(rows=9, cols=16).tokens(10)


def test_a_plan_that_lies_can_not_be_born() -> None:
    plan = plan_tokens(uniform(CLIP_GRID, 4, 2), text_tokens=10, room=Room(context=4096))
    with pytest.raises(ValueError, match="frames hold 576 tokens, not 575"):
        replace(plan, video_tokens=575)
    with pytest.raises(ValueError, match="out of order"):
        replace(plan, frames=plan.frames[::-1])
    with pytest.raises(BudgetError, match="over context 800"):
        replace(plan, context=800)


def test_nonsense_room_is_refused() -> None:
    with pytest.raises(BudgetError, match="at least 1"):
        Room(context=0)
    with pytest.raises(BudgetError, match="at least 1"):
        Room(context=4096, rope_max=0.5)
    with pytest.raises(BudgetError, match="at least 1"):
        Room(context=4096, max_new_tokens=0)
    assert Room(context=1, rope_max=1, max_new_tokens=1).capacity == 1


def test_plan_json_holds_the_contract() -> None:
    plan = plan_tokens(uniform(CLIP_GRID, 2, 2), text_tokens=10, room=Room(context=4096))
    said = plan.to_dict()
    assert said["frames"] == [{"time": 0.0, "stride": 2, "tokens": 144}, {"time": 1.0, "stride": 2, "tokens": 144}]
    expected = {"video_tokens": 288, "text_tokens": 10, "max_new_tokens": 256, "total": 554, "context": 4096}
    assert expected.items() <= said.items()
    assert {"rope_factor", "policy", "reader"} <= said.keys()


# ---- native families: number of frames and pixels

QWEN = NativeGeometry(patch=14, merge=2, temporal_patch=2, min_pixels=4 * 28**2, max_pixels=256 * 28**2)


def test_native_frames_travel_in_groups() -> None:
    frames = native_frames([0.0, 1.0, 2.0, 3.0, 4.0], QWEN, (280, 560))
    assert [frame.tokens for frame in frames] == [200, 0, 200, 0, 200]
    assert {frame.stride for frame in frames} == {1}
    assert QWEN.groups(5) == 3


def test_the_sum_of_native_frames_tells_frames_and_what_shares_tokens_apart() -> None:
    frames = native_frames([0.0, 1.0, 2.0, 3.0, 4.0], QWEN, (280, 560))
    with pytest.raises(BudgetError, match=r"^5 frames in 3 groups x 200 \+ 10 text \+ 64 reply = 674 tokens"):
        plan_tokens(frames, text_tokens=10, room=Room(context=500, scalable=False))


def test_native_sizes_keep_the_aspect_and_shrink_to_the_least() -> None:
    sizes = QWEN.sizes(720, 1280)
    counts = [QWEN.tokens(*size) for size in sizes]
    assert counts[0] <= 256
    assert counts[-1] <= 4
    assert counts == sorted(counts, reverse=True)
    for height, width in sizes[:5]:
        assert height % 28 == width % 28 == 0
        assert width / height == pytest.approx(16 / 9, rel=0.2)
    assert QWEN.tokens(*replace(QWEN, min_pixels=0).sizes(720, 1280)[-1]) == 1


@given(st.integers(1, 3000), st.integers(1, 3000))
@example(171, 19)
def test_native_sizes_are_fewer_and_fewer_tokens(height: int, width: int) -> None:
    counts = [QWEN.tokens(*size) for size in QWEN.sizes(height, width)]
    assert all(less < more for more, less in pairwise(counts))


def test_a_small_native_frame_is_not_blown_up() -> None:
    assert QWEN.sizes(112, 140)[0] == (112, 140)
    assert fitted_size(5, 40, 28, 0, 28**2) == (28, 28), "but there is no half a token"


def test_square_native_frames_have_one_size() -> None:
    smol = NativeGeometry(patch=16, merge=4, square=512)
    assert smol.sizes(720, 1280) == [(512, 512)]
    assert smol.tokens(512, 512) == smol.image_tokens(33, 4000) == 64
    assert smol.groups(5) == 5


@given(st.integers(28, 4000), st.integers(28, 4000))
@example(28, 84)
def test_fitted_sizes_are_multiples_within_bounds(height: int, width: int) -> None:
    rows, cols = fitted_size(height, width, 28, 56**2, 1280 * 28**2)
    assert rows % 28 == cols % 28 == 0
    assert rows * cols >= 56**2
    if max(height, width) < 10 * min(height, width):
        assert rows * cols <= 1280 * 28**2
