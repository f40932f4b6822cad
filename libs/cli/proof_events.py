"""Books, proof (c): what the events say is what the rows say, disbursement by disbursement."""

import json
from collections.abc import Iterator
from typing import Any

from libs.cli.context import plural
from libs.cli.evidence import Evidence
from libs.cli.ledger import KINDS, unix_ms

_ENVELOPES, _PAYMENTS = "funds.envelopes.v1", "funds.payments.v1"


def blocks_and_releases_are_events(evidence: Evidence) -> Iterator[str]:
    numbers = evidence.ledger.numbers
    moves = [(b, "blocked", b.block, b.blocked_at) for b in evidence.blocks if b.state == "BLOCKED"]
    moves += [(r, "released", r.release_id, r.released_at) for r in evidence.releases if r.state == "RELEASED"]
    rows = {(numbers[row.envelope_id], kind, number): row.amount_minor for row, kind, number, _ in moves}
    times = {(numbers[row.envelope_id], kind, number): unix_ms(at) for row, kind, number, at in moves}
    said: dict[tuple[int, str, int], tuple[int, str]] = {}
    for row in evidence.ledger.query("SELECT * FROM moved ORDER BY e, kind, number"):
        key = (row["e"], row["kind"], row["number"])
        if key in said:
            yield f"{evidence.names[key[0]]}: {key[1]} {key[2]} is said twice, by events {said[key][1]} and {row['event']}"
        said[key] = (row["minor"], row["event"])
    for key in sorted(rows.keys() | said.keys()):
        name = f"{evidence.names[key[0]]}: {key[1]} {key[2]}"
        if key not in said:
            if evidence.passed(_ENVELOPES, evidence.ledger.older(_ENVELOPES, str(evidence.ids[key[0]]), times[key])):
                continue
            yield f"{name} of {rows[key]} has no event"
        elif key not in rows:
            yield f"{name}: event {said[key][1]} says {said[key][0]}, there is no such row"
        elif rows[key] != said[key][0]:
            yield f"{name}: the row has {rows[key]}, event {said[key][1]} says {said[key][0]}"


def states_have_their_event(evidence: Evidence) -> Iterator[str]:
    """Each row's state was said by exactly one event (an operator's or a query's answer included) with its amount. When it was said
    is not known to the moment: not before the instruction was dispatched, or funds knew of the statement."""
    for kind, states, at in (
        ("dispatched", "'OUTSTANDING'", "i.dispatched"),
        ("confirmed", "'CONFIRMED', 'REVERSED'", "coalesce(c.known, i.created)"),
        ("reversed", "'REVERSED'", "coalesce(r.known, i.created)"),
    ):
        for row in evidence.ledger.query(
            f"""SELECT x.*, x.said = 0 AND older('{_PAYMENTS}', i.batch, {at}) AS older
                FROM (SELECT p.*, count(f.event) AS said FROM payment p
                      LEFT JOIN fact f ON f.e = p.e AND f.id = p.id AND f.kind = ? AND f.instruction = p.instruction
                                          AND f.minor = p.minor
                      WHERE p.state IN ({states}) GROUP BY p.instruction, p.position HAVING count(f.event) <> 1) AS x
                JOIN instruction i USING (instruction)
                LEFT JOIN statement c ON c.id = x.confirmed_by LEFT JOIN statement r ON r.id = x.reversed_by""",
            kind,
        ):
            if evidence.passed(_PAYMENTS, row["older"]):
                continue
            yield (
                f"{evidence.names[row['e']]}: payment {row['reference']} of disbursement {row['id']} ({row['minor']}) is "
                f"{row['state']}; {plural(row['said'], 'event')} say so ({KINDS[kind].__name__}), not one"
            )
    for table, kinds in (("held", "'held', 'refused'"), ("cancelled", "'cancelled'")):
        for row in evidence.ledger.query(
            f"""SELECT t.*, older('{_PAYMENTS}', t.batch, t.at) AS older FROM {table} t WHERE NOT EXISTS (
                    SELECT 1 FROM fact f WHERE f.e = t.e AND f.id = t.id AND f.kind IN ({kinds}) AND f.minor = t.minor)"""
        ):
            if not evidence.passed(_PAYMENTS, row["older"]):
                yield f"{evidence.names[row['e']]}: disbursement {row['id']} ({row['minor']}) is {table}; no event says so"


def events_have_their_state(evidence: Evidence) -> Iterator[str]:
    """What an event says has become a row, with the same amount."""
    states = {
        "dispatched": "'IN_FLIGHT', 'OUTSTANDING', 'CONFIRMED', 'REVERSED', 'REFUSED', 'CANCELLED'",
        "confirmed": "'CONFIRMED', 'REVERSED'",
        "reversed": "'REVERSED'",
    }
    for kind, allowed in states.items():
        for row in evidence.ledger.query(
            f"""SELECT f.* FROM fact f WHERE f.kind = ? AND NOT EXISTS (
                    SELECT 1 FROM payment p WHERE p.e = f.e AND p.id = f.id AND p.instruction = f.instruction
                       AND p.minor = f.minor AND p.state IN ({allowed}))""",
            kind,
        ):
            yield _unfounded(evidence, row)
    for row in evidence.ledger.query(
        """SELECT f.* FROM fact f WHERE f.kind = 'cancelled' AND NOT EXISTS (
               SELECT 1 FROM cancelled c WHERE c.e = f.e AND c.id = f.id AND c.minor = f.minor)"""
    ):
        yield _unfounded(evidence, row)
    for row in evidence.ledger.query(
        """SELECT f.*, d.minor AS submitted FROM fact f LEFT JOIN disbursement d ON d.e = f.e AND d.id = f.id
           WHERE f.kind IN ('held', 'refused', 'unknown') AND d.minor IS NOT f.minor"""
    ):
        yield _unfounded(evidence, row)


def _unfounded(evidence: Evidence, row: Any) -> str:
    return (
        f"{evidence.names[row['e']]}: event {row['event']} ({KINDS[row['kind']].__name__}) says {row['minor']} for "
        f"disbursement {row['id']}; no row agrees"
    )


def settlement_is_the_position(evidence: Evidence) -> Iterator[str]:
    for row in evidence.ledger.query("SELECT e, revision, event, position FROM settled"):
        counters = evidence.rows[row["e"]]
        if row["revision"] != counters.revision:
            continue
        for part, minor in json.loads(row["position"]).items():
            if minor != getattr(counters, f"{part}_minor"):
                yield (
                    f"{evidence.names[row['e']]}: event {row['event']} (EnvelopeSettled {row['revision']}) says {part} "
                    f"{minor}, the counter says {getattr(counters, f'{part}_minor')}"
                )
