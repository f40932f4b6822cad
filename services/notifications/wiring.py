"""How notifications is put together."""

from libs.common.commands import audited
from libs.common.config import ServiceSettings
from libs.common.consumer import Routes
from libs.common.contracts import allocation, funds, operator, resolution
from libs.common.db import Database
from libs.common.jobs import Job
from libs.common.outbox import Outbox
from libs.common.seal import Sealer
from libs.common.service import Measure, Parts
from services.notifications.adapters.file import Folder
from services.notifications.adapters.novu import Novu
from services.notifications.adapters.smtp import Smtp
from services.notifications.adapters.webhook import webhook_route
from services.notifications.calls import Deliver
from services.notifications.config import Settings
from services.notifications.gauges import read_notices
from services.notifications.handlers import COMPOSE, SERVICE, Handlers
from services.notifications.ports import Channel
from services.notifications.rendering import Templates

_NOTICES_SECONDS = 30.0


def wire(settings: ServiceSettings, database: Database) -> Parts:
    assert isinstance(settings, Settings)
    sealer = Sealer(settings.seal_keys.get_secret_value(), settings.token_key.get_secret_value())
    outbox = Outbox(SERVICE)
    templates = Templates(settings.template_folder)
    channels = reachable(settings)
    templates.check(settings.language, [name for name, channel in channels.items() if channel.renders])
    handlers = Handlers(settings, outbox)
    payments, commands = "funds.payments.v1", "notifications.commands.v1"
    return Parts(
        routes=Routes(
            {
                ("allocation.batches.v1", allocation.BatchAllocated): handlers.on_allocated,
                ("resolution.batches.v1", resolution.BatchAddressesResolved): handlers.on_addresses,
                (payments, funds.PaymentsDispatched): handlers.on_payments,
                (payments, funds.PaymentsConfirmed): handlers.on_payments,
                (commands, operator.SendNotices): audited(handlers.send_again),
                (commands, operator.SettleNotices): audited(handlers.settle),
                (commands, operator.SuppressSubject): audited(handlers.suppress),
            }
        ),
        callouts=[Deliver(name, settings, channel, templates, sealer, outbox) for name, channel in channels.items()],
        jobs=[Job(COMPOSE, handlers.compose)],
        http=[webhook_route(database, handlers.delivered, settings.novu_webhook_secret)],
        measures=[Measure("notices", _NOTICES_SECONDS, read_notices)],
    )


def reachable(settings: Settings) -> dict[str, Channel]:
    """The channels that are configured, whether new notices go there or only what is left of former ones."""
    found: dict[str, Channel] = {}
    if settings.novu_url:
        api_key = settings.novu_api_key.get_secret_value()
        found["novu"] = Novu(settings.novu_url, api_key, settings.workflow, settings.novu_key_hours * 3600)
    if settings.smtp_host:
        found["smtp"] = Smtp(
            settings.smtp_host,
            settings.smtp_port,
            settings.smtp_security,
            settings.smtp_username,
            settings.smtp_password.get_secret_value(),
            settings.smtp_sender,
            settings.smtp_sender_name,
        )
    if settings.file_folder:
        found["file"] = Folder(settings.file_folder, settings.file_sender)
    return found
