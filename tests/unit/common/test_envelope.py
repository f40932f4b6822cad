"""CloudEvents in: binary or structured, and nothing but Malformed for what is neither."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.consumer import next_offsets
from libs.common.contracts.operator import PauseStage
from libs.common.envelope import (
    Cause,
    Event,
    RawMessage,
    attributes,
    cause_of,
    decode,
    headers_for,
    next_traceparent,
    pointer,
)
from libs.common.errors import Malformed
from libs.common.outbox import dump_headers, load_headers

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
DATA = {"who": "ann", "why": "a test", "stage": "consume"}
BINARY = {
    "ce_specversion": "1.0",
    "ce_id": "1",
    "ce_source": "s",
    "ce_type": PauseStage.TYPE,
    "ce_time": "2026-01-02T03:04:05Z",
}


def message(value: bytes, headers: dict[str, Any], topic: str = "t", partition: int = 0, offset: int = 0) -> RawMessage:
    pairs = tuple((name, text.encode() if isinstance(text, str) else text) for name, text in headers.items())
    return RawMessage(topic, partition, offset, 0, b"k", value, pairs)


def read(raw: RawMessage) -> Event[PauseStage]:
    return decode(raw, attributes(raw), PauseStage)


def structured(**changed: Any) -> RawMessage:
    document = {"specversion": "1.0", "id": "1", "source": "s", "type": PauseStage.TYPE, "data": DATA, **changed}
    return message(json.dumps(document).encode(), {"content-type": "application/cloudevents+json; charset=utf-8"})


def test_binary_and_structured_say_the_same() -> None:
    binary = read(message(json.dumps(DATA).encode(), {**BINARY, "ce_correlationid": "c", "ce_traceparent": TRACE}))
    other = read(structured(time="2026-01-02T03:04:05Z", correlationid="c", traceparent=TRACE))
    for event in (binary, other):
        assert (event.id, event.source, event.type) == ("1", "s", PauseStage.TYPE)
        assert event.time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        assert cause_of(event) == Cause("1", "c", TRACE)
        assert event.data == PauseStage(**DATA)


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type"])
@pytest.mark.parametrize("value", [None, "", "a\x00b", "x" * 501, "é" * 251, b"\xff" * 300, "\u202e"])
def test_a_required_attribute_is_named_where_it_is_wrong(name: str, value: str | bytes | None) -> None:
    headers = {key: text for key, text in {**BINARY, f"ce_{name}": value}.items() if text is not None}
    with pytest.raises(Malformed) as caught:
        attributes(message(b"{}", headers))
    assert caught.value.code == "INVALID_CLOUDEVENT"
    assert caught.value.pointer == f"/{name}"


@pytest.mark.parametrize("name", ["correlationid", "traceparent"])
def test_an_optional_attribute_that_makes_no_sense_is_dropped(name: str) -> None:
    attrs = attributes(message(b"{}", {**BINARY, f"ce_{name}": b"a\x00\xff"}))
    assert attrs.correlation_id is None
    assert attrs.traceparent is None


def test_versions_and_times_which_are_none_are_refused() -> None:
    for changed in ({"ce_specversion": "0.3"}, {"ce_time": "yesterday"}):
        with pytest.raises(Malformed):
            attributes(message(b"{}", {**BINARY, **changed}))
    assert attributes(message(b"{}", {**BINARY, "ce_time": "2026-01-02T03:04:05"})).time == datetime(
        2026, 1, 2, 3, 4, 5, tzinfo=UTC
    )
    assert attributes(message(b"{}", {**BINARY, "ce_time": ""})).time is None


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({**DATA, "stage": 5}, "/stage"),
        ({"who": "ann", "why": "x"}, "/stage"),
        ({**DATA, "why": "nul \x00"}, "/why"),
        ({**DATA, "expected": -1}, "/expected"),
        ([], ""),
    ],
)
def test_a_fault_in_the_data_has_its_pointer(data: Any, where: str) -> None:
    for raw in (structured(data=data), message(json.dumps(data).encode(), BINARY)):
        with pytest.raises(Malformed) as caught:
            read(raw)
        assert caught.value.code == "INVALID_DATA"
        assert caught.value.pointer == where


def test_pointers_are_escaped() -> None:
    assert pointer(("items", 3, "a/b~c")) == "/items/3/a~1b~0c"
    assert pointer(()) == ""


@pytest.mark.parametrize("value", [b"[" * 100_000, b'{"specversion": ' + b"9" * 5000 + b"}", b"\xff", b"", b"null", b'"x"'])
def test_structured_nonsense_is_malformed(value: bytes) -> None:
    with pytest.raises(Malformed):
        attributes(message(value, {"content-type": "application/cloudevents+json"}))


NAMES = st.sampled_from([*BINARY, "content-type", "ce_correlationid", "ce_traceparent", "other"])
VALUES = st.one_of(st.binary(max_size=40), st.sampled_from([text.encode() for text in (*BINARY.values(), TRACE)]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
DOCUMENTS = st.one_of(
    st.binary(max_size=60),
    JSON.map(lambda document: json.dumps(document).encode()),
    st.fixed_dictionaries({}, optional=dict.fromkeys(("specversion", "id", "source", "type", "time", "data", *DATA), JSON)).map(
        lambda document: json.dumps({**json.loads(structured().value), **DATA, **document}).encode()
    ),
)


@given(DOCUMENTS, st.lists(st.tuples(NAMES, VALUES), max_size=7), st.booleans())
def test_whatever_comes_is_an_event_or_malformed(value: bytes, headers: list[tuple[str, bytes]], is_structured: bool) -> None:
    base = {"content-type": b"application/cloudevents+json"} if is_structured else {k: v.encode() for k, v in BINARY.items()}
    raw = RawMessage("t", 0, 0, 0, None, value, (*base.items(), *headers))
    try:
        event = read(raw)
    except Malformed as error:
        texts = [error.code, str(error).replace("\x00", "")]  # as dead letters store it
    else:
        texts = [event.id, event.source, event.type, event.correlation_id or "", event.traceparent or ""]
    for text in texts:
        assert "\x00" not in text
        text.encode()  # the database can take it


def test_what_goes_out_comes_in_again() -> None:
    time = datetime(2026, 5, 6, 7, 8, 9, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    cause = Cause("cause", "correlation", TRACE)
    headers = headers_for(PauseStage, event_id="1", source="almoner/funds", time=time, cause=cause)
    assert headers["ce_time"] == "2026-05-06T01:38:09Z"
    assert headers["ce_causationid"] == "cause"
    assert load_headers(dump_headers({name: text.encode() for name, text in headers.items()})) == [
        (name, text.encode()) for name, text in headers.items()
    ]
    event = read(message(json.dumps(DATA).encode(), headers))
    assert event.time == time
    assert event.correlation_id == "correlation"
    assert event.traceparent is not None
    assert event.traceparent.split("-")[1] == TRACE.split("-")[1]
    assert "ce_causationid" not in headers_for(PauseStage, event_id="1", source="s", time=time, cause=None)


@given(st.lists(st.tuples(st.text(max_size=9), st.binary(max_size=30))))
def test_headers_keep_every_byte(pairs: list[tuple[str, bytes]]) -> None:
    assert load_headers(dump_headers(pairs)) == pairs


@pytest.mark.parametrize(
    "parent", [None, "", "x", "00-short-1-01", "00-" + "0" * 32 + "-1234567890123456-01", "00-" + "g" * 32 + "-1-01"]
)
def test_a_trace_that_is_none_begins_a_new_one(parent: str | None) -> None:
    first, second = next_traceparent(parent), next_traceparent(parent)
    assert first.split("-")[1] != second.split("-")[1]
    assert [len(part) for part in first.split("-")] == [2, 32, 16, 2]


def test_a_trace_goes_on_with_a_new_span() -> None:
    child = next_traceparent(TRACE)
    assert child.split("-")[1] == TRACE.split("-")[1]
    assert child.split("-")[2] != TRACE.split("-")[2]


PLACES = st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 2), st.integers(0, 1000))


@given(st.lists(PLACES))
def test_next_offsets_are_one_after_the_highest_of_each_partition(places: list[tuple[str, int, int]]) -> None:
    found = next_offsets([message(b"", {}, *place) for place in places])
    assert set(found) == {(topic, partition) for topic, partition, _ in places}
    for (topic, partition), after in found.items():
        assert after - 1 == max(offset for t, p, offset in places if (t, p) == (topic, partition))
