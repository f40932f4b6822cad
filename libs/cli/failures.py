"""What failed and will not mend itself: grouped by cause, tried again by cause; and the lines of statements nobody could place."""

from collections import Counter
from typing import Any

from libs.cli.context import (
    SERVICES,
    Number,
    Refused,
    Views,
    as_dict,
    clock,
    confirm,
    done,
    find_envelope,
    money,
    plural,
    print_json,
    say,
    table,
    who_am_i,
)
from libs.cli.send import in_portions, send_command
from libs.cli.statements import named
from libs.common.contracts import operator

# A decision that failed is work of its job's name; what is tried again by itself counts as a bug of ours.
_FAILURES = """
SELECT kind, state, code, count(*) AS count, min(since) AS oldest,
       (array_agg(message ORDER BY since, subject))[1] AS message, (array_agg(subject ORDER BY since, subject))[1] AS subject
FROM (SELECT kind, CASE WHEN state IN ('ERROR', 'UNKNOWN') THEN state ELSE 'BUG' END AS state, coalesce(code, '') AS code,
             updated_at AS since, coalesce(message, '') AS message, subject
      FROM {service}.ops_work WHERE state IN ('ERROR', 'UNKNOWN') OR (code = 'BUG' AND state IN ('PENDING', 'CLAIMED'))
      UNION ALL
      SELECT job, CASE WHEN gave_up THEN 'ERROR' ELSE 'BUG' END, fault, due_at, 'failed ' || failures || ' times', subject
      FROM {service}.ops_due WHERE fault IS NOT NULL
      UNION ALL
      SELECT topic, 'DEAD LETTER', code, created_at, message, id::text FROM {service}.ops_dead_letters WHERE state = 'OPEN') AS x
GROUP BY kind, state, code ORDER BY oldest, kind, code
"""
_IN_ERROR = """
SELECT kind, subject FROM
    (SELECT kind, subject, coalesce(code, '') AS code FROM {service}.ops_work WHERE state = 'ERROR'
     UNION ALL SELECT job, subject, fault FROM {service}.ops_due WHERE gave_up) AS x
WHERE (kind = %(kind)s OR %(kind)s::text IS NULL) AND (code = %(code)s OR %(code)s::text IS NULL)
  AND (subject = ANY(%(subjects)s::text[]) OR cardinality(%(subjects)s::text[]) = 0) ORDER BY kind, subject
"""
_SHOWN_CHARACTERS = 60


def failures(as_json: bool) -> None:
    """One row for each cause, with the command that deals with it."""
    with Views() as views:
        found = [(service, row) for service in SERVICES for row in views.rows(_FAILURES.format(service=service))]
    if as_json:
        print_json([{"service": service, **as_dict(row), "command": _command(service, row)} for service, row in found])
        return
    if not found:
        print("Nothing has failed.")
        return
    table(
        "Failures",
        ("service", "kind", "state", "code", "count", "oldest (UTC)", "for example", "which says", "what to do"),
        [
            (
                service,
                row.kind,
                row.state.lower(),
                row.code,
                int(row.count),
                clock(row.oldest),
                row.subject,
                row.message if len(row.message) <= _SHOWN_CHARACTERS else row.message[: _SHOWN_CHARACTERS - 2] + " …",
                _command(service, row),
            )
            for service, row in found
        ],
    )


def _command(service: str, row: Any) -> str:
    match row.state:
        case "ERROR":
            return f"almoner retry --kind {row.kind} --code {row.code}"
        case "UNKNOWN" if service == "notifications":  # settled notice by notice: a call carries many
            return "almoner notices --state unknown"
        case "UNKNOWN":
            return f"almoner settle-unknown {row.kind} {row.subject} --evidence … --happened …"
        case "DEAD LETTER":
            return f"almoner dlq show {service} {row.subject}"
    return "tried again every minute; the service's log says what is wrong"


