"""VideoLLaMA 3: stills keep every patch, frames a quarter of them behind their times; as transformers' classes do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoTokenizer, VideoLlama3ImageProcessorPil
from transformers.models.video_llama_3.image_processing_pil_video_llama_3 import smart_resize
from transformers.models.video_llama_3.processing_video_llama_3 import VideoLlama3Processor
from transformers.video_utils import VideoMetadata

import vidllm
from tests.conftest import write_clip
from tests.packed import pack
from tests.planned import QUESTION, copied, noise, noisy, prompt_of, spec_of, tiny_folder
from tests.test_native import check_logits, load, reference, torchvision_by_name
from tests.test_train_learner import gradients, learner_of, taught
from tests.test_train_native import ALL, apart, assert_alike, backward, dialogue, look, of_leaves
from tests.tiny_models import edit
from vidllm.clip import Clip
from vidllm.errors import IncompleteModel
from vidllm.geometry import NativeGeometry
from vidllm.model.families import load_tokenizer, read_spec
from vidllm.model.features import FeatureCache
from vidllm.prompt import Example, Message, Prompt, build_example
from vidllm.train.cache import ClipCache
from vidllm.train.parts import Lora, Parts
from vidllm.train.sharing import Stem, plant
from vidllm.visuals import Image

with torchvision_by_name():
    from transformers.models.video_llama_3.video_processing_video_llama_3 import VideoLlama3VideoProcessor

NAME = "video_llama_3"
Medium = Clip | Image


@cache
def processor() -> Any:
    """The family's own without its video processor's pixels, which want torchvision: its words and numbers need none.
    """
    made: Any = object.__new__(VideoLlama3Processor)
    made.tokenizer = AutoTokenizer.from_pretrained(tiny_folder(NAME))
    made.image_processor = VideoLlama3ImageProcessorPil.from_pretrained(tiny_folder(NAME))
    made.video_processor = SimpleNamespace(merge_size=2)
    made.image_token, made.video_token = made.tokenizer.image_token, made.tokenizer.video_token
    return made


@cache
def videos() -> Any:
    """Its video processor, for what is plain arithmetic in it."""
    return object.__new__(VideoLlama3VideoProcessor)


def video_inputs(clip: Clip) -> dict[str, Any]:
    """What its video processor makes of frames that have their size, nothing left out of them."""
    normal = (torch.from_numpy(clip.frames.pixels).float() / 255 - 0.5) / 0.5
    patches, *grid = videos().patchify(normal.permute(0, 3, 1, 2)[None], 14, 2, 1)
    at = [round(1000 * float(time)) for time in clip.frames.pts_seconds]
    return {
        "pixel_values_videos": patches[0], "video_grid_thw": torch.tensor([grid]),
        "video_merge_sizes": torch.tensor([2]),
        "video_compression_mask": torch.ones(len(patches[0]) // 4, dtype=torch.bool),
        "video_metadata": [VideoMetadata(total_num_frames=60000, fps=1000.0, frames_indices=at)],
    }  # fmt: skip


def inputs_of(media: list[Medium], messages: list[dict[str, Any]]) -> dict[str, Any]:
    """What the real processor hands over for a template's text and these media."""
    text = processor().tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    marks = {Image: (processor().image_token, "\0"), Clip: (processor().video_token, "\1")}
    made: dict[str, list[Any]] = {}
    for medium in media:
        if isinstance(medium, Clip):
            inputs = video_inputs(medium)
            told = processor().replace_video_token(inputs, 0)
            del inputs["video_metadata"]
        else:
            inputs = dict(processor().image_processor(medium.pixels, return_tensors="pt"))
            told = processor().replace_image_token(inputs, 0)
        mark, seen = marks[type(medium)]
        text = text.replace(mark, told.replace(mark, seen), 1)
        for key, value in inputs.items():
            made.setdefault(key, []).append(value)
    for mark, seen in marks.values():
        text = text.replace(seen, mark)
    ids = processor().tokenizer(text)["input_ids"]
    return {"input_ids": torch.tensor([ids]), **{key: torch.cat(values) for key, values in made.items()}}


def asked(media: list[Medium], question: str = QUESTION) -> list[dict[str, Any]]:
    kinds = ["video" if isinstance(medium, Clip) else "image" for medium in media]
    return [{"role": "user", "content": [*({"type": kind} for kind in kinds), {"type": "text", "text": question}]}]


def check_against_transformers(media: list[Medium], folder: Path | None = None, factor: float = 1.0) -> Prompt:
    """The same ids, and the same logits."""
    model = load(folder or tiny_folder(NAME))
    prompt = prompt_of(replace(model.spec, context=300 if factor > 1 else 8192),
                       [Message("user", QUESTION, tuple(media))], rope_max=factor)  # fmt: skip
    inputs = inputs_of(media, asked(media))
    assert list(prompt.input_ids) == inputs["input_ids"][0].tolist()
    check_logits(model, prompt, inputs)
    return prompt


