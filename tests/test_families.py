"""Checkpoints described from their JSON files: every family, overrides, and one-line refusals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vidllm
from tests.conftest import write_clip
from tests.planned import copied, tiny_folder
from tests.tiny_models import FAMILIES, edit
from vidllm.errors import (
    ConfigError,
    IncompleteModel,
    ModelError,
    ModelNotFound,
    NotAVisionModel,
    UnsupportedModel,
)
from vidllm.geometry import Geometry, NativeGeometry
from vidllm.model import anyres, resolve
from vidllm.model.families import ModelSpec, bare_spec, load_tokenizer, read_spec, resolve_model
from vidllm.train.adapters import base_name


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return copied("llava", tmp_path)


COMPOSABLE = {
    #                    rows pooling     newline fit        cls     layers               stamp          before
    "llava": (8, "average", "none", "pad", "drop", (-2,), "interleaved", True),
    "vipllava": (8, "average", "none", "pad", "drop", (-2, -3, 1), "interleaved", True),
    "llava_next": (8, "average", "none", "pad", "drop", (-2,), "interleaved", True),
    "llava_next_video": (8, "average", "none", "pad", "drop", (-2,), "sentence", True),
    "llava_onevision": (9, "bilinear", "one", "stretch", "none", (-1,), "sentence", False),
    "internvl": (4, "average", "none", "stretch", "drop", (-1,), "sentence", False),
    "gemma3": (4, "average", "none", "stretch", "none", (), "interleaved", True),
    "aya_vision": (4, "average", "none", "stretch", "none", (-1,), "interleaved", False),
    "cohere2_vision": (4, "average", "none", "stretch", "none", (), "interleaved", False),
}  # fmt: skip


@pytest.mark.parametrize("family", COMPOSABLE)
def test_composable_families(family: str) -> None:
    spec = read_spec(tiny_folder(family))
    rows, pooling, newline, fit, cls, layers, stamp, before = COMPOSABLE[family]
    assert spec.geometry == Geometry(rows=rows, cols=rows, pooling=pooling, newline=newline)
    assert (spec.kind, spec.model_type, spec.context) == ("composable", family, 4096)
    assert spec.rope_scalable == (family not in ("gemma3", "aya_vision", "cohere2_vision"))
    assert (spec.fit, spec.cls, spec.stamp, spec.pool_before_projector) == (fit, cls, stamp, before)
    assert spec.vision_layers == layers
    tokens = {"internvl": "<IMG_CONTEXT>", "gemma3": "<image_soft_token>", "aya_vision": "<|IMG_PATCH|>",
              "cohere2_vision": "<|IMG_PATCH|>"}  # fmt: skip
    assert spec.image_token == tokens.get(family, "<image>")
    assert spec.projector_joins == (family in ("aya_vision", "cohere2_vision"))
    joined = 2 if spec.projector_joins or family == "gemma3" else spec.shuffle
    assert spec.image_size == rows * spec.patch_size * joined


@pytest.mark.parametrize(
    ("family", "unit", "group"),
    [
        ("qwen2_vl", 28, 2), ("qwen2_5_vl", 28, 2), ("qwen3_vl", 32, 2), ("smolvlm", 64, 1), ("idefics3", 64, 1),
        ("glm4v", 28, 2), ("pixtral", 16, 1), ("mistral3", 28, 1), ("qwen3_5", 32, 2), ("video_llama_3", 28, 1),
        ("lfm2_vl", 32, 1),
    ],
)  # fmt: skip
def test_native_families(family: str, unit: int, group: int) -> None:
    spec, words = read_spec(tiny_folder(family)), family in ("pixtral", "mistral3")
    assert isinstance(spec.geometry, NativeGeometry)
    assert (spec.kind, spec.rope_scalable) == ("native", words or family in ("video_llama_3", "lfm2_vl"))
    told = {"qwen2_vl": "sentence", "idefics3": "interleaved", "lfm2_vl": "interleaved"}
    assert spec.stamp == ("interleaved" if words else told.get(family, "none"))
    assert (spec.geometry.unit, spec.geometry.temporal_patch) == (unit, group)
    assert spec.geometry.max_pixels <= 256 * unit**2


def test_tokens_are_those_of_the_tokenizer() -> None:
    for folder in map(tiny_folder, FAMILIES):
        spec = read_spec(folder)
        assert load_tokenizer(folder).token_to_id(spec.image_token) == spec.image_token_id
        if spec.video_token_id is not None:
            assert spec.video_token is not None
            assert load_tokenizer(folder).token_to_id(spec.video_token) == spec.video_token_id


def test_anyres_grids_come_from_the_processor() -> None:
    spec = read_spec(tiny_folder("llava_next"))
    assert len(spec.image_grids) >= 5
    assert all(side % spec.image_size == 0 for size in spec.image_grids for side in size)
    assert read_spec(tiny_folder("llava_onevision")).image_max_tiles == 9
    assert read_spec(tiny_folder("llava")).image_grids == ()


def test_a_processor_saved_again_stands_before_what_an_older_transformers_left_beside_it(llava: Path) -> None:
    from transformers import CLIPImageProcessorPil

    (llava / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3]}')
    assert read_spec(llava).image_mean == tuple(CLIPImageProcessorPil.from_pretrained(llava).image_mean)


def test_a_fixed_linear_rope_factor_belongs_to_the_context(llava: Path) -> None:
    edit(llava / "config.json", text_config={"rope_parameters": {"rope_type": "linear", "factor": 2.5}})
    assert read_spec(llava).context == 10240


@pytest.mark.parametrize(("positions", "original"), [(4096, 4096), (16384, 4096), (4096, None)])
def test_what_yarn_stretches_needs_no_scaling_of_ours(llava: Path, positions: int, original: int | None) -> None:
    """Switched on by hand, as Qwen's model cards tell, it leaves max_position_embeddings as it was."""
    rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": original}
    text = {"max_position_embeddings": positions, "rope_parameters": None, "rope_scaling": rope}
    edit(llava / "config.json", text_config=text)
    assert read_spec(llava).context == 16384


