"""Warehouses and agencies from PBMS' own database: OpenG2P's tables, read by a role that may only SELECT, all at one moment."""

import os
import re
import socket
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from decimal import Decimal
from typing import Any

import psycopg2
import sqlalchemy
from pydantic import ValidationError

from libs.common.contracts.reference import AgencyAccount, AgencyListed, Listed, WarehouseListed
from libs.common.envelope import pointer
from libs.common.log import get
from libs.common.workqueue import NotSent
from services.allocation.adapters.topic import listing
from services.allocation.domain import AGENCY, WAREHOUSE
from services.allocation.ports import Listing, Snapshot

_CONNECT_SECONDS = 5
_MAX_ROWS = 1_000_000  # of one table: more are no places, and would not fit into memory
_TAGS = {"account_number": "ACCOUNT", "account_type": "TYPE", "branch_code": "BRANCH", "bank_code": "BANK"}

_log = get("pbms")


class _TooMuch(Exception):
    pass


class PbmsDatabase:
    def __init__(self, url: str) -> None:
        self._engine = sqlalchemy.create_engine(
            url,
            poolclass=sqlalchemy.NullPool,  # once a minute: nothing of theirs is kept busy in between
            isolation_level="REPEATABLE READ",
            hide_parameters=True,
            connect_args={
                "connect_timeout": _CONNECT_SECONDS,
                "application_name": "almoner-allocation",
                "client_encoding": "utf8",
                "options": "-c default_transaction_read_only=on",
            },
        )

    def read(self, timeout_seconds: float) -> Snapshot | NotSent:
        try:
            with self._engine.connect() as connection, _hung_up_after(connection, timeout_seconds):
                connection.exec_driver_sql(f"SET LOCAL statement_timeout = {int(timeout_seconds * 1000)}")
                taken_at = connection.exec_driver_sql("SELECT clock_timestamp()").scalar_one()
                warehouses, bad = _places(connection, WAREHOUSE, "large")
                agencies, worse = _places(connection, AGENCY, "small")
                return Snapshot(taken_at, [*warehouses, *agencies], bad + worse)
        except _TooMuch as error:
            return NotSent("PBMS_TOO_LARGE", str(error))
        except (sqlalchemy.exc.SQLAlchemyError, psycopg2.Error) as error:
            return _failure(error)


