"""The garbage collector, where it only costs: among what imports make it finds nothing."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """For the seconds in which libraries and models are loaded: looking for cycles in all that took a tenth of them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