def test_defaults_of_the_config_classes_stand_in_for_what_they_do_not_write(llava: Path) -> None:
    edit(llava / "config.json", text_config={"max_position_embeddings": None}, vision_config=None,
         vision_feature_select_strategy=None, vision_feature_layer=None)  # fmt: skip
    spec = read_spec(llava)
    assert (spec.image_size, spec.patch_size, spec.context, spec.cls) == (336, 14, 2048, "drop")
    assert spec.geometry == Geometry(rows=24, cols=24)


@pytest.mark.parametrize(
    "kind", ["mistral", "qwen3", "qwen3_moe", "gpt_oss", "granite", "gemma2", "gemma3_text", "phi3"]
)
def test_a_context_that_is_the_default_of_its_class_need_not_be_written(kind: str, llava: Path) -> None:
    """Older releases of transformers left out what equals the default."""
    from transformers import AutoConfig

    edit(llava / "config.json", text_config=None)
    edit(llava / "config.json", text_config={"model_type": kind})
    assert read_spec(llava).context == AutoConfig.for_model(kind).max_position_embeddings


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_5_moe"])
def test_a_qwen_that_does_not_write_its_context_has_that_of_its_class(family: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    folder = copied(family, tmp_path)
    edit(folder / "config.json", text_config={"max_position_embeddings": None})
    config = AutoConfig.from_pretrained(folder)
    assert read_spec(folder).context == config.text_config.max_position_embeddings


def test_full_selection_keeps_the_class_token_of_still_images(llava: Path) -> None:
    edit(llava / "config.json", vision_feature_select_strategy="full")
    assert read_spec(llava).cls == "keep"


def test_a_siglip_tower_has_no_class_token_to_drop(tmp_path: Path) -> None:
    folder = copied("llava_onevision", tmp_path)
    edit(folder / "config.json", vision_feature_select_strategy="default")
    with pytest.raises(IncompleteModel, match='set "vision_feature_select_strategy": "full"'):
        read_spec(folder)


def test_vidllm_json_overrides(llava: Path) -> None:
    said = {"fit": "stretch", "stamp_decimals": 0, "frame_text": "{time}{image}", "fine_stride": 3, "newline": "grid",
            "context": 1024}  # fmt: skip
    (llava / "vidllm.json").write_text(json.dumps(said))
    spec = read_spec(llava)
    assert (spec.fit, spec.stamp_decimals, spec.frame_text, spec.fine_stride) == ("stretch", 0, "{time}{image}", 3)
    assert (spec.newline, spec.context) == ("grid", 1024)
    assert spec.coarse_stride == 4


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"fine_strid": 3}, "unknown key 'fine_strid'; did you mean 'fine_stride'?"),
        ({"fit": "squash"}, "fit is 'squash'; choose one of pad, stretch, crop"),
        ({"fine_stride": "3"}, "fine_stride is '3'; a whole number is needed"),
        ({"fine_stride": True}, "fine_stride is True; a whole number is needed"),
        ({"coarse_stride": 0}, "coarse_stride must be at least 1"),
        ({"stamp_decimals": -1}, "stamp_decimals must be from 0 to 6, got -1"),
        ({"frame_text": "{time}"}, "frame_text must hold {image} exactly once"),
    ],
)
def test_vidllm_json_is_checked(llava: Path, said: dict[str, Any], message: str) -> None:
    (llava / "vidllm.json").write_text(json.dumps(said))
    with pytest.raises(ConfigError) as caught:
        read_spec(llava)
    assert message in str(caught.value)
    assert "vidllm.json" in str(caught.value)


