"""How many SQL statements a step of funds costs depends neither on the people in a batch nor on the batches in a poll.

Counted by the database itself, over the whole life of an envelope."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import httpx
import pytest

from libs.common import workqueue
from libs.common.clock import utc_now
from libs.common.consumer import Fold, Limits
from libs.common.db import Database
from libs.common.envelope import RawMessage
from libs.common.inbox import keep_partitions
from libs.common.jobs import JobRunner
from libs.common.workqueue import Done, Worker
from libs.local.client import BankAdmin
from libs.local.stack import Addresses
from services.funds.handlers import SETTLE_SECONDS
from services.funds.wiring import wire
from tests.faults.bookkeeping import settings_of
from tests.support.agencies import AgencyPayout
from tests.support.counting import Count, statements
from tests.support.money import Payout
from tests.support.statements import deliver_statements
from tests.support.world import World


@pytest.fixture
def count(stack: Addresses, world: World) -> Iterator[Count]:
    """How many statements funds has run in this test's database."""
    with statements(stack, (world.name, "almoner_funds")) as read:
        yield read


class Life:
    """One envelope's life, step by step in this process; `costs` is what each step has cost."""

    def __init__(self, payout: Payout, count: Count, taken: set[tuple[str, int, int]]) -> None:
        self.payout, self.count, self.taken = payout, count, taken
        self.costs: dict[str, set[int]] = {}
        self.database = Database(payout.world.database_url, "funds")
        keep_partitions(self.database, utc_now())
        parts = wire(settings_of(payout), self.database)
        self.fold = Fold(self.database, parts.routes, Limits())
        self.jobs = JobRunner(self.database, parts.jobs)
        limits = workqueue.Limits(lease_seconds=600)  # a hundred lists are claimed at once and sent one by one
        self.workers = {callout.kind: Worker(self.database, callout, limits) for callout in parts.callouts}

    def step(self, name: str, act: Callable[[], Any]) -> Any:
        before = self.count()
        result = act()
        self.costs.setdefault(name, set()).add(self.count() - before)
        return result

    def run(self, batches: int, people: int) -> dict[str, set[int]]:
        payout = self.payout
        for _ in range(batches):
            payout.publish(payout.batch(people))
        payout.publish(payout.completed())
        agencies = isinstance(payout, AgencyPayout)
        self.take("intake of all batches", self.new("allocation.batches.v1" if agencies else "resolution.batches.v1"))
        self.take("completion", self.new("ingestion.envelopes.v1"))
        self.decide("to check")
        self.call("check", 1)
        self.call("block", 1)
        self.decide("after the block")
        before = max(payout.bank.order_statement("full", payout.account))  # what was booked before, such as the top-up
        self.call("dispatch", batches)
        assert payout.position()["outstanding"] == batches * people
        deliver_statements(payout, after=before)
        messages = self.new("ingestion.statements.v1")
        for message in messages[:-1]:
            self.take("a chunk of a statement", [message])
        self.take("a statement's opening", messages[-1:])
        self.decide("to settle")
        assert payout.position()["state"] == "SETTLED"
        assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()}
        return self.costs

    def new(self, topic: str) -> list[RawMessage]:
        """What no life before has taken."""
        messages = [m for m in self.payout.world.messages(topic) if (m.topic, m.partition, m.offset) not in self.taken]
        self.taken |= {(m.topic, m.partition, m.offset) for m in messages}
        return messages

    def take(self, name: str, messages: Sequence[RawMessage]) -> None:
        self.step(name, lambda: self.fold.fold(messages))

    def decide(self, name: str) -> None:
        time.sleep(SETTLE_SECONDS + 0.1)  # what lines ask for comes due a little later
        self.step(name, self.jobs.run_due)

    def call(self, kind: str, expected: int) -> None:
        worker = self.workers[kind]
        claims = self.step(f"claim of {kind}", lambda: worker.claim(expected))
        assert len(claims) == expected
        for claim, request in claims:
            answer = asyncio.run(self._ask(worker, claim, request))
            assert isinstance(answer, Done), answer
            self.step(f"settle of {kind}", partial(worker.settle, claim, request, answer))

    @staticmethod
    async def _ask(worker: Worker, claim: Any, request: Any) -> Any:
        async with httpx.AsyncClient(timeout=60, trust_env=False, verify=False) as client:
            return await worker.call(client, claim, request)


@pytest.mark.parametrize(
    ("kind", "sizes"), [(Payout, [(1, 2), (1, 1000), (100, 1000)]), (AgencyPayout, [(1, 3), (1, 1000), (100, 1000)])]
)
def test_statements_are_the_same_whatever_the_number_of_people_and_batches(
    world: World, bank: BankAdmin, count: Count, kind: type[Payout], sizes: list[tuple[int, int]]
) -> None:
    costs, taken = [], set[tuple[str, int, int]]()
    for number, (batches, people) in enumerate(sizes):
        life = Life(kind(world, bank, name=f"E{number}"), count, taken)
        try:
            costs.append(life.run(batches, people))
        finally:
            life.database.close()
    assert costs[0] == costs[1] == costs[2]
    assert all(len(of_step) == 1 for of_step in costs[2].values()), costs  # each time the step is taken
    assert max(max(of_step) for of_step in costs[2].values()) < 40, costs
