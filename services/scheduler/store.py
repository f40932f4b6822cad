"""Every SQL statement of the scheduler."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from libs.common.db import Tx
from services.scheduler.domain import Decision, Schedule, next_due


@dataclass(frozen=True, slots=True)
class FiredTick:
    job: str
    due_at: datetime
    missed: int


def now(tx: Tx) -> datetime:
    moment: datetime = tx.one("SELECT clock_timestamp() AS now").now
    return moment


def register(tx: Tx, schedules: Mapping[str, Schedule], at: datetime) -> None:
    """Make jobs known. A job that is new, or has other times than before, starts from `at`; the others go on."""
    names = sorted(schedules)
    tx.run(
        """INSERT INTO jobs AS j (job, schedule, time_zone, misfire, decided_until, next_due_at)
           SELECT job, schedule, time_zone, misfire, %(at)s, next_due_at
           FROM unnest(%(names)s::text[], %(texts)s::text[], %(zones)s::text[], %(misfires)s::text[],
                       %(next)s::timestamptz[]) AS given (job, schedule, time_zone, misfire, next_due_at)
           ON CONFLICT (job) DO UPDATE
           SET schedule = excluded.schedule, time_zone = excluded.time_zone, misfire = excluded.misfire,
               decided_until = CASE WHEN (j.schedule, j.time_zone) = (excluded.schedule, excluded.time_zone)
                                    THEN j.decided_until ELSE excluded.decided_until END,
               next_due_at = CASE WHEN (j.schedule, j.time_zone) = (excluded.schedule, excluded.time_zone)
                                  THEN j.next_due_at ELSE excluded.next_due_at END
           WHERE (j.schedule, j.time_zone, j.misfire) <> (excluded.schedule, excluded.time_zone, excluded.misfire)""",
        at=at,
        names=names,
        texts=[str(schedules[name]) for name in names],
        zones=[schedules[name].time_zone for name in names],
        misfires=[schedules[name].misfire for name in names],
        next=[next_due(schedules[name], at) for name in names],
    )


def lock_due(tx: Tx, names: Sequence[str]) -> dict[str, datetime]:
    """Jobs whose next due time has come -> up to when is decided. What another replica is deciding now is left to it."""
    rows = tx.rows(
        """SELECT job, decided_until FROM jobs WHERE job = ANY(%(names)s) AND next_due_at <= clock_timestamp()
           ORDER BY job FOR UPDATE SKIP LOCKED""",
        names=list(names),
    )
    return {row.job: row.decided_until for row in rows}


def next_due_at(tx: Tx, names: Sequence[str]) -> datetime | None:
    """When the next of these jobs is due."""
    moment: datetime | None = tx.one("SELECT min(next_due_at) AS at FROM jobs WHERE job = ANY(%(names)s)", names=list(names)).at
    return moment


def lateness(tx: Tx, names: Sequence[str]) -> dict[str, float]:
    """Seconds by which these jobs' next ticks are overdue; 0 for what is not due yet."""
    rows = tx.rows(
        """SELECT job, greatest(0, extract(epoch FROM clock_timestamp() - next_due_at)) AS seconds
           FROM jobs WHERE job = ANY(%(names)s)""",
        names=list(names),
    )
    return {row.job: float(row.seconds) for row in rows}


def store_decisions(tx: Tx, decisions: Mapping[str, Decision], next_due_at: Mapping[str, datetime]) -> list[FiredTick]:
    """Insert the ticks to fire and move their jobs on; returns the ticks which are new."""
    names = sorted(decisions)
    rows = tx.rows(
        """WITH given AS (
               SELECT * FROM unnest(%(names)s::text[], %(until)s::timestamptz[], %(due)s::timestamptz[], %(missed)s::int[],
                                    %(next)s::timestamptz[]) AS g (job, until, due_at, missed, next_due_at)),
           moved AS (
               UPDATE jobs j SET decided_until = greatest(j.decided_until, given.until), next_due_at = given.next_due_at,
                      last_due_at = greatest(j.last_due_at, given.due_at)
               FROM given WHERE j.job = given.job)
           INSERT INTO ticks (job, due_at, missed) SELECT job, due_at, missed FROM given WHERE due_at IS NOT NULL
           ON CONFLICT (job, due_at) DO NOTHING RETURNING job, due_at, missed""",
        names=names,
        until=[decisions[name].until for name in names],
        due=[decisions[name].due_at for name in names],
        missed=[decisions[name].missed for name in names],
        next=[next_due_at[name] for name in names],
    )
    return [FiredTick(row.job, row.due_at, row.missed) for row in rows]


def fire_now(tx: Tx, job: str, reason: str) -> FiredTick | None:
    """A tick for this very moment; it changes nothing about the job's own times. None: there is one of this microsecond."""
    rows = tx.rows(
        """INSERT INTO ticks (job, due_at, reason) VALUES (%(job)s, clock_timestamp(), %(reason)s)
           ON CONFLICT (job, due_at) DO NOTHING RETURNING job, due_at, missed""",
        job=job,
        reason=reason,
    )
    return FiredTick(rows[0].job, rows[0].due_at, rows[0].missed) if rows else None


def forget(tx: Tx, names: Sequence[str], keep_days: int) -> None:
    """Delete old ticks, and jobs which no replica has looked after for as long."""
    tx.run(
        """WITH gone AS (DELETE FROM ticks WHERE at < clock_timestamp() - make_interval(days => %(days)s))
           DELETE FROM jobs WHERE next_due_at < clock_timestamp() - make_interval(days => %(days)s)
                              AND NOT job = ANY(%(names)s)""",
        days=keep_days,
        names=list(names),
    )
