"""Everybody asked for is found or held; settings are checked when they are read."""

import json
import random
from datetime import date
from typing import cast
from uuid import UUID

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import RSAKey
from pydantic import ValidationError

from libs.common.contracts.base import BatchHeader, Item, Items, Mnemonic, chunk
from libs.common.contracts.ingestion import BatchCut
from libs.common.contracts.registry import EVENT_BYTES
from libs.common.db import Tx
from libs.common.envelope import RawMessage, attributes, decode
from libs.common.outbox import Outbox
from libs.common.seal import Sealer, by_column, by_person
from services.resolution import store
from services.resolution.adapters.spar import Spar
from services.resolution.calls import Answered, Resolve
from services.resolution.config import Settings
from services.resolution.domain import Hold, Reply, references, sort_out
from services.resolution.handlers import on_batch_cut
from tests.support.world import SEAL_KEYS, TOKEN_KEY

SEALER = Sealer(SEAL_KEYS, TOKEN_KEY)
REPLIES: st.SearchStrategy[Reply] = st.sampled_from([{"fa_type": "BANK_ACCOUNT"}, Hold("NOT_LINKED")])


def cut(people: list[Item]) -> BatchCut:
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
    return BatchCut(header=header, **chunk(Items.of(people)), sealed=SEALER.seal({}, "not opened here"))


@given(st.lists(st.text(), unique=True), st.data())
def test_everybody_is_found_or_held(asked: list[str], data: st.DataObject) -> None:
    replies = data.draw(st.dictionaries(st.sampled_from(asked) if asked else st.nothing(), REPLIES))
    found, held = sort_out(asked, replies)
    assert found.keys() | held.keys() == set(range(len(asked)))
    assert not found.keys() & held.keys()
    assert all(held[index].reason == "NO_ANSWER" for index, key in enumerate(asked) if key not in replies)


def test_reference_ids_tell_items_and_batches_apart() -> None:
    ids = {one for batch in range(3) for one in references(UUID(int=batch), 1000)}
    assert len(ids) == 3000


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [("(", "is no regular expression"), ("^(?P<iban>.*)$", "needs a group"), (r"(?P<account_number>.)(?P<x>.)", "no part of")],
)
def test_a_pattern_is_checked_at_the_start(pattern: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, {"ALMONER_RESOLUTION_BANK_ACCOUNT_PATTERN": pattern})
    with pytest.raises(ValidationError, match=fault):
        Settings()


