"""Settings of ingestion: `ALMONER_INGESTION_<NAME>`."""

from typing import ClassVar, Literal

from pydantic import Field, SecretStr

from libs.common.config import ServiceSettings


class Settings(ServiceSettings):
    SERVICE: ClassVar[str] = "ingestion"

    linger_seconds: float = Field(default=5.0, ge=0, description="how long a batch waits to become full")
    parked_ttl_seconds: float = Field(default=86_400, gt=0, description="how long disbursements wait for their envelope")
    duplicate_beneficiary: Literal["warn", "refuse"] = Field(
        default="warn", description="a second disbursement for one beneficiary of an envelope"
    )
    statement_tokens: dict[str, SecretStr] = Field(
        default={}, description='who may post statements, as JSON {"name": "token"}; nobody if empty'
    )
    statement_max_bytes: int = Field(default=64_000_000, ge=1_000_000, description="of one posted statement file")
