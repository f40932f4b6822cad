"""Every way in which a submission is refused; and that nothing at a door can stop the others."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libs.common import inbox
from libs.common.clock import utc_now
from libs.common.consumer import Fold, Limits
from libs.common.contracts import ingestion as c
from libs.common.contracts.base import EventData
from libs.common.db import Database
from libs.common.envelope import RawMessage
from libs.local.stack import Addresses
from services.ingestion.config import Settings
from services.ingestion.wiring import wire
from tests.integration.ingestion.publisher import (
    DISBURSEMENTS,
    ENVELOPES,
    RESULTS,
    STATEMENTS,
    answers_to,
    chunk,
    codes,
    disbursements,
    envelope,
    message,
    today,
    total,
    uuid_of,
)
from tests.support.counting import statements
from tests.support.world import World


def altered(data: Any, **changes: Any) -> bytes:
    return json.dumps({**json.loads(data.model_dump_json()), **changes}).encode()


def item(n: int, **changes: Any) -> dict[str, Any]:
    return {**disbursements(n, 1)[0], **changes}


ENVELOPE = envelope("e1", 10, total(1, 10))
CHUNK = chunk("e1", disbursements(1, 2))

SHAPES: list[tuple[Any, dict[str, Any], list[tuple[str, str]]]] = [
    (ENVELOPE, {"programme": {"id": ""}}, [("INVALID_PROGRAM", "/programme/id")]),
    (ENVELOPE, {"benefit_code": {"id": "x", "type": "GOLD"}}, [("INVALID_BENEFIT_CODE", "/benefit_code/type")]),
    (
        ENVELOPE,
        {"benefit_code": {"id": "x", "type": "SERVICE"}},
        [("INVALID_CURRENCY", "/currency"), ("INVALID_MEASUREMENT_UNIT", "/measurement_unit")],
    ),
    (ENVELOPE, {"cycle": "May"}, [("INVALID_CYCLE", "/cycle")]),
    (ENVELOPE, {"cycle": {"id": "1", "frequency": "Hourly"}}, [("INVALID_DISBURSEMENT_FREQUENCY", "/cycle/frequency")]),
    (ENVELOPE, {"number_of_beneficiaries": 0}, [("INVALID_NO_OF_BENEFICIARIES", "/number_of_beneficiaries")]),
    (ENVELOPE, {"number_of_disbursements": "10"}, [("INVALID_NO_OF_DISBURSEMENTS", "/number_of_disbursements")]),
    (ENVELOPE, {"total_minor": 100.25}, [("INVALID_DISBURSEMENT_QUANTITY", "/total_minor")]),
    (ENVELOPE, {"target_registry": "x" * 201}, [("INVALID_TARGET_REGISTRY", "/target_registry")]),
    (ENVELOPE, {"currency": "euro"}, [("INVALID_CURRENCY", "/currency")]),
    (ENVELOPE, {"currency": "ABC"}, [("INVALID_CURRENCY", "/currency")]),
    (ENVELOPE, {"time_zone": "Mars/Base"}, [("INVALID_TIME_ZONE", "/time_zone")]),
    (ENVELOPE, {"schedule_date": "21.11.2026"}, [("INVALID_DISBURSEMENT_SCHEDULE_DATE", "/schedule_date")]),
    (
        ENVELOPE,
        {"schedule_date": str(today() - timedelta(days=2)), "currency": "ABC", "programme": None, "total_minor": -1},
        [
            ("INVALID_CURRENCY", "/currency"),
            ("INVALID_DISBURSEMENT_QUANTITY", "/total_minor"),
            ("INVALID_DISBURSEMENT_SCHEDULE_DATE", "/schedule_date"),
            ("INVALID_PROGRAM", "/programme"),
        ],
    ),
    (ENVELOPE, {"envelope_id": "two\nlines"}, [("INVALID_ENVELOPE_ID", "/envelope_id")]),
    (CHUNK, {"count": 3}, [("INVALID_CONTROL_TOTALS", "")]),
    (CHUNK, {"total_minor": 1}, [("INVALID_CONTROL_TOTALS", "")]),
    (CHUNK, {"items": [], "count": 0, "total_minor": 0}, [("INVALID_DATA", "/items")]),
    (
        CHUNK,
        {"items": [item(1, beneficiary_id=""), item(2, narrative="\x07")]},
        [("INVALID_BENEFICIARY_ID", "/items/0/beneficiary_id"), ("INVALID_NARRATIVE", "/items/1/narrative")],
    ),
    (
        CHUNK,
        {"items": [item(1, amount_minor="5"), item(2, disbursement_id=7)]},
        [("INVALID_DISBURSEMENT_ID", "/items/1/disbursement_id"), ("INVALID_DISBURSEMENT_QUANTITY", "/items/0/amount_minor")],
    ),
    (
        c.DisbursementsCancellationRequested(envelope_id="e1", disbursement_ids=["d1"], reason="x"),
        {"disbursement_ids": [""], "reason": ""},
        [("INVALID_DISBURSEMENT_ID", "/disbursement_ids/0"), ("INVALID_REASON", "/reason")],
    ),
]


def test_every_fault_of_shape_is_told_with_its_place(world: World) -> None:
    world.run("ingestion")
    for number, (data, changes, _) in enumerate(SHAPES):
        topic = ENVELOPES if data is ENVELOPE else DISBURSEMENTS
        headers = message(data, "k", f"s{number}")[2]
        world.publish_raw(topic, b"k", altered(data, **changes), headers)
    answered = {
        answer.data.submission_ids[0]: answer for answer in world.events(RESULTS, c.SubmissionRejected, at_least=len(SHAPES))
    }
    for number, (_, changes, expected) in enumerate(SHAPES):
        answer = answered[f"s{number}"]
        assert codes(answer) == sorted(expected), changes
        assert all(fault.message for fault in answer.data.errors)
        if "envelope_id" not in changes:
            assert answer.data.envelope_id == uuid_of("e1")
    assert world.sql("ingestion", "SELECT 1 FROM envelopes UNION SELECT 1 FROM staged UNION SELECT 1 FROM dead_letters") == []
    recorded = world.sql("ingestion", "SELECT errors FROM ops_submissions WHERE outcome = 'rejected'")
    assert len(recorded) == len(SHAPES)
    assert all("message" in row.errors for row in recorded)


def test_what_has_no_name_is_answered_by_its_place(world: World) -> None:
    world.run("ingestion")
    good = message(ENVELOPE, "k", "x")[2]
    no_id = {name: value for name, value in good.items() if name != "ce_id"}
    structured = {"content-type": "application/cloudevents+json"}
    event = {"specversion": "1.0", "id": "s1", "source": "test", "type": c.EnvelopeSubmitted.TYPE}
    world.publish_many(
        ENVELOPES,
        [
            (b"k", b"{}", {}),
            (b"k", b"{}", no_id),
            (b"k", b"[" * 100_000, structured),
            (b"k", b"\xff\xfe", structured),
            (b"k", b"", {**good, "ce_id": "y" * 400}),
            (b"k", b"not json", {**good, "ce_id": "json"}),
            (b"k", b"{}", {**good, "ce_id": "type", "ce_type": "almoner.ingestion.DisbursementsAdded.v1"}),
            (b"k", b"{}", {**good, "ce_id": "spec", "ce_specversion": "9"}),
            (b"k", b'{"a":"' + b"x" * 1_000_000 + b'"}', {**good, "ce_id": "large"}),
            (b"k", json.dumps({**event, "data": json.loads(ENVELOPE.model_dump_json())}).encode(), structured),
        ],
    )
    assert answers_to(world, "s1")[0].data.outcome == "accepted"
    refused = world.events(RESULTS, c.SubmissionRejected, at_least=9)
    places = {answer.data.offset: answer for answer in refused}
    assert [codes(places[n])[0][0] for n in range(9)] == [
        *["INVALID_CLOUDEVENT"] * 2,
        *["INVALID_JSON"] * 2,
        "INVALID_CLOUDEVENT",
        "INVALID_JSON",
        "UNKNOWN_TYPE",
        "INVALID_CLOUDEVENT",
        "EVENT_TOO_LARGE",
    ]
    assert [places[n].data.submission_ids for n in range(9)] == [[], [], [], [], [], ["json"], ["type"], ["spec"], ["large"]]
    assert all(answer.data.topic == ENVELOPES for answer in refused)
    assert world.sql("ingestion", "SELECT 1 FROM dead_letters") == []


def test_what_the_envelope_does_not_allow(world: World) -> None:
    world.run("ingestion")
    answers_to(world, world.publish(ENVELOPES, ENVELOPE, "e1"))
    first = world.publish(DISBURSEMENTS, chunk("e1", disbursements(1, 5)), "e1")
    answers_to(world, first)

    def refused(data: Any, topic: str = DISBURSEMENTS) -> list[tuple[str, str]]:
        return codes(answers_to(world, world.publish(topic, data, "e1"))[0])

    assert refused(chunk("e1", disbursements(5, 2))) == [("DUPLICATE_DISBURSEMENT_ID", "/items/0/disbursement_id")]
    twice = disbursements(8, 1) * 2
    assert refused(chunk("e1", twice)) == [("DUPLICATE_DISBURSEMENT_ID", "/items/1/disbursement_id")]
    assert refused(chunk("e1", disbursements(6, 6))) == [
        ("NO_OF_DISBURSEMENTS_EXCEEDS_DECLARED", "/count"),
        ("TOTAL_DISBURSEMENT_QUANTITY_EXCEEDS_DECLARED", "/total_minor"),
    ]
    assert refused(envelope("e1", 11, total(1, 11)), ENVELOPES) == [("MULTIPLE_ENVELOPES_FOUND", "/envelope_id")]
    same_again = answers_to(world, world.publish(ENVELOPES, ENVELOPE, "e1"))[0]
    assert same_again.data.outcome == "accepted"
    assert world.sql("ingestion", "SELECT received FROM envelopes")[0].received == 5


def test_one_person_twice_is_warned_about_or_refused(world: World) -> None:
    twice = [*disbursements(1, 2), c.Disbursement(disbursement_id="d3", beneficiary_id="p1", amount_minor=1003)]
    place = [("DUPLICATE_BENEFICIARY", "/items/2/beneficiary_id")]
    one = world.run("ingestion")
    answers_to(world, world.publish(ENVELOPES, envelope("e1", 3, total(1, 3)), "e1"))
    [answer] = answers_to(world, world.publish(DISBURSEMENTS, chunk("e1", twice), "e1", event_id="twice"))
    assert answer.data.outcome == "accepted"
    assert [(w.code, w.pointer) for w in answer.data.warnings] == place
    world.publish(DISBURSEMENTS, chunk("e1", twice), "e1", event_id="twice")
    assert answers_to(world, "twice", at_least=2)[1].data == answer.data
    assert one.stop() == 0
    world.run("ingestion", ALMONER_INGESTION_DUPLICATE_BENEFICIARY="refuse")
    answers_to(world, world.publish(ENVELOPES, envelope("e2", 3, total(1, 3)), "e2"))
    [answer] = answers_to(world, world.publish(DISBURSEMENTS, chunk("e2", twice), "e2"))
    assert codes(answer) == place


def test_after_the_date_nothing_is_added(world: World) -> None:
    world.publish(ENVELOPES, envelope("e1", 10, total(1, 10), schedule_date=today()), "e1")
    process = world.run("ingestion")
    world.until(lambda: world.sql("ingestion", "SELECT 1 FROM envelopes WHERE NOT EXISTS (SELECT 1 FROM due)"))
    world.sql("ingestion", """UPDATE envelopes SET header = jsonb_set(header, '{schedule_date}', '"2020-01-01"')""")
    assert process.alive
    [answer] = answers_to(world, world.publish(DISBURSEMENTS, chunk("e1", disbursements(1, 1)), "e1"))
    assert codes(answer) == [("DISBURSEMENT_ENVELOPE_DATE_PASSED", "")]


# --- Any bytes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def fold(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fold]:
    for name, value in world.env.items():
        monkeypatch.setenv(name, value)
    loaded = Settings.load()
    database = Database(world.database_url, "ingestion")
    inbox.keep_partitions(database, utc_now())
    yield Fold(database, wire(loaded, database).routes, Limits())
    database.close()


_TYPES: list[type[EventData]] = [
    c.EnvelopeSubmitted,
    c.DisbursementsAdded,
    c.StatementSubmitted,
    c.EnvelopeStatusRequested,
    c.EnvelopeCancellationRequested,
]
_TEXTS = st.one_of(
    st.text(max_size=20), st.sampled_from(["1.0", "test", "e1", "e1-1", "\x00", "x" * 3000, *(t.TYPE for t in _TYPES)])
)
_HEADERS = st.dictionaries(
    st.sampled_from(
        ["ce_id", "ce_source", "ce_type", "ce_specversion", "ce_time", "ce_traceparent", "content-type", "almoner-redrive", "x"]
    ),
    st.one_of(_TEXTS.map(lambda text: text.encode("utf-8", "replace")), st.binary(max_size=20), st.just(b"9" * 30)),
)
_EXAMPLES = [
    ENVELOPE.model_dump_json().encode(),
    CHUNK.model_dump_json().encode(),
    c.EnvelopeCancellationRequested(envelope_id="e1", reason="r").model_dump_json().encode(),
    c.StatementSubmitted(text=":20:R\n:25:A\n:60F:C261121EUR1,\n:61:261121D1,NTRFR//B\n:62F:C261121EUR0,\n")
    .model_dump_json()
    .encode(),
]


@st.composite
def _altered(draw: st.DrawFn) -> bytes:
    value = bytearray(draw(st.sampled_from(_EXAMPLES)))
    for _ in range(draw(st.integers(0, 3))):
        value[draw(st.integers(0, len(value) - 1))] = draw(st.integers(0, 255))
    return bytes(value)


@st.composite
def _messages(draw: st.DrawFn) -> list[tuple[str, bytes, dict[str, bytes]]]:
    found = []
    for _ in range(draw(st.integers(1, 6))):
        topic = draw(st.sampled_from([ENVELOPES, DISBURSEMENTS, STATEMENTS]))
        headers = {
            "ce_specversion": b"1.0",
            "ce_id": b"1",
            "ce_source": b"s",
            "ce_type": draw(st.sampled_from(_TYPES)).TYPE.encode(),
        }
        headers |= draw(_HEADERS)
        found.append((topic, draw(st.one_of(_altered(), st.binary(max_size=200))), headers))
    return found


@given(_messages(), st.integers(-1, 2**62))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_answered_or_staged(fold: Fold, world: World, messages: list[Any], timestamp_ms: int) -> None:
    names = iter(range(10**9))
    raw = [
        RawMessage(topic, 0, next(names), timestamp_ms, None, value, tuple(headers.items()))
        for topic, value, headers in messages
    ]
    with fold.database.transaction() as tx:
        tx.run("DELETE FROM submissions")
        tx.run("DELETE FROM outbox")
        tx.run("DELETE FROM staged")
    assert fold.fold(raw) == len(raw)
    assert world.sql("ingestion", "SELECT 1 FROM dead_letters") == []
    said = world.sql("ingestion", "SELECT count(*) AS n FROM outbox")[0].n
    staged = world.sql("ingestion", "SELECT count(*) AS n FROM staged")[0].n
    assert said + staged > 0


def test_statements_of_sql_do_not_grow_with_the_poll(fold: Fold, world: World, stack: Addresses) -> None:
    def cost(numbers: range) -> int:
        raw = []
        for n in numbers:
            key, value, headers = message(chunk("e1", disbursements(n, 1)), "k", f"c{n}")
            raw.append(RawMessage(DISBURSEMENTS, 0, n, 0, key, value, tuple((k, v.encode()) for k, v in headers.items())))
        before = calls()
        fold.fold(raw)
        return calls() - before

    key, value, headers = message(envelope("e1", 5000, total(1, 5000)), "k", "env")
    fold.fold([RawMessage(ENVELOPES, 0, 0, 0, key, value, tuple((k, v.encode()) for k, v in headers.items()))])
    with statements(stack, (world.name, "almoner_ingestion")) as calls:
        small, large = cost(range(1, 3)), cost(range(3, 503))
    assert 0 < large == small
    assert world.sql("ingestion", "SELECT sum(items) AS n FROM staged")[0].n == 502
