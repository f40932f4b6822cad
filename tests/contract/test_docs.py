"""What is published of the contracts: drawn from them, closed, and complete in itself."""

from collections.abc import Iterator
from typing import Any

from libs.common.contracts import asyncapi
from libs.common.contracts.docs import generated
from libs.common.contracts.registry import TOPICS, TYPES


def test_generated_files_have_not_drifted() -> None:
    for path, content in generated().items():
        assert path.read_text() == content, f"{path.name}: run `python -m libs.common.contracts.docs`"


def test_every_object_of_every_schema_is_closed() -> None:
    for name, schema in asyncapi.schemas().items():
        for part in _objects(schema):
            if part.get("type") == "object":
                assert part["additionalProperties"] is False, name


def test_no_two_models_share_a_name() -> None:
    """Pydantic would write both out with their modules, and every reader's generated code would change."""
    assert all(name.isalnum() for name in asyncapi.schemas())
    assert len({model.__name__ for model in TYPES.values()}) == len(TYPES)


def test_every_type_says_what_it_means() -> None:
    assert [model.__name__ for model in TYPES.values() if not asyncapi.meaning(model)] == []


def test_money_is_never_a_json_number_with_decimals() -> None:
    for name, schema in asyncapi.schemas().items():
        assert [part for part in _objects(schema) if part.get("type") == "number"] == [], name


def test_every_reference_leads_somewhere() -> None:
    document = asyncapi.asyncapi()
    for part in _objects(document):
        if "$ref" in part:
            target: Any = document
            for step in part["$ref"].removeprefix("#/").split("/"):
                target = target[step]


def test_every_inbox_topic_is_answered_on_the_results_topic() -> None:
    operations = asyncapi.asyncapi()["operations"]
    for topic in TOPICS:
        reply = operations.get(f"ingestion.receive.{topic.name}", {}).get("reply")
        assert (reply is not None) == (".inbox-" in topic.name), topic.name


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a document; the examples are data and left out."""
    if isinstance(value, dict):
        yield value
        for name, item in value.items():
            if name != "examples":
                yield from _objects(item)
    elif isinstance(value, list):
        for item in value:
            yield from _objects(item)
