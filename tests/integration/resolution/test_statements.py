"""The number of SQL statements depends neither on the size of a batch nor on how many come at once.

Counted by the database itself, of resolution in its own and of the one that reads a registry there."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import httpx
import pytest

from libs.common import workqueue
from libs.common.clock import utc_now
from libs.common.consumer import Fold, Limits, Routes
from libs.common.contracts.ingestion import BatchCut
from libs.common.contracts.operator import ResolveHeld
from libs.common.db import Database
from libs.common.envelope import Cause, RawMessage
from libs.common.inbox import keep_partitions
from libs.common.outbox import Outbox
from libs.common.workqueue import Claim
from libs.local.reference import READER
from libs.local.stack import Addresses
from services.resolution import store
from services.resolution.adapters.registries import Columns, DatabaseRegistry
from services.resolution.calls import Locate, Resolve
from services.resolution.domain import Hold, Reply
from services.resolution.doors import People
from services.resolution.handlers import HANDLERS
from services.resolution.ports import Registry as RegistryPort
from tests.integration.resolution.batches import BATCHES, SEALER, cut
from tests.integration.resolution.test_people import PEOPLE, person
from tests.integration.resolution.zones import Registry, goods, registry_of, zone
from tests.support.counting import Count, statements
from tests.support.world import World

T = TypeVar("T")
OUTBOX = Outbox("resolution")
COLUMNS = Columns(
    "g2p_farmer_registry", "link_registry_id", "large_area_id", "large_area_code", "small_area_id", "small_area_code"
)


@pytest.fixture
def database(world: World) -> Iterator[Database]:
    database = Database(world.database_url, "resolution")
    keep_partitions(database, utc_now())
    yield database
    database.close()


@pytest.fixture
def registry(world: World) -> Iterator[Registry]:
    with registry_of(world) as registry:
        yield registry


@pytest.fixture
def count(stack: Addresses, world: World) -> Iterator[Count]:
    with statements(stack, (world.name, "almoner_resolution"), (f"{world.name}_registry", READER)) as read:
        yield read


class HalfKnown:
    """A mapper that knows every other of those whom it is asked for."""

    async def resolve(
        self, _client: httpx.AsyncClient, _claim: Claim, _transaction_id: str, people: Sequence[tuple[str, str]]
    ) -> dict[str, Reply]:
        address = {"fa_type": "BANK_ACCOUNT", "account_number": "1"}
        return {reference: address if number % 2 else Hold("NOT_LINKED") for number, (reference, _) in enumerate(people)}


def message(batch: BatchCut, offset: int) -> RawMessage:
    headers = {"ce_specversion": "1.0", "ce_id": str(offset), "ce_source": "test", "ce_type": BatchCut.TYPE}
    pairs = tuple((name, value.encode()) for name, value in headers.items())
    return RawMessage(BATCHES, 0, offset, 0, b"", batch.model_dump_json().encode(), pairs)


class Rounds:
    """Batches through every step; `costs` is what each step has cost."""

    def __init__(self, database: Database, callout: Resolve | Locate, count: Count) -> None:
        self._database = database
        self._worker = workqueue.Worker(database, callout, workqueue.Limits(lease_seconds=600))
        self._count = count
        self.costs: dict[str, int] = {}

    def run(self, batches: list[BatchCut], offset: int) -> None:
        """All of them are asked for; those who are held then are asked for again, with some who are not."""
        self._step("fold", self._fold, batches, offset)
        self._work("", len(batches))
        named = ResolveHeld(
            who="ops",
            why="test",
            envelope_id=batches[0].header.envelope_id,
            disbursement_ids=[one for batch in batches for one in batch.items.disbursement_id[:4]],
        )
        self._step("again", self._ask, named)
        self._work(" again", len(batches))
        self._step("sweep", self._sweep)

    def _fold(self, batches: list[BatchCut], offset: int) -> None:
        messages = [message(batch, offset + number) for number, batch in enumerate(batches)]
        assert Fold(self._database, Routes(HANDLERS), Limits()).fold(messages) == len(batches)

    def _ask(self, command: ResolveHeld) -> None:
        with self._database.transaction() as tx:
            assert store.ask_again(tx, command, Cause("test")) >= len(command.disbursement_ids) // 2

    def _sweep(self) -> None:
        with self._database.transaction() as tx:
            store.drop_bodies(tx, 0, 1000)

    def _work(self, when: str, batches: int) -> None:
        claims = self._step(f"claim{when}", self._worker.claim, batches)
        assert len(claims) == batches
        for claim, request in claims:
            answer = self._step(f"call{when}", self._call, claim, request)
            assert isinstance(answer, workqueue.Done)
            self._step(f"settle{when}", self._worker.settle, claim, request, answer)

    def _call(self, claim: Claim, request: store.Asked) -> workqueue.Answer:
        async def call() -> workqueue.Answer:
            async with httpx.AsyncClient(verify=False) as client:
                return await self._worker.call(client, claim, request)

        return asyncio.run(call())

    def _step(self, name: str, act: Callable[..., T], *args: object) -> T:
        before = self._count()
        done = act(*args)
        self.costs[name] = self._count() - before
        return done


def check(
    database: Database, callout: Resolve | Locate, count: Count, few: list[BatchCut], many: list[BatchCut]
) -> dict[str, int]:
    warm, one, all_of_them = (Rounds(database, callout, count) for _ in range(3))
    warm.run([few[0]], 0)  # connections say more at their beginning
    one.run([few[1]], 100)
    all_of_them.run(many, 200)
    assert one.costs == all_of_them.costs
    assert min(cost for step, cost in one.costs.items() if not step.startswith("call")) > 0
    assert max(one.costs.values()) < 16, one.costs
    return one.costs


def test_statements_of_addresses(world: World, database: Database, count: Count) -> None:
    few = [cut([f"{world.name}-{i}" for i in range(4)], n) for n in (1, 2)]
    many = [cut([f"{world.name}-{i}" for i in range(1000)], n, few[1].header.envelope_id) for n in range(3, 103)]
    costs = check(database, Resolve(HalfKnown(), SEALER, OUTBOX), count, few, many)
    assert costs["call"] == 0


@pytest.mark.parametrize("source", ["database", "topic"])
def test_statements_of_zones(world: World, database: Database, registry: Registry, count: Count, source: str) -> None:
    people = [f"{world.name}-{number}" for number in range(1000)]
    known = [(person, *zone(number)) for number, person in enumerate(people) if number % 2]
    registries: dict[str, RegistryPort] = {
        "database": DatabaseRegistry(registry.registry_url, COLUMNS, concurrency=1, timeout_seconds=20),
        "topic": People(database, OUTBOX),
    }
    if source == "database":
        registry.put_people(known)
    else:
        take(database, [person(one, number) for number, one in enumerate(people) if number % 2])
    few = [goods(people[:4], n) for n in (1, 2)]
    many = [goods(people, n, few[1].header.envelope_id) for n in range(3, 103)]
    costs = check(database, Locate(registries[source], SEALER, OUTBOX), count, few, many)
    assert costs["call"] == {"database": 1, "topic": 3}[source]  # the look-up; our own database is told of a transaction, too


def take(database: Database, messages: Sequence[tuple[bytes, bytes, dict[str, str]]]) -> None:
    door = People(database, OUTBOX)
    raw = [
        RawMessage(PEOPLE, 0, offset, 0, key, value, tuple((name, text.encode()) for name, text in headers.items()))
        for offset, (key, value, headers) in enumerate(messages)
    ]
    with database.transaction() as tx:
        door.receive(tx, raw)


def test_statements_of_published_people(world: World, database: Database, count: Count) -> None:
    """As many for a thousand who are new, moved, removed or refused as for one of each."""
    costs = []
    for number in (1, 1, 250):
        before = count()
        here = [person(f"{world.name}-{one}", 1) for one in range(number)]
        gone: list[tuple[bytes, bytes, dict[str, str]]] = [
            (f"farmers/{world.name}-{one}-gone".encode(), b"", {}) for one in range(number)
        ]
        bad: list[tuple[bytes, bytes, dict[str, str]]] = [(b"no slash", b"", {}) for _ in range(number)]
        take(database, [*here, *here, *gone, *bad])
        costs.append(count() - before)
    assert costs[1] == costs[2]
    assert 3 <= costs[1] < 8
