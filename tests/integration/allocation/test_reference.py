"""Where places come from: PBMS' own database, or compacted topics; what is wrong there, and what changes later."""

import json
import os
from uuid import uuid4

import psycopg2
import pytest
import sqlalchemy

from libs.common.consumer import Fold, Limits
from libs.common.contracts import operator
from libs.common.contracts.reference import AgencyListed, ReferenceRejected, WarehouseListed
from libs.common.db import Database
from libs.common.envelope import Cause
from libs.common.workqueue import Claim, Done, Settled
from libs.local.reference import Place
from services.allocation.adapters.pbms import PbmsDatabase
from services.allocation.store import REFERENCE_LOCK
from services.allocation.wiring import wire
from tests.integration.allocation.goods import SERVES, Allocating, Envelope, agency, opened, settings_of, warehouse
from tests.support.world import World

AGENCIES, WAREHOUSES = "reference.agencies.v1", "reference.warehouses.v1"
ACCOUNT = {"account_number": "4711", "account_type": "", "bank_code": "ABC", "branch_code": ""}


def pbms(allocating: Allocating, sql: str) -> None:
    admin = sqlalchemy.make_url(allocating.world.database_url).set(
        database=f"{allocating.world.name}pbms", drivername="postgresql"
    )
    connection = psycopg2.connect(admin.render_as_string(hide_password=False))
    connection.autocommit = True
    try:
        connection.cursor().execute(sql)
    finally:
        connection.close()


def listed(world: World, place_id: str, zones: list[str], **more: object) -> None:
    serves = [{"programme_id": programme, "benefit_code_id": code} for programme, code, _ in SERVES]
    fields = {"id": place_id, "name": f"Place {place_id}", "serves": serves, **more}
    if place_id.startswith("W"):
        world.publish(WAREHOUSES, WarehouseListed.model_validate({**fields, "large_zone_ids": zones}), place_id)
    else:
        world.publish(AGENCIES, AgencyListed.model_validate({**fields, "small_zone_ids": zones}), place_id)


def test_pbms_as_it_is(allocating: Allocating, world: World) -> None:
    """Numbers for ids, no capacity column, no mnemonic; an account of the benefit's own goes before the agency's."""
    allocating.put(agency(11, "7", account="#ACCOUNT#22#BANK#OWN#"), agency(12, "8"), agency(13, "9"))
    pbms(
        allocating,
        "UPDATE g2p_agency SET additional_info = '#ACCOUNT#11#BANK#ANY#'; UPDATE g2p_agency SET agency_mnemonic = NULL",
    )
    for kind in ("agency", "warehouse"):
        pbms(allocating, f"ALTER TABLE g2p_{kind}_program_benefit_codes DROP COLUMN capacity")
    pbms(allocating, "UPDATE g2p_agency SET name = repeat('x', 201) WHERE id = 13")  # can't be used: the others can
    envelope = Envelope("CASH_PHYSICAL")
    process = allocating.run()
    world.until(lambda: len(world.sql("allocation", "SELECT 1 FROM ops_places")) == 2, what="PBMS being read")
    allocating.publish(envelope.batch("7", "8", "9"), envelope.completed())
    [event] = allocating.said(1)
    places = opened(event)[1]
    assert {name: place["account"]["account_number"] for name, place in places.items()} == {
        "agency/11": "22",
        "agency/12": "11",
    }
    assert [held.reason for held in event.held] == ["NO_AGENCY"]
    [row] = world.sql("allocation", "SELECT * FROM ops_reference WHERE source = 'pbms'")
    assert row.faulty == 1
    assert process.logged("a place of PBMS can't be used")[0]["faults"] == ["/name"]

    # Read again and nothing changed: nothing is written. Then one goes, and comes back as somebody else.
    [before] = world.sql("allocation", "SELECT version, taken_at FROM reference WHERE source = 'pbms'")
    allocating.tick()
    world.until(lambda: world.sql("allocation", "SELECT 1 FROM reference WHERE taken_at > %(at)s", at=before.taken_at))
    assert world.sql("allocation", "SELECT version FROM reference WHERE source = 'pbms'")[0].version == before.version
    pbms(allocating, "DELETE FROM g2p_agency WHERE id = 12")
    allocating.tick()
    world.until(lambda: len(world.sql("allocation", "SELECT 1 FROM ops_places WHERE NOT 'x' = name")) == 1)
    second = Envelope("CASH_PHYSICAL")
    allocating.publish(second.batch("8"), second.completed())
    allocating.until_state(second, held=1)
    pbms(allocating, "INSERT INTO g2p_agency (id, name) VALUES (12, 'Opened anew')")
    allocating.refresh()
    world.until(lambda: len(world.sql("allocation", "SELECT 1 FROM ops_places WHERE NOT 'x' = name")) == 2)
    allocating.until_state(second, held=1)  # it is back, and has no account that cash could be paid into
    pbms(allocating, "UPDATE g2p_agency SET additional_info = '#ACCOUNT#33#' WHERE id = 12")
    allocating.refresh()
    allocating.until_state(second, allocated=1)


