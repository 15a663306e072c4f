"""Rows as people write them: each is read whole, or told of with its file, its line and what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from vidllm.errors import RowError
from vidllm.train.row import Media, TrainRow
from vidllm.train.rows import read_pairs, read_rows

HUMAN, GPT = {"from": "human", "value": "<video>\nwhat happens?"}, {"from": "gpt", "value": "It moves."}


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """Empty files where rows look for their media: reading rows opens none."""
    for name in ("a.mp4", "b.mp4", "c.png", "d.png"):
        (tmp_path / name).touch()
    return tmp_path


def write(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def only(folder: Path, row: Any) -> TrainRow:
    read = read_rows(write(folder, row))
    assert not read.problems, str(read.problems[0])
    return read.rows[0]


def refused(folder: Path, row: Any) -> str:
    read = read_rows(write(folder, row))
    assert not read.rows
    return str(read.problems[0])


def test_llavas_form(media: Path) -> None:
    row = only(media, {"id": "x", "video": "a.mp4", "conversations": [HUMAN, GPT]})
    assert str(row.origin) == f"{media / 'rows.jsonl'}:1 (x)"
    assert [(t.role, t.text) for t in row.turns] == [("user", "what happens?"), ("assistant", "It moves.")]
    assert row.media == (Media(kind="video", path=str(media / "a.mp4")),)


def test_chat_messages_with_placeholders_in_several_turns(media: Path) -> None:
    row = only(media, {"videos": ["a.mp4", "b.mp4"], "images": ["c.png"], "messages": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "<image>\n<video>\nsame place?"}, {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And this?\n<video>"}, {"role": "assistant", "content": "No."},
    ]})  # fmt: skip
    shown = [[Path(m.path).name for m in turn.media] for turn in row.turns]
    assert shown == [[], ["c.png", "a.mp4"], [], ["b.mp4"], []]
    assert row.turns[1].text == "same place?"
    assert row.turns[3].text == "And this?"


def test_parts_may_name_their_files(media: Path) -> None:
    parts = [{"type": "video", "video": "a.mp4"}, {"type": "image", "path": "c.png"}, {"type": "text", "text": "same?"}]
    row = only(media, {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "Yes."}]})
    assert [(m.kind, Path(m.path).name) for m in row.turns[0].media] == [("video", "a.mp4"), ("image", "c.png")]


@pytest.mark.parametrize(
    "part",
    [{"type": "image", "url": "c.png"}, {"type": "image_url", "image_url": {"url": "c.png"}},
     {"type": "image", "image": None, "path": "c.png"}],
)  # fmt: skip
def test_parts_name_a_picture_as_openai_and_transformers_do(media: Path, part: dict[str, Any]) -> None:
    parts = [part, {"type": "text", "text": "same?"}]
    row = only(media, {"messages": [{"role": "user", "content": parts}, GPT]})
    assert row.media == (Media(kind="image", path=str(media / "c.png")),)


def test_parts_may_leave_files_to_the_list(media: Path) -> None:
    parts = [{"type": "text", "text": "what happens?"}, {"type": "video"}]
    row = only(media, {"video": "b.mp4", "messages": [{"role": "user", "content": parts}, GPT]})
    assert [Path(m.path).name for m in row.media] == ["b.mp4"]


@pytest.mark.parametrize(
    ("said", "text", "at"),
    [("Compare this:<image>\nwith that:<video>\nSame?", "Compare this:\nwith that:\nSame?", (13, 24)),
     ("One:\n<image>\n<video>\nsame?", "One:\n\n\nsame?", (5, 6)), ("Is <image> in <video>?", "Is  in ?", (3, 7)),
     ("<image>\n<video>\n same?", "same?", ()), (" <image> in <video>\n", "in ", (3,)),
     ("Same?\n<image>\n<video>\n", "Same?\n\n", (6, 7)), ("<image><video>", "", ())],
)  # fmt: skip
def test_media_stand_where_the_words_name_them(said: str, text: str, at: tuple[int, ...], media: Path) -> None:
    turns = [{"from": "human", "value": said}, GPT]
    first = only(media, {"image": "c.png", "video": "a.mp4", "conversations": turns}).turns[0]
    assert (first.text, first.at, [medium.kind for medium in first.media]) == (text, at, ["image", "video"])


@pytest.mark.parametrize(
    ("said", "text", "at"),
    [("what?\n<image>", "what?", ()), ("what?\n<image>\n", "what?", ()), ("<image>\nwhat?", "what?", ()),
     ("what is <image>", "what is ", (8,)), ("Here <image>\nyou see?", "Here \nyou see?", (5,)),
     ([{"type": "text", "text": "what?\n"}, {"type": "image"}], "what?\n", (6,)),
     ([{"type": "image"}, {"type": "text", "text": "what?"}], "what?", ())],
)  # fmt: skip
def test_a_last_line_of_nothing_but_a_picture_means_before_the_words(
    said: Any, text: str, at: tuple[int, ...], media: Path
) -> None:
    """LLaVA's data write the one picture of a turn before the words or behind them; a list of parts has an order."""
    first = only(media, {"image": "c.png", "messages": [{"role": "user", "content": said}, GPT]}).turns[0]
    assert (first.text, first.at, len(first.media)) == (text, at, 1)


