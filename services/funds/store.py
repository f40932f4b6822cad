"""Every SQL statement of funds' folds, one function each; sets in, sets out."""

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from libs.common.clock import known_time_zone
from libs.common.contracts.base import BatchHeader, EnvelopeHeader, Items
from libs.common.contracts.ingestion import EnvelopeRescheduling
from libs.common.db import Tx, lock_key
from libs.common.errors import Malformed
from services.funds.domain import Line, Named


def ensure_envelopes(tx: Tx, headers: Iterable[EnvelopeHeader]) -> None:
    """Whoever comes first creates the envelope's row; in key order, so that two who come at once don't wait crosswise.

    Raises Malformed for a time zone which the database would not know: its day would never come, for nobody."""
    known = {header.envelope_id: header for header in headers}
    for header in known.values():
        if not known_time_zone(header.time_zone):
            raise Malformed("UNKNOWN_TIME_ZONE", f"{header.time_zone!r} is not in the IANA data base", "/header/time_zone")
    ordered = [known[key] for key in sorted(known)]
    tx.run(
        """INSERT INTO envelopes (envelope_id, lock_key, header, source, publisher_envelope_id, programme, currency,
                                  schedule_date, time_zone)
           SELECT * FROM unnest(%(ids)s::uuid[], %(keys)s::bigint[], %(headers)s::text[], %(sources)s::text[],
                                %(publishers)s::text[], %(programmes)s::text[], %(currencies)s::text[], %(dates)s::date[],
                                %(zones)s::text[])
           ON CONFLICT (envelope_id) DO NOTHING""",
        ids=[header.envelope_id for header in ordered],
        keys=[lock_key("funds", header.envelope_id) for header in ordered],
        headers=[envelope_header(header).model_dump_json() for header in ordered],
        sources=[header.source for header in ordered],
        publishers=[header.publisher_envelope_id for header in ordered],
        programmes=[header.programme.mnemonic or header.programme.id for header in ordered],
        currencies=[header.currency for header in ordered],
        dates=[header.schedule_date for header in ordered],
        zones=[header.time_zone for header in ordered],
    )


def envelope_header(header: EnvelopeHeader) -> EnvelopeHeader:
    """The envelope's part of any header."""
    return EnvelopeHeader.model_validate(header.model_dump())


def complete_envelopes(tx: Tx, rows: Sequence[tuple[EnvelopeHeader, int, int, int]]) -> None:
    """(header, batches, count, total). Guard: only the first time; what is frozen stays. Whoever came first may have brought an
    older revision of the header; this one, with its date, is the last: nothing is checked or paid before it."""
    tx.run(
        """UPDATE envelopes e SET completed_batches = c.batches, completed_count = c.count, completed_minor = c.total,
                  completed_at = clock_timestamp(), header = c.header, schedule_date = c.date
           FROM unnest(%(ids)s::uuid[], %(batches)s::int[], %(counts)s::bigint[], %(totals)s::bigint[], %(headers)s::text[],
                       %(dates)s::date[]) AS c (envelope_id, batches, count, total, header, date)
           WHERE e.envelope_id = c.envelope_id AND e.completed_minor IS NULL""",
        ids=[row[0].envelope_id for row in rows],
        batches=[row[1] for row in rows],
        counts=[row[2] for row in rows],
        totals=[row[3] for row in rows],
        headers=[envelope_header(row[0]).model_dump_json() for row in rows],
        dates=[row[0].schedule_date for row in rows],
    )


def ask_cancellation(
    tx: Tx, envelope_id: UUID, request_id: str, batches: int | None, ids: Sequence[tuple[str, UUID | None]]
) -> None:
    """A request and its tombstones. The decision is the job's, under the exclusive lock."""
    tx.run(
        """INSERT INTO cancel_requests (envelope_id, request_id, whole, batches, disbursement_ids)
           VALUES (%(envelope)s, %(request)s, %(whole)s, %(batches)s, %(ids)s::text[])
           ON CONFLICT (envelope_id, request_id) DO NOTHING""",
        envelope=envelope_id,
        request=request_id,
        whole=batches is not None,
        batches=batches,
        ids=[disbursement_id for disbursement_id, _ in ids],
    )
    if batches is not None:
        tx.run("UPDATE envelopes SET cancelling = true WHERE envelope_id = %(envelope)s", envelope=envelope_id)
    else:
        tx.run(
            """INSERT INTO tombstones (envelope_id, disbursement_id, batch_id, request_id)
               SELECT %(envelope)s, id, batch_id, %(request)s FROM unnest(%(ids)s::text[], %(batches)s::uuid[]) AS t (id, batch_id)
               ON CONFLICT (envelope_id, disbursement_id) DO NOTHING""",
            envelope=envelope_id,
            request=request_id,
            ids=[disbursement_id for disbursement_id, _ in ids],
            batches=[batch_id for _, batch_id in ids],
        )


def ask_reschedules(tx: Tx, requests: Sequence[EnvelopeRescheduling]) -> None:
    """Other dates that are asked for. The decision is the job's, under the exclusive lock."""
    tx.run(
        """INSERT INTO reschedules (envelope_id, request_id, revision, schedule_date, reason)
           SELECT * FROM unnest(%(envelopes)s::uuid[], %(requests)s::text[], %(revisions)s::int[], %(days)s::date[],
                                %(reasons)s::text[])
           ON CONFLICT DO NOTHING""",
        envelopes=[one.header.envelope_id for one in requests],
        requests=[one.request_id for one in requests],
        revisions=[one.header.revision for one in requests],
        days=[one.schedule_date for one in requests],
        reasons=[one.reason for one in requests],
    )


# --- Intake of a batch ------------------------------------------------------------------------------------------------


def take_parts(tx: Tx, parts: Sequence[tuple[UUID, int]]) -> set[tuple[UUID, int]]:
    """Record parts; returns those never seen before, whatever the id of the event that brought them."""
    rows = tx.rows(
        """INSERT INTO parts (batch_id, part) SELECT * FROM unnest(%(batches)s::uuid[], %(parts)s::int[])
           ON CONFLICT DO NOTHING RETURNING batch_id, part""",
        batches=[batch_id for batch_id, _ in parts],
        parts=[part for _, part in parts],
    )
    return {(row.batch_id, row.part) for row in rows}


