"""Families that lay out their own frames are taught as they are asked, with transformers' losses and gradients; whole
runs are those of Gemma 3, too."""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image as PIL
from torch import Tensor

from tests.conftest import needs_bitsandbytes
from tests.packed import pack
from tests.test_lmm import pictures, prompt_for
from tests.test_native import COMPARED, SIZES, hf_inputs, load, reference, video_prompt
from tests.test_train_learner import asked, count_calls, gradients, learner_of, taught
from tests.test_train_sft import figures, same, stop_after, vidllm
from tests.test_train_sft import taught as saved_weights
from vidllm import clip as clip_module
from vidllm.clip import Clip, PlanOptions, open_clip
from vidllm.config import load_config
from vidllm.errors import ConfigError
from vidllm.model.checkpoint import load_model
from vidllm.model.native import NativeLMM
from vidllm.prompt import Example, Message, build_example, build_prompt
from vidllm.train import sft
from vidllm.train.adapters import check_targets, lora_layers
from vidllm.train.batch import Batch
from vidllm.train.cache import ClipCache
from vidllm.train.dpo import DpoConfig
from vidllm.train.learner import Learner
from vidllm.train.pairs import Pair, lay_out_pairs
from vidllm.train.parts import Extra, Lora, Parts, part_of
from vidllm.train.sft import SftConfig, read_lesson
from vidllm.train.sharing import Planted, Stem, plant
from vidllm.visuals import Image

Tiny = Callable[[str], Path]
NATIVE = tuple(COMPARED)  # the other one reads pictures in both directions
KINDS = ("qwen2_5_vl", "qwen3_vl", "qwen3_5", "smolvlm", "video_llama_3", "lfm2_vl", "gemma4")
"""One of every kind of layers and layouts, where each takes its time."""
ALL = Parts(vision_tower=1e-4, projector=1e-3, language_model=1e-3)
LOW_RANK = Parts(language_model=1e-3)
TOLERANCE = 1e-5
Told = tuple[Example, dict[str, Any]]
"""A conversation, and what transformers' own class is given for it alone."""


def shown(model: NativeLMM, question: str, answer: str, seed: int = 0, count: int = 8) -> Told:
    """A video of so many frames, one in four seconds, with what is asked and answered about it."""
    frames = pictures(count, *SIZES[model.spec.model_type], seed=seed)
    prompt = video_prompt(model, frames, [4.0 * i for i in range(count)])
    example = spoken(model, prompt.input_ids, prompt.visuals, question, answer)
    return example, hf_inputs(model, example.prompt, frames, seconds=8.0)


def spoken(model: NativeLMM, ids: Sequence[int], visuals: Sequence[Any], question: str, answer: str) -> Example:
    before = [*ids, *model.tokenizer.encode(question, add_special_tokens=False).ids]
    after = model.tokenizer.encode(answer, add_special_tokens=False).ids
    prompt = prompt_for(model, [*before, *after], visuals)  # type: ignore[arg-type]
    return Example(prompt=prompt, trained=(*[False] * len(before), *[True] * len(after)))


def worded(model: NativeLMM) -> Told:
    """Words alone."""
    example = spoken(model, [], [], "user who are you?", " a model")
    return example, {"input_ids": torch.tensor([example.prompt.input_ids])}


WITH_STILLS = tuple(name for name in NATIVE if name.startswith("qwen"))


