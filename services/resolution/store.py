"""Every SQL statement of resolution. Each works on a set; locks are taken on batches first, in the order of their ids."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import zstandard

from libs.common import workqueue
from libs.common.contracts.base import UnresolvedItems
from libs.common.contracts.ingestion import BatchCut
from libs.common.contracts.operator import ResolveHeld
from libs.common.db import Tx, lock_key
from libs.common.envelope import Cause
from services.resolution.domain import RESOLVE, Home, kind_of

_MAX_BODY_BYTES = 8_000_000


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that came: as it was read, as it was sent (its JSON is kept, not written anew), and why we act."""

    cut: BatchCut
    data: bytes
    cause: Cause


@dataclass(frozen=True, slots=True)
class Asked:
    """A part to be asked for. `only`: the disbursements it concerns; None is the whole batch. `again`: those of them who are
    resolved already. `body`: see `unpack`."""

    batch_id: UUID
    part: int
    only: frozenset[str] | None
    again: frozenset[str]
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
    headers = [batch.cut.header for batch in batches]
    tx.run(
        """WITH added AS (
               INSERT INTO batches (batch_id, envelope_id, number, benefit_type, kind, registry, count, body, disbursements)
               SELECT batch_id, envelope_id, number, benefit_type, kind, registry, count, body,
                      CASE kind WHEN %(resolve)s THEN string_to_array(ids, chr(10)) END
               FROM unnest(%(batches)s::uuid[], %(envelopes)s::uuid[], %(numbers)s::int[], %(types)s::text[], %(kinds)s::text[],
                           %(registries)s::text[], %(counts)s::int[], %(bodies)s::bytea[], %(ids)s::text[])
                    AS b (batch_id, envelope_id, number, benefit_type, kind, registry, count, body, ids)
               ON CONFLICT (batch_id) DO NOTHING RETURNING batch_id, count)
           INSERT INTO parts (batch_id, part, asked) SELECT batch_id, 1, count FROM added""",
        resolve=RESOLVE,
        batches=batch_ids,
        envelopes=[header.envelope_id for header in headers],
        numbers=[header.number for header in headers],
        types=[header.benefit_type for header in headers],
        kinds=[kind_of(header.benefit_type) for header in headers],
        registries=[header.target_registry for header in headers],
        counts=[batch.cut.count for batch in batches],
        bodies=[compress(batch.data) for batch in batches],
        # An id has no line's end in it.
        ids=["\n".join(batch.cut.items.disbursement_id) for batch in batches],
    )
    _enqueue(
        tx,
        [
            (kind_of(header.benefit_type), header.envelope_id, header.batch_id, 1, batch.cause)
            for header, batch in zip(headers, batches, strict=True)
        ],
    )


def asked(tx: Tx, subjects: Sequence[str]) -> dict[str, Asked]:
    """What the parts named `<batch>/<part>` ask for; parts which are answered are left out."""
    rows = tx.rows(
        """SELECT p.batch_id, p.part, b.body,
               (SELECT array_agg(h.disbursement_id) FROM held h WHERE h.batch_id = p.batch_id AND h.asked_in = p.part) AS held,
               (SELECT array_agg(a.disbursement_id) FROM again a WHERE a.batch_id = p.batch_id AND a.part = p.part) AS again
           FROM parts p JOIN batches b USING (batch_id)
           JOIN unnest(%(batches)s::uuid[], %(parts)s::int[]) AS wanted (batch_id, part) USING (batch_id, part)
           WHERE p.answered_at IS NULL""",
        batches=[UUID(name.split("/")[0]) for name in subjects],
        parts=[int(name.split("/")[1]) for name in subjects],
    )
    return {
        subject(row.batch_id, row.part): Asked(
            row.batch_id,
            row.part,
            None if row.part == 1 else frozenset([*(row.held or ()), *(row.again or ())]),
            frozenset(row.again or ()),
            bytes(row.body),
        )
        for row in rows
    }


