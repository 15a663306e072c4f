"""Whether a caption is one, decided when it is written; and what to change before the model is asked again.

Asking the same way again gives the same answer: the next try samples, each with another seed and bolder, and one that
ran out of room gets twice as much where nobody set it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidllm.corpus.rows import Status
    from vidllm.options import GenerationOptions

LEAST_COPIES = 4
"""So many copies of one unit in a row, and ..."""
LEAST_WORDS = 16
"""... so many words in all of them together, make a loop (the engine's own watch stops earlier, on tokens)."""
LEAST_COPIES_OF_A_WORD = 6
"""One word said so often is one already; four times is emphasis, and numbers may stand in a row."""
LONGEST_UNIT = 48
"""Words of the longest repeated unit looked for."""
LEAST_LETTERS = 64
"""Copies of some letters without a space between them ("哈哈哈...", a sentence of Chinese or Thai) make a loop at this
length."""

TEMPERATURES = (0.7, 1.0)
"""Of the tries after a greedy one; a run that samples already becomes bolder by `BOLDER` each time."""
BOLDER = 0.3
TOP_P = 0.95

_REFUSAL = re.compile(
    r"\s*(?:(?:i['’]?m|i am) (?:sorry|unable|not able)\b|i (?:can(?:not|['’]?t)|could(?: not|n['’]?t)) "
    r"(?:see|view|watch|access|open|process|analy[sz]e|assist|help|describe|provide)\b|sorry, (?:but )?i\b"
    r"|as an ai\b|i apologi[sz]e\b|抱歉|对不起)",
    re.IGNORECASE,
)
_SIGNS = re.compile(r"^[\W_]+|[\W_]+$")
_THOUGHT, _THOUGHT_OUT = (re.compile(rf"<{end}think(?:ing)?>|\[{end}THINK\]|◁{end}think▷") for end in ("", "/"))
_LETTER_LOOP = re.compile(r"(\S{1,96}?)\1{3,}")


@dataclass(frozen=True)
class Judgement:
    """What an answer is worth as a caption; `cause`, one line, when it is not ok."""

    status: Status
    cause: str | None = None


def unthought(text: str) -> str:
    """What is said behind a model's thoughts, where it writes them down: `<think>...</think>`, begun in the prompt or
    here; empty when it got no further. Magistral writes [THINK], Kimi-VL ◁think▷.
    """
    return _THOUGHT.split(_THOUGHT_OUT.split(text)[-1])[0].strip()


def judge(text: str, finish_reason: str | None, *, structured: bool = False) -> Judgement:
    """The status a caption is written with; one that was to be `structured` is a JSON object.

    An empty answer and a refusal are `error`: there is nothing to copy to a training set. What runs in a circle is
    `repetitive` however it ended, what was cut off by the limit `truncated`.
    """
    if not text.strip():
        least = " in the room it had; raise --max-new-tokens" if finish_reason == "length" else ""
        return Judgement("error", f"the model said nothing{least}")
    if finish_reason == "repetition" or is_loop(text):
        return Judgement("repetitive", "the caption repeats itself")
    if finish_reason == "length":
        return Judgement("truncated", "no room was left for the end of the caption; raise --max-new-tokens")
    if _REFUSAL.match(text):
        return Judgement("error", "the model refused to caption the clip")
    if structured and not _is_object(text):
        return Judgement("error", "the caption is no JSON object")
    return Judgement("ok")


def _is_object(text: str) -> bool:
    """Whether a JSON object is all that is said; a fence of backquotes around it is how models mark one."""
    bare = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```")
    try:
        return isinstance(json.loads(bare), dict)
    except (ValueError, RecursionError):
        return False


def is_loop(text: str) -> bool:
    """Whether somewhere one unit of words, whatever signs are between them, or of letters, stands over and over."""
    words = [word for word in map(_bare, text.lower().split()) if word]
    return any(_repeats(words, unit) for unit in range(1, min(LONGEST_UNIT, len(words) // LEAST_COPIES) + 1)) or any(
        len(match[0]) >= LEAST_LETTERS for match in _LETTER_LOOP.finditer(text)
    )


def _repeats(words: list[str], unit: int) -> bool:
    """Whether a run of words equals the words `unit` before them for long enough."""
    needed = unit * (max(LEAST_COPIES, -(-LEAST_WORDS // unit)) - 1)
    run = 0
    for one, other in zip(words, words[unit:], strict=False):
        run = run + 1 if one == other else 0
        if run >= needed or (unit == 1 and run >= LEAST_COPIES_OF_A_WORD - 1 and other.isalpha()):
            return True
    return False


def _bare(word: str) -> str:
    """A word without the signs around it: `square..` repeats `square,`."""
    return _SIGNS.sub("", word)


def next_sampling(
    options: GenerationOptions, attempt: int, judgement: Judgement, *, roomy: bool = False
) -> GenerationOptions | None:
    """How to ask again after try number `attempt` (1: the first), never as before; None when that is no use.

    `options` are those of the first try. `roomy`: the user left the length of an answer open.
    """
    if judgement.status not in ("truncated", "repetitive", "error"):
        return None
    if options.temperature:
        temperature = options.temperature + BOLDER * attempt
    else:
        temperature = TEMPERATURES[min(attempt, len(TEMPERATURES)) - 1]
    room = options.max_new_tokens * (2 if roomy and judgement.status == "truncated" else 1)
    return replace(
        options, temperature=temperature, top_p=min(options.top_p, TOP_P), seed=options.seed + attempt,
        max_new_tokens=room,
    )  # fmt: skip


RANK = {"ok": 0, "truncated": 1, "repetitive": 2, "error": 3}
"""Of several tries that all fail, the one to keep; the first of its rank."""
