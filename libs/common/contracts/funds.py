"""Funds' contracts: what happened to the sponsor's money."""

from typing import Literal, Self
from uuid import UUID

from pydantic import Field, model_validator

from libs.common.contracts.base import (
    CHUNK_ITEMS,
    Amounts,
    AmountsWithReason,
    BatchHeader,
    Code,
    ControlTotals,
    Count,
    Currency,
    EnvelopeHeader,
    EventData,
    Message,
    Minor,
    MinorOrZero,
    Part,
    PublisherId,
    Reason,
    SomeItems,
)
from libs.common.contracts.ingestion import NotCancelled


class Position(Part):
    """Where an envelope's blocked money is (money.md's identity), in minor units; the parts add up to `blocked`."""

    blocked: MinorOrZero
    waiting: MinorOrZero
    in_flight: MinorOrZero
    unknown: MinorOrZero
    held: MinorOrZero
    dispatched: MinorOrZero
    releasing: MinorOrZero
    released: MinorOrZero
    outstanding: MinorOrZero
    confirmed: MinorOrZero
    reversed: MinorOrZero


class FundsChecked(EventData):
    """The sponsor's account covers the envelope; nothing is reserved by that."""

    TYPE = "almoner.funds.FundsChecked.v1"
    header: EnvelopeHeader
    amount_minor: Minor


class FundsShort(EventData):
    """The sponsor's account does not cover the envelope; checked again until it does. For a further block (once the envelope has
    been blocked): nothing is reserved, and whoever asked for the repayment asks again."""

    TYPE = "almoner.funds.FundsShort.v1"
    header: EnvelopeHeader
    amount_minor: Minor
    reason: Code
    message: str = ""


class FundsBlocked(EventData):
    """The bank has reserved the money; batches may be paid from here."""

    TYPE = "almoner.funds.FundsBlocked.v1"
    header: EnvelopeHeader
    block: Count = Field(description="1, 2, … within the envelope; a further one is for repayments")
    amount_minor: Minor
    bank_reference: str


class FundsReleased(EventData):
    """Blocked money went back to the sponsor."""

    TYPE = "almoner.funds.FundsReleased.v1"
    header: EnvelopeHeader
    release_id: int
    block: Count
    amount_minor: Minor
    bank_reference: str


class EnvelopeCancelled(EventData):
    """The answer to an envelope's cancellation: sent when nothing of it is in flight any more."""

    TYPE = "almoner.funds.EnvelopeCancelled.v1"
    header: EnvelopeHeader
    request_id: str
    cancelled: Count
    cancelled_minor: MinorOrZero
    already_dispatched: Count = Field(
        description="who they are: those in the envelope's PaymentsDispatched and PaymentsConfirmed on funds.payments.v1, without "
        "those in PaymentsCancelled"
    )
    already_dispatched_minor: MinorOrZero
    unknown: Count = Field(
        description="who they are: those in PaymentsUnknown that none of PaymentsDispatched, PaymentsConfirmed and PaymentsCancelled "
        "names"
    )
    unknown_minor: MinorOrZero


class DisbursementsCancelled(EventData):
    """The answer to the cancellation of single disbursements."""

    TYPE = "almoner.funds.DisbursementsCancelled.v1"
    header: EnvelopeHeader
    request_id: str
    cancelled: list[PublisherId]
    cancelled_minor: MinorOrZero = Field(description="of those whose amount is known by now")
    not_cancelled: list[NotCancelled]


class RescheduleDecided(EventData):
    """The answer to a change of date after the envelope was complete."""

    TYPE = "almoner.funds.RescheduleDecided.v1"
    header: EnvelopeHeader = Field(description="with the date, and its revision, that hold from here")
    request_id: str
    reason: Reason = Field(description="the publisher's")
    refusal: Literal["CHECK_STARTED", "CANCELLED"] | None = Field(description="none: accepted")


class EnvelopePosition(EventData):
    """Where an envelope's money is by now, from the block on, and how many disbursements that is. Said when it has changed, once in
    ALMONER_FUNDS_POSITION_SECONDS at most; the newest says all."""

    TYPE = "almoner.funds.EnvelopePosition.v1"
    header: EnvelopeHeader
    revision: Count = Field(description="counted together with EnvelopeSettled's `position_revision`: the highest holds")
    position: Position
    waiting: Count
    in_flight: Count
    unknown: Count
    held: Count
    outstanding: Count
    confirmed: Count
    reversed: Count
    cancelled: Count


class EnvelopeSettled(EventData):
    """Every unit of the envelope has reached an end. A late reversal or a repayment issues the next revision."""

    TYPE = "almoner.funds.EnvelopeSettled.v1"
    header: EnvelopeHeader
    revision: Count
    position: Position
    position_revision: Count = Field(default=0, description="newer than any EnvelopePosition with a lower revision")
    confirmed: Count
    reversed: Count
    cancelled: Count


class Payments(ControlTotals, EventData):
    """A chunk of payments of one batch which took the same step."""

    header: BatchHeader
    instruction: int = Field(ge=1)
    count: SomeItems
    items: Amounts


class PaymentsDispatched(Payments):
    """The bank has taken the instruction; only a statement proves that a person was paid."""

    TYPE = "almoner.funds.PaymentsDispatched.v1"


class PaymentsConfirmed(Payments):
    """The statement shows the debit, or an operator has settled it with evidence."""

    TYPE = "almoner.funds.PaymentsConfirmed.v1"
    statement_id: UUID | None = Field(description="none where an operator settled it with evidence")


class PaymentsReversed(Payments):
    """Money that came back. A reversal leaves `confirmed`."""

    TYPE = "almoner.funds.PaymentsReversed.v1"
    statement_id: UUID | None
    reasons: list[Message] = Field(
        default=[],
        max_length=CHUNK_ITEMS,
        description="why, in the bank's words, of each item in its order: empty where the bank says nothing, or of none at all",
    )

    @model_validator(mode="after")
    def _a_reason_each(self) -> Self:
        if self.reasons and len(self.reasons) != self.count:
            raise ValueError(f"{len(self.reasons)} reasons for {self.count} items")
        return self


class PaymentsUnknown(Payments):
    """Sent, outcome not known. Never sent again; ends by a query, a statement line or an operator."""

    TYPE = "almoner.funds.PaymentsUnknown.v1"
    reason: Code


class PaymentsCancelled(ControlTotals, EventData):
    """Disbursements which will never be paid, because they were cancelled."""

    TYPE = "almoner.funds.PaymentsCancelled.v1"
    header: BatchHeader
    count: SomeItems
    items: Amounts


class PaymentsHeld(ControlTotals, EventData):
    """Not sent, with a reason and an owner."""

    TYPE = "almoner.funds.PaymentsHeld.v1"
    header: BatchHeader
    count: SomeItems
    items: AmountsWithReason


class PaymentsRefused(ControlTotals, EventData):
    """The bank said no to single payments or to a whole list; they are held from here."""

    TYPE = "almoner.funds.PaymentsRefused.v1"
    header: BatchHeader
    instruction: int = Field(ge=1)
    count: SomeItems
    items: AmountsWithReason


class StatementException(Part):
    reason: Code
    count: Count


class StatementReconciled(EventData):
    """Every line of a statement was looked at: matched, or an exception with a reason."""

    TYPE = "almoner.funds.StatementReconciled.v1"
    statement_id: UUID
    account_token: str
    currency: Currency
    lines: Count
    confirmed: Count
    confirmed_minor: MinorOrZero
    reversed: Count
    reversed_minor: MinorOrZero
    exceptions: list[StatementException]
    balances_agree: bool
