"""Clips captioned per second: vidllm beside transformers' `generate`, one clip at a time and in static batches.

    python benchmarks/caption.py                            200 world clips and 40 natural ones, the built-in model
    python benchmarks/caption.py --model large -n 60        a random model of 100M parameters, where the model dominates
    python benchmarks/caption.py -n 16 --natural 4 --runs 1 --dtype bfloat16        a first look

All contenders show the same model the same frames under the same prompt and write greedy captions of at most as many
tokens, in the same numbers; the share of captions equal to the first contender's stands in the table.

loop      what people write: open the file, decode it frame by frame, keep the wanted ones, resize and normalise,
          `generate`, next clip. Built on transformers' own LLaVA class; the pooling that the prompt's token count
          asks for is added to it, or it would read 4 to 16 times the tokens.
static    the same, clips loaded one after the other, then answered in left-padded batches. Batch sizes are tried on the
          first clips and the best one runs.
vidllm    `vidllm.caption`, the whole pipeline: identity, planning, decoding in worker processes, answers by replicas of
          the model, rows written. Its processes stand ready, as the other contenders' models are loaded.
cold      the same from nothing: the replicas start, load torch and the model, and end.
one       the same with the model in this process instead, under torch's own choice of threads.
near 8    as vidllm, frames of one clip that differ by at most 8 of 255 grey levels anywhere being encoded once
          (by default only equal ones are); its captions may differ, and the table says how many did.
engine    only what the model does, frames being at hand: `generate` one by one, in static batches, the Batcher, and
          the replicas.

Overlap is the pipeline's wall time over the larger of its parts, decoding alone and the replicas alone, each with the
same processes. Both share the same cores: where neither leaves one idle, their processor seconds together over the
cores are the floor, which stands beside it. Processor seconds are those of all processes, and hardly mind a neighbour.

A contender's resized pixels are timed and then replaced by those vidllm saw: scalers round differently, and captions
could not be compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import report
import torch
from caption_peers import (
    NATURAL,
    PROMPT,
    Look,
    Transformers,
    Work,
    look_of,
    natural,
    prepare,
    transformers_run,
    world,
)

from vidllm.ask import VideoModel
from vidllm.batching import Batcher
from vidllm.corpus.caption import CaptionOptions, caption
from vidllm.corpus.captioner import Engine
from vidllm.corpus.inputs import admit
from vidllm.corpus.ledger import Ledger
from vidllm.corpus.local import LocalCaptioner
from vidllm.corpus.output import Output
from vidllm.corpus.places import open_replicas
from vidllm.corpus.replicas import Replicas
from vidllm.corpus.run import Run
from vidllm.corpus.workers import DecodePool
from vidllm.interrupts import Interrupts
from vidllm.machine import cores
from vidllm.options import GenerationOptions

BATCHES = (2, 4, 8, 16, 32)
TRIED_CLIPS = 32
"""Clips on which batch sizes are tried."""
WARMING_CLIPS = 16
"""Through the replicas, until all of them are loaded, before any clock runs."""


@dataclass
class Result:
    """One contender's runs."""

    name: str
    note: str = ""
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    """Seconds of all processes."""
    captions: list[tuple[int, ...] | str] = field(default_factory=list)


# --------------------------------------------------------------------------------------------------- contenders


def engine_run(look: Look, works: Sequence[Work]) -> list[tuple[int, ...]]:
    """Captions by the Batcher, frames being at hand."""
    batcher = Batcher(look.model.lmm)
    options = GenerationOptions(max_new_tokens=look.longest, stop_on_loop=False)
    for number, work in enumerate(works):
        batcher.submit(number, work.prompt, options)
    said: dict[int, tuple[int, ...]] = {}
    while batcher.waiting or batcher.running:
        for done in batcher.step():
            assert done.generated is not None, done.error
            said[done.ticket] = done.generated.token_ids
    return [said[number] for number in range(len(works))]


def caption_options(look: Look) -> CaptionOptions:
    """As the others are asked: no second tries, nothing cut short."""
    lmm = look.model.lmm
    return CaptionOptions(
        prompt=PROMPT, retries=0, plan=look.plan, model=lmm.spec.folder, dtype=str(lmm.dtype).removeprefix("torch."),
        generation=GenerationOptions(max_new_tokens=look.longest, stop_on_loop=False),
    )  # fmt: skip


def write_list(works: Sequence[Work], folder: Path) -> Path:
    """The pieces as a JSONL list, which is what the pipeline is given."""
    path = folder / "clips.jsonl"
    pieces = [work.piece for work in works]
    told = [{"video": str(piece.path), "start": piece.start, "end": piece.end} for piece in pieces]
    path.write_text("".join(json.dumps(row) + "\n" for row in told), encoding="utf-8")
    return path


