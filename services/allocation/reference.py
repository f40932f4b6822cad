"""The copy of the reference data: warehouses and agencies, what they serve and where.

It comes wholesale from PBMS by the call-out `reference` (on the tick, at the start, by command), or message by message from the
compacted topics, which are doors. Only what changed is written, and then whoever is held is tried once more.
"""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from pydantic_core import to_json

from libs.common import jobs, metrics
from libs.common.contracts import operator, reference, scheduler
from libs.common.db import Database, Tx
from libs.common.envelope import Cause, Event, RawMessage
from libs.common.errors import Transient
from libs.common.log import get
from libs.common.outbox import Outbox, Outgoing, outgoing
from libs.common.seal import Sealer
from libs.common.workqueue import Answer, Claim, Done, NotSent, Settled, Void
from services.allocation import store
from services.allocation.config import Settings
from services.allocation.decisions import ALLOCATE
from services.allocation.domain import account_key
from services.allocation.ports import Listing, Pbms, Snapshot, Topic
from services.allocation.store import REFERENCE_LOCK, Place

REFERENCE_DUE_JOB = "reference-due"
KIND = "reference"
REFIT = "refit"
_REGULAR = "pbms"  # the reading that the start and the ticks ask for
_ATTEMPTS_DAYS = 14
_START_SECONDS = 1.0  # between two tries to ask at the start, while there is no database

_log = get("reference")


