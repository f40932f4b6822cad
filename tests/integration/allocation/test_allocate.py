"""Goods and agency cash, from zones to who serves whom."""

import json
from dataclasses import replace
from decimal import Decimal

import pytest

from libs.common.contracts import allocation, ingestion
from libs.common.contracts.base import GOODS
from tests.integration.allocation.goods import Allocating, Envelope, agency, ids, opened, warehouse
from tests.integration.resolution.batches import cut
from tests.support.world import World


@pytest.mark.parametrize("benefit_type", GOODS)
def test_goods_from_zones_to_places(allocating: Allocating, benefit_type: str) -> None:
    allocating.put(
        warehouse(1, "L1", "L2", admin_email="store@example.org"),
        warehouse(2, "L2"),
        agency(11, "L1-s1", account="#ACCOUNT#0047110815#TYPE#SAVINGS#BRANCH#3#BANK#ABC#"),
        agency(12, "L2-s1"),
        agency(13, "L2-s1", "L2-s2"),
    )
    envelope = Envelope(benefit_type)
    first = envelope.batch("L1-s1", "L2-s1", "L2-s2", "L3-s1", None)
    second = envelope.batch("L2-s1", "L1-s1")
    allocating.begin()
    allocating.publish(first)
    allocating.until_state(envelope, planned=3, held=2, state="RECEIVING")
    allocating.publish(second)  # whose only zone of L2 has a choice of agencies: the first batch has made it
    allocating.until_state(envelope, planned=5, held=2, state="RECEIVING")
    assert allocating.said() == []  # nobody is told before all are there

    allocating.publish(envelope.completed())
    one, two = allocating.said(2)
    assert (one.header.batch_id, one.part, one.count, one.held_count) == (first.header.batch_id, 1, 3, 2)
    assert one.header.benefit_type == benefit_type
    zones = {zone.small_zone_id: zone for zone in one.zones}
    assert [zones[name].warehouse.id for name in ("L1-s1", "L2-s1", "L2-s2")] == ["1", "1", "1"]  # type: ignore[union-attr]
    assert [zones[name].agency.id for name in ("L1-s1", "L2-s1", "L2-s2")] == ["11", "13", "13"]
    assert [zones[name].agency.chosen_by for name in ("L1-s1", "L2-s1", "L2-s2")] == ["ONLY_ONE", "COVERAGE", "ONLY_ONE"]
    assert zones["L2-s1"].agency.name == "Agency 13"
    assert zones["L1-s1"].large_zone_code == "code L1"
    assert {(held.disbursement_id, held.reason) for held in one.held} == {("D1-3", "NO_WAREHOUSE"), ("D1-4", "NOT_IN_REGISTRY")}
    people, places = opened(one)
    assert people == {f"D1-{n}": {"name": f"Name of P1-{n}"} for n in range(3)}
    assert places.keys() == {"warehouse/1", "agency/11", "agency/13"}
    assert places["warehouse/1"] == {"admin_name": "", "admin_email": "store@example.org", "admin_mobile": ""}
    account = {"account_number": "0047110815", "account_type": "SAVINGS", "branch_code": "3", "bank_code": "ABC"}
    contact = {"admin_name": "Head of 11", "admin_email": "a11@example.org", "admin_mobile": "+2210000"}
    assert places["agency/11"] == {**contact, "account": account}
    assert {zone.agency.id for zone in two.zones} == {"11", "13"}  # the first batch has chosen
    row = allocating.until_state(envelope, allocated=5, held=2, planned=0, revision=1)
    assert (row.state, row.arrived, row.declared, row.batches) == ("HELD", 7, 7, 2)
    [told] = allocating.facts(allocation.EnvelopeAllocated, 1)
    assert (told.revision, told.declared, told.allocated, told.held, told.cancelled) == (1, 7, 5, 2, 0)
    assert told.declared_minor == sum(envelope.everybody.values())
    allocating.check(envelope)

    # The registry knows one of them now, PBMS the others' zone: each goes on as the batch's next part, the others stay.
    allocating.publish(envelope.later(first, {"D1-4": "L1-s1"}))
    third = allocating.said(3)[1]
    assert (third.part, ids(third.items), list(third.held)) == (2, ["D1-4"], [])
    allocating.put(warehouse(3, "L3"), agency(14, "L3-s1"))
    allocating.tick()
    fourth = allocating.said(4)[2]
    assert (fourth.part, ids(fourth.items), fourth.zones[0].agency.id) == (3, ["D1-3"], "14")
    assert opened(fourth)[0] == {"D1-3": {"name": "Name of P1-3"}}
    allocating.until_state(envelope, allocated=7, held=0, state="ALLOCATED")
    allocating.quiet()
    assert [one.held for one in allocating.facts(allocation.EnvelopeAllocated)] == [2, 1, 0]
    allocating.check(envelope)
    seals = allocating.world.sql("allocation", "SELECT count(sealed) AS n FROM arrivals")
    assert seals[0].n == 0  # nobody needs the names any more

    # What others read.
    [zone] = allocating.world.sql("allocation", "SELECT * FROM ops_zones WHERE small_zone_id = 'L2-s1'")
    assert (zone.warehouse_name, zone.warehouse_chosen_by, zone.agency_id) == ("Warehouse 1", "COVERAGE", "13")
    assert (zone.agency_chosen_by, zone.allocated, zone.reason) == ("COVERAGE", 2, "")
    steps = allocating.world.sql(
        "allocation", "SELECT step FROM ops_history WHERE envelope_id = %(id)s ORDER BY at", id=envelope.id
    )
    assert [row.step for row in steps][:2] == ["arrived at allocation"] * 2
    assert {row.step for row in steps} == {"arrived at allocation", "allocated", "all allocated"}
    [place] = allocating.world.sql("allocation", "SELECT * FROM ops_places WHERE id = '13'")
    assert (place.kind, place.zones, place.serves, place.source) == ("agency", ["L2-s1", "L2-s2"], ["RICE/SEED-01"], "pbms")
    assert not allocating.world.sql("allocation", "SELECT 1 FROM ops_held UNION ALL SELECT 1 FROM dead_letters")
    for process in allocating.world.processes:  # neither names nor contacts nor accounts are told to whoever reads logs
        assert not any(secret in process.log_text() for secret in ("Name of", "a11@", "0047110815", "store@"))


