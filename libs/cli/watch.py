"""`almoner status` and `almoner watch`: where every envelope stands, over all stages."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from libs.cli.context import (
    SERVICES,
    Number,
    Views,
    as_dict,
    clock,
    console,
    find_envelope,
    money,
    plural,
    print_json,
    quantity,
    table,
    topic,
    unit_of,
)
from libs.common.clock import utc_now
from libs.common.contracts.base import CASH, GOODS

REFRESH_SECONDS = 0.5
PLAIN_SECONDS = 5.0  # between lines where there is no terminal
FLAGGED_DAYS = 7  # a flag stays for good where nothing is missing: a bank may number as it likes
TOPIC_DAYS = 7  # later there is nothing to hear of any more: notifications may have been installed after the envelope
CONSUMERS = ("ingestion", "resolution", "allocation", "funds", "notifications")

# One row per envelope. Batches are summed for the envelopes asked for only.
STAGES = """
SELECT i.envelope_id, i.publisher_envelope_id, i.benefit_type, i.currency, i.measurement_unit, i.unit_scale,
       i.state, i.declared, i.declared_minor, i.received, i.batches, i.created_at, f.state AS funds_state,
       coalesce(b.cut, 0) AS cut, coalesce(r.looked_up, 0) AS looked_up, coalesce(r.resolved, 0) AS resolved,
       coalesce(f.blocked_minor, 0) AS blocked_minor, coalesce(f.waiting, 0) AS waiting,
       coalesce(f.waiting_minor, 0) AS waiting_minor, coalesce(f.in_flight, 0) AS in_flight,
       coalesce(f.in_flight_minor, 0) AS in_flight_minor, coalesce(f.unknown, 0) AS unknown,
       coalesce(f.unknown_minor, 0) AS unknown_minor, coalesce(f.held, a.held, 0) AS held,
       coalesce(f.held_minor, a.held_minor, 0) AS held_minor, coalesce(f.dispatched, 0) AS dispatched,
       coalesce(f.dispatched_minor, 0) AS dispatched_minor, coalesce(f.outstanding, 0) AS outstanding,
       coalesce(f.outstanding_minor, 0) AS outstanding_minor, coalesce(f.confirmed, 0) AS confirmed,
       coalesce(f.confirmed_minor, 0) AS confirmed_minor, coalesce(f.reversed, 0) AS reversed,
       coalesce(f.reversed_minor, 0) AS reversed_minor, coalesce(f.cancelled, a.cancelled, 0) AS cancelled,
       coalesce(a.planned, 0) AS planned, coalesce(a.planned_minor, 0) AS planned_minor,
       coalesce(a.allocated, 0) AS allocated, coalesce(a.allocated_minor, 0) AS allocated_minor,
       coalesce(a.cancelled_minor, 0) AS cancelled_minor, coalesce(a.arrived, 0) AS arrived,
       coalesce(f.releasing_minor, 0) AS releasing_minor, coalesce(f.released_minor, 0) AS released_minor,
       f.blocked_at, f.settled_at, f.last_confirmed_at
FROM (SELECT * FROM ingestion.ops_envelopes
      WHERE envelope_id = %(only)s OR %(only)s::uuid IS NULL ORDER BY created_at DESC LIMIT %(limit)s) AS i
LEFT JOIN LATERAL (SELECT sum(count)::bigint AS cut FROM ingestion.ops_batches b WHERE b.envelope_id = i.envelope_id) AS b
          ON true
LEFT JOIN LATERAL (SELECT sum(resolved + unresolved)::bigint AS looked_up, sum(resolved)::bigint AS resolved
                   FROM resolution.ops_batches r WHERE r.envelope_id = i.envelope_id AND r.resolved_at IS NOT NULL) AS r
          ON true
