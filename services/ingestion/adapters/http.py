"""`POST /statements`: a bank's call-back, or the command line, hands in a statement file as multipart field `statement_file`.

A bank has a token (`Authorization: Bearer …`) or signs the body of its request (`X-Almoner-Signature: sha256=<hex>`, HMAC-SHA256);
what was signed and is sent again by somebody else changes nothing, since the same content counts once.
200 only after the commit. Refusals are JSON {code, message}: 401 for whoever is not known, always the same one; 413 over the
limit; 422 where no statement is in it. A file of which single statements can't be used is stored, and the answer lists them."""

import hashlib
import hmac
from collections.abc import Container, Mapping, Sequence
from tempfile import SpooledTemporaryFile
from typing import IO

from pydantic import SecretStr
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message

from libs.common.db import Database
from libs.common.envelope import Cause, next_traceparent
from libs.common.errors import Transient
from libs.common.log import get
from services.ingestion.domain import Fault
from services.ingestion.statements import File, Incoming, Statements

FIELD = "statement_file"
SIGNATURE = "x-almoner-signature"
_FORM_BYTES = 10_000  # of the multipart form around the file
_PIECE_BYTES = 100_000
_IN_MEMORY_BYTES = 1_000_000
_HOW_TO_BE_KNOWN = (
    "send Authorization: Bearer with the token that was agreed, or X-Almoner-Signature: sha256= and HMAC-SHA256 in hex"
)

_log = get("statements")


class _TooLarge(Exception):
    pass


Secrets = Mapping[str, Sequence[SecretStr]]  # by bank, the newest first; an old one is valid until it is taken out


def statement_route(
    database: Database,
    statements: Statements,
    tokens: Secrets,
    signing_keys: Secrets,
    max_bytes: int,
    unnumbered: Container[str],
) -> Route:
    doorkeeper = _Doorkeeper(tokens, signing_keys)

    def store(name: str, upload: UploadFile, traceparent: str | None) -> File:
        cause = Cause(f"http/{name}", None, next_traceparent(traceparent))
        with database.transaction() as tx:
            return statements.receive_one(tx, Incoming(f"http/{name}", upload.file, cause, name not in unnumbered))

    async def take(request: Request, body: IO[bytes]) -> Response:
        name = doorkeeper.by_token(request)
        if name is None and doorkeeper.may_be_signed(request):
            name = await doorkeeper.by_signature(request, body)
            request = _again(request, body)
        if name is None:
            return _refusal(401, "UNAUTHORIZED", _HOW_TO_BE_KNOWN)
        async with request.form(max_files=1, max_fields=10) as form:
            upload = form.get(FIELD)
            if not isinstance(upload, UploadFile):
                return _refusal(422, "INVALID_STATEMENT", f"send the file as multipart field {FIELD}")
            if (upload.size or 0) > max_bytes:
                raise _TooLarge
            file = await run_in_threadpool(store, name, upload, request.headers.get("traceparent"))
        if file.faults and file.faults[0].code == "INVALID_STATEMENT":
            return _refusal(422, file.faults[0].code, file.faults[0].message)
        told = {"rejected": _told(file.rejected), "warnings": _told(file.flags)}
        return JSONResponse({"outcome": "stored", "file_id": str(file.file_id), **told})

    async def post(request: Request) -> Response:
        try:
            with SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as body:
                return await take(_limited(request, max_bytes + _FORM_BYTES), body)
        except _TooLarge:
            return _refusal(413, "STATEMENT_TOO_LARGE", f"at most {max_bytes} bytes; send the days in files of their own")
        except (MultiPartException, HTTPException):
            return _refusal(422, "INVALID_STATEMENT", "not a readable multipart form; send one")
        except Transient as error:
            _log.warning("statement not stored", error=str(error))
            return _refusal(503, "TRY_AGAIN", "nothing was stored; send it again")

    return Route("/statements", post, methods=["POST"])


class _Doorkeeper:
    """Knows who posts. Whatever is wrong, it takes the same way through all secrets, and what it compares is of one length."""

    def __init__(self, tokens: Secrets, signing_keys: Secrets) -> None:
        self._tokens = [(name, _digest(one.get_secret_value())) for name, known in tokens.items() for one in known]
        self._keys = [(name, one.get_secret_value().encode()) for name, known in signing_keys.items() for one in known]

    def by_token(self, request: Request) -> str | None:
        """Whose token it is."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = _digest(token)
        matches = [name for name, known in self._tokens if hmac.compare_digest(known, given)]
        return matches[0] if matches and scheme.lower() == "bearer" else None

    def may_be_signed(self, request: Request) -> bool:
        return bool(self._keys) and SIGNATURE in request.headers

    async def by_signature(self, request: Request, body: IO[bytes]) -> str | None:
        """Who signed the body, which is kept meanwhile: nothing of it is looked at before it is known from whom it comes."""
        signatures = [(name, hmac.new(key, digestmod=hashlib.sha256)) for name, key in self._keys]
        async for piece in request.stream():
            body.write(piece)
            for _, signature in signatures:
                signature.update(piece)
        given = request.headers[SIGNATURE].strip().lower().encode()
        known = [(name, b"sha256=" + signature.hexdigest().encode()) for name, signature in signatures]
        matches = [name for name, signature in known if hmac.compare_digest(signature, given)]
        return matches[0] if matches else None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _limited(request: Request, max_bytes: int) -> Request:
    """The same request, whose body ends in _TooLarge when it is longer, before it fills memory or disk."""
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise _TooLarge
        return message

    return Request(request.scope, receive)


def _again(request: Request, body: IO[bytes]) -> Request:
    """The same request with the body that was kept."""
    body.seek(0)

    async def receive() -> Message:
        piece = body.read(_PIECE_BYTES)
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}

    return Request(request.scope, receive)


def _told(faults: Sequence[Fault]) -> list[dict[str, str]]:
    return [{"code": fault.code, "message": fault.message} for fault in faults]


def _refusal(status: int, code: str, message: str) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"code": code, "message": message}, status, headers)
