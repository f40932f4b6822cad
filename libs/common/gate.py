"""Consideration for an outside party: so many requests a second, none while it asks for time, few while it is out of order.

One gate stands before one kind of call of one process. The worker asks it how many calls it may begin; each request waits for
its turn; what came of a call is told. Whoever is not let through stays where it was: nothing of it counts as an attempt.
Where calls of a kind go to several counterparts, one that asks for time gets it from its own calls only.
"""

import asyncio
import math
import time
from collections.abc import Callable
from datetime import datetime
from email.utils import parsedate_to_datetime

from libs.common import metrics
from libs.common.log import get
from libs.common.retry import backoff_seconds

LONGEST_PAUSE_SECONDS = 3600.0  # nobody out there can stop us for ever
_AHEAD_SECONDS = 0.5  # for which turns calls are begun: fewer claims for as many calls
_SHORTEST_WAIT_SECONDS = 0.01

_log = get("gate")


class Gate:
    """`calls_per_second` 0: as many as there are. `breaker_failures` 0: there is no breaker.

    The breaker: after that many failures in a row nothing is begun for up to `breaker_seconds`, with a jitter that keeps
    replicas apart; then one call at a time, until one is answered."""

    def __init__(
        self,
        kind: str,
        calls_per_second: float = 0,
        breaker_failures: int = 0,
        breaker_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kind = kind
        self._interval = 1 / calls_per_second if calls_per_second else 0.0
        self._breaker_failures = breaker_failures
        self._breaker_seconds = breaker_seconds
        self._clock = clock
        self._failures = 0
        self._turn = -math.inf  # when the next request may be sent
        self._closed_until = -math.inf
        self._left_alone_until: dict[str, float] = {}  # counterparts that ask for time
        metrics.BREAKER_OPEN.labels(kind).set(0)

    @property
    def broken(self) -> bool:
        """The breaker is open: nothing, or one call at a time, is tried."""
        return 0 < self._breaker_failures <= self._failures

    def allowed(self, free: int, running: int) -> int:
        """How many calls may begin now, of `free` ones, while `running` are under way."""
        now = self._clock()
        if now < self._closed_until or (self.broken and running):
            return 0
        if self.broken:
            free = min(free, 1)
        if not self._interval:
            return free
        turns = int((now + _AHEAD_SECONDS - max(now, self._turn)) / self._interval)
        return max(0, min(free, turns if turns or self._turn > now else 1))

    def wait_seconds(self, longest: float) -> float:
        """How long there is nothing to be begun for certain; `longest` where that is not known."""
        now = self._clock()
        until = max(self._closed_until, self._turn)
        return longest if until <= now else min(longest, max(_SHORTEST_WAIT_SECONDS, until - now))

    async def turn(self) -> None:
        """Wait until one more request may be sent."""
        if not self._interval:
            return
        now = self._clock()
        mine = max(now, self._turn)
        self._turn = mine + self._interval
        if mine > now:
            await asyncio.sleep(mine - now)

    def pause(self, seconds: float, counterpart: str = "") -> None:
        """The other side asks for time; with `counterpart` one of several, and the others are not concerned."""
        until = self._clock() + min(seconds, LONGEST_PAUSE_SECONDS)
        if counterpart:
            self._left_alone_until[counterpart] = max(self._left_alone_until.get(counterpart, -math.inf), until)
        else:
            self._closed_until = max(self._closed_until, until)

    def paused_seconds(self, counterpart: str) -> float:
        """For how long one of several wants no further call."""
        return max(0.0, self._left_alone_until.get(counterpart, -math.inf) - self._clock())

    def answered(self) -> None:
        if self.broken:
            _log.info("the breaker is closed", kind=self._kind)
            metrics.BREAKER_OPEN.labels(self._kind).set(0)
        self._failures = 0

    def failed(self) -> None:
        """The other side is not there, or makes no sense."""
        was_broken = self.broken
        self._failures += 1
        if self.broken:
            self.pause(backoff_seconds(1, self._breaker_seconds, self._breaker_seconds))
            metrics.BREAKER_OPEN.labels(self._kind).set(1)
            if not was_broken:
                _log.error("the breaker is open", kind=self._kind, failures=self._failures, seconds=self._breaker_seconds)


def retry_after_seconds(value: str | None, now: datetime) -> float:
    """What a header Retry-After asks for, in seconds or as a date; 0 where it says nothing that could be understood."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), LONGEST_PAUSE_SECONDS)
    try:
        seconds = (parsedate_to_datetime(text) - now).total_seconds()
    except (TypeError, ValueError):  # no date, or one without a time zone
        return 0.0
    return min(max(seconds, 0.0), LONGEST_PAUSE_SECONDS)