LEFT JOIN funds.ops_envelopes f ON f.envelope_id = i.envelope_id
LEFT JOIN allocation.ops_envelopes a ON a.envelope_id = i.envelope_id
ORDER BY i.created_at
"""

# One row per envelope. `made`: people for whom there is a notice, whatever became of it; `pending`: a notice is on its way by itself,
# which it is not where its call has ended in ERROR; `lost`: a message of the envelope is set aside.
TOLD = """
SELECT w.envelope_id, coalesce(n.told, 0) AS told, coalesce(n.made, 0) AS made,
       n.pending AND EXISTS (SELECT FROM notifications.ops_notices o WHERE o.envelope_id = w.envelope_id
                                 AND o.state = 'PENDING' AND o.work IN ('PENDING', 'CLAIMED')) AS pending,
       EXISTS (SELECT FROM notifications.ops_dead_letters d WHERE d.state IN ('OPEN', 'DISCARDED')
                   AND coalesce(d.correlation_id, w.envelope_id::text) = w.envelope_id::text) AS lost
FROM unnest(%(ids)s::uuid[]) AS w (envelope_id)
CROSS JOIN LATERAL (SELECT sum(notices) FILTER (WHERE kind = 'BENEFICIARY')::bigint AS made,
                           sum(notices) FILTER (WHERE kind = 'BENEFICIARY' AND state IN ('SENT', 'SUPPRESSED'))::bigint AS told,
                           coalesce(bool_or(state = 'PENDING'), false) AS pending
                    FROM notifications.ops_notice_counts c WHERE c.envelope_id = w.envelope_id) AS n
"""


def stages(views: Views, only: Any = None, limit: int = 50) -> list[Any]:
    return views.rows(STAGES, only=only, limit=limit)


class Told:
    """Who was told, while somebody watches. Nothing is known where notifications is not installed."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._installed = _tells()
        self._last: dict[UUID, Any] = {}

    def of(self, rows: list[Any]) -> dict[UUID, Any]:
        """Envelope -> its row of TOLD. That counts notice by notice: of what is at rest the last answer stays."""
        ids = [row.envelope_id for row in rows] if self._installed else []
        resting = {
            row.envelope_id for row in rows if row.envelope_id in self._last and at_rest(row, self._last[row.envelope_id])
        }
        moving = [one for one in ids if one not in resting]
        self._last |= {one.envelope_id: one for one in self._views.rows(TOLD, ids=moving)} if moving else {}
        return {one: self._last[one] for one in ids}


def is_cash(row: Any) -> bool:
    """Whether it ends with payments; goods end with whom they are allocated to."""
    return row.benefit_type in CASH


def at_rest(row: Any, told: Any = None) -> bool:
    """Nothing of this envelope moves by itself any more: it is settled, or what is left waits for an operator. With its row of TOLD:
    and nobody is about to be told."""
    return _decided(row) and (told is None or not _telling(row, told))


def _decided(row: Any) -> bool:
    if not is_cash(row):
        return bool(row.arrived >= row.declared and not row.planned) or row.state == "CANCELLED"
    if row.settled_at is not None:
        return True
    if row.funds_state == "BLOCK_UNKNOWN":  # nothing is sent until somebody says whether the money is reserved
        return bool(row.looked_up >= row.declared)
    moving = row.waiting_minor + row.in_flight_minor + row.releasing_minor + row.outstanding_minor
    return bool(row.blocked_minor) and not moving and row.received >= row.declared and row.cut >= row.received


def _telling(row: Any, told: Any) -> bool:
    due = row.confirmed if is_cash(row) else row.allocated  # each of them has a notice as soon as notifications has heard of it
    newest = max(row.created_at, row.last_confirmed_at or row.created_at)
    gone = told.lost or utc_now() - newest > timedelta(days=TOPIC_DAYS)
    return bool(told.pending or (told.made < due and not gone))


def word(row: Any) -> str:
    """Where an envelope stands, in one word or two."""
    if row.settled_at is not None:
        return "settled"
    if row.state in ("CANCELLING", "CANCELLED"):
        return str(row.state).lower()
    if row.received < row.declared:
        return "receiving"
    if not is_cash(row):
        return "allocating" if not at_rest(row) else "needs you" if row.held else "allocated"
    if at_rest(row):
        return "needs you" if row.held or row.unknown or row.funds_state == "BLOCK_UNKNOWN" else "done"
    return "paying" if row.blocked_minor else "waiting for funds"


