"""`almoner timeline` and `almoner held`: what happened to an envelope, a batch, a person; and who waits for what."""

import json
import re
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from libs.cli.context import (
    SERVICES,
    Refused,
    Views,
    as_dict,
    as_uuid,
    clock,
    find_envelope,
    plural,
    print_json,
    printable,
    quantity,
    table,
    unit_of,
)
from libs.common.money import Unit

HISTORIES = ("ingestion", "resolution", "allocation", "funds", "notifications")
TOLD_SINGLY = 3  # what happened more often is one line, with its count

# What a person can do about it; the reason itself comes from the service that holds.
ADVICE = {
    "mapper": "add the address to the mapper, then `almoner retry --held`",
    "registry": "mend the registry, then `almoner retry --held`",
    "allocation": "mend the warehouses or agencies (`almoner zones` names what is missing), then `almoner retry --held`",
    "funds": "`almoner retry --held` pays again whom the bank refused, `almoner release` gives the money back",
}

# The views' steps as a sentence says them, after the service's name; a step that is not here speaks for itself.
SAYINGS = {
    "accepted": "accepts the envelope",
    "submission accepted": "answers that it is accepted",
    "submission rejected": "answers that it is rejected",
    "submission parked": "keeps for later",
    "batch cut": "cuts a batch",
    "complete": "has all that was declared",
    "cancellation passed on": "passes a cancellation on to funds",
    "batch received": "is to find addresses",
    "asked again": "asks the mapper again",
    "addresses resolved": "has the mapper's answer",
    "address resolved": "has found the address of",
    "batch to be located": "is to find zones",
    "registry asked again": "asks the registry again",
    "zones resolved": "has the registry's answer",
    "zone resolved": "has found the zone of",
    "arrived at allocation": "is to find places for",
    "zone held": "has nobody to serve a zone",
    "allocated": "has announced who serves them",
    "zone reassigned": "has given a zone to another place",
    "all allocated": "has a place for everybody, or says why not",
    "notices made": "is to tell people",
    "notice sent": "has told",
    "notice suppressed": "does not tell",
    "notice failed": "could not tell",
    "notice unknown": "does not know whether it has told",
    "notice delivered": "knows that the notice has arrived at",
    "complete at funds": "knows how much is needed",
    "date moved": "pays on another date",
    "date kept": "pays on the date as it was",
    "funds blocked": "has the money reserved by the bank",
    "arrived at funds": "knows where to pay",
    "dispatched": "has sent payments to the bank",
    "confirmed": "finds payments on the bank's statement",
    "held": "holds",
    "cancelled": "cancels",
    "reversed": "finds the money given back",
    "repayment asked": "is to pay again",
    "exception": "finds a line that agrees with no payment",
    "released": "has given held money back to the sponsor",
    "settled": "has settled: every unit is accounted for",
}
# What funds did to many at once, and once more for one disbursement: only what was done to it.
_TO_MANY = ("funds blocked", "dispatched", "confirmed", "exception", "released")
_TO_ONE = """
WITH paid AS (SELECT instruction, reference, state, confirmed_by FROM funds.ops_payments
              WHERE envelope_id = %(envelope)s AND batch_id = %(batch)s AND disbursement_id = %(disbursement)s)
SELECT i.dispatched_at AS at, 'dispatched' AS step, format('instruction %%s, reference %%s', instruction, p.reference) AS detail
FROM paid p JOIN funds.ops_instructions i USING (instruction)
WHERE i.dispatched_at IS NOT NULL AND p.state IN ('OUTSTANDING', 'CONFIRMED', 'REVERSED')
UNION ALL SELECT coalesce(s.created_at, i.last_confirmed_at, i.created_at), 'confirmed',
    format('instruction %%s, reference %%s', instruction, p.reference)
FROM paid p JOIN funds.ops_instructions i USING (instruction) LEFT JOIN funds.ops_statements s ON s.statement_id = p.confirmed_by
WHERE p.state IN ('CONFIRMED', 'REVERSED')
UNION ALL SELECT x.created_at, 'exception', x.reason || ': ' || x.detail
FROM paid JOIN funds.ops_exceptions x USING (instruction) WHERE x.position IS NULL
UNION ALL SELECT blocked_at, 'funds blocked', format('block %%s, reference %%s', block, bank_reference)
FROM funds.ops_blocks b WHERE envelope_id = %(envelope)s AND state = 'BLOCKED' AND (NOT further OR EXISTS (
    SELECT 1 FROM funds.ops_repayments r WHERE r.envelope_id = b.envelope_id AND r.block = b.block
        AND r.disbursement_id = %(disbursement)s))
UNION ALL SELECT r.released_at, 'released', format('release %%s, %%s', release_id, r.reason)
FROM funds.ops_given_back g JOIN funds.ops_releases r USING (release_id)
WHERE g.envelope_id = %(envelope)s AND g.disbursement_id = %(disbursement)s AND r.released_at IS NOT NULL
"""
# The last of these at a service says whether a disbursement is held there.
_TURNS = (
    "held", "address resolved", "zone resolved", "dispatched", "confirmed", "reversed", "cancelled", "released", "repayment asked",
)  # fmt: skip
_ONE = re.compile(r"\b1 (batche|payment|disbursement|people)s?\b")
_MINOR = re.compile(r"\b(\d+) minor units\b")