def test_media_nobody_speaks_of_stand_before_the_first_question(media: Path) -> None:
    turns = [{"from": "human", "value": "and?"}, GPT, {"from": "human", "value": "<image>\nsee?"}, GPT]
    row = only(media, {"video": ["a.mp4", "b.mp4"], "image": "c.png", "conversations": turns})
    assert [[Path(m.path).name for m in turn.media] for turn in row.turns] == [["a.mp4", "b.mp4"], [], ["c.png"], []]


def test_llava_writes_image_where_it_means_its_video(media: Path) -> None:
    row = only(media, {"video": "a.mp4", "conversations": [{"from": "human", "value": "<image>\nwhat?"}, GPT]})
    assert row.media == (Media(kind="video", path=str(media / "a.mp4")),)


def test_a_json_list_knows_the_lines_of_its_rows(media: Path) -> None:
    good = {"id": 1, "video": "a.mp4", "conversations": [HUMAN, GPT]}
    path = media / "rows.json"
    path.write_text(json.dumps([good, {"id": "bad"}, good], indent=1), encoding="utf-8")
    read = read_rows(path)
    lines = path.read_text().splitlines()
    assert [row.origin.line for row in read.rows] == [2, 2 + len(json.dumps(good, indent=1).splitlines()) + 3]
    assert [problem.origin.line for problem in read.problems] == [lines.index('  "id": "bad"')]
    assert [row.origin.id for row in read.rows] == ["1", "1"]


def test_a_second_list_behind_the_first_is_told_of(media: Path) -> None:
    row = json.dumps({"id": "a", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]})
    (media / "two.json").write_text(f"[{row}]\n[{row}, {row}]\n")
    read = read_rows(media / "two.json")
    assert len(read.rows) == 1
    assert "more stands behind the list" in str(read.problems[0])


def test_the_items_of_a_list_on_one_line_have_numbers(media: Path) -> None:
    path = media / "rows.json"
    path.write_text(json.dumps([{"video": "a.mp4", "conversations": [HUMAN, GPT]}, {"conversations": []}]))
    read = read_rows(path)
    assert str(read.rows[0].origin) == f"{path}:1 (item 1)"
    assert str(read.problems[0]).startswith(f"{path}:1 (item 2): ")


def test_a_file_address_is_a_path(media: Path) -> None:
    """Rows written for Qwen's own processors name their clips so."""
    (media / "two words.mp4").touch()
    for name in (f"file://{media}/two words.mp4", (media / "two words.mp4").as_uri()):
        assert only(media, {"video": name, "conversations": [HUMAN, GPT]}).media[0].path == str(media / "two words.mp4")


def test_media_lie_in_the_folder_named(tmp_path: Path, media: Path) -> None:
    elsewhere = tmp_path / "lists"
    elsewhere.mkdir()
    path = write(elsewhere, {"video": "a.mp4", "conversations": [HUMAN, GPT]})
    assert "no file" in str(read_rows(path).problems[0])
    assert read_rows(path, media).rows[0].media[0].path == str(media / "a.mp4")


def conversation(*turns: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"id": "x", "conversations": list(turns), **more}


