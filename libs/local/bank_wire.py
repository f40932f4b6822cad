"""The simulated bank's wire formats: what each verb of the two profiles does and answers.

A verb is a pair (act, refuse): `refuse` is what a fault of that kind makes of it, a definite no in the verb's own form.
"""

import json
import sqlite3
from decimal import Decimal
from typing import Any

from pydantic_core import to_json

from libs.local import ledger
from libs.local.simulator import Action, Answer, Call, MalformedError

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, path TEXT NOT NULL, body_sha256 TEXT NOT NULL, status_code INTEGER NOT NULL,
    content BLOB NOT NULL) WITHOUT ROWID;
"""

_CODES = {**ledger.ERRORS, "EMPTY_LIST": "No payments", "REFUSED": "Refused by the bank"}
_LONGEST_REFERENCE = 16


def parse(body: bytes) -> Any:
    """JSON with its numbers as int or Decimal: money never becomes a float."""
    return json.loads(body, parse_float=Decimal, parse_constant=Decimal)


def count_items(body: Any) -> int:
    return len(body) if isinstance(body, list) else 1


def _field(call: Call, name: str) -> Any:
    if not isinstance(call.json, dict) or name not in call.json:
        raise MalformedError(f"{name} is missing")
    return call.json[name]


def _failed(call: Call, code: str, fields: dict[str, Any]) -> Answer:
    content = {"status": "failed", **fields, "error_message": _CODES[code]}
    if call.profile == "full":
        content["error_code"] = code
    return Answer("failed", to_json(content))


def _account(db: sqlite3.Connection, call: Call, number_field: str, currency_field: str) -> sqlite3.Row | str:
    """The account, or the code of what is wrong with it."""
    account = ledger.find_account(db, call.profile, _field(call, number_field))
    if account is None:
        return "UNKNOWN_ACCOUNT"
    return account if account["currency"] == _field(call, currency_field) else "CURRENCY_MISMATCH"


def check_funds(db: sqlite3.Connection, call: Call) -> Answer:
    number = _field(call, "account_number")
    account = _account(db, call, "account_number", "account_currency")
    no = {"account_number": number, "has_sufficient_funds": False}
    if isinstance(account, str):
        return _failed(call, account, no)
    needed_minor = ledger.minor(_field(call, "total_funds_needed"), account["currency"])
    if needed_minor is None:
        return _failed(call, "INVALID_AMOUNT", no)
    if account["balance_minor"] - account["blocked_minor"] < needed_minor:
        return _failed(call, "INSUFFICIENT_FUNDS", no)
    yes = {"status": "success", "account_number": number, "has_sufficient_funds": True, "error_message": ""}
    return Answer("success", to_json(yes))


def refuse_check(db: sqlite3.Connection, call: Call) -> Answer:
    fields = {"account_number": _field(call, "account_number"), "has_sufficient_funds": False}
    return _failed(call, "REFUSED", fields)


def block_funds(db: sqlite3.Connection, call: Call) -> Answer:
    account = _account(db, call, "account_number", "currency")
    no = {"block_reference_no": ""}
    if isinstance(account, str):
        return _failed(call, account, no)
    amount_minor = ledger.minor(_field(call, "amount"), account["currency"])
    if amount_minor is None:
        return _failed(call, "INVALID_AMOUNT", no)
    if account["balance_minor"] - account["blocked_minor"] < amount_minor:
        return _failed(call, "INSUFFICIENT_FUNDS", no)
    reference = ledger.block(db, account["id"], amount_minor, call.key)
    return Answer("success", to_json({"status": "success", "block_reference_no": reference, "error_message": ""}))


def refuse_block(db: sqlite3.Connection, call: Call) -> Answer:
    return _failed(call, "REFUSED", {"block_reference_no": ""})


def release_funds(db: sqlite3.Connection, call: Call) -> Answer:
    account = _account(db, call, "account_number", "currency")
    no = {"release_reference_no": ""}
    if isinstance(account, str):
        return _failed(call, account, no)
    block = ledger.find_block(db, account["id"], _field(call, "block_reference_no"))
    amount_minor = ledger.minor(_field(call, "amount"), account["currency"])
    if block is None:
        return _failed(call, "UNKNOWN_BLOCK", no)
    if amount_minor is None:
        return _failed(call, "INVALID_AMOUNT", no)
    if amount_minor > block["left_minor"]:
        return _failed(call, "INSUFFICIENT_BLOCK", no)
    ledger.release(db, block, amount_minor)
    reference = f"REL{call.id:013d}"  # the request's number in the log
    return Answer("success", to_json({"status": "success", "release_reference_no": reference, "error_message": ""}))


def refuse_release(db: sqlite3.Connection, call: Call) -> Answer:
    return _failed(call, "REFUSED", {"release_reference_no": ""})


def initiate_whole_list(db: sqlite3.Connection, call: Call) -> Answer:
    """The example bank: all or nothing, an empty list is a success, a repeated reference breaks its database."""
    payments = ledger.PaymentList(db, call.profile, call.json, max_reference=1000)
    codes = [code for code in payments.codes if code]
    if "DUPLICATE_REFERENCE" in codes:
        return Answer("failed", b'{"detail":"Internal Server Error"}', 500)
    if codes:
        return _failed(call, codes[0], {})
    payments.book(call.key)
    return Answer("success", b'{"status":"success","error_message":""}')


def refuse(db: sqlite3.Connection, call: Call) -> Answer:
    return _failed(call, "REFUSED", {})


def initiate_each(db: sqlite3.Connection, call: Call) -> Answer:
    """A result for each payment, in the order of the list; what is accepted is booked, whatever the others' fate."""
    payments = ledger.PaymentList(db, call.profile, call.json, _LONGEST_REFERENCE)
    payments.book(call.key)
    return _results(call, payments.codes)


