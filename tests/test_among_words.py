"""Media that stand among the words of a turn: the text, ids and logits are those of the family's own classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    AutoTokenizer,
    Idefics3Processor,
    LlavaOnevisionImageProcessorPil,
    Qwen2VLImageProcessorPil,
    SmolVLMImageProcessorPil,
)  # fmt: skip

from tests.planned import FAMILIES, copied, noise, noisy, prompt_of, spec_of, tiny_folder
from tests.test_internvl import Processor
from tests.test_native import check_logits
from tests.test_pixtral import check_against_transformers
from tests.test_train_learner import learner_of
from tests.test_train_native import of_leaves
from tests.tiny_models import edit
from tests.tiny_unlisted import PADDLE
from vidllm.engine import common_length
from vidllm.model.checkpoint import load_model
from vidllm.model.families import read_spec
from vidllm.model.media import Shown, marker, medium_text
from vidllm.model.spec import ModelSpec
from vidllm.model.stills import shown_still
from vidllm.prompt import Message, build_example
from vidllm.train.sharing import Stem, plant
from vidllm.visuals import Image

Pictures: TypeAlias = list[NDArray[np.uint8]]
WORDS = ("Picture 1: ", "\nPicture 2: ", "\nWhat differs?")
AT = (11, 23)
LLAVA = ("llava", "vipllava", "llava_next", "llava_next_video", "llava_onevision")
"""Their templates print every picture before all words, and their processors take one wherever a text has it."""
MADE = (Image(noise(126, 126)), Image(noise(126, 126, seed=5)))


def printed(spec: ModelSpec) -> str:
    """What the checkpoint's own template makes of the words with a picture behind each but the last."""
    written = marker(Shown(kind="image"), spec)
    said = [written.join(WORDS)] if spec.model_type in LLAVA else WORDS
    texts = [{"type": "text", "text": words, "content": words} for words in said]
    parts = [part for text in texts for part in (text, {"type": "image"})][:-1]
    return str(AutoTokenizer.from_pretrained(spec.folder).apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True, enable_thinking=False,
        image_token=written,
    ))  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_medium_stands_where_the_familys_own_template_has_it(family: str) -> None:
    spec = spec_of(family)
    begin, *rest = printed(spec).split(marker(Shown(kind="image"), spec))
    shown = [medium_text(shown_still(*medium.size, spec), spec) for medium in MADE]
    expected = begin + "".join(map("".join, zip(shown, rest, strict=True)))
    prompt = prompt_of(spec, [Message("user", "".join(WORDS), MADE, AT)])
    assert prompt.text == (expected if expected.startswith(spec.begins) else spec.begins + expected)


@pytest.mark.parametrize(
    ("family", "shown"),
    [("llava", "USER: Picture 1: {}\nPicture 2: {}\nWhat differs? ASSISTANT:"),
     ("qwen2_5_vl", "<|im_start|>user\nPicture 1: {}\nPicture 2: {}\nWhat differs?<|im_end|>\n<|im_start|>assistant"
                    "\n")],
)  # fmt: skip
def test_a_checkpoint_without_a_template_is_asked_so_as_well(family: str, shown: str, tmp_path: Path) -> None:
    folder = copied(family, tmp_path)
    (folder / "chat_template.jinja").unlink()
    edit(folder / "tokenizer_config.json", chat_template=None)
    spec = read_spec(folder)
    written = medium_text(shown_still(*MADE[0].size, spec), spec)
    assert prompt_of(spec, [Message("user", "".join(WORDS), MADE, AT)]).text == spec.begins + shown.format(
        *[written if family == "llava" else f"<|vision_start|>{written}<|vision_end|>"] * 2
    )


def test_where_a_template_writes_more_than_a_token_before_all_words_its_media_stay_there(tmp_path: Path) -> None:
    """As PaddleOCR-VL's: what the token alone would mean among the words its model was never taught."""
    folder = copied("qwen2_5_vl", tmp_path)
    first = PADDLE.replace("IMAGE_START", "vision_start").replace("IMAGE_END", "vision_end")
    (folder / "chat_template.jinja").write_text(first.replace("IMAGE_PLACEHOLDER", "image_pad"))
    text = prompt_of(read_spec(folder), [Message("user", "".join(WORDS), MADE, AT)]).text
    assert f"User: {'<|vision_start|><|image_pad|><|vision_end|>' * 2}{''.join(WORDS)}\n" in text


