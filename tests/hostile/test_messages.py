"""Hostile publishers beside good ones, through the real broker: every good event goes on, every hostile one is answered with a
code, a place and advice, and nothing stops, piles up or grows."""

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from libs.common.contracts import ingestion as c
from libs.common.contracts.base import EventData
from libs.common.contracts.registry import TOPICS
from libs.common.envelope import Event
from services.ingestion.domain import FIELD_CODES
from tests.integration.ingestion.publisher import (
    BATCHES,
    DISBURSEMENTS,
    ENVELOPES,
    RESULTS,
    STATEMENTS,
    all_answers,
    check_batches,
    chunk,
    codes,
    disbursements,
    envelope,
    message,
    today,
    total,
    uuid_of,
)
from tests.support.process import Process
from tests.support.world import World


class Hostile(NamedTuple):
    """`expected`: (code, pointer) pairs of which each fault must match one; pointers are regular expressions."""

    topic: str
    value: bytes
    expected: list[tuple[str, str]]
    headers: dict[str, str | None] = {}  # other than those of a good event; None: without it
    padding_bytes: int = 0  # behind the value
    named: bool = True  # whether the answer can name it; otherwise it tells the place


_ENVELOPE = json.loads(envelope("hostile", 10, total(1, 10)).model_dump_json())
_CHUNK = json.loads(chunk("hostile", disbursements(1, 3)).model_dump_json())
_CANCELLING = {"envelope_id": "hostile", "reason": "none"}
_TOPIC = {
    c.EnvelopeSubmitted: ENVELOPES,
    c.DisbursementsAdded: DISBURSEMENTS,
    c.EnvelopeCancellationRequested: ENVELOPES,
    c.StatementSubmitted: STATEMENTS,
}
_TEXT = json.dumps(_CHUNK, ensure_ascii=False)
_INVALID_JSON = [("INVALID_JSON", "")]
_QUANTITY = "INVALID_DISBURSEMENT_QUANTITY"

_WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.just([]),
    st.just({}),
    st.just([[]]),
    st.sampled_from(["\x00", "a\x00b", "", "x" * 600]),
)


def _of(document: dict[str, Any], field: str, value: Any) -> bytes:
    return json.dumps({**document, field: value}).encode()


def _item(field: str, value: Any) -> bytes:
    items = [dict(item) for item in _CHUNK["items"]]
    items[1][field] = value
    return _of(_CHUNK, "items", items)


def _type(model: type[EventData]) -> dict[str, str | None]:
    return {"ce_type": model.TYPE}


def _field(model: type[EventData], document: dict[str, Any], field: str) -> st.SearchStrategy[Hostile]:
    code = FIELD_CODES.get(field, "INVALID_DATA")
    # Control totals may be found not to add up as well; a programme's own fields have codes of their own.
    expected = [(code, f"/{field}(/.*)?"), ("INVALID_DISBURSEMENT_FREQUENCY", "/cycle/frequency")]
    wrong = _WRONG.filter(lambda value: value is not None) if field == "measurement_unit" else _WRONG  # cash has none
    return wrong.map(lambda value: Hostile(_TOPIC[model], _of(document, field, value), expected, _type(model)))


