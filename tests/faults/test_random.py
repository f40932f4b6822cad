"""A random life of three envelopes against the real service: facts in any order, late addresses, cancellations, faults of the
bank, lost answers, closed accounts, reversals, repayments, retries, releases, pauses, replicas, kills, a database that goes away.
Both identities of the books hold after each step and nobody has two payments that stand; in the end every disbursement has come
to one end.

ALMONER_TEST_SEEDS=50 tries more; a failing seed is in the name of its test.
"""

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from libs.common.contracts import operator
from libs.common.contracts.base import EventData
from libs.local.client import BankAdmin, Profile
from services.funds import domain
from tests.faults.bookkeeping import LIMITS, command, consumed, idle, tick, unknown
from tests.faults.stories import Story, Teller, Told
from tests.support.agencies import AgencyPayout
from tests.support.money import Payout
from tests.support.simulator import SimulatorProcess
from tests.support.statements import deliver_statements
from tests.support.world import World

pytestmark = pytest.mark.xdist_group(__name__)  # its stories are told together

SEEDS = range(int(os.environ.get("ALMONER_TEST_SEEDS", "2")))
PROFILES: tuple[Profile, ...] = ("full", "example")
STEPS = 60
FAULTS = ("refuse", "fail_before", "timeout_after", "late", "error_500", "error_500_after", "nonsense", "down")
KINDS = ("check", "block", "dispatch", "release")
TOPICS = ("ingestion.envelopes.v1", "resolution.batches.v1", "allocation.batches.v1", "ingestion.statements.v1")
VERBS = ("/check_funds", "/block_funds", "/initiate_payment", "/release_funds", "/query")


class Agencies(AgencyPayout):
    """Of which any share may be retried or repaid by itself: what a payment was for is what its list had."""

    def payments(self) -> list[dict[str, Any]]:
        """The bank's ledger, a row for each person."""
        found = []
        for payment in super().payments():
            _, instruction, head = domain.decode_reference(payment["payment_reference_number"]) or (0, 0, 0)
            shares = self.world.sql(
                "funds",
                """SELECT disbursement_id, amount_minor FROM payments p WHERE instruction = %(i)s AND head = %(h)s
                     AND NOT EXISTS (SELECT 1 FROM cancelled c WHERE c.instruction = p.instruction AND c.position = p.position)
                     AND NOT EXISTS (SELECT 1 FROM held h WHERE h.instruction = p.instruction AND h.position = p.position
                                         AND h.reason IN ('SUPERSEDED', 'OPEN_EXCEPTION'))""",
                i=instruction,
                h=head,
            )
            assert payment["amount_minor"] == sum(share.amount_minor for share in shares), (payment, shares)
            found += [{**payment, **share._mapping} for share in shares]
        return found

    def ledger(self) -> dict[str, int]:
        return Counter(payment["disbursement_id"] for payment in self.payments())


