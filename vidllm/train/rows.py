"""Rows to learn from: conversations and preferences about videos and pictures, read from JSON or JSONL. No torch.

    {"id": .., "video": "a.mp4", "conversations": [{"from": "human", "value": "<video>\\nwhat happens?"},
                                                   {"from": "gpt", "value": "The red circle moves right."}]}
    {"messages": [{"role": "user", "content": "<image>\\nwhere is this?"}, ...], "images": [..], "videos": [..]}
    {"id": .., "video": "a.mp4", "prompt": "what happens?", "chosen": "..", "rejected": ".."}

Every row is read or told of: a file gives its rows and its problems, each with file, line and what to do. None is
dropped in silence and none is repaired by guessing.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from vidllm.errors import RowError
from vidllm.jsonrows import json_rows
from vidllm.train.places import Folder, RawTurn, Shown, check_absent, check_says, check_whole, led, place_media
from vidllm.train.row import Bad, Media, Origin, PairRow, Problem, ReadRows, Reference, Role, TrainRow, Turn

_BETWEEN = re.compile(r"[, \t\r\n]*")
"""What stands between the items of a list."""
Json = Mapping[str, Any]
Row = TypeVar("Row")


def read_rows(path: Path | str, media: Path | str | None = None) -> ReadRows[TrainRow]:
    """Conversations in LLaVA's form or as chat messages, mixed at will. Paths of media are relative to `media`, else to
    the folder of the file.

    Raises:
        RowError: there is no such file, or nothing in it is a row.
    """
    return read_each(Path(path), media, _train_row)


def read_pairs(path: Path | str, media: Path | str | None = None) -> ReadRows[PairRow]:
    """Preference rows; `prompt` is a text, chat messages or LLaVA's turns, or what `chosen` and `rejected` begin with.
    Paths and errors as `read_rows`.
    """
    return read_each(Path(path), media, _pair_row)


def read_each(path: Path, media: Path | str | None, build: Callable[[Json, Origin, Folder], Row]) -> ReadRows[Row]:
    """What `build` makes of every object in the file; the lines it refuses (Bad) are problems."""
    folder = Folder(Path(media) if media is not None else path.parent)
    rows: list[Row] = []
    problems: list[Problem] = []
    for line, name, value in _values(path):
        origin = Origin(file=str(path), line=line, id=_id(value) or name)
        try:
            if isinstance(value, Bad):
                raise value
            if not isinstance(value, dict):
                raise Bad(f"a row is an object, not {_kind(value)}", "write {...}")
            rows.append(build(value, origin, folder))
        except Bad as bad:
            problems.append(Problem(origin=origin, what=bad.what, do=bad.do))
    if not rows and not problems:
        raise RowError(f"{path}: not one row in it; give JSONL, a row a line, or a JSON list of rows")
    if not rows and len(problems) > 1 and len({problem.what for problem in problems}) == 1:
        one = problems[0]  # another kind of file: one cause, not one a line
        raise RowError(f"{path}: not one of its {len(problems):,} rows can be used: {one.what} ({one.do}); name a file "
                       "of the rows that this command takes")  # fmt: skip
    return ReadRows(rows=tuple(rows), problems=tuple(problems))


def _values(path: Path) -> Iterator[tuple[int, str, Any]]:
    """(line, name, parsed value) of every row, or Bad where it is no JSON. The items of a list, which may all stand on
    one line, are named by number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise RowError(f"{path}: no such file of rows; check the path") from error
    except OSError as error:
        raise RowError(f"{path}: can not be read ({error.strerror}); give a JSON or JSONL file") from error
    except UnicodeDecodeError as error:
        raise RowError(f"{path}: is no UTF-8 text (byte {error.start}); give a JSON or JSONL file") from error
    return _items(text) if text.lstrip()[:1] == "[" else _lines(text)


def _lines(text: str) -> Iterator[tuple[int, str, Any]]:
    do = "write one whole JSON object on the line, or a list of them in the file"
    for number, value in json_rows(text.split("\n")):
        yield number, "", Bad(f"no valid JSON line ({value})", do) if isinstance(value, Exception) else value


def _items(text: str) -> Iterator[tuple[int, str, Any]]:
    """The items of a JSON list, one by one, so that each knows its line."""
    decoder, at, line, seen = json.JSONDecoder(), text.index("[") + 1, 1, 0
    for number in count(1):
        at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
        line, seen = line + text.count("\n", seen, at), at
        if text.startswith("]", at):
            if text[at + 1 :].strip():
                yield line, "", Bad("more stands behind the list", "put all rows into one list, or one a line")
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield line, f"item {number}", Bad(f"no valid JSON ({error})", "mend it here; what follows was not read")
            return
        yield line, f"item {number}", value


