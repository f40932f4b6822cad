"""Order a simulator's faults, and read what the simulated bank and mapper have in their books.

bank = BankAdmin(stack.addresses.bank_url)
bank.put_account("full", "SPONSOR-1", "EUR", 1_000_000)
bank.add_fault("timeout_after", path="/initiate_payment", share=0.1, seconds=5)
"""

import json
import ssl
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, Self

import httpx

Profile = Literal["example", "full"]
_PAGE_ROWS = 5000
# For clients of plain HTTP on this machine: to read the certificates which the system trusts takes each client 40 ms.
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class _Admin:
    """What all simulators have. Raises httpx.HTTPStatusError for a call that is refused."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url.rstrip("/")
        self._http = httpx.Client(base_url=self.base_url, timeout=60, trust_env=False, verify=NO_CERTIFICATES)

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        answer = self._http.request(method, path, **arguments)
        answer.raise_for_status()
        return answer.json()

    def _pages(self, path: str, name: str, row_id: str, after: int) -> Iterator[dict[str, Any]]:
        while True:
            found = self._call("GET", path, params={"after": after, "limit": _PAGE_ROWS})[name]
            yield from found
            if len(found) < _PAGE_ROWS:
                return
            after = found[-1][row_id]

    def requests(self, after: int = 0) -> Iterator[dict[str, Any]]:
        """Every request received, oldest first: {id, at, profile, path, idempotency_key, request_id, body_sha256,
        items, fault, outcome, status_code}; `status_code` None: never answered."""
        return self._pages("/admin/requests", "requests", "id", after)

    def add_fault(
        self,
        kind: str,
        *,
        profile: str | None = None,
        path: str | None = None,
        share: float = 1.0,
        seed: int = 0,
        count: int | None = None,
        seconds: float = 0,
    ) -> int:
        """The fault's id. Kinds are listed in `simulator.FaultKind`; no path or profile means all."""
        body = {
            "kind": kind, "profile": profile, "path": path, "share": share, "seed": seed, "count": count,
            "seconds": seconds,
        }  # fmt: skip
        fault_id: int = self._call("POST", "/admin/faults", json=body)["id"]
        return fault_id

    def faults(self) -> list[dict[str, Any]]:
        """As ordered, with `calls` (matching calls seen) and `hits`."""
        found: list[dict[str, Any]] = self._call("GET", "/admin/faults")["faults"]
        return found

    def delete_faults(self, fault_id: int | None = None) -> None:
        """One fault, or all: then what they hold back is let go."""
        self._call("DELETE", "/admin/faults" if fault_id is None else f"/admin/faults/{fault_id}")

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class BankAdmin(_Admin):
    """The simulated bank. Amounts are integer minor units."""

    def put_account(self, profile: Profile, number: str, currency: str, balance_minor: int) -> dict[str, Any]:
        """Opens an account; on one that exists the difference is booked as a top-up."""
        body = {"currency": currency, "balance_minor": balance_minor}
        account: dict[str, Any] = self._call("PUT", f"/admin/{profile}/accounts/{number}", json=body)
        return account

    def account(self, profile: Profile, number: str) -> dict[str, Any]:
        """{number, currency, balance_minor, blocked_minor, available_minor, unstated_lines}"""
        account: dict[str, Any] = self._call("GET", f"/admin/{profile}/accounts/{number}")
        return account

    def close_accounts(self, profile: Profile, account_numbers: Iterable[str]) -> None:
        """Replaces the list of beneficiary accounts which are closed."""
        self._call("PUT", f"/admin/{profile}/closed-accounts", json={"account_numbers": list(account_numbers)})

    def set_statements(
        self,
        profile: Profile,
        *,
        callback_url: str | None = None,
        token: str | None = None,
        push_after_ms: int | None = None,
        max_lines: int | None = None,
    ) -> None:
        """`push_after_ms` None: statements only on request. No `callback_url`: they wait to be fetched."""
        body = {
            "callback_url": callback_url, "token": token, "push_after_ms": push_after_ms, "max_lines": max_lines,
        }  # fmt: skip
        self._call("PUT", f"/admin/{profile}/statements", json=body)

    def order_statement(self, profile: Profile, account: str) -> list[int]:
        """States all that is booked and not stated yet, at least one file; the statements' ids."""
        ids: list[int] = self._call("POST", f"/admin/{profile}/statement", json={"account": account})["statements"]
        return ids

    def statements(self, profile: Profile, account: str | None = None) -> list[dict[str, Any]]:
        """{id, account, year, number, lines, produced_at, attempts, pushed_at, acknowledged}, oldest first."""
        params = {"account": account} if account else {}
        found: list[dict[str, Any]] = self._call("GET", f"/admin/{profile}/statements", params=params)["statements"]
        return found

    def statement_content(self, profile: Profile, statement_id: int) -> bytes:
        answer = self._http.get(f"/admin/{profile}/statements/{statement_id}")
        answer.raise_for_status()
        return answer.content

    def reverse(
        self,
        profile: Profile,
        *,
        reason: str,
        references: Iterable[str] = (),
        disbursement_ids: Iterable[str] = (),
    ) -> int:
        """Gives payments back; how many were found. Reversing one again books a second RD line."""
        body = {"references": list(references), "disbursement_ids": list(disbursement_ids), "reason": reason}
        count: int = self._call("POST", f"/admin/{profile}/reverse", json=body)["reversed"]
        return count

    def payments(self, profile: Profile, after: int = 0) -> Iterator[dict[str, Any]]:
        """The ledger, oldest first: {rowid, payment_reference_number, disbursement_id, beneficiary_id,
        beneficiary_account, amount_minor, currency, block_reference, key, booked_at, state paid|reversed, reversals}"""
        return self._pages(f"/admin/{profile}/payments", "payments", "rowid", after)

    def blocks(self, profile: Profile, account: str | None = None) -> list[dict[str, Any]]:
        """{block_reference_no, account, amount_minor, used_minor, released_minor, key}, oldest first."""
        params = {"account": account} if account else {}
        found: list[dict[str, Any]] = self._call("GET", f"/admin/{profile}/blocks", params=params)["blocks"]
        return found


