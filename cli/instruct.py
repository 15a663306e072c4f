"""`vidllm instruct`: rows to learn from, made of scripted clips or of captions; what `vidllm sft` reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import REQUEST_SECONDS, RequestTimeout, place
from .output import note, write
from .progress import Progress

if TYPE_CHECKING:
    from vidllm.feedback.tutor import Tutored
    from vidllm.train.instruct import Instructed

Folder = Annotated[
    Path | None,
    typer.Argument(
        parser=place, metavar="DIR", show_default=False,
        help="Scripted clips of `vidllm world make`; with --from, where the captions' clips lie.",
    ),
]  # fmt: skip
Output = Annotated[Path, typer.Option("-o", "--output", metavar="ROWS.jsonl", help="Where the rows go.")]
PerClip = Annotated[int, typer.Option("--per-clip", min=0, metavar="N", help="Questions about each clip; 0: none.")]
Images = Annotated[
    int, typer.Option("--images", min=0, metavar="N", help="Frames of each clip written out as pictures to ask about.")
]
Turns = Annotated[int, typer.Option("--turns", min=1, metavar="N", help="Questions in one row, as a dialogue.")]
Families = Annotated[
    str | None, typer.Option("--families", metavar="F,F", help="Only such questions: describe, when, count, ...")
]
Seed = Annotated[int, typer.Option("--seed", min=0, metavar="S", help="The same seed asks the same questions.")]
Captions = Annotated[
    Path | None,
    typer.Option("--from", metavar="CAPTIONS.jsonl", help="Make rows of these captions (of `vidllm caption`) instead."),
]
Server = Annotated[
    str | None, typer.Option("--endpoint", metavar="URL", help="With --from: the OpenAI-compatible server that writes.")
]
Model = Annotated[str | None, typer.Option("-m", "--model", metavar="NAME", help="Which model of the server writes.")]
KINDS = "conversation,detail,reasoning"
Kinds = Annotated[
    str, typer.Option("--kinds", metavar="K,K", help="With --from: conversation, detail, reasoning: a row of each.")
]
Questions = Annotated[int, typer.Option("--questions", min=2, metavar="N", help="With --from: in a conversation.")]


def instruct(
    output: Output,
    folder: Folder = None,
    per_clip: PerClip = 8,
    images: Images = 0,
    turns: Turns = 1,
    families: Families = None,
    seed: Seed = 0,
    captions: Captions = None,
    endpoint: Server = None,
    model: Model = None,
    kinds: Kinds = KINDS,
    questions: Questions = 4,
    request_timeout: RequestTimeout = REQUEST_SECONDS,
) -> int:
    """Rows to learn from: of scripted clips by template, with exact answers; of captions, written by a language model.

    \b
    Examples:
      vidllm world make -n 200 --seed 1 -o clips
      vidllm instruct clips -o rows.jsonl                              8 questions a clip, families in turn
      vidllm instruct clips -o stills.jsonl --per-clip 0 --images 3    pictures only
      vidllm instruct clips -o long.jsonl --families describe,timeline
      vidllm caption videos/ -o captions.jsonl --prompt detailed
      vidllm instruct --from captions.jsonl --endpoint http://localhost:8000/v1 -o rows.jsonl

    The key of a server is $VIDLLM_API_KEY. With --from, the same command again asks for what is missing; every row
    keeps the prompt it was made with.

    Exit code: 0 when all rows are there, 1 when some could not be had, or there is none.
    """
    from vidllm.errors import ConfigError

    scripted = {"--per-clip": per_clip != 8, "--images": images != 0, "--turns": turns != 1,
                "--families": families is not None}  # fmt: skip
    tutored = {"--endpoint": endpoint is not None, "--model": model is not None, "--kinds": kinds != KINDS,
               "--questions": questions != 4, "--request-timeout": request_timeout != REQUEST_SECONDS}  # fmt: skip
    _check_heard(*("scripted clips", scripted) if captions is not None else ("captions, which --from names", tutored))
    if captions is not None:
        if endpoint is None:
            raise ConfigError("--from needs --endpoint, the server that writes; for example http://localhost:8000/v1")
        wishes = {"kinds": _words(kinds), "questions": questions, "seed": seed}
        return _from_captions(captions, output, folder, endpoint, model, wishes, request_timeout)
    if folder is None or folder.is_file():
        raise ConfigError("name a folder of scripted clips (`vidllm world make`), or captions with --from")
    return _from_scripts(folder, output, per_clip, images, turns, _words(families or ""), seed)


def _words(listed: str) -> list[str]:
    return [word.strip() for word in listed.split(",") if word.strip()]


def _check_heard(of: str, said: dict[str, bool]) -> None:
    """Raise ConfigError for an option that the other source of rows would not hear."""
    from vidllm.errors import ConfigError

    for name in (name for name, is_said in said.items() if is_said):
        raise ConfigError(f"{name} is for rows of {of}; leave it out")


def _from_scripts(
    folder: Path, output: Path, per_clip: int, images: int, turns: int, families: list[str], seed: int
) -> int:
    from vidllm.train.instruct import InstructOptions
    from vidllm.train.instruct import instruct as run

    wishes = InstructOptions(per_clip=per_clip, images=images, turns=turns, families=tuple(families), seed=seed)
    with Progress() as progress:
        done = run(folder, output, wishes, progress=lambda clip, clips: progress(f"clip {clip:,} of {clips:,}"))
    _report(done, output)
    return 0


def _report(done: Instructed, output: Path) -> None:
    for video in done.bare:
        note(f"{video}: no script beside it, nothing was asked about it")
    asked = ", ".join(f"{count:,} {family}" for family, count in done.families.most_common())
    write(f"{output}: {done.rows:,} rows about {done.clips:,} clips ({asked})\n")


def _from_captions(
    captions: Path, output: Path, media: Path | None, url: str, model: str | None, wishes: dict[str, object],
    request_seconds: float,
) -> int:  # fmt: skip
    from vidllm.config import from_mapping
    from vidllm.corpus.asking import HttpOptions
    from vidllm.corpus.http import HttpCaptioner
    from vidllm.feedback.tutor import TutorOptions, tutor

    options = from_mapping(TutorOptions, wishes, where="--kinds")
    with Progress() as progress:
        asking = HttpOptions(request_seconds=request_seconds)
        captioner = HttpCaptioner.connect(url, model, asking, remark=progress.say)
        try:
            done = tutor(
                captions, output, captioner, options, media=media,
                tell=lambda row, rows: progress(f"row {row:,} of {rows:,}"),
            )  # fmt: skip
        finally:
            captioner.close()
    return _report_tutored(done, output)


def _report_tutored(done: Tutored, output: Path) -> int:
    for reason, count in done.left_out.items():
        note(f"{count:,} captions were left out: {reason}")
    for failure in done.failed[:MOST_TOLD]:
        note(failure)
    if done.failed:
        note(f"{len(done.failed):,} rows could not be had; run the same command again to ask for them")
    write(f"{output}: {done.written:,} rows written, {done.already:,} were there\n")
    return 1 if done.failed or not (done.written or done.already) else 0


MOST_TOLD = 20
"""Failures told one by one."""
