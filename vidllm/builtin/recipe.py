"""The whole recipe of the built-in model: `python -m vidllm.builtin.recipe configs/builtin.yaml [key=value ...]`.

On two cores rather `torchrun --nproc_per_node 2 -m vidllm.builtin.recipe configs/builtin.yaml threads=1` (`together`).
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from vidllm.builtin import together
from vidllm.builtin.align import AlignStage, align
from vidllm.builtin.language import AnswerStage, LanguageShape, calibrate, held_out_batches, learn_to_answer, new_model
from vidllm.builtin.rows import COARSE_STRIDE, FINE_STRIDE, UNIFORM_FRAMES, UNIFORM_STRIDE
from vidllm.builtin.sharpen import SharpenStage, sharpen
from vidllm.builtin.stills import IMAGE_SIDE
from vidllm.builtin.vision import MEAN, STD, VisionStage, train_vision
from vidllm.builtin.words import train_tokenizer
from vidllm.config import load_config
from vidllm.errors import ConfigError
from vidllm.train.saves import Identity, differences

LAYOUT = {
    "fit": "stretch",
    "stamp": "interleaved",
    "stamp_decimals": 0,
    "frame_text": "{time}{image}",
    "fine_stride": FINE_STRIDE,
    "coarse_stride": COARSE_STRIDE,
    "uniform_stride": UNIFORM_STRIDE,
    "default_frames": UNIFORM_FRAMES,
    "pool_before_projector": True,
    "dialogue": False,
}
"""vidllm.json of the shipped folder: the layout the model was trained under."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of the whole recipe; see each stage for its own."""

    folder: str = "runs/builtin"
    threads: int = 2
    """Of torch, where the recipe is a program of its own."""
    tokenizer_clips: int = 1500
    """Clips whose questions and answers the tokenizer is trained on."""
    vision: VisionStage
    language: LanguageShape = field(default_factory=LanguageShape)
    align: AlignStage
    images: AnswerStage
    sharpen: SharpenStage
    video: AnswerStage
    again: AnswerStage
    """Video once more. What ships is the mean of the weights before and after: see `mean`."""


STAGES = {
    "tokenizer": ("tokenizer_clips",), "vision": ("vision",), "aligned": ("language", "align"), "images": ("images",),
    "sharp": ("sharpen",), "video": ("video",), "again": ("again",),
}  # fmt: skip
"""The folders in the order they are made, each from those before it, and the settings that shape it besides."""
MADE_BY = "recipe.json"
"""In each of them: the settings it was made by, those of the folders before it included."""


def run(recipe: Recipe) -> Path:
    """Run what is not there yet; the finished model's folder, beside it `image`, that of the image model.

    A stage that was stopped begins anew, and learns the same again where `steps` and not `minutes` end it. Where
    `torchrun` started several processes the first does the early stages, and all of them learn to answer. Raises
    ConfigError where a folder was made by other settings.
    """
    folder = Path(recipe.folder)
    _check_made(recipe, folder)
    together.meet()
    if together.part() == 0:
        _before_answers(recipe, folder)
    together.wait()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    answer = partial(learn_to_answer, tokenizer=tokenizer)
    _taught(recipe, folder / "images", folder / "aligned", lambda model: answer(recipe.images, model))
    _taught(recipe, folder / "sharp", folder / "images", partial(sharpen, recipe.sharpen))
    _taught(recipe, folder / "video", folder / "sharp", lambda model: answer(recipe.video, model))
    _taught(recipe, folder / "again", folder / "video", lambda model: answer(recipe.again, model))
    if together.part() == 0:
        export(_read(folder / "images"), tokenizer, folder / "image")
        export(mean(_read(folder / "video"), _read(folder / "again")), tokenizer, folder / "weights")
    together.leave()
    return folder / "weights"


