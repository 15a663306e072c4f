"""ComposableLMM against transformers' own classes: same pixels, same template, same logits."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests import tiny_models
from vidllm.errors import ModelError
from vidllm.model.anyres import anyres_tokens, cut_tiles, tile_grid
from vidllm.model.checkpoint import load_model
from vidllm.model.families import read_spec
from vidllm.model.features import FeatureCache
from vidllm.model.kv import KeyValues, Layer
from vidllm.model.lmm import ComposableLMM, normalised, vision_key
from vidllm.prompt import Prompt
from vidllm.visuals import Visual

TOLERANCE = 1e-4


def pictures(count: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Coloured noise on a gradient, uint8 (count, height, width, 3): no two pixels of two pictures alike."""
    noise = np.random.default_rng(seed).integers(0, 96, (count, height, width, 3))
    return (noise + np.linspace(0, 159, width)[:, None]).astype(np.uint8)


def load(folder: Path) -> ComposableLMM:
    model = load_model(folder, device="cpu", dtype="float32")
    assert isinstance(model, ComposableLMM)
    return model


def prompt_for(model: ComposableLMM, ids: Sequence[int], visuals: Sequence[Visual], factor: float = 1.0) -> Prompt:
    tokens = sum(visual.tokens for visual in visuals)
    return Prompt(
        input_ids=tuple(ids), visuals=tuple(visuals), rope_factor=factor, spec=model.spec, text="", messages=(),
        text_tokens=len(ids) - tokens, video_tokens=tokens, max_new_tokens=256,
    )  # fmt: skip


def video_prompt(
    model: ComposableLMM, frames: NDArray[np.uint8], strides: Sequence[int], factor: float = 1.0
) -> Prompt:
    """USER: frames, question, ASSISTANT: with as many placeholders as the geometry promises."""
    geometry = model.spec.geometry
    counts = geometry.frame_tokens(strides)  # type: ignore[union-attr]
    before = model.tokenizer.encode("USER: ", add_special_tokens=False).ids
    after = model.tokenizer.encode("\nwhat happens at 0:30? ASSISTANT:", add_special_tokens=False).ids
    visuals = []
    position = len(before)
    for index, (stride, count) in enumerate(zip(strides, counts, strict=True)):
        last = index == len(counts) - 1
        newline = {"one": "frame" if last else "none"}.get(model.spec.newline, model.spec.newline)
        visuals.append(Visual(pixels=frames[index : index + 1], kind="frame", stride=stride, tokens=count,
                              position=position, newline=newline, times=(float(index),)))  # fmt: skip
        position += count
    ids = [*before, *[model.spec.image_token_id] * sum(counts), *after]
    return prompt_for(model, ids, visuals, factor)


def image_prompt(model: ComposableLMM, ids: Sequence[int], image: NDArray[np.uint8]) -> Prompt:
    """A still picture in the place of the placeholders the family's own processor wrote."""
    spec = model.spec
    position = list(ids).index(spec.image_token_id)
    size = (image.shape[0], image.shape[1])
    side = spec.image_size // spec.patch_size
    if not spec.image_grids:
        tokens = spec.geometry.frame_tokens([1])[0]  # type: ignore[union-attr]
        return prompt_for(model, ids, [Visual(pixels=image[None], kind="image", stride=1, tokens=tokens,
                                              position=position, newline="none")])  # fmt: skip
    grid = tile_grid(size, spec.image_size, spec.image_grids)
    tokens = anyres_tokens(size, grid, side, spec.image_max_tiles)
    return prompt_for(model, ids, [Visual(pixels=cut_tiles(image, spec.image_size, grid), kind="image", stride=1,
                                          tokens=tokens, position=position, newline="grid", grid=grid,
                                          source_size=size)])  # fmt: skip