@pytest.mark.parametrize("frames", [1, 4, 7])
def test_videos_equal_transformers(frames: int) -> None:
    clip = noisy(spec_of(NAME), frames=frames)
    prompt = check_against_transformers([clip])
    assert (prompt.text_tokens, prompt.video_tokens) == (clip.plan.text_tokens, clip.plan.video_tokens)
    times = [f"Time {time:.1f}s:<|video_pad|>" for time in clip.plan.times]
    assert prompt.text.startswith(f"<|im_start|>user\n{','.join(times)}\n{QUESTION}")


@pytest.mark.usefixtures("across_first")
@pytest.mark.parametrize("sizes", [[(300, 421)], [(5, 900)], [(700, 31)], [(40, 42), (120, 64)], []])
def test_still_images_equal_transformers(sizes: list[tuple[int, int]]) -> None:
    """Sides are multiples of one patch, and none is merged; what is too thin for one is made thicker."""
    prompt = check_against_transformers([Image(noise(*size)) for size in sizes])
    assert [visual.tokens for visual in prompt.visuals][1:] == ([9 * 5] if len(sizes) == 2 else [])


def test_stills_and_videos_stand_in_one_prompt() -> None:
    spec = spec_of(NAME)
    clips = noisy(spec, frames=2), noisy(spec, frames=3)
    check_against_transformers([clips[0], Image(noise(90, 33)), clips[1], Image(noise(30, 80))])


def test_a_rope_factor_is_what_divides_the_positions() -> None:
    clip = noisy(replace(spec_of(NAME), context=300), frames=5, max_new_tokens=20, rope_max=4.0)
    assert check_against_transformers([clip], factor=4.0).rope_factor > 1


def test_a_frame_and_a_still_of_the_same_pixels_are_seen_once_and_told_apart(tmp_path: Path) -> None:
    """The still has four tokens for each of the frame's."""
    spec = spec_of(NAME)
    clip = noisy(spec, frames=1)
    media = [clip, Image(clip.frames.pixels[0])]
    prompt = check_against_transformers(list(media))
    assert prompt.visuals[1].tokens == 4 * prompt.visuals[0].tokens
    plain, cold, warm = (load(spec.folder).prefill(prompt, kept) for kept in (None, *[FeatureCache(tmp_path)] * 2))
    assert (plain.frames_encoded, cold.frames_encoded, warm.frames_encoded) == (1, 1, 0)
    assert torch.equal(plain.logits, cold.logits)
    assert torch.equal(plain.logits, warm.logits)


def test_a_dialogue_is_printed_as_the_template_prints_it() -> None:
    spec, picture = spec_of(NAME), Image(noise(60, 90))
    media: list[Medium] = [picture]
    more = [{"role": "assistant", "content": "No."}, {"role": "user", "content": "and then?"}]
    messages = [{"role": "system", "content": "Be short."}, *asked(media), *more]
    prompt = prompt_of(spec, [
        Message("system", "Be short."), Message("user", QUESTION, (picture,)), Message("assistant", "No."),
        Message("user", "and then?"),
    ])  # fmt: skip
    assert list(prompt.input_ids) == inputs_of(media, messages)["input_ids"][0].tolist()


SIDES = st.integers(1, 3000)


@given(SIDES, SIDES)
@example(5, 900)
def test_a_picture_has_the_size_transformers_gives_it(height: int, width: int) -> None:
    geometry = NativeGeometry(patch=14, merge=2, image_merge=1, image_min_pixels=3136, image_max_pixels=400 * 14**2)
    try:
        expected = smart_resize(height, width, 14, min_pixels=3136, max_pixels=400 * 14**2)
    except ValueError:  # a strip: 200 times as long as wide
        return
    assert geometry.image_size(height, width) == expected


@given(SIDES, SIDES, st.integers(1, 400), st.integers(4, 40000))
def test_a_video_s_frames_share_its_pixels_as_transformers_shares_them(
    height: int, width: int, frames: int, tokens: int
) -> None:
    geometry = NativeGeometry(patch=14, merge=2, min_pixels=4 * 28**2, max_pixels=10**9, video_pixels=tokens * 28**2)
    size = {"shortest_edge": 4 * 28**2, "longest_edge": tokens * 28**2}
    theirs = {"size": size, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 1}
    try:
        expected = videos().get_num_of_video_patches(frames, height, width, theirs) // 4
    except ValueError:  # a strip: 200 times as long as wide
        return
    assert frames * geometry.tokens(*geometry.sizes(height, width, frames)[0]) == expected


def test_more_frames_than_a_video_has_pixels_for_are_smaller(tmp_path: Path) -> None:
    """Room or not: 16 frames where there may be 400 tokens in all."""
    folder = copied(NAME, tmp_path)
    edit(folder / "video_preprocessor_config.json", size={"longest_edge": 400 * 28**2})
    write_clip(tmp_path / "clip.mp4", [0.1 * n for n in range(30)], size=(224, 160))
    few, many = (vidllm.plan(tmp_path / "clip.mp4", "?", model=folder, frames=count) for count in (8, 16))
    assert [frame.tokens for frame in few.frames] == [6 * 8] * 8
    assert [frame.tokens for frame in many.frames] == [4 * 5] * 16


# ------------------------------------------------------------------------------------------------------ what files say


