"""What is installed is what is here: every package listed, every import declared, every dependency pinned."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
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


@cache
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
    optional = (line for extra in ("torchcodec", "quant", "parquet", "ray") for line in extras[extra])
    declared = (*project["dependencies"], *optional)
    names = {canonical(line) for line in declared} | {"httpx", "httpx2"}  # come with huggingface_hub, whichever it uses
    assert [providers for providers in imported_distributions() if not providers & names] == []


def test_every_dependency_is_imported() -> None:
    indirect = {"accelerate"}  # transformers imports it when a model is spread over devices
    assert {canonical(line) for line in PROJECT["project"]["dependencies"]} - indirect <= set().union(
        *imported_distributions()
    )


@pytest.mark.parametrize("extra", ["", "dev", "bench", "parquet", "ray", "serve"])
def test_what_make_installs_is_pinned(extra: str) -> None:
    project = PROJECT["project"]
    wanted = project["optional-dependencies"][extra] if extra else project["dependencies"]
    pins = {canonical(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert {canonical(line) for line in wanted} <= pins


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built as `pip install .` builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "import setuptools.build_meta as backend, sys; print(backend.build_wheel(sys.argv[1]))"
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "vidllm", "cli"):
        (source / name).symlink_to(ROOT / name)
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=source, check=True, capture_output=True, timeout=300)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_code_weights_and_sample(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    code = {f"vidllm/{path.relative_to(ROOT / 'vidllm').as_posix()}" for path in (ROOT / "vidllm").rglob("*.py")}
    code |= {f"vidllm_cli/{path.name}" for path in (ROOT / "cli").glob("*.py")}
    builtin = ROOT / "vidllm" / "builtin"
    data = {
        f"vidllm/builtin/{path.relative_to(builtin).as_posix()}"
        for folder in ("weights", "image", "dpo", "sample")
        for path in (builtin / folder).glob("*")
        if path.is_file()
    }
    assert code | data | {"vidllm/py.typed"} <= held
    assert not {name for name in held if name.startswith(("tests/", "benchmarks/", "cli/"))}


def test_the_wheel_answers_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    """Its code, unpacked, in front of everything else on the path; dependencies are those of this environment."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (
        "import vidllm, vidllm_cli.main as cli, vidllm.builtin as b, pathlib, sys; "
        "print(vidllm.__file__); "
        "sample = pathlib.Path(b.__file__).parent / 'sample' / 'sample.mp4'; "
        "sys.exit(cli.main(['plan', str(sample), '--grid', '24x24']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout.splitlines()[0]
    assert "1:00" in done.stdout
