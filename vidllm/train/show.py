"""A batch as a person can read it: what is only read, what is seen, and what is learnt set apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import StringIO
from itertools import groupby

from rich.console import Console
from rich.text import Text

from vidllm.model.chat import AnyTokenizer, raw_tokenizer
from vidllm.prompt import Example

READ, SEEN, LEARNT = "read", "seen", "learnt"
STYLES = {READ: "", SEEN: "dim", LEARNT: "bold black on green"}
OPEN, CLOSE = "⟦", "⟧"
"""Around what is learnt where there are no colours."""


def show_batch(examples: Sequence[Example], tokenizer: AnyTokenizer, *, colour: bool = True) -> str:
    """Every example's ids decoded again: trained ones on green, or in ⟦ ⟧ without `colour`; a run of visual tokens as
    [36 visual]. What stands in the marks, the token that ends the turn included, is what the loss sees.
    """
    page = StringIO()
    console = Console(file=page, force_terminal=colour, color_system="standard" if colour else None, width=120,
                      highlight=False)  # fmt: skip
    for number, example in enumerate(examples, 1):
        console.print(Text(_headline(number, example), style="bold"), soft_wrap=True)
        console.print(_painted(example, tokenizer, colour), soft_wrap=True)
    if len(examples) > 1:
        console.print(_total(examples), soft_wrap=True)
    return page.getvalue()


def _headline(number: int, example: Example) -> str:
    prompt = example.prompt
    scaled = f", RoPE x{prompt.rope_factor:g}" if prompt.rope_factor != 1 else ""
    return (
        f"{number}. {prompt.length:,} tokens: {prompt.video_tokens:,} visual + {prompt.text_tokens:,} text, "
        f"{example.targets:,} learnt{scaled}"
    )


def _total(examples: Sequence[Example]) -> str:
    tokens, learnt = sum(e.prompt.length for e in examples), sum(e.targets for e in examples)
    return f"{len(examples)} rows, {tokens:,} tokens, {learnt:,} learnt ({learnt / tokens:.1%})"


def _painted(example: Example, tokenizer: AnyTokenizer, colour: bool) -> Text:
    painted = Text()
    for kind, words in _pieces(example, tokenizer):
        marked = f"{OPEN}{words}{CLOSE}" if kind == LEARNT and not colour else words
        painted.append(marked, style=STYLES[kind])
    return painted


def _pieces(example: Example, tokenizer: AnyTokenizer) -> Iterator[tuple[str, str]]:
    """(read, seen or learnt; the words): runs of ids of one kind, and one for each visual."""
    ids, visuals = example.prompt.input_ids, example.prompt.visuals
    owner = {v.position + k: i for i, v in enumerate(visuals) for k in range(v.tokens)}
    placeholders = {example.prompt.spec.image_token_id, example.prompt.spec.video_token_id}

    def kind(at: int) -> tuple[str, int]:
        if ids[at] in placeholders:
            return SEEN, owner.get(at, -1)
        return (LEARNT if example.trained[at] else READ), -1

    backend = raw_tokenizer(tokenizer)
    for (name, _), run in groupby(range(len(ids)), kind):
        places = list(run)
        if name == SEEN:
            yield name, f"[{len(places)} visual]"
        else:
            yield name, backend.decode([ids[at] for at in places], skip_special_tokens=False)
