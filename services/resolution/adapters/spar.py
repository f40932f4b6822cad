"""SPAR 1.x, the G2P Connect mapper: `POST /sync/resolve`.

Answers are matched by reference id alone: an unknown person comes back with id null, and nothing is said about order.
Requests are written with their keys in order: the body is sent as it is signed.
"""

import re
from collections import deque
from collections.abc import Container, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx
from pydantic_core import from_json, to_json

from libs.common.log import get
from libs.common.workqueue import Claim, MaybeDone, NotSent
from services.resolution import domain
from services.resolution.adapters.access import Access
from services.resolution.domain import Hold, Reply

MAX_ADDRESS_CHARS = 500  # patterns with many `.*` take long for long texts

# The field without which an address of this type is none.
ESSENTIAL = {"BANK_ACCOUNT": "account_number", "MOBILE_WALLET": "mobile_number", "EMAIL_WALLET": "email_address"}

# Codes of an item: why this person is held. Where the address is good there is none.
_ACTIVE = {"", "succ.id.active", "succ.fa.active"}
_REASONS = {
    "succ.fa.not_linked_to_id": domain.NOT_LINKED,
    "succ.fa.not_found": domain.NOT_LINKED,
    "succ.id.not_found": domain.NOT_FOUND,
    "succ.fa.inactive": domain.INACTIVE,
    "succ.id.inactive": domain.INACTIVE,
    "rjct.id.invalid": domain.REFUSED,
    "rjct.fa.invalid": domain.REFUSED,
    "rjct.reference_id.invalid": domain.ASKED_WRONGLY,
    "rjct.reference_id.duplicate": domain.ASKED_WRONGLY,
    "rjct.timestamp.invalid": domain.ASKED_WRONGLY,
    "rjct.resolve_type.not_supported": domain.ASKED_WRONGLY,
}
# Codes of a whole request which would be refused again, whenever it is sent: an operator must act. All others are for the
# moment: a repeated request has a message id and a time of its own, and what we don't know may pass.
_FINAL = {
    "rjct.version.invalid",
    "rjct.action.invalid",
    "rjct.action.not_supported",
    "rjct.total_count.invalid",
    "rjct.total_count.limit_exceeded",
    "rjct.jwt.invalid",
    "rjct.request.validation",
}
_TOO_MANY = "rjct.errors.too_many"  # of a whole request; it does not say who is at fault
# In one call, all within its lease: as many as tell eight people from a thousand. The largest groups are split first, so few
# stand beside those who remain when no split is left; all of them are held, and fewer when they are asked for again.
MOST_SPLITS = 64
# A pattern which is nothing but keys and what stands behind them, such as `^a:(?P<a>.*)\.b:(?P<b>.*)$`.
_KEYS_AND_FIELDS = re.compile(r"\^?(?:(?:\w|\\\.)+:\(\?P<\w+>\.\*\))+\$")
_FIELD = re.compile(r"\(\?P<(\w+)>\.\*\)")
_FOR_THE_BANK = r"(?![ -])[A-Za-z0-9/?(),'+ -]*(?<! )"  # what `tellable` asks, without point and colon
_CODE = re.compile(r"[A-Za-z0-9._-]{1,80}")  # codes travel on in clear, free text might be personal
UNTELLABLE = Hold(domain.ADDRESS_UNREADABLE, "a field is not in SWIFT's character set: no bank can be told it")
_DOUBLED = Hold(domain.AMBIGUOUS_ANSWER, "the mapper answered more than once")

_log = get("mapper")


