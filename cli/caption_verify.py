"""`vidllm caption-verify`: every admitted clip ended in one status, its frames and caption are its own; or exit 1."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .output import note, one_line, write, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from vidllm.corpus.verify import VerifyReport

    from .progress import Progress

MOST_SHOWN = 50
"""Problems printed for each output; --json prints all of them."""

Outputs = Annotated[
    list[Path], typer.Argument(metavar="OUT", help="What `vidllm caption -o` wrote; several shards at once.")
]
NoFrames = Annotated[
    bool, typer.Option("--no-frames", help="Check the rows alone; by default every video is opened again.")
]


def caption_verify(outputs: Outputs, no_frames: NoFrames = False, as_json: options.Json = False) -> int:
    """Prove that every admitted clip ends in exactly one status, and each row's frames and caption belong to its video.

    \b
    Examples:
      vidllm caption-verify captions.jsonl
      vidllm caption-verify shard-*.jsonl --no-frames

    Exit code: 0 when all of it holds, 1 when anything does not.
    """
    from vidllm.corpus.verify import VerifyReport, verify
    from vidllm.errors import InputError

    from .progress import Progress

    reports = []
    with Progress() as progress:
        for path in outputs:
            try:
                reports.append(verify(path, frames=not no_frames, tell=_teller(progress, path)))
            except InputError as error:
                if len(outputs) == 1:
                    raise
                reports.append(VerifyReport.unread(path, error))  # the other shards are proven nevertheless
    if as_json:
        write_json({"outputs": [_json(report) for report in reports]})
    else:
        for report in reports:
            _print(report)
    return 0 if all(report.ok for report in reports) else 1


def _teller(progress: Progress, path: Path) -> Callable[[int], None]:
    return lambda frames: progress(f"{path}: {frames:,} frames checked")


def _print(report: VerifyReport) -> None:
    from vidllm.corpus.progress import statuses

    for problem in report.problems[:MOST_SHOWN]:
        write(f"{one_line(str(problem))}\n")
    if len(report.problems) > MOST_SHOWN:
        note(f"... and {len(report.problems) - MOST_SHOWN:,} more")
    verdict = "every clip has one status" if report.ok else f"{len(report.problems):,} problems"
    write(f"{report.output}: {report.admitted:,} clips admitted, {statuses(report.statuses) or 'no rows'}: {verdict}\n")


def _json(report: VerifyReport) -> dict[str, object]:
    problems = [{"where": problem.where, "why": problem.why} for problem in report.problems]
    return {
        "output": str(report.output), "ok": report.ok, "admitted": report.admitted, "statuses": dict(report.statuses),
        "recipes": dict(report.recipes), "frames_checked": report.frames_checked, "problems": problems,
    }  # fmt: skip
