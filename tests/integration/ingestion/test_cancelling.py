"""Cancellations: ingestion passes them on, funds decides, the publisher is told what came of it."""

from typing import Any

from libs.common.contracts import ingestion as c
from libs.common.contracts.funds import DisbursementsCancelled, EnvelopeCancelled, EnvelopeSettled, Position
from tests.integration.ingestion.publisher import (
    BATCHES,
    DISBURSEMENTS,
    ENVELOPES,
    FACTS,
    answers_to,
    check_batches,
    chunk,
    codes,
    disbursements,
    envelope,
    total,
    uuid_of,
)
from tests.support.world import World


def cancel(world: World, *ids: str, name: str = "e1", event_id: str | None = None) -> str:
    data = c.DisbursementsCancellationRequested(envelope_id=name, disbursement_ids=list(ids), reason="moved away")
    return world.publish(DISBURSEMENTS, data, name, event_id=event_id)


def cancel_all(world: World, name: str = "e1") -> str:
    return world.publish(ENVELOPES, c.EnvelopeCancellationRequested(envelope_id=name, reason="wrong month"), name)


def started(world: World, **env: Any) -> None:
    world.run("ingestion", ALMONER_INGESTION_LINGER_SECONDS="60", **env)
    answers_to(world, world.publish(ENVELOPES, envelope("e1", 1500, total(1, 1500)), "e1"))


def test_known_cut_and_not_yet_seen(world: World) -> None:
    started(world)
    answers_to(world, world.publish(DISBURSEMENTS, chunk("e1", disbursements(1, 1000)), "e1/1"))
    answers_to(world, world.publish(DISBURSEMENTS, chunk("e1", disbursements(1001, 100)), "e1/2"))
    request = cancel(world, "d7", "d1001", "d1400", "d7")
    [accepted] = answers_to(world, request)
    assert (accepted.data.outcome, accepted.data.items) == ("accepted", 3)
    [fact] = world.events(FACTS, c.DisbursementsCancelling, at_least=1)
    assert fact.data.request_id == request
    first, second = (batch_of(world, number) for number in (1, 2))
    assert [(i.disbursement_id, i.batch_id) for i in fact.data.items] == [("d7", first), ("d1001", second), ("d1400", None)]
    # A cancelled id that comes later is taken and cut as usual: funds knows it as a tombstone.
    world.publish(DISBURSEMENTS, chunk("e1", disbursements(1101, 400)), "e1/3")
    events = check_batches(world, "e1", 1500, [1000, 500])
    assert [event.data.header.batch_id for event in events] == [first, second]

    header = fact.data.header
    decided = DisbursementsCancelled(
        header=header,
        request_id=request,
        cancelled=["d7", "d1400"],
        cancelled_minor=3407,
        not_cancelled=[c.NotCancelled(disbursement_id="d1001", reason="ALREADY_DISPATCHED")],
    )
    world.publish("funds.envelopes.v1", decided, header.envelope_id)
    cancelled = answers_to(world, request, at_least=2)[1].data
    assert (cancelled.outcome, cancelled.cancelled, cancelled.cancelled_minor) == ("cancelled", 2, 3407)
    assert [(n.disbursement_id, n.reason) for n in cancelled.not_cancelled] == [("d1001", "ALREADY_DISPATCHED")]
    cancel(world, "d7", "d1001", "d1400", "d7", event_id=request)  # the same request again
    assert answers_to(world, request, at_least=3)[2].data == cancelled


def batch_of(world: World, number: int) -> Any:
    from services.ingestion.cutting import batch_uuid

    return batch_uuid(uuid_of("e1"), number)


def test_whole_envelope(world: World) -> None:
    started(world)
    answers_to(world, world.publish(DISBURSEMENTS, chunk("e1", disbursements(1, 700)), "e1/1"))
    request = cancel_all(world)
    [accepted] = answers_to(world, request)
    assert accepted.data.outcome == "accepted"
    [fact] = world.events(FACTS, c.EnvelopeCancelling, at_least=1)
    assert (fact.data.batches, fact.data.count, fact.data.total_minor) == (1, 700, total(1, 700))
    assert (fact.data.request_id, fact.data.reason) == (request, "wrong month")
    check_batches(world, "e1", 700, [700])  # what had come is cut first, so that funds knows all of it

    refused = [
        world.publish(DISBURSEMENTS, chunk("e1", disbursements(701, 10)), "e1/2"),
        cancel(world, "d1"),
        cancel_all(world),
    ]
    for submission in refused:
        assert codes(answers_to(world, submission)[0]) == [("DISBURSEMENT_ENVELOPE_ALREADY_CANCELLED", "")]

    header = fact.data.header
    decided = EnvelopeCancelled(
        header=header,
        request_id=request,
        cancelled=600,
        cancelled_minor=5,
        already_dispatched=99,
        already_dispatched_minor=6,
        unknown=1,
        unknown_minor=7,
    )
    world.publish("funds.envelopes.v1", decided, header.envelope_id)
    told = answers_to(world, request, at_least=2)[1].data
    assert (told.outcome, told.items, told.cancelled, told.cancelled_minor) == ("cancelled", 700, 600, 5)
    assert [warning.code for warning in told.warnings] == ["ALREADY_DISPATCHED", "OUTCOME_UNKNOWN"]
    position = dict.fromkeys(Position.model_fields, 0)
    settled = EnvelopeSettled(header=header, revision=1, position=Position(**position), confirmed=99, reversed=0, cancelled=600)
    world.publish("funds.envelopes.v1", settled, header.envelope_id)
    world.until(lambda: world.sql("ingestion", "SELECT 1 FROM inbox HAVING count(*) = 2"))
    ask = world.publish(ENVELOPES, c.EnvelopeStatusRequested(envelope_id="e1"), "e1")
    assert answers_to(world, ask)[0].data.state == "CANCELLED"
    assert world.events(FACTS, c.EnvelopeCompleted) == []
    assert len(world.events(BATCHES, c.BatchCut)) == 1


def test_cancellation_before_the_envelope_is_parked(world: World) -> None:
    world.run("ingestion")
    request = cancel_all(world)
    assert answers_to(world, request)[0].data.outcome == "parked"
    world.publish(ENVELOPES, envelope("e1", 10, total(1, 10)), "e1")
    [fact] = world.events(FACTS, c.EnvelopeCancelling, at_least=1)
    assert (fact.data.batches, fact.data.count) == (0, 0)
    assert [answer.data.outcome for answer in answers_to(world, request, at_least=2)] == ["parked", "accepted"]
    late = world.publish(DISBURSEMENTS, chunk("e1", disbursements(1, 10)), "e1")
    assert codes(answers_to(world, late)[0]) == [("DISBURSEMENT_ENVELOPE_ALREADY_CANCELLED", "")]


def test_completed_envelope(world: World) -> None:
    world.run("ingestion")
    answers_to(world, world.publish(ENVELOPES, envelope("e1", 10, total(1, 10)), "e1"))
    world.publish(DISBURSEMENTS, chunk("e1", disbursements(1, 10)), "e1")
    world.events(FACTS, c.EnvelopeCompleted, at_least=1)
    cancel_all(world)
    [fact] = world.events(FACTS, c.EnvelopeCancelling, at_least=1)
    assert (fact.data.batches, fact.data.count, fact.data.total_minor) == (1, 10, total(1, 10))