def pictured(model: NativeLMM, tiny: Tiny) -> Told:
    """A still picture of Qwen's, and a video behind it."""
    from transformers import Qwen2VLImageProcessorPil

    image = pictures(1, 300, 421)[0]
    seen = Qwen2VLImageProcessorPil.from_pretrained(tiny(model.spec.model_type))(image, return_tensors="pt")
    count = int(seen["image_grid_thw"].prod()) // 4
    marks = f"<|vision_start|>{model.spec.image_token * count}<|vision_end|>"
    ids = model.tokenizer.encode(marks, add_special_tokens=False).ids
    still = replace(shown(model, "", " ")[0].prompt.visuals[0], pixels=image[None], kind="image", tokens=count,
                    position=1, times=())  # fmt: skip
    video, inputs = shown(model, " and this?", " two pictures", seed=3)
    moved = replace(video.prompt.visuals[0], position=video.prompt.visuals[0].position + len(ids))
    prompt = prompt_for(model, [*ids, *video.prompt.input_ids], [still, moved])  # type: ignore[arg-type]
    words = torch.tensor([prompt.input_ids])
    kinds = (words == model.spec.image_token_id).int() + 2 * (words == model.spec.video_token_id).int()
    more = {"input_ids": words, "mm_token_type_ids": kinds}
    return Example(prompt=prompt, trained=(*[False] * len(ids), *video.trained)), {**inputs, **seen, **more}


def apart(network: Any, told: Told) -> Tensor:
    """Log-probs of what is to be learned, from transformers' own class on this conversation alone."""
    example, inputs = told
    logps = network(**inputs).logits[0].log_softmax(-1)
    places = torch.tensor([place for place, trained in enumerate(example.trained) if trained])
    return logps[places - 1, torch.tensor(example.prompt.input_ids)[places]]


def of_leaves(learner: Learner, planted: Planted) -> tuple[Batch, list[Tensor]]:
    """The batch, and the log-probs of every conversation, in the order of the stems."""
    batch = Batch(pieces=planted.pieces)
    found = learner(batch)
    return batch, [found[batch.targets.owners == leaf] for leaves in planted.leaves for leaf in leaves]


def backward(network: Any, logps: Sequence[Tensor]) -> dict[str, Tensor]:
    """Every gradient of a sum in which each target counts differently."""
    network.zero_grad(set_to_none=True)
    flat = torch.cat(list(logps))
    (flat * torch.linspace(-1, 1, len(flat)) / len(flat)).sum().backward()
    return {name: w.grad.clone() for name, w in network.named_parameters() if w.grad is not None}


def assert_alike(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    longest = max(1.0, *(float(gradient.abs().max()) for gradient in theirs.values()))
    assert max(float(gradient.abs().max()) for gradient in theirs.values()) > 1e-3
    assert mine.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(mine[name], gradient, atol=TOLERANCE * longest, rtol=0, msg=name)


def check_as_if_alone(
    learner: Learner, examples: Sequence[Example], network: Any, expected: Sequence[Tensor], *, sharing: bool
) -> None:
    """Read together, conversations have the `expected` log-probs, each of its own from `network`, and its gradients."""
    stems = [Stem(length=e.trained.index(True), ends=((e, len(e.trained)),)) for e in examples]
    batch, found = of_leaves(learner, plant(stems, sharing=sharing))
    assert (batch.length < sum(e.prompt.length for e in examples)) == sharing
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=TOLERANCE, rtol=0)
    assert_alike(backward(learner.network, found), backward(network, expected))


