"""Every SQL statement of resolution. Each works on a set; locks are taken on batches first, in the order of their ids."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import zstandard

from libs.common import workqueue
from libs.common.contracts.base import Item, Unresolved
from libs.common.contracts.ingestion import BatchCut
from libs.common.contracts.operator import ResolveHeld
from libs.common.db import Tx, lock_key
from libs.common.envelope import Cause

KIND = "resolve"
_MAX_BODY_BYTES = 8_000_000


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that came: as it was read, as it was sent (its JSON is kept, not written anew), and why we act."""

    cut: BatchCut
    data: bytes
    cause: Cause


@dataclass(frozen=True, slots=True)
class Asked:
    """A part to be asked for. `only`: the disbursements it concerns; None is the whole batch. `body`: see `unpack`."""

    batch_id: UUID
    part: int
    only: frozenset[str] | None
    body: bytes


def subject(batch_id: UUID, part: int) -> str:
    return f"{batch_id}/{part}"


def unpack(body: bytes) -> BatchCut:
    return BatchCut.model_validate_json(zstandard.decompress(body, max_output_size=_MAX_BODY_BYTES))


def add_batches(tx: Tx, cuts: Mapping[UUID, Batch]) -> None:
    """Store batches, ask for their first part. One that is known stays as it is."""
    compress = zstandard.ZstdCompressor(level=1).compress
    batch_ids = sorted(cuts)
    batches = [cuts[batch_id] for batch_id in batch_ids]
    tx.run(
        """WITH added AS (
               INSERT INTO batches (batch_id, envelope_id, number, count, body)
               SELECT * FROM unnest(%(batches)s::uuid[], %(envelopes)s::uuid[], %(numbers)s::int[], %(counts)s::int[],
                                    %(bodies)s::bytea[])
               ON CONFLICT (batch_id) DO NOTHING RETURNING batch_id, count)
           INSERT INTO parts (batch_id, part, asked) SELECT batch_id, 1, count FROM added""",
        batches=batch_ids,
        envelopes=[batch.cut.header.envelope_id for batch in batches],
        numbers=[batch.cut.header.number for batch in batches],
        counts=[batch.cut.count for batch in batches],
        bodies=[compress(batch.data) for batch in batches],
    )
    _enqueue(tx, [(batch.cut.header.envelope_id, batch.cut.header.batch_id, 1, batch.cause) for batch in batches])


def asked(tx: Tx, subjects: Sequence[str]) -> dict[str, Asked]:
    """What the parts named `<batch>/<part>` ask for; parts which are answered are left out."""
    rows = tx.rows(
        """SELECT p.batch_id, p.part, b.body, (
               SELECT array_agg(h.disbursement_id) FROM held h WHERE h.batch_id = p.batch_id AND h.asked_in = p.part) AS only
           FROM parts p JOIN batches b USING (batch_id)
           JOIN unnest(%(batches)s::uuid[], %(parts)s::int[]) AS wanted (batch_id, part) USING (batch_id, part)
           WHERE p.answered_at IS NULL""",
        batches=[UUID(name.split("/")[0]) for name in subjects],
        parts=[int(name.split("/")[1]) for name in subjects],
    )
    return {
        subject(row.batch_id, row.part): Asked(
            row.batch_id, row.part, None if row.only is None else frozenset(row.only), bytes(row.body)
        )
        for row in rows
    }