def intake_context(tx: Tx, envelope_ids: Sequence[UUID]) -> dict[UUID, Any]:
    """What an arriving batch must know of its envelope. Read after the shared lock."""
    rows = tx.rows(
        """SELECT e.envelope_id, e.funds, e.cancelling, e.lock_key,
                  (SELECT max(block) FROM blocks b WHERE b.envelope_id = e.envelope_id
                       AND b.state IN ('PENDING', 'SENDING', 'UNKNOWN', 'BLOCKED')) AS block,
                  EXISTS (SELECT 1 FROM tombstones t WHERE t.envelope_id = e.envelope_id) AS has_tombstones
           FROM envelopes e WHERE e.envelope_id = ANY(%(ids)s::uuid[])""",
        ids=list(envelope_ids),
    )
    return {row.envelope_id: row for row in rows}


def tombstoned(tx: Tx, envelope_ids: Sequence[UUID], disbursement_ids: Sequence[str]) -> dict[UUID, set[str]]:
    """envelope -> those of the disbursements which must never be paid."""
    rows = tx.rows(
        """SELECT envelope_id, disbursement_id FROM tombstones
           WHERE envelope_id = ANY(%(envelopes)s::uuid[]) AND disbursement_id = ANY(%(ids)s::text[])""",
        envelopes=list(envelope_ids),
        ids=list(disbursement_ids),
    )
    found: dict[UUID, set[str]] = {}
    for row in rows:
        found.setdefault(row.envelope_id, set()).add(row.disbursement_id)
    return found


def seen_before(tx: Tx, batch_ids: Sequence[UUID]) -> dict[UUID, dict[str, str]]:
    """batch -> disbursement -> 'PAYMENT', 'CANCELLED' or the state of its hold, of batches that have come in parts.

    Whose money lies in a further block waits for a command: a part is paid from the envelope's own. So does whom an open
    exception names."""
    rows = tx.rows(
        """SELECT h.batch_id, h.disbursement_id, CASE WHEN h.state = 'HELD' AND (k.further OR d.disbursement_id IS NOT NULL)
               THEN 'WAITS' ELSE h.state END AS state
           FROM held h LEFT JOIN instructions i USING (instruction)
           LEFT JOIN blocks k ON k.envelope_id = h.envelope_id AND k.block = i.block
           LEFT JOIN (SELECT DISTINCT batch_id, disbursement_id FROM disputed WHERE batch_id = ANY(%(ids)s::uuid[])) AS d
               ON d.batch_id = h.batch_id AND d.disbursement_id = h.disbursement_id
           WHERE h.batch_id = ANY(%(ids)s::uuid[]) AND NOT h.repaid
           UNION ALL SELECT batch_id, disbursement_id, 'CANCELLED' FROM cancelled WHERE batch_id = ANY(%(ids)s::uuid[])
           UNION ALL SELECT i.batch_id, p.disbursement_id, 'PAYMENT' FROM payments p JOIN instructions i USING (instruction)
           WHERE i.batch_id = ANY(%(ids)s::uuid[])""",
        ids=list(batch_ids),
    )
    rank = {"PAYING": 0, "PAYMENT": 1}  # a hold that is still open says more than the payment before it
    seen: dict[UUID, dict[str, str]] = {}
    for row in rows:
        of_batch = seen.setdefault(row.batch_id, {})
        if rank.get(row.state, 2) >= rank.get(of_batch.get(row.disbursement_id, "PAYING"), 2):
            of_batch[row.disbursement_id] = row.state
    return seen


def add_batches(tx: Tx, arrived: Mapping[UUID, tuple[BatchHeader, int, int]]) -> None:
    """batch -> (header, count, total) of disbursements seen for the first time."""
    ordered = [(batch_id, *arrived[batch_id]) for batch_id in sorted(arrived)]
    tx.run(
        """INSERT INTO batches AS b (batch_id, envelope_id, number, header, arrived_count, arrived_minor)
           SELECT * FROM unnest(%(ids)s::uuid[], %(envelopes)s::uuid[], %(numbers)s::int[], %(headers)s::text[],
                                %(counts)s::bigint[], %(totals)s::bigint[])
           ON CONFLICT (batch_id) DO UPDATE SET arrived_count = b.arrived_count + excluded.arrived_count,
                                                arrived_minor = b.arrived_minor + excluded.arrived_minor""",
        ids=[row[0] for row in ordered],
        envelopes=[row[1].envelope_id for row in ordered],
        numbers=[row[1].number for row in ordered],
        headers=[row[1].model_dump_json() for row in ordered],
        counts=[row[2] for row in ordered],
        totals=[row[3] for row in ordered],
    )


def add_instructions(
    tx: Tx, incarnation: int, rows: Sequence[tuple[UUID, UUID, int, str, str, int, int]], *, grouped: bool
) -> list[int]:
    """(envelope, batch, part, seal key, sealed, count, total) -> instruction numbers, in the same order."""
    found = tx.rows(
        """INSERT INTO instructions (envelope_id, batch_id, part, incarnation, sealed_key, sealed, count, total_minor, grouped)
           SELECT envelope_id, batch_id, part, %(incarnation)s, seal_key, sealed, count, total, %(grouped)s
           FROM unnest(%(envelopes)s::uuid[], %(batches)s::uuid[], %(parts)s::int[], %(keys)s::text[], %(sealed)s::text[],
                       %(counts)s::int[], %(totals)s::bigint[]) WITH ORDINALITY
                AS i (envelope_id, batch_id, part, seal_key, sealed, count, total, n) ORDER BY n
           RETURNING instruction, batch_id, part""",
        incarnation=incarnation,
        grouped=grouped,
        envelopes=[row[0] for row in rows],
        batches=[row[1] for row in rows],
        parts=[row[2] for row in rows],
        keys=[row[3] for row in rows],
        sealed=[row[4] for row in rows],
        counts=[row[5] for row in rows],
        totals=[row[6] for row in rows],
    )
    numbers = {(row.batch_id, row.part): row.instruction for row in found}
    return [numbers[row[1], row[2]] for row in rows]


