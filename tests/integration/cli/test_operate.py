"""The verbs of whoever keeps the services going, against real services: dead letters, lag, ticks by hand, the audit."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from threading import Timer
from types import SimpleNamespace

import pytest

from libs.cli import send
from libs.cli.context import Refused, Views
from libs.common.contracts.ingestion import BatchCut
from libs.common.contracts.operator import Command, PauseStage
from libs.common.contracts.scheduler import Tick
from libs.local.supervisor import ROOT
from tests.integration.cli.conftest import Almoner
from tests.support.process import Process
from tests.support.world import World

BATCHES, COMMANDS, TICKS = "ingestion.batches.v1", "resolution.commands.v1", "scheduler.ticks.v1"
HEADERS = {"ce_specversion": "1.0", "ce_source": "test", "ce_type": BatchCut.TYPE, "content-type": "application/json"}


@pytest.fixture
def resolution(world: World) -> Process:
    process = world.run("resolution", ALMONER_RESOLUTION_MAPPER_URL="http://127.0.0.1:9")
    world.run("scheduler")
    for one in world.processes:
        world.until(one.ready)
    world.until(lambda: world.sql("scheduler", "SELECT 1 FROM jobs"))
    return process


def publish_broken(world: World, *ids: str) -> None:
    for name in ids:
        world.publish_raw(BATCHES, name.encode(), b'{"broken": "' + name.encode() + b'"}', {**HEADERS, "ce_id": name})


def letters_of(world: World) -> set[int]:
    """The open ones."""
    return {row.id for row in world.sql("resolution", "SELECT id FROM ops_dead_letters WHERE state = 'OPEN'")}


def test_dead_letters_are_listed_read_published_again_and_given_up(alone: Almoner, resolution: Process) -> None:
    world = alone.world
    assert "No dead letters are open." in alone.almoner("dlq", "list")
    publish_broken(world, "one", "two")
    world.until(lambda: len(letters_of(world)) == 2)
    letters = {row["id"]: row for row in alone.json("dlq", "list", "resolution")}
    assert {(row["service"], row["code"], row["topic"]) for row in letters.values()} == {
        ("resolution", "INVALID_DATA", BATCHES)
    }
    first, second = sorted(letters)
    shown = alone.almoner("dlq", "show", "resolution", str(first))
    assert "INVALID_DATA" in shown
    assert '"broken"' in shown
    assert alone.json("dlq", "show", "resolution", str(first))["headers"]["ce_type"] == BatchCut.TYPE

    refused = alone.run("dlq", "redrive", "resolution", str(first), code=2)
    assert "Publish 1 dead letter again?" in refused.stderr
    assert "1 dead letter published again" in alone.almoner("dlq", "redrive", "resolution", str(first), "--yes")
    # It is as broken as before: handled, and set aside anew.
    world.until(lambda: letters_of(world) - {first, second})
    assert {row["state"] for row in alone.json("dlq", "list", "--all") if row["id"] == first} == {"HANDLED"}

    given_up = alone.almoner("dlq", "discard", "resolution", str(second), "--why", "a test", "--yes")
    assert "1 dead letter given up" in given_up
    assert second not in letters_of(world)
    assert first not in {row["id"] for row in alone.json("dlq", "list")}
    audit = alone.json("audit", "resolution")
    assert [(row["action"].split(".")[-2], row["why"], row["affected"]) for row in audit] == [
        ("DiscardDeadLetters", "a test", 1),
        ("RedriveDeadLetters", "redriven by an operator", 1),
    ]


def test_dead_letters_are_published_again_by_code_in_portions_and_just_those_that_were_counted(
    alone: Almoner, resolution: Process
) -> None:
    world = alone.world
    publish_broken(world, "one", "two", "three")
    world.publish_raw(BATCHES, b"four", b"{}", HEADERS)  # without an id
    world.until(lambda: len(letters_of(world)) == 4)
    alone.almoner("pause", "resolution", "consume", "--yes")  # or they would be set aside anew
    world.until(lambda: resolution.logged("consumption paused"))  # the gauge may have it from the table, before that
    by_code: dict[str, list[int]] = {}
    for row in alone.json("dlq", "list"):
        by_code.setdefault(row["code"], []).append(row["id"])
    broken, without_id = by_code["INVALID_DATA"], by_code["INVALID_CLOUDEVENT"]

    def redriven() -> list[list[int]]:
        query = "SELECT detail FROM ops_audit WHERE action LIKE '%%RedriveDeadLetters%%' ORDER BY id"
        return [json.loads(row.detail)["ids"] for row in world.sql("resolution", query)]

    redrive = ("dlq", "redrive", "resolution")
    dry = alone.almoner(*redrive, "--dry-run").splitlines()
    assert dry == [
        "  3 × INVALID_DATA",
        "  1 × INVALID_CLOUDEVENT",
        "4 dead letters would be published again; nothing was sent.",
    ]
    assert alone.json(*redrive, "--code", "INVALID_CLOUDEVENT", "--dry-run")["found"] == 1
    assert "no such dead letters" in alone.almoner(*redrive, "--code", "OTHER", "--yes")
    assert redriven() == []

    portions = alone.run(*redrive, "--code", "INVALID_DATA", "--rate", "2", "--yes")
    assert "3 dead letters published again" in portions.stdout
    assert "2 of 3" in portions.stderr
    assert "no such dead letters" in alone.almoner(*redrive, str(broken[0]), "--yes")  # it is on its way
    assert "1 dead letter published again" in alone.almoner(*redrive, "--yes")
    assert redriven() == [broken[:2], broken[2:], without_id]


def test_a_command_that_is_set_aside_says_with_which_fault(
    alone: Almoner, resolution: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of a later release than the service's would be; what was set aside before it, with another, is no answer."""
    world = alone.world
    world.publish_raw(COMMANDS, b"one", b"{", {**HEADERS, "ce_type": PauseStage.TYPE, "ce_id": "one"})
    world.until(lambda: letters_of(world))
    for name, value in world.env.items():
        monkeypatch.setenv(name, value)

    class Later(Command):
        TYPE = PauseStage.TYPE  # and does not say which

    # The time is over once the letter is there, however long that takes.
    clock = itertools.chain([0.0, 0.0], itertools.repeat(9.0))
    over = SimpleNamespace(
        monotonic=lambda: next(clock),
        sleep=lambda _seconds: world.until(lambda: len(letters_of(world)) == 2),
        time=time.time,
    )
    monkeypatch.setattr(send, "time", over)
    views = Views()
    with closing(views), pytest.raises(Refused, match=r"a dead letter came instead, which says: .*stage"):
        send.send_command(views, "resolution", "x", Later(who="ops", why="test"), wait_seconds=6)