def test_agency_cash_needs_no_warehouse_but_an_account_and_names_everybody(allocating: Allocating) -> None:
    allocating.put(agency(11, "L1-s1", account="#ACCOUNT#0047110815#"), agency(12, "L1-s2"))
    envelope, other = Envelope("CASH_PHYSICAL"), Envelope("CASH_PHYSICAL")
    batch, unfinished = envelope.batch("L1-s1", "L1-s2", None, minor=125_050), other.batch("L1-s1", "L1-s2")
    allocating.begin()
    allocating.publish(batch, envelope.completed(), unfinished, other.cancelling())
    said = {event.header.envelope_id: event for event in allocating.said(2)}
    one = said[envelope.id]
    assert (one.zones[0].warehouse, one.zones[0].agency.id, one.total_minor) == (None, "11", 125_050)
    assert {(held.disbursement_id, held.reason) for held in one.held} == {("D1-1", "NO_AGENCY"), ("D1-2", "NOT_IN_REGISTRY")}
    assert "no agency with an account that a bank can be told serves small zone L1-s2" in {held.message for held in one.held}
    # Funds can answer a cancellation only when it has been told of everybody; nobody is cancelled here.
    assert (said[other.id].count, said[other.id].held_count) == (1, 1)
    allocating.quiet()
    assert allocating.facts(allocation.EnvelopeAllocated) == allocating.facts(allocation.GoodsCancelled) == []
    allocating.check(envelope, other)


