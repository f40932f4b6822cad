"""Cutting: the decision on what was staged for one envelope, under its exclusive lock, and the batches that come of it."""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

from pydantic_core import from_json, to_json

from libs.common.clock import local_date
from libs.common.contracts import ingestion as c
from libs.common.contracts.base import BatchHeader, Items, Sealed, chunk, derived_id
from libs.common.contracts.registry import EVENT_BYTES
from libs.common.db import Tx, lock_key
from libs.common.envelope import Cause
from libs.common.jobs import make_due
from libs.common.log import get
from libs.common.outbox import Outbox, Outgoing, outgoing
from libs.common.seal import WHO, Sealer
from services.ingestion import answers, store
from services.ingestion.config import Settings
from services.ingestion.domain import (
    BATCH_ITEMS,
    ENDED,
    PAID_THEMSELVES,
    Amendment,
    Book,
    Chunk,
    Fault,
    Row,
    Verdict,
    already_cancelled,
    envelope_unknown,
)

CUT = "cut"
EXPIRE_PARKED = "expire-parked"
SEAL_STAGED = "staged"
SEAL_UNCUT = "uncut"
_HEADER_BYTES = 10_000
_PLAIN = 5  # fields of a row without a contact
_SURELY_FITS = 300_000  # beside a thousand ids of the greatest length
RUN_ITEMS = 5_000  # of one transaction: short enough for folds that wait, long enough to pay its way


_log = get("cutting")


