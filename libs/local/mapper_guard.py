"""Who is let in at the simulated mapper: OAuth tokens and signatures, each when it is told to ask for them.

It gives the tokens itself (`POST /oauth/token`) and is the keymanager too (`POST /keymanager/jwtSign`). A signature is a
detached JWS over the body as JSON with sorted keys and no spaces.
"""

import base64
import binascii
import json
import sqlite3
import time
import warnings
from typing import Any
from urllib.parse import parse_qsl

from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import import_key
from pydantic import BaseModel, Field
from pydantic_core import to_json

from libs.local.simulator import Answer, Call, MalformedError, now

SCHEMA = """
CREATE TABLE IF NOT EXISTS guard (one INTEGER PRIMARY KEY CHECK (one = 1), body TEXT NOT NULL);
INSERT OR IGNORE INTO guard VALUES (1, '{}');
CREATE TABLE IF NOT EXISTS tokens (token TEXT PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID;
"""
warnings.filterwarnings("ignore", "EdDSA is deprecated", SecurityWarning)  # a newer name of the same; the wire has this one
_ALGORITHMS = ["RS256", "PS256", "ES256", "EdDSA"]
_USUAL = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}


class Guard(BaseModel):
    """Empty, None or 0: not asked for, not done. Keys are JWKs; `refuse_with`: a code with which every request is refused;
    `too_many_from`: a request with so many refused people is refused as a whole."""

    client_id: str = ""
    client_secret: str = ""
    token_seconds: float = Field(default=300.0, gt=0)
    request_key: dict[str, Any] | None = None
    answer_key: dict[str, Any] | None = None
    keymanager_key: dict[str, Any] | None = None
    refuse_with: str | None = None
    too_many_from: int = Field(default=0, ge=0)


def guard(db: sqlite3.Connection) -> Guard:
    return Guard.model_validate_json(db.execute("SELECT body FROM guard").fetchone()["body"])


def parse_form(body: bytes) -> dict[str, str]:
    return dict(parse_qsl(body.decode(), keep_blank_values=True))


def give_token(db: sqlite3.Connection, call: Call) -> Answer:
    """OAuth 2, client credentials in the form."""
    rules, form = guard(db), call.json
    if form.get("grant_type") != "client_credentials":
        return Answer("refused", to_json({"error": "unsupported_grant_type"}), 400)
    if not rules.client_id or (form.get("client_id"), form.get("client_secret")) != (rules.client_id, rules.client_secret):
        return refuse_token(db, call)
    token = f"token-{call.id}"
    db.execute("INSERT INTO tokens VALUES (?, ?)", (token, time.time() + rules.token_seconds))
    return Answer("given", to_json({"access_token": token, "token_type": "Bearer", "expires_in": rules.token_seconds}))


def refuse_token(db: sqlite3.Connection, call: Call) -> Answer:
    return Answer("refused", to_json({"error": "invalid_client"}), 401)


def sign_for(db: sqlite3.Connection, call: Call) -> Answer:
    """The keymanager."""
    rules = guard(db)
    if not let_in(db, rules, _cookie(call)):
        return unauthorised()
    request = call.json.get("request") if isinstance(call.json, dict) else None
    if not isinstance(request, dict) or not isinstance(request.get("dataToSign"), str):
        raise MalformedError("request.dataToSign is missing")
    if rules.keymanager_key is None:
        return refuse_to_sign(db, call)
    try:
        data = base64.urlsafe_b64decode(request["dataToSign"] + "==")
    except binascii.Error:
        raise MalformedError("request.dataToSign is no base64") from None
    whole = _signed(data, rules.keymanager_key)
    signature = whole if request.get("includePayload") else jws.detach_content(whole)
    return Answer("signed", to_json({"response": {"jwtSignedData": signature, "timestamp": now()}, "errors": []}))


def refuse_to_sign(db: sqlite3.Connection, call: Call) -> Answer:
    return Answer("refused", to_json({"response": None, "errors": [{"errorCode": "KER-KMS-012", "message": "no such key"}]}))


def let_in(db: sqlite3.Connection, rules: Guard, token: str) -> bool:
    """Whether the token is one that we gave and that has not ended; all are let in where none is asked for."""
    if not rules.client_id:
        return True
    return bool(db.execute("SELECT 1 FROM tokens WHERE token = ? AND until > ?", (token, time.time())).fetchone())


def bearer(call: Call) -> str:
    return call.headers.get("authorization", "").removeprefix("Bearer ")


def _cookie(call: Call) -> str:
    return call.headers.get("cookie", "").removeprefix("Authorization=")


def unauthorised() -> Answer:
    return Answer("unauthorised", to_json({"detail": "no valid token"}), 401)


def well_signed(rules: Guard, call: Call) -> bool:
    if rules.request_key is None:
        return True
    signature = call.headers.get("signature", "")
    try:
        jws.deserialize_compact(signature, import_key(rules.request_key), algorithms=_ALGORITHMS, payload=_canonical(call.json))
    except (JoseError, ValueError):
        return False
    return ".." in signature


def sign_answer(rules: Guard, answer: Answer) -> Answer:
    if rules.answer_key is not None:
        signature = jws.detach_content(_signed(_canonical(json.loads(answer.content)), rules.answer_key))
        answer.headers["Signature"] = signature
    return answer


def _signed(body: bytes, key: dict[str, Any]) -> str:
    return jws.serialize_compact({"alg": key.get("alg", _USUAL[key["kty"]])}, body, import_key(key), algorithms=_ALGORITHMS)


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
