"""The house holds: imports go down, never in a circle, and what can answer without torch never loads it."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS = (
    ("counts", "errors", "machine", "starting", "ahead"),
    ("config", "checks", "caches", "interrupts", "jsonrows", "linefile", "video", "world"),
    ("geometry", "budget", "policies"),
    ("clip", "planning", "reads", "advice", "model", "shots"),
    ("prompt", "visuals", "still", "sources", "options", "planned"),
    ("engine", "batching"),
    ("ask", "asks", "session", "answer", "train", "doctor", "builtin"),
    ("corpus", "feedback"),
    ("cli",),
)
"""Rooms from the cellar up: a room imports from its own floor and from those below."""

FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for folder in ("vidllm", "cli") for path in sorted((ROOT / folder).rglob("*.py"))}


def runtime_imports(module: str, tree: ast.AST) -> Iterator[str]:
    """Names imported when the code runs: wherever they stand, but not those for the type checker only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "cli" if node.level else node.module or ""
            base = f"cli.{node.module}" if node.level and node.module else base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        else:
            yield from runtime_imports(module, node)


def house_imports(module: str) -> set[str]:
    """Modules of this project that `module` imports."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    names = set(runtime_imports(module, tree))
    found = {name if name in MODULES else name.rpartition(".")[0] for name in names}
    return {name for name in found if name in MODULES and name not in (module, "vidllm", "cli")}


def room(module: str) -> str:
    parts = module.split(".")
    return "cli" if parts[0] == "cli" else parts[1]


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"vidllm"}))
def test_a_room_imports_from_its_floor_and_below(module: str) -> None:
    assert room(module) in FLOOR, f"{module}: give its room a place in FLOORS"
    above = {name for name in house_imports(module) if FLOOR[room(name)] > FLOOR[room(module)]}
    assert not above, f"{module} looks up to {above}"


def test_no_circles() -> None:
    graph = {module: house_imports(module) for module in MODULES}
    assert list(graphlib.TopologicalSorter(graph).static_order())


LIGHT = {
    "vidllm.answer", "vidllm.ask", "vidllm.budget", "vidllm.clip", "vidllm.corpus.decode_child",
    "vidllm.corpus.workers", "vidllm.doctor", "vidllm.model.families", "vidllm.prompt", "vidllm.session",
}  # fmt: skip
"""What answers, plans or decodes without a model, besides the rooms `video` and `world`."""


@pytest.mark.parametrize(
    ("imported", "banned"),
    [
        ("vidllm", {"numpy", "torch", "transformers", "av", "rich"}),
        ("vidllm_cli.main", {"numpy", "torch", "transformers", "av", "rich", "pydantic"}),
        (
            ", ".join(name for name in MODULES if name.startswith(("vidllm.video", "vidllm.world")) or name in LIGHT),
            {"torch", "transformers", "decord", "torchcodec", "pyarrow"},
        ),
    ],
)
def test_what_needs_no_torch_loads_none(imported: str, banned: set[str]) -> None:
    code = f"import sys, {imported}; print(*({banned!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []
