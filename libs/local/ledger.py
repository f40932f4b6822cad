"""The simulated bank's books: accounts, blocks, payments, reversals and the statements cut from them.

Everything runs inside a transaction of the caller. Money is integer minor units. A booking is a payment (a D line),
or an entry: a reversal (RD) or an admin's top-up (C, D). Each account remembers up to which row its statements reach.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from itertools import chain, compress, repeat
from operator import itemgetter
from typing import Any, NamedTuple

from libs.local import mt940
from libs.local.simulator import MalformedError, now

TEXT_FIELDS = (
    "payment_reference_number", "beneficiary_name", "beneficiary_account", "beneficiary_account_currency",
    "beneficiary_account_type", "beneficiary_bank_code", "beneficiary_branch_code",
    "beneficiary_mobile_wallet_provider", "beneficiary_phone_no", "beneficiary_email",
    "beneficiary_email_wallet_provider", "narrative_1", "narrative_2", "narrative_3", "narrative_4", "narrative_5",
    "narrative_6", "payment_date",
)  # fmt: skip

_SOURCE_FIELDS = ("remitting_account", "remitting_account_currency", "funds_blocked_reference_number")

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS accounts (
    id INTEGER PRIMARY KEY, profile TEXT NOT NULL, number TEXT NOT NULL, currency TEXT NOT NULL,
    balance_minor INTEGER NOT NULL, blocked_minor INTEGER NOT NULL DEFAULT 0, first_minor INTEGER NOT NULL,
    stated_minor INTEGER NOT NULL, stated_payment INTEGER NOT NULL DEFAULT 0, stated_entry INTEGER NOT NULL DEFAULT 0,
    unstated_lines INTEGER NOT NULL DEFAULT 0, unstated_since REAL, last_booked_at REAL, UNIQUE (profile, number));
CREATE TABLE IF NOT EXISTS blocks (
    id INTEGER PRIMARY KEY, account_id INTEGER NOT NULL, amount_minor INTEGER NOT NULL, used_minor INTEGER NOT NULL
    DEFAULT 0, released_minor INTEGER NOT NULL DEFAULT 0, key TEXT,
    CHECK (used_minor + released_minor <= amount_minor));
CREATE TABLE IF NOT EXISTS payments (
    id INTEGER PRIMARY KEY, profile TEXT NOT NULL, account_id INTEGER NOT NULL, block_id INTEGER NOT NULL,
    amount_minor INTEGER NOT NULL, key TEXT, booked_at TEXT NOT NULL,
    {", ".join(f"{name} TEXT" for name in TEXT_FIELDS)},
    UNIQUE (profile, payment_reference_number));
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY, account_id INTEGER NOT NULL, mark TEXT NOT NULL, amount_minor INTEGER NOT NULL,
    payment_id INTEGER, reason TEXT, booked_at TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS reversals ON entries (payment_id) WHERE payment_id IS NOT NULL;
CREATE TABLE IF NOT EXISTS closed_accounts (profile TEXT, number TEXT, PRIMARY KEY (profile, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS statements (
    id INTEGER PRIMARY KEY, profile TEXT NOT NULL, account_id INTEGER NOT NULL, year INTEGER NOT NULL,
    number INTEGER NOT NULL, lines INTEGER NOT NULL, content BLOB NOT NULL, produced_at TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, pushed_at TEXT, acknowledged_at TEXT);
CREATE INDEX IF NOT EXISTS unacknowledged ON statements (profile, id) WHERE acknowledged_at IS NULL;
CREATE TABLE IF NOT EXISTS statement_settings (
    profile TEXT PRIMARY KEY, callback_url TEXT, token TEXT, push_after_ms INTEGER, max_lines INTEGER);
CREATE INDEX IF NOT EXISTS statement_numbers ON statements (account_id, year, number);
"""

ERRORS = {
    "ACCOUNT_CLOSED": "The beneficiary's account is closed",
    "CURRENCY_MISMATCH": "Currency of the account differs",
    "DUPLICATE_REFERENCE": "Payment reference was used before",
    "INSUFFICIENT_BLOCK": "More than what is left of the block",
    "INSUFFICIENT_FUNDS": "Insufficient funds",
    "INVALID_AMOUNT": "Amount is not a positive number of the currency's minor units",
    "INVALID_REFERENCE": "Payment reference is empty or longer than 16 characters",
    "UNKNOWN_ACCOUNT": "Account not found",
    "UNKNOWN_BLOCK": "Block reference not found",
}

_MAX_MINOR = 10**15  # what fits the 15 characters of an MT940 amount, with its comma, whatever the currency

_ROWS_AT_ONCE = 250


