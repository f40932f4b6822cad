"""Every SQL statement of allocation, one function each; sets in, sets out. What changes loads runs under the cycle's lock."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from libs.common import jobs
from libs.common.contracts.base import GOODS, BatchHeader, EnvelopeHeader
from libs.common.contracts.resolution import BatchZonesResolved
from libs.common.db import Tx, lock_key, lock_key_text
from libs.common.envelope import Cause
from libs.common.swift import usable
from services.allocation.domain import AGENCY, WAREHOUSE, Choice, Group, Share
from services.allocation.ports import Listing

SERVICE = "allocation"
REFERENCE_LOCK = lock_key_text(f"{SERVICE}/reference")  # shared while planning, exclusive where what changed is made known


# --- Envelopes --------------------------------------------------------------------------------------------------------


def ensure_envelopes(tx: Tx, rows: Iterable[tuple[EnvelopeHeader, int]]) -> None:
    """(header, decimals of its amounts). Whoever comes first makes the row, in key order; the highest revision's header stays."""
    known: dict[UUID, tuple[EnvelopeHeader, int]] = {}
    for header, scale in rows:
        if header.envelope_id not in known or known[header.envelope_id][0].revision < header.revision:
            known[header.envelope_id] = header, scale
    ordered = [known[key] for key in sorted(known)]
    headers = [header for header, _ in ordered]
    tx.run(
        """INSERT INTO envelopes AS e (envelope_id, lock_key, header, revision, benefit_type, goods, programme, programme_id,
                                       benefit_code_id, cycle_id, currency, measurement_unit, scale)
           SELECT * FROM unnest(%(ids)s::uuid[], %(keys)s::bigint[], %(headers)s::text[], %(revisions)s::int[], %(types)s::text[],
                                %(goods)s::boolean[], %(programmes)s::text[], %(programme_ids)s::text[], %(codes)s::text[],
                                %(cycles)s::text[], %(currencies)s::text[], %(units)s::text[], %(scales)s::smallint[])
           ON CONFLICT (envelope_id) DO UPDATE SET header = excluded.header, revision = excluded.revision
           WHERE e.revision < excluded.revision""",
        ids=[header.envelope_id for header in headers],
        keys=[lock_key(SERVICE, header.envelope_id) for header in headers],
        headers=[EnvelopeHeader.model_validate(header.model_dump()).model_dump_json() for header in headers],
        revisions=[header.revision for header in headers],
        types=[header.benefit_type for header in headers],
        goods=[header.benefit_type in GOODS for header in headers],
        programmes=[header.programme.mnemonic or header.programme.id for header in headers],
        programme_ids=[header.programme.id for header in headers],
        codes=[header.benefit_code.id for header in headers],
        cycles=[header.cycle.id for header in headers],
        currencies=[header.currency for header in headers],
        units=[header.measurement_unit for header in headers],
        scales=[scale for _, scale in ordered],
    )


def declare(tx: Tx, rows: Sequence[tuple[EnvelopeHeader, int, int]], *, complete: bool) -> None:
    """(header, declared, declared minor). Guard: what is complete stays; of what is not, an older revision changes nothing."""
    tx.run(
        """UPDATE envelopes e SET declared = d.declared, declared_minor = d.minor,
                  completed_at = CASE WHEN %(complete)s THEN clock_timestamp() END
           FROM (SELECT DISTINCT ON (envelope_id) * FROM unnest(%(ids)s::uuid[], %(revisions)s::int[], %(declared)s::bigint[],
                       %(minors)s::bigint[]) AS u (envelope_id, revision, declared, minor)
                 ORDER BY envelope_id, revision DESC) AS d
           WHERE e.envelope_id = d.envelope_id AND e.completed_at IS NULL AND (%(complete)s OR d.revision >= e.revision)""",
        ids=[header.envelope_id for header, _, _ in rows],
        revisions=[header.revision for header, _, _ in rows],
        declared=[declared for _, declared, _ in rows],
        minors=[minor for _, _, minor in rows],
        complete=complete,
    )


def envelope(tx: Tx, envelope_id: UUID) -> Any:
    """The row, with what hinders announcing, and whether funds has cancelled somebody. Read after the lock."""
    return tx.one(
        """SELECT e.*, EXISTS (SELECT 1 FROM dead_letters d WHERE d.state IN ('OPEN', 'REDRIVEN')
                                   AND (d.correlation_id IS NULL OR d.correlation_id = e.envelope_id::text)
                                   AND d.topic NOT LIKE '%%.commands.v1') AS letters,
                  EXISTS (SELECT 1 FROM cancel_requests r WHERE r.envelope_id = e.envelope_id AND r.state = 'ASKED') AS asked,
                  EXISTS (SELECT 1 FROM batches b WHERE b.envelope_id = e.envelope_id AND b.gives_back) AS gives_back
           FROM envelopes e WHERE e.envelope_id = %(id)s""",
        id=envelope_id,
    )


def is_known(tx: Tx, envelope_id: UUID) -> bool:
    return bool(tx.rows("SELECT 1 FROM envelopes WHERE envelope_id = %(id)s", id=envelope_id))


def ask_cancellation(tx: Tx, envelope_id: UUID, request_id: str, batches: int | None, ids: Sequence[str]) -> None:
    """A request and its tombstones; of an envelope's own (`batches` is given) also that nothing is announced from here on."""
    tx.run(
        """INSERT INTO cancel_requests (envelope_id, request_id, whole, batches, disbursement_ids)
           VALUES (%(envelope)s, %(request)s, %(whole)s, %(batches)s, %(ids)s::text[])
           ON CONFLICT (envelope_id, request_id) DO NOTHING""",
        envelope=envelope_id,
        request=request_id,
        whole=batches is not None,
        batches=batches,
        ids=list(ids),
    )
    tx.run(
        """INSERT INTO tombstones (envelope_id, disbursement_id) SELECT %(envelope)s, unnest(%(ids)s::text[])
           ON CONFLICT DO NOTHING""",
        envelope=envelope_id,
        ids=list(ids),
    )