@dataclass(frozen=True)
class Place:
    """A partition as a service's consumer group has consumed it."""

    service: str
    topic: str
    partition: int
    next_offset: int
    end_offset: int

    @property
    def lag(self) -> int:
        return max(0, self.end_offset - self.next_offset)


@contextmanager
def _admin() -> Iterator[Any]:
    """Kafka's, for questions. Raises NotReachable."""
    from confluent_kafka import KafkaException

    from libs.cli.context import NotReachable
    from libs.common import kafka

    try:
        yield kafka.admin(log_level=0)
    except KafkaException as error:
        raise NotReachable(f"Kafka does not answer: {error.args[0].str()}; is the broker up? (`./almoner up`)") from None


def _tells() -> bool:
    """Whether notifications is installed: Kafka knows its consumer group, also before it has consumed anything."""
    with _admin() as admin:
        groups = admin.list_consumer_groups(request_timeout=5).result().valid
    return topic("almoner-notifications") in {group.group_id for group in groups}


def places(services: Iterable[str]) -> Iterator[Place]:
    """Every partition of every topic that the services read; where nothing is consumed yet, from its first message on."""
    from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
    from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

    from libs.common.contracts.registry import TOPICS

    def offsets(admin: Any, wanted: Iterable[tuple[str, int]], spec: Any) -> dict[tuple[str, int], int]:
        asked = {TopicPartition(*place): spec for place in wanted}
        answers = admin.list_offsets(asked, request_timeout=5) if asked else {}
        return {(place.topic, place.partition): future.result().offset for place, future in answers.items()}

    with _admin() as admin:
        topics = admin.list_topics(timeout=5).topics
        for service in services:
            names = [topic(one.name) for one in TOPICS if service in one.consumers and topic(one.name) in topics]
            read = sorted((name, partition) for name in names for partition in topics[name].partitions)
            group = topic(f"almoner-{service}")
            asked = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)], request_timeout=5)
            committed = {(one.topic, one.partition): one.offset for one in asked[group].result().topic_partitions or []}
            untouched = [place for place in read if committed.get(place, -1) < 0]
            begin = {**committed, **offsets(admin, untouched, OffsetSpec.earliest())}  # type: ignore[no-untyped-call]
            ends = offsets(admin, read, OffsetSpec.latest())  # type: ignore[no-untyped-call]
            for place in read:
                yield Place(service, *place, begin[place], ends[place])


def lags() -> dict[str, int]:
    """Service -> messages its consumer group has not yet consumed."""
    found = dict.fromkeys(CONSUMERS, 0)
    for place in places(CONSUMERS):
        found[place.service] += place.lag
    return found


@dataclass
class Rates:
    """Disbursements a second by stage, over the last few seconds."""

    window_seconds: float = 5.0

    def __post_init__(self) -> None:
        self._seen: list[tuple[float, dict[str, int]]] = []

    def add(self, counts: dict[str, int]) -> dict[str, float]:
        now = time.monotonic()
        self._seen = [(at, old) for at, old in self._seen if now - at <= self.window_seconds] or self._seen[-1:]
        first_at, first = self._seen[0] if self._seen else (now, counts)
        self._seen.append((now, counts))
        seconds = now - first_at
        return {name: (counts[name] - first.get(name, 0)) / seconds if seconds > 0 else 0.0 for name in counts}


def progress(rows: list[Any], told: dict[UUID, Any] | None = None) -> dict[str, int]:
    """Stage -> disbursements that have passed it, summed over the envelopes that have this stage. `told`: rows of TOLD by envelope."""
    located = [row for row in rows if row.benefit_type != "CASH_DIGITAL"]
    paid = [row for row in rows if is_cash(row)]
    found = {
        "received": sum(row.received for row in rows),
        "batched": sum(row.cut for row in rows),
        "looked up": sum(row.looked_up for row in rows),
    }
    if located:
        found["allocated"] = sum(row.allocated for row in located)
    if paid or not rows:
        found["dispatched"] = sum(row.dispatched for row in paid)
        found["confirmed"] = sum(row.confirmed + row.reversed for row in paid)
    if told:
        found["told"] = sum(one.told for one in told.values())
    return found


