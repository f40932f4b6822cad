"""`almoner` against real services: one envelope's life, told by its verbs."""

import json
from datetime import timedelta
from pathlib import Path

from libs.cli import sample
from libs.cli.watch import CONSUMERS
from libs.common.clock import utc_now
from libs.common.contracts.base import Mnemonic
from libs.common.contracts.ingestion import BenefitCode, Cycle, EnvelopeAmended, EnvelopeSubmitted
from libs.common.contracts.operator import AmendForPublisher, CancelForPublisher
from tests.integration.cli.conftest import CURRENCY, TOKEN, Almoner, Town


def test_an_envelope_from_submission_to_settlement(town: Town) -> None:
    ids = town.submit("E1", 50, strangers=2)

    lines = [json.loads(line) for line in town.almoner("watch", "E1", "-o", "json").splitlines()]
    assert lines[-1]["at_rest"]
    assert (lines[-1]["declared"], lines[-1]["confirmed"], lines[-1]["held"]) == (50, 48, 2)
    assert set(lines[-1]["lag"]) == set(CONSUMERS)

    status = town.json("status", "E1")
    assert (status["stands"], status["confirmed"], status["unknown"]) == ("needs you", 48, 0)
    assert "held" in town.almoner("status")

    held = town.json("held", "E1")
    assert [(row["disbursement_id"], row["reason"], row["waits_for"]) for row in held] == [
        (ids[48], "NOT_LINKED", "mapper"),
        (ids[49], "NOT_LINKED", "mapper"),
    ]
    assert "almoner retry --held" in town.almoner("held")

    story = [step["step"] for step in town.json("timeline", ids[49])["steps"]]
    # Resolution and the bank are asked at the same time.
    chosen = [step for step in story if step in ("batch cut", "held", "funds blocked")]
    assert (chosen[0], sorted(chosen[1:])) == ("batch cut", ["funds blocked", "held", "held"])
    envelope = town.almoner("timeline", "E1")
    assert "has sent payments to the bank: 48 payments" in envelope
    assert f"holds {ids[49]}: NOT_LINKED" in envelope
    batch = town.world.sql("ingestion", "SELECT batch_id FROM ops_batches")[0].batch_id
    assert "Batch 1" in town.almoner("timeline", str(batch))

    proof = town.json("books", "E1")
    assert proof["balanced"]
    assert proof["envelopes"][0]["from_events"]["confirmed"] == proof["envelopes"][0]["confirmed"]

    # Acting without a terminal needs --yes, and then only the two are touched.
    refused = town.run("retry", "E1", "--held", code=2)
    assert "2 held disbursements" in refused.stderr
    assert "--yes" in refused.stderr
    people = list(sample.people(50))[48:]
    town.mapper.put_people((person, sample.address(person)) for _, person, _, _ in people)
    assert "2 held disbursements would" in town.almoner("retry", "--held", "--code", "NOT_LINKED", "--dry-run")
    assert "Nobody is held whom that would help" in town.almoner("retry", "--held", "--code", "OTHER", "--dry-run")
    one = town.almoner("retry", "E1", "--held", "--disbursement", ids[49], "--why", "added", "--yes")
    assert "resolution: 1 person" in one
    town.world.until(lambda: town.json("status", "E1")["confirmed"] == 49, what="the one")
    assert [row["disbursement_id"] for row in town.json("held")] == [ids[48]]
    assert "resolution: 1 person" in town.almoner("retry", "--held", "--rate", "10", "--why", "added", "--yes")
    town.world.until(lambda: town.json("status", "E1")["stands"] == "settled", what="the settlement")
    assert town.json("held") == []
    audit = town.world.sql("resolution", "SELECT who, why, affected FROM ops_audit")
    assert [(row.why, row.affected) for row in audit] == [("added", 1), ("added", 1)]
    # Each story tells what was done to this one, and nothing of what was done to others.
    held_first, paid_at_once = (told(town, name) for name in (ids[48], ids[0]))
    assert [where for step, where in held_first if step in ("dispatched", "confirmed")] == ["instruction 3"] * 2
    assert [where for step, where in paid_at_once if step in ("dispatched", "confirmed")] == ["instruction 1"] * 2
    asked = "asks resolution for ResolveHeld (1 touched)"
    assert [sum(step == asked for step, _ in story) for story in (held_first, paid_at_once)] == [1, 0]
    paid = [row["disbursement_id"] for row in town.bank.payments("full")]
    assert sorted(paid) == sorted(ids)


