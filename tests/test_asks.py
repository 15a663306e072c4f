"""Many questions side by side: each answered as alone, in order, none held up by another."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PIL

from tests.conftest import write_clip
from vidllm import read_frames
from vidllm.answer import Answer
from vidllm.ask import VideoModel, load
from vidllm.errors import ConfigError, ModelError, NotAVideo, VideoNotFound
from vidllm.sources import Source

Asked = tuple[Source | list[Source], str]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    videos = [write_clip(folder / f"{frames}.mp4", [i / 5 for i in range(frames)]) for frames in (10, 20, 15)]
    PIL.fromarray(np.random.default_rng(1).integers(0, 255, (40, 60, 3), np.uint8)).save(folder / "still.png")
    return [*videos, folder / "still.png"]


def plain(answer: Answer) -> dict[str, Any]:
    """What it says and rests on, without how long it took."""
    return {name: value for name, value in answer.to_dict().items() if name != "timing"}


def opened(folder: Path) -> VideoModel:
    return load(folder, device="cpu", dtype="float32", cache=None)


@pytest.fixture(scope="module")
def model(tiny: Callable[[str], Path]) -> VideoModel:
    return opened(tiny("llava"))


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_each_is_answered_as_alone_and_in_order(family: str, tiny: Callable[[str], Path], clips: list[Path]) -> None:
    model = opened(tiny(family))
    first, second, third, still = clips
    asked: list[Asked] = [
        (first, "what happens?"), (second, "what happens at 0:02?"), (still, "what is it?"), (third, "how many?"),
        ([first, still], "which one first?"), (second, "describe the video."), (first, "what happens at 0:09?"),
    ]  # fmt: skip
    alone = [plain(model.ask(video, question, frames=4, max_new_tokens=9)) for video, question in asked]
    for batch in (1, 3):
        answers = list(model.ask_all(asked, batch=batch, frames=4, max_new_tokens=9))
        assert all(isinstance(answer, Answer) for answer in answers)
        assert [plain(answer) for answer in answers if isinstance(answer, Answer)] == alone


def test_what_can_not_be_answered_is_an_error_in_its_place(model: VideoModel, clips: list[Path]) -> None:
    text = clips[0].with_suffix(".txt.mp4")
    text.write_text("no video")
    asked: list[Any] = [
        (text, "what?"), ("gone.mp4", "what?"), (clips[0], "what?"), (clips[0], " "), "clip.mp4", (clips[1], "what?"),
    ]  # fmt: skip
    answers = list(model.ask_all(asked, frames=2, max_new_tokens=2))
    assert [type(answer) for answer in answers] == [
        NotAVideo, VideoNotFound, Answer, ConfigError, ConfigError, Answer
    ]  # fmt: skip
    assert "pairs of (video, question)" in str(answers[4])
    only = list(model.ask_all([("gone.mp4", "what?")] * 70, frames=2))
    assert [type(answer) for answer in only] == [VideoNotFound] * 70


@pytest.mark.parametrize("video", [None, b"the bytes of a file", 3, np.zeros((4, 8, 8, 3), np.uint8)])
def test_what_is_no_video_is_told_by_its_type(model: VideoModel, video: Any) -> None:
    with pytest.raises(ConfigError, match=f"can not be of type {type(video).__name__};"):
        model.ask(video, "what?")
    with pytest.raises(VideoNotFound, match=f"can not be of type {type(video).__name__};"):
        read_frames(video, [0.0])


@pytest.mark.parametrize("asked", [None, "clip.mp4"])
def test_what_is_no_list_of_questions_is_refused_at_once(model: VideoModel, asked: Any) -> None:
    with pytest.raises(ConfigError, match=r"pairs of \(video, question\)"):
        model.ask_all(asked)


def test_an_error_of_the_model_is_that_question_s(
    model: VideoModel, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(logits: Any) -> Any:
        raise ModelError("logits are no numbers")

    asked: list[Asked] = [(clip, "what?") for clip in clips[:2]]
    with monkeypatch.context() as patch:
        patch.setattr("vidllm.engine.Reply.choose", lambda self, logits: refuse(logits))
        told = list(model.ask_all(asked, frames=2, max_new_tokens=2, temperature=1.0))
    assert [str(error) for error in told] == ["logits are no numbers"] * 2
    assert all(isinstance(answer, Answer) for answer in model.ask_all(asked, frames=2, max_new_tokens=2))


def test_questions_are_taken_as_answers_are(model: VideoModel, clips: list[Path]) -> None:
    taken = 0

    def endless() -> Iterator[Asked]:
        nonlocal taken
        while True:
            taken += 1
            yield clips[0], "what?"

    answers = model.ask_all(endless(), batch=2, frames=1, max_new_tokens=2)
    for _ in range(6):
        next(answers)
    assert taken < 40
    answers.close()  # type: ignore[attr-defined]  # as a loop that is left does
    before = taken
    assert next(answers, None) is None
    assert taken == before


def test_options_are_checked_before_the_first_question(model: VideoModel) -> None:
    with pytest.raises(ConfigError, match="did you mean frames"):
        model.ask_all([], framse=3)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="batch"):
        model.ask_all([], batch=0)
    assert list(model.ask_all([])) == []
