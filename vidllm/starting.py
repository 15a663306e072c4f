"""What libraries do while they are loaded, and nobody waits for."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

BLAS_THREADS = "OPENBLAS_NUM_THREADS"
"""NumPy starts so many threads for its matrix products as it is loaded: one a core, unless told. On two cores that is
70 ms of 170, for products too small to be shared out."""


@contextmanager
def uncollected() -> Iterator[None]:
    """For the seconds in which libraries and models are loaded: a fifth of torch's went into looking for garbage."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def unthreaded() -> Iterator[None]:
    """For loading NumPy with one thread; torch, which may hear the same word, is to be loaded behind it."""
    said = os.environ.get(BLAS_THREADS)
    os.environ[BLAS_THREADS] = said or "1"
    try:
        yield
    finally:
        if said is None:
            del os.environ[BLAS_THREADS]
