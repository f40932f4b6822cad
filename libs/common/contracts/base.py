"""What every contract is made of: base models, identifiers, money, sealed parts, chunks with control totals."""

from collections.abc import Iterable, Sequence
from datetime import date
from typing import Annotated, ClassVar, Literal, Self
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from libs.common.money import MAX_MINOR

CHUNK_ITEMS = 1000

# A publisher's identifier: what a person can read out and a bank can print; control characters would corrupt files and logs.
PublisherId = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")]
Name = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$")]
Reason = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00]*$")]
Code = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]{1,59}$")]
Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]
Minor = Annotated[int, Field(strict=True, gt=0, le=MAX_MINOR)]
MinorOrZero = Annotated[int, Field(strict=True, ge=0, le=MAX_MINOR)]
Balance = Annotated[int, Field(strict=True, ge=-MAX_MINOR, le=MAX_MINOR)]
Count = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]

BenefitType = Literal["CASH_DIGITAL", "CASH_PHYSICAL", "COMMODITY", "SERVICE", "COMBINATION"]
Frequency = Literal[
    "Daily", "Weekly", "Fortnightly", "Monthly", "BiMonthly", "Quarterly", "SemiAnnually", "Annually", "OnDemand"
]

_NAMESPACE = uuid5(NAMESPACE_URL, "almoner")


def derived_id(*parts: object) -> UUID:
    """UUIDv5 of the parts: the same cause gives the same id again, so a re-run repeats itself instead of multiplying."""
    return uuid5(_NAMESPACE, "\x1f".join(map(str, parts)))


def envelope_uuid(source: str, publisher_envelope_id: str) -> UUID:
    """Almoner's own id of an envelope. The publisher's ids are scoped by its CloudEvents `source`."""
    return derived_id("envelope", source, publisher_envelope_id)


class Part(BaseModel):
    """Any part of an event: immutable, tolerant of unknown fields when read (the published schemas are closed)."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class EventData(Part):
    """The data of one event type. TYPE is stable for ever: `almoner.<owner>.<Name>.v<major>`."""

    TYPE: ClassVar[str]


class Sealed(Part):
    """Personal data, compressed and then sealed (see seal.py)."""

    key_id: str = Field(max_length=40)
    data: str = Field(description="base64 of nonce and AES-GCM ciphertext of zstd of JSON {disbursement id: {…}}")


class Mnemonic(Part):
    id: PublisherId
    mnemonic: Name = ""


class EnvelopeHeader(Part):
    """What every event about an envelope says of it."""

    envelope_id: UUID
    source: str = Field(max_length=200, description="CloudEvents source of the publisher")
    publisher_envelope_id: PublisherId
    programme: Mnemonic
    benefit_code: Mnemonic
    benefit_type: BenefitType
    cycle: Mnemonic
    target_registry: Name = ""
    currency: Currency
    schedule_date: date = Field(description="a local date in `time_zone`")
    time_zone: str = "UTC"
    revision: Count = Field(default=1, description="the highest wins")


class BatchHeader(EnvelopeHeader):
    """What every event about a batch says of it."""

    batch_id: UUID
    number: Count = Field(description="1, 2, … within the envelope")


class Item(Part):
    """One disbursement in a batch; what identifies a person beyond ids is in the sealed part."""

    disbursement_id: PublisherId
    beneficiary_id: PublisherId
    amount_minor: Minor


class Amount(Part):
    """One disbursement and its money."""

    disbursement_id: PublisherId
    amount_minor: Minor


class AmountWithReason(Amount):
    reason: Code
    message: str = Field(default="", max_length=500)


class Unresolved(Item):
    reason: Code
    message: str = Field(default="", max_length=500)


class ControlTotals(Part):
    """A chunk says how many items and how much money it carries; writer and reader both check."""

    count: Count
    total_minor: MinorOrZero

    def _chunk(self) -> Iterable[Amount | Item]:
        return self.items  # type: ignore[attr-defined,no-any-return]

    @model_validator(mode="after")
    def _totals_agree(self) -> Self:
        amounts = [item.amount_minor for item in self._chunk()]
        if len(amounts) != self.count:
            raise ValueError(f"count says {self.count}, there are {len(amounts)} items")
        total = sum(amounts)
        if total != self.total_minor:
            raise ValueError(f"total_minor says {self.total_minor}, the items add up to {total}")
        return self


def totals(items: Iterable[Amount | Item]) -> dict[str, int]:
    """The control totals of a chunk, as keyword arguments for its event."""
    amounts = [item.amount_minor for item in items]
    return {"count": len(amounts), "total_minor": sum(amounts)}


def amounts(items: Sequence[tuple[str, int]]) -> dict[str, object]:
    """(disbursement, minor units) each -> `items` and control totals of an event, to be validated as one."""
    return {
        "items": [{"disbursement_id": one, "amount_minor": minor} for one, minor in items],
        "count": len(items),
        "total_minor": sum(minor for _, minor in items),
    }