def cold_run(look: Look, works: Sequence[Work], folder: Path, model: VideoModel | None = None) -> list[str]:
    """Captions by `vidllm.caption`, by `model` here or by processes that start and end with it."""
    output = fresh(folder)
    done = caption(write_list(works, folder), output, caption_options(look), model=model)
    assert sum(done.counts.values()) == len(works), done.counts
    return captions_in(output, works)


def warm_run(look: Look, works: Sequence[Work], folder: Path, replicas: Replicas) -> list[str]:
    """As `vidllm.caption` does, by replicas that are loaded."""
    output, options = fresh(folder), caption_options(look)
    seen = options.look(replicas)
    with Output.open(output, options.recipe(replicas)) as rows, Interrupts() as interrupts:
        run = Run(admit([str(write_list(works, folder))]), Engine(replicas), Ledger(rows, seen), seen, options)
        assert run.go(interrupts).written == len(works)
    return captions_in(output, works)


def fresh(folder: Path) -> Path:
    """An output that is not there yet."""
    return Path(tempfile.mkdtemp(dir=folder)) / "captions.jsonl"


def captions_in(output: Path, works: Sequence[Work]) -> list[str]:
    """Read back from the rows."""
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    said = {(row["video"], row["start"], row["end"]): row["caption"] for row in rows if "caption" in row}
    return [said[str(work.piece.path), work.piece.start, work.piece.end] for work in works]


def replicas_run(look: Look, works: Sequence[Work], replicas: Replicas) -> list[str]:
    """Captions by the replicas, frames being at hand."""
    options, said, waiting = caption_options(look).generation, dict[int, str](), list(enumerate(works))
    while len(said) < len(works):
        while waiting and replicas.room() > 0:
            number, work = waiting.pop(0)
            replicas.submit(number, work.clip, PROMPT, options)
        said.update((answer.ticket, answer.text) for answer in replicas.poll(1.0))
    return [said[number] for number in range(len(works))]


def ready(look: Look, works: Sequence[Work], near: int = 0) -> Replicas:
    """Replicas of the model that are all loaded; `near`: see `CaptionOptions.same_within`."""
    replicas = open_replicas(replace(caption_options(look), same_within=near), lambda line: None)
    while replicas.loaded < replicas.size:
        replicas_run(look, works[:WARMING_CLIPS], replicas)
    return replicas


def decode_run(look: Look, works: Sequence[Work], folder: Path) -> None:
    """What the pipeline's decode workers do, and nothing else."""
    options = caption_options(look)
    captioner = LocalCaptioner(look.model)
    pool = DecodePool(
        admit([str(write_list(works, folder))]), options.look(captioner), workers=options.workers_now
    )  # fmt: skip
    seen = 0
    while seen < len(works):
        if (opened := pool.take(1.0)) is not None:
            assert opened.clip is not None, opened.seen.error
            pool.release(opened)
            seen += 1
    pool.close()


def best_size(other: Transformers, works: Sequence[Work]) -> int:
    """The static batch with the most clips per second on the first few."""
    tried = works[:TRIED_CLIPS]
    sizes = [size for size in BATCHES if size <= len(tried)] or [1]
    spent = {size: clock(partial(transformers_run, other, tried, size, loads=False))[0] for size in sizes}
    return min(spent, key=lambda size: spent[size])