PLAIN = {"from": "human", "value": "what happens?"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("what?", "a row is an object, not a text"),
        ({"id": "x", "text": "?"}, "no 'conversations' or 'messages' in it; it has 'id', 'text'"),
        ({"id": "x", "conversation": [PLAIN, GPT]}, "did you mean 'conversations' where it says 'conversation'?"),
        (conversation(PLAIN, GPT, system="Be brief."), "'system' stands beside the turns; let it be the first turn"),
        ({"conversations": []}, "'conversations' is empty; give a list of turns"),
        (conversation(HUMAN, GPT), "says <video> and no video is given; add \"video\": a path"),
        (conversation(HUMAN, GPT, vidoe="a.mp4"), "did you mean 'video' where it says 'vidoe'?"),
        (conversation(PLAIN, GPT, vidoe="a.mp4"), "it shows no video; did you mean 'video' where it says 'vidoe'?"),
        (conversation(PLAIN, GPT, video="a.mp4", imgaes=["a.png"]), "did you mean 'image' where it says 'imgaes'?"),
        (conversation({"from": "human", "value": [{"type": "video", "video": "a.mp4"}]}, GPT, videos=["a.mp4"]),
         "a.mp4 is named in a turn and beside the turns; name it once"),
        (conversation(HUMAN, GPT, video=None), "no video is given; add \"video\": a path"),
        (conversation(HUMAN, GPT, video=["a.mp4", "b.mp4"]), "says <video> 1 times and 2 are given"),
        (conversation(HUMAN, GPT, video="none.mp4"), "no file"),
        (conversation(HUMAN, GPT, video="http://x/a.mp4"), "is a URL; download it first"),
        (conversation(HUMAN, GPT, video="file:///none.mp4"), "no file /none.mp4"),
        (conversation(HUMAN, GPT, video=7), "'video' names no file"),
        (conversation(HUMAN, video="a.mp4"), "it ends with a question; add the answer"),
        (conversation(HUMAN, {"from": "gpt", "value": " \n"}, video="a.mp4"), "answer 1 is empty"),
        (conversation(HUMAN, {"from": "gpt"}, video="a.mp4"), "conversations[1] has no words"),
        (conversation(HUMAN, {"from": "cat", "value": "?"}, video="a.mp4"), "conversations[1] is said by 'cat'"),
        (conversation(GPT, PLAIN, video="a.mp4"), "turn 1 is the assistant's"),
        (conversation(PLAIN, PLAIN, GPT, video="a.mp4"), "turn 2 is the user's"),
        (conversation(PLAIN, {"from": "gpt", "value": "<video>"}, video="a.mp4"), "the assistant says <video>"),
        (conversation({"from": "human", "value": ""}, GPT), "question 1 is empty"),
        (conversation(PLAIN, GPT, {"from": "system", "value": "x"}), "a system turn stands after the first"),
        (conversation({"from": "system", "value": "x"}), "a system turn only"),
        (conversation(HUMAN, GPT, video="a.mp4", start=3, end=None), "it shows a part of its video ('start': 3); cut"),
        (conversation(HUMAN | {"value": [{"type": "video", "video": "a.mp4", "video_end": "0:09"}]}, GPT),
         "conversations[0] shows a part of its video ('video_end': '0:09')"),
        (conversation(HUMAN | {"value": [{"type": "video", "video": ["c.png", "d.png"]}]}, GPT, videos=["a.mp4"]),
         "conversations[0] shows a list as its video; give the path of one file; of frames make a video first"),
        (conversation(PLAIN, GPT | {"weight": 0}, PLAIN, GPT), "conversations[1] says 'weight': 0, and every answer"),
        (conversation(PLAIN, GPT | {"loss": False}), "conversations[1] says 'loss': False"),
        (conversation(PLAIN, GPT, video_path="a.mp4"), "it shows nothing, and 'video_path' is not read; call it"),
        (conversation(PLAIN, GPT, img=["c.png"]), "it shows nothing, and 'img' is not read; call it"),
        (conversation(PLAIN, GPT, weight=0.5), "it says 'weight': 0.5, and every row is learnt alike; take that key"),
        (conversation(PLAIN, GPT, loss_weight=0), "it says 'loss_weight': 0, and every row is learnt alike"),
        (conversation(PLAIN, GPT | {"reasoning_content": "Hm."}), "[1] says 'reasoning_content', which is not learnt"),
        (conversation(PLAIN, {"from": "gpt", "value": "\ud800."}), "conversations[1] holds half a character"),
    ],
)
def test_a_bad_row_is_told_of_with_file_line_and_advice(media: Path, row: Any, said: str) -> None:
    problem = refused(media, row)
    assert said in problem
    assert problem.startswith(f"{media / 'rows.jsonl'}:1")
    assert "; " in problem