def messages(kind: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": "what happens at 0:30?"}]}]


def reference(model: ComposableLMM) -> Any:
    """transformers' own class with the same weights, loaded on its own."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(model.spec.folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", ["llava", "vipllava"])
def test_still_image_equals_transformers(name: str, tiny: Callable[[str], Path]) -> None:
    from transformers import AutoProcessor

    model = load(tiny(name))
    processor = AutoProcessor.from_pretrained(tiny(name))
    image = pictures(1, 112, 112)[0]
    text = processor.apply_chat_template(messages("image"), add_generation_prompt=True)
    inputs = processor(images=image, text=text, return_tensors="pt")
    with torch.no_grad():
        expected = reference(model)(**inputs).logits[0, -1]
    state = model.prefill(image_prompt(model, inputs["input_ids"][0].tolist(), image))
    assert state.length == inputs["input_ids"].shape[1]
    torch.testing.assert_close(state.logits, expected, atol=TOLERANCE, rtol=0)


def test_a_kept_class_token_stays_with_still_images(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """vision_feature_select_strategy "full": 65 tokens for a picture, whole grids for frames."""
    folder = tmp_path / "full"
    shutil.copytree(tiny("llava"), folder)
    tiny_models.edit(folder / "config.json", vision_feature_select_strategy="full")
    model = load(folder)
    image = pictures(1, 112, 112)
    question = model.tokenizer.encode("what is this?", add_special_tokens=False).ids
    ids = [*[model.spec.image_token_id] * 65, *question]
    visual = Visual(pixels=image, kind="image", stride=1, tokens=65, position=0, newline="none")
    with torch.no_grad():
        expected = reference(model)(input_ids=torch.tensor([ids]), pixel_values=clip_pixels(model, image)).logits[0, -1]
    torch.testing.assert_close(model.prefill(prompt_for(model, ids, [visual])).logits, expected, atol=TOLERANCE, rtol=0)
    assert model.prefill(video_prompt(model, pictures(2, 112, 112), [2, 3])).frames_encoded == 2


@pytest.mark.parametrize("said", [{"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}, {}])
def test_pixels_are_scaled_as_the_processor_says(
    said: dict[str, object], tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """Steps a processor leaves out are left out here: a tower fed otherwise than it was taught sees nothing."""
    from transformers import CLIPImageProcessorPil

    folder = tmp_path / "llava"
    shutil.copytree(tiny("llava"), folder)
    tiny_models.edit(folder / "processor_config.json", image_processor=said)
    picture = pictures(1, 112, 112)
    expected = CLIPImageProcessorPil.from_pretrained(folder)(list(picture), return_tensors="pt")["pixel_values"]
    ours = normalised(torch.from_numpy(picture), read_spec(folder), torch.empty(0)).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-5)


def clip_pixels(model: ComposableLMM, frames: NDArray[np.uint8]) -> torch.Tensor:
    """Frames (N, S, S, 3) as a transformers image processor hands them to the model: (N, 3, S, S)."""
    from transformers import CLIPImageProcessorPil

    side = {"height": model.spec.image_size, "width": model.spec.image_size}
    processor = CLIPImageProcessorPil(
        size=side, crop_size=side, image_mean=list(model.spec.image_mean), image_std=list(model.spec.image_std)
    )
    pixels: torch.Tensor = processor(list(frames), return_tensors="pt")["pixel_values"]
    return pixels


def anyres_inputs(model: ComposableLMM, image: NDArray[np.uint8]) -> dict[str, torch.Tensor]:
    """One still picture through the family's own image processor; ids with our count of placeholders.

    The model itself checks that count: it refuses when its packed features are more or fewer.
    """
    from transformers import AutoTokenizer, LlavaNextImageProcessorPil, LlavaOnevisionImageProcessorPil

    spec = model.spec
    onevision = spec.model_type == "llava_onevision"
    cutter = (LlavaOnevisionImageProcessorPil if onevision else LlavaNextImageProcessorPil).from_pretrained(spec.folder)
    size = (image.shape[0], image.shape[1])
    grid = tile_grid(size, spec.image_size, spec.image_grids)
    count = anyres_tokens(size, grid, spec.image_size // spec.patch_size, spec.image_max_tiles)
    tokenizer = AutoTokenizer.from_pretrained(spec.folder)
    text = tokenizer.apply_chat_template(messages("image"), add_generation_prompt=True, tokenize=False)
    ids = tokenizer.encode(str(text).replace("<image>", "<image>" * count), return_tensors="pt")
    pixels = cutter(image, return_tensors="pt")
    return {"input_ids": ids, "pixel_values": pixels["pixel_values"], "image_sizes": pixels["image_sizes"]}


SHAPES = [(112, 112), (100, 300), (300, 100), (240, 250), (90, 400), (400, 90), (33, 17), (500, 700)]
"""Heights and widths of still pictures: each of the AnyRes grids is the best one for one of them."""


@pytest.mark.usefixtures("across_first")
@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("name", ["llava_next", "llava_next_video", "llava_onevision"])
def test_anyres_image_equals_transformers(name: str, size: tuple[int, int], tiny: Callable[[str], Path]) -> None:
    model = load(tiny(name))
    image = pictures(1, *size)[0]
    inputs = anyres_inputs(model, image)
    with torch.no_grad():
        expected = reference(model)(**inputs).logits[0, -1]
    state = model.prefill(image_prompt(model, inputs["input_ids"][0].tolist(), image))
    torch.testing.assert_close(state.logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["llava_next_video", "llava_onevision"])
def test_video_equals_transformers(name: str, tiny: Callable[[str], Path]) -> None:
    model = load(tiny(name))
    frames = pictures(6, model.spec.image_size, model.spec.image_size)
    prompt = video_prompt(model, frames, [2] * 6)
    ids = torch.tensor([prompt.input_ids])
    ids[ids == model.spec.image_token_id] = model.spec.video_token_id or 0
    with torch.no_grad():
        expected = reference(model)(input_ids=ids, pixel_values_videos=clip_pixels(model, frames)[None]).logits[0, -1]
    torch.testing.assert_close(model.prefill(prompt).logits, expected, atol=TOLERANCE, rtol=0)


def test_vipllava_and_llava_video_is_their_image_features_pooled(tiny: Callable[[str], Path]) -> None:
    """At stride 1 a one-frame video is the still picture, whichever side of the projector pooling stands."""
    model = load(tiny("llava"))
    frame = pictures(1, 112, 112)
    video = video_prompt(model, frame, [1])
    still = image_prompt(model, video.input_ids, frame[0])
    torch.testing.assert_close(model.prefill(video).logits, model.prefill(still).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["llava", "llava_next", "llava_onevision", "internvl"])
def test_rope_factor_two_equals_a_model_built_with_linear_scaling(name: str, tiny: Callable[[str], Path]) -> None:
    model = load(tiny(name))
    frames = pictures(4, model.spec.image_size, model.spec.image_size)
    scaled = model.prefill(video_prompt(model, frames, [2] * 4, factor=2.0))
    network = type(reference(model))
    config = network.config_class.from_pretrained(model.spec.folder)
    config.text_config.rope_parameters = {"rope_type": "linear", "factor": 2.0,
                                          "rope_theta": config.text_config.rope_parameters["rope_theta"]}  # fmt: skip
    built = network.from_pretrained(model.spec.folder, config=config, dtype=torch.float32).eval()
    linear = ComposableLMM(model.spec, model.tokenizer, built, "linear")
    expected = linear.prefill(video_prompt(linear, frames, [2] * 4))
    torch.testing.assert_close(scaled.logits, expected.logits, atol=1e-5, rtol=0)
    plain = model.prefill(video_prompt(model, frames, [2] * 4))
    assert (scaled.logits - plain.logits).abs().max() > 1e-3


def test_rope_factor_is_the_requests_whatever_the_path_is_called(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """The reference scaled only when the path held "vicuna", so its flagship never was; names mean nothing here."""
    frames = pictures(3, 112, 112)
    logits = []
    for name in ("LLaVA-NeXT-Video-7B-DPO", "llava-vicuna-7b"):
        shutil.copytree(tiny("llava"), tmp_path / name)
        model = load(tmp_path / name)
        logits.append(model.prefill(video_prompt(model, frames, [2] * 3, factor=1.37)).logits)
    plain = model.prefill(video_prompt(model, frames, [2] * 3)).logits
    assert torch.equal(logits[0], logits[1])
    assert (logits[0] - plain).abs().max() > 1e-3


def test_newlines_a_model_has_none_of_are_one_line(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny("llava"), tmp_path / "llava")
    (tmp_path / "llava" / "vidllm.json").write_text('{"newline": "grid"}')
    model = load(tmp_path / "llava")
    with pytest.raises(ModelError, match=r"llava: newline mode 'grid' needs a learned newline token"):
        model.prefill(video_prompt(model, pictures(2, 112, 112), [2, 2]))


@pytest.mark.parametrize(
    "name", ["llava", "llava_next_video", "llava_onevision", "internvl", "gemma3", "cohere2_vision"]
)
def test_reversing_the_frames_changes_the_logits(name: str, tiny: Callable[[str], Path]) -> None:
    model = load(tiny(name))
    frames = pictures(4, model.spec.image_size, model.spec.image_size)
    forward = model.prefill(video_prompt(model, frames, [2] * 4)).logits
    backward = model.prefill(video_prompt(model, frames[::-1].copy(), [2] * 4)).logits
    assert (forward - backward).abs().max() > 1e-3


def test_every_frame_is_pooled_by_its_own_stride(tiny: Callable[[str], Path]) -> None:
    """The reference ignored the configured stride; here it is obeyed, frame by frame, and counted."""
    model = load(tiny("llava_onevision"))  # 9x9 grid
    frames = pictures(3, 126, 126)
    strides = [1, 2, 4]
    features, _ = model.encode(video_prompt(model, frames, strides).visuals)
    assert [len(tokens) for tokens in features] == [81, 25, 10]  # 9x9; 5x5; 3x3 and the video's newline
    alone = [model.encode(video_prompt(model, frames[i : i + 1], [s]).visuals)[0][0] for i, s in enumerate(strides)]
    torch.testing.assert_close(features[2], alone[2], atol=1e-6, rtol=0)
    torch.testing.assert_close(features[1], alone[1][:-1], atol=1e-6, rtol=0)  # alone it is last, and has a newline


def test_extend_equals_prefill_of_the_whole(tiny: Callable[[str], Path]) -> None:
    """Ids read one by one, several at a time, or all at once: the same logits, also under a fractional factor."""
    model = load(tiny("llava"))
    prompt = video_prompt(model, pictures(4, 112, 112), [2, 4, 4, 2], factor=1.37)
    more = model.tokenizer.encode(" The red circle moves right.", add_special_tokens=False).ids
    whole = model.prefill(prompt_for(model, [*prompt.input_ids, *more], prompt.visuals, 1.37)).logits
    start = model.prefill(prompt)
    at_once = model.extend(start, more)
    step = start
    for token in more:
        step = model.extend(step, [token])
    torch.testing.assert_close(at_once.logits, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(step.logits, whole, atol=1e-5, rtol=0)
    assert at_once.length == step.length == len(prompt.input_ids) + len(more)


def test_a_snapshot_can_be_continued_in_several_ways(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llava"))
    start = model.prefill(video_prompt(model, pictures(2, 112, 112), [4, 4]))
    first = model.extend(start, [5, 6, 7])
    other = model.extend(start, [9])  # start is no longer the tip: this one gets a copy of the prefix
    assert other.kv is not first.kv
    again = model.extend(model.extend(start, [5]), [6, 7])
    torch.testing.assert_close(again.logits, first.logits, atol=1e-5, rtol=0)
    back = model.rewind(start)
    assert back.kv is start.kv
    assert not first.alive
    torch.testing.assert_close(model.extend(back, [9]).logits, other.logits, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="given up"):
        model.extend(first, [1])


def test_rewinding_into_a_prompt(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llava"))
    prompt = video_prompt(model, pictures(2, 112, 112), [4, 4])
    state = model.prefill(prompt)
    cut = model.rewind(state, len(prompt.input_ids) - 3)
    assert cut.logits.numel() == 0
    torch.testing.assert_close(
        model.extend(cut, prompt.input_ids[-3:]).logits, state.logits, atol=1e-5, rtol=0
    )  # fmt: skip
    with pytest.raises(ValueError, match="rewind"):
        model.rewind(cut, 10_000)


def test_a_long_answer_outgrows_the_buffer_and_stays_right(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llava"))
    prompt = video_prompt(model, pictures(1, 112, 112), [4])
    more = [7 + index % 300 for index in range(700)]  # more than twice the room taken at prefill
    state = model.prefill(prompt)
    for start in range(0, len(more), 50):
        state = model.extend(state, more[start : start + 50])
    whole = model.prefill(prompt_for(model, [*prompt.input_ids, *more], prompt.visuals)).logits
    torch.testing.assert_close(state.logits, whole, atol=1e-4, rtol=0)


def test_a_buffer_that_could_not_grow_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C or too little memory while a layer grows: the next turn reads on in it all the same."""
    kv, tokens = KeyValues((0,), 2), torch.arange(12.0).reshape(1, 1, 3, 4)
    kv.update(tokens[:, :, :2], -tokens[:, :, :2], 0)

    def failing(*args: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Layer, "write", failing)
        with pytest.raises(MemoryError):
            kv.update(tokens[:, :, 2:], -tokens[:, :, 2:], 0)
    keys, values = kv.update(tokens[:, :, 2:], -tokens[:, :, 2:], 0)
    assert torch.equal(keys, tokens)
    assert torch.equal(values, -tokens)


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_chunks_of_frames_do_not_matter(chunk: int, tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llava"))
    prompt = video_prompt(model, pictures(5, 112, 112), [2] * 5)
    expected = model.prefill(prompt).logits
    model.chunk = chunk
    torch.testing.assert_close(model.prefill(prompt).logits, expected, atol=1e-5, rtol=0)


def test_equal_frames_are_encoded_once(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llava"))
    two = pictures(2, 112, 112)
    frames = two[[0, 0, 1, 0, 1]]
    state = model.prefill(video_prompt(model, frames, [2] * 5))
    assert state.frames_encoded == 2
    nearly = frames.copy()
    nearly[1, 50, 50] ^= 1  # one grey level in one pixel
    assert model.prefill(video_prompt(model, nearly, [2] * 5)).frames_encoded == 3
    model.same_within = 1
    assert model.prefill(video_prompt(model, nearly, [2] * 5)).frames_encoded == 2


def test_a_slow_pan_does_not_creep_along_small_steps(tiny: Callable[[str], Path]) -> None:
    """Each frame one grey level brighter than the one before: only pairs may share, never the whole chain."""
    model = load(tiny("llava"))
    model.same_within = 1
    frames = np.stack([np.full((112, 112, 3), level, np.uint8) for level in range(6)])
    assert model.prefill(video_prompt(model, frames, [2] * 6)).frames_encoded == 3


def test_a_mismatch_names_both_numbers(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llava"))
    prompt = video_prompt(model, pictures(2, 112, 112), [2, 2])
    short = replace(prompt, visuals=(replace(prompt.visuals[0], stride=4), prompt.visuals[1]))
    with pytest.raises(ModelError, match="holds 16 visual tokens, the model made 4"):
        model.prefill(short)
    spelled = replace(prompt, input_ids=(*prompt.input_ids, model.spec.image_token_id))
    with pytest.raises(ModelError, match="33 placeholders for 32 visual tokens"):
        model.prefill(spelled)


def test_a_sliding_window_hides_what_is_too_old(tmp_path: Path) -> None:
    """Mistral forgets; the keys and values kept here do not, so its own mask has to hide the old ones."""
    model = load(tiny_models.with_text(tmp_path, "mistral", num_key_value_heads=2, sliding_window=24))
    prompt = video_prompt(model, pictures(3, 112, 112), [2, 2, 2])
    more = [7, 8, 9, 10, 11]
    state = model.extend(model.extend(model.prefill(prompt), more[:3]), more[3:4])
    state = model.extend(state, more[4:])
    features, _ = model.encode(prompt.visuals)
    whole = prompt_for(model, [*prompt.input_ids, *more], prompt.visuals)
    embeddings, _ = model.embedded(whole.input_ids, whole.visuals, features)
    with torch.no_grad():
        expected = reference(model)(inputs_embeds=embeddings).logits[0, -1]
    torch.testing.assert_close(state.logits, expected, atol=TOLERANCE, rtol=0)


def test_bfloat16_answers_like_float32(tiny: Callable[[str], Path]) -> None:
    """What a CPU with fast bf16 runs by default points the same way, up to bf16's three digits."""
    exact = load(tiny("llava"))
    rough = load_model(tiny("llava"), device="cpu", dtype="bfloat16")
    prompt = video_prompt(exact, pictures(4, 112, 112), [2, 4, 2, 4], factor=1.2)
    pair = torch.stack([exact.prefill(prompt).logits, rough.prefill(prompt).logits])
    assert pair.dtype == torch.float32
    assert torch.corrcoef(pair)[0, 1] > 0.998


def test_cached_equals_computed(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Cold, from disk and from memory, bit for bit; another stride or plan reuses the same frames."""
    model = load(tiny("llava"))
    frames = pictures(4, 112, 112)
    prompt = video_prompt(model, frames, [2, 4, 2, 4])
    plain = model.prefill(prompt)
    cold = model.prefill(prompt, FeatureCache(tmp_path))
    cache = FeatureCache(tmp_path)
    disk = model.prefill(prompt, cache)
    memory = model.prefill(prompt, cache)
    for state in (cold, disk, memory):
        assert torch.equal(state.logits, plain.logits)
    assert [state.frames_encoded for state in (plain, cold, disk, memory)] == [4, 4, 0, 0]
    other = model.prefill(video_prompt(model, frames[[3, 1]], [1, 1]), cache)
    assert other.frames_encoded == 0


def test_a_cache_is_not_shared_between_models(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    frames = pictures(2, 112, 112)
    for name in ("llava", "llava_next", "vipllava"):
        model = load(tiny(name))
        assert model.prefill(video_prompt(model, frames, [2, 2]), FeatureCache(tmp_path)).frames_encoded == 2
    rough = load_model(tiny("llava"), device="cpu", dtype="bfloat16")
    assert rough.prefill(video_prompt(load(tiny("llava")), frames, [2, 2]), FeatureCache(tmp_path)).frames_encoded == 2


def test_positions_that_a_long_text_turns_are_turned_for_what_was_read_before_it(tmp_path: Path) -> None:
    """longrope has other frequencies once a text is long: keys of before would stand where nobody looks for them."""
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 60,
        "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 5.0, 9.0],
    }  # fmt: skip
    said = {"rope_parameters": rope, "original_max_position_embeddings": 60, "pad_token_id": 0, "eos_token_id": 1}
    model = load(tiny_models.with_text(tmp_path, "phi3", **said))
    prompt = video_prompt(model, pictures(1, 112, 112), [2])
    more = [5 + n for n in range(60 - prompt.length + 3)]  # three beyond the 60th

    def afresh(ids: Sequence[int], factor: float = 1.0) -> torch.Tensor:
        whole = [*prompt.input_ids, *ids]
        return model.prefill(replace(prompt, input_ids=tuple(whole), rope_factor=factor)).logits

    begun = state = model.prefill(prompt)
    for count, token in enumerate(more, start=1):
        state = model.extend(state, [token])
        torch.testing.assert_close(state.logits, afresh(more[:count]), atol=TOLERANCE, rtol=0)
    back = model.extend(model.rewind(state, prompt.length + 1), [9])  # short again
    torch.testing.assert_close(back.logits, afresh([more[0], 9]), atol=TOLERANCE, rtol=0)
    at_once = model.extend(begun, more)
    torch.testing.assert_close(at_once.logits, afresh(more), atol=TOLERANCE, rtol=0)
    stretched = model.extend(model.prefill(replace(prompt, rope_factor=2.0)), more)  # within the first 60 positions
    torch.testing.assert_close(stretched.logits, afresh(more, 2.0), atol=TOLERANCE, rtol=0)
    assert (stretched.turned, at_once.turned) == (False, True)


@pytest.mark.parametrize(("name", "library"), [("llava", "vidllm"), ("llava_next", "transformers")])
def test_a_cache_is_not_shared_between_releases_of_what_encodes(
    name: str, library: str, tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another release may sum otherwise, and half of a video's frames would be those of another model."""
    prompt = video_prompt(load(tiny(name)), pictures(2, 112, 112), [2, 2])
    encoded = [load(tiny(name)).prefill(prompt, FeatureCache(tmp_path)).frames_encoded for _ in range(2)]
    monkeypatch.setattr(f"{library}.__version__", "99.0")
    assert [*encoded, load(tiny(name)).prefill(prompt, FeatureCache(tmp_path)).frames_encoded] == [2, 0, 2]


def test_a_cache_is_not_shared_between_devices(tiny: Callable[[str], Path]) -> None:
    """A GPU rounds otherwise: cached must equal computed on the CPU beside it."""
    model = load(tiny("llava"))
    known = [vision_key(model.spec, "x", model.network, torch.empty(0, device=device)) for device in ("cpu", "meta")]
    assert known[0] != known[1]


@pytest.mark.parametrize("name", ["llava", "llava_onevision", "internvl", "gemma3", "cohere2_vision"])
def test_wide_keys_change_no_more_than_rounding(
    name: str, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a bf16 CPU keys and values are kept in float32; over the size that is worth it, as they come."""
    exact, rough = load(tiny(name)), load_model(tiny(name), device="cpu", dtype="bfloat16")
    assert isinstance(rough, ComposableLMM)
    prompt = video_prompt(exact, pictures(3, exact.spec.image_size, exact.spec.image_size), [2, 2, 2])
    expected = exact.extend(exact.extend(exact.prefill(prompt), [5]), [6, 7])
    for limit, dtype in ((2**30, torch.float32), (1000, torch.bfloat16)):
        monkeypatch.setattr("vidllm.model.reader.WIDE_BYTES", limit)
        state = rough.extend(rough.extend(rough.prefill(prompt), [5]), [6, 7])
        assert state.kv.layers[0].first(1)[0].dtype == dtype
        assert torch.corrcoef(torch.stack([state.logits, expected.logits]))[0, 1] > 0.998
