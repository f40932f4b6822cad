"""A batch comes, the mapper is asked, the batch's addresses go on; who has none is held and may be asked for again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from uuid import UUID

import httpx

from libs.common.commands import audited
from libs.common.consumer import Routes
from libs.common.contracts.base import Item, Unresolved, totals
from libs.common.contracts.ingestion import BatchCut
from libs.common.contracts.operator import ResolveHeld
from libs.common.contracts.registry import EVENT_BYTES
from libs.common.contracts.resolution import BatchAddressesResolved
from libs.common.db import Tx
from libs.common.envelope import Cause, Event, attributes, cause_of
from libs.common.errors import Malformed
from libs.common.log import get
from libs.common.outbox import Outbox, outgoing
from libs.common.seal import Sealer
from libs.common.workqueue import Answer, Claim, Done, MaybeDone, NotSent, Settled, Void
from services.resolution import domain, store
from services.resolution.domain import Address, Hold
from services.resolution.ports import Mapper

_log = get("resolution")


def on_batch_cut(tx: Tx, events: Sequence[Event[BatchCut]]) -> None:
    """Store the batch; the mapper is asked after the commit."""
    cuts: dict[UUID, store.Batch] = {}
    for event in events:
        cut = event.data
        if cut.header.benefit_type != "CASH_DIGITAL":  # nobody is paid by account: not applicable, and others know it
            _log.info("batch needs no addresses", batch_id=str(cut.header.batch_id), type=cut.header.benefit_type)
            continue
        if len({item.disbursement_id for item in cut.items}) < len(cut.items):
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


@dataclass(frozen=True, slots=True)
class Answered:
    """A part with what the mapper said. `names`: disbursement id -> name and narrative, as the batch brought them."""

    cut: BatchCut
    part: int
    names: dict[str, dict[str, str]]
    found: list[tuple[Item, Address]]
    held: list[tuple[Item, Hold]]


class Resolve:
    """The call-out `resolve`, one part of a batch at a time. A read: it may be repeated as often as wanted."""

    kind = store.KIND
    exclusive = False  # guarded by the part's own row
    read = True

    def __init__(self, mapper: Mapper, sealer: Sealer, outbox: Outbox) -> None:
        self._mapper = mapper
        self._sealer = sealer
        self._outbox = outbox

    def take(self, tx: Tx, claims: Sequence[Claim]) -> Mapping[str, store.Asked | Void]:
        found = store.asked(tx, [claim.subject for claim in claims])
        return {claim.subject: found.get(claim.subject) or Void("ANSWERED", "the part is answered") for claim in claims}

    async def call(self, client: httpx.AsyncClient, claim: Claim, request: store.Asked) -> Answer:
        cut = store.unpack(request.body)
        header = cut.header
        try:  # before the call, which would be in vain
            names = self._sealer.open(cut.sealed, "BatchCut", header.envelope_id, header.batch_id)
        except Malformed as error:
            return NotSent(error.code, error.message)
        items, references = cut.items, domain.references(header.batch_id, len(cut.items))
        if request.only is not None:
            chosen = [item.disbursement_id in request.only for item in items]
            items, references = list(compress(items, chosen)), list(compress(references, chosen))
        people = [(reference, item.beneficiary_id) for reference, item in zip(references, items, strict=True)]
        replies = await self._mapper.resolve(client, claim, header.batch_id.hex, people)
        if isinstance(replies, NotSent | MaybeDone):
            return replies
        found, held = domain.sort_out(references, replies)
        return Done(
            Answered(
                cut,
                request.part,
                names,
                [(items[index], address) for index, address in found.items()],
                [(items[index], hold) for index, hold in held.items()],
            )
        )

    def settle(self, tx: Tx, settled: Settled) -> None:
        """Say who is paid where, and who is held."""
        if not isinstance(settled.answer, Done):
            return
        answered: Answered = settled.answer.value
        event = self.event(answered)
        header = event.header
        if store.answer(tx, header.batch_id, event.part, event.items, event.unresolved):
            self._outbox.append(tx, [outgoing(event, header.batch_id, settled.claim.cause, header.batch_id, event.part)])

    def event(self, answered: Answered) -> BatchAddressesResolved:
        """The part's event. Whoever does not fit into one event is held, resolved as they are, and fits into the next."""
        found, held = answered.found, answered.held
        while True:
            event = self._event_of(answered, found, held)
            if len(found) < 2 or _surely_fits(event) or len(event.model_dump_json().encode()) <= EVENT_BYTES:
                return event
            half = len(found) // 2
            held = [*held, *((item, Hold(domain.PART_TOO_LARGE, "goes with the next part")) for item, _ in found[half:])]
            found = found[:half]

    def _event_of(
        self, answered: Answered, found: Sequence[tuple[Item, Address]], held: Sequence[tuple[Item, Hold]]
    ) -> BatchAddressesResolved:
        header, part, names = answered.cut.header, answered.part, answered.names
        content = {item.disbursement_id: {**names.get(item.disbursement_id, {}), **address} for item, address in found}
        items = [item for item, _ in found]
        unresolved = [
            Unresolved(
                disbursement_id=item.disbursement_id,
                beneficiary_id=item.beneficiary_id,
                amount_minor=item.amount_minor,
                reason=hold.reason,
                message=hold.message,
            )
            for item, hold in held
        ]
        return BatchAddressesResolved(
            header=header,
            part=part,
            items=items,
            **totals(items),
            sealed=self._sealer.seal(content, "BatchAddressesResolved", header.envelope_id, header.batch_id, part),
            unresolved=unresolved,
            unresolved_count=len(unresolved),
            unresolved_total_minor=sum(one.amount_minor for one in unresolved),
        )


def _surely_fits(event: BatchAddressesResolved) -> bool:
    """Spares nearly every event from being encoded twice: a character takes eight bytes at most, escaped."""
    ids = sum(len(item.disbursement_id) + len(item.beneficiary_id) for item in event.items)
    return not event.unresolved and len(event.sealed.data) + 8 * ids + 100 * len(event.items) + 20_000 < EVENT_BYTES


ROUTES = Routes(
    {
        ("ingestion.batches.v1", BatchCut): on_batch_cut,
        ("resolution.commands.v1", ResolveHeld): audited(on_resolve_held),
    }
)
