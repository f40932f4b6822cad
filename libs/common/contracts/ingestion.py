"""Ingestion's contracts: what other systems publish to us, what we answer, and what the next stages read."""

from datetime import date
from typing import Annotated, Literal, NamedTuple, NotRequired
from uuid import UUID

from pydantic import Field, StringConstraints
from typing_extensions import TypedDict

from libs.common.contracts.base import (
    CHUNK_ITEMS,
    Balance,
    BatchHeader,
    BenefitType,
    Code,
    Column,
    Columns,
    Contact,
    ControlTotals,
    Count,
    Currency,
    EnvelopeHeader,
    EventData,
    Frequency,
    Items,
    MeasurementUnit,
    Minor,
    MinorOrZero,
    Mnemonic,
    Name,
    Part,
    PublisherId,
    Reason,
    Sealed,
    SomeItems,
    UnitScale,
)

Declared = Annotated[int, Field(strict=True, gt=0, le=100_000_000)]

# --- In: published by other systems -----------------------------------------------------------------------------------


class BenefitCode(Mnemonic):
    type: BenefitType


class Cycle(Mnemonic):
    frequency: Frequency = "OnDemand"


class EnvelopeSubmitted(EventData):
    """A programme's payment run, declared before or after its disbursements arrive."""

    TYPE = "almoner.ingestion.EnvelopeSubmitted.v1"
    envelope_id: PublisherId
    programme: Mnemonic
    benefit_code: BenefitCode
    cycle: Cycle
    target_registry: Name = ""
    number_of_beneficiaries: Declared
    number_of_disbursements: Declared
    total_minor: Minor = Field(description="minor units of the currency, or 10^-unit_scale of the measurement unit")
    currency: Currency | None = Field(default=None, description="of CASH_DIGITAL and CASH_PHYSICAL")
    measurement_unit: MeasurementUnit | None = Field(default=None, description="of COMMODITY, SERVICE and COMBINATION")
    unit_scale: UnitScale = 0
    schedule_date: date = Field(description="local date in the programme's time zone")
    time_zone: str = Field(default="UTC", max_length=64)


class Disbursement(TypedDict):  # a plain dict: a thousand models cost three times as much to make
    disbursement_id: PublisherId
    beneficiary_id: PublisherId
    amount_minor: Minor
    beneficiary_name: NotRequired[Name]
    narrative: NotRequired[Name]
    contact: NotRequired[
        Annotated[Contact | None, Field(description="where the person is told; else where their address says")]
    ]


class DisbursementsAdded(ControlTotals, EventData):
    """A chunk of an envelope's disbursements, in any order and in any size from 1 to 1,000."""

    TYPE = "almoner.ingestion.DisbursementsAdded.v1"
    envelope_id: PublisherId
    items: Annotated[list[Disbursement], Field(min_length=1, max_length=CHUNK_ITEMS)]

    def _amounts(self) -> list[int]:
        return [item["amount_minor"] for item in self.items]


class EnvelopeAmendmentRequested(EventData):
    """Declare something else of an envelope, before it is complete and before its date has come. What is left out stays.

    Once it is complete only the date of CASH_DIGITAL may still change, asked for alone: funds decides, and the answer waits for it."""

    TYPE = "almoner.ingestion.EnvelopeAmendmentRequested.v1"
    envelope_id: PublisherId
    number_of_beneficiaries: Declared | None = None
    number_of_disbursements: Declared | None = None
    total_minor: Minor | None = None
    schedule_date: date | None = Field(default=None, description="local date in the envelope's time zone")
    reason: Reason


class EnvelopeCancellationRequested(EventData):
    """Cancel whatever of the envelope is unpaid at the moment funds decides."""

    TYPE = "almoner.ingestion.EnvelopeCancellationRequested.v1"
    envelope_id: PublisherId
    reason: Reason


class DisbursementsCancellationRequested(EventData):
    """Cancel single disbursements, known or not yet known; a cancelled id is never paid."""

    TYPE = "almoner.ingestion.DisbursementsCancellationRequested.v1"
    envelope_id: PublisherId
    disbursement_ids: Annotated[list[PublisherId], Field(min_length=1, max_length=CHUNK_ITEMS)]
    reason: Reason