@pytest.mark.parametrize(
    ("verb", "told"),
    [
        (("pause", "resolution", "resolve"), {"touched": 1, "service": "resolution", "stage": "resolve"}),
        (("tick", "funds-due"), {"touched": 1, "job": "funds-due"}),
        (("dlq", "discard", "resolution", "1"), {"touched": 1, "service": "resolution"}),
        (("retry", "--kind", "resolve"), {"touched": 0, "found": 0, "dry_run": False}),
    ],
)
def test_what_changes_something_prints_one_object_for_programs(
    alone: Almoner, resolution: Process, verb: tuple[str, ...], told: dict[str, object]
) -> None:
    if "dlq" in verb:
        publish_broken(alone.world, "one")
        alone.world.until(lambda: letters_of(alone.world))
    assert alone.json(*verb, "--yes") == told


def test_what_cannot_be_meant_is_refused(alone: Almoner, resolution: Process) -> None:
    for verb in ("pause", "resume"):
        refused = alone.run(verb, "resolution", "resolv", "--yes", code=1).stderr
        assert "has no stage 'resolv': there are consume, locate, resolve" in refused
    assert "no open dead letter 99" in alone.run("dlq", "discard", "resolution", "99", "--yes", code=1).stderr
    assert "no dead letter 99" in alone.run("dlq", "show", "resolution", "99", code=1).stderr
    assert "nobody gives up all" in alone.run("dlq", "discard", "resolution", "--yes", code=2).stderr
    assert "no service is called 'billing'" in alone.run("dlq", "list", "billing", code=2).stderr
    assert "there are" in alone.run("tick", "sunrise", "--yes", code=1).stderr


