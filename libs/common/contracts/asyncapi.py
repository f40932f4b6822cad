"""The AsyncAPI document of all topics, with the JSON Schemas of all types, from the registry, the models and the examples."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema

from libs.common.contracts.base import EventData
from libs.common.contracts.examples import EXAMPLES
from libs.common.contracts.registry import TOPICS, TYPES, Topic

ROOT = Path(__file__).parents[3]
SCHEMAS = "#/components/schemas/"
_REPLIES = "ingestion.results.v1"
_BINDING = {"bindingVersion": "0.5.0"}


class _Closed(GenerateJsonSchema):
    """Readers are tolerant, what is published is closed: only then can a tool prove that a change is compatible."""

    def model_schema(self, schema: Any) -> JsonSchemaValue:
        return {**super().model_schema(schema), "additionalProperties": False}

    def typed_dict_schema(self, schema: Any) -> JsonSchemaValue:
        return {**super().typed_dict_schema(schema), "additionalProperties": False}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # a field's name again, with a capital


def schemas() -> dict[str, JsonSchemaValue]:
    """Name -> JSON Schema of every type and of the parts they are made of; references are to #/components/schemas/."""
    _, definitions = models_json_schema(
        [(model, "validation") for model in TYPES.values()],
        ref_template=SCHEMAS + "{model}",
        schema_generator=_Closed,
    )
    found: dict[str, JsonSchemaValue] = definitions["$defs"]
    for schema in found.values():
        if "description" in schema:
            schema["description"] = " ".join(schema["description"].split())
    return dict(sorted(found.items()))


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI document, as data."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return {
        "asyncapi": "3.1.0",
        "info": {
            "title": "Almoner",
            "version": version,
            "description": "Event-driven delivery of benefits. Events are CloudEvents 1.0 in binary mode (headers `ce_*`); "
            "structured ones are read as well. Money is an integer of minor units and an ISO 4217 code. Schemas are "
            "closed as published; readers must ignore fields they do not know. Generated from libs/common/contracts.",
        },
        "defaultContentType": "application/json",
        "servers": {
            "kafka": {
                "host": "{bootstrapServers}",
                "protocol": "kafka",
                "description": "Where a cluster is shared, every topic and group has the configured prefix before its name.",
                "variables": {"bootstrapServers": {"default": "kafka:9092", "description": "ALMONER_KAFKA_BOOTSTRAP_SERVERS"}},
            }
        },
        "channels": {topic.name: _channel(topic) for topic in TOPICS},
        "operations": dict(_operations()),
        "components": {
            "messages": {model.__name__: _message(model) for model in TYPES.values()} | {"DeadLetter": _DEAD_LETTER},
            "schemas": {"CloudEvent": _CLOUD_EVENT, "DeadLetterHeaders": _DEAD_LETTER_HEADERS} | schemas(),
        },
    }


def _text(description: str, **rules: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, **rules}


_CLOUD_EVENT = {
    "type": "object",
    "description": "The context attributes of a CloudEvent, as Kafka headers.",
    "required": ["ce_specversion", "ce_id", "ce_source", "ce_type"],
    "properties": {
        "ce_specversion": _text("1.0", pattern=r"^1\."),
        "ce_id": _text("unique within the source; the same event again has the same id", minLength=1, maxLength=500),
        "ce_source": _text("who says it, a URI reference", minLength=1, maxLength=500),
        "ce_type": _text("almoner.<owner>.<Name>.v<major>"),
        "ce_time": _text("when it became true; the same at every delivery", format="date-time"),
        "ce_correlationid": _text("the envelope's id"),
        "ce_causationid": _text("id of the event which caused this one"),
        "ce_traceparent": _text("W3C Trace Context"),
        "content-type": _text("application/json"),
    },
}