class Cutting:
    def __init__(self, settings: Settings, sealer: Sealer, outbox: Outbox) -> None:
        self._settings = settings
        self._sealer = sealer
        self._outbox = outbox

    def cut(self, tx: Tx, subject: str, cause: Cause) -> None:
        """Job `cut`: judge what is staged in its order, store it, cut full batches, answer; ask again if there is more."""
        envelope_id = UUID(subject)
        found = store.envelopes(tx, [envelope_id], self._settings.linger_seconds)
        if not found:
            return  # parked: the envelope's arrival makes this due again
        envelope = found[envelope_id]
        taken, more = store.take_staged(tx, envelope_id, RUN_ITEMS)
        run = _Run(tx, envelope, self._open(envelope_id, taken), self._settings, cause)
        run.judge()
        out = run.facts
        out += self._batches(tx, run)
        if run.closing is not None:
            out.append(run.closing(envelope))
        store.save_envelope(tx, envelope, opened=run.opened)
        store.decide(tx, run.decided)
        self._outbox.append(tx, out + run.answers)
        key = [lock_key("ingestion", envelope_id)]
        if more:
            make_due(tx, CUT, [subject], key, cause)
        if run.opened:
            make_due(tx, CUT, [subject], key, cause, self._settings.linger_seconds)

    def _open(self, envelope_id: UUID, taken: Sequence[Any]) -> list[tuple[str, dict[str, Any]]]:
        """(kind, content) of what was staged."""
        found = []
        for row in taken:
            content = from_json(self._sealer.open_bytes(bytes(row.sealed), SEAL_STAGED, envelope_id), cache_strings="keys")
            if row.kind == "disbursements":
                content["rows"] = list(zip(*content.pop("columns"), strict=True))
            found.append((row.kind, content))
        return found

    def _batches(self, tx: Tx, run: "_Run") -> list[Outgoing]:
        """Cut what is full, or all that is there if the envelope ends or has lingered; keep the rest."""
        envelope, rows = run.envelope, run.rows
        everything = run.closing is not None or envelope.lingered
        if envelope.open + len(rows) < BATCH_ITEMS and not everything:
            if rows:
                store.keep_uncut(tx, envelope.number, self._seal_uncut(envelope, rows))
                run.opened = envelope.open == 0
                envelope.open += len(rows)
            return []
        if envelope.open:
            pieces = store.take_uncut(tx, envelope.number)
            before = [row for piece in pieces for row in from_json(self._sealer.open_bytes(piece, SEAL_UNCUT, envelope.id))]
            rows = before + rows
        whole = len(rows) if everything else len(rows) - len(rows) % BATCH_ITEMS
        cut = [self._batch(envelope, rows[start : start + BATCH_ITEMS], n) for n, start in _numbered(envelope.batches, whole)]
        if cut:
            store.add_batches(tx, envelope.number, [(b.header.number, b.header.batch_id, b.count, b.total_minor) for b in cut])
        rest = rows[whole:]
        if rest:
            store.keep_uncut(tx, envelope.number, self._seal_uncut(envelope, rest))
        envelope.batches += len(cut)
        envelope.open = len(rest)
        run.opened = bool(rest)
        return [outgoing(batch, batch.header.batch_id, run.cause, batch.header.batch_id) for batch in cut]

    def _batch(self, envelope: store.Envelope, rows: Sequence[Row], number: int) -> c.BatchCut:
        batch_id = batch_uuid(envelope.id, number)
        items = Items(
            disbursement_id=[row[0] for row in rows],
            beneficiary_id=[row[1] for row in rows],
            amount_minor=[row[2] for row in rows],
        )
        return c.BatchCut(
            header=BatchHeader(**envelope.header.__dict__, batch_id=batch_id, number=number),
            **chunk(items),
            sealed=self._seal_personal(rows, items, envelope.id, batch_id),
        )

    def _seal_personal(self, rows: Sequence[Row], items: Items, envelope_id: UUID, batch_id: UUID) -> Sealed:
        content = {WHO: items.disbursement_id, "name": [row[3] for row in rows], "narrative": [row[4] for row in rows]}
        if any(len(row) > _PLAIN for row in rows):
            content["contact"] = [row[_PLAIN] if len(row) > _PLAIN else None for row in rows]
        sealed = self._sealer.seal(content, "BatchCut", envelope_id, batch_id)
        if len(sealed.data) > _SURELY_FITS and len(sealed.data) + len(to_json(items)) > EVENT_BYTES - _HEADER_BYTES:
            # A thousand times noise, which does not compress. It must not stop the envelopes of others.
            _log.warning("names and narratives left out: too large", batch_id=str(batch_id), bytes=len(sealed.data))
            sealed = self._sealer.seal({WHO: []}, "BatchCut", envelope_id, batch_id)
        return sealed

    def _seal_uncut(self, envelope: store.Envelope, rows: Sequence[Row]) -> bytes:
        return self._sealer.seal_bytes(to_json(rows), SEAL_UNCUT, envelope.id)

    def expire(self, tx: Tx, subject: str, cause: Cause) -> None:
        """Job `expire-parked`: refuse what waited too long for an envelope that never came."""
        envelope_id = UUID(subject)
        taken = store.take_parked(tx, envelope_id, self._settings.parked_ttl_seconds)
        if not taken:
            return
        contents = [content for _, content in self._open(envelope_id, taken)]
        ids = [submission[0] for content in contents for submission in content["submissions"]]
        source, publisher_id = contents[0]["source"], contents[0]["publisher_envelope_id"]
        fault = answers.faults([envelope_unknown()])
        store.decide(tx, [store.Decided(source, i, "rejected", answers.errors_json(fault)) for i in ids])
        out = []
        for names, _ in answers.groups([(i, 0) for i in ids]):
            answer = c.SubmissionRejected(
                submission_ids=names, envelope_id=envelope_id, publisher_envelope_id=publisher_id, errors=fault
            )
            out.append(answers.of_envelope(answer, source, cause.traceparent))
        self._outbox.append(tx, out)
        if len(taken) == 200:
            make_due(tx, EXPIRE_PARKED, [subject], [lock_key("ingestion", envelope_id)], cause)


