"""Novu: `POST /v1/events/trigger` for one notice, `/v1/events/trigger/bulk` for more, with the mailing's key.

A notice is Novu's transaction, so what it says of deliveries names the notice. Only `processed` is a success; of refusals the
status travels on, never its free text, which may be personal.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import httpx
from pydantic_core import from_json, to_json

from libs.common.workqueue import Claim, MaybeDone, NotSent, asked_to_wait_seconds, post
from services.notifications.domain import REFUSED, SENT, Outcome
from services.notifications.ports import Message

_STATUS = re.compile(r"[a-z_]{1,60}")
_INVALID = (400, 413, 422)  # what was sent can't be taken: of several, one may be at fault
_FINAL = (401, 402, 403, 404)  # again would be in vain until somebody has acted


class Novu:
    """A `ports.Channel`. `workflow`: kind of notice -> what triggers it at Novu."""

    renders = False

    def __init__(self, url: str, api_key: str, workflow: Callable[[str], str], key_seconds: float) -> None:
        self._url = url.rstrip("/") + "/v1/events/trigger"
        self._headers = {"Authorization": f"ApiKey {api_key}"}
        self._workflow = workflow
        self.key_seconds = key_seconds

    def reaches(self, message: Message) -> bool:
        """People are known there by their ids. The ids of places are our own: there is nothing behind them but what we give along,
        and Novu takes a notice that reaches nobody as any other."""
        return message.kind == "BENEFICIARY" or bool(message.email or message.phone)

    async def send(
        self, client: httpx.AsyncClient, claim: Claim, messages: Sequence[Message]
    ) -> list[Outcome] | NotSent | MaybeDone:
        events = [self.event(message) for message in messages]
        one = len(events) == 1
        url, body = (self._url, events[0]) if one else (self._url + "/bulk", {"events": events})
        headers = {**self._headers, "Idempotency-Key": str(claim.idempotency_key)}
        answer = await post(client, claim, url, to_json(body), headers)
        if isinstance(answer, MaybeDone):
            return _again(answer.code, answer.message)
        if isinstance(answer, NotSent):
            return answer
        if answer.status_code in (200, 201):
            return self.read(answer.content, messages)
        return self._refused(answer, claim, len(events))

    def event(self, message: Message) -> dict[str, Any]:
        """The trigger of one notice."""
        to = {"subscriberId": message.party, "email": message.email, "phone": message.phone}
        return {
            "name": self._workflow(message.kind),
            "to": {name: value for name, value in to.items() if value},
            "payload": message.payload,
            "overrides": {},
            "transactionId": str(message.notice_id),
        }

    def read(self, content: bytes, messages: Sequence[Message]) -> list[Outcome] | MaybeDone:
        """An outcome for each message, in order; a success has to name its transaction where it names one."""
        try:
            answer = from_json(content)
        except ValueError:
            return _again("NONSENSE", "the answer is no JSON")
        data = answer.get("data") if isinstance(answer, dict) else answer
        items = [data] if isinstance(data, dict) else data
        if not isinstance(items, list) or len(items) != len(messages):
            return _again("NONSENSE", "the answer has not one item for each notice")
        found: list[Outcome] = []
        for item, message in zip(items, messages, strict=True):
            if not isinstance(item, dict) or item.get("transactionId") not in (None, str(message.notice_id)):
                return _again("NONSENSE", "the answer is of other notices")
            found.append(_outcome(item))
        return found

    @staticmethod
    def _refused(answer: httpx.Response, claim: Claim, events: int) -> list[Outcome] | NotSent | MaybeDone:
        code = f"HTTP_{answer.status_code}"
        wait_seconds = asked_to_wait_seconds(answer)
        if answer.status_code in _INVALID:
            if claim.ambiguous:  # perhaps only the key is refused, which came with something else before
                return MaybeDone(code, "refused after an answer was lost", outage=False)
            if events > 1:
                return [Outcome("PENDING", code, alone=True)] * events
            return [Outcome("FAILED", REFUSED, code)]
        if answer.status_code in _FINAL:
            return NotSent(code, "Novu does not let us", final=True)
        if answer.status_code == 429:
            return NotSent(code, "Novu asks for time", outage=True, after_seconds=wait_seconds)
        return _again(code, "Novu is out of order, or still busy with this key", wait_seconds)


def _again(code: str, message: str, after_seconds: float = 0.0) -> MaybeDone:
    """It may have been taken: the same key finds out."""
    return MaybeDone(code, message, repeatable=True, after_seconds=after_seconds)


def _outcome(item: dict[str, Any]) -> Outcome:
    status = item.get("status")
    if status == "processed" and item.get("acknowledged", True) is True:
        return SENT
    known = isinstance(status, str) and _STATUS.fullmatch(status)
    return Outcome("FAILED", REFUSED, str(status) if known else "no known status")
