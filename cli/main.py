"""`vidllm`: the commands, and the one place where an error becomes a line on stderr and an exit code."""

import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from vidllm import __version__
from vidllm.errors import VidllmError

from . import ask, caption, caption_verify, chat, doctor, dpo, feedback, frames, instruct, plan, sft, world
from .output import INTERRUPTED, READER_LEFT, fail, note, one_line, silence, write

app = typer.Typer(
    name="vidllm",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich's panels would double the time to the first line of help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        write(f"vidllm {__version__}\n")
        raise typer.Exit


@app.callback()
def vidllm(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Ask a video: any image language model becomes a video language model, every token budgeted.

    \b
    Examples:
      vidllm ask clip.mp4 "what happens at 0:30?"
      vidllm caption videos/ -o captions.jsonl
      vidllm plan clip.mp4 "what happens at 0:30?"
      vidllm frames clip.mp4 -o sheet.png
    """


app.command(short_help="Answer a question about a video.")(ask.ask)
app.command(short_help="Several questions about one video.")(chat.chat)
app.command(short_help="Caption a corpus: batched, resumable, every clip accounted for.")(caption.caption)
app.command(short_help="Prove that every clip of a caption run ended in one status.")(caption_verify.caption_verify)
app.command(short_help="Rows to learn from, of scripted clips or of captions.")(instruct.instruct)
app.command(short_help="Teach a model from conversations about videos and pictures.")(sft.sft)
app.command(short_help="Preference pairs from the model's own answers, judged.")(feedback.feedback)
app.command(short_help="Teach a model which of two answers is the better one.")(dpo.dpo)
app.command(short_help="What ask would look at, and what it costs.")(plan.plan)
app.command(short_help="The frames themselves: pictures, or a contact sheet.")(frames.frames)
app.add_typer(world.app, name="world", short_help="Scripted clips with exact truth.")
app.command(short_help="What works here, and how to get what does not.")(doctor.doctor)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0 done, 1 the work failed, 2 the command line was wrong, 130 interrupted."""
    _open_what_is_closed()
    _never_fail_to_print()
    try:
        code = _run([_named(word) for word in (sys.argv[1:] if argv is None else argv)])
        sys.stdout.flush()
        return code
    except VidllmError as error:
        return fail(error, str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        silence(sys.stdout)
        return READER_LEFT
    except OSError as error:
        return fail(error, _describe_os_error(error))
    except Exception as error:  # the process boundary: a defect is reported, never a page of traceback
        return fail(error, f"unexpected {type(error).__name__}: {error}; VIDLLM_DEBUG=1 shows where it happened")


def _named(word: str) -> str:
    """`-clip.mp4` as `./-clip.mp4` where there is such a file: else it would be read as options."""
    return f"./{word}" if word.startswith("-") and "." in word and os.path.isfile(word) else word


def _run(argv: Sequence[str]) -> int:
    """The command's exit code; usage errors are printed here, everything else flies on to `main`."""
    try:
        result: Any = app(args=list(argv), prog_name="vidllm", standalone_mode=False)
    except typer.TyperException as error:
        return _usage(error, argv)
    except typer.Abort:
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def _usage(error: typer.TyperException, argv: Sequence[str]) -> int:
    message = error.format_message().replace("Value error, ", "")  # pydantic's own words
    if message.startswith("Usage:"):  # no command at all: the help is the message
        note(message)
        return error.exit_code
    context: Any = getattr(error, "ctx", None)
    words = [taken.name for taken in context.command.params] if context is not None else []
    if "unexpected extra argument" in message and "question" in words:
        message += "; put a question of several words in quotes"
    told = one_line(message).rstrip(".")  # pydantic ends no sentence
    begun = " ".join(["vidllm", *(word for word in argv[:1] if not word.startswith("-"))])  # `-o` and no more
    note(f"vidllm: {told}. See `{context.command_path if context else begun} --help`.")
    return error.exit_code


def _describe_os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename is not None else ""
    advice = "; choose another name or place" if where else ""
    if error.errno == errno.ENOSPC:
        advice = "; make room there, or write to another disk"
    return f"{where}{error.strerror or error}{advice}"


def _open_what_is_closed() -> None:
    """A stream that was closed before we began (`<&-`, some schedulers) is an empty one."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for the rest of the process


def _never_fail_to_print() -> None:
    """A terminal that can not show a letter gets its escape, instead of an exception in the middle of an answer."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
