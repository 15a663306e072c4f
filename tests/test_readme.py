"""The README does not lie: its commands exist, print what it shows, and its Python runs."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from vidllm.model.resolve import builtin_folder
from vidllm_cli.main import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SAMPLE = ROOT / "vidllm" / "builtin" / "sample" / "sample.mp4"
HUB_MODEL = re.compile(r"\b[\w-]+/[\w.-]+-hf\b|https?://")


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def shown_commands() -> list[tuple[str, str]]:
    """Every `$ command` of the console blocks, and the output shown below it ("" when none is)."""
    shown = []
    for block in blocks("console"):
        for chunk in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = chunk.partition("\n")
            shown.append((command.partition("  #")[0].strip(), output.strip()))
    return shown


COMMANDS = [(command, output) for command, output in shown_commands() if command.startswith("vidllm ")]


def run(command: str) -> tuple[int, str, str]:
    """`vidllm ...` in this process: exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(shlex.split(command.partition(" | ")[0])[1:])
    return code, out.getvalue().strip(), err.getvalue()


@pytest.fixture(autouse=True)
def beside_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder where `clip.mp4` is the sample clip, and the sample lies where the README names it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VIDLLM_MODEL", raising=False)
    monkeypatch.setenv("VIDLLM_CACHE", str(tmp_path / "cache"))
    if SAMPLE.exists():
        (tmp_path / "clip.mp4").symlink_to(SAMPLE)
        (tmp_path / "vidllm").symlink_to(ROOT / "vidllm")


def test_the_readme_shows_commands_and_python() -> None:
    assert len(COMMANDS) >= 5
    assert blocks("python")


@pytest.mark.parametrize("command", [command for command, _ in COMMANDS])
def test_every_option_shown_exists(command: str) -> None:
    """An unknown command or option fails before `--help` is answered."""
    code, _, err = run(command.partition(" | ")[0] + " --help")
    assert code == 0, err


@pytest.mark.parametrize("line", [command for command, _ in shown_commands() if command.startswith("make")])
def test_every_make_target_shown_exists(line: str) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line.split()[1] in targets


@pytest.mark.parametrize(("command", "output"), COMMANDS)
def test_every_command_prints_what_is_shown(command: str, output: str) -> None:
    if HUB_MODEL.search(command):
        pytest.skip("downloads a model")
    if not SAMPLE.exists() or not (builtin_folder() / "config.json").exists():
        pytest.skip("the built-in model is not in this checkout")
    if "chat" in command:
        pytest.skip("asks a person")
    code, out, err = run(command)
    assert code == 0, err
    assert output in ("", out)


@pytest.mark.parametrize("block", blocks("python"))
def test_the_python_runs(block: str) -> None:
    compile(block, "README.md", "exec")
    if not SAMPLE.exists() or not (builtin_folder() / "config.json").exists():
        pytest.skip("the built-in model is not in this checkout")
    with contextlib.redirect_stdout(io.StringIO()):
        exec(block, {})
