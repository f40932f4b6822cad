"""Amendments: what a publisher declares instead, as long as nothing depends on it; and what the next stages are told."""

from datetime import timedelta
from typing import Any

from libs.common.contracts import ingestion as c
from libs.common.contracts.funds import RescheduleDecided
from libs.common.envelope import Event
from tests.integration.ingestion.publisher import (
    BATCHES,
    DISBURSEMENTS,
    ENVELOPES,
    FACTS,
    all_answers,
    answers_to,
    check_batches,
    chunk,
    chunks_of,
    codes,
    disbursements,
    envelope,
    judged,
    today,
    total,
    uuid_of,
)
from tests.support.world import World


def amend(world: World, name: str = "e1", event_id: str | None = None, **fields: Any) -> str:
    data = c.EnvelopeAmendmentRequested(envelope_id=name, reason="the list has changed", **fields)
    return world.publish(ENVELOPES, data, name, event_id=event_id)


def last(world: World, submission_id: str, at_least: int = 1) -> Event[Any]:
    return answers_to(world, submission_id, at_least)[-1]


def add(world: World, first: int, count: int) -> Event[Any]:
    return last(world, world.publish(DISBURSEMENTS, chunk("e1", disbursements(first, count)), f"e1/{first}"))


def submitted(world: World, count: int, **changes: Any) -> None:
    assert (
        last(world, world.publish(ENVELOPES, envelope("e1", count, total(1, count), **changes), "e1")).data.outcome
        == "accepted"
    )


def test_more_is_declared(world: World) -> None:
    world.run("ingestion", ALMONER_INGESTION_LINGER_SECONDS="60")
    submitted(world, 10)
    assert add(world, 1, 8).data.outcome == "accepted"
    assert codes(add(world, 9, 4))[0][0] == "NO_OF_DISBURSEMENTS_EXCEEDS_DECLARED"
    request = amend(world, number_of_beneficiaries=12, number_of_disbursements=12, total_minor=total(1, 12))
    assert last(world, request).data.outcome == "accepted"
    [fact] = world.events(FACTS, c.EnvelopeAmended, at_least=1)
    assert (fact.data.request_id, fact.data.reason) == (request, "the list has changed")
    assert (fact.data.beneficiaries, fact.data.declared, fact.data.declared_minor) == (12, 12, total(1, 12))
    assert fact.data.header.revision == 2
    assert fact.raw.key == str(uuid_of("e1")).encode()
    assert add(world, 9, 4).data.outcome == "accepted"
    [completed] = world.events(FACTS, c.EnvelopeCompleted, at_least=1)
    assert (completed.data.count, completed.data.total_minor, completed.data.header.revision) == (12, total(1, 12), 2)
    [batch] = check_batches(world, "e1", 12, [12])
    assert batch.data.header.revision == 2  # as of when it was cut
    [accepted] = world.events(FACTS, c.EnvelopeAccepted)
    assert accepted.data.header == completed.data.header.model_copy(update={"revision": 1})
    row = world.sql("ingestion", "SELECT * FROM ops_envelopes")[0]
    assert (row.revision, row.state, row.beneficiaries, row.declared) == (2, "COMPLETED", 12, 12)
    # The same again changes nothing and is answered the same; what was submitted at first is still the same submission.
    amend(world, event_id=request, number_of_beneficiaries=12, number_of_disbursements=12, total_minor=total(1, 12))
    assert last(world, request, at_least=2).data.outcome == "accepted"
    submitted(world, 10)
    assert len(world.events(FACTS, c.EnvelopeAmended)) == len(world.events(FACTS, c.EnvelopeCompleted)) == 1


