"""Chunks by column: what comes out is what went in, and what is no chunk is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from libs.common.contracts.base import AmountsWithReason, AmountWithReason, Item, Items, chunk
from libs.common.contracts.funds import PaymentsHeld
from libs.common.errors import Malformed
from libs.common.seal import WHO, Sealer, by_column, by_person, pick

IDS = st.text(st.characters(min_codepoint=32, exclude_categories=("Cc", "Cs")), min_size=1, max_size=64)
ROWS = st.lists(st.builds(Item, IDS, IDS, st.integers(1, 10**15)), max_size=20)
PEOPLE = st.dictionaries(
    IDS, st.dictionaries(st.sampled_from(["name", "narrative", "fa_type"]), st.text(max_size=20)), max_size=20
)
SEALER = Sealer("k1:" + "A" * 43 + "=", "token")


@given(ROWS)
def test_rows_come_back_as_they_were(rows: list[Item]) -> None:
    items = Items.of(rows)
    assert list(Items.model_validate_json(items.model_dump_json())) == list(items) == rows
    assert len(items) == len(rows)
    assert bool(items) == bool(rows)
    assert [items[n] for n in range(len(rows))] == rows
    assert chunk(items) == {"items": items, "count": len(rows), "total_minor": sum(row.amount_minor for row in rows)}


@pytest.mark.parametrize(
    "columns",
    [
        {"disbursement_id": ["a"], "beneficiary_id": ["b"], "amount_minor": []},
        {"disbursement_id": ["a", "b"], "beneficiary_id": ["b", "c"], "amount_minor": [1]},
        {"disbursement_id": ["a"], "beneficiary_id": ["b"]},
        {"disbursement_id": [""], "beneficiary_id": ["b"], "amount_minor": [1]},
        {"disbursement_id": ["a"], "beneficiary_id": ["\x00"], "amount_minor": [1]},
        {"disbursement_id": ["a"], "beneficiary_id": ["b"], "amount_minor": [0]},
        {"disbursement_id": ["a"], "beneficiary_id": ["b"], "amount_minor": ["1"]},
        {"disbursement_id": ["a"] * 1001, "beneficiary_id": ["b"] * 1001, "amount_minor": [1] * 1001},
        {"disbursement_id": "a", "beneficiary_id": "b", "amount_minor": 1},
        [{"disbursement_id": "a", "beneficiary_id": "b", "amount_minor": 1}],
    ],
)
def test_what_is_no_chunk_is_refused(columns: Any) -> None:
    with pytest.raises(ValidationError):
        Items.model_validate(columns)


@pytest.mark.parametrize(("count", "total_minor"), [(2, 5), (1, 6), (0, 0)])
def test_control_totals_are_checked(count: int, total_minor: int) -> None:
    items = AmountsWithReason.of([AmountWithReason("d", 5, "NOT_LINKED")])
    header = {
        "envelope_id": "7d9c0c4e-6c52-5b1f-9a52-1a8f6d0e4b43",
        "source": "s",
        "publisher_envelope_id": "e",
        "programme": {"id": "p"},
        "benefit_code": {"id": "b"},
        "benefit_type": "CASH_DIGITAL",
        "cycle": {"id": "c"},
        "schedule_date": "2026-11-21",
        "batch_id": "7d9c0c4e-6c52-5b1f-9a52-1a8f6d0e4b43",
        "number": 1,
    }
    assert PaymentsHeld.model_validate({"header": header, **chunk(items)}).count == 1
    with pytest.raises(ValidationError):
        PaymentsHeld.model_validate({"header": header, "items": items, "count": count, "total_minor": total_minor})


@given(PEOPLE, st.lists(IDS, max_size=5))
def test_people_come_back_as_they_were(people: dict[str, dict[str, str]], others: list[str]) -> None:
    opened = SEALER.open_people(SEALER.seal(by_column(people), "place"), "place")
    assert by_person(opened) == people
    ids = [one for one in people if len(one) % 2] + [one for one in others if one not in people]
    picked = pick(opened, ids)
    assert picked[WHO] == ids
    assert by_person(picked) == {one: people.get(one, {}) for one in ids}
    assert by_person(opened) == people  # and nothing has changed it


@pytest.mark.parametrize("content", [{}, {"name": ["x"]}, {WHO: ["d"], "name": []}, {WHO: "d"}, {WHO: {"d": 1}}])
def test_a_seal_without_columns_is_malformed(content: dict[str, Any]) -> None:
    with pytest.raises(Malformed, match="columns"):
        SEALER.open_people(SEALER.seal(content, "place"), "place")
