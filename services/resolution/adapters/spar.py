"""SPAR 1.x, the G2P Connect mapper: `POST /sync/resolve`.

Answers are matched by reference id alone: an unknown person comes back with id null, and nothing is said about order.
"""

import re
from collections.abc import Container, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx
from pydantic_core import from_json, to_json

from libs.common.log import get
from libs.common.workqueue import Claim, MaybeDone, NotSent, post
from services.resolution import domain
from services.resolution.domain import Hold, Reply

MAX_ADDRESS_CHARS = 500  # patterns with many `.*` take long for long texts

# The field without which an address of this type is none.
ESSENTIAL = {"BANK_ACCOUNT": "account_number", "MOBILE_WALLET": "mobile_number", "EMAIL_WALLET": "email_address"}

_ACTIVE = {"", "succ.id.active", "succ.fa.active"}
_REASONS = {
    "succ.fa.not_linked_to_id": domain.NOT_LINKED,
    "succ.fa.not_found": domain.NOT_LINKED,
    "succ.id.not_found": domain.NOT_FOUND,
    "succ.fa.inactive": domain.INACTIVE,
    "succ.id.inactive": domain.INACTIVE,
}
# A pattern which is nothing but keys and what stands behind them, such as `^a:(?P<a>.*)\.b:(?P<b>.*)$`.
_KEYS_AND_FIELDS = re.compile(r"\^?(?:(?:\w|\\\.)+:\(\?P<\w+>\.\*\))+\$")
_CODE = re.compile(r"[A-Za-z0-9._-]{1,80}")  # codes travel on in clear, free text might be personal
_DOUBLED = Hold(domain.AMBIGUOUS_ANSWER, "the mapper answered more than once")

_log = get("mapper")


class Spar:
    """A `ports.Mapper`. `patterns`: type of address -> regular expression; the address's ending names the type."""

    def __init__(
        self, url: str, patterns: Mapping[str, str], *, sender_id: str, sender_uri: str, receiver_id: str, max_items: int
    ) -> None:
        self._url = url.rstrip("/") + "/sync/resolve"
        self._patterns = [(kind, _quick(text), re.compile(text), ESSENTIAL[kind]) for kind, text in patterns.items()]
        self._parties = {"sender_id": sender_id, "sender_uri": sender_uri, "receiver_id": receiver_id}
        self._max_items = max_items

    async def resolve(
        self, client: httpx.AsyncClient, claim: Claim, transaction_id: str, people: Sequence[tuple[str, str]]
    ) -> dict[str, Reply] | NotSent | MaybeDone:
        replies: dict[str, Reply] = {}
        for start in range(0, len(people), self._max_items):
            some = people[start : start + self._max_items]
            message_id = f"{claim.lease_token}-{start}"  # unique per attempt: a repeated one may be refused
            answer = await post(client, claim, self._url, self.request(message_id, transaction_id, some))
            if isinstance(answer, NotSent | MaybeDone):
                return answer
            if answer.status_code != 200:
                return MaybeDone(f"HTTP_{answer.status_code}", "the mapper failed")
            read = self.read(answer.content, message_id, {reference for reference, _ in some})
            if isinstance(read, NotSent | MaybeDone):
                return read
            replies |= read
        return replies

    def request(self, message_id: str, transaction_id: str, people: Sequence[tuple[str, str]]) -> bytes:
        """The body for (reference id, beneficiary id). Without scope `details` the mapper tells no address."""
        now = datetime.now(UTC).isoformat()
        header = {
            "version": "1.0.0",
            "message_id": message_id,
            "message_ts": now,
            "action": "resolve",
            **self._parties,
            "total_count": len(people),
            "is_msg_encrypted": False,
            "meta": {},
        }
        items = [
            {"reference_id": reference, "timestamp": now, "fa": "", "id": person, "scope": "details", "locale": "en"}
            for reference, person in people
        ]
        return to_json(
            {"signature": "", "header": header, "message": {"transaction_id": transaction_id, "resolve_request": items}}
        )

    def read(self, content: bytes, message_id: str, asked: Container[str]) -> dict[str, Reply] | NotSent | MaybeDone:
        """The replies to what was asked, by reference id. A refusal of the whole message is NotSent: nobody was looked up."""
        try:
            answer = from_json(content)
        except ValueError:
            return MaybeDone("NONSENSE", "the answer is no JSON")
        header = answer.get("header") if isinstance(answer, dict) else None
        if not isinstance(header, dict):
            return MaybeDone("NONSENSE", "the answer has no header")
        status = header.get("status")
        if status == "rjct":
            return NotSent("MAPPER_REFUSED", _code(header.get("status_reason_code")))
        if header.get("message_id") not in (message_id, None):
            return MaybeDone("NONSENSE", "the answer belongs to another message")
        message = answer.get("message")
        responses = message.get("resolve_response") if isinstance(message, dict) else None
        if status != "succ" or not isinstance(responses, list):
            return MaybeDone("NONSENSE", "the answer has no resolve_response")
        return self._replies(responses, asked)

    def _replies(self, responses: list[Any], asked: Container[str]) -> dict[str, Reply] | MaybeDone:
        replies: dict[str, Reply] = {}
        foreign = 0
        for one in responses:
            if not isinstance(one, dict):
                return MaybeDone("NONSENSE", "a resolve_response is no object")
            reference = one.get("reference_id")
            if not isinstance(reference, str) or reference not in asked:
                foreign += 1
            elif reference in replies:
                replies[reference] = _DOUBLED
            else:
                replies[reference] = self._reply(one)
        if foreign:
            _log.warning("the mapper answered what was not asked", items=foreign)
        return replies

    def _reply(self, one: dict[str, Any]) -> Reply:
        status = one.get("status")
        code = one.get("status_reason_code") or ""
        if not isinstance(code, str):
            return Hold(domain.UNKNOWN_CODE)
        if status == "succ":
            if code in _ACTIVE:
                fa = one.get("fa")
                return self._address(fa) if isinstance(fa, str) and fa else Hold(domain.NOT_LINKED, _code(code))
            return Hold(_REASONS.get(code, domain.UNKNOWN_CODE), _code(code))
        return Hold(domain.REFUSED if status == "rjct" else domain.NO_ANSWER, _code(code))

    def _address(self, fa: str) -> Reply:
        if len(fa) > MAX_ADDRESS_CHARS or not fa.isprintable():
            return Hold(domain.ADDRESS_UNREADABLE, "too long, or not printable")
        for kind, quick, pattern, essential in self._patterns:
            if fa.endswith(kind):
                match = quick.match(fa) or pattern.match(fa)
                if match is None or not match[essential]:
                    return Hold(domain.ADDRESS_UNREADABLE, f"does not match the pattern of {kind}")
                address = {name: value for name, value in match.groupdict().items() if value}
                address["fa_type"] = kind
                return address
        return Hold(domain.ADDRESS_UNREADABLE, "ends in no known type of address")


def _quick(pattern: str) -> re.Pattern[str]:
    """The same pattern for fields without point and colon, which matches several times as fast as the general one.

    What it matches it matches as the other does: if no field has a colon, there is but one way to tell keys and fields apart."""
    return re.compile(pattern.replace(".*", "[^.:]*") if _KEYS_AND_FIELDS.fullmatch(pattern) else pattern)


def _code(value: object) -> str:
    return value if isinstance(value, str) and _CODE.fullmatch(value) else ""
