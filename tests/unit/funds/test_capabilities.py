"""What the adapters declare of their banks is what the calls are made for."""

from dataclasses import fields
from typing import get_args, get_type_hints

import pytest

from services.funds.ports import Capabilities, Repeat
from services.funds.wiring import ADAPTERS

VERBS = [field.name for field in fields(Capabilities) if field.name != "atomic_list"]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_each_verb_is_there_and_declared(adapter: str) -> None:
    bank = ADAPTERS[adapter]
    may_be = get_type_hints(Capabilities)
    for verb in VERBS:
        assert callable(getattr(bank, verb))
        assert getattr(bank.capabilities, verb) in get_args(may_be[verb])


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_bank_whose_lists_have_keys_can_be_asked(adapter: str) -> None:
    declared = ADAPTERS[adapter].capabilities
    assert declared.dispatch is not Repeat.KEYED or declared.query is Repeat.READ
