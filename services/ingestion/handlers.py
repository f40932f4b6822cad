"""What ingestion does with the facts of others: the decisions of funds, and for goods of allocation, close what a publisher asked
for; ticks end parking."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal
from uuid import UUID

from libs.common.clock import Clock, as_of
from libs.common.contracts import allocation as a
from libs.common.contracts import funds as f
from libs.common.contracts import ingestion as c
from libs.common.contracts.base import EnvelopeHeader
from libs.common.contracts.scheduler import Tick
from libs.common.db import Tx, lock_key
from libs.common.envelope import Cause, Event
from libs.common.jobs import make_due
from libs.common.outbox import Outbox, Outgoing, outgoing
from services.ingestion import answers, store
from services.ingestion.config import Settings
from services.ingestion.cutting import EXPIRE_PARKED
from services.ingestion.domain import Fault, date_refused

# Code, count, minor units and text of what a cancellation came too late for.
_Kept = tuple[str, int, int, str]

# Of disbursements, in EnvelopePosition.
_COUNTS = {"waiting", "in_flight", "unknown", "held", "outstanding", "confirmed", "reversed", "cancelled"}


class Handlers:
    def __init__(self, settings: Settings, outbox: Outbox, clock: Clock) -> None:
        self._settings = settings
        self._outbox = outbox
        self._clock = clock

    def on_disbursements_cancelled(
        self, tx: Tx, events: Sequence[Event[f.DisbursementsCancelled] | Event[a.EntitlementsCancelled]]
    ) -> None:
        """The word on single disbursements goes to the publisher who asked."""
        told = []
        for event in events:
            data = event.data
            answer = _accepted(data.header, data.request_id, "cancelled").model_copy(
                update={
                    "items": len(data.cancelled) + len(data.not_cancelled),
                    "cancelled": len(data.cancelled),
                    "cancelled_minor": data.cancelled_minor,
                    "not_cancelled": data.not_cancelled,
                }
            )
            told.append((event, data.header, answer))
        self._tell(tx, told)

    def on_envelope_cancelled(self, tx: Tx, events: Sequence[Event[f.EnvelopeCancelled]]) -> None:
        """Funds' word on a whole envelope; what was already sent is told as a warning."""
        self._end_cancelled(
            tx,
            [
                (
                    event,
                    [
                        (
                            "ALREADY_DISPATCHED",
                            event.data.already_dispatched,
                            event.data.already_dispatched_minor,
                            "were sent to the bank before",
                        ),
                        (
                            "OUTCOME_UNKNOWN",
                            event.data.unknown,
                            event.data.unknown_minor,
                            "may have been sent; the bank's statement will tell",
                        ),
                    ],
                )
                for event in events
            ],
        )

    def on_goods_cancelled(self, tx: Tx, events: Sequence[Event[a.GoodsCancelled]]) -> None:
        """Allocation's word on a whole envelope; what people were already told of is told as a warning."""
        self._end_cancelled(
            tx,
            [
                (
                    event,
                    [
                        (
                            "ALREADY_ANNOUNCED",
                            event.data.already_announced,
                            event.data.already_announced_minor,
                            "were announced to warehouses and agencies before",
                        )
                    ],
                )
                for event in events
            ],
        )

    def _end_cancelled(
        self, tx: Tx, ended: Sequence[tuple[Event[f.EnvelopeCancelled] | Event[a.GoodsCancelled], Sequence[_Kept]]]
    ) -> None:
        told = []
        for event, kept in ended:
            data = event.data
            texts = [
                Fault(code, "", f"{count} disbursements, {minor} minor units, {what}")
                for code, count, minor, what in kept
                if count
            ]
            answer = _accepted(data.header, data.request_id, "cancelled").model_copy(
                update={
                    "items": data.cancelled + sum(count for _, count, _, _ in kept),
                    "cancelled": data.cancelled,
                    "cancelled_minor": data.cancelled_minor,
                    "warnings": answers.faults(texts),
                }
            )
            told.append((event, data.header, answer))
        self._lock(tx, [header.envelope_id for _, header, _ in told])
        store.end_envelopes(tx, [header.envelope_id for _, header, _ in told], "CANCELLED")
        self._tell(tx, told)

    def on_reschedule_decided(self, tx: Tx, events: Sequence[Event[f.RescheduleDecided]]) -> None:
        """Funds' word on another date, which the publisher waits for. Of several dates the one with the highest revision holds."""
        self._lock(tx, [event.data.header.envelope_id for event in events])
        accepted = [event.data for event in events if event.data.refusal is None]
        last: dict[UUID, EnvelopeHeader] = {}
        for data in sorted(accepted, key=lambda data: data.header.revision):
            last[data.header.envelope_id] = data.header
        store.reschedule(tx, list(last.values()))
        envelopes = store.envelopes(tx, last)
        decided: list[store.Decided] = []
        out: list[Outgoing] = []
        for event in events:
            data, header = event.data, event.data.header
            answer: c.SubmissionAccepted | c.SubmissionRejected
            if data.refusal is None:
                if envelope := envelopes.get(header.envelope_id):
                    out.append(_amended(event, envelope))
                answer = _accepted(header, data.request_id, "accepted")
                decided.append(store.Decided(header.source, data.request_id, "accepted", store.answer_json({"items": 0})))
            else:
                errors = answers.faults([date_refused(data.refusal)])
                answer = c.SubmissionRejected(
                    submission_ids=[data.request_id],
                    envelope_id=header.envelope_id,
                    publisher_envelope_id=header.publisher_envelope_id,
                    errors=errors,
                )
                decided.append(store.Decided(header.source, data.request_id, "rejected", answers.errors_json(errors)))
            out.append(answers.of_envelope(answer, header.source, event.traceparent))
        store.decide(tx, decided)
        self._outbox.append(tx, out)

    def on_position(self, tx: Tx, events: Sequence[Event[f.EnvelopePosition]]) -> None:
        """Kept for whoever asks how the envelope stands."""
        self._lock(tx, [event.data.header.envelope_id for event in events])
        last: dict[UUID, f.EnvelopePosition] = {}
        for event in sorted(events, key=lambda event: event.data.revision):
            last[event.data.header.envelope_id] = event.data
        counts = _COUNTS | {"revision"}
        store.keep_progress(tx, {i: _progress(data.position, data.model_dump(include=counts)) for i, data in last.items()})

    def on_settled(self, tx: Tx, events: Sequence[Event[f.EnvelopeSettled]]) -> None:
        """Kept for whoever asks how the envelope stands."""
        self._lock(tx, [event.data.header.envelope_id for event in events])
        last: dict[UUID, f.EnvelopeSettled] = {}
        for event in sorted(events, key=lambda event: event.data.revision):
            last[event.data.header.envelope_id] = event.data
        store.settle_envelopes(tx, {envelope_id: _settlement(data) for envelope_id, data in last.items()})
        store.keep_progress(tx, {envelope_id: _at_the_end(data) for envelope_id, data in last.items()})

    def on_allocated(self, tx: Tx, events: Sequence[Event[a.EnvelopeAllocated]]) -> None:
        """Kept for whoever asks how the envelope stands."""
        self._lock(tx, [event.data.header.envelope_id for event in events])
        last: dict[UUID, a.EnvelopeAllocated] = {}
        for event in sorted(events, key=lambda event: event.data.revision):
            last[event.data.header.envelope_id] = event.data
        store.allocate_envelopes(tx, {envelope_id: _allocation(data) for envelope_id, data in last.items()})

    def on_checked(self, tx: Tx, events: Sequence[Event[f.FundsChecked]]) -> None:
        self._funds(tx, events, "CHECKED")

    def on_short(self, tx: Tx, events: Sequence[Event[f.FundsShort]]) -> None:
        self._funds(tx, events, "SHORT")

    def on_blocked(self, tx: Tx, events: Sequence[Event[f.FundsBlocked]]) -> None:
        self._funds(tx, events, "BLOCKED")

    def on_tick(self, tx: Tx, events: Sequence[Event[Tick]]) -> None:
        """`expire-parked`: whoever waited too long as of the tick is refused by a job, under the envelope's exclusive lock."""
        ticks = [event for event in events if event.data.job == EXPIRE_PARKED]
        if not ticks:
            return
        now = self._clock()
        last = max(ticks, key=lambda event: event.data.due_at)
        ids = store.parked_before(tx, as_of(last.data.due_at, now), self._settings.parked_ttl_seconds)
        if ids:
            cause = Cause(last.id, None, last.traceparent)
            make_due(tx, EXPIRE_PARKED, [str(i) for i in ids], [lock_key("ingestion", i) for i in ids], cause)

    def _funds(self, tx: Tx, events: Sequence[Event[Any]], stand: str) -> None:
        ids = {event.data.header.envelope_id for event in events}
        self._lock(tx, ids)
        store.set_funds(tx, dict.fromkeys(ids, stand))

    def _lock(self, tx: Tx, ids: Sequence[UUID] | set[UUID]) -> None:
        tx.lock_shared(lock_key("ingestion", envelope_id) for envelope_id in ids)

    def _tell(self, tx: Tx, told: Sequence[tuple[Event[Any], EnvelopeHeader, c.SubmissionAccepted]]) -> None:
        fields = {"items", "cancelled", "cancelled_minor", "not_cancelled", "warnings"}
        store.decide(
            tx,
            [
                store.Decided(header.source, answer.submission_ids[0], "cancelled", answer.model_dump_json(include=fields))
                for _, header, answer in told
            ],
        )
        out: list[Outgoing] = []
        for event, header, answer in told:
            cause = Cause(event.id, str(header.envelope_id), event.traceparent)
            out.append(outgoing(answer, header.envelope_id, cause, event.id))
        self._outbox.append(tx, out)