class Life:
    def __init__(self, world: World, bank: BankAdmin, profile: Profile, seed: int, kind: type[Payout]) -> None:
        self.chance = random.Random(seed)
        self.world, self.bank, self.profile = world, bank, profile
        self.payouts = [kind(world, bank, profile, name=f"E{number}") for number in range(3)]
        self.to_come: list[tuple[Payout, EventData]] = []
        self.late: list[tuple[Payout, EventData]] = []
        for number, payout in enumerate(self.payouts):
            for _ in range(2):
                batch = payout.batch(7 + number, unresolved=self.chance.choice([0, 0, 2]))
                if batch.unresolved:
                    self.chance.choice([self.to_come, self.late]).append((payout, payout.next_part(batch, 2)))
            self.to_come += [(payout, batch) for batch in payout.batches]
            self.to_come.append((payout, payout.completed()))
        self.chance.shuffle(self.to_come)
        self.come: list[tuple[Payout, EventData]] = []
        self.statement = 0
        self.requests = 0
        self.processes = [self._start()]

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
            (4, self.repay),
            (3, self.release),
            (2, self.resolve_late),
            (2, self.close_accounts),
            (4, self.operator),
            (3, self.retry),
            (2, self.pause),
            (1, self.kill),
            (1, self.replica),
            (1, self.lose_connections),
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

    def resolve_late(self) -> Iterator[Any]:
        """Somebody gets an address; perhaps after the money was given back."""
        if self.late:
            self.to_come.append(self.late.pop())
            yield from self.fact()

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
        standing = sorted(row["payment_reference_number"] for row in self.payments() if row["state"] == "paid")
        if standing:
            self.bank.reverse(self.profile, reason="account closed", references=[self.chance.choice(standing)])
        yield lambda: True

    def repay(self) -> Iterator[Any]:
        """Of people whose payment came back, if funds knows it; of others now and then, which is refused."""
        payout = self.chance.choice(self.payouts)
        came_back = {row["disbursement_id"] for row in self.payments() if row["state"] == "reversed"}
        people = sorted(payout.ledger())
        people = sorted(came_back.intersection(people)) or people if self.chance.random() < 0.8 else people
        if people:
            some = self.chance.sample(people, min(len(people), self.chance.choice([1, 1, 2])))
            command(self.world, operator.Repay, envelope_id=payout.envelope_id, disbursement_ids=some)
        yield lambda: True

    def close_accounts(self) -> Iterator[Any]:
        """The bank refuses who is paid there; sometimes all are open again."""
        accounts = [
            payout.account_of(number % payout.zones) if isinstance(payout, AgencyPayout) else f"ACC-{item.beneficiary_id}"
            for payout in self.payouts
            for number, item in enumerate(payout.items())
        ]
        self.bank.close_accounts(self.profile, self.chance.sample(accounts, self.chance.choice([0, 2])))
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
        for stage in KINDS:
            command(self.world, operator.ResumeStage, stage=stage)
        yield from self.retry()

    def retry(self) -> Iterator[Any]:
        """All that may be tried again, whatever the state it is in; nothing that is unknown is."""
        for payout in self.payouts:
            command(self.world, operator.RetryHeld, envelope_id=payout.envelope_id)
        for kind in KINDS:
            command(self.world, operator.RetryWork, kind=kind)
        tick(self.world)
        yield self.consumed_commands

    def pause(self) -> Iterator[Any]:
        command(self.world, operator.PauseStage, stage=self.chance.choice(KINDS))
        yield self.consumed_commands

    def kill(self) -> Iterator[Any]:
        self.processes.pop(self.chance.randrange(len(self.processes))).kill()
        if not self.processes:
            self.processes.append(self._start())
        yield lambda: True

    def replica(self) -> Iterator[Any]:
        if len(self.processes) < 2:
            self.processes.append(self._start())
        yield lambda: True

    def lose_connections(self) -> Iterator[Any]:
        self.world.databases.break_connections(self.world.name)
        yield lambda: True

    def rest(self) -> Iterator[Any]:
        """Until nothing is left to do, or nothing can be done while a stage is paused."""
        paused = self.world.sql("funds", "SELECT 1 FROM paused")
        yield lambda: paused or idle(self.world)

    # --- what must hold -----------------------------------------------------------------------------------------------

    def check_identities(self) -> None:
        for payout in self.payouts:
            if payout.position():
                payout.assert_balanced()
        standing = [row["disbursement_id"] for row in self.payments() if row["state"] == "paid"]
        assert len(standing) == len(set(standing)), "somebody is paid twice"

    def payments(self) -> list[dict[str, Any]]:
        """All of the bank's ledger."""
        if any(isinstance(payout, AgencyPayout) for payout in self.payouts):
            return [row for payout in self.payouts if isinstance(payout, AgencyPayout) for row in payout.payments()]
        return list(self.bank.payments(self.profile))

    def paid(self) -> set[str]:
        return {disbursement_id for payout in self.payouts for disbursement_id in payout.ledger()}

    def consumed_commands(self) -> bool:
        commands = len(self.world.messages("funds.commands.v1"))
        return len(self.world.sql("funds", "SELECT 1 FROM audit")) == commands

    def end(self) -> Story:
        """Nothing goes wrong any more, all that is missing comes, and operators do what is left to them."""
        self.bank.delete_faults()
        self.bank.close_accounts(self.profile, [])
        self.to_come += self.late
        while self.to_come:
            yield from self.fact()
        for remaining in range(8, 0, -1):
            yield from self.rest()  # a stage may be paused until an operator has come
            if remaining > 6:
                yield from self.repay()
            yield from self.operator()
            yield lambda: idle(self.world)
            self.check_identities()
            self.statement = max(self.statement, deliver_statements(self.payouts[0], after=self.statement))
            yield lambda: idle(self.world) and consumed(self.world, *TOPICS) and self.reconciled() and idle(self.world)
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
            mine = [row for row in self.payments() if row["disbursement_id"].startswith(payout.prefix)]
            came_back = {row["disbursement_id"] for row in mine if row["state"] == "reversed"}
            stands = {row["disbursement_id"] for row in mine if row["state"] == "paid"}
            everybody = sorted(item.disbursement_id for item in payout.items())
            # One end each; who was paid, and then cancelled or given back in a second try, ended in that.
            assert sorted([*gone, *(given_back - gone), *stands, *(came_back - gone - given_back - stands)]) == everybody
            position = payout.position()
            assert position["reversed"] == sum(row["state"] == "reversed" for row in mine)
            assert position["confirmed"] == len(stands)
        if self.profile == "full":
            blocks = self.bank.blocks("full", self.payouts[0].account)
            assert sum(b["amount_minor"] for b in blocks) == sum(p.position()["blocked_minor"] for p in self.payouts)
            assert sum(b["released_minor"] for b in blocks) == sum(p.position()["released_minor"] for p in self.payouts)
            assert all(b["amount_minor"] == b["used_minor"] + b["released_minor"] for b in blocks)

    def _people(self, query: str, envelope_id: object) -> set[str]:
        return {row.disbursement_id for row in self.world.sql("funds", query, id=envelope_id)}


# Of agency cash one life, unless more seeds are asked for.
LIVES: dict[str, tuple[Profile, int, type[Payout]]] = {
    f"{profile}, seed {seed}": (profile, seed, Payout) for seed in SEEDS for profile in PROFILES
} | {
    f"agencies, {profile}, seed {seed}": (profile, seed, Agencies)
    for seed in SEEDS
    for profile in PROFILES
    if len(SEEDS) > 2 or (profile, seed) == ("full", 0)
}


def stories(_bank: BankAdmin) -> dict[str, Teller]:
    def teller(profile: Profile, seed: int, kind: type[Payout]) -> Teller:
        def story(world: World, folder: Path) -> Story:
            # A bank of its own: faults can't be ordered for one account only.
            with SimulatorProcess("bank", folder) as process, BankAdmin(process.base_url) as bank:
                yield from Life(world, bank, profile, seed, kind).story()

        return story

    return {name: teller(*life) for name, life in LIVES.items()}


@pytest.mark.timeout(300 + 60 * len(SEEDS))
@pytest.mark.parametrize("story", list(LIVES))
def test_a_random_life(story: str, ended: Told) -> None:
    ended.well()
