"""What is installed is what is here: every package listed, every import declared, every dependency pinned."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def canonical(requirement: str) -> str:
    """The name in `Requirement >=1; marker`, spelled the one way that names are compared."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def imported_distributions() -> list[set[str]]:
    """For each foreign module that the library or the command line import: the distributions that may provide it."""
    known = packages_distributions()
    found: list[set[str]] = []
    for path in (*(ROOT / "vidllm").rglob("*.py"), *(ROOT / "cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names.append(node.module or "")
            tops = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"vidllm", "vidllm_cli"}
            found += [{canonical(name) for name in known.get(top, [top])} for top in tops]
    return found


def test_every_package_folder_is_listed() -> None:
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "vidllm").rglob("*.py")}
    packages = {".".join(folder.parts) for folder in folders} | {"vidllm_cli"}
    assert packages == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_import_is_a_declared_dependency() -> None:
    project, extras = PROJECT["project"], PROJECT["project"]["optional-dependencies"]
    declared = (*project["dependencies"], *extras["torchcodec"], *extras["quant"])
    names = {canonical(line) for line in declared}
    assert [providers for providers in imported_distributions() if not providers & names] == []


def test_every_dependency_is_imported() -> None:
    indirect = {"accelerate"}  # transformers imports it when a model is spread over devices
    assert {canonical(line) for line in PROJECT["project"]["dependencies"]} - indirect <= set().union(
        *imported_distributions()
    )


@pytest.mark.parametrize("extra", ["", "dev", "bench"])
def test_what_make_installs_is_pinned(extra: str) -> None:
    project = PROJECT["project"]
    wanted = project["optional-dependencies"][extra] if extra else project["dependencies"]
    pins = {canonical(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert {canonical(line) for line in wanted} - {"setuptools"} <= pins