@pytest.mark.parametrize(
    "said", [{"newline": "grid"}, {"stamp": "interleaved"}, {"fine_stride": 3}, {"fit": "pad"}], ids=str
)
def test_a_native_family_lays_out_its_own_frames(
    said: dict[str, Any], tmp_path: Path
) -> None:
    folder = copied("smolvlm", tmp_path)
    (folder / "vidllm.json").write_text(json.dumps(said))
    with pytest.raises(ConfigError, match=f"{next(iter(said))} can not be set for smolvlm"):
        read_spec(folder)
    (folder / "vidllm.json").write_text('{"context": 99, "default_frames": 5, "dialogue": false, "as_said": true}')
    assert (read_spec(folder).context, read_spec(folder).default_frames) == (99, 5)


def test_features_come_from_layers_that_are_there(llava: Path) -> None:
    """The tower has three layers and, before them, its embeddings."""
    for layer in (-4, 0, 3, [-1, -4]):
        edit(llava / "config.json", vision_feature_layer=layer)
        read_spec(llava)
    for layer in (-5, 4, [-2, 9]):
        edit(llava / "config.json", vision_feature_layer=layer)
        with pytest.raises(IncompleteModel, match="of a vision tower of 3 layers"):
            read_spec(llava)


def test_a_selection_nobody_knows_is_not_taken_for_full(llava: Path) -> None:
    edit(llava / "config.json", vision_feature_select_strategy="patch")
    with pytest.raises(IncompleteModel, match="vision_feature_select_strategy is 'patch'"):
        read_spec(llava)


@pytest.mark.parametrize(("said", "means"), [(0.5, (0.5, 0.5, 0.5)), ([0.1, 0.2, 0.3], (0.1, 0.2, 0.3)), ([0.5], None)])
def test_a_mean_is_one_number_or_three(said: object, means: tuple[float, ...] | None, llava: Path) -> None:
    edit(llava / "processor_config.json", image_processor={"image_mean": said})
    if means is not None:
        assert read_spec(llava).image_mean == means
    else:
        with pytest.raises(IncompleteModel, match="no llava configuration"):
            read_spec(llava)


# ---- refusals


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    with pytest.raises(NotAVisionModel, match="'llama' is a text-only model"):
        read_spec(tmp_path)


def test_a_config_of_no_model_type_is_not_taken_for_a_text_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(IncompleteModel, match="names no model_type"):
        read_spec(tmp_path)


