"""A file that is replaced as a whole: the old text or the new one, never half of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vidllm.errors import OutputError
from vidllm.linefile import write_whole


@pytest.mark.skipif(os.name == "nt", reason="links as POSIX has them")
@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_one_and_the_text_lies_where_it_leads(there: bool, tmp_path: Path) -> None:
    far = tmp_path / "large disk"
    far.mkdir()
    if there:
        (far / "rows.jsonl").write_text("old")
    (tmp_path / "rows.jsonl").symlink_to(far / "rows.jsonl")
    write_whole(tmp_path / "rows.jsonl", "new")
    assert (tmp_path / "rows.jsonl").is_symlink()
    assert {path.name: path.read_text() for path in far.iterdir()} == {"rows.jsonl": "new"}


@pytest.mark.parametrize(
    ("raised", "told"),
    [(OSError(28, "No space left on device"), OutputError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_what_can_not_be_written_leaves_the_old_text_and_nothing_beside_it(
    raised: BaseException, told: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("old")

    def fail(handle: int) -> None:
        raise raised

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(told, match="no room left" if told is OutputError else None):
        write_whole(path, "new")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"rows.jsonl": "old"}


def test_lines_that_end_in_an_error_leave_the_old_text_and_nothing_beside_it(tmp_path: Path) -> None:
    def lines() -> Iterator[str]:
        yield "new\n"
        raise ValueError("row 2")

    write_whole(path := tmp_path / "rows.jsonl", iter(["old\n", "too\n"]))
    with pytest.raises(ValueError, match="row 2"):
        write_whole(path, lines())
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"rows.jsonl": "old\ntoo\n"}


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="its folder is not there"):
        write_whole(tmp_path / "file" / "rows.jsonl", "new")
