"""Commands: what operators ask of a service, on `<service>.commands.v1`. Each says who and why and leaves an audit row."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, StringConstraints

from libs.common.contracts.base import CHUNK_ITEMS, Count, EventData, PublisherId, Reason
from libs.common.contracts.ingestion import EnvelopeAmendmentRequested

Publisher = Annotated[
    str, StringConstraints(min_length=1, max_length=200), Field(description="the publisher, as its events say")
]


class Command(EventData):
    who: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    why: Reason
    expected: Count | None = Field(default=None, description="how many the operator saw; refused if it is not so any more")


class CommandHandled(EventData):
    """An operator's command was carried out, or refused with a reason; said with the audit row, and once."""

    TYPE = "almoner.operator.CommandHandled.v1"
    command_id: str = Field(description="the command event's id")
    action: str = Field(description="the command event's type")
    who: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    why: Reason
    affected: Count = Field(description="how many rows it touched")
    refused: str = Field(default="", max_length=1000, description="why nothing was done; empty where it was")


# --- every service ----------------------------------------------------------------------------------------------------


class PauseStage(Command):
    """Stop a stage: `consume` (all topics but commands) or a kind of outside call. Ingestion sends it to funds for `dispatch` where
    it has set aside what cancels or amends."""

    TYPE = "almoner.operator.PauseStage.v1"
    stage: str


class ResumeStage(Command):
    """Start a paused stage again."""

    TYPE = "almoner.operator.ResumeStage.v1"
    stage: str


class RetryWork(Command):
    """Give outside calls that ended in ERROR a new set of attempts. Unknown ones are never retried so."""

    TYPE = "almoner.operator.RetryWork.v1"
    kind: str
    subjects: Annotated[list[str], Field(max_length=CHUNK_ITEMS)] = Field(default=[], description="empty: all of the kind")


class RedriveDeadLetters(Command):
    """Publish dead letters again on their topics, with their ids. Empty: all."""

    TYPE = "almoner.operator.RedriveDeadLetters.v1"
    ids: Annotated[list[int], Field(max_length=CHUNK_ITEMS)] = []


class DiscardDeadLetters(Command):
    """Give dead letters up, for good."""

    TYPE = "almoner.operator.DiscardDeadLetters.v1"
    ids: Annotated[list[int], Field(min_length=1, max_length=CHUNK_ITEMS)]


# --- one service ------------------------------------------------------------------------------------------------------


class FireTick(Command):
    """scheduler: fire a job now."""

    TYPE = "almoner.operator.FireTick.v1"
    job: str


class CancelForPublisher(Command):
    """ingestion: cancel an envelope, or single disbursements of it, in its publisher's name. It goes through the publisher's own
    door, with the command's id, and is answered there."""

    TYPE = "almoner.operator.CancelForPublisher.v1"
    source: Publisher
    envelope_id: PublisherId
    disbursement_ids: Annotated[list[PublisherId], Field(max_length=CHUNK_ITEMS)] = Field(default=[], description="empty: all")


class AmendForPublisher(Command):
    """ingestion: declare something else of an envelope in its publisher's name; as CancelForPublisher."""

    TYPE = "almoner.operator.AmendForPublisher.v1"
    source: Publisher
    amendment: EnvelopeAmendmentRequested


class HandInStatement(Command):
    """ingestion: an operator has handed in a file of a bank's statements. The file itself goes through the door for statements,
    before this; here is who did it and why. Refused where no such file is stored."""

    TYPE = "almoner.operator.HandInStatement.v1"
    file_id: UUID = Field(description="as the door has answered")
    file: str = Field(max_length=300, description="its name, as the operator has it")


class ResolveHeld(Command):
    """resolution: ask again, the mapper or the registry, for those who could not be resolved; by disbursement ids also for those
    whose address was resolved and is another by now. Empty lists: no restriction."""

    TYPE = "almoner.operator.ResolveHeld.v1"
    envelope_id: UUID | None = None
    batch_ids: Annotated[list[UUID], Field(max_length=CHUNK_ITEMS)] = []
    disbursement_ids: Annotated[list[PublisherId], Field(max_length=CHUNK_ITEMS)] = Field(
        default=[], description="needs envelope_id"
    )


