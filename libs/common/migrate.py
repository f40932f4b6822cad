"""One schema, one role and one Alembic history per service; migrations run under a session lock, as the database's owner.

Role `almoner_<service>` may use its own schema and nothing else; `almoner_ops` may select from published `ops_*` views.
"""

from pathlib import Path
from typing import Any

import sqlalchemy

from libs.common.db import lock_key_text
from libs.common.errors import Fatal

OPS_ROLE = "almoner_ops"
SERVICES = Path(__file__).parents[2] / "services"

_ROLE = "DO $$ BEGIN CREATE ROLE {0} NOLOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"


def migrate(url: str, service: str) -> None:
    """Bring the service's schema to this release's revision. Needs a login that owns the database; runs as often as asked."""
    # Imported here: half a second which every start of a service would pay.
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(SERVICES / service / "migrations"))
    config.set_main_option("path_separator", "os")
    directory = ScriptDirectory.from_config(config)
    options = {"options": f"-c search_path={service}"}
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=options)
    with engine.connect() as connection:
        # Roles are the cluster's: one lock for all services, taken for this session.
        connection.exec_driver_sql("SELECT pg_advisory_lock(%s)", (lock_key_text("migrate"),))
        connection.commit()
        role = f"almoner_{service}"
        for name in (role, OPS_ROLE):
            connection.exec_driver_sql(_ROLE.format(name))
        connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {service}")
        connection.commit()

        def upgrade(revision: Any, _context: Any) -> Any:
            return directory._upgrade_revs("head", revision)

        environment = EnvironmentContext(config, directory, fn=upgrade)
        with environment:
            environment.configure(connection=connection, version_table_schema=service)
            with environment.begin_transaction():
                environment.run_migrations()
        connection.commit()
        with connection.begin():
            for grant in _grants(service, role):
                run_sql(connection, grant)


def _grants(service: str, role: str) -> list[str]:
    ops_views = (
        f"DO $$ DECLARE v text; BEGIN FOR v IN SELECT table_name FROM information_schema.views "
        f"WHERE table_schema = '{service}' AND table_name LIKE 'ops\\_%' LOOP "
        f"EXECUTE format('GRANT SELECT ON {service}.%I TO {OPS_ROLE}', v); END LOOP; END $$"
    )
    # A view's functions run with its reader's rights; those that act with the owner's are none of its business.
    ops_functions = (
        f"DO $$ DECLARE f regprocedure; BEGIN FOR f IN SELECT oid FROM pg_proc "
        f"WHERE pronamespace = '{service}'::regnamespace AND NOT prosecdef LOOP "
        f"EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO {OPS_ROLE}', f); END LOOP; END $$"
    )
    return [
        f"GRANT USAGE ON SCHEMA {service} TO {role}, {OPS_ROLE}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {service} TO {role}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {service} TO {role}",
        f"REVOKE INSERT, UPDATE, DELETE ON {service}.alembic_version FROM {role}",
        f"REVOKE UPDATE, DELETE ON {service}.audit FROM {role}",
        f"REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA {service} FROM PUBLIC",
        f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {service} TO {role}",
        ops_views,
        ops_functions,
        f"DO $$ BEGIN EXECUTE format('GRANT {role}, {OPS_ROLE} TO %I', current_user); END $$",
    ]


def check_revision(connection: sqlalchemy.Connection, service: str) -> None:
    """Raises Fatal where the schema is older than this release. A newer one is fine: old replicas restart during a roll-out."""
    known = revisions(service)
    found = connection.exec_driver_sql("SELECT to_regclass('alembic_version')").scalar()
    current = found and connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    if current is None or (current in known and current != known[-1]):
        raise Fatal(
            f"schema {service} is at revision {current}, this release needs {known[-1]}: "
            f"run `python -m services.{service} migrate` first"
        )


def revisions(service: str) -> list[str]:
    """This release's revisions, the newest last: the number that a migration's file name begins with."""
    files = (SERVICES / service / "migrations" / "versions").glob("[0-9]*_*.py")
    return sorted(file.name.partition("_")[0] for file in files)


def run_sql(bind: sqlalchemy.Connection, sql: str) -> None:
    """Several statements of plain SQL, in which % and : mean themselves."""
    cursor = bind.connection.cursor()
    cursor.execute(sql)
