"""A registry's database is only read, within a time, and may freeze without holding anything of ours."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from uuid import uuid4

import pytest
import sqlalchemy

from libs.common.envelope import Cause
from libs.common.workqueue import Claim, NotSent
from libs.local.reference import READER
from services.resolution.adapters.registries import Columns, DatabaseRegistry
from services.resolution.domain import Home
from tests.integration.resolution.zones import Registry, registry_of, zone
from tests.support.world import World

Found = Mapping[str, Sequence[Home]] | NotSent
TIMEOUT_SECONDS = 0.5
PATIENT_SECONDS = 20.0  # where none is waited for


@pytest.fixture
def registry(world: World) -> Iterator[Registry]:
    with registry_of(world) as registry:
        registry.put_people([("P1", *zone(1))])
        yield registry


def connected(
    registry: Registry, table: str = "g2p_farmer_registry", url: str = "", timeout_seconds: float = TIMEOUT_SECONDS
) -> DatabaseRegistry:
    columns = Columns(table, "link_registry_id", "large_area_id", "large_area_code", "small_area_id", "small_area_code")
    return DatabaseRegistry(url or registry.registry_url, columns, concurrency=1, timeout_seconds=timeout_seconds)


def claim(timeout_seconds: float) -> Claim:
    deadline = time.monotonic() + 60
    return Claim("locate", "1/1", 0, uuid4(), uuid4(), 1, False, deadline, timeout_seconds, Cause("test"))


async def ask(database: DatabaseRegistry, timeout_seconds: float) -> Found:
    return await database.locate(claim(timeout_seconds), "farmers", ["P1"])


def test_nothing_can_be_written_there(registry: Registry) -> None:
    """Not even by what the registry itself does when it is read."""
    registry.sql(
        "CREATE TABLE read_by (at timestamptz)",
        f"GRANT INSERT ON read_by TO {READER}",
        "CREATE FUNCTION note() RETURNS text LANGUAGE sql AS 'INSERT INTO read_by VALUES (now()) RETURNING ''x'''",
        "CREATE VIEW noting AS SELECT r.*, note() AS noted FROM g2p_farmer_registry r",
    )
    columns = Columns("noting", "link_registry_id", "large_area_id", "noted", "small_area_id", "small_area_code")
    database = DatabaseRegistry(registry.registry_url, columns, concurrency=1, timeout_seconds=PATIENT_SECONDS)
    answer = asyncio.run(ask(database, PATIENT_SECONDS))
    assert isinstance(answer, NotSent)
    assert (answer.code, answer.message, answer.final) == ("REGISTRY_FAILED", "25006 ReadOnlySqlTransaction", False)


def test_a_statement_has_an_end(registry: Registry) -> None:
    registry.sql("CREATE VIEW slow AS SELECT r.* FROM g2p_farmer_registry r, pg_sleep(60)")
    answer = asyncio.run(ask(connected(registry, "slow"), PATIENT_SECONDS))
    assert answer == NotSent("NOT_REACHED", "57014 QueryCanceled", outage=True)


def test_a_frozen_database_keeps_no_thread(registry: Registry) -> None:
    """One thread, whose connection goes through a line that falls silent: the next question has a new one."""

    async def story(line: "Line") -> tuple[Found, Found, Found]:
        url = sqlalchemy.make_url(registry.registry_url).set(host="127.0.0.1", port=line.port, query={})
        database = connected(registry, url=url.render_as_string(hide_password=False), timeout_seconds=PATIENT_SECONDS)
        first = await ask(database, PATIENT_SECONDS)
        line.silent = True
        second = await ask(database, TIMEOUT_SECONDS)
        line.silent = False
        return first, second, await ask(database, PATIENT_SECONDS)

    first, second, third = asyncio.run(through_a_line(registry.registry_url, story))
    assert first == third == {"P1": [Home(*zone(1))]}
    assert second == NotSent("NO_ANSWER", "the registry's database does not answer", outage=True)


class Line:
    """A line to a database; what is sent while it is silent never arrives, and nobody is told."""

    def __init__(self, url: str) -> None:
        parts = sqlalchemy.make_url(url)
        self._to = (parts.host or str(parts.query.get("host", "127.0.0.1")), parts.port or 5432)
        self.silent = False
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._to
        if host.startswith("/"):
            there = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            there = await asyncio.open_connection(host, port)
        await asyncio.gather(self._pass(reader, there[1]), self._pass(there[0], writer), return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65_536):
            if not self.silent:
                writer.write(piece)
                await writer.drain()
        writer.close()


async def through_a_line(
    url: str, story: Callable[[Line], Awaitable[tuple[Found, Found, Found]]]
) -> tuple[Found, Found, Found]:
    line = Line(url)
    async with await asyncio.start_server(line.serve, "127.0.0.1", 0) as server:
        line.port = server.sockets[0].getsockname()[1]
        found = await story(line)
        server.close()
        return found