def cancelled_by_funds(tx: Tx, rows: Sequence[tuple[BatchHeader, Sequence[str]]]) -> None:
    """(header, disbursements): their tombstones, and that their batches are to be looked at. In key order."""
    add_batches(tx, [header for header, _ in rows])
    tx.run(
        """INSERT INTO tombstones (envelope_id, disbursement_id)
           SELECT * FROM unnest(%(envelopes)s::uuid[], %(ids)s::text[]) ORDER BY 1, 2 ON CONFLICT DO NOTHING""",
        envelopes=[header.envelope_id for header, ids in rows for _ in ids],
        ids=[one for _, ids in rows for one in ids],
    )
    tx.run(
        """UPDATE batches b SET gives_back = true
           FROM (SELECT batch_id FROM batches WHERE batch_id = ANY(%(ids)s::uuid[]) ORDER BY batch_id FOR NO KEY UPDATE) AS found
           WHERE b.batch_id = found.batch_id""",
        ids=[header.batch_id for header, _ in rows],
    )


def stop(tx: Tx, envelope_ids: Sequence[UUID]) -> None:
    """The publisher wants these envelopes cancelled."""
    tx.run("UPDATE envelopes SET cancelling = true WHERE envelope_id = ANY(%(ids)s::uuid[])", ids=list(envelope_ids))


# --- Intake -----------------------------------------------------------------------------------------------------------


def add_batches(tx: Tx, headers: Iterable[BatchHeader]) -> None:
    known = {header.batch_id: header for header in headers}
    ordered = [known[key] for key in sorted(known)]
    tx.run(
        """INSERT INTO batches (batch_id, envelope_id, number, header)
           SELECT * FROM unnest(%(ids)s::uuid[], %(envelopes)s::uuid[], %(numbers)s::int[], %(headers)s::text[])
           ON CONFLICT (batch_id) DO NOTHING""",
        ids=[header.batch_id for header in ordered],
        envelopes=[header.envelope_id for header in ordered],
        numbers=[header.number for header in ordered],
        headers=[header.model_dump_json() for header in ordered],
    )


def add_arrivals(tx: Tx, parts: Sequence[BatchZonesResolved]) -> dict[tuple[UUID, int], int]:
    """(batch, part) -> number, of those never seen before, whatever the id of the event that brought them."""
    rows = tx.rows(
        """INSERT INTO arrivals (envelope_id, batch_id, part, sealed_key, sealed, located, unresolved)
           SELECT * FROM unnest(%(envelopes)s::uuid[], %(batches)s::uuid[], %(parts)s::int[], %(keys)s::text[], %(sealed)s::text[],
                                %(located)s::int[], %(unresolved)s::int[])
           ON CONFLICT (batch_id, part) DO NOTHING RETURNING arrival, batch_id, part""",
        envelopes=[data.header.envelope_id for data in parts],
        batches=[data.header.batch_id for data in parts],
        parts=[data.part for data in parts],
        keys=[data.sealed.key_id for data in parts],
        sealed=[data.sealed.data for data in parts],
        located=[data.count for data in parts],
        unresolved=[data.unresolved_count for data in parts],
    )
    return {(row.batch_id, row.part): row.arrival for row in rows}


def add_groups(tx: Tx, rows: Iterable[Sequence[object]]) -> None:
    """(arrival, grp, envelope, batch, large zone, code, small zone, code, count, total, reason, message)."""
    columns = (
        "arrival grp envelope_id batch_id large_zone_id large_zone_code small_zone_id small_zone_code count total_minor".split()
    )
    tx.copy("groups", (*columns, "reason", "message"), rows)


def add_entitlements(tx: Tx, rows: Iterable[tuple[int, int, int, int, str, str]]) -> None:
    """(arrival, position, grp, amount, disbursement, beneficiary)."""
    columns = ("arrival", "position", "grp", "amount_minor", "disbursement_id", "beneficiary_id")
    tx.copy("entitlements", columns, rows)


# --- Taking what has arrived ------------------------------------------------------------------------------------------


def new_arrivals(tx: Tx, envelope_id: UUID, limit: int) -> list[Any]:
    """The oldest that nobody has looked at; `again`: others of the batch have come."""
    return tx.rows(
        """SELECT a.arrival, a.batch_id, EXISTS (SELECT 1 FROM arrivals b WHERE b.batch_id = a.batch_id
                                                     AND b.arrival <> a.arrival) AS again
           FROM arrivals a WHERE a.envelope_id = %(id)s AND a.taken_at IS NULL ORDER BY a.arrival LIMIT %(limit)s""",
        id=envelope_id,
        limit=limit,
    )


def supersede(tx: Tx, batch_ids: Sequence[UUID], arrivals: Sequence[int]) -> None:
    """Of a person who came in several parts one row stays: the one that is cancelled, else the first that knows where they live,
    else the last that does not."""
    tx.run(
        """WITH people AS (
               SELECT e.arrival, e.position, e.grp, e.amount_minor, row_number() OVER (
                          PARTITION BY a.batch_id, e.disbursement_id
                          ORDER BY g.state = 'CANCELLED' DESC, g.small_zone_id IS NOT NULL DESC, a.taken_at NULLS LAST,
                                   CASE WHEN g.small_zone_id IS NULL THEN -a.part ELSE a.part END) AS rank
               FROM arrivals a JOIN entitlements e USING (arrival) JOIN groups g USING (arrival, grp)
               WHERE a.batch_id = ANY(%(batches)s::uuid[]) AND (a.taken_at IS NOT NULL OR a.arrival = ANY(%(arrivals)s::int[]))),
           gone AS (
               DELETE FROM entitlements e USING people p
               WHERE p.rank > 1 AND e.arrival = p.arrival AND e.position = p.position
               RETURNING p.arrival, p.grp, p.amount_minor)
           UPDATE groups g SET count = g.count - s.n, total_minor = g.total_minor - s.minor
           FROM (SELECT arrival, grp, count(*) AS n, sum(amount_minor) AS minor FROM gone GROUP BY arrival, grp) AS s
           WHERE g.arrival = s.arrival AND g.grp = s.grp""",
        batches=list(batch_ids),
        arrivals=list(arrivals),
    )
    tx.run("DELETE FROM groups WHERE batch_id = ANY(%(batches)s::uuid[]) AND count = 0", batches=list(batch_ids))


def mark_taken(tx: Tx, arrivals: Sequence[int]) -> None:
    """Those without a zone are held with resolution's reason; a batch can be announced once everybody in it is known."""
    tx.run(
        """WITH taken AS (
               UPDATE arrivals SET taken_at = clock_timestamp() WHERE arrival = ANY(%(ids)s::int[]) RETURNING batch_id, part),
           held AS (
               UPDATE groups SET state = 'HELD', since = clock_timestamp()
               WHERE arrival = ANY(%(ids)s::int[]) AND small_zone_id IS NULL AND state = 'NEW')
           UPDATE batches b SET whole = true, ready_at = clock_timestamp() FROM taken t WHERE b.batch_id = t.batch_id AND t.part = 1""",
        ids=list(arrivals),
    )


