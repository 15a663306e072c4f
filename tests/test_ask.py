"""From a path and a question to an answer: on real files, through tiny random checkpoints of the real classes.

What a random model says means nothing; that it says the same on every road does.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import av
import numpy as np
import pytest
import torch
from PIL import Image as PIL

import vidllm
from tests.conftest import write_clip
from tests.planned import FAMILIES
from vidllm.answer import Timing, report
from vidllm.ask import VideoModel, load
from vidllm.clip import Clip
from vidllm.engine import Generated, generate, read, shared_prefix
from vidllm.errors import BudgetError, ConfigError, LimitExceeded, ModelError, NotAVideo, VideoNotFound
from vidllm.model.features import FeatureCache
from vidllm.options import GenerationOptions
from vidllm.prompt import Message, Prompt, build_prompt
from vidllm.session import AnswerStream, ChatSession
from vidllm.sources import Stage

FPS, SECONDS = 10, 20


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 s at 10 fps, 96 x 64: a bright bar that crosses the picture once, so that no two frames are equal."""
    path = tmp_path_factory.mktemp("clips") / "a bar 横.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": "20", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(FPS * SECONDS):
            pixels = np.full((64, 96, 3), 40, np.uint8)
            pixels[:, index * 96 // 200 : index * 96 // 200 + 8] = (200, index, 255 - index)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def opened(folder: Path) -> VideoModel:
    return load(folder, device="cpu", dtype="float32", cache=FeatureCache(folder=None))


@pytest.fixture(scope="session")
def model(tiny: Callable[[str], Path]) -> VideoModel:
    return opened(tiny("llava"))


@pytest.fixture
def chat(model: VideoModel, clip: Path) -> ChatSession:
    return model.chat(clip, frames=6, max_new_tokens=8)


# --------------------------------------------------------------------------------------------------------- ask


def test_an_answer_tells_what_it_rests_on(model: VideoModel, clip: Path) -> None:
    answer = model.ask(clip, "what happens?", frames=6, max_new_tokens=8)
    told = answer.to_dict()
    assert told["video"] == {
        "path": str(clip), "duration": 20.0, "width": 96, "height": 64, "fps": 10.0, "frames": 200
    }  # fmt: skip
    assert [frame["time"] for frame in told["frames"]] == [0.0, 3.9, 7.9, 11.9, 15.9, 19.9]
    assert sum(frame["tokens"] for frame in told["frames"]) == told["usage"]["video_tokens"] > 0
    assert told["usage"]["answer_tokens"] <= 8
    assert told["reader"] == "pyav"
    assert all(seconds > 0 for seconds in told["timing"].values())


def test_the_stream_joins_to_the_text(model: VideoModel, clip: Path) -> None:
    stream = model.stream(clip, "what happens?", frames=6, max_new_tokens=30)
    pieces = list(stream)
    assert "".join(pieces) == stream.answer.text == model.ask(clip, "what happens?", frames=6, max_new_tokens=30).text
    assert stream.clips[0].frames.pixels.shape[0] == 6


def test_a_stream_left_half_way_can_still_be_finished(model: VideoModel, clip: Path) -> None:
    stream = model.stream(clip, "what happens?", frames=6, max_new_tokens=30)
    first = next(stream)
    assert stream.answer.text.startswith(first)
    assert stream.answer is stream.answer


def test_length_is_a_finish_reason(model: VideoModel, clip: Path) -> None:
    answer = model.ask(clip, "what happens?", frames=4, max_new_tokens=3)
    assert (answer.finish_reason, answer.usage.answer_tokens) == ("length", 3)


def test_samples_repeat_by_seed(model: VideoModel, clip: Path) -> None:
    sample = partial(model.ask, clip, "what happens?", frames=4, max_new_tokens=12, temperature=1.0)
    assert sample(seed=3).text == sample(seed=3).text
    assert len({sample(seed=seed).text for seed in range(4)}) > 1


def test_what_has_no_effect_on_a_greedy_answer_is_told(model: VideoModel, clip: Path) -> None:
    def notes(**options: Any) -> tuple[str, ...]:
        return model.ask(clip, "what?", frames=2, max_new_tokens=2, **options).notes

    (told,) = notes(top_p=0.9, top_k=5)
    assert told.endswith("at temperature 0: no effect of top_p, top_k")
    assert notes(top_p=0.9, top_k=5, temperature=0.7) == notes() == ()


def test_a_question_in_chinese(model: VideoModel, clip: Path) -> None:
    answer = model.ask(clip, "第10秒发生了什么？", max_new_tokens=4)
    fine = {10 + step / 2 for step in range(-4, 5)}  # every half second, four on either side
    assert fine <= {frame.time for frame in answer.frames}


def test_the_plan_is_what_is_shown(model: VideoModel, clip: Path, tiny: Callable[[str], Path]) -> None:
    planned = vidllm.plan(clip, "what happens at 0:10?", model=tiny("llava"), max_new_tokens=4)
    shown = model.ask(clip, "what happens at 0:10?", max_new_tokens=4)
    assert [frame.tokens for frame in planned.frames] == [frame.tokens for frame in shown.frames]
    assert [frame.time for frame in planned.frames] == pytest.approx([f.time for f in shown.frames], abs=1e-6)
    assert planned.video_tokens == shown.usage.video_tokens
    assert planned.text_tokens == shown.usage.text_tokens


def test_times_an_answer_names_are_tied_to_frames_that_were_seen(model: VideoModel, clip: Path) -> None:
    chat = model.chat(clip, start=4, end=12, frames=5, max_new_tokens=4)
    clips = chat.stream("what happens?").clips
    assert chat.past is not None
    said = Generated(text="从0:06到0:10，再到0:19。", token_ids=(1,), finish_reason="stop", seconds=0.1,
                     state=chat.past.state)  # fmt: skip
    timing = Timing(probe=0, decode=0, encode=0, prefill=0, generate=0)
    answer = report(model="m", sources=["c"], media=clips, prompt=chat.past.prompt, written=said, timing=timing)
    seen = [frame.time for frame in answer.frames]
    assert [(c.time, c.seen) for c in answer.cited] == [(6.0, True), (10.0, True), (19.0, False)]
    assert all(cited.nearest in seen for cited in answer.cited)
    assert answer.cited[2].nearest == seen[-1]


def test_a_range_keeps_the_clips_own_clock(model: VideoModel, clip: Path) -> None:
    answer = model.ask(clip, "what happens?", start="0:05", end=10, frames=4, max_new_tokens=4)
    times = [frame.time for frame in answer.frames if frame.time is not None]
    assert times[0] == 5.0
    assert 9 < times[-1] < 10


def test_stages_are_told_in_order(clip: Path, tiny: Callable[[str], Path]) -> None:
    stages: list[str] = []

    def note(stage: Stage, detail: str = "") -> None:
        stages.append(stage)

    model = load(tiny("llava"), device="cpu", dtype="float32", cache=None, progress=note)
    model.ask(clip, "what happens?", frames=4, max_new_tokens=2, progress=note)
    assert stages == ["load", "look", "encode", "answer"]


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a line on stderr for each."""

    def log_message(self, *_: object) -> None: ...


def test_a_url_is_fetched_once_and_named_as_given(
    model: VideoModel, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDLLM_CACHE", str(tmp_path / "cache"))
    said: list[tuple[str, str]] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(clip.parent))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{quote(clip.name)}"
        chat = model.chat(url, progress=lambda stage, detail="": said.append((stage, detail)), frames=4)
        answer = chat.ask("what happens?", max_new_tokens=4)
        planned = vidllm.plan(url, model=model.spec.folder)
        server.shutdown()
    assert answer.to_dict()["video"]["path"] == url == planned.to_dict()["video"]["path"]
    assert answer.text == model.ask(clip, "what happens?", frames=4, max_new_tokens=4).text
    assert answer.text == model.ask(clip.as_uri(), "what happens?", frames=4, max_new_tokens=4).text
    assert any(stage == "fetch" and detail.endswith("MB") for stage, detail in said)
    chat.ask("and then?", max_new_tokens=4)  # the server is gone, the clip is here


def test_threads_do_not_disturb_each_other(model: VideoModel, clip: Path) -> None:
    ask = partial(model.ask, clip, frames=4, max_new_tokens=12)
    questions = [f"what is the {word} thing?" for word in ("first", "second", "third", "last")]
    with ThreadPoolExecutor(4) as pool:
        together = [answer.text for answer in pool.map(ask, questions)]
    assert together == [ask(question).text for question in questions]


def test_a_guarded_look_gives_the_same_answer(model: VideoModel, clip: Path) -> None:
    ask = partial(model.ask, clip, "what happens?", frames=4, max_new_tokens=8)
    assert ask(guard=vidllm.Limits()).text == ask().text
    with pytest.raises(LimitExceeded):
        ask(guard=vidllm.Limits(file_bytes=100))


# ------------------------------------------------------------------------------------- pictures, several videos


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    PIL.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def test_a_picture_is_asked_like_a_video(model: VideoModel, picture: Path) -> None:
    answer = model.ask(picture, "what colour is it?", max_new_tokens=4)
    told = answer.to_dict()
    assert told["video"] == {
        "path": str(picture), "duration": 0.0, "width": 40, "height": 30, "fps": 0.0, "frames": 1
    }  # fmt: skip
    assert told["frames"] == [{"time": None, "tokens": answer.usage.video_tokens}]


@pytest.mark.parametrize(
    "family", ["llava", "llava_next", "llava_onevision", "internvl", "gemma3", "aya_vision", "qwen2_5_vl", "glm4v"]
)
def test_the_plan_of_a_picture_is_what_is_asked(family: str, tiny: Callable[[str], Path], picture: Path) -> None:
    planned = vidllm.plan(picture, "what colour is it?", model=tiny(family), max_new_tokens=2)
    asked = opened(tiny(family)).ask(picture, "what colour is it?", max_new_tokens=2)
    assert asked.video == planned.video
    assert (asked.usage.video_tokens, asked.usage.text_tokens) == (planned.video_tokens, planned.text_tokens)
    assert (asked.usage.context, asked.usage.rope_factor) == (planned.context, planned.rope_factor)
    assert [(frame.time, frame.tokens) for frame in asked.frames] == [(f.time, f.tokens) for f in planned.frames]


def test_several_are_kept_in_order_and_share_the_context(model: VideoModel, clip: Path, picture: Path) -> None:
    told = model.ask([clip, picture, clip], "what differs?", frames=4, max_new_tokens=4).to_dict()
    assert [video["path"] for video in told["video"]] == [str(clip), str(picture), str(clip)]
    assert [frame["video"] for frame in told["frames"]] == [0, 0, 0, 0, 1, 2, 2, 2, 2]
    assert sum(frame["tokens"] for frame in told["frames"]) == told["usage"]["video_tokens"]


def test_what_is_told_of_one_of_several_names_it(model: VideoModel, clip: Path, picture: Path, tmp_path: Path) -> None:
    """A time that lies outside one of them lies inside another."""
    short = write_clip(tmp_path / "short.mp4", [0.0, 0.5, 1.0])
    notes = partial(model.ask, question="what happens at 0:15?", frames=2, max_new_tokens=2)
    [told] = notes([clip, picture, short]).notes
    [alone] = notes([picture, short]).notes
    assert told == f"{short}: {alone}"


def test_what_stands_around_a_picture_is_reserved_too(tiny: Callable[[str], Path], clip: Path, picture: Path) -> None:
    """A prompt that is too long is refused by the plan, before a frame is decoded."""
    model = opened(tiny("llava"))
    refused, spec = 0, model.spec
    for context in range(150, 210, 2):
        model.lmm.spec = replace(spec, context=context)
        try:
            model.ask([picture, clip, picture], "what?", frames=2, max_new_tokens=1, rope_max=1.0)
        except BudgetError as error:
            assert "2 frames x" in str(error)  # noqa: PT017 - which of two budgets refused
            refused += 1
    assert 3 < refused < 27


def test_order_is_seen(model: VideoModel, clip: Path, picture: Path) -> None:
    """The same media in another order are another prompt: logits differ."""

    def logits(*sources: Path) -> torch.Tensor:
        chat = model.chat(sources, frames=4, max_new_tokens=2)
        chat.stream("what differs?")
        assert chat.past is not None
        return chat.past.state.logits

    assert not torch.allclose(logits(clip, picture), logits(picture, clip), atol=1e-4)


# -------------------------------------------------------------------------------------------------------- chat

QUESTIONS = ("what happens?", "and what colour is it?", "第三个问题？")


def from_scratch(model: VideoModel, chat: ChatSession, question: str, shown: AnswerStream) -> str:
    """The answer to `question` when the whole dialogue is read in one go, nothing reused."""
    said = [m for q, a in chat.turns for m in (Message("user", q), Message("assistant", a))]
    first, *rest = [*said, Message("user", question)]
    messages = [Message("user", first.text, tuple(shown.clips)), *rest]
    prompt = build_prompt(messages, model.spec, model.lmm.tokenizer, max_new_tokens=8)
    past = read(model.lmm, prompt)
    assert past.reused == 0
    return generate(model.lmm, past.state, GenerationOptions(max_new_tokens=8)).result.text


@pytest.mark.parametrize("family", FAMILIES)
def test_a_follow_up_equals_asking_from_scratch(family: str, tiny: Callable[[str], Path], clip: Path) -> None:
    model = opened(tiny(family))
    chat = model.chat(clip, frames=4, max_new_tokens=8)
    for number, question in enumerate(QUESTIONS):
        stream = chat.stream(question)
        expected = from_scratch(model, chat, question, stream)
        answer = stream.answer
        assert answer.text == expected
        assert chat.past is not None
        assert (chat.past.reused >= answer.usage.video_tokens) == (number > 0)


def test_a_prompt_without_one_visual_token_is_refused(model: VideoModel, chat: ChatSession) -> None:
    """Video silently dropped ends in an invented answer, the worst a reader can get."""
    chat.ask(QUESTIONS[0])
    assert chat.past is not None
    with pytest.raises(ModelError, match="no visual token"):
        read(model.lmm, replace(chat.past.prompt, video_tokens=0))


def test_other_pixels_are_another_prompt(chat: ChatSession) -> None:
    """Same ids, one pixel changed: nothing may be reused."""
    clips = chat.stream(QUESTIONS[0]).clips
    assert chat.past is not None
    prompt = chat.past.prompt
    again = replace(clips[0], frames=replace(clips[0].frames, pixels=clips[0].frames.pixels.copy()))
    other = replace(clips[0], frames=replace(clips[0].frames, pixels=clips[0].frames.pixels ^ 1))
    for clip, reused in ((again, True), (other, False)):
        messages = (replace(prompt.messages[0], media=(clip,)),)
        assert (shared_prefix(chat.past, replace(prompt, messages=messages)) > 0) == reused


def test_clips_that_come_encoded_are_told_apart_by_their_keys(chat: ChatSession) -> None:
    """They hold no pixels: two videos of one length under one plan looked the same."""
    [clip] = chat.stream(QUESTIONS[0]).clips
    assert chat.past is not None
    prompt = chat.past.prompt
    no_pixels = replace(clip.frames, pixels=clip.frames.pixels[:, :0, :0])
    features = tuple(torch.zeros(1, 1) for _ in clip.plan.frames)
    mine, copy, other, unnamed = (
        replace(clip, frames=no_pixels, features=features, key=key) for key in ("a", "a", "b", "")
    )

    def shown(clip: Clip) -> Prompt:
        return replace(prompt, messages=(replace(prompt.messages[0], media=(clip,)),))

    past = replace(chat.past, prompt=shown(mine))
    assert [shared_prefix(past, shown(c)) > 0 for c in (mine, copy, other, unnamed, clip)] == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_a_follow_up_decodes_and_encodes_nothing(chat: ChatSession) -> None:
    first, second = chat.ask(QUESTIONS[0]), chat.ask(QUESTIONS[1])
    assert (second.timing.probe, second.timing.decode, second.timing.encode) == (0.0, 0.0, 0.0)
    assert second.timing.prefill > 0
    assert second.frames == first.frames
    assert second.usage.text_tokens > first.usage.text_tokens
    assert [question for question, _ in chat.turns] == list(QUESTIONS[:2])


def test_a_follow_up_that_names_a_time_looks_closer_and_encodes_only_what_is_new(
    clip: Path, tiny: Callable[[str], Path]
) -> None:
    model = opened(tiny("llava"))
    chat = model.chat(clip, max_new_tokens=4)
    wide = chat.ask("what happens?")
    close = chat.ask("what happens at 0:10?")
    fine = [f for f in close.frames if f.time is not None and 8 <= f.time <= 12]
    assert len(fine) >= 9
    assert {f.tokens for f in fine} != {f.tokens for f in wide.frames}
    assert chat.past is not None
    known = {f.time for f in wide.frames}
    assert chat.past.state.frames_encoded <= len([f for f in close.frames if f.time not in known])
    again = chat.ask("at 0:10, what colour is it?")
    assert again.frames == close.frames
    assert again.timing.decode == 0.0
    assert chat.past.reused > 0


def test_every_turn_is_told_of_the_times_it_names_in_vain_and_of_no_other(model: VideoModel, clip: Path) -> None:
    """The clip lasts 20 s. The frames stay, so what is said of them must not be what an earlier question was told."""
    chat = model.chat(clip, frames=4, max_new_tokens=2)
    questions = ("what happens at 5:00?", "and then?", "what happens at 6:00?")
    answers = [chat.ask(question) for question in questions]
    assert [answer.timing.decode > 0 for answer in answers] == [True, False, False]
    [first], second, [third] = (answer.notes for answer in answers)
    assert '"at 5:00"' in first or '"5:00"' in first
    assert second == ()
    assert "6:00" in third
    assert answers[2].to_dict()["notes"] == [third]
    assert third in model.ask(clip, questions[2], frames=4, max_new_tokens=2).notes


def test_a_plan_and_its_answer_say_their_notes_in_one_order(model: VideoModel, clip: Path) -> None:
    """A time past the end of a clip of fewer frames than were asked for."""
    told = model.ask(clip, "what happens at 5:00?", frames=1000, stride=8, max_new_tokens=2, rope_max=16.0).notes
    question, folder = "what happens at 5:00?", model.spec.folder
    planned = vidllm.plan(clip, question, model=folder, frames=1000, stride=8, max_new_tokens=2, rope_max=16.0).notes
    assert len(told) > 1
    assert told == planned


def test_ctrl_c_leaves_the_session_as_it_was(
    model: VideoModel, chat: ChatSession, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = model.chat(clip, frames=6, max_new_tokens=8)
    expected = [undisturbed.ask(question).text for question in QUESTIONS[:2]]
    assert chat.ask(QUESTIONS[0]).text == expected[0]
    whole, steps = model.lmm.extend, []

    def interrupted(state: Any, ids: Any) -> Any:
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return whole(state, ids)

    with monkeypatch.context() as patch:
        patch.setattr(model.lmm, "extend", interrupted)
        with pytest.raises(KeyboardInterrupt):
            chat.ask("what was that?")
    assert len(chat.turns) == 1
    assert chat.ask(QUESTIONS[1]).text == expected[1]
    assert chat.past is not None
    assert chat.past.reused > 0


def test_ctrl_c_while_an_answer_is_reported_counts_its_turn_once(
    chat: ChatSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(**_: Any) -> Any:
        raise KeyboardInterrupt

    stream = chat.stream(QUESTIONS[0])
    with monkeypatch.context() as patch:
        patch.setattr("vidllm.session.report", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(stream)
    assert chat.turns == ()
    text = stream.answer.text
    assert chat.turns == ((QUESTIONS[0], text),)


def test_a_new_question_gives_up_a_half_written_answer(chat: ChatSession, model: VideoModel, clip: Path) -> None:
    left = chat.stream(QUESTIONS[0])
    next(left)
    text = chat.ask(QUESTIONS[1]).text
    assert [question for question, _ in chat.turns] == [QUESTIONS[1]]
    assert text == model.ask(clip, QUESTIONS[1], frames=6, max_new_tokens=8).text
    with pytest.raises(ModelError, match="interrupted"):
        _ = left.answer


def test_a_turn_may_have_its_own_options(chat: ChatSession) -> None:
    chat.ask(QUESTIONS[0])
    short = chat.ask(QUESTIONS[0], max_new_tokens=2)
    assert (short.usage.answer_tokens, short.timing.decode) == (2, 0.0)
    answer = chat.ask(QUESTIONS[1], frames=3, temperature=1.0, seed=5)
    assert len(answer.frames) == 3
    assert len(chat.ask(QUESTIONS[2]).frames) == 6


def overridden(folder: Path, tmp_path: Path, **said: object) -> Path:
    """The same checkpoint with a vidllm.json that says otherwise."""
    copy = tmp_path / "overridden"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).symlink_to(file)
    (copy / "vidllm.json").write_text(json.dumps(said))
    return copy


def test_a_model_never_taught_dialogues_is_shown_each_question_alone(
    tiny: Callable[[str], Path], tmp_path: Path, clip: Path
) -> None:
    model = opened(overridden(tiny("llava"), tmp_path, dialogue=False))
    chat = model.chat(clip, max_new_tokens=8)
    for number, question in enumerate([*QUESTIONS, "what happens at 0:10?", "at 0:10, where is it?"]):
        answer = chat.ask(question)
        assert answer.text == model.ask(clip, question, max_new_tokens=8).text
        assert chat.past is not None
        assert (chat.past.reused >= answer.usage.video_tokens) == (number in (1, 2, 4))
    assert len(chat.turns) == 5


def test_a_dialogue_that_outgrows_the_context_is_stretched_with_slack_and_mostly_read_on(
    tiny: Callable[[str], Path], tmp_path: Path, clip: Path
) -> None:
    """A context of 130 tokens, about 14 more with every turn: from the seventh or so on it is stretched."""
    model = opened(overridden(tiny("llava"), tmp_path, context=130))
    chat = model.chat(clip, frames=2, stride=4, max_new_tokens=4, rope_max=4.0)
    factors, reused = [], []
    for number in range(16):
        usage = chat.ask(f"question {number}?").usage
        assert usage.video_tokens + usage.text_tokens + 4 <= usage.context * usage.rope_factor
        assert chat.past is not None
        factors.append(usage.rope_factor)
        reused.append(chat.past.reused > 0)
    assert factors == sorted(factors)
    assert factors[0] == 1.0 < factors[-1]
    assert reused[1:] == [factor == before for before, factor in pairwise(factors)]
    assert reused.count(True) >= 10


def test_a_talk_that_begins_stretched_reads_on_and_a_single_question_takes_no_slack(
    tiny: Callable[[str], Path], tmp_path: Path, clip: Path
) -> None:
    model = opened(overridden(tiny("llava"), tmp_path, context=130))
    chat = model.chat(clip, frames=8, stride=2, max_new_tokens=4, rope_max=4.0)
    talk = chat.ask(QUESTIONS[0]).usage
    chat.ask(QUESTIONS[1])
    assert chat.past is not None
    assert chat.past.reused >= talk.video_tokens
    once = model.ask(clip, QUESTIONS[0], frames=8, stride=2, max_new_tokens=4, rope_max=4.0).usage
    assert once.rope_factor == pytest.approx((once.video_tokens + once.text_tokens + 4) / 130, abs=1e-4)
    assert talk.rope_factor == pytest.approx(once.rope_factor + 256 / 130)


def test_a_turn_that_allows_less_stretching_is_stretched_less(
    tiny: Callable[[str], Path], tmp_path: Path, clip: Path
) -> None:
    """A look that fills the stretched context is taken anew; one stretched for the dialogue's sake is read anew."""
    model = opened(overridden(tiny("llava"), tmp_path, context=300))
    chat = model.chat(clip, max_new_tokens=4, rope_max=4.0)
    wide, narrow = chat.ask(QUESTIONS[0]), chat.ask(QUESTIONS[1], rope_max=1.0)
    assert narrow.usage.rope_factor == 1.0 < wide.usage.rope_factor
    assert len(narrow.frames) < len(wide.frames)
    chat = model.chat(clip, frames=4, max_new_tokens=4, rope_max=4.0)
    assert chat.ask(QUESTIONS[0]).usage.rope_factor == 1.0
    assert chat.ask("why? " * 100).usage.rope_factor > 2.0
    with pytest.raises(BudgetError, match="over context 300; use a shorter conversation"):
        chat.ask(QUESTIONS[1], rope_max=1.0)
    assert 1.0 < chat.ask(QUESTIONS[1], rope_max=2.3).usage.rope_factor <= 2.3


@pytest.mark.parametrize("given_up", [{"question": "why? " * 100}, {"question": "why?", "frames": 20}])
def test_an_answer_that_was_given_up_stretches_nothing(
    tiny: Callable[[str], Path], tmp_path: Path, clip: Path, given_up: dict[str, Any]
) -> None:
    """Be it for its length or for its frames that it needed to be stretched: what comes next may not need it."""
    model = opened(overridden(tiny("llava"), tmp_path, context=300))
    chat = model.chat(clip, frames=4, max_new_tokens=4, rope_max=8.0)
    chat.ask(QUESTIONS[0])
    next(chat.stream(**given_up))
    assert chat.past is not None
    assert chat.past.state.rope_factor > 1.0
    assert chat.ask(QUESTIONS[1]).usage.rope_factor == 1.0


def test_a_dialogue_beyond_every_stretch_is_one_line(tiny: Callable[[str], Path], tmp_path: Path, clip: Path) -> None:
    model = opened(overridden(tiny("llava"), tmp_path, context=150))
    chat = model.chat(clip, frames=2, stride=4, max_new_tokens=4, rope_max=1.0)

    def talk() -> None:
        for _ in range(20):
            chat.ask("and then, after that, what is it that happens next?")

    with pytest.raises(BudgetError) as caught:
        talk()
    assert "\n" not in str(caught.value)
    assert chat.turns  # what was said before still stands


def test_a_talk_goes_on_with_fewer_frames_when_nobody_named_their_number(
    tiny: Callable[[str], Path], tmp_path: Path, clip: Path
) -> None:
    """The first look fills a small context; what is said later needs a place in it."""
    model = opened(overridden(tiny("llava"), tmp_path, context=400))
    chat = model.chat(clip, rope_max=1.0)
    frames, reused = [], []
    for number in range(7):
        answer = chat.ask(f"and what happens then, number {number}?", max_new_tokens=8)
        assert answer.usage.video_tokens + answer.usage.text_tokens + 8 <= 400
        assert chat.past is not None
        frames.append(len(answer.frames))
        reused.append(chat.past.reused > 0)
    assert frames == sorted(frames, reverse=True)
    assert frames[-1] < frames[0]
    assert reused.count(True) >= 4, "a look leaves some slack, or every turn would be read anew"
    named = model.chat(clip, rope_max=1.0, frames=frames[0], max_new_tokens=8)
    with pytest.raises(BudgetError, match="shorter conversation"):
        [named.ask(f"and what happens then, number {number}?") for number in range(7)]


def test_the_end_of_a_range_past_the_clip_is_the_clips_end(model: VideoModel, clip: Path) -> None:
    """A follow-up that names the end names the same time as before, and is not planned anew."""
    chat = model.chat(clip, end=999.0, max_new_tokens=4)
    first = chat.ask("what happens at the end?")
    look = chat._look
    again = chat.ask("and at the end?")
    assert chat._look is look
    assert again.frames == first.frames


# ------------------------------------------------------------------------------------------------------ errors


def test_what_can_not_be_asked_is_one_line(model: VideoModel, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    cases: list[tuple[type[Exception], Callable[[], object]]] = [
        (ConfigError, lambda: model.ask(clip, "  ")),
        (ConfigError, lambda: model.ask([], "what?")),
        (ConfigError, lambda: model.ask(None, "what?")),  # type: ignore[arg-type]
        (ConfigError, lambda: model.ask([clip, 5], "what?")),  # type: ignore[list-item]
        (ConfigError, lambda: model.ask(clip, None)),  # type: ignore[arg-type]
        (ConfigError, lambda: model.ask(clip, "caf\udce9?")),
        (ConfigError, lambda: vidllm.plan(clip, "caf\udce9?", model=model.spec.folder)),
        (ConfigError, lambda: vidllm.plan(None, model=model.spec.folder)),  # type: ignore[arg-type]
        (ConfigError, lambda: model.ask(clip, "what?", policy="foo")),  # type: ignore[arg-type]
        (ConfigError, lambda: model.ask(clip, "what?", framse=4)),  # type: ignore[call-arg]
        (ConfigError, lambda: model.ask(clip, "what?", temperature=-1)),
        (VideoNotFound, lambda: model.ask(tmp_path / "none.mp4", "what?")),
        (VideoNotFound, lambda: model.ask(tmp_path, "what?")),
        (VideoNotFound, lambda: model.ask("", "what?")),
        (ConfigError, lambda: load(model.spec.folder, cache="nowhere")),  # type: ignore[arg-type]
        (NotAVideo, lambda: model.ask(tmp_path / "text.mp4", "what?")),
        (BudgetError, lambda: model.ask(clip, "what?", frames=200, stride=1)),
    ]
    for error, call in cases:
        with pytest.raises(error) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) > 20


def test_a_question_too_long_by_itself_is_refused_before_anything_is_tried_beside_it(
    model: VideoModel, clip: Path, picture: Path
) -> None:
    """Each look that is tried would split all of its letters into tokens again: of a megabyte that takes minutes."""
    long = "what happens in this long question? " * 2000
    says = r"^0 visual \+ \d+ text \+ 64 reply = .*; use a shorter question$"
    for source in (clip, picture):
        with pytest.raises(BudgetError, match=says):
            model.ask(source, long)
        with pytest.raises(BudgetError, match=says):
            vidllm.plan(source, long, model=model.spec.folder)


def test_options_are_checked_before_a_chat_begins(model: VideoModel, clip: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean frames"):
        model.chat(clip, framse=4)  # type: ignore[call-arg]


def test_an_unknown_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
