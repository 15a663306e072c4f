"""The published tables of LLaVA-NeXT-Video re-told on the scripted world, with this project's own commands.

    python benchmarks/recipe.py                         all tables, three seeds (hours on two cores)
    python benchmarks/recipe.py --clips 60 --test 20 --seeds 1 --steps 40 --tables road        a first look
    python benchmarks/recipe.py --folder runs/recipe    keep clips, rows and models; what is there is not made again

Every stage is a command that anybody can type: `vidllm world make`, `vidllm instruct`, `vidllm sft`, `vidllm feedback
--judge oracle`, `vidllm dpo`, from the image model that ships (built-in-images). Tables:

road        one frame / 16 frames, zero-shot / 52 frames under RoPE x2, zero-shot (56 leave no room for their stamps) /
            + video SFT / + DPO
tokens      tokens a frame x frames within 1k, 2k and 4k, of the first seed's model after SFT
strategies  SFT on videos alone, pictures and videos in separate batches, in mixed batches
account     the video model that ships, and after configs/builtin_dpo.yaml: an adapter taught on its own accounts of
            whole clips, each without what never happened against itself

Scores are means over questions of unseen clips in percent: QA over what, colour, count, where and exists at named
moments, `when` within one sampling interval, descriptions by the F1 of their events, how many events they tell, and how
many events and objects that never were. Over several seeds the mean stands with its 95 % interval (Student's t), over
one without. All looks are uniform, so that the number of frames is what the table says; but `account` looks as asking
does.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

import report
from report import ROOT
from world import Asked, Tally, chosen

import vidllm
from vidllm.feedback.oracle import hold_against, script_of

if TYPE_CHECKING:
    from vidllm.answer import Answer
    from vidllm.ask import VideoModel

TRAIN_SEED, TEST_SEED = 300_000, 700_000
"""Of the first clip of each kind; `vidllm world make` draws every seed from one stream, and these never meet."""
QA = ("what", "colour", "count", "where", "exists")
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for a two-sided 95 % interval, by the number of seeds."""
IMAGES = "built-in-images"
LOOKED = ("frames=16", "stride=2", "policy=uniform")
"""How every stage looks at clips: as the models are asked."""
STRATEGIES = ("video_only", "separate", "mixed")


@dataclass(frozen=True)
class Look:
    """What a model is shown of a clip: pooling stride, frames, RoPE factor at most. Without a number of frames, what
    the question and the model's own layout call for.
    """

    frames: int | None = None
    stride: int = 2
    rope_max: float = 1.0

    def asker(self, model: VideoModel, path: Path) -> Callable[[str], Answer]:
        """Questions about one look at the clip, or each about a look of its own."""
        if self.frames is None:
            return partial(model.ask, path, max_new_tokens=96)
        chat = model.chat(path, frames=self.frames, stride=self.stride, rope_max=self.rope_max, policy="uniform",
                          max_new_tokens=96)  # fmt: skip
        return chat.ask

    @property
    def name(self) -> str:
        """ "6x6 x 16" """
        if self.frames is None:
            return "as asked"
        side = 12 // self.stride
        return f"{side}x{side} x {self.frames}"


ONE, SIXTEEN, MANY = Look(1), Look(16), Look(52, rope_max=2.0)
LOOKS = {
    "1k": (Look(4, 1), Look(16, 2), Look(36, 3), Look(64, 4)),
    "2k": (Look(8, 1, 2), Look(32, 2, 2), Look(48, 2, 2), Look(80, 3, 2)),
    "4k": (Look(16, 1, 4), Look(64, 2, 4), Look(100, 2, 4), Look(160, 3, 4)),
}
"""Within the model's context, twice and four times that."""


@dataclass
class Score:
    """What one model scores under one look: percent, but events and objects told, which are counts a description."""

    qa: float = 0.0
    when: float = 0.0
    f1: float = 0.0
    told: float = 0.0
    events: float = 0.0
    objects: float = 0.0


FIGURES: dict[str, Callable[[Score], float]] = {
    "QA %": lambda score: score.qa,
    "when %": lambda score: score.when,
    "description F1 %": lambda score: score.f1,
    "events told": lambda score: score.told,
    "events that never were": lambda score: score.events,
    "objects that never were": lambda score: score.objects,
}