def check_loss(learner: Learner, told: Told, network: Any) -> None:
    """The whole model learns, tower included, against the loss of transformers' own class with its own labels."""
    example, inputs = told
    labels = torch.where(torch.tensor([example.trained]), inputs["input_ids"], -100)
    expected = network(**inputs, labels=labels).loss
    loss = -learner(pack([example])).mean()
    torch.testing.assert_close(loss, expected, atol=TOLERANCE, rtol=0)
    loss.backward()
    expected.backward()
    theirs = {n: p.grad for n, p in network.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    mine = {n: p.grad for n, p in learner.network.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {part_of(n) for n in mine} == {"vision_tower", "projector", "language_model", "embeddings"}
    assert_alike(mine, theirs)


def check_pairs(learner: Learner, told: Sequence[Sequence[Told]], network: Any) -> None:
    """Two pairs about one video: the video once, each prompt once, as four conversations alone."""
    pairs = [Pair(chosen=a, rejected=b, start=a.trained.index(True)) for (a, _), (b, _) in told]
    laid = lay_out_pairs(pairs)
    assert len(laid.batch.pieces) == 1 + 2 * 3
    found = torch.stack(laid.summed(learner(laid.batch)), dim=1)
    expected = torch.stack([torch.stack([apart(network, one).sum() for one in both]) for both in told])
    # of sums over whole answers, up to some hundreds, of which float32 knows no more digits
    torch.testing.assert_close(found, expected, atol=10 * TOLERANCE, rtol=5e-7)
    assert_alike(backward(learner.network, list(found)), backward(network, list(expected)))


@pytest.mark.parametrize("name", NATIVE)
def test_the_loss_and_every_gradient_are_transformers(name: str, tiny: Tiny) -> None:
    learner = learner_of(tiny(name), parts=ALL)
    told = shown(learner.lmm, " what is this?", " The red circle moves right.", count=5)
    check_loss(learner, told, reference(learner.lmm))


@pytest.mark.usefixtures("across_first")
@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("name", NATIVE)
def test_what_is_read_together_is_as_if_alone(name: str, sharing: bool, tiny: Tiny) -> None:
    """Two questions about one video, which is read once, another video, words alone, a picture before a video."""
    learner = learner_of(tiny(name), parts=ALL)
    model = learner.lmm
    told = [shown(model, " how many?", " two"), shown(model, " how many?", " three", seed=1), worded(model),
            shown(model, " which colour?", " red, at 0:30"), shown(model, " and now?", " blue", count=5)]  # fmt: skip
    told += [pictured(model, tiny)] if name in WITH_STILLS else []
    network = reference(model)
    expected = [apart(network, one) for one in told]
    check_as_if_alone(learner, [example for example, _ in told], network, expected, sharing=sharing)


@pytest.mark.parametrize("name", NATIVE)
def test_an_adapter_is_put_beside_every_matrix_of_the_layers(name: str, tiny: Tiny) -> None:
    """Of linear attention and convolutions, too; but not of the tower, the projector, the head or a router."""
    learner = learner_of(tiny(name), parts=LOW_RANK, lora=Lora(r=2))
    matrices = {path for path, module in reference(learner.lmm).named_modules() if isinstance(module, torch.nn.Linear)}
    layers = {path for path in matrices if part_of(path) == "language_model" and ".layers." in path}
    layers = {path for path in layers if not re.search(r"\.(router|gate|shared_expert_gate)(\.|$)", path)}
    assert set(lora_layers(learner.network)) == layers
    check_targets(Lora(), learner.network.config.get_text_config())  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5", "lfm2_vl"])
def test_an_adapter_learns_together_as_from_each_alone(name: str, tiny: Tiny) -> None:
    """Each alone through the same matrices, as transformers' own class reads it."""
    learner = learner_of(tiny(name), parts=LOW_RANK, lora=Lora(r=4, alpha=8))
    low_rank = {name: weight for name, weight in learner.network.named_parameters() if ".lora_" in name}
    for weight in low_rank.values():
        torch.nn.init.normal_(weight, std=0.1)
    words = [(" how many?", " two"), (" which colour?", " red, at 0:30"), (" how many?", " there are three")]
    told = [shown(learner.lmm, question, answer, count=12) for question, answer in words]
    examples = [example for example, _ in told]
    stems = [Stem(length=e.trained.index(True), ends=((e, len(e.trained)),)) for e in examples]
    _, found = of_leaves(learner, plant(stems))
    expected = [apart(learner.network, one) for one in told]
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), atol=TOLERANCE, rtol=0)
    mine, theirs = (backward(learner.network, logps) for logps in (found, expected))
    assert mine.keys() == low_rank.keys()
    assert_alike(mine, theirs)


