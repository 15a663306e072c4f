"""`vidllm world make`: scripted clips whose truth is known exactly."""

import time
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .output import write
from .progress import Progress

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def world() -> None:
    """Scripted clips with exact truth: what the built-in model was taught, and what it is tested on."""


@app.command(short_help="Draw scripted clips; beside each its truth.")
def make(
    folder: Annotated[
        Path,
        typer.Option(
            "-o", "--output", parser=options.place, metavar="DIR", help="Where the clips go; made if absent."
        ),
    ],
    count: Annotated[int, typer.Option("-n", "--count", min=1, metavar="N", help="How many clips.")] = 10,
    seed: Annotated[int, typer.Option(min=0, metavar="S", help="The same seed draws the same clips.")] = 0,
) -> None:
    """Draw N clips of moving shapes; beside each mp4 a JSON of its script, questions and true answers.

    \b
    Examples:
      vidllm world make -n 10 --seed 7 -o clips
      vidllm ask clips/000007.mp4 "describe the video."

    Prints the path of every clip. Those that stand there already are not drawn again; every core draws.
    """
    from vidllm.corpus.progress import duration
    from vidllm.world.make import make_clips

    began = time.monotonic()
    with Progress() as progress:

        def tell(done: int) -> None:
            left = (time.monotonic() - began) / done * (count - done)
            progress(f"{done} of {count} clips drawn, {duration(left)} left")

        paths = make_clips(count, seed, folder, progress=tell)
    write("".join(f"{path}\n" for path in paths))
