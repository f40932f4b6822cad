"""Who may do what in the database is proven by the database."""

import psycopg2
import pytest
import sqlalchemy

from libs.common.migrate import OPS_ROLE
from tests.support.world import World


@pytest.fixture
def other_service(world: World) -> None:
    """A second service's schema, made as `migrate` makes one."""
    world.sql(None, "CREATE SCHEMA other")
    world.sql("other", "CREATE TABLE secret (a int)")
    world.sql("other", "CREATE VIEW ops_secret AS SELECT a FROM secret")
    world.sql("other", f"GRANT USAGE ON SCHEMA other TO {OPS_ROLE}")
    world.sql("other", f"GRANT SELECT ON ops_secret TO {OPS_ROLE}")


class As:
    """Statements as one role."""

    def __init__(self, world: World, role: str) -> None:
        options = {"options": f"-c role={role}"}
        self._engine = sqlalchemy.create_engine(world.database_url, connect_args=options, poolclass=sqlalchemy.NullPool)

    def may(self, statement: str) -> bool:
        try:
            with self._engine.connect() as connection:
                connection.exec_driver_sql(statement)
        except sqlalchemy.exc.ProgrammingError as error:
            if isinstance(error.orig, psycopg2.errors.InsufficientPrivilege):
                return False
            raise
        return True


@pytest.fixture
def relations(world: World) -> list[str]:
    rows = world.sql(
        "probe", "SELECT relname FROM pg_class WHERE relnamespace = 'probe'::regnamespace AND relkind IN ('r','p','v')"
    )
    return [row.relname for row in rows]


@pytest.mark.usefixtures("other_service")
def test_a_service_reaches_its_own_schema_and_no_other(world: World) -> None:
    service = As(world, "almoner_probe")
    assert service.may("INSERT INTO probe.noted (event_id, number) VALUES ('a', 1)")
    assert not service.may("SELECT * FROM other.secret")
    assert not service.may("SELECT * FROM other.ops_secret")
    assert not service.may("SELECT * FROM probe.noted JOIN other.secret ON true")
    assert not service.may("CREATE TABLE probe.own (a int)")
    assert not service.may("CREATE TABLE public.own (a int)")
    assert not service.may("DROP TABLE probe.noted")
    assert not service.may("UPDATE probe.alembic_version SET version_num = 'x'")


def test_audit_is_insert_only(world: World) -> None:
    service = As(world, "almoner_probe")
    row = "INSERT INTO probe.audit (who, why, action, command_id, detail, affected) VALUES ('a', 'b', 'c', 'd', 'e', 1)"
    assert service.may(row)
    assert service.may("SELECT * FROM probe.audit")
    assert not service.may("UPDATE probe.audit SET who = 'somebody else'")
    assert not service.may("DELETE FROM probe.audit")
    assert not service.may("TRUNCATE probe.audit")


@pytest.mark.usefixtures("other_service")
def test_operators_read_the_published_views_and_nothing_else(world: World, relations: list[str]) -> None:
    operators = As(world, OPS_ROLE)
    readable = {relation for relation in relations if operators.may(f"SELECT * FROM probe.{relation}")}
    assert readable == {relation for relation in relations if relation.startswith("ops_")}
    assert {"ops_work", "ops_dead_letters", "ops_audit", "ops_noted"} <= readable
    assert operators.may("SELECT * FROM other.ops_secret")
    assert not operators.may("SELECT * FROM other.secret")
    assert not operators.may("DELETE FROM probe.ops_paused")
    assert not operators.may("INSERT INTO probe.ops_paused VALUES ('consume', 'a', 'b')")
    assert not operators.may("SELECT probe.maintain_inbox(ARRAY['2999-01-01'::date])")  # would drop what is known
