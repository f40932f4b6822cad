"""Where people live: one zone or a reason each, totals that add up, messages that cannot stop us, settings that are checked."""

import asyncio
import json
import random
from collections.abc import Sequence
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.base import Item
from libs.common.contracts.reference import PersonLocated, ReferenceRejected
from libs.common.contracts.registry import EVENT_BYTES
from libs.common.contracts.resolution import BatchZonesResolved
from libs.common.envelope import RawMessage
from libs.common.outbox import Outbox
from libs.common.seal import by_column
from libs.common.workqueue import Claim, NotSent
from services.resolution.adapters.registries import Registries
from services.resolution.calls import Answered, Locate
from services.resolution.config import Settings
from services.resolution.domain import Hold, Home, home
from services.resolution.doors import Rejected, read
from tests.unit.resolution.test_resolution import SEALER, cut, start

VILLAGE = Home("L1", "large", "S1", "small")
REGISTRIES = "ALMONER_RESOLUTION_REGISTRIES"
LOCATE = Locate(Registries({}), SEALER, Outbox("resolution"))
ZONES = st.builds(
    Home, st.sampled_from(["L1", "L2"]), st.sampled_from(["", "a", "b"]), st.sampled_from(["S1", "S2"]), st.just("code")
)


@pytest.mark.parametrize(
    ("homes", "expected"),
    [
        ([], "NOT_IN_REGISTRY"),
        ([VILLAGE], VILLAGE),
        ([VILLAGE, VILLAGE._replace(small_zone_code="renamed")], VILLAGE),
        ([VILLAGE, VILLAGE._replace(small_zone_id="S2")], "AMBIGUOUS_ANSWER"),
        ([VILLAGE, VILLAGE._replace(large_zone_id="")], "AMBIGUOUS_ANSWER"),
        ([VILLAGE._replace(large_zone_id="")], "NO_ZONE"),
        ([VILLAGE._replace(small_zone_id="")], "NO_ZONE"),
        ([Home("", "", "", "")], "NO_ZONE"),
    ],
)
def test_one_zone_or_a_reason(homes: Sequence[Home], expected: Home | str) -> None:
    found = home("farmers", homes)
    assert (found.reason if isinstance(found, Hold) else found) == expected


@given(st.lists(st.tuples(st.integers(1, 10**12), ZONES | st.just(Hold("NO_ZONE"))), min_size=1, max_size=60))
def test_the_zones_of_an_event_add_up(drawn: list[tuple[int, Home | Hold]]) -> None:
    people = [Item(disbursement_id=f"D{n}", beneficiary_id=f"P{n}", amount_minor=amount) for n, (amount, _) in enumerate(drawn)]
    found = [(person, one) for person, (_, one) in zip(people, drawn, strict=True) if isinstance(one, Home)]
    held = [(person, one) for person, (_, one) in zip(people, drawn, strict=True) if isinstance(one, Hold)]
    event = LOCATE.event(Answered(cut(people), 1, by_column({}), found, held))
    assert isinstance(event, BatchZonesResolved)
    ids = [(zone.large_zone_id, zone.small_zone_id) for zone in event.zones]
    assert ids == sorted(set(ids))
    assert [(ids[item.zone], item.disbursement_id) for item in event.items] == [
        ((one.large_zone_id, one.small_zone_id), person.disbursement_id) for person, one in found
    ]
    assert all(zone.count > 0 for zone in event.zones)
    assert sum(zone.total_minor for zone in event.zones) + event.unresolved_total_minor == sum(p.amount_minor for p in people)
    assert event.count + event.unresolved_count == len(people)


def test_a_part_that_exceeds_an_event_is_split() -> None:
    """A zone for each person, with ids and codes as long as may be: whoever does not fit is held, and nobody is lost."""
    chance = random.Random(1)

    def text(length: int) -> str:
        return "".join(chr(chance.randrange(0x4E00, 0x9FFF)) for _ in range(length))

    people = [Item(disbursement_id=f"D{n}", beneficiary_id=f"P{n}", amount_minor=100) for n in range(1000)]
    found = [(person, Home(text(64), text(200), text(64), text(200))) for person in people]
    batch = cut(people)
    event = LOCATE.event(Answered(batch, 1, by_column({}), found, []))
    assert len(event.model_dump_json().encode()) <= EVENT_BYTES
    assert event.count == 500
    everybody = [one.disbursement_id for one in event.items] + [one.disbursement_id for one in event.unresolved]
    assert sorted(everybody) == sorted(person.disbursement_id for person in people)
    assert {one.reason for one in event.unresolved} == {"PART_TOO_LARGE"}
    assert event.total_minor + event.unresolved_total_minor == batch.total_minor


