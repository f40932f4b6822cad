"""Goods and contacts: a unit instead of a currency, allocation's word instead of funds', and where people are told stays sealed."""

from typing import Any

import pytest

from libs.common.contracts import allocation as a
from libs.common.contracts import ingestion as c
from libs.common.contracts.base import GOODS, Contact
from libs.common.seal import by_person
from tests.integration.ingestion.publisher import (
    BATCHES,
    DISBURSEMENTS,
    ENVELOPES,
    FACTS,
    SEALER,
    answers_to,
    chunk,
    disbursements,
    envelope,
    total,
)
from tests.support.world import World

ALLOCATION = "allocation.envelopes.v1"
RICE: dict[str, Any] = {
    "benefit_code": c.BenefitCode(id="rice", mnemonic="Rice", type="COMMODITY"),
    "currency": None,
    "measurement_unit": "kg",
    "unit_scale": 3,
}


def status(world: World) -> c.EnvelopeStatus:
    ask = world.publish(ENVELOPES, c.EnvelopeStatusRequested(envelope_id="e1"), "e1")
    found: c.EnvelopeStatus = answers_to(world, ask)[0].data
    return found


def allocated(header: Any, revision: int, held: int) -> a.EnvelopeAllocated:
    return a.EnvelopeAllocated(
        header=header,
        revision=revision,
        declared=10,
        declared_minor=total(1, 10),
        allocated=10 - held,
        allocated_minor=total(1, 10 - held),
        held=held,
        held_minor=total(11 - held, held),
        cancelled=0,
        cancelled_minor=0,
    )


@pytest.mark.parametrize("benefit_type", GOODS)
def test_an_envelope_of_goods_and_what_becomes_of_it(world: World, benefit_type: str) -> None:
    world.run("ingestion")
    declared = {**RICE, "benefit_code": c.BenefitCode.model_validate({"id": "rice", "mnemonic": "Rice", "type": benefit_type})}
    answers_to(world, world.publish(ENVELOPES, envelope("e1", 10, total(1, 10), **declared), "e1"))
    contact = Contact(email="ama@example.org", phone="+233 20 555 0101")
    people = disbursements(1, 10)
    people[2]["contact"] = contact
    world.publish(DISBURSEMENTS, chunk("e1", people), "e1")
    [completed] = world.events(FACTS, c.EnvelopeCompleted, at_least=1)
    header = completed.data.header
    assert (header.currency, header.measurement_unit, header.unit_scale, header.benefit_type) == ("", "kg", 3, benefit_type)

    [cut] = world.events(BATCHES, c.BatchCut, at_least=1)
    assert b"ama@example" not in cut.raw.value
    sealed = by_person(SEALER.open_people(cut.data.sealed, "BatchCut", header.envelope_id, cut.data.header.batch_id))
    assert [key for key, one in sealed.items() if "contact" in one] == ["d3"]
    assert sealed["d3"]["contact"] == {"email": "ama@example.org", "phone": "+233 20 555 0101"}

    world.publish(ALLOCATION, allocated(header, 2, held=1), header.envelope_id)
    world.until(lambda: status(world).allocation, what="allocation's word")
    world.publish(ALLOCATION, allocated(header, 1, held=3), header.envelope_id)  # an older one that comes late
    world.publish(ALLOCATION, allocated(header, 3, held=0), header.envelope_id)
    world.until(lambda: status(world).state == "SETTLED", what="the end")
    last = status(world).allocation
    assert last is not None
    assert (last.revision, last.allocated, last.held, last.allocated_minor) == (3, 10, 0, total(1, 10))


def test_cancellations_of_goods_are_answered_as_allocation_decides(world: World) -> None:
    world.run("ingestion")
    answers_to(world, world.publish(ENVELOPES, envelope("e1", 10, total(1, 10), **RICE), "e1"))
    world.publish(DISBURSEMENTS, chunk("e1", disbursements(1, 10)), "e1")
    [completed] = world.events(FACTS, c.EnvelopeCompleted, at_least=1)
    header = completed.data.header
    single = c.DisbursementsCancellationRequested(envelope_id="e1", disbursement_ids=["d1", "d2"], reason="moved away")
    request = world.publish(DISBURSEMENTS, single, "e1")
    answers_to(world, request)
    decided = a.EntitlementsCancelled(
        header=header,
        request_id=request,
        cancelled=["d1"],
        cancelled_minor=1001,
        not_cancelled=[c.NotCancelled(disbursement_id="d2", reason="ALREADY_ANNOUNCED")],
    )
    world.publish(ALLOCATION, decided, header.envelope_id)
    told = answers_to(world, request, at_least=2)[1].data
    assert (told.outcome, told.cancelled, told.cancelled_minor) == ("cancelled", 1, 1001)
    assert [(n.disbursement_id, n.reason) for n in told.not_cancelled] == [("d2", "ALREADY_ANNOUNCED")]

    whole = world.publish(ENVELOPES, c.EnvelopeCancellationRequested(envelope_id="e1", reason="wrong month"), "e1")
    answers_to(world, whole)
    gone = a.GoodsCancelled(
        header=header, request_id=whole, cancelled=8, cancelled_minor=8, already_announced=1, already_announced_minor=1002
    )
    world.publish(ALLOCATION, gone, header.envelope_id)
    answer = answers_to(world, whole, at_least=2)[1].data
    assert (answer.outcome, answer.items, answer.cancelled) == ("cancelled", 9, 8)
    assert [warning.code for warning in answer.warnings] == ["ALREADY_ANNOUNCED"]
    assert status(world).state == "CANCELLED"
