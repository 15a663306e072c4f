"""Gemma 3 is taught as transformers' own class reads each conversation alone: a picture's tokens see each other, and
layers see a window, along the branches of a tree, too."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vidllm
from tests.planned import clip_of, noise
from tests.test_lmm import load, reference
from tests.test_train_dpo import Heard, write_rows
from tests.test_train_learner import learner_of
from tests.test_train_native import apart, assert_alike, backward, check_as_if_alone
from vidllm.clip import Clip
from vidllm.prompt import Example, Image, Message, build_example
from vidllm.train import tree
from vidllm.train.batch import Batch
from vidllm.train.dpo import DpoConfig, run_dpo
from vidllm.train.learner import Learner
from vidllm.train.mixture import Source
from vidllm.train.pairs import Pair, lay_out_pairs
from vidllm.train.parts import Lora, Parts, part_of
from vidllm.train.sft import SftConfig, run_sft
from vidllm.train.sharing import Planted, Stem, plant

Tiny = Callable[[str], Path]
ALL = Parts(vision_tower=1e-4, projector=1e-3, language_model=1e-3)
LOW_RANK = Parts(language_model=1e-3)
TOLERANCE = 1e-5
WINDOW = 24
"""Of the tiny model: a picture and a few words; every conversation here is longer."""
Told = tuple[Example, dict[str, Any]]
"""A conversation, and what transformers' own class is given for it alone."""


def film(learner: Learner, seed: int = 0, frames: int = 4) -> Clip:
    """Frames of noise, each a picture with its time before it."""
    clip = clip_of(learner.spec, frames=frames, stride=1)
    side = learner.spec.image_size
    pixels = np.stack([noise(side, side, seed + number) for number in range(frames)])
    return replace(clip, frames=replace(clip.frames, pixels=pixels))


def told(learner: Learner, *turns: Message) -> Told:
    example = build_example(turns, learner.spec, learner.lmm.tokenizer)
    ids = torch.tensor([example.prompt.input_ids])
    inputs = {"input_ids": ids, "token_type_ids": (ids == learner.spec.image_token_id).int()}
    if visuals := example.prompt.visuals:
        pixels = torch.from_numpy(np.concatenate([visual.pixels for visual in visuals]))
        inputs["pixel_values"] = pixels.permute(0, 3, 1, 2) / 127.5 - 1
        assert example.prompt.length > 2 * WINDOW
    return example, inputs


def shown(learner: Learner, question: str, answer: str, *media: Clip | Image) -> Told:
    return told(learner, Message("user", question, media), Message("assistant", answer))


def rows(learner: Learner) -> list[Told]:
    """Two questions about one video, another video, words alone, three pictures, and a picture behind an answer."""
    pictures = [Image(noise(*size)) for size in [(112, 112), (90, 400), (250, 30)]]
    first, other = film(learner), film(learner, seed=9, frames=3)
    return [
        shown(learner, "how many?", "Two.", first), shown(learner, "how many?", "Three.", other),
        shown(learner, "who are you? " * 20, "A model."), shown(learner, "which colour?", "Red, at 0:30.", first),
        shown(learner, "which of them?", "The second.", *pictures),
        told(learner, Message("user", "how many?", (first,)), Message("assistant", "Two."),
             Message("user", "and here?", (pictures[0],)), Message("assistant", "Nothing. " * 12)),
    ]  # fmt: skip


def planted(examples: Sequence[Example], *, sharing: bool) -> Planted:
    stems = [Stem(length=e.trained.index(True), ends=((e, len(e.trained)),)) for e in examples]
    return plant(stems, sharing=sharing)


