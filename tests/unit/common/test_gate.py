"""A gate keeps to its rate, to what it is asked for, and to its breaker; only whole calls are held back."""

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.gate import LONGEST_PAUSE_SECONDS, Gate, retry_after_seconds

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)


class Time:
    """A clock that goes on by sleeping only, or not at all."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.stands = False

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += 0 if self.stands else seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr("libs.common.gate.asyncio.sleep", clock.sleep)
    return clock


def test_without_limits_all_may_begin_at_once(time: Time) -> None:
    free = Gate("k", clock=time)
    for _ in range(100):
        free.failed()
    asyncio.run(free.turn())
    assert (free.allowed(7, 50), free.broken, time.now) == (7, False, 1000.0)


def test_requests_come_no_faster_than_the_rate(time: Time) -> None:
    slow = Gate("k", calls_per_second=4, clock=time)
    sent = []

    async def send() -> None:
        for _ in range(5):
            await slow.turn()
            sent.append(time.now)

    asyncio.run(send())
    assert sent == [1000.0, 1000.25, 1000.5, 1000.75, 1001.0]


def test_no_more_calls_are_begun_than_have_a_turn_soon(time: Time) -> None:
    slow = Gate("k", calls_per_second=4, clock=time)
    assert slow.allowed(10, 0) == 2  # of the next half second
    time.stands = True
    for _ in range(3):
        asyncio.run(slow.turn())
    assert slow.allowed(10, 0) == 0
    assert slow.wait_seconds(60.0) == 0.75
    time.now += 0.75
    assert slow.allowed(1, 0) == 1
    very_slow = Gate("k", calls_per_second=0.01, clock=time)
    assert very_slow.allowed(10, 0) == 1
    asyncio.run(very_slow.turn())
    assert very_slow.allowed(10, 0) == 0
    assert very_slow.wait_seconds(5.0) == 5.0


def test_whoever_asks_for_time_gets_it(time: Time) -> None:
    asked = Gate("k", clock=time)
    asked.pause(30)
    asked.pause(10)  # the longer one counts
    assert (asked.allowed(5, 0), asked.wait_seconds(60.0)) == (0, 30.0)
    time.now += 30
    assert (asked.allowed(5, 0), asked.wait_seconds(60.0)) == (5, 60.0)
    asked.pause(10**9)
    assert asked.wait_seconds(10**9) == LONGEST_PAUSE_SECONDS


def test_one_of_several_that_asks_for_time_gets_it_from_its_own_calls_only(time: Time) -> None:
    asked = Gate("k", clock=time)
    asked.pause(30, "A")
    asked.pause(10, "A")  # the longer one counts
    assert (asked.paused_seconds("A"), asked.paused_seconds("B")) == (30.0, 0.0)
    assert (asked.allowed(5, 0), asked.wait_seconds(60.0)) == (5, 60.0)
    time.now += 30
    assert asked.paused_seconds("A") == 0.0
    asked.pause(10**9, "B")
    assert asked.paused_seconds("B") == LONGEST_PAUSE_SECONDS


def test_the_breaker_opens_tries_one_call_and_closes(time: Time) -> None:
    breaker = Gate("k", breaker_failures=3, breaker_seconds=60, clock=time)
    breaker.failed()
    breaker.failed()
    breaker.answered()  # in a row only
    breaker.failed()
    breaker.failed()
    assert (breaker.broken, breaker.allowed(5, 0)) == (False, 5)
    breaker.failed()
    assert (breaker.broken, breaker.allowed(5, 0)) == (True, 0)
    assert 30 <= breaker.wait_seconds(60.0) <= 60
    time.now += 60
    assert breaker.allowed(5, 0) == 1
    assert breaker.allowed(5, 1) == 0  # one at a time
    breaker.failed()
    assert breaker.allowed(5, 0) == 0
    time.now += 60
    assert breaker.allowed(5, 0) == 1
    breaker.answered()
    assert (breaker.broken, breaker.allowed(5, 0)) == (False, 5)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        (" 120 ", 120),
        ("Sat, 21 Nov 2026 12:01:30 GMT", 90),
        ("Sat, 21 Nov 2026 11:00:00 GMT", 0),
        ("99999999999999", LONGEST_PAUSE_SECONDS),
        ("Sat, 21 Nov 2099 12:00:00 GMT", LONGEST_PAUSE_SECONDS),
        ("-5", 0),
        ("1.5", 0),
        ("\u0661", 0),
        ("soon", 0),
        ("Sat, 21 Nov 2026 12:01:30", 0),
        ("", 0),
        (None, 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float) -> None:
    assert retry_after_seconds(value, NOW) == seconds


@given(st.text())
def test_no_retry_after_breaks_anything(value: str) -> None:
    assert 0 <= retry_after_seconds(value, NOW) <= LONGEST_PAUSE_SECONDS
