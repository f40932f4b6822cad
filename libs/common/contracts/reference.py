"""Reference data: what other systems publish about people, warehouses and agencies, on compacted topics.

Each message says all about what its key names; one with an empty value removes it.
"""

from typing import Annotated

from pydantic import Field

from libs.common.contracts.base import Code, EventData, MinorOrZero, Name, Part, PublisherId, Zone


class Serves(Part):
    """What a place hands out, for all programmes it serves one row each."""

    programme_id: PublisherId
    benefit_code_id: PublisherId
    capacity_minor: MinorOrZero | None = Field(default=None, description="at most so much in one cycle; none: no limit")


class Listed(EventData):
    """A warehouse or an agency as it is from now on."""

    id: PublisherId = Field(description="the message's key")
    mnemonic: Name = ""
    name: Name = ""
    admin_name: Name = ""
    admin_email: Name = ""
    admin_mobile: Name = ""
    serves: Annotated[list[Serves], Field(max_length=10_000)]


class WarehouseListed(Listed):
    """A warehouse as it is from now on."""

    TYPE = "almoner.reference.WarehouseListed.v1"
    large_zone_ids: Annotated[list[PublisherId], Field(max_length=10_000)]


class AgencyAccount(Part):
    account_number: Annotated[str, Field(min_length=1, max_length=64)]
    account_type: Name = ""
    bank_code: Name = ""
    branch_code: Name = ""


class AgencyListed(Listed):
    """An agency as it is from now on. Cash is paid into its account."""

    TYPE = "almoner.reference.AgencyListed.v1"
    small_zone_ids: Annotated[list[PublisherId], Field(max_length=10_000)]
    account: AgencyAccount | None = None


class ReferenceFault(Part):
    code: Code
    pointer: str
    message: str


class ReferenceRejected(EventData):
    """A message on a topic of reference data was not taken; what was known before stays."""

    TYPE = "almoner.reference.ReferenceRejected.v1"
    topic: str
    partition: int
    offset: int
    key: str = Field(max_length=300)
    errors: Annotated[list[ReferenceFault], Field(min_length=1, max_length=100)]


class PersonLocated(Zone, EventData):
    """Where a person of a registry lives from now on. Key: `<registry>/<beneficiary id>`."""

    TYPE = "almoner.reference.PersonLocated.v1"
    target_registry: Name
    beneficiary_id: PublisherId