def add_payments(tx: Tx, instructions: Mapping[int, Items]) -> None:
    """Instruction -> its people, in order."""
    chunks = instructions.values()
    tx.copy_columns(
        "payments",
        {
            "instruction": [number for number, items in instructions.items() for _ in items.amount_minor],
            "position": [position for items in chunks for position in range(1, len(items) + 1)],
            "amount_minor": [amount for items in chunks for amount in items.amount_minor],
            "disbursement_id": [one for items in chunks for one in items.disbursement_id],
            "beneficiary_id": [one for items in chunks for one in items.beneficiary_id],
        },
    )


def add_held(tx: Tx, rows: Sequence[tuple[object, ...]]) -> None:
    """(envelope, batch, disbursement, beneficiary, amount, reason, message)."""
    columns = ("envelope_id", "batch_id", "disbursement_id", "beneficiary_id", "amount_minor", "reason", "message")
    tx.copy("held", columns, rows)


def add_cancelled(tx: Tx, rows: Sequence[tuple[object, ...]]) -> None:
    """(envelope, disbursement, batch, amount, in block)."""
    tx.copy("cancelled", ("envelope_id", "disbursement_id", "batch_id", "amount_minor", "in_block"), rows)


def pay_held(tx: Tx, keys: Sequence[tuple[UUID, str]]) -> None:
    """Held people who are in an instruction now."""
    _set_held(tx, keys, "UPDATE held h SET state = 'PAYING'", "h.state = 'HELD'")


def hold_unblocked(tx: Tx, keys: Sequence[tuple[UUID, str]]) -> None:
    """Resolved after their money was given back: held until there is a new block."""
    _set_held(tx, keys, "UPDATE held h SET reason = 'BLOCK_RELEASED'", "h.state IN ('RELEASING', 'RELEASED') AND NOT h.repaid")


def hold_still(tx: Tx, rows: Sequence[tuple[UUID, str, str, str]]) -> None:
    """(envelope, disbursement, reason, message) of people whom another attempt did not resolve either."""
    tx.run(
        """UPDATE held h SET reason = u.reason, message = u.message
           FROM unnest(%(envelopes)s::uuid[], %(ids)s::text[], %(reasons)s::text[], %(messages)s::text[])
                AS u (envelope_id, disbursement_id, reason, message)
           WHERE h.envelope_id = u.envelope_id AND h.disbursement_id = u.disbursement_id AND h.state = 'HELD'""",
        envelopes=[row[0] for row in rows],
        ids=[row[1] for row in rows],
        reasons=[row[2] for row in rows],
        messages=[row[3] for row in rows],
    )


def _set_held(tx: Tx, keys: Sequence[tuple[UUID, str]], update: str, guard: str) -> None:
    tx.run(
        f"""{update} FROM unnest(%(envelopes)s::uuid[], %(ids)s::text[]) AS u (envelope_id, disbursement_id)
            WHERE h.envelope_id = u.envelope_id AND h.disbursement_id = u.disbursement_id AND {guard}""",
        envelopes=[key[0] for key in keys],
        ids=[key[1] for key in keys],
    )


# --- Statements -------------------------------------------------------------------------------------------------------


def open_statements(tx: Tx, rows: Sequence[tuple[object, ...]]) -> None:
    """(statement, token, number, sequence, currency, opening, closing, lines, chunks, known account)."""
    names = "statement_id account_token number sequence currency opening_minor closing_minor lines chunks known_account".split()
    tx.run(
        f"""INSERT INTO statements ({", ".join(names)})
            SELECT * FROM unnest(%(c0)s::uuid[], %(c1)s::text[], %(c2)s::text[], %(c3)s::text[], %(c4)s::text[], %(c5)s::bigint[],
                                 %(c6)s::bigint[], %(c7)s::int[], %(c8)s::int[], %(c9)s::boolean[])
            ON CONFLICT (statement_id) DO UPDATE SET {", ".join(f"{n} = excluded.{n}" for n in names[2:9])}
            WHERE statements.chunks IS NULL""",
        **{f"c{n}": [row[n] for row in rows] for n in range(len(names))},
    )


def ensure_statements(tx: Tx, rows: Iterable[tuple[UUID, str, bool]]) -> None:
    """(statement, token, known account): a chunk may come before its statement's opening."""
    ordered = sorted(set(rows), key=lambda row: row[0])
    tx.run(
        """INSERT INTO statements (statement_id, account_token, known_account)
           SELECT * FROM unnest(%(ids)s::uuid[], %(tokens)s::text[], %(known)s::boolean[]) ON CONFLICT DO NOTHING""",
        ids=[row[0] for row in ordered],
        tokens=[row[1] for row in ordered],
        known=[row[2] for row in ordered],
    )


def new_chunks(tx: Tx, chunks: Sequence[tuple[UUID, int]]) -> set[tuple[UUID, int]]:
    """Those of the chunks which have not been reconciled yet."""
    rows = tx.rows(
        """SELECT statement_id, chunk FROM unnest(%(ids)s::uuid[], %(chunks)s::int[]) AS c (statement_id, chunk)
           WHERE NOT EXISTS (SELECT 1 FROM statement_chunks s WHERE s.statement_id = c.statement_id AND s.chunk = c.chunk)""",
        ids=[chunk[0] for chunk in chunks],
        chunks=[chunk[1] for chunk in chunks],
    )
    return {(row.statement_id, row.chunk) for row in rows}


def lock_keys_of(tx: Tx, instructions: Sequence[int]) -> list[int]:
    rows = tx.rows(
        """SELECT DISTINCT e.lock_key FROM instructions i JOIN envelopes e USING (envelope_id)
           WHERE i.instruction = ANY(%(ids)s::bigint[])""",
        ids=list(instructions),
    )
    return [row.lock_key for row in rows]


