"""The answer's values: the JSON is the contract's, and a time counts as seen only where a frame was near."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from vidllm.answer import Answer, SeenFrame, Timing, Usage, cite
from vidllm.planned import SeenVideo

EVEN = [0.0, 4.0, 8.0, 12.0, 16.0]


def seen(text: str, times: list[float], duration: float = 20.0) -> list[tuple[float, bool, float | None]]:
    return [(c.time, c.seen, c.nearest) for c in cite(text, [times], [duration])]


def test_a_time_between_frames_was_seen_and_knows_its_nearest_frame() -> None:
    assert seen("At 0:05.", EVEN) == [(5.0, True, 4.0)]
    assert seen("At 0:07.", EVEN) == [(7.0, True, 8.0)]


def test_every_time_is_cited_in_order_and_a_range_is_two() -> None:
    assert [time for time, *_ in seen("Between 0:12 and 0:16, and again at 0:04.", EVEN)] == [12.0, 16.0, 4.0]


def test_no_time_no_citation() -> None:
    assert seen("The red circle moves right.", EVEN) == []
    assert seen("", EVEN) == []


def test_times_beyond_the_sampled_range_are_not_seen() -> None:
    """Frames from 0:04 to 0:12, two seconds is half their distance: 0:14 is the last second that touches it."""
    inner = [4.0, 8.0, 12.0]
    assert seen("0:14", inner) == [(14.0, True, 12.0)]
    assert seen("0:15", inner) == [(15.0, False, 12.0)]
    assert seen("0:01", inner) == [(1.0, True, 4.0)]  # [0:01, 0:02) ends two seconds before the first frame
    assert seen("0:00", inner) == [(0.0, False, 4.0)]
    assert seen("0:01.5", inner) == [(1.5, False, 4.0)]  # a moment, which no second follows


def test_past_the_end_is_never_seen_but_players_round_the_end_up() -> None:
    dense = [29.0, 29.5, 29.94]
    assert seen("At 0:30.", dense, duration=29.97) == [(30.0, True, 29.94)]
    assert seen("At 14:00.", [0.0, 1200.0], duration=800.0) == [(840.0, False, 1200.0)]


def test_the_middle_of_a_hole_was_not_looked_at() -> None:
    """A damaged stretch, no frame from 0:04 to 0:14: the hole counts as 5 s wide, twice the average distance."""
    torn = [0.0, 1.0, 2.0, 3.0, 4.0, 14.0, 15.0]
    assert seen("0:09", torn) == [(9.0, False, 14.0)]
    assert seen("0:05", torn) == [(5.0, True, 4.0)]


def test_whole_seconds_mean_the_second_and_decimals_the_moment() -> None:
    assert seen("0:30", [30.9], 60.0) == [(30.0, True, 30.9)]
    assert seen("0:30.2", [30.9], 60.0) == [(30.2, False, 30.9)]


def test_without_frames_nothing_is_near() -> None:
    assert [(c.seen, c.nearest) for c in cite("At 0:14.", [], [])] == [(False, None)]
    assert [(c.seen, c.nearest) for c in cite("At 0:14.", [[]], [10.0])] == [(False, None)]


def test_several_videos_are_searched_together() -> None:
    [cited] = cite("At 0:50.", [[0.0, 5.0], [48.0, 50.0, 52.0]], [6.0, 60.0])
    assert (cited.seen, cited.nearest) == (True, 50.0)


def answer(**changes: object) -> Answer:
    values: dict[str, object] = {
        "text": "在0:14。", "finish_reason": "stop", "model": "m", "reader": "pyav",
        "videos": (SeenVideo(path="a b.mp4", duration=59.97, width=640, height=360, fps=29.97, frames=1800),),
        "frames": (SeenFrame(time=float(np.float64(0.0)), tokens=36), SeenFrame(time=14.013999, tokens=9)),
        "cited": cite("在0:14。", [[0.0, 14.013999]], [59.97]),
        "usage": Usage(video_tokens=45, text_tokens=20, answer_tokens=4, context=1024, rope_factor=1.0),
        "timing": Timing(probe=0.01, decode=0.1, encode=0.2, prefill=0.3, generate=0.4),
    }  # fmt: skip
    return Answer(**(values | changes))  # type: ignore[arg-type]


def test_the_json_has_the_contracts_fields_and_no_others() -> None:
    told = json.loads(json.dumps(answer().to_dict(), ensure_ascii=False))
    assert list(told) == [
        "answer", "finish_reason", "model", "reader", "video", "frames", "cited", "usage", "timing", "notes",
    ]  # fmt: skip
    assert list(told["video"]) == ["path", "duration", "width", "height", "fps", "frames"]
    assert told["frames"] == [{"time": 0.0, "tokens": 36}, {"time": 14.014, "tokens": 9}]
    assert told["cited"] == [{"text": "0:14", "time": 14.0, "seen": True, "nearest": 14.014}]
    assert list(told["usage"]) == ["video_tokens", "text_tokens", "answer_tokens", "context", "rope_factor"]
    assert list(told["timing"]) == ["probe", "decode", "encode", "prefill", "generate"]


def as_json(value: object) -> object:
    """An attribute's value as JSON holds it: floats to the millisecond."""
    if dataclasses.is_dataclass(value):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [as_json(part) for part in value]
    return round(value, 3) if isinstance(value, float) else value


def test_every_key_of_the_json_is_an_attribute() -> None:
    [video] = answer().videos
    several = answer(videos=(video, video), frames=(SeenFrame(time=1.0, tokens=9, video=1),), notes=("salvaged",))
    for given in (answer(), several):
        for key, value in given.to_dict().items():
            attribute = as_json(getattr(given, key))
            if key == "frames" and given is not several:
                assert {frame.pop("video") for frame in attribute} == {0}  # type: ignore[attr-defined]
            assert attribute == value, key
    assert several.to_dict()["frames"] == [{"time": 1.0, "tokens": 9, "video": 1}]


def test_an_answer_can_not_be_changed() -> None:
    with pytest.raises(AttributeError):
        answer().text = "other"  # type: ignore[misc]
