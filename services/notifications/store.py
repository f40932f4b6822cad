"""Every SQL statement of notifications. Each works on a set; mailings are locked before their notices, in the order of their
numbers."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import zstandard

from libs.common.contracts.allocation import BatchAllocated
from libs.common.contracts.base import BatchHeader
from libs.common.contracts.resolution import BatchAddressesResolved
from libs.common.db import Tx
from libs.common.envelope import Event
from services.notifications.domain import Delivery, Kind, Outcome, State

_MAX_BODY_BYTES = 8_000_000


@dataclass(frozen=True, slots=True)
class Planned:
    """A notice to be made. `party`: the subject, or whom a disbursement is for. Of a part, or of a list of an instruction."""

    notice_id: UUID
    header: BatchHeader
    kind: Kind
    subject: str
    party: str
    part: int | None = None
    instruction: int | None = None
    list_number: int = 1
    page: int = 1
    pages: int = 1
    page_items: int = 1
    serial: int = 1
    replaces: UUID | None = None


@dataclass(frozen=True, slots=True)
class NoticeRow:
    notice_id: UUID
    subject: str
    page: int
    pages: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Mailing:
    """One mailing as it is passed on: its notices that are not sent yet, and the parts that they are made of."""

    mailing: int
    kind: Kind
    channel: str | None
    header: BatchHeader
    part: int | None
    instruction: int | None
    page_items: int
    wait_seconds: float
    age_seconds: float  # since the first attempt that may have come to something
    notices: list[NoticeRow] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    instruction_items: list[tuple[str, int, str]] | None = None  # (disbursement, amount, agency)


@dataclass(frozen=True, slots=True)
class NewMailing:
    """A mailing to be made, and its notices. `code`: why they are not sent at all."""

    channel: str | None
    code: str
    notices: list[Planned]


def pack(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(data)


def unpack(body: bytes, *, digital: bool) -> BatchAllocated | BatchAddressesResolved:
    model: type[BatchAllocated | BatchAddressesResolved] = BatchAddressesResolved if digital else BatchAllocated
    return model.model_validate_json(zstandard.decompress(body, max_output_size=_MAX_BODY_BYTES))


# --- what comes in ----------------------------------------------------------------------------------------------------


def ensure_batches(tx: Tx, headers: Iterable[BatchHeader]) -> None:
    """A batch's header as the newest event says it."""
    newest = {header.batch_id: header for header in sorted(headers, key=lambda header: header.revision)}
    ordered = [newest[batch_id] for batch_id in sorted(newest)]
    rows = {
        "batches": [header.batch_id for header in ordered],
        "envelopes": [header.envelope_id for header in ordered],
        "headers": [header.model_dump_json() for header in ordered],
        "revisions": [header.revision for header in ordered],
    }
    tx.run(
        """INSERT INTO batches (batch_id, envelope_id, header, revision)
           SELECT * FROM unnest(%(batches)s::uuid[], %(envelopes)s::uuid[], %(headers)s::text[], %(revisions)s::int[])
           ON CONFLICT (batch_id) DO NOTHING""",
        **rows,
    )
    tx.run(  # by itself, so that whoever has no news waits for nobody
        """UPDATE batches b SET header = new.header, revision = new.revision
           FROM unnest(%(batches)s::uuid[], %(envelopes)s::uuid[], %(headers)s::text[], %(revisions)s::int[])
                AS new (batch_id, envelope_id, header, revision)
           WHERE b.batch_id = new.batch_id AND b.revision < new.revision""",
        **rows,
    )


