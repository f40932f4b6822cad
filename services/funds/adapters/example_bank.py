"""The OpenG2P example bank: plain JSON, no idempotency, no query, no release.

Wire format: POST check_funds, block_funds, initiate_payment. A list is taken whole or not at all; a repeated reference is
HTTP 500 and nothing of the list is stored.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import httpx
from pydantic_core import from_json, to_json

from libs.common.money import to_text, to_texts
from libs.common.workqueue import Answer, Claim, Done, MaybeDone, NotSent, post
from services.funds.domain import plain
from services.funds.ports import Accepted, Account, Capabilities, Payment, Refused, Repeat, Succeeded, Sufficient

_AMOUNTS = {"check_funds": "total_funds_needed", "initiate_payment": "payment_amount"}  # other verbs: "amount"
Read = Mapping[str, Any] | NotSent | MaybeDone  # what the bank said, if it did

# What says that the request was turned away before anybody acted on it: not understood, not let in, not found, too large, too many.
# Of any other (a conflict, something locked, gone or too late) a part may be done: docs/adr/0005-unknown-money.md.
_DID_NOTHING = frozenset({400, 401, 403, 404, 413, 415, 422, 429})


class ExampleBank:
    capabilities = Capabilities(
        check=Repeat.READ,
        block=Repeat.ONCE,
        dispatch=Repeat.ONCE,
        release=Repeat.NONE,
        query=Repeat.NONE,
        order_statement=Repeat.READ,
        atomic_list=True,
    )

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    async def check(self, client: httpx.AsyncClient, claim: Claim, account: Account, amount_minor: int) -> Answer:
        body = {
            "account_number": account.number,
            "account_currency": account.currency,
            "total_funds_needed": to_text(amount_minor, account.currency),
        }
        answer = await self._call(client, claim, "check_funds", body)
        if isinstance(answer, NotSent | MaybeDone):
            return answer
        if answer.get("status") == "success" and answer.get("has_sufficient_funds") is True:
            return Done(Sufficient())
        if answer.get("status") in ("success", "failed"):
            return Done(_refused(answer, "FUNDS_NOT_AVAILABLE"))
        return MaybeDone("NONSENSE", "check_funds answered neither success nor failed")

    async def block(self, client: httpx.AsyncClient, claim: Claim, account: Account, amount_minor: int) -> Answer:
        body = {
            "account_number": account.number,
            "currency": account.currency,
            "amount": to_text(amount_minor, account.currency),
        }
        return read_block(await self._act(client, claim, "block_funds", body))

    async def dispatch(
        self,
        client: httpx.AsyncClient,
        claim: Claim,
        account: Account,
        block_reference: str,
        payment_date: str,
        payments: Sequence[Payment],
    ) -> Answer:
        body = wire_payments(account, block_reference, payment_date, payments)
        answer = await self._act(client, claim, "initiate_payment", body)
        return self.read_dispatch(answer, [payment.reference for payment in payments])

    async def release(
        self, client: httpx.AsyncClient, claim: Claim, account: Account, block_reference: str, amount_minor: int
    ) -> Answer:
        raise NotImplementedError("this bank has no such verb; its capabilities say so")

    async def query(self, client: httpx.AsyncClient, claim: Claim, key: UUID) -> Answer:
        raise NotImplementedError("this bank has no such verb; its capabilities say so")

    async def order_statement(self, client: httpx.AsyncClient, claim: Claim, account: Account) -> Answer:
        answer = await self._call(client, claim, "generate_account_statement", {"program_account_number": account.number})
        if isinstance(answer, NotSent | MaybeDone):
            return answer
        if answer.get("status") == "success":
            return Done(Succeeded(str(answer.get("account_statement_id") or "")))
        if answer.get("status") == "failed":
            return Done(_refused(answer, "STATEMENT_REFUSED"))
        return MaybeDone("NONSENSE", "generate_account_statement answered neither success nor failed")

    def read_dispatch(self, answer: Read, references: Sequence[str]) -> Answer:
        if isinstance(answer, NotSent | MaybeDone):
            return answer
        if answer.get("status") == "success":
            return Done(Accepted(()))
        if answer.get("status") == "failed":
            return Done(_refused(answer, "LIST_REFUSED"))
        return MaybeDone("NONSENSE", "initiate_payment answered neither success nor failed")

    async def _act(self, client: httpx.AsyncClient, claim: Claim, verb: str, body: object) -> Read:
        """A verb that moves money."""
        return await self._call(client, claim, verb, body)

    async def _call(
        self, client: httpx.AsyncClient, claim: Claim, verb: str, body: object, headers: Mapping[str, str] | None = None
    ) -> Read:
        content = wire_json(body, _AMOUNTS.get(verb, "amount"))
        response = await post(client, claim, f"{self._url}/{verb}", content, headers)
        return response if isinstance(response, NotSent | MaybeDone) else read_response(response.status_code, response.content)


def wire_json(body: object, amount: str) -> bytes:
    """JSON in which the field `amount` is an exact decimal number (it is written as text, and unquoted here; a float would not
    be exact). A quote inside a value is escaped, so the name in quotes is the key."""
    key = f'"{amount}":'.encode()
    first, *rest = to_json(body).split(key + b'"')
    return key.join([first, *(part.replace(b'"', b"", 1) for part in rest)])


def read_response(status_code: int, content: bytes) -> Read:
    """The JSON object of an answer. A request that was turned away did nothing; any other status may have."""
    if status_code in _DID_NOTHING:
        return NotSent(f"HTTP_{status_code}", "the bank refused the request itself")  # its words may quote people and accounts
    if status_code != 200:
        return MaybeDone(f"HTTP_{status_code}", "no answer that says what was done")
    try:
        answer = from_json(content, cache_strings="keys")
    except ValueError:
        return MaybeDone("NONSENSE", "the answer is not JSON")
    return answer if isinstance(answer, dict) else MaybeDone("NONSENSE", "the answer is not a JSON object")


def read_block(answer: Read) -> Answer:
    if isinstance(answer, NotSent | MaybeDone):
        return answer
    reference = answer.get("block_reference_no")
    if answer.get("status") == "success" and usable(reference):
        return Done(Succeeded(str(reference)))
    if answer.get("status") == "failed":
        return Done(_refused(answer, "BLOCK_REFUSED"))
    return MaybeDone("NONSENSE", "block_funds answered neither a reference nor a failure")


def wire_payments(
    account: Account, block_reference: str, payment_date: str, payments: Sequence[Payment]
) -> list[dict[str, object]]:
    amounts = to_texts([payment.amount_minor for payment in payments], account.currency)
    return [
        {
            "payment_reference_number": reference,
            "remitting_account": account.number,
            "remitting_account_currency": account.currency,
            "payment_amount": amount,
            "funds_blocked_reference_number": block_reference,
            "beneficiary_name": name,
            "beneficiary_account": account_number,
            "beneficiary_account_currency": account.currency,
            "beneficiary_account_type": account_type,
            "beneficiary_bank_code": bank_code,
            "beneficiary_branch_code": branch_code,
            **(
                _wallets(mobile_provider, mobile, email, email_provider)
                if mobile or mobile_provider or email or email_provider
                else {}
            ),
            "narrative_1": narratives[0],
            "narrative_2": narratives[1],
            "narrative_3": narratives[2],
            "narrative_4": narratives[3],
            "narrative_5": narratives[4],
            "narrative_6": narratives[5],
            "payment_date": payment_date,
        }
        for amount, (
            reference,
            _,
            name,
            account_number,
            account_type,
            bank_code,
            branch_code,
            mobile,
            mobile_provider,
            email,
            email_provider,
            narratives,
        ) in zip(amounts, payments, strict=True)
    ]


def _wallets(mobile_provider: str, mobile: str, email: str, email_provider: str) -> dict[str, str]:
    """Empty fields are not sent."""
    optional = {
        "beneficiary_mobile_wallet_provider": mobile_provider,
        "beneficiary_phone_no": mobile,
        "beneficiary_email": email,
        "beneficiary_email_wallet_provider": email_provider,
    }
    return {name: value for name, value in optional.items() if value}


def usable(reference: object) -> bool:
    """A reference that can be stored and sent back."""
    return isinstance(reference, str) and 0 < len(reference) <= 100 and reference.isprintable()


def _refused(answer: Mapping[str, Any], code: str) -> Refused:
    named = answer.get("error_code")
    return Refused(named if isinstance(named, str) and named else code, plain(answer.get("error_message")))
