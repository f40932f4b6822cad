"""Who may publish for which programmes: in production nobody who is not listed, and for nothing else than is listed."""

import json
from pathlib import Path
from typing import Any

import pytest

from libs.common.contracts import ingestion as c
from libs.common.contracts.base import EventData, Mnemonic
from libs.common.envelope import Event
from tests.integration.ingestion.publisher import (
    DISBURSEMENTS,
    ENVELOPES,
    FACTS,
    STATEMENTS,
    answers_to,
    chunk,
    codes,
    debits,
    disbursements,
    envelope,
    message,
    statement_text,
    total,
)
from tests.support.process import Process
from tests.support.world import World


def start(world: World, publishers: dict[str, Any], mode: str = "production") -> Process:
    return world.run("ingestion", ALMONER_INGESTION_MODE=mode, ALMONER_INGESTION_PUBLISHERS=json.dumps(publishers))


def operations(name: str) -> list[tuple[str, EventData]]:
    """Everything that can be asked of an envelope once it is there."""
    return [
        (DISBURSEMENTS, chunk(name, disbursements(1, 1))),
        (ENVELOPES, c.EnvelopeAmendmentRequested(envelope_id=name, total_minor=total(1, 11), reason="one more")),
        (DISBURSEMENTS, c.DisbursementsCancellationRequested(envelope_id=name, disbursement_ids=["d1"], reason="moved")),
        (ENVELOPES, c.EnvelopeStatusRequested(envelope_id=name)),
        (ENVELOPES, c.EnvelopeCancellationRequested(envelope_id=name, reason="wrong month")),
    ]


def ten(name: str, programme: str = "farmers") -> c.EnvelopeSubmitted:
    return envelope(name, 10, total(1, 10), programme=Mnemonic(id=programme))


def asked(world: World, topic: str, data: EventData, event_id: str, source: str, at_least: int = 1) -> Event[Any]:
    world.publish(topic, data, "k", source=source, event_id=event_id)
    return answers_to(world, event_id, at_least)[-1]


def test_nobody_publishes_who_is_not_listed(world: World) -> None:
    process = start(world, {"erp": ["farmers"]})
    everything = [(ENVELOPES, ten("e1")), *operations("e1")]
    everything.append((STATEMENTS, c.StatementSubmitted(text=statement_text("A", debits(1)))))
    for number, (topic, data) in enumerate(everything):
        answer = asked(world, topic, data, f"s{number}", "stranger")
        assert codes(answer) == [("INVALID_SOURCE", "")]
        assert answer.data.submission_ids == [f"s{number}"]
        assert "operators" in answer.data.errors[0].message
    for table in ("submissions", "envelopes", "staged", "statement_files", "dead_letters"):
        assert world.sql("ingestion", f"SELECT 1 FROM {table}") == [], table
    assert process.logged("not allowed to publish")
    assert process.stop() == 0
    # Nothing of it was remembered: once the source is listed, the very same events are taken.
    start(world, {"erp": ["farmers"], "stranger": "*"})
    for number, (topic, data) in enumerate(everything):
        assert asked(world, topic, data, f"s{number}", "stranger", 2).data.TYPE != c.SubmissionRejected.TYPE


