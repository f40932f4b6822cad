"""One transaction, three things: what was consumed, what changed, what to say.

A service connects as its own role with its own schema on the search path, so that a join across services fails in the
database. SQL is written for psycopg2 (`%(name)s`), arrays are Python lists and cast to their type in the statement, big sets
travel by COPY.
"""

import hashlib
import io
import re
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from functools import cached_property, lru_cache
from typing import Any
from uuid import UUID

import psycopg2.extras
import sqlalchemy
from sqlalchemy.engine import Connection

from libs.common.errors import Transient

psycopg2.extras.register_uuid()  # type: ignore[no-untyped-call]

# Classes and codes of SQLSTATE after which the same work succeeds later: connection, transaction that slept too long,
# transaction rollback, insufficient resources, operator intervention, lock not available, and the disk's errors.
_TRANSIENT_STATES = ("08", "25P03", "40", "53", "55P03", "57", "58")
# A process that is frozen within a transaction must not keep the envelope's lock from its replicas.
_IDLE_SECONDS = 20
_COPY_CHARACTERS = 1_000_000  # handed to the server at once
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_SPECIAL = re.compile(r"[\\\t\n\r]")
_QUOTED = re.compile(r'[\\"]')


class Tx:
    """An open transaction. Whom its rows concern (the relay, the jobs, a kind of call) is woken once it is committed.

    SQLAlchemy keeps connections and transactions; statements go to the driver itself, since most of them are as short as what
    a layer between would cost. Rows are named tuples."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.wakes: set[str] = set()

    def run(self, sql: str, /, **params: Any) -> int:
        """How many rows it changed."""
        changed: int = self._execute(sql, params).rowcount
        return changed

    def rows(self, sql: str, /, **params: Any) -> list[Any]:
        cursor = self._execute(sql, params)
        found: list[tuple[Any, ...]] = cursor.fetchall()
        return list(map(_record(tuple([column.name for column in cursor.description]))._make, found))

    def tuples(self, sql: str, /, **params: Any) -> list[tuple[Any, ...]]:
        """Plain tuples, for rows by the thousand."""
        found: list[tuple[Any, ...]] = self._execute(sql, params).fetchall()
        return found

    def one(self, sql: str, /, **params: Any) -> Any:
        """The only row. Raises ValueError for none or several."""
        [row] = self.rows(sql, **params)
        return row

    def _execute(self, sql: str, params: dict[str, Any]) -> Any:
        for name, value in params.items():
            if type(value) is list:
                params[name] = _array(value)
        self._cursor.execute(sql, params)
        return self._cursor

    @cached_property
    def _cursor(self) -> Any:
        return self.connection.connection.cursor()

    def copy(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """COPY rows of str, int, bytes, UUID, date, bool or None into a table; the fastest way in for hundreds of rows and more, and
        for large ones: the server need not look for the end of a literal."""
        values = list(zip(*rows, strict=True))
        self.copy_columns(table, dict(zip(columns, values, strict=True)) if values else {})

    def copy_columns(self, table: str, columns: Mapping[str, Sequence[object]]) -> None:
        """The same, by column: name -> its values."""
        if columns and len(next(iter(columns.values()))):
            text = "\n".join(map("\t".join, zip(*map(_copy_column, columns.values()), strict=True))) + "\n"
            self._cursor.copy_expert(f"COPY {table} ({', '.join(columns)}) FROM STDIN", io.StringIO(text), _COPY_CHARACTERS)

    def lock_shared(self, keys: Iterable[int]) -> None:
        """The envelopes' locks, shared, taken in key order; held until the end of the transaction."""
        self.run("SELECT pg_advisory_xact_lock_shared(k) FROM unnest(%(keys)s::bigint[]) AS k", keys=sorted(set(keys)))

    def lock_exclusive(self, keys: Iterable[int]) -> None:
        """The envelopes' locks, exclusive, taken in key order; held until the end of the transaction."""
        self.run("SELECT pg_advisory_xact_lock(k) FROM unnest(%(keys)s::bigint[]) AS k", keys=sorted(set(keys)))

    def try_lock_exclusive(self, key: int) -> bool:
        """The lock if nobody holds it now. Waiting for it would make all who come after us wait as well."""
        return bool(self.one("SELECT pg_try_advisory_xact_lock(%(key)s)", key=key)[0])

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo what the block did to the database if it raises, and only that."""
        with self.connection.begin_nested():
            yield


class Database:
    """A service's connections. Raises Transient for whatever the same transaction survives when run again."""

    def __init__(self, url: str, service: str, *, pool_size: int = 10) -> None:
        self.service = service
        self.wake: Callable[[set[str]], None] = lambda names: None  # set by the process, which knows who waits here
        self.engine = sqlalchemy.create_engine(
            url,
            pool_size=pool_size,
            pool_use_lifo=True,  # the one used last knows our tables and plans already; the others are for when all are needed
            max_overflow=2,
            pool_timeout=10,
            hide_parameters=True,  # errors are logged, what rows hold is not
            use_native_hstore=False,  # or each new session asks for a type we do not use
            connect_args={
                "options": f"-c role=almoner_{service} -c search_path={service} -c lock_timeout=30s"
                f" -c idle_in_transaction_session_timeout={_IDLE_SECONDS}s",
                "application_name": f"almoner-{service}",
                "connect_timeout": 5,
            },
        )

    @contextmanager
    def transaction(self) -> Iterator[Tx]:
        with self._faults_named(), self.engine.begin() as connection:
            tx = Tx(connection)
            yield tx
        if tx.wakes:
            self.wake(tx.wakes)

    def look(self, sql: str, /, **params: Any) -> list[Any]:
        """Rows of one statement by itself: a third of the round trips of a transaction, for whoever looks again and again."""
        with self._faults_named(), self.engine.connect() as connection:
            session: Any = connection.connection.driver_connection
            session.autocommit = True  # the driver's own switch: SQLAlchemy's costs statements to go back
            try:
                return Tx(connection).rows(sql, **params)
            finally:
                if not session.closed:
                    session.autocommit = False

    @contextmanager
    def _faults_named(self) -> Iterator[None]:
        try:
            yield
        except (sqlalchemy.exc.DBAPIError, psycopg2.Error) as error:
            if _is_lost(_original(error)):
                self.engine.dispose(close=False)  # the others that wait in the pool are as dead
            if is_transient(error):
                raise Transient(f"database: {str(error.args[0]).strip()}") from error
            raise
        except sqlalchemy.exc.TimeoutError as error:
            raise Transient("database: no free connection") from error

    def close(self) -> None:
        self.engine.dispose()


