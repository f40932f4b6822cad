"""Settings of notifications: ALMONER_NOTIFICATIONS_*: by which channel whom, and how each channel is reached."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, SecretStr, model_validator

from libs.common.config import (
    BackoffFirstSeconds,
    BackoffMaxSeconds,
    ClaimMaxCalls,
    Concurrency,
    Enabled,
    LeaseSeconds,
    PollSeconds,
    ServiceSettings,
    TimeoutSeconds,
)
from libs.common.workqueue import MARGIN_SECONDS

ChannelName = Literal["novu", "smtp", "file", "none"]
MaxAttempts = Annotated[
    int,
    Field(
        ge=1,
        le=100,
        description="then the work is in ERROR, until `almoner retry`; while the provider is away none is used up",
    ),
]
CallsPerSecond = Annotated[
    float,
    Field(ge=0, le=10_000, description="requests (mails, files), of each replica by itself; 0: no limit"),
]
BreakerFailures = Annotated[int, Field(ge=0, description="in a row without an answer pause this replica's calls; 0: none do")]
BreakerSeconds = Annotated[
    float, Field(gt=0, le=3600, description="at most, until one call tries whether the other side is back")
]
Items = Annotated[int, Field(ge=1, le=100, description="notices in one mailing")]
Texts = dict[str, str]


class Settings(ServiceSettings):
    SERVICE: ClassVar[str] = "notifications"

    warehouse_channel: ChannelName = Field(description="how warehouses are told; none: they are not, and that is recorded")
    agency_channel: ChannelName = Field(description="how agencies are told; none: they are not, and that is recorded")
    beneficiary_channel: ChannelName = Field(description="how people are told; none: they are not, and that is recorded")
    suppress_notifications: bool = Field(default=False, description="nobody is told; each notice is recorded as SUPPRESSED")
    agency_page_items: int = Field(default=200, ge=1, le=1000, description="entitlements in one notice to an agency")
    language: str = Field(default="en", pattern="^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$", description="a folder of the templates")
    template_folder: Path | None = Field(
        default=None, description="templates here come before ours: <language>/<kind>[.<channel>].(subject|text|html).j2"
    )
    programme_descriptions: Texts = Field(default={}, description="JSON: programme id -> what notices say of it")
    benefit_descriptions: Texts = Field(default={}, description="JSON: benefit code id -> what notices say of it")

    novu_url: Annotated[str, Field(pattern="^(https?://.+)?$")] = Field(
        default="", description="of Novu; /v1/events/trigger is appended; empty: there is none"
    )
    novu_api_key: SecretStr = Field(default=SecretStr(""), description="lets us in at Novu")
    novu_workflow_warehouse: str = Field(default="warehouse-notification", min_length=1, description="of Novu, by its trigger")
    novu_workflow_agency: str = Field(default="agency-notification", min_length=1, description="of Novu, by its trigger")
    novu_workflow_beneficiary: str = Field(
        default="beneficiary-notification", min_length=1, description="of Novu, by its trigger"
    )
    novu_webhook_secret: SecretStr = Field(
        default=SecretStr(""), description="signs what Novu says of deliveries; empty: nobody is believed"
    )
    novu_key_hours: float = Field(
        default=23, gt=0, le=168, description="so long Novu knows a key; an answer open for longer is unknown"
    )
    novu_max_items: Items = 100
    novu_enabled: Enabled = True
    novu_concurrency: Concurrency = 4
    novu_claim_max_calls: ClaimMaxCalls = 10
    novu_poll_seconds: PollSeconds = 0.5
    novu_timeout_seconds: TimeoutSeconds = 20
    novu_lease_seconds: LeaseSeconds = 60
    novu_max_attempts: MaxAttempts = 30
    novu_backoff_first_seconds: BackoffFirstSeconds = 1
    novu_backoff_max_seconds: BackoffMaxSeconds = 300
    novu_calls_per_second: CallsPerSecond = 0
    novu_breaker_failures: BreakerFailures = 5
    novu_breaker_seconds: BreakerSeconds = 30

    smtp_host: str = Field(default="", description="of the mail server; empty: there is none")
    smtp_port: int = Field(default=25, ge=1, le=65535, description="of the mail server")
    smtp_security: Literal["none", "starttls", "tls"] = Field(default="starttls", description="how the connection is protected")
    smtp_username: str = Field(default="", description="empty: we don't log in")
    smtp_password: SecretStr = Field(default=SecretStr(""), description="belongs to the user name")
    smtp_sender: Annotated[str, Field(pattern=r"^([^@\s<>]+@[A-Za-z0-9.-]+)?$")] = Field(
        default="", description="address that mails come from; its domain is part of their ids"
    )
    smtp_sender_name: str = Field(default="", max_length=100, description="shown before the address")
    smtp_max_items: Items = 10
    smtp_enabled: Enabled = True
    smtp_concurrency: Concurrency = 4
    smtp_claim_max_calls: ClaimMaxCalls = 10
    smtp_poll_seconds: PollSeconds = 0.5
    smtp_timeout_seconds: TimeoutSeconds = 20
    smtp_lease_seconds: LeaseSeconds = 300
    smtp_max_attempts: MaxAttempts = 30
    smtp_backoff_first_seconds: BackoffFirstSeconds = 2
    smtp_backoff_max_seconds: BackoffMaxSeconds = 300
    smtp_calls_per_second: CallsPerSecond = 0
    smtp_breaker_failures: BreakerFailures = 5
    smtp_breaker_seconds: BreakerSeconds = 30

    file_folder: Path | None = Field(default=None, description="each notice becomes a file <kind>-<notice id>.eml; empty: none")
    file_sender: Annotated[str, Field(pattern=r"^[^@\s<>]+@[A-Za-z0-9.-]+$")] = Field(
        default="almoner@localhost", description="address that the files name as their sender"
    )
    file_max_items: Items = 100
    file_enabled: Enabled = True
    file_concurrency: Concurrency = 2
    file_claim_max_calls: ClaimMaxCalls = 10
    file_poll_seconds: PollSeconds = 0.5
    file_timeout_seconds: TimeoutSeconds = 20
    file_lease_seconds: LeaseSeconds = 60
    file_max_attempts: MaxAttempts = 30
    file_backoff_first_seconds: BackoffFirstSeconds = 1
    file_backoff_max_seconds: BackoffMaxSeconds = 300
    file_calls_per_second: CallsPerSecond = 0
    file_breaker_failures: BreakerFailures = 5
    file_breaker_seconds: BreakerSeconds = 30

    @model_validator(mode="after")
    def _channels_can_be_reached(self) -> Self:
        needed = {"novu": ("novu_url", "novu_api_key"), "smtp": ("smtp_host", "smtp_sender"), "file": ("file_folder",)}
        for kind in ("warehouse", "agency", "beneficiary"):
            channel = getattr(self, f"{kind}_channel")
            for name in needed.get(channel, ()):
                value = getattr(self, name)
                if not (value.get_secret_value() if isinstance(value, SecretStr) else value):
                    chosen = f"{self.variable(f'{kind}_channel')}={channel}"
                    raise ValueError(f"{self.variable(name)}: Should not be empty where {chosen}")
        return self

    @model_validator(mode="after")
    def _turns_come_within_the_lease(self) -> Self:
        """Or notices would wait for their turn until they may not be sent any more."""
        at_once = {
            "novu": self.novu_concurrency,
            "smtp": self.smtp_concurrency * self.smtp_max_items,
            "file": self.file_concurrency * self.file_max_items,
        }
        for name, requests in at_once.items():
            limits = self.limits(name)
            left_seconds = limits.lease_seconds - limits.timeout_seconds - MARGIN_SECONDS
            if limits.calls_per_second and requests / limits.calls_per_second > left_seconds:
                raise ValueError(
                    f"{self.variable(f'{name}_calls_per_second')}={limits.calls_per_second}: Should let {requests} requests (all that"
                    f" go on at a time) pass within {left_seconds:g} s ({name}_lease_seconds less {name}_timeout_seconds and"
                    f" {MARGIN_SECONDS:g})"
                )
        return self

    @model_validator(mode="after")
    def _logs_in_completely(self) -> Self:
        if bool(self.smtp_username) != bool(self.smtp_password.get_secret_value()):
            names = f"{self.variable('smtp_username')} and {self.variable('smtp_password')}"
            raise ValueError(f"{names}: Should both be set, or neither")
        return self

    def channel(self, kind: str) -> str | None:
        """How notices of this kind go out; None: not at all."""
        name: str = getattr(self, f"{kind.lower()}_channel")
        return None if self.suppress_notifications or name == "none" else name

    def workflow(self, kind: str) -> str:
        name: str = getattr(self, f"novu_workflow_{kind.lower()}")
        return name