def test_capacity_is_never_exceeded_whoever_comes_and_given_back_by_cancelling(allocating: Allocating, world: World) -> None:
    """Two replicas, four envelopes of one cycle at the same moment; places have room for some of them."""
    allocating.put(warehouse(1, "L1"), agency(11, "L1-s1", capacity="15"), agency(12, "L1-s1", "L1-s2", capacity="9.01"))
    envelopes = [Envelope(unit_scale=scale) for scale in (3, 3, 2, 3)]
    batches = [e.batch(*["L1-s1"] * 6, minor=1200 // 10 ** (3 - e.header.unit_scale)) for e in envelopes]
    replicas = [allocating.begin(), allocating.run()]
    world.until(lambda: all(replica.ready() for replica in replicas))
    allocating.publish(*batches)
    for envelope in envelopes:
        allocating.until_state(envelope, arrived=6)
    allocating.quiet()
    rows = [allocating.state(envelope) for envelope in envelopes]
    assert sum(row.planned for row in rows) == 19  # 12 of 15 kg at one, 7 of 9.01 at the other: a thirteenth would be too much
    assert sum(row.held for row in rows) == 5
    allocating.check(*envelopes)
    assert {row.reason for row in world.sql("allocation", "SELECT DISTINCT reason FROM ops_held")} == {"NO_CAPACITY"}

    # Who is cancelled makes room for who waits.
    gone = max(zip(rows, envelopes, strict=True), key=lambda pair: pair[0].planned)[1]
    allocating.publish(gone.cancelling())
    allocating.until_state(gone, cancelled=6, planned=0)
    rest = [envelope for envelope in envelopes if envelope is not gone]
    world.until(lambda: sum(allocating.state(envelope).held for envelope in rest) == 0, what="room")
    allocating.publish(*(envelope.completed() for envelope in rest))
    for envelope in rest:
        allocating.until_state(envelope, allocated=6)
    allocating.quiet()
    allocating.check(*envelopes)


def test_capacity_of_cash_is_given_back_once_by_whom_funds_has_cancelled(allocating: Allocating, world: World) -> None:
    """What is submitted anew in the same cycle finds the room again, whatever funds says twice, in parts or before its batch."""
    allocating.put(agency(11, "L1-s1", capacity="61", account="#ACCOUNT#0047110815#"))
    first, anew, early = (Envelope("CASH_PHYSICAL") for _ in range(3))
    one, two = first.batch(*["L1-s1"] * 4, minor=1000), first.batch(*["L1-s1"] * 3, minor=1000)
    allocating.begin()
    allocating.publish(one, two, first.completed())
    allocating.until_state(first, allocated=6, held=1)
    allocating.publish(anew.batch(*["L1-s1"] * 4, minor=1000), anew.batch(*["L1-s1"] * 3, minor=1000), anew.completed())
    allocating.until_state(anew, held=7, planned=0)
    allocating.quiet()

    # One of a zone, and who is not known here: one of those who wait has room then, and what was said stays said.
    told = sorted(allocating.served(first))
    for _ in range(2):
        allocating.publish(first.cancelled_by_funds(one, told[0]))
    world.until(lambda: allocating.state(first).held + allocating.state(anew).held == 7, what="room for one")
    allocating.quiet()
    allocating.check(first, anew)
    # All of it, in pieces that overlap: who waited there does not take what the others give back.
    allocating.publish(first.cancelling(), first.cancelled_by_funds(two), first.cancelled_by_funds(two, "D2-1"))
    allocating.publish(first.cancelled_by_funds(one), first.cancelled_by_funds(one, "D1-3", "D1-0"))
    allocating.until_state(anew, allocated=6, held=1, planned=0)
    allocating.until_state(first, held=0, planned=0)
    allocating.quiet()
    allocating.check(first, anew)
    [load] = world.sql("allocation", "SELECT units FROM ops_loads")
    assert load.units == sum(minor for *_, minor in allocating.served(anew).values()) / Decimal(100)
    marked = world.sql(
        "allocation",
        "SELECT disbursement_id FROM ops_entitlements WHERE envelope_id = %(id)s AND given_back ORDER BY 1",
        id=first.id,
    )
    assert [row.disbursement_id for row in marked] == sorted(allocating.served(first))

    # Before its batch is here: nobody of it is served, and nothing is given back that was not taken.
    batch = early.batch("L1-s1", "L1-s1", None, minor=1000)
    allocating.publish(early.cancelled_by_funds(batch, "D1-0", "D1-2"), early.cancelled_by_funds(batch, "D1-0"))
    world.until(lambda: world.sql("allocation", "SELECT 1 FROM tombstones WHERE envelope_id = %(id)s", id=early.id))
    allocating.quiet()
    allocating.publish(batch, early.completed())
    allocating.until_state(early, cancelled=2, held=1)
    allocating.publish(early.later(batch, {"D1-2": "L1-s1"}))
    later = "SELECT 1 FROM arrivals WHERE envelope_id = %(id)s AND part = 2"
    world.until(lambda: world.sql("allocation", later, id=early.id), what="the part being read")
    allocating.quiet()
    allocating.until_state(early, cancelled=2, held=1)
    allocating.check(first, anew, early)
    assert not world.sql("allocation", "SELECT 1 FROM dead_letters")


def test_an_event_never_grows_over_its_limit(allocating: Allocating) -> None:
    """Long names in a thousand zones: what does not fit goes with the next part, and part 1 names everybody all the same."""
    zones = [f"{'L' * 20}{n}-{'s' * 30}" for n in range(1000)]
    store, desk = warehouse(1, *{zone.partition("-")[0] for zone in zones}), agency(11, *zones)
    allocating.put(replace(store, name="é" * 200), replace(desk, name="é" * 200))
    envelope = Envelope()
    batch = envelope.batch(*zones)
    wide = [zone.model_copy(update={"small_zone_code": "ź" * 180}) for zone in batch.zones]
    batch = batch.model_copy(update={"zones": wide})
    assert len(batch.model_dump_json().encode()) < 1_000_000
    envelope.parts = [batch]
    allocating.begin()
    allocating.publish(batch, envelope.completed())
    allocating.until_state(envelope, allocated=1000)
    allocating.quiet()
    first, *others = allocating.said(2)
    assert first.count + first.held_count == 1000
    assert {held.reason for held in first.held} == {"PART_TOO_LARGE"}
    assert sum(other.count for other in others) == first.held_count
    assert all(not other.held for other in others)
    allocating.check(envelope)


@pytest.mark.parametrize("order", ["ab", "ba", "aabb"])
def test_parts_in_any_order_and_twice(allocating: Allocating, order: str) -> None:
    allocating.put(warehouse(1, "L1"), agency(11, "L1-s1", "L1-s2"))
    envelope = Envelope()
    first = envelope.batch("L1-s1", None, None, None)
    parts = {"a": first, "b": envelope.later(first, {"D1-1": "L1-s2", "D1-2": "L1-s1"}, ["D1-3"])}
    allocating.publish(envelope.completed(), parts[order[0]])
    allocating.begin(ALMONER_ALLOCATION_CONSUME_MAX_MESSAGES="1")
    if order[0] == "b":  # who else is in the batch is not known: nobody is told yet
        allocating.until_state(envelope, planned=2, held=1)
        allocating.quiet()
        assert allocating.said() == []
    allocating.publish(*(parts[name] for name in order[1:]))
    allocating.until_state(envelope, allocated=3, held=1)
    allocating.quiet()
    said = allocating.said()
    assert ids([*said[0].items, *said[0].held]) == ["D1-0", "D1-1", "D1-2", "D1-3"]  # part 1 names everybody
    assert [one.part for one in said] == list(range(1, len(said) + 1))
    allocating.check(envelope)
    assert not allocating.world.sql("allocation", "SELECT 1 FROM dead_letters")


def test_totals_are_exact_from_the_cut_to_the_allocation(allocating: Allocating, world: World) -> None:
    """Through resolution itself: what ingestion cut, the registry located, and allocation gave to places."""
    zones = [f"Z{n % 5}-{n}" for n in range(40)]
    people = [f"F-{n}" for n in range(1200)]
    located = {person: zones[n % 40] for n, person in enumerate(people) if n % 170}  # eight are not in the registry
    rows = [(person, zone.partition("-")[0], "", zone, "") for person, zone in located.items()]
    allocating.reference.put_people(rows)
    allocating.put(*(warehouse(n + 1, f"Z{n}") for n in range(5)), *(agency(100 + n, zone) for n, zone in enumerate(zones[1:])))
    registries = json.dumps({"default": {"url": allocating.reference.registry_url}})
    world.run("resolution", ALMONER_RESOLUTION_MAPPER_URL="http://127.0.0.1:1", ALMONER_RESOLUTION_REGISTRIES=registries)
    allocating.begin()
    envelope = Envelope()
    header = {**envelope.header.model_dump(), "target_registry": "farmers"}
    cuts = [cut(people[start : start + 600], number, **header) for number, start in enumerate((0, 600), 1)]
    for batch in cuts:
        world.publish("ingestion.batches.v1", batch, batch.header.batch_id, correlation_id=str(envelope.id))
    declared = sum(batch.total_minor for batch in cuts)
    done = ingestion.EnvelopeCompleted(header=envelope.header, batches=2, count=1200, total_minor=declared)
    allocating.publish(done)
    row = allocating.until_state(envelope, arrived=1200, planned=0, state="HELD")
    said = allocating.said(2)
    assert [one.count + one.held_count for one in said] == [600, 600]
    assert sum(one.total_minor + one.held_total_minor for one in said) == declared == row.arrived_minor
    held = {one.beneficiary_id: one.reason for event in said for one in event.held}
    assert held == {
        person: "NO_AGENCY" if person in located else "NOT_IN_REGISTRY"
        for person in people
        if located.get(person, zones[0]) == zones[0]
    }
    amounts = {item.disbursement_id: item.amount_minor for batch in cuts for item in batch.items}
    for event in said:
        assert all(amounts[one.disbursement_id] == one.amount_minor for one in (*event.items, *event.held))
        assert {event.zones[item.zone].small_zone_id for item in event.items} <= set(zones[1:])
        assert all(located[item.beneficiary_id] == event.zones[item.zone].small_zone_id for item in event.items)
        assert opened(event)[0].keys() == {item.disbursement_id for item in event.items}
    [told] = allocating.facts(allocation.EnvelopeAllocated, 1)
    assert (told.declared_minor, told.allocated_minor + told.held_minor) == (declared, declared)


def test_what_a_place_was_given_in_this_cycle_decides_between_equals(allocating: Allocating) -> None:
    """By all envelopes of the cycle, and by none of another."""
    allocating.put(warehouse(1, "L1"), warehouse(2, "L1"), agency(11, "L1-s1"), agency(12, "L1-s1"))
    allocating.begin()
    chosen = []
    for cycle in ("C1", "C1", "C2"):
        envelope = Envelope(cycle=cycle)
        allocating.publish(envelope.batch("L1-s1"), envelope.completed())
        allocating.until_state(envelope, allocated=1)
        allocating.check(envelope)
        [zone] = next(event.zones for event in allocating.said() if event.header.envelope_id == envelope.id)
        assert zone.warehouse is not None
        chosen.append((zone.warehouse.id, zone.warehouse.chosen_by, zone.agency.id, zone.agency.chosen_by))
    assert chosen == [("1", "ID", "11", "ID"), ("2", "LOAD", "12", "LOAD"), ("1", "ID", "11", "ID")]