def test_of_a_model_that_speaks_too_the_part_that_sees_is_named(tmp_path: Path) -> None:
    config = {"model_type": "qwen2_5_omni", "thinker_config": {"model_type": "qwen2_5_omni_thinker"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="'qwen2_5_omni' the part that sees is 'qwen2_5_omni_thinker'"):
        read_spec(tmp_path)


def test_an_adapter_of_peft_alone_says_what_it_wants(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "llava-hf/llava-1.5-7b-hf"}')
    with pytest.raises(IncompleteModel, match="merge_and_unload"):
        read_spec(tmp_path)


def test_an_unknown_vision_family_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "blip_2", "vision_config": {}}')
    with pytest.raises(UnsupportedModel, match=r"family 'blip_2', and none in .* there for llava, .*smolvlm"):
        read_spec(tmp_path)


def test_an_unknown_tower_names_the_known_ones(llava: Path) -> None:
    edit(llava / "config.json", vision_config={"model_type": "dinov2", "image_size": 1024})
    with pytest.raises(UnsupportedModel, match="vision tower 'dinov2'; supported are clip_vision_model"):
        read_spec(llava)


@pytest.mark.parametrize(
    ("missing", "message"),
    [("tokenizer.json", "no tokenizer.json; save"), ("processor_config.json", "no preprocessor_config.json; save")],
)
def test_a_missing_file_is_named_with_the_next_step(llava: Path, missing: str, message: str) -> None:
    (llava / missing).unlink()
    with pytest.raises(IncompleteModel, match=message):
        read_spec(llava)


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        read_spec(tmp_path)


@pytest.mark.parametrize("text", ['{"model_type": ', "[" * 100_000])
def test_broken_json_is_one_line(text: str, llava: Path) -> None:
    (llava / "config.json").write_text(text)
    with pytest.raises(IncompleteModel) as caught:
        read_spec(llava)
    assert "\n" not in str(caught.value)


def test_a_length_left_in_the_tokenizer_s_file_cuts_no_question(llava: Path) -> None:
    path = llava / "tokenizer.json"
    left = {
        "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "<pad>"},
    }  # fmt: skip
    whole = len(load_tokenizer(llava).encode("what happens? " * 20))
    path.write_text(json.dumps(json.loads(path.read_text()) | left))
    os.utime(path, (1, 1))
    assert len(load_tokenizer(llava).encode("what happens? " * 20)) == whole > 20
    assert len(load_tokenizer(llava).encode("a")) < 8


def test_a_broken_tokenizer_is_one_line(llava: Path) -> None:
    (llava / "tokenizer.json").write_text("{}")
    with pytest.raises(IncompleteModel, match="no readable tokenizer"):
        read_spec(llava)


