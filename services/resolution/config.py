"""What resolution is told: where mapper and registries are, how they let us in, how much they take, how addresses are written."""

import math
import re
from typing import Annotated, ClassVar, Literal, Self

import sqlalchemy
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from libs.common.config import (
    BackoffFirstSeconds,
    BackoffMaxSeconds,
    ClaimMaxCalls,
    Concurrency,
    Enabled,
    LeaseSeconds,
    MaxAttempts,
    PollSeconds,
    ServiceSettings,
)
from libs.common.workqueue import MARGIN_SECONDS
from services.resolution import jws

FIELDS = frozenset(
    "account_number bank_code branch_code mobile_number email_address wallet_provider_name wallet_provider_code fa_type".split()
)


def _pattern(essential: str) -> AfterValidator:
    def check(text: str) -> str:
        try:
            groups = set(re.compile(text).groupindex)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        if essential not in groups:
            raise ValueError(f"needs a group (?P<{essential}>…)")
        if groups - FIELDS:
            raise ValueError(f"has groups which are no part of an address: {', '.join(sorted(groups - FIELDS))}")
        return text

    return AfterValidator(check)


def _jwk(*, private: bool) -> AfterValidator:
    def check(text: SecretStr) -> SecretStr:
        if text.get_secret_value():
            jws.read_key(text.get_secret_value(), private=private)
        return text

    return AfterValidator(check)


def _database(text: SecretStr) -> SecretStr:
    if url := text.get_secret_value():
        try:
            driver = sqlalchemy.make_url(url).get_backend_name()
        except sqlalchemy.exc.ArgumentError:
            driver = ""
        if driver != "postgresql":
            raise ValueError("is no SQLAlchemy URL of a PostgreSQL database")
    return text


Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[^\x00]+$")]
NameOrNone = Annotated[str, Field(max_length=63, pattern=r"^[^\x00]*$")]


class RegistrySettings(BaseModel):
    """Where the people of a registry are looked up."""

    model_config = ConfigDict(extra="forbid")

    source: Literal["database", "topic"] = Field(
        default="database", description="database: its own, which is only read; topic: our copy of reference.people.v1"
    )
    url: Annotated[SecretStr, AfterValidator(_database)] = Field(
        default=SecretStr(""), description="SQLAlchemy URL of its database, for a role that may only SELECT"
    )
    table: Annotated[str, Field(min_length=1, max_length=127, pattern=r"^[^\x00]+$")] = Field(
        default="g2p_farmer_registry", description="a table or view, one row a person; its name, or schema.name"
    )
    id: Name = Field(default="link_registry_id", description="column of the beneficiary id: text, with an index")
    large_zone_id: Name = Field(default="large_area_id", description="column")
    large_zone_code: NameOrNone = Field(default="large_area_code", description="column; empty: there is none")
    small_zone_id: Name = Field(default="small_area_id", description="column")
    small_zone_code: NameOrNone = Field(default="small_area_code", description="column; empty: there is none")

    @model_validator(mode="after")
    def _a_database_has_a_url(self) -> Self:
        if (self.source == "database") != bool(self.url.get_secret_value()):
            raise ValueError("source database needs a url, source topic has none")
        return self


_BATCH_ITEMS = 1000
OptionalUrl = Annotated[str, Field(pattern="^(https?://.+)?$")]


