"""Each exception of statements, from the line to its end: listed with amount and detail, settled by command with evidence, and the
money stays where it was."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import pytest

from libs.common.contracts import operator
from libs.common.contracts.ingestion import StatementLine, UnparsableLine
from libs.local.client import BankAdmin
from services.funds.domain import EXCEPTIONS
from tests.faults.bookkeeping import idle
from tests.integration.funds.test_operations import command, tick, until_position
from tests.support.money import Payout
from tests.support.simulator import SimulatorProcess
from tests.support.stacks import Databases
from tests.support.statements import publish_lines, publish_opened
from tests.support.world import Kafka, World

pytestmark = pytest.mark.xdist_group(__name__)  # one process of funds for all

# The bank has refused the first three; since then one was paid anew, one was cancelled and of one the money was given back.
PEOPLE = ("paid anew", "cancelled once refused", "released", "debited", "reversed", "reversed early", "paid")
UNPAID = ("cancelled", "without a block")  # of an envelope for which nothing is reserved
STRANGER_MINOR = 2500
OFF_MINOR = 700


class Case(NamedTuple):
    reason: str
    mark: str
    whose: str  # the payment that the line names, by PEOPLE or UNPAID; or a reference
    detail: str
    off_minor: int = 0  # the line's amount is not that of the payment
    before: tuple[str, ...] = ()  # lines of the same payment that count

    def __str__(self) -> str:
        return f"{self.reason}: {self.whose}"


LINES = [
    Case("UNKNOWN_REFERENCE", "D", "NOT OURS", "D line"),
    Case("AMOUNT_MISMATCH", "D", "paid", "D line", off_minor=1),
    Case("DUPLICATE_DEBIT", "D", "debited", "D line", before=("D",)),
    Case("REVERSAL_WITHOUT_DEBIT", "RD", "reversed early", "RD line"),
    Case("DUPLICATE_REVERSAL", "RD", "reversed", "RD line", before=("D", "RD")),
    Case("PAID_AFTER_RETRY", "D", "paid anew", "D line"),
    Case("PAID_AFTER_CANCEL", "D", "cancelled", "D line"),
    Case("PAID_AFTER_CANCEL", "D", "cancelled once refused", "D line"),
    Case("PAID_AFTER_CANCEL", "D", "released", "D line"),
    Case("PAID_BEFORE_BLOCK", "D", "without a block", "D line"),
]


class Books(NamedTuple):
    """Envelopes at rest, of one funds process."""

    paid: Payout
    unpaid: Payout
    late: Payout

    def payment(self, whose: str) -> Any:
        """The first payment to somebody."""
        payout, names = (self.paid, PEOPLE) if whose in PEOPLE else (self.unpaid, UNPAID)
        item = payout.items()[names.index(whose)]
        return self.paid.world.sql(
            "funds",
            """SELECT instruction, position, reference, amount_minor FROM ops_payments
               WHERE disbursement_id = %(id)s ORDER BY instruction LIMIT 1""",
            id=item.disbursement_id,
        )[0]

    def money(self) -> tuple[list[Any], Counter[str]]:
        """Where it is by the books and by the bank's ledger."""
        positions = [sorted(one.position().items()) for one in self]
        for one in self:
            one.assert_balanced()
        return positions, Counter(self.paid.ledger()) + Counter(self.unpaid.ledger()) + Counter(self.late.ledger())


