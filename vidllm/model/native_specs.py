"""config.json -> ModelSpec of families that lay out their frames themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from vidllm.errors import IncompleteModel, NotAVisionModel, UnsupportedModel
from vidllm.geometry import NativeGeometry
from vidllm.model.anyres import canvases
from vidllm.model.settings import Files, normalisation, rope_kind, whole
from vidllm.model.spec import CLIP_MEAN, CLIP_STD, HALF, Json, Mean, ModelSpec
from vidllm.model.templates import special_tokens

_NATIVE_FRAME_TOKENS = 256
"""Most tokens a native frame gets unless its processor allows fewer: Qwen's own ceiling (768) is for documents."""
_LEAST_FRAME_TOKENS = 4


def _qwen(files: Files, *, patch: int = 14, positions: int = 32768) -> ModelSpec:
    text = {"model_type": files.config["model_type"], "max_position_embeddings": positions}
    files = replace(files, config={**files.config, "text_config": {**text, **(files.text or files.config)}})
    image, video = files.processor("image"), files.processor("video")
    geometry = NativeGeometry(
        patch=whole(files.vision, "patch_size", patch), merge=whole(files.vision, "spatial_merge_size", 2),
        temporal_patch=whole(files.vision, "temporal_patch_size", 2),
    )
    area = geometry.unit**2
    least, most = _pixel_bounds(image, geometry.unit, 4, 1280)
    largest = min(_pixel_bounds(video or image, geometry.unit, 128, 768)[1], _NATIVE_FRAME_TOKENS * area)
    geometry = replace(
        geometry, min_pixels=_LEAST_FRAME_TOKENS * area, max_pixels=largest, image_min_pixels=least,
        image_max_pixels=most,
    )  # fmt: skip
    ids = files.config.get("image_token_id", 151655), files.config.get("video_token_id", 151656)
    return _sized(files, geometry, ids, normalisation(image, CLIP_MEAN, CLIP_STD))