class Spar:
    """A `ports.Mapper`. `patterns`: type of address -> regular expression; the address's ending names the type."""

    PATH = "/sync/resolve"

    def __init__(
        self,
        url: str,
        patterns: Mapping[str, str],
        *,
        sender_id: str,
        sender_uri: str,
        receiver_id: str,
        max_items: int,
        access: Access | None = None,
    ) -> None:
        self._url = url.rstrip("/") + self.PATH
        self._patterns = [(kind, _quick(text), re.compile(text), ESSENTIAL[kind]) for kind, text in patterns.items()]
        self._sender_id = sender_id
        self._sender_uri = sender_uri
        self._receiver_id = receiver_id
        self._max_items = max_items
        self._access = access or Access()

    async def resolve(
        self, client: httpx.AsyncClient, claim: Claim, transaction_id: str, people: Sequence[tuple[str, str]]
    ) -> dict[str, Reply] | NotSent | MaybeDone:
        """A request that is refused for too many errors in it is split, until it is known who is at fault."""
        replies: dict[str, Reply] = {}
        waiting = deque(people[start : start + self._max_items] for start in range(0, len(people), self._max_items))
        splits = requests = 0
        while waiting:
            some = waiting.popleft()
            message_id = f"{claim.lease_token}-{requests}"  # unique per attempt: a repeated one may be refused
            requests += 1
            content = await self._access.post(client, claim, self._url, self.request(message_id, transaction_id, some))
            if isinstance(content, NotSent | MaybeDone):
                return content
            read = self.read(content, message_id, {reference for reference, _ in some})
            if isinstance(read, NotSent) and read.message == _TOO_MANY:
                if len(some) > 1 and splits < MOST_SPLITS:
                    splits += 1
                    half = len(some) // 2
                    waiting += some[:half], some[half:]
                else:
                    replies |= {reference: Hold(domain.REFUSED, _TOO_MANY) for reference, _ in some}
            elif isinstance(read, NotSent | MaybeDone):
                return read
            else:
                replies |= read
        return replies

    def request(self, message_id: str, transaction_id: str, people: Sequence[tuple[str, str]]) -> bytes:
        """The body for (reference id, beneficiary id)."""
        now = datetime.now(UTC).isoformat()
        header = {
            "action": "resolve",
            "is_msg_encrypted": False,
            "message_id": message_id,
            "message_ts": now,
            "meta": {},
            "receiver_id": self._receiver_id,
            "sender_id": self._sender_id,
            "sender_uri": self._sender_uri,
            "total_count": len(people),
            "version": "1.0.0",
        }
        message = {"resolve_request": items(people, now), "transaction_id": transaction_id}
        return to_json({"header": header, "message": message, "signature": ""})

    def read(self, content: bytes, message_id: str, asked: Container[str]) -> dict[str, Reply] | NotSent | MaybeDone:
        """The replies to what was asked, by reference id. A refusal of the whole message is NotSent: nobody was looked up."""
        try:
            answer = from_json(content, cache_strings="keys")
        except ValueError:
            return MaybeDone("NONSENSE", "the answer is no JSON")
        responses = self._responses(answer if isinstance(answer, dict) else {}, message_id)
        return responses if isinstance(responses, NotSent | MaybeDone) else self._replies(responses, asked)

    def _responses(self, answer: dict[str, Any], message_id: str) -> list[Any] | NotSent | MaybeDone:
        """What lies in the envelope of an answer, if it is one to this message."""
        header = answer.get("header")
        if not isinstance(header, dict):
            return MaybeDone("NONSENSE", "the answer has no header")
        status = header.get("status")
        if status == "rjct":
            return refused(header.get("status_reason_code"))
        if header.get("message_id") not in (message_id, None):
            return MaybeDone("NONSENSE", "the answer belongs to another message")
        responses = part(answer, "message").get("resolve_response")
        if status != "succ" or not isinstance(responses, list):
            return MaybeDone("NONSENSE", "the answer has no resolve_response")
        return responses

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
        if status not in ("succ", "rjct"):
            return Hold(domain.NO_ANSWER, _code(code))
        if status == "succ" and code in _ACTIVE:
            fa = one.get("fa")
            return self._address(fa) if fa else Hold(domain.NOT_LINKED, _code(code))
        return Hold(_REASONS.get(code) or (domain.UNKNOWN_CODE if status == "succ" else domain.REFUSED), _code(code))

    def _address(self, fa: object) -> Reply:
        if not isinstance(fa, str) or len(fa) > MAX_ADDRESS_CHARS or not fa.isprintable():
            return Hold(domain.ADDRESS_UNREADABLE, "no text, too long, or not printable")
        for kind, quick, pattern, essential in self._patterns:
            if fa.endswith(kind):
                usual = quick.match(fa) if quick else None
                match = usual or pattern.match(fa)
                if match is None or not match[essential]:
                    return Hold(domain.ADDRESS_UNREADABLE, f"does not match the pattern of {kind}")
                address = {name: value for name, value in match.groupdict().items() if value}
                if not usual and not domain.tellable(address):
                    return UNTELLABLE
                address["fa_type"] = kind
                return address
        return Hold(domain.ADDRESS_UNREADABLE, "ends in no known type of address")


def refused(code: object) -> NotSent:
    """The whole request was refused: nobody was looked up."""
    text = _code(code)
    return NotSent("MAPPER_REFUSED", text, final=text in _FINAL)


def part(of: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object inside of another; empty where there is none."""
    found = of.get(name)
    return found if isinstance(found, dict) else {}


def items(people: Sequence[tuple[str, str]], now: str) -> list[dict[str, str]]:
    """Without scope `details` the mapper tells no address."""
    return [
        {"fa": "", "id": person, "locale": "en", "reference_id": reference, "scope": "details", "timestamp": now}
        for reference, person in people
    ]


def _quick(pattern: str) -> re.Pattern[str] | None:
    """The same pattern for fields without point and colon, which matches several times as fast as the general one, and only
    what a bank can be told. None for a pattern of another form.

    What it matches it matches as the other does: if no field has a colon, there is but one way to tell keys and fields apart."""
    if not _KEYS_AND_FIELDS.fullmatch(pattern):
        return None

    def field(found: re.Match[str]) -> str:
        return f"(?P<{found[1]}>{_FOR_THE_BANK if found[1] in domain.TO_THE_BANK else '[^.:]*'})"

    return re.compile(_FIELD.sub(field, pattern))


def _code(value: object) -> str:
    return value if isinstance(value, str) and _CODE.fullmatch(value) else ""
