"""The surface: `__all__` is what there is, each name lives where the type checker thinks, and importing is free."""

from __future__ import annotations

import ast
import inspect
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import vidllm

ROOT = Path(__file__).resolve().parents[1]


def typed_homes() -> dict[str, str]:
    """name -> module, as the `if TYPE_CHECKING:` block of the package imports them."""
    tree = ast.parse(Path(vidllm.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in imports for alias in node.names}


def test_all_is_sorted_and_complete() -> None:
    assert vidllm.__all__ == sorted(vidllm.__all__)
    assert set(vidllm.__all__) == {*vidllm._HOME, "__version__"}
    assert set(vidllm.__all__) <= set(dir(vidllm))


def test_the_type_checker_sees_the_same_names_in_the_same_places() -> None:
    assert typed_homes() == vidllm._HOME


@pytest.mark.parametrize("name", sorted(vidllm._HOME))
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    thing = getattr(vidllm, name)
    assert thing is getattr(import_module(vidllm._HOME[name]), name)
    assert inspect.getdoc(thing)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'asks'"):
        _ = vidllm.asks


def test_the_version_is_the_packages() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "vidllm.__version__"}
    assert vidllm.__version__.count(".") == 2
