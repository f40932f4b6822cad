"""The command on goods and on cash that agencies hand out: zones, allocations, reassign, notices, and books in kilograms."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from libs.cli import sample
from libs.local.client import BankAdmin
from libs.local.reference import Reference
from tests.integration.cli.conftest import CURRENCY, SPONSOR, TOKEN, Almoner, places
from tests.integration.cli.test_books import expire
from tests.support.simulator import SimulatorProcess
from tests.support.world import World

PEOPLE = 80  # two in each zone
LETTER = """INSERT INTO dead_letters (topic, partition, message_offset, value, headers, timestamp_ms, code, message, deliveries)
            VALUES (%(topic)s, 0, 0, '', '[]', 0, '', '', 1)"""  # nobody can read whose it is
UNSERVED = "KE-4-10"  # the zone of the last agency


class County(Almoner):
    """The command, and the services of goods and agency cash with everything around them."""

    def __init__(self, world: World, folder: Path, reference: Reference) -> None:
        super().__init__(world, folder)
        self.reference = reference

    def submit(self, name: str, *options: str, cash: bool = False) -> None:
        path = self.folder / f"{name}.csv"
        (sample.write if cash else sample.write_goods)(path, PEOPLE)
        chosen = sample.agency_cash_options(name, CURRENCY) if cash else sample.goods_options(name)
        self.almoner("submit", str(path), *chosen, *options, "--yes")

    def until(self, name: str, **expected: int) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            row: dict[str, Any] = self.json("status", name)
            return row if all(row[key] == value for key, value in expected.items()) else None

        return self.world.until(reached, what=f"{name}: {expected}") or {}


@pytest.fixture
def county(world: World, tmp_path: Path) -> Iterator[County]:
    with (
        SimulatorProcess("bank", tmp_path / "bank") as bank_process,
        BankAdmin(bank_process.base_url) as bank,
        places(world, tmp_path) as reference,
    ):
        banks = {"FULL": {"adapter": "full", "url": f"{bank_process.base_url}/full"}}
        sponsors = {"default": {"bank": "FULL", "account": SPONSOR}}
        world.run("scheduler")
        ingestion = world.run("ingestion", ALMONER_INGESTION_STATEMENT_TOKENS=json.dumps({"full": TOKEN}))
        world.run("resolution", ALMONER_RESOLUTION_MAPPER_URL="http://127.0.0.1:1")
        world.run("funds", ALMONER_FUNDS_BANKS=json.dumps(banks), ALMONER_FUNDS_SPONSORS=json.dumps(sponsors))
        bank.put_account("full", SPONSOR, CURRENCY, 10**12)
        bank.set_statements("full", callback_url=f"{ingestion.http_url}/statements", token=TOKEN, push_after_ms=100)
        people = dict.fromkeys(person for _, person, _, _ in sample.people(PEOPLE))
        sample.settle(reference, list(people)[1:], without=1)  # the first one nobody knows
        for process in world.processes:
            world.until(process.ready, what=f"{process.name} being ready")
        found = County(world, tmp_path, reference)
        found.almoner("refresh", "--yes")
        yield found


def test_an_operator_sees_reassigns_mends_and_proves(county: County) -> None:
    world = county.world
    county.almoner("pause", "allocation", "announce", "--why", "to look at it first", "--yes")
    county.submit("RICE")
    row = county.until("RICE", planned=77, held=3)
    assert (row["stands"], row["allocated"]) == ("allocating", 0)

    zones = {one["small_zone_id"]: one for one in county.json("zones", "RICE")}
    assert len(zones) == 40
    assert (zones[UNSERVED]["reason"], zones[UNSERVED]["held"]) == ("NO_AGENCY", 2)
    first = zones["KE-1-01"]
    assert (first["agency_id"], first["agency_chosen_by"]) == ("1", "ONLY_ONE")
    other = "5" if first["warehouse_id"] == "1" else "1"  # two stores serve the first county
    why = ("--why", "the other one was flooded", "--yes")
    assert county.json("reassign", "RICE", "KE-1", other, "--kind", "warehouse", *why) == {"touched": 19}
    [asked] = world.sql("allocation", "SELECT detail FROM ops_audit WHERE action = 'almoner.operator.ReassignZone.v1'")
    assert json.loads(asked.detail)["expected"] == 19  # as many as the operator was shown
    refused = county.run("reassign", "RICE", "KE-2-01", "1", *why, code=1)  # serves another ward
    assert "KE-2-01" in refused.stderr or "serve" in refused.stderr
    again = {one["small_zone_id"]: one for one in county.json("zones", "RICE")}
    assert (again["KE-1-01"]["warehouse_id"], again["KE-1-01"]["warehouse_chosen_by"]) == (other, "OPERATOR")

    county.almoner("resume", "allocation", "announce", "--yes")
    county.until("RICE", allocated=77, held=3, planned=0)
    assert {one["reason"] for one in county.json("held", "RICE")} == {"NOT_IN_REGISTRY", "NO_AGENCY"}
    assert {one["waits_for"] for one in county.json("held")} == {"registry", "allocation"}
    served = {(one["kind"], one["id"]): one["people"] for one in county.json("allocations", "RICE")}
    assert (served["warehouse", other], served["agency", "1"]) == (19, 1)
    assert county.run("reassign", "RICE", "KE-1", "1", "--kind", "warehouse", *why, code=1).stderr  # they have been told

    assert "2 people held in 1 zone" in county.run("refresh", code=2).stderr  # nobody can be asked
    assert county.json("refresh", "--yes") == {"touched": 2, "zones": 1}

    [stranger] = [one["beneficiary_id"] for one in county.json("held") if one["reason"] == "NOT_IN_REGISTRY"]
    county.reference.put_people([(stranger, *sample.zone(stranger))])
    county.reference.put_agency(sample.agencies()[-1])
    told = county.almoner("retry", "RICE", "--held", "--why", "mended", "--yes")
    assert "1 person without an address or a zone" in told
    assert "2 people without a warehouse or an agency" in told
    county.until("RICE", allocated=80, held=0)

    def all_told() -> dict[str, int] | None:
        counts = county.json("notices", "RICE")["counts"]
        return {one["kind"]: one["notices"] for one in counts} if {one["state"] for one in counts} == {"SENT"} else None

    sent = world.until(lambda: (found := all_told()) and found.get("BENEFICIARY") == 80 and found, what="all notices")
    assert sent
    assert sent["WAREHOUSE"] >= 5
    notice = next(one for one in county.json("notices", "RICE", "--limit", "500")["notices"] if one["kind"] == "AGENCY")
    shown = county.almoner("notice", "show", notice["notice_id"])
    assert "kg" in shown
    assert "cooperative" in shown.lower()
    assert "<html" in county.almoner("notice", "show", notice["notice_id"], "--html").lower()
    assert "1 notice" in county.almoner("notice", "send", notice["notice_id"], "--why", "lost", "--yes")
    assert county.json("notice", "suppress", "AGENCY", "1", "--yes") == {"touched": 1}

    story = county.almoner("timeline", "RICE")
    for said in ("is to find zones", "has announced who serves them", "asks allocation for ReassignZone", "kg"):
        assert said in story, story
    for zone, times in (("KE-1", 1), ("KE-3", 0)):  # of two people: the zone of one was given to another place
        name = next(name for name, person, _, _ in sample.people(PEOPLE) if sample.zone(person)[0] == zone)
        steps = [step["step"] for step in county.json("timeline", name)["steps"]]
        assert steps.count("zone reassigned") == sum("ReassignZone (19" in step for step in steps) == times
    assert county.json("books", "RICE")["balanced"]


def test_whoever_is_served_in_a_divided_zone_is_counted_once(county: County) -> None:
    fifth = sample.agencies()[4]
    small = replace(fifth, serves=[(sample.PROGRAMME, "RICE-2026", "80")])  # kilograms, of 125 for two people
    county.reference.put_agency(small)
    county.reference.put_agency(replace(small, id=50, mnemonic="COOP-50", name="Turkana cooperative 50"))
    county.almoner("refresh", "--yes")
    known = "SELECT 1 FROM ops_places WHERE id = '50'"
    county.world.until(lambda: county.world.sql("allocation", known), what="the second agency of the zone")
    county.submit("RICE")
    total = county.until("RICE", allocated=77, held=3)["allocated_minor"]
    served = county.json("allocations", "RICE")
    for kind in ("warehouse", "agency"):
        places = [one for one in served if one["kind"] == kind]
        assert (sum(one["people"] for one in places), sum(one["minor"] for one in places)) == (77, total)
    agencies = {one["id"]: (one["name"], one["people"], one["zones"]) for one in served if one["kind"] == "agency"}
    assert agencies["5"] == (fifth.name, 1, 1)
    assert agencies["50"] == ("Turkana cooperative 50", 1, 1)


def test_watch_waits_until_people_are_told(county: County) -> None:
    sql = county.world.sql

    def last_line() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(county.almoner("watch", "RICE", "-o", "json").splitlines()[-1])
        return found

    county.almoner("pause", "notifications", "novu", "--yes")
    county.submit("RICE")
    county.until("RICE", allocated=77, held=3)
    with ThreadPoolExecutor() as threads:
        watching = threads.submit(last_line)
        with pytest.raises(TimeoutError):
            watching.result(timeout=3)
        county.almoner("resume", "notifications", "novu", "--yes")
        line = watching.result(timeout=60)
    assert (line["allocated"], line["told"], line["held"], line["at_rest"]) == (77, 77, 3, True)

    # What waits for an operator, it does not wait for: a provider in vain, and a message that is set aside.
    sql("notifications", "UPDATE work SET state = 'ERROR' WHERE kind = 'novu'")
    sql("notifications", "UPDATE notices SET state = 'PENDING' WHERE subject = 'DR26-11-0000004'")
    assert last_line()["told"] == 76
    sql("notifications", "DELETE FROM notices WHERE subject = 'DR26-11-0000004'")
    sql("notifications", LETTER, topic="allocation.batches.v1")
    assert last_line()["told"] == 76


def test_books_of_goods_name_what_is_not_as_it_was(county: County) -> None:
    county.submit("RICE")
    county.until("RICE", allocated=77, held=3)
    sql = county.world.sql
    assert county.json("books", "RICE")["balanced"]
    [row] = sql("allocation", "SELECT * FROM entitlements ORDER BY disbursement_id LIMIT 1 OFFSET 4")
    change = "UPDATE entitlements SET amount_minor = amount_minor + %(by)s WHERE disbursement_id = %(id)s"
    sql("allocation", change, by=1, id=row.disbursement_id)
    found = county.json("books", "RICE", code=1)["findings"]
    assert any(row.disbursement_id in one and "was submitted with" in one for one in found["database"])
    assert any("the counter" in one for one in found["database"])
    assert any(row.disbursement_id in one for one in found["events"])
    sql("allocation", change, by=-1, id=row.disbursement_id)
    assert county.json("books", "RICE")["balanced"]
    expire(county.world, "allocation.batches.v1")
    report = county.json("books", "RICE")
    assert report["balanced"]
    assert report["notes"] == ["77 facts of allocation.batches.v1 not compared with events (older than the topic keeps)"]

    # The batch never came: while it may still be on its way, that is no fault.
    for table in ("announcements", "entitlements", "groups", "arrivals", "batches"):
        sql("allocation", f"DELETE FROM {table}")
    again = ["envelope RICE: 80 people on the way to allocation: again when at rest"]
    for service, away, back in (
        ("resolution", "UPDATE batches SET resolved_at = NULL", "UPDATE batches SET resolved_at = received_at"),
        ("allocation", *(f"UPDATE consumed SET next_offset = next_offset {sign} 1" for sign in "-+")),
        ("allocation", LETTER, "UPDATE dead_letters SET state = 'DISCARDED'"),
    ):
        sql(service, away, topic="resolution.batches.v1")
        report = county.json("books", "RICE")
        assert (report["balanced"], report["at_rest"], report["notes"]) == (True, False, again)
        sql(service, back)
    found = county.json("books", "RICE", code=1)["findings"]
    assert f"envelope RICE: disbursement {row.disbursement_id} is nowhere" in found["database"]
    assert found["database"][-1] == "… and 60 more like the last"


def test_agency_cash_from_file_to_the_cooperative(county: County) -> None:
    county.submit("CASH", cash=True)
    county.until("CASH", confirmed=77, held=3)
    [payment] = county.world.sql("funds", "SELECT * FROM ops_agency_payments WHERE small_zone_id = 'KE-2-03'")
    assert (payment.state, payment.people, payment.agency_id) == ("CONFIRMED", 2, "13")
    assert {one["waits_for"] for one in county.json("held", "CASH")} == {"registry", "allocation"}
    books = county.json("books", "CASH")
    assert books["balanced"]
    [envelope] = books["envelopes"]
    assert (envelope["confirmed"] + envelope["held"], envelope["counts"]["held"]) == (envelope["blocked"], 3)
    first = next(one for one in sample.people(PEOPLE) if sample.zone(one[1])[2] == "KE-2-03")
    story = county.almoner("timeline", first[0])
    assert "finds payments on the bank's statement" in story