def test_a_listed_source_keeps_to_its_programmes(world: World) -> None:
    process = start(world, {"erp": ["farmers", "fishers"], "hub": ["fishers"], "bank": [], "office": ["*"]})
    assert asked(world, ENVELOPES, ten("e1"), "1", "erp").data.outcome == "accepted"
    assert asked(world, ENVELOPES, ten("e2", "fishers"), "2", "erp").data.outcome == "accepted"
    for source in ("hub", "bank"):
        assert codes(asked(world, ENVELOPES, ten("e1"), f"{source}-1", source)) == [("INVALID_SOURCE", "/programme/id")]
    faulty = ten("e3", "weavers").model_copy(update={"currency": "ABC"})
    assert codes(asked(world, ENVELOPES, faulty, "3", "erp")) == [
        ("INVALID_CURRENCY", "/currency"),
        ("INVALID_SOURCE", "/programme/id"),
    ]
    # A statement settles payments of whatever programme: who is listed for some of them may not send one.
    statement = c.StatementSubmitted(text=statement_text("A", debits(1)))
    for source in ("erp", "hub"):
        assert codes(asked(world, STATEMENTS, statement, f"{source}-4", source)) == [("INVALID_SOURCE", "")]
    assert world.sql("ingestion", "SELECT 1 FROM statement_files") == []
    assert process.logged("not allowed to publish")
    for source in ("bank", "office"):
        assert asked(world, STATEMENTS, statement, f"{source}-4", source).data.outcome == "stored"
    # Another source's envelope of the same id is another envelope, which is not there.
    status = asked(world, ENVELOPES, c.EnvelopeStatusRequested(envelope_id="e1"), "5", "hub")
    assert codes(status) == [("DISBURSEMENT_ENVELOPE_NOT_FOUND", "/envelope_id")]
    programmes = {fact.data.header.programme.id for fact in world.events(FACTS, c.EnvelopeAccepted)}
    assert programmes == {"farmers", "fishers"}


def test_what_is_allowed_no_more(world: World, tmp_path: Path) -> None:
    """The envelope is there, and its programme was taken off the list."""
    process = start(world, {"erp": ["farmers"]})
    question = c.EnvelopeStatusRequested(envelope_id="e1")
    assert asked(world, ENVELOPES, ten("e1"), "env", "erp").data.outcome == "accepted"
    assert asked(world, ENVELOPES, question, "early", "erp").data.state == "RECEIVING"
    assert process.stop() == 0
    publishers = tmp_path / "publishers.json"
    publishers.write_text('{"erp": ["fishers"]}')
    file = {"ALMONER_INGESTION_MODE": "production", "ALMONER_INGESTION_PUBLISHERS_FILE": str(publishers)}
    for number, (topic, data) in enumerate(operations("e1")):
        world.publish_many(topic, [message(data, "k", f"s{number}", "erp")] * 2)  # twice in one poll
    process = world.run("ingestion", **file)
    for number in range(len(operations("e1"))):
        for answer in answers_to(world, f"s{number}", at_least=2):
            assert codes(answer) == [("INVALID_SOURCE", "/envelope_id")]
    assert codes(asked(world, ENVELOPES, question, "early", "erp", 2)) == [("INVALID_SOURCE", "/envelope_id")]
    assert [row.id for row in world.sql("ingestion", "SELECT id FROM submissions ORDER BY id")] == ["early", "env"]
    assert world.sql("ingestion", "SELECT 1 FROM staged UNION ALL SELECT 1 FROM disbursements") == []
    assert process.stop() == 0
    publishers.write_text('{"erp": "*"}')
    world.run("ingestion", **file)
    for number, (topic, data) in enumerate(operations("e1")):
        assert asked(world, topic, data, f"s{number}", "erp", 3).data.TYPE != c.SubmissionRejected.TYPE


def test_open_to_all_but_those_who_are_listed(world: World) -> None:
    start(world, {"erp": ["fishers"]}, mode="open")
    assert asked(world, ENVELOPES, ten("e1"), "1", "anybody").data.outcome == "accepted"
    assert codes(asked(world, ENVELOPES, ten("e1"), "2", "erp")) == [("INVALID_SOURCE", "/programme/id")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "Invalid JSON"),
        ('{"erp": "farmers"}', "/erp"),
        (None, "No such file"),
        ('{"erp": "*"}', "Only one of it and ALMONER_INGESTION_PUBLISHERS"),
    ],
)
def test_a_list_that_cannot_be_read_stops_the_start(world: World, tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "publishers.json"
    if content is not None:
        file.write_text(content)
    more = {"ALMONER_INGESTION_PUBLISHERS": '{"a": "*"}'} if "Only one" in said else {}
    process = world.run("ingestion", ALMONER_INGESTION_PUBLISHERS_FILE=str(file), **more)
    assert process.wait() == 2
    assert "ALMONER_INGESTION_PUBLISHERS_FILE" in process.log_text()
    assert said in process.log_text()
