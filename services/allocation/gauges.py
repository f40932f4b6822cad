"""What /metrics shows of who is served where. Sums only: no entitlement, no person, no contact."""

from collections.abc import Sequence
from decimal import Decimal
from functools import partial
from typing import Any

from prometheus_client import Gauge

from libs.common.db import Tx
from libs.common.log import get
from libs.common.metrics import show
from libs.common.service import Measure
from services.allocation.config import Settings

HELD_PEOPLE = Gauge("almoner_entitlements_held_people", "Entitlements to goods that are held", ["programme", "unit", "reason"])
HELD_MINOR = Gauge("almoner_entitlements_held_minor", "Goods held, counted in the unit", ["programme", "unit", "reason"])
REFERENCE_AGE = Gauge("almoner_reference_age_seconds", "Since warehouses and agencies were last heard of", ["source"])
ANNOUNCE_OLDEST = Gauge(
    "almoner_announce_oldest_seconds", "How long an envelope could have been announced, and nothing was said"
)
OFF_BALANCE = Gauge(
    "almoner_goods_off_balance_envelopes", "Envelopes of goods or agency cash of which the parts are not the whole"
)
CHECKED = Gauge("almoner_goods_checked_envelopes", "Envelopes of goods or agency cash that were looked at the last time")

_ENTITLEMENTS_SECONDS = 30.0
_GOODS_SECONDS = 120.0
_MOST_SERIES = 500  # publishers name programmes and units: nobody may fill the memory of whoever scrapes
_OTHERS = ("others", "others", "others")

_log = get("gauges")


def measures(settings: Settings) -> list[Measure]:
    return [
        Measure("entitlements", _ENTITLEMENTS_SECONDS, partial(read_entitlements, settings)),
        Measure("goods", _GOODS_SECONDS, read_goods),
    ]


def read_entitlements(settings: Settings, tx: Tx) -> None:
    """Who is held, how old what we know of places is, and what nobody was told although they could be."""
    _read_held(tx)
    _read_reference(tx, settings.reference_source)
    _read_overdue(tx, settings.announce_delay_seconds)


def _read_held(tx: Tx) -> None:
    """Goods only: what is held of agency cash is money, which funds shows, and only funds knows whether it was released."""
    rows = tx.rows(
        """SELECT e.programme, e.measurement_unit, e.scale, g.reason, sum(g.count)::bigint AS people,
                  sum(g.total_minor)::bigint AS minor
           FROM groups g JOIN envelopes e USING (envelope_id) WHERE g.state = 'HELD' AND e.goods GROUP BY 1, 2, 3, 4"""
    )
    people, minor = bounded(rows)
    show(HELD_PEOPLE, people)
    show(HELD_MINOR, minor)


def bounded(rows: Sequence[Any], most: int = _MOST_SERIES) -> tuple[dict[tuple[str, ...], float], dict[tuple[str, ...], float]]:
    """(programme, unit, reason) -> people, and -> how many of the unit, which is "0.001 kg" where amounts are in grams: those with
    the most people by themselves. The others' people are one sum; their goods are of different units, and none."""
    people: dict[tuple[str, ...], float] = {}
    minor: dict[tuple[str, ...], float] = {}
    for number, row in enumerate(sorted(rows, key=lambda row: -row.people)):
        if number < most:
            labels = (row.programme, f"{Decimal(1).scaleb(-row.scale):f} {row.measurement_unit}", row.reason)
            people[labels], minor[labels] = row.people, row.minor
        else:
            people[_OTHERS] = people.get(_OTHERS, 0) + row.people
    return people, minor


def _read_reference(tx: Tx, source: str) -> None:
    """Of the source that is asked. PBMS counts from the reading, by its own clock; before the first one from the first try. A topic
    may rightly be silent for months."""
    heard = """coalesce((SELECT taken_at FROM reference WHERE source = 'pbms'),
                        (SELECT min(started_at) FROM attempts WHERE kind = 'reference'))"""
    if source == "topic":
        heard = "(SELECT max(updated_at) FROM places WHERE source = 'topic')"
    age = tx.one(f"SELECT extract(epoch FROM clock_timestamp() - {heard}) AS age").age
    show(REFERENCE_AGE, {} if age is None else {(source,): max(0.0, float(age))})


