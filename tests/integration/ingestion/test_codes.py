"""Every code with which a submission is refused: what brings it about, where it points, and that the answer says what to do.

One ingestion for all of them, as it runs in production."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from libs.common.contracts import ingestion as c
from libs.common.contracts.base import EventData, Mnemonic
from libs.local.supervisor import ROOT
from tests.integration.ingestion.publisher import (
    DISBURSEMENTS,
    ENVELOPES,
    RESULTS,
    STATEMENTS,
    answers_to,
    chunk,
    debits,
    disbursements,
    envelope,
    judged,
    message,
    statement_text,
    today,
    total,
    uuid_of,
)
from tests.support.stacks import Databases
from tests.support.world import Kafka, World

Refusal = Callable[[World, str], c.SubmissionRejected]  # of something about an envelope with this name


@pytest.fixture(scope="module")
def door(kafka: Kafka, databases: Databases, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with closing(World(kafka, databases, template, tmp_path_factory.mktemp("codes"))) as world:
        world.run(
            "ingestion",
            ALMONER_INGESTION_MODE="production",
            ALMONER_INGESTION_PUBLISHERS='{"test": ["farmers"], "bank": []}',
            ALMONER_INGESTION_DUPLICATE_BENEFICIARY="refuse",
            ALMONER_INGESTION_SCHEDULE_MAX_DAYS="30",
        )
        yield world


def refused(world: World, submission_id: str) -> c.SubmissionRejected:
    """The answer to a submission that was refused."""
    answer = judged(world, submission_id).data
    assert isinstance(answer, c.SubmissionRejected), answer
    return answer


def accepted(world: World, topic: str, data: EventData, key: str) -> None:
    assert answers_to(world, world.publish(topic, data, key))[-1].data.outcome == "accepted"


def changed(topic: str, data: Callable[[str], EventData], **changes: Any) -> Refusal:
    """Of something that is good but for these fields."""

    def refuse(world: World, name: str) -> c.SubmissionRejected:
        good = data(name)
        value = json.dumps({**json.loads(good.model_dump_json()), **changes}).encode()
        event_id = str(uuid4())
        world.publish_raw(topic, name.encode(), value, message(good, name, event_id)[2])
        return refused(world, event_id)

    return refuse


def ten(name: str, **changes: Any) -> c.EnvelopeSubmitted:
    return envelope(name, 10, total(1, 10), **changes)


def declared(**changes: Any) -> Refusal:
    return changed(ENVELOPES, ten, **changes)


def item(**changes: Any) -> Refusal:
    faulty = {**disbursements(1, 1)[0], **changes}
    return changed(DISBURSEMENTS, lambda name: chunk(name, disbursements(1, 1)), items=[faulty])


def after(*before: tuple[str, EventData | Callable[[str], EventData]], then: tuple[str, Any]) -> Refusal:
    """Of the last of several; the others are accepted."""

    def made(data: Any, name: str) -> EventData:
        return data(name) if callable(data) else data  # type: ignore[no-any-return]

    def refuse(world: World, name: str) -> c.SubmissionRejected:
        for topic, data in [(ENVELOPES, ten), *before]:
            accepted(world, topic, made(data, name), name)
        topic, data = then
        return refused(world, world.publish(topic, made(data, name), name))

    return refuse


def some(first: int, count: int) -> tuple[str, Callable[[str], EventData]]:
    return DISBURSEMENTS, lambda name: chunk(name, disbursements(first, count))


def same_id(name: str) -> EventData:
    return chunk(name, [{**disbursements(1, 1)[0], "beneficiary_id": "somebody else"}])


def cancelled(name: str) -> EventData:
    return c.EnvelopeCancellationRequested(envelope_id=name, reason="wrong month")


def amended(**fields: Any) -> tuple[str, Callable[[str], EventData]]:
    return ENVELOPES, lambda name: c.EnvelopeAmendmentRequested(envelope_id=name, reason="more farmers", **fields)


def raw(headers: dict[str, str], value: bytes) -> Refusal:
    """Of something that may not even have a name, found by its place."""

    def refuse(world: World, name: str) -> c.SubmissionRejected:
        good = message(ten(name), name, name)[2]

        def answered() -> dict[tuple[str | None, int | None, int | None], c.SubmissionRejected]:
            answers = [answer.data for answer in world.events(RESULTS, c.SubmissionRejected)]
            return {(a.topic, a.partition, a.offset): a for a in answers if a.topic == ENVELOPES and a.envelope_id is None}

        before = answered().keys()
        world.publish_raw(ENVELOPES, b"k", value, {k: v for k, v in {**good, **headers}.items() if v})
        return world.until(lambda: [answer for place, answer in answered().items() if place not in before])[-1]

    return refuse


def after_its_date(world: World, name: str) -> c.SubmissionRejected:
    accepted(world, ENVELOPES, ten(name), name)
    world.until(lambda: not world.sql("ingestion", "SELECT 1 FROM due"))
    changes = (
        """UPDATE envelopes SET header = jsonb_set(header, '{schedule_date}', '"2020-01-01"') WHERE envelope_id = %(id)s"""
    )
    world.sql("ingestion", changes, id=uuid_of(name))
    return refused(world, world.publish(*some(1, 1)[:1], chunk(name, disbursements(1, 1)), name))


def with_an_id_that_was_used(world: World, name: str) -> c.SubmissionRejected:
    world.publish(ENVELOPES, ten(name), name, event_id=name)
    answers_to(world, name)
    world.publish(ENVELOPES, ten(name, target_registry="fisher"), name, event_id=name)
    return answers_to(world, name, at_least=2)[1].data  # type: ignore[no-any-return]


def complete(world: World, name: str) -> c.SubmissionRejected:
    accepted(world, ENVELOPES, ten(name), name)
    accepted(world, DISBURSEMENTS, chunk(name, disbursements(1, 10)), name)
    topic, data = amended(number_of_disbursements=11)
    return refused(world, world.publish(topic, data(name), name))


def statement(change: Callable[[str], str]) -> Refusal:
    def refuse(world: World, name: str) -> c.SubmissionRejected:
        text = change(statement_text(name, debits(2)))
        return refused(world, world.publish(STATEMENTS, c.StatementSubmitted(text=text), name, source="bank"))

    return refuse


def of_another_programme(world: World, name: str) -> c.SubmissionRejected:
    return refused(world, world.publish(ENVELOPES, ten(name, programme=Mnemonic(id="fishers")), name))


REQUEST = c.DisbursementsCancellationRequested(envelope_id="x", disbursement_ids=["d1"], reason="x")

CASES: dict[str, tuple[Refusal, str]] = {
    # Codes of the benefits domain.
    "INVALID_PROGRAM": (declared(programme={"id": ""}), "/programme/id"),
    "INVALID_DISBURSEMENT_FREQUENCY": (declared(cycle={"id": "1", "frequency": "Hourly"}), "/cycle/frequency"),
    "INVALID_CYCLE": (declared(cycle="May"), "/cycle"),
    "INVALID_NO_OF_BENEFICIARIES": (declared(number_of_beneficiaries=11), "/number_of_beneficiaries"),
    "INVALID_NO_OF_DISBURSEMENTS": (declared(number_of_disbursements=0), "/number_of_disbursements"),
    "INVALID_DISBURSEMENT_QUANTITY": (item(amount_minor=12.5), "/items/0/amount_minor"),
    "INVALID_BENEFIT_CODE": (declared(benefit_code={"id": "x", "type": "RICE"}), "/benefit_code/type"),
    "INVALID_MEASUREMENT_UNIT": (
        declared(benefit_code={"id": "x", "type": "COMMODITY"}, currency=None, measurement_unit=""),
        "/measurement_unit",
    ),
    "INVALID_CONTACT": (item(contact={"email": "nobody at example.org"}), "/items/0/contact/email"),
    "INVALID_TARGET_REGISTRY": (declared(target_registry="x" * 201), "/target_registry"),
    "INVALID_DISBURSEMENT_SCHEDULE_DATE": (declared(schedule_date=str(today() + timedelta(days=32))), "/schedule_date"),
    "INVALID_BENEFICIARY_ID": (item(beneficiary_id=""), "/items/0/beneficiary_id"),
    "INVALID_NARRATIVE": (item(narrative="\x07"), "/items/0/narrative"),
    "MULTIPLE_ENVELOPES_FOUND": (after(then=(ENVELOPES, lambda n: ten(n, target_registry="fisher"))), "/envelope_id"),
    "DISBURSEMENT_ENVELOPE_NOT_FOUND": (changed(ENVELOPES, lambda n: c.EnvelopeStatusRequested(envelope_id=n)), "/envelope_id"),
    "DISBURSEMENT_ENVELOPE_ALREADY_CANCELLED": (after((ENVELOPES, cancelled), then=some(1, 1)), ""),
    "DISBURSEMENT_ENVELOPE_DATE_PASSED": (after_its_date, ""),
    "NO_OF_DISBURSEMENTS_EXCEEDS_DECLARED": (
        after(amended(total_minor=10**6), some(1, 5), then=some(6, 6)),
        "/count",
    ),
    "TOTAL_DISBURSEMENT_QUANTITY_EXCEEDS_DECLARED": (after(some(1, 9), then=some(11, 1)), "/total_minor"),
    "DUPLICATE_DISBURSEMENT_ID": (after(some(1, 1), then=(DISBURSEMENTS, same_id)), "/items/0/disbursement_id"),
    "DUPLICATE_BENEFICIARY": (
        after(
            then=(
                DISBURSEMENTS,
                lambda n: chunk(n, [{**d, "beneficiary_id": "p"} for d in disbursements(1, 2)]),
            )
        ),
        "/items/1/beneficiary_id",
    ),
    "ID_REUSED": (with_an_id_that_was_used, ""),
    # What else can be wrong with an envelope and its disbursements.
    "INVALID_SOURCE": (of_another_programme, "/programme/id"),
    "INVALID_ENVELOPE_ID": (declared(envelope_id="two\nlines"), "/envelope_id"),
    "INVALID_CURRENCY": (declared(currency="ABC"), "/currency"),
    "INVALID_TIME_ZONE": (declared(time_zone="Mars/Base"), "/time_zone"),
    "INVALID_DISBURSEMENT_ID": (item(disbursement_id=7), "/items/0/disbursement_id"),
    "INVALID_BENEFICIARY_NAME": (item(beneficiary_name="x" * 201), "/items/0/beneficiary_name"),
    "INVALID_CONTROL_TOTALS": (changed(DISBURSEMENTS, lambda n: chunk(n, disbursements(1, 2)), count=3), ""),
    "INVALID_REASON": (changed(DISBURSEMENTS, lambda n: REQUEST.model_copy(update={"envelope_id": n}), reason=""), "/reason"),
    "INVALID_DATA": (changed(DISBURSEMENTS, lambda n: chunk(n, disbursements(1, 2)), items=[]), "/items"),
    "INVALID_AMENDMENT": (changed(ENVELOPES, amended()[1]), ""),
    "DISBURSEMENT_ENVELOPE_COMPLETE": (complete, "/number_of_disbursements"),
    # The event itself.
    "INVALID_CLOUDEVENT": (raw({"ce_id": ""}, b"{}"), "/id"),
    "INVALID_JSON": (raw({}, b"not json"), ""),
    "UNKNOWN_TYPE": (raw({"ce_type": "almoner.ingestion.DisbursementsAdded.v1"}, b"{}"), ""),
    "EVENT_TOO_LARGE": (raw({}, b'{"a":"' + b"x" * 1_000_000 + b'"}'), ""),
    # Statements.
    "INVALID_STATEMENT": (statement(lambda text: "garbage"), "/text"),
    "NO_REFERENCE": (statement(lambda text: text.split("\r\n", 1)[1]), "/text"),
    "NO_ACCOUNT": (statement(lambda text: re.sub(":25:.*", ":25:", text)), "/text"),
    "NO_OPENING_BALANCE": (statement(lambda text: text.replace(":60F:", ":60Q:")), "/text"),
    "NO_CLOSING_BALANCE": (statement(lambda text: text.split(":62F:")[0]), "/text"),
}


# In our words: what is wrong with a value is told by pydantic, which says "should" and nothing of these.
WHAT_TO_DO = re.compile(r"\b(send|submit|ask|give|declare|amend|cancel)\b")


def test_what_is_missing_has_its_place_and_says_what_to_send(door: World) -> None:
    event_id = str(uuid4())
    headers = message(ten("missing"), "missing", event_id)[2]
    door.publish_raw(ENVELOPES, b"missing", b'{"envelope_id": "missing", "programme": {}}', headers)
    errors = refused(door, event_id).errors
    assert [(fault.code, fault.pointer) for fault in errors] == [
        ("INVALID_PROGRAM", "/programme/id"),
        ("INVALID_BENEFIT_CODE", "/benefit_code"),
        ("INVALID_CYCLE", "/cycle"),
        ("INVALID_NO_OF_BENEFICIARIES", "/number_of_beneficiaries"),
        ("INVALID_NO_OF_DISBURSEMENTS", "/number_of_disbursements"),
        ("INVALID_DISBURSEMENT_QUANTITY", "/total_minor"),
        ("INVALID_DISBURSEMENT_SCHEDULE_DATE", "/schedule_date"),
    ]
    assert all(fault.message.startswith("Field required; send ") for fault in errors), errors


@pytest.mark.parametrize("code", CASES)
def test_a_code_has_its_place_and_says_what_to_do(door: World, code: str) -> None:
    refuse, pointer = CASES[code]
    answer = refuse(door, code.lower())
    assert [(fault.code, fault.pointer) for fault in answer.errors] == [(code, pointer)]
    assert WHAT_TO_DO.search(answer.errors[0].message), answer.errors
    assert door.sql("ingestion", "SELECT 1 FROM dead_letters") == []


def test_the_readme_lists_every_code() -> None:
    text = (ROOT / "services" / "ingestion" / "README.md").read_text()
    table = text.partition("## Codes\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| ((?:`[A-Z_]+`(?:, )?)+)", table, re.MULTILINE)
    codes = [code for row in listed for code in re.findall(r"`([A-Z_]+)`", row)]
    assert sorted(codes) == sorted([*CASES, *WARNINGS])


# Told with what was taken; each has its test where it arises.
WARNINGS = ["ALREADY_DISPATCHED", "OUTCOME_UNKNOWN", "SAME_NUMBER", "NUMBER_GAP", "BALANCE_GAP"]


def test_every_code_in_the_source_has_a_case() -> None:
    """Whatever looks like a code in ingestion's source is one of these, so that none is added without a test."""
    sources = [path for path in Path(ROOT / "services" / "ingestion").rglob("*.py") if "migrations" not in path.parts]
    named = {
        found
        for path in sources
        for found in re.findall(r'"((?:INVALID|DISBURSEMENT|DUPLICATE|MULTIPLE|NO|TOTAL)_[A-Z_]+)"', path.read_text())
    }
    assert named <= CASES.keys()