def _sized(
    files: Files, geometry: NativeGeometry, ids: tuple[int, int | None], pixels: tuple[Mean, Mean]
) -> ModelSpec:
    """What all of them have in common. `ids` are of a picture's tokens and of a video's, where it has such; `pixels` is
    their mean and standard deviation.
    """
    image_id, video_id = ids
    return ModelSpec(
        folder=files.folder, model_type=files.config["model_type"],
        text_type=str(files.text.get("model_type", "llama")), kind="native", context=files.context(files.text),
        rope_scalable=False, geometry=geometry, patch_size=geometry.patch, image_token=files.token(image_id),
        image_token_id=image_id, video_token=None if video_id is None else files.token(video_id),
        video_token_id=video_id, vision_layers=(), fit="stretch", stamp="none", fine_stride=1, coarse_stride=1,
        uniform_stride=1, image_mean=pixels[0], image_std=pixels[1],
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


def _qwen2_vl(files: Files) -> ModelSpec:
    """Its positions count frames, not seconds, so the times are told in words."""
    return replace(_qwen(files), stamp="sentence")


def _qwen3_vl(files: Files, *, positions: int = 128000) -> ModelSpec:
    spec = _qwen(files, patch=16, positions=positions)
    return replace(spec, group_text="<{middle:.1f} seconds><|vision_start|>{video}<|vision_end|>")


def _qwen3_5(files: Files) -> ModelSpec:
    return _qwen3_vl(files.assuming({"image_token_id": 248056, "video_token_id": 248057}), positions=32768)


def _glm(files: Files, *, text_type: str = "glm4v_text", image_id: int = 151343) -> ModelSpec:
    """A video's groups are pictures to it, each with its time behind it; bounds on pixels are a whole group's."""
    ids = {"image_token_id": image_id, "video_token_id": image_id + 1}
    files = files.assuming(ids, text={"model_type": text_type})
    spec = _qwen(files, positions=65536 if files.text["model_type"] == "glm4v_moe_text" else 32768)
    geometry = spec.geometry
    assert isinstance(geometry, NativeGeometry)
    least, most = _pixel_bounds(files.processor("image"), geometry.unit, 16, 15000)
    named = files.processor_class()  # GLM-4.6V has the classes of GLM-4.1V and GLM-4.5V, and a processor of its own
    newer = named == "Glm46VProcessor" or (named is None and spec.model_type == "glm46v")
    return replace(
        spec, video_token_id=None,
        group_text="<|begin_of_image|>{image}<|end_of_image|>" + ("{first:.1f} seconds" if newer else "{second}"),
        geometry=replace(
            geometry, enlarges=True, image_min_pixels=-(-least // geometry.temporal_patch),
            image_max_pixels=most // geometry.temporal_patch,
        ),
    )  # fmt: skip


def _video_llama_3(files: Files) -> ModelSpec:
    """Every frame behind its time; a still picture keeps all of its patches. Its processor may leave out what hardly
    changed between frames: how much that is nobody knows before there are pixels, so all of it is shown.
    """
    image = files.processor("image")
    video = files.processor("video") or image
    patch = whole(files.vision, "patch_size", 16)
    cut = {(whole(part, "patch_size", 14), whole(part, "temporal_patch_size", 1)) for part in (image, video)}
    if cut != {(patch, 1)}:
        raise files.disagree(f"(pixels, frames) of a patch are {(patch, 1)} to config.json and {sorted(cut)} to the "
                             "processors")  # fmt: skip
    vision = {"patch_size": patch, "spatial_merge_size": whole(video, "merge_size", 2), "temporal_patch_size": 1}
    cut_so = replace(files, config={**files.config, "vision_config": vision})
    spec = _qwen(cut_so.assuming(text={"model_type": "qwen2"}))
    geometry = spec.geometry
    assert isinstance(geometry, NativeGeometry)
    least, most = _pixel_bounds(image, 28, 4, 1280)
    mean, std = normalisation(image, HALF, HALF)
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


def _lfm2_vl(files: Files) -> ModelSpec:
    """Frames are pictures behind their times; a still picture that is too large for one is cut into tiles."""
    files = files.assuming(text={"model_type": "lfm2"}, vision={"model_type": "siglip2_vision_model"})
    older = files.json("processor_config.json")  # as Liquid AI's own code kept them
    images = {**older, **files.processor("image")}
    if (tower := files.vision["model_type"]) != "siglip2_vision_model":
        raise files.unsupported(f"vision tower {tower!r} of an lfm2_vl; supported is siglip2_vision_model")
    patch, merge = whole(files.vision, "patch_size", 16), whole(files.config, "downsample_factor", 2)
    said = whole(images, "encoder_patch_size", 16), whole(images, "downsample_factor", 2)
    if said != (patch, merge):
        raise files.disagree(f"(pixels, merged by) of a patch are {said} to the processor and {(patch, merge)} to "
                             "config.json")  # fmt: skip
    area = (patch * merge) ** 2
    least, most = (whole(images, f"{name}_image_tokens", usual) * area for name, usual in (("min", 64), ("max", 256)))
    geometry = NativeGeometry(
        patch=patch, merge=merge, min_pixels=_LEAST_FRAME_TOKENS * area, image_min_pixels=least, image_max_pixels=most,
        max_pixels=min(most, _NATIVE_FRAME_TOKENS * area), thickens=True,
    )  # fmt: skip
    for word in _LFM_WORDS:
        files.token_id(word)
    start, end, thumbnail = _LFM_WORDS
    place, bare = "<|img_row_{row}_col_{col}|>", not images.get("use_thumbnail", True)
    token_id = files.config.get("image_token_id", 396)
    pixels = normalisation(images, HALF, HALF)
    return replace(
        _sized(files, geometry, (token_id, token_id), pixels), stamp="interleaved", rope_scalable=True,
        image_size=whole(images, "tile_size", 512), image_cut="bare" if bare else "stretched",
        image_grids=_lfm_grids(files, images, geometry), uncut_pixels=most * images.get("max_pixels_tolerance", 2.0),
        tile_text=place + "{image}", last_tile_text=place if bare else thumbnail, media_end_lines=False,
        picture_text=f"{start}{{tiles}}{{image}}{end}", resample=whole(images, "resample", 2),
    )  # fmt: skip


def _lfm_grids(files: Files, images: Json, geometry: NativeGeometry) -> tuple[tuple[int, int], ...]:
    """Resolutions that a large picture is cut into tiles from; none where it is not. A tile is seen as a picture of its
    size would be."""
    side, least, most = (whole(images, *key) for key in (("tile_size", 512), ("min_tiles", 2), ("max_tiles", 10)))
    if not images.get("do_image_splitting", True) or (least, most) == (1, 1):
        return ()
    grids = tuple((rows * side, cols * side) for rows, cols in canvases(least, most))
    if not grids:
        raise IncompleteModel(
            f"{files.folder}: its processor cuts pictures into {least} to {most} tiles; there are none"
        )
    if geometry.image_size(side, side) != (side, side):
        raise UnsupportedModel(
            f"{files.folder}: its processor cuts tiles of {side} px, and makes another size of a picture of that; make "
            "tile_size fit min_image_tokens and max_image_tokens"
        )
    return grids


_LONGEST_SIDE = 4096
"""Idefics3's processor never makes a picture larger."""


def _smolvlm(files: Files) -> ModelSpec:
    """Every frame and picture one square."""
    image = files.processor("image")
    settings = {**image, **files.processor("video")}
    patch, merge = whole(files.vision, "patch_size", 32), whole(files.config, "scale_factor", 2)
    side = whole(settings.get("max_image_size") or {}, "longest_edge", 364)
    longest = whole(image.get("size") or {}, "longest_edge", 4 * 364) if image.get("do_resize", True) else 0
    if side // patch % merge:
        raise files.disagree(f"frames of {side} px have {side // patch} patches a side, no multiple of scale factor "
                             f"{merge}")  # fmt: skip
    ids = files.config.get("image_token_id", 128257), None
    geometry = NativeGeometry(patch=patch, merge=merge, square=side, image_longest=min(longest, _LONGEST_SIDE))
    pixels = normalisation(settings, HALF, HALF)
    return replace(
        _sized(files, geometry, ids, pixels), image_size=side,
        picture_text="<fake_token_around_image><global-img>{image}<fake_token_around_image>",
    )


def _idefics3(files: Files) -> ModelSpec:
    """As SmolVLM, which came from it, without its words for videos: a frame is a picture behind its time."""
    spec = _smolvlm(files)
    return replace(
        spec, stamp="interleaved", video_token=spec.image_token, video_token_id=spec.image_token_id,
        media_end_lines=False,
    )


def _pixtral(files: Files, *, merge: int = 1, layers: int = -2, image_token: int = 32000) -> ModelSpec:
    """Frames are pictures behind their times; what a LLaVA of this tower and Mistral 3 share, LLaVA's own defaults."""
    images, processor = files.processor("image"), files.json("processor_config.json")
    patch, size = whole(files.vision, "patch_size", 16), images.get("size") or {"longest_edge": 1024}
    unit = patch * merge
    said = whole(processor, "patch_size", patch) * whole(processor, "spatial_merge_size", merge)
    if said != unit:
        raise files.disagree(f"a token is {said} px wide to the processor and {unit} to config.json")
    ends = [processor.get("image_break_token", "[IMG_BREAK]"), processor.get("image_end_token", "[IMG_END]")]
    depth = whole(files.vision, "num_hidden_layers", 24)
    token_id = files.visual_id("image", image_token)
    geometry = NativeGeometry(
        patch=patch, merge=merge, min_pixels=_LEAST_FRAME_TOKENS * unit**2, max_pixels=_NATIVE_FRAME_TOKENS * unit**2,
        longest_edge=whole(size, "longest_edge", 0), row_end=1,
    )  # fmt: skip
    pixels = normalisation(images, CLIP_MEAN, CLIP_STD)
    return replace(
        _sized(files, geometry, (token_id, token_id), pixels), stamp="interleaved", rope_scalable=True,
        row_ends=tuple(files.token_id(end) for end in ends), media_end_lines=False,
        vision_layers=files.vision_layers(files.config.get("vision_feature_layer", layers), depth),
    )  # fmt: skip


def _llava_pixtral(files: Files) -> ModelSpec:
    files.class_token(has_one=False, usual="default")
    return replace(_pixtral(files), model_type="pixtral")


def _mistral3(files: Files) -> ModelSpec:
    files = files if files.vision else files.assuming(vision={"patch_size": 14})
    if (tower := files.vision.get("model_type", "pixtral")) != "pixtral":
        raise files.unsupported(f"vision tower {tower!r} of a mistral3; supported is pixtral")
    merge = whole(files.config, "spatial_merge_size", 2)
    return _pixtral(files.assuming(text={"model_type": "mistral"}), merge=merge, layers=-1, image_token=10)


_SOFT_TOKENS = (70, 140, 280, 560, 1120)
"""Most tokens of one of Gemma 4's pictures, of which its processors take no other."""


def _gemma4(files: Files, usual: Json = MappingProxyType({})) -> ModelSpec:
    """Frames and pictures scaled to fill their tokens, a video's with the time before each. Its positions are not
    stretched: most layers see a window and never far. `usual` is what its text_config leaves out."""
    if files.config.get("vision_config") is None:
        raise NotAVisionModel(f"{files.folder}: a gemma4 whose config.json has no vision_config; give one that sees")
    files = files.assuming(text={"model_type": "gemma4_text", **usual})
    files.check_turning()
    if (sight := files.text.get("use_bidirectional_attention")) not in (None, "vision"):
        raise files.unsupported(f"a gemma4 that reads {sight!r} in both directions; its larger models read 'vision' so")
    patch, merge = whole(files.vision, "patch_size", 16), whole(files.vision, "pooling_kernel_size", 3)
    images, videos = (files.processor(part) for part in ("image", "video"))
    area = (patch * merge) ** 2
    of_still, of_frame = (_soft_tokens(files, *said, patch, merge) for said in ((images, 280), (videos, 70)))
    begin, end = (special_tokens(files.folder).get(name, word)
                  for name, word in (("boi_token", "<|image>"), ("eoi_token", "<image|>")))  # fmt: skip
    for token in (begin, end):
        files.token_id(token)
    ids = files.config.get("image_token_id", 258880), files.config.get("video_token_id", 258884)
    geometry = NativeGeometry(
        patch=patch, merge=merge, fills=True, min_pixels=_LEAST_FRAME_TOKENS * area,
        max_pixels=of_frame * area, image_max_pixels=of_still * area,
    )  # fmt: skip
    pixels = normalisation({"do_normalize": False, **images}, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return replace(
        _sized(files, geometry, ids, pixels), picture_text=f"{begin}{{image}}{end}",
        group_text=f"{{clock}} {begin}{{video}}{end}", group_joint=" ", two_way=sight is not None, far_two_way=False,
    )


def _soft_tokens(files: Files, settings: Json, usual: int, patch: int, merge: int) -> int:
    """Most tokens a picture gets of a processor whose tokens are to be as wide as config.json's."""
    said = whole(settings, "patch_size", 16), whole(settings, "pooling_kernel_size", 3)
    if said != (patch, merge):
        raise files.disagree(f"a token is {said[1]} x {said[0]} px wide to a processor, {merge} x {patch} px to "
                             "config.json")  # fmt: skip
    if (most := whole(settings, "max_soft_tokens", usual)) not in _SOFT_TOKENS:
        raise ValueError(f"max_soft_tokens is {most}, one of {_SOFT_TOKENS} is needed")
    return most


def _molmo2(files: Files) -> ModelSpec:
    """Every frame one square behind its time, with a mark on both sides; a still picture is seen as a frame is. It was
    taught pixels between -1 and 1, whether its video processor's file asks for that or leaves it open.
    """
    files = files.assuming(text={"model_type": "molmo2_text"})
    vision = files.vision or files.config.get("vit_config") or {}
    processor, videos = files.json("processor_config.json"), files.processor("video")
    patch, size = whole(videos, "patch_size", 14), videos.get("size") or {"height": 378, "width": 378}
    side, pooled = whole(size, "height", 378), videos.get("pooling_size") or [3, 3]
    merge, seen = pooled[0], vision.get("image_size") or vision.get("image_default_input_size") or [378, 378]
    own = vision.get("patch_size") or vision.get("image_patch_size") or 14
    if ([side, side], patch) != ([*seen], own) or size.get("width") != side:
        raise files.disagree(f"frames of {size} in patches of {patch} px are none of its tower, which sees {seen} in "
                             f"patches of {own}")  # fmt: skip
    if pooled != [merge, merge] or side // patch % merge or processor.get("video_use_col_tokens", False):
        raise files.unsupported(f"a molmo2 that pools {side // patch} patches by {pooled}, or ends rows of frames")
    frame, image_id = (side // patch // merge) ** 2 + 2, files.config.get("image_patch_id", 151938)
    words = special_tokens(files.folder)
    geometry = NativeGeometry(patch=patch, merge=merge, squares=((side, frame),))
    return replace(
        _sized(files, geometry, (image_id, None), normalisation(videos, HALF, HALF)),
        rope_scalable=rope_kind(files.text) == "default", image_size=side, resample=2, two_way=True, all_two_way=True,
        image_marker="<|image|>", video_token="<|video|>", group_text="{first:.1f} {image}", group_joint=" ",
        begins=words.get("bos_token") or words.get("eos_token") or "",
    )


NATIVE: Mapping[str, Callable[[Files], ModelSpec]] = {
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