def test_the_loss_and_every_gradient_are_transformers(tiny: Tiny) -> None:
    """The whole model learns, tower included, against the loss of transformers' own class with its own labels."""
    learner = learner_of(tiny("gemma3"), parts=ALL)
    example, inputs = shown(learner, "how many?", "Two.", film(learner), Image(noise(90, 400)))
    network = reference(learner.lmm).train()
    labels = torch.where(torch.tensor([example.trained]), inputs["input_ids"], -100)
    expected = network(**inputs, labels=labels).loss
    loss = -learner(Batch(pieces=planted([example], sharing=False).pieces)).mean()
    torch.testing.assert_close(loss, expected, atol=TOLERANCE, rtol=0)
    loss.backward()
    expected.backward()
    mine, theirs = ({name: weight.grad for name, weight in of.named_parameters() if weight.grad is not None}
                    for of in (learner.network, network))  # fmt: skip
    assert {part_of(name) for name in mine} == {"vision_tower", "projector", "language_model", "embeddings"}
    assert_alike(mine, theirs)


@pytest.mark.parametrize("saving", [False, True])
@pytest.mark.parametrize("sharing", [True, False])
def test_what_is_read_together_is_as_if_alone(sharing: bool, saving: bool, tiny: Tiny) -> None:
    learner = learner_of(tiny("gemma3"), parts=ALL, gradient_checkpointing=saving)
    conversations = rows(learner)
    network = reference(learner.lmm).train()
    expected = [apart(network, one) for one in conversations]
    check_as_if_alone(learner, [example for example, _ in conversations], network, expected, sharing=sharing)


def test_a_picture_is_no_line_of_tokens(tiny: Tiny) -> None:
    """Read from left to right alone, and by layers that all see everything, it is another."""
    learner = learner_of(tiny("gemma3"))
    example, inputs = shown(learner, "how many?", "Two.", film(learner))
    network = reference(learner.lmm).eval()
    seen = apart(network, (example, inputs))
    blind = apart(network, (example, {key: value for key, value in inputs.items() if key != "token_type_ids"}))
    network.config.text_config.sliding_window = 4096
    far = apart(network, (example, inputs))
    assert (blind - seen).abs().max() > 0.01
    assert (far - seen).abs().max() > 0.01


