"""Every statement on ingestion's tables. Each takes a set; none is run in a loop over rows."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from pydantic_core import from_json, to_json

from libs.common.contracts.base import EnvelopeHeader
from libs.common.db import Tx
from services.ingestion.domain import Row, State

# --- Submissions ------------------------------------------------------------------------------------------------------


class Recorded(NamedTuple):
    """A submission as it is first seen; `outcome` and `answer` (JSON) where it is decided at once."""

    source: str
    id: str
    digest: bytes
    type: str
    envelope_id: UUID | None
    publisher_envelope_id: str | None
    outcome: str | None
    answer: str | None
    received_at: datetime


class Decided(NamedTuple):
    source: str
    id: str
    outcome: str
    answer: str  # JSON


def record(tx: Tx, submissions: Sequence[Recorded]) -> set[tuple[str, str]]:
    """Insert submissions; returns the (source, id) of those never seen before."""
    if not submissions:
        return set()
    columns = list(zip(*sorted(submissions, key=lambda s: (s.source, s.id)), strict=True))  # no two replicas cross
    rows = tx.rows(
        """INSERT INTO submissions (source, id, digest, type, envelope_id, publisher_envelope_id, outcome, answer, received_at,
                                    answered_at)
           SELECT *, CASE WHEN outcome IS NOT NULL THEN clock_timestamp() END
           FROM unnest(%(sources)s::text[], %(ids)s::text[], %(digests)s::bytea[], %(types)s::text[], %(envelopes)s::uuid[],
                       %(publisher_ids)s::text[], %(outcomes)s::text[], %(answers)s::text[], %(received)s::timestamptz[])
                AS new (source, id, digest, type, envelope_id, publisher_envelope_id, outcome, answer, received_at)
           ON CONFLICT DO NOTHING RETURNING source, id""",
        **dict(
            zip(
                ("sources", "ids", "digests", "types", "envelopes", "publisher_ids", "outcomes", "answers", "received"),
                map(list, columns),
                strict=True,
            )
        ),
    )
    return {(row.source, row.id) for row in rows}


def decide(tx: Tx, decided: Sequence[Decided]) -> None:
    """Write what was decided on submissions, so that it can be said again."""
    if decided:
        tx.run(
            """UPDATE submissions s SET outcome = d.outcome, answer = d.answer, answered_at = clock_timestamp()
               FROM unnest(%(sources)s::text[], %(ids)s::text[], %(outcomes)s::text[], %(answers)s::text[])
                    AS d (source, id, outcome, answer)
               WHERE s.source = d.source AND s.id = d.id""",
            sources=[d.source for d in decided],
            ids=[d.id for d in decided],
            outcomes=[d.outcome for d in decided],
            answers=[d.answer for d in decided],
        )


def forget(tx: Tx, keys: Collection[tuple[str, str]]) -> None:
    """Remove submissions that were recorded in this transaction, as if they had never come."""
    if keys:
        tx.run(
            """DELETE FROM submissions s USING unnest(%(sources)s::text[], %(ids)s::text[]) AS gone (source, id)
               WHERE s.source = gone.source AND s.id = gone.id""",
            sources=[source for source, _ in keys],
            ids=[event_id for _, event_id in keys],
        )


def seen(tx: Tx, keys: Collection[tuple[str, str]]) -> dict[tuple[str, str], Any]:
    """What is recorded of these (source, id)."""
    rows = tx.rows(
        """SELECT source, id, digest, envelope_id, publisher_envelope_id, outcome, answer
           FROM submissions JOIN unnest(%(sources)s::text[], %(ids)s::text[]) AS asked (source, id) USING (source, id)""",
        sources=[source for source, _ in keys],
        ids=[event_id for _, event_id in keys],
    )
    return {(row.source, row.id): row for row in rows}


# --- Envelopes --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Envelope:
    id: UUID
    number: int
    header: EnvelopeHeader
    digest: bytes
    beneficiaries: int
    declared: int
    declared_minor: int
    received: int
    received_minor: int
    batches: int
    open: int
    lingered: bool  # the open batch has waited long enough
    state: State
    funds: str
    progress: dict[str, int] | None
    settlement: dict[str, int] | None
    allocation: dict[str, int] | None


_ENVELOPE = """SELECT envelope_id, number, header, digest, beneficiaries, declared, declared_minor, received, received_minor,
                      batches, open,
                      coalesce(open_since + make_interval(secs => %(linger)s) <= clock_timestamp(), false) AS lingered,
                      state, funds, progress, settlement, allocation FROM envelopes WHERE envelope_id = ANY(%(ids)s::uuid[])"""


def envelopes(tx: Tx, ids: Iterable[UUID], linger_seconds: float = 0) -> dict[UUID, Envelope]:
    """Those of the envelopes that are known."""
    rows = tx.rows(_ENVELOPE, ids=list(ids), linger=linger_seconds)
    return {
        row.envelope_id: Envelope(
            row.envelope_id, row.number, EnvelopeHeader.model_validate(row.header), bytes(row.digest), *tuple(row)[4:]
        )
        for row in rows
    }


def add_envelopes(tx: Tx, new: Sequence[tuple[EnvelopeHeader, bytes, int, int, int]]) -> set[UUID]:
    """Insert (header, digest, beneficiaries, declared, declared_minor); returns the ids of those that were not there."""
    if not new:
        return set()
    rows = tx.rows(
        """INSERT INTO envelopes (envelope_id, source, publisher_envelope_id, header, digest, beneficiaries, declared,
                                  declared_minor)
           SELECT * FROM unnest(%(ids)s::uuid[], %(sources)s::text[], %(publisher_ids)s::text[], %(headers)s::jsonb[],
                                %(digests)s::bytea[], %(beneficiaries)s::int[], %(declared)s::int[], %(declared_minor)s::bigint[])
           ON CONFLICT DO NOTHING RETURNING envelope_id""",
        ids=[header.envelope_id for header, *_ in new],
        sources=[header.source for header, *_ in new],
        publisher_ids=[header.publisher_envelope_id for header, *_ in new],
        headers=[header.model_dump_json() for header, *_ in new],
        digests=[digest for _, digest, *_ in new],
        beneficiaries=[people for *_, people, _, _ in new],
        declared=[declared for *_, declared, _ in new],
        declared_minor=[minor for *_, minor in new],
    )
    return {row.envelope_id for row in rows}


def save_envelope(tx: Tx, envelope: Envelope, *, opened: bool) -> None:
    """Write back what a decision under the exclusive lock changed. `opened`: the open batch began with this decision."""
    tx.run(
        """UPDATE envelopes SET received = %(received)s, received_minor = %(received_minor)s, batches = %(batches)s,
                  open = %(open)s, state = %(state)s, updated_at = clock_timestamp(),
                  open_since = CASE WHEN %(open)s = 0 THEN NULL WHEN %(opened)s THEN clock_timestamp() ELSE open_since END,
                  completed_at = CASE WHEN %(state)s = 'COMPLETED' THEN coalesce(completed_at, clock_timestamp())
                                      ELSE completed_at END,
                  cancelling_at = CASE WHEN %(state)s = 'CANCELLING' THEN coalesce(cancelling_at, clock_timestamp())
                                       ELSE cancelling_at END
           WHERE envelope_id = %(id)s""",
        id=envelope.id,
        received=envelope.received,
        received_minor=envelope.received_minor,
        batches=envelope.batches,
        open=envelope.open,
        opened=opened,
        state=envelope.state,
    )


def amend_envelope(tx: Tx, envelope: Envelope) -> None:
    """Write what is declared of an envelope from here on. Under its exclusive lock, before what else changes: the table holds that
    no more is received than is declared."""
    tx.run(
        """UPDATE envelopes SET header = %(header)s::jsonb, beneficiaries = %(beneficiaries)s, declared = %(declared)s,
                  declared_minor = %(declared_minor)s, updated_at = clock_timestamp() WHERE envelope_id = %(id)s""",
        id=envelope.id,
        header=envelope.header.model_dump_json(),
        beneficiaries=envelope.beneficiaries,
        declared=envelope.declared,
        declared_minor=envelope.declared_minor,
    )


def reschedule(tx: Tx, headers: Sequence[EnvelopeHeader]) -> None:
    """The date that funds has accepted, with its revision. Guard: what comes late does not undo a later one."""
    tx.run(
        """UPDATE envelopes e SET header = jsonb_set(e.header, '{schedule_date}', to_jsonb(n.day)), dated = n.revision,
                  updated_at = clock_timestamp()
           FROM unnest(%(ids)s::uuid[], %(revisions)s::int[], %(days)s::text[]) AS n (envelope_id, revision, day)
           WHERE e.envelope_id = n.envelope_id AND e.dated < n.revision""",
        ids=[header.envelope_id for header in headers],
        revisions=[header.revision for header in headers],
        days=[header.schedule_date.isoformat() for header in headers],
    )


def set_funds(tx: Tx, funds: Mapping[UUID, str]) -> None:
    """Where an envelope's money stands. A block is not undone by an older check that comes late."""
    tx.run(
        """UPDATE envelopes e SET funds = n.funds, updated_at = clock_timestamp()
           FROM unnest(%(ids)s::uuid[], %(funds)s::text[]) AS n (envelope_id, funds)
           WHERE e.envelope_id = n.envelope_id AND e.funds <> 'BLOCKED'""",
        ids=list(funds),
        funds=list(funds.values()),
    )


