"""The next micro-batches, made while the present one is learnt from; in order, bounded, and errors come when due."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")
M = TypeVar("M")


class Ahead(Generic[T, M]):
    """`make(item)` for every item in order, `workers` threads making up to `ahead` of them before they are asked for.

    0 workers make each when it is asked for. Leaving the `with` block forgets what was begun.
    """

    def __init__(self, items: Iterable[T], make: Callable[[T], M], *, workers: int, ahead: int) -> None:
        self._items, self._make = iter(items), make
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="ahead") if workers else None
        self._ahead = max(ahead, workers)
        self._made: deque[Future[M]] = deque()

    def __enter__(self) -> Self:
        return self

    def __iter__(self) -> Iterator[M]:
        return self

    def __next__(self) -> M:
        if self._threads is None:
            return self._make(next(self._items))
        while len(self._made) < self._ahead:
            try:
                item = next(self._items)
            except StopIteration:
                break
            self._made.append(self._threads.submit(self._make, item))
        if not self._made:
            raise StopIteration
        return self._made.popleft().result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
