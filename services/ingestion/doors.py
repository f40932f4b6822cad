"""The doors: what others publish is read, recorded, answered or staged, never decided.

A fold holds the envelopes' locks shared, so any number of them go on at once; what is staged is decided by the job `cut`
(cutting.py) under the exclusive lock.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any
from uuid import UUID

from pydantic_core import to_json

from libs.common.clock import Clock
from libs.common.contracts import ingestion as c
from libs.common.contracts import operator as o
from libs.common.contracts.base import EnvelopeHeader, EventData, Mnemonic
from libs.common.contracts.registry import TOPIC_BY_NAME
from libs.common.db import Tx, lock_key
from libs.common.envelope import Cause, Event, RawMessage, cause_of, headers_for
from libs.common.jobs import make_due
from libs.common.log import get
from libs.common.outbox import Outbox, Outgoing, outgoing
from libs.common.seal import Sealer
from services.ingestion import answers, store
from services.ingestion.config import Settings
from services.ingestion.cutting import CUT, SEAL_STAGED
from services.ingestion.domain import AMENDABLE, BATCH_ITEMS, Fault, Publishers, envelope_unknown
from services.ingestion.reading import Reader, Submission
from services.ingestion.statements import Incoming, Statements

SERVICE = "ingestion"
INBOX_ENVELOPES, INBOX_DISBURSEMENTS = "ingestion.inbox-envelopes.v1", "ingestion.inbox-disbursements.v1"
_KINDS: Mapping[type, str] = {
    c.DisbursementsAdded: "disbursements",
    c.DisbursementsCancellationRequested: "cancel_disbursements",
    c.EnvelopeAmendmentRequested: "amend_envelope",
    c.EnvelopeCancellationRequested: "cancel_envelope",
}
_ASKING = {*_KINDS, c.EnvelopeStatusRequested}  # these need to know the envelope as it stands

_log = get("doors")


class Doors:
    """One handler for all topics that others publish to. Never raises for what they publish."""

    def __init__(self, settings: Settings, sealer: Sealer, outbox: Outbox, statements: Statements, clock: Clock) -> None:
        self._settings = settings
        self._sealer = sealer
        self._outbox = outbox
        self._statements = statements
        self._clock = clock
        self._publishers = Publishers(settings.publishing(), settings.mode == "open")
        self._reader = Reader(self._publishers, settings.time_zone, settings.schedule_max_days)

    def receive(self, tx: Tx, messages: Sequence[RawMessage]) -> None:
        """Record every submission, answer what can be answered at once, stage the rest. A constant number of statements."""
        now = self._clock()
        models = {model.TYPE: model for model in TOPIC_BY_NAME[messages[0].topic].types}
        submissions = [self._reader.read(message, models, now) for message in messages]
        # Not recorded: what nobody may publish must not fill our tables, and is judged anew once it has been allowed.
        out = [answers.rejected(s) for s in submissions if not (s.named and s.allowed)]
        named = [s for s in submissions if s.named and s.allowed]
        # Before any row is touched: a job that decides on these envelopes is waited for here, with empty hands.
        envelope_ids = {s.envelope_id for s in named if s.envelope_id and not s.faults}
        if envelope_ids:
            tx.lock_shared(lock_key(SERVICE, envelope_id) for envelope_id in envelope_ids)
        fresh, again = self._record(tx, named)
        out += [answers.rejected(submission) for submission in fresh if submission.faults]
        good = [submission for submission in fresh if not submission.faults]
        decided: list[store.Decided] = []
        out += self._envelopes(tx, [s for s in good if isinstance(s.data, c.EnvelopeSubmitted)], decided)
        known = store.envelopes(tx, envelope_ids) if any(type(s.data) in _ASKING for s in named) else {}
        good, refused = self._allowed(good, known)
        faults = {submission.key: submission.faults for submission in refused}
        store.forget(tx, faults)
        refused += [replace(s, faults=faults[s.key]) for s in again if s.key in faults]  # repeated in the same poll
        again = [s for s in again if s.key not in faults]
        out += [answers.rejected(submission) for submission in refused]
        _warn_of([*(s for s in submissions if not s.allowed), *refused])
        out += self._stage(tx, [s for s in good if type(s.data) in _KINDS], known, decided)
        out += self._statuses([s for s in good if isinstance(s.data, c.EnvelopeStatusRequested)], known, decided)
        out += self._statement_files(tx, [s for s in good if isinstance(s.data, c.StatementSubmitted)], decided)
        store.decide(tx, decided)
        out += self._answer_again(tx, again, known)
        self._outbox.append(tx, out)

    def ask_for_publisher(self, tx: Tx, event: Event[Any]) -> int:
        """An operator's word in a publisher's name takes the way the publisher's own would."""
        command: o.CancelForPublisher | o.AmendForPublisher = event.data
        request: EventData
        if isinstance(command, o.AmendForPublisher):
            topic, request = INBOX_ENVELOPES, command.amendment
        elif command.disbursement_ids:
            topic, request = (
                INBOX_DISBURSEMENTS,
                c.DisbursementsCancellationRequested(
                    envelope_id=command.envelope_id, disbursement_ids=command.disbursement_ids, reason=command.why
                ),
            )
        else:
            topic, request = (
                INBOX_ENVELOPES,
                c.EnvelopeCancellationRequested(envelope_id=command.envelope_id, reason=command.why),
            )
        headers = headers_for(
            type(request), event_id=event.id, source=command.source, time=event.time or self._clock(), cause=cause_of(event)
        )
        told = tuple((name, text.encode()) for name, text in headers.items())
        self.receive(tx, [replace(event.raw, topic=topic, value=request.model_dump_json().encode(), headers=told)])
        return 1

    def _answer_again(self, tx: Tx, again: Sequence[Submission], known: Mapping[UUID, store.Envelope]) -> list[Outgoing]:
        if not again:
            return []
        recorded = store.seen(tx, {submission.key for submission in again})
        questions = [s for s in again if recorded[s.key].outcome == "answered" and bytes(recorded[s.key].digest) == s.digest]
        repeats = [answers.repeated(s, recorded[s.key]) for s in again if s not in questions]
        questions, refused = self._allowed(questions, known)
        out = [answer for answer in repeats if answer is not None] + [answers.rejected(one) for one in refused]
        return out + self._statuses(questions, known, [])

    def _allowed(
        self, submissions: Sequence[Submission], known: Mapping[UUID, store.Envelope]
    ) -> tuple[list[Submission], list[Submission]]:
        """Those about envelopes whose programmes are still their source's, and the others, with their fault."""
        allowed: list[Submission] = []
        refused: list[Submission] = []
        for submission in submissions:
            envelope = (
                known.get(submission.envelope_id) if submission.envelope_id and type(submission.data) in _ASKING else None
            )
            programme = envelope.header.programme.id if envelope else None
            fault = self._publishers.refusal(submission.source, programme, "/envelope_id")
            if fault is None:
                allowed.append(submission)
            else:
                refused.append(replace(submission, faults=[fault]))
        return allowed, refused

    def _record(self, tx: Tx, named: Sequence[Submission]) -> tuple[list[Submission], list[Submission]]:
        """Those seen for the first time, and those that came before (perhaps a moment ago, in the same poll)."""
        firsts: dict[tuple[str, str], Submission] = {}
        for submission in named:
            firsts.setdefault(submission.key, submission)
        new = store.record(
            tx,
            [
                store.Recorded(
                    s.source,
                    s.id,
                    s.digest,
                    s.type,
                    s.envelope_id,
                    s.publisher_envelope_id,
                    "rejected" if s.faults else None,
                    answers.errors_json(answers.faults(s.faults)) if s.faults else None,
                    s.received_at,
                )
                for s in firsts.values()
            ],
        )
        fresh = [submission for key, submission in firsts.items() if key in new]
        return fresh, [s for s in named if s.key not in new or firsts[s.key] is not s]

    # Envelopes.

    def _envelopes(self, tx: Tx, submissions: Sequence[Submission], decided: list[store.Decided]) -> list[Outgoing]:
        if not submissions:
            return []
        firsts: dict[UUID, tuple[EnvelopeHeader, bytes, int, int, int]] = {}
        for submission in submissions:
            header, digest = self._header(submission)
            data: c.EnvelopeSubmitted = submission.data  # type: ignore[assignment]
            declared = (data.number_of_beneficiaries, data.number_of_disbursements, data.total_minor)
            firsts.setdefault(header.envelope_id, (header, digest, *declared))
        added = store.add_envelopes(tx, list(firsts.values()))
        stored = store.envelopes(tx, firsts)
        out: list[Outgoing] = []
        for submission in submissions:
            header, digest = self._header(submission)
            if stored[header.envelope_id].digest != digest:
                out.append(self._refuse(submission, decided))
                continue
            if header.envelope_id in added:
                added.discard(header.envelope_id)
                envelope = stored[header.envelope_id]
                fact = c.EnvelopeAccepted(
                    header=envelope.header, declared=envelope.declared, declared_minor=envelope.declared_minor
                )
                cause = Cause(submission.id, str(header.envelope_id), submission.traceparent)
                out.append(outgoing(fact, header.envelope_id, cause, header.envelope_id))
            answer = c.SubmissionAccepted(
                submission_ids=[submission.id],
                envelope_id=header.envelope_id,
                publisher_envelope_id=header.publisher_envelope_id,
                outcome="accepted",
            )
            out.append(answers.of_envelope(answer, submission.source, submission.traceparent))
            decided.append(store.Decided(*submission.key, "accepted", "{}"))
        self._due(tx, submissions)  # its disbursements may be parked
        return out

    def _header(self, submission: Submission) -> tuple[EnvelopeHeader, bytes]:
        """The header, and the digest of all that was declared."""
        data: c.EnvelopeSubmitted = submission.data  # type: ignore[assignment]
        zone = data.time_zone if "time_zone" in data.model_fields_set else self._settings.time_zone
        assert submission.envelope_id is not None  # the model has one
        header = EnvelopeHeader(
            envelope_id=submission.envelope_id,
            source=submission.source,
            publisher_envelope_id=data.envelope_id,
            programme=data.programme,
            benefit_code=Mnemonic(id=data.benefit_code.id, mnemonic=data.benefit_code.mnemonic),
            benefit_type=data.benefit_code.type,
            cycle=Mnemonic(id=data.cycle.id, mnemonic=data.cycle.mnemonic),
            target_registry=data.target_registry,
            currency=data.currency or "",
            measurement_unit=data.measurement_unit or "",
            unit_scale=data.unit_scale,
            schedule_date=data.schedule_date,
            time_zone=zone,
        )
        return header, hashlib.blake2b(data.model_dump_json().encode(), digest_size=16).digest()

    def _refuse(self, submission: Submission, decided: list[store.Decided]) -> Outgoing:
        text = "this envelope id came before and declared something else; give the new envelope an id of its own"
        fault = Fault("MULTIPLE_ENVELOPES_FOUND", "/envelope_id", text)
        decided.append(store.Decided(*submission.key, "rejected", answers.errors_json(answers.faults([fault]))))
        return answers.rejected(replace(submission, faults=[fault]))

    # What waits for a decision.

    def _stage(
        self, tx: Tx, submissions: Sequence[Submission], known: Mapping[UUID, store.Envelope], decided: list[store.Decided]
    ) -> list[Outgoing]:
        if not submissions:
            return []
        staged: list[store.Staged] = []
        out: list[Outgoing] = []
        # Envelope by envelope, in the order in which they came; runs of chunks become one sealed row.
        by_envelope = sorted(submissions, key=lambda s: str(s.envelope_id))
        for _, group in groupby(by_envelope, key=lambda s: s.envelope_id):
            of_envelope = list(group)
            parked = of_envelope[0].envelope_id not in known
            staged += self._staged(of_envelope, parked)
            if parked:
                out += _parked(of_envelope, decided)
        store.stage(tx, staged)
        self._due(tx, [submission for submission in submissions if submission.envelope_id in known])
        return out

    def _staged(self, submissions: Sequence[Submission], parked: bool) -> list[store.Staged]:
        rows: list[store.Staged] = []
        chunks: list[Submission] = []
        size = 0

        def flush() -> None:
            if chunks:
                rows.append(self._sealed_chunks(chunks, size, parked))
                chunks.clear()

        for submission in submissions:
            data = submission.data
            if isinstance(data, c.DisbursementsAdded):
                if size + data.count > BATCH_ITEMS:
                    flush()
                size = data.count + (size if chunks else 0)
                chunks.append(submission)
            else:
                flush()
                size = 0
                rows.append(self._sealed_request(submission, parked))
        flush()
        return rows

    def _sealed_chunks(self, chunks: Sequence[Submission], size: int, parked: bool) -> store.Staged:
        items = [item for s in chunks for item in s.data.items]  # type: ignore[union-attr]
        contacts = [contact and contact.model_dump(exclude_defaults=True) for contact in (i.get("contact") for i in items)]
        content = {
            "submissions": [[s.id, s.received_at.timestamp(), s.data.count] for s in chunks],  # type: ignore[union-attr]
            # By column, which is read in a fourth of the time that rows take.
            "columns": [
                [item["disbursement_id"] for item in items],
                [item["beneficiary_id"] for item in items],
                [item["amount_minor"] for item in items],
                [item.get("beneficiary_name", "") for item in items],
                [item.get("narrative", "") for item in items],
                *([contacts] if any(contacts) else []),
            ],
        }
        return self._seal(chunks[0], "disbursements", size, parked, content)

    def _sealed_request(self, submission: Submission, parked: bool) -> store.Staged:
        data: Any = submission.data
        ids = list(dict.fromkeys(getattr(data, "disbursement_ids", [])))
        content: dict[str, Any] = {
            "submissions": [[submission.id, submission.received_at.timestamp(), len(ids)]],
            "ids": ids,
            "reason": data.reason,
        }
        if isinstance(data, c.EnvelopeAmendmentRequested):
            content["change"] = data.model_dump(mode="json", include=set(AMENDABLE))
        return self._seal(submission, _KINDS[type(data)], max(1, len(ids)), parked, content)

    def _seal(self, first: Submission, kind: str, items: int, parked: bool, content: Mapping[str, Any]) -> store.Staged:
        assert first.envelope_id is not None  # each of these models has one
        named = {"source": first.source, "publisher_envelope_id": first.publisher_envelope_id, **content}
        sealed = self._sealer.seal_bytes(to_json(named), SEAL_STAGED, first.envelope_id)
        return store.Staged(first.envelope_id, kind, items, parked, sealed)

    def _due(self, tx: Tx, submissions: Sequence[Submission]) -> None:
        if submissions:
            last = submissions[-1]
            ids = {s.envelope_id: lock_key(SERVICE, s.envelope_id) for s in submissions if s.envelope_id}
            cause = Cause(last.id, str(last.envelope_id), last.traceparent)
            make_due(tx, CUT, [str(envelope_id) for envelope_id in ids], list(ids.values()), cause)

    # Questions and statements.

    def _statuses(
        self, questions: Sequence[Submission], known: Mapping[UUID, store.Envelope], decided: list[store.Decided]
    ) -> list[Outgoing]:
        """A question is answered with what is so now, also when it is repeated."""
        out = []
        for question in questions:
            envelope = known.get(question.envelope_id) if question.envelope_id else None
            if envelope is None:
                fault = envelope_unknown()
                out.append(answers.rejected(replace(question, faults=[fault])))
                decided.append(store.Decided(*question.key, "rejected", answers.errors_json(answers.faults([fault]))))
                continue
            status = c.EnvelopeStatus(
                submission_ids=[question.id],
                header=envelope.header,
                state=envelope.state,
                declared=envelope.declared,
                declared_minor=envelope.declared_minor,
                received=envelope.received,
                received_minor=envelope.received_minor,
                batches=envelope.batches,
                funds=envelope.funds,
                progress=envelope.progress,
                settlement=envelope.settlement,
                allocation=envelope.allocation,
            )
            cause = Cause(question.id, str(envelope.id), question.traceparent)
            place = (question.message.topic, question.message.partition, question.message.offset)
            out.append(outgoing(status, envelope.id, cause, *place))
            decided.append(store.Decided(*question.key, "answered", "{}"))
        return out

    def _statement_files(self, tx: Tx, submissions: Sequence[Submission], decided: list[store.Decided]) -> list[Outgoing]:
        if not submissions:
            return []
        incoming = [
            Incoming.of_text(s.source, s.data.text, Cause(s.id, None, s.traceparent))  # type: ignore[union-attr]
            for s in submissions
        ]
        out: list[Outgoing] = []
        for submission, file in zip(submissions, self._statements.receive(tx, incoming), strict=True):
            if found := file.faults:
                out.append(answers.rejected(replace(submission, faults=found)))
                decided.append(store.Decided(*submission.key, "rejected", answers.errors_json(answers.faults(found))))
                continue
            told = answers.faults(file.warnings)
            answer = c.SubmissionAccepted(submission_ids=[submission.id], outcome="stored", warnings=told)
            cause = Cause(submission.id, None, submission.traceparent)
            out.append(outgoing(answer, submission.message.topic, cause, *submission.key))
            again = store.answer_json({"warnings": [fault.model_dump() for fault in told]} if told else {})
            decided.append(store.Decided(*submission.key, "stored", again))
        return out


def _warn_of(refused: Sequence[Submission]) -> None:
    if refused:
        sources = sorted({submission.source for submission in refused})
        _log.warning("not allowed to publish", submissions=len(refused), sources=sources[:10])


def _parked(submissions: Sequence[Submission], decided: list[store.Decided]) -> Iterable[Outgoing]:
    sizes = [(s.id, getattr(s.data, "count", 0)) for s in submissions]
    decided += [
        store.Decided(s.source, s.id, "parked", store.answer_json({"items": size}))
        for s, (_, size) in zip(submissions, sizes, strict=True)
    ]
    for ids, items in answers.groups(sizes):
        answer = c.SubmissionAccepted(
            submission_ids=ids,
            envelope_id=submissions[0].envelope_id,
            publisher_envelope_id=submissions[0].publisher_envelope_id,
            outcome="parked",
            items=items,
        )
        yield answers.of_envelope(answer, submissions[0].source, submissions[-1].traceparent)