def end_envelopes(tx: Tx, ids: Collection[UUID], state: State) -> None:
    """CANCELLED or SETTLED, as funds, or for goods allocation, decided. What is cancelled stays so."""
    tx.run(
        """UPDATE envelopes SET state = %(state)s, updated_at = clock_timestamp()
           WHERE envelope_id = ANY(%(ids)s::uuid[])
             AND (%(state)s = 'CANCELLED' AND state = 'CANCELLING' OR %(state)s = 'SETTLED' AND state = 'COMPLETED')""",
        ids=list(ids),
        state=state,
    )


def settle_envelopes(tx: Tx, settlements: Mapping[UUID, Mapping[str, int]]) -> None:
    """SETTLED, and what became of the money."""
    end_envelopes(tx, settlements.keys(), "SETTLED")
    _keep_last(tx, "settlement", settlements)


def keep_progress(tx: Tx, progress: Mapping[UUID, Mapping[str, int]]) -> None:
    _keep_last(tx, "progress", progress)


def allocate_envelopes(tx: Tx, allocations: Mapping[UUID, Mapping[str, int]]) -> None:
    """What became of the goods; SETTLED once nobody is held."""
    end_envelopes(tx, [envelope_id for envelope_id, last in allocations.items() if not last["held"]], "SETTLED")
    _keep_last(tx, "allocation", allocations)


