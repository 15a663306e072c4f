"""InternVL, every frame a numbered picture of its own: ids, tiles and logits are those of transformers' classes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, GotOcr2ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.internvl.modeling_internvl import InternVLModel
from transformers.models.internvl.processing_internvl import InternVLProcessor

from tests.planned import QUESTION, clip_of, copied, noise, prompt_of, spec_of, tiny_folder
from tests.test_lmm import load
from tests.test_native import check_logits
from tests.tiny_models import edit
from vidllm.errors import IncompleteModel, UnsupportedModel
from vidllm.model.anyres import canvas_grid, canvas_tokens, canvases
from vidllm.model.families import read_spec
from vidllm.model.pooling import pixel_shuffle
from vidllm.prompt import Message
from vidllm.visuals import Image


class Processor:
    """What the family's own does around its tokenizer; the class itself wants torchvision, for its videos."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.image_processor = GotOcr2ImageProcessorPil.from_pretrained(folder)
        self.image_seq_length = 16
        self.start_image_token, self.image_token, self.end_image_token = "<img>", "<IMG_CONTEXT>", "</img>"

    def video(self, frames: int) -> str:
        """The text that stands for a video."""
        return str(InternVLProcessor.replace_video_token(self, {"pixel_values_videos": [np.zeros(frames)]}, 0))  # type: ignore[arg-type]

    def images(self, tiles: list[int]) -> list[str]:
        """The texts that stand for pictures of so many tiles."""
        replace_image_token = InternVLProcessor.replace_image_token
        return [str(replace_image_token(self, {"num_patches": tiles}, i)) for i in range(len(tiles))]  # type: ignore[arg-type]

    def template(self, kind: str, count: int = 1) -> str:
        """The prompt with its placeholders."""
        content = [*({"type": kind} for _ in range(count)), {"type": "text", "text": QUESTION}]
        messages = [{"role": "user", "content": content}]
        return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(tiny_folder("internvl"))


@pytest.mark.usefixtures("across_first")
@pytest.mark.parametrize("sizes", [[(112, 112)], [(100, 320)], [(400, 130)], [(250, 250)], [(30, 40), (90, 400)]])
def test_still_images_equal_transformers(processor: Processor, sizes: list[tuple[int, int]]) -> None:
    """One tile, a row, a column, a square of tiles, and two pictures in a prompt."""
    spec, pictures = spec_of("internvl"), [noise(*size) for size in sizes]
    tiles = processor.image_processor(pictures, crop_to_patches=True, return_tensors="pt")
    pieces = processor.template("image", len(sizes)).split("<IMG_CONTEXT>")
    shown = [*processor.images(tiles["num_patches"].tolist()), ""]
    ids = processor.ids("".join(piece + picture for piece, picture in zip(pieces, shown, strict=True)))
    prompt = prompt_of(spec, [Message("user", QUESTION, tuple(Image(pixels) for pixels in pictures))])
    assert list(prompt.input_ids) == ids
    check_logits(load(spec.folder), prompt, {"input_ids": torch.tensor([ids]), "pixel_values": tiles["pixel_values"]})


def test_a_video_equals_transformers(processor: Processor) -> None:
    """Where nobody says the times the prompt is the family's own, id by id, and so are the logits."""
    spec = replace(spec_of("internvl"), stamp="none")
    clip = clip_of(spec, QUESTION, stride=1)
    frames = np.stack([noise(112 + n, 112)[:112] for n in range(len(clip.frames.pixels))])
    clip = replace(clip, frames=replace(clip.frames, pixels=frames))
    prompt = prompt_of(spec, [Message("user", QUESTION, (clip,))])
    pixels = processor.image_processor(list(frames), crop_to_patches=False, return_tensors="pt")["pixel_values"]
    ids = processor.ids(processor.template("video").replace("<video>", processor.video(len(frames))))
    assert list(prompt.input_ids) == ids
    check_logits(load(spec.folder), prompt, {"input_ids": torch.tensor([ids]), "pixel_values": pixels})


def test_times_are_told_beside_numbered_frames() -> None:
    spec = spec_of("internvl")
    prompt = prompt_of(spec, [Message("user", QUESTION, (clip_of(spec, QUESTION),))])
    assert "Frame1: <img><IMG_CONTEXT></img>\nFrame2: <img>" in prompt.text
    assert "These frames are located at 0.00s," in prompt.text
    stamped = replace(spec, stamp="interleaved")
    prompt = prompt_of(stamped, [Message("user", QUESTION, (clip_of(stamped, QUESTION),))])
    assert "[0:00.0] <img><IMG_CONTEXT></img>\n[0:" in prompt.text


@pytest.mark.parametrize("family", ["internvl", "aya_vision", "cohere2_vision"])
def test_frames_are_pooled_like_any_other_familys(family: str) -> None:
    """Four by four tokens a frame, and at stride 2 four, whether the tower or the projector joins patches."""
    spec = spec_of(family)
    model = load(spec.folder)
    fine, coarse = (clip_of(spec, QUESTION, stride=stride) for stride in (1, 2))
    assert [frame.tokens for frame in fine.plan.frames] == [16] * 6
    assert [frame.tokens for frame in coarse.plan.frames] == [4] * 6
    prompt = prompt_of(spec, [Message("user", QUESTION, (coarse,))])
    assert model.prefill(prompt).length == len(prompt.input_ids)


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 3), st.integers(3, 12))
def test_the_canvas_is_the_one_transformers_takes(height: int, width: int, least: int, most: int) -> None:
    resolutions = [(rows * 448, cols * 448) for rows, cols in canvases(least, most)]
    rows, cols = canvas_grid((height, width), 448, resolutions)
    assert (cols, rows) == get_optimal_tiled_canvas((height, width), (448, 448), least, most)
    assert canvas_tokens((height, width), (rows, cols), 16) == 256 * (rows * cols + (rows * cols > 1))


def test_pixel_shuffle_is_the_familys() -> None:
    features = torch.randn(2, 64, 5)
    joined = InternVLModel.pixel_shuffle(None, features.view(2, 8, 8, 5), scale_factor=0.5)  # type: ignore[arg-type]
    assert torch.equal(pixel_shuffle(features, 2), joined.reshape(2, 16, 20))


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ({"use_mean_pooling": False}, UnsupportedModel, "normalises its last layer"),
        ({"image_size": [112, 224]}, UnsupportedModel, r"oblongs of \[112, 224\]"),
        ({"image_size": [98, 98]}, IncompleteModel, "7 patches a side are no multiple of 2"),
    ],
)
def test_towers_of_another_kind_are_one_line(
    said: dict[str, object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    folder = copied("internvl", tmp_path)
    edit(folder / "config.json", vision_config=said)
    with pytest.raises(error, match=message):
        read_spec(folder)
