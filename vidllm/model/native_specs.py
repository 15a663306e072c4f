"""config.json -> ModelSpec of families that lay out their frames themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from vidllm.errors import IncompleteModel, NotAVisionModel, UnsupportedModel
from vidllm.geometry import NativeGeometry
from vidllm.model.anyres import canvases
from vidllm.model.settings import (
    class_token,
    context_of,
    normalisation,
    processor_class,
    processor_settings,
    rope_kind,
    token_id_of,
    token_text,
    tower_layers,
    whole,
)
from vidllm.model.spec import CLIP_MEAN, CLIP_STD, Json, Mean, ModelSpec, read_json
from vidllm.model.templates import special_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NATIVE_FRAME_TOKENS = 256
"""Most tokens a native frame gets unless its processor allows fewer: Qwen's own ceiling (768) is for documents."""
_LEAST_FRAME_TOKENS = 4


def _qwen(folder: Path, config: Json, tokenizer: Tokenizer, *, patch: int = 14, positions: int = 32768) -> ModelSpec:
    vision, text = config.get("vision_config") or {}, config.get("text_config") or config
    image, video = processor_settings(folder, config, "image"), processor_settings(folder, config, "video")
    geometry = NativeGeometry(
        patch=whole(vision, "patch_size", patch), merge=whole(vision, "spatial_merge_size", 2),
        temporal_patch=whole(vision, "temporal_patch_size", 2),
    )
    least, most = _pixel_bounds(image, geometry.unit, 4, 1280)
    largest = min(_pixel_bounds(video or image, geometry.unit, 128, 768)[1], _NATIVE_FRAME_TOKENS * geometry.unit**2)
    ids = config.get("image_token_id", 151655), config.get("video_token_id", 151656)
    said = {"model_type": config["model_type"], "max_position_embeddings": positions, **text}
    least_frame = _LEAST_FRAME_TOKENS * geometry.unit**2
    geometry = replace(
        geometry, min_pixels=least_frame, max_pixels=largest, image_min_pixels=least, image_max_pixels=most
    )
    return _sized(folder, config, tokenizer, said, geometry, ids, normalisation(image, CLIP_MEAN, CLIP_STD))


def _sized(
    folder: Path, config: Json, tokenizer: Tokenizer, text: Json, geometry: NativeGeometry, ids: tuple[int, int | None],
    pixels: tuple[Mean, Mean],
) -> ModelSpec:  # fmt: skip
    """What all of them have in common. `ids` are of a picture's tokens and of a video's, where it has such; `pixels` is
    their mean and standard deviation.
    """
    image_id, video_id = ids
    return ModelSpec(
        folder=folder, model_type=config["model_type"], text_type=str(text.get("model_type", "llama")), kind="native",
        context=context_of(folder, text), rope_scalable=False, geometry=geometry, patch_size=geometry.patch,
        image_token=token_text(folder, tokenizer, image_id), image_token_id=image_id,
        video_token=None if video_id is None else token_text(folder, tokenizer, video_id), video_token_id=video_id,
        vision_layers=(), fit="stretch", stamp="none", fine_stride=1, coarse_stride=1, uniform_stride=1,
        image_mean=pixels[0], image_std=pixels[1],
    )  # fmt: skip


def _pixel_bounds(settings: Json, unit: int, least: int, most: int) -> tuple[int, int]:
    """(min, max) pixels of a picture under either spelling; `least` and `most` are the classes' defaults in tokens."""
    size = settings.get("size") or {}
    said = {
        "min_pixels": settings.get("min_pixels") or size.get("shortest_edge") or least * unit**2,
        "max_pixels": settings.get("max_pixels") or size.get("longest_edge") or most * unit**2,
    }
    lower, upper = whole(said, "min_pixels", 0), whole(said, "max_pixels", 0)
    if lower > upper:
        raise ValueError(f"min_pixels {lower} are over max_pixels {upper}")
    return lower, upper


def _qwen2_vl(folder: Path, config: Json, tokenizer: Tokenizer) -> ModelSpec:
    """Its positions count frames, not seconds, so the times are told in words."""
    return replace(_qwen(folder, config, tokenizer), stamp="sentence")


def _qwen3_vl(folder: Path, config: Json, tokenizer: Tokenizer, *, positions: int = 128000) -> ModelSpec:
    spec = _qwen(folder, config, tokenizer, patch=16, positions=positions)
    return replace(spec, group_text="<{middle:.1f} seconds><|vision_start|>{video}<|vision_end|>")


