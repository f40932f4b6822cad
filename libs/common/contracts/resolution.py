"""Resolution's contracts: where each person of a batch is paid."""

from typing import Annotated

from pydantic import Field

from libs.common.contracts.base import (
    CHUNK_ITEMS,
    BatchHeader,
    ControlTotals,
    Count,
    EventData,
    Item,
    Sealed,
    Unresolved,
)


class BatchAddressesResolved(ControlTotals, EventData):
    """The addresses of a batch. Whoever is resolved later arrives as the next `part`, alone.

    Sealed: {disbursement id: {"name", "narrative", and of the address: "fa_type" BANK_ACCOUNT | MOBILE_WALLET |
    EMAIL_WALLET, "account_number", "bank_code", "branch_code", "mobile_number", "email_address",
    "wallet_provider_name", "wallet_provider_code"}}; empty fields are left out."""

    TYPE = "almoner.resolution.BatchAddressesResolved.v1"
    header: BatchHeader
    part: Annotated[int, Field(ge=1, le=10_000)]
    items: Annotated[list[Item], Field(max_length=CHUNK_ITEMS)] = Field(description="resolved; count and total are theirs")
    sealed: Sealed
    unresolved: Annotated[list[Unresolved], Field(max_length=CHUNK_ITEMS)]
    unresolved_count: Count
    unresolved_total_minor: int = Field(ge=0)
