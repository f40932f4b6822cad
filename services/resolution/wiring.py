"""How resolution is put together."""

from libs.common.config import ServiceSettings
from libs.common.db import Database
from libs.common.outbox import Outbox
from libs.common.seal import Sealer
from libs.common.service import Parts
from services.resolution.adapters.spar import Spar
from services.resolution.config import Settings
from services.resolution.handlers import ROUTES, Resolve


def wire(settings: ServiceSettings, _database: Database) -> Parts:
    assert isinstance(settings, Settings)
    mapper = Spar(
        settings.mapper_url,
        {
            "BANK_ACCOUNT": settings.bank_account_pattern,
            "MOBILE_WALLET": settings.mobile_wallet_pattern,
            "EMAIL_WALLET": settings.email_wallet_pattern,
        },
        sender_id=settings.mapper_sender_id,
        sender_uri=settings.mapper_sender_uri,
        receiver_id=settings.mapper_receiver_id,
        max_items=settings.resolve_max_items,
    )
    sealer = Sealer(settings.seal_keys.get_secret_value(), settings.token_key.get_secret_value())
    return Parts(routes=ROUTES, callouts=[Resolve(mapper, sealer, Outbox(Settings.SERVICE))])