class MapperAdmin(_Admin):
    """The simulated mapper."""

    def put_people(self, people: Iterable[tuple[str, str]]) -> int:
        """Inserts or replaces (id, fa); how many."""
        lines = (json.dumps({"id": person, "fa": fa}).encode() + b"\n" for person, fa in people)
        count: int = self._call("POST", "/admin/people", content=_joined(lines))["upserted"]
        return count

    def delete_person(self, person: str) -> bool:
        deleted: int = self._call("DELETE", f"/admin/people/{person}")["deleted"]
        return bool(deleted)

    def count_people(self) -> int:
        count: int = self._call("GET", "/admin/people/count")["count"]
        return count

    def set_limits(self, *, max_items: int = 1000, refuse_repeated_message_id: bool = False) -> None:
        body = {"max_items": max_items, "refuse_repeated_message_id": refuse_repeated_message_id}
        self._call("PUT", "/admin/settings", json=body)

    def set_codes(self, codes: Mapping[str, str] = MappingProxyType({})) -> None:
        """Replaces what is answered of single people, whether they have an address or not: id -> reason code."""
        self._call("PUT", "/admin/codes", json=dict(codes))

    def set_guard(self, **settings: Any) -> None:
        """Replaces who is let in, and how answers are signed: the fields of `mapper_guard.Guard`; none: everybody is."""
        self._call("PUT", "/admin/guard", json=settings)

    def revoke_tokens(self) -> None:
        self._call("DELETE", "/admin/tokens")


class NovuAdmin(_Admin):
    """The simulated Novu."""

    def set(self, **settings: str) -> None:
        """Replaces the settings: the fields of `novu.Settings`."""
        self._call("PUT", "/admin/settings", json=settings)

    def refuse(self, subscribers: Mapping[str, str] = MappingProxyType({})) -> None:
        """Replaces whose triggers end in another status than "processed"."""
        self._call("PUT", "/admin/refused", json={"subscribers": dict(subscribers)})

    def triggered(self, after: int = 0) -> Iterator[dict[str, Any]]:
        """What subscribers were sent, oldest first: {id, transaction_id, name, subscriber_id, recipient, payload, key, at}."""
        return self._pages("/admin/triggered", "triggered", "id", after)

    def tell(self, *events: tuple[str, str], signature: str | None = None) -> int:
        """A webhook with (type, transaction) of each event, now; the status it was answered with."""
        body = {"events": [{"type": kind, "data": {"transactionId": one}} for kind, one in events], "signature": signature}
        status: int = self._call("POST", "/admin/webhooks", json=body)["status_code"]
        return status


class MailAdmin(_Admin):
    """The local mail server."""

    def smtp_port(self) -> int:
        port: int = self._call("GET", "/admin/smtp")["port"]
        return port

    def mails(self, after: int = 0) -> Iterator[dict[str, Any]]:
        """What was taken, oldest first: {id, message_id, sender, recipient, subject, text, html, at}."""
        return self._pages("/admin/mails", "mails", "id", after)

    def refuse(self, addresses: Mapping[str, str] = MappingProxyType({})) -> None:
        """Replaces what is said to recipients, such as "550 5.1.1 no such user"."""
        self._call("PUT", "/admin/refused", json={"addresses": dict(addresses)})


def _joined(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Chunks of a size that is worth sending."""
    chunk = bytearray()
    for line in lines:
        chunk += line
        if len(chunk) > 64 * 1024:
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk)
