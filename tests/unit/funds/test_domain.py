"""References, texts for banks, statement lines, the identities of the books."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.funds import domain
from services.funds.domain import Line, Money, Named, PaidFrom, Share

numbers = st.tuples(st.integers(0, 1295), st.integers(1, domain.MAX_INSTRUCTION), st.integers(0, domain.MAX_POSITION))


@given(numbers)
def test_a_reference_is_16_characters_and_decodes_to_what_it_names(number: tuple[int, int, int]) -> None:
    [reference] = domain.references(number[0], number[1], [number[2]])
    assert len(reference) == 16
    assert reference.isalnum()
    assert reference == reference.upper()
    assert domain.decode_reference(reference) == number


@given(numbers, st.integers(0, 15), st.sampled_from("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
def test_one_mistyped_character_never_names_another_payment(number: tuple[int, int, int], place: int, typed: str) -> None:
    [reference] = domain.references(number[0], number[1], [number[2]])
    mistyped = reference[:place] + typed + reference[place + 1 :]
    decoded = domain.decode_reference(mistyped)
    # With odds of 1 in 1.7 million another reference is met by chance; then it must at least be one of ours.
    assert decoded in (None, number) or domain.references(decoded[0], decoded[1], [decoded[2]]) == [mistyped]


@given(st.text())
def test_any_text_decodes_to_nothing_or_to_a_reference_we_could_have_issued(text: str) -> None:
    decoded = domain.decode_reference(text)
    assert decoded is None or domain.references(decoded[0], decoded[1], [decoded[2]]) == [text]


def test_numbers_which_have_no_room_are_refused() -> None:
    with pytest.raises(ValueError, match="room"):
        domain.references(0, 36**7, [0])


def line(mark: str = "D", amount: int = 100, position: int = 1, bank_reference: str = "B1") -> Line:
    return Line(1, mark, amount, 7, position, bank_reference)


@pytest.mark.parametrize(
    ("lines", "payment", "debits", "reversals", "exceptions"),
    [
        ([line()], {}, 1, 0, []),
        ([line("RD")], {"debit": "B0"}, 0, 1, []),
        ([line(), line("RD", bank_reference="B2")], {}, 1, 1, []),
        ([line("RD"), line()], {}, 1, 1, []),  # the order of lines doesn't matter
        ([line("RD")], {}, 0, 1, ["REVERSAL_WITHOUT_DEBIT"]),
        ([line()], {"debit": "B1"}, 0, 0, []),  # the same line in another statement
        ([line()], {"debit": "B9"}, 0, 0, ["DUPLICATE_DEBIT"]),
        ([line(bank_reference="NONREF")], {"debit": "NONREF"}, 0, 0, ["DUPLICATE_DEBIT"]),
        ([line(), line(bank_reference="B2")], {}, 1, 0, ["DUPLICATE_DEBIT"]),
        ([line("RD")], {"debit": "B0", "reversal": "B9"}, 0, 0, ["DUPLICATE_REVERSAL"]),
        ([line(amount=101)], {}, 0, 0, ["AMOUNT_MISMATCH"]),
        ([line()], {"amount_minor": 99}, 0, 0, ["AMOUNT_MISMATCH"]),
        ([line()], {"cancelled": True}, 0, 0, ["PAID_AFTER_CANCEL"]),
        ([line()], {"held_state": "PAYING"}, 0, 0, ["PAID_AFTER_RETRY"]),
        ([line()], {"held_state": "SUPERSEDED"}, 0, 0, ["PAID_AFTER_RETRY"]),
        ([line()], {"held_state": "HELD"}, 1, 0, []),  # refused, and yet paid
        ([line(position=2)], {}, 0, 0, ["UNKNOWN_REFERENCE"]),
    ],
)
def test_what_a_statement_line_means(
    lines: list[Line], payment: dict[str, object], debits: int, reversals: int, exceptions: list[str]
) -> None:
    payments = {(7, 1): Named(**{"amount_minor": 100, "disbursement_id": "D1", **payment})}  # type: ignore[arg-type]
    result = domain.reconcile(lines, "EUR", payments, {7: PaidFrom("EUR", blocked=True)})
    assert (len(result.debits), len(result.reversals)) == (debits, reversals)
    assert [reason for _, reason in result.exceptions] == exceptions
    assert set(exceptions) <= set(domain.EXCEPTIONS)


def test_two_debits_of_one_payment_are_one_exception_and_the_rest_of_the_statement_counts() -> None:
    payments = {(7, n): Named(100, f"D{n}") for n in (1, 2)}
    lines = [line(), line(bank_reference="B2"), line(position=2, bank_reference="B3")]
    result = domain.reconcile(lines, "EUR", payments, {7: PaidFrom("EUR", blocked=True)})
    assert result.debits == [lines[0], lines[2]]
    assert result.exceptions == [(lines[1], "DUPLICATE_DEBIT")]


def test_the_same_lines_in_another_statement_change_nothing() -> None:
    payments = {(7, n): Named(100, f"D{n}", debit=f"B{n}", reversal=f"R{n}") for n in (1, 2)}
    lines = [line(mark, 100, n, f"{name}{n}") for n in (1, 2) for mark, name in (("D", "B"), ("RD", "R"))]
    assert domain.reconcile(lines, "EUR", payments, {7: PaidFrom("EUR", blocked=True)}) == domain.Reconciliation([], [], [])


@pytest.mark.parametrize(
    ("paid_from", "retired", "exceptions"),
    [
        (PaidFrom("KES", blocked=True), set(), ["AMOUNT_MISMATCH"]),
        (PaidFrom("EUR", blocked=False), set(), ["PAID_BEFORE_BLOCK"]),
        (PaidFrom("EUR", blocked=True), {(7, 1)}, []),  # its successor was taken back in time
    ],
)
def test_a_line_and_its_list(paid_from: PaidFrom, retired: set[tuple[int, int]], exceptions: list[str]) -> None:
    payments = {(7, 1): Named(100, "D1", held_state="PAYING" if retired else None)}
    result = domain.reconcile([line()], "EUR", payments, {7: paid_from}, retired)
    assert [reason for _, reason in result.exceptions] == exceptions
    assert len(result.debits) == (0 if exceptions else 1)


def money(**parts: int) -> Money:
    return Money(**{**dict.fromkeys(Money.__slots__, 0), **parts})


def test_the_identities_of_the_books() -> None:
    assert money(blocked=10, waiting=1, in_flight=2, unknown=3, held=4).balanced
    assert money(blocked=10, dispatched=7, outstanding=1, confirmed=4, reversed=2, releasing=1, released=2).balanced
    assert not money(blocked=10, waiting=9).balanced
    assert not money(blocked=7, dispatched=7, confirmed=6).balanced
    assert money(waiting=5).balanced  # before the block there is nothing that could have moved
    assert money(waiting=5, releasing=2).balanced  # cancelled while the block is being asked for
    assert not money(in_flight=5).balanced
    assert money(blocked=7, dispatched=7, confirmed=6, reversed=1).settled
    assert not money(blocked=7, dispatched=7, confirmed=6, outstanding=1).settled


# --- Payments to agencies -----------------------------------------------------------------------------------------------


def shares(*of: dict[str, Any]) -> list[Share]:
    """Of 10, 20, … at positions 1, 2, …; `unsent` is of the share, all else of what is known of it."""
    return [
        Share(n, fields.pop("unsent", False), Named(**{"amount_minor": 10 * n, "disbursement_id": f"D{n}", **fields}))
        for n, fields in enumerate(map(dict, of), 1)
    ]


@pytest.mark.parametrize(
    ("group", "lines", "debits", "reversals", "exceptions"),
    [
        (shares({}, {}, {}), [line(amount=60)], [1, 2, 3], [], []),
        (shares({}, {}, {}), [line(amount=10)], [], [], ["AMOUNT_MISMATCH"]),  # of the first share alone
        (shares({"unsent": True, "cancelled": True}, {}), [line(amount=20)], [2], [], []),  # even where the head is cancelled
        (shares({}, {"unsent": True, "cancelled": True}), [line(amount=30)], [], [], ["AMOUNT_MISMATCH"]),
        (shares({"unsent": True, "cancelled": True}), [line(amount=10)], [], [], ["PAID_AFTER_CANCEL"]),
        (shares({}, {}), [line(amount=30), line(amount=30, bank_reference="B2")], [1, 2], [], ["DUPLICATE_DEBIT"]),
        (shares({"debit": "B1"}, {"debit": "B1"}), [line(amount=30)], [], [], []),  # the same line in another statement
        (shares({"debit": "B1"}, {"debit": "B1"}), [line("RD", 30)], [], [1, 2], []),
        (shares({}, {}), [line("RD", 30)], [], [1, 2], ["REVERSAL_WITHOUT_DEBIT"]),
        (shares({"debit": "B", "reversal": "C"}, {"debit": "B", "reversal": "C"}), [line("RD", 30)], [], [], ["DUPLICATE_REVERSAL"]),
        (shares({"held_state": "HELD"}, {"held_state": "HELD"}), [line(amount=30)], [1, 2], [], []),  # refused, and yet paid
        (shares({"held_state": "HELD"}, {"held_state": "PAYING"}), [line(amount=30)], [], [], ["PAID_AFTER_RETRY"]),
        (shares({"held_state": "SUPERSEDED"}, {"held_state": "PAYING"}), [line(amount=30)], [], [], ["PAID_AFTER_RETRY"]),
        (shares({"held_state": "HELD"}, {"held_state": "RELEASED", "cancelled": True}), [line(amount=30)], [], [], ["PAID_AFTER_CANCEL"]),
        (shares({}, {}), [line(amount=20, position=2)], [], [], ["UNKNOWN_REFERENCE"]),  # no head
    ],
)  # fmt: skip
def test_a_line_is_for_all_shares_of_a_payment_to_an_agency_or_for_none(
    group: list[Share], lines: list[Line], debits: list[int], reversals: list[int], exceptions: list[str]
) -> None:
    groups = {(7, 1): group}
    payments = {key: domain.as_one(found) for key, found in groups.items()}
    result = domain.reconcile(lines, "EUR", payments, {7: PaidFrom("EUR", blocked=True)})
    assert [one.position for one in domain.spread(result.debits, groups)] == debits
    assert [one.position for one in domain.spread(result.reversals, groups)] == reversals
    assert [reason for _, reason in result.exceptions] == exceptions
    named = {share.position: share.named.amount_minor for share in group}
    assert all(one.amount_minor == named[one.position] for one in domain.spread(result.debits, groups))


def test_all_retries_of_a_payment_to_an_agency_must_be_taken_back_for_it_to_count() -> None:
    one = domain.as_one(shares({"held_state": "PAYING"}, {"held_state": "HELD"}))
    lists = {7: PaidFrom("EUR", blocked=True)}
    for retired, reasons in (({(7, 1)}, []), (set[tuple[int, int]](), ["PAID_AFTER_RETRY"])):
        result = domain.reconcile([line(amount=30)], "EUR", {(7, 1): one}, lists, retired)
        assert [reason for _, reason in result.exceptions] == reasons


@pytest.mark.parametrize(
    ("narratives", "reason"),
    [
        (["Cash", "Rice", "2026-11", "person-1", "A000000001009NZ9", "ACCOUNT CLOSED"], "ACCOUNT CLOSED"),
        (["ACCOUNT CLOSED"], "ACCOUNT CLOSED"),
        (["Cash", "Rice", "2026-11", "person-1", "A000000001009NZ9", "D-1", "ACCOUNT CLOSED", "", "."], "ACCOUNT CLOSED"),
        (["", "", "", "", "", " CLOSED\x01, SEE +256700123456"], "CLOSED, SEE +…"),
        (["Cash", "Rice", "2026-11", "person-1", "A000000001009NZ9", "D-1"], ""),  # what we sent, and nothing else
        (["Cash", "Rice", "2026-11", "person-1", "A000000001009NZ9"], ""),
        (["Cash", "Rice", "2026-11", "Amina Okello"], ""),  # the beneficiary
        ([".", ""], ""),
        ([], ""),
    ],
)
def test_why_a_payment_came_back_is_the_last_narrative_that_is_not_our_own(narratives: list[str], reason: str) -> None:
    assert domain.reversal_reason(narratives, "D-1") == reason