def test_pbms_that_is_not_there_stops_nothing_and_is_read_when_it_is(allocating: Allocating, world: World) -> None:
    allocating.put(warehouse(1, "L1"), agency(11, "L1-s1"))
    pbms(allocating, "ALTER TABLE g2p_agency RENAME TO moved")
    envelope = Envelope()
    allocating.run(REFERENCE_MAX_ATTEMPTS="2")
    allocating.publish(envelope.batch("L1-s1"), envelope.completed())
    allocating.until_state(envelope, held=1)
    [work] = world.until(lambda: world.sql("allocation", "SELECT code, message FROM ops_work WHERE state = 'ERROR'"))
    assert work.code == "PBMS_REFUSED"
    assert "g2p_agency" in work.message
    allocating.refresh()
    world.until(lambda: len(world.sql("allocation", "SELECT 1 FROM ops_work WHERE state = 'ERROR'")) == 2)
    pbms(allocating, "ALTER TABLE moved RENAME TO g2p_agency")
    allocating.tick()  # starts it anew
    allocating.until_state(envelope, allocated=1)
    assert not world.sql("allocation", "SELECT 1 FROM ops_work WHERE state = 'ERROR'")
    assert "moved" not in str(world.sql("allocation", "SELECT * FROM ops_work"))
    url = sqlalchemy.make_url(allocating.reference.pbms_url).set(drivername="postgresql")
    with psycopg2.connect(url.render_as_string(hide_password=False)).cursor() as cursor:
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute("DELETE FROM g2p_agency")
        cursor.connection.close()


def test_an_older_reading_that_ends_later_changes_nothing(allocating: Allocating, world: World) -> None:
    """Two replicas read; the one that began first is the last to store what it saw."""
    allocating.put(warehouse(1, "L1"), agency(11, "L1-s1"))
    settings = settings_of(allocating)
    older = PbmsDatabase(settings.pbms_url.get_secret_value()).read(20)
    allocating.put(agency(11, "L1-s2"), agency(12, "L1-s1"))
    allocating.begin()
    stored = "SELECT p.*, r.taken_at FROM places p JOIN reference r USING (source) ORDER BY p.kind, p.id"
    before = world.sql("allocation", stored)
    assert [row.id for row in before] == ["11", "12", "1"]
    database = Database(world.database_url, "allocation")
    try:
        [reference] = wire(settings, database).callouts
        claim = Claim("reference", "late", REFERENCE_LOCK, uuid4(), uuid4(), 1, False, 0.0, 20.0, Cause("late"))
        with database.transaction() as tx:
            tx.lock_exclusive([claim.lock_key])
            reference.settle(tx, Settled(claim, Done(older), "DONE"))
    finally:
        database.close()
    assert world.sql("allocation", stored) == before
    envelope = Envelope()
    allocating.publish(envelope.batch("L1-s1", "L1-s2"), envelope.completed())
    allocating.until_state(envelope, allocated=2)
    assert {name: places[1] for name, places in allocating.served(envelope).items()} == {"D1-0": "12", "D1-1": "11"}


