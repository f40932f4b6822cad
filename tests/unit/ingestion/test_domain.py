"""What may be declared, and what may be added to it."""

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingestion.domain import Book, Chunk, Fault, Verdict, envelope_faults

DAY = date(2026, 11, 21)


def book(declared: int = 10, declared_minor: int = 1000, refuse: bool = False, **changes: Any) -> Book:
    fields: dict[str, Any] = {"received": 0, "received_minor": 0, "state": "RECEIVING", "schedule_date": DAY, **changes}
    return Book(declared, declared_minor, refuse_same_person=refuse, **fields)


def add(to: Book, *rows: tuple[str, str, int], on: date = DAY) -> Verdict:
    return to.judge(Chunk("s1", on, [(*row, "", "") for row in rows]))


def told(faults: list[Fault]) -> list[tuple[str, str]]:
    return [(fault.code, fault.pointer) for fault in faults]


def test_takes_what_was_declared_and_no_more() -> None:
    one = book(2, 300)
    assert add(one, ("a", "p", 100)).faults == []
    assert not one.complete
    assert add(one, ("b", "q", 200)).faults == []
    assert one.complete
    assert told(add(one, ("c", "r", 1)).faults) == [
        ("NO_OF_DISBURSEMENTS_EXCEEDS_DECLARED", "/count"),
        ("TOTAL_DISBURSEMENT_QUANTITY_EXCEEDS_DECLARED", "/total_minor"),
    ]


def test_all_of_a_chunk_or_nothing() -> None:
    one = book()
    add(one, ("a", "p", 100))
    refused = add(one, ("b", "q", 100), ("a", "r", 100), ("c", "s", 100), ("c", "t", 100))
    assert told(refused.faults) == [
        ("DUPLICATE_DISBURSEMENT_ID", "/items/1/disbursement_id"),
        ("DUPLICATE_DISBURSEMENT_ID", "/items/3/disbursement_id"),
    ]
    assert (one.received, one.received_minor) == (1, 100)
    assert add(one, ("b", "q", 100)).faults == []  # nothing of the refused chunk counts


def test_one_person_twice_is_a_warning_or_a_refusal() -> None:
    lenient, strict = book(), book(refuse=True)
    for one in (lenient, strict):
        add(one, ("a", "p", 100))
    assert told(add(lenient, ("b", "p", 100)).warnings) == [("DUPLICATE_BENEFICIARY", "/items/0/beneficiary_id")]
    assert lenient.received == 2
    assert told(add(strict, ("b", "p", 100)).faults) == [("DUPLICATE_BENEFICIARY", "/items/0/beneficiary_id")]
    assert strict.received == 1


def test_after_the_date_and_after_a_cancellation() -> None:
    assert told(add(book(), ("a", "p", 1), on=date(2026, 11, 22)).faults) == [("DISBURSEMENT_ENVELOPE_DATE_PASSED", "")]
    for state in ("CANCELLING", "CANCELLED"):
        faults = add(book(state=state), ("a", "p", 1)).faults
        assert told(faults) == [("DISBURSEMENT_ENVELOPE_ALREADY_CANCELLED", "")]


@given(st.lists(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("pqr"), st.integers(1, 400)), min_size=1)))
def test_books_never_exceed_what_was_declared(chunks: list[list[tuple[str, str, int]]]) -> None:
    one = book(5, 700)
    taken: list[tuple[str, str, int]] = []
    for rows in chunks:
        if not add(one, *rows).faults:
            taken += rows
    assert len({row[0] for row in taken}) == len(taken) == one.received <= one.declared
    assert sum(row[2] for row in taken) == one.received_minor <= one.declared_minor


GOOD = {
    "benefit_code": {"id": "cash", "type": "CASH_DIGITAL"},
    "currency": "EUR",
    "number_of_beneficiaries": 2,
    "number_of_disbursements": 2,
    "total_minor": 100,
    "schedule_date": "2026-11-21",
    "time_zone": "Africa/Kampala",
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"schedule_date": "2046-01-01"}, []),
        ({"schedule_date": "2026-11-20"}, [("INVALID_DISBURSEMENT_SCHEDULE_DATE", "/schedule_date")]),
        ({"time_zone": "Africa/Nowhere"}, [("INVALID_TIME_ZONE", "/time_zone")]),
        ({"time_zone": "../../etc/passwd"}, [("INVALID_TIME_ZONE", "/time_zone")]),
        ({"time_zone": "Africa"}, [("INVALID_TIME_ZONE", "/time_zone")]),
        ({"currency": "XXQ"}, [("INVALID_CURRENCY", "/currency")]),
        ({"benefit_code": {"id": "c", "type": "COMMODITY"}}, [("INVALID_BENEFIT_CODE", "/benefit_code/type")]),
        ({"number_of_beneficiaries": 3}, [("INVALID_NO_OF_BENEFICIARIES", "/number_of_beneficiaries")]),
        ({"total_minor": 1}, [("INVALID_DISBURSEMENT_QUANTITY", "/total_minor")]),
        (
            {"currency": "QQQ", "time_zone": "x", "number_of_beneficiaries": 9},
            [
                ("INVALID_CURRENCY", "/currency"),
                ("INVALID_NO_OF_BENEFICIARIES", "/number_of_beneficiaries"),
                ("INVALID_TIME_ZONE", "/time_zone"),
            ],
        ),
    ],
)
def test_envelope(changes: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert told(envelope_faults({**GOOD, **changes}, "UTC", lambda _: DAY)) == expected


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), st.recursive(st.none() | st.integers() | st.text(), st.lists)))
def test_envelope_of_any_shape(fields: dict[str, Any]) -> None:
    for fault in envelope_faults(fields, "UTC", lambda _: DAY):
        assert fault.code.startswith("INVALID_")
