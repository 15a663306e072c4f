"""Checkpoints are there or not there: killed while writing, on a full disk, spoilt afterwards."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import full_disk
from vidllm.errors import CheckpointError
from vidllm.train.saves import Saves, differences
from vidllm.train.state import learnt

IDENTITY = {"model": "m", "batch": 4, "clip": None}


def saves(folder: Path, keep: int = 2, heard: list[str] | None = None) -> Saves:
    return Saves(folder, keep=keep, say=(heard if heard is not None else []).append)


def contents(step: int) -> dict[str, Any]:
    return {"weights.pt": {"w": torch.full((1000,), float(step))}, "run.pt": {"step": step, "words": ["a", None, 1.5]}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_is_found_and_read(tmp_path: Path) -> None:
    assert saves(tmp_path / "none").newest() is None
    saves(tmp_path).write(3, IDENTITY, contents(3))
    found = saves(tmp_path).newest()
    assert found is not None
    assert (found.step, found.identity, found.folder) == (3, IDENTITY, tmp_path / "step-00000003")
    assert torch.equal(found.load("weights.pt")["w"], torch.full((1000,), 3.0))
    assert found.load("run.pt") == {"step": 3, "words": ["a", None, 1.5]}


def test_only_the_newest_stay(tmp_path: Path) -> None:
    for step in (1, 2, 5, 9):
        saves(tmp_path, keep=2).write(step, IDENTITY, contents(step))
    assert names(tmp_path) == ["step-00000005", "step-00000009"]


def test_a_later_damaged_one_does_not_push_out_good_ones(tmp_path: Path) -> None:
    for step in (10, 20):
        saves(tmp_path, keep=1).write(step, IDENTITY, contents(step))
    (tmp_path / "step-00000020" / "weights.pt").write_bytes(b"gone")
    saves(tmp_path, keep=1).write(15, IDENTITY, contents(15))
    heard: list[str] = []
    found = saves(tmp_path, heard=heard).newest()
    assert found is not None
    assert found.step == 15
    assert heard == [f"{tmp_path}/step-00000020: weights.pt is damaged; passed over"]


def test_a_damaged_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    saves(tmp_path).write(4, IDENTITY, contents(4))
    (tmp_path / "step-00000004" / "run.pt").unlink()
    saves(tmp_path).write(4, IDENTITY, contents(4))
    heard: list[str] = []
    assert saves(tmp_path, heard=heard).newest() is not None
    assert not heard


def test_every_byte_counts(tmp_path: Path) -> None:
    """One flipped bit anywhere in any file, the manifest included, and the checkpoint is none."""
    saves(tmp_path).write(1, IDENTITY, contents(1))
    for path in sorted((tmp_path / "step-00000001").iterdir()):
        whole = path.read_bytes()
        for place in range(0, len(whole) - 1, max(1, len(whole) // 60)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1 :])
            assert saves(tmp_path).newest() is None, f"{path.name} byte {place}"
        path.write_bytes(whole)
        assert saves(tmp_path).newest() is not None


def test_another_format_is_passed_over(tmp_path: Path) -> None:
    saves(tmp_path).write(1, IDENTITY, contents(1))
    manifest = tmp_path / "step-00000001" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("vidllm checkpoint 1", "vidllm checkpoint 9"))
    heard: list[str] = []
    assert saves(tmp_path, heard=heard).newest() is None
    assert "written by another version (vidllm checkpoint 9, this one reads vidllm checkpoint 1)" in heard[0]


class Unkept:
    """Pickles to a call of os.system: what a foreign checkpoint might hold."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


def test_a_checkpoint_can_run_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saves(tmp_path / "c").write(1, IDENTITY, {"run.pt": Unkept()})
    found = saves(tmp_path / "c").newest()
    assert found is not None
    with pytest.raises(Exception, match="Weights only load failed"):
        found.load("run.pt")
    assert not Path("pwned").exists()


@pytest.mark.parametrize("left", [0, 200, 3000, 20_000])
def test_a_full_disk_leaves_the_last_one_whole(left: int, tmp_path: Path) -> None:
    saves(tmp_path).write(1, IDENTITY, contents(1))
    with full_disk(left), pytest.raises(CheckpointError) as told:
        saves(tmp_path).write(2, IDENTITY, {"weights.pt": {"w": torch.randn(9000)}})
    assert str(told.value).endswith(
        "step-00000002: can not be written (File too large); step-00000001 before it is untouched; make room and run "
        "the same command again"
    )
    assert names(tmp_path) == ["step-00000001"]
    assert saves(tmp_path).newest() is not None


def test_a_disk_that_fails_at_the_rename_leaves_the_last_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves(tmp_path).write(1, IDENTITY, contents(1))
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if self.name.startswith(".part-"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(CheckpointError, match=r"No space left on device\); step-00000001 before it is untouched"):
        saves(tmp_path).write(2, IDENTITY, contents(2))
    assert names(tmp_path) == ["step-00000001"]


def test_a_disk_without_room_is_told_before_the_first_step(tmp_path: Path) -> None:
    heard: list[str] = []
    saves(tmp_path / "checkpoints", heard=heard).check_room(1, 9)
    saves(tmp_path / "checkpoints", heard=heard).check_room(2**70, 0)
    assert not heard
    saves(tmp_path / "checkpoints", heard=heard).check_room(2**70, 9)
    saves(tmp_path / "checkpoints", heard=heard).check_room(2**70, 1)
    saves(tmp_path).write(1, IDENTITY, contents(1))
    saves(tmp_path, heard=heard).check_room(2**70, 9)
    told = [line.partition("checkpoints will take ")[2].partition(" GiB")[0] for line in heard]
    assert told == ["3,298,534,883,328.0", "1,099,511,627,776.0", "2,199,023,255,552.0"]  # three, one, two


def test_a_frozen_token_table_that_is_the_head_is_not_kept() -> None:
    model = torch.nn.ModuleDict({"table": torch.nn.Embedding(3, 2), "body": torch.nn.Linear(2, 2, bias=False),
                                 "head": torch.nn.Linear(2, 3, bias=False)})  # fmt: skip
    model["head"].weight = model["table"].weight
    assert {"body.weight", "table.weight"} <= learnt(model).keys()
    model["table"].requires_grad_(False)
    assert learnt(model).keys() == {"body.weight"}


def test_what_a_killed_process_had_begun_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".part-abc").mkdir(parents=True)
    (tmp_path / ".part-abc" / "weights.pt").write_bytes(b"half")
    saves(tmp_path).write(1, IDENTITY, contents(1))
    assert names(tmp_path) == ["step-00000001"]


def test_what_differs_is_said_in_words() -> None:
    assert differences(IDENTITY, IDENTITY) == []
    assert differences(IDENTITY, {"model": "n", "batch": 4, "packing": True}) == [
        "model m, now n",
        "packing unset, now true",
    ]
