"""stdout is the answer; stderr is everything else."""

import codecs
import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

import typer


def write(text: str) -> None:
    """Put `text` on stdout now. When whoever read it has gone (`| head`), end quietly as SIGPIPE would."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
        raise typer.Exit(READER_LEFT) from None


def write_line(pieces: Iterable[str]) -> None:
    """Put pieces of a text on stdout as they come, then the line's end: behind what was said before a failure, too."""
    try:
        for piece in pieces:
            write(piece)
    finally:
        write("\n")


INTERRUPTED = 130
"""128 + SIGINT, as every command ends that a person stopped."""
READER_LEFT = 128 + 13
"""128 + SIGPIPE, how a shell sees a program whose reader went away."""


def silence(stream: TextIO) -> None:
    """Send what is still buffered nowhere, and all that follows, so that the last flush does not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def write_json(value: Mapping[str, Any], indent: int | None = 2) -> None:
    """One JSON object on stdout, on one line where `indent` is None; letters as they are, if that is in UTF-8: what
    stands for a letter that another encoding lacks is no JSON."""
    ascii_only = codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8"
    write(json.dumps(value, ensure_ascii=ascii_only, indent=indent, allow_nan=False) + "\n")


_SPACES = "\n\t\u00a0\u3000"
"""What is not printable to Python, and harmless: lines and tables stay, and Chinese spaces."""


def one_line(message: str) -> str:
    """Line breaks become spaces; other control characters are spelled out."""
    return _spelled(" ".join(message.split()))


def _spelled(text: str) -> str:
    """Without what a terminal obeys, which a file's name may hold; lines stay."""
    return "".join(c if c.isprintable() or c in _SPACES else c.encode("unicode_escape").decode() for c in text)


def note(text: str) -> None:
    """One line on stderr; when nobody can read it any more, the answer on stdout goes on without."""
    try:
        print(_spelled(text), file=sys.stderr, flush=True)
    except OSError:  # the reader is gone, or the disk is full
        silence(sys.stderr)


def fail(error: BaseException, message: str) -> int:
    """One line on stderr, the traceback before it when VIDLLM_DEBUG asks for it; exit code 1."""
    if os.environ.get("VIDLLM_DEBUG", "0") not in ("", "0"):
        import traceback

        note("".join(traceback.format_exception(error)).rstrip("\n"))
    note(f"vidllm: {one_line(message)}")
    return 1