# --- Planning ---------------------------------------------------------------------------------------------------------


def reference_version(tx: Tx) -> int:
    """Read before the places: what changes afterwards has a later version, and those held now are tried again."""
    version: int = tx.one("SELECT max(version) AS version FROM reference").version
    return version


def unplanned(tx: Tx, envelope_id: UUID, arrivals: Sequence[int], version: int, limit: int) -> tuple[list[Group], bool]:
    """The new groups of these arrivals, and held ones which this version of the reference data was not asked for yet, until
    these are so many people; True if there are more."""
    new = tx.tuples(
        """SELECT arrival, grp, large_zone_id, small_zone_id, total_minor FROM groups
           WHERE arrival = ANY(%(arrivals)s::int[]) AND state = 'NEW'""",
        arrivals=list(arrivals),
    )
    held = tx.rows(
        """SELECT arrival, grp, large_zone_id, small_zone_id, total_minor, count, people FROM (
               SELECT *, sum(count) OVER (ORDER BY tried, arrival, grp) - count AS before, sum(count) OVER () AS people FROM groups
               WHERE envelope_id = %(id)s AND state = 'HELD' AND small_zone_id IS NOT NULL AND tried < %(version)s) AS h
           WHERE before < %(limit)s""",
        id=envelope_id,
        version=version,
        limit=limit,
    )
    more = bool(held) and sum(row.count for row in held) < held[0].people
    return [Group(*row) for row in new] + [Group(*row[:5]) for row in held], more


def know_zones(tx: Tx, envelope_id: UUID, zones: Sequence[tuple[str, str]]) -> None:
    """(kind, zone): they count for coverage from here."""
    tx.run(
        """INSERT INTO choices (envelope_id, kind, zone_id)
           SELECT %(id)s, * FROM unnest(%(kinds)s::text[], %(zones)s::text[]) ON CONFLICT DO NOTHING""",
        id=envelope_id,
        kinds=[kind for kind, _ in zones],
        zones=[zone_id for _, zone_id in zones],
    )


def chosen(tx: Tx, envelope_id: UUID, zones: Sequence[tuple[str, str]]) -> list[Any]:
    """kind, zone_id, place_id and chosen_by of zones that have a place."""
    return tx.rows(
        """SELECT kind, zone_id, place_id, chosen_by FROM choices JOIN unnest(%(kinds)s::text[], %(zones)s::text[])
                AS asked (kind, zone_id) USING (kind, zone_id)
           WHERE envelope_id = %(id)s AND place_id IS NOT NULL""",
        id=envelope_id,
        kinds=[kind for kind, _ in zones],
        zones=[zone_id for _, zone_id in zones],
    )


_ROOM = """floor(coalesce(s.capacity_minor, s.capacity_units * 10::numeric ^ e.scale)
                 - coalesce(l.units, 0) * 10::numeric ^ e.scale) AS room,
           trunc(coalesce(l.units, 0) * 10::numeric ^ e.scale) AS load"""
_LOAD = """LEFT JOIN loads l ON l.programme_id = e.programme_id AND l.benefit_code_id = e.benefit_code_id AND l.cycle_id = e.cycle_id
                AND l.kind = s.kind AND l.place_id = s.id"""


def candidates(tx: Tx, envelope_id: UUID, source: str, zones: Sequence[tuple[str, str]]) -> list[Any]:
    """Who serves these zones with the envelope's benefit: kind, zone_id, id, coverage, room (None: no limit) and load. Read under
    the cycle's lock."""
    return tx.rows(
        f"""WITH coverage AS MATERIALIZED (
                SELECT z.kind, z.id, count(*) AS zones FROM choices c
                JOIN place_zones z ON z.source = %(source)s AND z.kind = c.kind AND z.zone_id = c.zone_id
                WHERE c.envelope_id = %(id)s GROUP BY z.kind, z.id)
            SELECT z.kind, z.zone_id, z.id, v.zones AS coverage, {_ROOM}
            FROM unnest(%(kinds)s::text[], %(zones)s::text[]) AS asked (kind, zone_id)
            JOIN place_zones z ON z.source = %(source)s AND z.kind = asked.kind AND z.zone_id = asked.zone_id
            JOIN envelopes e ON e.envelope_id = %(id)s
            JOIN serves s ON s.source = z.source AND s.kind = z.kind AND s.id = z.id
                 AND s.programme_id = e.programme_id AND s.benefit_code_id = e.benefit_code_id AND (e.goods OR s.has_account)
            JOIN coverage v ON v.kind = z.kind AND v.id = z.id {_LOAD}""",
        id=envelope_id,
        source=source,
        kinds=[kind for kind, _ in zones],
        zones=[zone_id for _, zone_id in zones],
    )


def place_for(tx: Tx, envelope_id: UUID, source: str, kind: str, zone_id: str, place_id: str) -> list[Any]:
    """Whether this place is there and serves the zone with the envelope's benefit, and its room: none or one row."""
    return tx.rows(
        f"""SELECT {_ROOM} FROM envelopes e
            JOIN serves s ON s.source = %(source)s AND s.kind = %(kind)s AND s.id = %(place)s
                 AND s.programme_id = e.programme_id AND s.benefit_code_id = e.benefit_code_id AND (e.goods OR s.has_account)
            JOIN place_zones z ON z.source = s.source AND z.kind = s.kind AND z.id = s.id AND z.zone_id = %(zone)s {_LOAD}
            WHERE e.envelope_id = %(id)s""",
        id=envelope_id,
        source=source,
        kind=kind,
        zone=zone_id,
        place=place_id,
    )


def people_of(tx: Tx, groups: Iterable[tuple[int, int]]) -> list[tuple[Any, ...]]:
    """(arrival, grp, position, amount, disbursement, beneficiary) of all people in these groups, in order."""
    keys = list(groups)
    return tx.tuples(  # the list of arrivals finds the rows by their key; a join alone would read the whole table
        """SELECT arrival, grp, position, amount_minor, disbursement_id, beneficiary_id FROM entitlements
           WHERE arrival = ANY(%(found)s::int[])
             AND (arrival, grp) IN (SELECT * FROM unnest(%(arrivals)s::int[], %(groups)s::int[]))
           ORDER BY arrival, grp, position""",
        found=sorted({key[0] for key in keys}),
        arrivals=[key[0] for key in keys],
        groups=[key[1] for key in keys],
    )


