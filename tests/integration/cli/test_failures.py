"""What failed, by cause, and trying it again: by id, by code, in portions; and a bank that is asked for its statement."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from libs.common.contracts.scheduler import Tick
from tests.integration.cli.conftest import CURRENCY, PLAIN_NAME, TOKEN, Town

HASTY = {
    "ALMONER_RESOLUTION_RESOLVE_MAX_ATTEMPTS": "2",
    "ALMONER_RESOLUTION_RESOLVE_BACKOFF_FIRST_SECONDS": "0.05",
    "ALMONER_FUNDS_ORDER_MAX_ATTEMPTS": "1",
}


def retries(town: Town) -> list[tuple[list[str], int]]:
    rows = town.world.sql("resolution", "SELECT detail, affected FROM ops_audit WHERE action LIKE '%%RetryWork%%' ORDER BY id")
    return [(json.loads(row.detail)["subjects"], row.affected) for row in rows]


@pytest.mark.parametrize("limits", [HASTY])
def test_failures_are_grouped_and_tried_again_by_id_by_code_and_in_portions(town: Town) -> None:
    town.mapper.add_fault("down")
    for name in ("E1", "E2", "E3", "E4"):
        town.submit(name, 2)
    in_error = "SELECT subject FROM ops_work WHERE state = 'ERROR' ORDER BY subject"
    subjects = [row.subject for row in town.world.until(lambda: _all(town, in_error, 4), what="four in ERROR")]

    [failure] = town.json("failures")
    assert (failure["service"], failure["kind"], failure["state"], failure["count"]) == ("resolution", "resolve", "ERROR", 4)
    assert failure["subject"] in subjects
    assert failure["message"]
    code = failure["code"]
    assert failure["command"] == f"almoner retry --kind resolve --code {code}"
    assert failure["command"] in town.almoner("failures")

    # What is asked for must be there, and a dry run sends nothing.
    assert "nothing in ERROR is called 99" in town.run("retry", "99", "--yes", code=1).stderr
    assert "No such work is in ERROR." in town.almoner("retry", "--code", "OTHER", "--yes")
    assert "4 calls would be tried again" in town.almoner("retry", "--kind", "resolve", "--code", code, "--dry-run")
    assert "1 call would be tried again" in town.almoner("retry", subjects[0], "--dry-run")
    assert "add --yes" in town.run("retry", subjects[0], code=2).stderr
    assert retries(town) == []

    town.mapper.delete_faults()
    assert "1 × resolve tried again" in town.almoner("retry", subjects[0], "--yes")
    portions = town.run("retry", "--code", code, "--rate", "2", "--why", "it is back", "--yes")
    assert "3 × resolve tried again" in portions.stdout
    assert "2 of 3" in portions.stderr
    assert retries(town) == [([subjects[0]], 1), (subjects[1:3], 2), (subjects[3:], 1)]
    town.world.until(lambda: not town.world.sql("resolution", "SELECT 1 FROM ops_work WHERE state <> 'DONE'"))
    assert town.json("failures") == []
    assert "--held takes one envelope" in town.run("retry", "E1", "--held", "--kind", "resolve", code=2).stderr


def _all(town: Town, query: str, count: int) -> list[Any]:
    rows = town.world.sql("resolution", query)
    return rows if len(rows) == count else []


@pytest.mark.parametrize("limits", [HASTY])
def test_a_bank_is_asked_for_its_statement_by_command_and_by_tick(town: Town) -> None:
    door = f"{town.world.processes[1].http_url}/statements"
    town.bank.set_statements("full", callback_url=door, token=TOKEN)  # only on request
    town.submit("E1", 3)
    town.world.until(lambda: town.json("status", "E1")["outstanding"] == 3, what="three dispatched")
    question = "Ask the bank for a statement of default (payments on none yet, of all sponsors: 3)?"
    assert question in town.run("statement", "request", "default", code=2).stderr
    assert "1 account: the bank is asked" in town.almoner("statement", "request", "default", "--yes")
    town.world.until(lambda: town.json("status", "E1")["confirmed"] == 3, what="three confirmed")
    assert "no sponsor is called 'nobody'" in town.run("statement", "request", "nobody", "--yes", code=1).stderr

    town.submit("E2", 2)
    town.world.until(lambda: town.json("status", "E2")["outstanding"] == 2, what="two dispatched")
    # The scheduler's own tick, by the name that an operator gives it: no event of ours which only looks like one.
    town.world.processes[0].stop()
    scheduler = town.world.run("scheduler", ALMONER_SCHEDULER_JOBS=json.dumps({"statements-due": {"interval_seconds": 1}}))
    town.world.until(lambda: town.json("status", "E2")["confirmed"] == 2, what="two confirmed")
    assert scheduler.stop() == 0
    ticks = [one.id for one in town.world.events("scheduler.ticks.v1", Tick) if one.data.job == "statements-due"]
    asked = {(f"{account}@{tick}", "DONE") for tick in ticks for account in ("default", PLAIN_NAME)}
    work = "SELECT subject, state FROM ops_work WHERE kind = 'order' AND subject LIKE ANY(%(ticks)s)"
    town.world.until(
        lambda: {tuple(row) for row in town.world.sql("funds", work, ticks=[f"%{tick}" for tick in ticks])} == asked != set(),
        what="both accounts being asked for",
    )

    # A bank that refuses is a failure which somebody sees.
    town.bank.add_fault("refuse", path="/generate_account_statement")
    town.almoner("statement", "request", "default", "--yes")
    [failure] = town.world.until(lambda: town.json("failures"), what="the refusal")
    assert (failure["service"], failure["kind"], failure["state"]) == ("funds", "order", "ERROR")
    assert "SPONSOR" not in town.almoner("failures")  # no account number


@pytest.mark.parametrize("limits", [{"ALMONER_FUNDS_PAY_FUTURE_SCHEDULES": "true"}])
def test_a_schedule_date_to_come_is_paid_where_that_is_wanted(town: Town) -> None:
    to_come = datetime.now(UTC).date() + timedelta(days=30)
    ids = town.submit("E1", 3, options=("--schedule-date", to_come.isoformat()))
    town.world.until(lambda: town.json("status", "E1")["stands"] == "settled", what="the settlement")
    assert sorted(row["disbursement_id"] for row in town.bank.payments("full")) == sorted(ids)
    assert CURRENCY in town.almoner("status", "E1")


@pytest.mark.parametrize("limits", [HASTY])
def test_what_is_on_no_statement_for_too_long_is_ended_by_evidence(town: Town) -> None:
    town.bank.set_statements("full")  # only on request
    [paid, *_] = town.submit("E1", 3)
    town.world.until(lambda: town.json("status", "E1")["outstanding"] == 3, what="three dispatched")
    evidence = ("--did-not-happen", "--evidence", "the bank's letter of Monday", "--yes")
    assert "no unknown dispatch is called 1" in town.run("settle-unknown", "dispatch", "1", *evidence, code=1).stderr
    town.world.sql("funds", "UPDATE instructions SET dispatched_at = dispatched_at - interval '8 days'")
    town.world.publish("scheduler.ticks.v1", Tick(job="funds-due", due_at=datetime.now(UTC)), "funds-due")
    [listed] = town.world.until(lambda: town.json("exceptions"), what="the exception")
    assert listed["reason"] == "NO_STATEMENT_LINE"
    assert (
        "no unknown dispatch is called 1"
        in town.run("settle-unknown", "dispatch", "1", "--happened", "R-1", "--evidence", "x", "--yes", code=1).stderr
    )
    assert "dispatch 1 is settled: it did not happen" in town.almoner("settle-unknown", "dispatch", "1", *evidence)
    held = {row["disbursement_id"]: row["reason"] for row in town.json("held")}
    assert (len(held), held[paid]) == (3, "BANK_DID_NOT_HAPPEN")
    town.world.until(lambda: town.json("exceptions") == [], what="nothing is open")
