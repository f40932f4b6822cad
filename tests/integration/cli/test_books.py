"""`books` must name the one row, the one event, the one line that is not as it was."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from libs.cli import sample
from libs.common.contracts import funds, operator
from tests.faults.bookkeeping import idle
from tests.integration.cli.conftest import Town
from tests.support.world import World

COPIED = ("funds.payments.v1", "funds.envelopes.v1", "ingestion.statements.v1")


@pytest.fixture
def paid(town: Town) -> tuple[Town, list[str]]:
    """An envelope at rest: 8 confirmed, 2 reversed, 1 held."""
    ids = town.submit("E1", 11, strangers=1)
    world = town.world
    world.until(lambda: town.json("status", "E1")["confirmed"] == 10, what="10 confirmations")
    town.bank.reverse("full", reason="ACCOUNT CLOSED", disbursement_ids=ids[:2])
    world.until(lambda: town.json("status", "E1")["reversed"] == 2, what="2 reversals")
    world.until(lambda: idle(world))  # what is decided after a row was altered would be decided of the altered row
    assert "finds the money given back: ACCOUNT CLOSED; line " in town.almoner("timeline", ids[0])
    assert town.json("books", "E1")["balanced"]
    return town, ids


def findings(town: Town, proof: str, **env: str) -> list[str]:
    """What one proof finds; the books must not balance. The others are asked for by name."""
    report = town.json("books", code=1, **env)
    assert not report["balanced"]
    found: list[str] = report["findings"][proof]
    return found


def test_one_row_altered_is_named(paid: tuple[Town, list[str]]) -> None:
    town, ids = paid
    sql = town.world.sql

    sql("funds", "UPDATE payments SET amount_minor = amount_minor + 1 WHERE disbursement_id = %(id)s", id=ids[3])
    found = findings(town, "database")
    assert any(ids[3] in finding and "was submitted with" in finding for finding in found)
    assert any(finding.startswith("instruction ") and "total_minor" in finding for finding in found)
    sql("funds", "UPDATE payments SET amount_minor = amount_minor - 1 WHERE disbursement_id = %(id)s", id=ids[3])

    [fact] = sql(
        "funds",
        """DELETE FROM facts f USING payments p WHERE p.instruction = f.instruction AND p.position = f.position
           AND p.disbursement_id = %(id)s RETURNING f.*""",
        id=ids[4],
    )
    assert any("the counter confirmed says" in finding for finding in findings(town, "database"))
    assert any(ids[4] in finding and "counts for" in finding for finding in findings(town, "statements"))
    assert any(ids[4] in finding and "PaymentsConfirmed" in finding for finding in findings(town, "events"))
    sql(
        "funds", "INSERT INTO facts VALUES (%(a)s, %(b)s, %(c)s, %(d)s, %(e)s, %(f)s)", **dict(zip("abcdef", fact, strict=True))
    )

    [held] = sql("funds", "UPDATE held SET state = 'PAID' RETURNING disbursement_id")
    found = findings(town, "database")
    assert any("the counter held" in finding or "blocked is" in finding for finding in found)
    assert any(held.disbursement_id in finding and "nowhere" in finding for finding in found) or any(
        "waiting" in finding for finding in found
    )
    sql("funds", "UPDATE held SET state = 'HELD'")
    assert town.json("books", "E1")["balanced"]


def test_money_that_moved_without_a_block_is_named(paid: tuple[Town, list[str]]) -> None:
    town, _ = paid
    sql = town.world.sql
    [block] = sql("funds", "SELECT amount_minor FROM blocks")
    moved = f"envelope E1: blocked is 0, and dispatched {town.json('status', 'E1')['dispatched_minor']}: "

    sql("funds", "UPDATE blocks SET state = 'VOID', bank_reference = NULL")
    assert f"{moved}block 1 of {block.amount_minor} is VOID" in findings(town, "database")
    sql("funds", "DELETE FROM blocks")
    assert f"{moved}there is no block" in findings(town, "database")


def test_who_vanishes_is_named_where_others_were_given_back(town: Town) -> None:
    ids = town.submit("E1", 6, strangers=2)
    world = town.world
    world.until(lambda: town.json("status", "E1")["confirmed"] == 4, what="4 confirmations")
    world.until(lambda: town.json("status", "E1")["held"] == 2, what="2 held")
    town.almoner("cancel", "E1", "--disbursement", ids[4], "--yes")
    world.until(lambda: world.sql("funds", "SELECT 1 FROM releases WHERE state = 'RELEASED'"))
    world.until(lambda: idle(world))
    assert town.json("books", "E1")["balanced"]

    lose = "DELETE FROM held WHERE disbursement_id = %(id)s AND state = 'HELD' RETURNING amount_minor"
    [lost] = world.sql("funds", lose, id=ids[5])
    found = findings(town, "database")
    nowhere = f"envelope E1: disbursement {ids[5]} of {lost.amount_minor} is nowhere"
    assert [finding for finding in found if "nowhere" in finding] == [nowhere]


def copied(world: World, prefix: str, change: Callable[[str, dict[str, Any]], bool], begun: bool = True) -> dict[str, str]:
    """The topics under another prefix, with the one event that `change` alters (it returns True once) or, emptied, takes away. Not
    `begun`: each partition had something before."""
    before, altered = world.prefix, 0
    messages = {topic: world.messages(topic) for topic in COPIED}
    world.prefix, world._made = prefix, set()
    produce = world.kafka.producer.produce
    try:
        for topic, found in messages.items():
            world.topics(topic)
            if not begun:
                for partition in range(2):
                    produce(prefix + topic, value=b"{}", partition=partition)
                expire(world, topic)
            for message in found:
                data = json.loads(message.value)
                changed = not altered and change(topic, data)
                altered += changed
                value = json.dumps(data).encode() if changed else message.value
                if data:
                    headers = list[tuple[str, str | bytes | None]](message.headers)
                    produce(prefix + topic, value, message.key, headers=headers, timestamp=message.timestamp_ms)
        assert world.kafka.producer.flush(30) == 0
    finally:
        world.prefix = before
    assert altered == 1
    return {"ALMONER_TOPIC_PREFIX": prefix}


def expire(world: World, *topics: str) -> None:
    """What retention does: all that the topics have is gone."""
    assert world.kafka.producer.flush(30) == 0
    places = [TopicPartition(world.prefix + topic, partition) for topic in topics for partition in range(2)]
    for place in places:
        place.offset = world.kafka.consumer.get_watermark_offsets(place, timeout=10, cached=False)[1]
    for future in world.kafka.admin.delete_records(places).values():
        future.result(30)


def test_what_topics_do_not_keep_any_more_is_a_note_and_what_is_newer_is_compared(paid: tuple[Town, list[str]]) -> None:
    town, _ = paid
    world = town.world
    # 10 confirmed, 2 of them reversed, 1 held; their lines; 1 block.
    gone = [
        "12 facts of ingestion.statements.v1 not compared with events (older than the topic keeps)",
        "13 facts of funds.payments.v1 not compared with events (older than the topic keeps)",
        "1 fact of funds.envelopes.v1 not compared with events (older than the topic keeps)",
    ]
    world.until(lambda: idle(world))
    expire(world, *COPIED)
    report = town.json("books")
    assert report["balanced"]
    assert sorted(report["notes"]) == sorted(gone)

    newer = town.submit("E2", 5)
    world.until(lambda: town.json("status", "E2")["confirmed"] == 5, what="5 confirmations")
    time.sleep(1.5)  # clocks may differ by less
    [row] = world.sql(
        "funds",
        """SELECT reference FROM ops_payments JOIN ops_envelopes USING (envelope_id)
           WHERE publisher_envelope_id = 'E2' AND disbursement_id = %(id)s""",
        id=newer[1],
    )
    town.bank.reverse("full", reason="ACCOUNT CLOSED", references=[row.reference])
    world.until(lambda: town.json("status", "E2")["reversed"] == 1, what="a reversal")
    world.until(lambda: idle(world))
    report = town.json("books")
    assert report["balanced"]
    assert sorted(report["notes"]) == sorted(gone)
    assert town.json("books", "E2")["notes"] == []

    def lost(topic: str, data: dict[str, Any]) -> bool:
        # The reversal of the newer envelope: in its partition other events are before it.
        if topic != "funds.payments.v1" or "statement_id" not in data or data["items"]["disbursement_id"] != [newer[1]]:
            return False
        data.clear()
        return True

    [finding] = findings(town, "events", **copied(world, f"{world.name}d.", lost, begun=False))
    assert finding.startswith("envelope E2: ")
    assert f"{newer[1]} " in finding
    assert f"0 events say so ({funds.PaymentsReversed.__name__})" in finding


def test_one_event_or_one_line_altered_is_named(paid: tuple[Town, list[str]]) -> None:
    town, ids = paid

    def another_amount(topic: str, data: dict[str, Any]) -> bool:
        if topic != "funds.payments.v1" or "statement_id" not in data:
            return False
        items = data["items"]
        if ids[5] not in items["disbursement_id"]:
            return False
        items["amount_minor"][items["disbursement_id"].index(ids[5])] += 1
        data["total_minor"] += 1
        return True

    found = findings(town, "events", **copied(town.world, f"{town.world.name}a.", another_amount))
    assert any(ids[5] in finding and "no row agrees" in finding for finding in found)
    assert any(ids[5] in finding and "0 events say so" in finding for finding in found)
    assert all(ids[5] in finding for finding in found)

    def another_block(topic: str, data: dict[str, Any]) -> bool:
        if topic == "funds.envelopes.v1" and "bank_reference" in data:
            data["amount_minor"] -= 1
            return True
        return False

    found = findings(town, "events", **copied(town.world, f"{town.world.name}b.", another_block))
    assert len(found) == 1
    assert "blocked 1: the row has" in found[0]

    [reference] = town.world.sql("funds", "SELECT reference FROM ops_payments WHERE disbursement_id = %(id)s", id=ids[6])

    def another_line(topic: str, data: dict[str, Any]) -> bool:
        lines = data["lines"] if topic == "ingestion.statements.v1" and "chunk" in data else {"customer_reference": []}
        if reference.reference not in lines["customer_reference"]:
            return False
        lines["amount_minor"][lines["customer_reference"].index(reference.reference)] += 1
        data["total_minor"] += 1
        return True

    found = findings(town, "statements", **copied(town.world, f"{town.world.name}c.", another_line))
    assert found
    assert all(ids[6] in finding and reference.reference in finding for finding in found)

    debits: list[tuple[str, str]] = []  # the bank's reference and ours

    def the_same_booking(topic: str, data: dict[str, Any]) -> bool:
        lines = data["lines"] if topic == "ingestion.statements.v1" and "chunk" in data else {"mark": []}
        for place, mark in enumerate(lines["mark"]):
            if mark == "D":
                debits.append((lines["bank_reference"][place], lines["customer_reference"][place]))
            if len(debits) == 2:
                lines["bank_reference"][place] = debits[0][0]
                return True
        return False

    report = town.json("books", code=0, **copied(town.world, f"{town.world.name}e.", the_same_booking))
    (booking, first), (_, second) = debits
    assert report["balanced"]
    [note] = report["notes"]
    assert note.startswith(f"the bank's reference {booking} confirms 2 payments, ")
    assert first in note
    assert second in note


def test_books_of_who_was_paid_again_balance_and_name_a_repayment_nobody_asked_for(paid: tuple[Town, list[str]]) -> None:
    town, ids = paid
    world = town.world
    [envelope] = world.sql("funds", "SELECT envelope_id FROM envelopes")

    def ask(model: type[operator.Command], service: str = "funds", **fields: Any) -> None:
        command = model(who="tester", why="test", envelope_id=envelope.envelope_id, **fields)
        world.publish(f"{service}.commands.v1", command, key=envelope.envelope_id)

    def balanced(**wanted: int) -> None:
        world.until(lambda: wanted.items() <= town.json("status", "E1").items(), what=str(wanted))
        world.until(lambda: idle(world))
        report = town.json("books", "E1")
        assert report["balanced"]
        assert report["at_rest"]

    ask(operator.Repay, disbursement_ids=ids[:1])
    balanced(confirmed=9, reversed=2)
    # The one without an address: given back, found after all, paid from a block of its own.
    ask(operator.ReleaseRequested)
    balanced(held=0, releasing_minor=0)
    last = len(ids)
    town.mapper.put_people((person, sample.address(person)) for _, person, _, _ in list(sample.people(last))[-1:])
    ask(operator.ResolveHeld, "resolution")
    world.until(lambda: world.sql("funds", "SELECT 1 FROM ops_held WHERE reason = 'BLOCK_RELEASED'"))
    balanced(confirmed=9)
    ask(operator.Repay, disbursement_ids=ids[-1:])
    balanced(confirmed=10, reversed=2)
    # Cancelled while its money is asked for, or soon after: given back.
    town.almoner("pause", "funds", "dispatch", "--yes")  # or it is paid before whoever cancels has come so far
    town.bank.add_fault("late", profile="full", path="/block_funds", seconds=3)
    ask(operator.Repay, disbursement_ids=ids[1:2])
    world.until(lambda: world.sql("funds", "SELECT 1 FROM blocks WHERE block = 4 AND state IN ('SENDING', 'BLOCKED')"))
    town.almoner("cancel", "E1", "--disbursement", ids[1], "--yes")
    world.until(lambda: world.sql("funds", "SELECT 1 FROM releases WHERE reason = 'CANCELLED' AND state = 'RELEASED'"))
    town.almoner("resume", "funds", "dispatch", "--yes")
    balanced(confirmed=10, reversed=2)

    # Given back once is not where somebody is who was repaid since.
    payment = "UPDATE payments SET disbursement_id = %(new)s WHERE disbursement_id = %(id)s"
    world.sql("funds", payment, id=ids[-1], new="X")
    assert any(f"disbursement {ids[-1]} of " in finding and "nowhere" in finding for finding in findings(town, "database"))
    world.sql("funds", payment, id="X", new=ids[-1])
    assert town.json("books", "E1")["balanced"]

    world.sql("funds", "UPDATE repayments SET state = 'REFUSED' WHERE disbursement_id = %(id)s", id=ids[0])
    found = findings(town, "database")
    assert any(ids[0] in finding and "in two places" in finding for finding in found)
    assert any("block 2 has" in finding for finding in found)