@dataclass(frozen=True)
class Step:
    """Something that happened, once or (`times`) often. `who` is an operator, where it was one."""

    service: str
    at: datetime
    last: datetime
    times: int
    step: str
    detail: str = ""
    disbursement_id: str | None = None
    who: str = ""


def timeline(name: str, as_json: bool) -> None:
    """The history of an envelope (publisher's id or UUID), a batch (UUID) or a disbursement."""
    with Views() as views:
        title, steps, unit = found_story(views, name)
    if as_json:
        print_json({"about": title, "steps": [asdict(step) for step in steps]})
        return
    print(f"{title}; times in UTC")
    for step in steps:
        until = f" … {clock(step.last)[11:]}" if step.times > 1 and clock(step.last) != clock(step.at) else ""
        print(f"  {clock(step.at)}{until}  {printable(step.who or step.service):<10}  {printable(sentence(step, unit))}")


def sentence(step: Step, unit: Unit) -> str:
    said = SAYINGS.get(step.step, step.step)
    whom = f" {step.disbursement_id}" if step.disbursement_id else " this person" if said.endswith((" of", "holds")) else ""
    if step.times > 1:
        whom = " people" if whom else ""
    times = f" ×{step.times:,}" if step.times > 1 else ""
    detail = _MINOR.sub(lambda found: quantity(int(found[1]), unit), step.detail)
    detail = _ONE.sub(lambda found: "1 " + {"batche": "batch", "people": "person"}.get(found[1], found[1]), detail)
    return f"{said}{whom}{times}{': ' + detail if detail else ''}"


def found_story(views: Views, name: str) -> tuple[str, list[Step], Unit]:
    """Title, steps, and what the amounts are counted in."""
    uuid = as_uuid(name)
    envelopes = views.rows(
        "SELECT * FROM ingestion.ops_envelopes WHERE envelope_id = %(id)s OR publisher_envelope_id = %(name)s",
        id=uuid,
        name=name,
    )
    if envelopes:
        row = find_envelope(views, name)
        amount = quantity(row.declared_minor, unit_of(row))
        title = f"Envelope {row.publisher_envelope_id} ({row.envelope_id}), {plural(row.declared, 'disbursement')} of {amount} in all"
        return title, history(views, row.envelope_id), unit_of(row)
    if uuid:
        batch = views.one("SELECT * FROM ingestion.ops_batches WHERE batch_id = %(id)s", id=uuid)
        if batch:
            size = plural(batch.count, "disbursement")
            title = f"Batch {batch.number} ({batch.batch_id}) of envelope {batch.envelope_id}, {size}"
            unit = unit_of(find_envelope(views, str(batch.envelope_id)))
            return title, history(views, batch.envelope_id, batch.batch_id), unit
    people = views.rows("SELECT * FROM ingestion.ops_disbursements WHERE disbursement_id = %(name)s", name=name)
    if not people:
        raise Refused(f"nothing is called {name!r}: give an envelope's id, a batch's UUID or a disbursement's id")
    if len(people) > 1:
        envelopes_named = ", ".join(str(row.envelope_id) for row in people)
        raise Refused(
            f"{len(people)} envelopes have a disbursement {name!r}: {envelopes_named}; see `almoner timeline ENVELOPE`"
        )
    one = people[0]
    envelope = find_envelope(views, str(one.envelope_id))
    amount = quantity(one.amount_minor, unit_of(envelope))
    title = f"Disbursement {name} of {amount} to {one.beneficiary_id}, envelope {envelope.publisher_envelope_id}"
    return title, history(views, one.envelope_id, one.batch_id, name), unit_of(envelope)


