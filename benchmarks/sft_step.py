"""Supervised tuning beside transformers' Trainer: the same rows, frames, trained tokens, weights and numbers (float32).

    python benchmarks/sft_step.py                    a mixture of texts, pictures and clips of different lengths
    python benchmarks/sft_step.py --questions 1      no two rows about the same clip
    python benchmarks/sft_step.py --rows 16          a first look

Rows are laid out once, before the clock starts: token ids, what is learnt, and pixels lie in memory for both. Frames
keep all their tokens (stride 1), as transformers' LLaVA has no other way, so that both read exactly the same ids. The
Trainer gets its own padding collator and the class that transformers has for this model; its best batch size and its
grouping by length are looked for. Both leave the vision tower as it is; the projector and the language model learn.
Every contestant runs in a process of its own, on one thread: processor seconds of training only (other work on the
machine then changes little), and the peak memory of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
import torch
from torch import Tensor

from vidllm.model.resolve import builtin_folder
from vidllm.prompt import Example
from vidllm.train.sft import Lesson, SftConfig, SftTask, read_lesson
from vidllm.world.make import make_clips

SEED = 81_000
"""Of the first world clip."""
CONTEXT = 4096
BATCH = 16
"""Rows to an optimizer step."""
TOKENS = 4096
"""Most tokens that go through our model together."""
RATE = 1e-4
FRAMES_PER_SECOND = 0.25
CONTESTANTS: dict[str, dict[str, Any]] = {
    "vidllm": {},
    "vidllm, frames encoded before": {"feature_cache": True},
    "vidllm, no packing, no sharing": {"packing": False, "sharing": False},
    "Trainer, 1 row at a time": {"rows": 1},
    "Trainer, 2 rows at a time": {"rows": 2},
    "Trainer, 4 rows at a time": {"rows": 4},
    "Trainer, 2 rows at a time, grouped by length": {"rows": 2, "grouped": True},
}


def write_rows(folder: Path, count: int, questions: int) -> Path:
    """A quarter of the rows texts, a quarter about stills, half about clips of 10 to 60 s, `questions` about each."""
    lines: list[str] = []
    for number, path in enumerate(make_clips(-(-count // questions), SEED, folder)):
        kind = ("text", "image", "video", "video")[number % 4]
        shown = {"text": {}, "image": {"image": f"{path.stem}.png"}, "video": {"video": path.name}}[kind]
        if kind == "image":
            write_still(path)
        for asked in json.loads(path.with_suffix(".json").read_text())["questions"][:questions]:
            turns = [{"from": "human", "value": asked["text"]}, {"from": "gpt", "value": asked["answer"]}]
            lines.append(json.dumps({"id": f"{path.stem}-{len(lines)}", "conversations": turns, **shown}))
    target = folder / "rows.jsonl"
    target.write_text("\n".join(lines[:count]) + "\n")
    return target


def write_still(path: Path) -> None:
    """The clip's first frame, as a picture beside it."""
    import av
    from PIL import Image

    with av.open(str(path)) as clip:
        Image.fromarray(next(clip.decode(video=0)).to_ndarray(format="rgb24")).save(path.with_suffix(".png"))


