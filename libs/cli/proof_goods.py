"""Books of goods: declared = allocated + held + cancelled, in every unit, from counters, from rows and from events."""

import sqlite3
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

from libs.cli.context import PAGE_ROWS, Views
from libs.cli.ledger import events_of, unix_ms
from libs.cli.send import Reader
from libs.common.contracts import allocation

TOPIC = "allocation.batches.v1"
WHERE = ("planned", "allocated", "held", "cancelled")
# From ingestion to allocation: who sends, by which topic, who reads.
_WAY = (("ingestion", "ingestion.batches.v1", "resolution"), ("resolution", "resolution.batches.v1", "allocation"))
_SCHEMA = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
CREATE TABLE declared (e TEXT, id TEXT, minor INT, PRIMARY KEY (e, id)) WITHOUT ROWID;
CREATE TABLE entitled (e TEXT, id TEXT, minor INT, state TEXT, batch TEXT);
CREATE TABLE announced (batch TEXT PRIMARY KEY, at INT) WITHOUT ROWID;  -- its first part, in Unix ms
CREATE TABLE said (e TEXT, id TEXT, event TEXT, minor INT, PRIMARY KEY (e, id, event)) WITHOUT ROWID;
BEGIN;
"""


def counters(views: Views, only: Any) -> list[Any]:
    """The goods' envelopes as allocation counts them, beside what was declared and received."""
    return views.rows(
        f"""SELECT i.envelope_id, i.publisher_envelope_id, i.state, i.measurement_unit, i.unit_scale, i.currency, i.declared,
                   i.declared_minor, i.received, i.received_minor, coalesce(a.arrived, 0) AS arrived,
                   coalesce(a.arrived_minor, 0) AS arrived_minor,
                   {", ".join(f"coalesce(a.{name}, 0) AS {name}, coalesce(a.{name}_minor, 0) AS {name}_minor" for name in WHERE)}
            FROM ingestion.ops_envelopes i LEFT JOIN allocation.ops_envelopes a USING (envelope_id)
            WHERE i.benefit_type NOT LIKE 'CASH%%' AND (i.envelope_id = %(only)s OR %(only)s::uuid IS NULL) ORDER BY i.created_at""",
        only=only,
    )


def identities(rows: list[Any]) -> Iterator[str]:
    """What has arrived is planned, allocated, held or cancelled."""
    for row in rows:
        name = f"envelope {row.publisher_envelope_id}"
        for suffix, what in (("", "people"), ("_minor", "minor units")):
            arrived = getattr(row, "arrived" + suffix)
            parts = sum(getattr(row, part + suffix) for part in WHERE)
            if arrived != parts:
                yield f"{name}: {arrived} {what} have arrived, planned + allocated + held + cancelled is {parts}"
            if arrived > getattr(row, "received" + suffix):
                yield f"{name}: {arrived} {what} are at allocation, {getattr(row, 'received' + suffix)} were submitted"


def missing(row: Any) -> bool:
    """Whether all of the envelope has been passed on, and somebody is not at allocation."""
    return row.state in ("COMPLETED", "SETTLED") and row.arrived < row.declared


def on_the_way(views: Views, missing_of: Collection[UUID]) -> set[UUID]:
    """Those of these envelopes of which somebody may still come, at the one moment that the views show: an event is not published or
    not consumed, or somebody's zone is asked for, or allocation is still to look at what it has, or there is an open dead letter."""
    ids = set(missing_of)
    if not ids:
        return ids
    for sender, name, reader in _WAY:
        consumed = {
            row.partition: row.next_offset
            for row in views.rows(
                f"SELECT partition, next_offset FROM {reader}.ops_consumed WHERE topic = %(topic)s", topic=name
            )
        }
        offsets = Reader(name)
        offsets.close()
        unread = any(end > consumed.get(partition, 0) for partition, end in offsets.ends.items())
        if unread or views.one(f"SELECT rows FROM {sender}.ops_outbox").rows:
            return ids  # whose they are can't be seen
    open_letters = " UNION ALL ".join(
        f"SELECT correlation_id FROM {reader}.ops_dead_letters WHERE topic = %(t{n})s AND state IN ('OPEN', 'REDRIVEN')"
        for n, (_, _, reader) in enumerate(_WAY)
    )
    found = views.rows(
        f"""SELECT envelope_id::text AS id FROM resolution.ops_batches WHERE resolved_at IS NULL
            UNION SELECT subject FROM allocation.ops_due WHERE job = 'allocate' UNION {open_letters}""",
        **{f"t{n}": name for n, (_, name, _) in enumerate(_WAY)},
    )
    busy = {row.id for row in found}
    return {one for one in ids if str(one) in busy or None in busy}  # None: of a letter, whose it is can't be read


