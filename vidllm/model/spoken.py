"""What the assistant says in a conversation, marked in its text: what a model that is asked would have to write.

    USER: what happens? ASSISTANT:⟦ The red circle moves right.</s>⟧ USER: and then? ASSISTANT:⟦ Nothing.</s>⟧

A chat template prints an answer for reading, which is not always how the model wrote it: LLaVA-1.5's leaves out the
token that ended it, LLaVA-OneVision's opens it with other white space than the prompt it answered. Here every answer
stands behind the very words that asked for it and closes with an end token, so that a prompt is always the beginning of
the conversation that grew from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidllm.model.chat import Turn

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Unicode noncharacters: no text may hold them, and templates print them as they are."""


def unmarked(text: str) -> str:
    """The text without any of them."""
    return text.replace(OPEN, "").replace(CLOSE, "")


Render = Callable[[Sequence["Turn"], bool], str]
"""Turns, and whether the assistant is to begin a reply -> the template's text."""


def mark_spoken(
    turns: Sequence[Turn], render: Render, ends: Sequence[str], special: re.Pattern[str], *, reply: bool
) -> str:
    """The conversation's text with every answer between OPEN and CLOSE, its end token (one of `ends`) included.
    `special` are tokens that may stand between the two.

    Raises:
        ValueError: the template prints a conversation otherwise than as its prompt continued.
    """
    marked = [_marked(turn) for turn in turns]
    whole = render(marked, reply)
    answers = sum(turn.role == "assistant" for turn in turns)
    if whole.count(OPEN) != answers or whole.count(CLOSE) != answers:
        raise ValueError(f"it prints {whole.count(OPEN)} of {answers} answers")
    said, done = "", 0
    for number, turn in enumerate(marked):
        if turn.role != "assistant":
            continue
        begin, opening = _opening(marked[:number], whole, render)
        start, stop = whole.index(OPEN, begin), whole.index(CLOSE, begin)
        lead = whole[begin:start].removeprefix(opening) if whole[begin:start].startswith(opening) else ""
        ending = _ending(whole[stop + 1 :], ends, special)
        said += whole[done:begin] + opening + OPEN + lead + whole[start + 1 : stop] + (ending or ends[0]) + CLOSE
        done = stop + 1 + len(ending)
    return said + whole[done:]


def _marked(turn: Turn) -> Turn:
    text = unmarked(turn.text)
    return replace(turn, text=f"{OPEN}{text.strip()}{CLOSE}" if turn.role == "assistant" else text)


def _opening(before: Sequence[Turn], whole: str, render: Render) -> tuple[int, str]:
    """Where in `whole` the turn after `before` begins, and what the template prints to ask for a reply there."""
    told, asked = render(before, False), render(before, True)
    if not whole.startswith(told) or not asked.startswith(told):
        raise ValueError("it prints earlier turns otherwise once more turns follow")
    return len(told), asked[len(told) :]


def _ending(rest: str, ends: Sequence[str], special: re.Pattern[str]) -> str:
    """The end token that `rest` begins with, white space and tokens that close an answer (Cohere's <|END_RESPONSE|>)
    before it included; "" when the template prints none."""
    found = re.match(rf"(?:\s|{special.pattern})*?(?:{'|'.join(map(re.escape, ends))})", rest)
    return found[0] if found else ""