def choose(tx: Tx, envelope_id: UUID, choices: Sequence[Choice]) -> None:
    """What the zones' places are from here."""
    rows = [(choice.kind, zone_id, *pick) for choice in choices for zone_id, pick in sorted(choice.chosen.items())]
    tx.run(
        """INSERT INTO choices AS c (envelope_id, kind, zone_id, place_id, chosen_by)
           SELECT %(id)s, * FROM unnest(%(kinds)s::text[], %(zones)s::text[], %(places)s::text[], %(by)s::text[])
           ON CONFLICT (envelope_id, kind, zone_id) DO UPDATE SET place_id = excluded.place_id, chosen_by = excluded.chosen_by
           WHERE c.place_id IS DISTINCT FROM excluded.place_id OR c.chosen_by <> excluded.chosen_by""",
        id=envelope_id,
        kinds=[row[0] for row in rows],
        zones=[row[1] for row in rows],
        places=[row[2] for row in rows],
        by=[row[3] for row in rows],
    )


def divide(tx: Tx, moves: Sequence[tuple[int, int, Sequence[int]]]) -> list[tuple[int, int]]:
    """(arrival, grp, positions) each: those people become a group of their own, as the one they were in in all respects.
    Returns the new groups, in the same order; what is empty then is gone."""
    if not moves:
        return []
    last = {
        row.arrival: row.last
        for row in tx.rows(
            "SELECT arrival, max(grp) AS last FROM groups WHERE arrival = ANY(%(ids)s::int[]) GROUP BY arrival",
            ids=sorted({move[0] for move in moves}),
        )
    }
    made: list[tuple[int, int]] = []
    for arrival, _, _ in moves:
        last[arrival] += 1
        made.append((arrival, last[arrival]))
    people = [(new, position) for new, move in zip(made, moves, strict=True) for position in move[2]]
    tx.run(
        """WITH moved AS (
               UPDATE entitlements e SET grp = m.grp
               FROM unnest(%(arrivals)s::int[], %(groups)s::int[], %(positions)s::smallint[]) AS m (arrival, grp, position)
               WHERE e.arrival = m.arrival AND e.position = m.position RETURNING e.arrival, e.grp, e.amount_minor),
           sums AS (SELECT arrival, grp, count(*) AS n, sum(amount_minor) AS minor FROM moved GROUP BY arrival, grp),
           parts AS (
               SELECT d.arrival, d.old, d.new, n, minor
               FROM unnest(%(all)s::int[], %(old)s::int[], %(new)s::int[]) AS d (arrival, old, new)
               JOIN sums ON sums.arrival = d.arrival AND sums.grp = d.new),
           added AS (
               INSERT INTO groups (arrival, grp, envelope_id, batch_id, large_zone_id, large_zone_code, small_zone_id,
                                   small_zone_code, count, total_minor, state, reason, message, warehouse_id, warehouse_by,
                                   agency_id, agency_by, tried, part, given_back, since)
               SELECT g.arrival, p.new, envelope_id, batch_id, large_zone_id, large_zone_code, small_zone_id, small_zone_code, p.n,
                      p.minor, state, reason, message, warehouse_id, warehouse_by, agency_id, agency_by, tried, part, given_back,
                      since
               FROM parts p JOIN groups g ON g.arrival = p.arrival AND g.grp = p.old)
           UPDATE groups g SET count = g.count - p.n, total_minor = g.total_minor - p.minor
           FROM (SELECT arrival, old, sum(n) AS n, sum(minor) AS minor FROM parts GROUP BY arrival, old) AS p
           WHERE g.arrival = p.arrival AND g.grp = p.old""",
        arrivals=[new[0] for new, _ in people],
        groups=[new[1] for new, _ in people],
        positions=[position for _, position in people],
        all=[move[0] for move in moves],
        old=[move[1] for move in moves],
        new=[new[1] for new in made],
    )
    tx.run("DELETE FROM groups WHERE arrival = ANY(%(ids)s::int[]) AND count = 0", ids=sorted({move[0] for move in moves}))
    return made


def plan(tx: Tx, rows: Sequence[tuple[tuple[int, int], Share]], version: int) -> None:
    """Groups and what becomes of each. Guard: only what has no place yet; whoever is held still is held since then."""
    tx.run(
        """WITH planned AS (
               UPDATE groups g SET state = CASE WHEN p.reason = '' THEN 'PLANNED' ELSE 'HELD' END,
                      reason = nullif(p.reason, ''), message = nullif(p.message, ''), warehouse_id = p.warehouse,
                      warehouse_by = p.warehouse_by, agency_id = p.agency, agency_by = p.agency_by, tried = %(version)s,
                      since = CASE WHEN g.state = 'HELD' AND g.reason = p.reason THEN g.since ELSE clock_timestamp() END
               FROM unnest(%(arrivals)s::int[], %(groups)s::int[], %(reasons)s::text[], %(messages)s::text[], %(warehouses)s::text[],
                           %(warehouses_by)s::text[], %(agencies)s::text[], %(agencies_by)s::text[])
                    AS p (arrival, grp, reason, message, warehouse, warehouse_by, agency, agency_by)
               WHERE g.arrival = p.arrival AND g.grp = p.grp AND g.state IN ('NEW', 'HELD') RETURNING g.batch_id, g.state)
           UPDATE batches SET ready_at = clock_timestamp()
           WHERE batch_id IN (SELECT batch_id FROM planned WHERE state = 'PLANNED')""",
        arrivals=[key[0] for key, _ in rows],
        groups=[key[1] for key, _ in rows],
        reasons=[share.reason for _, share in rows],
        messages=[share.message for _, share in rows],
        warehouses=[share.warehouse.place_id if share.warehouse else None for _, share in rows],
        warehouses_by=[share.warehouse.chosen_by if share.warehouse else None for _, share in rows],
        agencies=[share.agency.place_id if share.agency else None for _, share in rows],
        agencies_by=[share.agency.chosen_by if share.agency else None for _, share in rows],
        version=version,
    )