_FIELDS = st.one_of(
    *(_field(c.EnvelopeSubmitted, _ENVELOPE, name) for name in _ENVELOPE if name not in ("target_registry", "time_zone")),
    *(_field(c.DisbursementsAdded, _CHUNK, name) for name in _CHUNK),
    *(_field(c.EnvelopeCancellationRequested, _CANCELLING, name) for name in _CANCELLING),
)
_AMOUNTS = st.one_of(st.integers(max_value=0), st.integers(min_value=2**63), st.floats(), st.integers().map(str)).map(
    lambda value: Hostile(DISBURSEMENTS, _item("amount_minor", value), [(_QUANTITY, "/items/1/amount_minor")])
)
_HUGE = st.sampled_from([b"1e400", b"-1e400", b"9" * 4_000, b"9" * 100_000, b"-0.0", b"1_000"]).map(
    lambda number: Hostile(
        DISBURSEMENTS,
        _item("amount_minor", "@").replace(b'"@"', number),
        [(_QUANTITY, "/items/1/amount_minor"), *_INVALID_JSON],
    )
)
_TEXTS = (
    st.tuples(st.sampled_from(["disbursement_id", "beneficiary_id", "narrative", "beneficiary_name"]), _WRONG)
    .filter(lambda pair: pair[1] != "" or pair[0].endswith("_id"))  # there need not be a name
    .map(lambda pair: Hostile(DISBURSEMENTS, _item(*pair), [(FIELD_CODES[pair[0]], f"/items/1/{pair[0]}")]))
)
_BYTES = st.one_of(
    st.integers(0, len(_TEXT) - 1).map(lambda end: _TEXT[:end].encode()),
    st.integers(1, len(_TEXT) - 1).map(lambda at: _TEXT[:at].encode() + b"\xff" + _TEXT[at:].encode()),
    st.integers(1, len(_TEXT) - 1).map(lambda at: _TEXT[:at].encode() + b"\x00" + _TEXT[at:].encode()),
    st.sampled_from(["utf-16", "utf-32", "latin-1", "utf-8-sig"]).map(_TEXT.encode),
    st.sampled_from([b"[" * 300_000, b'{"items":' * 100_000, b"\x1f\x8b\x08\x00", b"{}{}", b"'"]),
).map(lambda value: Hostile(DISBURSEMENTS, value, _INVALID_JSON))
_CURRENCIES = st.text("ABCZ", min_size=3, max_size=3).map(
    lambda code: Hostile(ENVELOPES, _of(_ENVELOPE, "currency", f"Q{code[1:]}"), [("INVALID_CURRENCY", "/currency")])
)
_DATES = st.one_of(
    st.integers(2, 700_000).map(lambda days: str(today() - timedelta(days=days))),
    st.sampled_from(["0000-00-00", "2026-02-30", "tomorrow", "-1-01-01", "99999-01-01"]),
).map(
    lambda day: Hostile(
        ENVELOPES, _of(_ENVELOPE, "schedule_date", day), [("INVALID_DISBURSEMENT_SCHEDULE_DATE", "/schedule_date")]
    )
)
_TOTALS = st.tuples(
    st.sampled_from(["count", "total_minor"]), st.integers(0, 2**31 - 1).filter(lambda n: n not in (3, total(1, 3)))
).map(lambda pair: Hostile(DISBURSEMENTS, _of(_CHUNK, *pair), [("INVALID_CONTROL_TOTALS", "")]))
_TYPES = st.one_of(
    st.text("abcAZ.09", min_size=1, max_size=60),
    st.sampled_from([c.BatchCut.TYPE, c.StatementSubmitted.TYPE, c.DisbursementsAdded.TYPE, c.SubmissionRejected.TYPE]),
).map(lambda name: Hostile(ENVELOPES, b"{}", [("UNKNOWN_TYPE", "")], {"ce_type": name}))
_INBOXES: list[type[EventData]] = [c.EnvelopeSubmitted, c.DisbursementsAdded, c.StatementSubmitted]
_LARGE = st.sampled_from(_INBOXES).map(
    lambda model: Hostile(_TOPIC[model], b"{}", [("EVENT_TOO_LARGE", "")], _type(model), padding_bytes=2_000_000)
)
_NO_NAMES: list[dict[str, str | None]] = [
    {"ce_id": None},
    {"ce_source": None},
    {"ce_id": "x" * 300},
    {"ce_source": "a\nb"},
    {"ce_id": "\x00"},
]
_NAMELESS = st.sampled_from(_NO_NAMES).map(
    lambda headers: Hostile(DISBURSEMENTS, _TEXT.encode(), [("INVALID_CLOUDEVENT", ".*")], headers, named=False)
)
_STATEMENTS = st.one_of(
    st.text(min_size=1, max_size=50), st.sampled_from(["\x00", ":61:" * 1000, "\ufeff:20:", ":20:R\n:25:A\n"])
).map(lambda text: Hostile(STATEMENTS, json.dumps({"text": text}).encode(), [("INVALID_STATEMENT|NO_[A-Z_]+", "/text")]))
# One kind is as likely as another, however many fields there are to be wrong.
_KINDS = [_FIELDS, _AMOUNTS, _HUGE, _TEXTS, _BYTES, _CURRENCIES, _DATES, _TOTALS, _TYPES, _LARGE, _NAMELESS, _STATEMENTS]
_HOSTILE = st.sampled_from(_KINDS).flatmap(lambda kind: kind)
_MODEL: dict[str, type[EventData]] = {
    ENVELOPES: c.EnvelopeSubmitted,
    DISBURSEMENTS: c.DisbursementsAdded,
    STATEMENTS: c.StatementSubmitted,
}