def clock(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds on the wall, of all processors, and what came out."""
    began, busy = time.perf_counter(), processor_seconds()
    came = run()
    return time.perf_counter() - began, processor_seconds() - busy, came


def processor_seconds() -> float:
    """Of this process, of children that have ended, and of those that live."""
    spent = sum(os.times()[:4])
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            own = child.cpu_times()
            spent += own.user + own.system + own.children_user + own.children_system
    return spent


def race(look: Look, works: Sequence[Work], runs: int, folder: Path) -> list[Result]:
    """Every contender once per run, in turn, so that a slow minute of the machine hits all of them."""
    other = Transformers(look)
    size = best_size(other, works)
    exact, near = ready(look, works), ready(look, works, near=8)
    contenders: list[tuple[str, str, Callable[[], Any]]] = [
        ("loop", "one clip at a time", lambda: transformers_run(other, works, 1, loads=True)),
        ("static", f"batches of {size}", lambda: transformers_run(other, works, size, loads=True)),
        ("vidllm", "the whole pipeline", lambda: warm_run(look, works, folder, exact)),
        ("vidllm, cold", "start and end included", lambda: cold_run(look, works, folder)),
        ("vidllm, one", "the model in this process", lambda: cold_run(look, works, folder, look.model)),
        ("vidllm, near 8", "the whole pipeline", lambda: warm_run(look, works, folder, near)),
        ("engine: loop", "one clip at a time", lambda: transformers_run(other, works, 1, loads=False)),
        ("engine: static", f"batches of {size}", lambda: transformers_run(other, works, size, loads=False)),
        ("engine: one", "continuous, in this process", lambda: engine_run(look, works)),
        ("engine: vidllm", "continuous, the replicas", lambda: replicas_run(look, works, exact)),
        ("decoding alone", "the pipeline's workers", lambda: decode_run(look, works, folder)),
    ]
    results = [Result(name, note) for name, note, _ in contenders]
    try:
        for _ in range(runs):
            for result, (_, _, run) in zip(results, contenders, strict=True):
                seconds, processor, captions = clock(run)
                result.seconds.append(seconds)
                result.processor.append(processor)
                result.captions = captions or []
                told = f"{len(works) / seconds:.2f} clips/s, {processor / len(works):.3f} processor s a clip"
                print(f"  {result.name}: {told}", file=sys.stderr)
    finally:
        exact.close()
        near.close()
    return results


# ------------------------------------------------------------------------------------------------------ the table


def rows(look: Look, kind: str, works: Sequence[Work], results: Sequence[Result]) -> list[report.Row]:
    """One row for every contender: speed, how much faster than the loop and the batches of its own part."""
    by_name = {result.name: result for result in results}
    first = texts(look, by_name["loop"])
    table: list[report.Row] = []
    for result in results:
        part = "engine: " if result.name.startswith("engine") else ""
        said = texts(look, result)
        same = f"{sum(a == b for a, b in zip(said, first, strict=True))}/{len(said)}" if said else None
        table.append({
            "model": look.name, "dtype": str(look.model.lmm.dtype)[6:], "clips": f"{len(works)} {kind}",
            "contender": result.name, "how": result.note, "clips/s": len(works) / median(result.seconds),
            "processor s a clip": median(result.processor) / len(works),
            "x loop": ratio(by_name[f"{part}loop"], result) if said else None,
            "x static": ratio(by_name[f"{part}static"], result) if said else None, "same captions": same,
        })  # fmt: skip
    return table


def texts(look: Look, result: Result) -> list[str]:
    """Captions as text, whoever made them."""
    decode = look.model.lmm.tokenizer.decode
    told = (one if isinstance(one, str) else decode(list(one), skip_special_tokens=True) for one in result.captions)
    return [text.strip() for text in told]


def overlap(look: Look, kind: str, results: Sequence[Result]) -> str:
    """The pipeline's wall time beside its parts' in words."""
    by_name = {result.name: result for result in results}
    whole, model, decode = (by_name[name] for name in ("vidllm", "engine: vidllm", "decoding alone"))
    walls = list(zip(whole.seconds, model.seconds, decode.seconds, strict=True))
    larger = median(w / max(m, d) for w, m, d in walls)
    both = median(w / (m + d) for w, m, d in walls)
    parts = zip(whole.seconds, model.processor, decode.processor, strict=True)
    floor = median(w / ((m + d) / cores()) for w, m, d in parts)
    dtype = str(look.model.lmm.dtype)[6:]
    return (
        f"overlap, {look.name} {dtype}, {kind}: wall is {larger:.2f} of the larger part, {both:.2f} of their sum, "
        f"{floor:.2f} of their processor seconds over {cores()} cores"
    )


def ratio(slow: Result, fast: Result) -> float:
    """The median of each run's own ratio."""
    return median(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True))


def main() -> None:
    """Race on both kinds of clips and write results/caption.md and .json."""
    parser = report.parser(__doc__)
    parser.add_argument("-n", type=int, default=200, help="world clips")
    parser.add_argument("--natural", type=int, default=40, help="ranges of natural videos")
    parser.add_argument("--model", choices=("built-in", "large"), action="append")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), action="append")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch, for every contender; its own choice if not said")
    parser.add_argument("--clips", type=Path, help="folder of the world clips, kept for the next time")
    parser.add_argument("--name", default="caption", help="results/NAME.md and .json")
    told = parser.parse_args()
    if told.threads:
        torch.set_num_threads(told.threads)
    table: list[report.Row] = []
    overlaps: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sets = {"world": world(told.n, (told.clips or folder / "world").resolve()) if told.n else [],
                "natural": natural(told.natural) if told.natural and NATURAL.is_dir() else []}  # fmt: skip
        for name in told.model or ["built-in"]:
            for dtype in told.dtype or ["float32", "bfloat16"]:
                look = look_of(name, dtype, folder / "large")
                for kind, pieces in sets.items():
                    if pieces:
                        works = prepare(look, pieces)
                        results = race(look, works, told.runs, folder)
                        table += rows(look, kind, works, results)
                        overlaps.append(overlap(look, kind, results))
    notes = (
        f"medians of {told.runs} runs; a ratio is the median of each run's own; threads: {torch.get_num_threads()}",
        "same captions: equal to those of the loop",
        *overlaps,
    )
    report.write(told.name, "Clips captioned per second", table, notes)


if __name__ == "__main__":
    main()
