"""Who serves whom, and who was told: `zones`, `allocations`, `reassign`, `notices` and what can be done about notices."""

import os
import subprocess
import sys
from typing import Any, Literal
from uuid import UUID

from libs.cli.context import (
    ROOT,
    Refused,
    Usage,
    Views,
    as_dict,
    as_uuid,
    clock,
    confirm,
    done,
    find_envelope,
    locate,
    plural,
    print_json,
    quantity,
    table,
    unit_of,
    who_am_i,
)
from libs.cli.send import send_command
from libs.common.contracts import operator

SHOWN = 1000
PlaceKind = Literal["warehouse", "agency"]
SubjectKind = Literal["WAREHOUSE", "AGENCY", "BENEFICIARY"]


def zones(name: str, as_json: bool) -> None:
    """Each small zone of an envelope: who serves it, how many people are allocated, planned or held, and why."""
    with Views() as views:
        envelope = find_envelope(views, name)
        rows = views.rows(
            """SELECT * FROM allocation.ops_zones WHERE envelope_id = %(id)s ORDER BY large_zone_id, small_zone_id""",
            id=envelope.envelope_id,
        )
    if as_json:
        print_json([as_dict(row) for row in rows])
        return
    if not rows:
        print("No zone of this envelope is known (CASH_DIGITAL has none; others get them from the registry).")
        return
    unit = unit_of(envelope)
    columns = (
        "large zone",
        "small zone",
        "warehouse",
        "agency",
        "allocated",
        "planned",
        "held",
        "cancelled",
        "total",
        "why held",
    )
    table(
        f"{plural(len(rows), 'zone')} of {envelope.publisher_envelope_id}",
        columns,
        [
            (
                row.large_zone_code or row.large_zone_id, row.small_zone_code or row.small_zone_id,
                _place(row.warehouse_name, row.warehouse_id, row.warehouse_chosen_by),
                _place(row.agency_name, row.agency_id, row.agency_chosen_by),
                row.allocated, row.planned, row.held, row.cancelled, quantity(row.total_minor, unit), row.reason or "",
            )
            for row in rows
        ],
    )  # fmt: skip


def _place(name: str | None, place_id: str | None, chosen_by: str | None) -> str:
    return f"{name or place_id} ({chosen_by})" if place_id else "–"


def allocations(name: str, as_json: bool) -> None:
    """The same by place: what each warehouse and each agency hands out."""
    with Views() as views:
        envelope = find_envelope(views, name)
        rows = views.rows(
            # A zone may be divided: people are counted where each is once, and only names come from the zones.
            """SELECT p.kind, p.id, n.name, count(*) AS people, sum(e.amount_minor)::bigint AS minor, count(DISTINCT p.zone) AS zones
               FROM allocation.ops_entitlements e
               CROSS JOIN LATERAL (VALUES ('warehouse', e.warehouse_id, e.large_zone_id), ('agency', e.agency_id, e.small_zone_id))
                          AS p (kind, id, zone)
               LEFT JOIN (SELECT 'warehouse' AS kind, warehouse_id AS id, warehouse_name AS name
                          FROM allocation.ops_zones WHERE envelope_id = %(id)s
                          UNION SELECT 'agency', agency_id, agency_name FROM allocation.ops_zones WHERE envelope_id = %(id)s) AS n
                         ON n.kind = p.kind AND n.id = p.id
               WHERE e.envelope_id = %(id)s AND e.state = 'ALLOCATED' AND NOT e.given_back AND p.id IS NOT NULL
               GROUP BY p.kind, p.id, n.name ORDER BY p.kind DESC, p.id""",
            id=envelope.envelope_id,
        )
    if as_json:
        print_json([as_dict(row) for row in rows])
        return
    if not rows:
        print("Nothing of this envelope is allocated yet.")
        return
    unit = unit_of(envelope)
    table(
        f"{plural(len(rows), 'place')} for {envelope.publisher_envelope_id}",
        ("kind", "id", "name", "zones", "people", "total"),
        [(row.kind, row.id, row.name or "", row.zones, row.people, quantity(row.minor, unit)) for row in rows],
    )


def reassign(name: str, kind: PlaceKind, zone: str, place: str, who: str | None, why: str, yes: bool, as_json: bool) -> None:
    """Give a zone to another warehouse or agency before anybody is told."""
    column = "large_zone_id" if kind == "warehouse" else "small_zone_id"
    with Views() as views:
        envelope = find_envelope(views, name)
        rows = views.rows(
            f"SELECT * FROM allocation.ops_zones WHERE envelope_id = %(id)s AND {column} = %(zone)s",
            id=envelope.envelope_id,
            zone=zone,
        )
        if not rows:
            raise Refused(f"{envelope.publisher_envelope_id} has nobody in {kind} zone {zone!r}: `almoner zones` lists them")
        people = sum(row.planned + row.held for row in rows)
        confirm(f"Give {kind} zone {zone} ({plural(people, 'person')} not yet told) to {kind} {place}?", yes)
        command = operator.ReassignZone(
            who=who_am_i(who),
            why=why,
            envelope_id=envelope.envelope_id,
            kind=kind,
            zone_id=zone,
            place_id=place,
            expected=int(people),
        )
        touched = send_command(views, "allocation", str(envelope.envelope_id), command)
    done(as_json, f"{kind} {place} serves {plural(touched, 'person')} of zone {zone} now", touched)


