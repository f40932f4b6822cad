"""Settings of a service: `ALMONER_<SERVICE>_<NAME>`, else `ALMONER_<NAME>` for what all services share.

A service does not start with a wrong setting, nor with a variable under its own prefix that it does not know: each is named,
with the rule. A shared name that is nearly one of ours is warned of only: other programs may read it.
"""

import difflib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from libs.common import workqueue
from libs.common.clock import known_time_zone
from libs.common.seal import parse_keys

PREFIX = "ALMONER_"
_SECRET = ("key", "token", "secret", "password", "url")  # parts of a setting's name whose value is never shown
# What Kubernetes puts into every pod for a Service that is called like one of ours ("almoner-funds").
_SERVICE_LINK = re.compile(r"SERVICE_HOST|SERVICE_PORT(_.*)?|PORT|PORT_[0-9]+_(TCP|UDP|SCTP)(_.*)?")


def _is_a_time_zone(value: str) -> str:
    if not known_time_zone(value):
        raise ValueError("is no time zone of the IANA database, such as Africa/Nairobi")
    return value


TimeZone = Annotated[str, AfterValidator(_is_a_time_zone)]

# The limits of one kind of outside call; a service has a field `<kind>_<limit>` for each it lets operators set.
Concurrency = Annotated[int, Field(ge=1, le=100, description="calls at once, per replica")]
TimeoutSeconds = Annotated[float, Field(gt=0, le=3600, description="of one request")]
LeaseSeconds = Annotated[
    float, Field(gt=0, le=3600, description="a claim whose process died is taken over after this; outlasts the time-out")
]
MaxAttempts = Annotated[int, Field(ge=1, le=100, description="then the work is in ERROR, until `almoner retry`")]
BackoffFirstSeconds = Annotated[float, Field(gt=0, le=3600, description="wait after the first failure; doubles each time")]
BackoffMaxSeconds = Annotated[float, Field(gt=0, le=3600, description="longest wait between two attempts")]
PollSeconds = Annotated[
    float,
    Field(gt=0, le=3600, description="between two looks for what has come due again; new work is begun at once"),
]
ClaimMaxCalls = Annotated[int, Field(ge=1, le=1000, description="claimed in one transaction, never more than there are slots")]
Enabled = Annotated[bool, Field(description="off: this replica leaves such work to others; it stays PENDING")]