def _qwen3_5(folder: Path, config: Json, tokenizer: Tokenizer) -> ModelSpec:
    said = {"image_token_id": 248056, "video_token_id": 248057, **config}
    return _qwen3_vl(folder, said, tokenizer, positions=32768)


def _glm(
    folder: Path, config: Json, tokenizer: Tokenizer, *, text_type: str = "glm4v_text", image_id: int = 151343
) -> ModelSpec:
    """A video's groups are pictures to it, each with its time behind it; bounds on pixels are a whole group's."""
    text = {"model_type": text_type, **(config.get("text_config") or {})}
    said = {"image_token_id": image_id, "video_token_id": image_id + 1, **config, "text_config": text}
    positions = 65536 if text["model_type"] == "glm4v_moe_text" else 32768
    spec = _qwen(folder, said, tokenizer, positions=positions)
    geometry = spec.geometry
    assert isinstance(geometry, NativeGeometry)
    least, most = _pixel_bounds(processor_settings(folder, config, "image"), geometry.unit, 16, 15000)
    named = processor_class(folder)  # GLM-4.6V has the classes of GLM-4.1V and GLM-4.5V, and a processor of its own
    newer = named == "Glm46VProcessor" or (named is None and spec.model_type == "glm46v")
    return replace(
        spec, video_token_id=None,
        group_text="<|begin_of_image|>{image}<|end_of_image|>" + ("{first:.1f} seconds" if newer else "{second}"),
        geometry=replace(
            geometry, enlarges=True, image_min_pixels=-(-least // geometry.temporal_patch),
            image_max_pixels=most // geometry.temporal_patch,
        ),
    )  # fmt: skip


def _video_llama_3(folder: Path, config: Json, tokenizer: Tokenizer) -> ModelSpec:
    """Every frame behind its time; a still picture keeps all of its patches. Its processor may leave out what hardly
    changed between frames: how much that is nobody knows before there are pixels, so all of it is shown.
    """
    image = processor_settings(folder, config, "image")
    video = processor_settings(folder, config, "video") or image
    patch = whole(config.get("vision_config") or {}, "patch_size", 16)
    cut = {(whole(part, "patch_size", 14), whole(part, "temporal_patch_size", 1)) for part in (image, video)}
    if cut != {(patch, 1)}:
        raise IncompleteModel(
            f"{folder}: (pixels, frames) of a patch are {(patch, 1)} to config.json and {sorted(cut)} to the "
            "processors; save config and processors from the same model"
        )
    text = {"model_type": "qwen2", **(config.get("text_config") or {})}
    vision = {"patch_size": patch, "spatial_merge_size": whole(video, "merge_size", 2), "temporal_patch_size": 1}
    spec = _qwen(folder, {**config, "text_config": text, "vision_config": vision}, tokenizer)
    geometry = spec.geometry
    assert isinstance(geometry, NativeGeometry)
    least, most = _pixel_bounds(image, 28, 4, 1280)
    mean, std = normalisation(image, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return replace(
        spec, group_text="Time {first:.1f}s:{video}", group_joint=",", rope_scalable=True, image_mean=mean,
        image_std=std,
        geometry=replace(
            geometry, max_pixels=_NATIVE_FRAME_TOKENS * geometry.unit**2, image_min_pixels=least,
            image_max_pixels=most, image_merge=whole(image, "merge_size", 1),
            video_pixels=_pixel_bounds(video, 28, 128, 768)[1],
        ),
    )  # fmt: skip


_LFM_WORDS = ("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>")


def _lfm2_vl(folder: Path, config: Json, tokenizer: Tokenizer) -> ModelSpec:
    """Frames are pictures behind their times; a still picture that is too large for one is cut into tiles."""
    older = read_json(folder / "processor_config.json") or {}  # as Liquid AI's own code kept them
    vision, images = config.get("vision_config") or {}, {**older, **processor_settings(folder, config, "image")}
    if (tower := vision.get("model_type", "siglip2_vision_model")) != "siglip2_vision_model":
        raise UnsupportedModel(
            f"{folder}: no adapter for vision tower {tower!r} of an lfm2_vl; supported is siglip2_vision_model"
        )
    text = {"model_type": "lfm2", **(config.get("text_config") or {})}
    patch, merge = whole(vision, "patch_size", 16), whole(config, "downsample_factor", 2)
    said = whole(images, "encoder_patch_size", 16), whole(images, "downsample_factor", 2)
    if said != (patch, merge):
        raise IncompleteModel(
            f"{folder}: (pixels, merged by) of a patch are {said} to the processor and {(patch, merge)} to "
            "config.json; save config and processor from the same model"
        )
    area = (patch * merge) ** 2
    least, most = (whole(images, f"{name}_image_tokens", usual) * area for name, usual in (("min", 64), ("max", 256)))
    geometry = NativeGeometry(
        patch=patch, merge=merge, min_pixels=_LEAST_FRAME_TOKENS * area, image_min_pixels=least, image_max_pixels=most,
        max_pixels=min(most, _NATIVE_FRAME_TOKENS * area), thickens=True,
    )  # fmt: skip
    for word in _LFM_WORDS:
        token_id_of(folder, tokenizer, word)
    start, end, thumbnail = _LFM_WORDS
    place, bare = "<|img_row_{row}_col_{col}|>", not images.get("use_thumbnail", True)
    token_id = config.get("image_token_id", 396)
    pixels = normalisation(images, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return replace(
        _sized(folder, config, tokenizer, text, geometry, (token_id, token_id), pixels), stamp="interleaved",
        rope_scalable=True, image_size=whole(images, "tile_size", 512), image_cut="bare" if bare else "stretched",
        image_grids=_lfm_grids(folder, images, geometry), uncut_pixels=most * images.get("max_pixels_tolerance", 2.0),
        tile_text=place + "{image}", last_tile_text=place if bare else thumbnail, media_end_lines=False,
        picture_text=f"{start}{{tiles}}{{image}}{end}", resample=whole(images, "resample", 2),
    )  # fmt: skip


def _lfm_grids(folder: Path, images: Json, geometry: NativeGeometry) -> tuple[tuple[int, int], ...]:
    """Resolutions that a large picture is cut into tiles from; none where it is not. A tile is seen as a picture of its
    size would be."""
    side, least, most = (whole(images, *key) for key in (("tile_size", 512), ("min_tiles", 2), ("max_tiles", 10)))
    if not images.get("do_image_splitting", True) or (least, most) == (1, 1):
        return ()
    grids = tuple((rows * side, cols * side) for rows, cols in canvases(least, most))
    if not grids:
        raise IncompleteModel(f"{folder}: its processor cuts pictures into {least} to {most} tiles; there are none")
    if geometry.image_size(side, side) != (side, side):
        raise UnsupportedModel(
            f"{folder}: its processor cuts tiles of {side} px, and makes another size of a picture of that; make "
            "tile_size fit min_image_tokens and max_image_tokens"
        )
    return grids


_LONGEST_SIDE = 4096
"""Idefics3's processor never makes a picture larger."""


def _smolvlm(folder: Path, config: Json, tokenizer: Tokenizer) -> ModelSpec:
    """Every frame and picture one square."""
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    image = processor_settings(folder, config, "image")
    settings = {**image, **processor_settings(folder, config, "video")}
    patch, merge = whole(vision, "patch_size", 32), whole(config, "scale_factor", 2)
    side = whole(settings.get("max_image_size") or {}, "longest_edge", 364)
    longest = whole(image.get("size") or {}, "longest_edge", 4 * 364) if image.get("do_resize", True) else 0
    if side // patch % merge:
        raise IncompleteModel(
            f"{folder}: frames of {side} px have {side // patch} patches a side, no multiple of scale factor {merge}; "
            "save config and processor from the same model"
        )
    ids = config.get("image_token_id", 128257), None
    geometry = NativeGeometry(patch=patch, merge=merge, square=side, image_longest=min(longest, _LONGEST_SIDE))
    pixels = normalisation(settings, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return replace(
        _sized(folder, config, tokenizer, text, geometry, ids, pixels), image_size=side,
        picture_text="<fake_token_around_image><global-img>{image}<fake_token_around_image>",
    )


def _idefics3(folder: Path, config: Json, tokenizer: Tokenizer) -> ModelSpec:
    """As SmolVLM, which came from it, without its words for videos: a frame is a picture behind its time."""
    spec = _smolvlm(folder, config, tokenizer)
    return replace(
        spec, stamp="interleaved", video_token=spec.image_token, video_token_id=spec.image_token_id,
        media_end_lines=False,
    )


def _pixtral(
    folder: Path, config: Json, tokenizer: Tokenizer, *, merge: int = 1, layers: int = -2, image_token: int = 32000
) -> ModelSpec:
    """Frames are pictures behind their times; what a LLaVA of this tower and Mistral 3 share, LLaVA's own defaults."""
    vision, text = config["vision_config"], config.get("text_config") or {}
    images, processor = processor_settings(folder, config, "image"), read_json(folder / "processor_config.json") or {}
    patch, size = whole(vision, "patch_size", 16), images.get("size") or {"longest_edge": 1024}
    unit = patch * merge
    said = whole(processor, "patch_size", patch) * whole(processor, "spatial_merge_size", merge)
    if said != unit:
        raise IncompleteModel(
            f"{folder}: a token is {said} px wide to the processor and {unit} to config.json; "
            "save config and processor from the same model"
        )
    ends = [processor.get("image_break_token", "[IMG_BREAK]"), processor.get("image_end_token", "[IMG_END]")]
    depth = whole(vision, "num_hidden_layers", 24)
    token_id = config.get("image_token_index", config.get("image_token_id", image_token))
    geometry = NativeGeometry(
        patch=patch, merge=merge, min_pixels=_LEAST_FRAME_TOKENS * unit**2, max_pixels=_NATIVE_FRAME_TOKENS * unit**2,
        longest_edge=whole(size, "longest_edge", 0), row_end=1,
    )  # fmt: skip
    pixels = normalisation(images, CLIP_MEAN, CLIP_STD)
    return replace(
        _sized(folder, config, tokenizer, text, geometry, (token_id, token_id), pixels), stamp="interleaved",
        rope_scalable=True, row_ends=tuple(token_id_of(folder, tokenizer, end) for end in ends),
        vision_layers=tower_layers(folder, config.get("vision_feature_layer", layers), depth), media_end_lines=False,
    )  # fmt: skip


def _llava_pixtral(folder: Path, config: Json, tokenizer: Tokenizer) -> ModelSpec:
    class_token(folder, False, config.get("vision_feature_select_strategy", "default"))
    return replace(_pixtral(folder, config, tokenizer), model_type="pixtral")


def _mistral3(folder: Path, config: Json, tokenizer: Tokenizer) -> ModelSpec:
    vision = config.get("vision_config") or {"patch_size": 14}
    if (tower := vision.get("model_type", "pixtral")) != "pixtral":
        raise UnsupportedModel(f"{folder}: no adapter for vision tower {tower!r} of a mistral3; supported is pixtral")
    text = {"model_type": "mistral", **(config.get("text_config") or {})}
    said = {**config, "vision_config": vision, "text_config": text}
    merge = whole(config, "spatial_merge_size", 2)
    return _pixtral(folder, said, tokenizer, merge=merge, layers=-1, image_token=10)


_SOFT_TOKENS = (70, 140, 280, 560, 1120)
"""Most tokens of one of Gemma 4's pictures, of which its processors take no other."""


def _gemma4(folder: Path, config: Json, tokenizer: Tokenizer, usual: Json = MappingProxyType({})) -> ModelSpec:
    """Frames and pictures scaled to fill their tokens, a video's with the time before each. Its positions are not
    stretched: most layers see a window and never far. `usual` is what its text_config leaves out."""
    vision = config.get("vision_config")
    text = {"model_type": "gemma4_text", **usual, **(config.get("text_config") or {})}
    if vision is None:
        raise NotAVisionModel(f"{folder}: a gemma4 whose config.json has no vision_config; give one that sees")
    if (turning := rope_kind(text)) in ("dynamic", "longrope"):
        raise UnsupportedModel(f"{folder}: no adapter for gemma4 with positions that are {turning}")
    if (sight := text.get("use_bidirectional_attention")) not in (None, "vision"):
        raise UnsupportedModel(f"{folder}: no adapter for a gemma4 that reads {sight!r} in both directions; its larger "
                               "models read 'vision' so")  # fmt: skip
    patch, merge = whole(vision, "patch_size", 16), whole(vision, "pooling_kernel_size", 3)
    images, videos = (processor_settings(folder, config, part) for part in ("image", "video"))
    most = [_soft_tokens(folder, said, patch, merge, usual) for said, usual in ((images, 280), (videos, 70))]
    begin, end = (special_tokens(folder).get(name, word)
                  for name, word in (("boi_token", "<|image>"), ("eoi_token", "<image|>")))  # fmt: skip
    for token in (begin, end):
        token_id_of(folder, tokenizer, token)
    ids, area = (config.get("image_token_id", 258880), config.get("video_token_id", 258884)), (patch * merge) ** 2
    geometry = NativeGeometry(
        patch=patch, merge=merge, fills=True, min_pixels=_LEAST_FRAME_TOKENS * area, max_pixels=most[1] * area,
        image_max_pixels=most[0] * area,
    )  # fmt: skip
    pixels = normalisation({"do_normalize": False, **images}, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return replace(
        _sized(folder, config, tokenizer, text, geometry, ids, pixels), picture_text=f"{begin}{{image}}{end}",
        group_text=f"{{clock}} {begin}{{video}}{end}", group_joint=" ", two_way=sight is not None, far_two_way=False,
    )


def _soft_tokens(folder: Path, settings: Json, patch: int, merge: int, usual: int) -> int:
    """Most tokens a picture gets of a processor whose tokens are to be as wide as config.json's."""
    said = whole(settings, "patch_size", 16), whole(settings, "pooling_kernel_size", 3)
    if said != (patch, merge):
        raise IncompleteModel(
            f"{folder}: a token is {said[1]} x {said[0]} px wide to a processor, {merge} x {patch} px to config.json; "
            "save config and processor from the same model"
        )
    if (most := whole(settings, "max_soft_tokens", usual)) not in _SOFT_TOKENS:
        raise ValueError(f"max_soft_tokens is {most}, one of {_SOFT_TOKENS} is needed")
    return most


def _molmo2(folder: Path, config: Json, tokenizer: Tokenizer) -> ModelSpec:
    """Every frame one square behind its time, with a mark on both sides; a still picture is seen as a frame is. It was
    taught pixels between -1 and 1, whether its video processor's file asks for that or leaves it open.
    """
    vision, text = config.get("vision_config") or config.get("vit_config") or {}, config.get("text_config") or {}
    processor, videos = read_json(folder / "processor_config.json") or {}, processor_settings(folder, config, "video")
    patch, size = whole(videos, "patch_size", 14), videos.get("size") or {"height": 378, "width": 378}
    side, pooled = whole(size, "height", 378), videos.get("pooling_size") or [3, 3]
    merge, seen = pooled[0], vision.get("image_size") or vision.get("image_default_input_size") or [378, 378]
    own = vision.get("patch_size") or vision.get("image_patch_size") or 14
    if ([side, side], patch) != ([*seen], own) or size.get("width") != side:
        raise IncompleteModel(
            f"{folder}: frames of {size} in patches of {patch} px are none of its tower, which sees {seen} in patches "
            f"of {own}; save config and processor from the same model"
        )
    if pooled != [merge, merge] or side // patch % merge or processor.get("video_use_col_tokens", False):
        raise UnsupportedModel(
            f"{folder}: no adapter for a molmo2 that pools {side // patch} patches by {pooled}, or ends rows of frames"
        )
    frame, image_id = (side // patch // merge) ** 2 + 2, config.get("image_patch_id", 151938)
    words = special_tokens(folder)
    spec = _sized(
        folder, config, tokenizer, {"model_type": "molmo2_text", **text},
        NativeGeometry(patch=patch, merge=merge, squares=((side, frame),)), (image_id, None),
        normalisation(videos, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    )  # fmt: skip
    return replace(
        spec, rope_scalable=rope_kind(text) == "default", image_size=side, resample=2, two_way=True, all_two_way=True,
        image_marker="<|image|>", video_token="<|video|>", group_text="{first:.1f} {image}", group_joint=" ",
        begins=words.get("bos_token") or words.get("eos_token") or "",
    )


NATIVE: Mapping[str, Callable[[Path, Json, Tokenizer], ModelSpec]] = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl,
    "qwen3_5": _qwen3_5,
    "qwen3_5_moe": _qwen3_5,
    "video_llama_3": _video_llama_3,
    "lfm2_vl": _lfm2_vl,
    "smolvlm": _smolvlm,
    "idefics3": _idefics3,
    "glm4v": _glm,
    "glm4v_moe": partial(_glm, text_type="glm4v_moe_text", image_id=151363),
    "glm46v": _glm,
    "gemma4": _gemma4,
    "gemma4_unified": partial(
        _gemma4, usual={"model_type": "gemma4_unified_text", "use_bidirectional_attention": "vision"}
    ),
    "molmo2": _molmo2,
    "llava/pixtral": _llava_pixtral,
    "mistral3": _mistral3,
}
"""model_type, or model_type/tower where the tower makes it another family -> who reads its configuration."""