def test_whoever_was_resolved_before_is_not_held_by_a_question_in_vain() -> None:
    people = [Item(disbursement_id=f"D{n}", beneficiary_id=f"P{n}", amount_minor=100) for n in range(3)]
    held = [(person, Hold("NO_ZONE")) for person in people]
    event = LOCATE.event(Answered(cut(people), 2, by_column({}), [], held, frozenset({"D1"})))
    assert [one.disbursement_id for one in event.unresolved] == ["D0", "D2"]
    assert (event.unresolved_count, event.unresolved_total_minor) == (2, 200)


def message(key: bytes | None, value: bytes, headers: dict[str, bytes]) -> RawMessage:
    return RawMessage("reference.people.v1", 0, 1, 0, key, value, tuple(headers.items()))


@given(
    st.none() | st.binary(max_size=80) | st.just(b"farmers/P1"),
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(lambda x: json.dumps(x).encode()),
    st.dictionaries(
        st.sampled_from(["ce_specversion", "ce_id", "ce_source", "ce_type", "content-type", "ce_time"]),
        st.sampled_from([b"1.0", b"application/cloudevents+json", PersonLocated.TYPE.encode()]) | st.binary(max_size=30),
    ),
)
def test_whatever_is_published_is_taken_or_answered(key: bytes | None, value: bytes, headers: dict[str, bytes]) -> None:
    try:
        (registry, person), found = read(message(key, value, headers))
    except Rejected as rejected:
        answer = ReferenceRejected(topic="t", partition=0, offset=0, key="", errors=list(rejected.faults))
        assert all(fault.message for fault in answer.errors)
    else:
        assert found is None
        assert f"{registry}/{person}".encode() == key
        assert not value


@pytest.mark.parametrize(
    ("registries", "said"),
    [
        ("{", "is no JSON"),
        ({"farmers": {}}, " at /farmers: source database needs a url, source topic has none"),
        ({"farmers": {"source": "topic", "url": "postgresql:///secret"}}, "source topic has none"),
        ({"farmers": {"url": "mysql://reader:secret@db/x"}}, " at /farmers/url: is no SQLAlchemy URL of a PostgreSQL database"),
        ({"farmers": {"url": "secret"}}, " at /farmers/url: is no SQLAlchemy URL"),
        ({"farmers": {"source": "topic", "tabel": "secret"}}, " at /farmers/tabel: Extra inputs are not permitted"),
        ({"farmers": {"url": "postgresql:///x", "id": ""}}, " at /farmers/id: String should have at least 1 character"),
    ],
)
def test_wrong_registries_are_named_and_never_shown(
    registries: object, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start(monkeypatch, {REGISTRIES: registries if isinstance(registries, str) else json.dumps(registries)})
    with pytest.raises(SystemExit):
        Settings.load()
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith(REGISTRIES)
    assert "secret" not in error


def test_a_look_up_must_come_within_its_lease(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    start(monkeypatch, {"ALMONER_RESOLUTION_LOCATE_CALLS_PER_SECOND": "0.1"})
    with pytest.raises(SystemExit):
        Settings.load()
    assert "LOCATE_CALLS_PER_SECOND=0.1: Should let 4 requests (locate_concurrency times" in capsys.readouterr().err


class Knowing:
    """A registry that answers with its own name."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def locate(self, _claim: Claim, _registry: str, people: Sequence[str]) -> dict[str, list[Home]] | NotSent:
        return {person: [VILLAGE._replace(large_zone_id=self.name)] for person in people}


@pytest.mark.parametrize(
    ("configured", "registry", "answers"),
    [
        (["farmers", "default"], "farmers", "farmers"),
        (["farmers", "default"], "farmer", "default"),
        (["farmers", "default"], "", "default"),
        (["farmers"], "Farmers", None),
        (["farmers"], "", None),
    ],
)
def test_a_registry_is_chosen_by_its_exact_name(configured: list[str], registry: str, answers: str | None) -> None:
    claim = Claim("locate", "1/1", 0, UUID(int=1), UUID(int=2), 1, False, float("inf"), 1.0, None)  # type: ignore[arg-type]
    registries = Registries({name: Knowing(name) for name in configured})
    found = asyncio.run(registries.locate(claim, registry, ["P1"]))
    if answers:
        assert not isinstance(found, NotSent)
        assert found["P1"][0].large_zone_id == answers
    else:
        assert isinstance(found, NotSent)
        assert (found.code, found.final) == ("UNKNOWN_REGISTRY", True)