class Reference:
    """The call-out `reference`: a read, settled under a lock of its own, so that two replicas write one after the other."""

    kind = KIND
    exclusive = True
    read = True
    waits_out_outages = False

    def __init__(self, settings: Settings, pbms: Pbms | None, topic: Topic, sealer: Sealer, outbox: Outbox) -> None:
        self._source = settings.reference_source
        self._pbms = pbms
        self._topic = topic
        self._sealer = sealer
        self._outbox = outbox

    # --- PBMS ---------------------------------------------------------------------------------------------------------

    def at_start(self, database: Database, stop: threading.Event) -> None:
        """Nobody waits for the first tick."""
        while self._pbms is not None and not stop.is_set():
            try:
                with database.transaction() as tx:
                    store.ask_for_reference(tx, KIND, _REGULAR, REFERENCE_LOCK, Cause("start"))
                return
            except Transient:
                stop.wait(_START_SECONDS)

    def on_tick(self, tx: Tx, events: Sequence[Event[scheduler.Tick]]) -> None:
        due = [event for event in events if event.data.job == REFERENCE_DUE_JOB]
        if due and self._pbms is not None:
            store.ask_for_reference(tx, KIND, _REGULAR, REFERENCE_LOCK, Cause(due[-1].id, None, due[-1].traceparent))

    def refresh(self, tx: Tx, event: Event[operator.RefreshReference]) -> int:
        """A command: read now. A subject of its own: what is being read at the moment may have begun before the correction."""
        cause = Cause(event.id, None, event.traceparent)
        if self._pbms is None:  # what the topics said is known; whoever is held is tried once more
            self._refit_later(tx, self._source, cause)
        else:
            store.ask_for_reference(tx, KIND, f"pbms@{event.id}", REFERENCE_LOCK, cause)
        return 1

    def take(self, tx: Tx, claims: Sequence[Claim]) -> Mapping[str, Any]:
        elsewhere = Void("NOT_THE_SOURCE", "places do not come from PBMS any more")
        return {claim.subject: self._pbms or elsewhere for claim in claims}

    async def call(self, client: httpx.AsyncClient, claim: Claim, request: Pbms) -> Answer:
        found = await asyncio.to_thread(request.read, claim.timeout_seconds)
        return found if isinstance(found, NotSent) else Done(found)

    def settle(self, tx: Tx, settled: Settled) -> None:
        """Only what changed; what is not listed any more is gone. An older reading that ends later changes nothing."""
        if not isinstance(settled.answer, Done):
            return
        snapshot: Snapshot = settled.answer.value
        before = store.read_before(tx, "pbms")
        if before is not None and snapshot.taken_at <= before:
            return
        known = store.digests(tx, "pbms")
        listed = [self._sealed("pbms", listing) for listing in snapshot.places]
        changed = [place for place in listed if known.get((place.listing.kind, place.listing.id)) != place.digest]
        there = {(place.listing.kind, place.listing.id) for place in listed}
        changed += [self._sealed("pbms", Listing(kind, place_id)) for kind, place_id in known.keys() - there]
        store.was_read(tx, "pbms", snapshot.taken_at, snapshot.faulty)
        store.forget_readings(tx, KIND, settled.claim.subject, _ATTEMPTS_DAYS)
        written = store.put_places(tx, "pbms", changed)
        if written:
            _log.info("reference data changed", places=written, faulty=snapshot.faulty)
        if written or settled.claim.subject != _REGULAR:  # an operator who asks wants the held ones tried in any case
            self._refit_later(tx, "pbms", settled.claim.cause)

    # --- topics -------------------------------------------------------------------------------------------------------

    def receive(self, tx: Tx, messages: Sequence[RawMessage]) -> None:
        """A door: what can be used is stored, the last of each key; what can't is answered, and what was known stays."""
        listings: dict[tuple[str, str], Place] = {}
        refused: list[Outgoing] = []
        for message in sorted(messages, key=lambda one: (one.partition, one.offset)):
            found = self._topic(message)
            if isinstance(found, Listing):
                place = self._sealed("topic", found, message)
                listings[found.kind, found.id] = place
            else:
                refused.append(_rejected(message, found))
                metrics.HANDLED.labels(message.topic, "refused").inc()
        if listings and store.put_places(tx, "topic", list(listings.values())):
            last = messages[-1]
            self._refit_later(tx, "topic", Cause(f"{last.topic}/{last.partition}/{last.offset}"))
        self._outbox.append(tx, refused)

    # --- both ---------------------------------------------------------------------------------------------------------

    def refit(self, tx: Tx, subject: str, cause: Cause) -> None:
        """A job: have whoever is held tried once more. Its lock is exclusive, and whoever plans holds it shared: a plan either sees
        what was written before this was asked for, or has come to its end here, and is found."""
        store.try_again(tx, ALLOCATE, cause)

    def _refit_later(self, tx: Tx, source: str, cause: Cause) -> None:
        if source == self._source:
            jobs.make_due(tx, REFIT, [KIND], [REFERENCE_LOCK], cause)

    def _sealed(self, source: str, listing: Listing, message: RawMessage | None = None) -> Place:
        accounts = {
            account_key(one.programme_id, one.benefit_code_id): dict(one.account) for one in listing.serves if one.account
        }
        content = to_json({"contact": dict(listing.contact or {}), "accounts": accounts})
        known = [listing.mnemonic, listing.name, sorted(listing.zone_ids), listing.contact is None]
        serves = sorted(
            (one.programme_id, one.benefit_code_id, str(one.capacity_minor), str(one.capacity_units)) for one in listing.serves
        )
        sealed, key = None, ""
        if listing.contact is not None:
            sealed = self._sealer.seal_bytes(content, "place", source, listing.kind, listing.id)
            key = sealed.partition(b"\x00")[0].decode()  # a new key: sealed anew at the next reading
        digest = self._sealer.token(to_json([known, serves, content.decode(), key]).decode())
        where = (message.partition, message.offset) if message else (None, None)
        return Place(listing, sealed, digest, *where)


def _rejected(message: RawMessage, faults: Sequence[reference.ReferenceFault]) -> Outgoing:
    """The answer, keyed as the message was; said again word for word where it is delivered again."""
    key = (message.key or b"").decode("utf-8", "replace")[:300]
    place = (message.topic, message.partition, message.offset)
    body = reference.ReferenceRejected(
        topic=message.topic, partition=message.partition, offset=message.offset, key=key, errors=list(faults)
    )
    return outgoing(body, key, Cause("/".join(map(str, place))), *place)
