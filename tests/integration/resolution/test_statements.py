"""The number of SQL statements depends neither on the size of a batch nor on how many come at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy

from libs.common import workqueue
from libs.common.clock import utc_now
from libs.common.consumer import Fold, Limits
from libs.common.contracts.ingestion import BatchCut
from libs.common.contracts.operator import ResolveHeld
from libs.common.db import Database
from libs.common.envelope import Cause, RawMessage
from libs.common.inbox import keep_partitions
from libs.common.outbox import Outbox
from services.resolution import store
from services.resolution.adapters.spar import Spar
from services.resolution.domain import Hold
from services.resolution.handlers import ROUTES, Answered, Resolve
from tests.integration.resolution.batches import BATCHES, SEALER, cut
from tests.support.world import World


@pytest.fixture
def database(world: World) -> Iterator[Database]:
    database = Database(world.database_url, "resolution")
    keep_partitions(database, utc_now())
    yield database
    database.close()


@contextmanager
def counted(database: Database) -> Iterator[list[str]]:
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    sqlalchemy.event.listen(database.engine, "before_cursor_execute", note)
    yield statements
    sqlalchemy.event.remove(database.engine, "before_cursor_execute", note)


def message(batch: BatchCut, offset: int) -> RawMessage:
    headers = {"ce_specversion": "1.0", "ce_id": str(offset), "ce_source": "test", "ce_type": BatchCut.TYPE}
    pairs = tuple((name, value.encode()) for name, value in headers.items())
    return RawMessage(BATCHES, 0, offset, 0, b"", batch.model_dump_json().encode(), pairs)


def rounds(database: Database, batches: list[BatchCut], offset: int) -> dict[str, int]:
    """Statements of each step: all are held first, then half of them are resolved."""
    spar = Spar("http://mapper.example", {}, sender_id="", sender_uri="", receiver_id="", max_items=1000)
    worker = workqueue.Worker(database, Resolve(spar, SEALER, Outbox("resolution")), workqueue.Limits())
    size = len(batches[0].items)
    counts = {}
    with counted(database) as statements:
        Fold(database, ROUTES, Limits()).fold([message(batch, offset + n) for n, batch in enumerate(batches)])
    counts["fold"] = len(statements)
    counts |= work(database, worker, batches, size)
    with counted(database) as statements, database.transaction() as tx:
        command = ResolveHeld(who="ops", why="test", batch_ids=[batch.header.batch_id for batch in batches])
        assert store.ask_again(tx, command, Cause(str(offset))) == size * len(batches)
    counts["ask again"] = len(statements)
    return counts | {f"{step} part 2": count for step, count in work(database, worker, batches, size // 2).items()}


def work(database: Database, worker: workqueue.Worker, batches: list[BatchCut], hold: int) -> dict[str, int]:
    """Claim all that is there; settle each batch with its first `hold` people held and the others resolved."""
    with counted(database) as statements:
        claims = worker.claim(len(batches))
    counts = {"claim": len(statements)}
    assert len(claims) == len(batches)
    by_id = {batch.header.batch_id: batch for batch in batches}
    for claim, request in claims:
        batch = by_id[request.batch_id]
        found = [(item, {"fa_type": "BANK_ACCOUNT", "account_number": "1"}) for item in batch.items[hold:]]
        held = [(item, Hold("NOT_LINKED")) for item in batch.items[:hold]]
        with counted(database) as statements:
            worker.settle(claim, request, workqueue.Done(Answered(batch, request.part, {}, found, held)))
        counts["settle"] = len(statements)
    return counts


def test_statements_are_the_same_for_one_and_for_many(world: World, database: Database) -> None:
    few = rounds(database, [cut([f"{world.name}-{i}" for i in range(2)])], 0)
    many = rounds(database, [cut([f"{world.name}-{i}" for i in range(1000)], n) for n in range(8)], 100)
    assert few == many
    assert max(few.values()) < 12, few