def _amended(event: Event[f.RescheduleDecided], envelope: store.Envelope) -> Outgoing:
    """What is declared since funds has accepted another date."""
    data = event.data
    fact = c.EnvelopeAmended(
        header=data.header,
        request_id=data.request_id,
        reason=data.reason,
        beneficiaries=envelope.beneficiaries,
        declared=envelope.declared,
        declared_minor=envelope.declared_minor,
    )
    cause = Cause(data.request_id, str(envelope.id), event.traceparent)
    return outgoing(fact, envelope.id, cause, envelope.id, data.request_id)


def _settlement(data: f.EnvelopeSettled) -> dict[str, int]:
    position = data.position
    return c.Settlement(
        revision=data.revision,
        confirmed=data.confirmed,
        reversed=data.reversed,
        cancelled=data.cancelled,
        blocked_minor=position.blocked,
        released_minor=position.released,
        confirmed_minor=position.confirmed,
        reversed_minor=position.reversed,
    ).model_dump()


def _progress(position: f.Position, counts: Mapping[str, int]) -> dict[str, int]:
    minor = {f"{name}_minor": amount for name, amount in position.model_dump().items()}
    return c.Progress.model_validate({**minor, **counts}).model_dump()


def _at_the_end(data: f.EnvelopeSettled) -> dict[str, int]:
    """Nothing is under way any more."""
    ended = data.model_dump(include={"confirmed", "reversed", "cancelled"})
    return _progress(data.position, {**dict.fromkeys(_COUNTS, 0), **ended, "revision": data.position_revision})


def _allocation(data: a.EnvelopeAllocated) -> dict[str, int]:
    return c.Allocation.model_validate(data.model_dump(include=set(c.Allocation.model_fields))).model_dump()


def _accepted(header: EnvelopeHeader, request_id: str, outcome: Literal["accepted", "cancelled"]) -> c.SubmissionAccepted:
    return c.SubmissionAccepted(
        submission_ids=[request_id],
        envelope_id=header.envelope_id,
        publisher_envelope_id=header.publisher_envelope_id,
        outcome=outcome,
    )
