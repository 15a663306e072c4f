"""DPO on video beside TRL's DPOTrainer: pairs a second, first epoch and warm, peak memory, and the same losses.

    python -m venv runs/trl && runs/trl/bin/pip install -e ".[bench]" trl datasets
    runs/trl/bin/python benchmarks/dpo_step.py              all cases, some minutes on two cores
    runs/trl/bin/python benchmarks/dpo_step.py --cases small-600 --dtype bfloat16
    runs/trl/bin/python benchmarks/dpo_step.py --cases tiny-600        a quick look
    runs/trl/bin/python benchmarks/dpo_step.py --cases small-4000 --pairs 10 --no-speed       twenty steps of losses

TRL takes no video, so it is given the frames as images, already cut out and scaled; vidllm opens the mp4. Everything
else is the same on both sides: weights (random, of the real LLaVA classes), prompts id by id, frames pixel by pixel,
tower and projector frozen, one pair to a step, gradient checkpointing, dtype, SDPA attention, AdamW, its schedule and
clipping, order of the pairs. Each side runs in a process of its own, twice over its pairs: the first epoch is cold
(vidllm's reference pass before the first step is counted in it), the second is what every later one costs. Memory is
the process's peak; `above start` leaves out what torch and the libraries take before a weight is read.

On a CPU TRL multiplies every position with the output head; on a GPU its kernels leave the prompt out, as vidllm does
on both.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
import report

from vidllm.world.make import make_clips

if TYPE_CHECKING:
    from vidllm.train.contest import Contest
    from vidllm.train.dpo import DpoConfig

Dtype = Literal["float32", "bfloat16"]
SCRATCH = report.RUNS / "dpo_step"
SEED = 5_000
"""Of the first world clip."""
SIDE, PATCH = 168, 14
"""Pixels; 12 x 12 = 144 tokens a frame."""
EPOCHS = 2
RATE = 5e-6
BETA = 0.1
ANSWER_WORDS = 14
WORDS = ("red", "blue", "green", "circle", "square", "star", "moves", "grows", "right", "left", "then", "while", "and")


@dataclass(frozen=True)
class Case:
    """A model, how many frames a prompt shows, and how many pairs an epoch has."""

    name: str
    model: str
    frames: int
    pairs: int


CASES = (
    Case("small-600", "small", 4, 10),
    Case("small-2000", "small", 13, 4),
    Case("small-4000", "small", 27, 2),
    Case("large-2000", "large", 13, 2),
    Case("tiny-600", "tiny", 4, 10),
)
"""Twenty steps of the first are the curve that is compared. The last is for a quick look only."""
MODELS: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "small": ((384, 12), (256, 6)),
    "large": ((384, 12), (640, 8)),
    "tiny": ((128, 3), (128, 3)),
}
"""(width, layers) of the CLIP tower and of the Llama; 32,000 tokens in the vocabulary."""
SPEEDS = frozenset({"TRL pairs/s", "first epoch", "times", "TRL warm", "warm", "times warm"})
"""Columns that mean nothing where other work takes turns with one side and not with the other."""


@dataclass(frozen=True)
class Ran:
    """What one side did."""

    first_seconds: float
    warm_seconds: float
    start_mib: float
    peak_mib: float
    losses: list[float]
    logps: list[float]
    """Of the chosen answers, step by step."""
    prompt_tokens: int = 0


# ------------------------------------------------------------------------------------------------- what both are given


def make_case(case: Case, dtype: Dtype, device: str | None) -> None:
    """Model, clips and rows of a case, and for TRL its frames and texts in the order in which vidllm takes them."""
    folder = SCRATCH / case.name
    model = SCRATCH / case.model
    if not (model / "vidllm.json").is_file():
        make_model(model, *MODELS[case.model])
    clips = make_clips(case.pairs, SEED, SCRATCH / "clips")
    rows = [make_row(number, clip) for number, clip in enumerate(clips)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(case, dtype, device)
    contest = read(config)
    told = []
    for epoch in range(EPOCHS):
        for step in contest.steps(config, epoch):
            told += [trl_row(contest, config, number, folder / "frames") for micro in step for number in micro]
    (folder / "trl.json").write_text(json.dumps(told))


def make_model(folder: Path, vision: tuple[int, int], text: tuple[int, int]) -> None:
    """A random LLaVA that both sides load, and a processor for TRL; vidllm shows frames whole, without time stamps."""
    from followup import random_llava
    from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaProcessor

    from tests.tiny_models import CLIP_MEAN, CLIP_STD, VICUNA

    random_llava(folder, side=SIDE, patch=PATCH, vision=vision, text=text, context=8192)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
    )  # fmt: skip
    LlavaProcessor(  # type: ignore[no-untyped-call]
        images, AutoTokenizer.from_pretrained(folder), patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=VICUNA,
    ).save_pretrained(folder)  # fmt: skip
    (folder / "preprocessor_config.json").unlink()  # it has other figures, and TRL does not look there
    (folder / "vidllm.json").write_text('{"stamp": "none", "fit": "pad"}\n')


def make_row(number: int, clip: Path) -> dict[str, str]:
    """Answers of words that mean nothing: the model is random, too."""
    rng = random.Random(number)
    chosen, rejected = (" ".join(rng.choices(WORDS, k=ANSWER_WORDS + extra)) + "." for extra in (0, 6))
    return {"id": str(number), "video": str(clip), "prompt": "describe the video.", "chosen": chosen,
            "rejected": rejected}  # fmt: skip


def config_of(case: Case, dtype: Dtype, device: str | None) -> DpoConfig:
    """One pair to a step, everything that vidllm has switched on."""
    from vidllm.train.dpo import DpoConfig
    from vidllm.train.optim import OptimOptions
    from vidllm.train.parts import Parts

    folder = SCRATCH / case.name
    return DpoConfig(
        model=str(SCRATCH / case.model), data=folder / "pairs.jsonl", out=folder / "out", frames=case.frames, stride=1,
        policy="uniform", subtitles=False, batch=1, tokens=1, epochs=EPOCHS, parts=Parts(language_model=RATE),
        dtype=dtype, device=device, gradient_checkpointing=True, beta=BETA, checkpoint_every=10**6,
        cache_folder=folder / "cache", optim=OptimOptions(schedule="linear", warmup=0.0, clip=1.0),
    )  # fmt: skip


def read(config: DpoConfig) -> Contest:
    """The pairs, checked."""
    from vidllm.train.contest import read_contest

    return read_contest(config, lambda text: print(text, file=sys.stderr))


def trl_row(contest: Contest, config: DpoConfig, number: int, folder: Path) -> dict[str, Any]:
    """The pair as TRL takes it: pictures, and texts that its tokenizer turns into the very same ids."""
    from PIL import Image

    from vidllm.train.contest import load_pair

    tokenizer = contest.base.tokenizer
    pair = load_pair(contest.rows[number], contest.base.spec, tokenizer, config.plan)
    folder.mkdir(exist_ok=True)
    images = []
    for place, visual in enumerate(pair.visuals):
        path = folder / f"{number}-{place}.png"
        Image.fromarray(visual.pixels[0]).save(path)
        images.append(str(path))
    ids, image = list(pair.chosen.prompt.input_ids), contest.base.spec.image_token_id
    first = ids.index(image)
    before = tokenizer.decode(ids[:first], skip_special_tokens=False)
    behind = tokenizer.decode([t for t in ids[first : pair.start] if t != image], skip_special_tokens=False)
    texts = {"prompt": before + "<image>" * len(images) + behind}
    read = tokenizer.encode(texts["prompt"]).ids
    counts = (pair.visuals[0].tokens if token == image else 1 for token in read)
    again = [token for token, count in zip(read, counts, strict=True) for _ in range(count)]
    assert again == ids[: pair.start], "TRL would read another prompt"
    for name, example, end in zip(("chosen", "rejected"), (pair.chosen, pair.rejected), pair.ends, strict=True):
        answer = list(example.prompt.input_ids[pair.start : end])
        texts[name] = tokenizer.decode(answer, skip_special_tokens=False)
        assert tokenizer.encode(texts[name], add_special_tokens=False).ids == answer, "TRL would read other ids"
    return {"images": images, **texts, "tokens": pair.start}


# ---------------------------------------------------------------------------------------------------------- both sides


def run_vidllm(case: Case, dtype: Dtype, device: str | None) -> Ran:
    """Two epochs through `vidllm dpo`, all caches empty at first."""
    from vidllm.train import dpo  # before its memory is looked at: what both sides import is no part of it
    from vidllm.train.loop import train

    start = memory_mib()
    for name in ("out", "cache"):
        shutil.rmtree(SCRATCH / case.name / name, ignore_errors=True)
    config = config_of(case, dtype, device)
    contest = read(config)
    task = dpo.make_task(config, contest)
    watch = Stopwatch()
    dpo.settle_reference(config, contest, task, watch.say)
    train(task, task.learner, task.learner.groups(), config, config.out, watch)
    return watch.ran(case, start)


class Stopwatch:
    """A `Watch` that notes when each step ended."""

    def __init__(self) -> None:
        self.ends = [time.perf_counter()]
        self.losses: list[float] = []
        self.logps: list[float] = []

    def say(self, text: str) -> None:
        """For a log."""
        print(text, file=sys.stderr)

    def begin(self, done: int, total: int) -> None:
        """Nothing."""

    def step(self, record: Any) -> None:
        """A step ended."""
        self.ends.append(time.perf_counter())
        self.losses.append(record["loss"])
        self.logps.append(record["logps/chosen"])

    def ran(self, case: Case, start: float, prompt: int = 0) -> Ran:
        """The figures of two epochs."""
        began, middle, end = self.ends[0], self.ends[case.pairs], self.ends[-1]
        return Ran(middle - began, end - middle, start, peak_mib(), self.losses, self.logps, prompt)


def run_trl(case: Case, dtype: Dtype, device: str | None) -> Ran:
    """The same pairs in the same order through TRL's DPOTrainer, a dataset of both epochs one after the other."""
    import torch
    from datasets import Dataset, Image, List
    from transformers import AutoProcessor, LlavaForConditionalGeneration, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    start = memory_mib()
    folder = SCRATCH / case.name
    rows = json.loads((folder / "trl.json").read_text())
    prompt = rows[0]["tokens"]
    data = Dataset.from_list([{k: v for k, v in row.items() if k != "tokens"} for row in rows])
    data = data.cast_column("images", List(Image()))
    model = LlavaForConditionalGeneration.from_pretrained(SCRATCH / case.model, dtype=torch.float32)
    model.model.vision_tower.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(False)
    arguments = DPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=1, num_train_epochs=1, learning_rate=RATE,
        lr_scheduler_type="linear", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, beta=BETA, max_length=None,
        bf16=dtype == "bfloat16", gradient_checkpointing=True, logging_steps=1, save_strategy="no", report_to="none",
        train_sampling_strategy="sequential", use_cpu=device == "cpu" or not torch.cuda.is_available(),
        disable_tqdm=True, dataloader_pin_memory=False, optim="adamw_torch", remove_unused_columns=False,
    )  # fmt: skip
    watch = Stopwatch()

    class Told(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watch.ends = [time.perf_counter()]

        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.ends.append(time.perf_counter())

        def on_log(self, *_: Any, **told: Any) -> None:
            if "loss" in (logs := told["logs"]):
                watch.losses.append(float(logs["loss"]))
                watch.logps.append(float(logs["logps/chosen"]))

    processor = AutoProcessor.from_pretrained(SCRATCH / case.model)  # type: ignore[no-untyped-call]
    DPOTrainer(model, args=arguments, train_dataset=data, processing_class=processor, callbacks=[Told()]).train()
    return watch.ran(case, start, prompt)


def memory_mib() -> float:
    """What this process holds now."""
    return psutil.Process().memory_info().rss / 2**20


def peak_mib() -> float:
    """The most it ever held; on a GPU the most that was allocated there."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


SIDES: dict[str, Callable[[Case, Dtype, str | None], Ran]] = {"vidllm": run_vidllm, "TRL": run_trl}


# ----------------------------------------------------------------------------------------------------------- the table


def row_of(case: Case, ours: Ran, theirs: Ran) -> report.Row:
    """One line of the table."""
    first, warm = case.pairs / ours.first_seconds, case.pairs / ours.warm_seconds
    trl_first, trl_warm = case.pairs / theirs.first_seconds, case.pairs / theirs.warm_seconds
    apart = max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True))
    return {
        "model": case.model, "prompt tokens": theirs.prompt_tokens, "TRL pairs/s": trl_first, "first epoch": first,
        "times": first / trl_first, "TRL warm": trl_warm, "warm": warm, "times warm": warm / trl_warm,
        "TRL peak MiB": round(theirs.peak_mib), "peak MiB": round(ours.peak_mib),
        "share": ours.peak_mib / theirs.peak_mib,
        "share above start": (ours.peak_mib - ours.start_mib) / (theirs.peak_mib - theirs.start_mib),
        "steps": len(ours.losses), "losses differ by": f"{apart:.1e}",
        "first logp differs by": f"{abs(ours.logps[0] / theirs.logps[0] - 1):.1e}",
        "loss moved by": f"{max(ours.losses) - min(ours.losses):.2f}",
    }  # fmt: skip


def work(side: str, case: Case, dtype: Dtype, device: str | None) -> Ran | None:
    """One side of one case in a process of its own; its last line is what it did."""
    command = [sys.executable, __file__, "--work", side, "--cases", case.name, "--pairs", str(case.pairs),
               "--dtype", dtype]  # fmt: skip
    command += ["--device", device] if device else []
    scratch = {"VIDLLM_CACHE": str(SCRATCH / "cache"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env={**os.environ, **scratch}, stdout=subprocess.PIPE, text=True, check=True)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "null"
    return Ran(**json.loads(last)) if side in SIDES else None


def main() -> None:
    """Every case, side by side."""
    parser = report.parser(__doc__)
    parser.add_argument("--cases", nargs="+", default=[case.name for case in CASES[:-1]], help="some of them only")
    parser.add_argument("--pairs", type=int, help="pairs of an epoch, fewer for a first look")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None)
    parser.add_argument("--name", default="dpo_step", help="results/NAME.md and .json")
    parser.add_argument("--no-speed", action="store_true", help="losses and memory only: the machine is busy")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    wishes = parser.parse_args()
    cases = [replace(case, pairs=wishes.pairs or case.pairs) for case in CASES if case.name in wishes.cases]
    if wishes.work == "make":
        return make_case(cases[0], wishes.dtype, wishes.device)
    if wishes.work:
        return print(json.dumps(asdict(SIDES[wishes.work](cases[0], wishes.dtype, wishes.device))))
    if find_spec("trl") is None or find_spec("datasets") is None:
        raise SystemExit('this compares with TRL: pip install -e ".[bench]" trl datasets, in an environment of its own')
    rows = []
    for case in cases:
        work("make", case, wishes.dtype, wishes.device)
        theirs, ours = (work(side, case, wishes.dtype, wishes.device) for side in ("TRL", "vidllm"))
        assert ours is not None
        assert theirs is not None
        rows.append(row_of(case, ours, theirs))
        print(report.table(rows), file=sys.stderr)
    if wishes.no_speed:
        rows = [{column: cell for column, cell in row.items() if column not in SPEEDS} for row in rows]
    write(rows, wishes.dtype, wishes.name)


def write(rows: list[report.Row], dtype: Dtype, name: str) -> None:
    """results/NAME.md and .json."""
    report.PACKAGES = (*report.PACKAGES, "trl", "accelerate")  # type: ignore[assignment]
    notes = [
        f"{dtype}; full fine-tuning of the language model, tower and projector frozen, gradient checkpointing on both "
        "sides; one pair a step, answers of some 50 tokens; two epochs, so that the second is warm.",
        "TRL is given frames as PNG files of the right size; vidllm opens the mp4. vidllm's first epoch includes the "
        "pass of the reference over all pairs.",
        "TRL keeps the reference as a second model, and encodes every frame four times a pair.",
    ]
    report.write(name, "A DPO step on video beside TRL's DPOTrainer", rows, notes)


if __name__ == "__main__":
    main()