def instructions_for_update(tx: Tx, instructions: Sequence[int]) -> dict[int, Any]:
    """The instructions, locked in order: their counters are about to change. Their work is locked before them, as a claim and a
    settle do, or one of us would wait for the other."""
    tx.run(
        """SELECT 1 FROM work WHERE kind = 'dispatch' AND subject = ANY(%(subjects)s::text[])
           ORDER BY subject FOR NO KEY UPDATE""",
        subjects=[str(number) for number in instructions],
    )
    rows = tx.rows(
        """SELECT i.instruction, i.incarnation, i.state, i.batch_id, i.envelope_id, i.count, i.cancelled_count, i.refused_count,
                  i.debited_count, i.grouped, b.header, e.currency, e.lock_key, k.bank, k.block AS live_block
           FROM instructions i JOIN batches b USING (batch_id) JOIN envelopes e ON e.envelope_id = i.envelope_id
           LEFT JOIN blocks k ON k.envelope_id = i.envelope_id
                AND (k.block = i.block OR i.block IS NULL AND k.state = 'BLOCKED' AND NOT k.further)
           WHERE i.instruction = ANY(%(ids)s::bigint[]) ORDER BY i.instruction FOR NO KEY UPDATE OF i""",
        ids=list(instructions),
    )
    return {row.instruction: row for row in rows}


def payments_named(
    tx: Tx, lines: Sequence[Line], instructions: Mapping[int, Any], early: Container[int]
) -> dict[tuple[int, int], Named]:
    """The payments that lines name, and others of the same lists. `instructions`: as they were locked; `early`: those with a
    reversal that waits for its debit.

    A list of which nothing was debited, refused or cancelled so far has nothing to look for beside its payments. Nearly all
    lines of a statement name such lists, which are read as they lie there."""
    untouched = {
        number: row.count
        for number, row in instructions.items()
        if not (row.debited_count or row.refused_count or row.cancelled_count or number in early)
    }
    if not untouched or sum(untouched.values()) > 4 * len(lines):  # a few lines of many lists
        return _looked_up(tx, lines)
    rows = tx.tuples(
        """SELECT instruction, position, amount_minor, disbursement_id FROM payments
           WHERE instruction = ANY(%(ids)s::bigint[])""",
        ids=list(untouched),
    )
    named = {(row[0], row[1]): Named(row[2], row[3]) for row in rows}
    if len(untouched) < len(instructions):
        named |= _looked_up(tx, [line for line in lines if line.instruction not in untouched])
    return named


def _looked_up(tx: Tx, lines: Sequence[Line]) -> dict[tuple[int, int], Named]:
    """A look-up by primary key for each line, whatever the planner believes of tables which grow by thousands a second
    (OFFSET 0 keeps it from choosing a scan)."""
    rows = tx.tuples(
        """SELECT l.instruction, l.position, p.amount_minor, p.disbursement_id, f.debit, f.reversal, h.state,
                  (c.cancelled IS NOT NULL OR coalesce(h.state IN ('CANCELLED', 'RELEASING', 'RELEASED'), false))
           FROM unnest(%(instructions)s::bigint[], %(positions)s::smallint[]) AS l (instruction, position)
           CROSS JOIN LATERAL (
               SELECT amount_minor, disbursement_id FROM payments x
               WHERE x.instruction = l.instruction AND x.position = l.position OFFSET 0) AS p
           CROSS JOIN LATERAL (
               SELECT max(bank_reference) FILTER (WHERE kind = 'D') AS debit, max(bank_reference) FILTER (WHERE kind = 'R') AS reversal
               FROM facts x WHERE x.instruction = l.instruction AND x.position = l.position) AS f
           LEFT JOIN LATERAL (
               SELECT true AS cancelled FROM cancelled x
               WHERE x.instruction = l.instruction AND x.position = l.position OFFSET 0) AS c ON true
           LEFT JOIN LATERAL (
               SELECT state FROM held x
               WHERE x.instruction = l.instruction AND x.position = l.position AND x.state <> 'PAID' OFFSET 0) AS h ON true""",
        instructions=[line.instruction for line in lines],
        positions=[line.position for line in lines],
    )
    return {row[:2]: Named._make(row[2:]) for row in rows}


def add_facts(tx: Tx, statement_id: UUID, debits: Sequence[Line], reversals: Sequence[Line]) -> None:
    """Under the locks of their instructions' rows."""
    lines = [*debits, *reversals]
    tx.copy_columns(
        "facts",
        {
            "instruction": [line.instruction for line in lines],
            "position": [line.position for line in lines],
            "kind": ["D"] * len(debits) + ["R"] * len(reversals),
            "bank_reference": [line.bank_reference for line in lines],
            "statement_id": [str(statement_id)] * len(lines),
            "line": [line.statement_line for line in lines],
        },
    )


def add_reversal_reasons(tx: Tx, reasons: Mapping[tuple[int, int], str]) -> None:
    """Payment -> why the bank gave it back, beside the fact that it did."""
    tx.copy("reversal_reasons", ("instruction", "position", "reason"), [(*key, reason) for key, reason in reasons.items()])


