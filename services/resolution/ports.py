"""What resolution needs of the world: somebody who knows where people are paid, and somebody who knows where they live."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import httpx

from libs.common.workqueue import Claim, MaybeDone, NotSent
from services.resolution.domain import Home, Reply


class Mapper(Protocol):
    async def resolve(
        self, client: httpx.AsyncClient, claim: Claim, transaction_id: str, people: Sequence[tuple[str, str]]
    ) -> Mapping[str, Reply] | NotSent | MaybeDone:
        """`people`: (reference id, beneficiary id). Answers by reference id; some may be missing, none is foreign.

        A read: whatever failed may be asked again. Raises LeaseLost where the lease would not outlast the call."""
        ...


class Registry(Protocol):
    async def locate(self, claim: Claim, registry: str, people: Sequence[str]) -> Mapping[str, Sequence[Home]] | NotSent:
        """Beneficiary id -> all that the registry says of where they live; whoever it does not know is missing.

        A read: whatever failed may be asked again. Raises LeaseLost where the lease would not outlast the call."""
        ...
