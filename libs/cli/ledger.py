"""The scratch ledger of `books`: what database, statements and events say of each disbursement, side by side on disk.

Everything is streamed in pages into a temporary SQLite file, so memory stays flat however large an envelope is.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

from libs.cli.context import PAGE_ROWS, Views
from libs.cli.send import Reader, event_of
from libs.common.contracts import funds
from libs.common.contracts.base import EventData
from libs.common.contracts.ingestion import StatementLines
from libs.common.errors import Malformed

_SCHEMA = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
CREATE TABLE disbursement (e INT, id TEXT, minor INT, PRIMARY KEY (e, id)) WITHOUT ROWID;
CREATE TABLE payment (
    instruction INT, position INT, e INT, id TEXT, minor INT, state TEXT, reference TEXT,
    confirmed_by TEXT, confirmed_line INT, reversed_by TEXT, reversed_line INT,
    head INT,  -- of agency cash: the share at whose place the agency's payment is
    PRIMARY KEY (instruction, position)
) WITHOUT ROWID;
CREATE TABLE instruction (instruction INTEGER PRIMARY KEY, batch TEXT, created INT, dispatched INT);  -- times in Unix ms
CREATE TABLE held (e INT, id TEXT, minor INT, reason TEXT, batch TEXT, at INT, PRIMARY KEY (e, id)) WITHOUT ROWID;
CREATE TABLE repaid (instruction INT, position INT);  -- a reversed payment
CREATE TABLE given_back (e INT, id TEXT, PRIMARY KEY (e, id)) WITHOUT ROWID;  -- to the sponsor, and not repaid since
CREATE TABLE cancelled (
    e INT, id TEXT, minor INT, in_block INT, released INT, batch TEXT, at INT, PRIMARY KEY (e, id)
) WITHOUT ROWID;
CREATE TABLE statement (id TEXT PRIMARY KEY, account TEXT, received INT, known INT) WITHOUT ROWID;  -- by ingestion, to funds
CREATE TABLE line (
    statement TEXT, line INT, mark TEXT, minor INT, reference TEXT, fifth TEXT, bank_reference TEXT, account TEXT,
    PRIMARY KEY (statement, line)
) WITHOUT ROWID;
CREATE TABLE exception (statement TEXT, line INT, reason TEXT, PRIMARY KEY (statement, line, reason)) WITHOUT ROWID;
-- One row for one disbursement in one event; an event delivered twice is one event.
CREATE TABLE fact (
    e INT, id TEXT, kind TEXT, event TEXT, instruction INT, minor INT, statement TEXT, PRIMARY KEY (e, id, kind, event)
) WITHOUT ROWID;
CREATE TABLE moved (e INT, kind TEXT, number INT, event TEXT, minor INT, PRIMARY KEY (e, kind, number, event)) WITHOUT ROWID;
CREATE TABLE settled (e INT, revision INT, event TEXT, position TEXT, PRIMARY KEY (e, revision, event)) WITHOUT ROWID;
BEGIN;
"""
_INDEXES = """
CREATE INDEX payment_id ON payment (e, id);
CREATE INDEX payment_confirmed ON payment (confirmed_by, confirmed_line) WHERE confirmed_by IS NOT NULL;
CREATE INDEX payment_reversed ON payment (reversed_by, reversed_line) WHERE reversed_by IS NOT NULL;
CREATE INDEX payment_head ON payment (instruction, head) WHERE head IS NOT NULL;
CREATE INDEX repaid_payment ON repaid (instruction, position);
CREATE INDEX payment_reference ON payment (reference);
CREATE INDEX line_reference ON line (reference, mark);
ANALYZE;
"""

# Kind of a fact -> the event which says it.
KINDS: dict[str, type[EventData]] = {
    "dispatched": funds.PaymentsDispatched,
    "confirmed": funds.PaymentsConfirmed,
    "reversed": funds.PaymentsReversed,
    "unknown": funds.PaymentsUnknown,
    "held": funds.PaymentsHeld,
    "refused": funds.PaymentsRefused,
    "cancelled": funds.PaymentsCancelled,
}