@pytest.mark.usefixtures("across_first")
@pytest.mark.parametrize("family", ["llava_onevision", "internvl", "qwen2_5_vl", "smolvlm", "pixtral", "mistral3"])
def test_the_familys_own_classes_make_the_same_of_it(family: str) -> None:
    """Ids where its processor puts them, and logits within 1e-4."""
    spec = spec_of(family)
    prompt = prompt_of(spec, [Message("user", "".join(WORDS), MADE, AT)])
    if family in ("pixtral", "mistral3"):
        return check_against_transformers(prompt, spec.folder)
    inputs = OWN[family](printed(spec), [medium.pixels for medium in MADE])
    assert inputs["input_ids"].tolist() == [list(prompt.input_ids)]
    return check_logits(load_model(spec.folder, device="cpu", dtype="float32"), prompt, inputs)


def written(text: str, token: str, shown: Sequence[str], folder: Path) -> torch.Tensor:
    """The ids of the text, what stands for each picture in the place of its token."""
    begin, *rest = text.split(token)
    whole = begin + "".join(map("".join, zip(shown, rest, strict=True)))
    return torch.tensor([AutoTokenizer.from_pretrained(folder).encode(whole, add_special_tokens=False)])


def onevision(text: str, pictures: Pictures) -> dict[str, Any]:
    folder = tiny_folder("llava_onevision")
    seen = LlavaOnevisionImageProcessorPil.from_pretrained(folder)([pictures], return_tensors="pt")
    return {"input_ids": written(text, "<image>", ["<image>" * (81 + 1)] * 2, folder), **seen}


def internvl(text: str, pictures: Pictures) -> dict[str, Any]:
    own = Processor(tiny_folder("internvl"))
    tiles = own.image_processor(pictures, crop_to_patches=True, return_tensors="pt")
    shown = own.images(tiles["num_patches"].tolist())
    ids = written(text, "<IMG_CONTEXT>", shown, tiny_folder("internvl"))
    return {"input_ids": ids, "pixel_values": tiles["pixel_values"]}


def qwen(text: str, pictures: Pictures) -> dict[str, Any]:
    folder = tiny_folder("qwen2_5_vl")
    seen = Qwen2VLImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")
    shown = ["<|image_pad|>" * (int(grid.prod()) // 4) for grid in seen["image_grid_thw"]]
    ids = written(text, "<|image_pad|>", shown, folder)
    kinds = (ids == spec_of("qwen2_5_vl").image_token_id).int()
    return {"input_ids": ids, "mm_token_type_ids": kinds, **seen}


def smolvlm(text: str, pictures: Pictures) -> dict[str, Any]:
    """By the processor of Idefics3, which writes pictures as SmolVLM's; that one wants torchvision for its videos."""
    folder = tiny_folder("smolvlm")
    images = SmolVLMImageProcessorPil.from_pretrained(folder, do_image_splitting=False)
    own = Idefics3Processor(images, AutoTokenizer.from_pretrained(folder), image_seq_len=4)
    return dict(own(text=text, images=[pictures], add_special_tokens=False, return_tensors="pt"))


OWN = {"llava_onevision": onevision, "internvl": internvl, "qwen2_5_vl": qwen, "smolvlm": smolvlm}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_what_rows_have_in_common_ends_behind_the_last_medium(family: str) -> None:
    """Two questions about one clip among the same words: these and the clip are read once, and nothing is changed."""
    learner = learner_of(tiny_folder(family))
    spec, tokenizer = learner.lmm.spec, learner.lmm.tokenizer
    clip = noisy(spec, frames=4)
    asked = [Message("user", f"Here you see {what}", (clip,), (5,)) for what in ("what?", "which colours?")]
    told = [build_example([one, Message("assistant", "A red circle.")], spec, tokenizer) for one in asked]
    stems = [Stem(length=one.trained.index(True), ends=((one, len(one.trained)),)) for one in told]
    together, found = of_leaves(learner, plant(stems))
    apart, alone = of_leaves(learner, plant(stems, sharing=False))
    assert apart.length - together.length == common_length(*(one.prompt.input_ids for one in told))
    assert together.pieces[0].visuals
    assert not any(piece.visuals for piece in together.pieces[1:])
    for mine, theirs in zip(found, alone, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
