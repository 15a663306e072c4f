"""`vidllm caption`: a corpus in, one row for every clip out; the exit code says whether all of them are captioned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vidllm.starting import unthreaded

from . import options
from .output import INTERRUPTED, note, one_line, write

if TYPE_CHECKING:
    from vidllm.corpus.caption import CaptionOptions, CaptionReport
    from vidllm.corpus.extras import Extras

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT", show_default=False,
        help="Video files, folders, globs, - (a list on stdin), JSONL or Parquet with a column of paths, LLaVA JSON, "
        "WebDataset tars.",
    ),
]  # fmt: skip
Output = Annotated[
    Path,
    typer.Option("-o", "--output", metavar="OUT", help="OUT.jsonl or OUT.parquet; an existing one is gone on with."),
]
Prompt = Annotated[
    str | None,
    typer.Option(
        "--prompt", metavar="P", show_default=False,
        help='short, detailed, structured, @FILE, or the words. Default: "describe the video."',
    ),
]  # fmt: skip
Batch = Annotated[
    int | None,
    typer.Option("--batch", min=1, metavar="N", help="Answers written side by side. Default: what memory allows."),
]
Replicas = Annotated[
    int | None,
    typer.Option("--replicas", min=1, metavar="N",
                 help="Model processes side by side. Default: one a GPU; on a CPU one a core, as memory allows."),
]  # fmt: skip
Engine = Annotated[
    str,
    typer.Option("--engine", metavar="E", help="local, ray, or the address of an OpenAI-compatible server."),
]
Address = Annotated[
    str | None, typer.Option("--address", metavar="A", help="Of the Ray cluster. Default: one on this machine.")
]
Send = Annotated[
    Literal["images", "video"],
    typer.Option("--send", help="How a server gets frames: images with their times as text, or (vLLM) one JPEG video."),
]
SameWithin = Annotated[
    int,
    typer.Option("--same-within", min=0, max=255, metavar="N",
                 help="Encode frames once that differ by at most N of 255 grey levels: faster on still scenes."),
]  # fmt: skip
Shard = Annotated[
    str | None,
    typer.Option("--shard", metavar="i/n", help="This run's share of the clips, 1/8 to 8/8, each with its own OUT."),
]
Videos = Annotated[
    str | None,
    typer.Option("--videos", metavar="DIR", help="Where the paths inside data sets begin. Default: beside it."),
]
Column = Annotated[
    str | None, typer.Option("--column", metavar="C", help="The data sets' column of paths. Default: video, path, ...")
]
PromptColumn = Annotated[
    str | None, typer.Option("--prompt-column", metavar="C", help="The data sets' column with each clip's own prompt.")
]
Split = Annotated[
    str,
    typer.Option("--split", metavar="S", help="Cut long videos: scenes, fixed:12s, or none. One row for each range."),
]
Summarise = Annotated[
    bool, typer.Option("--summarise", help="Also a row for every split video, from the captions of its ranges.")
]
Formats = Annotated[
    str | None,
    typer.Option("-f", "--formats", metavar="F,F", help="Also srt, vtt, txt, tsv, json files (or all), in a folder of "
                 "OUT's name, or OUT.captions where that is there already."),
]  # fmt: skip
InPlace = Annotated[
    bool,
    typer.Option("--in-place", help="Also add the captions to the LLaVA JSON, JSONL, Parquet or tars they are for."),
]
Report = Annotated[
    Path | None, typer.Option("--report", metavar="R.html", help="Also an HTML page: counts, causes, contact sheets.")
]
RetryErrors = Annotated[bool, typer.Option("--retry-errors", help="Try again what is undecodable or an error in OUT.")]
Retries = Annotated[
    int,
    typer.Option("--retries", min=0, metavar="N", help="Tries with other sampling of a truncated, looping or empty "
                 "caption."),
]  # fmt: skip
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, metavar="N", help="Decoding processes. Default: one a core.")
]
TimeLimit = Annotated[
    float,
    typer.Option("--time-limit", min=0.1, metavar="S", help="Seconds one clip may take to be read."),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Only the first N clips.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say how many clips, hours, frames and tokens, and about how long; write "
                       "nothing."),
]  # fmt: skip
WISHES: options.Group = {
    "prompt": (Prompt, None), "model": (options.Model, None), "batch": (Batch, None), "replicas": (Replicas, None),
    "engine": (Engine, "local"), "address": (Address, None), "send": (Send, "images"),
    "request_timeout": (options.RequestTimeout, options.REQUEST_SECONDS), "shard": (Shard, None),
    "videos": (Videos, None), "column": (Column, None), "prompt_column": (PromptColumn, None),
    "split": (Split, "none"), "summarise": (Summarise, False), "retry_errors": (RetryErrors, False),
    "retries": (Retries, 2), "limit": (Limit, None), "workers": (Workers, None), "time_limit": (TimeLimit, 120.0),
    "same_within": (SameWithin, 0),
}  # fmt: skip
"""As `CaptionOptions` calls them."""
STOPPING = "vidllm: finishing the clips in flight; Ctrl-C again stops at once"


@options.takes(wishes=WISHES, look={**options.LOOK, **options.SAYING}, place=options.PLACE)
def caption(
    inputs: Inputs,
    output: Output,
    wishes: options.Words = options.UNSAID,
    formats: Formats = None,
    in_place: InPlace = False,
    report: Report = None,
    dry_run: DryRun = False,
    look: options.Words = options.UNSAID,
    place: options.Words = options.UNSAID,
) -> int:
    """Caption every clip of a corpus, and account for each: ok, truncated, repetitive, duplicate, undecodable or error.

    \b
    Examples:
      vidllm caption videos/ -o captions.jsonl
      vidllm caption videos/ -o captions.jsonl                      again: goes on where it ended
      vidllm caption videos/ -o captions.jsonl --dry-run            how many, and how long it will take
      vidllm caption 'raw/**/*.mp4' -o out.parquet -m llava-hf/LLaVA-NeXT-Video-7B-hf --prompt detailed
      vidllm caption film.mkv -o film.jsonl --split scenes -f srt
      vidllm caption train.json -o new.jsonl --engine http://localhost:8000/v1 --shard 1/8
      find /data -name '*.mp4' | vidllm caption - -o out.jsonl --prompt @prompt.txt

    Exit code: 0 when every clip is ok or a duplicate, 1 when some are not, 130 after Ctrl-C.
    """
    with unthreaded():
        from vidllm.corpus.caption import CaptionOptions
    from vidllm.corpus.extras import Extras, check_extras
    from vidllm.options import split_options

    plan, generation = split_options(look)
    asked = CaptionOptions(**wishes, **place, plan=plan, generation=generation)
    extras = Extras(formats=formats, in_place=in_place, report=report)
    for told in check_extras(output, extras):
        note(told)
    return _estimate(inputs, output, asked) if dry_run else _caption(inputs, output, asked, extras)


def _caption(inputs: list[str], output: Path, asked: CaptionOptions, extras: Extras) -> int:
    from vidllm.corpus.caption import caption as run
    from vidllm.corpus.extras import write_extras
    from vidllm.corpus.progress import ProgressLine

    line = ProgressLine()
    others: set[tuple[str, str | None]] = set()
    try:
        done = run(
            inputs, output, asked, tell=line, on_interrupt=lambda: line.say(STOPPING), remark=line.say,
            elsewhere=lambda item: others.add((item.video, item.root)) if extras.formats else None,
        )  # fmt: skip
    except KeyboardInterrupt:
        line.clear()
        note(f"stopped; every finished caption is in {output}, run the same command again to go on")
        raise
    line.clear()
    _remark(done)
    if not done.interrupted:
        for told in write_extras(done, extras, others):
            note(told)
    return INTERRUPTED if done.interrupted else 1 if done.failed else 0


def _remark(done: CaptionReport) -> None:
    """What was done, what is not well and why, and how to go on."""
    from vidllm.corpus.progress import duration, statuses
    from vidllm.counts import count_of

    before = f"; {done.skipped:,} done before" if done.skipped else ""
    note(f"{done.output}: {statuses(done.counts) or 'nothing new'}{before}, in {duration(done.seconds)}")
    for cause, count in done.causes.most_common(5):
        note(f"  {count:,} x {one_line(cause)}")
    for kind, count in done.notes.most_common(5):
        note(f"  {count_of(count, 'clip')} with a note in the row: {kind}")
    if done.interrupted:
        note("stopped before the end; run the same command again to go on")
    elif done.failed:
        failed = done.standing["undecodable"] + done.standing["error"]
        again = f"; --retry-errors tries the {failed:,} that failed again" if failed else ""
        note(f"no good caption: {done.failed:,} of {count_of(done.standing.total(), 'clip')}{again}")


def _estimate(inputs: list[str], output: Path, asked: CaptionOptions) -> int:
    from vidllm.corpus.caption import dry_run
    from vidllm.corpus.progress import ProgressLine

    line = ProgressLine()
    found = dry_run(inputs, output, asked, tell=line, remark=line.say)
    line.clear()
    for told in found.lines():
        write(told + "\n")
    return 0
