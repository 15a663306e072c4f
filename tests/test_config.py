"""Configuration: YAML and `key=value` words to a dataclass, and a helpful refusal of everything else."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from vidllm.config import from_mapping, load_config
from vidllm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)


@dataclass(frozen=True, kw_only=True)
class Run:
    output: Path
    steps: int = 100
    fast: bool = False
    mode: Literal["image", "video"] = "image"
    data: list[str] = field(default_factory=list)
    limit: int | None = None
    optimizer: Optimizer = Optimizer()
    loss: Literal["plain", "mixed"] | dict[str, float] = "plain"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_and_words_that_override_it(tmp_path: Path) -> None:
    path = write(tmp_path, "output: runs/1\nsteps: 50\noptimizer: {lr: 1e-5}\ndata: [a.json, b.json]\n")
    run = load_config(Run, path, ["steps=7", "optimizer.betas=[0.8, 0.9]", "limit=3", "mode=video"])
    assert run == Run(
        output=Path("runs/1"), steps=7, mode="video", data=["a.json", "b.json"], limit=3,
        optimizer=Optimizer(lr=1e-5, betas=(0.8, 0.9)),
    )  # fmt: skip


def test_numbers_of_a_mapping_are_numbers_in_any_spelling() -> None:
    assert load_config(Run, None, ["output=x", "loss={sigmoid: 8e-1, sft: 1}"]).loss == {"sigmoid": 0.8, "sft": 1.0}


def test_words_alone_are_enough() -> None:
    assert load_config(Run, None, ["output=x", "limit=null"]) == Run(output=Path("x"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"output": "x", "stepz": 1}, "unknown key 'stepz'; did you mean 'steps'?"),
        ({"output": "x", "zzz": 1}, "unknown key 'zzz'; known are data, fast, limit"),
        ({"output": "x", "optimizer": {"lr": float("nan")}}, "optimizer: lr is nan; a finite number is needed"),
        ({"output": "x", "optimizer": {"lr": "1e999"}}, "optimizer: lr is inf; a finite number is needed"),
        ({"output": "x", "optimizer": {"lr": 10**400}}, "a number is needed"),
        ({"output": "x", "loss": {"hinge": "a"}}, "loss: hinge is 'a'; a number is needed"),
        ({"output": "x", "loss": "hinge"}, "loss is 'hinge'; choose one of plain, mixed, or give a mapping"),
        ({"output": "x", "optimizer": {"learning": 1}}, "optimizer: unknown key 'learning'; known are betas, lr"),
        ({"output": "x", "optimizer": 3}, "optimizer is 3; a mapping with keys such as lr, betas is needed"),
        ({"steps": 1}, "'output' is missing"),
        ({"output": "x", "steps": 1.5}, "steps is 1.5; a whole number is needed"),
        ({"output": "x", "steps": True}, "steps is True; a whole number is needed"),
        ({"output": "x", "fast": 1}, "fast is 1; true or false is needed"),
        ({"output": "x", "mode": "audio"}, "mode is 'audio'; choose one of image, video"),
        ({"output": "x", "data": "a.json"}, "data is 'a.json'; a list is needed"),
        ({"output": "x", "optimizer": {"betas": [0.9]}}, "optimizer: betas has 1 items; 2 are needed"),
        ({"output": "x", "steps": 0}, "steps must be at least 1, got 0"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(Run, values, where="run.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("run.yaml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["steps", "=3", "steps.more=1", "output=0x_"])
def test_words_that_are_no_assignment(word: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"'{word}'.*(;|it has no)"):
        load_config(Run, write(tmp_path, "output: x\nsteps: 3\n"), [word])


@pytest.mark.parametrize("number", ["010", "007", "1:30", "2024-11-23"])
def test_a_number_is_no_other_than_the_one_that_was_written(number: str, tmp_path: Path) -> None:
    """YAML 1.1 reads 8, 7 and 90."""
    path = write(tmp_path, "output: runs/1\n")
    with pytest.raises(ConfigError, match=f"steps is '{number}'; a whole number is needed"):
        load_config(Run, path, [f"steps={number}"])
    assert load_config(Run, path, ["steps=0x10"]).steps == 16
    assert load_config(Run, path, ["steps=1_000", f"output={number}"]).output == Path(number)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "a: \t- b: :", "steps: 0x_", "output: \x07"])
def test_a_file_that_is_no_mapping(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(Run, write(tmp_path, text))


def test_a_key_that_is_said_twice_is_told(tmp_path: Path) -> None:
    """YAML would take the last one and be silent."""
    with pytest.raises(ConfigError, match=r"run\.yaml: .*line 3 says 'steps' again"):
        load_config(Run, write(tmp_path, "output: x\nsteps: 50\nsteps: 60\n"))
    with pytest.raises(ConfigError, match="line 3 says 'lr' again"):
        load_config(Run, write(tmp_path, "output: x\noptimizer:\n  {lr: 1, lr: 2}\n"))
    text = "output: x\noptimizer: &o {lr: 1}\nloss: {<<: *o, <<: {sft: 3}, lr: 2}\n"
    assert load_config(Run, write(tmp_path, text)).loss == {"sft": 3.0, "lr": 2.0}


def test_what_a_file_leaves_empty_can_be_filled_by_words(tmp_path: Path) -> None:
    path = write(tmp_path, "output: x\noptimizer:\n")
    assert load_config(Run, path, ["optimizer.lr=3"]).optimizer == Optimizer(lr=3.0)


def test_a_path_at_home_is_found_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert load_config(Run, write(tmp_path, "output: ~/runs\n")).output == tmp_path / "runs"
