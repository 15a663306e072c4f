"""Whether a value is one that its option can mean; ConfigError, one line, when it is not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

from vidllm.errors import ConfigError


def check_whole(name: str, value: object, least: int, *, optional: bool = False) -> None:
    """A whole number of at least `least`; None, which says nothing, only where `optional`."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name} must be a whole number, got {value!r}")
    if int(value) < least:
        raise ConfigError(f"{name} must be at least {least}, got {value}")


def check_number(
    name: str, value: object, least: float, *, above: bool = False, endless: bool = False, optional: bool = False
) -> None:
    """A number from `least` on, or `above` it; infinity only where `endless`, None only where `optional`."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(f"{name} must be a number, got {value!r}")
    number = float(value)
    enough = number > least if above else number >= least
    if not enough or (math.isinf(number) and not endless):
        kind = "" if endless else "finite and "
        raise ConfigError(f"{name} must be {kind}{'above' if above else 'at least'} {least:g}, got {value}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """One of a few words."""
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_switch(name: str, value: object) -> None:
    """On or off."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, got {value!r}")


def check_text(name: str, value: object) -> None:
    """Text that has an encoding: what a terminal of another encoding hands over may be none."""
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be text, got {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        near = value[max(error.start - 20, 0) : error.end].encode(errors="backslashreplace").decode()
        raise ConfigError(f"{name} is no valid text, it breaks at '{near}'; write it in UTF-8") from error