def test_topics_are_the_source(allocating: Allocating, world: World) -> None:
    """The last message of a key counts, an empty one removes; what comes again changes nothing; contacts are sealed."""
    listed(world, "W1", ["L1"])
    listed(world, "A1", ["L1-s9"])
    listed(world, "A1", ["L1-s1"], account=ACCOUNT, admin_email="desk@example.org")
    listed(world, "A2", ["L1-s2"])
    world.publish_raw(AGENCIES, b"A2", b"")
    envelope = Envelope()
    process = allocating.run(REFERENCE_SOURCE="topic", PBMS_URL="")
    allocating.publish(envelope.batch("L1-s1", "L1-s2", "L1-s9"), envelope.completed())
    allocating.until_state(envelope, allocated=1, held=2)
    [event] = allocating.said(1)
    place = opened(event)[1]["agency/A1"]
    assert (place["account"], place["admin_email"]) == (ACCOUNT, "desk@example.org")
    listed(world, "A2", ["L1-s2", "L1-s9"])
    allocating.until_state(envelope, allocated=3, held=0)
    assert allocating.command(operator.RefreshReference(who="ops", why="nothing to read, but try again")).affected == 1
    places = world.sql("allocation", "SELECT id, zones, source FROM ops_places ORDER BY kind, id")
    assert [tuple(row) for row in places] == [
        ("A1", ["L1-s1"], "topic"),
        ("A2", ["L1-s2", "L1-s9"], "topic"),
        ("W1", ["L1"], "topic"),
    ]

    # Everything is delivered once more: what was said before does not bring back what is no more.
    world.publish_raw(AGENCIES, b"A1", b"")
    world.until(lambda: world.sql("allocation", "SELECT 1 FROM places WHERE id = 'A1' AND gone"))
    assert process.stop() == 0
    before = world.sql("allocation", "SELECT * FROM places ORDER BY id")
    database = Database(world.database_url, "allocation")
    try:
        fold = Fold(database, wire(settings_of(allocating, reference_source="topic"), database).routes, Limits())
        messages = world.messages(AGENCIES) + world.messages(WAREHOUSES)
        for some in (messages, messages[:1]):
            fold.fold(some)
    finally:
        database.close()
    assert world.sql("allocation", "SELECT * FROM places ORDER BY id") == before
    allocating.run(REFERENCE_SOURCE="topic", PBMS_URL="")
    allocating.quiet()
    allocating.check(envelope)
    assert "desk@" not in process.log_text()


@pytest.mark.parametrize("source", ["pbms", "topic"])
def test_an_account_that_no_bank_can_be_told_is_none(allocating: Allocating, world: World, source: str) -> None:
    """Its zone is held as if there were none, and served once it is right. Goods need no account."""
    numbers = {1: "1" * 35, 2: "47{11", 3: "4711"}

    def list_all() -> None:
        for n, number in numbers.items():
            if source == "pbms":
                allocating.put(agency(n, f"L1-s{n}", account=f"#ACCOUNT#{number}#BANK#ABC#"))
            else:
                listed(world, str(n), [f"L1-s{n}"], account={**ACCOUNT, "account_number": number})

    list_all()
    allocating.put(warehouse(9, "L1"))
    listed(world, "W9", ["L1"])
    allocating.run(REFERENCE_SOURCE=source)
    cash, goods = Envelope("CASH_PHYSICAL"), Envelope()
    world.until(lambda: len(world.sql("allocation", "SELECT 1 FROM places WHERE source = %(s)s", s=source)) == 4)
    for envelope in (cash, goods):
        allocating.publish(envelope.batch("L1-s1", "L1-s2", "L1-s3"), envelope.completed())
    allocating.until_state(goods, allocated=3)
    allocating.until_state(cash, allocated=1, held=2)
    held = world.sql("allocation", "SELECT reason, message FROM ops_held ORDER BY disbursement_id")
    assert {row.reason for row in held} == {"NO_AGENCY"}
    assert held[0].message == "no agency with an account that a bank can be told serves small zone L1-s1"
    numbers |= {1: "1" * 34, 2: "47(11"}
    list_all()
    allocating.tick()
    allocating.until_state(cash, allocated=3, held=0)
    allocating.quiet()
    assert {place["account"]["account_number"] for one in allocating.said(3) for place in opened(one)[1].values()
            if one.header.envelope_id == cash.id} == set(numbers.values())  # fmt: skip
    allocating.check(cash, goods)