def minor(amount: object, currency: str) -> int | None:
    """Minor units of a decimal number as it comes on the wire (JSON number or string); None: it is no such amount."""
    if not isinstance(amount, (Decimal, int, str)) or isinstance(amount, bool):
        return None
    try:
        scaled = Decimal(amount).scaleb(mt940.scale(currency))
        whole = int(scaled)
    except (InvalidOperation, ValueError, OverflowError):
        return None
    return whole if whole == scaled and 0 < whole < _MAX_MINOR else None


def block_reference(block_id: int) -> str:
    return f"BLK{block_id:013d}"


def find_account(db: sqlite3.Connection, profile: str, number: object) -> sqlite3.Row | None:
    if not isinstance(number, str):
        return None
    sql = "SELECT * FROM accounts WHERE profile = ? AND number = ?"
    row: sqlite3.Row | None = db.execute(sql, (profile, number)).fetchone()
    return row


def find_block(db: sqlite3.Connection, account_id: int, reference: object) -> sqlite3.Row | None:
    """A block by its reference, if it belongs to that account."""
    if not isinstance(reference, str) or not reference.startswith("BLK") or not reference[3:].isdigit():
        return None
    sql = "SELECT *, amount_minor - used_minor - released_minor AS left_minor FROM blocks WHERE id = ? AND account_id = ?"
    row: sqlite3.Row | None = db.execute(sql, (int(reference[3:]), account_id)).fetchone()
    return row


def put_account(db: sqlite3.Connection, profile: str, number: str, currency: str, balance_minor: int) -> None:
    """Opens an account, or books the difference to the balance it has now. Raises ValueError: other currency."""
    account = find_account(db, profile, number)
    if account is None:
        db.execute(
            "INSERT INTO accounts (profile, number, currency, balance_minor, first_minor, stated_minor)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (profile, number, currency, balance_minor, balance_minor, balance_minor),
        )
        return
    if account["currency"] != currency:
        raise ValueError(f"account {number} is kept in {account['currency']}")
    difference = balance_minor - account["balance_minor"]
    if difference:
        db.execute(
            "INSERT INTO entries (account_id, mark, amount_minor, reason, booked_at) VALUES (?, ?, ?, 'TOP-UP', ?)",
            (account["id"], "C" if difference > 0 else "D", abs(difference), now()),
        )
        _booked(db, account["id"], difference, 1)


def block(db: sqlite3.Connection, account_id: int, amount_minor: int, key: str | None) -> str:
    """Reserves money of an account; its reference. The caller has checked that there is enough."""
    cursor = db.execute("INSERT INTO blocks (account_id, amount_minor, key) VALUES (?, ?, ?)", (account_id, amount_minor, key))
    db.execute("UPDATE accounts SET blocked_minor = blocked_minor + ? WHERE id = ?", (amount_minor, account_id))
    assert cursor.lastrowid is not None
    return block_reference(cursor.lastrowid)


def release(db: sqlite3.Connection, block_row: sqlite3.Row, amount_minor: int) -> None:
    sql = "UPDATE blocks SET released_minor = released_minor + ? WHERE id = ?"
    db.execute(sql, (amount_minor, block_row["id"]))
    sql = "UPDATE accounts SET blocked_minor = blocked_minor - ? WHERE id = ?"
    db.execute(sql, (amount_minor, block_row["account_id"]))


class _Source(NamedTuple):
    account_id: int
    currency: str
    block_id: int | None  # none: there is no such block


