"""Settings of a service: `ALMONER_<SERVICE>_<NAME>`, else `ALMONER_<NAME>` for what all services share."""

import sys
from typing import Any, ClassVar

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from libs.common import workqueue
from libs.common.seal import parse_keys

_SECRET = ("key", "token", "secret", "password", "url")  # parts of a setting's name whose value is never shown


class ServiceSettings(BaseSettings):
    """What every service is told. Each service adds its own fields; SERVICE is its name."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")
    SERVICE: ClassVar[str]

    database_url: SecretStr = Field(description="SQLAlchemy URL; ALMONER_<SERVICE>_DATABASE_URL, else DATABASE_URL")
    topic_prefix: str = Field(default="", description="before every topic and group, where a cluster is shared")
    seal_keys: SecretStr = Field(description="name:base64 of 32 bytes, comma between; the first seals, all open")
    token_key: SecretStr = Field(min_length=16, description="key of the HMAC that names accounts")
    time_zone: str = Field(default="UTC", description="of programmes that don't say")
    http_host: str = "127.0.0.1"
    http_port: int = Field(default=0, ge=0, le=65535, description="health and metrics; 0 picks a free one")
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    pool_size: int = Field(default=10, ge=2, le=100, description="database connections")
    shutdown_seconds: float = Field(default=25.0, gt=0, description="drain, commit, leave the group; then the process ends")
    consume_max_messages: int = Field(default=500, ge=1, le=10_000, description="per transaction")
    consume_max_bytes: int = Field(default=2_000_000, ge=100_000, description="per transaction")
    consume_max_failures: int = Field(default=5, ge=1, description="of one message, before it is set aside")
    consume_breaker: int = Field(default=50, ge=1, description="dead letters in a row that pause consumption")

    @field_validator("seal_keys")
    @classmethod
    def _are_keys(cls, value: SecretStr) -> SecretStr:
        parse_keys(value.get_secret_value())
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        own = EnvSettingsSource(settings_cls, env_prefix=f"ALMONER_{cls.SERVICE.upper()}_")
        shared = EnvSettingsSource(settings_cls, env_prefix="ALMONER_")
        plain = EnvSettingsSource(settings_cls, env_prefix="")
        return init_settings, own, shared, _Only(settings_cls, plain, "database_url")

    @classmethod
    def load(cls) -> "ServiceSettings":
        """From the environment; a wrong setting ends the process with variable, value and rule."""
        try:
            return cls()
        except ValidationError as error:
            for fault in error.errors(include_url=False):
                name = "_".join(str(part) for part in fault["loc"])
                hidden = fault["type"] == "missing" or any(word in name.lower() for word in _SECRET)
                given = "" if hidden else f"={fault['input']!r}"
                print(f"ALMONER_{cls.SERVICE.upper()}_{name.upper()}{given}: {fault['msg']}", file=sys.stderr)
        except SettingsError as error:  # not JSON where JSON is due
            print(f"ALMONER_{cls.SERVICE.upper()}: {error}", file=sys.stderr)
        raise SystemExit(2)

    def limits(self, kind: str) -> workqueue.Limits:
        """The limits of one kind of outside call, from the fields `<kind>_concurrency`, `<kind>_timeout_seconds`, …"""
        given: dict[str, Any] = {
            name: getattr(self, f"{kind}_{name}")
            for name in workqueue.Limits.__dataclass_fields__
            if hasattr(self, f"{kind}_{name}")
        }
        return workqueue.Limits(**given)


class _Only(PydanticBaseSettingsSource):
    """One field of another source: DATABASE_URL is read without our prefix, and nothing else is."""

    def __init__(self, settings_cls: type[BaseSettings], source: EnvSettingsSource, field: str) -> None:
        super().__init__(settings_cls)
        self._source = source
        self._field = field

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self._source.get_field_value(field, field_name)

    def __call__(self) -> dict[str, Any]:
        return {name: value for name, value in self._source().items() if name == self._field}
