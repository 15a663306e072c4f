"""A file that is replaced as a whole: the old text or the new one, never half of it."""

from __future__ import annotations

import os
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


def test_what_can_not_be_written_leaves_the_old_text_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="no room left"):
        write_whole(path, "new")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"rows.jsonl": "old"}
