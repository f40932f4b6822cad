"""When a job is due. Pure: the same answer in every replica, from the schedule and two moments of the database's clock."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from cronsim import CronSim

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Either an interval, aligned to the epoch so that replicas agree, or a cron of five fields in a time zone.

    `misfire`: of due times that went by, `latest` fires the last one for all of them; `skip` fires the last one only if it
    is at most `grace_seconds` old, and nothing otherwise."""

    interval_seconds: int | None = None
    cron: str | None = None
    time_zone: str = "UTC"
    misfire: Literal["latest", "skip"] = "latest"
    grace_seconds: int = 60

    def __str__(self) -> str:
        return f"every {self.interval_seconds} s" if self.interval_seconds else f"cron {self.cron}"


@dataclass(frozen=True, slots=True)
class Decision:
    """What is decided about the due times up to and including `until` (None: none has come)."""

    until: datetime | None
    due_at: datetime | None = None  # fire this one
    missed: int = 0  # and so many before it went by


def decide(schedule: Schedule, after: datetime, now: datetime) -> Decision:
    """What to do about the due times after `after` and not after `now`."""
    count, latest = _passed(schedule, after, now)
    if latest is None:
        return Decision(None)
    if schedule.misfire == "latest":
        return Decision(latest, latest, count - 1)
    on_time = now - latest <= timedelta(seconds=schedule.grace_seconds)
    return Decision(latest, latest if on_time else None)


def next_due(schedule: Schedule, after: datetime) -> datetime:
    """The first due time after a moment; aware, UTC."""
    if schedule.interval_seconds:
        return _EPOCH + timedelta(seconds=(_number(schedule.interval_seconds, after) + 1) * schedule.interval_seconds)
    return next(_cron_times(schedule, after))


def _passed(schedule: Schedule, after: datetime, now: datetime) -> tuple[int, datetime | None]:
    """How many due times lie in (after, now], and the last of them."""
    if schedule.interval_seconds:
        last = _number(schedule.interval_seconds, now)
        count = max(0, last - _number(schedule.interval_seconds, after))
        return count, _EPOCH + timedelta(seconds=last * schedule.interval_seconds) if count else None
    count, latest = 0, None
    for due_at in _cron_times(schedule, after):
        if due_at > now:
            break
        count, latest = count + 1, due_at
    return count, latest


def _number(interval_seconds: int, moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(seconds=interval_seconds)


def _cron_times(schedule: Schedule, after: datetime) -> Iterator[datetime]:
    """Due times after a moment, ever later. As in Debian's cron a fixed time in an hour that the clocks leave out comes
    right after it, and one in an hour that comes twice comes once."""
    assert schedule.cron is not None
    last = after
    for local in CronSim(schedule.cron, after.astimezone(ZoneInfo(schedule.time_zone))):
        due_at = local.astimezone(UTC)
        if due_at > last:  # cronsim counts in local time there and may repeat itself, or step back
            yield due_at
            last = due_at