@contextmanager
def _hung_up_after(connection: sqlalchemy.Connection, seconds: float) -> Iterator[None]:
    """A database that is frozen keeps its connections and tells nobody: hanging up frees our thread."""
    driver: Any = connection.connection.driver_connection

    def hang_up() -> None:
        with suppress(OSError, psycopg2.Error), socket.socket(fileno=os.dup(driver.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _failure(error: Exception) -> NotSent:
    """A name that is not there, or may not be read, is told; of anything else the code alone: the text may repeat what rows hold."""
    original = getattr(error, "orig", None) or error
    code = str(getattr(original, "pgcode", None) or "")
    if code.startswith("42"):
        return NotSent("PBMS_REFUSED", f"{code} {str(original).strip().splitlines()[0][:200]}")
    return NotSent("PBMS_NOT_REACHED", f"{code} {type(original).__name__}".strip(), outage=True)


def _places(connection: sqlalchemy.Connection, kind: str, size: str) -> tuple[list[Listing], int]:
    """All places of a kind, and how many were left out because they can't be used."""
    text = "additional_info" if kind == AGENCY else "NULL::text"
    places = _rows(
        connection,
        f"""SELECT id::text, {kind}_mnemonic::text AS mnemonic, name::text, admin_name::text, admin_email::text, admin_mobile::text,
                   {text} AS info FROM g2p_{kind} ORDER BY 1""",
    )
    offered = f"g2p_{kind}_program_benefit_codes"
    columns = {
        row.column_name
        for row in _rows(
            connection,
            f"""SELECT attname::text AS column_name FROM pg_attribute
                WHERE attrelid = '{offered}'::regclass AND attnum > 0 AND NOT attisdropped""",
        )
    }
    capacity = "capacity::text" if "capacity" in columns else "NULL::text"
    info = "additional_info::text" if kind == AGENCY and "additional_info" in columns else "NULL::text"
    serves = defaultdict(list)
    for row in _rows(  # of a benefit that is listed twice the smaller capacity counts
        connection,
        f"""SELECT DISTINCT ON (1, 2, 3) {kind}_id::text AS place, program_id::text AS programme, benefit_code_id::text AS code,
                   {capacity} AS capacity, {info} AS info FROM {offered}
            ORDER BY 1, 2, 3{", capacity" if "capacity" in columns else ""}""",
    ):
        serves[row.place].append(row)
    zones = defaultdict(list)
    for row in _rows(
        connection,
        f"""SELECT g2p_{kind}_id::text AS place, g2p_administrative_area_{size}_id::text AS zone
            FROM g2p_administrative_area_{size}_g2p_{kind}_rel ORDER BY 1, 2""",
    ):
        zones[row.place].append(row.zone)
    found = [_listing(kind, row, serves[row.id], zones[row.id]) for row in places]
    good = [one for one in found if one is not None]
    return good, len(found) - len(good)


def _listing(kind: str, row: Any, serves: Sequence[Any], zones: Sequence[str]) -> Listing | None:
    """A place as it is from now on; None, and a line in the log, for one that can't be used."""
    try:
        data = _listed(kind, row, serves, zones)
        found = listing(kind, data)
        assert isinstance(found, Listing)  # nothing is named twice
        accounts = [account(one.info) or account(row.info) for one in serves]
        capacities = [_capacity(one.capacity) for one in serves]
    except ValidationError as error:
        faults = sorted({pointer(one["loc"]) for one in error.errors(include_input=False, include_url=False)})
        _log.warning("a place of PBMS can't be used", kind=kind, place=row.id[:64], faults=faults[:10])
        return None
    except ValueError as error:
        _log.warning("a place of PBMS can't be used", kind=kind, place=row.id[:64], faults=[str(error)])
        return None
    return replace(
        found,
        serves=[
            replace(one, capacity_units=capacity, account=tagged)
            for one, capacity, tagged in zip(found.serves, capacities, accounts, strict=True)
        ],
    )


def _listed(kind: str, row: Any, serves: Sequence[Any], zones: Sequence[str]) -> Listed:
    """By the contract's own rules: what may not come by the topic may not come from here."""
    names = ("id", "mnemonic", "name", "admin_name", "admin_email", "admin_mobile")
    fields: dict[str, Any] = {name: getattr(row, name) or "" for name in names}
    fields["serves"] = [{"programme_id": one.programme, "benefit_code_id": one.code} for one in serves]
    if kind == WAREHOUSE:
        return WarehouseListed.model_validate({**fields, "large_zone_ids": list(zones)})
    return AgencyListed.model_validate({**fields, "small_zone_ids": list(zones)})


def account(text: str | None) -> dict[str, str] | None:
    """Of "#ACCOUNT#12#TYPE#SAVINGS#BRANCH#3#BANK#ABC#" the fields. None where there is no account in it.

    Raises ValidationError for one that no payment could carry."""
    fields = {}
    for name, tag in _TAGS.items():
        found = re.search(f"#{tag}#([^#]*)", text or "")
        fields[name] = found.group(1).strip() if found else ""
    return AgencyAccount.model_validate(fields).model_dump() if fields["account_number"] else None


def _capacity(text: str | None) -> Decimal | None:
    """In whole units of the benefit. Raises ValueError for what is no amount."""
    if text is None:
        return None
    number = Decimal(text)
    if not number.is_finite() or number < 0:
        raise ValueError("/capacity")
    return number


def _rows(connection: sqlalchemy.Connection, sql: str) -> Sequence[Any]:
    rows: Iterable[Any] = connection.exec_driver_sql(sql.replace("%", "%%")).fetchmany(_MAX_ROWS + 1)
    found = list(rows)
    if len(found) > _MAX_ROWS:
        raise _TooMuch(f"more than {_MAX_ROWS} rows in one table")
    return found
