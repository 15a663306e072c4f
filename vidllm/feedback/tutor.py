"""Instruction rows from captions: a language model that reads a clip's caption writes what is said about the clip.

    conversation   some questions and answers, one row of several turns
    detail         one long description
    reasoning      one question that takes a step of thought, and its answer

The model never sees the clip: it is told to ask only what the caption settles, and a reply that speaks of a caption
instead of a video is asked for again, once. Every row keeps the words it was asked for with and who answered.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from vidllm.corpus.quality import unthought
from vidllm.errors import ConfigError, OutputError, RowError
from vidllm.linefile import LineFile, json_line
from vidllm.options import GenerationOptions
from vidllm.train.instruct import as_named_in

if TYPE_CHECKING:
    from vidllm.corpus.captioner import Captioner, Said

Kind = Literal["conversation", "detail", "reasoning"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TRIES = 2
POLL_SECONDS = 0.2
LEAST_QUESTIONS = 2

_NOTES = """These are notes of what can be seen in a video, from its beginning to its end:

{caption}

"""
_MANNER = """
Ask and answer only what the notes settle; leave out what would be a guess. Write as if you had watched the video \
yourself: never mention notes, a caption or a text.
"""
PROMPTS: Mapping[Kind, str] = {
    "conversation": _NOTES + "Write a conversation between a person who asks about the video and an assistant who "
    "watches it with them: {count} questions, each with its answer. Ask of different things: what there is, how many, "
    "which colours, where, what happens, in which order." + _MANNER + 'Reply with a JSON list and nothing else: '
    '[{{"question": "...", "answer": "..."}}, ...]',
    "detail": _NOTES + "Describe the video in detail, in the order in which things happen: who or what is there and "
    "where, what it looks like, what it does and what changes." + _MANNER
    + "Reply with the description and nothing else.",
    "reasoning": _NOTES + "Write one question about the video that takes a step of thought to answer: why something "
    "happens, what follows from it, how one thing bears on another, what is likely to come next. Then answer it, step "
    "by step, from what can be seen." + _MANNER + 'Reply with a JSON object and nothing else: '
    '{{"question": "...", "answer": "..."}}',
}  # fmt: skip
REMINDER = "\n\nYour last reply could not be used. Keep to the form that is asked for, and speak of the video only."
DETAIL = (
    "Describe the video in detail.", "What happens in this video? Tell me everything you can see.",
    "Give a detailed account of the video.", "Please watch the video and describe it closely.",
    "Walk me through this video from beginning to end.",
)  # fmt: skip
_HALF = re.compile("[\ud800-\udfff]")
"""Half a character: JSON can say it, no tokenizer can take it."""
SPEAKS_OF_NOTES = re.compile(r"\b(?:captions?|(?:the|these|your) notes|(?:the|this) (?:text|description))\b", re.I)


@dataclass(frozen=True, kw_only=True)
class TutorOptions:
    """What is asked for of each caption."""

    kinds: tuple[Kind, ...] = KINDS
    questions: int = 4
    """Of a conversation."""
    temperature: float = 0.7
    seed: int = 0
    max_new_tokens: int = 1024

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise ConfigError(f"kinds are {', '.join(KINDS)}, not {', '.join(unknown) or 'none'}")
        if self.questions < LEAST_QUESTIONS:
            raise ConfigError(f"questions is {self.questions}; a conversation has at least {LEAST_QUESTIONS}")


@dataclass(frozen=True, kw_only=True)
class Tutored:
    """How a run ended."""

    written: int
    already: int
    """Rows that stood in the output before."""
    left_out: Counter[str]
    """Captions nothing was asked about, by reason."""
    failed: tuple[str, ...]
    """Rows that could not be had, a line each; the next run asks for them again."""


@dataclass
class _Task:
    """One row that is wanted."""

    id: str
    video: str
    kind: Kind
    caption: str
    prompt: str
    tries: int = 0

    @property
    def number(self) -> int:
        """Of its id, which may hold half a character: it is named like its clip."""
        return int(blake2b(self.id.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest(), 16)


def tutor(
    captions: Path, output: Path, captioner: Captioner, options: TutorOptions, *, media: Path | None,
    tell: Callable[[int, int], None],
) -> Tutored:  # fmt: skip
    """Ask for the rows of every good caption in `captions` and append them to `output` (JSONL); what stands there is
    not asked for again. `tell` hears how many of how many are settled.

    Raises:
        RowError: no such file of captions, or no caption in it.
        EngineError: the server is gone; what was answered is kept.
        OutputError: the output can not be written.
    """
    told = _by_name(captions, media)
    if output.exists() and output.samefile(captions):
        raise OutputError(f"{output}: holds the captions; give the rows another name")
    output.parent.mkdir(parents=True, exist_ok=True)
    file = LineFile(output, lock=True)
    try:
        done = {_id_of(line, output) for _, line in file.lines()}
        wanted = list(_tasks(told, output, options))
        tasks = [task for task in wanted if task.id not in done]

        def keep(row: dict[str, Any]) -> None:
            file.append(json_line(row))

        failed = _converse(tasks, captioner, options, keep, tell)
    finally:
        file.close()
    return Tutored(
        written=len(tasks) - len(failed), already=len(wanted) - len(tasks),
        left_out=Counter(reason for _, reason, _ in told.values() if reason), failed=tuple(failed),
    )  # fmt: skip


def _id_of(line: bytes, output: Path) -> str:
    """The id of a row that was written before. Raises OutputError for what is no row: it was not written here."""
    try:
        return str(json.loads(line)["id"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise OutputError(f"{output}: holds lines that are no rows of instruct; give the rows another name") from error


def _converse(
    tasks: Sequence[_Task], captioner: Captioner, options: TutorOptions, keep: Callable[[dict[str, Any]], None],
    tell: Callable[[int, int], None],
) -> list[str]:  # fmt: skip
    """Ask as fast as the captioner has room; rows are kept as they come. Returns what could not be had."""
    waiting, asked, failed = deque(tasks), dict[int, _Task](), list[str]()
    settled = tickets = 0
    while waiting or asked:
        while waiting and captioner.room() > 0:
            tickets += 1
            asked[tickets] = waiting.popleft()
            _ask(captioner, tickets, asked[tickets], options)
        for said in captioner.poll(POLL_SECONDS):
            task = asked.pop(said.ticket)
            row, fault = _heard(task, said)
            if row is None and said.error is None and task.tries < TRIES:
                waiting.appendleft(task)
                continue
            if row is not None:
                keep(row)
            else:
                failed.append(f"{task.id}: {fault}")
            settled += 1
            tell(settled, len(tasks))
    return failed


def _ask(captioner: Captioner, ticket: int, task: _Task, options: TutorOptions) -> None:
    """Another try has other words and another seed."""
    task.tries += 1
    if task.tries > 1:
        task.prompt += REMINDER
    seed = (task.number + options.seed + task.tries) % 2**31
    captioner.submit(ticket, None, task.prompt, GenerationOptions(
        max_new_tokens=options.max_new_tokens, temperature=options.temperature, seed=seed,
    ))  # fmt: skip


Told = Mapping[str, tuple[Mapping[str, Any], str, Path]]
"""(row, why nothing can be asked about it, its clip) of every caption by id."""


def _tasks(told: Told, output: Path, options: TutorOptions) -> Iterator[_Task]:
    """Every row that can be made of these captions."""
    usable = ((name, row["caption"].strip(), video) for name, (row, reason, video) in told.items() if not reason)
    for name, caption, video in usable:
        for kind in dict.fromkeys(options.kinds):
            prompt = PROMPTS[kind].format(caption=caption, count=options.questions)
            yield _Task(f"{name}/{kind}", as_named_in(output, video), kind, caption, prompt)


def _by_name(captions: Path, media: Path | None) -> Told:
    """A clip that was captioned twice, in other words or as the copy of another, counts once: by its last caption that
    can be used. A file that `vidllm caption` captioned again under another id was another clip then."""
    found: dict[str, tuple[Mapping[str, Any], str, Path]] = {}
    newest: dict[Path, str] = {}
    for number, row in _captions(captions):
        name = str(row.get("id") or number)
        reason, video = _usable(row, captions, media)
        if not reason or name not in found:
            found[name] = row, reason, video
        if not reason and "recipe" in row:
            newest[video] = name
    for name, (row, reason, video) in found.items():
        if not reason and "recipe" in row and newest[video] != name:
            found[name] = row, "its clip is another now", video
    return found


def _captions(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line, row) of every line that is an object with a caption."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RowError(f"{path}: can not be read as captions ({error}); give the output of `vidllm caption`") from error
    found = 0
    for number, line in enumerate(text.split("\n"), 1):  # a caption may hold what else splitlines takes for ends
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and isinstance(row.get("caption"), str) and isinstance(row.get("video"), str):
            found += 1
            yield number, row
    if not found:
        raise RowError(f'{path}: no line with "video" and "caption" in it; give the output of `vidllm caption`')


def _usable(row: Mapping[str, Any], captions: Path, media: Path | None) -> tuple[str, Path]:
    """Why nothing can be asked about a caption ("" when it can), and where its clip lies."""
    places = [Path(row["video"]), captions.parent / row["video"], *([media / row["video"]] if media else [])]
    video = next((place for place in places if os.path.isfile(place)), places[0])  # whatever its name
    if row.get("status", "ok") not in ("ok", "duplicate"):
        return f"its caption is {row['status']}", video
    if not row["caption"].strip():
        return "its caption is empty", video
    if row.get("start") is not None or row.get("end") is not None:
        return "it is about a part of its clip", video
    return ("" if os.path.isfile(video) else "its clip is not there"), video


def _heard(task: _Task, said: Said) -> tuple[dict[str, Any] | None, str]:
    """The row that a reply makes; else why it makes none."""
    if said.error is not None:
        return None, said.error
    if said.finish_reason == "length":
        return None, "the reply was cut off before its end"
    try:
        turns = _turns(task, unthought(said.text))
    except ValueError as error:
        return None, f"the reply can not be used ({error})"
    conversations: list[dict[str, str]] = []
    for question, answer in turns:
        shown = "" if conversations else "<video>\n"
        conversations += [{"from": "human", "value": shown + question}, {"from": "gpt", "value": answer}]
    row = {"id": task.id, "video": task.video, "conversations": conversations, "kind": task.kind}
    return {**row, "prompt": task.prompt, "model": said.model}, ""


def _turns(task: _Task, text: str) -> list[tuple[str, str]]:
    """(question, answer) of every turn. Raises ValueError for what is none."""
    if task.kind == "detail":
        turns = [(DETAIL[task.number % len(DETAIL)], text.strip())]
    else:
        value = _json_in(text, "[" if task.kind == "conversation" else "{")
        turns = [_turn(item) for item in (value if isinstance(value, list) else [value])]
        if task.kind == "conversation" and len(turns) < LEAST_QUESTIONS:
            raise ValueError(f"{len(turns)} questions")
    for question, answer in turns:
        if not question or not answer:
            raise ValueError("a question or an answer is empty")
        if _HALF.search(question + answer):
            raise ValueError("it holds half a character")
        for spoken in SPEAKS_OF_NOTES.finditer(f"{question} {answer}"):
            word = spoken[0].split()[-1].removesuffix("s")
            if not re.search(rf"\b{word}s?\b", task.caption, re.I):  # else the clip itself shows a text, or notes
                raise ValueError(f"it speaks of {spoken[0]!r}")
        if "<video>" in question + answer or "<image>" in question + answer:
            raise ValueError("it holds a placeholder")
    return turns


def _turn(item: Any) -> tuple[str, str]:
    if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("question", "answer")):
        raise ValueError('no "question" and "answer"')
    return item["question"].strip(), item["answer"].strip()


def _json_in(text: str, bracket: str) -> Any:
    """The JSON that begins with the first of these brackets, whatever words and fences are around it. Models break the
    lines of an answer as they stand."""
    first = text.find(bracket)
    if first < 0:
        raise ValueError("no JSON in it")
    try:
        return json.JSONDecoder(strict=False).raw_decode(text, first)[0]
    except RecursionError as error:
        raise ValueError("JSON nested too deep") from error
