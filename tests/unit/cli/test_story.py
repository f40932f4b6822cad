"""How a history is told, and that nothing is told without its meaning."""

from datetime import UTC, date, datetime

import pytest

from libs.cli import statements
from libs.cli.failures import MEANINGS
from libs.cli.story import Step, sentence
from libs.common.money import Unit
from services.funds.domain import EXCEPTIONS
from services.ingestion.statements import FLAGS

AT = datetime(2026, 11, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (Step("ingestion", AT, AT, 1, "accepted", "2 disbursements declared, 6813916 minor units"),
         "accepts the envelope: 2 disbursements declared, 68,139.16 KES"),
        (Step("funds", AT, AT, 1, "dispatched", "1 payments, instruction 1"),
         "has sent payments to the bank: 1 payment, instruction 1"),
        (Step("ingestion", AT, AT, 1, "complete", "21 disbursements received in 1 batches"),
         "has all that was declared: 21 disbursements received in 1 batch"),
        (Step("resolution", AT, AT, 1, "batch received", "batch 1, 1 people"), "is to find addresses: batch 1, 1 person"),
        (Step("resolution", AT, AT, 1, "held", "NOT_LINKED", "D-1"), "holds D-1: NOT_LINKED"),
        (Step("resolution", AT, AT, 1, "held", "NOT_LINKED"), "holds this person: NOT_LINKED"),
        (Step("funds", AT, AT, 1_200, "held"), "holds people ×1,200"),
        (Step("funds", AT, AT, 1, "something new", "1"), "something new: 1"),
    ],
)  # fmt: skip
def test_a_step_is_a_sentence(step: Step, said: str) -> None:
    assert sentence(step, Unit("KES", 2)) == said


def test_goods_are_told_in_their_own_unit() -> None:
    step = Step("ingestion", AT, AT, 1, "accepted", "2 disbursements declared, 25500 minor units")
    assert sentence(step, Unit("kg", 3)) == "accepts the envelope: 2 disbursements declared, 25.500 kg"


def test_every_exception_has_its_meaning() -> None:
    assert {*EXCEPTIONS, "NO_STATEMENT_LINE"} <= MEANINGS.keys()


def test_what_to_do_about_a_statement_is_what_its_sender_is_told() -> None:
    assert statements.FLAGS == FLAGS


@pytest.mark.parametrize(
    ("number", "sequence", "day", "said"),
    [
        ("17", "2", date(2026, 11, 3), "17/2 of 2026-11-03"),
        ("17", "", None, "17"),
        ("", "", date(2026, 11, 3), "– of 2026-11-03"),
        (None, None, None, "–"),
    ],
)
def test_a_statement_is_named_as_the_bank_does(number: str | None, sequence: str | None, day: date | None, said: str) -> None:
    assert statements.named(number, sequence, day) == said
