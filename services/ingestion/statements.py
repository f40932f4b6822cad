"""Statements: a file is stored sealed as it came and scanned for its statements; the lines of short ones are read at once,
those of long ones by a job, in runs of a few chunks, so that memory stays flat and a process that dies goes on where it was.
Ids derive from the content."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import SimpleNamespace
from typing import Any, BinaryIO
from uuid import UUID

from libs.common.commands import CommandRefused
from libs.common.contracts import ingestion as c
from libs.common.contracts.base import CHUNK_ITEMS, derived_id, totals
from libs.common.contracts.operator import HandInStatement
from libs.common.contracts.registry import EVENT_BYTES
from libs.common.db import Tx, lock_key
from libs.common.envelope import Cause, Event
from libs.common.jobs import make_due
from libs.common.log import get
from libs.common.outbox import Outbox, Outgoing, outgoing
from libs.common.seal import Sealer
from services.ingestion import store
from services.ingestion.adapters import mt940_file as mt940
from services.ingestion.domain import Fault

READ_STATEMENT = "read-statement"
PIECE_BYTES = 1_000_000
RUN_CHUNKS = 5  # of one transaction
_INSERT_BYTES = 4_000_000
_NARRATIVE_CHARACTERS = 100
_FIFTH_CHARACTERS = 65  # a line of SWIFT's; a thousand of them and of the references still fit into an event
_SEAL_PIECE = "StatementPiece"


# What is told of a statement, and what to do about it.
FLAGS = {
    "SAME_NUMBER": "the account has another one of this year with this number and other content; look which of them is right",
    "NUMBER_GAP": "it does not follow the one before it; send what is missing",
    "BALANCE_GAP": "it does not open with what the one before it closed with; send what is missing",
}

_log = get("statements")


@dataclass(frozen=True)
class Incoming:
    """A file that came; `source` says from whom. `numbered`: the numbers and balances of its statements follow each other."""

    source: str
    file: BinaryIO
    cause: Cause
    numbered: bool = True

    @staticmethod
    def of_text(source: str, text: str, cause: Cause) -> "Incoming":
        return Incoming(source, io.BytesIO(text.encode()), cause)


@dataclass
class File:
    """A file and the statements found in it."""

    incoming: Incoming
    file_id: UUID
    size: int
    heads: list[mt940.Head]
    flags: list[Fault] = field(default_factory=list)

    @property
    def rejected(self) -> list[Fault]:
        """Its statements that can't be used."""
        return [Fault(head.fault[0], "/text", f"{_named(head)}: {head.fault[1]}") for head in self.heads if head.fault][:100]

    @property
    def warnings(self) -> list[Fault]:
        """What whoever sent a file should know of it, where something of it can be used."""
        return [*self.rejected, *self.flags][:100]

    @property
    def faults(self) -> list[Fault]:
        """Why nothing of it can be used; empty where something can."""
        if any(head.fault is None for head in self.heads):
            return []
        text = "no statement in it; send MT940, which begins with :20: and has :25:"
        return self.rejected or [Fault("INVALID_STATEMENT", "/text", text)]


