"""What operators and publishers ask for: reassigning zones, cancelling, holding back; what a lost message holds up."""

import random
from dataclasses import replace

import pytest

from libs.common.contracts import allocation, operator
from libs.common.contracts.base import EventData
from tests.integration.allocation.goods import ENVELOPES, Allocating, Envelope, agency, ids, warehouse
from tests.support.world import World


def pause(allocating: Allocating, stage: str) -> None:
    assert allocating.command(operator.PauseStage(who="ops", why="to look at the plan", stage=stage)).affected == 1


def resume(allocating: Allocating, stage: str) -> None:
    assert allocating.command(operator.ResumeStage(who="ops", why="looked at", stage=stage)).affected == 1


def refused(row: object) -> str:
    assert row.affected == 0  # type: ignore[attr-defined]
    return str(row.detail)  # type: ignore[attr-defined]


def test_zones_are_reassigned_before_anybody_is_told(allocating: Allocating, world: World) -> None:
    allocating.put(
        warehouse(1, "L1"),
        warehouse(2, "L1"),
        agency(11, "L1-s1", "L1-s2", account="#ACCOUNT#4711#"),
        agency(12, "L1-s1", capacity="3.1"),
        agency(13, "L1-s1", capacity="1"),
        agency(14, "L1-s2"),
    )
    envelope, cash = Envelope(), Envelope("CASH_PHYSICAL")
    batch = envelope.batch("L1-s1", "L1-s1", "L1-s2", "L1-s3")
    allocating.begin()
    pause(allocating, "announce")
    allocating.publish(batch, envelope.completed(), cash.batch("L1-s1"), cash.completed())
    allocating.until_state(envelope, planned=3, held=1)
    allocating.until_state(cash, planned=1)

    assert "does not serve" in refused(allocating.reassign(envelope, "agency", "L1-s1", 14))
    assert "does not serve" in refused(allocating.reassign(envelope, "agency", "L1-s1", 1))
    assert "no capacity" in refused(allocating.reassign(envelope, "agency", "L1-s1", 13))
    assert "nobody" in refused(allocating.reassign(envelope, "agency", "L9-s9", 12))
    assert "the operator saw 3" in refused(allocating.reassign(envelope, "agency", "L1-s1", 12, expected=3))
    assert "cash needs no warehouse" in refused(allocating.reassign(cash, "warehouse", "L1", 2))
    assert "no envelope" in refused(allocating.reassign(Envelope(), "agency", "L1-s1", 12))
    assert allocating.facts(allocation.ZoneReassigned) == []

    assert allocating.reassign(envelope, "agency", "L1-s1", 12, expected=2).affected == 2
    assert allocating.reassign(envelope, "warehouse", "L1", 2).affected == 4
    allocating.check(envelope)
    # Nobody serves its small zone yet: given to somebody who will, it is tried at once when the reference data say so.
    assert "does not serve" in refused(allocating.reassign(envelope, "agency", "L1-s3", 14))
    allocating.put(agency(14, "L1-s2", "L1-s3"))
    allocating.refresh()
    allocating.until_state(envelope, planned=4)
    assert allocating.reassign(envelope, "agency", "L1-s3", 14).affected == 1

    resume(allocating, "announce")
    allocating.until_state(envelope, allocated=4)
    first, second = allocating.facts(allocation.ZoneReassigned, 3)[:2]
    assert (first.kind, first.zone_id, first.from_id, first.to_id, first.count) == ("agency", "L1-s1", "11", "12", 2)
    assert (first.who, first.reason, first.total_minor) == ("ops", "flooded", 3001)
    assert (second.kind, second.from_id, second.to_id, second.count) == ("warehouse", "1", "2", 4)
    served = allocating.served(envelope)
    assert {name: places[:2] for name, places in served.items()} == {
        "D1-0": ("2", "12"),
        "D1-1": ("2", "12"),
        "D1-2": ("2", "11"),
        "D1-3": ("2", "14"),
    }
    [one] = [event for event in allocating.said() if event.header.envelope_id == envelope.id]
    assert {zone.agency.chosen_by for zone in one.zones if zone.small_zone_id != "L1-s2"} == {"OPERATOR"}
    assert "has been announced" in refused(allocating.reassign(envelope, "agency", "L1-s1", 11))
    assert "has been announced" in refused(allocating.reassign(envelope, "warehouse", "L1", 1))
    steps = world.sql("allocation", "SELECT detail FROM ops_history WHERE step = 'zone reassigned' ORDER BY at")
    assert steps[0].detail == "agency of zone L1-s1 is 12, for 2 people: flooded"
    allocating.quiet()
    allocating.check(envelope, cash)


