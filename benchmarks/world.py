"""What a model knows of the scripted world: unseen clips as real mp4s, asked through the public API, answers compared.

    python benchmarks/world.py                      the built-in model, 500 clips of the split "test"
    python benchmarks/world.py -m FOLDER -n 40      any model
    python benchmarks/world.py -m A B C -n 40       several models side by side, without the poorer looks
    python benchmarks/world.py --quantize int8 int4 a model beside itself in fewer bits
    python benchmarks/world.py --pillow             the same scripts drawn by another renderer (`pillow.py`)
    python benchmarks/world.py --clips DIR          clips drawn elsewhere: NAME.mp4 with NAME.json beside it, which
                                                    holds {"questions": [{"family", "text", "answer"}, ...]}

Every question is in the contract's plain words, every clip comes through vidllm's own road (probe, plan, decode). An
answer is right when it is the true one up to case and the final period. Beside each score stand the same questions
asked blind (the prompt without its frames) and of one frame only: what a family scores there needs no video.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import report
from pillow import draw_clip

from vidllm.video.timecode import find_times
from vidllm.world.make import make_clips
from vidllm.world.questions import NOTHING, base_form
from vidllm.world.script import Script

if TYPE_CHECKING:
    from vidllm.answer import Answer
    from vidllm.ask import VideoModel

CLIP_FAMILIES = {"describe": 1, "when": 2, "first": 1, "order": 2}
"""Questions about a whole clip, at most so many of each."""
LONGEST = 96
"""Tokens of an answer: twice the longest true one; what is longer is wrong."""
Z = 1.96
"""Standard deviations of a 95 % interval."""


@dataclass(frozen=True)
class Asked:
    """A question with its true answer. `moment`: the time it names; `start`: when its event truly starts; seconds."""

    family: str
    text: str
    answer: str
    moment: float | None = None
    start: float | None = None


@dataclass
class Tally:
    """Marks of one way of looking: by family, right or wrong; of each description the F1 of its events, how many it
    tells and how many of them never happened."""

    marks: defaultdict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    f1: list[float] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    invented: list[int] = field(default_factory=list)

    def add(self, asked: Asked, said: str, times: Sequence[float]) -> None:
        """Mark one answer; `times` are the frames that were seen, seconds."""
        exact = plain(said) == plain(asked.answer)
        if asked.family == "when":
            self.marks["when, exact second"].append(exact)
            exact = exact or near(asked, said, times)
        if asked.family == "what":
            kind = "nothing" if asked.answer == NOTHING else "something"
            self.marks[f"what, when {kind} does"].append(exact)
        if asked.family == "describe":
            self.f1.append(event_f1(said, asked.answer))
            self.told.append(events(said).total())
            self.invented.append((events(said) - events(asked.answer)).total())
        self.marks[asked.family].append(exact)

    def every_question(self) -> list[bool]:
        """The marks of all families, each question once: "what, when nothing does" is a part of "what"."""
        return [mark for family, marks in self.marks.items() if ", " not in family for mark in marks]


# ------------------------------------------------------------------------------------------------ marking


def plain(text: str) -> str:
    """What the contract compares: no case, no final period."""
    return text.strip().removesuffix(".").casefold()


def near(asked: Asked, said: str, times: Sequence[float]) -> bool:
    """Whether the answer names a time within one sampling interval of the event's true start: the gap it falls into."""
    mentions = find_times(said)
    if len(mentions) != 1:
        return False
    truth = find_times(asked.answer)[0].seconds if asked.start is None else asked.start
    gap = next((b - a for a, b in pairwise(sorted(times)) if a <= truth < b), 0.0)
    return abs(mentions[0].seconds - truth) <= gap


def event_f1(said: str, truth: str) -> float:
    """F1 of the events told, whatever their order: 2 x told rightly / (told + true)."""
    told, true = events(said), events(truth)
    both = (told & true).total()
    return 2 * both / (told.total() + true.total()) if both else 0.0


def events(text: str) -> Counter[str]:
    """The sentences of a description, without "The" and "Then the"."""
    sentences = (plain(part) for part in text.replace("!", ".").split("."))
    return Counter(s.removeprefix("then ").removeprefix("the ") for s in sentences if s)


def wilson(right: int, asked: int) -> tuple[float, float]:
    """The 95 % interval of a share, in percent (Wilson 1927)."""
    share, spread = right / asked, Z * Z / asked
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / asked + spread / asked / 4) / (1 + spread)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


# ------------------------------------------------------------------------------------------------ clips and questions


def draw(number: int, split: str, folder: Path, pillow: bool = False) -> Path:
    """Clip `number` of a split in `folder`, drawn unless it is there."""
    return draw_clip(number, split, folder) if pillow else make_clips(1, number, folder, split=split)[0]


