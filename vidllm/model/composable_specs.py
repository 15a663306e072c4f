"""config.json -> ModelSpec of LLaVA and its relatives: every frame one square tile, whose tokens vidllm pools."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from vidllm.errors import IncompleteModel, UnsupportedModel
from vidllm.geometry import Geometry
from vidllm.model.anyres import canvases
from vidllm.model.settings import Files, normalisation, whole
from vidllm.model.spec import CLIP_MEAN, CLIP_STD, HALF, Json, ModelSpec
from vidllm.model.templates import special_tokens

_TOWERS: dict[str, tuple[int, int, bool]] = {
    "clip_vision_model": (224, 32, True),
    "siglip_vision_model": (224, 16, False),
    "internvl_vision": (448, 14, True),
}
"""Vision tower -> image size and patch size its config class falls back to, and whether it has a class token."""
_TOWER_LAYERS = 12
"""Of the first two, where the config leaves them out."""
_LLAVA_TOWER = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "num_hidden_layers": 24}
_SIGLIP: dict[str, Any] = {"model_type": "siglip_vision_model"}
_ONEVISION_TOWER = {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14, "num_hidden_layers": 26}


def _llava(
    files: Files, *, tower: Json = _LLAVA_TOWER, strategy: str = "default", layers: int | list[int] = -2,
    image_token: int = 32000,
) -> ModelSpec:  # fmt: skip
    """What all LLaVA-shaped families share, with LLaVA's own defaults; the geometry pools by average and has no
    newline. `tower` stands in for a vision_config, and for its model_type."""
    vision = files.vision or tower
    tower_type = str(vision.get("model_type", tower["model_type"]))
    if tower_type not in _TOWERS:
        raise files.unsupported(f"vision tower {tower_type!r}; supported are {', '.join(_TOWERS)}")
    usual_size, usual_patch, has_class_token = _TOWERS[tower_type]
    image_size, patch_size = whole(vision, "image_size", usual_size), whole(vision, "patch_size", usual_patch)
    side, token_id = image_size // patch_size, files.visual_id("image", image_token)
    chosen = files.config.get("vision_feature_layer", files.config.get("vision_feature_layers", layers))
    mean, std = normalisation(files.processor("image"), CLIP_MEAN, CLIP_STD)
    return ModelSpec(
        folder=files.folder, model_type=files.config["model_type"],
        text_type=str(files.text.get("model_type", "llama")), kind="composable",
        geometry=Geometry(rows=side, cols=side), context=files.context(files.text), rope_scalable=True,
        image_token=files.token(token_id), image_token_id=token_id, image_size=image_size, patch_size=patch_size,
        cls=files.class_token(has_class_token, strategy),
        vision_layers=files.vision_layers(chosen, whole(vision, "num_hidden_layers", _TOWER_LAYERS)),
        image_mean=mean, image_std=std,
    )  # fmt: skip


_NEXT_GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def _llava_next(files: Files, image_token: int = 32000) -> ModelSpec:
    spec = _llava(files, image_token=image_token)
    return replace(spec, image_grids=_grids(files, _NEXT_GRIDS, spec.image_size))


def _llava_next_video(files: Files) -> ModelSpec:
    spec = _llava_next(files, image_token=32001)
    pooling, stride = files.config.get("spatial_pool_mode", "average"), whole(files.config, "spatial_pool_stride", 2)
    if pooling not in ("average", "max"):
        raise UnsupportedModel(f"{files.folder}: spatial_pool_mode {pooling!r} is not supported; average and max are")
    video_id = files.visual_id("video", 32000)
    assert isinstance(spec.geometry, Geometry)
    return replace(
        spec, geometry=replace(spec.geometry, pooling=pooling), uniform_stride=stride, fine_stride=stride,
        coarse_stride=2 * stride, video_token=files.token(video_id), video_token_id=video_id, stamp="sentence",
    )


_ONEVISION_SIDES = range(384, 2304 + 1, 384)


def _llava_onevision(files: Files) -> ModelSpec:
    spec = _llava(files, tower=_ONEVISION_TOWER, strategy="full", layers=-1, image_token=151646)
    every = [[height, width] for height in _ONEVISION_SIDES for width in _ONEVISION_SIDES]
    aspect = str(files.config.get("vision_aspect_ratio", "anyres_max_9"))
    video_id = files.visual_id("video", 151647)
    assert isinstance(spec.geometry, Geometry)
    return replace(
        spec, geometry=replace(spec.geometry, pooling="bilinear", newline="one"), fit="stretch", stamp="sentence",
        pool_before_projector=False, image_grids=_grids(files, every, spec.image_size),
        image_max_tiles=int(aspect.removeprefix("anyres_max_")) if aspect.startswith("anyres_max_") else None,
        video_token=files.token(video_id), video_token_id=video_id,
    )


def _grids(files: Files, default: list[list[int]], tile: int) -> tuple[tuple[int, int], ...]:
    # The processor decides how a picture is cut; config.json only repeats it for the model.
    pinpoints = (files.processor("image").get("image_grid_pinpoints")
                 or files.config.get("image_grid_pinpoints") or default)
    if any(side % tile or side < tile for size in pinpoints for side in size):
        raise IncompleteModel(
            f"{files.folder}: image_grid_pinpoints {pinpoints} are no multiples of the {tile} px tile"
        )
    return tuple((height, width) for height, width in pinpoints)


_INTERNVL_TOWER = {"model_type": "internvl_vision", "image_size": 448, "patch_size": 14, "num_hidden_layers": 24}


def _internvl(files: Files) -> ModelSpec:
    """Frames of one tile, numbered, each between <img> and </img>; pictures cut into stretched tiles."""
    vision = {**_INTERNVL_TOWER, **files.vision}
    squares = {key: _side(files, vision[key]) for key in ("image_size", "patch_size")}
    square = replace(files, config={**files.config, "vision_config": {**vision, **squares}})
    spec = _llava(square, layers=-1, image_token=151667)
    if not vision.get("use_mean_pooling", True):
        raise files.unsupported("a vision tower that normalises its last layer (use_mean_pooling is false)")
    shuffle = round(1 / files.config.get("downsample_ratio", 0.5))
    images = files.processor("image")
    least, most = whole(images, "min_patches", 1), whole(images, "max_patches", 12)
    return replace(
        _joined(spec, shuffle, "downsample_ratio", least, most), shuffle=shuffle, stamp="sentence",
        picture_text="<img>{image}</img>", bare_frame_text="Frame{number}: {image}\n",
    )


def _joined(spec: ModelSpec, factor: int, key: str, least: int, most: int) -> ModelSpec:
    """`spec` with factor x factor patches joined to one token, as `key` of config.json says, and pictures stretched
    over `least` to `most` tiles."""
    assert isinstance(spec.geometry, Geometry)
    if factor < 1 or spec.geometry.rows % factor:
        raise IncompleteModel(
            f"{spec.folder}: {spec.geometry.rows} patches a side are no multiple of {factor}, by which config.json's "
            f"{key} joins them; download the model again"
        )
    side = spec.geometry.rows // factor
    return replace(
        spec, geometry=replace(spec.geometry, rows=side, cols=side), pool_before_projector=False, fit="stretch",
        fine_stride=1, uniform_stride=1, coarse_stride=2, image_cut="stretched",
        image_grids=tuple((rows * spec.image_size, cols * spec.image_size) for rows, cols in canvases(least, most)),
    )


def _side(files: Files, said: int | list[int]) -> int:
    """The side of a square that is written as one number or as two."""
    sides = {said} if isinstance(said, int) else set(said)
    if len(sides) != 1:
        raise UnsupportedModel(f"{files.folder}: its vision tower looks at oblongs of {said}; squares are supported")
    return sides.pop()


def _gemma3(files: Files) -> ModelSpec:
    """Patches averaged to mm_tokens_per_image, each picture on lines of its own. Its positions are not stretched: most
    layers see a window and never far, and the others' own factor is in the checkpoint."""
    files = files.assuming(text={"model_type": "gemma3_text"})
    files.check_turning()
    spec = _llava(files, tower=_SIGLIP, strategy="full", layers=-1, image_token=262144)
    assert isinstance(spec.geometry, Geometry)
    patches, tokens = spec.geometry.rows, whole(files.config, "mm_tokens_per_image", 256)
    side = math.isqrt(tokens)
    if side * side != tokens or patches % side:
        raise IncompleteModel(
            f"{files.folder}: {patches} patches a side can not be averaged to config.json's mm_tokens_per_image "
            f"{tokens}; download the model again"
        )
    begin, end = (files.token(files.config.get(f"{name}_token_index", usual))
                  for name, usual in (("boi", 255999), ("eoi", 256000)))  # fmt: skip
    images = files.processor("image")
    mean, std = normalisation(images, HALF, HALF)
    return replace(
        spec, geometry=replace(spec.geometry, rows=side, cols=side), vision_layers=(), rope_scalable=False,
        two_way=True, fit="stretch", resample=whole(images, "resample", 2), image_mean=mean, image_std=std,
        fine_stride=1, uniform_stride=1, coarse_stride=2, image_marker=begin,
        picture_text=f"\n\n{begin}{{image}}{end}\n\n", frame_text="[{time}]{image}", media_end_lines=False,
    )