def test_who_of_a_zone_was_not_told_is_reassigned_and_who_was_stays(allocating: Allocating) -> None:
    """Held for want of capacity, and found for a later part, while others of the zone were told."""
    allocating.put(warehouse(1, "L1"), warehouse(2, "L1"), agency(11, "L1-s1", capacity="1.6"))
    envelope = Envelope()
    batch = envelope.batch("L1-s1", "L1-s1", None)
    allocating.begin()
    allocating.publish(batch, envelope.completed())
    allocating.until_state(envelope, allocated=1, held=2)

    pause(allocating, "announce")
    pause(allocating, "allocate")  # or the first agency with room would have them before an operator can choose
    allocating.put(agency(12, "L1-s1"), agency(13, "L1-s1"))
    allocating.refresh()
    read = "SELECT 1 FROM places WHERE kind = 'agency'"
    allocating.world.until(lambda: len(allocating.world.sql("allocation", read)) == 3, what="PBMS being read")
    assert "the operator saw 2" in refused(allocating.reassign(envelope, "agency", "L1-s1", 13, expected=2))
    assert allocating.reassign(envelope, "agency", "L1-s1", 13, expected=1).affected == 1
    resume(allocating, "allocate")
    allocating.until_state(envelope, planned=1, allocated=1, held=1)
    assert allocating.reassign(envelope, "warehouse", "L1", 2).affected == 1
    allocating.check(envelope)
    resume(allocating, "announce")
    allocating.until_state(envelope, allocated=2)
    assert "has been announced" in refused(allocating.reassign(envelope, "agency", "L1-s1", 12))

    pause(allocating, "announce")
    allocating.publish(envelope.later(batch, {"D1-2": "L1-s1"}))
    allocating.until_state(envelope, planned=1)
    assert allocating.reassign(envelope, "agency", "L1-s1", 12).affected == 1
    resume(allocating, "announce")
    allocating.until_state(envelope, allocated=3)
    served = {name: places[:2] for name, places in allocating.served(envelope).items()}
    assert served == {"D1-0": ("1", "11"), "D1-1": ("2", "13"), "D1-2": ("2", "12")}
    facts = allocating.facts(allocation.ZoneReassigned, 3)
    assert sorted((one.kind, one.to_id, one.count) for one in facts) == [
        ("agency", "12", 1),
        ("agency", "13", 1),
        ("warehouse", "2", 1),
    ]
    allocating.quiet()
    allocating.check(envelope)


def test_an_account_that_is_gone_before_anybody_is_told(allocating: Allocating, world: World) -> None:
    """Nobody is told of an agency that funds could not pay: who was planned there is held again, and makes room for others."""
    one, two = agency(11, "L1-s1", account="#ACCOUNT#11#"), agency(12, "L1-s2", capacity="2501", account="#ACCOUNT#12#")
    allocating.put(one, two, agency(13, "L1-s2", capacity="1251", account="#ACCOUNT#13#"))
    envelope = Envelope("CASH_PHYSICAL")
    allocating.begin()
    pause(allocating, "announce")
    batch = envelope.batch("L1-s1", "L1-s2", "L1-s2", minor=125_000)
    allocating.publish(batch, envelope.batch("L1-s1", minor=100_000), envelope.completed())
    allocating.until_state(envelope, planned=4)
    allocating.put(replace(one, account="#ACCOUNT#11}#"), replace(two, account=None))
    allocating.refresh()
    gone = "SELECT 1 FROM serves WHERE NOT has_account"
    world.until(lambda: len(world.sql("allocation", gone)) == 2, what="PBMS being read")
    resume(allocating, "announce")
    allocating.until_state(envelope, allocated=1, held=3)  # there is one more agency, for one of them
    allocating.quiet()
    assert {(zone.agency.id, zone.count) for event in allocating.said() for zone in event.zones} == {("13", 1)}
    assert {event.header.number for event in allocating.said() if event.part == 1} == {1, 2}  # in which all are named
    held = world.sql("allocation", "SELECT disbursement_id, reason FROM ops_held ORDER BY 1")
    assert [row.reason for row in held] == ["NO_AGENCY", "NO_CAPACITY", "NO_AGENCY"]
    allocating.check(envelope)
    allocating.put(one, two)
    allocating.refresh()
    allocating.until_state(envelope, allocated=4, held=0)
    allocating.quiet()
    allocating.check(envelope)


