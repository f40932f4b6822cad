"""Funds dies of SIGKILL at every registered point, with each kind of work in flight, against both bank profiles.

The bank's own ledger is the judge: each disbursement is paid at most once, and exactly once where the bank can be asked;
where it cannot, what is not known is listed and ends by the statement or by an operator who has looked at the bank's books.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from libs.common.contracts import funds, operator
from libs.common.contracts.base import EventData
from libs.local.client import BankAdmin, Profile
from tests.faults.bookkeeping import LIMITS, command, consumed, idle, tick, unknown
from tests.faults.stories import Story, Teller, Told
from tests.support.agencies import AgencyPayout
from tests.support.money import Payout
from tests.support.points import points
from tests.support.process import Process
from tests.support.statements import deliver_statements
from tests.support.world import World

pytestmark = pytest.mark.xdist_group(__name__)  # its stories are told together

PEOPLE = 20
ENVELOPES, PAYMENTS, STATEMENTS = "funds.envelopes.v1", "funds.payments.v1", "funds.statements.v1"


@dataclass(frozen=True)
class Case:
    """`work`: what is in flight when the process dies; for calls and jobs it is their kind."""

    point: str
    work: str
    profile: Profile
    agencies: bool = False  # one payment for each zone

    @property
    def name(self) -> str:
        return f"{self.point}-{self.work}-{self.profile}{'-agencies' * self.agencies}"

    @property
    def kind(self) -> str:
        return self.work if self.point.startswith(("call.", "job.")) else ""

    @property
    def leaves_unknown(self) -> bool:
        """The bank can't be asked, and nobody can tell whether it has got the request."""
        return self.profile == "example" and self.work in ("block", "dispatch") and self.point in OPEN


# The call is claimed, and nothing is stored of how it ended.
OPEN = ("call.after_claim", "call.after_first_byte", "call.after_answer", "call.before_settle_commit")
CASES = (
    [Case(point, work, "full") for point in points("fold") for work in ("batches", "statement")]
    + [Case(point, work, "full") for point in points("relay") for work in ("batches", "statement")]
    + [Case(point, work, "full") for point in points("job") for work in ("advance", "statement")]
    + [
        Case(point, work, "full")
        for point in points("call")
        for work in ("check", "block", "dispatch", "release", "order", "query")
    ]
    + [Case(point, work, "example") for point in points("call") for work in ("block", "dispatch")]
    + [Case(point, "dispatch", "full", agencies=True) for point in points("call")]
    + [Case(point, "dispatch", "example", agencies=True) for point in OPEN]
    + [Case("fold.before_commit", work, "full", agencies=True) for work in ("batches", "statement")]
)


def test_no_case_hides_another() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


# --- The story of a case ----------------------------------------------------------------------------------------------