def test_lag_by_topic(alone: Almoner, resolution: Process) -> None:
    world = alone.world
    publish_broken(world, "before")
    world.until(lambda: letters_of(world))
    alone.almoner("pause", "resolution", "consume", "--yes")
    world.until(lambda: resolution.logged("consumption paused"))  # the gauge may have it from the table, before that
    publish_broken(world, "a", "b", "c")

    def behind() -> dict[tuple[str, str], int]:
        found: dict[tuple[str, str], int] = {}
        for row in alone.json("lag"):
            place = (row["service"], row["topic"].removeprefix(world.prefix))
            found[place] = found.get(place, 0) + row["lag"]
        return found

    assert behind()["resolution", BATCHES] == 3
    assert f"{world.prefix}{BATCHES}" in alone.almoner("lag")
    assert "Resume consume of resolution (waiting: 3)?" in alone.run("resume", "resolution", "consume", code=2).stderr
    alone.almoner("resume", "resolution", "consume", "--yes")
    world.until(lambda: behind()["resolution", BATCHES] == 0)


def test_lag_is_shown_again_and_again_until_ctrl_c(alone: Almoner, resolution: Process) -> None:
    # Whoever runs the tests may have them ignore Ctrl-C, and what they start with them.
    script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from libs.cli.app import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", script, "lag", "--watch"],
        env={**os.environ, **alone.world.env},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        limit = Timer(60, watching.kill)
        limit.start()
        try:
            assert watching.stdout is not None
            tables = 0
            for line in watching.stdout:
                tables += line == "service\ttopic\tpartitions\tmessages\n"
                if tables == 3:  # it was refreshed twice
                    break
            watching.send_signal(signal.SIGINT)
            _, said = watching.communicate()
        finally:
            limit.cancel()
            watching.kill()
    assert (tables, watching.returncode) == (3, 130)
    assert "Traceback" not in said


def test_a_tick_by_hand(alone: Almoner, resolution: Process) -> None:
    jobs = {row["job"]: row for row in alone.json("tick")}
    assert "funds-due" in jobs
    assert "funds-due fired" in alone.almoner("tick", "funds-due", "--why", "money has come", "--yes")
    # The clock's own ticks may come before and after it.
    found = alone.world.until(lambda: [one.data for one in alone.world.events(TICKS, Tick) if one.data.reason])
    assert [(tick.job, tick.reason) for tick in found] == [("funds-due", "money has come")]
    [row] = alone.json("audit", "--limit", "1")
    assert (row["service"], row["why"], row["affected"]) == ("scheduler", "money has come", 1)