@pytest.mark.parametrize("name", NATIVE)
def test_a_pair_reads_its_prompt_once(name: str, tiny: Tiny) -> None:
    learner = learner_of(tiny(name), parts=ALL)
    words = [(" how many?", " two", " there are three"), (" where?", " on the right side", " left")]
    told = [[shown(learner.lmm, question, answer) for answer in answers] for question, *answers in words]
    check_pairs(learner, told, reference(learner.lmm))


def look(model: NativeLMM, path: Path, cache: ClipCache | None = None, frames: int = 5) -> Clip:
    return open_clip(path, "what happens?", model.spec, model.tokenizer, PlanOptions(frames=frames), known=cache)


def dialogue(model: NativeLMM, clip: Clip) -> list[Message]:
    """A clip, and later a picture."""
    still = Image(pictures(1, 90, 130)[0])
    return [Message("user", "what happens?", (clip,)), Message("assistant", "Nothing happens."),
            Message("user", "and here?", (still,)), Message("assistant", "A red circle.")]  # fmt: skip


@pytest.mark.parametrize("name", NATIVE)
def test_an_example_is_learned_as_its_prompts_are_asked(name: str, clips: Mapping[str, Path], tiny: Tiny) -> None:
    """A clip of uneven times in the family's own words, then a picture: both answers as a user's prompts give them."""
    learner = learner_of(tiny(name))
    model = learner.lmm
    model.spec = replace(model.spec, as_said=True)
    turns = dialogue(model, look(model, clips["variable"]))
    example = build_example(turns, model.spec, model.tokenizer)
    expected = []
    for turn in (1, 3):
        prompt = build_prompt(turns[:turn], model.spec, model.tokenizer)
        assert example.prompt.input_ids[: prompt.length] == prompt.input_ids
        said = example.trained[prompt.length :]
        end = prompt.length + (said.index(False) if False in said else len(said))
        expected.append(asked(model, prompt, example.prompt.input_ids[prompt.length : end]))
    found = learner(pack([example])).detach()
    torch.testing.assert_close(found, torch.cat(expected), atol=TOLERANCE, rtol=0)


# ------------------------------------------------------------------------------------------------------ what learns


@pytest.mark.parametrize("part", ["vision_tower", "projector", "language_model", "embeddings"])
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "qwen3_5", "smolvlm", "gemma4"])
def test_a_part_learns_alone_and_the_rest_stays_bit_for_bit(name: str, part: str, tiny: Tiny) -> None:
    """All of it: the projector's matrices for deeper layers, too."""
    learner = learner_of(tiny(name), parts=Parts(**{"embeddings": 0.0, part: 1e-3}))
    before = {name: weight.clone() for name, weight in learner.named_parameters()}
    assert (learner.stage is None) == (part in ("vision_tower", "projector"))
    taught(learner, pack([shown(learner.lmm, " how many?", " two")[0], worded(learner.lmm)[0]]))
    moved = {name for name, weight in learner.named_parameters() if not torch.equal(weight, before[name])}
    # what is added behind the last of so few layers, where pictures stand, is read by nothing; and nothing is heard
    unread = {name for name in before if "deepstack_merger_list.1." in name}
    own = {name for name in before if part_of(name) == part and "audio" not in name}
    assert moved == own - unread
    learning = {name for name, weight in learner.named_parameters() if weight.requires_grad}
    assert learning == own


