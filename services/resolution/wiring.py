"""How resolution is put together."""

from libs.common.config import ServiceSettings
from libs.common.consumer import Routes
from libs.common.db import Database
from libs.common.outbox import Outbox
from libs.common.seal import Sealer
from libs.common.service import Parts
from services.resolution import jws
from services.resolution.adapters.access import Access, Keymanager, Tokens
from services.resolution.adapters.registries import Columns, DatabaseRegistry, Registries
from services.resolution.adapters.spar import Spar
from services.resolution.adapters.spar2 import Spar2
from services.resolution.calls import Locate, Resolve
from services.resolution.config import RegistrySettings, Settings
from services.resolution.doors import People
from services.resolution.handlers import HANDLERS, Sweep
from services.resolution.ports import Registry

MAPPERS: dict[str, type[Spar]] = {"spar1": Spar, "spar2": Spar2}


def wire(settings: ServiceSettings, database: Database) -> Parts:
    assert isinstance(settings, Settings)
    mapper = MAPPERS[settings.mapper_api](
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
        access=_access(settings),
    )
    sealer = Sealer(settings.seal_keys.get_secret_value(), settings.token_key.get_secret_value())
    outbox = Outbox(Settings.SERVICE)
    people = People(database, outbox)
    registries = Registries({name: _registry(settings, one, people) for name, one in settings.registries.items()})
    return Parts(
        routes=Routes(HANDLERS, {"reference.people.v1": people.receive}),
        callouts=[Resolve(mapper, sealer, outbox), Locate(registries, sealer, outbox)],
        background=[Sweep(database, settings.body_keep_days, settings.sweep_seconds).run],
    )


def _registry(settings: Settings, registry: RegistrySettings, people: People) -> Registry:
    if registry.source == "topic":
        return people
    return DatabaseRegistry(
        registry.url.get_secret_value(),
        Columns(**registry.model_dump(include=set(Columns.__dataclass_fields__))),
        concurrency=settings.locate_concurrency,
        timeout_seconds=settings.locate_timeout_seconds,
    )


def _access(settings: Settings) -> Access:
    tokens: Tokens | None = None
    signer: jws.Key | Keymanager | None = None
    if settings.mapper_oauth_url:
        secret = settings.mapper_oauth_client_secret.get_secret_value()
        tokens = Tokens(settings.mapper_oauth_url, settings.mapper_oauth_client_id, secret, settings.mapper_oauth_scope)
    if settings.mapper_keymanager_url:
        keymanager = settings.mapper_keymanager_url, settings.mapper_keymanager_app_id, settings.mapper_keymanager_ref_id
        signer = Keymanager(*keymanager)
    elif sign_key := settings.mapper_sign_key.get_secret_value():
        signer = jws.read_key(sign_key, private=True)
    answer_key = settings.mapper_answer_key.get_secret_value()
    return Access(tokens, signer, jws.read_key(answer_key, private=False) if answer_key else None)