def add_parts(
    tx: Tx, parts: Mapping[tuple[UUID, int], tuple[Event[Any], bytes, list[str | None] | None]]
) -> set[tuple[UUID, int]]:
    """(batch, part) -> (event, its data, the agency of each item). Returns the parts that are new."""
    # Arrays of arrays have to be of one length: each travels as JSON.
    keys = sorted(parts)
    rows = tx.rows(
        """INSERT INTO parts (batch_id, part, disbursement_ids, beneficiary_ids, agency_ids, body)
           SELECT batch_id, part, ARRAY(SELECT jsonb_array_elements_text(d)), ARRAY(SELECT jsonb_array_elements_text(b)),
                  CASE WHEN a IS NOT NULL THEN ARRAY(SELECT jsonb_array_elements_text(a)) END, body
           FROM unnest(%(batches)s::uuid[], %(parts)s::int[], %(disbursements)s::jsonb[], %(beneficiaries)s::jsonb[],
                       %(agencies)s::jsonb[], %(bodies)s::bytea[]) AS new (batch_id, part, d, b, a, body)
           ON CONFLICT (batch_id, part) DO NOTHING RETURNING batch_id, part""",
        batches=[batch_id for batch_id, _ in keys],
        parts=[part for _, part in keys],
        disbursements=[_json(parts[key][0].data.items.disbursement_id) for key in keys],
        beneficiaries=[_json(parts[key][0].data.items.beneficiary_id) for key in keys],
        agencies=[None if (agencies := parts[key][2]) is None else _json(agencies) for key in keys],
        bodies=[pack(parts[key][1]) for key in keys],
    )
    return {(row.batch_id, row.part) for row in rows}


def parked_batches(tx: Tx, batch_ids: Sequence[UUID]) -> list[UUID]:
    """Those for which payments wait."""
    rows = tx.rows("SELECT DISTINCT batch_id FROM parked WHERE batch_id = ANY(%(ids)s::uuid[])", ids=list(batch_ids))
    return [row.batch_id for row in rows]


@dataclass(frozen=True, slots=True)
class Paid:
    """Payments of one batch which took a step."""

    batch_id: UUID
    step: str
    instruction: int
    disbursement_ids: list[str]
    amounts: list[int]


def park(tx: Tx, payments: Sequence[Paid]) -> None:
    tx.run(
        """INSERT INTO parked (batch_id, step, instruction, disbursement_ids, amounts)
           SELECT batch_id, step, instruction, ARRAY(SELECT jsonb_array_elements_text(d)),
                  ARRAY(SELECT value::bigint FROM jsonb_array_elements_text(a))
           FROM unnest(%(batches)s::uuid[], %(steps)s::text[], %(instructions)s::bigint[], %(disbursements)s::jsonb[],
                       %(amounts)s::jsonb[]) AS new (batch_id, step, instruction, d, a)""",
        batches=[one.batch_id for one in payments],
        steps=[one.step for one in payments],
        instructions=[one.instruction for one in payments],
        disbursements=[_json(one.disbursement_ids) for one in payments],
        amounts=[_json(one.amounts) for one in payments],
    )


def unpark(tx: Tx, batch_id: UUID) -> list[Paid]:
    """All that waits for this batch; it waits no more."""
    rows = tx.rows(
        "DELETE FROM parked WHERE batch_id = %(batch)s RETURNING id, step, instruction, disbursement_ids, amounts",
        batch=batch_id,
    )
    ordered = sorted(rows, key=lambda row: row.id)
    return [Paid(batch_id, row.step, row.instruction, row.disbursement_ids, row.amounts) for row in ordered]


@dataclass(frozen=True, slots=True)
class Person:
    """Where a disbursement is: in which part, for whom, at which agency."""

    part: int
    beneficiary_id: str
    agency_id: str | None


def people(tx: Tx, wanted: Iterable[tuple[UUID, Sequence[str]]]) -> dict[tuple[UUID, str], Person]:
    """Those of the wanted disbursements (by batch) whose part is here."""
    pairs = [(batch_id, one) for batch_id, ids in wanted for one in ids]
    rows = tx.tuples(
        """SELECT p.batch_id, u.disbursement_id, p.part, u.beneficiary_id, u.agency_id
           FROM (SELECT batch_id, part, disbursement_ids, beneficiary_ids, agency_ids FROM parts
                 WHERE batch_id = ANY(%(distinct)s::uuid[])) AS p
           CROSS JOIN LATERAL unnest(p.disbursement_ids, p.beneficiary_ids, p.agency_ids)
                AS u (disbursement_id, beneficiary_id, agency_id)
           JOIN unnest(%(batches)s::uuid[], %(ids)s::text[]) AS w (batch_id, disbursement_id)
                ON w.batch_id = p.batch_id AND w.disbursement_id = u.disbursement_id
           ORDER BY p.part""",
        distinct=sorted({batch_id for batch_id, _ in pairs}),
        batches=[batch_id for batch_id, _ in pairs],
        ids=[one for _, one in pairs],
    )
    return {(row[0], row[1]): Person(row[2], row[3], row[4]) for row in rows}


