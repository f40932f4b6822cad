"""What a publisher and a bank send to ingestion, and how its answers are read."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from libs.common.contracts import ingestion as c
from libs.common.contracts.base import EventData, Mnemonic, envelope_uuid
from libs.common.envelope import Event, headers_for
from libs.common.seal import Sealer, by_person
from libs.local import mt940
from tests.support.world import SEAL_KEYS, TOKEN_KEY, World

ENVELOPES = "ingestion.inbox-envelopes.v1"
DISBURSEMENTS = "ingestion.inbox-disbursements.v1"
STATEMENTS = "ingestion.inbox-statements.v1"
RESULTS = "ingestion.results.v1"
FACTS = "ingestion.envelopes.v1"
BATCHES = "ingestion.batches.v1"
LINES = "ingestion.statements.v1"
SOURCE = "test"
SEALER = Sealer(SEAL_KEYS, TOKEN_KEY)


def today() -> date:
    return datetime.now(UTC).date()


def envelope(name: str, declared: int, declared_minor: int, **changes: Any) -> c.EnvelopeSubmitted:
    fields: dict[str, Any] = {
        "envelope_id": name,
        "programme": Mnemonic(id="farmers", mnemonic="Farmers' support"),
        "benefit_code": c.BenefitCode(id="cash", mnemonic="Cash", type="CASH_DIGITAL"),
        "cycle": c.Cycle(id="2026-11", mnemonic="November", frequency="Monthly"),
        "target_registry": "farmer",
        "number_of_beneficiaries": declared,
        "number_of_disbursements": declared,
        "total_minor": declared_minor,
        "currency": "EUR",
        "schedule_date": today() + timedelta(days=1),
    }
    return c.EnvelopeSubmitted(**{**fields, **changes})


def disbursements(first: int, count: int) -> list[c.Disbursement]:
    """Numbers first, first + 1, …; number n is for person n over 1000 + n minor units."""
    return [
        c.Disbursement(
            disbursement_id=f"d{n}",
            beneficiary_id=f"p{n}",
            amount_minor=1000 + n,
            beneficiary_name=f"Ama Ödegård {n}",
            narrative=f"November {n}",
        )
        for n in range(first, first + count)
    ]


def total(first: int, count: int) -> int:
    return sum(1000 + n for n in range(first, first + count))


def chunk(name: str, items: Sequence[c.Disbursement]) -> c.DisbursementsAdded:
    return c.DisbursementsAdded(
        envelope_id=name, items=list(items), count=len(items), total_minor=sum(item["amount_minor"] for item in items)
    )


def message(
    data: EventData, key: str, event_id: str | None = None, source: str = SOURCE
) -> tuple[bytes, bytes, dict[str, str]]:
    """For World.publish_many."""
    headers = headers_for(type(data), event_id=event_id or str(uuid4()), source=source, time=datetime.now(UTC), cause=None)
    return key.encode(), data.model_dump_json().encode(), headers


def chunks_of(name: str, count: int, size: int) -> list[tuple[bytes, bytes, dict[str, str]]]:
    """`count` disbursements in events of `size`, each event under a key of its own."""
    return [
        message(chunk(name, disbursements(first, min(size, count - first + 1))), f"{name}/{first}", f"{name}-{first}")
        for first in range(1, count + 1, size)
    ]


def uuid_of(name: str, source: str = SOURCE) -> UUID:
    return envelope_uuid(source, name)


def answers_to(world: World, submission_id: str, at_least: int = 1) -> list[Event[Any]]:
    """All answers which name a submission, in the order in which they were published."""

    def found() -> list[Event[Any]]:
        naming = [e for e in all_answers(world) if submission_id in e.data.submission_ids]
        return sorted(naming, key=lambda event: (event.raw.timestamp_ms, event.raw.offset))

    return world.until(lambda: answers if len(answers := found()) >= at_least else [], what=f"answers to {submission_id}")


def judged(world: World, submission_id: str) -> Event[Any]:
    """The answer to a submission; what was parked first is answered twice."""
    answers = world.until(
        lambda: [a for a in answers_to(world, submission_id) if getattr(a.data, "outcome", "") != "parked"],
        what=f"a judgement of {submission_id}",
    )
    return answers[-1]


def all_answers(world: World) -> list[Event[Any]]:
    return world.events(RESULTS, c.SubmissionAccepted, c.SubmissionRejected, c.EnvelopeStatus)


def codes(event: Event[Any]) -> list[tuple[str, str]]:
    return sorted((fault.code, fault.pointer) for fault in event.data.errors)


def check_batches(world: World, name: str, count: int, sizes: Sequence[int]) -> list[Event[c.BatchCut]]:
    """The batches of an envelope hold every disbursement once, with what is personal, in batches of these sizes."""
    envelope_id = uuid_of(name)

    def found() -> list[Event[c.BatchCut]]:
        cut = [e for e in world.events(BATCHES, c.BatchCut) if e.data.header.envelope_id == envelope_id]
        return cut if len(cut) >= len(sizes) else []

    events = world.until(found, what=f"{len(sizes)} batches of {name}")
    events.sort(key=lambda event: event.data.header.number)
    assert [event.data.header.number for event in events] == list(range(1, len(sizes) + 1))
    assert [event.data.count for event in events] == list(sizes)
    wanted = {item["disbursement_id"]: item for item in disbursements(1, count)}
    assert Counter(item.disbursement_id for e in events for item in e.data.items) == Counter(wanted.keys())
    for event in events:
        header = event.data.header
        personal = by_person(SEALER.open_people(event.data.sealed, "BatchCut", envelope_id, header.batch_id))
        assert event.correlation_id == str(envelope_id)
        assert event.raw.key == str(header.batch_id).encode()
        for item in event.data.items:
            assert (item.beneficiary_id, item.amount_minor) == (
                wanted[item.disbursement_id]["beneficiary_id"],
                wanted[item.disbursement_id]["amount_minor"],
            )
            assert personal[item.disbursement_id] == {
                "name": wanted[item.disbursement_id]["beneficiary_name"],
                "narrative": wanted[item.disbursement_id]["narrative"],
            }
    return events


def statement_text(account: str, lines: Sequence[mt940.Line], number: int = 1, currency: str = "EUR") -> str:
    """A statement as the simulated bank writes it."""
    return mt940.statement(
        reference="STMT",
        account=account,
        number=number,
        currency=currency,
        opening_minor=0,
        closing_minor=sum(line.effect_minor for line in lines),
        day=date(2026, 11, 21),
        lines=lines,
    )


def debits(count: int, first: int = 1) -> list[mt940.Line]:
    return [
        mt940.Line("D", 1000 + n, f"REF{n:013}", f"BANK{n}", ["November", "", "2026-11", f"p{n}", f"REF{n:013}"])
        for n in range(first, first + count)
    ]
