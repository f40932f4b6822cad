"""Notifications' contracts: who was told what."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from libs.common.contracts.base import CHUNK_ITEMS, BatchHeader, Code, Count, EventData, Part

Kind = Literal["WAREHOUSE", "AGENCY", "BENEFICIARY"]
Channel = Literal["novu", "smtp", "file"]


class Notice(Part):
    notice_id: UUID
    subject: str = Field(max_length=200, description="warehouse or agency id, or disbursement id")


class NoticeWithReason(Notice):
    reason: Code
    message: str = Field(default="", max_length=500, description="the provider's words, without addresses")


class _Notices(EventData):
    """A chunk of notices of one batch and kind which took the same step."""

    header: BatchHeader
    kind: Kind
    count: Count


class _ByChannel(_Notices):
    channel: Channel


class NoticesSent(_ByChannel):
    """The provider has taken them."""

    TYPE = "almoner.notifications.NoticesSent.v1"
    items: Annotated[list[Notice], Field(min_length=1, max_length=CHUNK_ITEMS)]


class NoticesDelivered(_ByChannel):
    """The provider says that they have arrived."""

    TYPE = "almoner.notifications.NoticesDelivered.v1"
    items: Annotated[list[Notice], Field(min_length=1, max_length=CHUNK_ITEMS)]


class NoticesFailed(_ByChannel):
    """Refused by the provider, or bounced."""

    TYPE = "almoner.notifications.NoticesFailed.v1"
    items: Annotated[list[NoticeWithReason], Field(min_length=1, max_length=CHUNK_ITEMS)]


class NoticesUnknown(_ByChannel):
    """Handed over, outcome not known; never sent again by itself."""

    TYPE = "almoner.notifications.NoticesUnknown.v1"
    items: Annotated[list[NoticeWithReason], Field(min_length=1, max_length=CHUNK_ITEMS)]


class NoticesSuppressed(_Notices):
    """Not sent: NO_CONTACT, SUPPRESSED (by configuration) or SUBJECT_SUPPRESSED (by an operator)."""

    TYPE = "almoner.notifications.NoticesSuppressed.v1"
    items: Annotated[list[NoticeWithReason], Field(min_length=1, max_length=CHUNK_ITEMS)]
