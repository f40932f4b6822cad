"""`almoner books` on agency cash: it balances, and names the one share, line or payment that is not as it was."""

import json
from pathlib import Path
from typing import Any

from libs.common.contracts.base import UnresolvedItems
from libs.local.client import BankAdmin
from tests.faults.bookkeeping import consumed, idle
from tests.integration.cli.conftest import Almoner
from tests.integration.funds.test_agencies import line, zone
from tests.integration.funds.test_operations import until_position
from tests.support.agencies import AgencyPayout
from tests.support.statements import deliver_statements
from tests.support.world import World


def submitted(world: World, payout: AgencyPayout) -> None:
    """What ingestion has of the envelope: that is what amounts are compared with."""
    [row] = world.sql(
        "ingestion",
        """INSERT INTO envelopes (envelope_id, source, publisher_envelope_id, digest, header, beneficiaries, declared, declared_minor)
           VALUES (%(id)s, 'test', %(name)s, '', %(header)s, 1, 1000, 100000000) RETURNING number""",
        id=payout.envelope_id,
        name=payout.name,
        header=payout.header.model_dump_json(),
    )
    for item in payout.items():
        world.sql(
            "ingestion",
            "INSERT INTO disbursements VALUES (%(envelope)s, %(id)s, %(person)s, %(minor)s, 1, 1)",
            envelope=row.number,
            id=item.disbursement_id,
            person=item.beneficiary_id,
            minor=item.amount_minor,
        )


def test_books_of_agency_cash(world: World, bank: BankAdmin, tmp_path: Path) -> None:
    payout = AgencyPayout(world, bank, poor={2})
    payout.batch(10)
    payout.batch(10)
    world.topics("ingestion.results.v1", "funds.commands.v1", "ingestion.statements.v1")
    world.run("funds", **payout.env)
    payout.publish_all()
    submitted(world, payout)
    until_position(payout, outstanding=14, held=6)
    bank.reverse("full", reason="closed", disbursement_ids=[f"{payout.prefix}2-1-Z1"])
    deliver_statements(payout)
    until_position(payout, confirmed=11, reversed=3)
    world.until(lambda: consumed(world, "ingestion.statements.v1") and idle(world))
    almoner = Almoner(world, tmp_path)

    def findings(proof: str) -> list[str]:
        report: dict[str, Any] = almoner.json("books", code=1)
        found: list[str] = report["findings"][proof]
        return found

    report = almoner.json("books")
    assert report["balanced"], report
    assert report["at_rest"], report
    assert not report["notes"]

    # The bank says of two payments that they are the same booking of its own: nothing is wrong with any sum.
    payout.poor.clear()
    late = [item for item in payout.batches[0].items if item.disbursement_id in zone(payout, 2)]
    some = [
        payout.batches[0].model_copy(update={"unresolved": UnresolvedItems.of([(*item, "NO_AGENCY", "")])}) for item in late
    ]
    for part, batch in enumerate(some, 2):
        payout.publish(payout.next_part(batch, part))
    until_position(payout, outstanding=3)
    for number, item in enumerate(late):
        line(payout, 3 + number, 1, item.amount_minor, name=f"statement {number}", bank_reference="B-ONE" if number else "B-0")
    until_position(payout, confirmed=14, outstanding=0)
    world.until(lambda: idle(world))
    report = almoner.json("books")
    assert report["balanced"], report
    [note] = report["notes"]
    assert "B-ONE confirms 2 payments" in note

    # A share whose money the statement did not show: the line, and the payment it was part of, are named.
    one = next(iter(zone(payout, 0)))
    [reference] = world.sql("funds", "SELECT reference FROM ops_payments WHERE disbursement_id = %(id)s", id=one)
    [fact] = world.sql(
        "funds",
        """DELETE FROM facts f USING payments p WHERE p.instruction = f.instruction AND p.position = f.position
           AND p.disbursement_id = %(id)s RETURNING f.*""",
        id=one,
    )
    named = findings("statements")
    assert len(named) == 1
    assert reference.reference in named[0]
    assert "to an agency, for 3 people" in named[0]
    assert any(f"payment {reference.reference} to an agency is CONFIRMED" in finding for finding in findings("database"))
    assert any(one in finding for finding in findings("events"))
    world.sql(
        "funds", "INSERT INTO facts VALUES (%(a)s, %(b)s, %(c)s, %(d)s, %(e)s, %(f)s)", **dict(zip("abcdef", fact, strict=True))
    )
    # Two shares with each other's amounts would pay the agency the same: each is compared with what was submitted.
    first, second, *_ = zone(payout, 1)
    swap = "UPDATE payments SET amount_minor = amount_minor + %(by)s WHERE disbursement_id = %(id)s"
    for sign in (1, -1):
        world.sql("funds", swap, id=first, by=sign)
        world.sql("funds", swap, id=second, by=-sign)
        if sign == 1:
            named = findings("database")
            assert len(named) == 2
            assert all(any(who in finding for finding in named) for who in (first, second))
    # A line that no payment has.
    line(payout, 1, 1, 4242, name="of nobody")
    world.until(lambda: world.sql("funds", "DELETE FROM exceptions WHERE reason = 'AMOUNT_MISMATCH' RETURNING 1"))
    world.until(lambda: idle(world))
    named = findings("statements")
    assert len(named) == 1
    assert "D 4242" in named[0]
    assert json.dumps(named).count(reference.reference) == 1
