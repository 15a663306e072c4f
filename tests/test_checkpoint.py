"""Loading: what is chosen, what is refused, and that nothing of a checkpoint is executed."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import needs_bitsandbytes, write_clip
from tests.test_lmm import pictures, prompt_for, video_prompt
from tests.tiny_models import FAMILIES, edit, with_text
from vidllm import load, machine
from vidllm.errors import ConfigError, IncompleteModel, ModelNotFound, NotAVisionModel, UnsupportedModel, VidllmError
from vidllm.model import checkpoint
from vidllm.model import fingerprint as fingerprint_room
from vidllm.model.adapter import bases
from vidllm.model.checkpoint import Quantize, choose_device, choose_dtype, describe, fingerprint, load_model, stop_ids
from vidllm.model.resolve import builtin_folder

Tiny = Callable[[str], Path]


@pytest.fixture
def llava(tiny: Tiny, tmp_path: Path) -> Path:
    """A tiny LLaVA of this test's own, free to be damaged."""
    return Path(shutil.copytree(tiny("llava"), tmp_path / "llava"))


def test_every_family_loads_without_torchvision(tiny: Tiny) -> None:
    for name in FAMILIES:
        model = load_model(tiny(name), device="cpu", dtype="bfloat16")
        assert model.spec.model_type == name
        assert (model.device, model.dtype) == (torch.device("cpu"), torch.bfloat16)


def test_device_and_dtype_are_said(tiny: Tiny) -> None:
    model = load_model(tiny("llava"), device="cpu", dtype="float32")
    assert describe(model) == "llava, 0.1M parameters, cpu, float32"
    small = load_model(builtin_folder(), device="cpu", dtype="float32")
    assert describe(small) == "llava, 4.8M parameters, cpu, float32"  # a head that is the table counts once


def test_the_default_dtype_follows_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(checkpoint, "cpu_multiplies_bf16", lambda: True)
    assert choose_dtype(None, cpu) == torch.bfloat16
    monkeypatch.setattr(checkpoint, "cpu_multiplies_bf16", lambda: False)
    assert choose_dtype(None, cpu) == torch.float32
    assert choose_dtype(None, torch.device("mps")) == torch.float16
    assert choose_dtype("float16", cpu) == torch.float16