@pytest.mark.parametrize(
    "changes",
    [
        {"vision_config": 5}, {"text_config": [1]}, {"image_token_index": "<image>"}, {"vision_feature_layer": "last"},
        {"vision_config": {"model_type": "clip_vision_model", "patch_size": 0}},
        {"vision_config": {"model_type": "clip_vision_model", "image_size": [336, 336]}},
    ],
)  # fmt: skip
def test_a_config_of_the_wrong_shape_is_one_line(llava: Path, changes: dict[str, Any]) -> None:
    edit(llava / "config.json", **changes)
    with pytest.raises(ModelError) as caught:
        read_spec(llava)
    assert str(caught.value).startswith(str(llava))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "file", "said", "message"),
    [
        ("llava", "config.json", {"vision_config": {"patch_size": -14}}, "patch_size is -14, a whole number above 0"),
        ("llava", "config.json", {"text_config": {"max_position_embeddings": True}}, "no max_position_embeddings"),
        ("llava_onevision", "config.json", {"vision_config": {"num_hidden_layers": 0}}, "num_hidden_layers is 0"),
        ("llava_next_video", "config.json", {"spatial_pool_stride": 0}, "spatial_pool_stride is 0"),
        ("llava_next_video", "preprocessor_config.json", {"image_grid_pinpoints": [[-112, 112]]}, "no multiples"),
        ("internvl", "config.json", {"downsample_ratio": -0.5}, "no multiple of -2, by which"),
        ("gemma3", "config.json", {"mm_tokens_per_image": 9}, "8 patches a side can not be averaged to .* 9;"),
        ("gemma3", "config.json", {"mm_tokens_per_image": 12}, "8 patches a side can not be averaged to .* 12;"),
        ("gemma3", "config.json", {"boi_token_index": 31999}, "visual token 31999 is no added token"),
        ("qwen3_vl", "config.json", {"vision_config": {"patch_size": 0.5}}, r"patch_size is 0\.5"),
        ("qwen2_5_vl", "config.json", {"vision_config": {"temporal_patch_size": 0}}, "temporal_patch_size is 0"),
        ("qwen3_vl", "video_preprocessor_config.json", {"size": {"longest_edge": -7}}, "max_pixels is -7"),
        ("qwen2_vl", "preprocessor_config.json", {"min_pixels": 2**63}, "min_pixels 9.* are over max_pixels 1"),
        ("qwen2_vl", "preprocessor_config.json", {"image_std": [0, 1, 1]}, r"image_std \(0\.0, 1\.0, 1\.0\)"),
        ("smolvlm", "config.json", {"scale_factor": 0}, "scale_factor is 0"),
    ],
)  # fmt: skip
def test_numbers_that_make_no_model_are_one_line(
    family: str, file: str, said: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """They went on into the plan, and ended there in a traceback, a grid of -1 patches or frames without end."""
    folder = copied(family, tmp_path)
    edit(folder / file, **said)
    with pytest.raises(IncompleteModel, match=message):
        read_spec(folder)


def test_a_token_the_tokenizer_does_not_have_is_refused(llava: Path) -> None:
    edit(llava / "config.json", image_token_index=31999)
    with pytest.raises(IncompleteModel, match="visual token 31999 is no added token"):
        read_spec(llava)


# ---- names


def test_a_local_folder_is_itself(llava: Path) -> None:
    assert resolve_model(str(llava)) == llava


def test_the_models_that_ship_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIDLLM_MODEL", raising=False)
    assert resolve_model("built-in") == resolve_model(None)
    images = resolve_model("built-in-images")
    assert images != resolve_model(None)
    assert read_spec(images).geometry == read_spec(resolve_model(None)).geometry


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no/such/folder", "no such folder"), ("nonsense", "no such folder"), (__file__, "a file, not a model"),
        ("~no-such-user/model", "no such folder"),
    ],
)
def test_a_name_that_is_nothing(name: str, message: str) -> None:
    with pytest.raises(ModelNotFound, match=message):
        resolve_model(name)


def test_a_hub_id_without_network_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFound, match=r"someone/some-model: .*can not be reached") as caught:
        resolve_model("someone/some-model")
    assert "\n" not in str(caught.value)


def test_a_hub_id_names_its_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By commit, branch or tag, from the Hub's own cache where it is offline; a folder may hold an @ itself."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commits = {"main": "a" * 40, "refs/pr/1": "b" * 40}
    for reference, commit in commits.items():
        (folder := tmp_path / "models--some--model/snapshots" / commit).mkdir(parents=True)
        (trees := tmp_path / "models--some--model/trees").mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
        (trees / f"{commit}.json").write_text('{"config.json": {"size": 2, "blob_id": "0"}}')
        (named := tmp_path / "models--some--model/refs" / reference).parent.mkdir(parents=True, exist_ok=True)
        named.write_text(commit)
    names = ["some/model", "some/model@main", "some/model@refs/pr/1", f"some/model@{'b' * 40}"]
    found = [resolve_model(name, weights=False) for name in names]
    assert [folder.name[0] for folder in found] == ["a", "a", "b", "b"]
    assert base_name(found[2]) == names[3]  # as an adapter remembers it
    with pytest.raises(ModelNotFound, match="some/model@v2: no folder here, not in the local cache"):
        resolve_model("some/model@v2")
    (tmp_path / "some/model@v2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("some/model@v2") == Path("some/model@v2")
    with pytest.raises(ModelNotFound, match="no such folder"):
        resolve_model("some/model@")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llava: Path) -> list[str]:
    """A Hub that has `some/llava` and the text-only `some/text`; what files it was asked for, in order."""
    patterns: list[str] = []
    text = Path(shutil.copytree(llava, tmp_path / "text"))
    (text / "config.json").write_text('{"model_type": "llama"}')

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        patterns.extend(allow_patterns)
        return str({"some/llava": llava, "some/text": text}[name])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    resolve._download.cache_clear()
    return patterns


