"""What /metrics shows. Names of lag are those that public dashboards use; times are seconds."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram

# From milliseconds (a fold) to hours (an event that waited for its envelope's day).
_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400)

LAG = Gauge("kafka_consumergroup_lag", "Messages not yet consumed", ["consumergroup", "topic", "partition"])
OFFSET = Gauge("kafka_consumergroup_current_offset", "Next offset to consume", ["consumergroup", "topic", "partition"])
PARTITIONS = Gauge("almoner_partitions_assigned", "Partitions this replica consumes", ["consumergroup", "topic"])
EVENT_AGE = Histogram("almoner_event_age_seconds", "Age of an event when handled", ["type"], buckets=_SECONDS)
HANDLED = Counter("almoner_events_handled_total", "Events given to a handler, by what came of it", ["type", "outcome"])
HANDLER = Histogram("almoner_handler_seconds", "Duration of a handler's call with a set of events", ["type"], buckets=_SECONDS)
CALLS = Counter("almoner_calls_total", "Outside calls", ["kind", "outcome"])
CALL = Histogram("almoner_call_seconds", "Duration of outside calls", ["kind"], buckets=_SECONDS)
# Not `job`: Prometheus names what it scrapes so, and would rename a label of ours.
JOBS = Counter("almoner_jobs_total", "Decisions taken after commit", ["decision", "outcome"])
JOBS_OLDEST = Gauge("almoner_jobs_oldest_seconds", "How long the oldest decision has been due", ["decision"])
DEAD_LETTERS = Counter("almoner_dead_letters_total", "Messages set aside", ["topic", "code"])
DEAD_LETTERS_OPEN = Gauge("almoner_dead_letters_open", "Messages set aside, neither handled nor given up", ["topic", "code"])
RELAYED = Counter("almoner_relayed_total", "Events published")
LATE_SETTLES = Counter("almoner_late_settles_total", "Answers that came after their lease was lost", ["kind"])
PAUSED = Gauge("almoner_paused", "1 while a stage is paused, by an operator or by a breaker", ["stage"])
BREAKER_OPEN = Gauge("almoner_breaker_open", "1 while an outside party is out of order and next to nothing is called", ["kind"])
WORK = Gauge("almoner_work_rows", "Outside calls by state", ["kind", "state"])
WORK_OLDEST = Gauge("almoner_work_oldest_seconds", "Age of the oldest outside call without a definite answer yet", ["kind"])
OUTBOX_ROWS = Gauge("almoner_outbox_rows", "Events committed and not yet published")
OUTBOX_AGE = Gauge("almoner_outbox_oldest_seconds", "Age of the oldest event not yet published")
OUTBOX_STUCK = Gauge("almoner_outbox_stuck_rows", "Events the broker will never take; each stops its key")
READY = Gauge("almoner_ready", "1 while this process can do its part, as /readyz says")
MEASURED = Gauge("almoner_measured_timestamp_seconds", "When these gauges were last read from the database", ["measure"])


@contextmanager
def timed(histogram: Histogram, **labels: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        histogram.labels(**labels).observe(time.perf_counter() - started)


def show(gauge: Gauge, found: Mapping[tuple[str, ...], float]) -> None:
    """Exactly these series, by their labels' values: what is gone goes, and no scrape misses one that stays."""
    for labels, value in found.items():
        gauge.labels(*labels).set(value)
    for metric in gauge.collect():
        for sample in metric.samples:
            if tuple(sample.labels.values()) not in found:
                gauge.remove(*sample.labels.values())