def longer_model(folder: Path) -> Path:
    """The image model that ships, told that its context is longer: rows are for the clock, not for its wits."""
    shutil.copytree(builtin_folder("built-in-images"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = CONTEXT
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def config_of(folder: Path, out: str, **more: Any) -> SftConfig:
    """How both see the rows, and how we learn from them."""
    from vidllm.config import from_mapping

    words = {
        "model": str(folder / "model"), "data": str(folder / "clips" / "rows.jsonl"), "out": str(folder / out),
        "fps": FRAMES_PER_SECOND, "stride": 1, "policy": "uniform", "batch": BATCH, "tokens": TOKENS, "workers": 0,
        "parts": {"projector": RATE, "language_model": RATE}, "feature_cache": False, "device": "cpu",
        "cache_folder": str(folder / "cache"), "optim": {"schedule": "constant", "warmup": 0.0},
    }  # fmt: skip
    return from_mapping(SftConfig, {**words, **more}, where="sft_step")


@dataclass(frozen=True, eq=False)
class Kept(Lesson):
    """A lesson whose rows lie ready in memory."""

    examples: Sequence[Example] = ()

    def load(self, config: SftConfig, numbers: Sequence[int], cache: Any = None) -> list[Example]:
        """The rows of these numbers."""
        return [self.examples[number] for number in numbers]


class Quiet:
    """A watch that says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def begin(self, done: int, total: int) -> None:
        """Nothing."""

    def step(self, record: Any) -> None:
        """Nothing."""


def learn_ours(folder: Path, examples: Sequence[Example], said: dict[str, Any]) -> dict[str, Any]:
    """Our loop, its checkpoint at the end included."""
    from vidllm.train.loop import train
    from vidllm.train.stage import load_learner, open_cache

    config = config_of(folder, "ours", **said)
    lesson = read_lesson(config, print, remember=False)
    learner = load_learner(config, lesson.base)
    cache = open_cache(config, learner)
    kept = Kept(lesson.base, lesson.checked, lesson.together, examples)
    task = SftTask(config, kept, learner, cache)
    if cache is not None:  # an epoch that nobody times
        for step in task.steps(0):
            for micro in step:
                cache.furnish(task.prepare(micro).batch, learner.features)
    loss = first_loss(task, learner)
    began = time.process_time()
    train(task, learner, learner.groups(), config, config.out, Quiet())
    return {"seconds": time.process_time() - began, "loss": loss}


def first_loss(task: SftTask, learner: Any) -> float:
    """Mean over the trained tokens of rows 0 to 3, before anything is learnt."""
    with torch.no_grad():
        part = task.loss(learner, task.prepare(range(4)))
    return part.loss.item() / part.weight


def pad(examples: Sequence[Example], spec: Any) -> dict[str, Tensor]:
    """What a collator makes: ids padded to the longest, -100 where nothing is learnt, the pixels of all frames."""
    from torch.nn.utils.rnn import pad_sequence

    from vidllm.model.lmm import normalised

    ids = [torch.tensor(example.prompt.input_ids) for example in examples]
    learnt = [torch.tensor(example.trained) for example in examples]
    labels = [torch.where(which, row, -100) for row, which in zip(ids, learnt, strict=True)]
    made = {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=0),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }
    pixels = [torch.from_numpy(visual.pixels) for example in examples for visual in example.prompt.visuals]
    if pixels:
        made["pixel_values"] = normalised(torch.cat(pixels), spec, torch.zeros(())).permute(0, 3, 1, 2)
    return made


def learn_theirs(folder: Path, examples: Sequence[Example], said: dict[str, Any]) -> dict[str, Any]:
    """transformers' class under transformers' Trainer."""
    from transformers import LlavaForConditionalGeneration, Trainer, TrainingArguments

    spec = examples[0].prompt.spec
    model = LlavaForConditionalGeneration.from_pretrained(folder / "model", dtype=torch.float32)
    model.model.vision_tower.requires_grad_(False)
    with torch.no_grad():
        loss = model(**pad(examples[:4], spec)).loss.item()
    arguments = TrainingArguments(
        output_dir=str(folder / "theirs"), per_device_train_batch_size=said["rows"],
        gradient_accumulation_steps=BATCH // said["rows"], num_train_epochs=1, learning_rate=RATE, max_grad_norm=1.0,
        lr_scheduler_type="constant", weight_decay=0.0, report_to=[], save_strategy="no", logging_strategy="no",
        use_cpu=True, remove_unused_columns=False, dataloader_num_workers=0, dataloader_pin_memory=False,
        disable_tqdm=True, train_sampling_strategy="group_by_length" if said.get("grouped") else "random",
    )  # fmt: skip

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return pad([row["example"] for row in rows], spec)

    trainer = Trainer(model, args=arguments, train_dataset=Rows(examples), data_collator=collate)
    began = time.process_time()
    trainer.train()
    return {"seconds": time.process_time() - began, "loss": loss}


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Examples for a Trainer, which takes a row's length from its `input_ids`."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, number: int) -> dict[str, Any]:
        example = self._examples[number]
        return {"input_ids": example.prompt.input_ids, "example": example}


def compete(folder: Path, name: str) -> None:
    """One contestant in this process; its figures on stdout."""
    torch.set_num_threads(1)
    examples = pickle.loads((folder / "examples.pickle").read_bytes())
    said = CONTESTANTS[name]
    told = (learn_theirs if "rows" in said else learn_ours)(folder, examples, said)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("RESULT " + json.dumps({**told, "peak": peak}))


def lay_out(folder: Path) -> list[Example]:
    """Every row opened once; kept for the contestants."""
    config = config_of(folder, "none")
    lesson = read_lesson(config, print, remember=False)
    examples = lesson.load(config, range(len(lesson.checked.rows)))
    (folder / "examples.pickle").write_bytes(pickle.dumps(examples))
    return examples


def run(folder: Path, name: str) -> dict[str, Any]:
    """A contestant's figures."""
    shutil.rmtree(folder / "ours", ignore_errors=True)
    done = subprocess.run(
        [sys.executable, __file__, "--work", name, "--folder", str(folder)], cwd=report.ROOT, text=True,
        capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(report.ROOT)},
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    print(f"{name}: {found}", flush=True)
    return found


def main() -> None:
    """The table."""
    arguments = report.parser(__doc__)
    arguments.add_argument("--rows", type=int, default=64)
    arguments.add_argument("--questions", type=int, default=3, help="rows about each clip, still or script")
    arguments.add_argument("--work", help=argparse.SUPPRESS)
    arguments.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    said = arguments.parse_args()
    if said.work:
        return compete(said.folder, said.work)
    with tempfile.TemporaryDirectory(prefix="sft_step.") as place:
        folder = Path(place)
        longer_model(folder / "model")
        write_rows(folder / "clips", said.rows, said.questions)
        examples = lay_out(folder)
        found = {contestant: run(folder, contestant) for contestant in CONTESTANTS}
    lengths = sorted(example.prompt.length for example in examples)
    theirs = min(told["seconds"] for contestant, told in found.items() if contestant.startswith("Trainer"))
    table = [
        {"": contestant, "rows a processor second": len(examples) / told["seconds"], "times the best Trainer":
         theirs / told["seconds"], "peak memory, GiB": told["peak"], "loss before": f"{told['loss']:.6f}"}
        for contestant, told in found.items()
    ]  # fmt: skip
    notes = [
        f"{len(lengths)} rows of {lengths[0]} to {lengths[-1]} tokens, median {lengths[len(lengths) // 2]}; "
        f"{said.questions} about each clip; {BATCH} rows to a step, one thread, float32, vision tower frozen",
        "loss before: of the first four rows, before anything is learnt: both compute the same thing",
    ]
    name = "sft_step" if said.questions == 3 else f"sft_step_{said.questions}"
    report.write(name, "Supervised tuning beside transformers' Trainer", table, notes)


if __name__ == "__main__":
    main()
