"""How many statements a service has run: pg_stat_statements, since what goes to the driver itself passes no layer that could count."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy

from libs.local.stack import Addresses

Count = Callable[[], int]


@contextmanager
def statements(stack: Addresses, *roles: tuple[str, str]) -> Iterator[Count]:
    """Of these (database, role) together, from now on."""
    engine = sqlalchemy.create_engine(stack.database_url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.StaticPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        connection.exec_driver_sql("SELECT pg_stat_statements_reset()")  # it forgets some where it knows too many

        def read() -> int:
            return int(
                connection.exec_driver_sql(
                    """SELECT coalesce(sum(calls), 0) FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
                       JOIN pg_roles r ON r.oid = s.userid
                       WHERE toplevel AND (d.datname, r.rolname) IN (
                           SELECT * FROM unnest(%(databases)s::name[], %(roles)s::name[]))""",
                    {"databases": [database for database, _ in roles], "roles": [role for _, role in roles]},
                ).scalar_one()
            )

        yield read
    engine.dispose()
