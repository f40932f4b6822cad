"""`almoner statement list`: what statements have come, what is strange about them, and what came of their lines."""

from datetime import date

from libs.cli.context import Number, Views, as_dict, clock, money, print_json, table

# As ingestion tells it to whoever sends a statement.
FLAGS = {
    "SAME_NUMBER": "the account has another one of this year with this number and other content; look which of them is right",
    "NUMBER_GAP": "it does not follow the one before it; send what is missing",
    "BALANCE_GAP": "it does not open with what the one before it closed with; send what is missing",
}
_STATEMENTS = """
SELECT i.statement_id, i.number, i.sequence, i.closing_date, i.account_token, i.currency, i.opening_minor, i.closing_minor,
       CASE WHEN f.reconciled_at IS NULL THEN i.state ELSE 'RECONCILED' END AS state, i.reason, i.lines, i.unparsable,
       coalesce(f.confirmed, 0) AS confirmed, coalesce(f.reversed, 0) AS reversed, coalesce(f.exceptions, 0) AS exceptions,
       i.flags, i.received_at, i.source
FROM ingestion.ops_statements i LEFT JOIN funds.ops_statements f ON f.statement_id = i.statement_id
WHERE NOT %(flagged)s OR cardinality(i.flags) > 0
ORDER BY i.received_at DESC, i.statement_id LIMIT %(limit)s
"""
_ACCOUNT_CHARACTERS = 8  # of a token: enough to tell accounts from each other


def listing(flagged: bool, limit: int, as_json: bool) -> None:
    """The newest first."""
    with Views() as views:
        rows = views.rows(_STATEMENTS, flagged=flagged, limit=limit)
    if as_json:
        print_json([{**as_dict(row), "what_to_do": [FLAGS[flag] for flag in row.flags]} for row in rows])
        return
    if not rows:
        print("No statement is flagged." if flagged else "No statement has come yet.")
        return
    table(
        "Statements",
        (
            "statement", "account", "opening", "closing", "state", "lines", "confirmed", "reversed", "exceptions", "strange",
            "received (UTC)", "from",
        ),
        [
            (
                named(row.number, row.sequence, row.closing_date), row.account_token[:_ACCOUNT_CHARACTERS] or "–",
                _balance(row.opening_minor, row.currency), _balance(row.closing_minor, row.currency), row.state.lower(), row.lines,
                row.confirmed, row.reversed, row.exceptions, ", ".join(row.flags) or row.reason, clock(row.received_at), row.source,
            )
            for row in rows
        ],
    )  # fmt: skip
    for flag in sorted({flag for row in rows for flag in row.flags}):
        print(f"{flag}: {FLAGS[flag]}")
    if len(rows) == limit:
        print(f"The newest {limit:,}; see --limit.")


def named(number: str | None, sequence: str | None, day: date | None) -> str:
    """What a statement is found by in the bank's own files."""
    name = "/".join(part for part in (number, sequence) if part) or "–"
    return f"{name} of {day.isoformat()}" if day else name


def _balance(minor: int | None, currency: str | None) -> str:
    return Number("–") if currency is None else money(minor, currency)  # of a rejected one perhaps neither
