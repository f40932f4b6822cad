"""The only file of funds that knows everything."""

from collections.abc import Sequence

from libs.common.commands import audited
from libs.common.config import ServiceSettings
from libs.common.consumer import Routes
from libs.common.contracts import allocation, ingestion, operator, resolution, scheduler
from libs.common.db import Database, Tx
from libs.common.envelope import Event
from libs.common.jobs import Job
from libs.common.outbox import Outbox
from libs.common.seal import Sealer
from libs.common.service import Measure, Parts
from services.funds.adapters.example_bank import ExampleBank
from services.funds.adapters.full_bank import FullBank
from services.funds.calls import Block, Check, Dispatch, Release
from services.funds.config import Settings
from services.funds.decisions import ADVANCE, STATEMENT, Decisions, settle_exceptions
from services.funds.gauges import read_books, read_money
from services.funds.handlers import Handlers
from services.funds.orders import Orders
from services.funds.ports import Bank
from services.funds.queries import Queries

# Bank adapters by the name that the configuration gives them: a new bank is a new line here and a file in adapters/.
ADAPTERS: dict[str, type[ExampleBank]] = {"example": ExampleBank, "full": FullBank}


def wire(settings: ServiceSettings, database: Database) -> Parts:
    assert isinstance(settings, Settings)
    sealer = Sealer(settings.seal_keys.get_secret_value(), settings.token_key.get_secret_value())
    outbox = Outbox("funds")
    banks: dict[str, Bank] = {code: ADAPTERS[bank.adapter](bank.url) for code, bank in settings.banks.items()}
    tokens = frozenset(sealer.token(sponsor.account) for sponsor in settings.sponsors.values())
    handlers = Handlers(settings, banks, sealer, outbox, tokens)
    decisions = Decisions(settings, banks, sealer, outbox)
    calls = [kind(settings, banks, sealer, outbox) for kind in (Check, Block, Dispatch, Release)]
    orders = Orders(settings, banks)
    envelopes, statements, commands = "ingestion.envelopes.v1", "ingestion.statements.v1", "funds.commands.v1"

    def on_tick(tx: Tx, events: Sequence[Event[scheduler.Tick]]) -> None:
        handlers.on_tick(tx, events)
        orders.on_tick(tx, events)

    return Parts(
        routes=Routes(
            {
                (envelopes, ingestion.EnvelopeAccepted): handlers.on_accepted,
                (envelopes, ingestion.EnvelopeCompleted): handlers.on_completed,
                (envelopes, ingestion.EnvelopeCancelling): handlers.on_envelope_cancelling,
                (envelopes, ingestion.DisbursementsCancelling): handlers.on_disbursements_cancelling,
                (envelopes, ingestion.EnvelopeRescheduling): handlers.on_rescheduling,
                ("resolution.batches.v1", resolution.BatchAddressesResolved): handlers.on_addresses_resolved,
                ("allocation.batches.v1", allocation.BatchAllocated): handlers.on_allocated,
                (statements, ingestion.StatementOpened): handlers.on_statement_opened,
                (statements, ingestion.StatementLines): handlers.on_statement_lines,
                ("scheduler.ticks.v1", scheduler.Tick): on_tick,
                (commands, operator.ReleaseRequested): audited(handlers.release_held),
                (commands, operator.RetryHeld): audited(handlers.retry_held),
                (commands, operator.Repay): audited(decisions.repay),
                (commands, operator.SettleUnknown): audited(handlers.settle_unknown),
                (commands, operator.SettleException): audited(settle_exceptions),
                (commands, operator.RequestStatement): audited(orders.request),
            }
        ),
        callouts=[*calls, orders, Queries(banks)],
        after_restore=calls,  # statements may be asked for, and what became of a list: they tell what was paid
        jobs=[Job(ADVANCE, decisions.advance), Job(STATEMENT, decisions.close_statement)],
        measures=[Measure("money", settings.money_seconds, read_money), Measure("books", settings.books_seconds, read_books)],
    )
