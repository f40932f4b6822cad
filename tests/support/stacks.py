"""Where the real broker and the real database come from: the environment, else the embedded stack, else containers."""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import sqlalchemy
from psycopg2 import sql

from libs.common.clock import utc_now
from libs.common.db import Database
from libs.common.inbox import keep_partitions
from libs.common.migrate import migrate
from libs.local import postgres
from libs.local.kafka import MAX_MESSAGE_BYTES
from libs.local.stack import DATABASE_VARIABLE, KAFKA_VARIABLE, Addresses, owned
from libs.local.supervisor import ROOT

_ROOM_BYTES = 6 * 2**30
# As the embedded one: tests count statements, and start services by the hundred.
_SERVER_SETTINGS = ("max_connections", "shared_preload_libraries", "pg_stat_statements.max")


@contextmanager
def started(kind: str) -> Iterator[Addresses]:
    """Addresses of broker and database for one session. `kind` is embedded or containers; the environment wins."""
    if os.environ.get(KAFKA_VARIABLE) and os.environ.get(DATABASE_VARIABLE):
        yield Addresses(os.environ[KAFKA_VARIABLE], os.environ[DATABASE_VARIABLE])
    elif kind == "embedded":
        with owned(name="test", parent=memory()) as stack:
            yield stack.addresses
    else:
        with _containers() as addresses:
            yield addresses


def memory() -> Path | None:
    """A file system in memory, where there is one with room. Tests make and drop hundreds of databases and thousands of
    partitions, most of whose cost is files; whether a disk keeps what was synced to it is not what they test."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and shutil.disk_usage(shared).free > _ROOM_BYTES else None


@contextmanager
def _containers() -> Iterator[Addresses]:
    from testcontainers.community.kafka import KafkaContainer
    from testcontainers.community.postgres import PostgresContainer

    broker = KafkaContainer("confluentinc/cp-kafka:8.1.0").with_kraft()  # Apache Kafka 4.1: groups of KIP-848
    for name, value in {
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_MESSAGE_MAX_BYTES": str(MAX_MESSAGE_BYTES),
        "KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS": "4",
        "KAFKA_GROUP_CONSUMER_MIN_SESSION_TIMEOUT_MS": "1000",
        "KAFKA_GROUP_CONSUMER_SESSION_TIMEOUT_MS": "3000",
        "KAFKA_GROUP_CONSUMER_MIN_HEARTBEAT_INTERVAL_MS": "300",
        "KAFKA_GROUP_CONSUMER_HEARTBEAT_INTERVAL_MS": "500",
    }.items():
        broker.with_env(name, value)
    with ExitStack() as stack:
        stack.enter_context(broker)
        server = " ".join(["postgres", *(f"-c {name}={postgres.SETTINGS[name]}" for name in _SERVER_SETTINGS)])
        database = stack.enter_context(PostgresContainer("postgres:18", driver="psycopg2").with_command(server))
        yield Addresses(broker.get_bootstrap_server(), database.get_connection_url())


class Databases:
    """Makes and drops databases on one server."""

    def __init__(self, url: str) -> None:
        self._url = url

    def create(self, name: str, template: str | None = None) -> str:
        """A new database, empty or a copy of another; its SQLAlchemy URL."""
        # By files: through the log, as is the default, it takes twice as long.
        copy = sql.SQL(" TEMPLATE {} STRATEGY FILE_COPY").format(sql.Identifier(template)) if template else sql.SQL("")
        self._run(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)) + copy)
        return sqlalchemy.make_url(self._url).set(database=name).render_as_string(hide_password=False)

    @contextmanager
    def template(self) -> Iterator[str]:
        """The name of a database in which every service is migrated and has its partitions, for tests to get copies of."""
        name = f"template_{uuid4().hex[:12]}"
        url = self.create(name)
        for folder in sorted((ROOT / "services").glob("*/migrations")):
            try:
                migrate(url, folder.parent.name)
                database = Database(url, folder.parent.name)
                keep_partitions(database, utc_now())
                database.engine.dispose()
            except Exception as error:  # fails the tests of this service, not those of the others
                warnings.warn(f"{folder.parent.name} did not migrate: {error}", stacklevel=1)
        yield name
        self.drop(name)

    def drop(self, name: str) -> None:
        self._run(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def cut_off(self, name: str) -> None:
        """The database is away: its connections break, new ones are refused."""
        self._run(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
        self.break_connections(name)

    def break_connections(self, name: str) -> None:
        of_database = sql.SQL("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {}")
        self._run(of_database.format(sql.Literal(name)))

    def bring_back(self, name: str) -> None:
        self._run(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(name)))

    def _run(self, statement: sql.Composable) -> None:
        connection = postgres.connect(self._url)
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()
