"""Gemma 3 is taught as transformers' own class reads each conversation alone: a picture's tokens see each other, and
layers see a window, along the branches of a tree, too."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.planned import clip_of, noise
from tests.test_lmm import reference
from tests.test_train_learner import learner_of
from tests.test_train_native import (
    ALL,
    LOW_RANK,
    Tiny,
    Told,
    apart,
    backward,
    check_as_if_alone,
    check_loss,
    check_pairs,
)
from vidllm.clip import Clip
from vidllm.prompt import Message, build_example
from vidllm.train import tree
from vidllm.train.batch import Batch
from vidllm.train.learner import Learner
from vidllm.train.parts import Parts
from vidllm.train.sharing import Stem, plant
from vidllm.visuals import Image

WINDOW = 24
"""Of the tiny model: a picture and a few words; every conversation here is longer."""


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


def test_the_loss_and_every_gradient_are_transformers(tiny: Tiny) -> None:
    learner = learner_of(tiny("gemma3"), parts=ALL)
    conversation = shown(learner, "how many?", "Two.", film(learner), Image(noise(90, 400)))
    check_loss(learner, conversation, reference(learner.lmm).train())


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
    """All of a node in one call, or in pieces that end within pictures."""
    monkeypatch.setattr(tree, "ROWS", 7 if cut else tree.ROWS)
    learner = learner_of(tiny("gemma3"), parts=ALL)
    words = [("how many?", "Two.", "There are three. " * 9), ("where?", "On the right side.", "Left.")]
    clip = film(learner)
    conversations = [[shown(learner, question, answer, clip) for answer in answers] for question, *answers in words]
    check_pairs(learner, conversations, reference(learner.lmm).train())


@pytest.mark.parametrize("parts", [LOW_RANK, replace(LOW_RANK, projector=1e-3), ALL])
def test_in_bf16_it_points_the_same_way(parts: Parts, tiny: Tiny) -> None:
    whole, half = (learner_of(tiny("gemma3"), parts=parts, dtype=dtype) for dtype in ("float32", "bfloat16"))
    stems = [Stem(length=e.trained.index(True), ends=((e, len(e.trained)),)) for e, _ in rows(whole)]
    batch = Batch(pieces=plant(stems).pieces)
    torch.testing.assert_close(half(batch), whole(batch), atol=0.3, rtol=0.05)
    exact, found = backward(whole.network, [whole(batch)]), backward(half.network, [half(batch)])
    assert exact.keys() == found.keys()
    mine, theirs = (torch.cat([of[name].flatten().float() for name in exact]) for of in (found, exact))
    assert torch.cosine_similarity(mine, theirs, dim=0) > 0.95
