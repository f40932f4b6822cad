"""The outside calls: the mapper is asked for addresses, a registry for zones, one part of a batch at a time.

Both are reads and may be repeated as often as wanted; both make of a part one event in which everybody asked for is found, or
held with a reason.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, compress
from typing import Any, TypeAlias

import httpx
from pydantic import ValidationError

from libs.common.contracts.base import (
    Item,
    Items,
    Sealed,
    Unresolved,
    UnresolvedItems,
    Zone,
    ZonedItem,
    ZonedItems,
    chunk,
)
from libs.common.contracts.ingestion import BatchCut
from libs.common.contracts.registry import EVENT_BYTES
from libs.common.contracts.resolution import BatchAddressesResolved, BatchZonesResolved, ZoneTotal
from libs.common.db import Tx
from libs.common.errors import Malformed
from libs.common.outbox import Outbox, outgoing
from libs.common.seal import People, Sealer, pick
from libs.common.workqueue import Answer, Claim, Done, MaybeDone, NotSent, Settled, Void
from services.resolution import domain, store
from services.resolution.domain import Address, Hold, Home, Reply
from services.resolution.ports import Mapper, Registry

Resolved: TypeAlias = BatchAddressesResolved | BatchZonesResolved


@dataclass(frozen=True, slots=True)
class Answered:
    """A part with what was answered: an address or a zone each. `names`: what the batch's seal holds of its people.
    `again`: those of them who are resolved already, and stay so if nothing new is known."""

    cut: BatchCut
    part: int
    names: People
    found: Sequence[tuple[Item, Any]]
    held: Sequence[tuple[Item, Hold]]
    again: frozenset[str] = frozenset()


class _Asking(ABC):
    """What both calls have in common; `kind` is the stage."""

    kind: str
    exclusive = False  # guarded by the part's own row
    read = True
    waits_out_outages = False

    def __init__(self, sealer: Sealer, outbox: Outbox) -> None:
        self._sealer = sealer
        self._outbox = outbox

    def take(self, tx: Tx, claims: Sequence[Claim]) -> Mapping[str, store.Asked | Void]:
        found = store.asked(tx, [claim.subject for claim in claims])
        return {claim.subject: found.get(claim.subject) or Void("ANSWERED", "the part is answered") for claim in claims}

    async def call(self, client: httpx.AsyncClient, claim: Claim, request: store.Asked) -> Answer:
        cut = store.unpack(request.body)
        header = cut.header
        try:  # before the call, which would be in vain
            names = self._sealer.open_people(cut.sealed, "BatchCut", header.envelope_id, header.batch_id)
        except Malformed as error:
            return NotSent(error.code, error.message)
        items, references = list(cut.items), domain.references(header.batch_id, len(cut.items))
        if request.only is not None:
            chosen = [item.disbursement_id in request.only for item in items]
            items, references = list(compress(items, chosen)), list(compress(references, chosen))
        people = [(reference, item.beneficiary_id) for reference, item in zip(references, items, strict=True)]
        replies = await self._replies(client, claim, cut, people)
        if isinstance(replies, NotSent | MaybeDone):
            return replies
        found, held = domain.sort_out(references, replies)
        return Done(
            Answered(
                cut,
                request.part,
                names,
                [(items[index], reply) for index, reply in found.items()],
                [(items[index], hold) for index, hold in held.items()],
                request.again,
            )
        )

    def settle(self, tx: Tx, settled: Settled) -> None:
        """Say who is found, and who is held. Where nothing is new there is nothing to be said."""
        if not isinstance(settled.answer, Done):
            return
        answered: Answered = settled.answer.value
        event = self.event(answered)
        header = event.header
        if not store.answer(tx, header.batch_id, event.part, event.items.disbursement_id, event.unresolved, answered.again):
            return
        if event.items or event.unresolved:
            self._outbox.append(tx, [outgoing(event, header.batch_id, settled.claim.cause, header.batch_id, event.part)])

    def event(self, answered: Answered) -> Resolved:
        """The part's event. Whoever does not fit into one event is held, found as they are, and fits into the next."""
        found, held = answered.found, answered.held
        while True:
            event = self._event_of(answered, found, held)
            if len(found) < 2 or _surely_fits(event) or len(event.model_dump_json().encode()) <= EVENT_BYTES:
                return event
            half = len(found) // 2
            held = [*held, *((item, Hold(domain.PART_TOO_LARGE, "goes with the next part")) for item, _ in found[half:])]
            found = found[:half]

    def _seal(self, answered: Answered, content: People, name: str) -> Sealed:
        header = answered.cut.header
        return self._sealer.seal(content, name, header.envelope_id, header.batch_id, answered.part)

    @abstractmethod
    async def _replies(
        self, client: httpx.AsyncClient, claim: Claim, cut: BatchCut, people: Sequence[tuple[str, str]]
    ) -> Mapping[str, Any] | NotSent | MaybeDone:
        """Reference id -> what was found, or Hold, for (reference id, beneficiary id)."""

    @abstractmethod
    def _event_of(
        self, answered: Answered, found: Sequence[tuple[Item, Any]], held: Sequence[tuple[Item, Hold]]
    ) -> Resolved: ...