def made_by(recipe: Recipe, name: str) -> Identity:
    """The settings that shape the folder `name`, as they are said on a command line."""
    said: dict[str, Any] = {}
    for stage in list(STAGES)[: list(STAGES).index(name) + 1]:
        for key in STAGES[stage]:
            value = getattr(recipe, key)
            said |= {f"{key}.{part}": of for part, of in vars(value).items()} if is_dataclass(value) else {key: value}
    return said


def _check_made(recipe: Recipe, folder: Path) -> None:
    """Raise ConfigError where what is there is not what this recipe makes; one that does not tell is believed."""
    for name in STAGES:
        if (told := folder / name / MADE_BY).exists():
            kept = json.loads(told.read_text(encoding="utf-8"))
            if differ := differences(kept, made_by(recipe, name)):
                raise ConfigError(
                    f"{folder / name} was made with {'; '.join(differ)}: put that back to go on, or give this run "
                    "another `folder`"
                )


def _taught(
    recipe: Recipe, target: Path, before: Path, teach: Callable[[LlavaForConditionalGeneration], None]
) -> None:
    """All processes teach the model in `before`, and the first saves it as `target`, unless it is there."""
    if target.exists():
        return
    model = _read(before)
    teach(model)
    if together.part() == 0:
        _save(recipe, model, target)
    together.wait()


def _save(recipe: Recipe, made: PreTrainedModel | PreTrainedTokenizerFast, target: Path) -> None:
    """A folder that has its name only once it is whole: what is there is not made again."""
    part = target.with_name(target.name + ".part")
    made.save_pretrained(part)
    (part / MADE_BY).write_text(json.dumps(made_by(recipe, target.name), indent=1) + "\n", encoding="utf-8")
    part.rename(target)


def _read(folder: Path) -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


@torch.no_grad()
def mean(
    model: LlavaForConditionalGeneration, other: LlavaForConditionalGeneration
) -> LlavaForConditionalGeneration:
    """`model` with every weight halfway to `other`'s, which was taught on from it: what chance left in either is
    halved, what both have learnt stays (model soups, arXiv 2203.05482).
    """
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        mine.lerp_(theirs, 0.5)
    return model


def _before_answers(recipe: Recipe, folder: Path) -> None:
    """Tokenizer, vision tower, and a model whose projector speaks the words' embeddings."""
    if not (folder / "tokenizer").exists():
        _save(recipe, train_tokenizer(recipe.tokenizer_clips), folder / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    if not (folder / "vision").exists():
        _save(recipe, train_vision(recipe.vision), folder / "vision")
    if not (folder / "aligned").exists():
        model = new_model(recipe.language, CLIPVisionModel.from_pretrained(folder / "vision"), tokenizer)
        calibrate(model, held_out_batches(tokenizer, clips=6)[0].frames)
        align(recipe.align, model, tokenizer)
        _save(recipe, model, folder / "aligned")


def export(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, target: Path) -> None:
    """A folder that `vidllm -m`, and transformers itself, can load: bfloat16 weights, tokenizer, processor, layout.

    What was in `target` before is gone; `model` itself becomes bfloat16.
    """
    if target.exists():
        shutil.rmtree(target)
    configs: list[Any] = [model.config, model.config.vision_config, model.config.text_config]
    for config in configs:
        config._name_or_path = ""  # where the parts lay on the machine that trained them
    model.bfloat16().save_pretrained(target)
    tokenizer.save_pretrained(target)
    size = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    processor = CLIPImageProcessorPil(
        size=size, crop_size=size, do_center_crop=False, image_mean=[MEAN] * 3, image_std=[STD] * 3
    )
    processor.save_pretrained(target)
    (target / "vidllm.json").write_text(json.dumps(LAYOUT, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m vidllm.builtin.recipe", description=__doc__)
    parser.add_argument("config", type=Path, help="such as configs/builtin.yaml")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    told = parser.parse_args()
    try:
        recipe = load_config(Recipe, told.config, told.overrides)
        torch.set_num_threads(recipe.threads)  # here: `run` may be one of many things its process does
        print(run(recipe))
    except ConfigError as error:
        sys.exit(f"recipe: {error}")


if __name__ == "__main__":
    main()
