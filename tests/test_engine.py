"""The token loop: what is chosen, when it stops, which letters come out when, and what a follow-up may skip."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from vidllm.engine import LoopWatch, TextStream, choose, generate, greedy
from vidllm.errors import ConfigError, ModelError
from vidllm.model.kv import KeyValues, State
from vidllm.options import GenerationOptions

END = 256


def byte_tokenizer() -> Tokenizer:
    """One token for every byte (ids in byte order), and </s>: no letter beyond ASCII is a single token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    of_byte = {tuple(letter.encode("utf-8")): letter for letter in alphabet}
    vocabulary = {letter: index for index, letter in enumerate(of_byte.values())}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def fallback_tokenizer() -> Tokenizer:
    """Llama's kind: words with a leading ▁, letters it has no word for as <0x..> bytes."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁The", "▁red", "▁circle", "▁", ".", "s"]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


@dataclass
class Parrot:
    """A VideoLMM that says what it was told to: its prediction depends only on how much it has read."""

    spec: Any
    tokenizer: Tokenizer
    says: list[int]
    interrupt_at: int = -1
    fingerprint: str = "parrot"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    def state(self, length: int = 0) -> State:
        logits = torch.zeros(self.tokenizer.get_vocab_size())
        logits[self.says[length] if length < len(self.says) else END] = 5.0
        return State(logits, length, KeyValues((), 0))

    def prefill(self, prompt: object, cache: object = None) -> State:
        return self.state()

    def extend(self, state: State, input_ids: list[int]) -> State:
        if state.length == self.interrupt_at:
            raise KeyboardInterrupt
        assert list(input_ids) == self.says[state.length : state.length + len(input_ids)]
        return self.state(state.length + len(input_ids))

    def rewind(self, state: State, length: int | None = None) -> State:
        return self.state(state.length if length is None else length)


@pytest.fixture(scope="module")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Parrot]:
    """text -> a model that says it and then ends its turn."""
    folder = tmp_path_factory.mktemp("parrot")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": END}))
    tokenizer = byte_tokenizer()

    def make(text: str, **more: Any) -> Parrot:
        return Parrot(SimpleNamespace(folder=folder), tokenizer, tokenizer.encode(text).ids, **more)

    return make


# ------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    "text",
    ["At 0:14.", "红色的圆向右移动。", "naïve café 🎬", "1\u202f080 p", "two\n\nlines", "a  b", "👩\u200d👧 family"],
)
def test_pieces_are_whole_characters_and_join_to_the_text(parrot: Callable[..., Parrot], text: str) -> None:
    model = parrot(text)
    pieces = list(generate(model, model.state(), GenerationOptions()))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 1  # it streams: the text does not come in one piece at the end


BYTES = byte_tokenizer()


@settings(deadline=None)
@given(st.text(max_size=40), st.lists(st.text("ab#\n界", min_size=1, max_size=3), max_size=2))
def test_whatever_is_said_the_pieces_join_to_it_up_to_the_first_stop_text(text: str, stop: list[str]) -> None:
    """The truth by plain string methods: of several stop texts the one that is complete first ends the answer."""
    stream = TextStream(lambda ids: BYTES.decode(ids), stop)
    pieces = [stream.push(token) for token in BYTES.encode(text).ids]
    heard = next((text[:n] for n in range(len(text) + 1) if any(end in text[:n] for end in stop)), text)
    ends = [heard.find(end) for end in stop if end in heard]
    assert "".join([*pieces, stream.finish()]) == heard[: min(ends, default=len(heard))].strip()
    assert stream.stopped == bool(ends)


def test_llama_tokenizer_keeps_spaces_between_words_and_joins_bytes() -> None:
    tokenizer = fallback_tokenizer()
    words = ["▁The", "▁red", "▁circle", "s", "▁", "<0xE5>", "<0x9C>", "<0x86>", "."]
    ids = [tokenizer.token_to_id(word) for word in words]
    stream = TextStream(lambda some: tokenizer.decode(some, skip_special_tokens=True))
    pieces = [stream.push(token) for token in ids] + [stream.finish()]
    assert "".join(pieces) == "The red circles 圆." == tokenizer.decode(ids)
    assert pieces[0] == "The"
    assert pieces[1] == " red"


def test_a_broken_character_does_not_swallow_what_follows() -> None:
    """Llama's decoder gives up a whole row of bytes for one that is broken, those already shown among them."""
    tokenizer = fallback_tokenizer()
    whole, broken = ["<0xE5>", "<0x9C>", "<0x86>"], ["<0xE5>", "<0x9C>"]
    ids = [tokenizer.token_to_id(word) for word in [*whole, *broken, "▁red", "▁circle", "s"]]
    stream = TextStream(lambda some: tokenizer.decode(some, skip_special_tokens=True))
    assert "".join([*map(stream.push, ids), stream.finish()]) == "圆\ufffd\ufffd red circles"