def told(town: Town, disbursement_id: str) -> list[tuple[str, str]]:
    """The steps of one story, and of what each says the beginning."""
    return [(step["step"], step["detail"].split(",")[0]) for step in town.json("timeline", disbursement_id)["steps"]]


def test_cancelling_and_releasing(town: Town) -> None:
    town.almoner("pause", "funds", "dispatch", "--why", "test", "--yes")
    assert any("dispatch is paused" in line for line in town.json("status")["attention"])
    ids = town.submit("E1", 20, strangers=1)
    town.world.until(lambda: town.json("status", "E1")["blocked_minor"], what="the block")
    said = town.almoner("cancel", "E1", "--disbursement", ids[0], "--who", "ann", "--why", "moved away", "--yes")
    assert "1 disbursement cancelled" in said
    [audit] = town.world.sql("ingestion", "SELECT who, why, action, affected FROM ops_audit")
    assert audit == ("ann", "moved away", CancelForPublisher.TYPE, 1)
    town.almoner("resume", "funds", "dispatch", "--yes")
    town.world.until(lambda: town.json("status", "E1")["confirmed"] == 18, what="18 confirmations")
    too_late = town.run("cancel", "E1", "--disbursement", ids[1], "--yes", "-o", "json", code=1)
    assert "could not be cancelled" in too_late.stderr
    told_to_programs = json.loads(too_late.stdout)
    assert told_to_programs["touched"] == 0
    assert [one["disbursement_id"] for one in told_to_programs["not_cancelled"]] == [ids[1]]
    given_back = town.json("release", "E1", "--why", "programme ends", "--yes")
    assert (given_back["touched"], given_back["amount_minor"]) == (1, list(sample.people(20))[-1][3])
    assert "there is nothing to release" in town.almoner("release", "E1", "--yes")
    town.world.until(lambda: town.json("status", "E1")["stands"] == "settled", what="the settlement")
    released = ("released", "asks funds for ReleaseRequested (1 touched)")
    assert [step for step in told(town, ids[0]) if step[0] in released] == [("released", "release 1")]  # cancelled
    assert [step for step in told(town, ids[1]) if step[0] in released] == []  # paid
    assert [step for step in told(town, ids[-1]) if step[0] in released] == [
        ("asks funds for ReleaseRequested (1 touched)", "programme ends"),
        ("released", "release 2"),
    ]
    proof = town.json("books")
    assert proof["balanced"]
    amounts = {row[0]: row[3] for row in sample.people(20)}
    assert proof["envelopes"][0]["released"] == amounts[ids[0]] + amounts[ids[-1]]


