"""A batch comes, and is asked for after the commit; who is held, or has a new address, may be asked for again."""

import threading
from collections.abc import Sequence
from uuid import UUID

from libs.common.commands import audited
from libs.common.consumer import Handler
from libs.common.contracts.base import EventData
from libs.common.contracts.ingestion import BatchCut
from libs.common.contracts.operator import ResolveHeld
from libs.common.db import Database, Tx
from libs.common.envelope import Cause, Event, attributes, cause_of
from libs.common.errors import Malformed, Transient
from libs.common.log import get
from services.resolution import store

_SWEEP_BATCHES = 500  # in one transaction

_log = get("resolution")


def on_batch_cut(tx: Tx, events: Sequence[Event[BatchCut]]) -> None:
    """Store the batch; the mapper, or a registry, is asked after the commit."""
    cuts: dict[UUID, store.Batch] = {}
    for event in events:
        cut = event.data
        if len(set(cut.items.disbursement_id)) < cut.count:
            raise Malformed("DUPLICATE_DISBURSEMENT_ID", "a disbursement is twice in the batch", "/items")
        cause = Cause(event.id, str(cut.header.envelope_id), event.traceparent)
        cuts.setdefault(cut.header.batch_id, store.Batch(cut, attributes(event.raw).data, cause))
    if cuts:
        store.add_batches(tx, cuts)


def on_resolve_held(tx: Tx, event: Event[ResolveHeld]) -> int:
    command = event.data
    if command.disbursement_ids and command.envelope_id is None:
        raise Malformed("ENVELOPE_MISSING", "disbursement ids are known within their envelope only", "/envelope_id")
    return store.ask_again(tx, command, cause_of(event))


class Sweep:
    """Drops, now and then, what was kept of batches for addresses that might have been corrected."""

    def __init__(self, database: Database, keep_days: int, every_seconds: float) -> None:
        self._database = database
        self._keep_days = keep_days
        self._every_seconds = every_seconds

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            dropped = 0
            try:
                with self._database.transaction() as tx:
                    dropped = store.drop_bodies(tx, self._keep_days, _SWEEP_BATCHES)
            except Transient as error:
                _log.warning("database", error=str(error))
            if dropped < _SWEEP_BATCHES:
                stop.wait(self._every_seconds)


HANDLERS: dict[tuple[str, type[EventData]], Handler] = {
    ("ingestion.batches.v1", BatchCut): on_batch_cut,
    ("resolution.commands.v1", ResolveHeld): audited(on_resolve_held),
}