class _Run:
    """One decision: everything staged, judged in its order against the envelope as it is locked."""

    def __init__(
        self, tx: Tx, envelope: store.Envelope, staged: list[tuple[str, dict[str, Any]]], settings: Settings, cause: Cause
    ) -> None:
        self._tx = tx
        self.envelope = envelope
        self._staged = staged
        self.cause = Cause(cause.id, str(envelope.id), cause.traceparent)
        self._book = Book(
            envelope.beneficiaries,
            envelope.declared,
            envelope.declared_minor,
            envelope.received,
            envelope.received_minor,
            envelope.state,
            envelope.header.schedule_date,
            settings.schedule_max_days,
            settings.duplicate_beneficiary == "refuse",
            envelope.header.benefit_type == PAID_THEMSELVES,
        )
        self.rows: list[Row] = []  # taken
        self.facts: list[Outgoing] = []
        self.answers: list[Outgoing] = []
        self.decided: list[store.Decided] = []
        self.opened = False
        self._amended = False
        self.closing: Any = None  # makes the event that closes the envelope, once all is cut
        self._cancels: list[tuple[str, str, list[str]]] = []

    def judge(self) -> None:
        book, envelope = self._book, self.envelope
        self._ask_what_is_there()
        accepted: list[Verdict] = []
        for kind, content in self._staged:
            if kind == "disbursements":
                for chunk in _chunks(content, envelope.header.time_zone):
                    verdict = book.judge(chunk)
                    if verdict.faults:
                        self._reject(verdict.submission, verdict.faults)
                    else:
                        self.rows.extend(chunk.rows)
                        accepted.append(verdict)
                continue
            request_id = content["submissions"][0][0]
            if kind == "amend_envelope":
                self._amend(request_id, content)
                continue
            if book.state in ENDED:
                self._reject(request_id, [already_cancelled()])
                continue
            self._accept([(request_id, len(content["ids"]))])
            if kind == "cancel_envelope":
                book.state = "CANCELLING"
                self.closing = _cancelling(request_id, content["reason"], self.cause)
            else:
                self._cancels.append((request_id, content["reason"], content["ids"]))
        self._accept([(v.submission, v.items) for v in accepted if not v.warnings])
        for verdict in accepted:
            if verdict.warnings:
                self._accept([(verdict.submission, verdict.items)], verdict.warnings)
        self._store()

    def _amend(self, request_id: str, content: dict[str, Any]) -> None:
        book, envelope = self._book, self.envelope
        day = content["change"]["schedule_date"]
        change = Amendment(**{**content["change"], "schedule_date": date.fromisoformat(day) if day else None})
        before = (book.beneficiaries, book.declared, book.declared_minor, book.schedule_date)
        there = 0
        if book.asks_who_is_there(change):
            there = store.people(self._tx, envelope.number, [row[1] for row in self.rows])
        faults = book.amend(change, _received_on(content["submissions"][0][1], envelope.header.time_zone), there)
        if faults:
            self._reject(request_id, faults)
            return
        if book.is_for_funds(change):
            self._ask_funds(request_id, change, content["reason"])
            return
        self._accept([(request_id, 0)])
        if (book.beneficiaries, book.declared, book.declared_minor, book.schedule_date) == before:
            return
        self._amended = True
        envelope.header = envelope.header.model_copy(
            update={"revision": envelope.header.revision + 1, "schedule_date": book.schedule_date}
        )
        fact = c.EnvelopeAmended(
            header=envelope.header,
            request_id=request_id,
            reason=content["reason"],
            beneficiaries=book.beneficiaries,
            declared=book.declared,
            declared_minor=book.declared_minor,
        )
        cause = Cause(request_id, self.cause.correlation_id, self.cause.traceparent)
        self.facts.append(outgoing(fact, envelope.id, cause, envelope.id, request_id))

    def _ask_funds(self, request_id: str, change: Amendment, reason: str) -> None:
        """Answered when funds has decided. The next revision is its place among several requests, whichever way it goes."""
        envelope = self.envelope
        self._amended = True
        envelope.header = envelope.header.model_copy(update={"revision": envelope.header.revision + 1})
        assert change.schedule_date is not None  # it is all that is asked for
        fact = c.EnvelopeRescheduling(
            header=envelope.header, request_id=request_id, reason=reason, schedule_date=change.schedule_date
        )
        cause = Cause(request_id, self.cause.correlation_id, self.cause.traceparent)
        self.facts.append(outgoing(fact, envelope.id, cause, envelope.id, request_id))

    def _ask_what_is_there(self) -> None:
        rows = [row for kind, content in self._staged if kind == "disbursements" for row in content["rows"]]
        if rows and self.envelope.received:
            ids, people = [row[0] for row in rows], [row[1] for row in rows]
            self._book.ids, self._book.people = store.known(self._tx, self.envelope.number, ids, people)

    def _store(self) -> None:
        envelope, book = self.envelope, self._book
        if self.rows:
            store.add_disbursements(self._tx, envelope.number, self.rows, envelope.batches + 1, envelope.open)
        if self._amended:
            envelope.beneficiaries = book.beneficiaries
            envelope.declared, envelope.declared_minor = book.declared, book.declared_minor
            store.amend_envelope(self._tx, envelope)
        envelope.received, envelope.received_minor = book.received, book.received_minor
        if book.state == "RECEIVING" and book.complete:
            book.state = "COMPLETED"
            self.closing = _completed(self.cause)
        envelope.state = book.state
        if self._cancels:
            ids = [i for _, _, of_request in self._cancels for i in of_request]
            numbers = store.batches_of(self._tx, envelope.number, ids)
            self.facts += [self._cancelling(request, numbers) for request in self._cancels]

    def _cancelling(self, request: tuple[str, str, list[str]], numbers: dict[str, int]) -> Outgoing:
        request_id, reason, ids = request
        fact = c.DisbursementsCancelling(
            header=self.envelope.header,
            request_id=request_id,
            reason=reason,
            items=[
                c.CancelledItem(disbursement_id=i, batch_id=batch_uuid(self.envelope.id, numbers[i]) if i in numbers else None)
                for i in ids
            ],
        )
        cause = Cause(request_id, self.cause.correlation_id, self.cause.traceparent)
        return outgoing(fact, self.envelope.id, cause, self.envelope.id, request_id)

    def _accept(self, submissions: list[tuple[str, int]], warnings: Sequence[Fault] = ()) -> None:
        told = answers.faults(warnings)
        header = self.envelope.header
        extra = {"warnings": [fault.model_dump() for fault in told]} if told else {}
        for submission_id, items in submissions:
            answer = store.answer_json({"items": items, **extra})
            self.decided.append(store.Decided(header.source, submission_id, "accepted", answer))
        for ids, items in answers.groups(submissions):
            accepted = c.SubmissionAccepted(
                submission_ids=ids,
                envelope_id=header.envelope_id,
                publisher_envelope_id=header.publisher_envelope_id,
                outcome="accepted",
                items=items,
                warnings=told,
            )
            self.answers.append(answers.of_envelope(accepted, header.source, self.cause.traceparent))

    def _reject(self, submission_id: str, found: Sequence[Fault]) -> None:
        told = answers.faults(found)
        header = self.envelope.header
        self.decided.append(store.Decided(header.source, submission_id, "rejected", answers.errors_json(told)))
        rejected = c.SubmissionRejected(
            submission_ids=[submission_id],
            envelope_id=header.envelope_id,
            publisher_envelope_id=header.publisher_envelope_id,
            errors=told,
        )
        self.answers.append(answers.of_envelope(rejected, header.source, self.cause.traceparent))


