"""The systems that know people and places, as databases beside Almoner's own: a registry (people and their zones) and PBMS
(warehouses, agencies and what they serve). Tables and columns are those of OpenG2P; services read them through a role that may
only SELECT.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psycopg2
import sqlalchemy
from psycopg2 import sql

READER = "almoner_reference_reader"

_REGISTRY = """
CREATE TABLE IF NOT EXISTS g2p_farmer_registry (
    link_registry_id text PRIMARY KEY, large_area_id text, large_area_code text, small_area_id text, small_area_code text
);
"""
_PBMS = """
CREATE TABLE IF NOT EXISTS g2p_warehouse (
    id int PRIMARY KEY, name text, warehouse_mnemonic text, admin_name text, admin_email text, admin_mobile text
);
CREATE TABLE IF NOT EXISTS g2p_warehouse_program_benefit_codes (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, warehouse_id int NOT NULL, program_id text NOT NULL,
    benefit_code_id text NOT NULL, capacity numeric, additional_info text, UNIQUE (warehouse_id, program_id, benefit_code_id)
);
CREATE TABLE IF NOT EXISTS g2p_administrative_area_large_g2p_warehouse_rel (
    g2p_administrative_area_large_id text, g2p_warehouse_id int, PRIMARY KEY (g2p_administrative_area_large_id, g2p_warehouse_id)
);
CREATE TABLE IF NOT EXISTS g2p_agency (
    id int PRIMARY KEY, name text, agency_mnemonic text, admin_name text, admin_email text, admin_mobile text,
    additional_info text
);
CREATE TABLE IF NOT EXISTS g2p_agency_program_benefit_codes (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, agency_id int NOT NULL, program_id text NOT NULL,
    benefit_code_id text NOT NULL, capacity numeric, additional_info text, UNIQUE (agency_id, program_id, benefit_code_id)
);
CREATE TABLE IF NOT EXISTS g2p_administrative_area_small_g2p_agency_rel (
    g2p_administrative_area_small_id text, g2p_agency_id int, PRIMARY KEY (g2p_administrative_area_small_id, g2p_agency_id)
);
"""


@dataclass(frozen=True)
class Place:
    """A warehouse or an agency. `serves`: (programme, benefit code, capacity in one cycle or None); `account`: tagged text such
    as "#ACCOUNT#12#TYPE#SAVINGS#BRANCH#3#BANK#ABC#", of agencies."""

    id: int
    mnemonic: str
    name: str
    zones: Sequence[str]  # large zones of a warehouse, small ones of an agency
    serves: Sequence[tuple[str, str, str | None]]
    admin_name: str = ""
    admin_email: str = ""
    admin_mobile: str = ""
    account: str | None = None


class Reference:
    """The two databases on a server; `database_url` is the SQLAlchemy URL of its administrator, `prefix` goes before their names."""

    def __init__(self, database_url: str, prefix: str = "") -> None:
        self._admin = sqlalchemy.make_url(database_url)
        self._names = {"registry": f"{prefix}registry", "pbms": f"{prefix}pbms"}

    @property
    def registry_url(self) -> str:
        """For a reader."""
        return self._reader("registry")

    @property
    def pbms_url(self) -> str:
        """For a reader."""
        return self._reader("pbms")

    def prepare(self) -> None:
        """Make what is not there yet."""
        with self._connect(None) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT datname FROM pg_database")
            there = {name for (name,) in cursor.fetchall()}
            for name in self._names.values():
                if name not in there:
                    cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            # Whoever else prepares a server at the same time may be first.
            role = "DO $$ BEGIN CREATE ROLE {} LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
            cursor.execute(sql.SQL(role).format(sql.Identifier(READER)))
        for database, tables in (("registry", _REGISTRY), ("pbms", _PBMS)):
            with self._connect(database) as connection, connection.cursor() as cursor:
                cursor.execute(tables)
                cursor.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {READER}")

    def put_people(self, people: Iterable[tuple[str, str, str, str, str]]) -> None:
        """(id, large zone's id and code, small zone's id and code); who is there already moves."""
        text = "".join("\t".join(person) + "\n" for person in people)
        columns = "link_registry_id, large_area_id, large_area_code, small_area_id, small_area_code"
        with self._connect("registry") as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TEMP TABLE new (LIKE g2p_farmer_registry)")
            cursor.copy_expert(f"COPY new ({columns}) FROM STDIN", io.StringIO(text))
            cursor.execute(
                f"""INSERT INTO g2p_farmer_registry ({columns}) SELECT DISTINCT ON (link_registry_id) {columns} FROM new
                    ON CONFLICT (link_registry_id) DO UPDATE SET large_area_id = excluded.large_area_id,
                        large_area_code = excluded.large_area_code, small_area_id = excluded.small_area_id,
                        small_area_code = excluded.small_area_code"""
            )
            cursor.execute("ANALYZE g2p_farmer_registry")

    def put_warehouse(self, place: Place) -> None:
        """As it is from now on."""
        self._put("warehouse", "large", place)

    def put_agency(self, place: Place) -> None:
        """As it is from now on."""
        self._put("agency", "small", place)

    def drop(self) -> None:
        with self._connect(None) as connection, connection.cursor() as cursor:
            for name in self._names.values():
                cursor.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _put(self, kind: str, size: str, place: Place) -> None:
        relation = f"g2p_administrative_area_{size}_g2p_{kind}_rel"
        with self._connect("pbms") as connection, connection.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute(
                f"""INSERT INTO g2p_{kind} (id, name, {kind}_mnemonic, admin_name, admin_email, admin_mobile)
                    VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (id) DO UPDATE SET name = excluded.name,
                        {kind}_mnemonic = excluded.{kind}_mnemonic, admin_name = excluded.admin_name,
                        admin_email = excluded.admin_email, admin_mobile = excluded.admin_mobile""",
                (place.id, place.name, place.mnemonic, place.admin_name, place.admin_email, place.admin_mobile),
            )
            cursor.execute(f"DELETE FROM {relation} WHERE g2p_{kind}_id = %s", (place.id,))
            cursor.execute(f"DELETE FROM g2p_{kind}_program_benefit_codes WHERE {kind}_id = %s", (place.id,))
            for zone in place.zones:
                cursor.execute(
                    f"INSERT INTO {relation} (g2p_administrative_area_{size}_id, g2p_{kind}_id) VALUES (%s, %s)",
                    (zone, place.id),
                )
            for programme, benefit_code, capacity in place.serves:
                cursor.execute(
                    f"""INSERT INTO g2p_{kind}_program_benefit_codes
                            ({kind}_id, program_id, benefit_code_id, capacity, additional_info) VALUES (%s, %s, %s, %s, %s)""",
                    (place.id, programme, benefit_code, capacity, place.account),
                )
            cursor.execute("COMMIT")

    def _reader(self, database: str) -> str:
        url = self._admin.set(database=self._names[database], username=READER, password=None)
        return url.render_as_string(hide_password=False)

    def _connect(self, database: str | None) -> "_Connection":
        url = self._admin if database is None else self._admin.set(database=self._names[database])
        return _Connection(url.set(drivername="postgresql").render_as_string(hide_password=False))


class _Connection:
    """One that is closed at its end; each statement is a transaction of its own."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True

    def __enter__(self) -> "psycopg2.extensions.connection":
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()