@pytest.mark.parametrize("name", KINDS)
def test_words_alone_give_every_part_a_gradient_of_zero(name: str, tiny: Tiny) -> None:
    learner = learner_of(tiny(name), parts=ALL)
    found = gradients(learner, pack([worded(learner.lmm)[0]]))
    assert set(found) == {name for name, weight in learner.named_parameters() if weight.requires_grad}
    for weight, gradient in found.items():
        assert bool(gradient.any()) == (part_of(weight) in ("language_model", "embeddings"))


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("part", ["vision_tower", "projector", "language_model"])
def test_every_part_learns_in_bf16_and_between_layers_only(name: str, part: str, tiny: Tiny) -> None:
    whole, half = (learner_of(tiny(name), parts=Parts(**{part: 1e-3}), dtype=dtype, gradient_checkpointing=saving)
                   for dtype, saving in (("float32", False), ("bfloat16", True)))  # fmt: skip
    batch = pack([shown(whole.lmm, " how many?", " two")[0]])
    torch.testing.assert_close(half(batch), whole(batch), atol=0.3, rtol=0.05)
    exact, found = gradients(whole, batch), gradients(half, batch)
    assert exact.keys() == found.keys()
    mine, theirs = (torch.cat([of[weight].flatten().float() for weight in exact]) for of in (found, exact))
    assert torch.cosine_similarity(mine, theirs, dim=0) > 0.95
    saving = learner_of(tiny(name), parts=Parts(**{part: 1e-3}), gradient_checkpointing=True)
    for weight, gradient in gradients(saving, batch).items():
        torch.testing.assert_close(gradient, exact[weight], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "more", [{"parts": Parts(temporal=1e-3, language_model=1e-3)}, {"parts": Parts(newline=1e-3, language_model=1e-3)},
             {"extra": Extra(newline="frame")}, {"extra": Extra(temporal_buckets=4)}]
)  # fmt: skip
def test_what_only_a_frame_by_frame_family_has_is_refused(more: Any, tiny: Tiny) -> None:
    if more.get("extra") == Extra(temporal_buckets=4):
        more = {**more, "parts": Parts(temporal=1e-3)}
    with pytest.raises(ConfigError, match="qwen3_vl lays out its own frames and has no newline or temporal part"):
        learner_of(tiny("qwen3_vl"), **more)


# ------------------------------------------------------------------------------------------------------ looks are kept