def test_less_is_declared_and_that_completes_it(world: World) -> None:
    world.run("ingestion", ALMONER_INGESTION_LINGER_SECONDS="60")
    submitted(world, 10)
    assert add(world, 1, 7).data.outcome == "accepted"
    too_few = amend(world, number_of_disbursements=6, total_minor=total(1, 6))
    assert codes(last(world, too_few)) == [
        ("INVALID_DISBURSEMENT_QUANTITY", "/total_minor"),
        ("INVALID_NO_OF_DISBURSEMENTS", "/number_of_disbursements"),
    ]
    enough = amend(world, number_of_beneficiaries=7, number_of_disbursements=7, total_minor=total(1, 7))
    assert last(world, enough).data.outcome == "accepted"
    [completed] = world.events(FACTS, c.EnvelopeCompleted, at_least=1)
    assert (completed.data.batches, completed.data.count, completed.data.total_minor) == (1, 7, total(1, 7))
    check_batches(world, "e1", 7, [7])
    for request, name in [
        (amend(world, number_of_disbursements=9), "number_of_disbursements"),
        (amend(world, total_minor=10**6), "total_minor"),
        (amend(world, number_of_beneficiaries=3), "number_of_beneficiaries"),
    ]:
        assert codes(last(world, request)) == [("DISBURSEMENT_ENVELOPE_COMPLETE", f"/{name}")]
    assert world.sql("ingestion", "SELECT revision, declared FROM ops_envelopes") == [(2, 7)]


def test_no_fewer_people_are_declared_than_are_there(world: World) -> None:
    """Five people, of whom one gets two disbursements; also while the last of them are still to be judged with the amendment."""
    world.run("ingestion", ALMONER_INGESTION_LINGER_SECONDS="60")
    submitted(world, 10)
    assert add(world, 1, 3).data.outcome == "accepted"
    twice = c.Disbursement(disbursement_id="d99", beneficiary_id="p3", amount_minor=1)
    more = chunk("e1", [*disbursements(4, 2), twice])
    assert last(world, world.publish(DISBURSEMENTS, more, "e1/4")).data.outcome == "accepted"
    for few in (1, 4):
        answer = last(world, amend(world, number_of_beneficiaries=few))
        assert codes(answer) == [("INVALID_NO_OF_BENEFICIARIES", "/number_of_beneficiaries")]
        assert answer.data.errors[0].message.startswith("5 people are there already; declare")
    assert last(world, amend(world, number_of_beneficiaries=5)).data.outcome == "accepted"
    # What is judged in the same run is not in the table yet.
    first = world.publish(DISBURSEMENTS, chunk("e2", disbursements(1, 3)), "e2/1")
    assert last(world, first).data.outcome == "parked"
    requests = [amend(world, "e2", number_of_beneficiaries=few) for few in (2, 3)]
    for request in requests:
        assert answers_to(world, request)[0].data.outcome == "parked"
    world.publish(ENVELOPES, envelope("e2", 10, total(1, 10)), "e2")
    assert codes(last(world, requests[0], at_least=2)) == [("INVALID_NO_OF_BENEFICIARIES", "/number_of_beneficiaries")]
    assert last(world, requests[1], at_least=2).data.outcome == "accepted"


def test_parked_and_in_its_order(world: World) -> None:
    """What comes before the envelope waits for it; among what waits the order of arrival counts."""
    world.run("ingestion", ALMONER_INGESTION_LINGER_SECONDS="60")
    request = amend(world, number_of_beneficiaries=3, number_of_disbursements=3, total_minor=total(1, 3))
    assert last(world, request).data.outcome == "parked"
    world.publish(ENVELOPES, envelope("e1", 2, total(1, 2)), "e1")
    assert last(world, request, at_least=2).data.outcome == "accepted"
    assert add(world, 1, 3).data.outcome == "accepted"
    [completed] = world.events(FACTS, c.EnvelopeCompleted, at_least=1)
    assert (completed.data.count, completed.data.header.revision) == (3, 2)


def test_every_amendment_is_a_revision_of_its_own(world: World) -> None:
    world.run("ingestion", ALMONER_INGESTION_LINGER_SECONDS="60")
    submitted(world, 10)
    requests = [amend(world, number_of_beneficiaries=10 - n) for n in range(1, 5)]
    same_again = amend(world, number_of_beneficiaries=6)
    for request in [*requests, same_again]:
        assert last(world, request).data.outcome == "accepted"
    facts = world.events(FACTS, c.EnvelopeAmended, at_least=4)
    assert [(f.data.request_id, f.data.header.revision, f.data.beneficiaries) for f in facts] == [
        (request, n + 1, 10 - n) for n, request in enumerate(requests, 1)
    ]
    ask = c.EnvelopeStatusRequested(envelope_id="e1")
    assert last(world, world.publish(ENVELOPES, ask, "e1")).data.header.revision == 5


