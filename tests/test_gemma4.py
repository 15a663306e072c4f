"""Gemma 4, pictures that fill their tokens and videos of them: ids and logits are those of transformers' classes."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer
from transformers.models.gemma4.image_processing_pil_gemma4 import (
    Gemma4ImageProcessorPil,
    get_aspect_ratio_preserving_size,
)
from transformers.models.gemma4.processing_gemma4 import Gemma4Processor
from transformers.video_utils import VideoMetadata

from tests.planned import MINUTE, clip_of, prompt_of
from tests.test_gemma import batched
from tests.test_lmm import pictures
from tests.test_native import frames_in_patches, merged_patches
from tests.test_train_learner import learner_of
from tests.test_train_native import check_as_if_alone, spoken
from tests.tiny_models import edit, gemma4, gemma4_larger, gemma4_unified
from vidllm.engine import generate, read
from vidllm.errors import ConfigError, IncompleteModel, NotAVisionModel, UnsupportedModel
from vidllm.model import windows
from vidllm.model.checkpoint import load_model
from vidllm.model.families import ModelSpec, read_spec
from vidllm.model.gemma4 import Gemma4
from vidllm.options import GenerationOptions
from vidllm.prompt import Message, Prompt
from vidllm.train.parts import Parts
from vidllm.visuals import Image

CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 0}
QUESTION = "what happens at 0:30?"


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gemma4(tmp_path_factory.mktemp("smaller"))


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gemma4_larger(tmp_path_factory.mktemp("larger"))


@pytest.fixture(scope="module")
def unified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gemma4_unified(tmp_path_factory.mktemp("unified"))


@pytest.fixture(params=["smaller", "larger", "unified"])
def folder(request: pytest.FixtureRequest) -> Path:
    made: Path = request.getfixturevalue(request.param)
    return made


@cache
def model_of(folder: Path) -> Gemma4:
    model = load_model(folder, device="cpu", dtype="float32")
    assert isinstance(model, Gemma4)
    return model


@cache
def theirs(folder: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


class Processor:
    """What the family's own does around its tokenizer; the class itself wants torchvision, for its videos."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.boi_token, self.eoi_token = self.tokenizer.boi_token, self.tokenizer.eoi_token
        self.image_token, self.video_token = self.tokenizer.image_token, "<|video|>"
        settings = json.loads((folder / "processor_config.json").read_text())["image_processor"]
        self.images = Gemma4ImageProcessorPil(**{k: v for k, v in settings.items() if not k.endswith("type")})

    def ids(self, messages: Sequence[Message], shown: Sequence[str]) -> list[int]:
        """Of the template's text, each medium's placeholder replaced by one of `shown`."""
        kinds = [{"type": "image" if "image|>" in one and "video" not in one else "video"} for one in shown]
        told: list[dict[str, Any]] = []
        for message in messages:
            parts = [kinds.pop(0) for _ in message.media] + [{"type": "text", "text": message.text}]
            told.append({"role": message.role, "content": parts if message.role == "user" else message.text})
        text = self.tokenizer.apply_chat_template(
            told, add_generation_prompt=True, tokenize=False, enable_thinking=False
        )
        whole = str(text).replace(self.image_token, "\0").replace(self.video_token, "\0")
        first, *others = whole.split("\0")
        whole = first + "".join(one + other for one, other in zip(shown, others, strict=True))
        return list(self.tokenizer.encode(whole, add_special_tokens=False))


def picture_inputs(folder: Path, pixels: Sequence[NDArray[np.uint8]]) -> tuple[dict[str, Tensor], list[str]]:
    """What their processor makes of pictures: tensors, and what stands for each in the text."""
    processor = Processor(folder)
    seen = processor.images(list(pixels), return_tensors="pt")
    shown = [Gemma4Processor.replace_image_token(processor, seen, i) for i in range(len(pixels))]  # type: ignore[arg-type]
    cells, places = seen["pixel_values"], seen["image_position_ids"]
    if is_merged(folder):  # what scales its pictures wants torchvision, too
        ends = [9 * tokens for tokens in seen["num_soft_tokens_per_image"]]
        made = [merged_patches(cells[i : i + 1, :end], places[i : i + 1, :end]) for i, end in enumerate(ends)]
        cells, places = (torch.cat(part) for part in zip(*made, strict=True))
    return {"pixel_values": cells, "image_position_ids": places}, shown


def is_merged(folder: Path) -> bool:
    """Whether it takes pixels of 3x3 patches as one."""
    return read_spec(folder).model_type == "gemma4_unified"


