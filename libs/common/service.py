"""One service, one process, one command with verbs: `python -m services.<name> run | consume | work | relay | migrate | config`.

`run` does all of consuming, working and relaying in one process, so that a commit wakes the next step at once.
"""

import argparse
import asyncio
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

from starlette.routing import BaseRoute

from libs.common import commands, consumer, inbox, jobs, kafka, log, metrics, migrate, outbox
from libs.common.clock import utc_now
from libs.common.config import ServiceSettings
from libs.common.db import Database, Tx
from libs.common.errors import Fatal, Transient
from libs.common.health import HttpServer
from libs.common.jobs import Job, JobRunner
from libs.common.relay import Relay
from libs.common.restored import Guard
from libs.common.workqueue import CallOut, Worker

_LIVE_SECONDS = 60
_MEASURE_SECONDS = 10  # no gauge is worth more of the database, nor of the time there is to stop in
_PUBLISH_SECONDS = 2.0  # the relay's own at the end, whoever has used up the rest

_log = log.get("service")


@dataclass(frozen=True)
class Measure:
    """Gauges to be read from the database every so many seconds (at the next look after them), each time in a transaction of their
    own."""

    name: str
    every_seconds: float
    read: Callable[[Tx], None]


@dataclass(frozen=True)
class Parts:
    """What a service's wiring hands to the runtime."""

    routes: consumer.Routes
    callouts: Sequence[CallOut] = ()
    jobs: Sequence[Job] = ()
    http: Sequence[BaseRoute] = ()
    background: Sequence[Callable[[threading.Event], None]] = field(default=())  # loops of the service's own (`work`)
    measures: Sequence[Measure] = ()
    after_restore: Sequence[CallOut] = ()  # calls that wait for an operator when the database was restored

    @property
    def stages(self) -> list[str]:
        """What an operator can pause: consumption, each kind of outside call, each job."""
        return [consumer.CONSUME_STAGE, *(callout.kind for callout in self.callouts), *(job.name for job in self.jobs)]


Wire = Callable[[ServiceSettings, Database], Parts]


Verbs = Mapping[str, Callable[[Sequence[str]], None]]  # of a service's own: what they do with the arguments behind them


def main(
    settings_class: type[ServiceSettings], wire: Wire, argv: Sequence[str] | None = None, verbs: Verbs = MappingProxyType({})
) -> None:
    name = settings_class.SERVICE
    parser = argparse.ArgumentParser(prog=f"python -m services.{name}", description=f"Almoner's {name} service")
    parser.add_argument("verb", choices=["run", "consume", "work", "relay", "migrate", "config", *verbs])
    given = sys.argv[1:] if argv is None else argv
    if given and given[0] in verbs:
        verbs[given[0]](given[1:])
        return
    verb = parser.parse_args(given).verb
    if verb == "config":  # connects to nothing: what this environment would tell the service
        print(json.dumps(settings_class.described(), ensure_ascii=False))
        return
    settings = settings_class.load()
    gc.freeze()  # what was imported stays; a batch of events makes many short-lived objects and few cycles
    gc.set_threshold(20_000, 20, 100)
    sys.setswitchinterval(0.02)
    log.configure(name, settings.log_level)
    try:
        if verb == "migrate":
            migrate.migrate(settings.database_url.get_secret_value(), name)
        else:
            _Process(settings, wire, verb).run()
    except Fatal as error:
        _log.critical("cannot go on", error=str(error))
        sys.exit(1)