def reversal_reasons(tx: Tx, keys: Collection[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """Those of these payments of which the bank has said why it gave them back."""
    rows = tx.tuples(
        """SELECT instruction, position, reason FROM reversal_reasons
           JOIN unnest(%(i)s::bigint[], %(p)s::smallint[]) AS k (instruction, position) USING (instruction, position)""",
        i=[key[0] for key in keys],
        p=[key[1] for key in keys],
    )
    return {(row[0], row[1]): row[2] for row in rows}


def count_facts(tx: Tx, rows: Sequence[tuple[int, int, int, int, int]]) -> None:
    """(instruction, debits, their sum, reversals that count, their sum)."""
    tx.run(
        """UPDATE instructions i SET debited_count = i.debited_count + f.debits, debited_minor = i.debited_minor + f.debit_sum,
                  reversed_count = i.reversed_count + f.reversals, reversed_minor = i.reversed_minor + f.reversal_sum,
                  last_confirmed_at = CASE WHEN f.debits > 0 THEN clock_timestamp() ELSE i.last_confirmed_at END
           FROM unnest(%(ids)s::bigint[], %(debits)s::int[], %(debit_sums)s::bigint[], %(reversals)s::int[],
                       %(reversal_sums)s::bigint[]) AS f (instruction, debits, debit_sum, reversals, reversal_sum)
           WHERE i.instruction = f.instruction""",
        ids=[row[0] for row in rows],
        debits=[row[1] for row in rows],
        debit_sums=[row[2] for row in rows],
        reversals=[row[3] for row in rows],
        reversal_sums=[row[4] for row in rows],
    )


def keep_early_reversals(tx: Tx, keys: Sequence[tuple[int, int]]) -> None:
    tx.run(
        """INSERT INTO early_reversals SELECT * FROM unnest(%(i)s::bigint[], %(p)s::smallint[]) ON CONFLICT DO NOTHING""",
        i=[key[0] for key in keys],
        p=[key[1] for key in keys],
    )


def with_early_reversals(tx: Tx, instructions: Sequence[int]) -> set[int]:
    """Those of which a reversal waits for its debit."""
    rows = tx.rows(
        "SELECT DISTINCT instruction FROM early_reversals WHERE instruction = ANY(%(ids)s::bigint[])", ids=list(instructions)
    )
    return {row.instruction for row in rows}


def end_early_reversals(tx: Tx, keys: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """Those of these newly debited payments whose reversal was there first; their exceptions are closed."""
    rows = tx.rows(
        """WITH gone AS (
               DELETE FROM early_reversals e USING unnest(%(i)s::bigint[], %(p)s::smallint[]) AS d (instruction, position)
               WHERE e.instruction = d.instruction AND e.position = d.position RETURNING e.instruction, e.position),
           closed AS (
               UPDATE exceptions x SET state = 'CLOSED', detail = 'its debit has come' FROM gone g JOIN payments p
                   ON p.instruction = g.instruction AND p.position = g.position
               WHERE x.instruction = g.instruction AND x.position = coalesce(p.head, g.position)
                 AND x.reason = 'REVERSAL_WITHOUT_DEBIT')
           SELECT instruction, position FROM gone""",
        i=[key[0] for key in keys],
        p=[key[1] for key in keys],
    )
    return {(row.instruction, row.position) for row in rows}


def end_refusals(tx: Tx, keys: Sequence[tuple[int, int]]) -> None:
    """Refused payments which the bank has paid after all: the hold ends, the refusal no longer counts."""
    tx.run(
        """WITH paid AS (
               UPDATE held h SET state = 'PAID' FROM unnest(%(i)s::bigint[], %(p)s::smallint[]) AS k (instruction, position)
               WHERE h.instruction = k.instruction AND h.position = k.position AND h.state IN ('HELD', 'PAYING')
               RETURNING h.instruction, h.amount_minor),
           sums AS (SELECT instruction, count(*) AS n, sum(amount_minor) AS total FROM paid GROUP BY instruction)
           UPDATE instructions i SET refused_count = refused_count - n, refused_minor = refused_minor - total
           FROM sums WHERE i.instruction = sums.instruction""",
        i=[key[0] for key in keys],
        p=[key[1] for key in keys],
    )


def refused_of(tx: Tx, instruction: int) -> list[Any]:
    """The payments of an instruction that are held or sent anew because the bank refused them."""
    return tx.rows(
        """SELECT instruction, position, state FROM held
           WHERE instruction = %(id)s AND state IN ('HELD', 'PAYING') ORDER BY position""",
        id=instruction,
    )


class Successor(NamedTuple):
    """A payment anew of the same disbursement that is certainly not sent: waiting, or held because the bank refused it too."""

    old: tuple[int, int]
    instruction: int
    position: int
    held_id: int | None


def successors(tx: Tx, keys: Sequence[tuple[int, int]]) -> list[Successor]:
    """What was made of these payments and can be taken back; locks the instructions it is in."""
    rows = tx.rows(
        """SELECT o.instruction AS old_instruction, o.position AS old_position, n.instruction, q.position, n.state, h.held_id,
                  h.state AS held_state, c.disbursement_id IS NOT NULL AS cancelled
           FROM unnest(%(i)s::bigint[], %(p)s::smallint[]) AS o (instruction, position)
           JOIN payments p ON p.instruction = o.instruction AND p.position = o.position
           JOIN instructions i ON i.instruction = o.instruction
           JOIN instructions n ON n.batch_id = i.batch_id AND n.instruction > i.instruction
           JOIN payments q ON q.instruction = n.instruction AND q.disbursement_id = p.disbursement_id
           LEFT JOIN held h ON h.instruction = q.instruction AND h.position = q.position
           LEFT JOIN cancelled c ON c.instruction = q.instruction AND c.position = q.position
           WHERE h.state IS DISTINCT FROM 'PAYING' ORDER BY n.instruction FOR NO KEY UPDATE OF n""",
        i=[key[0] for key in keys],
        p=[key[1] for key in keys],
    )
    return [
        Successor((row.old_instruction, row.old_position), row.instruction, row.position, row.held_id)
        for row in rows
        if row.held_state == "HELD" or (row.state == "WAITING" and row.held_id is None and not row.cancelled)
    ]


def take_back(tx: Tx, found: Sequence[Successor]) -> set[tuple[int, int]]:
    """It turned out that the bank made the first payment: these are not to be made. Returns which payments they followed."""
    again_held = [one.held_id for one in found if one.held_id is not None]
    tx.run("UPDATE held SET state = 'SUPERSEDED' WHERE held_id = ANY(%(ids)s::bigint[])", ids=again_held)
    waiting = {(one.instruction, one.position) for one in found if one.held_id is None}
    _take_out(tx, sorted(waiting), "SUPERSEDED", "SUPERSEDED")
    return {one.old for one in found}


def hold_disputed(tx: Tx, keys: Iterable[tuple[int, int]]) -> list[Any]:
    """Payments which wait to be sent, and of whom an exception says that the bank may have paid them: held until an operator has
    settled it. Returns them."""
    return _take_out(tx, sorted(set(keys)), "OPEN_EXCEPTION", "HELD")


def disputed_of(tx: Tx, instructions: Sequence[int]) -> list[tuple[int, int]]:
    """The payments of new instructions to people whom an open exception names: it came while their money was being reserved."""
    rows = tx.tuples(
        """SELECT p.instruction, p.position FROM instructions i JOIN payments p USING (instruction)
           WHERE i.instruction = ANY(%(ids)s::bigint[]) AND p.disbursement_id IN (
               SELECT d.disbursement_id FROM disputed d WHERE d.envelope_id = i.envelope_id)""",
        ids=list(instructions),
    )
    return [(row[0], row[1]) for row in rows]


def _take_out(tx: Tx, keys: Sequence[tuple[int, int]], reason: str, state: str) -> list[Any]:
    """Payments leave instructions that wait. Guard: the caller has the instructions locked."""
    if not keys:
        return []
    return tx.rows(
        """WITH gone AS (
               INSERT INTO held (envelope_id, batch_id, disbursement_id, beneficiary_id, amount_minor, reason, instruction,
                                 position, state)
               SELECT n.envelope_id, n.batch_id, q.disbursement_id, q.beneficiary_id, q.amount_minor, %(reason)s,
                      q.instruction, q.position, %(state)s
               FROM unnest(%(i)s::bigint[], %(p)s::smallint[]) AS k (instruction, position)
               JOIN payments q ON q.instruction = k.instruction AND q.position = k.position
               JOIN instructions n ON n.instruction = q.instruction
               RETURNING batch_id, disbursement_id, instruction, amount_minor),
           sums AS (SELECT instruction, count(*) AS n, sum(amount_minor) AS total FROM gone GROUP BY instruction),
           counted AS (
               UPDATE instructions i SET refused_count = refused_count + n, refused_minor = refused_minor + total,
                      state = CASE WHEN cancelled_count + refused_count + n = count THEN 'VOID' ELSE state END
               FROM sums WHERE i.instruction = sums.instruction RETURNING i.instruction, i.state),
           ended AS (
               UPDATE work w SET state = 'VOID', code = %(reason)s, lease_token = NULL, leased_until = NULL FROM counted
               WHERE counted.state = 'VOID' AND w.kind = 'dispatch' AND w.subject = counted.instruction::text)
           SELECT * FROM gone""",
        i=[key[0] for key in keys],
        p=[key[1] for key in keys],
        reason=reason,
        state=state,
    )


def add_exceptions(tx: Tx, rows: Sequence[tuple[object, ...]]) -> None:
    """(statement, line, reason, reference, instruction, position, amount, currency, detail)."""
    if not rows:
        return
    tx.run(
        """INSERT INTO exceptions (statement_id, line, reason, reference, instruction, position, amount_minor, currency, detail)
           SELECT * FROM unnest(%(c0)s::uuid[], %(c1)s::int[], %(c2)s::text[], %(c3)s::text[], %(c4)s::bigint[],
                                %(c5)s::smallint[], %(c6)s::bigint[], %(c7)s::text[], %(c8)s::text[])
           ON CONFLICT (statement_id, line, reason) DO NOTHING""",
        **{f"c{n}": [row[n] for row in rows] for n in range(9)},
    )


def add_chunks(tx: Tx, rows: Sequence[tuple[object, ...]]) -> None:
    """(statement, chunk, lines, balance, confirmed, its sum, reversed, its sum)."""
    names = "statement_id chunk lines balance_minor confirmed confirmed_minor reversed reversed_minor".split()
    tx.copy("statement_chunks", names, rows)


# --- Instructions -----------------------------------------------------------------------------------------------------


class LivePayment(NamedTuple):
    instruction: int
    position: int
    amount_minor: int
    disbursement_id: str
    beneficiary_id: str


def payments_of(tx: Tx, instructions: Sequence[int]) -> list[LivePayment]:
    """The live payments of instructions, in order: not cancelled, not refused."""
    rows = tx.tuples(
        """SELECT p.instruction, p.position, p.amount_minor, p.disbursement_id, p.beneficiary_id FROM payments p
           WHERE p.instruction = ANY(%(ids)s::bigint[])
             AND NOT EXISTS (SELECT 1 FROM cancelled c WHERE c.instruction = p.instruction AND c.position = p.position)
             AND NOT EXISTS (SELECT 1 FROM held h WHERE h.instruction = p.instruction AND h.position = p.position
                                 AND h.state <> 'PAID')
           ORDER BY p.instruction, p.position""",
        ids=list(instructions),
    )
    return list(map(LivePayment._make, rows))


# Payments of people who had one before: `anew` becomes instructions, one for each part of a batch and block, with that part's seal.
# Shares of agency cash (`zone` of their part) stay together.
_ANEW = """
    numbered AS (
        SELECT envelope_id, batch_id, part, block, count(*) AS n, sum(amount_minor) AS total,
               nextval(pg_get_serial_sequence('instructions', 'instruction')) AS number
        FROM anew GROUP BY envelope_id, batch_id, part, block),
    added AS (
        INSERT INTO instructions (instruction, envelope_id, batch_id, part, incarnation, sealed_key, sealed, grouped, block, count,
                                  total_minor)
        OVERRIDING SYSTEM VALUE
        SELECT number, envelope_id, batch_id, part, %(incarnation)s, s.sealed_key, s.sealed, s.grouped, block, n, total
        FROM numbered m CROSS JOIN LATERAL (
            SELECT sealed_key, sealed, grouped FROM instructions x WHERE x.batch_id = m.batch_id AND x.part = m.part
            UNION ALL SELECT sealed_key, sealed, grouped FROM late_parts y WHERE y.batch_id = m.batch_id AND y.part = m.part
            LIMIT 1) AS s
        RETURNING instruction),
    placed AS (
        SELECT number, row_number() OVER (PARTITION BY number ORDER BY disbursement_id) AS position, amount_minor,
               disbursement_id, beneficiary_id, zone
        FROM anew a JOIN numbered m ON m.batch_id = a.batch_id AND m.part = a.part AND m.block IS NOT DISTINCT FROM a.block),
    paid AS (
        INSERT INTO payments (instruction, position, amount_minor, disbursement_id, beneficiary_id, head)
        SELECT number, position, amount_minor, disbursement_id, beneficiary_id,
               CASE WHEN zone IS NOT NULL THEN min(position) OVER (PARTITION BY number, zone) END
        FROM placed),
    headed AS (
        INSERT INTO heads (instruction, head, zone)
        SELECT number, min(position), zone FROM placed WHERE zone IS NOT NULL GROUP BY number, zone)
    SELECT instruction FROM added ORDER BY instruction"""


def pay_refused_anew(tx: Tx, incarnation: int, held_ids: Sequence[int]) -> list[int]:
    """New instructions for held refusals, from the block of the first and to the newest address; returns their numbers."""
    rows = tx.rows(
        f"""WITH chosen AS (
                UPDATE held SET state = 'PAYING' WHERE held_id = ANY(%(ids)s::bigint[])
                RETURNING envelope_id, instruction, position, amount_minor, disbursement_id, beneficiary_id),
            anew AS (
                SELECT c.envelope_id, i.batch_id, i.block, c.amount_minor, c.disbursement_id, c.beneficiary_id,
                       coalesce(late.part, i.part) AS part, CASE WHEN late.part IS NULL THEN g.zone ELSE late.zone END AS zone
                FROM chosen c JOIN instructions i USING (instruction)
                JOIN payments p ON p.instruction = c.instruction AND p.position = c.position
                LEFT JOIN heads g ON g.instruction = p.instruction AND g.head = p.head
                LEFT JOIN LATERAL (
                    SELECT l.part, l.zone FROM late_addresses l
                    WHERE l.envelope_id = c.envelope_id AND l.disbursement_id = c.disbursement_id AND l.part > i.part
                    ORDER BY l.part DESC LIMIT 1) AS late ON true), {_ANEW}""",
        ids=list(held_ids),
        incarnation=incarnation,
    )
    return [row.instruction for row in rows]


def set_instructions(tx: Tx, instructions: Sequence[int], state: str, from_states: Sequence[str]) -> set[int]:
    """Move instructions along; returns those that moved. Guard: the states they may come from."""
    rows = tx.rows(
        """UPDATE instructions i SET state = %(state)s,
                  block = coalesce(block, (SELECT k.block FROM blocks k WHERE k.envelope_id = i.envelope_id AND k.state = 'BLOCKED'
                                               AND NOT k.further)),
                  dispatched_at = CASE WHEN %(state)s = 'DISPATCHED' THEN clock_timestamp() ELSE dispatched_at END
           WHERE instruction = ANY(%(ids)s::bigint[]) AND state = ANY(%(from)s::text[]) RETURNING instruction""",
        state=state,
        ids=list(instructions),
        **{"from": list(from_states)},
    )
    return {row.instruction for row in rows}


def refuse_payments(tx: Tx, instruction: int, rows: Sequence[tuple[int, str, str]]) -> None:
    """(position, code, message): the bank's definite no to single payments; they are held from here."""
    tx.run(
        """WITH refused AS (
               INSERT INTO held (envelope_id, batch_id, disbursement_id, beneficiary_id, amount_minor, reason, message,
                                 instruction, position)
               SELECT i.envelope_id, i.batch_id, p.disbursement_id, p.beneficiary_id, p.amount_minor, 'BANK_' || r.code,
                      r.message, p.instruction, p.position
               FROM unnest(%(positions)s::smallint[], %(codes)s::text[], %(messages)s::text[]) AS r (position, code, message)
               JOIN payments p ON p.instruction = %(id)s AND p.position = r.position
               JOIN instructions i ON i.instruction = p.instruction
               WHERE NOT EXISTS (SELECT 1 FROM facts f WHERE f.instruction = p.instruction AND f.position = p.position
                                     AND f.kind = 'D')
               ON CONFLICT DO NOTHING RETURNING amount_minor)
           UPDATE instructions SET refused_count = refused_count + (SELECT count(*) FROM refused),
                  refused_minor = refused_minor + (SELECT coalesce(sum(amount_minor), 0) FROM refused)
           WHERE instruction = %(id)s""",
        id=instruction,
        positions=[row[0] for row in rows],
        codes=[row[1] for row in rows],
        messages=[row[2] for row in rows],
    )


# --- Paying again -----------------------------------------------------------------------------------------------------


def keep_late_addresses(
    tx: Tx, rows: Sequence[tuple[UUID, UUID, int, str, str, Sequence[tuple[str, int | None]]]], *, grouped: bool
) -> None:
    """(envelope, batch, part, seal key, sealed, (disbursement, zone) each): people who could not be paid when their address came;
    of agency cash, their agency's."""
    tx.run(
        """INSERT INTO late_parts (batch_id, part, sealed_key, sealed, grouped)
           SELECT *, %(grouped)s FROM unnest(%(batches)s::uuid[], %(parts)s::int[], %(keys)s::text[], %(sealed)s::text[])
           ON CONFLICT DO NOTHING""",
        grouped=grouped,
        batches=[row[1] for row in rows],
        parts=[row[2] for row in rows],
        keys=[row[3] for row in rows],
        sealed=[row[4] for row in rows],
    )
    people = [(row[0], row[2], *person) for row in rows for person in row[5]]
    tx.run(
        """INSERT INTO late_addresses (envelope_id, part, disbursement_id, zone)
           SELECT * FROM unnest(%(envelopes)s::uuid[], %(parts)s::int[], %(ids)s::text[], %(zones)s::int[])
           ON CONFLICT DO NOTHING""",
        envelopes=[person[0] for person in people],
        parts=[person[1] for person in people],
        ids=[person[2] for person in people],
        zones=[person[3] for person in people],
    )


def standing(tx: Tx, envelope_id: UUID, disbursement_ids: Sequence[str]) -> list[Any]:
    """What must be known of disbursements to say whether they may be paid again. `live`: the state of a payment that is under
    way or made; `reversed`: the payment whose money came back and is not asked for again; `disputed`: an open exception names
    one of its payments. One pass over the envelope, however many are asked for."""
    return tx.rows(
        """WITH paid AS MATERIALIZED (
               SELECT p.*, i.part FROM ops_payments p JOIN instructions i USING (instruction)
               WHERE p.envelope_id = %(envelope)s AND p.disbursement_id = ANY(%(ids)s::text[])),
           doubt AS MATERIALIZED (SELECT disbursement_id FROM disputed WHERE envelope_id = %(envelope)s)
           SELECT asked.id,
               EXISTS (SELECT 1 FROM tombstones t WHERE t.envelope_id = %(envelope)s AND t.disbursement_id = asked.id)
                   OR EXISTS (SELECT 1 FROM cancelled c WHERE c.envelope_id = %(envelope)s AND c.disbursement_id = asked.id)
                   AS cancelled,
               EXISTS (SELECT 1 FROM repayments r WHERE r.envelope_id = %(envelope)s AND r.disbursement_id = asked.id
                           AND r.state = 'ASKED') AS asked,
               (SELECT p.state FROM paid p WHERE p.disbursement_id = asked.id
                    AND p.state IN ('WAITING', 'IN_FLIGHT', 'UNKNOWN', 'OUTSTANDING', 'CONFIRMED')
                ORDER BY p.instruction DESC LIMIT 1) AS live,
               asked.id IN (SELECT disbursement_id FROM doubt) AS disputed,
               h.held_id, h.state AS held_state, h.instruction IS NOT NULL AS refused, late.part AS late_part,
               back.instruction AS reversed, back.position, coalesce(h.batch_id, back.batch_id) AS batch_id,
               coalesce(h.beneficiary_id, back.beneficiary_id) AS beneficiary_id,
               coalesce(h.amount_minor, back.amount_minor) AS amount_minor, greatest(back.part, late.part) AS part
           FROM unnest(%(ids)s::text[]) AS asked (id)
           LEFT JOIN held h ON h.envelope_id = %(envelope)s AND h.disbursement_id = asked.id
                AND h.state IN ('HELD', 'RELEASING', 'RELEASED') AND NOT h.repaid
           LEFT JOIN LATERAL (
               SELECT max(part) AS part FROM late_addresses l
               WHERE l.envelope_id = %(envelope)s AND l.disbursement_id = asked.id) AS late ON true
           LEFT JOIN LATERAL (
               SELECT * FROM paid p WHERE p.disbursement_id = asked.id AND p.state = 'REVERSED'
                   AND NOT EXISTS (SELECT 1 FROM repayments r WHERE r.instruction = p.instruction AND r.position = p.position
                                       AND r.state IN ('ASKED', 'PAYING'))
               ORDER BY p.instruction DESC LIMIT 1) AS back ON true
           ORDER BY asked.id""",
        envelope=envelope_id,
        ids=list(disbursement_ids),
    )


def look_is_due(envelope_id: str) -> str:
    """SQL: whether `advance` will look at the envelope in any case. Certain only under a lock of the envelope."""
    return f"EXISTS (SELECT 1 FROM due WHERE job = 'advance' AND subject = {envelope_id}::text)"


def asked_block(tx: Tx, envelope_id: UUID) -> Any | None:
    """The block that the bank is being asked for, or may have made without our knowing it; there is one at most."""
    rows = tx.rows(
        """SELECT block, state FROM blocks WHERE envelope_id = %(id)s
             AND state IN ('CHECKING', 'PENDING', 'SENDING', 'UNKNOWN')""",
        id=envelope_id,
    )
    return rows[0] if rows else None


def add_repayments(tx: Tx, envelope_id: UUID, block: int, rows: Sequence[Any]) -> None:
    """Rows of `standing`, to be paid from a further block."""
    tx.run(
        """INSERT INTO repayments (envelope_id, block, disbursement_id, batch_id, part, beneficiary_id, amount_minor, instruction,
                                   position, held_id)
           SELECT %(envelope)s, %(block)s, * FROM unnest(%(ids)s::text[], %(batches)s::uuid[], %(parts)s::int[],
               %(beneficiaries)s::text[], %(amounts)s::bigint[], %(instructions)s::bigint[], %(positions)s::smallint[],
               %(held)s::bigint[])""",
        envelope=envelope_id,
        block=block,
        ids=[row.id for row in rows],
        batches=[row.batch_id for row in rows],
        parts=[row.part for row in rows],
        beneficiaries=[row.beneficiary_id for row in rows],
        amounts=[row.amount_minor for row in rows],
        instructions=[row.reversed for row in rows],
        positions=[row.position for row in rows],
        held=[row.held_id for row in rows],
    )


def pay_repayments(tx: Tx, incarnation: int, envelope_id: UUID, block: int) -> list[int]:
    """What was asked for is payable from its block now; returns the new instructions. Guard: only what is not cancelled."""
    rows = tx.rows(
        f"""WITH chosen AS (
                UPDATE repayments SET state = 'PAYING' WHERE envelope_id = %(id)s AND block = %(block)s AND state = 'ASKED'
                RETURNING *),
            anew AS (
                SELECT c.envelope_id, c.batch_id, c.part, c.block, c.amount_minor, c.disbursement_id, c.beneficiary_id, c.held_id,
                       CASE WHEN l.part IS NULL THEN g.zone ELSE l.zone END AS zone
                FROM chosen c
                LEFT JOIN late_addresses l ON l.envelope_id = c.envelope_id AND l.disbursement_id = c.disbursement_id
                    AND l.part = c.part
                LEFT JOIN payments p ON p.instruction = c.instruction AND p.position = c.position
                LEFT JOIN heads g ON g.instruction = p.instruction AND g.head = p.head),
            back AS (UPDATE held h SET repaid = true FROM anew WHERE h.held_id = anew.held_id), {_ANEW}""",
        id=envelope_id,
        block=block,
        incarnation=incarnation,
    )
    return [row.instruction for row in rows]


# --- Too long ---------------------------------------------------------------------------------------------------------


def overdue(tx: Tx, held_days: int, statement_days: int) -> list[UUID]:
    """Envelopes with money that is held, or payments that are outstanding, for more than so many days; 0: however long."""
    rows = tx.rows(
        """SELECT envelope_id FROM held WHERE %(held)s > 0 AND state = 'HELD'
             AND since <= clock_timestamp() - make_interval(days => %(held)s)
           UNION
           SELECT i.envelope_id FROM envelopes e JOIN instructions i USING (envelope_id)
           WHERE %(statement)s > 0 AND e.settled_at IS NULL AND i.state = 'DISPATCHED'
             AND i.cancelled_count + i.refused_count + i.debited_count < i.count
             AND i.dispatched_at < clock_timestamp() - make_interval(days => %(statement)s)""",
        held=held_days,
        statement=statement_days,
    )
    return [row.envelope_id for row in rows]
