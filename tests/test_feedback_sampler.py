"""Candidates: what the engine would say alone with the same seed, and log-probs that a plain forward pass confirms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vidllm
from tests.conftest import short_story
from vidllm.ask import VideoModel
from vidllm.clip import PlanOptions, open_clip
from vidllm.engine import generate, read
from vidllm.feedback.candidates import SAMPLED, SamplingOptions
from vidllm.feedback.perturb import perturb_messages
from vidllm.feedback.sampler import Sampler, answer_ids, answer_logp, draw, seed_of
from vidllm.model.features import FeatureCache
from vidllm.model.gemma import Gemma3
from vidllm.model.kv import KeyValues
from vidllm.model.reader import TextReader
from vidllm.options import GenerationOptions
from vidllm.prompt import Message, build_example, build_prompt
from vidllm.world.make import write_video

BOLD = SamplingOptions(k=6, temperature=2.5)
FAMILIES = (
    "llava", "llava_next_video", "llava_onevision", "internvl", "gemma3", "aya_vision", "cohere2_vision", "qwen2_vl",
    "qwen2_5_vl", "qwen3_vl", "qwen3_5", "smolvlm", "idefics3", "glm4v", "pixtral", "mistral3",
    "video_llama_3", "lfm2_vl", "gemma4",
)  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short world clip."""
    path = tmp_path_factory.mktemp("world") / "a.mp4"
    write_video(short_story("sampler", 1, 8), path)
    return path


@pytest.fixture(scope="module")
def model() -> VideoModel:
    """The built-in model in float32, its features in memory only."""
    return vidllm.load(dtype="float32", cache=FeatureCache(folder=None))


def ask(model: VideoModel, clip: Path, question: str, frames: int | None = None) -> list[Message]:
    options = PlanOptions(frames=frames, max_new_tokens=None if frames is None else 12)
    seen = open_clip(clip, question, model.spec, model.lmm.tokenizer, options)
    return [Message("user", question, (seen,))]


def plain_logp(model: VideoModel, messages: Sequence[Message], answer: str) -> float:
    """Log-prob of the last answer by one forward pass over the whole conversation, nothing shared, nothing kept."""
    lmm = model.lmm
    assert isinstance(lmm, TextReader)
    example = build_example([*messages, Message("assistant", answer)], model.spec, lmm.tokenizer)
    with torch.inference_mode():
        ready = lmm.prepare([example.prompt])[0]
        kv = KeyValues(lmm.layers, ready.length)
        deep = ready.deep
        if isinstance(lmm, Gemma3):
            deep = {"attention_mask": lmm._mask(deep["sight"], 0, ready.length)}
        hidden = lmm.language(inputs_embeds=ready.embeddings, position_ids=ready.positions, past_key_values=kv,
                              use_cache=True, **deep).last_hidden_state  # fmt: skip
        logps = torch.log_softmax(lmm.logits(hidden[0]).double(), dim=-1)
    ids, trained = example.prompt.input_ids, example.trained
    last = max(i for i in range(len(ids)) if not trained[i] and any(trained[i:])) + 1
    return sum(float(logps[i - 1, ids[i]]) for i in range(last, len(ids)) if trained[i])


def test_each_candidate_is_what_the_engine_says_alone(model: VideoModel, clip: Path) -> None:
    messages = ask(model, clip, "describe the video.")
    prompt = build_prompt(messages, model.spec, model.lmm.tokenizer)
    state = read(model.lmm, prompt).state
    options = [BOLD.generation(seed_of(0, "key", n), prompt.max_new_tokens) for n in range(6)]
    assert isinstance(model.lmm, TextReader)
    together = draw(model.lmm, state, options)
    alone = [generate(model.lmm, state, wish).result for wish in options]
    assert [w.token_ids for w in together] == [w.token_ids for w in alone]
    assert len({w.token_ids for w in together}) > 1
    assert [w.finish_reason for w in together] == [w.finish_reason for w in alone]