def _keep_last(tx: Tx, column: str, words: Mapping[UUID, Mapping[str, int]]) -> None:
    """Of several words on an envelope the highest revision counts, whichever comes last."""
    tx.run(
        f"""UPDATE envelopes e SET {column} = n.word, updated_at = clock_timestamp()
            FROM unnest(%(ids)s::uuid[], %(words)s::jsonb[]) AS n (envelope_id, word)
            WHERE e.envelope_id = n.envelope_id
              AND (e.{column} IS NULL OR (e.{column}->>'revision')::int < (n.word->>'revision')::int)""",
        ids=list(words),
        words=[to_json(word).decode() for word in words.values()],
    )


# --- Staged -----------------------------------------------------------------------------------------------------------


class Staged(NamedTuple):
    envelope_id: UUID
    kind: str
    items: int
    parked: bool
    sealed: bytes


def stage(tx: Tx, staged: Sequence[Staged]) -> None:
    tx.copy("staged", Staged._fields, staged)


def take_staged(tx: Tx, envelope_id: UUID, items: int) -> tuple[Sequence[Any], bool]:
    """Remove what is staged for an envelope, in its order, up to about so many items; and whether there may be more.

    Under the exclusive lock, so that ids are in the order in which folds were committed."""
    rows = tx.rows(
        """DELETE FROM staged WHERE id IN (
               SELECT id FROM (SELECT id, sum(items) OVER (ORDER BY id) - items AS before
                               FROM (SELECT id, items FROM staged WHERE envelope_id = %(id)s ORDER BY id LIMIT 200) AS head)
                    AS summed WHERE before < %(items)s)
           RETURNING id, kind, items, sealed""",
        id=envelope_id,
        items=items,
    )
    taken = sorted(rows, key=lambda row: row.id)
    return taken, len(taken) == 200 or sum(row.items for row in taken) >= items


def parked_before(tx: Tx, moment: datetime, ttl_seconds: float) -> list[UUID]:
    """Envelopes that never came, of what was parked longer than the limit as of this moment."""
    rows = tx.rows(
        """SELECT DISTINCT envelope_id FROM staged s
           WHERE parked AND created_at < %(moment)s - make_interval(secs => %(ttl)s)
             AND NOT EXISTS (SELECT 1 FROM envelopes e WHERE e.envelope_id = s.envelope_id)""",
        moment=moment,
        ttl=ttl_seconds,
    )
    return [row.envelope_id for row in rows]


