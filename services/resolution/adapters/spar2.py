"""SPAR 2.x: `POST /mapper/resolve`. Another envelope around the same items; an address comes as an object, taken apart already."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic_core import to_json

from libs.common.workqueue import MaybeDone, NotSent
from services.resolution import domain
from services.resolution.adapters.spar import ESSENTIAL, MAX_ADDRESS_CHARS, UNTELLABLE, Spar, items, part, refused
from services.resolution.domain import Hold, Reply

# Its word for a type of address -> ours, which is the bank's. Names of banks and branches and `strategy_id` concern nobody here.
_KINDS = {
    "BANK": "BANK_ACCOUNT",
    "BANK_ACCOUNT": "BANK_ACCOUNT",
    "MOBILE_WALLET": "MOBILE_WALLET",
    "EMAIL_WALLET": "EMAIL_WALLET",
}
_FIELDS = (
    "account_number",
    "bank_code",
    "branch_code",
    "mobile_number",
    "email_address",
    "wallet_provider_name",
    "wallet_provider_code",
)


class Spar2(Spar):
    """`sender_id`, `sender_uri` and `receiver_id` are the sender's mnemonic and URL, and the instance that is asked."""

    PATH = "/mapper/resolve"

    def request(self, message_id: str, transaction_id: str, people: Sequence[tuple[str, str]]) -> bytes:
        now = datetime.now(UTC).isoformat()
        payload = {"resolve_request": items(people, now), "transaction_id": transaction_id}
        header = {
            "instance_id": self._receiver_id,
            "request_id": message_id,
            "request_timestamp": now,
            "sender_app_mnemonic": self._sender_id,
            "sender_app_url": self._sender_uri,
        }
        return to_json({"request_body": {"pagination_request": None, "request_payload": payload}, "request_header": header})

    def _responses(self, answer: dict[str, Any], message_id: str) -> list[Any] | NotSent | MaybeDone:
        header = answer.get("response_header")
        if not isinstance(header, dict):
            return MaybeDone("NONSENSE", "the answer has no response_header")
        if header.get("response_status") == "ERROR":
            return refused(header.get("response_error_code"))
        if header.get("request_id") not in (message_id, None):
            return MaybeDone("NONSENSE", "the answer belongs to another request")
        responses = part(part(answer, "response_body"), "response_payload").get("resolve_response")
        if header.get("response_status") != "SUCCESS" or not isinstance(responses, list):
            return MaybeDone("NONSENSE", "the answer has no resolve_response")
        return responses

    def _address(self, fa: object) -> Reply:
        kind = fa.get("fa_type") if isinstance(fa, dict) else None
        if not isinstance(fa, dict) or not isinstance(kind, str) or kind not in _KINDS:
            return Hold(domain.ADDRESS_UNREADABLE, "is no object of a known fa_type")
        address = {name: value for name in _FIELDS if (value := fa.get(name)) not in (None, "")}
        if not all(isinstance(value, str) and value.isprintable() for value in address.values()):
            return Hold(domain.ADDRESS_UNREADABLE, "a field is no text, or not printable")
        if sum(map(len, address.values())) > MAX_ADDRESS_CHARS or ESSENTIAL[_KINDS[kind]] not in address:
            return Hold(domain.ADDRESS_UNREADABLE, f"too long, or without {ESSENTIAL[_KINDS[kind]]}")
        return {**address, "fa_type": _KINDS[kind]} if domain.tellable(address) else UNTELLABLE
