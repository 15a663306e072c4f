"""`vidllm ask`: a video and a question in, the answer on stdout as it is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vidllm.counts import count_of

from . import options
from .loading import load
from .output import note, write_json, write_line
from .progress import Progress
from .remarks import remark
from .source import check_before_loading, no_sheet_of

if TYPE_CHECKING:
    from vidllm.answer import Answer

Sheet = Annotated[
    Path | None,
    typer.Option("--sheet", metavar="OUT.png", help="Also draw what was seen, with times and tokens of each frame."),
]


@options.takes(look={**options.RANGE, **options.LOOK, **options.SAYING}, place=options.PLACE)
def ask(
    video: options.Video,
    question: options.Question,
    model: options.Model = None,
    look: options.Words = options.UNSAID,
    sheet: Sheet = None,
    place: options.Words = options.UNSAID,
    as_json: options.Json = False,
) -> None:
    """Answer a question about a video. The answer goes to stdout as it is written, everything else to stderr.

    \b
    Examples:
      vidllm ask clip.mp4 "what happens at 0:30?"
      vidllm ask clip.mp4 "describe the video." --from 1:00 --to 2:30 --frames 32
      vidllm ask clip.mp4 "when does the red circle move right?" --json | jq .cited
      vidllm ask clip.mp4 "who is speaking?" -m llava-hf/LLaVA-NeXT-Video-7B-hf --sheet seen.png
    """
    check_before_loading(video, look, question, sheet)
    with Progress() as progress:
        stream = load(model, progress, **place).stream(video, question, progress=progress.stage, **look)
        if sheet is not None and not stream.clips:
            raise no_sheet_of(video)
        if not as_json:
            progress.clear()
            write_line(stream)
        answer = stream.answer
    if as_json:
        write_json(answer.to_dict())
    if sheet is not None:
        _draw(answer, sheet, question)
    remark(answer)


def _draw(answer: Answer, sheet: Path, question: str) -> None:
    from vidllm.video.sheet import save_sheet

    clip = answer.clips[0]
    save_sheet(clip.frames, sheet, tokens=[frame.tokens for frame in clip.plan.frames], title=question)
    note(f"drew {count_of(len(clip.frames), 'frame')} on {sheet}")