_DEAD_LETTER_HEADERS = {
    "type": "object",
    "description": "The headers of the message as it was, and those of KIP-1191.",
    "required": ["__dlq.errors.topic", "__dlq.errors.partition", "__dlq.errors.offset", "kafka_dlt-original-topic"],
    "properties": {
        "__dlq.errors.topic": _text("where it was read"),
        "__dlq.errors.partition": _text("its partition"),
        "__dlq.errors.offset": _text("its offset"),
        "__dlq.errors.group": _text("the group that could not handle it"),
        "__dlq.errors.delivery.count": _text("how often it was delivered"),
        "__dlq.errors.message": _text("the error's code; the text stays in the service's database"),
        "kafka_dlt-original-topic": _text("where it was read"),
    },
}

_DEAD_LETTER = {
    "name": "DeadLetter",
    "summary": "A message which a service could not handle: key, value and headers byte for byte.",
    "headers": {"$ref": SCHEMAS + "DeadLetterHeaders"},
}


def _channel(topic: Topic) -> dict[str, Any]:
    names = [model.__name__ for model in topic.types] or ["DeadLetter"]
    config = topic.config
    return {
        "address": topic.name,
        "title": topic.name,
        "description": f"Owner: {topic.owner}. Key: {topic.key}. Read by: {', '.join(topic.consumers) or 'operators'}.",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions,
                "topicConfiguration": {
                    "cleanup.policy": config["cleanup.policy"].split(","),
                    "retention.ms": topic.retention_ms,
                    "max.message.bytes": topic.max_message_bytes,
                    "message.timestamp.type": config["message.timestamp.type"],
                },
                **_BINDING,
            }
        },
    }


def _operations() -> Iterable[tuple[str, dict[str, Any]]]:
    for topic in TOPICS:
        channel = {"$ref": f"#/channels/{topic.name}"}
        if not received(topic):
            yield f"{topic.owner}.send.{topic.name}", {"action": "send", "channel": channel}
        for service in topic.consumers:
            if service == "publishers":
                continue  # other systems: their operations are in their own documents
            operation: dict[str, Any] = {
                "action": "receive",
                "channel": channel,
                "bindings": {"kafka": {"groupId": {"type": "string", "const": f"almoner-{service}"}, **_BINDING}},
            }
            if ".inbox-" in topic.name:
                operation["reply"] = _reply(topic)
            yield f"{service}.receive.{topic.name}", operation


def received(topic: Topic) -> bool:
    """Whether the topic's owner reads it: what others ask of it."""
    return topic.consumers == (topic.owner,)


def _reply(topic: Topic) -> dict[str, Any]:
    """Answers name in `submission_ids` the ids of the events they answer."""
    names = ["SubmissionAccepted", "SubmissionRejected"]
    if any(model.__name__ == "EnvelopeStatusRequested" for model in topic.types):
        names.append("EnvelopeStatus")
    return {
        "channel": {"$ref": f"#/channels/{_REPLIES}"},
        "messages": [{"$ref": f"#/channels/{_REPLIES}/messages/{name}"} for name in names],
    }


def _message(model: type[EventData]) -> dict[str, Any]:
    topics = [topic for topic in TOPICS if model in topic.types]
    if ".inbox-" in topics[0].name:
        correlation = "$message.header#/ce_id"
    elif topics[0].name == _REPLIES:
        correlation = "$message.payload#/submission_ids"
    else:
        correlation = "$message.header#/ce_correlationid"
    return {
        "name": model.TYPE,
        "title": model.__name__,
        "summary": meaning(model),
        "contentType": "application/json",
        "correlationId": {"location": correlation},
        "headers": {"allOf": [{"$ref": SCHEMAS + "CloudEvent"}, {"properties": {"ce_type": {"const": model.TYPE}}}]},
        "payload": {"$ref": SCHEMAS + model.__name__},
        "bindings": {"kafka": {"key": {"type": "string", "description": topics[0].key}, **_BINDING}},
        "examples": [{"name": "example", "payload": EXAMPLES[model.TYPE]}],
    }


def meaning(model: type[EventData]) -> str:
    return " ".join((model.__doc__ or "").split())
