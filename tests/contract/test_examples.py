"""Every event type has an example which is what travels, and what was ever released can still be read."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from libs.common.contracts.base import CHUNK_ITEMS, ControlTotals
from libs.common.contracts.examples import EXAMPLES, SOURCE
from libs.common.contracts.registry import DAY_MS, EVENT_BYTES, INBOX_BYTES, TOPICS, TYPES
from libs.common.envelope import RawMessage, attributes, decode, headers_for
from libs.common.runtime_schema import INBOX_DAYS
from tests.contract import golden

SAMPLES = [(event_type, path) for event_type in TYPES for path in golden.samples(event_type)]


def message(event_type: str, value: bytes, headers: dict[str, str]) -> RawMessage:
    return RawMessage("topic", 0, 0, 0, b"key", value, tuple((name, text.encode()) for name, text in headers.items()))


def test_every_type_has_an_example() -> None:
    assert EXAMPLES.keys() == TYPES.keys()


@pytest.mark.parametrize("event_type", TYPES)
def test_an_example_is_read_and_written_as_it_is(event_type: str) -> None:
    model = TYPES[event_type]
    moment = datetime(2026, 11, 24, 1, 2, 3, tzinfo=UTC)
    headers = headers_for(model, event_id="1", source=SOURCE, time=moment, cause=None)
    binary = message(event_type, json.dumps(EXAMPLES[event_type]).encode(), headers)
    event = decode(binary, attributes(binary), model)
    assert (event.type, event.source, event.time) == (event_type, SOURCE, moment)
    assert json.loads(event.data.model_dump_json()) == EXAMPLES[event_type]

    document = {"specversion": "1.0", "id": "1", "source": SOURCE, "type": event_type, "data": EXAMPLES[event_type]}
    structured = message(event_type, json.dumps(document).encode(), {"content-type": "application/cloudevents+json"})
    assert decode(structured, attributes(structured), model).data == event.data


@pytest.mark.parametrize("event_type", TYPES)
def test_a_field_of_a_later_release_is_ignored(event_type: str) -> None:
    later = _with_unknown_fields(EXAMPLES[event_type])
    data = TYPES[event_type].model_validate_json(json.dumps(later))
    assert json.loads(data.model_dump_json()) == EXAMPLES[event_type]


@pytest.mark.parametrize("event_type", TYPES)
def test_every_type_has_a_golden_sample(event_type: str) -> None:
    assert golden.samples(event_type), "run `python -m tests.contract.golden` and commit what it wrote"


def test_no_golden_sample_is_forgotten() -> None:
    """A type which is no longer in the registry can't be read any more."""
    assert {path for _, path in SAMPLES} == set(golden.FOLDER.iterdir())


@pytest.mark.parametrize(("event_type", "path"), SAMPLES, ids=[path.stem for _, path in SAMPLES])
def test_a_golden_sample_is_still_read_in_full(event_type: str, path: Path) -> None:
    """Readers ignore what they don't know, so a renamed or removed field would go unnoticed but for this."""
    sample = json.loads(path.read_bytes())
    read = json.loads(TYPES[event_type].model_validate_json(path.read_bytes()).model_dump_json())
    assert _lost(sample, read) == []


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_topics_take_what_is_published_on_them(topic: Any) -> None:
    assert topic.max_message_bytes > (INBOX_BYTES if ".dlq." in topic.name else EVENT_BYTES)
    assert topic.retention_ms > 0
    assert topic.partitions > 0


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_the_inbox_knows_whatever_a_topic_may_still_have(topic: Any) -> None:
    """A day less, since events of its last day are taken for undated."""
    read_by_services = set(topic.consumers) - {"publishers"}
    if read_by_services and not topic.compacted:
        assert topic.retention_ms + topic.segment_ms < (INBOX_DAYS - 1) * DAY_MS


def test_a_full_chunk_of_ordinary_length_fits_an_event() -> None:
    """1,000 people, each with ids of 36 characters and an amount of 10 digits, stay far below the limit."""
    long: dict[str, Any] = {"disbursement_id": "d" * 36, "beneficiary_id": "b" * 36, "amount_minor": 9_999_999_999}
    looked_at = 0
    for event_type, model in TYPES.items():
        if not issubclass(model, ControlTotals):
            continue
        example = EXAMPLES[event_type]
        items = example["items"]
        total = CHUNK_ITEMS * long["amount_minor"]
        full = {**example, "count": CHUNK_ITEMS, "total_minor": total}
        if isinstance(items, list):  # the publisher's
            full["items"] = [{**items[0], **long}] * CHUNK_ITEMS
        else:
            full["items"] = {name: [long.get(name, column[0])] * CHUNK_ITEMS for name, column in items.items()}
        if "reasons" in example:
            full["reasons"] = example["reasons"] * CHUNK_ITEMS
        if "zones" in example:
            full["zones"] = [{**example["zones"][0], "count": CHUNK_ITEMS, "total_minor": total}]
        assert len(model.model_validate(full).model_dump_json()) < EVENT_BYTES / 2, event_type
        looked_at += 1
    assert looked_at > 10


def _with_unknown_fields(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_unknown_fields(item) for name, item in value.items()} | {"unknown_field": 1}
    return [_with_unknown_fields(item) for item in value] if isinstance(value, list) else value


def _lost(sample: Any, read: Any, place: str = "") -> list[str]:
    """JSON pointers to whatever of the sample is missing or different in what was read."""
    if isinstance(sample, dict) and isinstance(read, dict):
        return [lost for name, item in sample.items() for lost in _lost(item, read.get(name, ...), f"{place}/{name}")]
    if isinstance(sample, list) and isinstance(read, list) and len(sample) == len(read):
        return [lost for index, item in enumerate(sample) for lost in _lost(item, read[index], f"{place}/{index}")]
    return [] if sample == read else [place]
