"""The README does not lie: its commands exist, print what it shows, and its Python runs."""

import contextlib
import io
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from vidllm.model.composable_specs import COMPOSABLE
from vidllm.model.families import read_spec
from vidllm.model.native_specs import NATIVE
from vidllm.train.teachable import check_family
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


TEACHING = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
"""The commands of the sections about teaching, in their order."""
QUICK = [words for words in TEACHING if any(word.startswith(("quick/", "configs/quick_")) for word in words)]
"""Those that a newcomer can run as they stand, one after the other."""
SMALLER: dict[str, tuple[str, ...]] = {
    "world": ("-n", "3"),
    "instruct": ("--per-clip", "2"),
    "sft": ("model=built-in", "steps=2", "batch=2", "frames=4", "device=cpu"),
    "feedback": ("--limit", "12", "--frames", "4", "--temperature", "2", "--least-chosen", "1"),
    "dpo": ("steps=2", "batch=2", "frames=4", "device=cpu"),
}
"""What makes a command one of seconds. A model that can answer is taught: two steps teach none to, and answers that are
all alike make no pairs."""

COMMANDS = [(command, output) for command, output in shown_commands() if command.startswith("vidllm ")]


def run(command: str) -> tuple[int, str, str]:
    """`vidllm ...` in this process: exit code, stdout, stderr."""
    return run_words(shlex.split(command.partition(" | ")[0]))


def run_words(words: Sequence[str]) -> tuple[int, str, str]:
    """The same, of a command in words."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words[1:])
    return code, out.getvalue().strip(), err.getvalue()


@pytest.fixture(autouse=True)
def beside_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder where `clip.mp4` is the sample clip, and the sample lies where the README names it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VIDLLM_MODEL", raising=False)
    monkeypatch.setenv("VIDLLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "clip.mp4").symlink_to(SAMPLE)
    (tmp_path / "vidllm").symlink_to(ROOT / "vidllm")
    (tmp_path / "configs").symlink_to(ROOT / "configs")


def test_the_readme_shows_commands_and_python() -> None:
    assert len(COMMANDS) >= 5
    assert blocks("python")


@pytest.mark.parametrize("words", [words for words in TEACHING if words not in QUICK], ids=" ".join)
def test_every_option_of_teaching_exists(words: list[str]) -> None:
    """An unknown command or option fails before `--help` is answered."""
    code, _, err = run_words([*words, "--help"])
    assert code == 0, err


def test_every_config_named_is_there() -> None:
    named = set(re.findall(r"configs/\w+\.yaml", README))
    assert named >= {"configs/quick_sft.yaml", "configs/quick_dpo.yaml"}
    assert all((ROOT / name).is_file() for name in named)


def test_the_table_of_models_names_every_family_and_all_are_taught(tiny: Callable[[str], Path]) -> None:
    [section] = re.findall(r"^## Models\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    rows = [line.rpartition(" | ")[2] for line in section.splitlines() if line.startswith("| ")]
    named = [name for row in rows[1:] for name in re.findall(r"`([^`]+)`", row)]
    assert sorted(named) == sorted({*COMPOSABLE, *NATIVE})
    for name in named:
        check_family(read_spec(tiny(name.rpartition("/")[2])))


def test_the_file_map_leaves_no_module_and_no_room_out() -> None:
    library = {path for path in (ROOT / "vidllm").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    names = {path.name if path.is_file() else f"{path.name}/" for path in library if path.name != "__init__.py"}
    [drawn] = [block for block in blocks("") if block.startswith("vidllm/ ")]
    told = set(re.findall(r"[a-z]+(?:\.py|/)", drawn))
    assert names <= told
    assert all((ROOT / "vidllm" / name).exists() for name in re.findall(r"^  (\S+)", drawn, re.MULTILINE))


def test_the_quick_road_of_teaching_leads_through(tmp_path: Path) -> None:
    """From no clip to a model that prefers, every command as it is shown, only less of everything."""
    assert [words[1] for words in QUICK] == ["world", "instruct", "sft", "sft", "ask", "feedback", "dpo", "dpo", "ask"]
    for words in QUICK:
        code, out, err = run_words([*words, *SMALLER.get(words[1], ())])
        assert code == 0, f"{' '.join(words)}: {err}"
        assert out or words[1] in ("sft", "dpo")
    assert (tmp_path / "quick" / "dpo" / "dpo.yaml").exists()


@pytest.mark.parametrize("line", [command for command, _ in shown_commands() if command.startswith("make")])
def test_every_make_target_shown_exists(line: str) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line.split()[1] in targets


@pytest.mark.parametrize(("command", "output"), COMMANDS)
def test_every_command_prints_what_is_shown(command: str, output: str) -> None:
    """One that downloads a model or asks a person says by its help whether it has these options."""
    runs = not HUB_MODEL.search(command) and "chat" not in command
    code, out, err = run(command if runs else f"{command} --help")
    assert code == 0, err
    assert output in ("", out) or not runs


@pytest.mark.parametrize("block", blocks("python"))
def test_the_python_runs(block: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        exec(block, {})