def test_amending_what_is_declared(alone: Almoner) -> None:
    ingestion = alone.world.run("ingestion")
    alone.world.until(ingestion.ready, what="ingestion being ready")
    path, envelope = alone.folder / "run.csv", alone.folder / "envelope.json"
    sample.write(path, 3)
    today = utc_now().date()
    later = today + timedelta(days=20)
    more = {"number_of_disbursements": 5, "number_of_beneficiaries": 4, "total": "20000.00"}
    envelope.write_text(json.dumps({**more, "schedule_date": (today + timedelta(days=9)).isoformat()}))
    options = (*sample.envelope_options("E1", CURRENCY), "--envelope", str(envelope), "--yes")
    alone.almoner("submit", str(path), *options)

    assert "say what changes" in alone.run("amend", "E1", "--yes", code=2).stderr
    assert "--total: 1.005 has more decimals" in alone.run("amend", "E1", "--total", "1.005", "--yes", code=2).stderr
    assert "There is no terminal" in alone.run("amend", "E1", "--disbursements", "4", code=2).stderr
    too_few = alone.run("amend", "E1", "--disbursements", "2", "--people", "2", "--yes", code=1).stderr
    assert "rejected: INVALID_NO_OF_DISBURSEMENTS: 3 are there already" in too_few
    assert "nothing to amend" in alone.almoner("amend", "E1", "--total", "20000", "--people", "4", "--yes")
    assert alone.world.sql("ingestion", "SELECT revision, declared FROM ops_envelopes") == [(1, 5)]

    said = alone.almoner("amend", "E1", "--total", "19000", "--schedule-date", later.isoformat(), "--why", "w", "--yes")
    assert said.splitlines() == [
        "E1: 3 disbursements of 10,302.17 KES received; declared will be",
        "  total: 19,000.00 KES instead of 20,000.00 KES",
        f"  date: {later} instead of {today + timedelta(days=9)}",
        "E1 is amended",
    ]
    # There and back, and there again: what was said before is said anew.
    for total in ("18000", "19000", "18000"):
        assert "E1 is amended" in alone.almoner("amend", "E1", "--total", total, "--why", "w", "--yes")
    alone.almoner("amend", "E1", "--disbursements", "3", "--people", "3", "--total", "10302.17", "--yes")
    [row] = alone.world.sql("ingestion", "SELECT * FROM ops_envelopes")
    assert (row.state, row.revision, row.schedule_date, row.declared_minor) == ("COMPLETED", 6, later, 1_030_217)
    facts = alone.world.events("ingestion.envelopes.v1", EnvelopeAmended, at_least=5)
    assert len(alone.world.sql("ingestion", "SELECT 1 FROM ops_audit WHERE action = %(a)s", a=AmendForPublisher.TYPE)) == 6
    assert [(fact.data.declared_minor, fact.data.reason) for fact in facts] == [
        (1_900_000, "w"), (1_800_000, "w"), (1_900_000, "w"), (1_800_000, "w"), (1_030_217, "amended by an operator"),
    ]  # fmt: skip


def test_another_date_after_all_has_come(town: Town) -> None:
    today = utc_now().date()
    town.submit("E1", 3, options=("--schedule-date", (today + timedelta(days=9)).isoformat()))
    rows = "SELECT 1 FROM envelopes WHERE completed_minor IS NOT NULL"
    town.world.until(lambda: town.world.sql("funds", rows), what="all of it at funds")
    for day in (today + timedelta(days=20), today):
        said = town.almoner("amend", "E1", "--schedule-date", day.isoformat(), "--why", "w", "--yes")
        assert "E1 is amended" in said
        [row] = town.world.sql("ingestion", "SELECT schedule_date FROM ops_envelopes")
        assert row.schedule_date == day
    town.world.until(lambda: town.json("status", "E1")["confirmed"] == 3, what="3 confirmations")
    too_late = town.run("amend", "E1", "--schedule-date", (today + timedelta(days=9)).isoformat(), "--yes", code=1).stderr
    assert "rejected: DISBURSEMENT_ENVELOPE_DATE_PASSED" in too_late
    story = town.almoner("timeline", "E1")
    assert f"pays on another date: {today} was asked for" in story
    assert town.json("books", "E1")["balanced"]


