"""The only place that knows all parts of ingestion."""

from typing import cast

from libs.common.clock import utc_now
from libs.common.commands import audited
from libs.common.config import ServiceSettings
from libs.common.consumer import Routes
from libs.common.contracts import allocation, funds, operator, scheduler
from libs.common.db import Database
from libs.common.jobs import Job
from libs.common.outbox import Outbox
from libs.common.seal import Sealer
from libs.common.service import Parts
from services.ingestion.adapters.http import statement_route
from services.ingestion.config import Settings
from services.ingestion.cutting import CUT, EXPIRE_PARKED, Cutting
from services.ingestion.doors import INBOX_DISBURSEMENTS, INBOX_ENVELOPES, Doors
from services.ingestion.handlers import Handlers
from services.ingestion.lost import Lost
from services.ingestion.statements import READ_STATEMENT, Statements


def wire(settings: ServiceSettings, database: Database) -> Parts:
    settings = cast(Settings, settings)
    sealer = Sealer(settings.seal_keys.get_secret_value(), settings.token_key.get_secret_value())
    outbox = Outbox(settings.SERVICE)
    statements = Statements(sealer, outbox)
    doors = Doors(settings, sealer, outbox, statements, utc_now)
    cutting = Cutting(settings, sealer, outbox)
    handlers = Handlers(settings, outbox, utc_now)
    return Parts(
        Routes(
            {
                ("funds.envelopes.v1", funds.FundsChecked): handlers.on_checked,
                ("funds.envelopes.v1", funds.FundsShort): handlers.on_short,
                ("funds.envelopes.v1", funds.FundsBlocked): handlers.on_blocked,
                ("funds.envelopes.v1", funds.DisbursementsCancelled): handlers.on_disbursements_cancelled,
                ("funds.envelopes.v1", funds.EnvelopeCancelled): handlers.on_envelope_cancelled,
                ("funds.envelopes.v1", funds.RescheduleDecided): handlers.on_reschedule_decided,
                ("funds.envelopes.v1", funds.EnvelopePosition): handlers.on_position,
                ("funds.envelopes.v1", funds.EnvelopeSettled): handlers.on_settled,
                ("allocation.envelopes.v1", allocation.EntitlementsCancelled): handlers.on_disbursements_cancelled,
                ("allocation.envelopes.v1", allocation.GoodsCancelled): handlers.on_goods_cancelled,
                ("allocation.envelopes.v1", allocation.EnvelopeAllocated): handlers.on_allocated,
                ("scheduler.ticks.v1", scheduler.Tick): handlers.on_tick,
                ("ingestion.commands.v1", operator.CancelForPublisher): audited(doors.ask_for_publisher),
                ("ingestion.commands.v1", operator.AmendForPublisher): audited(doors.ask_for_publisher),
                ("ingestion.commands.v1", operator.HandInStatement): audited(statements.handed_in),
            },
            {
                INBOX_ENVELOPES: doors.receive,
                INBOX_DISBURSEMENTS: doors.receive,
                "ingestion.inbox-statements.v1": doors.receive,
            },
            Lost(outbox).pause_dispatch,
        ),
        jobs=[
            Job(CUT, cutting.cut),
            Job(EXPIRE_PARKED, cutting.expire),
            Job(READ_STATEMENT, statements.read, settings.read_statement_max_attempts, settings.read_statement_enabled),
        ],
        http=[
            statement_route(
                database,
                statements,
                settings.statement_tokens,
                settings.statement_signing_keys,
                settings.statement_max_bytes,
                settings.statements_unnumbered,
            )
        ],
    )
