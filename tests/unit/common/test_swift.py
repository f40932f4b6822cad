"""What a bank is told: any text as one plain line, and which accounts it can be told at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.swift import are_swift, swift, usable


@given(st.text(max_size=200), st.integers(1, 70))
def test_what_goes_to_a_bank_is_one_plain_line(text: str, longest: int) -> None:
    clean = swift(text, longest)
    assert 0 < len(clean) <= longest
    assert set(clean) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/-?:().,'+ ")
    assert clean[0] not in ":- "
    assert clean == clean.strip()
    assert swift(clean, longest) == clean
    assert are_swift([clean, clean])
    assert are_swift([clean, text]) == (swift(text, 200) == text)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("José Müller", "Jose Muller"),
        ("\n:61:2611211121D100,00", "61:2611211121D100,00"),
        ("-}{", "??"),
        ("", "."),
        ("王", "?"),
        ("-", "."),
    ],
)
def test_texts_for_banks(text: str, clean: str) -> None:
    assert swift(text) == clean


@pytest.mark.parametrize(
    ("account", "can_be"),
    [
        ({"account_number": "DE02 1001", "bank_code": "B"}, True),
        ({"account_number": ""}, False),
        ({"bank_code": "B"}, False),
        ({"account_number": "1\n:61:"}, False),
        ({"account_number": "1" * 35}, False),
        ({"account_number": "1", "bank_code": 7}, False),
        ({"account_number": "1", "branch_code": "R\n"}, False),
        ({}, False),
        (None, False),
        ("DE02", False),
    ],
)
def test_accounts_a_bank_can_be_told(account: object, can_be: bool) -> None:
    assert usable(account) is can_be
