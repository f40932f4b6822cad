"""Statements are the bank's to send; here it is asked for them, by the tick `statements-due` or by command.

The statement itself comes by the bank's call-back, as any other. Asking moves no money and may be repeated freely: the same
statement again changes nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import httpx

from libs.common import workqueue
from libs.common.commands import CommandRefused
from libs.common.contracts import operator, scheduler
from libs.common.db import Tx, lock_key_text
from libs.common.envelope import Cause, Event
from libs.common.workqueue import Answer, Claim, Done, NotSent, Settled, Void, not_now
from services.funds.config import Settings
from services.funds.ports import Account, Bank, Refused

STATEMENTS_DUE_JOB = "statements-due"
KIND = "order"


def ask(tx: Tx, sponsors: Sequence[str], cause: Cause) -> None:
    """Once for each sponsor and cause."""
    keys = [lock_key_text(f"funds/{KIND}/{name}") for name in sponsors]
    workqueue.enqueue(tx, KIND, [f"{name}@{cause.id}" for name in sponsors], keys, [cause] * len(sponsors))


class _Order(NamedTuple):
    counterpart: str  # the bank's code
    account: Account


class Orders:
    """The call-out `order`. Its subject is `<sponsor>@<the event that asked>`, so that each asking is work of its own."""

    kind = KIND
    exclusive = False
    read = True  # at every bank: ports.Capabilities
    waits_out_outages = False

    def __init__(self, settings: Settings, banks: Mapping[str, Bank]) -> None:
        self._sponsors = settings.sponsors
        self._banks = banks

    def on_tick(self, tx: Tx, events: Sequence[Event[scheduler.Tick]]) -> None:
        for event in events:
            if event.data.job == STATEMENTS_DUE_JOB:
                ask(tx, self._accounts(list(self._sponsors)), _cause(event))

    def request(self, tx: Tx, event: Event[operator.RequestStatement]) -> int:
        """A command: one sponsor's account, or all of them. Returns how many accounts are asked for."""
        name = event.data.sponsor
        if name and name not in self._sponsors:
            raise CommandRefused(f"no sponsor is called {name!r}: there are {', '.join(sorted(self._sponsors))}")
        chosen = self._accounts([name] if name else list(self._sponsors))
        ask(tx, chosen, _cause(event))
        return len(chosen)

    def _accounts(self, names: Sequence[str]) -> list[str]:
        """One sponsor for each account: several programmes may be paid from one."""
        return list({(self._sponsors[name].bank, self._sponsors[name].account): name for name in sorted(names)}.values())

    def take(self, tx: Tx, claims: Sequence[Claim]) -> Mapping[str, Any]:
        decided: dict[str, Any] = {}
        for claim in claims:
            sponsor = self._sponsors.get(claim.subject.rpartition("@")[0])
            if sponsor is None:
                decided[claim.subject] = Void("NO_SPONSOR", "this sponsor is configured no more")
            else:
                decided[claim.subject] = not_now(claim, sponsor.bank) or _Order(sponsor.bank, Account(sponsor.account, ""))
        return decided

    async def call(self, client: httpx.AsyncClient, claim: Claim, request: _Order) -> Answer:
        answer = await self._banks[request.counterpart].order_statement(client, claim, request.account)
        if isinstance(answer, Done) and isinstance(answer.value, Refused):
            return NotSent(answer.value.code, answer.value.message)  # listed among the failures, where somebody sees it
        return answer

    def settle(self, tx: Tx, settled: Settled) -> None:
        """Nothing but the work row: what the statement says is said when it comes."""


def _cause(event: Event[Any]) -> Cause:
    return Cause(event.id, None, event.traceparent)