def test_every_kind_of_failure_is_listed_with_what_helps(alone: Almoner, resolution: Process) -> None:
    """A decision that was given up, one that is tried again by itself, a call in doubt, a dead letter."""
    world = alone.world
    assert alone.almoner("failures") == "Nothing has failed.\n"
    world.sql(
        "ingestion",
        """INSERT INTO due (job, subject, lock_key, fault, failures, gave_up) VALUES
           ('read-statement', 's1', 1, 'KeyError', 10, true), ('cut', 'e1', 1, 'ValueError', 1, false)""",
    )
    world.sql(
        "funds",
        """INSERT INTO work (kind, subject, lock_key, state, code, message, cause_id) VALUES
           ('dispatch', '7', 1, 'UNKNOWN', 'NO_ANSWER', 'cut off', 'c'), ('dispatch', '8', 1, 'UNKNOWN', 'NO_ANSWER', 'cut off', 'c'),
           ('check', 'e/1', 1, 'PENDING', 'BUG', 'TypeError', 'c'), ('check', 'e/2', 1, 'PENDING', 'NOT_REACHED', '', 'c'),
           ('check', 'e/3', 1, 'DONE', NULL, NULL, 'c')""",
    )
    world.sql(
        "notifications",
        "INSERT INTO work (kind, subject, lock_key, state, code, cause_id) VALUES ('smtp', '5', 1, 'UNKNOWN', 'ANSWER_LOST', 'c')",
    )
    for service, stage, waiting in (("funds", "check", 2), ("ingestion", "cut", 1), ("ingestion", "read-statement", 0)):
        asked = f"Pause {stage} of {service} (waiting: {waiting})?"
        assert asked in alone.run("pause", service, stage, code=2).stderr
    publish_broken(world, "one")
    [letter] = world.until(lambda: letters_of(world))
    found = {(row["service"], row["kind"]): row for row in alone.json("failures")}
    told = {name: (row["state"], row["code"], row["count"]) for name, row in found.items()}
    assert told == {
        ("ingestion", "read-statement"): ("ERROR", "KeyError", 1),
        ("ingestion", "cut"): ("BUG", "ValueError", 1),
        ("funds", "dispatch"): ("UNKNOWN", "NO_ANSWER", 2),
        ("funds", "check"): ("BUG", "BUG", 1),
        ("notifications", "smtp"): ("UNKNOWN", "ANSWER_LOST", 1),
        ("resolution", BATCHES): ("DEAD LETTER", "INVALID_DATA", 1),
    }
    commands = {name: row["command"] for name, row in found.items()}
    assert commands["ingestion", "read-statement"] == "almoner retry --kind read-statement --code KeyError"
    assert commands["funds", "dispatch"].startswith("almoner settle-unknown dispatch 7 ")
    assert commands["notifications", "smtp"] == "almoner notices --state unknown"
    assert "notifications: 1 × smtp in UNKNOWN (almoner notices --state unknown)" in alone.almoner("status")
    assert commands["resolution", BATCHES] == f"almoner dlq show resolution {letter}"
    assert "1 × read-statement" in alone.almoner("retry", "--dry-run")  # and nothing else is in ERROR
    assert "No such work is in ERROR." in alone.almoner("retry", "--kind", "dispatch", "--yes")


def test_exceptions_are_chosen_by_envelope_reason_and_state(alone: Almoner, resolution: Process) -> None:
    world = alone.world
    assert alone.almoner("exceptions") == "No exceptions are open.\n"
    statement = "01970000-0000-7000-8000-000000000001"
    world.sql(
        "funds",
        """INSERT INTO exceptions (statement_id, line, reason, reference, amount_minor, currency, detail, state) VALUES
           (%(s)s, 1, 'UNKNOWN_REFERENCE', 'X', 2500, 'KES', 'D line', 'OPEN'),
           (%(s)s, 2, 'AMOUNT_MISMATCH', 'Y', 700, 'KES', 'D line', 'OPEN'),
           (%(s)s, 3, 'AMOUNT_MISMATCH', 'Z', 900, 'KES', 'D line', 'CLOSED')""",
        s=statement,
    )
    assert [row["line"] for row in alone.json("exceptions")] == [1, 2]
    assert [row["line"] for row in alone.json("exceptions", "--all")] == [1, 2, 3]
    assert [row["line"] for row in alone.json("exceptions", "--reason", "AMOUNT_MISMATCH", "--all")] == [2, 3]
    [first] = alone.json("exceptions", "--limit", "1")
    assert (first["reason"], first["amount_minor"], first["currency"], first["state"]) == (
        "UNKNOWN_REFERENCE",
        2500,
        "KES",
        "OPEN",
    )
    assert "\tUNKNOWN_REFERENCE\t–\t1\tX\t25.00 KES\t" in alone.almoner("exceptions")  # of a statement nobody knows
    add_statements(world, {statement: ("17", "2", "READ")})
    assert "\tUNKNOWN_REFERENCE\t17/2 of 2026-11-03\t1\tX\t25.00 KES\t" in alone.almoner("exceptions")
    [first] = alone.json("exceptions", "--limit", "1")
    assert [first[name] for name in ("statement_number", "statement_sequence", "closing_date")] == ["17", "2", "2026-11-03"]
    shown = alone.almoner("exceptions")
    assert "AMOUNT_MISMATCH: the bank booked another amount" in shown
    assert "The first 1; see --limit." in alone.almoner("exceptions", "--limit", "1")
    assert "no envelope is called 'E9'" in alone.run("exceptions", "E9", code=1).stderr