class Statements:
    def __init__(self, sealer: Sealer, outbox: Outbox) -> None:
        self._sealer = sealer
        self._outbox = outbox

    def receive(self, tx: Tx, incoming: Sequence[Incoming], at_once: int = 0) -> list[File]:
        """Store files and announce their statements. What came before changes nothing; a file in which no statement names
        an account is not stored at all. Up to `at_once` chunks are read here instead of by the job."""
        files = [_inspect(one) for one in incoming]
        readable = {f.file_id: f for f in files if any(head.reference is not None and head.account for head in f.heads)}
        if readable:
            added = store.add_files(tx, [(f.file_id, f.incoming.source, f.size) for f in readable.values()])
            new = [readable[file_id] for file_id in readable if file_id in added]
            self._store_pieces(tx, new)
            self._announce(tx, new, at_once)
            self._flag(tx, new)
        return files

    def receive_one(self, tx: Tx, incoming: Incoming) -> File:
        """The same for one file, whose short statements are read at once: nobody waits for the job then, and nothing is
        opened again that was only just sealed."""
        return self.receive(tx, [incoming], RUN_CHUNKS)[0]

    def handed_in(self, tx: Tx, event: Event[HandInStatement]) -> int:
        """An operator's word on a file that came through the door; how many new statements were in it."""
        found = store.statements_of(tx, event.data.file_id)
        if found is None:
            raise CommandRefused(f"no file {event.data.file_id} is stored: hand it in again")
        return found

    def _store_pieces(self, tx: Tx, files: Sequence[File]) -> None:
        pieces: list[tuple[UUID, int, bytes]] = []
        size = 0
        for file in files:
            for number, piece in enumerate(_pieces(file.incoming.file)):
                pieces.append((file.file_id, number, self._sealer.seal_bytes(piece, _SEAL_PIECE, file.file_id, number)))
                size += len(piece)
                if size >= _INSERT_BYTES:
                    store.add_pieces(tx, pieces)
                    pieces, size = [], 0
        if pieces:
            store.add_pieces(tx, pieces)

    def _announce(self, tx: Tx, files: Sequence[File], at_once: int) -> None:
        rows = {row["statement_id"]: (row, file.incoming) for file in files for row in self._rows(file)}
        added = store.add_statements(tx, [row for row, _ in rows.values()])
        opened = [(row, one) for row, one in rows.values() if row["statement_id"] in added and row["state"] != "REJECTED"]
        out = [_opened(row, one.cause) for row, one in opened]
        to_read: list[tuple[UUID, Cause]] = []
        for row, one in opened:
            if 0 < row["chunks"] <= at_once:  # without a lock, since before the commit nobody else sees it
                at_once -= row["chunks"]
                statement = SimpleNamespace(**row, chunks_read=0)
                lines = self._read(tx, statement, _pieces(one.file, statement.next_byte), one.cause)
                out += lines
                if len(lines) == statement.chunks:
                    continue
            if row["chunks"]:
                to_read.append((row["statement_id"], one.cause))
        self._outbox.append(tx, out)
        if to_read:
            ids = [statement_id for statement_id, _ in to_read]
            make_due(tx, READ_STATEMENT, list(map(str, ids)), [lock_key("ingestion", i) for i in ids], to_read[-1][1])

    def _flag(self, tx: Tx, files: Sequence[File]) -> None:
        """Say what is strange about new statements beside those that are there. Nothing waits for anybody to look at it."""
        flags = store.statement_flags(tx, [file.file_id for file in files])
        by_id = {file.file_id: file for file in files}
        for row in flags:
            _log.info("strange statement", statement_id=str(row.statement_id), flags=row.flags)
            name = f"statement {row.number}/{row.sequence}"
            by_id[row.file_id].flags += [Fault(flag, "/text", f"{name}: {FLAGS[flag]}") for flag in row.flags]

    def _rows(self, file: File) -> Iterator[dict[str, Any]]:
        """The columns of each statement of a file."""
        for head in file.heads:
            token = self._sealer.token(head.account) if head.account else ""
            chunks = -(-head.lines // CHUNK_ITEMS)
            yield {
                "statement_id": derived_id("statement", token, head.digest),
                "file_id": file.file_id,
                "account_token": token,
                "reference": head.reference or "",
                "number": head.number,
                "sequence": head.sequence,
                "currency": head.currency,
                "closing_date": head.closing_date,
                "opening_minor": head.opening_minor,
                "closing_minor": head.closing_minor,
                "lines": head.lines,
                "chunks": chunks,
                "next_byte": head.start,
                "end_byte": head.end,
                "state": "REJECTED" if head.fault else "READING" if chunks else "READ",
                "reason": ": ".join(head.fault) if head.fault else "",
                "numbered": file.incoming.numbered,
            }

    def read(self, tx: Tx, subject: str, cause: Cause) -> None:
        """Job `read-statement`: a few chunks of lines, then ask again."""
        statement = store.statement(tx, UUID(subject))
        if statement.state != "READING":
            return
        out = self._read(tx, statement, self._from(tx, statement), cause)
        self._outbox.append(tx, out)
        if statement.chunks_read + len(out) < statement.chunks:
            make_due(tx, READ_STATEMENT, [subject], [lock_key("ingestion", statement.statement_id)], cause)

    def _read(self, tx: Tx, statement: Any, pieces: Iterator[bytes], cause: Cause) -> list[Outgoing]:
        """The next chunks of lines. `pieces` of the file begin at `next_byte`. A line that can't be read is told, never fatal."""
        entries = mt940.entries(pieces, statement.next_byte, statement.end_byte)
        chunk = statement.chunks_read
        unparsable = 0
        out: list[Outgoing] = []
        following: mt940.Entry | None = next(entries, None)
        while following is not None and len(out) < RUN_CHUNKS:
            batch = [following, *islice(entries, CHUNK_ITEMS - 1)]
            following = next(entries, None)
            event = self._lines(statement, chunk + 1, batch)
            unparsable += len(event.unparsable)
            out.append(outgoing(event, statement.account_token, cause, statement.statement_id, chunk + 1))
            chunk += 1
        next_byte = following.start if following is not None else statement.end_byte
        store.save_reading(tx, statement.statement_id, chunk, unparsable, next_byte)
        return out

    def _from(self, tx: Tx, statement: Any) -> Iterator[bytes]:
        """The file from `next_byte` on."""
        number, skipped = divmod(statement.next_byte, PIECE_BYTES)
        while (sealed := store.piece(tx, statement.file_id, number)) is not None:
            yield self._sealer.open_bytes(sealed, _SEAL_PIECE, statement.file_id, number)[skipped:]
            number, skipped = number + 1, 0

    def _lines(self, statement: Any, chunk: int, entries: Sequence[mt940.Entry]) -> c.StatementLines:
        lines: list[tuple[Any, ...]] = []
        unparsable: list[dict[str, Any]] = []
        told: list[list[str]] = []  # the narratives of each
        texts: list[list[str] | None] = []  # of what can't be read
        first = (chunk - 1) * CHUNK_ITEMS + 1
        clean = mt940.are_clean([text for entry in entries for text in entry.narratives], _NARRATIVE_CHARACTERS)
        for number, entry in enumerate(entries, first):
            narratives = entry.narratives
            if not clean:
                narratives = [mt940.clean(text, _NARRATIVE_CHARACTERS) for text in narratives]
            while narratives and not narratives[-1]:
                narratives.pop()
            told.append(narratives)
            texts.append(None)
            try:
                parsed = mt940.parse(entry, statement.currency)
            except mt940.Unreadable as error:
                unparsable.append({"line": number, "reason": str(error)})
                texts[-1] = [mt940.clean(text, _NARRATIVE_CHARACTERS) for text in entry.fields]
                continue
            lines.append((number, *parsed, narratives[4][:_FIFTH_CHARACTERS] if len(narratives) > 4 else ""))
        personal: dict[str, list[Any]] = {"line": list(range(first, first + len(told))), "narratives": told, "text": texts}
        return self._event(statement, chunk, lines, unparsable, personal)

    def _event(
        self,
        statement: Any,
        chunk: int,
        rows: list[tuple[Any, ...]],
        unparsable: list[dict[str, Any]],
        personal: dict[str, list[Any]],
    ) -> c.StatementLines:
        place = ("StatementLines", statement.statement_id, chunk)
        sealed = self._sealer.seal(personal, *place)
        if len(sealed.data) > EVENT_BYTES // 4:  # no bank writes so much; what matches payments is in the lines themselves
            sealed = self._sealer.seal({"line": [], "narratives": [], "text": []}, *place)
        lines = c.Lines.of(rows)
        return c.StatementLines.model_validate(
            {
                "statement_id": statement.statement_id,
                "account_token": statement.account_token,
                "currency": statement.currency,
                "chunk": chunk,
                "lines": lines,
                "unparsable": unparsable,
                **totals(lines.amount_minor),
                "sealed": sealed,
            }
        )


def _named(head: mt940.Head) -> str:
    return f"statement {head.number}/{head.sequence}" if head.number else "a statement without number"


def _inspect(incoming: Incoming) -> File:
    """One pass over the file: its id and its statements. The id derives from the content alone."""
    digest = hashlib.blake2b(digest_size=16)
    size = 0

    def pieces() -> Iterator[bytes]:
        nonlocal size
        for piece in _pieces(incoming.file):
            digest.update(piece)
            size += len(piece)
            yield piece

    heads = mt940.scan(pieces())
    return File(incoming, derived_id("statement-file", digest.hexdigest()), size, heads)


def _pieces(file: BinaryIO, start: int = 0) -> Iterator[bytes]:
    file.seek(start)
    while piece := file.read(PIECE_BYTES):
        yield piece


def _opened(row: dict[str, Any], cause: Cause) -> Outgoing:
    names = "statement_id account_token reference number sequence currency opening_minor closing_minor lines chunks".split()
    event = c.StatementOpened.model_validate({name: row[name] for name in names})
    return outgoing(event, row["account_token"], cause, row["statement_id"])