def retry_work(
    subjects: list[str],
    kind: str | None,
    code: str | None,
    rate: float | None,
    who: str | None,
    why: str,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Give what ended in ERROR a new set of attempts, in portions: never more than `rate` a second, where that is given."""
    with Views() as views:
        found = {
            service: views.rows(_IN_ERROR.format(service=service), kind=kind, code=code, subjects=subjects)
            for service in SERVICES
        }
        counts = Counter((service, row.kind) for service, rows in found.items() for row in rows)
        known = {row.subject for rows in found.values() for row in rows}
        if missing := [subject for subject in subjects if subject not in known]:
            raise Refused(f"nothing in ERROR is called {missing[0]}: `almoner failures -o json` names the subjects")
        if not counts:
            nothing = "No such work is in ERROR." if kind or code else "No work is in ERROR."
            done(as_json, nothing, 0, found=0, dry_run=dry_run)
            return
        for (service, one), count in counts.items():
            say(as_json, f"  {service}: {count:,} × {one}")
        if dry_run:
            would = f"{plural(counts.total(), 'call')} would be tried again; nothing was sent."
            done(as_json, would, 0, found=counts.total(), dry_run=True)
            return
        confirm(f"Retry {plural(counts.total(), 'call')}?", yes)
        sent: list[dict[str, Any]] = []
        for service, one in counts:
            chosen = [row.subject for row in found[service] if row.kind == one]
            touched = 0
            for portion in in_portions(chosen, rate):
                command = operator.RetryWork(who=who_am_i(who), why=why, kind=one, subjects=portion)
                touched += send_command(views, service, one, command)
            others = f" ({len(chosen) - touched:,} were not in ERROR any more)" if touched < len(chosen) else ""
            sent.append({"service": service, "kind": one, "touched": touched})
            say(as_json, f"{service}: {touched:,} × {one} tried again{others}")
    done(as_json, "", sum(one["touched"] for one in sent), found=counts.total(), dry_run=False, sent=sent)


# --- Lines of statements ----------------------------------------------------------------------------------------------

_EXCEPTIONS = """
SELECT x.*, i.envelope_id, s.number AS statement_number, s.sequence AS statement_sequence, s.closing_date
FROM funds.ops_exceptions x LEFT JOIN funds.ops_instructions i USING (instruction)
LEFT JOIN ingestion.ops_statements s ON s.statement_id = x.statement_id
WHERE (x.state = 'OPEN' OR %(all)s) AND (x.reason = %(reason)s OR %(reason)s::text IS NULL)
  AND (i.envelope_id = %(only)s OR %(only)s::uuid IS NULL)
ORDER BY x.id LIMIT %(limit)s
"""
MEANINGS = {
    "UNKNOWN_REFERENCE": "a line which names no payment of ours: ask the bank what it was",
    "UNKNOWN_ACCOUNT": "a statement of an account that is nobody's sponsor: see ALMONER_FUNDS_SPONSORS",
    "AMOUNT_MISMATCH": "the bank booked another amount than was paid: ask the bank",
    "DUPLICATE_DEBIT": "the bank booked one payment twice: ask for the money back",
    "DUPLICATE_REVERSAL": "the bank gave one payment back twice",
    "REVERSAL_WITHOUT_DEBIT": "given back before it was booked: counts by itself once the debit comes",
    "UNPARSABLE_LINE": "a line that cannot be read: compare it with the bank's own file",
    "PAID_AFTER_CANCEL": "paid although it was cancelled or released: ask for the money back",
    "PAID_AFTER_RETRY": "the bank paid what it had refused, after it was paid again: ask for one of both back",
    "PAID_BEFORE_BLOCK": "paid although no money was reserved for it: ask the bank",
    "BALANCE_MISMATCH": "the statement's lines do not come to its closing balance: ask the bank for it again",
    "NO_STATEMENT_LINE": "sent long ago and on no statement yet: ask the bank, unless the detail has its answer (`settle-unknown` ends it)",
}


def exceptions(envelope: str | None, reason: str | None, everything: bool, limit: int, as_json: bool) -> None:
    with Views() as views:
        only = find_envelope(views, envelope).envelope_id if envelope else None
        rows = views.rows(_EXCEPTIONS, only=only, reason=reason, all=everything, limit=limit)
    if as_json:
        print_json([as_dict(row) for row in rows])
        return
    if not rows:
        print("No exceptions" + ("." if everything else " are open."))
        return
    table(
        "Exceptions",
        ("id", "state", "reason", "statement", "line", "reference", "amount", "detail", "since (UTC)"),
        [
            (
                Number(row.id), row.state.lower(), row.reason,
                named(row.statement_number, row.statement_sequence, row.closing_date),
                Number("–" if row.line is None else row.line), row.reference or "–", money(row.amount_minor, row.currency),
                row.detail, clock(row.created_at),
            )
            for row in rows
        ],
    )  # fmt: skip
    for one in sorted({row.reason for row in rows} & MEANINGS.keys()):
        print(f"{one}: {MEANINGS[one]}")
    if len(rows) == limit:
        print(f"The first {limit:,}; see --limit.")