def video_inputs(folder: Path, frames: NDArray[np.uint8], times: Sequence[float]) -> tuple[dict[str, Tensor], str]:
    """The same of frames that are scaled."""
    meta = VideoMetadata(total_num_frames=len(frames), fps=1000.0, duration=MINUTE.duration,
                         frames_indices=[round(t * 1000) for t in times])  # fmt: skip
    seen = {"num_soft_tokens_per_video": [frames[0, ..., 0].size // 144], "video_metadata": [meta]}
    shown = Gemma4Processor.replace_video_token(Processor(folder), seen, 0)  # type: ignore[arg-type]
    return frames_in_patches(frames, merged=is_merged(folder)), shown


def expected(folder: Path, ids: Sequence[int], **seen: Tensor) -> Tensor:
    """Their logits (L, V)."""
    with torch.no_grad():
        return logits_of(theirs(folder), read_spec(folder), ids, **seen)


def logits_of(network: Any, spec: ModelSpec, ids: Sequence[int], **seen: Tensor) -> Tensor:
    """Logits (L, V) of transformers' own. The 12B is given the masks that its class makes for `generate`, as those of
    the other larger models: left to itself, transformers 5.23 lets its pictures be read both ways in all layers, and
    beyond a window."""
    words = torch.tensor([list(ids)])
    kinds = (words == spec.image_token_id).int() + 2 * (words == spec.video_token_id).int()
    masks = None
    if spec.model_type == "gemma4_unified":
        masks = network.create_masks_for_generate(
            network.config, torch.zeros(*words.shape, 1), None, None, None, mm_token_type_ids=kinds
        )
    logits: Tensor = network(input_ids=words, mm_token_type_ids=kinds, attention_mask=masks, **seen).logits[0]
    return logits


def noisy(spec: ModelSpec, **options: Any) -> Prompt:
    """Frames of noise and the question."""
    clip = clip_of(spec, QUESTION, **options)
    clip = replace(clip, frames=replace(clip.frames, pixels=pictures(*clip.frames.pixels.shape[:3])))
    return prompt_of(spec, [Message("user", QUESTION, (clip,))])


# ----------------------------------------------------------------------------------------------------- what it shows


@pytest.mark.parametrize("most", [70, 280])
def test_sizes_are_those_of_its_processors(most: int, smaller: Path) -> None:
    geometry: Any = replace(read_spec(smaller).geometry, image_max_pixels=most * 12 * 12, max_pixels=most * 12 * 12)  # type: ignore[arg-type]
    sides = [1, 3, 12, 30, 100, 101, 333, 480, 720, 1081, 1920, 4000]
    for height in sides:
        for width in sides:
            size = get_aspect_ratio_preserving_size(height, width, 4, most * 9, 3)
            assert geometry.image_size(height, width) == geometry.sizes(height, width)[0] == size


@pytest.mark.parametrize("sizes", [[(96, 120)], [(20, 320)], [(400, 13)], [(30, 40), (90, 400), (250, 250)]])
def test_still_images_equal_transformers(sizes: list[tuple[int, int]], folder: Path) -> None:
    shown = [pictures(1, *size)[0] for size in sizes]
    prompt = prompt_of(read_spec(folder), [Message("user", QUESTION, tuple(map(Image, shown)))])
    seen, texts = picture_inputs(folder, shown)
    assert list(prompt.input_ids) == Processor(folder).ids(prompt.messages, texts)
    logits = expected(folder, prompt.input_ids, **seen)[-1]
    torch.testing.assert_close(model_of(folder).prefill(prompt).logits, logits, **CLOSE)


@pytest.mark.parametrize("frames", [1, 5])
def test_videos_equal_transformers(frames: int, folder: Path) -> None:
    prompt = noisy(read_spec(folder), frames=frames)
    visual = prompt.visuals[0]
    seen, text = video_inputs(folder, visual.pixels, visual.times)
    assert list(prompt.input_ids) == Processor(folder).ids(prompt.messages, [text])
    logits = expected(folder, prompt.input_ids, **seen)[-1]
    torch.testing.assert_close(model_of(folder).prefill(prompt).logits, logits, **CLOSE)


@pytest.mark.parametrize("shown", [0, 2])
def test_a_dialogue_equals_transformers(shown: int, folder: Path) -> None:
    """With a system's words, an earlier answer, and pictures or words alone."""
    pixels = [pictures(1, 90, 120)[0], pictures(1, 120, 90)[0]][:shown]
    said = [Message("system", "Be brief."), Message("user", QUESTION, tuple(map(Image, pixels))),
            Message("assistant", "Nothing."), Message("user", "and then?")]  # fmt: skip
    seen, texts = picture_inputs(folder, pixels) if pixels else ({}, [])
    prompt = prompt_of(read_spec(folder), said)
    assert list(prompt.input_ids) == Processor(folder).ids(said, texts)
    logits = expected(folder, prompt.input_ids, **seen)[-1]
    torch.testing.assert_close(model_of(folder).prefill(prompt).logits, logits, **CLOSE)


def test_it_is_asked_to_answer_at_once(smaller: Path) -> None:
    text = prompt_of(read_spec(smaller), [Message("user", "what?")]).text
    assert text == "<bos><|turn>user\nwhat?<turn|>\n<|turn>model\n<|channel>thought\n<channel|>"


def test_words_that_a_file_gives_no_token_of_their_own(smaller: Path, tmp_path: Path) -> None:
    """The Hub's tokenizer.json holds <|video|> as a word like others."""
    spoilt = Path(shutil.copytree(smaller, tmp_path / "spoilt"))
    file = json.loads((spoilt / "tokenizer.json").read_text())
    [mine] = [token for token in file["added_tokens"] if token["content"] == "<|video|>"]
    file["added_tokens"].remove(mine)
    file["model"]["vocab"] |= {token["content"]: token["id"] for token in [*file["added_tokens"], mine]}
    (spoilt / "tokenizer.json").write_text(json.dumps(file))
    prompts = [noisy(read_spec(folder), frames=2) for folder in (spoilt, smaller)]
    assert prompts[0].input_ids == prompts[1].input_ids


# -------------------------------------------------------------------------------------------------------- what it reads


def test_an_answer_is_read_as_transformers_reads_it(folder: Path) -> None:
    """Token by token behind the prompt, and in rows of several lengths that are all longer than the window."""
    spec, model = read_spec(folder), model_of(folder)
    prompts = [noisy(spec, frames=frames) for frames in (3, 1, 2)]
    options = GenerationOptions(max_new_tokens=12, stop_on_loop=False)
    alone = [generate(model, read(model, prompt).state, options).result for prompt in prompts]
    together = batched(model, prompts, options)
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    visual, ids = prompts[0].visuals[0], [*prompts[0].input_ids, *alone[0].token_ids]
    logits = expected(folder, ids, **video_inputs(folder, visual.pixels, visual.times)[0])
    assert logits[prompts[0].length - 1 : -1].argmax(-1).tolist() == list(alone[0].token_ids)
    torch.testing.assert_close(alone[0].state.logits, logits[-2], **CLOSE)


def test_only_layers_with_keys_of_their_own_keep_them(smaller: Path, larger: Path) -> None:
    model = model_of(smaller)
    state = model.prefill(noisy(read_spec(smaller), frames=1))
    assert sorted(state.kv.layers) == [0, 1, 2]
    assert not model.runs
    assert sorted(model_of(larger).layers) == [0, 1, 2, 3]


@pytest.mark.parametrize("piece", [1, 40])
def test_pieces_of_a_prompt_end_behind_pictures(piece: int, larger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read little by little it is the prompt read at once."""
    prompt, model = noisy(read_spec(larger), frames=3), model_of(larger)
    whole = model.prefill(prompt).logits
    monkeypatch.setattr(windows, "READ", piece)
    state = model.prefill(prompt)
    assert state.length == prompt.length
    torch.testing.assert_close(state.logits, whole, atol=1e-5, rtol=0)


def test_words_read_before_are_not_read_again(folder: Path) -> None:
    """The second prompt of a batch copies the words both begin with."""
    model = model_of(folder)
    system = Message("system", "You are a helpful assistant. " * 9)
    prompts = [prompt_of(read_spec(folder), [system, *noisy(read_spec(folder), frames=n).messages]) for n in (1, 2)]
    options = GenerationOptions(max_new_tokens=8, stop_on_loop=False)
    alone = [generate(model, read(model, prompt).state, options).result.token_ids for prompt in prompts]
    assert [one.token_ids for one in batched(model, prompts, options)] == alone


def test_eyes_and_tables_that_lie_on_disk_are_brought(smaller: Path) -> None:
    prompt = noisy(read_spec(smaller), frames=1)
    on_disk = ("vision_tower", "embed_vision", "audio_tower", "embed_audio", "language_model.embed_tokens_per_layer")
    small = ("norm", "per_layer_model_projection", "per_layer_projection_norm", "rotary_emb")
    places = {"lm_head": "cpu", **{f"model.{part}": "disk" for part in on_disk},
              **{f"model.language_model.{part}": "cpu" for part in ("embed_tokens", "layers", *small)}}  # fmt: skip
    spread = load_model(smaller, device="cpu", dtype="float32", device_map=places)
    torch.testing.assert_close(spread.prefill(prompt).logits, model_of(smaller).prefill(prompt).logits)


# ---------------------------------------------------------------------------------------------------------- teaching


@pytest.mark.parametrize("sharing", [True, False])
def test_what_is_learned_together_is_as_if_alone(sharing: bool, folder: Path) -> None:
    """Two questions about one video, which is read once, another video, words alone: log-probs and gradients."""
    spec = read_spec(folder)
    learner = learner_of(folder, parts=Parts(projector=1e-3, language_model=1e-3))
    network: Any = type(theirs(folder)).from_pretrained(folder, dtype=torch.float32).eval()
    for name, weight in network.named_parameters():
        weight.requires_grad_(not any(part in name for part in ("audio", "vision_tower")))
    prompts = [noisy(spec, frames=4), noisy(spec, frames=2)]
    said = [(0, " how many?", " two"), (0, " which colour?", " red, at 0:30"), (1, " and now?", " blue")]
    examples = [spoken(learner.lmm, prompts[n].input_ids, prompts[n].visuals, *words) for n, *words in said]  # type: ignore[arg-type]
    examples.append(spoken(learner.lmm, [], [], "user who are you?", " a model"))  # type: ignore[arg-type]
    alone = []
    for example in examples:
        ids, [visual] = example.prompt.input_ids, example.prompt.visuals or [None]
        seen = video_inputs(folder, visual.pixels, visual.times)[0] if visual else {}
        logps = logits_of(network, spec, ids, **seen).log_softmax(-1)
        places = torch.tensor([place for place, trained in enumerate(example.trained) if trained])
        alone.append(logps[places - 1, torch.tensor(ids)[places]])
    check_as_if_alone(learner, examples, network, alone, sharing=sharing)


def test_there_is_no_tower_to_teach_in_the_12b(unified: Path) -> None:
    with pytest.raises(ConfigError, match="the model has no vision_tower that could learn"):
        learner_of(unified, parts=Parts(vision_tower=1e-3, projector=1e-3))


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def spoilt(smaller: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(smaller, tmp_path / "gemma4"))


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"vision_config": None}, NotAVisionModel, "no vision_config"),
        ({"text_config": {"use_bidirectional_attention": "all"}}, UnsupportedModel, "reads 'all' in both directions"),
        ({"vision_config": {"pooling_kernel_size": 2}}, IncompleteModel, "is 3 x 4 px wide to a processor, 2 x 4"),
        ({"text_config": {"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}}, UnsupportedModel,
         "positions that are longrope"),
        ({"video_token_id": 999}, IncompleteModel, "visual token 999 is no added token"),
    ],
)  # fmt: skip
def test_contradictions_are_one_line(
    change: dict[str, Any], error: type[Exception], said: str, spoilt: Path
) -> None:
    edit(spoilt / "config.json", **change)
    with pytest.raises(error, match=said):
        read_spec(spoilt)


@pytest.mark.parametrize(("most", "said"), [(71, "max_soft_tokens is 71"), (0, "max_soft_tokens is 0")])
def test_its_processors_take_few_numbers_of_tokens(most: int, said: str, spoilt: Path) -> None:
    edit(spoilt / "processor_config.json", video_processor={"max_soft_tokens": most})
    with pytest.raises(IncompleteModel, match=said):
        read_spec(spoilt)


def test_what_the_config_of_the_12b_leaves_out(unified: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(unified, tmp_path / "bare"))
    said = dict.fromkeys(("max_position_embeddings", "model_type", "use_bidirectional_attention"))
    edit(bare / "config.json", text_config=said)
    assert read_spec(bare) == replace(read_spec(unified), folder=bare, context=262144)


def test_what_a_config_leaves_out_is_its_class_default(spoilt: Path) -> None:
    edit(spoilt / "processor_config.json", image_processor={"max_soft_tokens": None},
         video_processor={"max_soft_tokens": None})  # fmt: skip
    edit(spoilt / "config.json", text_config={"max_position_embeddings": None, "model_type": None})
    spec = read_spec(spoilt)
    geometry: Any = spec.geometry
    assert (spec.context, spec.text_type) == (131072, "gemma4_text")
    assert (geometry.image_max_pixels, geometry.max_pixels) == (280 * 144, 70 * 144)
