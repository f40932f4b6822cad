"""A caller that is frozen beyond its lease while a replica takes over: paid once, and what it does when it wakes is refused."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from libs.common.contracts import operator
from libs.local.client import BankAdmin, Profile
from tests.faults.bookkeeping import HELD_SECONDS, LIMITS, PATIENT, command, idle, tick, unknown
from tests.faults.stories import Story, Teller, Told
from tests.support.agencies import AgencyPayout
from tests.support.money import Payout
from tests.support.process import Process
from tests.support.simulator import SimulatorProcess
from tests.support.statements import deliver_statements
from tests.support.world import World

pytestmark = pytest.mark.xdist_group(__name__)  # its stories are told together

PEOPLE = 20
PROFILES: tuple[Profile, ...] = ("full", "example")


class Frozen:
    """One envelope of two batches, a caller that freezes with a call in flight, a replica that goes on."""

    def __init__(
        self,
        profile: Profile,
        world: World,
        bank: BankAdmin,
        kind: str = "dispatch",
        unresolved: int = 0,
        payout: type[Payout] = Payout,
        /,
        **env: str,
    ) -> None:
        self.world = world
        self.bank = bank
        self.kind = kind
        self.payout = payout(world, bank, profile)
        self.payout.batch(PEOPLE, unresolved=unresolved)
        self.payout.batch(PEOPLE)
        self.env = {**self.payout.env, **LIMITS}
        self.payout.publish_all()
        self.caller = world.run("funds", **{**self.env, **env})
        self.tokens: set[str] = set()

    def attempts(self) -> list[Any]:
        return self.world.sql("funds", "SELECT * FROM attempts WHERE kind = %(kind)s ORDER BY subject, attempt", kind=self.kind)

    def requests(self) -> set[str]:
        """The attempts of ours from which the bank has received a request."""
        return {request["request_id"] for request in self.bank.requests()}

    def freezes(self) -> None:
        """When the bank has all its requests. Its leases are long enough to be caught waiting on a busy machine, and end here."""
        self.caller.freeze()
        self.world.end_leases("funds")

    def replaced(self) -> None:
        """From here the caller does nothing; what it has claimed is known by its lease tokens."""
        self.tokens = {str(row.lease_token) for row in self.attempts() if row.finished_at is None}
        assert self.tokens
        self.replica: Process = self.world.run("funds", **self.env)

    def taken_over(self) -> Story:
        self.replaced()
        yield lambda: sum(self.payout.position().get(name, 0) for name in ("unknown", "outstanding")) == 2 * PEOPLE
        self.payout.assert_balanced()
        assert max(self.payout.ledger().values(), default=1) == 1
        assert bool(unknown(self.world)) == (self.payout.profile == "example")

    def wakes(self) -> Story:
        before = self.payout.position()
        self.caller.thaw()
        yield lambda: all(row.finished_at for row in self.attempts())
        assert {str(row.lease_token) for row in self.attempts() if row.late} == self.tokens
        yield lambda: len(self.caller.logged("late settle refused")) == len(self.tokens)
        assert self.caller.metric("almoner_late_settles_total", kind=self.kind) == len(self.tokens)
        assert self.payout.position() == before

    def never_sends(self) -> Story:
        """Nor has it, when it wakes, and says so."""
        assert not self.tokens & self.requests()
        yield from self.wakes()
        assert not self.tokens & self.requests()
        late = [row for row in self.attempts() if row.late]
        assert {row.outcome for row in late} == {"NotSent"}
        # It looked at the clock in time; another thread may have begun to connect in the moment in which the process stopped.
        assert "LEASE_LOST" in {row.code for row in late} <= {"LEASE_LOST", "NOT_REACHED"}

    def ends(self) -> Story:
        """Everybody is paid once in the end, whatever had to be asked for that."""
        yield lambda: idle(self.world)
        for row in unknown(self.world):
            people = self.world.sql("funds", "SELECT * FROM payments WHERE instruction = %(n)s", n=int(row.subject))
            if any(person.disbursement_id in self.payout.ledger() for person in people):
                continue  # the statement says so
            fields = {"kind": "dispatch", "subject": row.subject, "outcome": "did_not_happen"}
            command(self.world, operator.SettleUnknown, **fields, evidence="the bank's books")
            yield lambda: self.payout.position()["held"] > 0
            command(self.world, operator.RetryHeld, envelope_id=self.payout.envelope_id)
            yield lambda: self.payout.position()["held"] == 0
            yield lambda: idle(self.world)
        deliver_statements(self.payout)
        yield lambda: self.payout.position()["state"] == "SETTLED"
        self.payout.assert_balanced()
        assert self.payout.ledger() == {item.disbursement_id: 1 for item in self.payout.items()}
        assert self.caller.alive
        assert self.replica.alive


def stopped_at(kind: str, mark: Path) -> dict[str, str]:
    """Between claim and call."""
    return {
        "ALMONER_CRASH_AT": "call.after_claim",
        "ALMONER_CRASH_KIND": kind,
        "ALMONER_CRASH_SIGNAL": "SIGSTOP",
        "ALMONER_CRASH_MARK": str(mark),
    }


def after_claim(profile: Profile, world: World, bank: BankAdmin, folder: Path) -> Story:
    """Frozen between claim and call: the woken process must not send."""
    mark = folder / "mark"
    frozen = Frozen(profile, world, bank, **stopped_at("dispatch", mark))
    yield mark.exists
    yield from frozen.taken_over()
    yield from frozen.never_sends()
    yield from frozen.ends()


def money_after_claim(kind: str, profile: Profile, world: World, bank: BankAdmin, folder: Path) -> Story:
    """The same for a check, a block and a release: the bank holds and gives back each sum once."""
    mark, unresolved = folder / "mark", 2 if kind == "release" else 0
    frozen = Frozen(profile, world, bank, kind, unresolved, **stopped_at(kind, mark))
    payout, live = frozen.payout, 2 * PEOPLE - unresolved
    if kind == "release":
        yield lambda: payout.position().get("outstanding") == live and idle(world)
        command(world, operator.ReleaseRequested, envelope_id=payout.envelope_id, expected=unresolved)
    yield mark.exists
    frozen.replaced()
    if (kind, profile) == ("block", "example"):
        yield lambda: payout.position()["state"] == "BLOCK_UNKNOWN"
        [row] = unknown(world)
        fields = {"kind": "block", "subject": row.subject, "outcome": "did_not_happen"}
        command(world, operator.SettleUnknown, **fields, evidence="the bank's books")
        yield lambda: payout.position()["state"] == "SHORT"
        tick(world)
    yield lambda: payout.position().get("outstanding") == live and idle(world)
    yield from frozen.never_sends()
    total = sum(item.amount_minor for item in payout.items())
    given_up = sum(item.amount_minor for batch in payout.batches for item in batch.unresolved)
    [block] = bank.blocks(profile, payout.account)
    assert (block["amount_minor"], block["released_minor"]) == (total, given_up)
    payout.assert_balanced()
    assert len(payout.ledger()) == live == sum(payout.ledger().values())


def answer_is_late(profile: Profile, world: World, bank: BankAdmin, _folder: Path, payout: type[Payout] = Payout) -> Story:
    """The bank has paid and answers when the caller is frozen: the answer comes too late to change anything."""
    bank.add_fault("late", profile=profile, path="/initiate_payment", seconds=HELD_SECONDS)
    frozen = Frozen(profile, world, bank, "dispatch", 0, payout, **PATIENT)
    yield lambda: len(frozen.payout.ledger()) == 2 * PEOPLE
    frozen.freezes()
    bank.delete_faults()
    yield from frozen.taken_over()
    yield from frozen.wakes()
    yield from frozen.ends()


def request_is_late(profile: Profile, world: World, bank: BankAdmin, _folder: Path) -> Story:
    """The bank acts on the first request after the lease has ended: "not found" was no proof, the key was."""
    fault = bank.add_fault("late_before", profile=profile, path="/initiate_payment", seconds=HELD_SECONDS)
    frozen = Frozen(profile, world, bank, **PATIENT)
    yield lambda: sum(request["path"].endswith("/initiate_payment") for request in bank.requests()) == 2
    frozen.freezes()
    bank.delete_faults(fault)  # for what comes from now on
    assert frozen.payout.ledger() == {}
    yield from frozen.taken_over()
    bank.delete_faults()
    answered = {request["id"] for request in bank.requests() if request["fault"] == "late_before"}
    yield lambda: all(r["status_code"] is not None for r in bank.requests() if r["id"] in answered)
    assert max(frozen.payout.ledger().values()) == 1
    yield from frozen.wakes()
    yield from frozen.ends()


AGENCIES = "answer to agencies is late"
WAYS: dict[str, Callable[[Profile, World, BankAdmin, Path], Story]] = {
    "after claim": after_claim,
    "answer is late": answer_is_late,
    AGENCIES: partial(answer_is_late, payout=AgencyPayout),
    "request is late": request_is_late,
    **{f"{kind}, after claim": partial(money_after_claim, kind) for kind in ("check", "block", "release")},
}
FULL_ONLY = (AGENCIES, "release, after claim")
CASES = [(way, profile) for way in WAYS for profile in PROFILES if profile == "full" or way not in FULL_ONLY]


def stories(_bank: BankAdmin) -> dict[str, Teller]:
    def teller(way: str, profile: Profile) -> Teller:
        def story(world: World, folder: Path) -> Story:
            # A bank of its own: faults can't be ordered for one account only.
            with SimulatorProcess("bank", folder) as process, BankAdmin(process.base_url) as bank:
                yield from WAYS[way](profile, world, bank, folder)

        return story

    return {f"{way}, {profile}": teller(way, profile) for way, profile in CASES}


@pytest.mark.parametrize("story", [f"{way}, {profile}" for way, profile in CASES])
def test_frozen_beyond_its_lease(story: str, ended: Told) -> None:
    ended.well()
