"""LFM2-VL: a large picture in tiles with words between, then its thumbnail; ids and logits are transformers'."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as PIL
from transformers import AutoConfig, AutoTokenizer
from transformers.image_transforms import split_to_tiles
from transformers.models.lfm2_vl.processing_lfm2_vl import Lfm2VlProcessor

from tests.planned import QUESTION, copied, noise, noisy, prompt_of, spec_of, tiny_folder
from tests.test_native import check_logits, lfm_pictures, lfm_processing, load
from tests.tiny_models import edit
from vidllm.clip import Clip
from vidllm.errors import IncompleteModel, ModelError, UnsupportedModel
from vidllm.geometry import NativeGeometry
from vidllm.model.anyres import canvas_grid, canvases
from vidllm.model.families import read_spec
from vidllm.model.stills import still_tiles
from vidllm.prompt import Message, Prompt
from vidllm.visuals import Image

NAME = "lfm2_vl"
SIZED = {"downsample_factor": 2, "min_image_tokens": 4, "max_image_tokens": 16, "encoder_patch_size": 16}


@cache
def processor(folder: Path) -> Any:
    """The family's own, but for the scaling of pictures, which wants torchvision."""
    made: Any = object.__new__(Lfm2VlProcessor)
    made.tokenizer = AutoTokenizer.from_pretrained(folder)
    made.image_processor = object.__new__(lfm_processing().Lfm2VlImageProcessor)
    vars(made.image_processor).update(json.loads((folder / "preprocessor_config.json").read_text()))
    names = {"": "<image>", "_start": "<|image_start|>", "_end": "<|image_end|>", "_thumbnail": "<|img_thumbnail|>"}
    vars(made).update({f"image{name}_token": token for name, token in names.items()})
    return made


def scaled(pixels: NDArray[np.uint8], height: int, width: int) -> torch.Tensor:
    picture = PIL.fromarray(pixels).resize((width, height), PIL.Resampling.BILINEAR)
    return (torch.from_numpy(np.array(picture)).float() / 255 - 0.5) / 0.5


def cut_of(pixels: NDArray[np.uint8], folder: Path) -> tuple[list[torch.Tensor], str]:
    """What the tower is shown of a still picture, and what stands in the text for it, by the processor's own sums."""
    images = processor(folder).image_processor
    height, width = pixels.shape[:2]
    wide, tall = images.smart_resize(height, width, **SIZED)
    large = {name: value for name, value in SIZED.items() if name != "min_image_tokens"}
    shown, rows, cols = [scaled(pixels, tall, wide)], 1, 1
    if images._is_image_too_large(height, width, max_pixels_tolerance=2.0, **large):
        cols, rows, *whole, _ = images._get_grid_layout(height, width, 2, 4, 128)
        canvas = scaled(pixels, whole[1], whole[0]).permute(2, 0, 1)[None]
        tiles = [tile.permute(1, 2, 0) for tile in split_to_tiles(canvas, rows, cols)[0]]
        shown = [*tiles, *(shown if images.use_thumbnail else [])]
    sized = {"image_rows": [rows], "image_cols": [cols], "image_sizes": [[tall, wide]]}
    return shown, processor(folder).replace_image_token(sized, 0, use_image_special_tokens=True)


def check_against_transformers(
    media: list[Clip | Image], folder: Path | None = None, factor: float = 1.0, context: int = 4096
) -> Prompt:
    """The same ids, and the same logits: frames are pictures behind their times."""
    folder = folder or tiny_folder(NAME)
    model = load(folder)
    spec = replace(model.spec, context=context, stamp_decimals=1)
    prompt = prompt_of(spec, [Message("user", QUESTION, tuple(media))], rope_max=factor)
    parts, shown = [], []
    for medium in media:
        stills = [medium.pixels] if isinstance(medium, Image) else list(medium.frames.pixels)
        cut = [cut_of(pixels, folder) for pixels in stills]
        shown += [picture for pictures, _ in cut for picture in pictures]
        if isinstance(medium, Image):
            parts.append(cut[0][1])
        else:
            times = [f"[0:{int(10 * t) / 10:04.1f}] " for t in medium.frames.pts_seconds]
            parts += [f"{time}{text}\n" for time, (_, text) in zip(times, cut, strict=True)]
    said = {"role": "user", "content": [{"type": "text", "text": "".join(parts) + QUESTION}]}
    text = processor(folder).tokenizer.apply_chat_template([said], add_generation_prompt=True, tokenize=False)
    ids = processor(folder).tokenizer(text, add_special_tokens=False)["input_ids"]
    assert list(prompt.input_ids) == ids
    inputs = {"input_ids": torch.tensor([ids]), **(lfm_pictures(shown) if shown else {})}
    check_logits(model, prompt, inputs)
    return prompt