def test_a_delay_is_waited_for(allocating: Allocating) -> None:
    allocating.put(warehouse(1, "L1"), agency(11, "L1-s1"))
    envelope = Envelope()
    allocating.publish(envelope.batch("L1-s1"), envelope.completed())
    patient = allocating.begin(ANNOUNCE_DELAY_SECONDS="86400")
    allocating.until_state(envelope, planned=1, state="ALLOCATING")
    due = "SELECT 1 FROM due WHERE job = 'announce' AND due_at < clock_timestamp() + interval '23 hours'"
    allocating.world.until(lambda: not allocating.world.sql("allocation", due))
    assert patient.stop() == 0
    assert allocating.said() == []
    allocating.world.sql("allocation", "UPDATE due SET due_at = clock_timestamp()")  # a day later, or nearly so
    allocating.begin(ANNOUNCE_DELAY_SECONDS="0.5")
    allocating.until_state(envelope, allocated=1)


@pytest.mark.parametrize("order", range(3))
def test_a_cancelled_envelope(allocating: Allocating, order: int) -> None:
    """Before, between and after its batches, doubled, in any order: whoever was told is served, nobody else."""
    allocating.put(warehouse(1, "L1"), agency(11, "L1-s1"))
    envelope = Envelope()
    batches = [envelope.batch("L1-s1", "L1-s1", None, "L9-s9") for _ in range(3)]
    events: list[EventData] = [*batches, envelope.cancelling(), *batches, envelope.cancelling()]
    random.Random(order).shuffle(events)
    allocating.publish(*events)
    allocating.begin(ALMONER_ALLOCATION_CONSUME_MAX_MESSAGES="2")
    [answer] = allocating.facts(allocation.GoodsCancelled, 1)
    assert (answer.cancelled, answer.already_announced) == (12, 0)
    assert answer.cancelled_minor == sum(envelope.everybody.values())
    allocating.publish(envelope.later(batches[0], {"D1-2": "L1-s1"}))  # somebody was found too late
    allocating.until_state(envelope, cancelled=12, state="CANCELLED")
    allocating.quiet()
    assert allocating.said() == []
    assert len(allocating.facts(allocation.GoodsCancelled)) == 1
    assert "is cancelled" in refused(allocating.reassign(envelope, "agency", "L1-s1", 11))
    allocating.check(envelope)


def test_cancelled_after_some_were_told(allocating: Allocating) -> None:
    allocating.put(warehouse(1, "L1"), agency(11, "L1-s1"))
    envelope = Envelope()
    first = envelope.batch("L1-s1", "L1-s2", None)
    allocating.begin()
    allocating.publish(first, envelope.completed())
    allocating.until_state(envelope, allocated=1, held=2, revision=1)
    allocating.publish(envelope.cancelling())
    [answer] = allocating.facts(allocation.GoodsCancelled, 1)
    assert (answer.cancelled, answer.already_announced, answer.already_announced_minor) == (2, 1, 1500)
    allocating.quiet()
    last = max(allocating.facts(allocation.EnvelopeAllocated), key=lambda one: one.revision)
    assert (last.revision, last.allocated, last.held, last.cancelled) == (2, 1, 0, 2)
    allocating.put(agency(12, "L1-s2"))
    allocating.refresh()
    allocating.quiet()
    assert len(allocating.said()) == 1
    allocating.check(envelope)