class EnvelopeStatusRequested(EventData):
    """Where is this envelope? Answered with EnvelopeStatus."""

    TYPE = "almoner.ingestion.EnvelopeStatusRequested.v1"
    envelope_id: PublisherId


class StatementSubmitted(EventData):
    """A bank statement as text; larger ones come by HTTP."""

    TYPE = "almoner.ingestion.StatementSubmitted.v1"
    format: Literal["MT940"] = "MT940"
    text: Annotated[str, StringConstraints(min_length=1, max_length=900_000)]


# --- Out: answers to the publisher ------------------------------------------------------------------------------------


class Fault(Part):
    code: Code
    pointer: str = Field(description="JSON pointer into the data of the submission; empty for all of it")
    message: str


class NotCancelled(Part):
    disbursement_id: PublisherId
    reason: Code


class SubmissionAccepted(EventData):
    """The answer to one submission, or to several of the same envelope."""

    TYPE = "almoner.ingestion.SubmissionAccepted.v1"
    submission_ids: list[str] = Field(description="ids of the events this answers")
    envelope_id: UUID | None = None
    publisher_envelope_id: str | None = None
    outcome: Literal["accepted", "parked", "cancelled", "stored"]
    items: Count = 0
    warnings: list[Fault] = []
    cancelled: Count = 0
    cancelled_minor: MinorOrZero = 0
    not_cancelled: list[NotCancelled] = []


class SubmissionRejected(EventData):
    """Nothing of the submission was taken. Named by its id, or by its place where it has none."""

    TYPE = "almoner.ingestion.SubmissionRejected.v1"
    submission_ids: list[str]
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    envelope_id: UUID | None = None
    publisher_envelope_id: str | None = None
    errors: Annotated[list[Fault], Field(min_length=1, max_length=100)]


class Settlement(Part):
    """What became of the money, as funds said when the envelope last settled: blocked = released + confirmed + reversed."""

    revision: Count
    confirmed: Count
    reversed: Count
    cancelled: Count
    blocked_minor: MinorOrZero
    released_minor: MinorOrZero
    confirmed_minor: MinorOrZero
    reversed_minor: MinorOrZero


class Progress(Part):
    """Where the money is, as funds last said: `blocked` is the sum of all the others. Counts are of disbursements."""

    revision: Count
    blocked_minor: MinorOrZero
    waiting: Count
    waiting_minor: MinorOrZero
    in_flight: Count
    in_flight_minor: MinorOrZero
    unknown: Count
    unknown_minor: MinorOrZero
    held: Count
    held_minor: MinorOrZero
    outstanding: Count
    outstanding_minor: MinorOrZero
    confirmed: Count
    confirmed_minor: MinorOrZero
    reversed: Count
    reversed_minor: MinorOrZero
    cancelled: Count = Field(description="their money, if it was blocked, is `releasing`, `released` or `held`")
    releasing_minor: MinorOrZero
    released_minor: MinorOrZero


class Allocation(Part):
    """Of goods: what has a warehouse and an agency, as allocation last said. declared = allocated + held + cancelled."""

    revision: Count
    allocated: Count
    allocated_minor: MinorOrZero
    held: Count
    held_minor: MinorOrZero
    cancelled: Count
    cancelled_minor: MinorOrZero


class EnvelopeStatus(EventData):
    """What has been received of an envelope, what was cut from it, how its funds stand, where they are by now, and what became of
    them in the end. Who was paid and who was not is told by funds itself, on `funds.payments.v1`."""

    TYPE = "almoner.ingestion.EnvelopeStatus.v1"
    submission_ids: list[str]
    header: EnvelopeHeader
    state: Literal["RECEIVING", "COMPLETED", "CANCELLING", "CANCELLED", "SETTLED"]
    declared: Count
    declared_minor: MinorOrZero
    received: Count
    received_minor: MinorOrZero
    batches: Count
    funds: Literal["NONE", "CHECKED", "SHORT", "BLOCKED"] = "NONE"
    progress: Progress | None = Field(default=None, description="of cash; none until it is blocked")
    settlement: Settlement | None = Field(default=None, description="of cash; none until it settles")
    allocation: Allocation | None = Field(default=None, description="of goods; none until all of it has arrived at allocation")


# --- Out: facts -------------------------------------------------------------------------------------------------------