def _read_overdue(tx: Tx, delay_seconds: float) -> None:
    """The conditions of `announce` itself, but for what it waits for: an answer, or a dead letter. An envelope of which a part was
    said just now is not overdue, however many parts are left."""
    age = tx.one(
        """SELECT max(extract(epoch FROM clock_timestamp() - greatest(r.since, s.at))) AS age
           FROM (SELECT b.envelope_id, min(greatest(b.ready_at, e.completed_at))
                        + make_interval(secs => CASE WHEN bool_or(e.cancelling) THEN 0 ELSE %(delay)s END) AS since
                 FROM batches b JOIN envelopes e USING (envelope_id)
                 WHERE b.ready_at IS NOT NULL AND b.whole
                   AND CASE WHEN e.cancelling THEN NOT e.goods ELSE e.completed_at IS NOT NULL END
                 GROUP BY b.envelope_id) AS r
           CROSS JOIN LATERAL (SELECT max(at) AS at FROM announcements a WHERE a.envelope_id = r.envelope_id) AS s""",
        delay=delay_seconds,
    ).age
    ANNOUNCE_OLDEST.set(max(0.0, float(age or 0)))


def read_goods(tx: Tx) -> None:
    """Whether everybody is somewhere, once, from the counters, for each envelope that still moves or moved within a day:

    - what has arrived is planned, allocated, held or cancelled;
    - it is all of what part 1 of its batches named, and of a complete envelope not more than was declared; of goods nor less, a day
      after it was complete: such an envelope is looked at until all are here;
    - what is allocated is what was said.

    The proof from rows and events is `almoner books`."""
    # OFFSET 0 keeps the view inside the loop: an index scan for each such envelope, not the sum of all there ever were. now(), unlike
    # clock_timestamp(), may be looked up in an index.
    row = tx.one(
        """SELECT count(*) AS checked, count(*) FILTER (WHERE NOT c.balances) AS off,
                  (array_agg(e.envelope_id) FILTER (WHERE NOT c.balances))[1:5] AS some
           FROM envelopes e
           LEFT JOIN LATERAL (SELECT * FROM totals WHERE totals.envelope_id = e.envelope_id OFFSET 0) AS t ON true
           CROSS JOIN LATERAL (
               SELECT coalesce(t.arrived, 0) AS arrived, coalesce(t.arrived_minor, 0) AS arrived_minor,
                   coalesce(t.allocated, 0) AS allocated, coalesce(t.planned + t.allocated + t.held + t.cancelled, 0) AS placed,
                   coalesce(t.planned_minor + t.allocated_minor + t.held_minor + t.cancelled_minor, 0) AS placed_minor,
                   (SELECT coalesce(sum(a.count), 0) FROM announcements a WHERE a.envelope_id = e.envelope_id) AS said,
                   (SELECT coalesce(sum(a.located + a.unresolved), 0) FROM batches b JOIN arrivals a USING (batch_id)
                    WHERE b.envelope_id = e.envelope_id AND b.whole AND a.part = 1) AS named,
                   (SELECT coalesce(sum(g.count), 0) FROM batches b JOIN groups g USING (batch_id)
                    WHERE b.envelope_id = e.envelope_id AND b.whole AND g.state <> 'NEW') AS there) AS s
           CROSS JOIN LATERAL (
               SELECT (s.arrived, s.arrived_minor) = (s.placed, s.placed_minor) AND s.allocated = s.said AND s.there = s.named
                  AND (e.completed_at IS NULL
                       OR s.arrived < e.declared AND s.arrived_minor < e.declared_minor
                          AND (e.completed_at > now() - interval '1 day' OR e.cancelled_at IS NOT NULL)
                       OR (s.arrived, s.arrived_minor) = (e.declared, e.declared_minor)) AS balances
               OFFSET 0) AS c
           WHERE e.completed_at IS NULL OR greatest(e.completed_at, e.cancelled_at, e.said_at) > now() - interval '1 day'
              OR e.goods AND e.said_revision = 0 AND e.cancelled_at IS NULL  -- not all are here yet
              OR EXISTS (SELECT 1 FROM groups g WHERE g.envelope_id = e.envelope_id AND g.state IN ('NEW', 'PLANNED'))
              OR e.envelope_id IN (SELECT envelope_id FROM announcements WHERE at > now() - interval '1 day')"""
    )
    if row.off:
        _log.error("goods out of balance: run `almoner books`", envelopes=row.off, some=[str(one) for one in row.some])
    OFF_BALANCE.set(row.off)
    CHECKED.set(row.checked)
