"""The probe: folds notes, calls out for what is asked, decides what is due."""

from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from pydantic import Field

from libs.common.config import ServiceSettings
from libs.common.consumer import Routes
from libs.common.db import Database, Tx, lock_key_text
from libs.common.envelope import Cause, Event, RawMessage, cause_of
from libs.common.errors import Malformed
from libs.common.jobs import Job, make_due
from libs.common.outbox import Outbox, outgoing
from libs.common.service import Parts
from libs.common.workqueue import Answer, Claim, Done, MaybeDone, NotSent, Settled, Unknown, enqueue, post
from tests.support.probe.contracts import DOOR, IN, Ask, Asked, Decide, Decided, Note, Noted

OUTBOX = Outbox("probe")


class Settings(ServiceSettings):
    SERVICE = "probe"
    url: str = Field(default="", description="where to ask")
    ask_again: bool = Field(default=True, description="whether the other side knows keys, so that a call may be repeated")
    ask_concurrency: int = 4
    ask_timeout_seconds: float = 10.0  # no call is given up, and no lease lost, only because the machine is busy
    ask_lease_seconds: float = 20.0
    ask_max_attempts: int = 3
    ask_backoff_first_seconds: float = 0.05
    ask_poll_seconds: float = 0.5
    ask_claim_max_calls: int = 100
    ask_enabled: bool = True
    decide_max_attempts: int = 0
    decide_enabled: bool = True


def wire(settings: Any, database: Database) -> Parts:
    return Parts(
        Routes({(IN.name, Note): on_note, (IN.name, Ask): on_ask, (IN.name, Decide): on_decide}, {DOOR.name: on_door}),
        [Asking(settings)],
        [Job("decide", decide, settings.decide_max_attempts, settings.decide_enabled)],
    )


def on_note(tx: Tx, events: Sequence[Event[Note]]) -> None:
    tx.run(
        "INSERT INTO noted (event_id, number) SELECT * FROM unnest(%(ids)s::text[], %(numbers)s::int[])",
        ids=[event.id for event in events],
        numbers=[event.data.number for event in events],
    )
    OUTBOX.append(tx, [outgoing(Noted(number=e.data.number), (e.raw.key or b"").decode(), cause_of(e), e.id) for e in events])
    if tx.rows("SELECT 1 FROM mended"):
        return
    for event in events:  # after the writes, so that tests see whether these are undone
        if event.data.behave == "malformed":
            raise Malformed("NOT_LIKED", "the handler does not like it", "/behave")
        if event.data.behave == "bug":
            raise RuntimeError("a bug with content that belongs in no log")
        if event.data.behave:
            tx.run(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{event.data.behave}'; END $$")


def on_ask(tx: Tx, events: Sequence[Event[Ask]]) -> None:
    asked = [(subject, event) for event in events for subject in event.data.subjects]
    enqueue(
        tx,
        "ask",
        [subject for subject, _ in asked],
        [lock_key_of(subject) for subject, _ in asked],
        [cause_of(event) for _, event in asked],
    )


def on_decide(tx: Tx, events: Sequence[Event[Decide]]) -> None:
    for event in events:  # a probe: each may have another delay
        data, key = event.data, lock_key_of(event.data.subject)
        tx.lock_shared([key])
        make_due(tx, "decide", [data.subject], [key], cause_of(event), data.delay_seconds, data.every_seconds)


def on_door(tx: Tx, messages: Sequence[RawMessage]) -> None:
    tx.run("INSERT INTO knocked (value) SELECT unnest(%(values)s::bytea[])", values=[message.value for message in messages])


def decide(tx: Tx, subject: str, cause: Cause) -> None:
    if subject.startswith("bug-") and not tx.rows("SELECT 1 FROM mended"):
        raise RuntimeError("a bug in what decides")
    tx.run("INSERT INTO decided (subject, cause_id) VALUES (%(subject)s, %(cause)s)", subject=subject, cause=cause.id)
    OUTBOX.append(tx, [outgoing(Decided(subject=subject), subject, cause, subject, cause.id)])


class Asking:
    kind = "ask"
    exclusive = False
    read = False
    waits_out_outages = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def take(self, tx: Tx, claims: Sequence[Claim]) -> Mapping[str, Any]:
        if any(claim.subject.startswith("stop-") for claim in claims):
            raise RuntimeError("a bug in what takes")
        lost = Unknown("NO_ANSWER", "an earlier attempt may have been acted upon")
        return {claim.subject: lost if claim.ambiguous and not self._settings.ask_again else claim.subject for claim in claims}

    async def call(self, client: httpx.AsyncClient, claim: Claim, request: Any) -> Answer:
        body = f'{{"subject": "{request}"}}'.encode()
        answer = await post(client, claim, self._settings.url, body, {"Idempotency-Key": str(claim.idempotency_key)})
        if isinstance(answer, NotSent | MaybeDone):
            return MaybeDone(answer.code, answer.message, self._settings.ask_again) if isinstance(answer, MaybeDone) else answer
        if answer.status_code != 200:
            return MaybeDone(f"HTTP_{answer.status_code}", answer.text, self._settings.ask_again)
        return Done(answer.text)

    def settle(self, tx: Tx, settled: Settled) -> None:
        claim = settled.claim
        if claim.subject.startswith("bug-"):
            raise RuntimeError("a bug in what settles")
        if settled.state == "PENDING":
            return
        tx.run(
            "INSERT INTO settled (subject, state) VALUES (%(subject)s, %(state)s)", subject=claim.subject, state=settled.state
        )
        data = Asked(subject=claim.subject, state=settled.state)
        OUTBOX.append(tx, [outgoing(data, claim.subject, claim.cause, claim.subject, settled.state, claim.attempt)])


def lock_key_of(subject: str) -> int:
    return lock_key_text(f"probe/{subject}")
