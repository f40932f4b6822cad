"""What every contract is made of: base models, identifiers, money, sealed parts, chunks with control totals."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, Self, TypeVar
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
# What goods and services are counted in, such as "kg"; amounts are integers of its smallest part, as money is.
MeasurementUnit = Annotated[str, StringConstraints(min_length=1, max_length=20, pattern=r"^[^\x00-\x1f\x7f]+$")]
UnitScale = Annotated[int, Field(strict=True, ge=0, le=6, description="decimals of the measurement unit; 3: grams of a kg")]
Minor = Annotated[int, Field(strict=True, gt=0, le=MAX_MINOR)]
MinorOrZero = Annotated[int, Field(strict=True, ge=0, le=MAX_MINOR)]
Balance = Annotated[int, Field(strict=True, ge=-MAX_MINOR, le=MAX_MINOR)]
Count = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
SomeItems = Annotated[int, Field(strict=True, ge=1, le=CHUNK_ITEMS)]  # of a chunk that is never empty

# Empty where there is none; whether it can be reached only the provider knows.
EmailOrNone = Annotated[str, StringConstraints(pattern=r"^([^@\s\x00-\x1f\x7f]{1,64}@[^@\s\x00-\x1f\x7f]{1,190})?$")]
PhoneOrNone = Annotated[str, StringConstraints(pattern=r"^(\+?[0-9][0-9 ()./-]{2,30})?$")]

BenefitType = Literal["CASH_DIGITAL", "CASH_PHYSICAL", "COMMODITY", "SERVICE", "COMBINATION"]
CASH = ("CASH_DIGITAL", "CASH_PHYSICAL")
GOODS = ("COMMODITY", "SERVICE", "COMBINATION")
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

    # Of strings only names come again and again: to look for each value among those seen before costs more than it saves.
    model_config = ConfigDict(frozen=True, extra="ignore", cache_strings="keys")


class EventData(Part):
    """The data of one event type. TYPE is stable for ever: `almoner.<owner>.<Name>.v<major>`."""

    TYPE: ClassVar[str]


class Sealed(Part):
    """Personal data, compressed and then sealed (see seal.py)."""

    key_id: str = Field(max_length=40)
    data: str = Field(description="base64 of nonce and AES-GCM ciphertext of zstd of JSON: columns, disbursement_id among them")


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
    currency: Annotated[str, StringConstraints(pattern=r"^([A-Z]{3})?$")] = Field(default="", description="of cash, else empty")
    measurement_unit: Name = Field(default="", description="of goods and services; empty for cash")
    unit_scale: UnitScale = 0
    schedule_date: date = Field(description="a local date in `time_zone`")
    time_zone: str = "UTC"
    revision: Count = Field(default=1, description="the highest wins")


class BatchHeader(EnvelopeHeader):
    """What every event about a batch says of it."""

    batch_id: UUID
    number: Count = Field(description="1, 2, … within the envelope")


class Contact(Part):
    """Where somebody can be told; never travels or rests in clear within Almoner."""

    email: EmailOrNone = ""
    phone: PhoneOrNone = ""


class Item(NamedTuple):
    """One disbursement in a batch; what identifies a person beyond ids is in the sealed part."""

    disbursement_id: str
    beneficiary_id: str
    amount_minor: int


class Unresolved(NamedTuple):
    disbursement_id: str
    beneficiary_id: str
    amount_minor: int
    reason: str
    message: str = ""


class Amount(NamedTuple):
    """One disbursement and its money."""

    disbursement_id: str
    amount_minor: int


class AmountWithReason(NamedTuple):
    disbursement_id: str
    amount_minor: int
    reason: str
    message: str = ""


class ZonedItem(NamedTuple):
    disbursement_id: str
    beneficiary_id: str
    amount_minor: int
    zone: int


Row = TypeVar("Row", bound=tuple[object, ...])
T = TypeVar("T")
Column = Annotated[list[T], Field(max_length=CHUNK_ITEMS)]
Message = Annotated[str, StringConstraints(max_length=500)]


class Columns(Part, Generic[Row]):
    """The rows of a chunk, by column: a thousand of them are read, written and handed on as a few lists (ADR 17). All lists are of
    one length. Iterating gives the rows."""

    ROW: ClassVar[Any]  # the type of a row

    @classmethod
    def of(cls, rows: Iterable[tuple[object, ...]]) -> Self:
        """Of rows, or tuples of their values. Raises ValidationError for a value that an event can't carry."""
        columns = list(zip(*rows, strict=True)) or [()] * len(cls.model_fields)
        return cls.model_validate(dict(zip(cls.model_fields, columns, strict=True)))

    def __iter__(self) -> Iterator[Row]:  # type: ignore[override]
        return map(self.ROW._make, zip(*self.__dict__.values(), strict=True))

    def __len__(self) -> int:
        return len(next(iter(self.__dict__.values())))

    def __getitem__(self, index: int) -> Row:
        row: Row = self.ROW._make(column[index] for column in self.__dict__.values())
        return row

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        lengths = {name: len(column) for name, column in self.__dict__.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns are not of one length: {lengths}")
        return self


class Items(Columns[Item]):
    ROW = Item
    disbursement_id: Column[PublisherId]
    beneficiary_id: Column[PublisherId]
    amount_minor: Column[Minor]


class UnresolvedItems(Columns[Unresolved]):
    ROW = Unresolved
    disbursement_id: Column[PublisherId]
    beneficiary_id: Column[PublisherId]
    amount_minor: Column[Minor]
    reason: Column[Code]
    message: Column[Message]


class Amounts(Columns[Amount]):
    ROW = Amount
    disbursement_id: Column[PublisherId]
    amount_minor: Column[Minor]


class AmountsWithReason(Columns[AmountWithReason]):
    ROW = AmountWithReason
    disbursement_id: Column[PublisherId]
    amount_minor: Column[Minor]
    reason: Column[Code]
    message: Column[Message]


class ZonedItems(Columns[ZonedItem]):
    ROW = ZonedItem
    disbursement_id: Column[PublisherId]
    beneficiary_id: Column[PublisherId]
    amount_minor: Column[Minor]
    zone: Column[Count] = Field(description="index in `zones`")


class Zone(Part):
    """A small zone, within a large one."""

    large_zone_id: PublisherId
    large_zone_code: Name = ""
    small_zone_id: PublisherId
    small_zone_code: Name = ""


def zone_totals(items: ZonedItems, zones: int) -> list[tuple[int, int]]:
    """(count, total) of each zone. Raises ValueError for an item in none of them."""
    found = [[0, 0] for _ in range(zones)]
    for zone, amount_minor in zip(items.zone, items.amount_minor, strict=True):
        if zone >= zones:
            raise ValueError(f"an item is in zone {zone}, there are {zones}")
        found[zone][0] += 1
        found[zone][1] += amount_minor
    return [(count, total) for count, total in found]


class ControlTotals(Part):
    """A chunk says how many items and how much money it carries; writer and reader both check."""

    count: Count
    total_minor: MinorOrZero

    def _amounts(self) -> Sequence[int]:
        return self.items.amount_minor  # type: ignore[attr-defined,no-any-return]

    @model_validator(mode="after")
    def _totals_agree(self) -> Self:
        amounts = self._amounts()
        if len(amounts) != self.count:
            raise ValueError(f"count says {self.count}, there are {len(amounts)} items")
        total = sum(amounts)
        if total != self.total_minor:
            raise ValueError(f"total_minor says {self.total_minor}, the items add up to {total}")
        return self


def totals(amounts: Sequence[int]) -> dict[str, int]:
    """The control totals of a chunk, as keyword arguments for its event."""
    return {"count": len(amounts), "total_minor": sum(amounts)}


def chunk(items: "Items | ZonedItems | Amounts | AmountsWithReason") -> dict[str, Any]:
    """`items` and their control totals, as keyword arguments for their event."""
    return {"items": items, **totals(items.amount_minor)}
