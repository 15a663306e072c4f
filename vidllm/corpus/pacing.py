"""How many requests a server is given at once: more while more are answered per second, fewer when it says no.

    start at 4 ──double while it pays──> hold ──now and then try a quarter more, a fifth fewer──> hold ...
                      refused (429, 5xx, silence): seven tenths as many, and nothing before `Retry-After`

Nobody has to know the server: its batch size, how many cards it has, who else asks it. Pure arithmetic on the times of
answers, so that it can be tested against a server that is only a formula.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Literal

SHARE = 0.3
"""A step up pays when the rate grows by this share of what the limit grew by; one down when it loses less than it."""
LEAST_ROUND = 6
"""Answers behind one judgement at the least; else as many as the limit."""
HOLD_ROUNDS = 4
"""Judgements passed in peace between two probes."""
CUT = 0.7
"""What a refusal leaves of the limit."""
LONGEST_HOLD_SECONDS = 120.0
"""More of a server's Retry-After is not believed: it may mean a date in its own, wrong, clock."""

Trial = Literal["climb", "up", "down"]


class Pace:
    """The number of requests that may be under way (`limit`), from what became of earlier ones. Not thread-safe.

    Tell it `sent` when a request goes out, then once `answered`, `refused` or `dropped` with the number `sent` gave.
    """

    def __init__(self, *, most: int = 256, first: int = 4, clock: Callable[[], float] = time.monotonic) -> None:
        if not 1 <= first <= most:
            raise ValueError(f"1 <= first <= most must hold, got first {first} and most {most}")
        self.limit = first
        self.under_way = 0
        self._most = most
        self._clock = clock
        self._serial = 0  # of the request sent last
        self._changed_at = 0  # the last request sent before the limit changed: later ones judge the new limit
        self._trial: Trial | None = "climb"
        self._before: tuple[int, float] | None = None  # limit and answers per second that the trial is held against
        self._peace = 0
        self._next: Trial = "up"
        self._open_at = 0.0  # nothing is sent before
        self._began, self._answers = clock(), 0  # of the round
        self._full = False  # whether the limit was reached in it

    def delay(self) -> float:
        """Seconds until the next request may go out; 0: now, infinite: when another one has come back."""
        if self.under_way >= self.limit:
            return float("inf")
        return max(self._open_at - self._clock(), 0.0)

    def sent(self) -> int:
        """A request goes out; the number to tell its end with."""
        self._serial += 1
        self.under_way += 1
        self._full = self._full or self.under_way >= self.limit
        return self._serial

    def answered(self, serial: int) -> None:
        """It was answered, well or not: the server did its work."""
        self.under_way -= 1
        if serial <= self._changed_at:
            self._began = self._clock()  # sent under another limit: the round begins with the last of those
            return
        self._answers += 1
        if self._answers >= max(self.limit, LEAST_ROUND):
            self._judge(self._answers / max(self._clock() - self._began, 1e-9))

    def refused(self, serial: int, retry_after: float | None = None) -> None:
        """The server said no, or nothing. Many at once are one refusal: what was sent since the last cut counts."""
        self.under_way -= 1
        if retry_after is not None:
            self._open_at = max(self._open_at, self._clock() + min(max(retry_after, 0.0), LONGEST_HOLD_SECONDS))
        if serial > self._changed_at:
            self._trial, self._before, self._peace = None, None, 2 * HOLD_ROUNDS
            self._next = "up"
            self._set(int(self.limit * CUT))

    def dropped(self) -> None:
        """It never became a question to the server: given up on this side."""
        self.under_way -= 1

    def _judge(self, rate: float) -> None:
        """A round is over: keep the trial's limit or take it back, and when it is time begin another."""
        if not self._full:  # there was not enough to ask: the rate is our own, and says nothing
            self._begin_round()
        elif self._trial is None:
            self._peace -= 1
            self._begin_round()
            if self._peace <= 0:
                self._before = (self.limit, rate)
                self._try(self._next)
        elif self._pays(rate):
            self._before = (self.limit, rate)
            self._try(self._trial)
        else:
            assert self._before is not None
            self._next = "down" if self._trial == "up" else "up"
            self._trial, self._peace = None, HOLD_ROUNDS
            self._set(self._before[0])

    def _pays(self, rate: float) -> bool:
        """Whether the limit on trial is the better one; the first is better than none."""
        if self._before is None:
            return True
        limit, before = self._before
        return rate / before >= 1 + SHARE * (self.limit / limit - 1)

    def _try(self, trial: Trial) -> None:
        step = {"climb": self.limit, "up": max(self.limit // 4, 1), "down": -max(self.limit // 5, 1)}[trial]
        limit = min(max(self.limit + step, 1), self._most)
        if limit == self.limit:  # nowhere to go that way
            self._trial, self._peace, self._next = None, HOLD_ROUNDS, "up" if trial == "down" else "down"
        else:
            self._trial = trial
            self._set(limit)

    def _set(self, limit: int) -> None:
        self.limit = min(max(limit, 1), self._most)
        self._changed_at = self._serial
        self._begin_round()

    def _begin_round(self) -> None:
        self._began, self._answers, self._full = self._clock(), 0, False


def backoff_seconds(attempt: int, *, most: float = 30.0) -> float:
    """How long to wait after failure number `attempt` (1 first): half a second, doubling, with jitter so that a crowd
    spreads out.

    Drawn from [half, whole]: never nothing, and never the same instant for all.
    """
    whole = min(2.0 ** min(attempt - 2, 60), most)
    return whole * random.uniform(0.5, 1.0)
