"""Every topic as data: who owns it, its key, its size, what travels on it, who reads it.

docs/events.md, docs/asyncapi.yaml and the topics of the local stack come from here; a test asserts that this is what the
services wire. Consumers name the services which read the topic; `publishers` stands for other systems.
"""

from dataclasses import dataclass

from libs.common.contracts import allocation, funds, ingestion, notifications, operator, reference, resolution, scheduler
from libs.common.contracts.base import EventData

DAY_MS = 24 * 3600 * 1000
EVENT_BYTES = 1_000_000  # what we publish stays below
# What `almoner books` compares with rows. The inbox knows events for 15 days, and must know all that a topic still has: the oldest
# are deleted with their segment, so that a segment must not last long.
BOOKS_MS, BOOKS_SEGMENT_MS = 14 * DAY_MS, DAY_MS // 2
INBOX_BYTES = 4_000_000  # so that ingestion, not the publisher's client, refuses what is too large
DLQ_BYTES = INBOX_BYTES + 65_536


@dataclass(frozen=True)
class Topic:
    name: str
    owner: str
    key: str
    types: tuple[type[EventData], ...]
    consumers: tuple[str, ...]
    partitions: int = 6
    retention_ms: int = 7 * DAY_MS
    segment_ms: int = 7 * DAY_MS  # Kafka's default; what is older than the retention goes by whole segments
    max_message_bytes: int = EVENT_BYTES + 65_536
    broker_timestamps: bool = False  # publishers' clocks are not ours
    door: bool = False  # others publish here: whatever it is, it is answered and never a dead letter
    compacted: bool = False  # the last message of each key is kept for ever

    @property
    def config(self) -> dict[str, str]:
        """The topic's settings as Kafka names them."""
        return {
            **({"cleanup.policy": "compact"} if self.compacted else {"cleanup.policy": "delete"}),
            "retention.ms": str(self.retention_ms),
            "segment.ms": str(self.segment_ms),
            "max.message.bytes": str(self.max_message_bytes),
            "message.timestamp.type": "LogAppendTime" if self.broker_timestamps else "CreateTime",
        }


def _inbox(name: str, key: str, *types: type[EventData]) -> Topic:
    # Publishers' data may be clear: short retention, restricted access.
    return Topic(
        f"ingestion.inbox-{name}.v1",
        "ingestion",
        key,
        types,
        ("ingestion",),
        retention_ms=2 * DAY_MS,
        max_message_bytes=INBOX_BYTES,
        broker_timestamps=True,
        door=True,
    )


def _reference(name: str, reader: str, key: str, *types: type[EventData]) -> Topic:
    return Topic(
        f"reference.{name}.v1",
        reader,
        key,
        types,
        (reader,),
        max_message_bytes=INBOX_BYTES,
        broker_timestamps=True,
        door=True,
        compacted=True,
    )


def _results(service: str) -> Topic:
    return Topic(f"{service}.results.v1", service, "the message's", (reference.ReferenceRejected,), ("publishers",))


def _commands(service: str, *types: type[EventData]) -> Topic:
    common = (operator.PauseStage, operator.ResumeStage, operator.RedriveDeadLetters, operator.DiscardDeadLetters)
    return Topic(f"{service}.commands.v1", service, "what it concerns", common + types, (service,), partitions=1)


def _audit(service: str) -> Topic:
    types = (operator.CommandHandled,)
    return Topic(f"{service}.audit.v1", service, "the command's", types, ("publishers",), 1, retention_ms=30 * DAY_MS)


def _dead_letters(service: str) -> Topic:
    return Topic(f"{service}.dlq.v1", service, "as it was", (), (), 1, retention_ms=30 * DAY_MS, max_message_bytes=DLQ_BYTES)