def _id(value: Any) -> str:
    found = value.get("id", "") if isinstance(value, dict) else ""
    return str(found) if isinstance(found, (str, int)) else ""


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")


def _train_row(row: Json, origin: Origin, folder: Folder) -> TrainRow:
    key = one_of(row, ("conversations", "messages"))
    turns = place_media(row, turns_of(row, key), folder)
    check_order(turns, row)
    _check_learnt(row, key)
    if turns[-1].role != "assistant":
        raise Bad("it ends with a question", "add the answer, or leave the last turn out")
    return TrainRow(origin=origin, turns=turns)


UNLEARNT = ("weight", "loss", "train")
"""What OpenAI, ms-swift and axolotl write into an answer that is to be said and not learnt."""
THOUGHT = "reasoning_content"
"""What was thought before an answer, in a key beside it: no template here is given it."""


def _check_learnt(row: Json, where: str) -> None:
    """Raises Bad for a row, or an answer in it, that says of itself that it is not to be learnt, or not as much as
    others; and for thoughts that would be left out."""
    if key := next((key for key in ("weight", "loss_weight") if row.get(key) not in (None, 1, "")), None):
        raise Bad(f"it says {key!r}: {row[key]!r}, and every row is learnt alike", "take that key out, or the row")
    for number, turn in enumerate(row[where] if isinstance(row[where], list) else ()):
        said = f"{where}[{number}] says"
        if ROLES[_role(turn).lower()] != "assistant":
            continue
        if turn.get(THOUGHT):
            raise Bad(f"{said} {THOUGHT!r}, which is not learnt", "write it into the answer, or take that key out")
        for key in UNLEARNT:
            if turn.get(key) not in (None, 1):
                raise Bad(f"{said} {key!r}: {turn[key]!r}, and every answer is learnt alike",
                          "end the row before it, or take that key out")  # fmt: skip


def _pair_row(row: Json, origin: Origin, folder: Folder) -> PairRow:
    row = _with_prompt(row)
    prompt = row.get(one_of(row, ("prompt",)))
    said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    turns = place_media(row, turns_of({"prompt": said}, "prompt"), folder)
    check_order(turns, row)
    if turns[-1].role == "user" and not turns[-1].text:  # a clip alone is no question
        raise Bad("'prompt' asks nothing", "write what was asked, or leave the row out")
    if turns[-1].role != "user":
        raise Bad("its prompt ends with an answer", "end it with the user's turn; chosen and rejected answer it")
    chosen, rejected = (_answer(row, key) for key in ("chosen", "rejected"))
    if chosen == rejected:
        raise Bad("chosen and rejected are the same", "leave the row out, it teaches nothing")
    return PairRow(origin=origin, turns=turns, chosen=chosen, rejected=rejected, reference=_reference(row))


