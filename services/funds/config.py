"""Settings of funds: ALMONER_FUNDS_*."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

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
    TimeoutSeconds,
)

GaugeSeconds = Annotated[float, Field(gt=0, le=300)]  # an alert says when gauges are older than 900 s


class BankSettings(BaseModel):
    """How a bank is reached. The adapter knows its wire format and what it declares of each verb."""

    model_config = ConfigDict(extra="forbid")

    adapter: Literal["example", "full"] = Field(description="which wire format the bank speaks")
    url: str = Field(pattern="^https?://", description="its base")


class Sponsor(BaseModel):
    """The account from which a programme's benefit is paid."""

    model_config = ConfigDict(extra="forbid")

    bank: str = Field(description="a code of ALMONER_FUNDS_BANKS")
    account: str = Field(min_length=1, max_length=34, description="its number, as the bank writes it")


class Settings(ServiceSettings):
    SERVICE = "funds"
    REQUESTS = dict.fromkeys(("block", "dispatch", "release"), 2)  # a bank with keys is asked first what became of a call

    banks: dict[str, BankSettings] = Field(description="JSON: bank code -> {adapter, url}")
    sponsors: dict[str, Sponsor] = Field(description='JSON: "<programme id>/<benefit code id>" or "default" -> account')
    pay_future_schedules: bool = Field(default=False, description="pay as soon as complete, before the schedule date")
    incarnation: int = Field(default=0, ge=0, le=1295, description="counted up after a restore; part of every reference")
    max_chunk_instructions: int = Field(default=20, ge=1, description="cancelled in one transaction")
    held_ttl_days: int = Field(default=0, ge=0, le=3650, description="held money goes back to the sponsor after it; 0: never")
    statement_days: int = Field(
        default=7,
        ge=0,
        le=3650,
        description="dispatched so long and on no statement: the exception NO_STATEMENT_LINE; 0: never",
    )

    position_seconds: float = Field(
        default=10,
        gt=0,
        le=3600,
        description="an envelope under way says its position when it has changed, once in so long at most",
    )

    money_seconds: GaugeSeconds = Field(default=30, description="between two looks at held and unknown money, for /metrics")
    books_seconds: GaugeSeconds = Field(default=120, description="between two looks at the balance of envelopes, for /metrics")

    check_enabled: Enabled = True
    check_concurrency: Concurrency = 4
    check_claim_max_calls: ClaimMaxCalls = 100
    check_poll_seconds: PollSeconds = 0.5
    check_timeout_seconds: TimeoutSeconds = 15
    check_lease_seconds: LeaseSeconds = 30
    check_max_attempts: MaxAttempts = 3
    check_backoff_first_seconds: BackoffFirstSeconds = 1
    check_backoff_max_seconds: BackoffMaxSeconds = 300
    block_enabled: Enabled = True
    block_concurrency: Concurrency = 4
    block_claim_max_calls: ClaimMaxCalls = 100
    block_poll_seconds: PollSeconds = 0.5
    block_timeout_seconds: TimeoutSeconds = 10
    block_lease_seconds: LeaseSeconds = 60
    block_max_attempts: MaxAttempts = 3
    block_backoff_first_seconds: BackoffFirstSeconds = 1
    block_backoff_max_seconds: BackoffMaxSeconds = 300
    dispatch_enabled: Enabled = True
    dispatch_concurrency: Concurrency = 4
    dispatch_claim_max_calls: ClaimMaxCalls = 100
    dispatch_poll_seconds: PollSeconds = 0.5
    dispatch_timeout_seconds: TimeoutSeconds = 10
    dispatch_lease_seconds: LeaseSeconds = 60
    dispatch_max_attempts: MaxAttempts = 3
    dispatch_backoff_first_seconds: BackoffFirstSeconds = 1
    dispatch_backoff_max_seconds: BackoffMaxSeconds = 300
    order_enabled: Enabled = True
    order_concurrency: Concurrency = 2
    order_claim_max_calls: ClaimMaxCalls = 100
    order_poll_seconds: PollSeconds = 0.5
    order_timeout_seconds: TimeoutSeconds = 20
    order_lease_seconds: LeaseSeconds = 60
    order_max_attempts: MaxAttempts = 5
    order_backoff_first_seconds: BackoffFirstSeconds = 1
    order_backoff_max_seconds: BackoffMaxSeconds = 300
    query_enabled: Enabled = True
    query_concurrency: Concurrency = 2
    query_claim_max_calls: ClaimMaxCalls = 100
    query_poll_seconds: PollSeconds = 0.5
    query_timeout_seconds: TimeoutSeconds = 10
    query_lease_seconds: LeaseSeconds = 60
    query_max_attempts: MaxAttempts = 5
    query_backoff_first_seconds: BackoffFirstSeconds = 1
    query_backoff_max_seconds: BackoffMaxSeconds = 300
    release_enabled: Enabled = True
    release_concurrency: Concurrency = 4
    release_claim_max_calls: ClaimMaxCalls = 100
    release_poll_seconds: PollSeconds = 0.5
    release_timeout_seconds: TimeoutSeconds = 10
    release_lease_seconds: LeaseSeconds = 60
    release_max_attempts: MaxAttempts = 3
    release_backoff_first_seconds: BackoffFirstSeconds = 1
    release_backoff_max_seconds: BackoffMaxSeconds = 300

    @field_validator("sponsors")
    @classmethod
    def _have_banks(cls, sponsors: dict[str, Sponsor], known: ValidationInfo) -> dict[str, Sponsor]:
        banks = known.data.get("banks")  # not there: wrong themselves, and named so
        for name, sponsor in sponsors.items():
            if name != "default" and "/" not in name:
                raise ValueError(f'sponsor {name!r} is neither "default" nor "<programme id>/<benefit code id>"')
            if banks is not None and sponsor.bank not in banks:
                raise ValueError(f"sponsor {name!r} names bank {sponsor.bank!r}, which is not among {sorted(banks)}")
        return sponsors

    def sponsor(self, programme_id: str, benefit_code_id: str) -> Sponsor | None:
        """Exact, or the default; never by prefix. None: nobody has said who pays for this."""
        return self.sponsors.get(f"{programme_id}/{benefit_code_id}") or self.sponsors.get("default")
