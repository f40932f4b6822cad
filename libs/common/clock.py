"""Python's clock, injected; leases and expiry are decided by the database's clock instead (`clock_timestamp()`)."""

from collections.abc import Callable
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

Clock = Callable[[], datetime]  # aware, UTC


def utc_now() -> datetime:
    return datetime.now(UTC)


def as_of(due_at: datetime, now: datetime) -> datetime:
    """The moment a tick speaks for: a tick fired by hand for the future cannot make anything happen early."""
    return min(due_at, now)


def local_date(moment: datetime, time_zone: str) -> date:
    """The calendar date in a programme's own time zone: an envelope's schedule date is a local date."""
    return moment.astimezone(ZoneInfo(time_zone)).date()
