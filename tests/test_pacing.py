"""The pace finds what a server can take, against servers that are formulas: so many at once, so many seconds each."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from itertools import groupby

import pytest

from vidllm.corpus.pacing import LONGEST_HOLD_SECONDS, Pace, backoff_seconds


@dataclass
class Server:
    """`slots` requests at once, `seconds` each give or take a fifth; more than `crowd` waiting ones are refused."""

    slots: int
    seconds: float = 1.0
    crowd: int = 10**9
    clock: float = 0.0
    refused: int = 0
    limits: list[int] = field(default_factory=list)
    events: list[tuple[float, int, bool]] = field(default_factory=list)
    """(when, serial, whether it is answered) of what is under way."""

    def now(self) -> float:
        return self.clock

    def run(self, pace: Pace, answers: int, supply: float = float("inf")) -> float:
        """Ask until so many were answered; answers per second. `supply`: at most so many new requests a second."""
        chance = random.Random(7)
        events, free = self.events, [self.clock] * self.slots
        began, done, next_supply = self.clock, 0, self.clock
        while done < answers:
            while pace.delay() == 0 and next_supply <= self.clock:
                serial = pace.sent()
                if pace.under_way > self.slots + self.crowd:
                    heapq.heappush(events, (self.clock + 0.01, serial, False))
                else:
                    start = max(heapq.heappop(free), self.clock)
                    end = start + self.seconds * chance.uniform(0.8, 1.2)
                    heapq.heappush(free, end)
                    heapq.heappush(events, (end, serial, True))
                next_supply = self.clock + (1 / supply if supply != float("inf") else 0.0)
            waits = [next_supply] if next_supply > self.clock else []
            if 0 < pace.delay() < float("inf"):
                waits.append(self.clock + pace.delay())
            if events and (not waits or events[0][0] <= min(waits)):
                self.clock, serial, good = heapq.heappop(events)
                if good:
                    pace.answered(serial)
                    done += 1
                else:
                    pace.refused(serial)
                    self.refused += 1
            else:
                self.clock = min(waits)
            self.limits.append(pace.limit)
        return done / (self.clock - began)


@pytest.mark.parametrize("slots", [1, 2, 7, 24, 100])
def test_finds_what_a_server_can_do_at_once(slots: int) -> None:
    server = Server(slots)
    pace = Pace(clock=server.now)
    server.run(pace, 40 * slots + 200)
    rate = server.run(pace, 60 * slots + 200)
    assert rate > 0.8 * slots / server.seconds, f"limit {pace.limit}"
    assert pace.limit <= 2 * slots + 4, "asking for much more only makes every request wait"


def test_follows_a_server_that_becomes_faster_and_slower() -> None:
    server = Server(8)
    pace = Pace(clock=server.now)
    server.run(pace, 600)
    server.slots = 32
    server.run(pace, 3000)
    assert pace.limit >= 20
    server.slots = 4
    server.run(pace, 3000)
    assert pace.limit <= 12


def test_stays_below_the_crowd_that_is_refused() -> None:
    server = Server(16, crowd=2)
    pace = Pace(clock=server.now)
    server.run(pace, 300)
    server.refused = 0
    rate = server.run(pace, 1000)
    assert rate > 0.8 * 16
    assert server.refused < 60, "a probe may be refused now and then"


def test_what_does_not_pay_is_taken_back_and_probed_above_and_below() -> None:
    """Twice as many, then a quarter more, then a fifth fewer, of a server that takes twenty."""
    server = Server(20)
    server.run(Pace(first=20, clock=server.now), 1000)
    assert [limit for limit, _ in groupby(server.limits)][:7] == [20, 40, 20, 25, 20, 16, 20]


def test_one_at_a_time_is_found() -> None:
    server = Server(1)
    pace = Pace(first=2, clock=server.now)
    server.run(pace, 400)
    assert pace.limit == 1


def test_does_not_grow_when_there_is_little_to_ask() -> None:
    server = Server(4)
    pace = Pace(clock=server.now)
    server.run(pace, 300, supply=2.0)  # two requests a second of one second each never fill even four places
    assert pace.limit == 4
    server.run(pace, 40)  # the slow start is no rate to hold the first trial against
    assert [limit for limit, _ in groupby(server.limits)][:3] == [4, 8, 4]


def test_never_above_most_nor_below_one() -> None:
    server = Server(500)
    pace = Pace(most=16, clock=server.now)
    server.run(pace, 2000)
    assert max(server.limits) == 16
    for _ in range(50):
        pace.refused(pace.sent())
    assert pace.limit == 1


def test_a_burst_of_refusals_is_one_cut() -> None:
    pace = Pace(first=10, clock=lambda: 0.0)
    burst = [pace.sent() for _ in range(10)]
    for serial in burst:
        pace.refused(serial)
    assert pace.limit == 7
    assert pace.under_way == 0


def test_nothing_goes_out_before_the_server_said() -> None:
    now = [100.0]
    pace = Pace(clock=lambda: now[0])
    pace.refused(pace.sent(), retry_after=5)
    assert pace.delay() == pytest.approx(5)
    now[0] = 105.0
    assert pace.delay() == 0


def test_a_foolish_retry_after_is_bounded() -> None:
    pace = Pace(clock=lambda: 0.0)
    pace.refused(pace.sent(), retry_after=1e9)
    assert pace.delay() == LONGEST_HOLD_SECONDS
    pace = Pace(clock=lambda: 0.0)
    pace.refused(pace.sent(), retry_after=-3)
    assert pace.delay() == 0


def test_full_is_told_as_infinite() -> None:
    pace = Pace(first=1)
    pace.sent()
    assert pace.delay() == float("inf")
    pace.dropped()
    assert (pace.delay(), pace.under_way) == (0, 0)


def test_impossible_bounds() -> None:
    with pytest.raises(ValueError, match="first 9 and most 4"):
        Pace(most=4, first=9)


def test_backoff_doubles_with_jitter_and_has_an_end() -> None:
    for attempt, whole in ((1, 0.5), (2, 1.0), (3, 2.0), (9, 30.0), (2000, 30.0)):
        waits = [backoff_seconds(attempt) for _ in range(200)]
        assert whole / 2 <= min(waits) < max(waits) <= whole
        assert len(set(waits)) > 100