def test_half_a_character_at_the_end_is_shown_as_the_tokenizer_shows_it(parrot: Callable[..., Parrot]) -> None:
    model = parrot("圆圆")
    result = generate(model, model.state(), GenerationOptions(max_new_tokens=5)).result
    assert result.text == "圆\ufffd"
    assert result.finish_reason == "length"


def test_outer_space_is_left_out_and_inner_space_kept(parrot: Callable[..., Parrot]) -> None:
    model = parrot("\n  a \n b \n")
    pieces = list(generate(model, model.state(), GenerationOptions()))
    assert "".join(pieces) == "a \n b"


def test_an_empty_answer_is_an_empty_text(parrot: Callable[..., Parrot]) -> None:
    model = parrot("")
    generation = generate(model, model.state(), GenerationOptions())
    assert list(generation) == []
    assert (generation.result.text, generation.result.token_ids) == ("", ())
    assert generation.result.finish_reason == "stop"


# ------------------------------------------------------------------------------------------------------- stops


def test_length_counts_tokens_and_says_so(parrot: Callable[..., Parrot]) -> None:
    model = parrot("abcdefgh")
    result = generate(model, model.state(), GenerationOptions(max_new_tokens=3)).result
    assert (result.text, result.finish_reason, len(result.token_ids)) == ("abc", "length", 3)


def test_an_answer_that_just_fits_is_cut_by_length_not_finished(parrot: Callable[..., Parrot]) -> None:
    """Three letters and room for three tokens: nobody asked the model whether it was done."""
    model = parrot("abc")
    assert generate(model, model.state(), GenerationOptions(max_new_tokens=3)).result.finish_reason == "length"
    assert generate(model, model.state(), GenerationOptions(max_new_tokens=4)).result.finish_reason == "stop"


def test_a_stop_text_ends_the_answer_and_no_part_of_it_is_streamed(parrot: Callable[..., Parrot]) -> None:
    model = parrot("At 0:14.\nUSER: and then?")
    pieces = list(generation := generate(model, model.state(), GenerationOptions(stop=("\nUSER:", "###"))))
    assert "".join(pieces) == "At 0:14." == generation.result.text
    assert generation.result.finish_reason == "stop"


def test_what_only_looks_like_a_stop_text_is_released(parrot: Callable[..., Parrot]) -> None:
    model = parrot("a ##b #")
    pieces = list(generate(model, model.state(), GenerationOptions(stop=("###",))))
    assert "".join(pieces) == "a ##b #"
    assert "#" not in pieces[0]


def test_the_earliest_stop_text_wins(parrot: Callable[..., Parrot]) -> None:
    model = parrot("one two three")
    assert generate(model, model.state(), GenerationOptions(stop=("three", "two"))).result.text == "one"


# ------------------------------------------------------------------------------------------------- repetition


def looped_after(ids: list[int]) -> int | None:
    watch = LoopWatch()
    return next((count for count, token in enumerate(ids, start=1) if watch.push(token)), None)


def test_loops_are_found_as_soon_as_the_rule_holds() -> None:
    assert looped_after([7] * 100) == 32  # one token: 32 copies
    assert looped_after([1, 2, 3] + [4, 5, 6, 7, 8, 9, 10, 11] * 20) == 3 + 4 * 8  # a line of 8 tokens: 4 copies
    assert looped_after(list(range(64)) * 5) == 4 * 64
    assert looped_after(list(range(65)) * 9) is None  # longer than the longest unit looked for


def test_lists_and_emphasis_are_no_loops() -> None:
    lines = [token for number in range(200) for token in (1, 2, 1000 + number, 3, 4)]  # "- 0:01 red", "- 0:02 red"
    assert looped_after(lines) is None
    assert looped_after([1, 2, 3, 4, 5] * 3 + [6]) is None
    assert looped_after([9] * 31 + [8] + [9] * 31) is None


def test_a_loop_ends_the_answer_and_is_named(parrot: Callable[..., Parrot]) -> None:
    model = parrot("ha! " * 100)
    result = generate(model, model.state(), GenerationOptions(max_new_tokens=400)).result
    assert (result.finish_reason, result.text) == ("repetition", ("ha! " * 8).strip())
    free = generate(model, model.state(), GenerationOptions(max_new_tokens=401, stop_on_loop=False)).result
    assert (free.finish_reason, len(free.text)) == ("stop", 399)


# --------------------------------------------------------------------------------------------------- choosing


def draws(options: GenerationOptions, logits: torch.Tensor, count: int = 2000) -> Counter[int]:
    generator = torch.Generator().manual_seed(options.seed)
    return Counter(choose(logits, options, generator) for _ in range(count))


LOGITS = torch.log(torch.tensor([0.1, 0.5, 0.25, 0.15]))


