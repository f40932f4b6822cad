"""A sealed blob opens with its key, in its place, unaltered; or not at all."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.contracts.base import Sealed
from libs.common.errors import Malformed
from libs.common.seal import Sealer, masked, parse_keys


def key(name: str, byte: int) -> str:
    return f"{name}:{base64.b64encode(bytes([byte]) * 32).decode()}"


OLD, NEW = key("k1", 1), key("k2", 2)
CONTENT = {"d-1": {"account": "DE02120300000000202051", "name": "Åsa"}, "d-2": {"account": "x"}}
PLACE = ("BatchCut", "envelope", "batch")


def sealer(*keys: str) -> Sealer:
    return Sealer(", ".join(keys), "a token key for tests")


def test_what_was_sealed_opens_and_says_nothing_before() -> None:
    sealed = sealer(OLD).seal(CONTENT, *PLACE)
    assert sealer(OLD).open(sealed, *PLACE) == CONTENT
    assert b"DE02" not in base64.b64decode(sealed.data)
    assert sealer(OLD).seal(CONTENT, *PLACE).data != sealed.data  # equal contents can't be told


@pytest.mark.parametrize(
    "place", [("BatchCut", "envelope", "other"), ("BatchCut", "envelope"), ("Other", "envelope", "batch"), ()]
)
def test_it_opens_in_its_place_only(place: tuple[str, ...]) -> None:
    sealed = sealer(OLD).seal(CONTENT, *PLACE)
    with pytest.raises(Malformed) as caught:
        sealer(OLD).open(sealed, *place)
    assert caught.value.code == "BROKEN_SEAL"


def test_keys_rotate() -> None:
    before = sealer(OLD).seal(CONTENT, *PLACE)
    rotated = sealer(NEW, OLD)
    assert rotated.open(before, *PLACE) == CONTENT
    assert rotated.seal(CONTENT, *PLACE).key_id == "k2"
    with pytest.raises(Malformed) as caught:
        sealer(NEW).open(before, *PLACE)
    assert caught.value.code == "UNKNOWN_SEAL_KEY"


@given(st.data())
@settings(max_examples=60)
def test_one_altered_bit_is_noticed(data: st.DataObject) -> None:
    sealed = sealer(OLD).seal(CONTENT, *PLACE)
    blob = bytearray(base64.b64decode(sealed.data))
    bit = data.draw(st.integers(0, len(blob) * 8 - 1))
    blob[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Malformed):
        sealer(OLD).open(Sealed(key_id="k1", data=base64.b64encode(bytes(blob)).decode()), *PLACE)


@given(st.one_of(st.text(max_size=80), st.binary(max_size=80).map(lambda blob: base64.b64encode(blob).decode())))
def test_anything_else_is_malformed(data: str) -> None:
    with pytest.raises(Malformed):
        sealer(OLD).open(Sealed(key_id="k1", data=data), *PLACE)


def test_tokens_are_equal_for_equal_accounts_under_one_key() -> None:
    assert sealer(OLD).token("A-1") == sealer(NEW).token("A-1")
    assert sealer(OLD).token("A-1") != sealer(OLD).token("A-2")
    assert Sealer(OLD, "another token key").token("A-1") != sealer(OLD).token("A-1")
    assert "A-1" not in sealer(OLD).token("A-1")


@pytest.mark.parametrize("text", ["", ",", "k1", "k1:", ":" + OLD[3:], "k1:c2hvcnQ=", "k1:not base64!", f"{OLD},{OLD}"])
def test_wrong_keys_are_refused_without_showing_them(text: str) -> None:
    with pytest.raises(ValueError, match="base64") as caught:
        parse_keys(text)
    assert text[3:] not in str(caught.value) or not text[3:]


def test_people_see_tails_only() -> None:
    assert masked("DE02120300000000202051") == "…2051"
    assert masked("123456") == "…"
