"""What the scheduler is told: its jobs."""

import json
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from cronsim import CronSim, CronSimError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_settings import NoDecode

from libs.common.config import ServiceSettings, TimeZone
from services.scheduler.domain import Schedule

JobName = Annotated[str, StringConstraints(pattern="^[a-z][a-z0-9-]{0,59}$")]


class Job(BaseModel):
    """One job as JSON: {"interval_seconds": 60} or {"cron": "30 2 * * *", "time_zone": "Africa/Dakar"}."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    interval_seconds: int | None = Field(default=None, ge=1, le=366 * 86_400, description="between two ticks")
    cron: str | None = Field(default=None, description="five fields, as in crontab(5)")
    time_zone: TimeZone = Field(default="UTC", description="of the cron")
    misfire: Literal["latest", "skip"] = Field(default="latest", description="what was missed: one tick for all of it, or none")
    grace_seconds: int = Field(default=60, ge=1, description="how late a tick may be before `skip` passes it over")

    @field_validator("cron")
    @classmethod
    def _comes_true(cls, cron: str | None) -> str | None:
        if cron is None:
            return None
        if len(cron.split()) != 5:
            raise ValueError("a cron has five fields: minute, hour, day of month, month, day of week")
        try:
            next(CronSim(cron, datetime(2024, 1, 1, tzinfo=UTC)))
        except CronSimError as error:
            raise ValueError(f"is no cron: {error}") from None
        except StopIteration:
            raise ValueError("is a date that never comes") from None
        return cron

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.interval_seconds is None) == (self.cron is None):
            raise ValueError("a job has either interval_seconds or cron")
        return self

    @property
    def schedule(self) -> Schedule:
        return Schedule(**self.model_dump())


# What other services wait for.
DEFAULTS = {name: Job(interval_seconds=60) for name in ("expire-parked", "funds-due", "reference-due")}


def _parsed(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"is no JSON: {error}") from None


class Settings(ServiceSettings):
    SERVICE: ClassVar[str] = "scheduler"

    jobs: Annotated[dict[JobName, Job], NoDecode, BeforeValidator(_parsed)] = Field(
        default={},
        description="JSON {job: {…}}: more jobs, or other times for those that are there anyway (expire-parked, funds-due, "
        "reference-due). Not "
        "there by itself is statements-due, which has funds ask the banks for statements",
    )
    keep_ticks_days: int = Field(default=14, ge=1, description="how long ticks can be looked up")

    @property
    def schedules(self) -> dict[str, Schedule]:
        return {name: job.schedule for name, job in sorted({**DEFAULTS, **self.jobs}.items())}