def test_another_day(world: World) -> None:
    world.run("ingestion", ALMONER_INGESTION_LINGER_SECONDS="60")
    submitted(world, 10)
    day = today() + timedelta(days=9)
    assert last(world, amend(world, schedule_date=day)).data.outcome == "accepted"
    for wrong in (today() - timedelta(days=1), today() + timedelta(days=400)):
        found = codes(last(world, amend(world, schedule_date=wrong)))
        assert found == [("INVALID_DISBURSEMENT_SCHEDULE_DATE", "/schedule_date")]
    [fact] = world.events(FACTS, c.EnvelopeAmended, at_least=1)
    assert (fact.data.header.schedule_date, fact.data.header.revision) == (day, 2)
    assert add(world, 1, 10).data.outcome == "accepted"
    [completed] = world.events(FACTS, c.EnvelopeCompleted, at_least=1)
    assert completed.data.header == fact.data.header


def test_not_on_the_day(world: World) -> None:
    world.run("ingestion")
    submitted(world, 10)
    world.publish(ENVELOPES, envelope("e2", 10, total(1, 10), schedule_date=today()), "e2")
    on_the_day = amend(world, "e2", number_of_beneficiaries=9)
    assert codes(judged(world, on_the_day)) == [("DISBURSEMENT_ENVELOPE_DATE_PASSED", "")]
    cancelled = world.publish(ENVELOPES, c.EnvelopeCancellationRequested(envelope_id="e1", reason="x"), "e1")
    assert last(world, cancelled).data.outcome == "accepted"
    assert codes(last(world, amend(world, number_of_beneficiaries=9))) == [("DISBURSEMENT_ENVELOPE_ALREADY_CANCELLED", "")]
    assert world.events(FACTS, c.EnvelopeAmended) == []


def test_while_chunks_arrive_at_two_replicas(world: World) -> None:
    """Batches carry the revision of when they were cut, and never go back to an older one."""
    for _ in range(2):
        world.run("ingestion", ALMONER_INGESTION_LINGER_SECONDS="60")
    world.publish(ENVELOPES, envelope("e1", 5000, total(1, 5000)), "e1")
    chunks = chunks_of("e1", 4000, 100)
    world.publish_many(DISBURSEMENTS, chunks[:20])
    request = amend(world, number_of_beneficiaries=4000, number_of_disbursements=4000, total_minor=total(1, 4000))
    world.publish_many(DISBURSEMENTS, chunks[20:])
    [completed] = world.events(FACTS, c.EnvelopeCompleted, at_least=1)
    assert judged(world, request).data.outcome == "accepted"
    assert (completed.data.count, completed.data.header.revision) == (4000, 2)
    batches = check_batches(world, "e1", 4000, [1000] * 4)
    revisions = [batch.data.header.revision for batch in batches]
    assert revisions == sorted(revisions)
    assert len(world.events(BATCHES, c.BatchCut)) == 4


def complete(world: World, **changes: Any) -> None:
    world.run("ingestion", ALMONER_INGESTION_LINGER_SECONDS="60")
    submitted(world, 3, **changes)
    assert add(world, 1, 3).data.outcome == "accepted"
    world.events(FACTS, c.EnvelopeCompleted, at_least=1)


def asked(world: World, number: int) -> c.EnvelopeRescheduling:
    fact: c.EnvelopeRescheduling = world.events(FACTS, c.EnvelopeRescheduling, at_least=number)[number - 1].data
    return fact


def decide(world: World, request: c.EnvelopeRescheduling, refusal: Any = None, **header: Any) -> None:
    """As funds does: the header says what holds from there."""
    day = {} if refusal else {"schedule_date": request.schedule_date}
    decided = RescheduleDecided(
        header=request.header.model_copy(update={**day, **header}),
        request_id=request.request_id,
        reason=request.reason,
        refusal=refusal,
    )
    for _ in range(2):  # a second time, as another event
        world.publish("funds.envelopes.v1", decided, request.header.envelope_id)


