"""What every verb needs: where things are, what it may read, how it speaks, and how it ends.

Exit codes: 0 all is well, 1 a fault was found or something was refused, 2 wrong usage, 3 something cannot be reached.
"""

import getpass
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from libs.common.money import Unit, scale

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("ingestion", "resolution", "allocation", "funds", "notifications", "scheduler")
PAGE_ROWS = 5000
_KAFKA, _DATABASE = "ALMONER_KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL"


class CliError(Exception):
    """Ends the command with its text and `code`."""

    code = 1


class Refused(CliError):
    """A fault in what was given, or in what was found."""


class Usage(CliError):
    code = 2


class NotReachable(CliError):
    code = 3


def home() -> Path:
    """The folder of the stack that `up` starts: ALMONER_HOME, else .almoner/up in the checkout."""
    return Path(os.environ.get("ALMONER_HOME") or ROOT / ".almoner" / "up")


def locate() -> None:
    """Make sure that broker and database are named in the environment: as given, else those of the stack that is up."""
    if os.environ.get(_KAFKA) and os.environ.get(_DATABASE):
        return
    from libs.local.stack import attach

    stack = attach(home())
    if stack is None:
        missing = " and ".join(name for name in (_KAFKA, _DATABASE) if not os.environ.get(name))
        raise NotReachable(f"nothing is up: run `./almoner up`, or set {missing}")
    for name, value in stack.env.items():
        os.environ.setdefault(name, value)


def topic(name: str) -> str:
    return os.environ.get("ALMONER_TOPIC_PREFIX", "") + name


class Views:
    """The services' published views, read through the read-only role; nothing else can be reached."""

    def __init__(self, *, snapshot: bool = False) -> None:
        """With `snapshot` all queries see the same moment."""
        import psycopg2
        import psycopg2.extras

        locate()
        self._lost: tuple[type[Exception], ...] = (psycopg2.OperationalError, psycopg2.InterfaceError)
        self._missing = (
            psycopg2.errors.UndefinedTable,
            psycopg2.errors.InvalidSchemaName,
            psycopg2.errors.InsufficientPrivilege,
            psycopg2.errors.UndefinedColumn,
        )
        psycopg2.extras.register_uuid()  # type: ignore[no-untyped-call]
        with self._explained():
            self._connection = psycopg2.connect(
                os.environ[_DATABASE].replace("+psycopg2", "", 1),
                options="-c role=almoner_ops -c TimeZone=UTC",
                application_name="almoner-cli",
                connect_timeout=5,
                cursor_factory=psycopg2.extras.NamedTupleCursor,
            )
            self._connection.set_session(
                isolation_level="REPEATABLE READ" if snapshot else None, readonly=True, autocommit=not snapshot
            )

    def rows(self, sql: str, /, **params: Any) -> list[Any]:
        """All rows, as named tuples."""
        with self._explained(), self._connection.cursor() as cursor:
            cursor.execute(sql, params)
            return cursor.fetchall()

    def one(self, sql: str, /, **params: Any) -> Any:
        found = self.rows(sql, **params)
        return found[0] if found else None

    def stream(self, sql: str, /, **params: Any) -> Iterator[Any]:
        """Rows in pages, however many there are. Needs `snapshot`."""
        with self._explained(), self._connection.cursor("page") as cursor:
            cursor.itersize = PAGE_ROWS
            cursor.execute(sql, params)
            yield from cursor

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> "Views":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._missing as error:
            first = str(error).splitlines()[0]
            raise NotReachable(f"the services' views are not there ({first}): run `./almoner up`, or migrate them") from error
        except self._lost as error:
            text = str(error).strip().splitlines()[0]
            if "almoner_ops" in text:
                text += "; has any service been migrated there?"
            raise NotReachable(f"the database does not answer: {text}") from error


def find_envelope(views: Views, name: str) -> Any:
    """The row of ingestion.ops_envelopes for Almoner's UUID or the publisher's id. Raises Refused when it isn't just one."""
    found = views.rows(
        """SELECT * FROM ingestion.ops_envelopes
           WHERE publisher_envelope_id = %(name)s OR envelope_id = %(id)s ORDER BY created_at""",
        name=name,
        id=as_uuid(name),
    )
    if not found:
        raise Refused(f"no envelope is called {name!r}: `almoner status` lists them")
    if len(found) > 1:
        choices = ", ".join(f"{row.envelope_id} (from {row.source})" for row in found)
        raise Refused(f"{len(found)} envelopes are called {name!r}; name one by its UUID: {choices}")
    return found[0]


def as_uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


# --- Speaking ---------------------------------------------------------------------------------------------------------


def console(*, stderr: bool = False) -> Any:
    """A rich console; colours and bars only on a terminal."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=not (sys.stderr if stderr else sys.stdout).isatty())


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on a terminal; tab-separated lines with a header elsewhere."""
    if not sys.stdout.isatty():
        print("\t".join(columns))
        for row in rows:
            print("\t".join(printable(str(cell)) for cell in row))
        return
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title=title or None, title_justify="left")
    for number, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[number], int | Number) for row in rows)
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(escape(f"{cell:,}" if isinstance(cell, int) else printable(str(cell))) for cell in row))
    console().print(shown)


def printable(text: str) -> str:
    """For a terminal, which takes other characters for commands, or can't write them at all."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def print_json(value: object) -> None:
    print(json.dumps(value, default=_plain, ensure_ascii=False))


def say(as_json: bool, *lines: str) -> None:
    """What a verb that changes something says on its way; for programs it stands beside their object, on standard error."""
    print(*lines, sep="\n", file=sys.stderr if as_json else sys.stdout)


def done(as_json: bool, text: str, touched: int, **more: object) -> None:
    """What came of a verb that changes something: a line, or for programs one object with how many rows it touched."""
    if as_json:
        print_json({"touched": touched, **more})
    elif text:
        print(text)


def as_dict(row: Any) -> dict[str, Any]:
    return dict(row._asdict())


def _plain(value: object) -> object:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, UUID | Decimal):
        return str(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


class Number(str):
    """Text that stands at the right of its column."""


def money(minor: int | None, currency: str) -> Number:
    return quantity(minor, Unit(currency, scale(currency)))


def quantity(minor: int | None, unit: Unit) -> Number:
    return Number("–" if minor is None else f"{unit.to_decimal(minor):,} {unit.name}")


def unit_of(row: Any) -> Unit:
    """What the amounts of an envelope (a row of ingestion.ops_envelopes) are counted in."""
    return Unit(row.currency, scale(row.currency)) if row.currency else Unit(row.measurement_unit, row.unit_scale)


def clock(at: datetime | None) -> str:
    return "–" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def plural(count: int, noun: str) -> str:
    """3, "batch" -> "3 batches"."""
    if count == 1:
        return f"1 {noun}"
    ending = "es" if noun.endswith(("ch", "sh", "s", "x")) else "s"
    if noun in ("person", "people"):
        return f"{count:,} people"
    return f"{count:,} {noun}{ending}"


def confirm(question: str, yes: bool) -> None:
    """Ask before something is changed. Without a terminal nobody can be asked: then only --yes will do."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Usage(f"{question} There is no terminal to ask at: add --yes if that is what you want")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise Refused("nothing was done")


def who_am_i(who: str | None) -> str:
    return who or getpass.getuser()
