"""A request to cancel or to amend that a fault of ours has set aside: payments must not overtake it.

Its envelope can't be told for certain, since reading it may be what failed. And a hold that ended with the redrive would end too
early, before the request is decided. So funds' whole dispatch is paused, and an operator resumes it.
"""

from libs.common.contracts import ingestion as c
from libs.common.contracts.operator import PauseStage
from libs.common.contracts.registry import TOPIC_BY_NAME
from libs.common.db import Tx
from libs.common.envelope import Cause, RawMessage, attributes
from libs.common.errors import Malformed
from libs.common.outbox import Outbox, outgoing

_STAGE = "dispatch"
_REQUESTS = {
    model.TYPE: model
    for model in (c.EnvelopeCancellationRequested, c.DisbursementsCancellationRequested, c.EnvelopeAmendmentRequested)
}


class Lost:
    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def pause_dispatch(self, tx: Tx, message: RawMessage) -> None:
        """If it is such a request, or can't be read and came where they come."""
        if not _REQUESTS.keys() & {model.TYPE for model in TOPIC_BY_NAME[message.topic].types}:
            return
        place = f"{message.topic}/{message.partition}/{message.offset}"
        try:
            attrs = attributes(message)
        except Malformed:
            cause, what = Cause(place), "a message that cannot be read"
        else:
            if attrs.type not in _REQUESTS:
                return
            cause, what = Cause(attrs.id, traceparent=attrs.traceparent), _REQUESTS[attrs.type].__name__
        why = f"{what} is a dead letter of ingestion ({place}): redrive or discard it, and resume when it is decided"
        command = PauseStage(who="ingestion", why=why, stage=_STAGE)
        self._outbox.append(tx, [outgoing(command, _STAGE, cause, place)], "funds")