class Goods:
    """Rows and events side by side on disk, in flat memory."""

    def __init__(self, folder: Path, rows: list[Any]) -> None:
        self._rows = {str(row.envelope_id): row for row in rows}
        self._db = sqlite3.connect(folder / "goods.sqlite", isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.executescript(_SCHEMA)
        self.older = 0  # what could not be compared with events, since the topic does not keep them any more

    def load(self, views: Views) -> None:
        ids = [row.envelope_id for row in self._rows.values()]
        for table, view, state in (
            ("declared", "ingestion.ops_disbursements", ""),
            ("entitled", "allocation.ops_entitlements", ", state, batch_id::text"),
        ):
            found = views.stream(
                f"SELECT envelope_id, disbursement_id, amount_minor{state} FROM {view} WHERE envelope_id = ANY(%(ids)s::uuid[])",
                ids=ids,
            )
            self._fill(table, ((str(row[0]), *row[1:]) for row in found))
        announced = views.stream(
            """SELECT batch_id::text, min(at) FROM allocation.ops_history
               WHERE step = 'allocated' AND envelope_id = ANY(%(ids)s::uuid[]) GROUP BY batch_id""",
            ids=ids,
        )
        self._fill("announced", ((row[0], unix_ms(row[1])) for row in announced))
        reader = Reader(TOPIC)
        self._fill(
            "said",
            (
                (str(data.header.envelope_id), item.disbursement_id, event_id, item.amount_minor)
                for event_id, data in events_of(reader, {allocation.BatchAllocated.TYPE: allocation.BatchAllocated})
                if str(data.header.envelope_id) in self._rows
                for item in data.items
            ),
        )
        self._db.create_function("older", 2, reader.older)
        reader.close()
        self._db.executescript("CREATE INDEX entitled_id ON entitled (e, id); ANALYZE;")

    def close(self) -> None:
        self._db.close()

    def rows_are_counters(self) -> Iterator[str]:
        found = {
            (row["e"], row["state"]): (row["n"], row["minor"])
            for row in self._db.execute("SELECT e, state, count(*) AS n, sum(minor) AS minor FROM entitled GROUP BY e, state")
        }
        for key, row in self._rows.items():
            for part in WHERE:
                counted = (getattr(row, part), getattr(row, f"{part}_minor"))
                if counted != found.get((key, part.upper()), (0, 0)):
                    have = found.get((key, part.upper()), (0, 0))
                    yield f"{self._name(key)}: the counter {part} says {counted[0]} people, {counted[1]}; its rows {have[0]}, {have[1]}"

    def everybody_is_somewhere_once(self, may_come: Collection[UUID]) -> Iterator[str]:
        """`may_come`: envelopes of which somebody is on the way."""
        for row in self._db.execute(
            """SELECT e, id, count(*) AS n FROM entitled GROUP BY e, id HAVING count(*) > 1
               UNION ALL SELECT e, id, 0 FROM entitled x WHERE NOT EXISTS (SELECT 1 FROM declared d WHERE d.e = x.e AND d.id = x.id)"""
        ):
            what = f"is there {row['n']} times" if row["n"] else "was never submitted"
            yield f"{self._name(row['e'])}: entitlement {row['id']} {what}"
        for row in self._db.execute(
            """SELECT d.e, d.id, d.minor, x.minor AS entitled FROM declared d JOIN entitled x ON x.e = d.e AND x.id = d.id
               WHERE d.minor <> x.minor"""
        ):
            yield f"{self._name(row['e'])}: {row['id']} was submitted with {row['minor']}, allocation has {row['entitled']}"
        for row in self._db.execute(
            "SELECT d.e, d.id FROM declared d WHERE NOT EXISTS (SELECT 1 FROM entitled x WHERE x.e = d.e AND x.id = d.id)"
        ):
            envelope = self._rows[row["e"]]
            if envelope.arrived >= envelope.declared or (missing(envelope) and envelope.envelope_id not in may_come):
                yield f"{self._name(row['e'])}: disbursement {row['id']} is nowhere"

    def events_are_rows(self) -> Iterator[str]:
        for row in self._db.execute(
            """SELECT y.*, y.n = 0 AND older(y.batch, a.at) AS older
               FROM (SELECT x.*, count(s.event) AS n, max(s.minor) AS said
                     FROM entitled x LEFT JOIN said s ON s.e = x.e AND s.id = x.id GROUP BY x.e, x.id
                     HAVING n <> (x.state = 'ALLOCATED') OR (n > 0 AND said <> x.minor)) AS y
               LEFT JOIN announced a USING (batch)"""
        ):
            if row["older"]:
                self.older += 1
                continue
            yield f"{self._name(row['e'])}: {row['id']} is {row['state']} with {row['minor']}; {row['n']} events allocate it"
        for row in self._db.execute(
            "SELECT s.e, s.id FROM said s WHERE NOT EXISTS (SELECT 1 FROM entitled x WHERE x.e = s.e AND x.id = s.id)"
        ):
            yield f"{self._name(row['e'])}: an event allocates {row['id']}, which allocation does not have"

    def _name(self, key: str) -> str:
        return f"envelope {self._rows[key].publisher_envelope_id}"

    def _fill(self, table: str, rows: Iterator[tuple[Any, ...]]) -> None:
        while page := list(islice(rows, PAGE_ROWS)):
            marks = ", ".join("?" * len(page[0]))
            self._db.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", page)
