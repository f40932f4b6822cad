"""The call-out: a mailing is passed on to its channel. What it tells is made for the call and kept nowhere."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

import httpx

from libs.common import workqueue
from libs.common.db import Tx
from libs.common.errors import Malformed
from libs.common.log import get
from libs.common.outbox import Outbox, Outgoing
from libs.common.retry import backoff_seconds
from libs.common.seal import Sealer
from libs.common.workqueue import Answer, Claim, Done, Later, MaybeDone, NotSent, Settled, Unknown, Void
from services.notifications import domain, store
from services.notifications.config import Settings
from services.notifications.content import Contents, Opener
from services.notifications.domain import Outcome
from services.notifications.ports import Channel, Message
from services.notifications.rendering import TemplateFailed, Templates
from services.notifications.saying import said
from services.notifications.store import Mailing

_log = get("notices")


@dataclass(frozen=True, slots=True)
class Passed:
    """What became of each notice of a mailing."""

    outcomes: dict[UUID, Outcome]


class Deliver:
    """One channel's kind of work. A channel that knows keys is asked again after a lost answer; of any other, what was begun and
    not answered is unknown, for good or until an operator knows better."""

    exclusive = False  # guarded by the mailing's own row
    read = False
    waits_out_outages = True  # who is to be told can wait; an answer that was lost on the way only as long as its key is known

    def __init__(
        self, name: str, settings: Settings, channel: Channel, templates: Templates, sealer: Sealer, outbox: Outbox
    ) -> None:
        self.kind = name
        self._settings = settings
        self._channel = channel
        self._templates = templates
        self._opener = Opener(sealer)
        self._outbox = outbox
        self._limits = settings.limits(name)

    def take(self, tx: Tx, claims: Sequence[Claim]) -> Mapping[str, Mailing | Unknown | Void | Later]:
        numbers = [int(claim.subject) for claim in claims]
        store.lock_mailings(tx, numbers)
        muted = store.mute(tx, numbers)
        mailings = store.take_mailings(tx, numbers, [int(claim.subject) for claim in claims if claim.ambiguous])
        news: list[Outgoing] = []
        for claim in claims:
            if changed := muted.get(int(claim.subject)):
                mailing = mailings[int(claim.subject)]
                news += said(mailing.header, mailing.kind, None, changed, claim.cause)
        self._outbox.append(tx, news)
        return {claim.subject: self._decide(claim, mailings[int(claim.subject)]) for claim in claims}

    def _decide(self, claim: Claim, mailing: Mailing) -> Mailing | Unknown | Void | Later:
        if not mailing.notices:
            return Void("NOTHING_TO_SEND", "no notice of it is to be sent")
        if claim.ambiguous and not self._channel.key_seconds:
            return Unknown(domain.ANSWER_LOST, "whoever passed it on did not come back")
        if claim.ambiguous and mailing.age_seconds > self._channel.key_seconds:
            return Unknown(domain.KEY_EXPIRED, "the answer was lost, and the provider may have forgotten the key since")
        return mailing if mailing.wait_seconds <= 0 else Later(mailing.wait_seconds)

    async def call(self, client: httpx.AsyncClient, claim: Claim, request: Mailing) -> Answer:
        try:  # before the call, which would be in vain
            messages, outcomes = await asyncio.to_thread(self._prepare, request)
        except (Malformed, TemplateFailed) as error:
            return NotSent(error.code, error.message, final=True)
        except Exception as error:  # a bug of ours, before anything could be sent
            _log.exception("a notice could not be made", mailing=request.mailing)
            return NotSent("BUG", type(error).__name__)
        if messages:
            sent = await self._channel.send(client, claim, messages)
            if isinstance(sent, NotSent | MaybeDone):
                return sent
            outcomes |= {message.notice_id: outcome for message, outcome in zip(messages, sent, strict=True)}
        return Done(Passed(outcomes))

    def _prepare(self, mailing: Mailing) -> tuple[list[Message], dict[UUID, Outcome]]:
        """The messages, and what is said at once of notices that nobody could get."""
        settings = self._settings
        contents = Contents(mailing, self._opener, settings.programme_descriptions, settings.benefit_descriptions)
        messages: list[Message] = []
        outcomes: dict[UUID, Outcome] = {}
        for message in contents.messages():
            if not self._channel.reaches(message):
                outcomes[message.notice_id] = Outcome("SUPPRESSED", domain.NO_CONTACT)
            elif self._channel.renders:
                mail = self._templates.render(message, self.kind, settings.language)
                messages.append(replace(message, mail=mail))
            else:
                messages.append(message)
        return messages, outcomes

    def settle(self, tx: Tx, settled: Settled) -> None:
        """Store what became of each notice, and say it."""
        if settled.state == "UNKNOWN":
            answer = settled.answer
            assert not isinstance(answer, Done)
            pending = store.pending(tx, int(settled.claim.subject))
            self._store(tx, settled, dict.fromkeys(pending, Outcome("UNKNOWN", answer.code, _words(answer))))
        elif isinstance(settled.answer, Done):
            self._store(tx, settled, settled.answer.value.outcomes)

    def _store(self, tx: Tx, settled: Settled, outcomes: Mapping[UUID, Outcome]) -> None:
        number, claim = int(settled.claim.subject), settled.claim
        changed = store.settle(tx, number, outcomes, self._limits.max_attempts)
        mailing = store.heading(tx, number)
        self._outbox.append(tx, said(mailing.header, mailing.kind, self.kind, changed, claim.cause))
        left = [one for one in changed if one.state == "PENDING"]
        if not left:
            return
        alone = any(outcomes[one.notice_id].alone for one in left)
        ids = [one.notice_id for one in left]
        tries = max(one.tries for one in left)
        limits = self._limits
        wait_seconds = 0.0 if alone else backoff_seconds(tries, limits.backoff_max_seconds, limits.backoff_first_seconds)
        numbers = store.split_off(tx, number, [[one] for one in ids] if alone else [ids], wait_seconds)
        subjects = [str(one) for one in numbers]
        workqueue.enqueue(tx, self.kind, subjects, [claim.lock_key] * len(subjects), [claim.cause] * len(subjects))


def _words(answer: NotSent | MaybeDone | Unknown) -> str:
    """Ours, never those of an exception or a provider: addresses may be in them."""
    return answer.message if isinstance(answer, Unknown) else ""