def test_amending_goods(alone: Almoner) -> None:
    ingestion = alone.world.run("ingestion")
    alone.world.until(ingestion.ready, what="ingestion being ready")
    rice = EnvelopeSubmitted(
        envelope_id="RICE",
        programme=Mnemonic(id="FOOD"),
        benefit_code=BenefitCode(id="RICE", type="COMMODITY"),
        cycle=Cycle(id="2026-11"),
        number_of_beneficiaries=2,
        number_of_disbursements=2,
        total_minor=50_000,
        measurement_unit="kg",
        unit_scale=3,
        schedule_date=utc_now().date() + timedelta(days=9),
    )
    alone.world.publish("ingestion.inbox-envelopes.v1", rice, "RICE")
    alone.world.until(lambda: alone.world.sql("ingestion", "SELECT 1 FROM ops_envelopes"), what="the envelope")
    assert "--total: 1.0005 has more decimals than kg" in alone.run("amend", "RICE", "--total", "1.0005", code=2).stderr
    said = alone.almoner("amend", "RICE", "--total", "62.5", "--yes")
    assert "  total: 62.500 kg instead of 50.000 kg" in said
    assert alone.world.sql("ingestion", "SELECT declared_minor FROM ops_envelopes") == [(62_500,)]


def test_a_dry_run_and_a_faulty_file_send_nothing(alone: Almoner) -> None:
    path = alone.folder / "run.csv"
    sample.write(path, 5)
    options = sample.envelope_options("E1", CURRENCY)
    dry = alone.json("submit", str(path), *options, "--dry-run")
    assert (dry["disbursements"], dry["events"], dry["dry_run"]) == (5, 2, True)
    path.write_text(path.read_text() + "D6,P6,free,,\n")
    report = alone.json("submit", str(path), *options, "--yes", code=1)
    assert report["faults"] == ["line 7, amount: '' is not a positive decimal number as text, such as \"100.25\""]
    assert alone.json("status")["envelopes"] == []
    assert alone.world.messages("ingestion.inbox-envelopes.v1") == []


def test_what_ingestion_rejects_is_shown_and_ends_with_one(town: Town) -> None:
    town.submit("E1", 5)
    other = town.folder / "other.csv"
    sample.write(other, 6)
    done = town.run("submit", str(other), *sample.envelope_options("E1", CURRENCY), "--yes", code=1)
    assert "rejected" in done.stdout
    again = town.almoner("submit", str(town.folder / "E1.csv"), *sample.envelope_options("E1", CURRENCY), "--yes")
    assert "2 of 2 events accepted" in again


def test_a_statement_from_a_file(town: Town) -> None:
    town.bank.set_statements("full", push_after_ms=50)  # nobody is called: an operator carries it over
    town.submit("E1", 3)
    town.world.until(lambda: town.json("status", "E1")["outstanding"] == 3, what="three dispatched")
    [statement] = town.world.until(lambda: [one for one in town.bank.statements("full") if one["lines"] == 3])
    path = town.folder / "statement.sta"
    path.write_bytes(town.bank.statement_content("full", statement["id"]))
    url = town.world.processes[1].http_url + "/statements"
    refused = town.run("statement", "submit", str(path), "--url", url, "--token", "wrong", "--yes", code=1)
    assert "token" in refused.stderr
    assert "Hand in statement.sta" in town.run("statement", "submit", str(path), "--url", url, "--token", TOKEN, code=2).stderr
    assert town.json("audit", "ingestion") == []
    door, carried = ("--url", url, "--token", TOKEN), ("--why", "carried over", "--who", "ann", "--yes")
    assert town.almoner("statement", "submit", str(path), *door, *carried) == "statement.sta taken\n"
    [row] = town.json("audit", "ingestion")
    assert (row["who"], row["why"], row["affected"]) == ("ann", "carried over", 1)
    assert "statement.sta" in row["detail"]
    town.world.until(lambda: town.json("status", "E1")["confirmed"] == 3, what="three confirmed")


def test_where_nothing_answers(alone: Almoner, tmp_path: Path) -> None:
    away = {"ALMONER_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    assert "is the broker up?" in alone.run("watch", code=3, **away).stderr
    nobody = {"DATABASE_URL": f"postgresql+psycopg2://postgres@/almoner?host={tmp_path}"}
    assert "the database does not answer" in alone.run("status", code=3, **nobody).stderr
    assert "no envelope is called 'E9'" in alone.run("status", "E9", code=1).stderr
