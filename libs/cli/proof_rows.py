"""Books, proof (a): both identities from the counters, and every counter recomputed from rows."""

from collections.abc import Iterator

from libs.cli.evidence import ENDS, LIVE, MOVED, PARTS, POSITION, STATE_OF, Evidence

# Where a disbursement is: a reversed payment is not its place any more once it is repaid, or cancelled before it could be.
_PLACE = f"""{LIVE} AND NOT (p.state = 'REVERSED' AND EXISTS (
    SELECT 1 FROM repaid r WHERE r.instruction = p.instruction AND r.position = p.position))"""
_NOWHERE = f"""
    SELECT d.id, d.minor FROM disbursement d WHERE d.e = ?
    AND NOT EXISTS (SELECT 1 FROM payment p WHERE p.e = d.e AND p.id = d.id AND {_PLACE})
    AND NOT EXISTS (SELECT 1 FROM held h WHERE h.e = d.e AND h.id = d.id)
    AND NOT EXISTS (SELECT 1 FROM cancelled c WHERE c.e = d.e AND c.id = d.id)
    AND NOT EXISTS (SELECT 1 FROM given_back g WHERE g.e = d.e AND g.id = d.id)
"""


def identities(evidence: Evidence) -> Iterator[str]:
    for name, row in zip(evidence.names, evidence.rows, strict=True):
        position = {part: getattr(row, f"{part}_minor") for part in POSITION}
        parts, ends = sum(position[part] for part in PARTS), sum(position[part] for part in ENDS)
        moved = ", ".join(f"{part} {position[part]}" for part in MOVED if position[part])
        if not position["blocked"] and moved:
            ours = [block for block in evidence.blocks if block.envelope_id == row.envelope_id]
            blocks = ", ".join(f"block {block.block} of {block.amount_minor} is {block.state}" for block in ours)
            yield f"{name}: blocked is 0, and {moved}: {blocks or 'there is no block'}"
        if position["blocked"] and position["blocked"] != parts:
            yield f"{name}: blocked is {position['blocked']}, its parts add up to {parts}"
        if position["dispatched"] != ends:
            yield f"{name}: dispatched is {position['dispatched']}, its parts add up to {ends}"


def recomputed(evidence: Evidence, number: int) -> dict[str, int]:
    """An envelope's position from its rows alone (but for what has not arrived at funds, which has none there)."""
    envelope_id = evidence.rows[number].envelope_id
    by_state = {
        row["state"]: row["minor"]
        for row in evidence.ledger.query("SELECT state, sum(minor) AS minor FROM payment WHERE e = ? GROUP BY state", number)
    }
    found = {name: by_state.get(state, 0) for name, state in STATE_OF.items()}
    found["dispatched"] = found["outstanding"] + found["confirmed"] + found["reversed"]
    found["blocked"] = sum(b.amount_minor for b in evidence.blocks if b.envelope_id == envelope_id and b.state == "BLOCKED")
    ours = [release for release in evidence.releases if release.envelope_id == envelope_id]
    found["released"] = sum(release.amount_minor for release in ours if release.state == "RELEASED")
    kept = sum(release.amount_minor for release in ours if release.state in ("REFUSED", "NOT_OFFERED"))
    asked = sum(release.amount_minor for release in ours if release.state in ("PENDING", "SENDING", "UNKNOWN"))
    found["releasing"] = asked + evidence.sum("cancelled", number, "in_block AND NOT released")
    found["held"] = kept + evidence.sum("held", number)
    if found["blocked"]:
        # What is cut and not yet at funds waits too: whatever was submitted and is in no other place.
        found["waiting"] += _nowhere(evidence, number)
    return found


def counters_are_rows(evidence: Evidence) -> Iterator[str]:
    for number, (name, row) in enumerate(zip(evidence.names, evidence.rows, strict=True)):
        if not row.blocked_minor:
            continue
        for part, minor in recomputed(evidence, number).items():
            counter = getattr(row, f"{part}_minor")
            if counter != minor:
                yield f"{name}: the counter {part} says {counter}, its rows add up to {minor} (off by {counter - minor})"
        for part, state in STATE_OF.items():
            if part == "waiting":
                continue
            sql = "SELECT count(*) AS n FROM payment WHERE e = ? AND state = ?"
            count = next(evidence.ledger.query(sql, number, state))["n"]
            if count != getattr(row, part):
                yield f"{name}: the counter {part} says {getattr(row, part)} payments, there are {count} rows"


