"""Everybody asked for is found or held; settings are checked when they are read."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.resolution.config import Settings
from services.resolution.domain import Hold, Reply, reference, sort_out
from tests.support.world import SEAL_KEYS, TOKEN_KEY

REPLIES: st.SearchStrategy[Reply] = st.sampled_from([{"fa_type": "BANK_ACCOUNT"}, Hold("NOT_LINKED")])


@given(st.lists(st.text(), unique=True), st.data())
def test_everybody_is_found_or_held(asked: list[str], data: st.DataObject) -> None:
    replies = data.draw(st.dictionaries(st.sampled_from(asked) if asked else st.nothing(), REPLIES))
    found, held = sort_out(asked, replies)
    assert found.keys() | held.keys() == set(range(len(asked)))
    assert not found.keys() & held.keys()
    assert all(held[index].reason == "NO_ANSWER" for index, key in enumerate(asked) if key not in replies)


def test_reference_ids_tell_items_and_batches_apart() -> None:
    ids = {reference(UUID(int=batch), position) for batch in range(3) for position in range(1000)}
    assert len(ids) == 3000


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [("(", "is no regular expression"), ("^(?P<iban>.*)$", "needs a group"), (r"(?P<account_number>.)(?P<x>.)", "no part of")],
)
def test_a_pattern_is_checked_at_the_start(pattern: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql:///none")
    monkeypatch.setenv("ALMONER_SEAL_KEYS", SEAL_KEYS)
    monkeypatch.setenv("ALMONER_TOKEN_KEY", TOKEN_KEY)
    monkeypatch.setenv("ALMONER_RESOLUTION_MAPPER_URL", "http://mapper.example")
    monkeypatch.setenv("ALMONER_RESOLUTION_BANK_ACCOUNT_PATTERN", pattern)
    with pytest.raises(ValidationError, match=fault):
        Settings()