class EnvelopeAccepted(EventData):
    """An envelope was declared and is valid; its disbursements may still be on their way."""

    TYPE = "almoner.ingestion.EnvelopeAccepted.v1"
    header: EnvelopeHeader
    declared: Count
    declared_minor: Minor


class EnvelopeAmended(EventData):
    """Something else is declared of an envelope from here; its header has the next revision."""

    TYPE = "almoner.ingestion.EnvelopeAmended.v1"
    header: EnvelopeHeader
    request_id: str
    reason: Reason
    beneficiaries: Count
    declared: Count
    declared_minor: Minor


class EnvelopeRescheduling(EventData):
    """The publisher wants another date for a complete envelope of CASH_DIGITAL. Funds decides."""

    TYPE = "almoner.ingestion.EnvelopeRescheduling.v1"
    header: EnvelopeHeader = Field(
        description="with the date so far; of several requests the one with the highest revision counts"
    )
    request_id: str
    reason: Reason
    schedule_date: date = Field(description="asked for; local date in the envelope's time zone")


class EnvelopeCompleted(EventData):
    """All that was declared has been received and cut; counts and amounts are frozen from here."""

    TYPE = "almoner.ingestion.EnvelopeCompleted.v1"
    header: EnvelopeHeader
    batches: Count
    count: Count
    total_minor: Minor


class EnvelopeCancelling(EventData):
    """The publisher wants the envelope cancelled. Funds decides what was still unpaid, of goods allocation what was not yet announced;
    nothing is cut after this."""

    TYPE = "almoner.ingestion.EnvelopeCancelling.v1"
    header: EnvelopeHeader
    request_id: str
    reason: Reason
    batches: Count = Field(description="cut so far; there will be no more")
    count: Count
    total_minor: MinorOrZero


class CancelledItem(Part):
    disbursement_id: PublisherId
    batch_id: UUID | None = Field(default=None, description="the batch it was cut into, if it was")


class DisbursementsCancelling(EventData):
    """The publisher wants single disbursements cancelled. Funds decides, of goods allocation; ids are tombstones from here on."""

    TYPE = "almoner.ingestion.DisbursementsCancelling.v1"
    header: EnvelopeHeader
    request_id: str
    reason: Reason
    items: Annotated[list[CancelledItem], Field(min_length=1, max_length=CHUNK_ITEMS)]


class BatchCut(ControlTotals, EventData):
    """Up to 1,000 disbursements of one envelope, whatever the size of the publisher's events.

    Sealed: columns disbursement_id, name, narrative and, where one was given, contact {"email", "phone"}."""

    TYPE = "almoner.ingestion.BatchCut.v1"
    header: BatchHeader
    count: SomeItems
    items: Items
    sealed: Sealed


class StatementOpened(EventData):
    """A statement was read. Its lines follow in chunks, in any order."""

    TYPE = "almoner.ingestion.StatementOpened.v1"
    statement_id: UUID
    account_token: str = Field(description="HMAC of the account number")
    reference: str
    number: str
    sequence: str
    currency: Currency
    opening_minor: Balance
    closing_minor: Balance
    lines: Count
    chunks: Count


class StatementLine(NamedTuple):
    line: int
    mark: str
    amount_minor: int
    value_date: date
    customer_reference: str
    bank_reference: str
    fifth_narrative: str


class Lines(Columns[StatementLine]):
    ROW = StatementLine
    line: Column[Count] = Field(description="1, 2, … within the statement")
    mark: Column[Literal["D", "C", "RD", "RC"]]
    amount_minor: Column[Minor]
    value_date: Column[date]
    customer_reference: Column[str]
    bank_reference: Column[str]
    fifth_narrative: Column[str] = Field(description="carries our reference, where the bank repeats narratives; else empty")


class UnparsableLine(Part):
    line: Count
    reason: str


class StatementLines(EventData):
    """A chunk of a statement's lines, bank-neutral. Sealed: columns line, narratives (a list each) and the text of unparsable ones."""

    TYPE = "almoner.ingestion.StatementLines.v1"
    statement_id: UUID
    account_token: str
    currency: Currency
    chunk: Count = Field(description="1, 2, … of StatementOpened.chunks")
    lines: Lines
    unparsable: list[UnparsableLine] = []
    count: Count = Field(description="of `lines`")
    total_minor: MinorOrZero = Field(description="sum of `lines`, whatever their mark")
    sealed: Sealed