class PaymentList:
    """A list of payments, judged in order against the books before anything is written.

    `codes[i]` is None for a payment that is accepted, else a key of ERRORS. Raises MalformedError.
    """

    def __init__(self, db: sqlite3.Connection, profile: str, payments: Any, max_reference: int) -> None:
        if not isinstance(payments, list) or not all(isinstance(payment, dict) for payment in payments):
            raise MalformedError("a list of payments is expected")
        self._db = db
        self._profile = profile
        # By field: what is done for a thousand payments at once costs a fraction of what it does for each.
        self._texts = {name: list(map(dict.get, payments, repeat(name))) for name in TEXT_FIELDS}
        kinds = {name: set(map(type, texts)) for name, texts in self._texts.items()}
        if not set().union(*kinds.values()) <= {str, type(None)}:
            raise MalformedError("all fields of a payment but its amount are strings")
        self._sent_fields = [name for name in TEXT_FIELDS if str in kinds[name]]
        self._left_minor: dict[int, int] = {}  # of each block
        self._drawn: list[tuple[int, int, int]] = []  # of each accepted payment: account, block, amount
        self.codes = self._judge(payments, max_reference)

    def _judge(self, payments: list[dict[str, Any]], max_reference: int) -> list[str | None]:
        references, numbers = self._texts["payment_reference_number"], self._texts["beneficiary_account"]
        used = self._listed(references, "payments", "payment_reference_number")
        closed = self._listed(numbers, "closed_accounts", "number")
        columns = [[x if isinstance(x, str) else "" for x in map(dict.get, payments, repeat(name))] for name in _SOURCE_FIELDS]
        sources = list(zip(*columns, strict=True))
        found = {source: self._find(*source) for source in set(sources)}
        codes: list[str | None] = []
        for payment, source, reference, number in zip(payments, sources, references, numbers, strict=True):
            if not reference or len(reference) > max_reference:
                code: str | None = "INVALID_REFERENCE"
            elif reference in used:
                code = "DUPLICATE_REFERENCE"
            elif number in closed:
                code = "ACCOUNT_CLOSED"
            else:
                code = self._draw(found[source], payment.get("payment_amount"))
            if code is None:
                used.add(reference)
            codes.append(code)
        return codes

    def _listed(self, texts: Sequence[str | None], table: str, column: str) -> set[Any]:
        """Which of the payments' values of a field are in a column of the books: one query for the list."""
        sql = f"SELECT {column} FROM {table} WHERE profile = ? AND {column} IN (SELECT value FROM json_each(?))"
        return {row[0] for row in self._db.execute(sql, (self._profile, json.dumps(texts)))}

    def _find(self, number: str, currency: str, reference: str) -> "_Source | str":
        """What a payment is drawn from, or a key of ERRORS."""
        account = find_account(self._db, self._profile, number)
        if account is None:
            return "UNKNOWN_ACCOUNT"
        if account["currency"] != currency:
            return "CURRENCY_MISMATCH"
        block = find_block(self._db, account["id"], reference)
        if block:
            self._left_minor.setdefault(block["id"], block["left_minor"])  # BLK7 and BLK0000000000007 are one block
        return _Source(account["id"], currency, block["id"] if block else None)

    def _draw(self, source: "_Source | str", amount: object) -> str | None:
        """Takes one payment's amount from what is left of its block."""
        if isinstance(source, str):
            return source
        amount_minor = minor(amount, source.currency)
        if amount_minor is None:
            return "INVALID_AMOUNT"
        if source.block_id is None:
            return "UNKNOWN_BLOCK"
        left_minor = self._left_minor[source.block_id]
        if amount_minor > left_minor:
            return "INSUFFICIENT_BLOCK"
        self._left_minor[source.block_id] = left_minor - amount_minor
        self._drawn.append((source.account_id, source.block_id, amount_minor))
        return None

    def book(self, key: str | None) -> None:
        """Books what is accepted."""
        texts_of_each = zip(*(self._texts[name] for name in self._sent_fields), strict=True)
        accepted = compress(texts_of_each, [code is None for code in self.codes])
        rows = [drawn + texts for drawn, texts in zip(self._drawn, accepted, strict=True)]
        columns = ("profile", "key", "booked_at", "account_id", "block_id", "amount_minor", *self._sent_fields)
        one = f"({', '.join('?' * (len(columns) - 3))})"
        fixed = (self._profile, key, now())
        # Many rows to a statement, and only the fields that were sent: binding values is most of what an insertion costs.
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[start : start + _ROWS_AT_ONCE]
            self._db.execute(
                f"INSERT INTO payments ({', '.join(columns)}) SELECT ?, ?, ?, * FROM (VALUES {', '.join([one] * len(some))})",
                (*fixed, *chain.from_iterable(some)),
            )
        for account_id, block_id in set(map(itemgetter(0, 1), self._drawn)):
            amounts = [drawn[2] for drawn in self._drawn if drawn[1] == block_id]
            sql = "UPDATE blocks SET used_minor = used_minor + ? WHERE id = ?"
            self._db.execute(sql, (sum(amounts), block_id))
            sql = "UPDATE accounts SET blocked_minor = blocked_minor - ? WHERE id = ?"
            self._db.execute(sql, (sum(amounts), account_id))
            _booked(self._db, account_id, -sum(amounts), len(amounts))


def _booked(db: sqlite3.Connection, account_id: int, change_minor: int, lines: int) -> None:
    if lines:
        db.execute(
            "UPDATE accounts SET balance_minor = balance_minor + ?, unstated_lines = unstated_lines + ?,"
            " last_booked_at = ?, unstated_since = coalesce(unstated_since, ?) WHERE id = ?",
            (change_minor, lines, time.time(), time.time(), account_id),
        )


def reverse(db: sqlite3.Connection, profile: str, column: str, values: Iterable[str], reason: str) -> int:
    """Gives payments back, found by `column`; how many. A payment that is reversed twice gets a second RD line."""
    found = db.execute(
        f"SELECT id, account_id, amount_minor FROM payments WHERE profile = ? AND {column} IN"
        " (SELECT value FROM json_each(?)) ORDER BY id",
        (profile, json.dumps(list(values))),
    ).fetchall()
    at = now()
    db.executemany(
        "INSERT INTO entries (account_id, mark, amount_minor, payment_id, reason, booked_at) VALUES (?, 'RD', ?, ?, ?, ?)",
        [(row["account_id"], row["amount_minor"], row["id"], reason, at) for row in found],
    )
    for account_id in {row["account_id"] for row in found}:
        amounts = [row["amount_minor"] for row in found if row["account_id"] == account_id]
        _booked(db, account_id, sum(amounts), len(amounts))
    return len(found)


