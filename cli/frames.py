"""`vidllm frames`: the frames themselves, as pictures in a folder or as one contact sheet. No model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vidllm.counts import count_of

from . import options
from .output import note, write, write_json
from .progress import Progress
from .source import check_picture_name, is_sheet

if TYPE_CHECKING:
    from vidllm.video.decode import FrameSet

SHEET_SIDE = 320
"""Longer side of a frame on a contact sheet, pixels."""

Output = Annotated[
    Path,
    typer.Option(
        "-o", "--output", parser=options.place, metavar="DIR|SHEET.png",
        help="A folder for PNGs, or the name of a contact sheet.",
    ),
]
MaxSide = Annotated[
    int | None,
    typer.Option("--max-side", min=1, metavar="PX", help=f"Shrink frames to this; on a sheet {SHEET_SIDE}, else not."),
]
Count = Annotated[
    int | None,
    typer.Option("--frames", min=1, metavar="N", help="So many frames. Default: 16, or what a named time needs."),
]


def frames(
    video: options.Video,
    output: Output,
    question: options.OptionalQuestion = "",
    start: options.From = None,
    end: options.To = None,
    count: Count = None,
    fps: options.Fps = None,
    policy: options.Policy = "auto",
    max_side: MaxSide = None,
    reader: options.Reader = "auto",
    as_json: options.Json = False,
) -> None:
    """Write the frames that sampling picks, and print where they are.

    \b
    Examples:
      vidllm frames clip.mp4 -o sheet.png
      vidllm frames clip.mp4 "what happens at 0:30?" -o sheet.png
      vidllm frames clip.mp4 -o pictures --fps 1 --from 1:00 --to 2:00
    """
    as_sheet = is_sheet(output)
    if as_sheet:
        check_picture_name(output, video)
    from vidllm.errors import NotAVideo
    from vidllm.planning import PlanOptions
    from vidllm.reads import read_frames
    from vidllm.shots import choose_moments, save_pictures, save_shot_sheet
    from vidllm.sources import local_file
    from vidllm.still import is_still
    from vidllm.video.info import probe

    with Progress() as progress:
        path = local_file(video, progress.stage)
        if is_still(path):
            raise NotAVideo(f"{video}: a still picture, and frames are a video's; it is its only one")
        info = probe(path)
        look = PlanOptions(start=start, end=end, frames=count, fps=fps, policy=policy)
        plan, notes = choose_moments(info, question, look)
        remarks = dict.fromkeys(notes)
        side = max_side or (SHEET_SIDE if as_sheet else None)

        def read(times: Sequence[float]) -> FrameSet:
            progress(f"decoding {len(times)} of {len(plan)} frames")
            seen = read_frames(info, times, max_side=side, reader=reader)
            remarks.update(dict.fromkeys(seen.notes))
            return seen

        shots = (save_shot_sheet if as_sheet else save_pictures)(plan.times, output, read)
    others = 0 if as_sheet else len({*output.glob("*.png")} - {shot.path for shot in shots})
    if others:
        before = count_of(others, "picture")
        remarks[f"{output} also holds {before} of before; name another folder for these alone"] = None
    for remark in remarks:
        note(f"note: {remark}")
    if as_json:
        write_json({"frames": [{"time": round(shot.time, 6), "path": str(shot.path)} for shot in shots]})
    else:
        write("".join(f"{path}\n" for path in dict.fromkeys(shot.path for shot in shots)))