@dataclass(frozen=True)
class Bench:
    """Where everything lies and how much of it there is."""

    folder: Path
    clips: int
    test: int
    steps: int
    dpo_steps: int
    questions: int
    extra: tuple[str, ...] = ()
    known: dict[tuple[str, Look], Score] = field(default_factory=dict)

    @property
    def made(self) -> Path:
        """Rows and models of exactly these numbers."""
        return self.folder / f"clips-{self.clips}-steps-{self.steps}-dpo-{self.dpo_steps}-questions-{self.questions}"

    # ------------------------------------------------------------------------------------------------ commands

    def make_clips(self) -> None:
        """Clips to learn from and clips to be asked about."""
        for name, count, seed in (("train", self.clips, TRAIN_SEED), ("test", self.test, TEST_SEED)):
            command("world", "make", "-n", str(count), "--seed", str(seed), "-o", str(self.folder / name))

    def make_rows(self) -> None:
        """Instruction rows about the training clips, and about pictures cut out of them."""
        for name, words in (("videos", ()), ("pictures", ("--per-clip", "0", "--images", "2"))):
            if not (self.made / f"{name}.jsonl").exists():
                command("instruct", str(self.folder / "train"), "-o", str(self.made / f"{name}.jsonl"), *words)

    def sft(self, seed: int, strategy: str = "mixed") -> Path:
        """The image model taught video."""
        out = self.made / f"sft-{strategy}-{seed}"
        rows = ("videos", "pictures") if strategy != "video_only" else ("videos",)
        data = ", ".join(f"{{path: {self.made / name}.jsonl}}" for name in rows)
        if not (out / "model.safetensors").exists():
            command("sft", str(ROOT / "configs/quick_sft.yaml"), f"model={IMAGES}", f"out={out}", f"data=[{data}]",
                   f"strategy={strategy}", f"seed={seed}", f"steps={self.steps}", *LOOKED, *self.extra)  # fmt: skip
        return out

    def dpo(self, taught: Path, seed: int) -> Path:
        """One round of feedback by the script itself, and preference training on it."""
        pairs, out = self.made / f"pairs-{seed}.jsonl", self.made / f"dpo-{seed}"
        if not pairs.exists():
            command("feedback", str(self.made / "videos.jsonl"), "-o", str(pairs), "-m", str(taught), "--judge",
                    "oracle", "-k", "4", "--temperature", "1", "--seed", str(seed), "--limit", str(self.questions),
                   "--frames", "16", "--stride", "2", "--policy", "uniform", "--dtype", "float32")  # fmt: skip
        if not (out / "model.safetensors").exists():
            command("dpo", str(ROOT / "configs/quick_dpo.yaml"), f"model={taught}", f"out={out}",
                   f"data=[{{path: {pairs}}}]", f"seed={seed}", f"steps={self.dpo_steps}", *LOOKED,
                   *self.extra)  # fmt: skip
        return out

    def corrected(self, seed: int) -> Path:
        """The video model that ships, taught what is wrong in its own accounts of the clips."""
        pairs, out = self.made / f"accounts-{seed}.jsonl", self.made / f"corrected-{seed}"
        if not pairs.exists():
            asked = self.made / "account.txt"
            asked.write_text("describe the video.\n")
            command("feedback", str(self.folder / "train"), "-o", str(pairs), "-m", "built-in", "--judge", "oracle",
                   "--questions", str(asked), "-k", "6", "--pairs", "twins", "--most", "3", "--seed", str(seed),
                   "--dtype", "float32")  # fmt: skip
        if not (out / "adapter_model.safetensors").exists():
            command("dpo", str(ROOT / "configs/builtin_dpo.yaml"), f"out={out}", f"data={pairs}", f"seed={seed}",
                   *self.extra)  # fmt: skip
        return out

    # ------------------------------------------------------------------------------------------------- scores

    def score(self, model: str | Path, look: Look) -> Score:
        """Every test clip looked at once, all its questions asked of that look."""
        key = (str(model), look)
        if key not in self.known:
            self.known[key] = self._score(model, look)
        return self.known[key]

    def _score(self, model: str | Path, look: Look) -> Score:
        loaded = vidllm.load(model, cache=None)
        tally, told, wrong_events, wrong_objects = Tally(), 0, 0, 0
        paths = sorted((self.folder / "test").glob("*.mp4"))[: self.test]
        for path in paths:
            script = script_of(path)
            assert script is not None
            ask = look.asker(loaded, path)
            for asked in questions(path):
                answer = ask(asked.text)
                tally.add(asked, answer.text, [f.time for f in answer.frames if f.time is not None])
                if asked.family == "describe":
                    account = hold_against(answer.text, script)
                    told += account.told
                    wrong_events += len(account.hallucinated)
                    wrong_objects += len(account.invented)
        marks = [mark for family in QA for mark in tally.marks[family]]
        return Score(
            qa=100 * mean(marks), when=100 * mean(tally.marks["when"]), f1=100 * mean(tally.f1),
            told=told / len(paths), events=wrong_events / len(paths), objects=wrong_objects / len(paths),
        )  # fmt: skip


def questions(path: Path) -> list[Asked]:
    """Of one clip: the same for every model."""
    return [asked for asked in chosen(path, moments=2) if asked.family in (*QA, "when", "describe")]


