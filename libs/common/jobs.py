"""What nobody who comes last may decide: decided after commit, under the envelope's exclusive lock, from committed rows.

A fold appends `due` rows while it holds the shared lock; the job takes the exclusive lock first, so that no such fold is
under way, then removes the rows and decides. Appending instead of marking: nobody waits for anybody at the row.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from libs.common import crash, metrics
from libs.common.db import Database, Tx
from libs.common.envelope import Cause
from libs.common.errors import Fatal, Transient
from libs.common.log import get

WAKE = "jobs"
PATIENCE_SECONDS = 0.05  # a job tries for its lock so long, then it waits for it
FAILED_SECONDS = 60.0  # until a decision that failed is tried again

_log = get("jobs")


@dataclass(frozen=True)
class Job:
    """`decide` gets the transaction, the subject and what made it due. It may append further events and due rows.

    After `max_attempts` failures of a subject it waits for an operator's retry; 0: it is tried again for ever."""

    name: str
    decide: Callable[[Tx, str, Cause], None]
    max_attempts: int = 0
    enabled: bool = True  # off: another replica does it


def make_due(
    tx: Tx,
    job: str,
    subjects: Sequence[str],
    lock_keys: Sequence[int],
    cause: Cause,
    delay_seconds: float = 0,
    every_seconds: float = 0,
) -> None:
    """Ask for a decision on each subject, now or later; with `every_seconds` at the end of the current stretch of so many, so that
    whoever asks within it asks for one decision."""
    tx.run(
        """INSERT INTO due (job, subject, lock_key, due_at, cause_id, correlation_id, traceparent)
           SELECT %(job)s, subject, lock_key,
                  coalesce(to_timestamp(ceil(extract(epoch FROM clock_timestamp()) / %(every)s::float8) * %(every)s::float8),
                           clock_timestamp() + make_interval(secs => %(delay)s)),
                  %(cause)s, %(correlation)s, %(trace)s
           FROM unnest(%(subjects)s::text[], %(keys)s::bigint[]) AS asked (subject, lock_key)""",
        job=job,
        subjects=list(subjects),
        keys=list(lock_keys),
        delay=delay_seconds,
        every=every_seconds or None,
        cause=cause.id,
        correlation=cause.correlation_id,
        trace=cause.traceparent,
    )
    tx.wakes.add(WAKE)


def retry(tx: Tx, job: str, subjects: Sequence[str]) -> list[str]:
    """Take up again what was given up; all of the job if `subjects` is empty. Returns the subjects."""
    tx.wakes.add(WAKE)
    rows = tx.rows(
        """UPDATE due SET gave_up = false, failures = 0, due_at = clock_timestamp() WHERE job = %(job)s AND gave_up
             AND (cardinality(%(subjects)s::text[]) = 0 OR subject = ANY(%(subjects)s::text[])) RETURNING subject""",
        job=job,
        subjects=list(subjects),
    )
    return sorted({row.subject for row in rows})


class JobRunner:
    """Decides what is due, one subject a transaction. Replicas race harmlessly: whoever gets the lock finds the rows."""

    def __init__(self, database: Database, jobs: Sequence[Job]) -> None:
        self._database = database
        self._jobs = {job.name: job for job in jobs if job.enabled}

    def run_due(self, limit: int = 100) -> int:
        """Decide what is due now; returns how many subjects were decided (by whomever)."""
        found = self._database.look(
            """SELECT job, subject, lock_key, min(id) AS first,
                      clock_timestamp() - min(due_at) > make_interval(secs => %(patience)s) AS waited
               FROM due
               WHERE due_at <= clock_timestamp() AND job = ANY(%(jobs)s) AND NOT gave_up
                 AND NOT EXISTS (SELECT 1 FROM paused WHERE stage = job)
               GROUP BY job, subject, lock_key ORDER BY first LIMIT %(limit)s""",
            jobs=list(self._jobs),
            limit=limit,
            patience=PATIENCE_SECONDS,
        )
        decided = 0
        for row in found:
            try:
                decided += self._decide(self._jobs[row.job], row.subject, row.lock_key, waited=row.waited)
            except (Transient, Fatal):
                raise
            except Exception as error:
                _log.exception("a decision failed; the others go on", job=row.job, subject=row.subject)
                self._postpone(row.job, row.subject, error)
        return decided

    def _postpone(self, job: str, subject: str, error: Exception) -> None:
        """A bug stops its own subject, visibly, and is tried again in case the next release knows better."""
        metrics.JOBS.labels(job, "failed").inc()
        with self._database.transaction() as tx:
            tx.run(
                """UPDATE due SET due_at = clock_timestamp() + make_interval(secs => %(seconds)s), fault = %(fault)s,
                          failures = failures + 1, gave_up = %(max)s > 0 AND failures + 1 >= %(max)s
                   WHERE job = %(job)s AND subject = %(subject)s""",
                job=job,
                subject=subject,
                seconds=FAILED_SECONDS,
                fault=type(error).__name__,
                max=self._jobs[job].max_attempts,
            )

    def _decide(self, job: Job, subject: str, lock_key: int, *, waited: bool) -> bool:
        with self._database.transaction() as tx:
            # Whoever waits for the exclusive lock stops all folds and claims behind it: try first, insist later.
            if waited:
                tx.lock_exclusive([lock_key])
            elif not tx.try_lock_exclusive(lock_key):
                return False
            taken = tx.rows(
                """DELETE FROM due WHERE job = %(job)s AND subject = %(subject)s AND due_at <= clock_timestamp()
                   RETURNING id, cause_id, correlation_id, traceparent""",
                job=job.name,
                subject=subject,
            )
            if not taken:
                return True  # another replica was faster
            last = max(taken, key=lambda row: row.id)
            with metrics.timed(metrics.HANDLER, type=job.name):
                job.decide(tx, subject, Cause(last.cause_id, last.correlation_id, last.traceparent))
            crash.reached("job.before_commit", 1, job.name)
        metrics.JOBS.labels(job.name, "decided").inc()
        crash.reached("job.after_commit", 1, job.name)
        return True

    async def run(self, wake: asyncio.Event, stop: threading.Event, poll_seconds: float = 0.1, max_subjects: int = 100) -> None:
        while not stop.is_set():
            wake.clear()
            try:
                found = await asyncio.to_thread(self.run_due, max_subjects)
            except Transient as error:
                _log.warning("database", error=str(error))
                found = 0
                await asyncio.sleep(0.5)
            if found < max_subjects:  # what a decision made due has woken us
                await wait(wake, poll_seconds)


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Until the event or the time. (Not `wait_for`, which before Python 3.12 may lose a cancellation that comes with it.)"""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
