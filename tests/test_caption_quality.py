"""What is a caption, and what is asked differently when an answer is none."""

from __future__ import annotations

import pytest

from vidllm.corpus.quality import Judgement, is_loop, judge, next_sampling, unthought
from vidllm.options import GenerationOptions

GOOD = "The red circle moves right. Then the blue square disappears. Then the red circle moves left."


@pytest.mark.parametrize(
    ("text", "finish", "status"),
    [
        (GOOD, "stop", "ok"),
        (GOOD, "length", "truncated"),
        (GOOD, "repetition", "repetitive"),
        ("", "stop", "error"),
        (" \n ", "length", "error"),
        ("I'm sorry, but I can't view videos.", "stop", "error"),
        ("I cannot see the video you mention.", "stop", "error"),
        ("As an AI language model I have no eyes.", "stop", "error"),
        ("A man says: I'm sorry. I can't see you.", "stop", "ok"),
        ("I can see a dog that runs.", "stop", "ok"),
        ("the dog runs " * 10, "stop", "repetitive"),
        ("the dog runs " * 10, "length", "repetitive"),
        ("The yellow " + "square " * 9 + "..", "stop", "repetitive"),
        ("The yellow" + " square" * 6 + "..", "stop", "repetitive"),
        ("No, no, no, no, no... no! And then it ends.", "stop", "repetitive"),
        ("no " * 15, "stop", "repetitive"),
        ("one two three four " * 4, "stop", "repetitive"),
        ("The dog, runs. " * 5 + "The dog runs ...", "stop", "repetitive"),
        ("哈" * 80, "stop", "repetitive"),
        ("视频中," + "一只棕色的狗在绿色的草地上奔跑。" * 4, "stop", "repetitive"),
        ("一只狗在草地上奔跑,然后停下来。", "stop", "ok"),
    ],
)
def test_an_answer_is_judged_by_its_words_and_its_end(text: str, finish: str, status: str) -> None:
    judged = judge(text, finish)
    assert judged.status == status
    assert (judged.cause is None) == (status == "ok")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ('{"summary": "A dog runs."}', "ok"),
        ('\n```json\n{"summary": "A dog runs."}\n```\n', "ok"),
        ('["A dog runs."]', "error"),
        ('Here you are: {"summary": "A dog runs."}', "error"),
        ('{"summary": "A dog', "error"),
    ],
)
def test_a_structured_caption_is_a_json_object(text: str, status: str) -> None:
    assert judge(text, "stop", structured=True).status == status


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "Two men walk. Two men walk. Two men walk.",  # said three times is emphasis
        "She counts: " + "one two three four " * 3 + "and stops.",
        "At 0:01 the dog runs. At 0:02 the dog runs. At 0:03 the dog runs. At 0:04 the dog runs. At 0:05 it stops.",
        "no no no no, she says",
        "Very, very, very, very, very far away.",
        '{"counts": [0, 0, 0, 0, 0, 0, 0, 0], "of": "circles"}',
        "- - - - - - - - A dash between words is no word. - - - - - - - -",
        "The score reads 1 1 1 1 1 1 1 1.",
        "----------------------------------------",
    ],
)
def test_lists_and_emphasis_are_no_loops(text: str) -> None:
    assert not is_loop(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD, GOOD),
        (f"<think>\nA man? No.\n</think>\n\n{GOOD}", GOOD),
        (f"A man? No.\n</think>\n\n{GOOD}", GOOD),
        ("<think>\nA man? No, a", ""),
        ("<think>a</think> <think>b", ""),
        (f"<thinking>A man?</thinking> {GOOD}", GOOD),
        (f"[THINK]A man? No.[/THINK]{GOOD}", GOOD),
        (f"◁think▷A man? No.◁/think▷\n{GOOD}", GOOD),
        ("◁think▷A man? No, a", ""),
    ],
)
def test_what_a_model_thinks_is_no_caption(text: str, said: str) -> None:
    assert unthought(text) == said


def test_a_caption_there_was_no_room_for_says_what_to_raise() -> None:
    assert judge("", "length") == Judgement(
        "error", "the model said nothing in the room it had; raise --max-new-tokens"
    )


def test_a_loop_is_found_in_the_middle() -> None:
    assert is_loop("A man walks. " + "and then he turns around " * 5 + "and goes home, where he sleeps until noon.")


def test_every_try_samples_in_another_way() -> None:
    first = GenerationOptions()
    tries = [next_sampling(first, n, Judgement("repetitive", "")) for n in (1, 2, 3)]
    assert [(o.temperature, o.top_p) for o in tries if o] == [(0.7, 0.95), (1.0, 0.95), (1.0, 0.95)]
    assert len({o.seed for o in tries if o}) == 3


def test_a_run_that_samples_already_becomes_bolder() -> None:
    again = next_sampling(GenerationOptions(temperature=0.8, seed=5), 1, Judgement("truncated", ""))
    assert again is not None
    assert again.temperature > 0.8
    assert again.seed != 5


def test_a_truncated_caption_gets_room_only_where_nobody_set_it() -> None:
    first = GenerationOptions(max_new_tokens=100)
    roomy, tight = (next_sampling(first, 1, Judgement("truncated", ""), roomy=r) for r in (True, False))
    assert roomy is not None
    assert tight is not None
    assert (roomy.max_new_tokens, tight.max_new_tokens) == (200, 100)


def test_a_good_caption_is_not_asked_for_again() -> None:
    assert next_sampling(GenerationOptions(), 1, Judgement("ok")) is None
