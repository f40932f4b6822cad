"""Allocation's contracts: which warehouse and which agency serve whom."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from libs.common.contracts.base import (
    CHUNK_ITEMS,
    BatchHeader,
    Code,
    ControlTotals,
    Count,
    EnvelopeHeader,
    EventData,
    MinorOrZero,
    Name,
    Part,
    PublisherId,
    Reason,
    Sealed,
    UnresolvedItems,
    Zone,
    ZonedItems,
    zone_totals,
)
from libs.common.contracts.ingestion import NotCancelled


class Place(Part):
    """A warehouse or an agency, and why this one."""

    id: PublisherId
    mnemonic: Name = ""
    name: Name = ""
    chosen_by: Code = Field(description="ONLY_ONE, COVERAGE, LOAD or ID: what decided; OPERATOR: a person did")


class ZoneAllocation(Zone):
    """Who serves the people of a small zone: the warehouse of its large zone (goods only) and its agency."""

    warehouse: Place | None
    agency: Place
    count: Count
    total_minor: MinorOrZero


class BatchAllocated(ControlTotals, EventData):
    """Who serves the people of a batch: decided, not to be changed or cancelled by allocation any more. Whoever is allocated
    later arrives as the next `part`, alone; a person held in an earlier part is named again only when allocated.

    `sealed`: as in BatchCut, of those allocated. `places`: sealed {"warehouse/<id>" or "agency/<id>": {"admin_name", "admin_email",
    "admin_mobile", and of an agency with one "account": {"account_number", "account_type", "bank_code", "branch_code"}}}."""

    TYPE = "almoner.allocation.BatchAllocated.v1"
    header: BatchHeader
    part: Annotated[int, Field(ge=1, le=10_000)]
    items: ZonedItems = Field(description="allocated; count and total are theirs")
    zones: Annotated[list[ZoneAllocation], Field(max_length=CHUNK_ITEMS)]
    sealed: Sealed
    places: Sealed
    held: UnresolvedItems
    held_count: Count
    held_total_minor: MinorOrZero

    @model_validator(mode="after")
    def _zones_agree(self) -> Self:
        if zone_totals(self.items, len(self.zones)) != [(zone.count, zone.total_minor) for zone in self.zones]:
            raise ValueError("the items of a zone do not come to what the zone says")
        return self


class ZoneReassigned(EventData):
    """An operator gave a zone of an envelope to another warehouse or agency, for those whom nobody had told; count and total are
    theirs. Who was announced before stays where BatchAllocated says."""

    TYPE = "almoner.allocation.ZoneReassigned.v1"
    header: EnvelopeHeader
    command_id: str
    kind: Literal["warehouse", "agency"]
    zone_id: PublisherId = Field(description="a large zone for a warehouse, a small one for an agency")
    from_id: PublisherId | None = Field(description="none where the zone was held")
    to_id: PublisherId
    who: str
    reason: Reason
    count: Count
    total_minor: MinorOrZero


class EnvelopeAllocated(EventData):
    """All people of an envelope of goods have arrived, and each is allocated, held with a reason, or cancelled. Issued again, with
    the next revision, whenever that changes."""

    TYPE = "almoner.allocation.EnvelopeAllocated.v1"
    header: EnvelopeHeader
    revision: Count
    declared: Count
    declared_minor: MinorOrZero
    allocated: Count
    allocated_minor: MinorOrZero
    held: Count
    held_minor: MinorOrZero
    cancelled: Count
    cancelled_minor: MinorOrZero

    @model_validator(mode="after")
    def _everybody_is_somewhere(self) -> Self:
        if self.declared != self.allocated + self.held + self.cancelled:
            raise ValueError("declared is not allocated + held + cancelled")
        if self.declared_minor != self.allocated_minor + self.held_minor + self.cancelled_minor:
            raise ValueError("declared_minor is not allocated_minor + held_minor + cancelled_minor")
        return self


class GoodsCancelled(EventData):
    """The answer to the cancellation of an envelope of goods."""

    TYPE = "almoner.allocation.GoodsCancelled.v1"
    header: EnvelopeHeader
    request_id: str
    cancelled: Count
    cancelled_minor: MinorOrZero
    already_announced: Count = Field(
        description="they are served; who they are: all `items` of the envelope's BatchAllocated, of every part, on allocation.batches.v1"
    )
    already_announced_minor: MinorOrZero


class EntitlementsCancelled(EventData):
    """The answer to the cancellation of single disbursements of goods."""

    TYPE = "almoner.allocation.EntitlementsCancelled.v1"
    header: EnvelopeHeader
    request_id: str
    cancelled: list[PublisherId]
    cancelled_minor: MinorOrZero = Field(description="of those whose amount is known by now")
    not_cancelled: list[NotCancelled]