class Settings(ServiceSettings):
    SERVICE: ClassVar[str] = "resolution"

    mapper_url: str = Field(pattern="^https?://", description="of the mapper; the path of its API is appended")
    mapper_api: Literal["spar1", "spar2"] = Field(
        default="spar1", description="spar1: SPAR 1.x, /sync/resolve; spar2: SPAR 2.x, /mapper/resolve"
    )
    mapper_sender_id: str = Field(default="almoner", description="who we are to the mapper; in SPAR 2.x our mnemonic")
    mapper_sender_uri: str = Field(default="", description="where we are; in SPAR 2.x our application's URL")
    mapper_receiver_id: str = Field(default="", description="who the mapper is; in SPAR 2.x the instance that is asked")

    mapper_oauth_url: OptionalUrl = Field(
        default="", description="gives tokens for client credentials; empty: no token is sent"
    )
    mapper_oauth_client_id: str = Field(default="", description="who we are to the token's server")
    mapper_oauth_client_secret: SecretStr = Field(default=SecretStr(""), description="belongs to the client id")
    mapper_oauth_scope: str = Field(default="", description="asked for with the token, if not empty")
    mapper_sign_key: Annotated[SecretStr, _jwk(private=True)] = Field(
        default=SecretStr(""),
        description="private JWK that signs requests (RS256, PS256, ES256, EdDSA, by its `alg` or its type); empty: see keymanager",
    )
    mapper_keymanager_url: OptionalUrl = Field(
        default="", description="of a keymanager that signs requests; /jwtSign is appended; empty: none"
    )
    mapper_keymanager_app_id: str = Field(default="ALMONER", description="whose key the keymanager signs with")
    mapper_keymanager_ref_id: str = Field(default="", description="which key of it")
    mapper_answer_key: Annotated[SecretStr, _jwk(private=False)] = Field(
        default=SecretStr(""),
        description="public JWK of the mapper: answers without its signature are refused; empty: all count",
    )

    resolve_enabled: Enabled = True
    resolve_claim_max_calls: ClaimMaxCalls = 100
    resolve_poll_seconds: PollSeconds = 0.5
    resolve_max_items: int = Field(default=1000, ge=1, le=1000, description="people in one request")
    resolve_concurrency: int = Field(default=4, ge=1, le=100, description="calls at once, per replica")
    resolve_timeout_seconds: float = Field(default=20.0, gt=0, description="of one request; below shutdown_seconds")
    resolve_lease_seconds: float = Field(default=60.0, gt=0, description="of one call, all of its requests together")
    resolve_max_attempts: int = Field(default=10, ge=1, le=100, description="then the work is in ERROR, until `almoner retry`")
    resolve_backoff_first_seconds: float = Field(
        default=0.5, gt=0, description="wait after the first failure; doubles each time"
    )
    resolve_backoff_max_seconds: float = Field(
        default=60.0, gt=0, description="longest wait between two attempts, unless the mapper asks for more (Retry-After)"
    )
    resolve_calls_per_second: float = Field(default=0, ge=0, le=10_000, description="requests, per replica; 0: no limit")
    resolve_breaker_failures: int = Field(
        default=10, ge=0, description="requests in a row without an answer that pause all of this replica; 0: none do"
    )
    resolve_breaker_seconds: float = Field(
        default=30.0, gt=0, le=3600, description="at most, until one request tries whether the mapper is back"
    )

    registries: dict[str, RegistrySettings] = Field(
        default={},
        description='JSON: target registry of the envelope, or "default" -> where zones of people are looked up; '
        "a batch whose registry is not among them ends in ERROR",
    )
    locate_enabled: Enabled = True
    locate_claim_max_calls: ClaimMaxCalls = 100
    locate_poll_seconds: PollSeconds = 0.5
    locate_concurrency: Concurrency = 4
    locate_timeout_seconds: float = Field(
        default=20.0,
        gt=0,
        le=3600,
        description="of one look-up, which the registry's database ends then; below shutdown_seconds",
    )
    locate_lease_seconds: LeaseSeconds = 60.0
    locate_max_attempts: MaxAttempts = 10
    locate_backoff_first_seconds: BackoffFirstSeconds = 0.5
    locate_backoff_max_seconds: BackoffMaxSeconds = 60.0
    locate_calls_per_second: float = Field(default=0, ge=0, le=10_000, description="look-ups, per replica; 0: no limit")
    locate_breaker_failures: int = Field(
        default=10, ge=0, description="look-ups in a row without an answer that pause all of this replica; 0: none do"
    )
    locate_breaker_seconds: float = Field(
        default=30.0, gt=0, le=3600, description="at most, until one look-up tries whether the registry is back"
    )

    body_keep_days: int = Field(
        default=30, ge=0, le=3650, description="a batch is kept so long after all were resolved, for addresses to be corrected"
    )
    sweep_seconds: float = Field(default=3600.0, gt=0, le=86_400, description="between two looks for batches kept long enough")

    # An address of SPAR 1.x is text whose ending says which of these takes it apart.
    bank_account_pattern: Annotated[
        str, _pattern("account_number"), Field(description="takes an address apart; needs account_number")
    ] = (
        r"^account_number:(?P<account_number>.*)\.branch_code:(?P<branch_code>.*)\.bank_code:(?P<bank_code>.*)"
        r"\.mobile_number:(?P<mobile_number>.*)\.email_address:(?P<email_address>.*)\.fa_type:(?P<fa_type>.*)$"
    )
    mobile_wallet_pattern: Annotated[
        str, _pattern("mobile_number"), Field(description="takes an address apart; needs mobile_number")
    ] = (
        r"^mobile_number:(?P<mobile_number>.*)\.wallet_provider_name:(?P<wallet_provider_name>.*)"
        r"\.wallet_provider_code:(?P<wallet_provider_code>.*)\.fa_type:(?P<fa_type>.*)$"
    )
    email_wallet_pattern: Annotated[
        str, _pattern("email_address"), Field(description="takes an address apart; needs email_address")
    ] = (
        r"^email_address:(?P<email_address>.*)\.wallet_provider_name:(?P<wallet_provider_name>.*)"
        r"\.wallet_provider_code:(?P<wallet_provider_code>.*)\.fa_type:(?P<fa_type>.*)$"
    )

    @model_validator(mode="after")
    def _one_way_to_sign(self) -> Self:
        if self.mapper_sign_key.get_secret_value() and self.mapper_keymanager_url:
            names = f"{self.variable('mapper_sign_key')} and {self.variable('mapper_keymanager_url')}"
            raise ValueError(f"{names}: Only one of them can sign; the other should be empty")
        return self

    @model_validator(mode="after")
    def _tokens_need_credentials(self) -> Self:
        for name in ("mapper_oauth_client_id", "mapper_oauth_client_secret"):
            value = getattr(self, name)
            if self.mapper_oauth_url and not (value.get_secret_value() if isinstance(value, SecretStr) else value):
                raise ValueError(f"{self.variable(name)}: Should not be empty where {self.variable('mapper_oauth_url')} is set")
        return self

    @model_validator(mode="after")
    def _turns_come_within_the_lease(self) -> Self:
        """Or requests would wait for their turn until they may not be sent any more."""
        of_batch = {"resolve": math.ceil(_BATCH_ITEMS / self.resolve_max_items), "locate": 1}
        for kind, in_batch in of_batch.items():
            limits = self.limits(kind)
            requests = limits.concurrency * in_batch
            left_seconds = limits.lease_seconds - limits.timeout_seconds - MARGIN_SECONDS
            if limits.calls_per_second and requests / limits.calls_per_second > left_seconds:
                name = f"{kind}_calls_per_second"
                raise ValueError(
                    f"{self.variable(name)}={limits.calls_per_second}: Should let {requests} requests"
                    f" ({kind}_concurrency times those of a batch) pass within {left_seconds:g} s ({kind}_lease_seconds less"
                    f" {kind}_timeout_seconds and {MARGIN_SECONDS:g})"
                )
        return self