def goals(rows: list[Any], told: dict[UUID, Any] | None = None) -> dict[str, int]:
    """Stage -> disbursements that are to pass it."""
    without = {"allocated": ("CASH_DIGITAL",), "dispatched": GOODS, "confirmed": GOODS}
    return {
        stage: sum(row.declared for row in rows if row.benefit_type not in without.get(stage, ()))
        for stage in progress(rows, told)
    }


def remaining_seconds(rows: list[Any], rates: dict[str, float]) -> float | None:
    """Until all that can move by itself is confirmed, at the pace of the slowest stage that is at work; None: unknown."""
    moving = [row for row in rows if not at_rest(row)]
    to_do = sum(row.declared - row.held - row.cancelled - row.unknown for row in moving)
    left = to_do - sum(row.confirmed + row.reversed if is_cash(row) else row.allocated for row in moving)
    if left <= 0:
        return 0.0
    pace = rates.get("confirmed", 0.0) or rates.get("dispatched", 0.0) or rates.get("allocated", 0.0)
    return left / pace if pace > 0 else None


def watch(name: str | None, follow: bool, as_json: bool) -> None:
    """Show progress until nothing moves by itself any more; with `follow`, until Ctrl-C."""
    with Views() as views:
        only = find_envelope(views, name).envelope_id if name else None
        told_of, rates, started = Told(views), Rates(), time.monotonic()
        if sys.stdout.isatty() and not as_json:
            from rich.live import Live

            with Live(console=console(), refresh_per_second=4) as live:
                while True:
                    rows = stages(views, only)
                    told = told_of.of(rows)
                    rate = rates.add(progress(rows, told))
                    live.update(picture(rows, told, rate, lags(), time.monotonic() - started), refresh=True)
                    if not follow and all(at_rest(row, told.get(row.envelope_id)) for row in rows):
                        break
                    time.sleep(REFRESH_SECONDS)
        else:
            watch_plainly(views, only, told_of, rates, started, follow, as_json)
        if not as_json:
            print(conclusion(stages(views, only)))


def watch_plainly(views: Views, only: Any, told_of: Told, rates: Rates, started: float, follow: bool, as_json: bool) -> None:
    said: dict[str, int] = {}
    next_at = 0.0
    while True:
        rows = stages(views, only)
        told = told_of.of(rows)
        done, rest = progress(rows, told), all(at_rest(row, told.get(row.envelope_id)) for row in rows)
        rate = rates.add(done)
        if rest or (time.monotonic() >= next_at and done != said):
            next_at, said = time.monotonic() + PLAIN_SECONDS, done
            behind = lags()
            seconds = round(time.monotonic() - started, 1)
            if as_json:
                print_json(
                    {
                        "seconds": seconds,
                        "declared": sum(row.declared for row in rows),
                        **done,
                        "held": sum(row.held for row in rows),
                        "unknown": sum(row.unknown for row in rows),
                        "per_second": round(rate.get("confirmed", rate.get("allocated", 0.0)), 1),
                        "lag": behind,
                        "remaining_seconds": remaining_seconds(rows, rate),
                        "at_rest": rest,
                    }
                )
            else:
                steps = ", ".join(f"{stage} {count:,}" for stage, count in done.items())
                print(f"{seconds:6.1f} s  {steps}; lag {sum(behind.values()):,}{left(rows, rate)}", flush=True)
        if rest and not follow:
            return
        time.sleep(REFRESH_SECONDS)


def left(rows: list[Any], rates: dict[str, float]) -> str:
    seconds = remaining_seconds(rows, rates)
    return f"; about {seconds:,.0f} s left" if seconds else ""