def test_log_probs_are_those_of_a_plain_forward(model: VideoModel, clip: Path) -> None:
    sampler = Sampler(model, BOLD)
    for question in ("describe the video.", "what happens at 0:04?"):
        messages = ask(model, clip, question)
        sampled = sampler.sample(messages, question)
        assert len(sampled.candidates) >= 2
        for candidate in sampled.candidates:
            assert candidate.logp == pytest.approx(plain_logp(model, messages, candidate.text), abs=1e-4)
            assert candidate.logp < 0


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_and_draws_hold_in_every_family(tiny: Callable[[str], Path], clip: Path, family: str) -> None:
    model = vidllm.load(tiny(family), dtype="float32", cache=None)
    messages = ask(model, clip, "what happens?", frames=4)
    prompt = build_prompt(messages, model.spec, model.lmm.tokenizer)
    state = read(model.lmm, prompt).state
    assert isinstance(model.lmm, TextReader)
    options = [GenerationOptions(max_new_tokens=6, temperature=1.0, seed=n) for n in range(3)]
    assert [w.token_ids for w in draw(model.lmm, state, options)] == [
        generate(model.lmm, state, wish).result.token_ids for wish in options
    ]
    answer = "The red circle moves."
    example = build_example([*messages, Message("assistant", answer)], model.spec, model.lmm.tokenizer)
    logp = answer_logp(model.lmm, state, answer_ids(example, prompt))
    assert logp == pytest.approx(plain_logp(model, messages, answer), rel=1e-5)
    assert logp == answer_logp(model.lmm, state, answer_ids(example, prompt))  # the state is as it was


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dialogue_is_asked_as_it_will_be_taught(tiny: Callable[[str], Path], clip: Path, family: str) -> None:
    """Also of a model that was never taught here, whose own template prints earlier answers otherwise. Its frames are
    read for themselves, and the talk about them goes on where it would."""
    model = vidllm.load(tiny(family), dtype="float32", cache=None)
    before = ask(model, clip, "what happens?", frames=4)
    talk = [*before, Message("assistant", "A ring grows."), Message("user", "and then?")]
    sampler = Sampler(model, replace(BOLD, max_new_tokens=6))
    for messages in (before, talk):
        candidate = sampler._score(messages, sampler._prompt(messages), "It shrinks.", SAMPLED)
        assert candidate.logp == pytest.approx(plain_logp(model, messages, candidate.text), rel=1e-5)


def test_a_stretched_prompt_is_measured_as_training_lays_it_out(model: VideoModel, clip: Path) -> None:
    """A prompt that only just needs stretching, for its reply's sake: the finished conversation may need less."""
    messages = ask(model, clip, "describe the video.")
    prompt = build_prompt(messages, model.spec, model.lmm.tokenizer)
    room = model.spec.context + 64 - prompt.length
    options = replace(BOLD, max_new_tokens=room, k=2)
    assert build_prompt(messages, model.spec, model.lmm.tokenizer, max_new_tokens=room).rope_factor > 1
    for candidate in Sampler(model, options).sample(messages, "x").candidates:
        assert candidate.rope_factor == 1.0
        assert candidate.logp == pytest.approx(plain_logp(model, messages, candidate.text), abs=1e-4)


def test_draws_depend_on_the_question_and_the_seed_alone(model: VideoModel, clip: Path) -> None:
    first, other = ask(model, clip, "describe the video."), ask(model, clip, "what happens first?")
    sampler = Sampler(model, BOLD)
    sampler.sample(other, "other")
    after = sampler.sample(first, "first")
    fresh = Sampler(model, BOLD).sample(first, "first")
    assert [c.text for c in after.candidates] == [c.text for c in fresh.candidates]
    assert [c.logp for c in after.candidates] == pytest.approx([c.logp for c in fresh.candidates], abs=1e-4)
    reseeded = Sampler(model, replace(BOLD, seed=1)).sample(first, "first")
    assert [c.text for c in reseeded.candidates] != [c.text for c in fresh.candidates]


def test_the_clip_is_read_once_for_all_its_questions(
    model: VideoModel, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    original = model.lmm.prefill
    monkeypatch.setattr(model.lmm, "prefill", lambda *a, **k: reads.append(1) or original(*a, **k))
    sampler = Sampler(model, BOLD)
    for question in ("describe the video.", "what happens first?", "what happens last?"):
        sampler.sample(ask(model, clip, question), question)
    assert len(reads) == 1


def test_same_answers_are_dropped_and_counted(model: VideoModel, clip: Path) -> None:
    cold = SamplingOptions(k=5, temperature=0.05)
    sampled = Sampler(model, cold).sample(ask(model, clip, "what happens first?"), "x")
    assert len(sampled.candidates) + sum(sampled.dropped.values()) == 5
    assert sampled.dropped["said before"] >= 3
    cut = Sampler(model, replace(cold, max_new_tokens=2)).sample(ask(model, clip, "what happens first?"), "x")
    assert (cut.candidates, cut.dropped) == ((), {"cut off": 5})


def test_what_is_said_of_a_changed_clip_is_measured_on_the_clip_as_it_is(model: VideoModel, clip: Path) -> None:
    messages = ask(model, clip, "describe the video.")
    blank = perturb_messages(messages, "blank", 0)
    assert blank is not None
    sampled = Sampler(model, BOLD).sample(messages, "x", [("blank", blank)])
    (said,) = [c for c in sampled.candidates if c.source == "blank"]
    assert said.logp == pytest.approx(plain_logp(model, messages, said.text), abs=1e-4)
    assert said.logp != pytest.approx(plain_logp(model, blank, said.text), abs=0.1)
