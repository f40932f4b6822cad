"""Resolution's contracts: where each person of a batch is paid, or lives."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from libs.common.contracts.base import (
    CHUNK_ITEMS,
    BatchHeader,
    ControlTotals,
    Count,
    EventData,
    Items,
    MinorOrZero,
    Sealed,
    UnresolvedItems,
    Zone,
    ZonedItems,
    zone_totals,
)


class BatchAddressesResolved(ControlTotals, EventData):
    """The addresses of a batch. Whoever is resolved later arrives as the next `part`, alone.

    Sealed: columns disbursement_id, those of BatchCut, and of the address: fa_type BANK_ACCOUNT | MOBILE_WALLET | EMAIL_WALLET,
    account_number, bank_code, branch_code, mobile_number, email_address, wallet_provider_name, wallet_provider_code; null where
    somebody has none, left out where nobody has one."""

    TYPE = "almoner.resolution.BatchAddressesResolved.v1"
    header: BatchHeader
    part: Annotated[int, Field(ge=1, le=10_000)]
    items: Items = Field(description="resolved; count and total are theirs")
    sealed: Sealed
    unresolved: UnresolvedItems
    unresolved_count: Count
    unresolved_total_minor: int = Field(ge=0)


class ZoneTotal(Zone):
    count: Count
    total_minor: MinorOrZero


class BatchZonesResolved(ControlTotals, EventData):
    """Where the people of a batch live, for all benefit types but CASH_DIGITAL. Whoever is resolved later arrives as the next
    `part`, alone.

    Sealed: as in BatchCut, of those resolved."""

    TYPE = "almoner.resolution.BatchZonesResolved.v1"
    header: BatchHeader
    part: Annotated[int, Field(ge=1, le=10_000)]
    items: ZonedItems = Field(description="resolved; count and total are theirs")
    zones: Annotated[list[ZoneTotal], Field(max_length=CHUNK_ITEMS)]
    sealed: Sealed
    unresolved: UnresolvedItems
    unresolved_count: Count
    unresolved_total_minor: int = Field(ge=0)

    @model_validator(mode="after")
    def _zones_agree(self) -> Self:
        if zone_totals(self.items, len(self.zones)) != [(zone.count, zone.total_minor) for zone in self.zones]:
            raise ValueError("the items of a zone do not come to what the zone says")
        return self