def cut_all(db: sqlite3.Connection, account: sqlite3.Row) -> list[int]:
    """States all that is booked and on no statement yet, in at least one file; the files' ids."""
    settings = db.execute("SELECT max_lines FROM statement_settings WHERE profile = ?", (account["profile"],)).fetchone()
    max_lines = settings["max_lines"] if settings else None
    ids = [cut_statement(db, account, max_lines)]
    while True:
        account = db.execute("SELECT * FROM accounts WHERE id = ?", (account["id"],)).fetchone()
        if not account["unstated_lines"]:
            return ids
        ids.append(cut_statement(db, account, max_lines))


def cut_statement(db: sqlite3.Connection, account: sqlite3.Row, max_lines: int | None) -> int:
    """Writes the next statement of an account, possibly without a line; its id.

    The profile `example` numbers every statement 1/1 and opens it with the account's first balance, as that bank does.
    """
    day = datetime.now(UTC).date()
    lines, last_payment, last_entry = _unstated(db, account, max_lines or -1)
    change_minor = sum(mt940.SIGN[line[0]] * line[1] for line in lines)
    if account["profile"] == "example":
        number, opening_minor = 1, account["first_minor"]
    else:
        sql = "SELECT coalesce(max(number), 0) + 1 FROM statements WHERE account_id = ? AND year = ?"
        number, opening_minor = db.execute(sql, (account["id"], day.year)).fetchone()[0], account["stated_minor"]
    statement_id: int = db.execute("SELECT coalesce(max(id), 0) + 1 FROM statements").fetchone()[0]
    content = mt940.statement(
        reference=f"ST{statement_id:014d}",
        account=account["number"],
        number=number,
        currency=account["currency"],
        opening_minor=opening_minor,
        closing_minor=opening_minor + change_minor,
        day=day,
        lines=lines,
    )
    db.execute(
        "INSERT INTO statements (id, profile, account_id, year, number, lines, content, produced_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (statement_id, account["profile"], account["id"], day.year, number, len(lines), content.encode(), now()),
    )
    db.execute(
        "UPDATE accounts SET stated_minor = stated_minor + ?, stated_payment = ?, stated_entry = ?,"
        " unstated_lines = unstated_lines - ?, unstated_since = iif(unstated_lines > ?, unstated_since, NULL)"
        " WHERE id = ?",
        (change_minor, last_payment, last_entry, len(lines), len(lines), account["id"]),
    )
    return statement_id


def _unstated(db: sqlite3.Connection, account: sqlite3.Row, limit: int) -> tuple[list[mt940.Fields], int, int]:
    """Up to `limit` lines (-1: all) that are on no statement yet. Payments first: no reversal before its debit."""
    cursor = db.cursor()
    cursor.row_factory = None  # plain tuples
    payments = cursor.execute(
        "SELECT id, amount_minor, payment_reference_number, narrative_1, narrative_2, narrative_3, narrative_4,"
        " narrative_5, narrative_6 FROM payments WHERE account_id = ? AND id > ? ORDER BY id LIMIT ?",
        (account["id"], account["stated_payment"], limit),
    ).fetchall()
    entries = db.execute(
        "SELECT e.id, e.mark, e.amount_minor, e.payment_id, e.reason, p.payment_reference_number, p.narrative_1,"
        " p.narrative_2, p.narrative_3, p.narrative_4, p.narrative_5 FROM entries e LEFT JOIN payments p"
        " ON p.id = e.payment_id WHERE e.account_id = ? AND e.id > ? ORDER BY e.id LIMIT ?",
        (account["id"], account["stated_entry"], limit if limit < 0 else limit - len(payments)),
    ).fetchall()
    lines: list[mt940.Fields] = [("D", row[1], row[2], f"B{row[0]:015d}", row[3:9]) for row in payments]
    lines += map(_entry_line, entries)
    last_payment = payments[-1][0] if payments else account["stated_payment"]
    return lines, last_payment, entries[-1]["id"] if entries else account["stated_entry"]


def _entry_line(row: sqlite3.Row) -> mt940.Line:
    if row["payment_id"] is None:
        return mt940.Line(row["mark"], row["amount_minor"], "NONREF", f"E{row['id']:015d}", (row["reason"],))
    narratives: Sequence[str] = (*row[6:11], row["reason"])
    return mt940.Line("RD", row["amount_minor"], row[5], f"E{row['id']:015d}", narratives)
