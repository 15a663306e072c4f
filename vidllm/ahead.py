"""What comes next, made in threads while the present is worked on; in order, bounded, and errors come when due."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
M = TypeVar("M")


def capacity_of(slots: int) -> int:
    """How many to take in hand; half as many again as slots: one that becomes free is filled in the same step."""
    return slots + slots // 2 + 1


@contextmanager
def made_ahead(items: Iterable[T], make: Callable[[T], M], *, workers: int, ahead: int) -> Iterator[Iterator[M]]:
    """`make(item)` for every item in order, `workers` threads making up to `ahead` of them before they are asked for.

    0 workers make each when it is asked for. Leaving the `with` block forgets what was begun.
    """
    if not workers:
        yield map(make, items)
        return
    threads = ThreadPoolExecutor(workers, thread_name_prefix="ahead")
    try:
        yield _made(threads, iter(items), make, max(ahead, workers))
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _made(threads: ThreadPoolExecutor, items: Iterator[T], make: Callable[[T], M], ahead: int) -> Iterator[M]:
    made: deque[Future[M]] = deque()
    while True:
        made.extend(threads.submit(make, item) for item in islice(items, ahead - len(made)))
        if not made:
            return
        yield made.popleft().result()
