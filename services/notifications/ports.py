"""What notifications needs of the world: somebody who passes messages on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import httpx

from libs.common.workqueue import Claim, MaybeDone, NotSent
from services.notifications.domain import Kind, Outcome


@dataclass(frozen=True, slots=True)
class Mail:
    """A notice as a person sees it. The subject is one line."""

    subject: str
    text: str
    html: str


@dataclass(frozen=True, slots=True)
class Message:
    """One notice to be passed on. `party`: whom it is for, by the id that is known outside; `payload`: what it tells, `more` for
    templates only. `mail` is there for channels that render."""

    notice_id: UUID
    kind: Kind
    party: str
    name: str
    email: str
    phone: str
    created_at: datetime
    payload: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict)
    mail: Mail | None = None


class Channel(Protocol):
    key_seconds: float  # so long the same mailing, passed on again with its key, counts once; 0: never
    renders: bool  # it passes on what our templates make; else what a notice tells, in data

    def reaches(self, message: Message) -> bool:
        """Whether it has a way to whom the message is for; else it is not passed on."""
        ...

    async def send(
        self, client: httpx.AsyncClient, claim: Claim, messages: Sequence[Message]
    ) -> list[Outcome] | NotSent | MaybeDone:
        """An outcome for each message, or what became of all of them. Raises LeaseLost where the lease would not outlast the
        call, and nothing was sent."""
        ...
