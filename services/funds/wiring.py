"""The only file of funds that knows everything."""

from libs.common.commands import audited
from libs.common.config import ServiceSettings
from libs.common.consumer import Routes
from libs.common.contracts import ingestion, operator, resolution, scheduler
from libs.common.db import Database
from libs.common.jobs import Job
from libs.common.outbox import Outbox
from libs.common.seal import Sealer
from libs.common.service import Parts
from services.funds.calls import Block, Check, Dispatch, Release
from services.funds.config import Settings
from services.funds.decisions import ADAPTERS, Decisions
from services.funds.handlers import ADVANCE, STATEMENT, Handlers


def wire(settings: ServiceSettings, database: Database) -> Parts:
    assert isinstance(settings, Settings)
    sealer = Sealer(settings.seal_keys.get_secret_value(), settings.token_key.get_secret_value())
    outbox = Outbox("funds")
    banks = {code: ADAPTERS[bank.adapter](bank.url) for code, bank in settings.banks.items()}
    tokens = frozenset(sealer.token(sponsor.account) for sponsor in settings.sponsors.values())
    handlers = Handlers(settings, sealer, outbox, tokens)
    decisions = Decisions(settings, outbox)
    calls = [kind(settings, banks, sealer, outbox) for kind in (Check, Block, Dispatch, Release)]
    envelopes, statements, commands = "ingestion.envelopes.v1", "ingestion.statements.v1", "funds.commands.v1"
    return Parts(
        routes=Routes(
            {
                (envelopes, ingestion.EnvelopeAccepted): handlers.on_accepted,
                (envelopes, ingestion.EnvelopeCompleted): handlers.on_completed,
                (envelopes, ingestion.EnvelopeCancelling): handlers.on_envelope_cancelling,
                (envelopes, ingestion.DisbursementsCancelling): handlers.on_disbursements_cancelling,
                ("resolution.batches.v1", resolution.BatchAddressesResolved): handlers.on_addresses_resolved,
                (statements, ingestion.StatementOpened): handlers.on_statement_opened,
                (statements, ingestion.StatementLines): handlers.on_statement_lines,
                ("scheduler.ticks.v1", scheduler.Tick): handlers.on_tick,
                (commands, operator.ReleaseRequested): audited(handlers.release_held),
                (commands, operator.RetryHeld): audited(handlers.retry_held),
                (commands, operator.SettleUnknown): audited(handlers.settle_unknown),
            }
        ),
        callouts=calls,
        jobs=[Job(ADVANCE, decisions.advance), Job(STATEMENT, decisions.close_statement)],
    )