def take_parked(tx: Tx, envelope_id: UUID, ttl_seconds: float) -> Sequence[Any]:
    """Remove what was parked too long for an envelope that is still unknown; at most 200 rows. Under the exclusive lock."""
    return tx.rows(
        """DELETE FROM staged WHERE id IN (
               SELECT id FROM staged WHERE envelope_id = %(id)s AND parked
                  AND created_at < clock_timestamp() - make_interval(secs => %(ttl)s) ORDER BY id LIMIT 200)
             AND NOT EXISTS (SELECT 1 FROM envelopes WHERE envelope_id = %(id)s)
           RETURNING id, kind, items, sealed""",
        id=envelope_id,
        ttl=ttl_seconds,
    )


# --- Disbursements and batches ----------------------------------------------------------------------------------------


def known(tx: Tx, envelope: int, ids: Sequence[str], people: Sequence[str]) -> tuple[set[str], set[str]]:
    """Which of these ids, and which of these beneficiaries, the envelope has."""
    # Statistics know the envelopes before this one and believe it to be empty: whatever could be scanned for its rows would be, for
    # each few thousand keys again. So each key is looked up by itself (OFFSET and LIMIT keep it so), by an index of its own: but
    # for the primary key none begins with the envelope.
    tx.run("SET LOCAL enable_seqscan = off")
    rows = tx.rows(
        """SELECT true AS id, u.id AS found FROM unnest(string_to_array(%(ids)s, E'\\n')) AS u (id)
           CROSS JOIN LATERAL (
               SELECT 1 FROM disbursements d WHERE d.envelope = %(envelope)s AND d.disbursement_id = u.id OFFSET 0) AS d
           UNION ALL
           SELECT false, u.person FROM unnest(string_to_array(%(people)s, E'\\n')) AS u (person)
           CROSS JOIN LATERAL (
               SELECT 1 FROM disbursements d
               WHERE d.envelope::text || '/' || d.beneficiary_id = %(envelope)s::bigint::text || '/' || u.person LIMIT 1) AS d""",
        envelope=envelope,
        ids="\n".join(ids),  # thousands: as one text they are read ten times faster than as an array of literals
        people="\n".join(people),
    )
    return {row.found for row in rows if row.id}, {row.found for row in rows if not row.id}


def people(tx: Tx, envelope: int, more: Sequence[str]) -> int:
    """How many different people the envelope has, with those of `more`. Reads all of it: for the rare amendment only."""
    return int(
        tx.one(
            """SELECT count(*) AS n FROM (
                   SELECT beneficiary_id FROM disbursements WHERE envelope = %(envelope)s UNION SELECT unnest(%(more)s::text[])) AS p""",
            envelope=envelope,
            more=list(more),
        ).n
    )


