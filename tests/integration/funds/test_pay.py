"""The life of an envelope at funds: check, block, dispatch, confirm, for both bank profiles."""

import pytest

from libs.common.contracts import funds
from libs.local.client import BankAdmin, Profile
from tests.support.money import Payout
from tests.support.statements import deliver_statements
from tests.support.world import World


@pytest.mark.parametrize("profile", ["full", "example"])
def test_everybody_is_paid_once_and_the_statement_settles_the_envelope(world: World, bank: BankAdmin, profile: Profile) -> None:
    payout = Payout(world, bank, profile)
    for _ in range(3):
        payout.batch(1000)
    process = world.run("funds", **payout.env)
    payout.publish_all()
    world.until(lambda: payout.position().get("outstanding") == 3000, timeout=30)
    payout.assert_balanced()
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()}
    sent = {p["disbursement_id"]: p["payment_reference_number"] for p in bank.payments(profile)}
    for row in world.sql("funds", "SELECT disbursement_id, reference FROM ops_payments"):
        assert sent[row.disbursement_id] == row.reference  # what the view shows is what the bank knows
    deliver_statements(payout)
    world.until(lambda: payout.position().get("state") == "SETTLED", timeout=30)
    payout.assert_balanced()
    assert payout.position()["confirmed"] == 3000
    [settled] = world.events("funds.envelopes.v1", funds.EnvelopeSettled, at_least=1)
    assert settled.data.position.confirmed == sum(item.amount_minor for item in payout.items())
    confirmed = world.events("funds.payments.v1", funds.PaymentsConfirmed, at_least=3)
    assert sorted(i.disbursement_id for e in confirmed for i in e.data.items) == sorted(
        i.disbursement_id for i in payout.items()
    )
    assert process.stop() == 0