class Ledger:
    """`numbers` are short names of the envelopes looked at."""

    def __init__(self, folder: Path, envelopes: Sequence[UUID]) -> None:
        self.numbers = {envelope: number for number, envelope in enumerate(envelopes)}
        self.envelopes = list(envelopes)
        self._db = sqlite3.connect(folder / "books.sqlite", isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.create_function("older", 3, self.older)  # in SQL as well
        self._db.executescript(_SCHEMA)
        self._older: dict[str, Callable[[str | None, int | None], bool]] = {}

    def older(self, topic: str, key: str | None, at_ms: int | None) -> bool:
        """Reader.older of a topic that was read."""
        return self._older[topic](key, at_ms)

    def query(self, sql: str, *values: Any) -> Iterator[sqlite3.Row]:
        return iter(self._db.execute(sql, values))

    def index(self) -> None:
        """Call once, when all is loaded."""
        self._db.executescript(_INDEXES)

    def close(self) -> None:
        self._db.close()

    def _fill(self, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
        rows = iter(rows)
        while page := list(islice(rows, PAGE_ROWS)):
            marks = ", ".join("?" * len(page[0]))
            self._db.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", page)

    # What the services' rows say.

    def load_rows(self, views: Views) -> None:
        """Disbursements, payments, holds, repayments, releases and cancellations of the envelopes; all statement exceptions."""
        ids, number = self.envelopes, self.numbers
        chosen = "WHERE envelope_id = ANY(%(ids)s::uuid[])"
        self._fill(
            "disbursement",
            (
                (number[row.envelope_id], row.disbursement_id, row.amount_minor)
                for row in views.stream(
                    f"SELECT envelope_id, disbursement_id, amount_minor FROM ingestion.ops_disbursements {chosen}", ids=ids
                )
            ),
        )
        self._fill(
            "payment",
            (
                (
                    row.instruction, row.position, number[row.envelope_id], row.disbursement_id, row.amount_minor,
                    row.state, row.reference, _text(row.confirmed_by), row.confirmed_line, _text(row.reversed_by),
                    row.reversed_line, row.head,
                )
                for row in views.stream(
                    f"""SELECT envelope_id, instruction, position, disbursement_id, amount_minor, state, reference,
                               confirmed_by, confirmed_line, reversed_by, reversed_line, head
                        FROM funds.ops_payments {chosen}""",
                    ids=ids,
                )
            ),
        )  # fmt: skip
        self._fill(
            "instruction",
            (
                (row.instruction, str(row.batch_id), unix_ms(row.created_at), unix_ms(row.dispatched_at))
                for row in views.stream(
                    f"SELECT instruction, batch_id, created_at, dispatched_at FROM funds.ops_instructions {chosen}", ids=ids
                )
            ),
        )
        self._fill(
            "held",
            (
                (
                    number[row.envelope_id], row.disbursement_id, row.amount_minor, row.reason, str(row.batch_id),
                    unix_ms(row.since),
                )
                for row in views.stream(
                    f"""SELECT envelope_id, disbursement_id, amount_minor, reason, batch_id, since FROM funds.ops_held
                        {chosen} AND state = 'HELD'""",
                    ids=ids,
                )
            ),
        )  # fmt: skip
        self._fill(
            "repaid",
            (
                (row.instruction, row.position)
                for row in views.stream(
                    f"""SELECT instruction, position FROM funds.ops_repayments
                        {chosen} AND state IN ('PAYING', 'CANCELLED') AND instruction IS NOT NULL""",
                    ids=ids,
                )
            ),
        )
        self._fill(
            "given_back",
            (
                (number[row.envelope_id], row.disbursement_id)
                for row in views.stream(
                    f"""SELECT envelope_id, disbursement_id FROM funds.ops_given_back g {chosen} AND NOT EXISTS (
                            SELECT 1 FROM funds.ops_repayments r
                            WHERE r.envelope_id = g.envelope_id AND r.disbursement_id = g.disbursement_id
                              AND r.release_id = g.release_id AND r.state IN ('PAYING', 'CANCELLED'))""",
                    ids=ids,
                )
            ),
        )
        self._fill(
            "cancelled",
            (
                (
                    number[row.envelope_id], row.disbursement_id, row.amount_minor, row.in_block,
                    row.release_id is not None, str(row.batch_id), unix_ms(row.cancelled_at),
                )
                for row in views.stream(
                    f"""SELECT envelope_id, disbursement_id, amount_minor, in_block, release_id, batch_id, cancelled_at
                        FROM funds.ops_cancelled {chosen}""",
                    ids=ids,
                )
            ),
        )  # fmt: skip
        self._fill(
            "statement",
            (
                (str(row.statement_id), row.account_token, unix_ms(row.received_at), unix_ms(row.created_at))
                for row in views.stream(
                    """SELECT f.statement_id, f.account_token, i.received_at, f.created_at
                       FROM funds.ops_statements f LEFT JOIN ingestion.ops_statements i USING (statement_id)"""
                )
            ),
        )
        self._fill(
            "exception",
            (
                (str(row.statement_id), row.line, row.reason)
                for row in views.stream("SELECT statement_id, line, reason FROM funds.ops_exceptions WHERE line IS NOT NULL")
            ),
        )

    # What the bank's statements say.

    def load_lines(self) -> None:
        """Every statement line on the topic, as ingestion read it and before funds judged it."""
        reader = Reader("ingestion.statements.v1")
        models: dict[str, type[EventData]] = {StatementLines.TYPE: StatementLines}
        self._fill(
            "line",
            (
                (
                    str(data.statement_id), line.line, line.mark, line.amount_minor, line.customer_reference,
                    line.fifth_narrative, line.bank_reference, data.account_token,
                )
                for _, data in events_of(reader, models)
                for line in data.lines
            ),
        )  # fmt: skip
        self._read(reader)

    # What the events say.

    def load_events(self) -> None:
        """Every payment fact, block, release and settlement of the envelopes that the topics still have."""
        reader = Reader("funds.payments.v1")
        kinds = {model.TYPE: kind for kind, model in KINDS.items()}
        self._fill(
            "fact",
            (
                (
                    self.numbers[data.header.envelope_id], item.disbursement_id, kinds[data.TYPE], event_id,
                    getattr(data, "instruction", None), item.amount_minor, _text(getattr(data, "statement_id", None)),
                )
                for event_id, data in events_of(reader, {model.TYPE: model for model in KINDS.values()})
                if data.header.envelope_id in self.numbers
                for item in data.items
            ),
        )  # fmt: skip
        self._read(reader)
        reader = Reader("funds.envelopes.v1")
        models = (funds.FundsBlocked, funds.FundsReleased, funds.EnvelopeSettled)
        for event_id, data in events_of(reader, {model.TYPE: model for model in models}):
            number = self.numbers.get(data.header.envelope_id)
            if number is None:
                continue
            if isinstance(data, funds.FundsBlocked):
                self._fill("moved", [(number, "blocked", data.block, event_id, data.amount_minor)])
            elif isinstance(data, funds.FundsReleased):
                self._fill("moved", [(number, "released", data.release_id, event_id, data.amount_minor)])
            else:
                self._fill("settled", [(number, data.revision, event_id, data.position.model_dump_json())])
        self._read(reader)

    def _read(self, reader: Reader) -> None:
        self._older[reader.name] = reader.older
        reader.close()


def events_of(reader: Reader, models: Mapping[str, type[EventData]]) -> Iterator[tuple[str, Any]]:
    for message in reader.until_end():
        try:
            event = event_of(message, dict(models))
        except Malformed:
            continue  # nothing of ours: whoever consumes it has set it aside and says so
        if event is not None:
            yield event.id, event.data


def unix_ms(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp() * 1000)


def _text(value: UUID | None) -> str | None:
    return None if value is None else str(value)