def add_disbursements(tx: Tx, envelope: int, rows: Sequence[Row], batch: int, position: int) -> None:
    """COPY rows in their order; the first gets this batch and position (from 0), batches have 1,000."""
    start = batch * 1000 + position
    places = range(start, start + len(rows))
    tx.copy_columns(
        "disbursements",
        {
            "envelope": [envelope] * len(rows),
            "disbursement_id": [row[0] for row in rows],
            "beneficiary_id": [row[1] for row in rows],
            "amount_minor": [row[2] for row in rows],
            "batch": [place // 1000 for place in places],
            "position": [place % 1000 + 1 for place in places],
        },
    )


def batches_of(tx: Tx, envelope: int, ids: Sequence[str]) -> dict[str, int]:
    """The batch number of those of the ids that the envelope has; the batch may not be cut yet."""
    rows = tx.rows(
        """SELECT disbursement_id, batch FROM disbursements
           WHERE envelope = %(envelope)s AND disbursement_id = ANY(%(ids)s::text[])""",
        envelope=envelope,
        ids=ids,
    )
    return {row.disbursement_id: row.batch for row in rows}


def keep_uncut(tx: Tx, envelope: int, sealed: bytes) -> None:
    tx.run("INSERT INTO uncut (envelope, sealed) VALUES (%(envelope)s, %(sealed)s)", envelope=envelope, sealed=sealed)


def take_uncut(tx: Tx, envelope: int) -> list[bytes]:
    rows = tx.rows("DELETE FROM uncut WHERE envelope = %(envelope)s RETURNING id, sealed", envelope=envelope)
    return [bytes(row.sealed) for row in sorted(rows, key=lambda row: row.id)]


def add_batches(tx: Tx, envelope: int, batches: Sequence[tuple[int, UUID, int, int]]) -> None:
    """Insert (number, batch id, count, total_minor)."""
    tx.run(
        """INSERT INTO batches (envelope, number, batch_id, count, total_minor)
           SELECT %(envelope)s, * FROM unnest(%(numbers)s::int[], %(ids)s::uuid[], %(counts)s::int[], %(totals)s::bigint[])""",
        envelope=envelope,
        numbers=[batch[0] for batch in batches],
        ids=[batch[1] for batch in batches],
        counts=[batch[2] for batch in batches],
        totals=[batch[3] for batch in batches],
    )


# --- Statements -------------------------------------------------------------------------------------------------------


def add_files(tx: Tx, files: Sequence[tuple[UUID, str, int]]) -> set[UUID]:
    """Insert (file id, source, bytes); returns those that were not there."""
    rows = tx.rows(
        """INSERT INTO statement_files (file_id, source, bytes)
           SELECT * FROM unnest(%(ids)s::uuid[], %(sources)s::text[], %(bytes)s::bigint[])
           ON CONFLICT DO NOTHING RETURNING file_id""",
        ids=[file[0] for file in files],
        sources=[file[1] for file in files],
        bytes=[file[2] for file in files],
    )
    return {row.file_id for row in rows}


def statements_of(tx: Tx, file_id: UUID) -> int | None:
    """How many statements a file was the first to bring, if it is stored."""
    row = tx.one(
        """SELECT (SELECT count(*) FROM statements WHERE file_id = %(id)s) AS n,
                  EXISTS (SELECT 1 FROM statement_files WHERE file_id = %(id)s) AS stored""",
        id=file_id,
    )
    return int(row.n) if row.stored else None


def add_pieces(tx: Tx, pieces: Sequence[tuple[UUID, int, bytes]]) -> None:
    """Insert (file id, number, sealed bytes)."""
    tx.copy("statement_pieces", ("file_id", "piece", "sealed"), pieces)


def piece(tx: Tx, file_id: UUID, number: int) -> bytes | None:
    rows = tx.rows("SELECT sealed FROM statement_pieces WHERE file_id = %(id)s AND piece = %(piece)s", id=file_id, piece=number)
    return bytes(rows[0].sealed) if rows else None


_STATEMENT_COLUMNS = (
    "statement_id file_id account_token reference number sequence currency closing_date opening_minor closing_minor lines chunks "
    "next_byte end_byte state reason numbered"
).split()


def add_statements(tx: Tx, statements: Sequence[Mapping[str, Any]]) -> set[UUID]:
    """Insert statements (mappings of the columns); returns those that were not there."""
    if not statements:
        return set()
    rows = tx.rows(
        f"""INSERT INTO statements ({", ".join(_STATEMENT_COLUMNS)}, read_at)
            SELECT {", ".join(_STATEMENT_COLUMNS)}, CASE WHEN state = 'READ' THEN clock_timestamp() END
            FROM jsonb_populate_recordset(NULL::statements, %(rows)s::jsonb)
            ON CONFLICT DO NOTHING RETURNING statement_id""",
        rows=to_json(list(statements)).decode(),
    )
    return {row.statement_id for row in rows}


def statement_flags(tx: Tx, file_ids: Sequence[UUID]) -> Sequence[Any]:
    """The statements of these files which are strange beside the others of their accounts."""
    return tx.rows(
        """SELECT s.file_id, s.statement_id, s.number, s.sequence, f.flags FROM statements s JOIN statement_flags f USING (statement_id)
           WHERE s.file_id = ANY(%(ids)s::uuid[]) AND cardinality(f.flags) > 0 ORDER BY s.next_byte""",
        ids=list(file_ids),
    )


def statement(tx: Tx, statement_id: UUID) -> Any:
    return tx.one("SELECT * FROM statements WHERE statement_id = %(id)s", id=statement_id)


def save_reading(tx: Tx, statement_id: UUID, chunks_read: int, unparsable: int, next_byte: int) -> None:
    """How far a statement has been read; `unparsable` are new ones. Under its exclusive lock."""
    tx.run(
        """UPDATE statements SET chunks_read = %(read)s, unparsable = unparsable + %(unparsable)s, next_byte = %(next_byte)s,
                  state = CASE WHEN chunks = %(read)s THEN 'READ' ELSE state END,
                  read_at = CASE WHEN chunks = %(read)s THEN clock_timestamp() END
           WHERE statement_id = %(id)s""",
        id=statement_id,
        read=chunks_read,
        unparsable=unparsable,
        next_byte=next_byte,
    )


def answer_json(answer: Mapping[str, Any]) -> str:
    return to_json(answer).decode()


def answer_fields(answer: str) -> dict[str, Any]:
    fields: dict[str, Any] = from_json(answer)
    return fields
