"""How many SQL statements a step of notifications costs depends neither on the people in a batch nor on the batches in a poll."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Literal
from uuid import uuid4

import httpx
import pytest

from libs.common import workqueue
from libs.common.clock import utc_now
from libs.common.consumer import Fold, Limits
from libs.common.contracts.base import EventData
from libs.common.db import Database
from libs.common.envelope import RawMessage, headers_for
from libs.common.inbox import keep_partitions
from libs.common.jobs import JobRunner
from libs.common.workqueue import Done, Worker
from libs.local.client import MailAdmin, NovuAdmin
from libs.local.stack import Addresses
from services.notifications.config import Settings
from services.notifications.wiring import wire
from tests.integration.notifications.batches import ADDRESSES, ALLOCATED, PAYMENTS, Batch, states
from tests.support.counting import Count, statements
from tests.support.world import SEAL_KEYS, TOKEN_KEY, World


@pytest.fixture
def count(stack: Addresses, world: World) -> Iterator[Count]:
    """How many statements notifications has run in this test's database."""
    with statements(stack, (world.name, "almoner_notifications")) as read:
        yield read


class Life:
    """Batches of goods and of cash, told of step by step in this process; `costs` is what each step has cost."""

    def __init__(self, world: World, settings: Settings, count: Count) -> None:
        self.world, self.count = world, count
        self.told = settings.beneficiary_channel != "none"
        self.costs: dict[str, set[int]] = {}
        self.offset = 0
        self.database = Database(world.database_url, "notifications")
        keep_partitions(self.database, utc_now())
        parts = wire(settings, self.database)
        self.fold = Fold(self.database, parts.routes, Limits())
        self.jobs = JobRunner(self.database, parts.jobs)
        self.workers = {
            callout.kind: Worker(self.database, callout, workqueue.Limits(concurrency=1)) for callout in parts.callouts
        }

    def step(self, name: str, act: Callable[[], Any]) -> Any:
        before = self.count()
        result = act()
        self.costs.setdefault(name, set()).add(self.count() - before)
        return result

    def take(self, name: str, topic: str, events: list[EventData]) -> None:
        messages = []
        for event in events:
            self.offset += 1
            headers = headers_for(type(event), event_id=str(uuid4()), source="test", time=utc_now(), cause=None)
            wire_headers = tuple((key, value.encode()) for key, value in headers.items())
            body = event.model_dump_json().encode()
            messages.append(RawMessage(topic, 0, self.offset, 0, b"", body, wire_headers))
        self.step(name, lambda: self.fold.fold(messages))

    def send_all(self, kind: str) -> None:
        worker = self.workers[kind]
        while claims := worker.claim(1):
            [(claim, request)] = claims
            answer = asyncio.run(self._ask(worker, claim, request))
            assert isinstance(answer, Done), answer
            self.step(f"settle of {kind}", lambda: worker.settle(claim, request, answer))  # noqa: B023 - called at once

    @staticmethod
    async def _ask(worker: Worker, claim: Any, request: Any) -> Any:
        async with httpx.AsyncClient(timeout=60, trust_env=False, verify=False) as client:
            return await worker.call(client, claim, request)

    def run(self, batches: int, people: int) -> dict[str, set[int]]:
        goods = [Batch(self.world, people) for _ in range(batches)]
        cash = [Batch(self.world, people, "CASH_PHYSICAL") for _ in range(batches)]
        digital = [Batch(self.world, people, "CASH_DIGITAL") for _ in range(batches)]
        self.take("goods", ALLOCATED, [batch.allocated() for batch in goods])
        self.take("cash", ALLOCATED, [batch.allocated() for batch in cash])
        self.take("addresses", ADDRESSES, [batch.addresses() for batch in digital])
        self.take("dispatched", PAYMENTS, [batch.dispatched() for batch in cash])
        self.take("confirmed", PAYMENTS, [batch.confirmed() for batch in (*cash, *digital)])
        self.take("confirmed again", PAYMENTS, [batch.confirmed(2) for batch in (*cash, *digital)])
        if self.told:
            self.tell(batches)
        told = "SENT" if self.told else "SUPPRESSED"
        for batch in goods:
            assert states(self.world, batch) == {
                ("WAREHOUSE", "SUPPRESSED"): 1,
                ("AGENCY", "SUPPRESSED"): 2,
                ("BENEFICIARY", told): people,
            }
        for batch in cash:
            # Confirmed again is another payment, of which agencies get another list.
            assert states(self.world, batch) == {("AGENCY", "SUPPRESSED"): 4, ("BENEFICIARY", told): people}
        return self.costs

    def tell(self, batches: int) -> None:
        calls = self.step("claim", lambda: self.workers["novu"].claim(1 if batches == 1 else 4))
        for claim, request in calls:
            answer = asyncio.run(self._ask(self.workers["novu"], claim, request))
            self.workers["novu"].settle(claim, request, answer)
        self.send_all("novu")


@pytest.mark.parametrize(
    ("channel", "sizes"), [("novu", [(1, 2), (1, 1000), (20, 100)]), ("none", [(1, 2), (1, 1000), (34, 1000)])]
)
def test_statements_are_the_same_whatever_the_number_of_people_and_batches(
    world: World, novu: NovuAdmin, mail: MailAdmin, count: Count, channel: Literal["novu", "none"], sizes: list[tuple[int, int]]
) -> None:
    settings = Settings(
        database_url=world.database_url,
        seal_keys=SEAL_KEYS,
        token_key=TOKEN_KEY,
        warehouse_channel="none",
        agency_channel="none",
        beneficiary_channel=channel,
        novu_url=novu.base_url,
        novu_api_key="key",
        agency_page_items=1000,
    )
    costs = {}
    for batches, people in sizes:
        life = Life(world, settings, count)
        try:
            costs[batches, people] = life.run(batches, people)
        finally:
            life.database.close()
    few, one, many = (costs[size] for size in sizes)
    assert few == one == many
    assert all(len(of_step) == 1 for of_step in one.values()), costs
    assert max(max(of_step) for of_step in one.values()) < 25, costs