def drawn(args: argparse.Namespace, folder: Path) -> Iterator[Path]:
    """The clips to ask about; drawn by other processes while earlier ones are asked about."""
    if args.clips is not None:
        yield from [p for p in sorted(args.clips.glob("*.mp4")) if p.with_suffix(".json").exists()][: args.n]
        return
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        each = partial(draw, split=args.split, folder=folder, pillow=args.pillow)
        yield from pool.map(each, range(args.seed, args.seed + args.n))


def chosen(path: Path, moments: int) -> list[Asked]:
    """Some of the questions beside a clip: those about the whole first, then by the moment they name."""
    record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    starts = event_starts(path.with_suffix(".json")) if "events" in record else {}
    rng = random.Random(path.name)
    by_moment: dict[float, list[Asked]] = defaultdict(list)
    whole: list[Asked] = []
    for raw in rng.sample(record["questions"], len(record["questions"])):
        times = [] if raw["family"] in CLIP_FAMILIES else find_times(raw["text"])
        moment = times[0].seconds if times else None
        asked = Asked(raw["family"], raw["text"], raw["answer"], moment, starts.get(raw["text"]))
        if moment is not None:
            by_moment[moment].append(asked)
        elif sum(a.family == asked.family for a in whole) < CLIP_FAMILIES.get(asked.family, 1):
            whole.append(asked)
    kept = sorted(rng.sample(sorted(by_moment), min(moments, len(by_moment))))
    return whole + [asked for moment in kept for asked in by_moment[moment]]


def event_starts(truth: Path) -> dict[str, float]:
    """Question -> when its event starts, from the script itself: answers name whole seconds only."""
    return {f"when does the {base_form(event)}?": event.start for event in Script.load(truth).events}


# ------------------------------------------------------------------------------------------------ asking


def ask_clip(model: VideoModel, path: Path, asked: Sequence[Asked], tally: Tally, frames: int | None) -> None:
    """All questions of a clip in as few looks as there are moments: each look is decoded, encoded and read once."""
    for _, group in groupby(asked, lambda one: one.moment):
        chat = model.chat(path, frames=frames, max_new_tokens=LONGEST)
        for one in group:
            if model.spec.dialogue and chat.turns:  # a model that minds earlier turns is asked anew
                chat = model.chat(path, frames=frames, max_new_tokens=LONGEST)
            answer: Answer = chat.ask(one.text)
            tally.add(one, answer.text, [frame.time for frame in answer.frames if frame.time is not None])


def ask_blind(model: VideoModel, asked: Sequence[Asked], tally: Tally) -> None:
    """The same words with nothing to look at."""
    from vidllm.engine import generate, read
    from vidllm.options import GenerationOptions
    from vidllm.prompt import Message, build_prompt

    for one in asked:
        prompt = build_prompt([Message("user", one.text)], model.spec, model.lmm.tokenizer)
        options = GenerationOptions(max_new_tokens=LONGEST)
        tally.add(one, generate(model.lmm, read(model.lmm, prompt).state, options).result.text, [])


# ------------------------------------------------------------------------------------------------ the table

ORDER = ("what", "what, when something does", "what, when nothing does", "when", "when, exact second", "colour",
         "count", "where", "exists", "describe", "order", "first")  # fmt: skip


def rows(video: Tally, poorer: Mapping[str, Tally]) -> list[report.Row]:
    """A line for each family: right of asked, share with its interval, and what poorer looks score."""
    lines: list[report.Row] = []
    for family in in_order(video):
        marks = video.marks[family]
        low, high = wilson(sum(marks), len(marks))
        lines.append({
            "family": family, "right": sum(marks), "asked": len(marks), "%": 100 * sum(marks) / len(marks),
            "95 % from": low, "to": high, **{f"{look} %": share(tally.marks[family]) for look, tally in poorer.items()},
        })  # fmt: skip
    return lines


def in_order(tally: Tally) -> list[str]:
    """The families asked about, as they are printed."""
    return sorted(tally.marks, key=lambda name: (ORDER.index(name) if name in ORDER else 99, name))


def share(marks: Sequence[float]) -> float | None:
    """Percent right; None when nothing was asked."""
    return 100 * sum(marks) / len(marks) if marks else None


def mean(values: Sequence[float]) -> str:
    """A mean for people."""
    return f"{sum(values) / len(values):.3f}" if values else "–"


