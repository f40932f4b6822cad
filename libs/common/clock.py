"""Python's clock, injected; leases and expiry are decided by the database's clock instead (`clock_timestamp()`)."""

from collections.abc import Callable
from datetime import UTC, date, datetime
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

Clock = Callable[[], datetime]  # aware, UTC


def utc_now() -> datetime:
    return datetime.now(UTC)


def as_of(due_at: datetime, now: datetime) -> datetime:
    """The moment a tick speaks for: a tick fired by hand for the future cannot make anything happen early."""
    return min(due_at, now)


@cache
def _time_zones() -> frozenset[str]:
    return frozenset(available_timezones() - {"localtime"})  # which means the machine's, wherever that is


def known_time_zone(name: str) -> bool:
    """One of the IANA data base's names: what Python and PostgreSQL agree on, unlike "posix/UTC" or "posixrules"."""
    return name in _time_zones()


def local_date(moment: datetime, time_zone: str) -> date:
    """The calendar date in a programme's own time zone: an envelope's schedule date is a local date."""
    return moment.astimezone(ZoneInfo(time_zone)).date()
