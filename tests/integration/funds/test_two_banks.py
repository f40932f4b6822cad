"""Two banks behind the same kinds of call: what one of them asks for is nothing to the other."""

import json

import pytest

from libs.common.contracts import operator
from libs.common.contracts.base import Mnemonic
from libs.local.client import BankAdmin
from tests.faults.bookkeeping import command
from tests.support.money import Payout
from tests.support.world import World

PEOPLE = 5
LONG_SECONDS = 3000.0  # nothing here would wait so long


@pytest.fixture
def away(world: World, bank: BankAdmin) -> Payout:
    """An envelope that is paid by the full bank, which can be asked what became of a call: nothing is unknown for long."""
    return Payout(world, bank, name="AWAY")


@pytest.fixture
def here(world: World, bank: BankAdmin) -> Payout:
    payout = Payout(world, bank, profile="example", name="HERE")
    payout.header = payout.header.model_copy(update={"programme": Mnemonic(id="P2")})
    payout.batch(PEOPLE)
    return payout


def run(world: World, here: Payout, away: Payout) -> None:
    """One funds process for both: programme P2 is paid by the plain bank, everything else by the full one."""
    sponsors = {payout.profile: {"bank": payout.profile.upper(), "account": payout.account} for payout in (here, away)}
    env = {**here.env, "ALMONER_FUNDS_SPONSORS": json.dumps({"default": sponsors["full"], "P2/B1": sponsors["example"]})}
    world.run("funds", **env)


def in_work(world: World, kind: str) -> list[tuple[str, str, int]]:
    rows = world.sql(
        "funds", "SELECT state, coalesce(code, '') AS code, attempts_started FROM ops_work WHERE kind = %(kind)s", kind=kind
    )
    return sorted((row.state, row.code, row.attempts_started) for row in rows)


def asked(bank: BankAdmin, path: str, since: int) -> int:
    return sum(request["profile"] == "full" and request["path"].endswith(path) for request in bank.requests(since))


@pytest.mark.parametrize(
    ("verb", "path"), [("check", "/check_funds"), ("block", "/block_funds"), ("dispatch", "/initiate_payment")]
)
def test_a_bank_that_asks_for_time_stops_no_calls_to_another(
    world: World, bank: BankAdmin, here: Payout, away: Payout, verb: str, path: str
) -> None:
    away.batch(PEOPLE)
    since = max((request["id"] for request in bank.requests()), default=0)
    bank.add_fault("error_503", profile="full", path=path, seconds=LONG_SECONDS)
    run(world, here, away)
    away.publish_all()
    world.until(lambda: in_work(world, verb) == [("PENDING", "HTTP_503", 1)], what="the full bank having been asked")

    here.publish_all()
    world.until(lambda: here.position().get("outstanding") == PEOPLE, what="the other bank having paid")
    assert here.ledger() == {item.disbursement_id: 1 for item in here.items()}

    # Nothing else is begun at the one that asked for time: it is no attempt, and nothing of it counts as under way.
    second = Payout(world, bank, name="SECOND")
    second.batch(PEOPLE)
    second.publish_all()
    world.until(lambda: ("PENDING", "ASKED_TO_WAIT", 0) in in_work(world, verb), what="the second one being held back")
    assert asked(bank, path, since) == 1
    assert second.position()["in_flight"] == 0
    if verb == "dispatch":  # so it can be cancelled without waiting
        second.publish(second.cancelling())
        world.until(lambda: second.position()["cancelled"] == PEOPLE, what="the cancellation")
    assert away.ledger() == second.ledger() == {}


def test_a_statement_is_asked_for_where_no_time_was_asked_for(
    world: World, bank: BankAdmin, here: Payout, away: Payout
) -> None:
    since = max((request["id"] for request in bank.requests()), default=0)
    bank.add_fault("error_503", profile="full", path="/generate_account_statement", seconds=LONG_SECONDS)
    run(world, here, away)
    command(world, operator.RequestStatement, sponsor="default")
    world.until(lambda: in_work(world, "order") == [("PENDING", "HTTP_503", 1)])
    command(world, operator.RequestStatement)
    held_back = [("PENDING", "ASKED_TO_WAIT", 0), ("PENDING", "HTTP_503", 1)]
    world.until(lambda: in_work(world, "order")[1:] == held_back and in_work(world, "order")[0][0] == "DONE")
    assert asked(bank, "/generate_account_statement", since) == 1