@pytest.mark.parametrize("name", NATIVE)
def test_a_look_is_neither_decoded_nor_encoded_twice(
    name: str, clips: Mapping[str, Path], tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_of(tiny(name), parts=LOW_RANK)
    model, cache = learner.lmm, ClipCache.of(learner, tmp_path)
    assert cache is not None

    def example(known: ClipCache | None) -> Example:
        return build_example(dialogue(model, look(model, clips["variable"], known)), model.spec, model.tokenizer)

    plain = learner(pack([example(None)]))
    first = example(cache)
    assert torch.equal(learner(cache.furnish(pack([first]), learner.features)), plain)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("this look was taken before")

    monkeypatch.setattr(clip_module, "read_planned", never)
    later = ClipCache.of(learner, tmp_path)  # as another run would have it
    assert later is not None
    second = example(later)
    assert second.prompt.input_ids == first.prompt.input_ids  # with the times that were really decoded
    calls = count_calls(model.tower)
    warm = later.furnish(pack([second]), never)  # type: ignore[arg-type]
    assert torch.equal(learner(warm), plain)
    assert calls == []
    fresh = ClipCache.of(learner_of(tiny(name), parts=Parts(projector=1e-3)), tmp_path) is None
    assert fresh == (not model.projects)


# ------------------------------------------------------------------------------------------------------ saved and asked


def assert_asks_alike(learner: Learner, model: NativeLMM, example: Example, tolerance: float = TOLERANCE) -> None:
    start = example.trained.index(True)
    ids = example.prompt.input_ids
    prompt = prompt_for(model, ids[:start], example.prompt.visuals)  # type: ignore[arg-type]
    found = learner(pack([example])).detach()
    torch.testing.assert_close(asked(model, prompt, ids[start:]), found, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("merge", [None, False, True], ids=["whole", "adapter", "merged"])
def test_a_saved_model_is_asked_as_it_learned(name: str, merge: bool | None, tiny: Tiny, tmp_path: Path) -> None:
    """Whole with its tower; an adapter with a projector that learned beside it; and that in one model."""
    low_rank = {"parts": replace(LOW_RANK, projector=1e-3), "lora": Lora(r=4, alpha=8)}
    learner = learner_of(tiny(name), **({"parts": ALL} if merge is None else low_rank))
    example = shown(learner.lmm, " how many?", " two of them")[0]
    before = learner(pack([example])).detach()
    taught(learner, pack([example]))
    assert (learner(pack([example])) - before).abs().max() > 1e-2
    learner.save(tmp_path, merge=bool(merge))
    assert (tmp_path / "adapter_model.safetensors").exists() == (merge is False)
    assert_asks_alike(learner, load(tmp_path), example)
    if merge is False:
        with learner.reference(), torch.no_grad():
            torch.testing.assert_close(asked_of_base(learner, tiny(name), example), learner(pack([example])))


def asked_of_base(learner: Learner, folder: Path, example: Example) -> Tensor:
    """What an untaught language model says behind the projector that was taught."""
    base = learner_of(folder)
    weights = dict(learner.network.named_parameters())
    with torch.no_grad():
        for name, weight in base.network.named_parameters():
            if part_of(name) == "projector":
                weight.copy_(weights[name])
        return base(pack([example]))


@needs_bitsandbytes
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_5", "smolvlm", "gemma4"])
def test_an_adapter_learns_beside_matrices_of_4_bits(name: str, tiny: Tiny, tmp_path: Path) -> None:
    learner = learner_of(tiny(name), parts=LOW_RANK, lora=Lora(r=4, alpha=8), quantize="int4")
    example = shown(learner.lmm, " how many?", " two of them")[0]
    before = learner(pack([example])).detach()
    taught(learner, pack([example]))
    assert (learner(pack([example])) - before).abs().max() > 1e-2
    learner.save(tmp_path)
    model = load_model(tmp_path, "cpu", "float32", quantize="int4")
    assert isinstance(model, NativeLMM)
    assert_asks_alike(learner, model, example, 1e-4)


# ------------------------------------------------------------------------------------------------------ whole runs

RUN: dict[str, Any] = {
    "frames": 4, "batch": 3, "tokens": 4000, "steps": 4, "checkpoint_every": 1, "workers": 1, "device": "cpu",
    "parts": {"language_model": 1e-3}, "optim": {"warmup": 0.0},
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path, clips: Mapping[str, Path]) -> Callable[..., Path]:
    """A config file for rows that show a clip, a picture, and nothing; what is said changes the common one."""
    PIL.new("RGB", (90, 70), (200, 30, 30)).save(tmp_path / "red.png")

    def make(command: str, **more: Any) -> Path:
        answers = (lambda a, b: {"chosen": a, "rejected": b}) if command == "dpo" else (lambda a, b: {"answer": a})
        said = [({"video": str(clips["variable"])}, "what happens?", "The red circle moves right.", "Nothing."),
                ({"video": str(clips["variable"])}, "how many objects?", "Two.", "There are three objects."),
                ({"image": "red.png"}, "which colour?", "Red.", "Blue, I think."),
                ({}, "who are you?", "A model.", "The video.")]  # fmt: skip
        rows = [{**media, "prompt": asked, **answers(a, b)} for media, asked, a, b in said]
        if command == "sft":
            rows = [{**media, "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": a}]}
                    for media, asked, a, _ in said]  # fmt: skip
        data = tmp_path / f"{command}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        path = tmp_path / f"{command}.yaml"
        words = {"data": str(data), "out": str(tmp_path / "out"), "cache_folder": str(tmp_path / "cache")}
        path.write_text(yaml.safe_dump({**RUN, **words, **more}))
        return path

    return make


@pytest.mark.parametrize("name", ["qwen3_5", "gemma3"])
def test_a_row_that_was_learned_is_answered(
    name: str, write: Callable[..., Path], tiny: Tiny, tmp_path: Path, clips: Mapping[str, Path]
) -> None:
    """From rows to a model that is asked out, on the command line alone."""
    words = ("sft", write("sft", model=str(tiny(name)), steps=40, batch=4, parts={"language_model": 1e-2}))
    assert vidllm(*words)[0] == 0
    told = figures(tmp_path / "out")
    assert told[-1]["loss"] < 0.2 * told[0]["loss"]
    for question, answer in (("what happens?", "The red circle moves right."), ("how many objects?", "Two.")):
        asking = ("ask", clips["variable"], question, "-m", tmp_path / "out", "--frames", "4", "--dtype", "float32")
        code, out, err = vidllm(*asking)
        assert code == 0, err
        assert out.strip() == answer


