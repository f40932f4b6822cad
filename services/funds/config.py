"""Settings of funds: ALMONER_FUNDS_*."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from libs.common.config import ServiceSettings

Concurrency = Annotated[int, Field(ge=1, le=64)]
Attempts = Annotated[int, Field(ge=1, le=100)]
Seconds = Annotated[float, Field(gt=0, le=3600)]


class BankSettings(BaseModel):
    """How a bank is reached. The adapter knows its wire format and what it declares of each verb."""

    adapter: Literal["example", "full"]
    url: str = Field(pattern="^https?://")


class Sponsor(BaseModel):
    """The account from which a programme's benefit is paid."""

    bank: str = Field(description="a code of ALMONER_FUNDS_BANKS")
    account: str = Field(min_length=1, max_length=34)
    account_type: str = ""
    branch_code: str = ""


class Settings(ServiceSettings):
    SERVICE = "funds"

    banks: dict[str, BankSettings] = Field(description="JSON: bank code -> {adapter, url}")
    sponsors: dict[str, Sponsor] = Field(description='JSON: "<programme id>/<benefit code id>" or "default" -> account')
    incarnation: int = Field(default=0, ge=0, le=1295, description="counted up after a restore; part of every reference")
    max_chunk_instructions: int = Field(default=20, ge=1, description="cancelled in one transaction")

    check_concurrency: Concurrency = 4
    check_timeout_seconds: Seconds = 15
    check_lease_seconds: Seconds = 30
    check_max_attempts: Attempts = 3
    check_backoff_first_seconds: Seconds = 1
    check_backoff_max_seconds: Seconds = 300
    block_concurrency: Concurrency = 4
    block_timeout_seconds: Seconds = 25
    block_lease_seconds: Seconds = 60
    block_max_attempts: Attempts = 3
    block_backoff_first_seconds: Seconds = 1
    block_backoff_max_seconds: Seconds = 300
    dispatch_concurrency: Concurrency = 4
    dispatch_timeout_seconds: Seconds = 25
    dispatch_lease_seconds: Seconds = 60
    dispatch_max_attempts: Attempts = 3
    dispatch_backoff_first_seconds: Seconds = 1
    dispatch_backoff_max_seconds: Seconds = 300
    release_concurrency: Concurrency = 4
    release_timeout_seconds: Seconds = 25
    release_lease_seconds: Seconds = 60
    release_max_attempts: Attempts = 3
    release_backoff_first_seconds: Seconds = 1
    release_backoff_max_seconds: Seconds = 300

    @model_validator(mode="after")
    def _sponsors_have_banks(self) -> Self:
        for name, sponsor in self.sponsors.items():
            if sponsor.bank not in self.banks:
                raise ValueError(f"sponsor {name!r} names bank {sponsor.bank!r}, which is not among {sorted(self.banks)}")
        return self

    def sponsor(self, programme_id: str, benefit_code_id: str) -> Sponsor | None:
        """Exact, or the default; never by prefix. None: nobody has said who pays for this."""
        return self.sponsors.get(f"{programme_id}/{benefit_code_id}") or self.sponsors.get("default")