@pytest.fixture(params=[True, False], ids=["thumbnail", "bare"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """With its thumbnail, as LFM2-VL-1.6B's processor has it, and without one, as LFM2-VL-450M's."""
    if request.param:
        return tiny_folder(NAME)
    made = copied(NAME, tmp_path)
    edit(made / "preprocessor_config.json", use_thumbnail=False)
    return made


@pytest.mark.usefixtures("across_first")
@pytest.mark.parametrize("sizes", [[(128, 128)], [(40, 30)], [(170, 190)], [(300, 421)], [(700, 90)],
                                   [(60, 90), (500, 500), (90, 400)], []])  # fmt: skip
def test_still_images_equal_transformers(sizes: list[tuple[int, int]], folder: Path) -> None:
    """Small ones grow, larger ones shrink, and large ones are cut, one alone or several."""
    prompt = check_against_transformers([Image(noise(*size)) for size in sizes], folder)
    if sizes == [(300, 421)]:
        assert [visual.tokens for visual in prompt.visuals] == 4 * [16] + [12] * ("thumbnail" in prompt.text)
        assert prompt.text.count("<|img_row_2_col_1|><image><|img_row_2_col_2|>") == 1


@pytest.mark.parametrize("frames", [1, 5])
def test_videos_equal_transformers(frames: int) -> None:
    """Nothing the processor does to a picture changes a frame."""
    clip = noisy(spec_of(NAME), frames=frames)
    prompt = check_against_transformers([clip])
    assert prompt.video_tokens == clip.plan.video_tokens


def test_stills_and_videos_stand_in_one_prompt() -> None:
    spec = spec_of(NAME)
    clips = noisy(spec, frames=2), noisy(spec, frames=3)
    check_against_transformers([clips[0], Image(noise(300, 421)), clips[1], Image(noise(60, 90))])


@pytest.mark.usefixtures("across_first")
def test_a_rope_factor_is_what_divides_the_positions() -> None:
    media = [Image(noise(300, 421)), Image(noise(100, 120))]
    prompt = check_against_transformers(list(media), factor=8.0, context=100)
    assert prompt.rope_factor > 1


SIDES = st.integers(1, 3000)


@given(SIDES, SIDES)
@example(5, 2000)
@example(19, 171)
def test_a_picture_has_the_size_transformers_gives_it(height: int, width: int) -> None:
    spec = spec_of(NAME)
    assert isinstance(spec.geometry, NativeGeometry)
    images = processor(spec.folder).image_processor
    assert spec.geometry.image_size(height, width) == images.smart_resize(height, width, **SIZED)[::-1]
    large = {name: value for name, value in SIZED.items() if name != "min_image_tokens"}
    is_cut = images._is_image_too_large(height, width, max_pixels_tolerance=2.0, **large)
    assert (still_tiles(height, width, spec, single=True) is not None) == is_cut


def test_a_picture_is_cut_as_transformers_cuts_it() -> None:
    """Every aspect of small whole numbers, of every number of pixels that could decide between two grids."""
    images = lfm_processing().Lfm2VlImageProcessor
    made = object.__new__(images)
    grids = [(rows * 512, cols * 512) for rows, cols in canvases(2, 10)]
    for wide, tall, scale in product(range(1, 41), range(1, 41), (17, 64, 111)):
        cols, rows, *_ = made._get_grid_layout(tall * scale, wide * scale, 2, 10, 512)
        assert canvas_grid((tall * scale, wide * scale), 512, grids) == (rows, cols), (wide, tall, scale)


# ------------------------------------------------------------------------------------------------------ what files say


def test_what_the_files_leave_out_is_the_classes_own(tmp_path: Path) -> None:
    folder = copied(NAME, tmp_path)
    edit(folder / "config.json", vision_config={"patch_size": None, "model_type": None}, downsample_factor=None,
         text_config={"model_type": None, "max_position_embeddings": None})  # fmt: skip
    (folder / "preprocessor_config.json").write_text("{}")
    spec, config, images = read_spec(folder), AutoConfig.from_pretrained(folder), lfm_processing().Lfm2VlImageProcessor
    assert (spec.text_type, spec.context) == ("lfm2", config.text_config.max_position_embeddings)
    assert isinstance(spec.geometry, NativeGeometry)
    assert (spec.geometry.patch, spec.geometry.merge) == (config.vision_config.patch_size, config.downsample_factor)
    assert spec.geometry.image_min_pixels == images.min_image_tokens * spec.geometry.unit**2
    assert spec.geometry.image_max_pixels == images.max_image_tokens * spec.geometry.unit**2
    assert spec.uncut_pixels == images.max_pixels_tolerance * spec.geometry.image_max_pixels
    assert (spec.image_size, spec.resample) == (images.tile_size, images.resample)
    assert len(spec.image_grids) == len(images._target_ratios(None, images.min_tiles, images.max_tiles))
    assert (spec.image_cut, spec.image_mean) == ("stretched", (0.5, 0.5, 0.5))
    edit(folder / "preprocessor_config.json", do_image_splitting=False)
    assert read_spec(folder).image_grids == ()
    edit(folder / "config.json", image_token_id=None)
    assert read_spec(folder).image_token_id == type(config).image_token_id


def test_settings_that_stand_beside_the_processor_s_are_read(tmp_path: Path) -> None:
    """LFM2-VL's first checkpoints have SigLIP2's image processor, and their own settings in the other file."""
    folder = copied(NAME, tmp_path)
    said = json.loads((folder / "preprocessor_config.json").read_text())
    mine = {name: said.pop(name) for name in list(said) if "tile" in name or "token" in name or "thumb" in name}
    edit(folder / "preprocessor_config.json", **dict.fromkeys(mine), image_processor_type="Siglip2ImageProcessor")
    (folder / "processor_config.json").write_text(json.dumps({**mine, "use_thumbnail": False}))
    spec = spec_of(NAME)
    expected = replace(spec, folder=folder, image_cut="bare", last_tile_text="<|img_row_{row}_col_{col}|>")
    assert read_spec(folder) == expected


@pytest.mark.parametrize(
    ("file", "said", "error", "message"),
    [
        ("config.json", {"vision_config": {"patch_size": 14}}, IncompleteModel, r"are \(16, 2\) to .* \(14, 2\) to"),
        ("config.json", {"downsample_factor": 1}, IncompleteModel, r"\(16, 2\) to the processor and \(16, 1\) to"),
        ("config.json", {"vision_config": {"model_type": "siglip_vision_model"}}, UnsupportedModel,
         "'siglip_vision_model' of an lfm2_vl; supported is siglip2_vision_model"),
        ("preprocessor_config.json", {"tile_size": 512}, UnsupportedModel, "tiles of 512 px, and makes another"),
        ("preprocessor_config.json", {"max_tiles": 0}, IncompleteModel, "max_tiles is 0, a whole number"),
        ("preprocessor_config.json", {"min_tiles": 5}, IncompleteModel, "5 to 4 tiles; there are none"),
    ],
)  # fmt: skip
def test_files_that_contradict_each_other_are_one_line(
    file: str, said: dict[str, Any], error: type[ModelError], message: str, tmp_path: Path
) -> None:
    folder = copied(NAME, tmp_path)
    edit(folder / file, **said)
    with pytest.raises(error, match=message):
        read_spec(folder)
