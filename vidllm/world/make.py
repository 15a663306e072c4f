"""Scripts to real files: H.264 in mp4 through PyAV, the script as JSON beside each."""

import errno
import json
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from fractions import Fraction
from functools import partial
from pathlib import Path
from threading import Event
from uuid import uuid4

import av
import numpy as np
from numpy.typing import NDArray

from vidllm.errors import ConfigError
from vidllm.machine import cores
from vidllm.world.generate import generator, make_script
from vidllm.world.questions import clip_questions, moment_questions, pick_moments
from vidllm.world.render import expose, scene
from vidllm.world.script import Script


def make_clips(
    n: int, seed: int, folder: Path, *, split: str = "user", progress: Callable[[int], None] = lambda done: None
) -> list[Path]:
    """Write clips `seed` .. `seed + n - 1` of a split into `folder`, made if need be, and return the mp4s.

    The same numbers give the same clips; but x264's macroblock tree reads memory it has not written at widths like 400,
    where a pixel in a million may then be two grey levels off. Beside NAME.mp4 stands NAME.json: the script, and
    questions with their true answers. A file has its name only once it is whole, and what stands there already is not
    drawn again. `progress` hears how many clips are done. ConfigError when a video of that name is not one of these.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(seed, seed + n)
    targets = [folder / f"{number:06d}.mp4" for number in numbers]
    stop = Event()
    with ThreadPoolExecutor(cores()) as pool:  # grain and x264, most of the work, leave the interpreter to others
        try:
            for done, _ in enumerate(pool.map(partial(_draw, split, stop), targets, numbers), 1):
                progress(done)
        finally:
            stop.set()
    return targets


def _draw(split: str, stop: Event, target: Path, number: int) -> None:
    """The clip and then its truth, unless both stand there; CancelledError once `stop` is set."""
    script = make_script(split, number)
    truth = target.with_suffix(".json")
    if target.exists():
        if not truth.exists():
            raise ConfigError(f"{target} is there and was not drawn here; move it away or choose another folder")
        if truth.read_text(encoding="utf-8", errors="replace") == _truth(script, number):
            return
        target.unlink()  # of another script
    save_truth(script, truth, number)  # first: a clip without truth is somebody else's
    write_video(script, target, stop)


def save_truth(script: Script, target: Path, number: int) -> None:
    """The script as JSON, with questions about the clip in the plainest words."""
    with whole_file(target) as partial:
        partial.write_text(_truth(script, number), encoding="utf-8")


def _truth(script: Script, number: int) -> str:
    """What stands in NAME.json."""
    rng = generator("truth", number)
    asked = clip_questions(script, rng, plain=True)
    for moment in sorted(pick_moments(script, 0.0, 6, rng)):
        asked += moment_questions(script, moment, rng, plain=True)
    return json.dumps(asdict(script) | {"questions": [asdict(question) for question in asked]}, indent=1) + "\n"


def write_video(script: Script, target: Path, stop: Event | None = None) -> None:
    """Render a script to an mp4 (H.264, 4:2:0, which needs width and height even: an odd pixel is dropped).

    CancelledError, and nothing written, once another thread has set `stop`.
    """
    canvas = script.canvas
    rate = round(canvas.fps * 2)  # half frames a second: 12.5 fps is exact
    faststart = {"movflags": "+faststart"}
    with whole_file(target) as partial, av.open(str(partial), "w", format="mp4", options=faststart) as container:
        gop = max(1, round(canvas.gop_seconds * canvas.fps))
        # One thread: x264 writes other bytes, and other pixels, with as many as there happen to be cores.
        options = {"crf": str(canvas.crf), "preset": "veryfast", "g": str(gop), "threads": "1"}
        stream = container.add_stream("libx264", rate=Fraction(rate, 2), options=options)
        stream.width, stream.height, stream.pix_fmt = canvas.width // 2 * 2, canvas.height // 2 * 2, "yuv420p"
        for number, pixels in enumerate(_pictures(script, stream.height, stream.width, Fraction(2, rate))):
            if stop is not None and stop.is_set():
                raise CancelledError
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A file of its own to write, which is `target` once it is written: two who draw the same clip do not meet."""
    partial = target.with_name(f"{target.name}.{uuid4().hex}.part")
    try:
        yield partial
        partial.replace(target)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error  # a full disk names no file, or one of ours
    finally:
        partial.unlink(missing_ok=True)


def _pictures(script: Script, height: int, width: int, step: Fraction) -> Iterator[NDArray[np.uint8]]:
    """Every frame, `step` seconds apart; while nothing happens only the grain is drawn anew."""
    known: object = None
    for number in range(max(1, round(Fraction(script.duration) / step))):
        seconds = float(number * step)
        state = script.at(seconds), script.opacity(seconds)
        if state != known:
            drawn, known = scene(script, seconds, height, width), state
            still = expose(drawn, script, seconds)
        yield expose(drawn, script, seconds) if script.canvas.noise else still
