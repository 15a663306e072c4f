"""`vidllm chat`: several questions about one video, which is decoded and encoded once."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from vidllm.errors import VidllmError

from . import options
from .loading import load
from .output import fail, note, write, write_json, write_line
from .progress import Progress
from .remarks import remark
from .source import check_before_loading

if TYPE_CHECKING:
    from vidllm.answer import Answer
    from vidllm.session import ChatSession

FAREWELLS = ("/bye", "/exit", "/quit", "bye", "exit", "quit")
PROMPT = "> "


@options.takes(look={**options.RANGE, **options.LOOK, **options.SAYING}, place=options.PLACE)
def chat(
    video: options.Video,
    model: options.Model = None,
    look: options.Words = options.UNSAID,
    place: options.Words = options.UNSAID,
    as_json: options.Json = False,
) -> int:
    """Ask several questions about a video, one a line; the video is read once, so answers come fast.

    \b
    Examples:
      vidllm chat clip.mp4
      printf 'what happens at 0:30?\\nwhere is it then?\\n' | vidllm chat clip.mp4

    Ctrl-C stops an answer; /bye, Ctrl-D or the end of input ends the talk. With --json every answer is one line.
    Exit code 1 when a question could not be answered.
    """
    check_before_loading(video, look)
    with Progress() as progress:
        session = load(model, progress, **place).chat(video, progress=progress.stage, **look)
        progress.clear()
        answer, code = None, 0
        for question in _questions():  # only the last answer is kept: each holds the frames it rests on
            try:
                answer = _turn(session, question, progress, as_json, before=answer)
            except VidllmError as error:  # ends the turn, not the talk
                progress.clear()
                code = fail(error, str(error))
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
                progress.say("\nstopped")
    return code


def _questions() -> Iterator[str]:
    """One question a line, until a farewell or the end of input; bytes that are no text cost their line only."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # told by the question they stand in
    while (line := _read_line()) is not None and line.strip() not in FAREWELLS:
        if line.startswith("/") and len(line.split()) == 1:
            note(f"{line.strip()} is no command; /bye ends the talk")
        elif line.strip():
            yield line.strip()


def _read_line() -> str | None:
    """A line, with line editing where a person types it; None at the end of input."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        with suppress(ImportError):  # Windows: its terminal edits lines itself
            import readline  # noqa: F401  arrow keys and history
        try:
            return input(PROMPT)
        except EOFError:
            write("\n")
            return None
    if sys.stdin.isatty():
        print(PROMPT, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline() or None


def _turn(session: ChatSession, question: str, progress: Progress, as_json: bool, before: Answer | None) -> Answer:
    """One question and its answer."""
    stream = session.stream(question)
    progress.clear()
    if as_json:
        write_json(stream.answer.to_dict(), indent=None)
    else:
        write_line(stream)
    remark(stream.answer, before)
    return stream.answer
