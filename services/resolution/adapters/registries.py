"""Registries: which one is asked is what its name is configured for; a database is asked over a connection that only reads."""

import asyncio
import os
import socket
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg2
import sqlalchemy
from sqlalchemy.sql import quoted_name

from libs.common.db import is_transient
from libs.common.workqueue import MARGIN_SECONDS, Claim, NotSent, must_not_outlast
from services.resolution.domain import Home
from services.resolution.ports import Registry

_CONNECT_SECONDS = 5
_DEFAULT = "default"
# Classes of SQLSTATE in which the database refuses the question itself: nobody is let in, or a name is wrong.
_REFUSALS = ("28", "3D", "3F", "42")


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a registry's table has what we ask for; there need not be codes. `table`: its name, or schema.name."""

    table: str
    id: str
    large_zone_id: str
    large_zone_code: str
    small_zone_id: str
    small_zone_code: str


class Registries:
    """A `ports.Registry` of several: by the name that the envelope gives, else the default one."""

    def __init__(self, registries: Mapping[str, Registry]) -> None:
        self._registries = registries

    async def locate(self, claim: Claim, registry: str, people: Sequence[str]) -> Mapping[str, Sequence[Home]] | NotSent:
        chosen = self._registries.get(registry) or self._registries.get(_DEFAULT)
        if chosen is None:
            known = f"no registry {registry!r} and no {_DEFAULT!r} one" if registry else f"no registry {_DEFAULT!r}"
            return NotSent(
                "UNKNOWN_REGISTRY",
                f"ALMONER_RESOLUTION_REGISTRIES has {known}; name it there, start anew, then retry",
                final=True,
            )
        if claim.gate:
            await claim.gate.turn()
        must_not_outlast(claim, claim.timeout_seconds + MARGIN_SECONDS)
        return await chosen.locate(claim, registry, people)


class DatabaseRegistry:
    """A `ports.Registry` in somebody else's database: one statement a question, in threads and with connections of its own."""

    def __init__(self, url: str, columns: Columns, *, concurrency: int, timeout_seconds: float) -> None:
        milliseconds = max(1, int(timeout_seconds * 1000))
        self._statement = _statement(columns)
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="registry")
        self._engine = sqlalchemy.create_engine(
            url,
            isolation_level="AUTOCOMMIT",
            pool_size=concurrency,
            max_overflow=0,
            pool_timeout=timeout_seconds,
            hide_parameters=True,
            connect_args={
                "options": f"-c default_transaction_read_only=on -c statement_timeout={milliseconds}",
                "application_name": "almoner-resolution-registry",
                "client_encoding": "utf8",
                "connect_timeout": _CONNECT_SECONDS,
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
            },
        )

    async def locate(self, claim: Claim, _registry: str, people: Sequence[str]) -> Mapping[str, Sequence[Home]] | NotSent:
        asking = _Asking()
        try:
            async with asyncio.timeout(claim.timeout_seconds + MARGIN_SECONDS):  # the server's own time-out comes first
                rows = await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, list(people), asking)
        except TimeoutError:
            asking.hang_up()
            return NotSent("NO_ANSWER", "the registry's database does not answer", outage=True)
        except (sqlalchemy.exc.SQLAlchemyError, psycopg2.Error) as error:
            return _failure(error)
        homes: dict[str, list[Home]] = defaultdict(list)
        for person, *home in rows:
            homes[person].append(Home(*home))
        return homes

    def _ask(self, people: list[str], asking: "_Asking") -> Sequence[Any]:
        with self._engine.connect() as connection:
            asking.connection = connection.connection.driver_connection
            try:
                return connection.execute(self._statement, {"people": people}).all()
            finally:
                asking.connection = None


class _Asking:
    """A question under way. A database that has been frozen keeps its connections: hanging up frees the thread."""

    connection: Any = None

    def hang_up(self) -> None:
        connection = self.connection
        if connection is None:
            return
        with suppress(OSError, psycopg2.Error), socket.socket(fileno=os.dup(connection.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)


def _statement(columns: Columns) -> sqlalchemy.Executable:
    """Names are always quoted, whatever they are. What is not there, or null, comes as empty text."""
    schema, _, name = columns.table.rpartition(".")
    person: sqlalchemy.ColumnClause[Any] = sqlalchemy.column(quoted_name(columns.id, True))
    names = (columns.large_zone_id, columns.large_zone_code, columns.small_zone_id, columns.small_zone_code)
    homes = [
        sqlalchemy.func.coalesce(sqlalchemy.cast(sqlalchemy.column(quoted_name(one, True)), sqlalchemy.Text), "")
        if one
        else sqlalchemy.literal("")
        for one in names
    ]
    table = sqlalchemy.table(quoted_name(name, True), schema=quoted_name(schema, True) if schema else None)
    asked = sqlalchemy.bindparam("people", type_=sqlalchemy.ARRAY(sqlalchemy.Text))
    chosen = [one.label(f"home_{number}") for number, one in enumerate(homes)]
    # Cast on our side only, so that the registry's own index is used.
    return (
        sqlalchemy.select(sqlalchemy.cast(person, sqlalchemy.Text).label("person"), *chosen)
        .select_from(table)
        .where(person == sqlalchemy.any_(sqlalchemy.cast(asked, sqlalchemy.ARRAY(sqlalchemy.Text))))
        .distinct()
    )


def _failure(error: Exception) -> NotSent:
    """What the database said, by its code alone: the text may repeat what rows hold."""
    original = getattr(error, "orig", None) or error
    code = str(getattr(original, "pgcode", None) or "")
    if code.startswith(_REFUSALS):
        text = f"{code} {type(original).__name__}: mend the registry's settings or its rights, then retry"
        return NotSent("REGISTRY_REFUSED", text, final=True)
    away = is_transient(error) or isinstance(error, sqlalchemy.exc.TimeoutError)
    return NotSent("NOT_REACHED" if away else "REGISTRY_FAILED", f"{code} {type(original).__name__}".strip(), outage=away)
