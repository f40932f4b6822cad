"""A bank that can be asked is asked what became of an instruction which no statement shows for too long.

The answer is for whoever looks at the exception NO_STATEMENT_LINE: it moves no money and changes no state, which a line of a
statement or an operator does. It may be asked for freely, and nothing is ever sent again because of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import httpx

from libs.common import workqueue
from libs.common.db import Tx
from libs.common.envelope import Cause
from libs.common.workqueue import Answer, Claim, Done, Settled, Void, not_now
from services.funds.domain import plain
from services.funds.ports import Bank, Became, Refused, Repeat

KIND = "query"


def ask(tx: Tx, banks: Mapping[str, Bank], overdue: Sequence[Any], cause: Cause) -> None:
    """`overdue` instructions of one envelope, each with its `bank` and `lock_key`. Once for each: it is listed once."""
    chosen = [row for row in overdue if _can_be_asked(banks, row.bank)]
    if chosen:
        subjects, keys = [str(row.instruction) for row in chosen], [row.lock_key for row in chosen]
        workqueue.enqueue(tx, KIND, subjects, keys, [cause] * len(chosen))


def _can_be_asked(banks: Mapping[str, Bank], code: str) -> bool:
    bank = banks.get(code)
    return bank is not None and bank.capabilities.query is Repeat.READ


class _Query(NamedTuple):
    counterpart: str  # the bank's code
    key: UUID  # with which the instruction was dispatched


class Queries:
    """The call-out `query`. Its subject is the instruction."""

    kind = KIND
    exclusive = False
    read = True  # at every bank that offers it: ports.Capabilities
    waits_out_outages = False

    def __init__(self, banks: Mapping[str, Bank]) -> None:
        self._banks = banks

    def take(self, tx: Tx, claims: Sequence[Claim]) -> Mapping[str, Any]:
        rows = tx.rows(
            """SELECT w.subject, w.idempotency_key, k.bank
               FROM exceptions x JOIN instructions i USING (instruction) JOIN blocks k USING (envelope_id, block)
               JOIN work w ON w.kind = 'dispatch' AND w.subject = x.instruction::text
               WHERE x.instruction = ANY(%(ids)s::bigint[]) AND x.reason = 'NO_STATEMENT_LINE' AND x.state = 'OPEN'""",
            ids=[int(claim.subject) for claim in claims],
        )
        found = {row.subject: row for row in rows}
        decided: dict[str, Any] = {}
        for claim in claims:
            row = found.get(claim.subject)
            if row is None:
                decided[claim.subject] = Void("NOT_NEEDED", "its line has come, or an operator has settled it")
            elif not _can_be_asked(self._banks, row.bank):
                decided[claim.subject] = Void("NO_QUERY", "its bank is configured no more, or cannot be asked")
            else:
                decided[claim.subject] = not_now(claim, row.bank) or _Query(row.bank, row.idempotency_key)
        return decided

    async def call(self, client: httpx.AsyncClient, claim: Claim, request: _Query) -> Answer:
        return await self._banks[request.counterpart].query(client, claim, request.key)

    def settle(self, tx: Tx, settled: Settled) -> None:
        if isinstance(settled.answer, Done):
            tx.run(
                """UPDATE exceptions SET detail = detail || '; ' || %(said)s
                   WHERE instruction = %(n)s AND reason = 'NO_STATEMENT_LINE' AND state = 'OPEN'""",
                said=_in_words(settled.answer.value),
                n=int(settled.claim.subject),
            )


def _in_words(value: Any) -> str:
    match value:
        case Became(accepted, refused):
            return f"the bank says: accepted {accepted}, refused {refused}"
        case Refused(code):
            return f"the bank says: all refused, {plain(code)[:50]}"  # not its text, which may quote people
    return "the bank knows nothing of it"