RSA = RSAKey.generate_key(2048)
PRIVATE, PUBLIC = (json.dumps(RSA.as_dict(private=private)) for private in (True, False))
MAPPER = "ALMONER_RESOLUTION_MAPPER_"
RESOLVE = "ALMONER_RESOLUTION_RESOLVE_"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({MAPPER + "API": "spar3"}, [MAPPER + "API='spar3': Input should be 'spar1' or 'spar2'"]),
        ({MAPPER + "SIGN_KEY": PUBLIC}, [MAPPER + "SIGN_KEY: is no private key"]),
        ({MAPPER + "SIGN_KEY": "secret"}, [MAPPER + "SIGN_KEY: is no JWK"]),
        ({MAPPER + "ANSWER_KEY": PRIVATE}, [MAPPER + "ANSWER_KEY: is a private key, where the public one belongs"]),
        ({MAPPER + "OAUTH_URL": "ftp://x"}, [MAPPER + "OAUTH_URL: String should match pattern '^(https?://.+)?$'"]),
        (
            {MAPPER + "OAUTH_URL": "http://x", MAPPER + "OAUTH_CLIENT_ID": "us"},
            [MAPPER + "OAUTH_CLIENT_SECRET: Should not be empty where " + MAPPER + "OAUTH_URL is set"],
        ),
        (
            {MAPPER + "SIGN_KEY": PRIVATE, MAPPER + "KEYMANAGER_URL": "http://k"},
            [f"{MAPPER}SIGN_KEY and {MAPPER}KEYMANAGER_URL: Only one of them can sign"],
        ),
        (
            {RESOLVE + "CALLS_PER_SECOND": "0.1"},
            [RESOLVE + "CALLS_PER_SECOND=0.1: Should let 4 requests", "within 38 s"],
        ),
        (
            {RESOLVE + "CALLS_PER_SECOND": "1", RESOLVE + "MAX_ITEMS": "90"},
            [RESOLVE + "CALLS_PER_SECOND=1.0: Should let 48 requests"],
        ),
        ({RESOLVE + "BREAKER_FAILURES": "-1"}, [RESOLVE + "BREAKER_FAILURES='-1': Input should be greater than or equal to 0"]),
        ({RESOLVE + "BREAKER_SECONDS": "0"}, [RESOLVE + "BREAKER_SECONDS='0': Input should be greater than 0"]),
    ],
)
def test_a_wrong_setting_is_named_with_value_and_rule(
    given: dict[str, str], said: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start(monkeypatch, given)
    with pytest.raises(SystemExit) as caught:
        Settings.load()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    for part in said:
        assert part in error
    assert RSA.as_dict(private=True)["n"] not in error  # type: ignore[operator]
    assert "secret" not in error


def test_what_is_configured_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    start(
        monkeypatch,
        {
            MAPPER + "API": "spar2",
            MAPPER + "SIGN_KEY": PRIVATE,
            MAPPER + "ANSWER_KEY": PUBLIC,
            RESOLVE + "CALLS_PER_SECOND": "2.5",
            RESOLVE + "BREAKER_FAILURES": "7",
            RESOLVE + "BREAKER_SECONDS": "9",
        },
    )
    settings = Settings.load()
    limits = settings.limits("resolve")
    assert (limits.calls_per_second, limits.breaker_failures, limits.breaker_seconds) == (2.5, 7, 9)
    assert all(field.description for name, field in Settings.model_fields.items() if name.startswith(("mapper", "resolve")))


def start(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    needed = {
        "DATABASE_URL": "postgresql:///none",
        "ALMONER_SEAL_KEYS": SEAL_KEYS,
        "ALMONER_TOKEN_KEY": TOKEN_KEY,
        MAPPER + "URL": "http://mapper.example",
    }
    for name, value in {**needed, **given}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("structured", [False, True])
def test_what_is_kept_of_a_batch_is_what_came(structured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = cut([Item(disbursement_id="D\u00e9", beneficiary_id="P", amount_minor=100)])
    data = batch.model_dump_json().encode()
    context = {"specversion": "1.0", "id": "1", "source": "test", "type": BatchCut.TYPE}
    value, headers = data, {f"ce_{name}": text for name, text in context.items()}
    if structured:
        value = json.dumps({**context, "data": json.loads(data)}).encode()
        headers = {"content-type": "application/cloudevents+json"}
    pairs = tuple((name, text.encode()) for name, text in headers.items())
    message = RawMessage("ingestion.batches.v1", 0, 0, 0, None, value, pairs)
    kept: list[store.Batch] = []
    monkeypatch.setattr(store, "add_batches", lambda tx, cuts: kept.extend(cuts.values()))

    on_batch_cut(cast(Tx, None), [decode(message, attributes(message), BatchCut)])

    assert store.unpack(zstandard.compress(kept[0].data)) == kept[0].cut == batch
    assert structured or kept[0].data == data


def test_a_part_that_exceeds_an_event_is_split() -> None:
    """Whoever does not fit is held with that reason, and nobody is lost."""
    chance = random.Random(1)
    people = [Item(disbursement_id=f"D{n}", beneficiary_id=f"P{n}", amount_minor=100) for n in range(1000)]
    names = {p.disbursement_id: {"name": "".join(chr(chance.randrange(0x4E00, 0x9FFF)) for _ in range(400))} for p in people}

    batch = cut(people)
    spar = Spar("http://mapper.example", {}, sender_id="", sender_uri="", receiver_id="", max_items=1000)
    address = {"fa_type": "BANK_ACCOUNT", "account_number": "1"}
    held = [(people[0], Hold("NOT_LINKED"))]
    answered = Answered(batch, 1, by_column(names), [(person, address) for person in people[1:]], held)

    event = Resolve(spar, SEALER, Outbox("resolution")).event(answered)

    assert len(event.model_dump_json().encode()) <= EVENT_BYTES
    assert event.count == 499
    everybody = [one.disbursement_id for one in event.items] + [one.disbursement_id for one in event.unresolved]
    assert sorted(everybody) == sorted(person.disbursement_id for person in people)
    assert {one.reason for one in event.unresolved} == {"NOT_LINKED", "PART_TOO_LARGE"}
    assert event.total_minor + event.unresolved_total_minor == batch.total_minor
    sealed = by_person(SEALER.open_people(event.sealed, "BatchAddressesResolved", UUID(int=1), UUID(int=2), 1))
    assert sealed["D1"]["name"] == names["D1"]["name"]
