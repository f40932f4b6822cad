"""The only file of allocation that knows everything."""

from functools import partial

from libs.common.commands import audited
from libs.common.config import ServiceSettings
from libs.common.consumer import Routes
from libs.common.contracts import funds, ingestion, operator, resolution, scheduler
from libs.common.db import Database
from libs.common.jobs import Job
from libs.common.outbox import Outbox
from libs.common.seal import Sealer
from libs.common.service import Parts
from services.allocation.adapters import topic
from services.allocation.adapters.pbms import PbmsDatabase
from services.allocation.config import Settings
from services.allocation.decisions import ALLOCATE, ANNOUNCE, Decisions
from services.allocation.gauges import measures
from services.allocation.handlers import Handlers
from services.allocation.reference import REFIT, Reference


def wire(settings: ServiceSettings, database: Database) -> Parts:
    assert isinstance(settings, Settings)
    sealer = Sealer(settings.seal_keys.get_secret_value(), settings.token_key.get_secret_value())
    outbox = Outbox(Settings.SERVICE)
    pbms = PbmsDatabase(settings.pbms_url.get_secret_value()) if settings.reference_source == "pbms" else None
    handlers = Handlers(settings, sealer)
    decisions = Decisions(settings, sealer, outbox)
    reference = Reference(settings, pbms, topic.read, sealer, outbox)
    envelopes, commands = "ingestion.envelopes.v1", "allocation.commands.v1"
    return Parts(
        routes=Routes(
            {
                (envelopes, ingestion.EnvelopeAccepted): handlers.on_accepted,
                (envelopes, ingestion.EnvelopeAmended): handlers.on_amended,
                (envelopes, ingestion.EnvelopeCompleted): handlers.on_completed,
                (envelopes, ingestion.EnvelopeCancelling): handlers.on_envelope_cancelling,
                (envelopes, ingestion.DisbursementsCancelling): handlers.on_disbursements_cancelling,
                ("resolution.batches.v1", resolution.BatchZonesResolved): handlers.on_zones_resolved,
                ("funds.payments.v1", funds.PaymentsCancelled): handlers.on_payments_cancelled,
                ("scheduler.ticks.v1", scheduler.Tick): reference.on_tick,
                (commands, operator.RefreshReference): audited(reference.refresh),
                (commands, operator.ReassignZone): audited(decisions.reassign),
            },
            doors=dict.fromkeys(("reference.warehouses.v1", "reference.agencies.v1"), reference.receive),
        ),
        callouts=[reference],
        jobs=[Job(ALLOCATE, decisions.allocate), Job(ANNOUNCE, decisions.announce), Job(REFIT, reference.refit)],
        background=[partial(reference.at_start, database)],
        measures=measures(settings),
    )