def side_by_side(videos: Mapping[str, Tally]) -> list[report.Row]:
    """A line for each family, one for all questions and one for the F1 of the events told in percent; a column for
    each model."""
    first = next(iter(videos))
    scores: dict[str, dict[str, Sequence[float]]] = {
        name: {**tally.marks, "all": tally.every_question(), "describe, F1 of events": tally.f1}
        for name, tally in videos.items()
    }
    return [
        {"family": family, "asked": len(scores[first][family]), **{f"{m} %": share(scores[m][family]) for m in scores}}
        for family in [*in_order(videos[first]), "all", "describe, F1 of events"]
    ]


def notes(args: argparse.Namespace, clips: int, seconds: float, videos: Mapping[str, Tally]) -> list[str]:
    """What no table says of itself."""
    told = [f"{mean(tally.told)} and {mean(tally.invented)} by {name}" for name, tally in videos.items()]
    source = (
        f"of {args.clips.name}" if args.clips else f"{args.seed} to {args.seed + clips - 1} of split {args.split!r}"
        + (", drawn by Pillow" if args.pillow else "")
    )
    return [
        f"{clips} clips ({source}), model {', '.join(args.model)}, {seconds:.0f} s in all.",
        "Right is equal up to case and the final period. `when` is right also within one sampling interval: the gap"
        " between the two frames seen around the event's true start.",
        f"Events told a description, and how many of them never happened: {', '.join(told)}.",
    ]  # fmt: skip


def notes_on_looks(looks: Mapping[str, Tally]) -> list[str]:
    """How well each tells events, and what the two poorer ones are."""
    f1 = "; ".join(f"{look} {mean(tally.f1)}".strip() for look, tally in looks.items())
    told = [f"describe, F1 of the events told: {f1}."]
    if len(looks) > 1:
        told.append("One frame: the same questions with --frames 1 (the moment named, else the clip's middle). Blind:"
                    " the same prompt without frames.")  # fmt: skip
    return told


def parse() -> argparse.Namespace:
    """The command line."""
    parser = report.parser(__doc__)
    parser.add_argument("-n", type=int, default=500, help="clips (default 500)")
    parser.add_argument(
        "-m", "--model", nargs="+", default=["built-in"], help="model folder or id (default: the built-in model)"
    )
    parser.add_argument("--quantize", nargs="+", default=[], choices=["int8", "int4"], help="each model so, too")
    parser.add_argument("--seed", type=int, default=0, help="number of the first clip")
    parser.add_argument("--split", default="test", help="stream of clips to draw from (default test)")
    parser.add_argument("--pillow", action="store_true", help="have another renderer draw them")
    parser.add_argument("--clips", type=Path, default=None, help="ask about the clips in this folder instead")
    parser.add_argument("--keep", type=Path, default=None, help="folder for the clips drawn, to use them again")
    parser.add_argument("--moments", type=int, default=2, help="moments asked about in each clip (default 2)")
    parser.add_argument("--jobs", type=int, default=1, help="processes that draw clips")
    parser.add_argument("--name", default="world", help="results/NAME.md and .json")
    parser.add_argument("--no-baselines", action="store_true", help="leave the one-frame and blind columns out")
    return parser.parse_args()


def main() -> None:
    """Ask, mark, write."""
    args = parse()
    import vidllm

    began, clips = time.perf_counter(), 0
    models = {
        f"{name} {bits}".rstrip(): vidllm.load(name, quantize=bits or None, cache=None)
        for name in args.model
        for bits in ("", *args.quantize)
    }
    videos = {name: Tally() for name in models}
    video, model = next(iter(videos.values())), next(iter(models.values()))
    baselines = len(models) == 1 and not args.no_baselines
    poorer = {"one frame": Tally(), "blind": Tally()} if baselines else {}
    with tempfile.TemporaryDirectory() as temporary:
        for path in drawn(args, args.keep or Path(temporary)):
            asked = chosen(path, args.moments)
            for name, asks in models.items():
                ask_clip(asks, path, asked, videos[name], None)
            if poorer:
                ask_clip(model, path, asked, poorer["one frame"], 1)
                ask_blind(model, asked, poorer["blind"])
            clips += 1
            if path.parent == Path(temporary):
                path.unlink()
            right = " ".join(str(sum(tally.marks["what"])) for tally in videos.values())
            print(f"\r{clips}/{args.n} clips, what {right}/{len(video.marks['what'])}", end="", file=sys.stderr)
    print(file=sys.stderr)
    if not clips:
        raise SystemExit("no clips: give -n 1 or more, or a folder of NAME.mp4 with NAME.json beside each")
    told = notes(args, clips, time.perf_counter() - began, videos)
    if len(models) > 1:
        report.write(args.name, "What models know of the scripted world", side_by_side(videos), told)
    else:
        told += notes_on_looks({"": video, **poorer})
        report.write(args.name, "What the model knows of the scripted world", rows(video, poorer), told)


if __name__ == "__main__":
    main()
