"""What may be declared, and what may be added to it."""

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingestion.domain import Amendment, Book, Chunk, Fault, Publishers, Verdict, envelope_faults

DAY = date(2026, 11, 21)


def book(declared: int = 10, declared_minor: int = 1000, refuse: bool = False, **changes: Any) -> Book:
    fields: dict[str, Any] = {
        "received": 0,
        "received_minor": 0,
        "state": "RECEIVING",
        "schedule_date": DAY,
        "days_ahead": 366,
        **changes,
    }
    people = fields.pop("beneficiaries", declared)
    return Book(people, declared, declared_minor, refuse_same_person=refuse, **fields)


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


EVE = date(2026, 11, 20)
COUNTS = ("number_of_beneficiaries", "number_of_disbursements", "total_minor")


def change(**fields: Any) -> Amendment:
    return Amendment(**fields)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (change(number_of_disbursements=3, total_minor=400), []),
        (change(number_of_beneficiaries=1), []),
        (change(total_minor=308), []),
        (change(number_of_disbursements=2, total_minor=300), []),  # as many as are there
        (change(schedule_date=DAY), []),  # as it is
        (change(number_of_disbursements=1), [("INVALID_NO_OF_DISBURSEMENTS", "/number_of_disbursements")]),
        (change(total_minor=299), [("INVALID_DISBURSEMENT_QUANTITY", "/total_minor")]),
        (
            change(number_of_disbursements=1, total_minor=200),
            [("INVALID_DISBURSEMENT_QUANTITY", "/total_minor"), ("INVALID_NO_OF_DISBURSEMENTS", "/number_of_disbursements")],
        ),
        # What could never come true: money without people, people without money.
        (change(number_of_disbursements=2), [("INVALID_DISBURSEMENT_QUANTITY", "/total_minor")]),
        (change(total_minor=307), [("INVALID_DISBURSEMENT_QUANTITY", "/total_minor")]),
        (change(number_of_disbursements=500), [("INVALID_DISBURSEMENT_QUANTITY", "/total_minor")]),
        (change(number_of_beneficiaries=11), [("INVALID_NO_OF_BENEFICIARIES", "/number_of_beneficiaries")]),
        (change(schedule_date=date(2026, 12, 1)), []),
        (change(schedule_date=EVE), []),  # earlier, and still to come
        (change(schedule_date=date(2026, 11, 19)), [("INVALID_DISBURSEMENT_SCHEDULE_DATE", "/schedule_date")]),
        (change(schedule_date=date(2027, 11, 22)), [("INVALID_DISBURSEMENT_SCHEDULE_DATE", "/schedule_date")]),
    ],
)
def test_amend(asked: Amendment, expected: list[tuple[str, str]]) -> None:
    """Ten are declared with 700; two with 300 are there."""
    one = book(10, 700, received=2, received_minor=300, beneficiaries=2)
    before = (one.beneficiaries, one.declared, one.declared_minor)
    assert sorted(told(one.amend(asked, EVE))) == expected
    assert one.schedule_date == (DAY if expected else asked.schedule_date or DAY)
    wanted = tuple(getattr(asked, name) or old for name, old in zip(COUNTS, before, strict=True))
    assert (one.beneficiaries, one.declared, one.declared_minor) == (before if expected else wanted)


def test_an_amendment_does_not_declare_fewer_people_than_are_there() -> None:
    def fresh() -> Book:
        return book(10, 700, received=4, received_minor=300, beneficiaries=10)

    too_few = [("INVALID_NO_OF_BENEFICIARIES", "/number_of_beneficiaries")]
    assert told(fresh().amend(change(number_of_beneficiaries=2), EVE, people_there=3)) == too_few
    assert told(fresh().amend(change(number_of_beneficiaries=3), EVE, people_there=3)) == []
    assert told(fresh().amend(change(schedule_date=date(2026, 12, 1)), EVE, people_there=11)) == []  # not what is asked


def test_when_nothing_is_amended_any_more() -> None:
    asked = change(number_of_disbursements=20, schedule_date=date(2026, 12, 1))
    assert told(book().amend(asked, DAY)) == [("DISBURSEMENT_ENVELOPE_DATE_PASSED", "")]
    complete = book(2, 300, received=2, received_minor=300, state="COMPLETED")
    frozen = [("DISBURSEMENT_ENVELOPE_COMPLETE", pointer) for pointer in ("/number_of_disbursements", "/schedule_date")]
    assert told(complete.amend(asked, EVE)) == frozen
    assert told(book(state="CANCELLING").amend(asked, EVE)) == [("DISBURSEMENT_ENVELOPE_ALREADY_CANCELLED", "")]


