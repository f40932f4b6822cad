"""What the probe says and is told: topics outside of the registry, which only the probe's own process adds to it."""

from typing import Literal

from libs.common.contracts import operator, registry
from libs.common.contracts.base import EventData
from libs.common.contracts.registry import Topic


class Note(EventData):
    """Write it down and say so. `behave` makes the handler fail until the table `mended` has a row; five characters: with this
    SQLSTATE."""

    TYPE = "almoner.probe.Note.v1"
    number: int
    behave: Literal["", "malformed", "bug", "40001", "40P01", "53300", "55P03"] = ""


class Ask(EventData):
    """Call the other side once for each subject."""

    TYPE = "almoner.probe.Ask.v1"
    subjects: list[str]


class Decide(EventData):
    """Let the job decide on a subject, now or later."""

    TYPE = "almoner.probe.Decide.v1"
    subject: str
    delay_seconds: float = 0
    every_seconds: float = 0


class Noted(EventData):
    TYPE = "almoner.probe.Noted.v1"
    number: int


class Asked(EventData):
    TYPE = "almoner.probe.Asked.v1"
    subject: str
    state: str


class Decided(EventData):
    TYPE = "almoner.probe.Decided.v1"
    subject: str


class Unheard(EventData):
    """Nobody reads this type."""

    TYPE = "almoner.probe.Unheard.v1"


COMMANDS = Topic(
    "probe.commands.v1",
    "probe",
    "what it concerns",
    (
        operator.PauseStage,
        operator.ResumeStage,
        operator.RetryWork,
        operator.RedriveDeadLetters,
        operator.DiscardDeadLetters,
    ),
    ("probe",),
)
IN = Topic("probe.in.v1", "test", "any", (Note, Ask, Decide), ("probe",))
DOOR = Topic("probe.door.v1", "test", "any", (), ("probe",))
OUT = Topic("probe.out.v1", "probe", "any", (Noted, Asked, Decided), ())
DEAD = Topic("probe.dlq.v1", "probe", "as it was", (), ())
AUDIT = Topic("probe.audit.v1", "probe", "the command's", (operator.CommandHandled,), ())
TOPICS = (COMMANDS, IN, DOOR, OUT, DEAD, AUDIT)


def register() -> None:
    """For the probe's own process: the runtime looks its topics up in the registry."""
    registry.TOPICS = (*registry.TOPICS, *TOPICS)
    registry.TOPIC_BY_NAME.update({topic.name: topic for topic in TOPICS})