class Resolve(_Asking):
    """The call-out `resolve`: the mapper says where people are paid."""

    kind = domain.RESOLVE

    def __init__(self, mapper: Mapper, sealer: Sealer, outbox: Outbox) -> None:
        super().__init__(sealer, outbox)
        self._mapper = mapper

    async def _replies(
        self, client: httpx.AsyncClient, claim: Claim, cut: BatchCut, people: Sequence[tuple[str, str]]
    ) -> Mapping[str, Reply] | NotSent | MaybeDone:
        return await self._mapper.resolve(client, claim, cut.header.batch_id.hex, people)

    def _event_of(
        self, answered: Answered, found: Sequence[tuple[Item, Address]], held: Sequence[tuple[Item, Hold]]
    ) -> BatchAddressesResolved:
        items = Items.of(item for item, _ in found)
        addresses = [address for _, address in found]
        fields = sorted(set(chain.from_iterable(addresses)))
        names = pick(answered.names, items.disbursement_id)
        content = {**names, **{field: [address.get(field) for address in addresses] for field in fields}}
        return BatchAddressesResolved(
            header=answered.cut.header,
            part=answered.part,
            **chunk(items),
            sealed=self._seal(answered, content, "BatchAddressesResolved"),
            **_unresolved(held, answered.again),
        )


class Locate(_Asking):
    """The call-out `locate`: a registry says in which zone people live."""

    kind = domain.LOCATE

    def __init__(self, registry: Registry, sealer: Sealer, outbox: Outbox) -> None:
        super().__init__(sealer, outbox)
        self._registry = registry

    async def _replies(
        self, _client: httpx.AsyncClient, claim: Claim, cut: BatchCut, people: Sequence[tuple[str, str]]
    ) -> Mapping[str, Home | Hold] | NotSent:
        name = cut.header.target_registry
        homes = await self._registry.locate(claim, name, list(dict.fromkeys(person for _, person in people)))
        if isinstance(homes, NotSent):
            return homes
        return {reference: _readable(domain.home(name, homes.get(person, ()))) for reference, person in people}

    def _event_of(
        self, answered: Answered, found: Sequence[tuple[Item, Home]], held: Sequence[tuple[Item, Hold]]
    ) -> BatchZonesResolved:
        zones, items = _zoned(found)
        return BatchZonesResolved(
            header=answered.cut.header,
            part=answered.part,
            **chunk(items),
            zones=zones,
            sealed=self._seal(answered, pick(answered.names, items.disbursement_id), "BatchZonesResolved"),
            **_unresolved(held, answered.again),
        )


def _unresolved(held: Iterable[tuple[Item, Hold]], again: frozenset[str]) -> dict[str, Any]:
    """Whom nothing is known of, as an event's fields; whoever was resolved before is not among them."""
    unresolved = UnresolvedItems.of(
        Unresolved(*item, hold.reason, hold.message) for item, hold in held if item.disbursement_id not in again
    )
    return {
        "unresolved": unresolved,
        "unresolved_count": len(unresolved),
        "unresolved_total_minor": sum(unresolved.amount_minor),
    }


def _zoned(found: Sequence[tuple[Item, Home]]) -> tuple[list[ZoneTotal], ZonedItems]:
    """Each zone once, in the order of ids, with what its people come to; and the people with their zone's index. A zone is its
    ids: where its codes differ from one person to the next, the first one's count."""
    homes: dict[tuple[str, str], Home] = {}
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for item, home in found:
        zone = (home.large_zone_id, home.small_zone_id)
        homes.setdefault(zone, home)
        count, total_minor = sums.get(zone, (0, 0))
        sums[zone] = (count + 1, total_minor + item.amount_minor)
    index = {zone: number for number, zone in enumerate(sorted(homes))}
    items = ZonedItems.of(ZonedItem(*item, index[home.large_zone_id, home.small_zone_id]) for item, home in found)
    return [ZoneTotal(**homes[zone]._asdict(), count=sums[zone][0], total_minor=sums[zone][1]) for zone in index], items


def _readable(home: Home | Hold) -> Home | Hold:
    return home if isinstance(home, Hold) or _travels(home) else Hold(domain.ZONE_UNREADABLE, "too long, or not printable")


@lru_cache(maxsize=10_000)
def _travels(home: Home) -> bool:
    """Whether an event can carry the zone as the registry writes it."""
    try:
        Zone(**home._asdict())
    except ValidationError:
        return False
    return True


def _surely_fits(event: Resolved) -> bool:
    """Spares nearly every event from being encoded twice: a character takes eight bytes at most, escaped."""
    ids = len("".join(event.items.disbursement_id)) + len("".join(event.items.beneficiary_id))
    zones = event.zones if isinstance(event, BatchZonesResolved) else ()
    ids += sum(len(z.large_zone_id) + len(z.large_zone_code) + len(z.small_zone_id) + len(z.small_zone_code) for z in zones)
    fixed = 100 * len(event.items) + 150 * len(zones) + 20_000
    return not event.unresolved and len(event.sealed.data) + 8 * ids + fixed < EVENT_BYTES