def answer(
    tx: Tx,
    batch_id: UUID,
    part: int,
    resolved: Sequence[str],
    unresolved: UnresolvedItems,
    again: Collection[str] = (),
) -> bool:
    """Store a part's answer: counts, who is held, who is not held any more. False where the part has been answered. `again`:
    those asked for who were resolved before, and stay so in any case."""
    anew = [one for one in resolved if one in again]
    given = {"batch": batch_id, "part": part, "resolved": len(resolved)}
    waited_for = tx.rows(
        """UPDATE batches SET resolved = resolved + %(new)s, unresolved = count - resolved - %(new)s,
                  body = CASE WHEN resolved + %(new)s < count OR kind = %(resolve)s THEN body END,
                  resolved_at = clock_timestamp()
           WHERE batch_id = %(batch)s AND EXISTS (
               SELECT FROM parts p WHERE p.batch_id = %(batch)s AND p.part = %(part)s AND p.answered_at IS NULL)
           RETURNING batch_id""",
        **given,
        new=len(resolved) - len(anew),
        resolve=RESOLVE,
    )
    if not waited_for:
        return False
    tx.run(
        """UPDATE parts SET resolved = %(resolved)s, kept = %(kept)s, unresolved = asked - %(resolved)s - %(kept)s,
                  answered_at = clock_timestamp()
           WHERE batch_id = %(batch)s AND part = %(part)s""",
        **given,
        kept=len(again) - len(anew),
    )
    if part > 1:
        tx.run(
            """WITH anew AS (
                   UPDATE again SET found = true
                   WHERE batch_id = %(batch)s AND part = %(part)s AND disbursement_id = ANY(%(ids)s::text[]))
               UPDATE held SET resolved_at = clock_timestamp(), asked_in = NULL
               WHERE batch_id = %(batch)s AND asked_in = %(part)s AND disbursement_id = ANY(%(ids)s::text[])""",
            batch=batch_id,
            part=part,
            ids=list(resolved),
        )
    if unresolved:
        tx.run(
            """INSERT INTO held AS h (batch_id, disbursement_id, beneficiary_id, amount_minor, reason, message)
               SELECT %(batch)s, * FROM unnest(%(ids)s::text[], %(beneficiaries)s::text[], %(amounts)s::bigint[],
                                               %(reasons)s::text[], %(messages)s::text[])
               ON CONFLICT (batch_id, disbursement_id) DO UPDATE
               SET reason = excluded.reason, message = excluded.message, asked_in = NULL""",
            batch=batch_id,
            ids=unresolved.disbursement_id,
            beneficiaries=unresolved.beneficiary_id,
            amounts=unresolved.amount_minor,
            reasons=unresolved.reason,
            messages=unresolved.message,
        )
    return True


# Whom a ResolveHeld names: of the held, and, by disbursement ids only, of those resolved whose address may be another by now.
_CONCERNED = """(%(envelope)s::uuid IS NULL OR b.envelope_id = %(envelope)s)
               AND (cardinality(%(batches)s::uuid[]) = 0 OR b.batch_id = ANY(%(batches)s::uuid[]))"""
_HELD = """h.resolved_at IS NULL
               AND (cardinality(%(ids)s::text[]) = 0 OR h.disbursement_id = ANY(%(ids)s::text[]))"""
_NAMED = f"""SELECT h.batch_id, h.disbursement_id, false AS again FROM held h
            WHERE h.batch_id = ANY(%(locked)s::uuid[]) AND {_HELD}
            UNION ALL
            SELECT b.batch_id, d.id, true FROM batches b, unnest(b.disbursements) AS d (id)
            WHERE cardinality(%(ids)s::text[]) > 0 AND b.batch_id = ANY(%(locked)s::uuid[]) AND b.body IS NOT NULL
              AND d.id = ANY(%(ids)s::text[])
              AND NOT EXISTS (SELECT FROM held h WHERE h.batch_id = b.batch_id AND h.disbursement_id = d.id
                              AND h.resolved_at IS NULL)"""


def ask_again(tx: Tx, command: ResolveHeld, cause: Cause) -> int:
    """One new part for each batch that has people among those named; returns how many people will be asked for.

    A batch of which a part is under way is left out: its answer comes first. Nobody is asked for if the operator saw another
    number of people than there are."""
    given = {"envelope": command.envelope_id, "batches": command.batch_ids, "ids": command.disbursement_ids}
    locked = tx.rows(
        f"""SELECT b.batch_id FROM batches b
            WHERE {_CONCERNED} AND (EXISTS (SELECT FROM held h WHERE h.batch_id = b.batch_id AND {_HELD})
                                    OR cardinality(%(ids)s::text[]) > 0 AND b.body IS NOT NULL
                                       AND EXISTS (SELECT FROM unnest(b.disbursements) AS d WHERE d = ANY(%(ids)s::text[])))
            ORDER BY b.batch_id FOR UPDATE""",
        **given,
    )
    # A statement of its own: it sees what was committed while we waited for the locks.
    found = tx.rows(
        f"""SELECT b.batch_id, b.envelope_id, b.kind, count(*) AS people,
                   (SELECT max(p.part) + 1 FROM parts p WHERE p.batch_id = b.batch_id) AS part
            FROM batches b JOIN ({_NAMED}) AS named USING (batch_id)
            WHERE NOT EXISTS (SELECT FROM parts p WHERE p.batch_id = b.batch_id
                              AND (p.answered_at IS NULL OR p.part = 10000))
            GROUP BY b.batch_id ORDER BY b.batch_id""",
        locked=[row.batch_id for row in locked],
        **given,
    )
    people: int = sum(row.people for row in found)
    if command.expected not in (None, people) or not people:
        return 0
    tx.run(
        f"""WITH new AS (SELECT * FROM unnest(%(locked)s::uuid[], %(parts)s::int[], %(people)s::int[])
                             AS n (batch_id, part, people)),
                 named AS MATERIALIZED ({_NAMED}),
                 added AS (INSERT INTO parts (batch_id, part, asked) SELECT batch_id, part, people FROM new),
                 anew AS (INSERT INTO again (batch_id, part, disbursement_id)
                          SELECT batch_id, part, disbursement_id FROM named JOIN new USING (batch_id) WHERE again)
            UPDATE held h SET asked_in = new.part
            FROM named JOIN new USING (batch_id)
            WHERE NOT named.again AND h.batch_id = named.batch_id AND h.disbursement_id = named.disbursement_id""",
        locked=[row.batch_id for row in found],
        parts=[row.part for row in found],
        people=[row.people for row in found],
        **given,
    )
    _enqueue(
        tx,
        [
            (row.kind, row.envelope_id, row.batch_id, row.part, Cause(cause.id, str(row.envelope_id), cause.traceparent))
            for row in found
        ],
    )
    return people