class ServiceSettings(BaseSettings):
    """What every service is told. Each service adds its own fields; SERVICE is its name."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")
    SERVICE: ClassVar[str]
    REQUESTS: ClassVar[Mapping[str, int]] = {}  # kind of call -> how many requests, one after the other, it may take; else one

    database_url: SecretStr = Field(description="SQLAlchemy URL; ALMONER_<SERVICE>_DATABASE_URL, else DATABASE_URL")
    topic_prefix: str = Field(default="", description="before every topic and group, where a cluster is shared")
    seal_keys: SecretStr = Field(description="name:base64 of 32 bytes, comma between; the first seals, all open")
    token_key: SecretStr = Field(min_length=16, description="key of the HMAC that names accounts")
    time_zone: TimeZone = Field(default="UTC", description="of programmes that don't say")
    http_host: str = Field(default="127.0.0.1", description="address that health and metrics listen at")
    http_port: int = Field(default=0, ge=0, le=65535, description="health and metrics; 0 picks a free one")
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="what is logged, and worse")
    pool_size: int = Field(default=10, ge=2, le=100, description="database connections")
    shutdown_seconds: float = Field(
        default=25.0,
        gt=0,
        description="drain, commit, leave the group; then the process ends. Outlasts the longest call; where it runs, the grace "
        "between SIGTERM and SIGKILL (Kubernetes: terminationGracePeriodSeconds, 30 by default) must outlast it by 5 s",
    )
    measure_seconds: float = Field(
        default=5.0, gt=0, le=60, description="between two looks at what the gauges of /metrics show"
    )
    consume_max_messages: int = Field(default=500, ge=1, le=10_000, description="per transaction")
    consume_max_bytes: int = Field(default=2_000_000, ge=100_000, description="per transaction")
    consume_max_failures: int = Field(default=5, ge=1, description="of one message, before it is set aside")
    consume_breaker: int = Field(default=50, ge=1, description="dead letters in a row that pause consumption")
    jobs_poll_seconds: float = Field(default=0.25, gt=0, le=3600, description="between two looks for decisions that are due")
    jobs_max_subjects: int = Field(default=100, ge=1, le=10_000, description="decisions taken up in one look")

    @field_validator("seal_keys")
    @classmethod
    def _are_keys(cls, value: SecretStr) -> SecretStr:
        parse_keys(value.get_secret_value())
        return value

    @field_validator("database_url")
    @classmethod
    def _is_a_database(cls, value: SecretStr) -> SecretStr:
        try:
            url = make_url(value.get_secret_value())
        except ArgumentError:
            url = None
        if url is None or url.get_backend_name() != "postgresql":
            raise ValueError("must be postgresql://user:password@host:port/database")
        return value

    @classmethod
    def _kinds(cls) -> Iterator[str]:
        """The kinds of outside call this service makes."""
        return (name.removesuffix("_lease_seconds") for name in cls.model_fields if name.endswith("_lease_seconds"))

    @model_validator(mode="after")
    def _leases_outlast_calls(self) -> Self:
        for kind in self._kinds():
            limits = self.limits(kind)
            if limits.lease_seconds <= limits.timeout_seconds + workqueue.MARGIN_SECONDS:
                raise PydanticCustomError(
                    "lease",
                    "{lease}={seconds}: Should be more than {margin} s longer than {timeout}={timeout_seconds}",
                    {
                        "lease": self.variable(f"{kind}_lease_seconds"),
                        "seconds": limits.lease_seconds,
                        "margin": workqueue.MARGIN_SECONDS,
                        "timeout": self.variable(f"{kind}_timeout_seconds"),
                        "timeout_seconds": limits.timeout_seconds,
                    },
                )
        return self

    @model_validator(mode="after")
    def _stops_outlast_calls(self) -> Self:
        """A call that was begun just before the stop still has its answer: cut off, what it did would be unknown."""
        for kind in self._kinds():
            requests, timeout_seconds = self.REQUESTS.get(kind, 1), self.limits(kind).timeout_seconds
            if self.shutdown_seconds <= requests * timeout_seconds + workqueue.MARGIN_SECONDS:
                raise PydanticCustomError(
                    "shutdown",
                    "{shutdown}={seconds}: Should be more than {margin} s longer than {times}{timeout}={timeout_seconds}",
                    {
                        "shutdown": self.variable("shutdown_seconds"),
                        "seconds": self.shutdown_seconds,
                        "margin": workqueue.MARGIN_SECONDS,
                        "times": f"{requests} times " if requests > 1 else "",
                        "timeout": self.variable(f"{kind}_timeout_seconds"),
                        "timeout_seconds": timeout_seconds,
                    },
                )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        own = _Environment(settings_cls, env_prefix=f"{PREFIX}{cls.SERVICE.upper()}_")
        shared = _Environment(settings_cls, env_prefix=PREFIX)
        plain = _Environment(settings_cls, env_prefix="")
        return init_settings, own, shared, _Only(settings_cls, plain, "database_url")

    @classmethod
    def load(cls) -> Self:
        """From the environment; whatever is wrong is named, with variable, value and rule, and ends the process."""
        settings, faults = cls.checked()
        for warning in cls.warnings():
            print(warning, file=sys.stderr)
        for fault in faults:
            print(fault, file=sys.stderr)
        if settings is None or faults:
            raise SystemExit(2)
        return settings

    @classmethod
    def checked(cls) -> tuple[Self | None, list[str]]:
        """The settings, if they can be read, and everything that is wrong."""
        unknown = list(cls._unknown())
        try:
            return cls(), unknown
        except ValidationError as error:
            return None, [*(cls._said(dict(fault)) for fault in error.errors(include_url=False)), *unknown]

    @classmethod
    def variables(cls, name: str) -> tuple[str, ...]:
        """The variables that a field is read from; the first one that is set wins."""
        own, shared = f"{PREFIX}{cls.SERVICE.upper()}_{name.upper()}", f"{PREFIX}{name.upper()}"
        return (own, shared, "DATABASE_URL") if name == "database_url" else (own, shared)

    @classmethod
    def variable(cls, name: str) -> str:
        """Where a field comes from: the variable that is set, else the one to set."""
        candidates = cls.variables(name)
        return next((variable for variable in candidates if variable in _environ()), candidates[0])

    @classmethod
    def is_secret(cls, name: str) -> bool:
        """Whether the value must not be shown: what is named so, and whatever is JSON, for there may be accounts in it."""
        field = cls.model_fields[name]
        return "Secret" in str(field.annotation) or _is_complex(field) or any(word in name for word in _SECRET)

    @classmethod
    def _said(cls, fault: Mapping[str, Any]) -> str:
        """A fault as variable, value (of what is no secret) and rule."""
        text = str(fault["msg"]).removeprefix("Value error, ")
        if not fault["loc"]:
            return text  # of several settings together: the rule names them itself, and the input holds all secrets
        name, *inside = map(str, fault["loc"])
        if isinstance(fault["input"], str) and not inside and _is_complex(cls.model_fields[name]):
            text = _not_json(fault["input"]) or text
        hidden = fault["type"] == "missing" or inside or cls.is_secret(name)
        given = "" if hidden else f"={fault['input']!r}"
        return f"{cls.variable(name)}{' at /' + '/'.join(inside) if inside else ''}{given}: {text}"

    @classmethod
    def _unknown(cls) -> Iterator[str]:
        """Variables under the service's own prefix that are no setting: a typing error, or one that is gone."""
        own = f"{PREFIX}{cls.SERVICE.upper()}_"
        known = [own + name.upper() for name in cls.model_fields]
        for variable in sorted(_environ()):
            if variable.startswith(own) and variable not in known and not _SERVICE_LINK.fullmatch(variable.removeprefix(own)):
                near = difflib.get_close_matches(variable, known, 1, 0.0)
                yield f"{variable}: There is no such setting; the nearest name is {near[0]}"

    @classmethod
    def warnings(cls) -> Iterator[str]:
        """Shared variables that are nearly a setting of this service. Other programs' may look so: nothing is refused."""
        known = [variable for name in cls.model_fields for variable in cls.variables(name)]
        for variable in sorted(_environ()):
            if variable.startswith(PREFIX) and variable not in known:
                near = difflib.get_close_matches(variable, [one for one in known if one.startswith(PREFIX)], 1, 0.9)
                if near and not variable.startswith(f"{PREFIX}{cls.SERVICE.upper()}_"):
                    yield f"{variable} is no setting of {cls.SERVICE} and is ignored; is {near[0]} meant?"

    def limits(self, kind: str) -> workqueue.Limits:
        """The limits of one kind of outside call, from the fields `<kind>_concurrency`, `<kind>_timeout_seconds`, …"""
        given: dict[str, Any] = {
            name: getattr(self, f"{kind}_{name}")
            for name in workqueue.Limits.__dataclass_fields__
            if hasattr(self, f"{kind}_{name}")
        }
        return workqueue.Limits(**given)

    # --- What there is to set -----------------------------------------------------------------------------------------

    @classmethod
    def described(cls) -> dict[str, Any]:
        """Every setting with its rule and its value now, and what is wrong, as data: for documents and for `almoner config`."""
        schema = cls.model_json_schema()
        parts = {
            name: [{"name": field, **_about(field, one, part)} for field, one in part.get("properties", {}).items()]
            for name, part in schema.get("$defs", {}).items()
        }
        settings = [
            {**_about(name, one, schema), "name": name, **cls._value(name), "shared": name in ServiceSettings.model_fields}
            for name, one in schema["properties"].items()
        ]
        return {"service": cls.SERVICE, "settings": settings, "parts": parts, "faults": cls.checked()[1]}

    @classmethod
    def _value(cls, name: str) -> dict[str, Any]:
        """What a setting is, as far as it may be shown, and where that comes from."""
        found = next((variable for variable in cls.variables(name) if variable in _environ()), None)
        secret = cls.is_secret(name)
        if found is None:
            field = cls.model_fields[name]
            value = None if field.is_required() else _text(field.get_default(call_default_factory=True))
            source = "missing" if field.is_required() else "default"
        else:
            value, source = _masked(_environ()[found]) if secret else _environ()[found], found
        return {"variable": cls.variables(name)[0], "value": value, "source": source, "secret": secret}