@pytest.fixture(scope="module")
def world(kafka: Kafka, databases: Databases, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for all: a case has payments and a statement of its own."""
    with closing(World(kafka, databases, template, tmp_path_factory.mktemp("exceptions"))) as world:
        yield world


@pytest.fixture(scope="module")
def books(world: World, bank_process: SimulatorProcess) -> Iterator[Books]:
    if bank_process.process is None:
        bank_process.start()  # a test had stopped it
    with BankAdmin(bank_process.base_url) as bank:
        books = Books(*(Payout(world, bank, name=name) for name in Books._fields))
        paid, unpaid, late = books
        batch = paid.batch(len(PEOPLE))
        unpaid.batch(len(UNPAID))
        late.batch(2)
        world.run("funds", **paid.env, ALMONER_FUNDS_STATEMENT_DAYS="3")
        anew, cancelled, _ = refused = [item.disbursement_id for item in batch.items][:3]
        bank.close_accounts("full", [f"ACC-{item.beneficiary_id}" for item in batch.items if item.disbursement_id in refused])
        try:
            paid.publish_all()
            until_position(paid, outstanding=len(PEOPLE) - 3, held=3)
        finally:
            bank.close_accounts("full", [])
        command(world, operator.RetryHeld, envelope_id=paid.envelope_id, disbursement_ids=[anew])
        paid.publish(paid.cancelling_some([cancelled]))
        late.publish_all()
        unpaid.publish(unpaid.batches[0])  # and never complete
        until_position(unpaid, waiting=len(UNPAID))  # whoever is cancelled before that has no payment that could be named
        unpaid.publish(unpaid.cancelling_some([unpaid.items()[0].disbursement_id]))
        until_position(paid, outstanding=len(PEOPLE) - 2, held=1, cancelled=1)
        command(world, operator.ReleaseRequested, envelope_id=paid.envelope_id, expected=1)
        until_position(paid, outstanding=len(PEOPLE) - 2, held=0, releasing_minor=0)
        until_position(unpaid, cancelled=1, waiting=1)
        until_position(late, outstanding=2)
        world.until(lambda: idle(world))
        yield books


def publish(
    books: Books,
    lines: list[StatementLine],
    unparsable: list[UnparsableLine] | None = None,
    account: str | None = None,
    off_minor: int = 0,
) -> UUID:
    """A statement of one chunk, once it is reconciled; it closes with `off_minor` more than its lines come to."""
    payout, world, statement_id = books.paid, books.paid.world, uuid4()
    token = payout.sealer.token(account or payout.account)
    publish_lines(payout, statement_id, token, [lines], unparsable=unparsable or [])
    balance = sum(line.amount_minor if line.mark in ("C", "RD") else -line.amount_minor for line in lines)
    publish_opened(payout, statement_id, token, 0, balance + off_minor, len(lines) + len(unparsable or []), 1)
    query = "SELECT 1 FROM ops_statements WHERE statement_id = %(id)s AND reconciled_at IS NOT NULL"
    world.until(lambda: world.sql("funds", query, id=statement_id) and idle(world))
    return statement_id


def line(number: int, mark: str, amount_minor: int, reference: str = "") -> StatementLine:
    """Each has a bank reference of its own."""
    return StatementLine(number, mark, amount_minor, date(2026, 1, 2), reference, uuid4().hex[:16], reference)


def listed(world: World, **of: object) -> list[Any]:
    where = " AND ".join(f"{name} = %({name})s" for name in of)
    return world.sql("funds", f"SELECT * FROM ops_exceptions WHERE {where}", **of)


def settled_by_command(books: Books, found: Any) -> None:
    """An operator ends it, and no money moves by that."""
    world, before = books.paid.world, books.money()
    assert (found.state, found.closed_by, found.evidence) == ("OPEN", None, None)
    command(world, operator.SettleException, ids=[found.id], evidence="letter of 3 May")
    [closed] = world.until(lambda: listed(world, id=found.id, state="CLOSED"))
    assert (closed.closed_by, closed.why, closed.evidence) == ("tester", "test", "letter of 3 May")
    world.until(lambda: idle(world))
    assert books.money() == before


def test_every_reason_has_its_case() -> None:
    assert {case.reason for case in LINES} == {*EXCEPTIONS} - {"UNKNOWN_ACCOUNT", "UNPARSABLE_LINE"}  # these have tests below


@pytest.mark.parametrize("case", LINES, ids=str)
def test_a_line_that_cannot_count_is_an_exception_until_it_is_settled(world: World, books: Books, case: Case) -> None:
    payment = books.payment(case.whose) if case.whose in PEOPLE + UNPAID else None
    reference, amount_minor = (payment.reference, payment.amount_minor) if payment else (case.whose, STRANGER_MINOR)
    if case.before:
        first = publish(books, [line(n, mark, amount_minor, reference) for n, mark in enumerate(case.before, 1)])
        assert listed(world, statement_id=first) == []
    before = books.money()
    # Behind another line, so that the number of the line is told too.
    wrong = line(2, case.mark, amount_minor + case.off_minor, reference)
    [found] = listed(world, statement_id=publish(books, [line(1, "C", 5), wrong]))
    assert (found.reason, found.line, found.reference, found.currency) == (case.reason, 2, reference, "EUR")
    assert (found.amount_minor, found.detail) == (wrong.amount_minor, case.detail)
    named = (payment.instruction, payment.position) if payment else (None, None)
    assert (found.instruction, found.position) == named
    assert books.money() == before
    settled_by_command(books, found)


def test_a_line_that_cannot_be_read_is_an_exception_and_the_others_count(world: World, books: Books) -> None:
    before = books.money()
    bad = UnparsableLine(line=2, reason="AMOUNT: not a number")
    # What the line came to is missing in the balance: the line says so itself, once is enough.
    [found] = listed(world, statement_id=publish(books, [line(1, "C", 5)], [bad], off_minor=OFF_MINOR))
    assert (found.reason, found.line, found.detail) == ("UNPARSABLE_LINE", 2, "AMOUNT: not a number")
    assert (found.amount_minor, found.currency) == (None, "EUR")
    [statement] = world.sql("funds", "SELECT exceptions FROM ops_statements WHERE statement_id = %(id)s", id=found.statement_id)
    assert statement.exceptions == 1
    assert books.money() == before
    settled_by_command(books, found)


def test_a_statement_of_nobodys_account_is_an_exception(world: World, books: Books) -> None:
    before = books.money()
    [found] = listed(world, statement_id=publish(books, [line(1, "C", 5)], account="NOBODY"))
    assert (found.reason, found.detail) == ("UNKNOWN_ACCOUNT", "no sponsor has it")
    assert (found.amount_minor, found.currency) == (None, "EUR")
    assert books.money() == before
    settled_by_command(books, found)


def test_a_statement_that_does_not_add_up_is_an_exception(world: World, books: Books) -> None:
    before = books.money()
    [found] = listed(world, statement_id=publish(books, [line(1, "C", 5)], off_minor=OFF_MINOR))
    assert (found.reason, found.line, found.amount_minor) == ("BALANCE_MISMATCH", None, OFF_MINOR)
    assert found.detail.startswith("1 of 1 lines; ")
    assert books.money() == before
    settled_by_command(books, found)


def test_a_list_of_which_no_line_comes_is_an_exception(world: World, books: Books) -> None:
    before = books.money()
    older = "UPDATE instructions SET dispatched_at = dispatched_at - interval '4 days' WHERE envelope_id = %(id)s"
    world.sql("funds", older, id=books.late.envelope_id)
    tick(world)
    world.until(lambda: listed(world, reason="NO_STATEMENT_LINE"))
    world.until(lambda: idle(world))  # then the bank's answer is added
    [found] = listed(world, reason="NO_STATEMENT_LINE")
    total = sum(item.amount_minor for item in books.late.items())
    detail = "2 payments without a line; the bank says: accepted 2, refused 0"
    assert (found.statement_id, found.amount_minor, found.detail) == (None, total, detail)
    assert books.money() == before
    settled_by_command(books, found)
