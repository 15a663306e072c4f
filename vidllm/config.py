"""A mapping from YAML, JSON or `key=value` words -> one frozen dataclass. An unknown key is an error with a suggestion.

The keys of a file are the fields of a dataclass and nothing else: what a setting means stands beside the code that
uses it, and a misspelt one can not be ignored.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from vidllm.errors import ConfigError

T = TypeVar("T")
WHOLE = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$")
"""What is read as a whole number."""


def load_config(cls: type[T], path: Path | None, assignments: Sequence[str] = ()) -> T:
    """`cls` filled from a YAML file and then from `key=value` words (`optimizer.lr=1e-5` reaches a nested one)."""
    values = _read_yaml(path) if path is not None else {}
    for word in assignments:
        _assign(values, word)
    return from_mapping(cls, values, where=str(path) if path is not None else "the command line")


def from_mapping(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """`cls(**values)` with every key known and every value of its field's type.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a missing one, or a value of the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}{_suggestion(key, fields)}")
    hints = typing.get_type_hints(cls)
    filled = {key: _convert(value, hints[key], f"{where}: {key}") for key, value in values.items()}
    needed = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    missing = [n for n in needed if n not in filled]
    if missing:
        raise ConfigError(f"{where}: {missing[0]!r} is missing; add `{missing[0]}: ...`")
    try:
        return cls(**filled)
    except ValueError as error:  # a dataclass's own check at birth
        raise ConfigError(f"{where}: {error}") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = _parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: can not be read ({error.strerror}); name an existing YAML file") from error
    except ValueError as error:
        raise ConfigError(f"{path}: no valid YAML ({' '.join(str(error).split())})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a mapping of keys to values is needed, not a {type(values).__name__}")
    return values


def _parsed(text: str) -> Any:
    """What YAML says. ValueError for no YAML, and for a key that is said twice, where YAML would forget the first."""
    import yaml

    try:
        loader = _loader()(text)  # which refuses letters that can not be printed
        node = loader.get_single_node()
        _check_keys(node, set())
        return None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


@cache
def _loader() -> Any:
    """YAML's own, to which 010 is not 8, 1:30 not ninety, 2024-11-23 no day: they stay the text that somebody wrote."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    whole, day = "tag:yaml.org,2002:int", "tag:yaml.org,2002:timestamp"
    known = yaml.SafeLoader.yaml_implicit_resolvers
    Loader.yaml_implicit_resolvers = {
        first: [(tag, WHOLE if tag == whole else pattern) for tag, pattern in found if tag != day]
        for first, found in known.items()
    }
    return Loader


def _check_keys(node: Any, seen: set[int]) -> None:
    """Raise ValueError for a mapping that says a key twice, here or further in; `seen` are nodes, which may loop."""
    import yaml

    if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
        return
    seen.add(id(node))
    inner = node.value
    if isinstance(node, yaml.MappingNode):
        said: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":  # which mappings may be taken over several times
                if key.value in said:
                    raise ValueError(f"line {key.start_mark.line + 1} says {key.value!r} again; keep one of them")
                said.add(key.value)
        inner = [value for _, value in node.value]
    for one in inner:
        _check_keys(one, seen)


def _assign(values: dict[str, Any], word: str) -> None:
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise ConfigError(f"{word!r} is no `key=value`; write for example `batch=16`")
    *path, last = key.split(".")
    for part in path:
        if values.get(part) is None:  # not said, or as null, which is how a file says that there is none
            values[part] = {}
        values = values[part]
        if not isinstance(values, dict):
            raise ConfigError(f"{word!r}: {part!r} is a value, it has no {last!r} inside")
    try:
        values[last] = _parsed(text)
    except ValueError as error:
        advice = f"close its brackets, or quote it as text: {key}='\"...\"'"  # a shell takes one pair of quotes off
        raise ConfigError(f"{word!r}: the value is no valid YAML; {advice}") from error


def _suggestion(key: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(str(key), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"


def _convert(value: Any, kind: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments, where)
    if origin is Literal:
        if value not in arguments:
            choices = ", ".join(map(str, arguments))
            raise ConfigError(f"{where} is {value!r}; choose one of {choices}")
        return value
    if origin in (tuple, list):
        return _convert_sequence(value, origin, arguments, where)
    if origin is dict and isinstance(value, dict):
        return {_convert(key, arguments[0], where): _convert(item, arguments[1], f"{where}: {key}")
                for key, item in value.items()}  # fmt: skip
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return from_mapping(typing.cast(type, kind), value, where=where)
    return _convert_plain(value, origin or kind, where)


def _convert_union(value: Any, arguments: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    errors = []
    for kind in arguments:
        if kind is not type(None):
            try:
                return _convert(value, kind, where)
            except ConfigError as error:
                errors.append(error)
    inside = (error for error in errors if not str(error).startswith(f"{where} is "))
    more = ", or give a mapping" if any(typing.get_origin(kind) is dict for kind in arguments) else ""
    raise next(inside, ConfigError(f"{errors[0]}{more}"))


def _convert_sequence(value: Any, origin: Any, arguments: tuple[Any, ...], where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where} is {value!r}; a list is needed")
    if origin is list or (len(arguments) == 2 and arguments[1] is Ellipsis):
        return origin(_convert(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
    if len(value) != len(arguments):
        raise ConfigError(f"{where} has {len(value)} items; {len(arguments)} are needed")
    return tuple(_convert(item, kind, where) for item, kind in zip(value, arguments, strict=True))


def _convert_plain(value: Any, kind: type, where: str) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(os.path.expanduser(value))  # no shell has read a file's `~/runs`
    if kind is float and not isinstance(value, bool):
        with suppress(TypeError, ValueError, OverflowError):  # YAML 1.1 reads 1e-5 as text
            value = float(value)
        if isinstance(value, float) and not math.isfinite(value):  # no setting means it, and comparisons let .nan pass
            raise ConfigError(f"{where} is {value}; a finite number is needed")
    # bool is an int to Python; `frames: true` is a mistake all the same
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where} is {value!r}; {_wanted(kind)} is needed")


def _wanted(kind: type) -> str:
    if dataclasses.is_dataclass(kind):
        return f"a mapping with keys such as {', '.join(f.name for f in dataclasses.fields(kind)[:3])}"
    words = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "Path": "a path"}
    return words.get(kind.__name__, f"a {kind.__name__}")
