"""Faults of shape: a code, a place, and what to do, whatever field of whatever type is wrong."""

from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_core import to_json

from libs.common.contracts.base import EventData
from libs.common.contracts.examples import EXAMPLES
from libs.common.contracts.registry import TOPICS
from services.ingestion.domain import ADVICE, FIELD_CODES
from services.ingestion.reading import shape_faults

MODELS = [model for topic in TOPICS if topic.door and topic.owner == "ingestion" for model in topic.types]


def test_every_code_of_a_field_has_its_advice() -> None:
    assert ADVICE.keys() == {*FIELD_CODES.values(), "INVALID_DATA"}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_a_fault_of_shape_says_what_to_do(model: type[EventData]) -> None:
    good = EXAMPLES[model.TYPE]
    values: list[Any] = [{}, [], 7.5, "", "\x07" * 2000]
    wrong: list[dict[str, Any]] = [{}, *({**good, name: value} for name in good for value in values)]
    for data in wrong:
        try:
            model.model_validate_json(to_json(data))
        except ValidationError as error:
            faults = shape_faults(error)
            assert faults
            for fault in faults:
                said, _, advice = fault.message.partition("; ")
                assert said, fault
                assert advice.startswith("send "), fault