@pytest.mark.parametrize(
    ("maker", "flags", "fast"),
    [
        ("AuthenticAMD", "fpu avx512_bf16", True),
        ("GenuineIntel", "fpu avx512_bf16", False),
        ("GenuineIntel", "fpu avx512_bf16 amx_tile", True),
        ("AuthenticAMD", "fpu avx2", False),
    ],
)
def test_bfloat16_is_chosen_where_it_is_fast(
    maker: str, flags: str, fast: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As Linux tells it of each core."""
    core = f"processor\t: 0\nvendor_id\t: {maker}\ncpu family\t: 6\nflags\t\t: {flags}\n\n"
    (tmp_path / "cpuinfo").write_text(2 * core)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    assert machine.cpu_multiplies_bf16() == fast


def test_impossible_choices_are_refused() -> None:
    with pytest.raises(ConfigError, match="'float8' is none of"):
        choose_dtype("float8", torch.device("cpu"))
    with pytest.raises(ConfigError, match="'warp' is none of cuda, mps, cpu"):
        choose_device("warp")
    with pytest.raises(ConfigError, match="'0' is none of cuda, mps, cpu"):
        choose_device(0)  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="'cuda' is not usable here"):
            choose_device("cuda")


def test_torchs_own_words_for_device_and_dtype_are_understood() -> None:
    assert choose_device(torch.device("cpu")) == torch.device("cpu")
    assert choose_dtype(torch.bfloat16, torch.device("cpu")) is torch.bfloat16


@pytest.mark.parametrize(
    "name",
    [
        "model.language_model.layers.1.mlp.up_proj.weight",
        "model.vision_tower.embeddings.patch_embedding.weight",
        "model.multi_modal_projector.linear_2.bias",
        "lm_head.weight",
    ],
)
def test_missing_weights_are_refused(llava: Path, name: str) -> None:
    """transformers would fill them with noise and a warning."""
    weights = load_file(llava / "model.safetensors")
    stored = next(key for key in weights if key.endswith(name.removeprefix("model.").split(".", 1)[-1]))
    del weights[stored]
    save_file(weights, llava / "model.safetensors", {"format": "pt"})
    with pytest.raises(IncompleteModel, match=r"1 weights are missing, .* first") as caught:
        load_model(llava, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["5.0.0", "99.1.0.dev0"])
def test_weights_a_newer_transformers_named_are_no_reason_to_download_again(llava: Path, version: str) -> None:
    weights = load_file(llava / "model.safetensors")
    save_file({f"newer.{name}": weight for name, weight in weights.items()}, llava / "model.safetensors")
    edit(llava / "config.json", transformers_version=version)
    cure = "download it again" if version == "5.0.0" else "saved it and .* installed"
    with pytest.raises(IncompleteModel, match=cure):
        load_model(llava, device="cpu")


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (None, r"neither model\.safetensors nor model\.safetensors\.index\.json"),
        ({}, "no weight_map"),
        ({"weight_map": ["a"]}, "no weight_map"),
        ({"weight_map": {"a": "shard-1.safetensors", "b": "shard-2.safetensors"}}, "1 of 2 weight files are missing"),
        ({"weight_map": {"a": "../../elsewhere"}}, "1 of 1 weight files"),
    ],
)
def test_shards_that_do_not_fit_together_are_told_as_such(llava: Path, index: object, says: str) -> None:
    (llava / "model.safetensors").rename(llava / "shard-1.safetensors")
    if index is not None:
        (llava / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(IncompleteModel, match=says):
        load_model(llava, device="cpu")


@pytest.mark.parametrize(
    "said", [{"num_attention_heads": None}, {"num_attention_heads": 5}, {"layer_norm_eps": "small"}], ids=str
)
def test_a_tower_that_would_fail_at_its_first_picture_is_refused(said: dict[str, object], llava: Path) -> None:
    """The tiny tower is 32 wide, and left out its heads are 12: no weight's shape tells."""
    edit(llava / "config.json", vision_config=said)
    with pytest.raises(IncompleteModel, match="download the model again"):
        load_model(llava, device="cpu")


def test_weights_of_another_shape_are_refused(llava: Path) -> None:
    edit(llava / "config.json", text_config={"intermediate_size": 48})
    with pytest.raises(IncompleteModel, match=r"6 weights are of another shape than the config says, model\.language"):
        load_model(llava, device="cpu")


@pytest.mark.parametrize("light", [True, False])
def test_a_config_of_fewer_layers_than_the_weights_is_refused(light: bool, llava: Path) -> None:
    """Half a language model would load and talk noise; a table that older checkpoints keep is no layer."""
    weights = load_file(llava / "model.safetensors")
    weights["model.language_model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, llava / "model.safetensors", {"format": "pt"})
    load_model(llava, device="cpu", dtype="float32", light=light)
    edit(llava / "config.json", text_config={"num_hidden_layers": 1})
    with pytest.raises(IncompleteModel, match=r"names 1 layers of the language model, its weights are of 2"):
        load_model(llava, device="cpu", dtype="float32", light=light)


@pytest.mark.parametrize(
    ("kind", "more", "says"),
    [
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "'lfm2' keeps more of the past than keys and values"),
        ("biogpt", {}, "'biogpt' has no rotary positions"),
    ],
)
def test_a_language_model_that_can_not_be_read_on_is_refused(
    kind: str, more: dict[str, object], says: str, tmp_path: Path
) -> None:
    """A LLaVA may hold any language model: one with states of its own would fail at its first word."""
    with pytest.raises(UnsupportedModel, match=says) as caught:
        load_model(with_text(tmp_path, kind, **more), device="cpu", dtype="float32")
    assert "\n" not in str(caught.value)


def test_a_damaged_weight_file_is_refused(llava: Path) -> None:
    path = llava / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(IncompleteModel) as caught:
        load_model(llava, device="cpu")
    assert "\n" not in str(caught.value)


def test_pickles_are_not_opened(llava: Path) -> None:
    weights = load_file(llava / "model.safetensors")
    (llava / "model.safetensors").unlink()
    torch.save(weights, llava / "pytorch_model.bin")
    with pytest.raises(IncompleteModel, match="safetensors"):
        load_model(llava, device="cpu")


def test_code_in_a_checkpoint_is_not_run(llava: Path, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    (llava / "modeling_evil.py").write_text(f"open({str(witness)!r}, 'w')\nclass Evil: pass\n")
    edit(llava / "config.json", auto_map={"AutoModel": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"})
    edit(llava / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_evil.Evil", None]})
    load_model(llava, device="cpu")
    assert not witness.exists()


def test_what_is_no_model_is_named(llava: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        load_model(tmp_path / "nothing")
    edit(llava / "config.json", model_type="llama", vision_config=None)
    with pytest.raises((NotAVisionModel, UnsupportedModel)):
        load_model(llava)
    (llava / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match="no weights"):
        fingerprint(llava)


def test_a_missing_tokenizer_is_named(llava: Path) -> None:
    (llava / "tokenizer.json").unlink()
    with pytest.raises(IncompleteModel, match="tokenizer"):
        load_model(llava, device="cpu")


@needs_bitsandbytes
@pytest.mark.parametrize(("quantize", "kind"), [("int8", "Linear8bitLt"), ("int4", "Linear4bit")])
def test_language_models_of_every_family_are_quantized_and_nothing_else(
    quantize: Quantize, kind: str, tiny: Tiny
) -> None:
    for name in FAMILIES:
        whole, model = (
            load_model(tiny(name), "cpu", "float32", quantize=bits, light=False) for bits in (None, quantize)
        )
        linears = {
            path: type(part).__name__
            for path, part in model.network.named_modules()  # type: ignore[attr-defined]
            if "Linear" in type(part).__name__
        }
        rounded = {path for path, there in linears.items() if there == kind}
        assert rounded == {path for path in linears if re.search(r"(language|text)_model\.layers\.", path)} != set()
        assert describe(model) == describe(whole)
        prompt = prompt_for(whole, whole.tokenizer.encode("what happens at 0:30?").ids, [])  # type: ignore[arg-type]
        near = {"int8": 0.99, "int4": 0.5}[quantize]  # random weights so few wide say little of 4 bits
        assert torch.cosine_similarity(model.prefill(prompt).logits, whole.prefill(prompt).logits, dim=-1) > near, name


@needs_bitsandbytes
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_quantized_model_still_knows_and_says_nothing_else(
    quantize: Quantize, caplog: pytest.LogCaptureFixture
) -> None:
    answer = load(device="cpu", quantize=quantize, cache=None).ask(
        builtin_folder().parent / "sample" / "sample.mp4", "what happens at 0:30?"
    )
    assert answer.text == "The red circle moves right."
    assert not [record for record in caplog.records if record.name.startswith("bitsandbytes.autograd")]


def test_quantization_names_what_to_install(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r'pip install "vidllm\[quant\]"'):
        load_model(llava, quantize="int4")
    with pytest.raises(ConfigError, match="none of int8, int4"):
        load_model(llava, quantize="int3")  # type: ignore[arg-type]


@needs_bitsandbytes
def test_quantization_with_too_old_a_package_is_no_fault_of_the_model(
    llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers knows none that it would take; the model was never quantized by anybody."""
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_8bit.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ConfigError, match=r'requires bitsandbytes.*pip install -U "vidllm\[quant\]"$') as caught:
        load_model(llava, device="cpu", quantize="int8")
    assert "\n" not in str(caught.value)


@needs_bitsandbytes
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_quantized_model_that_needs_two_kinds_of_memory_is_no_fault_of_the_model(
    quantize: Quantize, llava: Path
) -> None:
    with pytest.raises(ConfigError, match="lie all on GPUs or all on the CPU"):
        load_model(llava, quantize=quantize, device_map={"model": "cpu", "lm_head": "disk"})


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_weights_somebody_quantized_say_what_they_need(method: str, llava: Path) -> None:
    edit(llava / "config.json", quantization_config={"quant_method": method, "bits": 4, "group_size": 128})
    with pytest.raises(UnsupportedModel, match=r"pip install .*before it was quantized") as caught:
        load_model(llava, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="here it is installed")
def test_flash_attention_that_is_not_installed_is_done_without(llava: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Configs that a training run saved may name it; attention is the same sum with any kernel."""
    plain = load_model(llava, device="cpu", dtype="float32", light=False)
    edit(llava / "config.json", _attn_implementation="flash_attention_2")
    with caplog.at_level("WARNING", logger="vidllm"):
        model = load_model(llava, device="cpu", dtype="float32", light=False)
    assert "FlashAttention, which is not installed" in caplog.text
    prompt = video_prompt(plain, pictures(2, 112, 112), [2, 2])  # type: ignore[arg-type]
    assert torch.equal(model.prefill(prompt).logits, plain.prefill(prompt).logits)


@pytest.mark.parametrize("places", ["everywhere", {"": "everywhere"}, {"lm_head": "everywhere", "model": "cpu"}])
def test_a_device_map_of_no_meaning_is_no_fault_of_the_model(places: str | dict[str, str], llava: Path) -> None:
    with pytest.raises(ConfigError, match="'everywhere' is none of"):
        load_model(llava, device_map=places)


def test_a_device_map_spreads_the_model(llava: Path) -> None:
    model = load_model(llava, dtype="float32", device_map={"": "cpu"})
    assert model.device == torch.device("cpu")
    plain = load_model(llava, dtype="float32", device="cpu")
    frames = pictures(2, 112, 112)
    logits = [m.prefill(video_prompt(m, frames, [2, 2])).logits for m in (model, plain)]  # type: ignore[arg-type]
    assert torch.equal(*logits)


def test_a_device_map_that_parts_tied_weights_is_no_fault_of_the_download(tiny: Tiny) -> None:
    places = {f"model.{part}": "disk" for part in ("vision_tower", "multi_modal_projector", "language_model")}
    with pytest.raises(IncompleteModel, match="let device_map place every part, tied weights together"):
        load_model(tiny("internvl"), "cpu", device_map={"lm_head": "cpu", **places})


@pytest.mark.parametrize(
    ("family", "key"), [("llava_next", "vision_config"), ("internvl", "text_config"), ("qwen3_vl", "text_config")]
)
def test_parts_that_would_answer_in_tuples_are_asked_all_the_same(
    family: str, key: str, tiny: Tiny, tmp_path: Path
) -> None:
    from vidllm.ask import load

    write_clip(tmp_path / "clip.mp4", [0.0, 0.5, 1.0])
    folder = Path(shutil.copytree(tiny(family), tmp_path / family))
    edit(folder / "config.json", **{key: {"return_dict": False}})
    model = load(folder, device="cpu", cache=None)
    assert model.ask(tmp_path / "clip.mp4", "what?", max_new_tokens=2).usage.answer_tokens


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        ("llava", ["vision_tower", "multi_modal_projector", "language_model"]),
        ("qwen2_5_vl", ["visual", "language_model"]),
        ("smolvlm", ["vision_model", "connector", "text_model"]),
        ("pixtral", ["vision_tower", "multi_modal_projector", "language_model"]),
        ("video_llama_3", ["vision_model", "projector", "language_model"]),
    ],
)
def test_a_model_that_hardly_fits_is_asked_all_the_same(
    family: str, parts: list[str], tiny: Tiny, tmp_path: Path
) -> None:
    """What `--device auto` keeps on disk, eyes and token table included, is brought when it is needed."""
    from vidllm.ask import load

    write_clip(tmp_path / "clip.mp4", [0.0, 0.5, 1.0])
    folder = tiny(family)
    places = {"lm_head": "cpu", **{f"model.{part}": "disk" for part in parts}}
    said = [
        load(folder, device="cpu", dtype="float32", device_map=spread, cache=None)
        .ask(tmp_path / "clip.mp4", "what?", max_new_tokens=4).text
        for spread in (None, places)
    ]  # fmt: skip
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "vidllm.json", "chat_template.jinja", "extras.safetensors"]
)
def test_a_link_that_leads_nowhere_is_a_file_that_was_lost(name: str, llava: Path, tmp_path: Path) -> None:
    """As one that the Hub's cache was swept of: without it the model would answer otherwise, and nobody knew."""
    from vidllm.ask import load

    (llava / name).unlink(missing_ok=True)
    (llava / name).symlink_to("no more in the Hub's cache")
    with pytest.raises(IncompleteModel, match=f"{name}: .*No such file"):
        load(llava, device="cpu").ask(write_clip(tmp_path / "clip.mp4", [0.0, 0.5]), "what?")


MATRIX = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.mark.parametrize(
    ("halves", "rank", "learned", "message"),
    [
        ("AB", 2, None, None),
        ("B", 2, None, "0 matrices A among 1"),
        ("ABC", 2, None, "1 matrices A among 3"),
        ("AB", float("inf"), None, "do not belong together"),
        ("AB", 2, "nowhere", r"learned\.safetensors: can not be read"),
    ],
)
def test_half_an_adapter_is_refused(
    halves: str, rank: float, learned: str | None, message: str | None, llava: Path, tmp_path: Path
) -> None:
    """What it lacks or what nobody reads would be missing from every answer."""
    base = llava.rename(tmp_path / "base")
    shutil.copytree(base, llava, ignore=shutil.ignore_patterns("model.safetensors"))
    save_file({MATRIX.format(half): torch.ones(2, 32).reshape((32, 2) if half == "B" else (2, 32)) for half in halves},
              llava / "adapter_model.safetensors")  # fmt: skip
    (llava / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": 4}))
    said = {"base": str(base), "base_fingerprint": fingerprint(base)}
    (llava / "vidllm_adapter.json").write_text(json.dumps(said))
    if learned is not None:
        (llava / "learned.safetensors").symlink_to(learned)
    if message is None:
        load_model(llava, device="cpu")
        (llava / "vidllm_adapter.json").write_text(json.dumps(said | {"base": str(tmp_path)}))
        message = "an adapter of another model than .* is now"
    with pytest.raises(IncompleteModel, match=message) as caught:
        load_model(llava, device="cpu")
    assert str(llava) in str(caught.value)


def test_a_config_of_an_impossible_kind_is_one_line(llava: Path) -> None:
    edit(llava / "config.json", vision_config={"hidden_act": ["gelu"]})
    with pytest.raises(IncompleteModel, match="download it again"):
        load_model(llava, "cpu")


def test_the_fingerprint_sees_weights_config_processor_and_template(llava: Path) -> None:
    seen = {fingerprint(llava)}
    (llava / "runs.json").mkdir()
    for swept in ("vocab.txt", "consolidated.safetensors"):
        (llava / swept).symlink_to("no more in the Hub's cache")
    assert seen == {fingerprint(llava)}
    for path in (llava / "config.json", llava / "processor_config.json", llava / "chat_template.jinja"):
        path.write_text(path.read_text() + " ")
        seen.add(fingerprint(llava))
    weights = load_file(llava / "model.safetensors")
    weights[next(iter(weights))].view(-1)[0] += 1
    save_file(weights, llava / "model.safetensors", {"format": "pt"})
    seen.add(fingerprint(llava))
    assert len(seen) == 5


def test_the_fingerprint_of_a_large_file_samples_it(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix is looked at: a projector taught alone makes another model."""
    monkeypatch.setattr(fingerprint_room, "WHOLE_FILE_BYTES", 1024)
    before = fingerprint(llava)
    assert before == fingerprint(llava)
    for part in ("vision_tower", "multi_modal_projector", "lm_head"):
        weights = load_file(llava / "model.safetensors")
        taught = {name: weight * 1.01 if part in name else weight for name, weight in weights.items()}
        save_file(taught, llava / "model.safetensors", {"format": "pt"})
        assert fingerprint(llava) != before
        before = fingerprint(llava)


def test_stop_ids(llava: Path) -> None:
    tokenizer = load_model(llava, device="cpu").tokenizer
    edit(llava / "generation_config.json", eos_token_id=[3, 5])
    assert stop_ids(llava, tokenizer) == (3, 5)
    edit(llava / "generation_config.json", eos_token_id=4)
    assert stop_ids(llava, tokenizer) == (4,)
    edit(llava / "generation_config.json", eos_token_id=[])
    assert stop_ids(llava, tokenizer) == (tokenizer.token_to_id("</s>"),)
    (llava / "generation_config.json").unlink()
    assert stop_ids(llava, tokenizer) == (tokenizer.token_to_id("</s>"),)
    edit(llava / "tokenizer_config.json", eos_token={"lstrip": False})
    edit(llava / "config.json", text_config={"eos_token_id": 5})
    assert stop_ids(llava, tokenizer) == (5,)
    edit(llava / "tokenizer_config.json", eos_token=2)
    edit(llava / "config.json", text_config={"eos_token_id": 6})
    assert stop_ids(llava, tokenizer) == (6,)
    edit(llava / "config.json", eos_token_id=[7, 8])
    assert stop_ids(llava, tokenizer) == (7, 8)


@pytest.mark.parametrize("said", ["</s>", 2.0, True, [2, "</s>"]], ids=str)
def test_stop_ids_that_are_none_are_told(said: object, llava: Path) -> None:
    """A word in their place was taken apart into letters, and no answer ended any more."""
    edit(llava / "generation_config.json", eos_token_id=said)
    with pytest.raises(IncompleteModel, match="a whole number or a list of them is needed"):
        load_model(llava, device="cpu")


@pytest.mark.parametrize(
    ("version", "cure"), [("5.0.0", "download it again"), ("99.1.0", "pip install -U transformers")]
)
def test_a_word_of_a_newer_transformers_is_named(version: str, cure: str, llava: Path) -> None:
    rope = {"rope_type": "magic", "factor": 2.0, "rope_theta": 1e4}
    edit(llava / "config.json", text_config={"rope_parameters": rope}, transformers_version=version)
    with pytest.raises(IncompleteModel, match=f"'magic' is not known here; .*{cure}"):
        load_model(llava, device="cpu")


def test_every_refusal_is_one_of_ours(llava: Path) -> None:
    """A config.json cut off at any byte ends in one line, never in a traceback of somebody else's."""
    whole = (llava / "config.json").read_text()
    for length in range(0, len(whole), 97):
        (llava / "config.json").write_text(whole[:length])
        with pytest.raises(VidllmError) as caught:
            load_model(llava, device="cpu")
        assert "\n" not in str(caught.value)


def test_what_preferences_made_of_the_model_that_ships_is_an_adapter_of_it() -> None:
    """Of these very weights: others have another fingerprint and would be refused."""
    taught, before = (load_model(builtin_folder(name), "cpu") for name in ("built-in-dpo", "built-in"))
    assert bases(taught.spec.folder) == [before.spec.folder]
    learnt, known = (dict(model.network.named_parameters()) for model in (taught, before))  # type: ignore[attr-defined]
    changed = {name for name, weight in learnt.items() if not torch.equal(weight, known[name])}
    assert len(changed) == 6 * 7  # matrices of every layer, and nothing else
    assert all("language_model.layers" in name for name in changed)
