"""Jobs come due and tick; an operator may fire one by hand. Whatever a tick means, others decide."""

import threading
import time
from collections.abc import Mapping
from datetime import UTC

from prometheus_client import Gauge

from libs.common import crash
from libs.common.commands import audited
from libs.common.consumer import Routes
from libs.common.contracts.operator import FireTick
from libs.common.contracts.scheduler import Tick
from libs.common.db import Database, Tx
from libs.common.envelope import Cause, Event, cause_of
from libs.common.errors import Malformed, Transient
from libs.common.log import get
from libs.common.metrics import show
from libs.common.outbox import Outbox, Outgoing, outgoing
from services.scheduler import store
from services.scheduler.domain import Schedule, decide, next_due

SHORTEST_SECONDS = 0.05  # where another replica holds what is due
LOOK_SECONDS = 1.0  # at the latest: the database's clock may jump, a job may have been moved by another replica
FORGET_SECONDS = 3600.0

TICK_LAG = Gauge("almoner_tick_lag_seconds", "By how much a job's next tick is overdue", ["tick"])

_log = get("scheduler")


class Scheduler:
    """No leader: replicas look at the same rows, and a tick (job, due time) exists once. No state but the schedules."""

    def __init__(self, database: Database, outbox: Outbox, schedules: Mapping[str, Schedule], keep_ticks_days: int) -> None:
        self._database = database
        self._outbox = outbox
        self._schedules = schedules
        self._keep_ticks_days = keep_ticks_days

    def run(self, stop: threading.Event) -> None:
        """Tick until stopped; a database that is away is waited for."""
        registered = False
        forget_at = 0.0
        while not stop.is_set():
            try:
                if not registered:
                    self.register()
                    registered = True
                seconds = self.tick()
                if time.monotonic() >= forget_at:
                    with self._database.transaction() as tx:
                        store.forget(tx, list(self._schedules), self._keep_ticks_days)
                    forget_at = time.monotonic() + FORGET_SECONDS
            except Transient as error:
                _log.warning("database", error=str(error))
                seconds = LOOK_SECONDS
            stop.wait(seconds)

    def register(self) -> None:
        with self._database.transaction() as tx:
            store.register(tx, self._schedules, store.now(tx))

    def tick(self) -> float:
        """Fire what is due, in one transaction; returns after how many seconds to look again."""
        fired: list[store.FiredTick] = []
        with self._database.transaction() as tx:
            due = store.lock_due(tx, list(self._schedules))
            now = store.now(tx)
            if due:
                decisions = {job: decide(self._schedules[job], after, now) for job, after in due.items()}
                following = {job: next_due(self._schedules[job], now) for job in due}
                fired = store.store_decisions(tx, decisions, following)
                self._outbox.append(tx, [_tick(tick, "", None) for tick in fired])
                for tick in fired:
                    crash.reached("job.before_commit", 1, tick.job)
            upcoming = store.next_due_at(tx, list(self._schedules))
        for tick in fired:
            _log.info("tick", job=tick.job, due_at=tick.due_at.isoformat(), missed=tick.missed)
            crash.reached("job.after_commit", 1, tick.job)
        seconds = LOOK_SECONDS if upcoming is None else (upcoming - now).total_seconds()
        return min(max(seconds, SHORTEST_SECONDS), LOOK_SECONDS)

    def read_lateness(self, tx: Tx) -> None:
        """Only of the jobs there are: one that has left the settings is not late."""
        show(TICK_LAG, {(job,): seconds for job, seconds in store.lateness(tx, list(self._schedules)).items()})

    def fire(self, tx: Tx, event: Event[FireTick]) -> int:
        """By hand, now. Raises Malformed for a job that nobody knows."""
        job = event.data.job
        if job not in self._schedules:
            raise Malformed("UNKNOWN_JOB", f"there are {', '.join(self._schedules)}", "/job")
        tick = store.fire_now(tx, job, event.data.why)
        self._outbox.append(tx, [_tick(tick, event.data.why, cause_of(event))] if tick else [])
        return 1 if tick else 0

    def routes(self) -> Routes:
        return Routes({("scheduler.commands.v1", FireTick): audited(self.fire)})


def _tick(tick: store.FiredTick, reason: str, cause: Cause | None) -> Outgoing:
    due_at = tick.due_at.astimezone(UTC)
    data = Tick(job=tick.job, due_at=due_at, missed=tick.missed, reason=reason)
    return outgoing(data, tick.job, cause, tick.job, due_at.isoformat())
