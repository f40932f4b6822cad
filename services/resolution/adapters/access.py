"""What lets a request in at the mapper and an answer in here: an OAuth token and signatures, each where it is configured."""

import asyncio
import math
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import httpx
from pydantic_core import from_json, to_json

from libs.common.workqueue import Claim, MaybeDone, NotSent, asked_to_wait_seconds, post
from services.resolution import jws

# The request itself is wrong, or we are not let in: again would be in vain until somebody has acted.
_REFUSALS = (400, 401, 403, 413, 415, 422)
_LONGEST_TOKEN_SECONDS = 86_400.0
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}

Failure = NotSent | MaybeDone


class Tokens:
    """OAuth 2 client credentials: one token for all calls. It is fetched anew shortly before its end, or when it is refused;
    one call fetches it while the others wait."""

    def __init__(self, url: str, client_id: str, client_secret: str, scope: str = "") -> None:
        self._url = url
        self._form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": client_secret}
        if scope:
            self._form["scope"] = scope
        self._lock = asyncio.Lock()
        self._token = ""
        self._until = -math.inf

    async def get(self, client: httpx.AsyncClient, claim: Claim, refused: str = "") -> str | Failure:
        """A token other than the one that was `refused`."""
        async with self._lock:
            if self._token in ("", refused) or time.monotonic() >= self._until:
                failure = await self._fetch(client, claim)
                if failure is not None:
                    return failure
            return self._token

    async def _fetch(self, client: httpx.AsyncClient, claim: Claim) -> Failure | None:
        self._token, asked_at = "", time.monotonic()
        answer = _answer(await post(client, _elsewhere(claim), self._url, urlencode(self._form).encode(), _FORM), "TOKEN")
        if isinstance(answer, NotSent | MaybeDone):
            return answer
        token, seconds = answer.get("access_token"), answer.get("expires_in", 60)
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token.strip():
            return MaybeDone("TOKEN_NONSENSE", "the token's answer has no access_token")
        if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
            return MaybeDone("TOKEN_NONSENSE", "the token's expires_in is no time")
        seconds = min(float(seconds), _LONGEST_TOKEN_SECONDS)
        self._token, self._until = token, asked_at + seconds - min(30.0, seconds / 5)
        return None


class Keymanager:
    """Signs where the key is kept: POST <url>/jwtSign, with our token (which it looks for in a cookie)."""

    def __init__(self, url: str, app_id: str, ref_id: str) -> None:
        self._url = url.rstrip("/") + "/jwtSign"
        self._key = {"applicationId": app_id, "referenceId": ref_id}

    async def sign(self, client: httpx.AsyncClient, claim: Claim, body: bytes, tokens: Tokens | None) -> str | Failure:
        request = {
            "dataToSign": urlsafe_b64encode(body).decode().rstrip("="),
            **self._key,
            "includePayload": False,
            "includeCertificate": False,
            "includeCertHash": False,
        }
        envelope = {
            "id": "almoner",
            "version": "1.0",
            "requesttime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z",
            "metadata": {},
            "request": request,
        }
        sent = await _let_in(client, _elsewhere(claim), self._url, to_json(envelope), {}, tokens, cookie=True)
        answer = _answer(sent, "KEYMANAGER")
        if isinstance(answer, NotSent | MaybeDone):
            return answer
        response = answer.get("response")
        signature = response.get("jwtSignedData") if isinstance(response, dict) else None
        if isinstance(signature, str) and jws.is_detached(signature):
            return signature
        if answer.get("errors"):
            return NotSent("KEYMANAGER_REFUSED", "the keymanager signs nothing for us", final=True)
        return MaybeDone("KEYMANAGER_NONSENSE", "the keymanager's answer has no detached signature of an allowed algorithm")


class Access:
    """Each part may be missing. `answer_key`: answers without its signature are none."""

    def __init__(
        self,
        tokens: Tokens | None = None,
        signer: jws.Key | Keymanager | None = None,
        answer_key: jws.Key | None = None,
    ) -> None:
        self._tokens = tokens
        self._signer = signer
        self._answer_key = answer_key

    async def post(self, client: httpx.AsyncClient, claim: Claim, url: str, body: bytes) -> bytes | Failure:
        """POST canonical JSON; the answer's content, if it is HTTP 200 and signed as it should be."""
        headers = {}
        if self._signer is not None:
            signature = await self._signature(client, claim, body)
            if not isinstance(signature, str):
                return signature
            headers["Signature"] = signature
        response = await _let_in(client, claim, url, body, headers, self._tokens)
        failure = _failure(response, "", "the mapper")
        if failure is not None:
            return failure
        assert isinstance(response, httpx.Response)
        return response.content if self._answer_key is None else self._signed(response, self._answer_key)

    async def _signature(self, client: httpx.AsyncClient, claim: Claim, body: bytes) -> str | Failure:
        if isinstance(self._signer, Keymanager):
            return await self._signer.sign(client, claim, body, self._tokens)
        assert self._signer is not None
        return jws.sign(body, self._signer)

    def _signed(self, response: httpx.Response, key: jws.Key) -> bytes | Failure:
        try:
            content = jws.canonical(from_json(response.content))
        except ValueError:
            return MaybeDone("NONSENSE", "the answer is no JSON")
        if not jws.verified(response.headers.get("Signature", ""), content, key):
            return MaybeDone("ANSWER_UNSIGNED", "the answer is not signed by the mapper's key")
        return content  # what is read is what was signed


async def _let_in(
    client: httpx.AsyncClient,
    claim: Claim,
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    tokens: Tokens | None,
    cookie: bool = False,
) -> httpx.Response | Failure:
    """POST with a token; where it is refused, once more with a new one."""
    if tokens is None:
        return await post(client, claim, url, body, headers)
    refused = ""
    while True:
        token = await tokens.get(client, claim, refused)
        if not isinstance(token, str):
            return token
        shown = {"Authorization": f"Bearer {token}"} | ({"Cookie": f"Authorization={token}"} if cookie else {})
        response = await post(client, claim, url, body, {**headers, **shown})
        if refused or not isinstance(response, httpx.Response) or response.status_code != 401:
            return response
        refused = token


def _elsewhere(claim: Claim) -> Claim:
    """For a request to somebody else than the one before whom the gate stands."""
    return replace(claim, gate=None)


def _failure(response: httpx.Response | Failure, prefix: str, who: str) -> Failure | None:
    if isinstance(response, NotSent | MaybeDone):
        return response
    status = response.status_code
    if status == 200:
        return None
    code = f"{prefix}HTTP_{status}"
    if status in _REFUSALS:
        return NotSent(code, f"{who} refuses the request", final=True)
    if status in (429, 503):
        return NotSent(code, f"{who} asks for time", outage=True, after_seconds=asked_to_wait_seconds(response))
    return MaybeDone(code, f"{who} failed")


def _answer(response: httpx.Response | Failure, name: str) -> dict[str, Any] | Failure:
    """The JSON object of somebody who helps us to ask the mapper."""
    if isinstance(response, NotSent | MaybeDone):
        return response if response.code.startswith("TOKEN_") else replace(response, code=f"{name}_{response.code}")
    failure = _failure(response, f"{name}_", "the token's server" if name == "TOKEN" else "the keymanager")
    if failure is not None:
        return failure
    try:
        found = from_json(response.content)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else MaybeDone(f"{name}_NONSENSE", "the answer is no JSON object")
