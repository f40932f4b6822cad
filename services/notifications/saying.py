"""What became of notices, as events: facts of one batch, kind and step, in chunks that fit."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from libs.common.contracts.base import CHUNK_ITEMS, BatchHeader, EventData
from libs.common.contracts.notifications import (
    NoticesDelivered,
    NoticesFailed,
    NoticesSent,
    NoticesSuppressed,
    NoticesUnknown,
)
from libs.common.envelope import Cause
from libs.common.outbox import Outgoing, outgoing
from services.notifications.domain import Kind
from services.notifications.store import Changed

_SAID: Mapping[str, type[EventData]] = {
    "SENT": NoticesSent,
    "FAILED": NoticesFailed,
    "UNKNOWN": NoticesUnknown,
    "SUPPRESSED": NoticesSuppressed,
}


def said(
    header: BatchHeader,
    kind: Kind,
    channel: str | None,
    changed: Sequence[Changed],
    cause: Cause,
    *,
    delivered: bool = False,
) -> list[Outgoing]:
    """Events for notices of one batch and kind, by what they became (`delivered`: that they have arrived)."""
    events = []
    for state, of_state in groupby(sorted(changed, key=lambda one: one.state), key=lambda one: one.state):
        model = NoticesDelivered if delivered else _SAID.get(state)
        found = list(of_state)
        for start in range(0, len(found) if model else 0, CHUNK_ITEMS):
            some = found[start : start + CHUNK_ITEMS]
            assert model is not None
            body: dict[str, Any] = {"header": header, "kind": kind, "channel": channel, "count": len(some)}
            with_reason = model not in (NoticesSent, NoticesDelivered)
            body["items"] = [_item(one, with_reason=with_reason) for one in some]
            # Which notices and why: that fact is said once, and again with the same id where it has to be.
            reasons = sorted({one.code for one in some}) if with_reason else []
            identity = [str(one.notice_id) for one in some]
            events.append(outgoing(model.model_validate(body), header.batch_id, cause, *reasons, *identity))
    return events


def _item(one: Changed, *, with_reason: bool) -> dict[str, Any]:
    item: dict[str, Any] = {"notice_id": one.notice_id, "subject": one.subject}
    return {**item, "reason": one.code, "message": one.message} if with_reason else item
