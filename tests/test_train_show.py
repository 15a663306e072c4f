"""A batch on paper: what is learnt is marked, and nothing else."""

from __future__ import annotations

import re

import pytest

from tests.planned import COMPOSABLE, clip_of, picture, spec_of
from vidllm.model.families import load_tokenizer
from vidllm.prompt import Message, build_example
from vidllm.train.show import show_batch

ENDS = {
    "llava_onevision": "<|im_end|>", "internvl": "<|im_end|>", "gemma3": "<end_of_turn>",
    **dict.fromkeys(("aya_vision", "cohere2_vision"), "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
}  # fmt: skip


def shown(family: str, *, colour: bool) -> str:
    spec = spec_of(family)
    messages = [
        Message("user", "what happens?", (clip_of(spec, frames=3), picture(80, 80))),
        Message("assistant", "The red circle moves right."),
        Message("user", "and then?"),
        Message("assistant", "Nothing."),
    ]
    tokenizer = load_tokenizer(spec.folder)
    example = build_example(messages, spec, tokenizer, rope_max=8)
    return show_batch([example, example], tokenizer, colour=colour)


@pytest.mark.parametrize("family", COMPOSABLE)
def test_what_is_learnt_stands_in_marks(family: str) -> None:
    page = shown(family, colour=False)
    marked = [words.strip() for words in re.findall("⟦(.*?)⟧", page, re.DOTALL)]
    end = ENDS.get(family, "</s>")
    assert marked == [f"The red circle moves right.{end}", f"Nothing.{end}"] * 2
    assert page.count(" visual]") == 2 * 4
    assert "what happens?" in page
    assert "\x1b" not in page


def test_colours_replace_the_marks() -> None:
    page = shown("llava", colour=True)
    assert "⟦" not in page
    assert re.findall("\x1b\\[1;30;42m(.*?)\x1b", page)[0] == " The red circle moves right.</s>"


def test_headlines_add_up() -> None:
    head, *_, total = shown("llava", colour=False).strip().splitlines()
    tokens, visual, text, learnt = (int(n) for n in re.findall(r"\d+(?= tokens| visual| text| learnt)", head))
    assert visual + text == tokens
    assert f"2 rows, {2 * tokens} tokens, {2 * learnt} learnt" in total