def answer(tx: Tx, batch_id: UUID, part: int, resolved: Collection[Item], unresolved: Sequence[Unresolved]) -> bool:
    """Store a part's answer: counts, who is held, who is not held any more. False where the part has been answered."""
    given = {"batch": batch_id, "part": part, "resolved": len(resolved)}
    waited_for = tx.rows(
        """UPDATE batches SET resolved = resolved + %(resolved)s, unresolved = count - resolved - %(resolved)s,
                  body = CASE WHEN resolved + %(resolved)s < count THEN body END, resolved_at = clock_timestamp()
           WHERE batch_id = %(batch)s AND EXISTS (
               SELECT FROM parts p WHERE p.batch_id = %(batch)s AND p.part = %(part)s AND p.answered_at IS NULL)
           RETURNING batch_id""",
        **given,
    )
    if not waited_for:
        return False
    tx.run(
        """UPDATE parts SET resolved = %(resolved)s, unresolved = asked - %(resolved)s, answered_at = clock_timestamp()
           WHERE batch_id = %(batch)s AND part = %(part)s""",
        **given,
    )
    if part > 1:
        tx.run(
            """UPDATE held SET resolved_at = clock_timestamp(), asked_in = NULL
               WHERE batch_id = %(batch)s AND asked_in = %(part)s AND disbursement_id = ANY(%(ids)s)""",
            batch=batch_id,
            part=part,
            ids=[item.disbursement_id for item in resolved],
        )
    if unresolved:
        tx.run(
            """INSERT INTO held AS h (batch_id, disbursement_id, beneficiary_id, amount_minor, reason, message)
               SELECT %(batch)s, * FROM unnest(%(ids)s::text[], %(beneficiaries)s::text[], %(amounts)s::bigint[],
                                               %(reasons)s::text[], %(messages)s::text[])
               ON CONFLICT (batch_id, disbursement_id) DO UPDATE
               SET reason = excluded.reason, message = excluded.message, asked_in = NULL""",
            batch=batch_id,
            ids=[one.disbursement_id for one in unresolved],
            beneficiaries=[one.beneficiary_id for one in unresolved],
            amounts=[one.amount_minor for one in unresolved],
            reasons=[one.reason for one in unresolved],
            messages=[one.message for one in unresolved],
        )
    return True


def ask_again(tx: Tx, command: ResolveHeld, cause: Cause) -> int:
    """One new part for each batch that has held people among those named; returns how many people will be asked.

    A batch of which a part is under way is left out: its answer comes first. Nobody is asked if the operator saw another
    number of people than there are."""
    concerned = """(%(envelope)s::uuid IS NULL OR b.envelope_id = %(envelope)s)
               AND (cardinality(%(batches)s::uuid[]) = 0 OR b.batch_id = ANY(%(batches)s::uuid[]))"""
    named = """h.resolved_at IS NULL
               AND (cardinality(%(ids)s::text[]) = 0 OR h.disbursement_id = ANY(%(ids)s::text[]))"""
    given = {"envelope": command.envelope_id, "batches": command.batch_ids, "ids": command.disbursement_ids}
    locked = tx.rows(
        f"""SELECT b.batch_id FROM batches b
            WHERE {concerned} AND EXISTS (SELECT FROM held h WHERE h.batch_id = b.batch_id AND {named})
            ORDER BY b.batch_id FOR UPDATE""",
        **given,
    )
    # A statement of its own: it sees what was committed while we waited for the locks.
    found = tx.rows(
        f"""SELECT b.batch_id, b.envelope_id, (SELECT max(p.part) + 1 FROM parts p WHERE p.batch_id = b.batch_id) AS part,
                   count(*) AS people
            FROM batches b JOIN held h USING (batch_id)
            WHERE b.batch_id = ANY(%(locked)s::uuid[]) AND {named}
              AND NOT EXISTS (SELECT FROM parts p WHERE p.batch_id = b.batch_id
                              AND (p.answered_at IS NULL OR p.part = 10000))
            GROUP BY b.batch_id ORDER BY b.batch_id""",
        locked=[row.batch_id for row in locked],
        **given,
    )
    people: int = sum(row.people for row in found)
    if command.expected not in (None, people) or not people:
        return 0
    tx.run(
        f"""WITH new AS (SELECT * FROM unnest(%(found)s::uuid[], %(parts)s::int[], %(people)s::int[])
                             AS n (batch_id, part, people)),
                 added AS (INSERT INTO parts (batch_id, part, asked) SELECT batch_id, part, people FROM new)
            UPDATE held h SET asked_in = new.part FROM new WHERE h.batch_id = new.batch_id AND {named}""",
        found=[row.batch_id for row in found],
        parts=[row.part for row in found],
        people=[row.people for row in found],
        **given,
    )
    _enqueue(
        tx,
        [(row.envelope_id, row.batch_id, row.part, Cause(cause.id, str(row.envelope_id), cause.traceparent)) for row in found],
    )
    return people


def _enqueue(tx: Tx, parts: Sequence[tuple[UUID, UUID, int, Cause]]) -> None:
    workqueue.enqueue(
        tx,
        KIND,
        [subject(batch_id, part) for _, batch_id, part, _ in parts],
        [lock_key("resolution", envelope_id) for envelope_id, _, _, _ in parts],
        [cause for _, _, _, cause in parts],
    )
