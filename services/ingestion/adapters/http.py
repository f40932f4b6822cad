"""`POST /statements`: a bank's call-back, or the command line, hands in a statement file as multipart field `statement_file`.

200 only after the commit. Refusals are JSON {code, message}: 401 without a known token, 413 over the limit, 422 where no
statement is in it. A file of which single statements can't be used is stored, and they are listed as REJECTED."""

import hmac
from collections.abc import Mapping

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
from services.ingestion.statements import Incoming, Statements

FIELD = "statement_file"
_FORM_BYTES = 10_000  # of the multipart form around the file

_log = get("statements")


class _TooLarge(Exception):
    pass


def statement_route(database: Database, statements: Statements, tokens: Mapping[str, SecretStr], max_bytes: int) -> Route:
    known = {name: token.get_secret_value().encode() for name, token in tokens.items()}

    def store(name: str, upload: UploadFile, traceparent: str | None) -> list[Fault]:
        cause = Cause(f"http/{name}", None, next_traceparent(traceparent))
        with database.transaction() as tx:
            return statements.receive_one(tx, Incoming(f"http/{name}", upload.file, cause)).faults

    async def post(request: Request) -> Response:
        name = _who(request, known)
        if name is None:
            return _refusal(401, "UNAUTHORIZED", "send Authorization: Bearer with the token that was agreed")
        try:
            async with _limited(request, max_bytes + _FORM_BYTES).form(max_files=1, max_fields=10) as form:
                upload = form.get(FIELD)
                if not isinstance(upload, UploadFile):
                    return _refusal(422, "INVALID_STATEMENT", f"send the file as multipart field {FIELD}")
                if (upload.size or 0) > max_bytes:
                    raise _TooLarge
                faults = await run_in_threadpool(store, name, upload, request.headers.get("traceparent"))
        except _TooLarge:
            return _refusal(413, "STATEMENT_TOO_LARGE", f"at most {max_bytes} bytes; send the days in files of their own")
        except (MultiPartException, HTTPException):
            return _refusal(422, "INVALID_STATEMENT", "not a readable multipart form")
        except Transient as error:
            _log.warning("statement not stored", error=str(error))
            return _refusal(503, "TRY_AGAIN", "nothing was stored; send it again")
        if faults and faults[0].code == "INVALID_STATEMENT":
            return _refusal(422, faults[0].code, faults[0].message)
        return JSONResponse({"outcome": "stored", "rejected": [{"code": f.code, "message": f.message} for f in faults]})

    return Route("/statements", post, methods=["POST"])


def _who(request: Request, known: Mapping[str, bytes]) -> str | None:
    """The name of the token; compared in constant time with each of them."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    matches = [name for name, token in known.items() if hmac.compare_digest(token, given.encode())]
    return matches[0] if matches and scheme.lower() == "bearer" and given else None


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


def _refusal(status: int, code: str, message: str) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"code": code, "message": message}, status, headers)