def refuse_each(db: sqlite3.Connection, call: Call) -> Answer:
    payments = ledger.PaymentList(db, call.profile, call.json, _LONGEST_REFERENCE)
    return _results(call, ["REFUSED"] * len(payments.codes))


def _results(call: Call, codes: list[str | None]) -> Answer:
    if not codes:
        return _failed(call, "EMPTY_LIST", {"results": []})
    refused = len(codes) - codes.count(None)
    status = "success" if not refused else "failed" if refused == len(codes) else "partial"
    results = [
        {
            "payment_reference_number": payment.get("payment_reference_number"),
            "status": "refused" if code else "accepted",
            "error_code": code,
            "error_message": _CODES[code] if code else None,
        }
        for payment, code in zip(call.json, codes, strict=True)
    ]
    message = f"{refused} of {len(codes)} payments refused" if refused else ""
    return Answer(status, to_json({"status": status, "error_message": message, "results": results}))


def generate_account_statement(db: sqlite3.Connection, call: Call) -> Answer:
    account = ledger.find_account(db, call.profile, _field(call, "program_account_number"))
    if account is None:
        return _failed(call, "UNKNOWN_ACCOUNT", {})
    last_id = ledger.cut_all(db, account)[-1]
    return Answer("success", to_json({"status": "success", "error_message": "", "account_statement_id": str(last_id)}))


def query(db: sqlite3.Connection, call: Call) -> Answer:
    """What became of a key: the answer as it was given then."""
    sql = "SELECT path, status_code, content FROM answers WHERE key = ?"
    row = db.execute(sql, (str(_field(call, "idempotency_key")),)).fetchone()
    if row is None:
        return Answer("not found", b'{"found":false}')
    head = to_json({"found": True, "verb": row["path"].removeprefix("/"), "status_code": row["status_code"]})
    return Answer("found", head[:-1] + b',"answer":' + row["content"] + b"}")


def _keyed(act: Action, *, key_required: bool = True) -> Action:
    """The same key and body get the stored answer, byte for byte; refusals are stored as well."""

    def once(db: sqlite3.Connection, call: Call) -> Answer:
        if call.key is None:
            return act(db, call) if not key_required else _wrong_key("KEY_MISSING", 400)
        row = db.execute("SELECT * FROM answers WHERE key = ?", (call.key,)).fetchone()
        if row is not None:
            if (row["path"], row["body_sha256"]) != (call.path, call.body_sha256):
                return _wrong_key("KEY_REUSED", 422)
            return Answer("repeated", row["content"], row["status_code"])
        answer = act(db, call)
        db.execute(
            "INSERT INTO answers (key, path, body_sha256, status_code, content) VALUES (?, ?, ?, ?, ?)",
            (call.key, call.path, call.body_sha256, answer.status_code, answer.content),
        )
        return answer

    return once


def _wrong_key(code: str, status_code: int) -> Answer:
    return Answer(code, to_json({"status": "failed", "error_code": code}), status_code)


VERBS: dict[str, dict[str, tuple[Action, Action]]] = {
    "example": {
        "/check_funds": (check_funds, refuse_check),
        "/block_funds": (block_funds, refuse_block),
        "/initiate_payment": (initiate_whole_list, refuse),
        "/generate_account_statement": (generate_account_statement, refuse),
    },
    "full": {
        # A check moves nothing, so it may come without a key.
        "/check_funds": (_keyed(check_funds, key_required=False), _keyed(refuse_check, key_required=False)),
        "/block_funds": (_keyed(block_funds), _keyed(refuse_block)),
        "/release_funds": (_keyed(release_funds), _keyed(refuse_release)),
        "/initiate_payment": (_keyed(initiate_each), _keyed(refuse_each)),
        "/query": (query, refuse),
        "/generate_account_statement": (generate_account_statement, refuse),
    },
}