def drop_bodies(tx: Tx, keep_days: int, at_most: int) -> int:
    """Drop what was kept of batches whose people have all been resolved for so long; returns how many of them."""
    # Locked first, looked at in a statement of its own: what was asked for again while we waited keeps its batch.
    rows = tx.rows(
        """SELECT batch_id FROM batches WHERE body IS NOT NULL AND resolved = count
             AND resolved_at <= clock_timestamp() - make_interval(days => %(days)s)
           ORDER BY resolved_at LIMIT %(some)s FOR UPDATE SKIP LOCKED""",
        days=keep_days,
        some=at_most,
    )
    return tx.run(
        """UPDATE batches b SET body = NULL, disbursements = NULL WHERE batch_id = ANY(%(ids)s::uuid[])
             AND NOT EXISTS (SELECT FROM parts p WHERE p.batch_id = b.batch_id AND p.answered_at IS NULL)""",
        ids=[row.batch_id for row in rows],
    )


# --- The copy of a registry ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """Where a person lives from now on (None: not in the registry any more), and when and where in the topic it was said."""

    home: Home | None
    at_ms: int
    offset: int


def put_people(tx: Tx, said: Mapping[tuple[str, str], Said]) -> None:
    """By (registry, beneficiary). What is there already, or has been overtaken, changes nothing: a replica that was frozen while
    another went on writes nothing old. Later is what has the higher offset, or, in a topic that was made anew, the later time."""
    if not said:
        return
    rows = sorted(said.items(), key=lambda row: row[0])
    homes = [one.home or (None, None, None, None) for _, one in rows]
    tx.run(
        """INSERT INTO people AS p (registry, beneficiary_id, large_zone_id, large_zone_code, small_zone_id, small_zone_code,
                                    said_ms, said_offset)
           SELECT * FROM unnest(%(registries)s::text[], %(ids)s::text[], %(large)s::text[], %(large_codes)s::text[],
                                %(small)s::text[], %(small_codes)s::text[], %(at)s::bigint[], %(offsets)s::bigint[])
           ON CONFLICT (registry, beneficiary_id) DO UPDATE
           SET large_zone_id = excluded.large_zone_id, large_zone_code = excluded.large_zone_code,
               small_zone_id = excluded.small_zone_id, small_zone_code = excluded.small_zone_code,
               said_ms = excluded.said_ms, said_offset = excluded.said_offset
           WHERE excluded.said_offset > p.said_offset OR excluded.said_ms > p.said_ms""",
        registries=[registry for (registry, _), _ in rows],
        ids=[person for (_, person), _ in rows],
        large=[home[0] for home in homes],
        large_codes=[home[1] for home in homes],
        small=[home[2] for home in homes],
        small_codes=[home[3] for home in homes],
        at=[one.at_ms for _, one in rows],
        offsets=[one.offset for _, one in rows],
    )


def people(tx: Tx, registry: str, ids: Sequence[str]) -> dict[str, list[Home]]:
    """Beneficiary id -> where this person lives; whoever is not there is missing."""
    rows = tx.tuples(
        """SELECT beneficiary_id, large_zone_id, large_zone_code, small_zone_id, small_zone_code FROM people
           WHERE registry = %(registry)s AND beneficiary_id = ANY(%(ids)s::text[]) AND large_zone_id IS NOT NULL""",
        registry=registry,
        ids=list(ids),
    )
    return {row[0]: [Home(*row[1:])] for row in rows}


def _enqueue(tx: Tx, parts: Sequence[tuple[str, UUID, UUID, int, Cause]]) -> None:
    """(kind, envelope, batch, part, why) each."""
    for kind in sorted({part[0] for part in parts}):
        of_kind = [part for part in parts if part[0] == kind]
        workqueue.enqueue(
            tx,
            kind,
            [subject(batch_id, part) for _, _, batch_id, part, _ in of_kind],
            [lock_key("resolution", envelope_id) for _, envelope_id, _, _, _ in of_kind],
            [cause for _, _, _, _, cause in of_kind],
        )
