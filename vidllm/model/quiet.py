"""transformers without its tables and bars, and its errors in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """No tables of keys from transformers (what is wrong is said in one line), no bar where nobody watches."""
    from transformers.utils import logging

    hf_logging: Any = logging
    level, bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    hf_logging.set_verbosity_error()
    if bar:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bar:
            hf_logging.enable_progress_bar()


def one_line(error: BaseException) -> str:
    """What an error of any library says, in one line that is not too long."""
    said = " ".join(str(error).split())[:300] or type(error).__name__
    return f"{said} is not known here" if isinstance(error, KeyError) else said
