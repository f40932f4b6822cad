"""The story of allocation, event by event. Folds take the envelopes' shared locks and only record; who is served where, who is
cancelled and when it is said is decided by the jobs of decisions.py, under the exclusive lock.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any
from uuid import UUID

from libs.common import jobs, money
from libs.common.contracts import funds, ingestion, resolution
from libs.common.contracts.base import CHUNK_ITEMS, GOODS, EnvelopeHeader, totals
from libs.common.db import Tx, lock_key
from libs.common.envelope import Cause, Event
from libs.common.errors import Malformed
from libs.common.seal import Sealer
from services.allocation import store
from services.allocation.config import Settings
from services.allocation.decisions import ALLOCATE, ANNOUNCE
from services.allocation.store import SERVICE

PAID_DIRECTLY = "CASH_DIGITAL"  # nobody is served at a place


class Handlers:
    def __init__(self, settings: Settings, sealer: Sealer) -> None:
        self._settings = settings
        self._sealer = sealer

    # --- envelopes ----------------------------------------------------------------------------------------------------

    def on_accepted(self, tx: Tx, events: Sequence[Event[ingestion.EnvelopeAccepted]]) -> None:
        self._declared(tx, events)

    def on_amended(self, tx: Tx, events: Sequence[Event[ingestion.EnvelopeAmended]]) -> None:
        self._declared(tx, events)

    def _declared(self, tx: Tx, events: Sequence[Event[ingestion.EnvelopeAccepted] | Event[ingestion.EnvelopeAmended]]) -> None:
        ours = _ours(tx, events)
        if ours:
            store.declare(tx, [(e.data.header, e.data.declared, e.data.declared_minor) for e in ours], complete=False)

    def on_completed(self, tx: Tx, events: Sequence[Event[ingestion.EnvelopeCompleted]]) -> None:
        """From here it is known who is all of them, and people may be told; goods may have nothing left but to say so."""
        ours = _ours(tx, events)
        if ours:
            store.declare(tx, [(e.data.header, e.data.count, e.data.total_minor) for e in ours], complete=True)
            _make_due(tx, ANNOUNCE, ours, self._settings.announce_delay_seconds)

    def on_envelope_cancelling(self, tx: Tx, events: Sequence[Event[ingestion.EnvelopeCancelling]]) -> None:
        """Of goods the answer is ours. Of cash it is funds', which needs to know everybody: all is said then without waiting."""
        ours = _ours(tx, events)
        if not ours:
            return
        store.stop(tx, [event.data.header.envelope_id for event in ours])
        for event in ours:  # rare, and a person is behind each
            data = event.data
            if data.header.benefit_type in GOODS:
                store.ask_cancellation(tx, data.header.envelope_id, data.request_id, data.batches, ())
        _make_due(tx, ALLOCATE, ours)
        _make_due(tx, ANNOUNCE, ours)

    def on_disbursements_cancelling(self, tx: Tx, events: Sequence[Event[ingestion.DisbursementsCancelling]]) -> None:
        goods = [event for event in _ours(tx, events) if event.data.header.benefit_type in GOODS]
        for event in goods:
            ids = [item.disbursement_id for item in event.data.items]
            store.ask_cancellation(tx, event.data.header.envelope_id, event.data.request_id, None, ids)
        if goods:
            _make_due(tx, ALLOCATE, goods)

    def on_payments_cancelled(self, tx: Tx, events: Sequence[Event[funds.PaymentsCancelled]]) -> None:
        """Cash that will never be paid takes no room at its agency any more: each person's once, whatever comes twice or early."""
        cash = [event for event in _ours(tx, events) if event.data.header.benefit_type not in GOODS]
        if cash:
            store.cancelled_by_funds(tx, [(event.data.header, event.data.items.disbursement_id) for event in cash])
            _make_due(tx, ALLOCATE, cash)

    # --- batches ------------------------------------------------------------------------------------------------------

    def on_zones_resolved(self, tx: Tx, events: Sequence[Event[resolution.BatchZonesResolved]]) -> None:
        """Record a batch's people: one group for each zone, one for each reason of those who live nowhere that is known."""
        for event in events:
            self._check(event.data)
        ours = _ours(tx, events)
        store.add_batches(tx, [event.data.header for event in ours])
        parts = {(event.data.header.batch_id, event.data.part): event.data for event in ours}
        numbers = store.add_arrivals(tx, list(parts.values()))
        groups: list[Sequence[object]] = []
        people: list[tuple[int, int, int, int, str, str]] = []
        for key, arrival in sorted(numbers.items(), key=lambda item: item[1]):
            _sort(arrival, parts[key], groups, people)
        store.add_groups(tx, groups)
        store.add_entitlements(tx, people)
        _make_due(tx, ALLOCATE, [event for event in ours if (event.data.header.batch_id, event.data.part) in numbers])

    def _check(self, data: resolution.BatchZonesResolved) -> None:
        """Raises Malformed for what the contract's own model does not see, and for a seal that would not open later."""
        header = data.header
        if header.benefit_type == PAID_DIRECTLY:
            raise Malformed("NOT_SERVED_AT_A_PLACE", f"nobody of {PAID_DIRECTLY} is", "/header/benefit_type")
        everybody = [*data.items.disbursement_id, *data.unresolved.disbursement_id]
        if len(everybody) > CHUNK_ITEMS:
            raise Malformed("BATCH_TOO_LARGE", f"a batch has at most {CHUNK_ITEMS} people", "/items")
        if len(set(everybody)) < len(everybody):
            raise Malformed("DUPLICATE_DISBURSEMENT_ID", "a disbursement is twice in the batch", "/items")
        of_unresolved = {"count": data.unresolved_count, "total_minor": data.unresolved_total_minor}
        if totals(data.unresolved.amount_minor) != of_unresolved:
            raise Malformed("INVALID_CONTROL_TOTALS", "the unresolved do not come to what is said", "/unresolved")
        self._sealer.open_people(data.sealed, "BatchZonesResolved", header.envelope_id, header.batch_id, data.part)