def header_of(tx: Tx, batch_id: UUID) -> BatchHeader:
    row = tx.one("SELECT header FROM batches WHERE batch_id = %(batch)s", batch=batch_id)
    return BatchHeader.model_validate_json(row.header)


@dataclass(frozen=True, slots=True)
class AgencyList:
    """Whom agencies are paid for by an instruction. `shares`: disbursement -> (amount, agency, part)."""

    batch_id: UUID
    instruction: int
    list_number: int  # 1, 2, … within the instruction
    shares: dict[str, tuple[int, str, int]] = field(default_factory=dict)


def listed(tx: Tx, instructions: Iterable[tuple[UUID, int]]) -> dict[tuple[UUID, int], tuple[int, set[str]]]:
    """Of those of (batch, instruction) with lists: how many, and whose disbursements are in them."""
    pairs = list(instructions)
    rows = tx.tuples(
        """SELECT batch_id, instruction, list_number, disbursement_ids FROM instructions
           JOIN unnest(%(batches)s::uuid[], %(instructions)s::bigint[]) AS w (batch_id, instruction) USING (batch_id, instruction)
           ORDER BY list_number""",
        batches=[batch_id for batch_id, _ in pairs],
        instructions=[instruction for _, instruction in pairs],
    )
    found: dict[tuple[UUID, int], tuple[int, set[str]]] = {}
    for batch_id, instruction, number, ids in rows:
        _, before = found.get((batch_id, instruction), (0, set()))
        found[batch_id, instruction] = number, before.union(ids)
    return found


def add_lists(tx: Tx, lists: Sequence[AgencyList]) -> None:
    """Guard: the key. Whoever would list the same people at the same moment fails, and finds them listed when it tries again."""
    tx.run(
        """INSERT INTO instructions (batch_id, instruction, list_number, disbursement_ids, amounts, agency_ids, parts)
           SELECT batch_id, instruction, list_number, ARRAY(SELECT jsonb_array_elements_text(d)),
                  ARRAY(SELECT value::bigint FROM jsonb_array_elements_text(m)), ARRAY(SELECT jsonb_array_elements_text(a)),
                  ARRAY(SELECT value::int FROM jsonb_array_elements_text(p))
           FROM unnest(%(batches)s::uuid[], %(instructions)s::bigint[], %(numbers)s::int[], %(disbursements)s::jsonb[],
                       %(amounts)s::jsonb[], %(agencies)s::jsonb[], %(parts)s::jsonb[])
                AS new (batch_id, instruction, list_number, d, m, a, p)""",
        batches=[one.batch_id for one in lists],
        instructions=[one.instruction for one in lists],
        numbers=[one.list_number for one in lists],
        disbursements=[_json(list(one.shares)) for one in lists],
        amounts=[_json([minor for minor, *_ in one.shares.values()]) for one in lists],
        agencies=[_json([agency for _, agency, _ in one.shares.values()]) for one in lists],
        parts=[_json(sorted({part for *_, part in one.shares.values()})) for one in lists],
    )


# --- notices and mailings ---------------------------------------------------------------------------------------------


def known(tx: Tx, notice_ids: Sequence[UUID]) -> set[UUID]:
    rows = tx.tuples("SELECT notice_id FROM notices WHERE notice_id = ANY(%(ids)s::uuid[])", ids=list(notice_ids))
    return {row[0] for row in rows}