def add_statements(world: World, statements: dict[str, tuple[str, str, str]]) -> None:
    """Statements of one account and day with 100.00 before and after, as if they had come one after the other."""
    for statement_id, (number, sequence, state) in statements.items():
        world.sql(
            "ingestion",
            """WITH file AS (INSERT INTO statement_files (file_id, source, bytes) VALUES (gen_random_uuid(), 'full', 1) RETURNING file_id)
               INSERT INTO statements (statement_id, file_id, account_token, reference, number, sequence, currency, closing_date,
                   opening_minor, closing_minor, lines, chunks, next_byte, end_byte, state, reason, numbered)
               SELECT %(id)s, file_id, 'aaaabbbbcccc', 'R', %(number)s, %(sequence)s, CASE WHEN %(state)s = 'READ' THEN 'KES' END,
                   '2026-11-03', 10000, 10000, 0, 0, 1, 1, %(state)s, CASE WHEN %(state)s = 'READ' THEN '' ELSE 'NO_ACCOUNT: none' END,
                   true
               FROM file""",
            id=statement_id,
            number=number,
            sequence=sequence,
            state=state,
        )


def test_statements_are_listed_with_what_is_strange_and_what_came_of_them(alone: Almoner, resolution: Process) -> None:
    world = alone.world
    assert alone.almoner("statement", "list") == "No statement has come yet.\n"
    first, gap, rejected = (f"01970000-0000-7000-8000-00000000000{n}" for n in (1, 2, 3))
    add_statements(world, {first: ("17", "1", "READ")})
    assert alone.almoner("statement", "list", "--flagged") == "No statement is flagged.\n"
    assert "statement list" not in alone.almoner("status")
    add_statements(world, {gap: ("19", "1", "READ"), rejected: ("20", "1", "REJECTED")})
    world.sql(
        "funds",
        """INSERT INTO statements (statement_id, account_token, known_account, reconciled_at)
           VALUES (%(id)s, 'aaaabbbbcccc', true, clock_timestamp())""",
        id=first,
    )
    world.sql("funds", "INSERT INTO statement_chunks VALUES (%(id)s, 1, 5, 0, 3, 300, 1, 100)", id=first)
    world.sql(
        "funds",
        """INSERT INTO exceptions (statement_id, line, reason, amount_minor, currency)
           VALUES (%(id)s, 5, 'UNKNOWN_REFERENCE', 1, 'KES')""",
        id=first,
    )
    rows = alone.json("statement", "list")
    assert [(row["number"], row["state"], row["flags"]) for row in rows] == [
        ("20", "REJECTED", []),
        ("19", "READ", ["NUMBER_GAP"]),
        ("17", "RECONCILED", []),
    ]
    assert rows[1]["what_to_do"] == ["it does not follow the one before it; send what is missing"]
    assert [rows[2][name] for name in ("confirmed", "reversed", "exceptions")] == [3, 1, 1]
    assert [row["statement_id"] for row in alone.json("statement", "list", "--flagged")] == [gap]
    lines = alone.almoner("statement", "list", "--limit", "2").splitlines()
    assert lines[1].startswith("20/1 of 2026-11-03\taaaabbbb\t–\t–\trejected\t0\t0\t0\t0\tNO_ACCOUNT: none\t")
    assert lines[2].startswith("19/1 of 2026-11-03\taaaabbbb\t100.00 KES\t100.00 KES\tread\t0\t0\t0\t0\tNUMBER_GAP\t")
    assert lines[3:] == [
        "NUMBER_GAP: it does not follow the one before it; send what is missing",
        "The newest 2; see --limit.",
    ]
    seen = "1 statement of the last 7 days: NUMBER_GAP (almoner statement list --flagged)"
    assert alone.json("status")["attention"] == ["1 statement exception UNKNOWN_REFERENCE", seen]
    world.sql("ingestion", "UPDATE statements SET received_at = received_at - interval '8 days'")
    assert seen not in alone.json("status")["attention"]
    assert len(alone.json("statement", "list", "--flagged")) == 1
