"""How much sooner a follow-up starts answering than the first question: 56 frames of the 60 s sample clip.

    python benchmarks/followup.py [--runs 5] [--frames 56] [--model FOLDER_OR_ID ...]

Waiting is the whole of `chat.ask` with one token to say: for the first question probe, decode, vision tower, reading
the prompt and that token; for the next one reading its text and that token. Nothing is cached from run to run. What a
model knows changes nothing here, so beside the models named (default: the built-in one, where its weights are) two
random ones are timed: one of the built-in's shape, one with the reference's 24x24 grid at 86M parameters, whose 56
frames fill 8064 tokens.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import report
import torch

sys.path.insert(0, str(report.ROOT))  # where the tests make their models

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import vidllm
from tests.tiny_models import VICUNA, make_tokenizer
from vidllm.ask import VideoModel
from vidllm.model.resolve import builtin_folder
from vidllm.options import AskOptions

SAMPLE = report.ROOT / "vidllm" / "builtin" / "sample" / "sample.mp4"
QUESTIONS = ("describe the video.", "and what colour is the object that moves?")


def main() -> None:
    """Time every model and write results/followup.md and .json."""
    parser = report.parser(__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--frames", type=int, default=56)
    parser.add_argument("--model", action="append", default=[])
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        timed = models(told.model, Path(folder))
        asked: AskOptions = {"frames": told.frames, "max_new_tokens": 1}
        rows = [row(name, model, {**asked, **look}, told.runs) for name, model, look in timed]
    notes = ("medians; ratio is the median of each run's own ratio; threads: " + str(torch.get_num_threads()),)
    report.write("followup", "Seconds to the first token: first question and follow-up", rows, notes)


def models(named: list[str], folder: Path) -> Iterator[tuple[str, VideoModel, AskOptions]]:
    """The models to time and how they look, loaded one at a time, without a feature cache."""
    if not named and (builtin_folder() / "config.json").is_file():
        named = ["built-in"]
    for name in named:
        yield name, vidllm.load(None if name == "built-in" else name, cache=None), {}
    small = random_llava(folder / "small", side=96, patch=8, vision=(192, 4), text=(256, 6), context=1024)
    yield "random, 6M, 12x12 grid", vidllm.load(small, cache=None), {"stride": 4}
    medium = random_llava(folder / "medium", side=336, patch=14, vision=(384, 6), text=(768, 10), context=4096)
    yield "random, 86M, 24x24 grid", vidllm.load(medium, cache=None), {"rope_max": 2.5}


def random_llava(
    folder: Path, *, side: int, patch: int, vision: tuple[int, int], text: tuple[int, int], context: int,
    vocabulary: int = 32000,
) -> Path:  # fmt: skip
    """A LLaVA of real classes with random weights; `vision` and `text` are (width, layers)."""
    tokenizer = make_tokenizer(["<image>"], bos="<s>", eos="</s>", pad="<pad>", template=VICUNA)
    tower = CLIPVisionConfig(
        hidden_size=vision[0], num_hidden_layers=vision[1], num_attention_heads=vision[0] // 64,
        intermediate_size=4 * vision[0], image_size=side, patch_size=patch,
    )  # fmt: skip
    language = LlamaConfig(
        vocab_size=vocabulary, hidden_size=text[0], num_hidden_layers=text[1], num_attention_heads=text[0] // 64,
        intermediate_size=8 * text[0] // 3, max_position_embeddings=context, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=tower, text_config=language, image_token_index=tokenizer.get_vocab()["<image>"]
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    mean = [0.48145466, 0.4578275, 0.40821073]
    (folder / "preprocessor_config.json").write_text(f'{{"image_mean": {mean}, "image_std": {mean}}}')
    return folder


def row(name: str, model: VideoModel, look: AskOptions, runs: int) -> report.Row:
    """One model's medians, after one run that warms the machine."""
    timed = [one_chat(model, look) for _ in range(runs + 1)][1:]
    first, second, tokens = zip(*timed, strict=True)
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    return {
        "model": name, "dtype": str(model.lmm.dtype)[6:], "frames": look["frames"], "tokens read": tokens[0],
        "first s": median(first), "follow-up s": median(second), "ratio": median(ratios), "worst ratio": min(ratios),
    }  # fmt: skip


def one_chat(model: VideoModel, look: AskOptions) -> tuple[float, float, int]:
    """Seconds until the first token of the first and of the second question, and the tokens the first one read."""
    chat = model.chat(SAMPLE, **look)
    waits = []
    for question in QUESTIONS:
        began = time.perf_counter()
        answer = chat.ask(question)
        waits.append(time.perf_counter() - began)
        if question == QUESTIONS[0]:
            tokens = answer.usage.video_tokens + answer.usage.text_tokens
    assert chat.past is not None
    assert chat.past.reused >= answer.usage.video_tokens, "the follow-up read the video again"
    return waits[0], waits[1], tokens


if __name__ == "__main__":
    main()
