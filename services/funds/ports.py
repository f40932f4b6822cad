"""What funds needs of a bank, in the domain's words. Adapters register by name in wiring.py; no core file knows one."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple, Protocol
from uuid import UUID

import httpx

from libs.common.workqueue import Answer, Claim


class Repeat(Enum):
    """What may follow a call whose answer was lost."""

    READ = "the call changes nothing: repeat freely"
    KEYED = "the bank knows our key: ask by it, then repeat with the same key"
    ONCE = "the bank cannot be asked and would act again: never repeat"
    NONE = "the bank has no such verb"


@dataclass(frozen=True)
class Capabilities:
    """What a bank declares of each verb, among what the calls are made for: docs/adr/0005-unknown-money.md."""

    check: Literal[Repeat.READ]
    block: Literal[Repeat.KEYED, Repeat.ONCE]
    dispatch: Literal[Repeat.KEYED, Repeat.ONCE]
    release: Literal[Repeat.KEYED, Repeat.ONCE, Repeat.NONE]
    query: Literal[Repeat.READ, Repeat.NONE]
    order_statement: Literal[Repeat.READ]
    atomic_list: bool  # one confirmed member proves that the whole list was accepted


@dataclass(frozen=True, slots=True)
class Account:
    number: str
    currency: str


class Payment(NamedTuple):
    """One payment of an instruction; texts are SWIFT's character set already. Empty fields are not sent."""

    reference: str
    amount_minor: int
    name: str
    account_number: str
    account_type: str
    bank_code: str
    branch_code: str
    mobile_number: str
    mobile_provider: str
    email: str
    email_provider: str
    narratives: tuple[str, str, str, str, str, str]


# --- Answers: the value of a workqueue.Done ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sufficient:
    """The account covers the amount."""


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The bank did it; `reference` is its own name for it."""

    reference: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The bank did nothing of it, for certain."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """The bank took the list, but for `refused`: (reference, code, message) each."""

    refused: Sequence[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class Became:
    """What a list came to at the bank: so many of its payments were accepted, so many refused."""

    accepted: int
    refused: int


@dataclass(frozen=True, slots=True)
class NotKnown:
    """The bank knows nothing of it, or no longer; by itself that proves nothing."""


class Bank(Protocol):
    """Each verb answers Done(one of the above), NotSent or MaybeDone; none raises for what a bank may do."""

    capabilities: Capabilities

    async def check(self, client: httpx.AsyncClient, claim: Claim, account: Account, amount_minor: int) -> Answer: ...

    async def block(self, client: httpx.AsyncClient, claim: Claim, account: Account, amount_minor: int) -> Answer: ...

    async def dispatch(
        self,
        client: httpx.AsyncClient,
        claim: Claim,
        account: Account,
        block_reference: str,
        payment_date: str,
        payments: Sequence[Payment],
    ) -> Answer: ...

    async def release(
        self, client: httpx.AsyncClient, claim: Claim, account: Account, block_reference: str, amount_minor: int
    ) -> Answer: ...

    async def query(self, client: httpx.AsyncClient, claim: Claim, key: UUID) -> Answer:
        """What became of the list that was dispatched with this key: Became, Refused or NotKnown. A read."""
        ...

    async def order_statement(self, client: httpx.AsyncClient, claim: Claim, account: Account) -> Answer:
        """Have the bank send what is booked and not stated yet. A read: it may be repeated freely."""
        ...