def test_hostile_messages_are_answered_and_stop_nothing(allocating: Allocating, world: World) -> None:
    listed(world, "W1", ["L1"])
    good = AgencyListed.model_validate({"id": "A1", "serves": [{"programme_id": "RICE", "benefit_code_id": "SEED-01"}],
                                        "small_zone_ids": ["L1-s1"]})  # fmt: skip
    headers = {"ce_specversion": "1.0", "ce_id": "1", "ce_source": "test", "ce_type": AgencyListed.TYPE}
    text = good.model_dump_json().encode()
    hostile: list[tuple[bytes, bytes, dict[str, str]]] = [
        (b"A1", b"{", headers),
        (b"A1", os.urandom(500), headers),
        (b"A1", b"[" * 200_000, headers),
        (b"A1", text, {}),
        (b"A1", text, headers | {"ce_type": "almoner.reference.PersonLocated.v1"}),
        (b"A1", text, {"content-type": "application/cloudevents+json"}),
        (b"\xff\x00", text, headers),
        (b"x" * 5000, text, headers),
        (b"A2", text, headers),
        (b"A1", text.replace(b'"L1-s1"', b'"\\u0000"'), headers),
        (b"A1", text.replace(b'"L1-s1"', b'"\\ud800"'), headers),
        (b"A1", json.dumps({**json.loads(text), "serves": [{"programme_id": "P", "benefit_code_id": "B", "capacity_minor": 2**64}]}
                           ).encode(), headers),
        (b"A1", json.dumps({**json.loads(text), "small_zone_ids": ["z"] * 10_001}).encode(), headers),
        (b"A1", text + b" " * 2_000_000, headers),
    ]  # fmt: skip
    world.publish_many(AGENCIES, hostile)
    listed(world, "A3", ["L1-s1"])
    envelope = Envelope()
    allocating.publish(envelope.batch("L1-s1"), envelope.completed())
    process = allocating.run(REFERENCE_SOURCE="topic", PBMS_URL="")
    allocating.until_state(envelope, allocated=1)
    events = world.events("allocation.results.v1", ReferenceRejected, at_least=len(hostile))
    assert len({event.id for event in events}) == len(hostile)
    assert {event.data.errors[0].code for event in events} >= {
        "INVALID_DATA",
        "INVALID_CLOUDEVENT",
        "INVALID_KEY",
        "KEY_DIFFERS",
        "UNKNOWN_TYPE",
        "EVENT_TOO_LARGE",
    }
    assert not world.sql("allocation", "SELECT 1 FROM dead_letters")
    assert process.ready()
    assert allocating.served(envelope)["D1-0"][1] == "A3"


def test_a_place_in_both_sources(allocating: Allocating, world: World) -> None:
    """What the topics say is kept while PBMS is the source, and counts from the moment at which it is."""
    listed(world, "W1", ["L1"])
    listed(world, "A1", ["L1-s1"])
    allocating.put(Place(1, "W-1", "Another", ["L2"], SERVES))
    envelope = Envelope()
    allocating.publish(envelope.batch("L1-s1"), envelope.completed())
    first = allocating.run()
    allocating.until_state(envelope, held=1)
    world.until(lambda: len(world.sql("allocation", "SELECT 1 FROM ops_places")) == 3)
    assert allocating.said(1)[0].count == 0
    assert first.stop() == 0
    allocating.run(REFERENCE_SOURCE="topic")
    assert allocating.command(operator.RefreshReference(who="ops", why="the source is another now")).affected == 1
    allocating.until_state(envelope, allocated=1)