def _environ() -> dict[str, str]:
    return {name.upper(): value for name, value in os.environ.items()}  # pydantic reads them in either case


def _is_complex(field: FieldInfo) -> bool:
    return "dict[" in str(field.annotation)


def _not_json(text: str) -> str:
    try:
        json.loads(text)
    except ValueError as error:
        return f"is no JSON: {error}"
    return ""


def _masked(text: str) -> str:
    """Of JSON the names, of anything else nothing."""
    try:
        found = json.loads(text)
    except ValueError:
        return "…"
    return "{" + ", ".join(f'"{name}": …' for name in found) + "}" if isinstance(found, dict) else "…"


def _text(value: object) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    return value if isinstance(value, str) else json.dumps(value, default=str)


_UNITS = (
    "calls_per_second",
    "seconds",
    "hours",
    "bytes",
    "days",
    "messages",
    "calls",
    "items",
    "attempts",
    "subjects",
    "instructions",
    "failures",
)


def _about(name: str, schema: Mapping[str, Any], parent: Mapping[str, Any]) -> dict[str, Any]:
    """A field in words: type, rule, unit, default, description."""
    required = name in parent.get("required", [])
    return {
        "type": _kind(schema),
        "rule": _rule(schema),
        "unit": next((unit for unit in _UNITS if name.endswith(unit)), "").replace("_", " "),
        "default": None if required else _text(schema.get("default")),
        "description": schema.get("description", ""),
    }


def _kind(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return f"always {schema['const']}"
    match schema.get("type"):
        case "object":
            inner: Mapping[str, Any] = schema.get("additionalProperties") or next(
                iter(schema.get("patternProperties", {}).values()), {}
            )
            return f"JSON: name → {_kind(inner)}"
        case "array":
            return f"JSON: list of {_kind(schema['items'])}"
        case "boolean":
            return "true or false"
        case "string":
            return "text"
        case other:
            return str(other)


_RULES = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "pattern": "matches `{}`",
}


def _rule(schema: Mapping[str, Any]) -> str:
    found = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    return ", ".join(text.format(option[key]) for option in found for key, text in _RULES.items() if key in option)


class _Environment(EnvSettingsSource):
    """Variables with a prefix. JSON that is none stays text, so that the model names it together with all else that is wrong."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


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