@pytest.mark.parametrize("name", NATIVE)
def test_rows_are_counted_as_they_are_laid_out(name: str, write: Callable[..., Path], tiny: Tiny) -> None:
    """Before a pixel is decoded; and shown as they will be learnt."""
    path = write("sft", model=str(tiny(name)))
    config = load_config(SftConfig, path)
    lesson = read_lesson(config, print, remember=False)
    examples = lesson.load(config, range(4))
    assert [example.prompt.length for example in examples] == list(lesson.checked.lengths)
    task = sft.SftTask(config, lesson, None)  # type: ignore[arg-type]  # nothing is computed
    assert task.prepare(range(4)).batch.length < sum(lesson.checked.lengths)  # the clip is read once
    code, out, err = vidllm("sft", path, "--dry-run")
    assert code == 0, err
    assert re.search(r"^video +2 ", out + err, re.MULTILINE)
    code, out, err = vidllm("sft", path, "--show-batch")
    assert code == 0, err
    assert re.search("⟦[^⟧]*The red circle moves right.[^⟧]+⟧", out + err)
    assert " visual]" in out + err


@pytest.mark.parametrize("name", ["qwen3_5", "gemma3"])
def test_an_interrupted_run_goes_on_to_the_bit(
    name: str, write: Callable[..., Path], tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second half recalls the looks that the first half had to take."""
    more = {"model": str(tiny(name)), "batch": 2}
    whole = write("sft", out=str(tmp_path / "whole"), cache_folder=str(tmp_path / "other"), **more)
    assert vidllm("sft", whole)[0] == 0
    stop_after(2, monkeypatch)
    assert vidllm("sft", write("sft", **more))[0] == 130
    monkeypatch.undo()
    assert vidllm("sft", write("sft", **more))[0] == 0
    assert figures(tmp_path / "out") == figures(tmp_path / "whole")
    assert same(saved_weights(tmp_path / "out"), saved_weights(tmp_path / "whole"))


ADAPTER = {"r": 4, "targets": ["q_proj", "k_proj", "v_proj"]}


@pytest.mark.parametrize(
    ("name", "lora"), [*((name, None) for name in (*KINDS, "gemma3")), ("qwen3_5", ADAPTER), ("gemma3", ADAPTER)]
)
def test_preferences_are_taught(
    name: str, lora: dict[str, Any] | None, write: Callable[..., Path], tiny: Tiny, tmp_path: Path
) -> None:
    """Every shortcut on and off: one run to the eye; the first loss is that of a policy that is its reference."""
    off = {"sharing": False, "head_only": False, "feature_cache": False, "reference_cache": False}
    more = {"model": str(tiny(name)), "lora": lora, "steps": 3, "batch": 4}
    told = []
    for number, shortcuts in enumerate(({}, off)):
        path = write("dpo", **more, **shortcuts, out=str(tmp_path / f"out{number}"))
        assert load_config(DpoConfig, path).sharing == (number == 0)
        code, _, err = vidllm("dpo", path)
        assert code == 0, err
        told.append([(r["loss"], r["rewards/margins"]) for r in figures(tmp_path / f"out{number}")])
    assert told[0][0][0] == pytest.approx(np.log(2), abs=1e-5)
    assert told[0][-1][0] < told[0][0][0] - 1e-3
    for mine, plain in zip(*told, strict=True):
        assert mine == pytest.approx(plain, abs=1e-4)
    assert load_model(tmp_path / "out0", "cpu", "float32").spec.as_said
    shutil.rmtree(tmp_path / "out1")