def test_only_the_date_by_itself_is_for_funds_once_all_has_come() -> None:
    def complete(**fields: Any) -> Book:
        return book(2, 300, received=2, received_minor=300, **{"state": "COMPLETED", "date_moves": True, **fields})

    later, with_counts = change(schedule_date=date(2026, 12, 1)), change(schedule_date=date(2026, 12, 1), total_minor=400)
    frozen = [("DISBURSEMENT_ENVELOPE_COMPLETE", "/schedule_date")]
    asked = complete()
    assert asked.is_for_funds(later)
    assert asked.amend(later, EVE) == []
    assert asked.schedule_date == DAY  # until funds has decided
    assert told(complete().amend(change(schedule_date=date(2026, 11, 19)), EVE)) == [
        ("INVALID_DISBURSEMENT_SCHEDULE_DATE", "/schedule_date")
    ]
    assert told(complete().amend(later, DAY)) == [("DISBURSEMENT_ENVELOPE_DATE_PASSED", "")]
    assert told(complete().amend(with_counts, EVE)) == [("DISBURSEMENT_ENVELOPE_COMPLETE", "/total_minor"), *frozen]
    for other in (complete(date_moves=False), complete(state="SETTLED")):
        assert not other.is_for_funds(later)
        assert told(other.amend(later, EVE)) == frozen
    assert not book(date_moves=True).is_for_funds(later)  # not complete: ingestion's own


_SMALL = st.none() | st.integers(1, 30)


@given(st.lists(st.one_of(st.tuples(_SMALL, _SMALL, _SMALL), st.tuples(st.integers(1, 5), st.integers(5, 20))), max_size=12))
def test_whatever_is_amended_can_still_become_complete(steps: list[tuple[Any, ...]]) -> None:
    one = book(6, 40)
    added = 0
    for step in steps:
        if len(step) == 3:
            one.amend(Amendment(*step), EVE)
        elif one.state == "RECEIVING":
            count, total = step
            amounts = [1] * (count - 1) + [max(1, total - count + 1)]
            left, left_minor = one.declared - one.received - count, one.declared_minor - one.received_minor - sum(amounts)
            if left_minor < left or (left == 0) != (left_minor == 0):
                continue  # a publisher who does this is at fault himself
            add(one, *[(str(added + n), "p", amount) for n, amount in enumerate(amounts)])
            added += count
        if one.complete:
            one.state = "COMPLETED"
        left, left_minor = one.declared - one.received, one.declared_minor - one.received_minor
        assert left_minor >= left >= 0
        assert (left == 0) == (left_minor == 0) == one.complete
        assert one.beneficiaries <= one.declared


def test_who_may_publish() -> None:
    listed = {"erp": ["rice", "cash"], "hub": "*", "bank": []}
    strict, lenient = Publishers(listed, open=False), Publishers(listed, open=True)
    for one in (strict, lenient):
        assert one.refusal("erp") is one.refusal("erp", "cash", "/programme/id") is one.refusal("hub", "any") is None
        assert one.refusal("bank") is None
        assert (
            told([x for x in (one.refusal("erp", "fish", "/p"), one.refusal("bank", "cash", "/p")) if x])
            == [("INVALID_SOURCE", "/p")] * 2
        )
    assert told([x for x in (strict.refusal("who"), strict.refusal("who", "cash", "/p")) if x]) == [("INVALID_SOURCE", "")] * 2
    assert lenient.refusal("who", "cash") is None
    for one in (strict, lenient):
        assert told([x for x in [one.statement_refusal("erp")] if x]) == [("INVALID_SOURCE", "")]
        assert one.statement_refusal("hub") is one.statement_refusal("bank") is None
    assert told([x for x in [strict.statement_refusal("who")] if x]) == [("INVALID_SOURCE", "")]
    assert lenient.statement_refusal("who") is None


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
        ({"currency": None}, [("INVALID_CURRENCY", "/currency")]),
        ({"measurement_unit": "kg"}, [("INVALID_MEASUREMENT_UNIT", "/measurement_unit")]),
        ({"unit_scale": 2}, [("INVALID_MEASUREMENT_UNIT", "/unit_scale")]),
        ({"benefit_code": {"id": "c", "type": "CASH_PHYSICAL"}}, []),
        (
            {"benefit_code": {"id": "c", "type": "COMMODITY"}},
            [("INVALID_CURRENCY", "/currency"), ("INVALID_MEASUREMENT_UNIT", "/measurement_unit")],
        ),
        ({"benefit_code": {"id": "c", "type": "SERVICE"}, "currency": None, "measurement_unit": "visit"}, []),
        (
            {"benefit_code": {"id": "c", "type": "COMBINATION"}, "currency": None, "measurement_unit": "kit", "unit_scale": 3},
            [],
        ),
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
    assert told(envelope_faults({**GOOD, **changes}, "UTC", lambda _: DAY, days_ahead=10_000)) == expected


@pytest.mark.parametrize(
    ("day", "days_ahead", "fits"),
    [("2026-11-21", 0, True), ("2026-11-22", 0, False), ("2026-12-21", 30, True), ("2026-12-22", 30, False)],
)
def test_how_far_ahead_a_date_may_be(day: str, days_ahead: int, fits: bool) -> None:
    faults = envelope_faults({**GOOD, "schedule_date": day}, "UTC", lambda _: DAY, days_ahead)
    assert told(faults) == ([] if fits else [("INVALID_DISBURSEMENT_SCHEDULE_DATE", "/schedule_date")])


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), st.recursive(st.none() | st.integers() | st.text(), st.lists)))
def test_envelope_of_any_shape(fields: dict[str, Any]) -> None:
    for fault in envelope_faults(fields, "UTC", lambda _: DAY, 366):
        assert fault.code.startswith("INVALID_")
