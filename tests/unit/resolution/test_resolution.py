"""Everybody asked for is found or held; settings are checked when they are read."""

import random
from datetime import date
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from libs.common.contracts.base import BatchHeader, Item, Mnemonic, totals
from libs.common.contracts.ingestion import BatchCut
from libs.common.contracts.registry import EVENT_BYTES
from libs.common.outbox import Outbox
from libs.common.seal import Sealer
from services.resolution.adapters.spar import Spar
from services.resolution.config import Settings
from services.resolution.domain import Hold, Reply, reference, sort_out
from services.resolution.handlers import Answered, Resolve
from tests.support.world import SEAL_KEYS, TOKEN_KEY

REPLIES: st.SearchStrategy[Reply] = st.sampled_from([{"fa_type": "BANK_ACCOUNT"}, Hold("NOT_LINKED")])


@given(st.lists(st.text(), unique=True), st.data())
def test_everybody_is_found_or_held(asked: list[str], data: st.DataObject) -> None:
    replies = data.draw(st.dictionaries(st.sampled_from(asked) if asked else st.nothing(), REPLIES))
    found, held = sort_out(asked, replies)
    assert found.keys() | held.keys() == set(range(len(asked)))
    assert not found.keys() & held.keys()
    assert all(held[index].reason == "NO_ANSWER" for index, key in enumerate(asked) if key not in replies)


def test_reference_ids_tell_items_and_batches_apart() -> None:
    ids = {reference(UUID(int=batch), position) for batch in range(3) for position in range(1000)}
    assert len(ids) == 3000


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [("(", "is no regular expression"), ("^(?P<iban>.*)$", "needs a group"), (r"(?P<account_number>.)(?P<x>.)", "no part of")],
)
def test_a_pattern_is_checked_at_the_start(pattern: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql:///none")
    monkeypatch.setenv("ALMONER_SEAL_KEYS", SEAL_KEYS)
    monkeypatch.setenv("ALMONER_TOKEN_KEY", TOKEN_KEY)
    monkeypatch.setenv("ALMONER_RESOLUTION_MAPPER_URL", "http://mapper.example")
    monkeypatch.setenv("ALMONER_RESOLUTION_BANK_ACCOUNT_PATTERN", pattern)
    with pytest.raises(ValidationError, match=fault):
        Settings()


def test_a_part_that_exceeds_an_event_is_split() -> None:
    """Whoever does not fit is held with that reason, and nobody is lost."""
    chance = random.Random(1)
    people = [Item(disbursement_id=f"D{n}", beneficiary_id=f"P{n}", amount_minor=100) for n in range(1000)]
    names = {p.disbursement_id: {"name": "".join(chr(chance.randrange(0x4E00, 0x9FFF)) for _ in range(400))} for p in people}
    sealer = Sealer(SEAL_KEYS, TOKEN_KEY)
    header = BatchHeader(
        envelope_id=UUID(int=1),
        source="test",
        publisher_envelope_id="E",
        programme=Mnemonic(id="P"),
        benefit_code=Mnemonic(id="B"),
        benefit_type="CASH_DIGITAL",
        cycle=Mnemonic(id="C"),
        currency="EUR",
        schedule_date=date(2026, 3, 1),
        batch_id=UUID(int=2),
        number=1,
    )
    batch = BatchCut(header=header, items=people, **totals(people), sealed=sealer.seal({}, "not opened here"))
    spar = Spar("http://mapper.example", {}, sender_id="", sender_uri="", receiver_id="", max_items=1000)
    address = {"fa_type": "BANK_ACCOUNT", "account_number": "1"}
    held = [(people[0], Hold("NOT_LINKED"))]
    answered = Answered(batch, 1, names, [(person, address) for person in people[1:]], held)

    event = Resolve(spar, sealer, Outbox("resolution")).event(answered)

    assert len(event.model_dump_json().encode()) <= EVENT_BYTES
    assert event.count == 499
    everybody = [one.disbursement_id for one in event.items] + [one.disbursement_id for one in event.unresolved]
    assert sorted(everybody) == sorted(person.disbursement_id for person in people)
    assert {one.reason for one in event.unresolved} == {"NOT_LINKED", "PART_TOO_LARGE"}
    assert event.total_minor + event.unresolved_total_minor == batch.total_minor
    assert sealer.open(event.sealed, "BatchAddressesResolved", UUID(int=1), UUID(int=2), 1)["D1"]["name"] == names["D1"]["name"]
