"""How many statements a service has run: pg_stat_statements, since what goes to the driver itself passes no layer that could count."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy

from libs.local.stack import Addresses

Count = Callable[[], int]


@contextmanager
def statements(stack: Addresses, *roles: tuple[str, str]) -> Iterator[Count]:
    """Of these (database, role) together, since the databases were made."""
    engine = sqlalchemy.create_engine(stack.database_url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.StaticPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        # It forgets some where it knows too many: here goes what dropped databases have left.
        connection.exec_driver_sql(
            """SELECT pg_stat_statements_reset(0, dbid, 0) FROM (
                   SELECT DISTINCT dbid FROM pg_stat_statements(false) WHERE dbid NOT IN (SELECT oid FROM pg_database)) AS gone"""
        )

        def read() -> int:
            return int(
                connection.exec_driver_sql(
                    """SELECT coalesce(sum(calls), 0) FROM pg_stat_statements(false) s JOIN pg_database d ON d.oid = s.dbid
                       JOIN pg_roles r ON r.oid = s.userid
                       WHERE toplevel AND (d.datname, r.rolname) IN (
                           SELECT * FROM unnest(%(databases)s::name[], %(roles)s::name[]))""",
                    {"databases": [database for database, _ in roles], "roles": [role for _, role in roles]},
                ).scalar_one()
            )

        yield read
    engine.dispose()