def picture(rows: list[Any], told: dict[UUID, Any], rates: dict[str, float], behind: dict[str, int], seconds: float) -> Any:
    """One line per stage, with a bar."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    of = sum(row.declared for row in rows)
    reader = {
        "received": "ingestion",
        "looked up": "resolution",
        "allocated": "allocation",
        "confirmed": "funds",
        "told": "notifications",
    }
    to_pass = goals(rows, told)
    shown = Table(title=f"{plural(len(rows), 'envelope')}, {plural(of, 'disbursement')}", title_justify="left", box=None)
    for column in ("stage", "", "done", "per second", "lag"):
        shown.add_column(column, justify="left" if column in ("stage", "") else "right", min_width=10)
    for stage, done in progress(rows, told).items():
        lag = f"{behind.get(reader[stage], 0):,}" if stage in reader else ""
        bar = ProgressBar(max(to_pass[stage], 1), done, width=30, style="dim", complete_style="green", finished_style="green")
        shown.add_row(stage, bar, f"{done:,}", f"{rates[stage]:,.0f}", lag)
    counts = {name: sum(getattr(row, name) for row in rows) for name in ("held", "unknown", "cancelled", "reversed")}
    blocked = " · ".join(money(row.blocked_minor, row.currency) for row in rows[:3] if row.currency and row.blocked_minor)
    foot = "  ".join(f"{name} {count:,}" for name, count in counts.items())
    return Group(shown, f"  blocked {blocked or '–'}   {foot}   {seconds:,.0f} s{left(rows, rates)}")


def conclusion(rows: list[Any]) -> str:
    held, unknown = sum(row.held for row in rows), sum(row.unknown for row in rows)
    confirmed = sum(row.confirmed for row in rows)
    goods = [row for row in rows if not is_cash(row)]
    text = f"{plural(confirmed, 'payment')} confirmed" if len(goods) < len(rows) or not rows else ""
    if goods:
        text += (", " if text else "") + f"{plural(sum(row.allocated for row in goods), 'entitlement')} allocated"
    for count, what in ((sum(row.reversed for row in rows), "reversed"), (sum(row.cancelled for row in rows), "cancelled")):
        text += f", {count:,} {what}" if count else ""
    if held:
        text += f"; {held:,} held: `almoner held` says why"
    if blocks := sum(row.funds_state == "BLOCK_UNKNOWN" for row in rows):
        text += f"; {plural(blocks, 'block')} unknown: `almoner failures` lists them, `almoner settle-unknown` ends them"
    if unknown:
        text += f"; {unknown:,} unknown: `almoner status` lists them, `almoner settle-unknown` ends them"
    return text


def status(name: str | None, as_json: bool) -> None:
    """All envelopes and what needs an operator; or one envelope and where its money is."""
    with Views() as views:
        if name:
            one_status(views, find_envelope(views, name), as_json)
            return
        rows, needs = stages(views), attention(views)
        if as_json:
            print_json({"envelopes": [{"stands": word(row), **as_dict(row)} for row in rows], "attention": needs})
            return
        if not rows:
            print("No envelope has been submitted yet: `almoner submit FILE`")
        else:
            columns = (
                "envelope",
                "stands",
                "declared",
                "allocated",
                "confirmed",
                "reversed",
                "held",
                "unknown",
                "cancelled",
                "blocked",
                "since",
            )
            table(
                "",
                columns,
                [
                    (
                        row.publisher_envelope_id, word(row), row.declared, row.allocated or "", row.confirmed, row.reversed,
                        row.held, row.unknown, row.cancelled,
                        money(row.blocked_minor, row.currency) if is_cash(row) else "", clock(row.created_at),
                    )
                    for row in rows
                ],
            )  # fmt: skip
        for line in needs:
            print(f"! {line}")


def attention(views: Views) -> list[str]:
    """What will not go on by itself, each with the verb that helps."""
    found = []
    for service in SERVICES:
        for row in views.rows(f"SELECT stage, who, why, since FROM {service}.ops_paused ORDER BY since"):
            found.append(f"{service}: {row.stage} is paused since {clock(row.since)} by {row.who}: {row.why}")
        for row in views.rows(
            f"SELECT kind, state, rows FROM {service}.ops_work_summary WHERE state IN ('ERROR', 'UNKNOWN') ORDER BY 1, 2"
        ):
            doubtful = "notices --state unknown" if service == "notifications" else "settle-unknown"
            verb = f"retry --kind {row.kind}" if row.state == "ERROR" else doubtful
            found.append(f"{service}: {row.rows:,} × {row.kind} in {row.state} (almoner {verb})")
        letters = views.one(f"SELECT count(*) AS n FROM {service}.ops_dead_letters WHERE state = 'OPEN'").n
        if letters:
            found.append(f"{service}: {plural(letters, 'dead letter')} open")
        outbox = views.one(f"SELECT rows, oldest, stuck FROM {service}.ops_outbox")
        if outbox.stuck:
            found.append(f"{service}: {plural(outbox.stuck, 'event')} the broker will never take")
    for row in views.rows("SELECT kind, subject, count, code, message, since FROM funds.ops_unknown ORDER BY since LIMIT 20"):
        found.append(
            f"unknown {row.kind} {row.subject} ({row.count or 1:,}) since {clock(row.since)}: {row.code} {row.message}"
        )
    exceptions = views.rows(
        "SELECT reason, count(*) AS n FROM funds.ops_exceptions WHERE state = 'OPEN' GROUP BY reason ORDER BY reason"
    )
    found += [f"{plural(row.n, 'statement exception')} {row.reason}" for row in exceptions]
    flags = views.rows(
        """SELECT flag, count(*) AS n FROM ingestion.ops_statements, unnest(flags) AS flag
           WHERE received_at > now() - make_interval(days => %(days)s) GROUP BY flag ORDER BY flag""",
        days=FLAGGED_DAYS,
    )
    found += [
        f"{plural(row.n, 'statement')} of the last {FLAGGED_DAYS} days: {row.flag} (almoner statement list --flagged)"
        for row in flags
    ]
    return found


POSITIONS = ("waiting", "in_flight", "unknown", "held", "dispatched", "releasing", "released")


def one_status(views: Views, envelope: Any, as_json: bool) -> None:
    row = stages(views, envelope.envelope_id)[0]
    if as_json:
        print_json({"stands": word(row), **as_dict(envelope), **as_dict(row)})
        return
    print(f"{row.publisher_envelope_id} ({row.envelope_id}) from {envelope.source}")
    print(f"  programme {envelope.programme}, benefit {envelope.benefit_code}, due {envelope.schedule_date}: {word(row)}")
    known = "with an address" if row.benefit_type == "CASH_DIGITAL" else "whose zone is known"
    print(f"  received {row.received:,} of {row.declared:,} in {plural(row.batches, 'batch')}; {row.resolved:,} {known}")
    if row.benefit_type != "CASH_DIGITAL":
        unit = unit_of(row)
        print(f"  declared {quantity(row.declared_minor, unit)}, of which")
        for name in ("planned", "allocated") if is_cash(row) else ("planned", "allocated", "held", "cancelled"):
            if getattr(row, name):
                print(f"    {name:<12}{quantity(getattr(row, name + '_minor'), unit):>24}{counted(row, name)}")
    if not is_cash(row):
        return
    currency = row.currency
    print(f"  blocked {money(row.blocked_minor, currency)} ({clock(row.blocked_at)}), of which")
    for name in POSITIONS:
        minor = getattr(row, f"{name}_minor")
        if minor:
            print(f"    {name.replace('_', ' '):<12}{money(minor, currency):>24}{counted(row, name)}")
        if name == "dispatched" and minor:
            for part in ("outstanding", "confirmed", "reversed"):
                print(f"      {part:<10}{money(getattr(row, part + '_minor'), currency):>24}{counted(row, part)}")
    if row.cancelled:
        print(f"  cancelled {plural(row.cancelled, 'disbursement')}")


def counted(row: Any, name: str) -> str:
    count = getattr(row, name, None)
    return Number(f"  ({count:,})") if count else ""