def _with_prompt(row: Json) -> Json:
    """The row with a prompt: of two whole conversations, as TRL may write a pair, what both begin with."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if row.get("prompt") is not None or not (isinstance(chosen, list) and isinstance(rejected, list)):
        return row
    if len(chosen) < 2 or chosen[:-1] != rejected[:-1]:
        return row
    return {**row, "prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def one_of(row: Json, keys: tuple[str, ...]) -> str:
    """The first of `keys` that the row has. Raises Bad."""
    found = next((key for key in keys if row.get(key) is not None), None)
    if found is None:
        near = [(key, like) for key in keys for like in difflib.get_close_matches(key, row.keys() - set(keys), n=1)]
        hint = f"did you mean {near[0][0]!r} where it says {near[0][1]!r}?" if near else (
            f"it has {', '.join(map(repr, row)) or 'no keys'}")  # fmt: skip
        raise Bad(f"no {' or '.join(map(repr, keys))} in it", hint)
    return found


ROLES: dict[str, Role] = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
    "model": "assistant", "bot": "assistant",
}  # fmt: skip


def turns_of(row: Json, key: str) -> list[RawTurn]:
    """The turns under `key`, placeholders still in their texts. Raises Bad."""
    value = row[key]
    if not isinstance(value, list) or not value:
        raise Bad(f"{key!r} is {'empty' if value == [] else _kind(value)}", "give a list of turns")
    return [_turn(turn, f"{key}[{i}]") for i, turn in enumerate(value)]


def _turn(turn: Any, where: str) -> RawTurn:
    if not isinstance(turn, dict):
        raise Bad(f"{where} is {_kind(turn)}", 'write {"role": .., "content": ..} or {"from": .., "value": ..}')
    role = _role(turn)
    content = turn.get("content", turn.get("value"))
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise Bad(f"{where} is said by {role!r}", f"name one of {', '.join(ROLES)}")
    if isinstance(content, str):
        return RawTurn(ROLES[role.lower()], led(whole(content, where)))
    if not isinstance(content, list):
        raise Bad(f"{where} has no words", "give a text as its content (or value)")
    return _parts(ROLES[role.lower()], content, where)


def _role(turn: Json) -> Any:
    return turn.get("role", turn.get("from"))


_SHOWN: dict[str, Shown] = {"image": "image", "video": "video", "image_url": "image", "video_url": "video"}
"""Types of parts: transformers', then OpenAI's."""


def _parts(role: Role, content: list[Any], where: str) -> RawTurn:
    """A content of parts: each medium becomes a placeholder in its place; those that name their file are the turn's
    own."""
    text, own = "", []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text += whole(part["text"], where)
        elif isinstance(kind, str) and kind in _SHOWN:
            text += f"<{_SHOWN[kind]}>"
            own += _own(part, _SHOWN[kind], where)
        else:
            raise Bad(f"{where} has a part of type {kind!r}", "use text, image and video")
    return RawTurn(role, text, tuple(own))


def _own(part: Json, kind: Shown, where: str) -> list[Media]:
    """The file that a part names, under one of the keys in use; none where it leaves that to the row's list. Raises Bad
    for what is no name: the list's file would be shown in its place."""
    if kind == "video":
        check_whole(part, where)
    value = next((part[key] for key in (kind, f"{kind}_url", "path", "url") if part.get(key) is not None), None)
    name: Any = value.get("url") if isinstance(value, dict) else value
    if value is None or (isinstance(name, str) and name):
        return [] if value is None else [Media(kind=kind, path=name)]
    more = "; of frames make a video first" if isinstance(value, list) else ""
    raise Bad(f"{where} shows {_kind(value)} as its {kind}", f"give the path of one file{more}")


def whole(text: str, where: str) -> str:
    r"""The text. Raises Bad for half a character (such as \ud83d): JSON can say it, no tokenizer and no file can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise Bad(f"{where} holds half a character ({half!a})", "write it whole, or leave it out") from error
    return text


def check_order(turns: tuple[Turn, ...], row: Json) -> None:
    """Raises Bad unless user and assistant speak in turn, the user first, and all that the row has them hear stands
    among the turns."""
    beside = row.get("system")
    if isinstance(beside, str) and beside.strip() and turns[0].role != "system":
        raise Bad("'system' stands beside the turns", "let it be the first turn, or leave it out: it would not be said")
    said = [turn for turn in turns if turn.role != "system"]
    if any(turn.role == "system" for turn in turns[1:]):
        raise Bad("a system turn stands after the first", "let it stand first")
    if not said:
        raise Bad("it has a system turn only", "add a question and its answer")
    for number, turn in enumerate(said):
        expected = ("user", "assistant")[number % 2]
        if turn.role != expected:
            raise Bad(f"turn {number + 1} is the {turn.role}'s", "let user and assistant speak in turn, the user first")
        if not turn.text and not turn.media:
            what = "question" if turn.role == "user" else "answer"
            raise Bad(f"{what} {number // 2 + 1} is empty", "write it, or leave the turn out")


def _answer(row: Json, key: str) -> str:
    """An answer as a text, or as the one assistant turn of a list."""
    value = row.get(one_of(row, (key,)))
    said = value if isinstance(value, list) else [{"role": "assistant", "content": value}]
    turns = turns_of({key: said}, key)
    if [turn.role for turn in turns] != ["assistant"]:
        raise Bad(f"{key!r} is not one answer", "give its text alone; the turns before it belong to 'prompt'")
    _check_learnt(row, key)
    check_says(turns[0])
    if not turns[0].text.strip():
        raise Bad(f"{key!r} is empty", "write the answer, or leave the row out")
    return turns[0].text.strip()


def _reference(row: Json) -> Reference | None:
    value = row.get("reference")
    if value is None:
        check_absent(row, ("reference",), "it has no 'reference'", dict)
        return None
    if isinstance(value, dict) and isinstance(value.get("model"), str):
        chosen, rejected = value.get("chosen_logp"), value.get("rejected_logp")
        if _is_number(chosen) and _is_number(rejected):
            noted = {key: str(value[key]) for key in ("dtype", "look") if value.get(key)}
            return Reference(model=value["model"], chosen_logp=float(chosen), rejected_logp=float(rejected), **noted)
    raise Bad(
        "'reference' is not as `vidllm feedback` writes it",
        'write {"model": .., "chosen_logp": .., "rejected_logp": ..} with finite numbers, or leave it out',
    )


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