_AYA_WORDS = {
    "image_token": "<image>", "start_of_img_token": "<|START_OF_IMG|>", "end_of_img_token": "<|END_OF_IMG|>",
    "tile_token": "TILE", "tile_global_token": "TILE_GLOBAL",
}  # fmt: skip


def _aya_vision(files: Files) -> ModelSpec:
    """Frames of one tile; pictures cut into stretched tiles, each behind its name."""
    tower = {"image_size": 384, "patch_size": 14, "num_hidden_layers": 26}
    images, said = files.processor("image"), files.json("processor_config.json")
    spec = _cohere(files, tower, whole(images, "min_patches", 1), whole(images, "max_patches", 12))
    marker, start, end, tile, last = (str(said.get(name, word)) for name, word in _AYA_WORDS.items())
    for token in (start, end):
        files.token_id(token)
    return replace(
        spec, image_marker=marker, tile_text=f"{tile}_{{number}}{{image}}",
        picture_text=f"{start}{{tiles}}{last}{{image}}{end}",
    )


_COMMAND_WORDS = {
    "boi_token": "<|START_OF_IMG|>", "img_line_break_token": "<|IMG_LINE_BREAK|>", "eoi_token": "<|END_OF_IMG|>"
}  # fmt: skip


def _cohere2_vision(files: Files) -> ModelSpec:
    """Command A Vision: as Aya Vision, with nameless tiles of another grid and a tower that normalises its end."""
    tower = {"image_size": 512, "patch_size": 16, "num_hidden_layers": 27}
    images, said = files.processor("image"), special_tokens(files.folder)
    most = whole(images, "max_patches", 12) if images.get("crop_to_patches", True) else 1
    spec = _cohere(files, tower, 1, most)
    start, line, end = (said.get(name, word) for name, word in _COMMAND_WORDS.items())
    for token in (start, line, end):
        files.token_id(token)
    return replace(
        spec, vision_layers=(), image_cut="covered", tile_text=f"{{image}}{line}",
        picture_text=f"{start}{{tiles}}{{image}}{line}{end}",
    )


def _cohere(files: Files, tower: dict[str, int], least: int, most: int) -> ModelSpec:
    """What Cohere's two have in common: patches are joined in the projector."""
    files = files.assuming(text={"model_type": "cohere2"})
    spec = _llava(files, tower=_SIGLIP | tower, strategy="full", layers=-1, image_token=255036)
    joined = _joined(spec, whole(files.config, "downsample_factor", 2), "downsample_factor", least, most)
    # Layers of cohere2 have rotary positions and a short window, or neither: there is nothing to stretch.
    return replace(joined, rope_scalable=spec.text_type != "cohere2", media_end_lines=False)


COMPOSABLE: Mapping[str, Callable[[Files], ModelSpec]] = {
    "llava": _llava,
    "vipllava": partial(_llava, layers=[-2, -5, -8, -11, 6]),
    "llava_next": _llava_next,
    "llava_next_video": _llava_next_video,
    "llava_onevision": _llava_onevision,
    "internvl": _internvl,
    "gemma3": _gemma3,
    "aya_vision": _aya_vision,
    "cohere2_vision": _cohere2_vision,
}
"""model_type -> who reads its configuration."""
