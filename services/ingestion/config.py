"""Settings of ingestion: `ALMONER_INGESTION_<NAME>`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, TypeAdapter, ValidationError, model_validator

from libs.common.config import ServiceSettings
from libs.common.envelope import pointer

Programmes = list[str] | Literal["*"]
Publishers = dict[str, Programmes]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


# The new one and the old one, so that neither side has to change at the same moment as the other.
Token = Annotated[SecretStr, Field(min_length=1)]
Tokens = Annotated[list[Token], BeforeValidator(_as_list), Field(min_length=1, max_length=2)]
SigningKey = Annotated[SecretStr, Field(min_length=16)]
SigningKeys = Annotated[list[SigningKey], BeforeValidator(_as_list), Field(min_length=1, max_length=2)]


class Settings(ServiceSettings):
    SERVICE: ClassVar[str] = "ingestion"

    mode: Literal["production", "open"] = Field(
        default="production", description="open: a source that is not among the publishers may publish for every programme"
    )
    publishers: Publishers = Field(
        default={},
        description='JSON {source: ["programme id", …] or "*"}: who may publish for which programmes; `[]`: statements only, '
        'which else only "*" may',
    )
    publishers_file: str = Field(default="", description="a file with the publishers, instead of the setting")
    schedule_max_days: int = Field(
        default=366, ge=0, le=36_500, description="how far ahead a schedule date may be; 0: today only"
    )
    linger_seconds: float = Field(default=5.0, ge=0, description="how long a batch waits to become full")
    parked_ttl_seconds: float = Field(default=86_400, gt=0, description="how long disbursements wait for their envelope")
    duplicate_beneficiary: Literal["warn", "refuse"] = Field(
        default="warn", description="a second disbursement for one beneficiary of an envelope"
    )
    statement_tokens: dict[str, Tokens] = Field(
        default={}, description='who may post statements, as JSON {bank: token}, or {bank: ["new token", "old token"]}'
    )
    statement_signing_keys: dict[str, SigningKeys] = Field(
        default={}, description='banks that sign what they post, as JSON {bank: key} or {bank: ["new key", "old key"]}'
    )
    statements_unnumbered: list[str] = Field(
        default=[],
        description="JSON list of those banks whose statements are not compared with one another: their numbers and balances "
        "do not follow each other",
    )
    read_statement_enabled: bool = Field(default=True, description="off: this replica leaves reading to others")
    read_statement_max_attempts: int = Field(
        default=3, ge=0, le=1000, description="a minute apart; then the statement waits for `almoner retry`. 0: no end"
    )
    statement_max_bytes: int = Field(default=64_000_000, ge=1_000_000, description="of one posted statement file")

    @model_validator(mode="after")
    def _can_be_used(self) -> Self:
        self.publishing()
        if both := sorted(self.statement_tokens.keys() & self.statement_signing_keys):
            # Whoever knows the token would not have to sign.
            name, other = self.variable("statement_tokens"), self.variable("statement_signing_keys")
            raise ValueError(f"{name} and {other}: A bank has tokens or signs; {both} are in both")
        if strangers := sorted(
            set(self.statements_unnumbered) - self.statement_tokens.keys() - self.statement_signing_keys.keys()
        ):
            raise ValueError(f"{self.variable('statements_unnumbered')}: {strangers} have neither tokens nor signing keys")
        return self

    def publishing(self) -> Mapping[str, Programmes]:
        """Who may publish for which programmes."""
        if not self.publishers_file:
            return self.publishers
        name = self.variable("publishers_file")
        if self.publishers:
            raise ValueError(f"{name}: Only one of it and {self.variable('publishers')} may be set")
        try:
            return TypeAdapter(Publishers).validate_json(Path(self.publishers_file).read_bytes())
        except OSError as error:
            raise ValueError(f"{name}={self.publishers_file!r}: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise ValueError(f"{name}={self.publishers_file!r}: {first['msg']} at {pointer(first['loc']) or '/'}") from None
