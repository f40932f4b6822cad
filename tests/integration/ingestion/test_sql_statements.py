"""How many SQL statements a run of ingestion's jobs costs depends neither on the people nor on the lines that it takes up, nor on
how many runs there were before. Counted by the database itself."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from libs.common import inbox
from libs.common.clock import utc_now
from libs.common.consumer import Fold, Limits
from libs.common.db import Database
from libs.common.envelope import Cause, RawMessage
from libs.common.jobs import JobRunner
from libs.common.outbox import Outbox
from libs.local.stack import Addresses
from services.ingestion.config import Settings
from services.ingestion.cutting import CUT, RUN_ITEMS
from services.ingestion.statements import READ_STATEMENT, RUN_CHUNKS, Incoming, Statements
from services.ingestion.wiring import wire
from tests.integration.ingestion.publisher import (
    DISBURSEMENTS,
    ENVELOPES,
    SEALER,
    chunks_of,
    debits,
    envelope,
    message,
    statement_text,
    total,
    uuid_of,
)
from tests.support.counting import Count, statements
from tests.support.world import World


class Ingestion(NamedTuple):
    """Its parts, run by hand in this process."""

    database: Database
    fold: Fold
    jobs: JobRunner
    counted: Count

    def runs(self, job: str) -> list[int]:
        """What each run cost, until there is nothing to do; a run is one transaction."""
        costs = []
        while self.database.look("SELECT 1 FROM due WHERE job = %(job)s AND due_at <= clock_timestamp()", job=job):
            before = self.counted()
            assert self.jobs.run_due() == 1
            costs.append(self.counted() - before)
        return costs


@pytest.fixture
def ingestion(world: World, stack: Addresses, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ingestion]:
    for name, value in world.env.items():
        monkeypatch.setenv(name, value)
    settings = Settings.load()
    database = Database(world.database_url, "ingestion")
    inbox.keep_partitions(database, utc_now())
    parts = wire(settings, database)
    with statements(stack, (world.name, "almoner_ingestion")) as count:
        yield Ingestion(database, Fold(database, parts.routes, Limits()), JobRunner(database, parts.jobs), count)
    database.close()


def cut(ingestion: Ingestion, name: str, people: int) -> list[int]:
    """What the runs cost that cut a whole envelope."""
    sent = [(ENVELOPES, message(envelope(name, people, total(1, people)), name, name))]
    sent += [(DISBURSEMENTS, one) for one in chunks_of(name, people, 1000)]
    for n, (topic, (key, value, headers)) in enumerate(sent):  # one by one, or all of them would be staged as one
        raw = RawMessage(topic, 0, n, 0, key, value, tuple((k, v.encode()) for k, v in headers.items()))
        ingestion.fold.fold([raw])
    costs = ingestion.runs(CUT)
    rows = ingestion.database.look(
        "SELECT received, batches, state FROM envelopes WHERE envelope_id = %(id)s", id=uuid_of(name)
    )
    assert [tuple(row) for row in rows] == [(people, people // 1000, "COMPLETED")]
    return costs


def test_a_run_of_cut_costs_the_same_whatever_the_number_of_people(ingestion: Ingestion) -> None:
    less = RUN_ITEMS - 1000  # a run that finds as many as it may take asks for another one
    [small], [large] = cut(ingestion, "e1", 1000), cut(ingestion, "e2", less)
    assert 0 < small == large < 20
    first, *others, last = cut(ingestion, "e3", 3 * RUN_ITEMS + less)
    assert len(others) == 2
    assert first == small + 1  # asks for another run
    assert others == [first + 2] * 2  # and which disbursements and people are there already
    assert last == small + 2


def read(ingestion: Ingestion, chunks: int) -> list[int]:
    """What the runs cost that read a statement of so many chunks."""
    text = statement_text(f"A{chunks}", debits(chunks * 1000))
    with ingestion.database.transaction() as tx:
        Statements(SEALER, Outbox("ingestion")).receive(tx, [Incoming.of_text("test", text, Cause("c", None, None))])
    costs = ingestion.runs(READ_STATEMENT)
    rows = ingestion.database.look("SELECT chunks_read, state FROM statements WHERE chunks = %(n)s", n=chunks)
    assert [tuple(row) for row in rows] == [(chunks, "READ")]
    return costs


def test_a_run_of_read_statement_costs_the_same_whatever_the_number_of_lines(ingestion: Ingestion) -> None:
    [short] = read(ingestion, 1)
    runs = read(ingestion, 6 * RUN_CHUNKS)
    assert len(runs) == 6
    assert 0 < short < 20
    # At most: a further piece of the file, where a run goes beyond the end of one, and the asking for another run.
    assert short <= min(runs) <= max(runs) <= short + 2, runs