def scale_of(header: EnvelopeHeader) -> int:
    """Decimals of the envelope's amounts. Raises Malformed for a currency nobody knows."""
    if header.benefit_type in GOODS:
        return header.unit_scale
    try:
        return money.scale(header.currency)
    except money.MoneyError as error:
        raise Malformed("UNKNOWN_CURRENCY", str(error), "/header/currency") from None


def _sort(
    arrival: int,
    data: resolution.BatchZonesResolved,
    groups: list[Sequence[object]],
    people: list[tuple[int, int, int, int, str, str]],
) -> None:
    header = data.header
    whose = (header.envelope_id, header.batch_id)
    for grp, zone in enumerate(data.zones):
        if zone.count:
            names = (zone.large_zone_id, zone.large_zone_code, zone.small_zone_id, zone.small_zone_code)
            groups.append((arrival, grp, *whose, *names, zone.count, zone.total_minor, None, None))
    people += [
        (arrival, position, item.zone, item.amount_minor, item.disbursement_id, item.beneficiary_id)
        for position, item in enumerate(data.items)
    ]
    grp, position = len(data.zones), len(data.items)
    by_reason = sorted(data.unresolved, key=lambda one: (one.reason, one.message))
    for (reason, message), alike in groupby(by_reason, key=lambda one: (one.reason, one.message)):
        found = list(alike)
        minor = sum(one.amount_minor for one in found)
        groups.append((arrival, grp, *whose, None, None, None, None, len(found), minor, reason, message))
        for one in found:
            people.append((arrival, position, grp, one.amount_minor, one.disbursement_id, one.beneficiary_id))
            position += 1
        grp += 1


def _ours(tx: Tx, events: Sequence[Event[Any]]) -> list[Event[Any]]:
    """Those about envelopes that are served at places, under their locks, with their rows there."""
    ours = [event for event in events if event.data.header.benefit_type != PAID_DIRECTLY]
    if ours:
        scales = [(event.data.header, scale_of(event.data.header)) for event in ours]
        tx.lock_shared(lock_key(SERVICE, event.data.header.envelope_id) for event in ours)
        store.ensure_envelopes(tx, scales)
    return ours


def _make_due(tx: Tx, job: str, events: Sequence[Event[Any]], delay_seconds: float = 0) -> None:
    if not events:
        return
    ids: list[UUID] = sorted({event.data.header.envelope_id for event in events})
    last = events[-1]
    cause = Cause(last.id, str(last.data.header.envelope_id), last.traceparent)
    jobs.make_due(tx, job, [str(i) for i in ids], [lock_key(SERVICE, i) for i in ids], cause, delay_seconds)