class Crash:
    def __init__(self, case: Case, world: World, bank: BankAdmin, folder: Path) -> None:
        self.case = case
        self.world = world
        self.bank = bank
        self.mark = folder / "mark"
        self.process: Process
        self.payout = (AgencyPayout if case.agencies else Payout)(world, bank, case.profile)
        self.payout.batch(PEOPLE, unresolved=2 if case.work == "release" else 0)
        self.payout.batch(PEOPLE)
        self.held = {item.disbursement_id for batch in self.payout.batches for item in batch.unresolved}
        self.env = {
            **self.payout.env,
            **LIMITS,
            "ALMONER_CRASH_AT": case.point,
            "ALMONER_CRASH_KIND": case.kind,
            "ALMONER_CRASH_MARK": str(self.mark),
        }

    def story(self) -> Story:
        yield from self._until_death()
        assert self.process.wait() == -9
        point, in_flight = self.mark.read_text().split()
        assert point == self.case.point
        assert int(in_flight) > 0
        self.process = self.world.run("funds", **self.env)
        if self.case.point.startswith("fold.") and self.case.work == "batches":
            self.payout.publish(self.payout.completed())
        yield from self._until_sent()
        yield lambda: idle(self.world)
        yield from self._until_known()
        deliver_statements(self.payout)
        yield lambda: self.payout.position()["state"] == "SETTLED" and idle(self.world)
        yield lambda: consumed(self.world, "ingestion.statements.v1") and idle(self.world)
        assert self.process.alive
        self._check_money()
        self._check_events()

    def _until_death(self) -> Story:
        work, payout = self.case.work, self.payout
        if work == "statement":
            before = self.world.run("funds", **payout.env)
            payout.publish_all()
            yield lambda: payout.position().get("outstanding") == 2 * PEOPLE and idle(self.world)
            assert before.stop() == 0  # its offsets are committed: nothing comes again in which the next one would die
            deliver_statements(payout)
            self.process = self._start()
        elif work == "batches" and self.case.point.startswith("fold."):
            for batch in payout.batches:
                payout.publish(batch)
            self.process = self._start()
        else:
            payout.publish_all()
            self.process = self._start()
        if work == "release":
            yield lambda: payout.position().get("outstanding") == 2 * PEOPLE - 2 and idle(self.world)
            command(self.world, operator.ReleaseRequested, envelope_id=payout.envelope_id, expected=2)
        elif work == "order":
            yield lambda: payout.position().get("outstanding") == 2 * PEOPLE and idle(self.world)
            command(self.world, operator.RequestStatement)
        elif work == "query":
            yield lambda: payout.position().get("outstanding") == 2 * PEOPLE and idle(self.world)
            self.world.sql("funds", "UPDATE instructions SET dispatched_at = dispatched_at - interval '8 days'")
            tick(self.world)
        yield lambda: not self.process.alive

    def _start(self) -> Process:
        return self.world.run("funds", **self.env)

    def _until_sent(self) -> Story:
        """Until every payment and the block is either certain or listed as unknown."""
        payout = self.payout
        live = 2 * PEOPLE - len(self.held)
        yield (
            lambda: (
                payout.position().get("state") in ("BLOCK_UNKNOWN", "SETTLED")
                or sum(payout.position().get(name, 0) for name in ("dispatched", "unknown")) == live
            )
        )
        payout.assert_balanced()
        assert max(payout.ledger().values(), default=1) == 1
        if not self.case.leaves_unknown:
            return
        listed = unknown(self.world)
        assert [row for row in listed if row.kind == self.case.work], listed
        assert all(row.amount_minor > 0 and row.code == "ANSWER_LOST" for row in listed)
        if self.case.work == "block":
            assert payout.ledger() == {}  # nothing is dispatched while nobody knows whether there is a block

    def _until_known(self) -> Story:
        """What is unknown ends by an operator who reads the bank's books; what the bank has paid, by the statement."""
        said = self._items(funds.PaymentsDispatched)
        in_books = self.payout.ledger()
        for row in unknown(self.world):
            if row.kind == "block":
                yield from self._settle_block(row.subject)
                continue
            paid = self._people_of(int(row.subject))
            assert not paid & said.keys()  # nobody says that an unknown payment was dispatched
            if paid <= in_books.keys():
                continue  # the statement proves it
            assert not paid & in_books.keys()  # a list is taken whole or not at all
            command(
                self.world,
                operator.SettleUnknown,
                kind="dispatch",
                subject=row.subject,
                outcome="did_not_happen",
                evidence="the bank's books",
            )
            yield lambda: self.payout.position()["held"] > 0
            command(self.world, operator.RetryHeld, envelope_id=self.payout.envelope_id)
            yield lambda: self.payout.position()["held"] == 0
        if self.case.profile == "example" and self.case.work == "dispatch":
            yield lambda: len(self.payout.ledger()) == 2 * PEOPLE and not self.payout.position()["waiting"]

    def _settle_block(self, subject: str) -> Story:
        blocks = self.bank.blocks("example", self.payout.account)
        assert len(blocks) <= 1
        happened = bool(blocks)
        command(
            self.world,
            operator.SettleUnknown,
            kind="block",
            subject=subject,
            outcome="happened" if happened else "did_not_happen",
            reference=blocks[0]["block_reference_no"] if happened else "",
            evidence="the bank's books",
        )
        if not happened:
            yield lambda: self.payout.position()["state"] == "SHORT"
            tick(self.world)
        yield lambda: self.payout.position()["outstanding"] == 2 * PEOPLE

    # --- afterwards ---------------------------------------------------------------------------------------------------

    def _check_money(self) -> None:
        payout = self.payout
        assert payout.ledger() == {i.disbursement_id: 1 for i in payout.items() if i.disbursement_id not in self.held}
        payout.assert_balanced()
        assert unknown(self.world) == []
        position = payout.position()
        total = sum(item.amount_minor for item in payout.items())
        held = sum(item.amount_minor for item in payout.items() if item.disbursement_id in self.held)
        assert (position["blocked_minor"], position["released_minor"]) == (total, held)
        assert position["confirmed_minor"] == total - held
        [block] = self.bank.blocks(self.case.profile, payout.account)
        assert (block["amount_minor"], block["released_minor"], block["used_minor"]) == (total, held, total - held)
        assert not self.world.sql("funds", "SELECT 1 FROM dead_letters")
        said = "20 payments without a line; the bank says: accepted 20, refused 0"  # once, however often it was asked
        listed = [("NO_STATEMENT_LINE", "CLOSED", said.replace("20", "0", 1))] * 2 if self.case.work == "query" else []
        found = self.world.sql("funds", "SELECT reason, state, detail FROM exceptions")
        assert [(row.reason, row.state, row.detail) for row in found] == listed
        assert not [request for request in self.bank.requests() if request["outcome"] == "no such path"]
        if self.case.profile == "example":
            self._check_nothing_was_sent_twice()

    def _check_nothing_was_sent_twice(self) -> None:
        """By the bank's log of requests: no instruction and no block was sent in two attempts."""
        tokens = {str(row.lease_token): (row.kind, row.subject) for row in self.world.sql("funds", "SELECT * FROM attempts")}
        sent = Counter(
            tokens[request["request_id"]]
            for request in self.bank.requests()
            if request["request_id"] in tokens and not request["path"].endswith("check_funds")
        )
        assert max(sent.values()) == 1, sent

    def _check_events(self) -> None:
        paid = {i.disbursement_id: 1 for i in self.payout.items() if i.disbursement_id not in self.held}
        assert self._items(funds.PaymentsDispatched) == paid
        assert self._items(funds.PaymentsConfirmed) == paid
        assert self._items(funds.PaymentsHeld).keys() == self.held
        [blocked] = self._distinct(ENVELOPES, funds.FundsBlocked)
        assert blocked.amount_minor == sum(item.amount_minor for item in self.payout.items())
        assert self._distinct(ENVELOPES, funds.FundsChecked)
        assert len(self._distinct(ENVELOPES, funds.FundsReleased)) == bool(self.held)
        assert self._distinct(ENVELOPES, funds.EnvelopeSettled)
        reconciled = self._distinct(STATEMENTS, funds.StatementReconciled)
        assert sum(one.confirmed for one in reconciled) == len(paid)
        unknown_items = self._items(funds.PaymentsUnknown)
        lists_under_way = (
            self.case.profile == "example" and self.case.work == "dispatch"
        )  # the other list, when the process died
        if not (lists_under_way and self.case.point == "call.after_settle"):
            assert bool(unknown_items) == (self.case.leaves_unknown and self.case.work == "dispatch")

    def _distinct(self, topic: str, model: type[EventData]) -> list[Any]:
        found: dict[str, Any] = {}
        for event in self.world.events(topic, model):
            assert found.setdefault(event.id, event.data) == event.data  # said again, word for word
        return list(found.values())

    def _items(self, model: type[EventData]) -> Counter[str]:
        return Counter(item.disbursement_id for data in self._distinct(PAYMENTS, model) for item in data.items)

    def _people_of(self, instruction: int) -> set[str]:
        rows = self.world.sql("funds", "SELECT disbursement_id FROM payments WHERE instruction = %(n)s", n=instruction)
        return {row.disbursement_id for row in rows}


# --- The tests --------------------------------------------------------------------------------------------------------


def stories(bank: BankAdmin) -> dict[str, Teller]:
    def teller(case: Case) -> Teller:
        return lambda world, folder: Crash(case, world, bank, folder).story()

    return {case.name: teller(case) for case in CASES}


@pytest.mark.parametrize("story", [case.name for case in CASES])
def test_killed_at(story: str, ended: Told) -> None:
    ended.well()