def suppressed(tx: Tx, parties: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those of (kind, party) whom an operator wants to be told nothing."""
    pairs = sorted(set(parties))
    rows = tx.tuples(
        """SELECT kind, party FROM suppressed JOIN unnest(%(kinds)s::text[], %(parties)s::text[]) AS w (kind, party)
               USING (kind, party)""",
        kinds=[kind for kind, _ in pairs],
        parties=[party for _, party in pairs],
    )
    return {(row[0], row[1]) for row in rows}


def add_mailings(tx: Tx, mailings: Sequence[NewMailing]) -> list[int]:
    """Insert mailings; returns their numbers, in the same order."""
    numbers = [
        row[0] for row in tx.tuples("SELECT nextval('mailing_numbers') FROM generate_series(1, %(count)s)", count=len(mailings))
    ]
    firsts = [mailing.notices[0] for mailing in mailings]
    tx.run(
        """INSERT INTO mailings (mailing, envelope_id, batch_id, part, instruction, list_number, page_items, kind, channel)
           SELECT * FROM unnest(%(numbers)s::bigint[], %(envelopes)s::uuid[], %(batches)s::uuid[], %(parts)s::int[],
                       %(instructions)s::bigint[], %(lists)s::int[], %(page_items)s::int[], %(kinds)s::text[],
                       %(channels)s::text[])""",
        numbers=numbers,
        envelopes=[first.header.envelope_id for first in firsts],
        batches=[first.header.batch_id for first in firsts],
        parts=[first.part for first in firsts],
        instructions=[first.instruction for first in firsts],
        lists=[first.list_number for first in firsts],
        page_items=[first.page_items for first in firsts],
        kinds=[first.kind for first in firsts],
        channels=[mailing.channel for mailing in mailings],
    )
    return numbers


def add_notices(tx: Tx, numbers: Sequence[int], mailings: Sequence[NewMailing]) -> None:
    """The notices of new mailings, PENDING, or SUPPRESSED with their code. Guard: the id, of which there is one for ever."""
    rows = [
        (number, position, mailing.code, notice)
        for number, mailing in zip(numbers, mailings, strict=True)
        for position, notice in enumerate(mailing.notices, 1)
    ]
    tx.run(
        """INSERT INTO notices (notice_id, mailing, position, subject, party, page, pages, serial, replaces, state, code)
           SELECT notice_id, mailing, position, subject, party, page, pages, serial, replaces,
                  CASE WHEN code = '' THEN 'PENDING' ELSE 'SUPPRESSED' END, nullif(code, '')
           FROM unnest(%(ids)s::uuid[], %(mailings)s::bigint[], %(positions)s::int[], %(subjects)s::text[], %(parties)s::text[],
                       %(page)s::int[], %(pages)s::int[], %(serials)s::int[], %(replaces)s::uuid[], %(codes)s::text[])
                AS n (notice_id, mailing, position, subject, party, page, pages, serial, replaces, code)
           ON CONFLICT (notice_id) DO NOTHING""",
        ids=[notice.notice_id for *_, notice in rows],
        mailings=[number for number, *_ in rows],
        positions=[position for _, position, *_ in rows],
        subjects=[notice.subject for *_, notice in rows],
        parties=[notice.party for *_, notice in rows],
        page=[notice.page for *_, notice in rows],
        pages=[notice.pages for *_, notice in rows],
        serials=[notice.serial for *_, notice in rows],
        replaces=[notice.replaces for *_, notice in rows],
        codes=[code for _, _, code, _ in rows],
    )


_MAILING = """m.mailing, m.kind, m.channel, m.part, m.instruction, m.page_items, b.header, m.batch_id,
    coalesce(extract(epoch FROM m.not_before - clock_timestamp()), 0)::float AS wait_seconds,
    coalesce(extract(epoch FROM clock_timestamp() - m.attempted_at), 0)::float AS age_seconds"""


def lock_mailings(tx: Tx, numbers: Sequence[int]) -> None:
    tx.rows("SELECT 1 FROM mailings WHERE mailing = ANY(%(ids)s::bigint[]) ORDER BY mailing FOR UPDATE", ids=list(numbers))


def mute(tx: Tx, numbers: Sequence[int]) -> dict[int, "list[Changed]"]:
    """Of mailings that were never attempted: nobody is told whom an operator has suppressed since. By mailing, which are locked."""
    rows = tx.rows(
        """UPDATE notices n SET state = 'SUPPRESSED', code = 'SUBJECT_SUPPRESSED', updated_at = clock_timestamp()
           FROM mailings m JOIN suppressed s USING (kind)
           WHERE m.mailing = ANY(%(ids)s::bigint[]) AND m.attempted_at IS NULL AND n.mailing = m.mailing AND n.party = s.party
             AND n.state = 'PENDING' RETURNING n.mailing, n.notice_id, n.subject, n.state, n.code, n.message, n.tries""",
        ids=list(numbers),
    )
    found: dict[int, list[Changed]] = {}
    for row in rows:
        found.setdefault(row.mailing, []).append(_changed(row))
    return found


def take_mailings(tx: Tx, numbers: Sequence[int], ambiguous: Sequence[int]) -> dict[int, Mailing]:
    """Locked mailings with what is to be sent of them, complete; those that may go now count as attempted from here, unless they
    are ambiguous: since before."""
    rows = tx.rows(
        f"SELECT {_MAILING} FROM mailings m JOIN batches b USING (batch_id) WHERE m.mailing = ANY(%(ids)s::bigint[])",
        ids=list(numbers),
    )
    tx.run(
        """UPDATE mailings SET attempted_at = clock_timestamp() WHERE mailing = ANY(%(ids)s::bigint[])
           AND coalesce(not_before <= clock_timestamp(), true)""",
        ids=sorted({*numbers} - {*ambiguous}),
    )
    return _complete(tx, rows, pending_only=True)


@dataclass(frozen=True, slots=True)
class Heading:
    """What all notices of a mailing have in common."""

    kind: Kind
    header: BatchHeader


def heading(tx: Tx, number: int) -> Heading:
    row = tx.one(
        "SELECT m.kind, b.header FROM mailings m JOIN batches b USING (batch_id) WHERE m.mailing = %(mailing)s", mailing=number
    )
    return Heading(row.kind, BatchHeader.model_validate_json(row.header))


def pending(tx: Tx, number: int) -> list[UUID]:
    """The notices of a mailing that have no outcome."""
    rows = tx.tuples(
        "SELECT notice_id FROM notices WHERE mailing = %(mailing)s AND state = 'PENDING' ORDER BY position", mailing=number
    )
    return [row[0] for row in rows]


def mailing_of(tx: Tx, notice_id: UUID) -> Mailing | None:
    """The mailing of one notice with that notice alone, whatever its state; None where there is no such notice."""
    rows = tx.rows(
        f"""SELECT {_MAILING} FROM notices n JOIN mailings m USING (mailing) JOIN batches b USING (batch_id)
            WHERE n.notice_id = %(id)s""",
        id=notice_id,
    )
    found = list(_complete(tx, rows, pending_only=False).values())
    if not found:
        return None
    found[0].notices[:] = [notice for notice in found[0].notices if notice.notice_id == notice_id]
    return found[0]


def _complete(tx: Tx, rows: Sequence[Any], *, pending_only: bool) -> dict[int, Mailing]:
    mailings = {row.mailing: _mailing(row) for row in rows}
    numbers = list(mailings)
    for found in tx.rows(
        """SELECT mailing, notice_id, subject, page, pages, created_at FROM notices
           WHERE mailing = ANY(%(ids)s::bigint[]) AND (state = 'PENDING' OR NOT %(pending)s) ORDER BY mailing, position""",
        ids=numbers,
        pending=pending_only,
    ):
        row = NoticeRow(found.notice_id, found.subject, found.page, found.pages, found.created_at)
        mailings[found.mailing].notices.append(row)
    for found in tx.rows(
        """SELECT m.mailing, p.body, i.disbursement_ids, i.amounts, i.agency_ids
           FROM mailings m
           LEFT JOIN instructions i ON (i.batch_id, i.instruction, i.list_number) = (m.batch_id, m.instruction, m.list_number)
           JOIN parts p ON p.batch_id = m.batch_id AND (p.part = m.part OR p.part = ANY(i.parts))
           WHERE m.mailing = ANY(%(ids)s::bigint[]) ORDER BY m.mailing, p.part""",
        ids=numbers,
    ):
        mailing = mailings[found.mailing]
        mailing.bodies.append(bytes(found.body))
        if mailing.instruction_items is not None and not mailing.instruction_items:
            mailing.instruction_items.extend(zip(found.disbursement_ids, found.amounts, found.agency_ids, strict=True))
    return mailings


def _mailing(row: Any) -> Mailing:
    return Mailing(
        row.mailing,
        row.kind,
        row.channel,
        BatchHeader.model_validate_json(row.header),
        row.part,
        row.instruction,
        row.page_items,
        row.wait_seconds,
        row.age_seconds,
        instruction_items=None if row.instruction is None else [],
    )


@dataclass(frozen=True, slots=True)
class Changed:
    """A notice that has another state now, as it stands."""

    notice_id: UUID
    subject: str
    state: State
    code: str
    message: str
    tries: int = 0


def settle(tx: Tx, mailing: int, outcomes: Mapping[UUID, Outcome], max_tries: int) -> list[Changed]:
    """Store what became of a mailing's notices; returns them as they stand. What a webhook has said before counts: what was
    delivered was sent, what bounced has failed. Guard: only what is PENDING."""
    tx.run("UPDATE mailings SET settled_at = clock_timestamp() WHERE mailing = %(mailing)s", mailing=mailing)
    ids = list(outcomes)
    rows = tx.rows(
        """WITH said AS (
               SELECT * FROM unnest(%(ids)s::uuid[], %(states)s::text[], %(codes)s::text[], %(messages)s::text[])
                   AS s (notice_id, state, code, message)),
           judged AS (
               SELECT n.notice_id, n.delivery, s.code, s.message,
                   CASE WHEN n.delivery = 'BOUNCED' THEN 'FAILED' WHEN n.delivery = 'DELIVERED' THEN 'SENT'
                        WHEN s.state = 'PENDING' AND n.tries + 1 >= %(max)s THEN 'FAILED' ELSE s.state END AS state
               FROM notices n JOIN said s USING (notice_id) WHERE n.mailing = %(mailing)s AND n.state = 'PENDING')
           UPDATE notices n SET state = j.state, updated_at = clock_timestamp(),
               tries = n.tries + (j.state = 'PENDING')::int,
               code = CASE WHEN j.delivery = 'BOUNCED' THEN 'BOUNCED' WHEN j.state <> 'SENT' THEN nullif(j.code, '') END,
               message = CASE WHEN j.delivery IS NULL AND j.state <> 'SENT' THEN j.message ELSE '' END,
               sent_at = CASE WHEN j.state = 'SENT' OR j.delivery IS NOT NULL THEN clock_timestamp() END
           FROM judged j WHERE n.notice_id = j.notice_id
           RETURNING n.notice_id, n.subject, n.state, n.code, n.message, n.tries, n.position""",
        mailing=mailing,
        ids=ids,
        states=[outcomes[one].state for one in ids],
        codes=[outcomes[one].code for one in ids],
        messages=[outcomes[one].message for one in ids],
        max=max_tries,
    )
    return [_changed(row) for row in sorted(rows, key=lambda row: row.position)]


def split_off(tx: Tx, from_mailing: int, groups: Sequence[Sequence[UUID]], wait_seconds: float) -> list[int]:
    """Notices that were certainly not sent go into mailings of their own, one for each group; returns their numbers."""
    numbers = [
        row[0] for row in tx.tuples("SELECT nextval('mailing_numbers') FROM generate_series(1, %(count)s)", count=len(groups))
    ]
    tx.run(
        """INSERT INTO mailings (mailing, envelope_id, batch_id, part, instruction, list_number, page_items, kind, channel,
                  not_before)
           SELECT number, envelope_id, batch_id, part, instruction, list_number, page_items, kind, channel,
                  clock_timestamp() + make_interval(secs => %(wait)s)
           FROM mailings, unnest(%(numbers)s::bigint[]) AS n (number) WHERE mailing = %(mailing)s""",
        mailing=from_mailing,
        numbers=numbers,
        wait=wait_seconds,
    )
    pairs = [(number, one) for number, group in zip(numbers, groups, strict=True) for one in group]
    tx.run(
        """UPDATE notices n SET mailing = new.number
           FROM unnest(%(ids)s::uuid[], %(numbers)s::bigint[]) AS new (notice_id, number)
           WHERE n.notice_id = new.notice_id AND n.mailing = %(mailing)s AND n.state = 'PENDING'""",
        mailing=from_mailing,
        ids=[one for _, one in pairs],
        numbers=[number for number, _ in pairs],
    )
    return numbers


# --- what providers and operators say ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice with all that another one of it, or an event about it, needs."""

    changed: Changed
    mailing: int
    channel: str | None
    kind: Kind
    header: BatchHeader
    part: int | None
    instruction: int | None
    list_number: int
    page_items: int
    party: str
    page: int
    pages: int
    serial: int
    replaced: bool


def locked(tx: Tx, notice_ids: Sequence[UUID]) -> list[Notice]:
    """Notices whose mailings nobody claims or settles until the end of this transaction."""
    ids = list(notice_ids)
    tx.rows(
        """SELECT 1 FROM mailings WHERE mailing IN (SELECT mailing FROM notices WHERE notice_id = ANY(%(ids)s::uuid[]))
           ORDER BY mailing FOR UPDATE""",
        ids=ids,
    )
    # A statement of its own: it sees what was committed while we waited for the locks.
    rows = tx.rows(
        """SELECT n.*, m.channel, m.kind, m.part, m.instruction, m.list_number, m.page_items, b.header,
                EXISTS (SELECT FROM notices r WHERE r.replaces = n.notice_id) AS replaced
            FROM notices n JOIN mailings m USING (mailing) JOIN batches b USING (batch_id)
            WHERE n.notice_id = ANY(%(ids)s::uuid[]) ORDER BY n.mailing, n.position""",
        ids=ids,
    )
    return [
        Notice(
            _changed(row),
            row.mailing,
            row.channel,
            row.kind,
            BatchHeader.model_validate_json(row.header),
            row.part,
            row.instruction,
            row.list_number,
            row.page_items,
            row.party,
            row.page,
            row.pages,
            row.serial,
            row.replaced,
        )
        for row in rows
    ]


def change(tx: Tx, notice_ids: Sequence[UUID], state: State, code: str) -> None:
    """An operator's decision on notices whose mailings are locked."""
    tx.run(
        """UPDATE notices SET state = %(state)s, code = nullif(%(code)s, ''), message = '', updated_at = clock_timestamp(),
               sent_at = CASE WHEN %(state)s = 'SENT' THEN coalesce(sent_at, clock_timestamp()) ELSE sent_at END
           WHERE notice_id = ANY(%(ids)s::uuid[])""",
        ids=list(notice_ids),
        state=state,
        code=code,
    )


def settled_mailings(tx: Tx, numbers: Iterable[int]) -> list[tuple[str, int]]:
    """(channel, mailing) of those in which nothing is unknown any more."""
    rows = tx.tuples(
        """SELECT channel, mailing FROM mailings m WHERE mailing = ANY(%(ids)s::bigint[])
           AND NOT EXISTS (SELECT FROM notices n WHERE n.mailing = m.mailing AND n.state = 'UNKNOWN')""",
        ids=sorted(set(numbers)),
    )
    return [(row[0], row[1]) for row in rows]


def delivered(tx: Tx, said: Mapping[UUID, Delivery]) -> list[UUID]:
    """What a provider says of notices whose mailings are locked: a bounce outweighs a delivery, whichever comes first, and what
    was said before changes nothing. Whatever the provider knows of was sent. Returns those for which it was news."""
    rows = tx.tuples(
        """UPDATE notices n SET delivery = s.delivery, updated_at = clock_timestamp(),
               state = CASE WHEN n.state = 'PENDING' THEN 'PENDING' WHEN s.delivery = 'BOUNCED' THEN 'FAILED'
                            ELSE 'SENT' END,
               code = CASE WHEN n.state = 'PENDING' THEN n.code WHEN s.delivery = 'BOUNCED' THEN 'BOUNCED' END,
               message = CASE WHEN n.state = 'PENDING' THEN n.message ELSE '' END,
               sent_at = CASE WHEN n.state = 'PENDING' THEN n.sent_at ELSE coalesce(n.sent_at, clock_timestamp()) END
           FROM unnest(%(ids)s::uuid[], %(deliveries)s::text[]) AS s (notice_id, delivery), mailings m
           WHERE n.notice_id = s.notice_id AND m.mailing = n.mailing AND m.attempted_at IS NOT NULL AND n.state <> 'SUPPRESSED'
             AND (n.delivery IS NULL OR n.delivery = 'DELIVERED' AND s.delivery = 'BOUNCED') RETURNING n.notice_id""",
        ids=list(said),
        deliveries=list(said.values()),
    )
    return [row[0] for row in rows]


def suppress(tx: Tx, kind: str, party: str, who: str, why: str) -> int:
    return tx.run(
        """INSERT INTO suppressed (kind, party, who, why) VALUES (%(kind)s, %(party)s, %(who)s, %(why)s)
           ON CONFLICT (kind, party) DO NOTHING""",
        kind=kind,
        party=party,
        who=who,
        why=why,
    )


def lift(tx: Tx, kind: str, party: str) -> int:
    return tx.run("DELETE FROM suppressed WHERE kind = %(kind)s AND party = %(party)s", kind=kind, party=party)


def _changed(row: Any) -> Changed:
    return Changed(row.notice_id, row.subject, row.state, row.code or "", row.message, row.tries)


def _json(values: Sequence[Any]) -> str:
    return json.dumps(values)