def command(*words: str) -> None:
    """One command of the project, as a person would type it."""
    print(f"$ vidllm {' '.join(words)}", file=sys.stderr, flush=True)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "vidllm_cli.main", *words], cwd=ROOT, check=False)
    print(f"  {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if done.returncode > (words[0] == "feedback"):  # 1: some answers have no verdict, and are left out
        raise SystemExit(f"`vidllm {words[0]}` ended with exit code {done.returncode}")


# ---------------------------------------------------------------------------------------------------- tables


def line(table: str, what: str, look: Look, scores: Sequence[Score]) -> report.Row:
    """One line: means over seeds, with half the width of their 95 % interval where there are several."""
    told: dict[str, report.Cell] = {"table": table, "model": what, "tokens": look.name, "seeds": len(scores)}
    for name, figure in FIGURES.items():
        values = [figure(score) for score in scores]
        told[name] = f"{mean(values):.2f}{spread(values)}"
    return told


def spread(values: Sequence[float]) -> str:
    """ " ± 1.2", or nothing for one value."""
    if len(values) < 2:
        return ""
    return f" ± {T_95[len(values)] * stdev(values) / len(values) ** 0.5:.2f}"


def road(bench: Bench, seeds: int) -> list[report.Row]:
    """From one frame of an image model to a video model that was told what it got wrong."""
    taught = [bench.sft(seed) for seed in range(seeds)]
    told = [bench.dpo(model, seed) for seed, model in enumerate(taught)]
    return [
        line("road", "image model, one frame", ONE, [bench.score(IMAGES, ONE)]),
        line("road", "image model, zero-shot", SIXTEEN, [bench.score(IMAGES, SIXTEEN)]),
        line("road", "image model, RoPE x2", MANY, [bench.score(IMAGES, MANY)]),
        line("road", "+ video SFT", SIXTEEN, [bench.score(model, SIXTEEN) for model in taught]),
        line("road", "+ video SFT, RoPE x2", MANY, [bench.score(model, MANY) for model in taught]),
        line("road", "+ DPO", SIXTEEN, [bench.score(model, SIXTEEN) for model in told]),
    ]


def tokens(bench: Bench, _: int) -> list[report.Row]:
    """The same budget spent on few fine frames or many coarse ones."""
    model = bench.sft(0)
    return [line(f"tokens, {name}", "+ video SFT", look, [bench.score(model, look)])
            for name, looks in LOOKS.items() for look in looks]  # fmt: skip


def strategies(bench: Bench, seeds: int) -> list[report.Row]:
    """What stands together in a batch."""
    taught = {name: [bench.sft(seed, name) for seed in range(seeds)] for name in STRATEGIES}
    return [line("strategies", f"SFT, {name}", SIXTEEN, [bench.score(model, SIXTEEN) for model in models])
            for name, models in taught.items()]  # fmt: skip


def account(bench: Bench, seeds: int) -> list[report.Row]:
    """What a model that knows its world says of whole clips, before and after it was told what was wrong."""
    return [
        line("account", "video model", Look(), [bench.score("built-in", Look())]),
        line("account", "+ DPO", Look(), [bench.score(bench.corrected(seed), Look()) for seed in range(seeds)]),
    ]


TABLES = {"road": road, "tokens": tokens, "strategies": strategies, "account": account}


def main() -> None:
    """Make, teach, ask, write."""
    parser = report.parser(__doc__)
    parser.add_argument("--clips", type=int, default=1000, help="clips to learn from")
    parser.add_argument("--test", type=int, default=100, help="unseen clips to be asked about")
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 6))
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of every SFT")
    parser.add_argument("--dpo-steps", type=int, default=60)
    parser.add_argument("--questions", type=int, default=600, help="asked for feedback")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--folder", type=Path, help="where everything is kept")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="for every stage of teaching")
    parser.add_argument("--name", default="recipe", help="results/NAME.md and .json")
    told = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(
            folder=(told.folder or Path(temporary)).resolve(), clips=told.clips, test=told.test, steps=told.steps,
            dpo_steps=told.dpo_steps, questions=told.questions, extra=tuple(told.set),
        )  # fmt: skip
        bench.make_clips()
        bench.make_rows()
        table = [row for name in told.tables for row in TABLES[name](bench, told.seeds)]
    notes = [
        f"{told.clips} clips to learn from, {told.test} unseen ones asked about; {told.steps} steps of SFT, "
        f"{told.dpo_steps} of DPO on {told.questions} questions; {(time.monotonic() - began) / 60:.0f} minutes in all.",
        "± is half of a 95 % interval over seeds; questions are the same for every line.",
    ]
    report.write(told.name, "From one frame to a taught video model, on the scripted world", table, notes)


if __name__ == "__main__":
    main()
