"""Agency cash: people's shares go to the bank as one payment for each small zone, to its agency.

A share is a payment as any other, with a reference to the first of its group, its head. Only here, in the list that goes to the
bank and in what a statement line names, is a group one thing; all that happens to people happens to shares.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from libs.common.contracts.allocation import BatchAllocated, ZoneAllocation
from libs.common.contracts.base import BatchHeader, Unresolved, ZonedItems
from libs.common.db import Tx
from libs.common.seal import Sealer
from libs.common.swift import swift, usable
from services.funds.domain import Line, Named, Share
from services.funds.ports import Payment
from services.funds.store import LivePayment

SEALED_AS = "BatchAllocated/places"


class Head(NamedTuple):
    """The payment to an agency that a share is part of."""

    head: int
    zone: str
    agency_id: str
    agency_name: str


# --- Intake -----------------------------------------------------------------------------------------------------------


def payable(data: BatchAllocated, sealer: Sealer) -> tuple[ZonedItems, list[Unresolved]]:
    """Who can be paid, and who is held: allocation's own, and those whose agency has no account that a bank can be told.

    Raises Malformed where the seal of the places does not open."""
    places = sealer.open(data.places, SEALED_AS, data.header.envelope_id, data.header.batch_id, data.part)
    paid = [usable(_account(places, zone.agency.id)) for zone in data.zones]
    held = [
        Unresolved(
            item.disbursement_id,
            item.beneficiary_id,
            item.amount_minor,
            "NO_AGENCY_ACCOUNT",
            f"agency {data.zones[item.zone].agency.id} has no account that a bank can be told",
        )
        for item in data.items
        if not paid[item.zone]
    ]
    return ZonedItems.of(item for item in data.items if paid[item.zone]), [*data.held, *held]


def _account(places: Mapping[str, Any], agency_id: str) -> Any:
    place = places.get(f"agency/{agency_id}")
    return place.get("account") if isinstance(place, dict) else None


def add_zones(tx: Tx, parts: Mapping[tuple[UUID, int], Sequence[ZoneAllocation]]) -> None:
    """(batch, part) -> the zones of its items, in the order in which they are numbered."""
    columns = ("batch_id", "part", "zone", "small_zone_id", "small_zone_code", "agency_id", "agency_name")
    rows = [
        (*place, number, zone.small_zone_id, zone.small_zone_code, zone.agency.id, zone.agency.name or zone.agency.mnemonic)
        for place, zones in parts.items()
        for number, zone in enumerate(zones)
    ]
    tx.copy("zones", columns, rows)


def add_shares(tx: Tx, instructions: Mapping[int, ZonedItems]) -> None:
    """Instruction -> its people, in order. The first of a zone is the head of all of them."""
    shares = []
    groups: dict[tuple[int, int], int] = {}  # (instruction, zone) -> head
    for instruction, items in instructions.items():
        for position, item in enumerate(items, 1):
            head = groups.setdefault((instruction, item.zone), position)
            shares.append((instruction, position, item.amount_minor, item.disbursement_id, item.beneficiary_id, head))
    tx.copy("payments", ("instruction", "position", "amount_minor", "disbursement_id", "beneficiary_id", "head"), shares)
    heads = [(instruction, head, zone) for (instruction, zone), head in groups.items()]
    tx.copy("heads", ("instruction", "head", "zone"), heads)


# --- Dispatch ---------------------------------------------------------------------------------------------------------


def heads_of(tx: Tx, instructions: Sequence[int]) -> dict[int, dict[int, Head]]:
    """Instruction -> position -> the payment it is part of."""
    rows = tx.tuples(
        """SELECT p.instruction, p.position, p.head, coalesce(nullif(z.small_zone_code, ''), z.small_zone_id), z.agency_id,
                  coalesce(nullif(z.agency_name, ''), z.agency_id)
           FROM instructions i JOIN payments p USING (instruction)
           JOIN heads h ON h.instruction = p.instruction AND h.head = p.head
           JOIN zones z ON z.batch_id = i.batch_id AND z.part = i.part AND z.zone = h.zone
           WHERE i.instruction = ANY(%(ids)s::bigint[]) AND p.instruction = ANY(%(ids)s::bigint[])""",
        ids=list(instructions),
    )
    found: dict[int, dict[int, Head]] = defaultdict(dict)
    for instruction, position, *head in rows:
        found[instruction][position] = Head(*head)
    return found


def bank_list(
    shares: Sequence[LivePayment],
    heads: Mapping[int, Head],
    places: Mapping[str, Any],
    header: BatchHeader,
    called: Mapping[int, str],
) -> list[Payment]:
    """One payment for each group, of the sum of its live shares. `called`: head -> its reference."""
    sums: dict[int, int] = defaultdict(int)
    people: dict[int, int] = defaultdict(int)
    for share in shares:
        head = heads[share.position].head
        sums[head] += share.amount_minor
        people[head] += 1
    found = []
    for head, amount_minor in sorted(sums.items()):
        _, zone, agency_id, agency_name = heads[head]
        account = _account(places, agency_id)
        narratives = (
            "1 person" if people[head] == 1 else f"{people[head]} people",
            swift(header.programme.mnemonic or header.programme.id),
            swift(header.cycle.mnemonic or header.cycle.id),
            swift(agency_id),
            called[head],
            swift(zone),
        )
        found.append(
            Payment(
                called[head],
                amount_minor,
                swift(agency_name, 70),
                account["account_number"],
                account.get("account_type") or "BANK_ACCOUNT",
                account.get("bank_code", ""),
                account.get("branch_code", ""),
                "",
                "",
                "",
                "",
                narratives,
            )
        )
    return found


# --- Statements -------------------------------------------------------------------------------------------------------


def groups_named(tx: Tx, lines: Sequence[Line]) -> dict[tuple[int, int], list[Share]]:
    """(instruction, head) -> all shares of the groups that lines name; what is no head is not there."""
    keys = sorted({(line.instruction, line.position) for line in lines})
    rows = tx.tuples(
        """SELECT p.instruction, p.head, p.position, c.cancelled IS NOT NULL OR coalesce(h.unsent, false), p.amount_minor,
                  p.disbursement_id, f.debit, f.reversal, h.state,
                  c.cancelled IS NOT NULL OR coalesce(h.state IN ('CANCELLED', 'RELEASING', 'RELEASED'), false)
           FROM (SELECT instruction, array_agg(head) AS heads
                 FROM unnest(%(instructions)s::bigint[], %(heads)s::smallint[]) AS l (instruction, head) GROUP BY instruction) AS l
           CROSS JOIN LATERAL (  -- each list is read once, however many of its payments are named
               SELECT * FROM payments x WHERE x.instruction = l.instruction AND x.head = ANY(l.heads) OFFSET 0) AS p
           CROSS JOIN LATERAL (
               SELECT max(bank_reference) FILTER (WHERE kind = 'D') AS debit, max(bank_reference) FILTER (WHERE kind = 'R') AS reversal
               FROM facts x WHERE x.instruction = p.instruction AND x.position = p.position) AS f
           LEFT JOIN LATERAL (
               SELECT true AS cancelled FROM cancelled x
               WHERE x.instruction = p.instruction AND x.position = p.position OFFSET 0) AS c ON true
           LEFT JOIN LATERAL (
               SELECT state, reason IN ('SUPERSEDED', 'OPEN_EXCEPTION') AS unsent FROM held x
               WHERE x.instruction = p.instruction AND x.position = p.position AND x.state <> 'PAID' OFFSET 0) AS h ON true
           ORDER BY p.instruction, p.position""",
        instructions=[key[0] for key in keys],
        heads=[key[1] for key in keys],
    )
    found: dict[tuple[int, int], list[Share]] = defaultdict(list)
    for instruction, head, position, unsent, *named in rows:
        found[instruction, head].append(Share(position, unsent, Named._make(named)))
    return dict(found)