def instructions_are_payments(evidence: Evidence) -> Iterator[str]:
    rows = evidence.views.stream(
        """SELECT instruction, count, total_minor, debited_count, debited_minor, reversed_count, reversed_minor
           FROM funds.ops_instructions WHERE envelope_id = ANY(%(ids)s::uuid[]) ORDER BY instruction""",
        ids=[row.envelope_id for row in evidence.rows],
    )
    for row in rows:
        found = next(
            evidence.ledger.query(
                """SELECT count(*) AS count, coalesce(sum(minor), 0) AS total_minor,
                       coalesce(sum(state IN ('CONFIRMED', 'REVERSED')), 0) AS debited_count,
                       coalesce(sum(minor * (state IN ('CONFIRMED', 'REVERSED'))), 0) AS debited_minor,
                       coalesce(sum(state = 'REVERSED'), 0) AS reversed_count,
                       coalesce(sum(minor * (state = 'REVERSED')), 0) AS reversed_minor
                   FROM payment WHERE instruction = ?""",
                row.instruction,
            )
        )
        for what in found.keys():  # noqa: SIM118 - a Row is no mapping
            if found[what] != getattr(row, what):
                yield f"instruction {row.instruction}: {what} says {getattr(row, what)}, its payments give {found[what]}"


def agency_payments_are_shares(evidence: Evidence) -> Iterator[str]:
    """What an agency is paid is what its people are to get through it, and all of it stands in the same place."""
    for row in evidence.views.stream(
        """SELECT instruction, head, reference, people, amount_minor, state FROM funds.ops_agency_payments
           WHERE envelope_id = ANY(%(ids)s::uuid[]) AND state <> 'CANCELLED' ORDER BY instruction, head""",
        ids=evidence.ids,
    ):
        found = next(
            evidence.ledger.query(
                """SELECT count(*) AS people, coalesce(sum(minor), 0) AS minor FROM payment
                   WHERE instruction = ? AND head = ? AND state = ?""",
                row.instruction,
                row.head,
                row.state,
            )
        )
        if (found["people"], found["minor"]) != (row.people, row.amount_minor):
            yield (
                f"payment {row.reference} to an agency is {row.state} with {row.amount_minor} for {row.people} people, of its "
                f"shares {found['minor']} for {found['people']} are"
            )


def further_blocks_are_repayments(evidence: Evidence) -> Iterator[str]:
    """What was reserved beyond the first block is what was to be paid again, disbursement by disbursement."""
    for row in evidence.views.rows(
        """SELECT b.envelope_id, b.block, b.amount_minor, coalesce(sum(r.amount_minor), 0)::bigint AS minor
           FROM funds.ops_blocks b LEFT JOIN funds.ops_repayments r ON r.envelope_id = b.envelope_id AND r.block = b.block
                AND r.state IN ('PAYING', 'CANCELLED')
           WHERE b.envelope_id = ANY(%(ids)s::uuid[]) AND b.further AND b.state = 'BLOCKED'
           GROUP BY b.envelope_id, b.block, b.amount_minor ORDER BY b.envelope_id, b.block""",
        ids=evidence.ids,
    ):
        if row.amount_minor != row.minor:
            name = evidence.names[evidence.ids.index(row.envelope_id)]
            yield f"{name}: block {row.block} has {row.amount_minor}, what was to be repaid from it adds up to {row.minor}"


def amounts_are_as_submitted(evidence: Evidence) -> Iterator[str]:
    for place, key in (("payment", "instruction || '/' || position"), ("held", "p.id"), ("cancelled", "p.id")):
        for row in evidence.ledger.query(
            f"""SELECT p.e, p.id, p.minor, d.minor AS submitted, {key} AS key FROM {place} p
                LEFT JOIN disbursement d ON d.e = p.e AND d.id = p.id WHERE d.minor IS NOT p.minor"""
        ):
            said = "was never submitted" if row["submitted"] is None else f"was submitted with {row['submitted']}"
            yield f"{evidence.names[row['e']]}: {place} {row['key']} has {row['minor']}, disbursement {row['id']} {said}"


def one_place_each(evidence: Evidence) -> Iterator[str]:
    for row in evidence.ledger.query(
        f"""SELECT e, id, group_concat(place, ' and ') AS places FROM (
                SELECT e, id, 'payment ' || instruction || '/' || position || ' ' || state AS place FROM payment p WHERE {_PLACE}
                UNION ALL SELECT e, id, 'held ' || reason FROM held
                UNION ALL SELECT e, id, 'cancelled' FROM cancelled)
            GROUP BY e, id HAVING count(*) > 1"""
    ):
        yield f"{evidence.names[row['e']]}: disbursement {row['id']} is in two places: {row['places']}"


def nobody_is_lost(evidence: Evidence) -> Iterator[str]:
    """Once all has arrived and nothing waits, each disbursement must be in one place, or its money given back."""
    for number, row in enumerate(evidence.rows):
        if not row.blocked_minor or row.waiting_minor:
            continue
        for lost in evidence.ledger.query(f"SELECT id, minor FROM ({_NOWHERE})", number):
            yield f"{evidence.names[number]}: disbursement {lost['id']} of {lost['minor']} is nowhere"


def _nowhere(evidence: Evidence, number: int) -> int:
    """Money of disbursements in no place: not yet at funds."""
    return int(next(evidence.ledger.query(f"SELECT coalesce(sum(minor), 0) AS minor FROM ({_NOWHERE})", number))["minor"])