TOPICS: tuple[Topic, ...] = (
    _inbox(
        "envelopes",
        "envelope id",
        ingestion.EnvelopeSubmitted,
        ingestion.EnvelopeAmendmentRequested,
        ingestion.EnvelopeCancellationRequested,
        ingestion.EnvelopeStatusRequested,
    ),
    _inbox(
        "disbursements",
        "envelope id + chunk number",
        ingestion.DisbursementsAdded,
        ingestion.DisbursementsCancellationRequested,
    ),
    _inbox("statements", "account", ingestion.StatementSubmitted),
    Topic(
        "ingestion.results.v1",
        "ingestion",
        "envelope id",
        (ingestion.SubmissionAccepted, ingestion.SubmissionRejected, ingestion.EnvelopeStatus),
        ("publishers",),
    ),
    Topic(
        "ingestion.envelopes.v1",
        "ingestion",
        "envelope id",
        (
            ingestion.EnvelopeAccepted,
            ingestion.EnvelopeAmended,
            ingestion.EnvelopeRescheduling,
            ingestion.EnvelopeCompleted,
            ingestion.EnvelopeCancelling,
            ingestion.DisbursementsCancelling,
        ),
        ("funds", "allocation", "publishers"),
    ),
    Topic("ingestion.batches.v1", "ingestion", "batch id", (ingestion.BatchCut,), ("resolution",)),
    Topic(
        "ingestion.statements.v1",
        "ingestion",
        "account token",
        (ingestion.StatementOpened, ingestion.StatementLines),
        ("funds",),
        retention_ms=BOOKS_MS,
        segment_ms=BOOKS_SEGMENT_MS,
    ),
    _reference("people", "resolution", "registry/beneficiary id", reference.PersonLocated),
    _results("resolution"),
    Topic(
        "resolution.batches.v1",
        "resolution",
        "batch id",
        (resolution.BatchAddressesResolved, resolution.BatchZonesResolved),
        ("funds", "allocation", "notifications"),
    ),
    _reference("warehouses", "allocation", "warehouse id", reference.WarehouseListed),
    _reference("agencies", "allocation", "agency id", reference.AgencyListed),
    _results("allocation"),
    Topic(
        "allocation.batches.v1",
        "allocation",
        "batch id",
        (allocation.BatchAllocated,),
        ("funds", "notifications", "publishers"),
        retention_ms=BOOKS_MS,
        segment_ms=BOOKS_SEGMENT_MS,
    ),
    Topic(
        "allocation.envelopes.v1",
        "allocation",
        "envelope id",
        (
            allocation.EnvelopeAllocated,
            allocation.GoodsCancelled,
            allocation.EntitlementsCancelled,
            allocation.ZoneReassigned,
        ),
        ("ingestion", "publishers"),
    ),
    Topic(
        "funds.envelopes.v1",
        "funds",
        "envelope id",
        (
            funds.FundsChecked,
            funds.FundsShort,
            funds.FundsBlocked,
            funds.FundsReleased,
            funds.EnvelopeCancelled,
            funds.DisbursementsCancelled,
            funds.RescheduleDecided,
            funds.EnvelopePosition,
            funds.EnvelopeSettled,
        ),
        ("ingestion", "publishers"),
        retention_ms=BOOKS_MS,
        segment_ms=BOOKS_SEGMENT_MS,
    ),
    Topic(
        "funds.payments.v1",
        "funds",
        "batch id",
        (
            funds.PaymentsDispatched,
            funds.PaymentsConfirmed,
            funds.PaymentsReversed,
            funds.PaymentsUnknown,
            funds.PaymentsHeld,
            funds.PaymentsRefused,
            funds.PaymentsCancelled,
        ),
        ("allocation", "notifications", "publishers"),
        retention_ms=BOOKS_MS,
        segment_ms=BOOKS_SEGMENT_MS,
    ),
    Topic("funds.statements.v1", "funds", "account token", (funds.StatementReconciled,), ("publishers",)),
    Topic(
        "notifications.notices.v1",
        "notifications",
        "batch id",
        (
            notifications.NoticesSent,
            notifications.NoticesDelivered,
            notifications.NoticesFailed,
            notifications.NoticesUnknown,
            notifications.NoticesSuppressed,
        ),
        ("publishers",),
    ),
    Topic("scheduler.ticks.v1", "scheduler", "job", (scheduler.Tick,), ("ingestion", "funds", "allocation"), partitions=1),
    _commands(
        "ingestion", operator.RetryWork, operator.CancelForPublisher, operator.AmendForPublisher, operator.HandInStatement
    ),
    _commands("resolution", operator.RetryWork, operator.ResolveHeld),
    _commands(
        "funds",
        operator.RetryWork,
        operator.RetryHeld,
        operator.Repay,
        operator.SettleUnknown,
        operator.SettleException,
        operator.ReleaseRequested,
        operator.RequestStatement,
    ),
    _commands("allocation", operator.RetryWork, operator.RefreshReference, operator.ReassignZone),
    _commands("notifications", operator.RetryWork, operator.SendNotices, operator.SettleNotices, operator.SuppressSubject),
    _commands("scheduler", operator.FireTick),
    _audit("ingestion"),
    _audit("resolution"),
    _audit("funds"),
    _audit("allocation"),
    _audit("notifications"),
    _audit("scheduler"),
    _dead_letters("ingestion"),
    _dead_letters("resolution"),
    _dead_letters("funds"),
    _dead_letters("allocation"),
    _dead_letters("notifications"),
    _dead_letters("scheduler"),
)

TOPIC_BY_NAME = {topic.name: topic for topic in TOPICS}
TYPES: dict[str, type[EventData]] = {model.TYPE: model for topic in TOPICS for model in topic.types}


def topic_of(owner: str, model: type[EventData]) -> str:
    """The topic on which a service publishes this type."""
    for topic in TOPICS:
        if topic.owner == owner and model in topic.types:
            return topic.name
    raise LookupError(f"no topic of {owner} carries {model.TYPE}")
