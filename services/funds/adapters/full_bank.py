"""A bank with all that a payer needs: the example bank's wire format, and keys, query, release, an answer per payment.

`Idempotency-Key` on every verb: the same key with the same body repeats the stored answer. POST query tells what became of
a key; "not found" proves nothing by itself, because the first request may still be on its way, so the verb is repeated
with the same key.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import httpx
from pydantic_core import to_json

from libs.common.money import to_text
from libs.common.workqueue import Answer, Claim, Done, MaybeDone, NotSent, post
from services.funds.adapters.example_bank import ExampleBank, Read, read_response, usable
from services.funds.domain import plain
from services.funds.ports import Accepted, Account, Became, Capabilities, NotKnown, Refused, Repeat, Succeeded


class FullBank(ExampleBank):
    capabilities = Capabilities(
        check=Repeat.READ,
        block=Repeat.KEYED,
        dispatch=Repeat.KEYED,
        release=Repeat.KEYED,
        query=Repeat.READ,
        order_statement=Repeat.READ,
        atomic_list=False,
    )

    async def release(
        self, client: httpx.AsyncClient, claim: Claim, account: Account, block_reference: str, amount_minor: int
    ) -> Answer:
        body = {
            "account_number": account.number,
            "currency": account.currency,
            "block_reference_no": block_reference,
            "amount": to_text(amount_minor, account.currency),
        }
        answer = await self._act(client, claim, "release_funds", body)
        if isinstance(answer, NotSent | MaybeDone):
            return answer
        reference = answer.get("release_reference_no")
        if answer.get("status") == "success" and usable(reference):
            return Done(Succeeded(str(reference)))
        if answer.get("status") == "failed":
            code, message = answer.get("error_code"), answer.get("error_message")
            return Done(Refused(str(code or "RELEASE_REFUSED"), plain(message)))
        return MaybeDone("NONSENSE", "release_funds answered neither a reference nor a failure")

    def read_dispatch(self, answer: Read, references: Sequence[str]) -> Answer:
        if isinstance(answer, NotSent | MaybeDone):
            return answer
        results = answer.get("results")
        if answer.get("status") in ("success", "partial", "failed") and isinstance(results, list) and results:
            refused = []
            if sorted(_text(result, "payment_reference_number") for result in results) != sorted(references):
                return MaybeDone("NONSENSE", "the results are not one for each payment")
            for result in results:
                reference, status = _text(result, "payment_reference_number"), _text(result, "status")
                if status == "refused" and reference:
                    refused.append((reference, _text(result, "error_code") or "REFUSED", plain(_text(result, "error_message"))))
                elif status != "accepted" or not reference:
                    return MaybeDone("NONSENSE", "a payment's result is neither accepted nor refused")
            return Done(Accepted(refused))
        return (
            super().read_dispatch(answer, references)
            if answer.get("status") == "failed"
            else MaybeDone("NONSENSE", "no results")
        )

    async def query(self, client: httpx.AsyncClient, claim: Claim, key: UUID) -> Answer:
        answer = await self._ask(client, claim, key)
        if isinstance(answer, NotSent | MaybeDone):
            return answer
        if answer is None:
            return Done(NotKnown())
        results = answer.get("results")
        references = [_text(one, "payment_reference_number") for one in results] if isinstance(results, list) else []
        said = self.read_dispatch(answer, references)
        if isinstance(said, Done) and isinstance(said.value, Accepted):
            refused = len(said.value.refused)
            return Done(Became(len(references) - refused, refused))
        return said

    async def _act(self, client: httpx.AsyncClient, claim: Claim, verb: str, body: object) -> Read:
        """Ask first where an earlier attempt may have been acted upon; then call with the same key."""
        if claim.ambiguous:
            answer = await self._ask(client, claim, claim.idempotency_key)
            if answer is not None:
                return answer
        return await self._call(client, claim, verb, body, {"Idempotency-Key": str(claim.idempotency_key)})

    async def _ask(self, client: httpx.AsyncClient, claim: Claim, key: UUID) -> Read | None:
        """What the bank answered to a request with this key; None: it knows of none."""
        response = await post(client, claim, f"{self._url}/query", to_json({"idempotency_key": str(key)}))
        if isinstance(response, NotSent | MaybeDone):
            return response
        asked = read_response(response.status_code, response.content)
        if isinstance(asked, NotSent | MaybeDone):
            return asked
        if asked.get("found") is True and asked.get("status_code") == 200 and isinstance(asked.get("answer"), dict):
            answer: Mapping[str, Any] = asked["answer"]
            return answer
        return None if asked.get("found") is False else MaybeDone("NONSENSE", "query answered neither found nor not found")


def _text(item: object, name: str) -> str:
    value = item.get(name) if isinstance(item, dict) else None
    return value if isinstance(value, str) else ""