def test_a_problem_is_one_line_that_can_be_read(media: Path) -> None:
    """Names may hold line breaks, and a row may hold a whole picture where a file is to be named."""
    assert "(x y): no file" in (told := refused(media, conversation(PLAIN, GPT, video="a\nb.mp4") | {"id": "x\ny"}))
    assert "\n" not in told
    told = refused(media, conversation(PLAIN, GPT, image="data:image/png;base64," + "A" * 10**6))
    assert len(told) < 1000
    assert told.endswith("; put it there, or name the folder it lies in with media")


def test_keys_that_mean_something_else_are_let_alone(media: Path) -> None:
    assert not only(media, conversation(PLAIN, GPT, video_id="v_1", imageid="7", audio="a.wav", Video=None)).media
    told = {"from": "system", "value": "Be brief."}
    assert only(media, conversation(told, PLAIN, GPT, system="Be brief.")).turns[0].text == "Be brief."
    assert only(media, conversation(PLAIN | {"weight": 0}, GPT | {"weight": 1, "loss": True})).turns
    unsaid = GPT | {"reasoning_content": None}
    assert only(media, conversation(PLAIN | {"reasoning_content": "?"}, unsaid, weight=1.0, loss_weight="")).turns
    assert only(media, conversation(HUMAN, GPT, video="a.mp4", start=0, end=None)).media
    assert only(media, conversation(PLAIN, GPT, start=3)).turns  # of no video
    assert only(media, conversation(HUMAN, GPT, video="a.mp4", video_path="x/a.mp4", clip="a")).media
    assert only(media, conversation(PLAIN, GPT, video_id="a", clip=3, image_path="")).turns
    assert only(media, conversation(PLAIN, GPT, system="")).turns[0].role == "user"
    assert read_pairs(write(media, PAIR | {"references": ["a", "b"]})).rows


def test_what_is_nested_too_deep_is_told_with_its_line(media: Path) -> None:
    deep = '{"id": ' + "[" * 100_000 + "]" * 100_000 + "}"
    for text in (f"{deep}\n", f"[\n{deep}]"):
        (media / "rows.jsonl").write_text(text)
        [problem] = read_rows(media / "rows.jsonl").problems
        assert "no valid JSON" in str(problem)


def test_bad_rows_take_no_good_ones_with_them(media: Path) -> None:
    good = json.dumps({"video": "a.mp4", "conversations": [HUMAN, GPT]})
    path = media / "rows.jsonl"
    path.write_text(f"{good}\n\n{{oops\n{good}\n", encoding="utf-8")
    read = read_rows(path)
    assert [row.origin.line for row in read.rows] == [1, 4]
    assert str(read.problems[0]).startswith(f"{path}:3: no valid JSON")


def test_a_file_of_other_rows_is_one_error(media: Path) -> None:
    path = media / "rows.jsonl"
    path.write_text((json.dumps({"video": "a.mp4", "conversations": [HUMAN, GPT]}) + "\n") * 3)
    said = "not one of its 3 rows can be used: no 'prompt' in it (it has 'video', 'conversations'); name a file"
    with pytest.raises(RowError, match=re.escape(said)):
        read_pairs(path)


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_a_file_without_rows_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(RowError, match="not one row in it"):
        read_rows(path)


def test_no_file_and_no_text_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="no such file"):
        read_rows(tmp_path / "none.jsonl")
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RowError, match="no UTF-8"):
        read_rows(tmp_path / "rows.jsonl")


PAIR = {"id": "p", "video": "a.mp4", "prompt": "what happens?", "chosen": "It moves.", "rejected": "It stops."}


