"""`almoner timeline` and `almoner held`: what happened to an envelope, a batch, a person; and who waits for what."""

from typing import Any

from libs.cli.context import Refused, Views, as_dict, as_uuid, clock, find_envelope, money, plural, print_json, table

HISTORIES = ("ingestion", "resolution", "funds")

# What a person can do about it; the reason itself comes from the service that holds.
ADVICE = {
    "mapper": "add the address to the mapper, then `almoner retry --held`",
    "funds": "`almoner retry --held` pays again whom the bank refused, `almoner release` gives the money back",
}


def timeline(name: str, as_json: bool) -> None:
    """The history of an envelope (publisher's id or UUID), a batch (UUID) or a disbursement."""
    with Views() as views:
        title, rows = found_story(views, name)
    if as_json:
        print_json({"about": title, "steps": [as_dict(row) for row in rows]})
        return
    print(title)
    for row in rows:
        times = f" ×{row.times:,}" if row.times > 1 else ""
        until = f" … {clock(row.last)[11:]}" if row.times > 1 and clock(row.last) != clock(row.at) else ""
        print(f"  {clock(row.at)}{until}  {row.service:<10}  {row.step}{times}{': ' + row.detail if row.detail else ''}")


def found_story(views: Views, name: str) -> tuple[str, list[Any]]:
    uuid = as_uuid(name)
    envelopes = views.rows(
        "SELECT * FROM ingestion.ops_envelopes WHERE envelope_id = %(id)s OR publisher_envelope_id = %(name)s",
        id=uuid,
        name=name,
    )
    if envelopes:
        row = find_envelope(views, name)
        title = f"Envelope {row.publisher_envelope_id} ({row.envelope_id}), {plural(row.declared, 'disbursement')}"
        return title, history(views, row.envelope_id)
    if uuid:
        batch = views.one("SELECT * FROM ingestion.ops_batches WHERE batch_id = %(id)s", id=uuid)
        if batch:
            size = plural(batch.count, "disbursement")
            title = f"Batch {batch.number} ({batch.batch_id}) of envelope {batch.envelope_id}, {size}"
            return title, history(views, batch.envelope_id, batch.batch_id)
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
    amount = money(one.amount_minor, envelope.currency)
    title = f"Disbursement {name} of {amount} to {one.beneficiary_id}, envelope {envelope.publisher_envelope_id}"
    return title, history(views, one.envelope_id, one.batch_id, name)


def history(views: Views, envelope_id: Any, batch_id: Any = None, disbursement_id: str | None = None) -> list[Any]:
    """Steps in order of time. Seen from the envelope, what many batches or people did is one line with its count."""
    rows = []
    for service in HISTORIES:
        rows += views.rows(
            f"""SELECT %(service)s AS service, min(at) AS at, max(at) AS last, count(*) AS times, step,
                       CASE WHEN count(*) = 1 THEN min(detail) ELSE '' END AS detail
                FROM {service}.ops_history
                WHERE envelope_id = %(envelope)s AND (%(batch)s::uuid IS NULL OR step NOT LIKE 'submission%%')
                  AND (batch_id IS NULL OR %(batch)s::uuid IS NULL OR batch_id = %(batch)s)
                  AND (disbursement_id IS NULL OR disbursement_id = %(disbursement)s
                       OR (%(disbursement)s::text IS NULL AND (%(batch)s::uuid IS NULL OR batch_id = %(batch)s)))
                GROUP BY step, CASE WHEN %(batch)s::uuid IS NULL AND batch_id IS NOT NULL THEN ''
                                    WHEN disbursement_id IS NOT NULL AND %(disbursement)s::text IS NULL THEN ''
                                    ELSE at::text || coalesce(detail, '') END""",
            service=service,
            envelope=envelope_id,
            batch=batch_id,
            disbursement=disbursement_id,
        )
    return sorted(rows, key=lambda row: (row.at, HISTORIES.index(row.service)))


def held_rows(views: Views, envelope_id: Any = None) -> list[Any]:
    """Everybody who is held: without an address (the mapper's), or not paid by the bank (funds')."""
    return views.rows(
        """SELECT coalesce(r.envelope_id, f.envelope_id) AS envelope_id,
                  coalesce(r.disbursement_id, f.disbursement_id) AS disbursement_id, r.beneficiary_id,
                  coalesce(r.amount_minor, f.amount_minor) AS amount_minor, coalesce(r.reason, f.reason) AS reason,
                  coalesce(r.message, f.message) AS message, coalesce(r.since, f.since) AS since,
                  CASE WHEN r.disbursement_id IS NULL THEN 'funds' ELSE 'mapper' END AS waits_for
           FROM (SELECT * FROM resolution.ops_held WHERE envelope_id = %(only)s OR %(only)s::uuid IS NULL) AS r
           FULL JOIN (SELECT * FROM funds.ops_held WHERE envelope_id = %(only)s OR %(only)s::uuid IS NULL) AS f
                ON f.envelope_id = r.envelope_id AND f.disbursement_id = r.disbursement_id
           ORDER BY since, envelope_id, disbursement_id""",
        only=envelope_id,
    )


def held(name: str | None, as_json: bool) -> None:
    with Views() as views:
        only = find_envelope(views, name).envelope_id if name else None
        rows = held_rows(views, only)
        currencies = {
            row.envelope_id: row.currency for row in views.rows("SELECT envelope_id, currency FROM ingestion.ops_envelopes")
        }
    if as_json:
        print_json([{**as_dict(row), "currency": currencies.get(row.envelope_id)} for row in rows])
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
                money(row.amount_minor, currencies[row.envelope_id]) if row.envelope_id in currencies else row.amount_minor,
                row.reason, row.message or "", row.waits_for, clock(row.since),
            )
            for row in rows
        ],
    )  # fmt: skip
    for waits_for in sorted({row.waits_for for row in rows}):
        print(f"{waits_for}: {ADVICE[waits_for]}")