def test_another_day_after_all_has_come_is_for_funds_to_decide(world: World) -> None:
    complete(world)
    day = today() + timedelta(days=9)
    request = amend(world, schedule_date=day)
    fact = asked(world, 1)
    assert (fact.request_id, fact.reason, fact.schedule_date) == (request, "the list has changed", day)
    assert (fact.header.schedule_date, fact.header.revision) == (today() + timedelta(days=1), 2)
    amend(world, event_id=request, schedule_date=day)  # impatient: there is no answer yet
    assert answers_to(world, ask_status(world))[0].data.header.schedule_date == fact.header.schedule_date
    assert all(request not in answer.data.submission_ids for answer in all_answers(world))
    decide(world, fact)
    assert last(world, request).data.outcome == "accepted"
    [amended] = {event.id: event for event in world.events(FACTS, c.EnvelopeAmended, at_least=1)}.values()
    assert (amended.data.header.schedule_date, amended.data.header.revision) == (day, 2)
    assert (amended.data.request_id, amended.data.reason, amended.data.declared) == (request, "the list has changed", 3)
    assert answers_to(world, ask_status(world))[0].data.header == amended.data.header
    known = len(answers_to(world, request))
    amend(world, event_id=request, schedule_date=day)  # the same again
    assert last(world, request, at_least=known + 1).data.outcome == "accepted"
    assert len(world.events(FACTS, c.EnvelopeRescheduling)) == 1
    wrong = amend(world, schedule_date=today() - timedelta(days=1))
    assert codes(last(world, wrong)) == [("INVALID_DISBURSEMENT_SCHEDULE_DATE", "/schedule_date")]


def test_funds_refuses_another_day(world: World) -> None:
    complete(world)
    first, second = (amend(world, schedule_date=today() + timedelta(days=n)) for n in (8, 9))
    facts = asked(world, 1), asked(world, 2)
    decide(world, facts[0], "CHECK_STARTED", revision=1)
    answer = last(world, first)
    assert codes(answer) == [("DISBURSEMENT_ENVELOPE_COMPLETE", "/schedule_date")]
    assert "cancel what must not be paid" in answer.data.errors[0].message
    decide(world, facts[1], "CANCELLED", revision=1)
    assert codes(last(world, second)) == [("DISBURSEMENT_ENVELOPE_ALREADY_CANCELLED", "")]
    assert world.events(FACTS, c.EnvelopeAmended) == []
    assert answers_to(world, ask_status(world))[0].data.header.schedule_date == today() + timedelta(days=1)


def test_the_last_day_asked_for_holds_in_whatever_order_funds_is_heard(world: World) -> None:
    complete(world)
    first, second = (amend(world, schedule_date=today() + timedelta(days=n)) for n in (8, 9))
    facts = asked(world, 1), asked(world, 2)
    assert [fact.header.revision for fact in facts] == [2, 3]
    decide(world, facts[1])
    assert last(world, second).data.outcome == "accepted"
    decide(world, facts[0])
    assert last(world, first).data.outcome == "accepted"
    header = answers_to(world, ask_status(world))[0].data.header
    assert (header.schedule_date, header.revision) == (facts[1].schedule_date, 3)


def test_places_that_were_told_of_a_day_keep_it(world: World) -> None:
    code = c.BenefitCode(id="cash", mnemonic="Cash", type="CASH_PHYSICAL")
    complete(world, benefit_code=code)
    answer = last(world, amend(world, schedule_date=today() + timedelta(days=9)))
    assert codes(answer) == [("DISBURSEMENT_ENVELOPE_COMPLETE", "/schedule_date")]
    assert "submit a new envelope" in answer.data.errors[0].message
    assert world.events(FACTS, c.EnvelopeRescheduling) == []


def ask_status(world: World) -> str:
    return world.publish(ENVELOPES, c.EnvelopeStatusRequested(envelope_id="e1"), "e1")
