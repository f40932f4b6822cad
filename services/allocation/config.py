"""Settings of allocation: ALMONER_ALLOCATION_*."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, SecretStr, model_validator

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


class Settings(ServiceSettings):
    SERVICE: ClassVar[str] = "allocation"

    reference_source: Literal["pbms", "topic"] = Field(
        default="pbms",
        description="where warehouses and agencies come from: the database of PBMS, or the topics reference.warehouses.v1 and "
        "reference.agencies.v1 (which are read in both cases, so that this can be changed)",
    )
    pbms_url: SecretStr = Field(
        default=SecretStr(""),
        description="SQLAlchemy URL of PBMS, for a role that may only SELECT; needed where it is the source",
    )
    announce_delay_seconds: Annotated[float, Field(ge=0, le=30 * 86_400)] = Field(
        default=0, description="between the plan and BatchAllocated, for operators who want to look at it and reassign zones"
    )
    max_chunk_batches: int = Field(default=20, ge=1, le=1000, description="planned or announced in one transaction")

    reference_enabled: Enabled = True
    reference_concurrency: Concurrency = 1
    reference_claim_max_calls: ClaimMaxCalls = 1
    reference_poll_seconds: PollSeconds = 0.5
    reference_timeout_seconds: TimeoutSeconds = 20
    reference_lease_seconds: LeaseSeconds = 60
    reference_max_attempts: MaxAttempts = 10
    reference_backoff_first_seconds: BackoffFirstSeconds = 1
    reference_backoff_max_seconds: BackoffMaxSeconds = 60

    @model_validator(mode="after")
    def _knows_its_source(self) -> Self:
        if self.reference_source == "pbms" and not self.pbms_url.get_secret_value():
            raise ValueError(f"{self.variable('pbms_url')}: Should not be empty where places come from PBMS")
        return self