def history(views: Views, envelope_id: Any, batch_id: Any = None, disbursement_id: str | None = None) -> list[Step]:
    """Steps in order of time, operators' among them. What many batches or people did is one step with its count. Of a disbursement:
    what was done to it, and what all of its batch or envelope shared."""
    steps, own = [], []
    one = {"envelope": envelope_id, "batch": batch_id, "disbursement": disbursement_id}
    for service in HISTORIES:
        for row in views.rows(
            f"""SELECT step, count(*) AS times, min(at) AS at, max(at) AS last,
                       (array_agg(at ORDER BY at, detail, disbursement_id))[:{TOLD_SINGLY}] AS ats,
                       (array_agg(coalesce(detail, '') ORDER BY at, detail, disbursement_id))[:{TOLD_SINGLY}] AS details,
                       (array_agg(disbursement_id ORDER BY at, detail, disbursement_id))[:{TOLD_SINGLY}] AS people
                FROM {service}.ops_history
                WHERE envelope_id = %(envelope)s AND (%(batch)s::uuid IS NULL OR step NOT LIKE 'submission%%')
                  AND (%(disbursement)s::text IS NULL OR disbursement_id IS NOT NULL OR step <> ALL(%(to_many)s))
                  AND (batch_id IS NULL OR %(batch)s::uuid IS NULL OR batch_id = %(batch)s)
                  AND (disbursement_id IS NULL OR disbursement_id = %(disbursement)s
                       OR (%(disbursement)s::text IS NULL AND (%(batch)s::uuid IS NULL OR batch_id = %(batch)s)))
                GROUP BY step, CASE WHEN %(batch)s::uuid IS NULL AND batch_id IS NOT NULL THEN ''
                                    WHEN disbursement_id IS NOT NULL AND %(disbursement)s::text IS NULL THEN ''
                                    ELSE at::text || coalesce(detail, '') END""",
            **one,
            to_many=list(_TO_MANY),
        ):
            if row.times > TOLD_SINGLY:
                steps.append(Step(service, row.at, row.last, row.times, row.step))
                continue
            for at, detail, person in zip(row.ats, row.details, row.people, strict=True):
                whom = None if person == disbursement_id else person
                steps.append(Step(service, at, at, 1, row.step, detail, whom))
                if person is not None and person == disbursement_id:
                    own.append(steps[-1])
    if disbursement_id is not None:
        done = [Step("funds", row.at, row.at, 1, row.step, row.detail) for row in views.rows(_TO_ONE, **one)]
        steps, own = steps + done, own + done
    asked = _operators(views, envelope_id, disbursement_id, own)
    if disbursement_id is not None:  # a zone is given to another place in the moment in which an operator asks for it
        moments = {step.at for step in asked}
        steps = [step for step in steps if step.step != "zone reassigned" or step.at in moments]
    steps += asked
    order = list(SAYINGS)

    def place(step: Step) -> tuple[Any, ...]:
        """By time; what one transaction did at once, in the order of the journey."""
        journey = order.index(step.step) if step.step in order else -1
        return step.at, SERVICES.index(step.service), journey, step.disbursement_id or "", step.detail

    return sorted(steps, key=place)


def _operators(views: Views, envelope_id: Any, disbursement_id: str | None, own: list[Step]) -> list[Step]:
    """What operators did about this envelope, from the services' audits; of a disbursement, what concerned it (`own`: its steps)."""
    steps = []
    for service in SERVICES:
        for row in views.rows(
            f"""SELECT at, who, why, action, affected, detail FROM {service}.ops_audit
                WHERE strpos(detail, %(envelope)s) > 0 ORDER BY id""",
            envelope=str(envelope_id),
        ):
            name, command = row.action.split(".")[-2], json.loads(row.detail[row.detail.index("{") :])
            if disbursement_id is not None and not _concerned(views, envelope_id, disbursement_id, own, row.at, name, command):
                continue
            refusal = row.detail.partition("; {")[0] if row.detail.startswith("refused: ") else f"{row.affected:,} touched"
            steps.append(Step(service, row.at, row.at, 1, f"asks {service} for {name} ({refusal})", row.why, who=row.who))
    return steps