def _set_from_any_thread(loop: asyncio.AbstractEventLoop, wake: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(wake.set)


class _Process:
    def __init__(self, settings: ServiceSettings, wire: Wire, verb: str) -> None:
        self.settings = settings
        self.name = settings.SERVICE
        self.stop = threading.Event()
        self.silent = threading.Event()  # nobody commits any more: the relay publishes the rest and ends
        self.failed: BaseException | None = None
        self.database = Database(settings.database_url.get_secret_value(), self.name, pool_size=settings.pool_size)
        self.verb = verb
        self.parts = wire(settings, self.database)
        self.routes = commands.with_common(self.name, self.parts.routes, self.parts.stages)
        self.guard = Guard(
            self.database,
            f"{settings.topic_prefix}almoner-{self.name}",
            settings.topic_prefix,
            self.routes.topics,
            self.parts.after_restore,
        )
        self.loop: consumer.Loop | None = None
        self._wakes: dict[str, Callable[[], None]] = {}
        self.database.wake = self._wake
        self._running = False

    def does(self, verb: str) -> bool:
        return self.verb in ("run", verb)

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self.stop.set())
        signal.signal(signal.SIGINT, lambda *_: self.stop.set())
        settings = self.settings
        http = HttpServer(
            settings.http_host,
            settings.http_port,
            self._live,
            self._ready,
            self.parts.http if self.does("consume") else (),
        )
        port = http.start()
        self._wait_for_database()
        if self.stop.is_set():  # before both were there
            http.stop()
            return
        threads: list[threading.Thread] = []
        relays: list[threading.Thread] = []
        if self.does("relay"):
            relay = Relay(
                self.database, kafka.producer(f"almoner-{self.name}"), settings.topic_prefix, woken=self.does("consume")
            )
            self._wakes[outbox.WAKE] = relay.wake.set
            relays.append(self._thread("relay", lambda: relay.run(self.silent)))
        if self.does("work"):
            threads.append(self._thread("work", lambda: asyncio.run(self._work())))
            threads += [
                self._thread(f"background-{number}", lambda run=run: run(self.stop))  # type: ignore[misc]
                for number, run in enumerate(self.parts.background)
            ]
        if self.does("consume"):
            threads.append(self._thread("consume", self._consume))
        threads.append(self._thread("housekeeping", self._keep_house))
        self._running = True
        _log.info("started", verb=self.verb, port=port, pid=os.getpid())
        while not self.stop.wait(0.5):
            pass
        self._wake(set(self._wakes))  # who waits for the next poll ends now
        until = time.monotonic() + settings.shutdown_seconds
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        self.silent.set()
        for thread in relays:
            thread.join(max(_PUBLISH_SECONDS, until - time.monotonic()))
        late = [thread.name for thread in threads + relays if thread.is_alive()]
        http.stop()
        if self.failed is not None or late:
            _log.error("stopped", failed=repr(self.failed) if self.failed else None, not_drained=late)
            sys.stderr.flush()
            os._exit(1)
        self.database.close()
        _log.info("stopped")

    def _thread(self, name: str, target: Callable[[], object]) -> threading.Thread:
        def guarded() -> None:
            try:
                target()
            except Fatal as error:
                _log.critical("cannot go on", error=str(error))
                self.failed = error
            except BaseException as error:
                _log.exception("a part of the process failed", part=name)
                self.failed = error
            if self.failed is not None:
                self.stop.set()

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def _wake(self, names: set[str]) -> None:
        """Something was committed: whom it concerns looks now instead of at the next poll."""
        for name in names:
            if wake := self._wakes.get(name):
                wake()

    def _consume(self) -> None:
        settings = self.settings
        limits = consumer.Limits(
            settings.consume_max_messages,
            settings.consume_max_bytes,
            settings.consume_max_failures,
            settings.consume_breaker,
        )
        fold = consumer.Fold(self.database, self.routes, limits)
        client = kafka.consumer(self.guard.group, f"almoner-{self.name}-{os.getpid()}")
        self.loop = consumer.Loop(client, fold, self.routes, self.guard)
        self.loop.run(self.stop)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        runners: dict[str, Callable[[asyncio.Event], Coroutine[object, object, None]]] = {}
        for callout in self.parts.callouts:
            if not self.settings.limits(callout.kind).enabled:
                _log.info("this replica leaves such calls to others", kind=callout.kind)
                continue
            for outcome in ("Done", "NotSent", "MaybeDone"):
                metrics.CALLS.labels(callout.kind, outcome)  # from 0 on, so that the first failure is seen as one
            worker = Worker(self.database, callout, self.settings.limits(callout.kind))
            runners[callout.kind] = lambda wake, worker=worker: worker.run(wake, self.stop)  # type: ignore[misc]
        if self.parts.jobs:
            decider = JobRunner(self.database, self.parts.jobs)
            runners[jobs.WAKE] = lambda wake: decider.run(
                wake, self.stop, self.settings.jobs_poll_seconds, self.settings.jobs_max_subjects
            )
        try:
            async with asyncio.TaskGroup() as group:
                for name, run in runners.items():
                    wake = asyncio.Event()
                    self._wakes[name] = partial(_set_from_any_thread, loop, wake)
                    group.create_task(run(wake))
        finally:
            for name in runners:
                self._wakes.pop(name, None)

    def _wait_for_database(self) -> None:
        """And for the broker: before anything is called or published, whatever the verb, offsets are compared with the data."""
        while not self.stop.is_set():
            try:
                with self.database.transaction() as tx:
                    migrate.check_revision(tx.connection, self.name)
                self.guard.compare(kafka.committed(self.guard.group))
                inbox.keep_partitions(self.database, utc_now())
                return
            except Transient as error:
                _log.warning("waiting for the database and the broker", error=str(error))
                self.stop.wait(1.0)

    def _keep_house(self) -> None:
        """Every few seconds: the gauges that are due; once an hour: the inbox's partitions."""
        measures = [Measure("runtime", 0.0, self._measure), *self.parts.measures]
        due = dict.fromkeys(measures, 0.0)
        hourly = time.monotonic() + 3600
        while True:
            metrics.READY.set(not self._ready())
            for measure, at in due.items():
                if time.monotonic() >= at and not self.stop.is_set():
                    self._take(measure)
                    due[measure] = time.monotonic() + measure.every_seconds
            try:
                if time.monotonic() > hourly:
                    inbox.keep_partitions(self.database, utc_now())
                    hourly = time.monotonic() + 3600
            except Transient as error:
                _log.warning("database", error=str(error))
            if self.stop.wait(self.settings.measure_seconds):
                return

    def _take(self, measure: Measure) -> None:
        """Whatever is wrong with a gauge, the service goes on: its age in /metrics says that it is old."""
        try:
            with self.database.transaction() as tx:
                tx.run(f"SET LOCAL statement_timeout = '{_MEASURE_SECONDS}s'")
                measure.read(tx)
            metrics.MEASURED.labels(measure.name).set_to_current_time()
        except Transient as error:
            _log.warning("not measured", measure=measure.name, error=str(error))
        except Exception:
            _log.exception("not measured", measure=measure.name)

    def _measure(self, tx: Tx) -> None:
        outbox = tx.one("SELECT rows, stuck, extract(epoch FROM clock_timestamp() - oldest) AS age FROM ops_outbox")
        work = tx.rows("SELECT kind, state, rows, extract(epoch FROM clock_timestamp() - oldest) AS age FROM ops_work_summary")
        late = tx.rows(
            """SELECT job, extract(epoch FROM clock_timestamp() - min(due_at)) AS age FROM due
               WHERE due_at <= clock_timestamp() GROUP BY job"""
        )
        letters = tx.rows(
            """SELECT topic, code, count(*) AS rows FROM dead_letters WHERE state IN ('OPEN', 'REDRIVEN') GROUP BY topic, code"""
        )
        paused = {row.stage for row in tx.rows("SELECT stage FROM paused")}
        metrics.OUTBOX_ROWS.set(outbox.rows)
        metrics.OUTBOX_STUCK.set(outbox.stuck)
        metrics.OUTBOX_AGE.set(outbox.age or 0)
        metrics.show(metrics.WORK, {(row.kind, row.state): row.rows for row in work})
        # What a process took and never answered is still to be done.
        oldest: dict[tuple[str, ...], float] = dict.fromkeys([(callout.kind,) for callout in self.parts.callouts], 0.0)
        for row in work:
            if row.state in ("PENDING", "CLAIMED"):
                oldest[row.kind,] = max(oldest.get((row.kind,), 0.0), float(row.age))
        metrics.show(metrics.WORK_OLDEST, oldest)
        names = [(job.name,) for job in self.parts.jobs]
        metrics.show(metrics.JOBS_OLDEST, dict.fromkeys(names, 0.0) | {(row.job,): float(row.age) for row in late})
        metrics.show(metrics.DEAD_LETTERS_OPEN, {(row.topic, row.code): row.rows for row in letters})
        metrics.show(metrics.PAUSED, {(stage,): stage in paused for stage in paused.union(self.parts.stages)})

    def _live(self) -> str:
        if self.loop is not None and time.monotonic() - self.loop.moved_at > _LIVE_SECONDS:
            return f"the poll loop has not moved for {_LIVE_SECONDS} s"
        return ""

    def _ready(self) -> str:
        if self.stop.is_set():
            return "stopping"
        if not self._running:
            return "waiting for the database and the broker"
        if self.does("consume") and (self.loop is None or not self.loop.ready):
            return "not consuming"
        try:
            self.database.look("SELECT 1")
        except Transient as error:
            return str(error)
        return ""