class RetryHeld(Command):
    """funds: pay again those whom the bank has definitely refused, within one envelope. Empty: all refused."""

    TYPE = "almoner.operator.RetryHeld.v1"
    envelope_id: UUID
    disbursement_ids: Annotated[list[PublisherId], Field(max_length=CHUNK_ITEMS)] = []


class Repay(Command):
    """funds: pay disbursements of one envelope again, all or none: those whose payment was reversed and those who were resolved
    only after their money had been given back, from a further block of their sum; those whom the bank refused, from the money
    that is held for them. Each is paid to the newest address that is known."""

    TYPE = "almoner.operator.Repay.v1"
    envelope_id: UUID
    disbursement_ids: Annotated[list[PublisherId], Field(min_length=1, max_length=CHUNK_ITEMS)]


class SettleException(Command):
    """funds: an operator has dealt with exceptions, with evidence. They are closed, all or none; no money moves by that."""

    TYPE = "almoner.operator.SettleException.v1"
    ids: Annotated[list[int], Field(min_length=1, max_length=CHUNK_ITEMS, description="as listed")]
    evidence: Reason


class SettleUnknown(Command):
    """funds: an operator knows, with evidence, what became of a call whose answer was lost; or of a list of payments which the bank
    took (NO_STATEMENT_LINE) that whoever of it is on no statement will not be paid: they are held, and can be paid anew."""

    TYPE = "almoner.operator.SettleUnknown.v1"
    kind: Literal["block", "dispatch", "release"]
    subject: str = Field(description="as listed: <envelope>/<block>, the instruction's number, the release's number")
    outcome: Literal["happened", "did_not_happen"]
    reference: str = Field(default="", max_length=100, description="the bank's reference, where it happened")
    evidence: Reason


class RequestStatement(Command):
    """funds: ask the bank for what is booked on a sponsor's account and not stated yet. The statement comes as any other."""

    TYPE = "almoner.operator.RequestStatement.v1"
    sponsor: str = Field(default="", max_length=200, description="as ALMONER_FUNDS_SPONSORS names it; empty: all of them")


class ReleaseRequested(Command):
    """funds: give the held money of an envelope back to the sponsor."""

    TYPE = "almoner.operator.ReleaseRequested.v1"
    envelope_id: UUID


class RefreshReference(Command):
    """allocation: read warehouses and agencies from PBMS now; held zones that fit then are allocated."""

    TYPE = "almoner.operator.RefreshReference.v1"


class ReassignZone(Command):
    """allocation: give a zone of an envelope to another warehouse or agency, for those whom nobody was told of yet."""

    TYPE = "almoner.operator.ReassignZone.v1"
    envelope_id: UUID
    kind: Literal["warehouse", "agency"]
    zone_id: PublisherId = Field(description="a large zone for a warehouse, a small one for an agency")
    place_id: PublisherId


class SendNotices(Command):
    """notifications: send notices once more, each as a new one: sent ones that did not arrive, failed and suppressed ones."""

    TYPE = "almoner.operator.SendNotices.v1"
    notice_ids: Annotated[list[UUID], Field(min_length=1, max_length=CHUNK_ITEMS)]


class SettleNotices(Command):
    """notifications: an operator knows, with evidence, whether notices whose outcome is unknown were sent."""

    TYPE = "almoner.operator.SettleNotices.v1"
    notice_ids: Annotated[list[UUID], Field(min_length=1, max_length=CHUNK_ITEMS)]
    outcome: Literal["sent", "not_sent"]
    evidence: Reason


class SuppressSubject(Command):
    """notifications: tell somebody nothing any more, or lift that: a warehouse, an agency, or a person by beneficiary id."""

    TYPE = "almoner.operator.SuppressSubject.v1"
    kind: Literal["WAREHOUSE", "AGENCY", "BENEFICIARY"]
    subject: PublisherId
    suppressed: bool = True