def refresh(who: str | None, why: str, yes: bool, as_json: bool) -> None:
    """Have allocation read warehouses and agencies again now, and try all who are held in a zone that is known once more."""
    with Views() as views:
        held = views.one(
            """SELECT count(DISTINCT (envelope_id, small_zone_id)) AS zones, coalesce(sum(held), 0)::bigint AS people
               FROM allocation.ops_zones WHERE held > 0"""
        )
        again = f"{plural(held.people, 'person')} held in {plural(held.zones, 'zone')}"
        confirm(f"Read warehouses and agencies again, and try {again} once more?", yes)
        send_command(views, "allocation", "reference", operator.RefreshReference(who=who_am_i(who), why=why))
    text = "allocation reads warehouses and agencies again; zones that were held for want of them follow"
    done(as_json, text, held.people, zones=held.zones)


# --- Notices ----------------------------------------------------------------------------------------------------------


def notices(name: str | None, state: str | None, limit: int, as_json: bool) -> None:
    """Who was told, of an envelope or of all: counts by kind and state, then the newest."""
    with Views() as views:
        only = find_envelope(views, name).envelope_id if name else None
        chosen = """WHERE (envelope_id = %(only)s OR %(only)s::uuid IS NULL)
                      AND (state = %(state)s OR %(state)s::text IS NULL)"""
        given: dict[str, Any] = {"only": only, "state": state.upper() if state else None}
        counts = views.rows(
            f"""SELECT kind, state, coalesce(channel, '') AS channel, coalesce(code, '') AS code, count(*) AS notices
                FROM notifications.ops_notices {chosen} GROUP BY 1, 2, 3, 4 ORDER BY 1 DESC, 2, 3, 4""",
            **given,
        )
        rows = views.rows(
            f"SELECT * FROM notifications.ops_notices {chosen} ORDER BY created_at DESC, notice_id LIMIT %(limit)s",
            limit=limit,
            **given,
        )
    if as_json:
        print_json({"counts": [as_dict(row) for row in counts], "notices": [as_dict(row) for row in rows]})
        return
    if not counts:
        print("Nobody has been told anything.")
        return
    table("Notices", ("kind", "state", "channel", "code", "notices"), [tuple(row) for row in counts])
    table(
        f"The newest {len(rows)}",
        ("notice", "kind", "subject", "state", "code", "delivery", "sent"),
        [
            (str(row.notice_id), row.kind, row.subject, row.state, row.code or "", row.delivery or "", clock(row.sent_at))
            for row in rows
        ],
    )


def show_notice(name: str, html: bool) -> None:
    """A notice as the person sees it. Notifications renders it, since only services open sealed data."""
    if as_uuid(name) is None:
        raise Usage(f"{name!r} is no notice's id: `almoner notices` lists them")
    from libs.cli.context import home
    from libs.local import services
    from libs.local.stack import attach

    locate()
    stack = attach(home())
    env = {**os.environ, **(services.environment(stack) if stack else {})}
    asked = [sys.executable, "-m", "services.notifications", "show", name, *(["--html"] if html else [])]
    done = subprocess.run(asked, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "the notice could not be shown")
    print(done.stdout, end="")


def send_again(ids: list[str], who: str | None, why: str, yes: bool, as_json: bool) -> None:
    chosen = _ids(ids)
    with Views() as views:
        confirm(f"Send {plural(len(chosen), 'notice')} once more, each as a new one?", yes)
        command = operator.SendNotices(who=who_am_i(who), why=why, notice_ids=chosen, expected=len(chosen))
        touched = send_command(views, "notifications", str(chosen[0]), command)
    done(as_json, f"{plural(touched, 'notice')} on their way again", touched)


def settle_notices(ids: list[str], sent: bool, evidence: str, who: str | None, yes: bool, as_json: bool) -> None:
    chosen = _ids(ids)
    with Views() as views:
        outcome: Literal["sent", "not_sent"] = "sent" if sent else "not_sent"
        confirm(f"Settle {plural(len(chosen), 'notice')} as {outcome.replace('_', ' ')}?", yes)
        command = operator.SettleNotices(
            who=who_am_i(who), why=evidence, notice_ids=chosen, outcome=outcome, evidence=evidence, expected=len(chosen)
        )
        touched = send_command(views, "notifications", str(chosen[0]), command)
    done(as_json, f"{plural(touched, 'notice')} settled", touched)


def suppress(kind: SubjectKind, subject: str, lift: bool, who: str | None, why: str, yes: bool, as_json: bool) -> None:
    with Views() as views:
        confirm(f"Tell {kind.lower()} {subject} {'everything again' if lift else 'nothing any more'}?", yes)
        command = operator.SuppressSubject(who=who_am_i(who), why=why, kind=kind, subject=subject, suppressed=not lift)
        touched = send_command(views, "notifications", subject, command)
    done(as_json, f"{kind.lower()} {subject} is told {'again' if lift else 'nothing any more'}", touched)


def _ids(names: list[str]) -> list[UUID]:
    found = [as_uuid(name) for name in names]
    if wrong := [name for name, one in zip(names, found, strict=True) if one is None]:
        raise Usage(f"{wrong[0]!r} is no notice's id: `almoner notices` lists them")
    return [one for one in found if one is not None]