def test_what_the_files_leave_out_is_the_classes_own(tmp_path: Path) -> None:
    folder = copied(NAME, tmp_path)
    edit(folder / "config.json", text_config={"model_type": None, "max_position_embeddings": None})
    edit(folder / "preprocessor_config.json", size=None, merge_size=None, patch_size=None, image_mean=None)
    edit(folder / "video_preprocessor_config.json", size=None, merge_size=None, temporal_patch_size=None)
    spec, config = read_spec(folder), AutoConfig.from_pretrained(folder)
    images = VideoLlama3ImageProcessorPil.from_pretrained(folder)
    assert (spec.text_type, spec.context) == ("qwen2", config.text_config.max_position_embeddings)
    assert isinstance(spec.geometry, NativeGeometry)
    assert (spec.geometry.image_unit, spec.geometry.unit) == (14 * images.merge_size, 14 * videos().merge_size)
    assert spec.geometry.image_min_pixels == images.size["shortest_edge"]
    assert spec.geometry.image_max_pixels == images.size["longest_edge"]
    assert spec.geometry.video_pixels == videos().size["longest_edge"]
    assert spec.image_mean == tuple(images.image_mean)
    edit(folder / "config.json", image_token_id=None)
    with pytest.raises(IncompleteModel, match=f"visual token {type(config).image_token_id} is no added"):
        read_spec(folder)


@pytest.mark.parametrize(
    ("file", "said", "message"),
    [
        ("config.json", {"vision_config": {"patch_size": None}}, r"are \(16, 1\) to config.json and \[\(14, 1\)\] to"),
        ("video_preprocessor_config.json", {"temporal_patch_size": 2}, r"\[\(14, 1\), \(14, 2\)\] to the processors"),
        ("preprocessor_config.json", {"merge_size": 0}, "merge_size is 0, a whole number"),
        ("video_preprocessor_config.json", {"size": {"longest_edge": 9}}, "min_pixels 12544 are over max_pixels 9"),
    ],
)
def test_files_that_contradict_each_other_are_one_line(
    file: str, said: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = copied(NAME, tmp_path)
    edit(folder / file, **said)
    with pytest.raises(IncompleteModel, match=message):
        read_spec(folder)


# ------------------------------------------------------------------------------------------------------ teaching


def told(spec: Any, media: list[Medium], question: str, answer: str) -> tuple[Example, dict[str, Any]]:
    """A conversation, and what transformers' own class is given for it alone."""
    example = build_example([Message("user", question, tuple(media)), Message("assistant", answer)], spec,
                            load_tokenizer(spec.folder))  # fmt: skip
    inputs = inputs_of(media, [*asked(media, question), {"role": "assistant", "content": answer}])
    return example, {**inputs, "input_ids": torch.tensor([example.prompt.input_ids])}


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("lora", [None, Lora(r=4, alpha=8, targets=("q_proj", "v_proj"))], ids=["whole", "adapter"])
def test_stills_and_videos_read_together_are_as_if_alone(sharing: bool, lora: Lora | None) -> None:
    low = {"lora": lora, "parts": Parts(language_model=1e-3, projector=1e-3)}
    learner = learner_of(tiny_folder(NAME), **({"parts": ALL} if lora is None else low))
    spec = learner.spec
    media: list[Medium] = [Image(noise(50, 70)), noisy(spec, frames=2)]
    rows = [told(spec, media, "how many?", "Two."), told(spec, media, "where?", "On the left."),
            told(spec, media[:1], "which colour?", "Red."), told(spec, [], "who are you?", "A model.")]  # fmt: skip
    stems = [Stem(length=e.trained.index(True), ends=((e, len(e.trained)),)) for e, _ in rows]
    batch, found = of_leaves(learner, plant(stems, sharing=sharing))
    assert (batch.length < sum(example.prompt.length for example, _ in rows)) == sharing
    network = reference(learner.lmm)
    expected = [apart(network, row) for row in rows]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    mine, theirs = backward(learner.network, found), backward(network, expected)
    shared = mine.keys() & theirs.keys()  # not what an adapter learns, nor what it stands beside
    assert len(shared) == (len(theirs) if lora is None else 4)
    assert_alike({name: mine[name] for name in shared}, {name: theirs[name] for name in shared})


def test_a_projector_learns_from_looks_that_are_kept(clips: Mapping[str, Path], tmp_path: Path) -> None:
    """What the tower gave is kept as it was, before any of it is averaged: a clip and a still, in two runs."""
    learner = learner_of(tiny_folder(NAME), parts=Parts(projector=1e-3))
    model = learner.lmm
    rows = []
    for _ in range(2):
        kept = ClipCache.of(learner, tmp_path)
        turns = dialogue(model, look(model, clips["variable"], kept))
        batch = pack([build_example(turns, model.spec, model.tokenizer)])
        rows.append((gradients(learner, batch), gradients(learner, kept.furnish(batch, learner.features))))
    for mine, theirs in (rows[0], (rows[1][1], rows[0][0])):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    before = model.model.projector.readout[0].weight.clone()
    taught(learner, batch)
    assert not torch.equal(model.model.projector.readout[0].weight, before)
