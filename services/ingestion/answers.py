"""Answers to publishers, on `ingestion.results.v1`: each names what it answers, and can be said again word for word."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from libs.common.contracts import ingestion as c
from libs.common.contracts.base import EventData
from libs.common.envelope import Cause
from libs.common.outbox import Outgoing, outgoing
from services.ingestion import store
from services.ingestion.domain import Fault
from services.ingestion.reading import Submission

IDS_IN_ONE_ANSWER = 1000  # of up to 200 characters: stays below an event's limit


def faults(found: Iterable[Fault]) -> list[c.Fault]:
    return [c.Fault(code=code, pointer=pointer, message=message[:500]) for code, pointer, message in found]


def rejected(submission: Submission) -> Outgoing:
    """The refusal of something that never got further than the door; by its place where it has no name."""
    message = submission.message
    place = {"topic": message.topic, "partition": message.partition, "offset": message.offset}
    answer = c.SubmissionRejected(
        submission_ids=[submission.id] if submission.named else [],
        **place,
        envelope_id=submission.envelope_id,
        publisher_envelope_id=submission.publisher_envelope_id,
        errors=faults(submission.faults),
    )
    cause = Cause(submission.id or "/".join(map(str, place.values())), _text(submission.envelope_id), submission.traceparent)
    return outgoing(answer, submission.envelope_id or message.topic, cause, submission.source, *place.values())


def repeated(submission: Submission, recorded: Any) -> Outgoing | None:
    """The same answer again to an event that came before; None where it is still to be decided."""
    if bytes(recorded.digest) != submission.digest:
        text = "this id came before with other content; give every event an id of its own"
        return rejected(replace(submission, faults=[Fault("ID_REUSED", "", text)]))
    if recorded.outcome is None:
        return None
    fields = store.answer_fields(recorded.answer)
    common = {
        "submission_ids": [submission.id],
        "envelope_id": recorded.envelope_id,
        "publisher_envelope_id": recorded.publisher_envelope_id,
    }
    answer: EventData
    if recorded.outcome == "rejected":
        answer = c.SubmissionRejected.model_validate({**common, **fields})
    else:
        answer = c.SubmissionAccepted.model_validate({**common, "outcome": recorded.outcome, **fields})
    message = submission.message
    cause = Cause(submission.id, _text(recorded.envelope_id), submission.traceparent)
    key = recorded.envelope_id or message.topic
    return outgoing(answer, key, cause, submission.source, message.topic, message.partition, message.offset)


def of_envelope(answer: c.SubmissionAccepted | c.SubmissionRejected, source: str, traceparent: str | None) -> Outgoing:
    """An answer about submissions of a known or parked envelope. Each of them gets each outcome once, which is its identity."""
    cause = Cause(answer.submission_ids[0], _text(answer.envelope_id), traceparent)
    outcome = answer.outcome if isinstance(answer, c.SubmissionAccepted) else "rejected"
    return outgoing(answer, answer.envelope_id, cause, source, outcome, *answer.submission_ids)


def groups(submissions: Sequence[tuple[str, int]]) -> Iterator[tuple[list[str], int]]:
    """(id, items) of many submissions -> ids and items of as many as one answer may name."""
    for start in range(0, len(submissions), IDS_IN_ONE_ANSWER):
        part = submissions[start : start + IDS_IN_ONE_ANSWER]
        yield [submission_id for submission_id, _ in part], sum(items for _, items in part)


def errors_json(found: Sequence[c.Fault]) -> str:
    return store.answer_json({"errors": [fault.model_dump() for fault in found]})


def _text(envelope_id: UUID | None) -> str | None:
    return str(envelope_id) if envelope_id else None