def sent(hostile: Hostile, name: str) -> tuple[bytes | None, bytes, list[tuple[str, str | bytes]]]:
    headers: dict[str, str | None] = {
        "ce_specversion": "1.0",
        "ce_id": name,
        "ce_source": "hostile",
        "ce_type": _MODEL[hostile.topic].TYPE,
        **hostile.headers,
    }
    return (
        name.encode(),
        hostile.value + b" " * hostile.padding_bytes,
        [(key, text) for key, text in headers.items() if text is not None],
    )


@pytest.fixture
def ingestion(world: World) -> Iterator[Process]:
    """One process for all examples; in the end it still runs, has read everything, and kept no dead letter."""
    process = world.run("ingestion", ALMONER_INGESTION_LINGER_SECONDS="60")
    assert world.until(process.ready)
    yield process
    assert process.alive
    assert process.ready()
    inboxes = [topic.name for topic in TOPICS if topic.name.startswith("ingestion.inbox-")]
    ends = sum(len(world.messages(topic)) for topic in inboxes)
    world.until(lambda: read_messages(world) >= ends, what="an end of the lag")
    assert world.sql("ingestion", "SELECT 1 FROM dead_letters") == []
    assert "Traceback" not in process.log_text()


def read_messages(world: World) -> int:
    """How far the group is, by the offsets that were stored with the data."""
    rows = world.sql(
        "ingestion", "SELECT coalesce(sum(next_offset), 0)::bigint AS n FROM consumed WHERE topic LIKE '%%ingestion.inbox-%%'"
    )
    return int(rows[0].n)


_NUMBERS = count(1)


@settings(
    max_examples=12,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # an example takes seconds: the first that fails is told as it is
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(_HOSTILE, min_size=30, max_size=50), st.randoms(use_true_random=False))
def test_hostile_publishers_are_answered_and_good_ones_served(
    world: World, ingestion: Process, hostile: list[Hostile], chance: Any
) -> None:
    number = next(_NUMBERS)
    name = f"good-{number}"
    names = [f"h{number}-{n}" for n in range(len(hostile))]
    good = [(ENVELOPES, message(envelope(name, 40, total(1, 40)), name, f"{name}-0"))]
    good += [(DISBURSEMENTS, message(chunk(name, disbursements(n, 4)), f"{name}/{n}", f"{name}-{n}")) for n in range(1, 41, 4)]
    all_of_them: list[tuple[str, Any]] = [
        *good,
        *((one.topic, sent(one, name)) for one, name in zip(hostile, names, strict=True)),
    ]
    chance.shuffle(all_of_them)
    nameless = sum(not one.named for one in hostile)
    before = nameless_answers(world)
    for topic, one in all_of_them:
        world.publish_many(topic, [one])

    wanted = {one for one, case in zip(names, hostile, strict=True) if case.named} | {
        f"{name}-{n}" for n in (0, *range(1, 41, 4))
    }
    answers = wait_for_answers(world, wanted)
    for one, case in zip(names, hostile, strict=True):
        if case.named:
            check_refusal(answers[one][-1], case, one)
    world.until(lambda: len(nameless_answers(world)) == len(before) + nameless, what="an answer to those without a name")
    for refusal in nameless_answers(world):
        assert refusal.data.topic == DISBURSEMENTS
        assert refusal.data.offset is not None
        assert codes(refusal)[0][0] == "INVALID_CLOUDEVENT"
    for n in (0, *range(1, 41, 4)):
        assert answers[f"{name}-{n}"][-1].data.outcome in ("accepted", "parked")
    cut(world, name, 40)