def load(tx: Tx, envelope_id: UUID, change: Mapping[tuple[str, str], int]) -> None:
    """(kind, place) -> minor units more, or fewer. The caller holds the cycle's lock."""
    rows = [(*key, minor) for key, minor in sorted(change.items()) if minor]
    tx.run(
        """MERGE INTO loads l USING (
               SELECT e.programme_id, e.benefit_code_id, e.cycle_id, u.kind, u.place_id, u.minor / 10::numeric ^ e.scale AS units
               FROM unnest(%(kinds)s::text[], %(places)s::text[], %(minors)s::numeric[]) AS u (kind, place_id, minor)
               JOIN envelopes e ON e.envelope_id = %(id)s) AS c
           ON (l.programme_id, l.benefit_code_id, l.cycle_id, l.kind, l.place_id)
            = (c.programme_id, c.benefit_code_id, c.cycle_id, c.kind, c.place_id)
           WHEN MATCHED THEN UPDATE SET units = l.units + c.units
           WHEN NOT MATCHED THEN INSERT (kind, place_id, programme_id, benefit_code_id, cycle_id, units)
                VALUES (c.kind, c.place_id, c.programme_id, c.benefit_code_id, c.cycle_id, c.units)""",
        id=envelope_id,
        kinds=[row[0] for row in rows],
        places=[row[1] for row in rows],
        minors=[row[2] for row in rows],
    )


# --- Reassigning ------------------------------------------------------------------------------------------------------

_ZONE = {WAREHOUSE: "large_zone_id", AGENCY: "small_zone_id"}


def groups_of_zone(tx: Tx, envelope_id: UUID, kind: str, zone_id: str) -> Any:
    """announced: somebody of the zone was told; count, minor: of those who are planned or held, whom nobody told."""
    return tx.one(
        f"""SELECT coalesce(bool_or(state = 'ALLOCATED'), false) AS announced,
                   coalesce(sum(count) FILTER (WHERE state IN ('PLANNED', 'HELD')), 0)::bigint AS count,
                   coalesce(sum(total_minor) FILTER (WHERE state IN ('PLANNED', 'HELD')), 0)::bigint AS minor
            FROM groups WHERE envelope_id = %(id)s AND {_ZONE[kind]} = %(zone)s""",
        id=envelope_id,
        zone=zone_id,
    )


def planned_at(tx: Tx, envelope_id: UUID, kind: str, zone_id: str) -> dict[str, int]:
    """place -> minor units of the zone that are planned there."""
    rows = tx.rows(
        f"""SELECT {kind}_id AS place_id, sum(total_minor)::bigint AS minor FROM groups
            WHERE envelope_id = %(id)s AND {_ZONE[kind]} = %(zone)s AND state = 'PLANNED' GROUP BY 1""",
        id=envelope_id,
        zone=zone_id,
    )
    return {row.place_id: row.minor for row in rows}


def reassign(tx: Tx, envelope_id: UUID, kind: str, zone_id: str, place_id: str) -> str | None:
    """The operator's place is the zone's; who is planned goes there, who is held is tried anew. Returns the place before."""
    tx.run(
        f"""UPDATE groups SET {kind}_id = CASE WHEN state = 'PLANNED' THEN %(place)s END,
                   {kind}_by = CASE WHEN state = 'PLANNED' THEN 'OPERATOR' END, tried = CASE WHEN state = 'HELD' THEN 0 ELSE tried END
            WHERE envelope_id = %(id)s AND {_ZONE[kind]} = %(zone)s AND state IN ('PLANNED', 'HELD')""",
        id=envelope_id,
        zone=zone_id,
        place=place_id,
    )
    before = tx.rows(
        """SELECT place_id FROM choices WHERE envelope_id = %(id)s AND kind = %(kind)s AND zone_id = %(zone)s""",
        id=envelope_id,
        kind=kind,
        zone=zone_id,
    )
    tx.run(
        """INSERT INTO choices (envelope_id, kind, zone_id, place_id, chosen_by)
           VALUES (%(id)s, %(kind)s, %(zone)s, %(place)s, 'OPERATOR')
           ON CONFLICT (envelope_id, kind, zone_id) DO UPDATE SET place_id = excluded.place_id, chosen_by = 'OPERATOR'""",
        id=envelope_id,
        kind=kind,
        zone=zone_id,
        place=place_id,
    )
    return before[0].place_id if before else None


# --- Announcing -------------------------------------------------------------------------------------------------------


def ready_batches(tx: Tx, envelope_id: UUID, delay_seconds: float, limit: int) -> list[Any]:
    """The next batches of which everybody is known and somebody is to be told of, once there was time to look at the plan."""
    return tx.rows(
        """SELECT b.batch_id, b.header, b.parts, b.envelope_id FROM batches b JOIN envelopes e USING (envelope_id)
           WHERE b.envelope_id = %(id)s AND b.ready_at IS NOT NULL AND b.whole
             AND greatest(b.ready_at, e.completed_at) + make_interval(secs => %(delay)s) <= clock_timestamp()
           ORDER BY b.number LIMIT %(limit)s""",
        id=envelope_id,
        delay=delay_seconds,
        limit=limit,
    )


def announceable(tx: Tx, batch_ids: Sequence[UUID]) -> list[Any]:
    """The planned groups of these batches; of those of which nothing was said yet also the held ones."""
    return tx.rows(
        """SELECT g.* FROM groups g JOIN batches b USING (batch_id)
           WHERE b.batch_id = ANY(%(ids)s::uuid[]) AND (g.state = 'PLANNED' OR (g.state = 'HELD' AND b.parts = 0))
           ORDER BY g.arrival, g.grp""",
        ids=list(batch_ids),
    )


def hold_back(tx: Tx, envelope_id: UUID, agencies: Sequence[str]) -> list[Any]:
    """Whoever is planned at these has no agency any more and is tried anew. Returns agency_id, and minor: what was planned there."""
    return tx.rows(
        """WITH back AS (
               UPDATE groups g SET state = 'HELD', reason = 'NO_AGENCY',
                      message = format('agency %%s has no account any more that a bank can be told', g.agency_id),
                      agency_id = NULL, agency_by = NULL, tried = 0, since = clock_timestamp()
               FROM (SELECT h.arrival, h.grp, h.agency_id FROM groups h
                     WHERE h.envelope_id = %(id)s AND h.state = 'PLANNED' AND h.agency_id = ANY(%(agencies)s::text[])) AS was
               WHERE g.arrival = was.arrival AND g.grp = was.grp RETURNING was.agency_id, g.total_minor)
           SELECT agency_id, sum(total_minor)::bigint AS minor FROM back GROUP BY agency_id""",
        id=envelope_id,
        agencies=list(agencies),
    )


