"""What resolution needs of the world: somebody who knows where people are paid."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import httpx

from libs.common.workqueue import Claim, MaybeDone, NotSent
from services.resolution.domain import Reply


class Mapper(Protocol):
    async def resolve(
        self, client: httpx.AsyncClient, claim: Claim, transaction_id: str, people: Sequence[tuple[str, str]]
    ) -> Mapping[str, Reply] | NotSent | MaybeDone:
        """`people`: (reference id, beneficiary id). Answers by reference id; some may be missing, none is foreign.

        A read: whatever failed may be asked again. Raises LeaseLost where the lease would not outlast the call."""
        ...
