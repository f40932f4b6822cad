"""Funds and notifications together, at a bank that takes or refuses each payment of a list by itself: whatever was believed of a
payment to an agency, once a statement shows it the agency has its list."""

from pathlib import Path

from libs.common.contracts import operator
from libs.local.client import BankAdmin
from tests.integration.funds.test_agencies import PEOPLE, line, refused, zone
from tests.integration.funds.test_operations import command, until_position
from tests.integration.notifications.batches import idle
from tests.support.agencies import AgencyPayout
from tests.support.world import World


def tell(world: World, folder: Path) -> None:
    """Agencies are told by files, people not at all."""
    channels = {
        "WAREHOUSE_CHANNEL": "none",
        "AGENCY_CHANNEL": "file",
        "BENEFICIARY_CHANNEL": "none",
        "FILE_FOLDER": str(folder),
    }
    world.run("notifications", **{f"ALMONER_NOTIFICATIONS_{name}": text for name, text in channels.items()})


def told(world: World) -> list[tuple[str, int, str]]:
    rows = world.sql("notifications", "SELECT * FROM ops_notices WHERE kind = 'AGENCY' ORDER BY subject, instruction")
    return [(row.subject, row.instruction, row.state) for row in rows]


def people_told(world: World, payout: AgencyPayout) -> int:
    sql = "SELECT count(*) AS n FROM ops_notices WHERE kind = 'BENEFICIARY' AND envelope_id = %(id)s"
    return int(world.sql("notifications", sql, id=payout.envelope_id)[0].n)


def test_an_agency_whose_payment_was_refused_and_is_debited_is_told(world: World, bank: BankAdmin, tmp_path: Path) -> None:
    payout = AgencyPayout(world, bank)
    tell(world, tmp_path)
    refused(world, payout)
    world.until(lambda: told(world) == [("A1", 1, "SENT"), ("A2", 1, "SENT")])
    line(payout, 1, 1, sum(zone(payout, 0).values()))
    until_position(payout, confirmed=4, held=0)
    world.until(lambda: told(world) == [("A0", 1, "SENT"), ("A1", 1, "SENT"), ("A2", 1, "SENT")])
    for position in (2, 3):  # the others' debits come as they should
        line(payout, 1, position, sum(zone(payout, position - 1).values()), name=str(position))
    until_position(payout, confirmed=PEOPLE, state="SETTLED")
    world.until(lambda: people_told(world, payout) == PEOPLE)
    world.until(lambda: idle(world))
    assert len(told(world)) == 3
    files = [path.read_text() for path in tmp_path.iterdir()]
    people = [item.beneficiary_id for item in payout.items()]
    assert [sum(f"\n{person} " in file for file in files) for person in people] == [1] * PEOPLE


def test_an_agency_of_a_list_that_did_not_happen_is_told_of_what_happened(
    world: World, bank: BankAdmin, tmp_path: Path
) -> None:
    """The answer was lost, one payment is debited; of the others an operator knows that they were not made: they are made anew."""
    payout = AgencyPayout(world, bank)
    payout.batch(PEOPLE)
    bank.add_fault("error_500", profile="full", count=30, path="/initiate_payment")
    try:
        tell(world, tmp_path)
        world.run("funds", **payout.env, ALMONER_FUNDS_DISPATCH_MAX_ATTEMPTS="1")
        payout.publish_all()
        until_position(payout, unknown=PEOPLE)
    finally:
        bank.delete_faults()
    line(payout, 1, 2, sum(zone(payout, 1).values()))
    until_position(payout, confirmed=3, unknown=PEOPLE - 3)
    command(world, operator.SettleUnknown, kind="dispatch", subject="1", outcome="did_not_happen", evidence="the bank's log")
    until_position(payout, confirmed=3, held=PEOPLE - 3)
    world.until(lambda: told(world) == [("A1", 1, "SENT")])
    command(world, operator.RetryHeld, envelope_id=payout.envelope_id)
    until_position(payout, confirmed=3, outstanding=PEOPLE - 3)
    world.until(lambda: told(world) == [("A0", 2, "SENT"), ("A1", 1, "SENT"), ("A2", 2, "SENT")])