def sealed_parts(tx: Tx, arrivals: Sequence[int]) -> list[Any]:
    """arrival, envelope_id, batch_id, part, sealed_key and sealed."""
    return tx.rows(
        """SELECT arrival, envelope_id, batch_id, part, sealed_key, sealed FROM arrivals WHERE arrival = ANY(%(ids)s::int[])""",
        ids=list(arrivals),
    )


def places(tx: Tx, source: str, keys: Sequence[tuple[str, str]]) -> list[Any]:
    """(kind, id) -> what is known of each, from this source if it knows it."""
    return tx.rows(
        """SELECT DISTINCT ON (kind, id) p.source, kind, id, p.mnemonic, p.name, p.sealed
           FROM places p JOIN unnest(%(kinds)s::text[], %(ids)s::text[]) AS asked (kind, id) USING (kind, id)
           ORDER BY kind, id, p.sealed IS NULL, p.source <> %(source)s""",
        source=source,
        kinds=[kind for kind, _ in keys],
        ids=[place_id for _, place_id in keys],
    )


def benefit(tx: Tx, envelope_id: UUID) -> tuple[str, str]:
    """The envelope's programme and benefit code."""
    row = tx.one("SELECT programme_id, benefit_code_id FROM envelopes WHERE envelope_id = %(id)s", id=envelope_id)
    return row.programme_id, row.benefit_code_id


def announced(tx: Tx, groups: Sequence[tuple[int, int, int]], batches: Sequence[tuple[UUID, int, int, int, bool]]) -> None:
    """(arrival, grp, part) of what was said, and of each batch (id, part, count, held, whether more is to follow at once). What is
    sealed goes once nobody needs it any more."""
    tx.run(
        """UPDATE groups g SET state = 'ALLOCATED', part = s.part, since = clock_timestamp()
           FROM unnest(%(arrivals)s::int[], %(groups)s::int[], %(parts)s::int[]) AS s (arrival, grp, part)
           WHERE g.arrival = s.arrival AND g.grp = s.grp AND g.state = 'PLANNED'""",
        arrivals=[group[0] for group in groups],
        groups=[group[1] for group in groups],
        parts=[group[2] for group in groups],
    )
    tx.run(
        """WITH said AS (
               SELECT * FROM unnest(%(ids)s::uuid[], %(parts)s::int[], %(counts)s::int[], %(held)s::int[], %(more)s::boolean[])
                   AS s (batch_id, part, count, held, more)),
           kept AS (
               INSERT INTO announcements (batch_id, part, envelope_id, count, held)
               SELECT batch_id, part, envelope_id, count, s.held FROM said s JOIN batches USING (batch_id) WHERE part > 0)
           UPDATE batches b SET parts = greatest(b.parts, s.part), ready_at = CASE WHEN s.more THEN b.ready_at END
           FROM said s WHERE b.batch_id = s.batch_id""",
        ids=[batch[0] for batch in batches],
        parts=[batch[1] for batch in batches],
        counts=[batch[2] for batch in batches],
        held=[batch[3] for batch in batches],
        more=[batch[4] for batch in batches],
    )
    forget_sealed(tx, sorted({group[0] for group in groups}))


def forget_sealed(tx: Tx, arrivals: Sequence[int]) -> None:
    """Names and contacts of those who have reached their end."""
    tx.run(
        """UPDATE arrivals a SET sealed = NULL, sealed_key = NULL WHERE a.arrival = ANY(%(ids)s::int[]) AND a.sealed IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM groups g WHERE g.arrival = a.arrival AND g.small_zone_id IS NOT NULL
                                 AND g.state IN ('NEW', 'PLANNED', 'HELD'))""",
        ids=list(arrivals),
    )


# --- Cancelling, and what it all comes to -----------------------------------------------------------------------------


def asked_cancellations(tx: Tx, envelope_id: UUID) -> list[Any]:
    return tx.rows(
        """SELECT id, request_id, whole, batches, disbursement_ids FROM cancel_requests
           WHERE envelope_id = %(id)s AND state = 'ASKED' ORDER BY id""",
        id=envelope_id,
    )


def cancel_groups(tx: Tx, groups: Sequence[tuple[int, int]], *, said: bool) -> list[Any]:
    """Nobody of them is served. Returns what places they had, with what was planned there. Guard: what was said stays; with `said`
    (cash that funds has cancelled) it counts for its place no more, once."""
    return tx.rows(
        """WITH gone AS (
               UPDATE groups g SET state = CASE was.state WHEN 'ALLOCATED' THEN was.state ELSE 'CANCELLED' END,
                      given_back = was.state = 'ALLOCATED', reason = NULL, message = NULL,
                      since = CASE was.state WHEN 'ALLOCATED' THEN g.since ELSE clock_timestamp() END
               FROM (SELECT h.arrival, h.grp, h.state FROM groups h
                     JOIN unnest(%(arrivals)s::int[], %(groups)s::int[]) AS asked (arrival, grp) USING (arrival, grp)
                     WHERE h.state IN ('NEW', 'PLANNED', 'HELD')
                        OR (%(said)s AND h.state = 'ALLOCATED' AND NOT h.given_back)) AS was
               WHERE g.arrival = was.arrival AND g.grp = was.grp
               RETURNING was.state, g.warehouse_id, g.agency_id, g.total_minor)
           SELECT p.kind, p.place_id, sum(total_minor)::bigint AS minor
           FROM gone CROSS JOIN LATERAL (VALUES ('warehouse', warehouse_id), ('agency', agency_id)) AS p (kind, place_id)
           WHERE gone.state IN ('PLANNED', 'ALLOCATED') AND p.place_id IS NOT NULL GROUP BY p.kind, p.place_id""",
        arrivals=[group[0] for group in groups],
        groups=[group[1] for group in groups],
        said=said,
    )


def cancellable_groups(tx: Tx, envelope_id: UUID, limit: int) -> list[tuple[int, int]]:
    """Of an envelope that is cancelled: all that nobody was told of. What is not taken yet waits for that."""
    rows = tx.tuples(
        """SELECT g.arrival, g.grp FROM groups g JOIN arrivals a USING (arrival)
           WHERE g.envelope_id = %(id)s AND g.state IN ('NEW', 'PLANNED', 'HELD') AND a.taken_at IS NOT NULL LIMIT %(limit)s""",
        id=envelope_id,
        limit=limit,
    )
    return [(row[0], row[1]) for row in rows]


