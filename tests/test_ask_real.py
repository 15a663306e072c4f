"""Every real clip ends in an answer or in one line: nothing else may come out of an ask."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import tiny_models
from tests.conftest import REAL_CLIPS
from vidllm.answer import Answer
from vidllm.ask import VideoModel, load
from vidllm.errors import VidllmError

CLIPS = sorted(path for path in REAL_CLIPS.glob("*/*") if path.parent.name in ("natural", "codec", "odd"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CLIPS, reason=f"needs the real clips in {REAL_CLIPS}"),
]


@pytest.fixture(scope="module", params=["llava", "qwen3_vl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoModel:
    folder = tmp_path_factory.mktemp(request.param)
    tiny_models.FAMILIES[request.param](folder)
    return load(folder, device="cpu", dtype="float32", cache=None)


@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.name)
def test_a_real_clip_ends_in_an_answer_or_in_one_line(clip: Path, model: VideoModel) -> None:
    try:
        answer = model.ask(clip, "what happens at 0:02?", frames=8, max_new_tokens=2)
    except VidllmError as error:
        line = str(error)
    else:
        check(answer)
        return
    assert str(clip) in line
    assert "\n" not in line


def check(answer: Answer) -> None:
    """Times ascend within the clip, tokens add up, and all of it fits."""
    told = json.loads(json.dumps(answer.to_dict()))
    times, usage = [frame["time"] for frame in told["frames"]], told["usage"]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] <= told["video"]["duration"]
    assert sum(frame["tokens"] for frame in told["frames"]) == usage["video_tokens"] > 0
    asked = usage["video_tokens"] + usage["text_tokens"] + usage["answer_tokens"]
    assert asked <= usage["context"] * usage["rope_factor"]
