"""Rows of JSON lines: each with its line, and one fault for one cause."""

import json
from pathlib import Path
from typing import Any

import pytest

from vidllm.corpus.inputs import admit
from vidllm.jsonrows import json_rows
from vidllm.train.rows import read_rows

ROW = {"id": "one", "video": "a.mp4", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]}
PRETTY = json.dumps(ROW, indent=2)
FAULTY = PRETTY.replace('"a.mp4",', '"a.mp4"')
CLIP = {"video": "a.mp4"}
PLAIN = json.dumps(CLIP)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{PLAIN}\n\n{PLAIN}", [(1, CLIP), (3, CLIP)]),
        (PRETTY, [(1, "the row goes on to line 14")]),
        (f"\n{PLAIN}\n{PRETTY}\n\n{PLAIN}\n", [(2, CLIP), (3, "goes on to line 16"), (18, CLIP)]),
        (f"\n{FAULTY}\n{PLAIN}\n", [(2, "Expecting ',' delimiter: line 5 column 3"), (16, CLIP)]),
        (f'{{"video":\n{PLAIN}\n', [(1, "Expecting value: line 2 column 1"), (2, CLIP)]),
        (f"{{oops\n{{oops\n5\n{PLAIN}", [(1, "property name"), (2, "property name"), (3, 5), (4, CLIP)]),
        ("oops\noops\n", [(1, "Expecting value"), (2, "Expecting value")]),
        (PRETTY + "}", [(1, "Extra data: line 14 column 2")]),
        ("", []),
    ],
)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_what_goes_wrong_over_several_lines_is_one_row(
    text: str, expected: list[tuple[int, Any]], as_bytes: bool
) -> None:
    lines: list[Any] = text.encode().splitlines(keepends=True) if as_bytes else text.split("\n")
    found = list(json_rows(lines))
    assert [number for number, _ in found] == [number for number, _ in expected]
    for (_, value), (_, wanted) in zip(found, expected, strict=True):
        assert wanted in str(value) if isinstance(value, Exception) else value == wanted


def test_a_pretty_printed_document_is_one_problem(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    file = tmp_path / "rows.jsonl"
    for text, said in ((FAULTY, "line 5 column 3"), (PRETTY, "goes on to line 15")):
        file.write_text(f"{json.dumps(ROW)}\n{text}\n")
        read = read_rows(file)
        assert len(read.rows) == 1
        [problem] = read.problems
        assert str(problem).startswith(f"{file}:2: no valid JSON line (")
        captioned, bad = admit([str(file)])
        assert captioned.problem is None
        assert bad.problem is not None
        assert bad.problem.startswith(f"{file}#2: no valid JSON line (")
        assert said in str(problem)
        assert said in bad.problem