def wait_for_answers(world: World, names: set[str]) -> dict[str, list[Event[Any]]]:
    """All answers by the submissions that they name, oldest first, when there is one for each of `names`."""
    found: dict[str, list[Event[Any]]] = {}

    def all_there() -> bool:
        found.clear()
        for answer in sorted(all_answers(world), key=lambda event: (event.raw.timestamp_ms, event.raw.offset)):
            for one in answer.data.submission_ids:
                found.setdefault(one, []).append(answer)
        return names <= found.keys()

    try:
        world.until(all_there)
    except AssertionError:
        raise AssertionError(f"no answer to {sorted(names - found.keys())}") from None
    return found


def nameless_answers(world: World) -> list[Event[c.SubmissionRejected]]:
    return [answer for answer in world.events(RESULTS, c.SubmissionRejected) if not answer.data.submission_ids]


def check_refusal(answer: Event[Any], case: Hostile, name: str) -> None:
    assert isinstance(answer.data, c.SubmissionRejected), (name, case.value[:300], case.expected, answer.data.outcome)
    assert answer.data.errors
    for fault in answer.data.errors:
        assert fault.message
        assert any(
            re.fullmatch(code, fault.code) and re.fullmatch(pointer, fault.pointer) for code, pointer in case.expected
        ), (case.value[:300], case.expected, fault)


def test_an_id_that_is_used_again_is_told_so(world: World, ingestion: Process) -> None:
    """By a name alone nobody can take the place of what came before, or change what was answered."""
    first = chunk("e1", disbursements(1, 4))
    others = [chunk("e1", disbursements(n, 4)) for n in range(5, 25, 4)]
    world.publish_many(ENVELOPES, [message(envelope("e1", 4, total(1, 4)), "e1", "env")])
    world.publish_many(DISBURSEMENTS, [message(first, "k", "same")])
    wait_for_answers(world, {"env", "same"})
    world.publish_many(DISBURSEMENTS, [message(one, "k", "same") for one in (first, *others, first)])

    def seen() -> list[Event[Any]]:
        return wait_for_answers(world, {"same"})["same"]

    world.until(lambda: len([one for one in seen() if isinstance(one.data, c.SubmissionRejected)]) == len(others))
    refused = [one for one in seen() if isinstance(one.data, c.SubmissionRejected)]
    assert {tuple(codes(one)) for one in refused} == {(("ID_REUSED", ""),)}
    assert {one.data.outcome for one in seen() if one not in refused} <= {"accepted", "parked"}
    cut(world, "e1", 4)


def test_a_flood_of_large_events_costs_no_memory(world: World, ingestion: Process) -> None:
    serve(world, "before")
    before = resident_mb(ingestion)
    flood = [sent(Hostile(DISBURSEMENTS, b"{}", [], padding_bytes=2_000_000), f"large-{n}") for n in range(100)]
    world.publish_many(DISBURSEMENTS, flood)
    serve(world, "after")
    wait_for_answers(world, {f"large-{n}" for n in range(100)})
    assert resident_mb(ingestion) - before < 60  # of 200 MB


def serve(world: World, name: str) -> None:
    world.publish_many(ENVELOPES, [message(envelope(name, 4, total(1, 4)), name, name)])
    world.publish_many(DISBURSEMENTS, [message(chunk(name, disbursements(1, 4)), name, f"{name}-1")])
    cut(world, name, 4)


def cut(world: World, name: str, people: int) -> None:
    """An envelope of so many people has become a batch, with everybody in it."""
    world.until(lambda: any(e.data.header.envelope_id == uuid_of(name) for e in world.events(BATCHES, c.BatchCut)), what=name)
    check_batches(world, name, people, [people])


def resident_mb(process: Process) -> int:
    with open(f"/proc/{process.pid}/status") as status:
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read())
    assert found
    return int(found[1]) // 1024