def batch_uuid(envelope_id: UUID, number: int) -> UUID:
    return derived_id("batch", envelope_id, number)


def _numbered(batches: int, rows: int) -> Iterator[tuple[int, int]]:
    """(batch number, index of its first row)."""
    return ((batches + 1 + index, start) for index, start in enumerate(range(0, rows, BATCH_ITEMS)))


def _chunks(content: dict[str, Any], time_zone: str) -> Iterator[Chunk]:
    start = 0
    for submission_id, received_at, count in content["submissions"]:
        yield Chunk(submission_id, _received_on(received_at, time_zone), content["rows"][start : start + count])
        start += count


def _received_on(received_at: float, time_zone: str) -> date:
    return local_date(datetime.fromtimestamp(received_at, UTC), time_zone)


def _completed(cause: Cause) -> Any:
    def close(envelope: store.Envelope) -> Outgoing:
        fact = c.EnvelopeCompleted(
            header=envelope.header, batches=envelope.batches, count=envelope.received, total_minor=envelope.received_minor
        )
        return outgoing(fact, envelope.id, cause, envelope.id)

    return close


def _cancelling(request_id: str, reason: str, cause: Cause) -> Any:
    def close(envelope: store.Envelope) -> Outgoing:
        fact = c.EnvelopeCancelling(
            header=envelope.header,
            request_id=request_id,
            reason=reason,
            batches=envelope.batches,
            count=envelope.received,
            total_minor=envelope.received_minor,
        )
        return outgoing(fact, envelope.id, Cause(request_id, cause.correlation_id, cause.traceparent), envelope.id, request_id)

    return close
