"""The scheduler's contract: ticks."""

from datetime import datetime

from pydantic import Field

from libs.common.contracts.base import Count, EventData


class Tick(EventData):
    """A job is due. What was missed meanwhile is collapsed into one tick, with the count."""

    TYPE = "almoner.scheduler.Tick.v1"
    job: str
    due_at: datetime = Field(description="aware, UTC; decides `as of`")
    missed: Count = 0
    reason: str = Field(default="", description="why an operator fired it by hand")