@pytest.mark.parametrize("cut", [False, True])
def test_a_pair_reads_its_prompt_once(cut: bool, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pairs about one video: the video once, each prompt once; all of a node in one call, or in pieces that end
    within pictures."""
    monkeypatch.setattr(tree, "ROWS", 7 if cut else tree.ROWS)
    learner = learner_of(tiny("gemma3"), parts=ALL)
    words = [("how many?", "Two.", "There are three. " * 9), ("where?", "On the right side.", "Left.")]
    clip = film(learner)
    conversations = [[shown(learner, question, answer, clip) for answer in answers] for question, *answers in words]
    pairs = [Pair(chosen=a, rejected=b, start=a.trained.index(True)) for (a, _), (b, _) in conversations]
    laid = lay_out_pairs(pairs)
    assert len(laid.batch.pieces) == 1 + 2 * 3
    found = torch.stack(laid.summed(learner(laid.batch)), dim=1)
    network = reference(learner.lmm).train()
    expected = torch.stack([torch.stack([apart(network, one).sum() for one in both]) for both in conversations])
    # of sums over whole answers, up to some hundreds, of which float32 knows no more digits
    torch.testing.assert_close(found, expected, atol=10 * TOLERANCE, rtol=5e-7)
    assert_alike(backward(learner.network, list(found)), backward(network, list(expected)))


@pytest.mark.parametrize("parts", [LOW_RANK, replace(LOW_RANK, projector=1e-3), ALL])
def test_in_bf16_it_points_the_same_way(parts: Parts, tiny: Tiny) -> None:
    whole, half = (learner_of(tiny("gemma3"), parts=parts, dtype=dtype) for dtype in ("float32", "bfloat16"))
    batch = Batch(pieces=planted([example for example, _ in rows(whole)], sharing=True).pieces)
    torch.testing.assert_close(half(batch), whole(batch), atol=0.3, rtol=0.05)
    exact, found = backward(whole.network, [whole(batch)]), backward(half.network, [half(batch)])
    assert exact.keys() == found.keys()
    mine, theirs = (torch.cat([of[name].flatten().float() for name in exact]) for of in (found, exact))
    assert torch.cosine_similarity(mine, theirs, dim=0) > 0.95


# ------------------------------------------------------------------------------------------------------ whole runs

ROWS = (
    ("a", "constant.mp4", "what happens?", "The red circle moves right.", "Nothing."),
    ("b", "constant.mp4", "how many objects?", "Two.", "There are three, I think."),
    ("c", None, "who are you?", "A model.", "The video."),
)


@pytest.fixture
def stage(clips: Mapping[str, Path], tiny: Tiny, tmp_path: Path) -> dict[str, Any]:
    """Two rows about one clip, of more tokens than its sliding layers see, and one of words alone."""
    return {
        "model": str(tiny("gemma3")), "frames": 3, "batch": 3, "tokens": 400, "steps": 4, "checkpoint_every": 1,
        "device": "cpu", "workers": 0, "out": tmp_path / "out", "cache_folder": tmp_path / "cache", "parts": LOW_RANK,
        "data": (Source(path=write_rows(tmp_path, ROWS), media=clips["constant"].parent),),
    }  # fmt: skip


def lesson(stage: dict[str, Any], **more: Any) -> SftConfig:
    """The rows' chosen answers."""
    [source] = stage["data"]
    said = [{"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}],
             **({"video": video} if video else {})} for _, video, asked, answer, _ in ROWS]  # fmt: skip
    path = source.path.with_name("rows.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in said))
    return SftConfig(**{**stage, "data": (replace(source, path=path),), **more})


def test_a_row_that_was_learned_is_answered(stage: dict[str, Any], clips: Mapping[str, Path]) -> None:
    config = lesson(stage, steps=30, parts=Parts(language_model=1e-2), checkpoint_every=100)
    run_sft(replace(config, optim=replace(config.optim, warmup=0.0)), heard := Heard())
    assert heard.losses[-1] < 0.2 * heard.losses[0]
    model = vidllm.load(str(config.out), device="cpu", dtype="float32", cache=None)
    for _, _, question, answer, _ in ROWS[:2]:
        assert model.ask(clips["constant"], question, frames=3).text == answer


def test_a_run_that_was_stopped_goes_on_to_the_bit(stage: dict[str, Any], tmp_path: Path) -> None:
    """The second half recalls the looks that the first half had to take."""
    run_sft(lesson(stage, feature_cache=False), whole := Heard())
    again = lesson(stage, out=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        run_sft(again, stopped := Heard(die_after=2))
    run_sft(again, rest := Heard())
    assert rest.resumed >= 1
    assert stopped.losses[: rest.resumed] + rest.losses == whole.losses
    mine, theirs = (load(folder).network.state_dict() for folder in (again.out, stage["out"]))
    assert all(torch.equal(weight, theirs[name]) for name, weight in mine.items())


@pytest.mark.parametrize("lora", [None, Lora(r=4)])
def test_preferences_are_taught(lora: Lora | None, stage: dict[str, Any], tmp_path: Path) -> None:
    """Every shortcut on and off: one run to the eye; the first loss is that of a policy that is its reference."""
    off = {"sharing": False, "head_only": False, "feature_cache": False, "reference_cache": False}
    told = []
    for number, shortcuts in enumerate(({}, off)):
        config = DpoConfig(**{**stage, "lora": lora, **shortcuts, "out": tmp_path / f"out{number}"})
        run_dpo(replace(config, optim=replace(config.optim, warmup=0.0)), heard := Heard())
        told.append(heard.losses)
    assert told[0][0] == pytest.approx(np.log(2), abs=1e-5)
    assert told[0][-1] < told[0][0] - 1e-3
    assert told[0] == pytest.approx(told[1], abs=1e-4)
    assert load(tmp_path / "out0").spec.as_said