def cancellable_people(tx: Tx, envelope_id: UUID, arrivals: Sequence[int], ids: Sequence[str]) -> list[tuple[Any, ...]]:
    """(arrival, grp, count of the group, position) of people with a tombstone of whom nobody was told: among all if they are
    asked for now, and among those who have just arrived. One pass over the envelope, however many there are."""
    return tx.tuples(
        """SELECT g.arrival, g.grp, g.count, e.position
           FROM groups g JOIN arrivals a USING (arrival) JOIN entitlements e USING (arrival, grp)
           JOIN tombstones t ON t.envelope_id = g.envelope_id AND t.disbursement_id = e.disbursement_id
           WHERE g.envelope_id = %(id)s AND g.state IN ('NEW', 'PLANNED', 'HELD') AND a.taken_at IS NOT NULL
             AND (g.arrival = ANY(%(arrivals)s::int[]) OR t.disbursement_id = ANY(%(ids)s::text[]))
           ORDER BY g.arrival, g.grp, e.position""",
        id=envelope_id,
        arrivals=list(arrivals),
        ids=list(ids),
    )


def giving_back(tx: Tx, envelope_id: UUID, limit: int) -> list[Any]:
    """The next batches of which funds has cancelled somebody: batch_id, and arrivals, which are its parts that were taken."""
    return tx.rows(
        """SELECT b.batch_id, coalesce(array_agg(a.arrival) FILTER (WHERE a.taken_at IS NOT NULL), '{}') AS arrivals
           FROM (SELECT batch_id FROM batches WHERE envelope_id = %(id)s AND gives_back ORDER BY number LIMIT %(limit)s) AS b
           LEFT JOIN arrivals a USING (batch_id) GROUP BY b.batch_id""",
        id=envelope_id,
        limit=limit,
    )


def gave_back(tx: Tx, batch_ids: Sequence[UUID]) -> None:
    tx.run("UPDATE batches SET gives_back = false WHERE batch_id = ANY(%(ids)s::uuid[])", ids=list(batch_ids))


def people_giving_back(tx: Tx, envelope_id: UUID, arrivals: Sequence[int]) -> list[tuple[Any, ...]]:
    """(arrival, grp, count of the group, position) of people of these arrivals whom funds has cancelled, and who still count."""
    return tx.tuples(  # the list of arrivals finds the rows by their key, as in people_of
        """SELECT g.arrival, g.grp, g.count, e.position FROM entitlements e JOIN groups g USING (arrival, grp)
           JOIN tombstones t ON t.envelope_id = g.envelope_id AND t.disbursement_id = e.disbursement_id
           WHERE e.arrival = ANY(%(arrivals)s::int[]) AND g.arrival = ANY(%(arrivals)s::int[]) AND t.envelope_id = %(id)s
             AND g.state <> 'CANCELLED' AND NOT g.given_back
           ORDER BY g.arrival, g.grp, e.position""",
        id=envelope_id,
        arrivals=list(arrivals),
    )


def has_tombstones(tx: Tx, envelope_id: UUID) -> bool:
    return bool(tx.rows("SELECT 1 FROM tombstones WHERE envelope_id = %(id)s LIMIT 1", id=envelope_id))


def fates(tx: Tx, envelope_id: UUID, ids: Sequence[str]) -> list[Any]:
    """id, and amount and state of those of the disbursements that have come."""
    return tx.rows(
        """WITH known AS MATERIALIZED (
               SELECT e.disbursement_id, e.amount_minor, g.state FROM groups g JOIN entitlements e USING (arrival, grp)
               WHERE g.envelope_id = %(id)s AND g.state <> 'NEW' AND e.disbursement_id = ANY(%(ids)s::text[]))
           SELECT asked.id, k.amount_minor, k.state FROM unnest(%(ids)s::text[]) WITH ORDINALITY AS asked (id, n)
           LEFT JOIN known k ON k.disbursement_id = asked.id ORDER BY asked.n""",
        id=envelope_id,
        ids=list(ids),
    )


def answer(tx: Tx, request_ids: Sequence[int]) -> None:
    """These requests have been answered; of a whole envelope: it is cancelled."""
    tx.run(
        """WITH done AS (UPDATE cancel_requests SET state = 'ANSWERED' WHERE id = ANY(%(ids)s::bigint[]) RETURNING envelope_id, whole)
           UPDATE envelopes e SET cancelled_at = coalesce(cancelled_at, clock_timestamp())
           FROM done d WHERE d.whole AND e.envelope_id = d.envelope_id""",
        ids=list(request_ids),
    )


def whole_batches(tx: Tx, envelope_id: UUID) -> int:
    found: int = tx.one("SELECT count(*) AS n FROM batches WHERE envelope_id = %(id)s AND whole", id=envelope_id).n
    return found


def totals(tx: Tx, envelope_id: UUID) -> Any:
    """What the envelope comes to, by states; None where nobody has arrived."""
    rows = tx.rows("SELECT * FROM totals WHERE envelope_id = %(id)s", id=envelope_id)
    return rows[0] if rows else None


def is_open(tx: Tx, envelope_id: UUID) -> bool:
    """Somebody has just arrived, or is planned: there is more to decide."""
    return bool(
        tx.rows(
            "SELECT 1 FROM groups WHERE envelope_id = %(id)s AND state IN ('NEW', 'PLANNED') LIMIT 1",
            id=envelope_id,
        )
    )


def said(tx: Tx, envelope_id: UUID, revision: int, numbers: Sequence[int]) -> None:
    tx.run(
        """UPDATE envelopes SET said_revision = %(revision)s, said = %(numbers)s::bigint[], said_at = clock_timestamp()
           WHERE envelope_id = %(id)s""",
        id=envelope_id,
        revision=revision,
        numbers=list(numbers),
    )