def test_single_people_are_cancelled_known_or_not(allocating: Allocating, world: World) -> None:
    allocating.put(warehouse(1, "L1"), agency(11, "L1-s1"))
    envelope = Envelope()
    told, planned = Envelope(), envelope.batch("L1-s1", "L1-s1", "L1-s2", None, "L1-s1")
    allocating.begin()
    allocating.publish(told.batch("L1-s1", "L1-s1"), told.completed())
    allocating.until_state(told, allocated=2)
    allocating.publish(told.cancelling_people("D1-0", "D9-9"))
    [answer] = allocating.facts(allocation.EntitlementsCancelled, 1)
    assert answer.cancelled == ["D9-9"]
    assert [(one.disbursement_id, one.reason) for one in answer.not_cancelled] == [("D1-0", "ALREADY_ANNOUNCED")]

    allocating.publish(planned, envelope.cancelling_people("D1-1", "D1-2", "D1-3", "D2-0", request="R2"))
    allocating.until_state(envelope, planned=2, cancelled=3)
    [answer] = [one for one in allocating.facts(allocation.EntitlementsCancelled, 2) if one.request_id == "R2"]
    assert sorted(answer.cancelled) == ["D1-1", "D1-2", "D1-3", "D2-0"]
    assert answer.cancelled_minor in {0, 4506}  # of those who had come by then
    late = envelope.batch("L1-s1", "L1-s1")
    allocating.publish(late, envelope.later(planned, {"D1-3": "L1-s1"}), envelope.completed())
    allocating.until_state(envelope, allocated=3, cancelled=4, held=0, planned=0)
    assert sorted(allocating.served(envelope)) == ["D1-0", "D1-4", "D2-1"]
    mine = [one for one in allocating.said() if one.header.envelope_id == envelope.id]
    held = {person.disbursement_id for one in mine for person in one.held}
    assert held <= {"D1-2", "D1-3"}  # whom nobody serves, where the batch was decided before the cancellation came
    steps = world.sql("allocation", "SELECT disbursement_id FROM ops_history WHERE step = 'cancelled' ORDER BY 1")
    assert [row.disbursement_id for row in steps] == ["D1-1", "D1-2", "D1-3", "D2-0"]
    allocating.quiet()
    [whole] = [one for one in allocating.facts(allocation.EnvelopeAllocated) if one.header.envelope_id == envelope.id]
    assert (whole.declared, whole.allocated, whole.cancelled) == (7, 3, 4)
    allocating.check(envelope, told)


def test_nothing_overtakes_a_lost_message(allocating: Allocating, world: World) -> None:
    allocating.put(warehouse(1, "L1"), agency(11, "L1-s1"))
    envelope, other = Envelope(), Envelope()
    allocating.begin()
    headers = {"ce_specversion": "1.0", "ce_id": "lost", "ce_source": "test", "ce_correlationid": str(envelope.id)}
    kind = {"ce_type": "almoner.ingestion.DisbursementsCancelling.v1"}
    world.publish_raw(ENVELOPES, b"x", b'{"whom": "the part that says it is lost"}', headers | kind)
    [letter] = world.until(lambda: world.sql("allocation", "SELECT id FROM ops_dead_letters WHERE state = 'OPEN'"))
    for one in (envelope, other):
        allocating.publish(one.batch("L1-s1"), one.completed())
    allocating.until_state(other, allocated=1)
    allocating.until_state(envelope, planned=1)
    held_up = "SELECT 1 FROM due WHERE job = 'announce' AND subject = %(id)s AND due_at > clock_timestamp()"
    world.until(lambda: world.sql("allocation", held_up, id=str(envelope.id)))
    assert allocating.state(envelope).planned == 1
    allocating.command(operator.DiscardDeadLetters(who="ops", why="seen", ids=[letter.id]))
    allocating.until_state(envelope, allocated=1)


def test_what_breaks_its_contract_is_set_aside(allocating: Allocating, world: World) -> None:
    envelope = Envelope()
    good = envelope.batch("L1-s1", None)
    twice = good.model_copy(update={"unresolved": good.unresolved.model_copy(update={"disbursement_id": ["D1-0"]})})
    wrong = good.model_copy(update={"unresolved_count": 2})
    moved = good.model_copy(update={"part": 2})  # its seal belongs to part 1
    digital = good.model_copy(update={"header": good.header.model_copy(update={"benefit_type": "CASH_DIGITAL"})})
    unknown = good.model_copy(
        update={"header": good.header.model_copy(update={"benefit_type": "CASH_PHYSICAL", "currency": "ZZZ"})}
    )
    allocating.publish(twice, wrong, moved, digital, unknown, good)
    allocating.begin()
    row = allocating.until_state(envelope, arrived=2)
    assert row.held == 2
    letters = world.sql("allocation", "SELECT code FROM ops_dead_letters ORDER BY 1")
    assert [letter.code for letter in letters] == [
        "BROKEN_SEAL",
        "DUPLICATE_DISBURSEMENT_ID",
        "INVALID_CONTROL_TOTALS",
        "NOT_SERVED_AT_A_PLACE",
        "UNKNOWN_CURRENCY",
    ]
    assert ids(good.items) == ["D1-0"]