def is_transient(error: BaseException) -> bool:
    original = _original(error)
    return _is_lost(original) or str(getattr(original, "pgcode", "")).startswith(_TRANSIENT_STATES)


def _original(error: BaseException) -> BaseException | None:
    return error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) else error


def _is_lost(original: BaseException | None) -> bool:
    """The connection itself broke, or never came about."""
    if getattr(original, "pgcode", None) is not None:
        return False
    broken = isinstance(original, psycopg2.OperationalError | psycopg2.InterfaceError)
    return broken or type(original) is psycopg2.DatabaseError  # so libpq reports a result that broke off


@lru_cache(maxsize=1000)
def _record(names: tuple[str, ...]) -> Any:
    return namedtuple("Row", names, rename=True)


def lock_key(service: str, envelope_id: UUID) -> int:
    """The 64-bit key of an envelope's lock; a collision of two envelopes only costs waiting."""
    return lock_key_text(f"{service}/{envelope_id}")


def lock_key_text(name: str) -> int:
    """The 64-bit advisory lock key of a name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True)


def _array(values: list[Any]) -> str:
    """The text of an array, for a thousand values one literal: the driver would write each by itself as a constant, and the
    server would parse, plan and count each of them."""
    kinds = set(map(type, values))
    if kinds <= {int, UUID, date}:
        return "{" + ",".join(map(str, values)) + "}"
    if kinds == {bytes}:
        return '{"\\\\x' + '","\\\\x'.join(map(bytes.hex, values)) + '"}'
    if kinds == {str} and _QUOTED.search("".join(values)) is None:
        return '{"' + '","'.join(values) + '"}'
    return "{" + ",".join(map(_array_item, values)) + "}"


def _array_item(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f'"\\\\x{value.hex()}"'
    return '"' + _QUOTED.sub(r"\\\g<0>", str(value)) + '"'


def _copy_column(values: Sequence[object]) -> Iterable[str]:
    kinds = set(map(type, values))
    if kinds == {int}:
        return map(str, values)
    if kinds == {str} and _SPECIAL.search("".join(values)) is None:  # type: ignore[arg-type]
        return values  # type: ignore[return-value]
    return map(_copy_field, values)


def _copy_field(value: object) -> str:
    if value is None:
        return "\\N"
    if isinstance(value, str):
        return value.translate(_ESCAPES)
    if isinstance(value, bytes):
        return "\\\\x" + value.hex()
    if isinstance(value, bool):
        return "t" if value else "f"
    return str(value)