def test_greedy_takes_the_likeliest() -> None:
    assert draws(GenerationOptions(), LOGITS, 10) == {1: 10}


def test_sampling_follows_the_probabilities() -> None:
    counts = draws(GenerationOptions(temperature=1.0), LOGITS)
    assert [counts[i] / 2000 for i in range(4)] == pytest.approx([0.1, 0.5, 0.25, 0.15], abs=0.04)


def test_temperature_sharpens_as_its_definition_says() -> None:
    """At temperature 0.5 probabilities are squared: 0.01, 0.25, 0.0625, 0.0225 of 0.345."""
    counts = draws(GenerationOptions(temperature=0.5), LOGITS)
    assert counts[1] / 2000 == pytest.approx(0.25 / 0.345, abs=0.04)


def test_top_p_keeps_the_fewest_that_hold_it_and_top_k_the_likeliest() -> None:
    assert set(draws(GenerationOptions(temperature=1.0, top_p=0.7), LOGITS)) == {1, 2}
    assert set(draws(GenerationOptions(temperature=1.0, top_p=0.8), LOGITS)) == {1, 2, 3}
    assert set(draws(GenerationOptions(temperature=1.0, top_p=0.01), LOGITS)) == {1}
    assert set(draws(GenerationOptions(temperature=1.0, top_p=1e-300), LOGITS)) == {1}
    assert set(draws(GenerationOptions(temperature=1.0, top_k=3), LOGITS)) == {1, 2, 3}


def test_choices_at_the_edge_of_what_is_allowed() -> None:
    assert set(draws(GenerationOptions(temperature=1.0, top_k=1000), LOGITS)) == {0, 1, 2, 3}  # four words are all
    assert draws(GenerationOptions(temperature=1e-60), LOGITS, 10) == {1: 10}  # nothing is left of it in float32


def test_a_seed_may_be_of_any_length(parrot: Callable[..., Parrot]) -> None:
    model = parrot("x")
    options = GenerationOptions(temperature=1.0, top_k=1, seed=10**30, max_new_tokens=1)
    assert generate(model, model.state(), options).result.text == "x"


def test_the_same_seed_says_the_same() -> None:
    def said(seed: int) -> tuple[int, ...]:
        generator = torch.Generator().manual_seed(seed)
        options = GenerationOptions(temperature=1.0, seed=seed)
        return tuple(choose(LOGITS, options, generator) for _ in range(50))

    assert said(1) == said(1)
    assert said(1) != said(2)


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
def test_a_number_that_is_none_is_an_error_however_it_is_chosen(broken: float) -> None:
    logits = torch.tensor([0.0, broken, 1.0])
    for options in (GenerationOptions(), GenerationOptions(temperature=1.0)):
        with pytest.raises(ModelError, match="float32"):
            choose(logits, options, torch.Generator())
    assert greedy(torch.stack([logits, torch.zeros(3)])) == [None, 0]


def test_a_special_token_amid_an_answer_joins_no_words() -> None:
    """Its text is empty; what follows was decoded as if it began the answer, without its space."""
    tokenizer = fallback_tokenizer()
    tokenizer.add_special_tokens(["<x>"])
    ids = [tokenizer.token_to_id(word) for word in ("▁red", "<x>", "<x>", "▁circle", "<x>")]
    stream = TextStream(lambda some: tokenizer.decode(some, skip_special_tokens=True))
    assert "".join(stream.push(token) for token in ids) + stream.finish() == tokenizer.decode(ids) == "red circle"


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0}, {"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5},
        {"top_k": -1}, {"stop": ("",)},
    ],
)  # fmt: skip
def test_impossible_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        GenerationOptions(**wrong)


# ------------------------------------------------------------------------------------------------- interruption


def test_ctrl_c_flies_and_leaves_the_state_as_it_was(parrot: Callable[..., Parrot]) -> None:
    model = parrot("At 0:14.", interrupt_at=4)
    state = model.state()
    generation = generate(model, state, GenerationOptions())
    heard: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        heard.extend(generation)
    with pytest.raises(ModelError, match="interrupted"):
        _ = generation.result
    model.interrupt_at = -1
    assert generate(model, state, GenerationOptions()).result.text == "At 0:14."


def test_the_end_of_turn_token_is_not_read_and_not_part_of_the_answer(parrot: Callable[..., Parrot]) -> None:
    model = parrot("ab")
    result = generate(model, model.state(), GenerationOptions()).result
    assert result.token_ids == tuple(model.says)
    assert result.state.length == 2
    assert END not in result.token_ids


def test_nothing_is_computed_before_it_is_asked_for(parrot: Callable[..., Parrot]) -> None:
    model = parrot("ab", interrupt_at=0)
    generate(model, model.state(), GenerationOptions())  # would raise KeyboardInterrupt if it began