# --- Reference data ---------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """A listing as it is stored: contact and accounts sealed, with a hash that tells whether anything changed, and the partition
    and offset of the message that brought it."""

    listing: Listing
    sealed: bytes | None
    digest: str
    partition: int | None = None
    offset: int | None = None


def digests(tx: Tx, source: str) -> dict[tuple[str, str], str]:
    """(kind, id) -> hash, of all that are not gone."""
    rows = tx.tuples("SELECT kind, id, digest FROM places WHERE source = %(source)s AND NOT gone", source=source)
    return {(kind, place_id): digest for kind, place_id, digest in rows}


def put_places(tx: Tx, source: str, rows: Sequence[Place]) -> int:
    """Each is from now on as it is listed. Guard: of a topic's messages an older one changes nothing. Returns how many differ."""
    ordered = sorted(rows, key=lambda place: (place.listing.kind, place.listing.id))
    written = tx.rows(
        """INSERT INTO places AS p (source, kind, id, mnemonic, name, sealed, digest, gone, message_partition, message_offset)
           SELECT %(source)s, * FROM unnest(%(kinds)s::text[], %(ids)s::text[], %(mnemonics)s::text[], %(names)s::text[],
                       %(sealed)s::bytea[], %(digests)s::text[], %(gone)s::boolean[], %(partitions)s::int[], %(offsets)s::bigint[])
           ON CONFLICT (source, kind, id) DO UPDATE
           SET mnemonic = CASE WHEN excluded.gone THEN p.mnemonic ELSE excluded.mnemonic END,
               name = CASE WHEN excluded.gone THEN p.name ELSE excluded.name END, sealed = coalesce(excluded.sealed, p.sealed),
               digest = excluded.digest, gone = excluded.gone, message_partition = excluded.message_partition,
               message_offset = excluded.message_offset, updated_at = clock_timestamp()
           WHERE p.message_partition IS DISTINCT FROM excluded.message_partition OR p.message_partition IS NULL
              OR p.message_offset < excluded.message_offset
           RETURNING kind, id""",
        source=source,
        kinds=[place.listing.kind for place in ordered],
        ids=[place.listing.id for place in ordered],
        mnemonics=[place.listing.mnemonic for place in ordered],
        names=[place.listing.name for place in ordered],
        sealed=[place.sealed for place in ordered],
        digests=[place.digest for place in ordered],
        gone=[place.listing.contact is None for place in ordered],
        partitions=[place.partition for place in ordered],
        offsets=[place.offset for place in ordered],
    )
    new = {(row.kind, row.id) for row in written}
    for table in ("serves", "place_zones"):
        tx.run(
            f"""DELETE FROM {table} t USING unnest(%(kinds)s::text[], %(ids)s::text[]) AS w (kind, id)
                WHERE t.source = %(source)s AND t.kind = w.kind AND t.id = w.id""",
            source=source,
            kinds=[kind for kind, _ in sorted(new)],
            ids=[place_id for _, place_id in sorted(new)],
        )
    listings = [place.listing for place in ordered if (place.listing.kind, place.listing.id) in new]
    tx.copy(
        "serves",
        ("source", "kind", "id", "programme_id", "benefit_code_id", "capacity_minor", "capacity_units", "has_account"),
        [
            (
                source,
                one.kind,
                one.id,
                s.programme_id,
                s.benefit_code_id,
                s.capacity_minor,
                s.capacity_units,
                usable(s.account),
            )
            for one in listings
            for s in one.serves
        ],
    )
    tx.copy(
        "place_zones",
        ("source", "kind", "zone_id", "id"),
        [(source, one.kind, zone_id, one.id) for one in listings for zone_id in one.zone_ids],
    )
    return len(new)


def read_before(tx: Tx, source: str) -> datetime | None:
    """The moment of the other side's clock at which it was read last."""
    taken_at: datetime | None = tx.one("SELECT taken_at FROM reference WHERE source = %(source)s", source=source).taken_at
    return taken_at


def was_read(tx: Tx, source: str, taken_at: datetime, faulty: int) -> None:
    tx.run(
        "UPDATE reference SET taken_at = %(at)s, faulty = %(faulty)s WHERE source = %(source)s",
        source=source,
        at=taken_at,
        faulty=faulty,
    )


def try_again(tx: Tx, job: str, cause: Cause, cycle_of: UUID | None = None) -> None:
    """The reference data have changed: whoever is held is tried once more. Or, with an envelope: somebody gave back what they
    took of its cycle, and whoever found no capacity there is."""
    held = tx.run(
        """INSERT INTO due (job, subject, lock_key, cause_id, correlation_id, traceparent)
           SELECT %(job)s, e.envelope_id, e.lock_key, %(cause)s, e.envelope_id, %(trace)s FROM envelopes e
           WHERE (%(of)s::uuid IS NULL OR (programme_id, benefit_code_id, cycle_id) = (
                     SELECT f.programme_id, f.benefit_code_id, f.cycle_id FROM envelopes f WHERE f.envelope_id = %(of)s::uuid))
             AND EXISTS (SELECT 1 FROM groups g WHERE g.envelope_id = e.envelope_id AND g.state = 'HELD'
                             AND g.small_zone_id IS NOT NULL AND (%(of)s::uuid IS NULL OR g.reason = 'NO_CAPACITY'))""",
        job=job,
        cause=cause.id,
        trace=cause.traceparent,
        of=cycle_of,
    )
    tx.wakes.add(jobs.WAKE)
    if held or cycle_of is None:
        tx.run("UPDATE reference SET version = version + 1")  # of both sources: which of them is asked may change


def ask_for_reference(tx: Tx, kind: str, subject: str, lock: int, cause: Cause) -> None:
    """Have PBMS read once more. Guard: what is being read, or waits for it, stays as it is."""
    tx.run(
        """INSERT INTO work AS w (kind, subject, lock_key, cause_id, correlation_id, traceparent)
           VALUES (%(kind)s, %(subject)s, %(lock)s, %(cause)s, NULL, %(trace)s)
           ON CONFLICT (kind, subject) DO UPDATE SET state = 'PENDING', tries = 0, due_at = clock_timestamp(),
               created_at = clock_timestamp(), updated_at = clock_timestamp(), cause_id = excluded.cause_id,
               traceparent = excluded.traceparent
           WHERE w.state NOT IN ('PENDING', 'CLAIMED')""",
        kind=kind,
        subject=subject,
        lock=lock,
        cause=cause.id,
        trace=cause.traceparent,
    )
    tx.wakes.add(kind)


def forget_readings(tx: Tx, kind: str, subject: str, days: int) -> None:
    """This one was read: those that failed before need nobody any more. One a minute: their stories are kept for some time."""
    tx.run(
        """UPDATE work SET state = 'VOID', code = 'READ_SINCE', updated_at = clock_timestamp()
           WHERE kind = %(kind)s AND subject <> %(subject)s AND state = 'ERROR'""",
        kind=kind,
        subject=subject,
    )
    tx.run(
        """DELETE FROM attempts WHERE kind = %(kind)s AND finished_at < clock_timestamp() - make_interval(days => %(days)s)""",
        kind=kind,
        days=days,
    )
