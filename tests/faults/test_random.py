"""A random life of three envelopes against the real service: facts in any order, cancellations, faults of the bank, reversals,
releases, kills. Both identities of the books hold after each step; in the end every disbursement has come to one end.

ALMONER_TEST_SEEDS=50 tries more; a failing seed is in the name of its test.
"""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from libs.common.contracts import operator
from libs.common.contracts.base import EventData
from libs.local.client import BankAdmin, Profile, SimulatorProcess
from tests.faults.bookkeeping import LIMITS, command, idle, tick, unknown
from tests.faults.stories import Story, Teller, Told
from tests.support.money import Payout
from tests.support.statements import deliver_statements
from tests.support.world import World

pytestmark = pytest.mark.xdist_group(__name__)  # its stories are told together

SEEDS = range(int(os.environ.get("ALMONER_TEST_SEEDS", "2")))
PROFILES: tuple[Profile, ...] = ("full", "example")
STEPS = 60
FAULTS = ("refuse", "fail_before", "timeout_after", "late", "error_500", "error_500_after", "nonsense", "down")
VERBS = ("/check_funds", "/block_funds", "/initiate_payment", "/release_funds", "/query")


class Life:
    def __init__(self, world: World, bank: BankAdmin, profile: Profile, seed: int) -> None:
        self.chance = random.Random(seed)
        self.world, self.bank, self.profile = world, bank, profile
        self.payouts = [Payout(world, bank, profile, name=f"E{number}") for number in range(3)]
        self.to_come: list[tuple[Payout, EventData]] = []
        for number, payout in enumerate(self.payouts):
            for _ in range(2):
                batch = payout.batch(7 + number, unresolved=self.chance.choice([0, 0, 2]))
                if batch.unresolved:
                    self.to_come.append((payout, payout.next_part(batch, 2)))
            self.to_come += [(payout, batch) for batch in payout.batches]
            self.to_come.append((payout, payout.completed()))
        self.chance.shuffle(self.to_come)
        self.come: list[tuple[Payout, EventData]] = []
        self.statement = 0
        self.reversed: set[str] = set()
        self.requests = 0
        self.process = self._start()

    def _start(self) -> Any:
        return self.world.run("funds", **{**self.payouts[0].env, **LIMITS})

    def story(self) -> Story:
        steps: list[tuple[int, Callable[[], Iterator[Any]]]] = [
            (20, self.fact),
            (4, self.repeat),
            (6, self.fault),
            (5, self.cancel_some),
            (1, self.cancel_all),
            (8, self.state),
            (4, self.reverse),
            (3, self.release),
            (4, self.operator),
            (1, self.kill),
            (8, self.rest),
        ]
        for _ in range(STEPS):
            [step] = self.chance.choices([step for _, step in steps], [weight for weight, _ in steps])
            yield from step()
            self.check_identities()
        yield from self.end()
        self.check_end()

    # --- what may happen ----------------------------------------------------------------------------------------------

    def fact(self) -> Iterator[Any]:
        if self.to_come:
            payout, data = self.to_come.pop()
            payout.publish(data)
            self.come.append((payout, data))
        yield lambda: True

    def repeat(self) -> Iterator[Any]:
        if self.come:
            payout, data = self.chance.choice(self.come)
            payout.publish(data)  # the same fact under another id
        yield lambda: True

    def fault(self) -> Iterator[Any]:
        kind, path = self.chance.choice(FAULTS), self.chance.choice(VERBS)
        if (kind, path) != ("refuse", "/release_funds"):  # that money would stay where it is for ever
            self.bank.add_fault(kind, profile=self.profile, path=path, count=1, seconds=1)
        yield lambda: True

    def cancel_some(self) -> Iterator[Any]:
        payout = self.chance.choice(self.payouts)
        people = self.chance.sample([item.disbursement_id for item in payout.items()], 2)
        self.requests += 1
        data = payout.cancelling_some(people, f"some-{self.requests}")
        payout.publish(data)
        self.come.append((payout, data))
        yield lambda: True

    def cancel_all(self) -> Iterator[Any]:
        payout = self.chance.choice(self.payouts)
        payout.publish(payout.cancelling())
        yield lambda: True

    def state(self) -> Iterator[Any]:
        """A statement of all since the last one; sometimes all statements once more."""
        after = self.chance.choice([self.statement, self.statement, 0])
        self.statement = max(self.statement, deliver_statements(self.payouts[0], after=after, chunk=5))
        yield lambda: True

    def reverse(self) -> Iterator[Any]:
        paid = sorted(self.paid() - self.reversed)
        if paid:
            one = self.chance.choice(paid)
            self.bank.reverse(self.profile, reason="account closed", disbursement_ids=[one])
            self.reversed.add(one)
        yield lambda: True

    def release(self) -> Iterator[Any]:
        command(self.world, operator.ReleaseRequested, envelope_id=self.chance.choice(self.payouts).envelope_id)
        yield lambda: True

    def operator(self) -> Iterator[Any]:
        """Settles what is unknown by the bank's books, has refused payments tried again, checks short envelopes again."""
        known = {row.bank_reference for row in self.world.sql("funds", "SELECT bank_reference FROM ops_blocks")}
        blocks = [block for block in self.bank.blocks(self.profile) if block["block_reference_no"] not in known]
        for row in unknown(self.world):
            found = [b["block_reference_no"] for b in blocks if row.kind == "block" and b["amount_minor"] == row.amount_minor]
            people = (
                []
                if row.kind != "dispatch"
                else self.world.sql(
                    "funds", "SELECT disbursement_id FROM payments WHERE instruction = %(n)s", n=int(row.subject)
                )
            )
            happened = bool(found) or row.kind == "release" or any(one.disbursement_id in self.paid() for one in people)
            command(
                self.world,
                operator.SettleUnknown,
                kind=row.kind,
                subject=row.subject,
                outcome="happened" if happened else "did_not_happen",
                reference=found[0] if found else "",
                evidence="the bank's books",
            )
            blocks = [block for block in blocks if block["block_reference_no"] not in found[:1]]
        for payout in self.payouts:
            command(self.world, operator.RetryHeld, envelope_id=payout.envelope_id)
        for kind in ("check", "block", "dispatch", "release"):
            command(self.world, operator.RetryWork, kind=kind)
        tick(self.world)
        yield self.consumed_commands

    def kill(self) -> Iterator[Any]:
        self.process.kill()
        self.process = self._start()
        yield lambda: True

    def rest(self) -> Iterator[Any]:
        yield lambda: idle(self.world)

    # --- what must hold -----------------------------------------------------------------------------------------------

    def check_identities(self) -> None:
        for payout in self.payouts:
            if payout.position():
                payout.assert_balanced()
                assert max(payout.ledger().values(), default=1) == 1

    def paid(self) -> set[str]:
        return {disbursement_id for payout in self.payouts for disbursement_id in payout.ledger()}

    def consumed_commands(self) -> bool:
        commands = len(self.world.messages("funds.commands.v1"))
        return len(self.world.sql("funds", "SELECT 1 FROM audit")) == commands

    def end(self) -> Story:
        """Nothing goes wrong any more, all that is missing comes, and operators do what is left to them."""
        self.bank.delete_faults()
        while self.to_come:
            yield from self.fact()
        for _ in range(6):
            yield lambda: idle(self.world)
            yield from self.operator()
            yield lambda: idle(self.world)
            self.check_identities()
            self.statement = max(self.statement, deliver_statements(self.payouts[0], after=self.statement))
            yield lambda: self.reconciled() and idle(self.world)
            self.check_identities()
            if all(payout.position()["state"] in ("SETTLED", "CANCELLED") for payout in self.payouts) and not self.left():
                return

    def left(self) -> list[Any]:
        query = """SELECT 'unknown' FROM ops_unknown UNION ALL SELECT 'held' FROM held WHERE state = 'HELD'
                   UNION ALL SELECT 'waiting' FROM ops_envelopes WHERE waiting + in_flight + outstanding > 0"""
        return self.world.sql("funds", query)

    def reconciled(self) -> bool:
        return bool(self.world.sql("funds", "SELECT bool_and(reconciled_at IS NOT NULL) AS all FROM statements")[0].all)

    def check_end(self) -> None:
        assert not self.left(), [dict(payout.position()) for payout in self.payouts]
        assert not self.world.sql("funds", "SELECT 1 FROM dead_letters")
        assert not self.world.sql("funds", "SELECT * FROM exceptions WHERE state = 'OPEN'")
        for payout in self.payouts:
            key = payout.envelope_id
            gone = self._people("SELECT disbursement_id FROM ops_cancelled WHERE envelope_id = %(id)s", key)
            given_back = self._people("SELECT disbursement_id FROM held WHERE envelope_id = %(id)s AND state = 'RELEASED'", key)
            paid = set(payout.ledger())
            everybody = sorted(item.disbursement_id for item in payout.items())
            assert sorted([*gone, *given_back, *paid]) == everybody  # one end each
            position = payout.position()
            assert position["reversed"] == len(self.reversed & paid)
            assert position["confirmed"] == len(paid - self.reversed)
        if self.profile == "full":
            blocks = self.bank.blocks("full", self.payouts[0].account)
            assert sum(b["amount_minor"] for b in blocks) == sum(p.position()["blocked_minor"] for p in self.payouts)
            assert sum(b["released_minor"] for b in blocks) == sum(p.position()["released_minor"] for p in self.payouts)
            assert all(b["amount_minor"] == b["used_minor"] + b["released_minor"] for b in blocks)

    def _people(self, query: str, envelope_id: object) -> set[str]:
        return {row.disbursement_id for row in self.world.sql("funds", query, id=envelope_id)}


def stories(_bank: BankAdmin) -> dict[str, Teller]:
    def teller(profile: Profile, seed: int) -> Teller:
        def story(world: World, folder: Path) -> Story:
            # A bank of its own: faults can't be ordered for one account only.
            with SimulatorProcess("bank", folder) as process, BankAdmin(process.base_url) as bank:
                yield from Life(world, bank, profile, seed).story()

        return story

    return {f"{profile}, seed {seed}": teller(profile, seed) for seed in SEEDS for profile in PROFILES}


@pytest.mark.timeout(300 + 60 * len(SEEDS))
@pytest.mark.parametrize("story", [f"{profile}, seed {seed}" for seed in SEEDS for profile in PROFILES])
def test_a_random_life(story: str, ended: Told) -> None:
    ended.well()