def _concerned(
    views: Views, envelope_id: Any, disbursement_id: str, own: list[Step], at: datetime, name: str, command: dict[str, Any]
) -> bool:
    """Whether a command named this disbursement or its zone, or nobody, but was about those who are held when it was; or about the
    whole envelope."""
    if command.get("disbursement_ids"):
        return disbursement_id in command["disbursement_ids"]
    if name == "ReassignZone":
        return bool(
            views.rows(
                """SELECT 1 FROM allocation.ops_entitlements WHERE envelope_id = %(envelope)s
                   AND disbursement_id = %(disbursement)s AND %(zone)s IN (large_zone_id, small_zone_id)""",
                envelope=envelope_id,
                disbursement=disbursement_id,
                zone=command["zone_id"],
            )
        )
    if name == "ReleaseRequested" and not any(step.step == "released" and step.at >= at for step in own):
        return False
    if holder := {"ResolveHeld": "resolution", "RetryHeld": "funds", "ReleaseRequested": "funds"}.get(name):
        turns = [step for step in own if step.service == holder and step.step in _TURNS and step.at <= at]
        return bool(turns) and max(turns, key=lambda step: step.at).step == "held"
    return True


def held_rows(views: Views, envelope_id: Any = None) -> list[Any]:
    """Everybody who is held, with the first of those who hold them: resolution, which knows no address or zone, allocation, which
    has no place for the zone, or funds, which could not pay."""
    return views.rows(
        """SELECT * FROM (
               SELECT DISTINCT ON (h.envelope_id, h.disbursement_id) h.envelope_id, h.disbursement_id, h.beneficiary_id,
                      h.amount_minor, h.reason, h.message, h.since,
                      CASE WHEN h.place = 1 AND i.benefit_type <> 'CASH_DIGITAL' THEN 'registry' ELSE h.holder END AS waits_for
               FROM (SELECT 1 AS place, 'mapper' AS holder, envelope_id, disbursement_id, beneficiary_id, amount_minor, reason, message,
                            since FROM resolution.ops_held
                     UNION ALL SELECT 2, 'allocation', envelope_id, disbursement_id, beneficiary_id, amount_minor, reason, message,
                            since FROM allocation.ops_held
                     UNION ALL SELECT 3, 'funds', envelope_id, disbursement_id, beneficiary_id, amount_minor, reason, message, since
                     FROM funds.ops_held) AS h
               LEFT JOIN ingestion.ops_envelopes i USING (envelope_id)
               WHERE envelope_id = %(only)s OR %(only)s::uuid IS NULL
               ORDER BY h.envelope_id, h.disbursement_id, place) AS found
           ORDER BY since, envelope_id, disbursement_id""",
        only=envelope_id,
    )


def held(name: str | None, as_json: bool) -> None:
    with Views() as views:
        only = find_envelope(views, name).envelope_id if name else None
        rows = held_rows(views, only)
        known = "SELECT envelope_id, currency, measurement_unit, unit_scale FROM ingestion.ops_envelopes"
        units = {row.envelope_id: unit_of(row) for row in views.rows(known)}
    if as_json:
        print_json(
            [{**as_dict(row), "unit": units[row.envelope_id].name if row.envelope_id in units else None} for row in rows]
        )
        return
    if not rows:
        print("Nobody is held.")
        return
    table(
        f"{plural(len(rows), 'disbursement')} held",
        ("disbursement", "beneficiary", "amount", "reason", "message", "waits for", "since"),
        [
            (
                row.disbursement_id, row.beneficiary_id or "–",
                quantity(row.amount_minor, units[row.envelope_id]) if row.envelope_id in units else row.amount_minor,
                row.reason, row.message or "", row.waits_for, clock(row.since),
            )
            for row in rows
        ],
    )  # fmt: skip
    for waits_for in sorted({row.waits_for for row in rows}):
        print(f"{waits_for}: {ADVICE[waits_for]}")