def test_a_pair(media: Path) -> None:
    noted = {"model": "ab", "chosen_logp": -1.5, "rejected_logp": -2}
    row = read_pairs(write(media, PAIR | {"reference": noted})).rows[0]
    assert (row.chosen, row.rejected, row.turns[0].text) == ("It moves.", "It stops.", "what happens?")
    assert row.media == (Media(kind="video", path=str(media / "a.mp4")),)
    assert row.reference is not None
    assert (row.reference.model, row.reference.rejected_logp) == ("ab", -2.0)


def test_a_pairs_prompt_may_be_a_dialogue(media: Path) -> None:
    said = [HUMAN, GPT, {"from": "human", "value": "and then?"}]
    answer = [{"role": "assistant", "content": "It grows."}]
    other = [{"role": "assistant", "content": [{"type": "text", "text": "It shrinks."}]}]  # as TRL writes it
    row = read_pairs(write(media, PAIR | {"prompt": said, "chosen": answer, "rejected": other})).rows[0]
    assert [turn.role for turn in row.turns] == ["user", "assistant", "user"]
    assert (row.chosen, row.rejected) == ("It grows.", "It shrinks.")


def test_two_whole_conversations_are_a_pair(media: Path) -> None:
    """TRL's form with an implicit prompt."""
    asked = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what happens?"}]}
    both = {key: [asked, {"role": "assistant", "content": PAIR[key]}] for key in ("chosen", "rejected")}
    [row] = read_pairs(write(media, PAIR | both | {"prompt": None})).rows
    assert [(turn.text, len(turn.media)) for turn in row.turns] == [("what happens?", 1)]
    assert row.answers == ("It moves.", "It stops.")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rejected": " It moves. "}, "chosen and rejected are the same"),
        ({"chosen": "  "}, "'chosen' is empty"),
        ({"prompt": ""}, "'prompt' asks nothing"),
        ({"prompt": "   "}, "'prompt' asks nothing"),
        ({"prompt": "<video>"}, "'prompt' asks nothing"),
        ({"prompt": [{"role": "user", "content": [{"type": "video"}]}]}, "'prompt' asks nothing"),
        ({"prompt": "what \ud83d?"}, r"prompt[0] holds half a character ('\ud83d')"),
        ({"chosen": "It \ud83d."}, r"chosen[0] holds half a character ('\ud83d')"),
        ({"video": "a" * 5000}, "put it there, or name the folder it lies in with media"),
        ({"prompt": [{"role": "system", "content": "Be brief."}, HUMAN | {"value": " "}]}, "'prompt' asks nothing"),
        ({"rejected": None}, "no 'rejected' in it; it has 'id', 'video'"),
        ({"rejected": None, "rejectd": "No."}, "no 'rejected' in it; did you mean 'rejected' where it says 'rejectd'?"),
        ({"refrence": {"model": "ab"}}, "it has no 'reference'; did you mean 'reference' where it says 'refrence'?"),
        ({"rejected": 3}, "rejected[0] has no words"),
        ({"chosen": [HUMAN, GPT]}, "'chosen' is not one answer; give its text alone"),
        ({"prompt": None}, "no 'prompt' in it"),
        ({"prompt": None, "chosen": [HUMAN, GPT], "rejected": [PLAIN, GPT]}, "no 'prompt' in it"),
        ({"chosen": "See <image>."}, "the assistant says <image>; only the user shows media"),
        ({"end": 8.5}, "it shows a part of its video ('end': 8.5)"),
        ({"prompt": [HUMAN, GPT]}, "its prompt ends with an answer"),
        ({"prompt": "<video><video>?"}, "says <video> 2 times and 1 are given"),
        ({"reference": {"model": "ab", "chosen_logp": float("nan"), "rejected_logp": 1}}, "'reference' is not as"),
        ({"reference": {"model": "ab", "chosen_logp": -(10**400), "rejected_logp": 1}}, "'reference' is not as"),
    ],
)
def test_a_bad_pair_is_told_of(media: Path, change: dict[str, Any], said: str) -> None:
    read = read_pairs(write(media, PAIR | change))
    assert not read.rows
    assert said in str(read.problems[0])