def test_a_plan_fetches_no_weights(asked: list[str], tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", [0.0, 0.5, 1.0])
    assert vidllm.plan(tmp_path / "clip.mp4", model="some/llava").video_tokens > 0
    assert "*.json" in asked
    assert "*.safetensors" not in asked


def test_weights_are_fetched_once_the_small_files_say_that_they_can_be_used(asked: list[str]) -> None:
    with pytest.raises(NotAVisionModel, match="'llama' is a text-only model"):
        vidllm.load("some/text", device="cpu")
    assert "*.safetensors" not in asked
    vidllm.load("some/llava", device="cpu", cache=None)
    vidllm.load("some/llava", device="cpu", cache=None)
    assert asked.count("*.safetensors") == 1


def test_a_spec_is_read_without_torch_or_transformers() -> None:
    code = (
        "import sys; from pathlib import Path; from vidllm.model.families import read_spec;"
        "[read_spec(Path(p)) for p in sys.argv[1:]];"
        "sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code, *map(tiny_folder, FAMILIES)], check=True)


def test_a_bare_spec_is_a_grid_and_a_context() -> None:
    spec = bare_spec(27, 27, 32768, pooling="bilinear", newline="one")
    assert isinstance(spec, ModelSpec)
    assert spec.geometry == Geometry(rows=27, cols=27, pooling="bilinear", newline="one")
    assert (spec.context, spec.stamp) == (32768, "none")


# ---- AnyRes arithmetic against LLaVA-NeXT's figures

NEXT_GRIDS = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]


@pytest.mark.parametrize(
    ("size", "tiles", "tokens"),
    [
        ((672, 672), (2, 2), 576 + 48 * 49),
        ((336, 672), (1, 2), 576 + 24 * 49),
        ((672, 336), (2, 1), 576 + 48 * 25),
        ((336, 1008), (1, 3), 576 + 24 * 73),
        ((1008, 336), (3, 1), 576 + 72 * 25),
        ((480, 640), (2, 2), 576 + 36 * 49),
        ((100, 100), (1, 2), 576 + 24 * 25),
    ],
)
def test_anyres_tokens(size: tuple[int, int], tiles: tuple[int, int], tokens: int) -> None:
    assert anyres.tile_grid(size, 336, NEXT_GRIDS) == tiles
    assert anyres.anyres_tokens(size, tiles, 24, None) == tokens


def test_onevision_shrinks_what_is_over_nine_tiles() -> None:
    assert anyres.shrunk_grid(27 * 6, 27 * 6, 27, 9) == (81, 81)
    assert anyres.shrunk_grid(27 * 3, 27 * 3, 27, 9) == (81, 81)
    assert anyres.shrunk_grid(54, 54, 27, 9) == (54, 54)


@pytest.mark.usefixtures("across_first")
def test_tiles_are_those_transformers_cuts() -> None:
    """Of pictures of any size, grids and pixels both."""
    from transformers import LlavaNextImageProcessorPil

    grids = [(height // 12, width // 12) for height, width in NEXT_GRIDS]
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=grids, do_rescale=False,
        do_normalize=False,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for height, width in [(28, 28), (56, 28), *rng.integers(5, 120, (30, 2)).tolist()]:
        pixels = rng.integers(0, 255, (height, width, 3), np.uint8)
        mine = anyres.cut_tiles(pixels, 28, anyres.tile_grid((height, width), 28, grids))
        theirs = processor([pixels], return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(mine.transpose(0, 3, 1, 2), theirs)


def test_tiles_put_together_are_the_picture() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (56, 28, 3), np.uint8)
    cut = anyres.cut_tiles(pixels, 28, (2, 1))
    assert cut.shape == (3, 28, 28, 3)
    np.testing.assert_array_equal(np.concatenate([cut[1], cut[2]]), pixels)


def test_a_picture_is_centred_in_its_tiles() -> None:
    white = np.full((28, 28, 3), 255, np.uint8)
    _, left, right = anyres.cut_tiles(white, 28, (1, 2))
    assert left[:, :14].max() == right[:, 14:].max() == 0
    assert left[:, 14:].min() == right[:, :14].min() == 255
