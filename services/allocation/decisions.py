"""What is decided under the envelope's exclusive lock: who is served where (`allocate`), what a cancellation still finds, when
people may be told (`announce`). Every decision reads committed rows and may be taken again.

What changes loads also takes the lock of the (programme, benefit code, cycle), always after the envelope's: capacity is shared by
all envelopes of a cycle.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple
from uuid import UUID

from pydantic_core import from_json

from libs.common import jobs
from libs.common.commands import CommandRefused
from libs.common.contracts import allocation, operator
from libs.common.contracts.base import BatchHeader, EnvelopeHeader, Sealed, Unresolved, UnresolvedItems, ZonedItems
from libs.common.contracts.ingestion import NotCancelled
from libs.common.contracts.registry import EVENT_BYTES
from libs.common.db import Tx, lock_key, lock_key_text
from libs.common.envelope import Cause, Event, cause_of
from libs.common.outbox import Outbox, outgoing
from libs.common.seal import Sealer, by_column, by_person
from libs.common.swift import usable
from services.allocation import domain, store
from services.allocation.config import Settings
from services.allocation.domain import AGENCY, WAREHOUSE, Candidate, Choice, Group, Pick
from services.allocation.store import REFERENCE_LOCK, SERVICE

ALLOCATE = "allocate"
ANNOUNCE = "announce"
LETTERS_SECONDS = 2.0  # between two looks whether a dead letter is dealt with
_HELD_PEOPLE = 20_000  # tried again in one transaction
_CANCELLED_GROUPS = 5000  # cancelled in one transaction


class _Person(NamedTuple):
    """Somebody to be told of, and under which entry of the event's zones."""

    arrival: int
    grp: int
    position: int
    amount_minor: int
    disbursement_id: str
    beneficiary_id: str
    group: Any

    @property
    def zone(self) -> tuple[Any, ...]:
        return self.group.large_zone_id, self.group.small_zone_id, self.group.warehouse_id, self.group.agency_id


class _Said(NamedTuple):
    """An event, and those for whom it has no room."""

    event: allocation.BatchAllocated
    told: Sequence[_Person]
    left: Sequence[_Person]


class Decisions:
    def __init__(self, settings: Settings, sealer: Sealer, outbox: Outbox) -> None:
        self._settings = settings
        self._source = settings.reference_source
        self._sealer = sealer
        self._outbox = outbox

    # --- allocate -----------------------------------------------------------------------------------------------------

    def allocate(self, tx: Tx, subject: str, cause: Cause) -> None:
        """Take what has arrived, cancel what is asked for, plan the rest. The caller holds the envelope's exclusive lock."""
        envelope_id = UUID(subject)
        because = Cause(cause.id, subject, cause.traceparent)
        tx.lock_shared([REFERENCE_LOCK])  # before any lock of a cycle
        envelope = store.envelope(tx, envelope_id)
        arrivals, more = self._take(tx, envelope_id)
        more |= self._cancel(tx, envelope, arrivals, because)
        more |= self._plan(tx, envelope, arrivals)
        if more:  # in the next transaction
            self._make_due(tx, ALLOCATE, envelope_id, because)
        else:
            self._answer(tx, envelope, because)
        # What had to wait for an answer has waited long enough.
        delay = 0.0 if envelope.asked or envelope.cancelling else self._settings.announce_delay_seconds
        self._make_due(tx, ANNOUNCE, envelope_id, because, delay)
        self._conclude(tx, envelope, because)

    def _take(self, tx: Tx, envelope_id: UUID) -> tuple[list[int], bool]:
        """What folds have recorded becomes part of the envelope; whoever came before in another part is there once."""
        limit = self._settings.max_chunk_batches
        new = store.new_arrivals(tx, envelope_id, limit)
        arrivals = [row.arrival for row in new]
        if not arrivals:
            return [], False
        again = sorted({row.batch_id for row in new if row.again})
        if again:
            store.supersede(tx, again, arrivals)
        store.mark_taken(tx, arrivals)
        return arrivals, len(arrivals) == limit

    def _plan(self, tx: Tx, envelope: Any, arrivals: Sequence[int]) -> bool:
        """A place for everybody who has none and for whom one may be found; True if there are more."""
        if envelope.goods and envelope.cancelling:  # nobody is served any more, whoever comes
            return False
        version = store.reference_version(tx)
        most = 0 if envelope.cancelling else _HELD_PEOPLE  # funds is about to cancel whoever is held: they need no room
        groups, more = store.unplanned(tx, envelope.envelope_id, arrivals, version, most)
        if not groups:
            return more
        zones = {(AGENCY, group.small_zone_id) for group in groups}
        if envelope.goods:
            zones |= {(WAREHOUSE, group.large_zone_id) for group in groups}
        store.know_zones(tx, envelope.envelope_id, sorted(zones))
        tx.lock_exclusive([_cycle_key(envelope)])
        agencies, warehouses = self._choices(tx, envelope, sorted(zones))
        needed = warehouses if envelope.goods else None
        people = _amounts(tx, domain.tight(groups, needed, agencies))
        shares = domain.plan(groups, people, needed, agencies)
        whole = [((s.group.arrival, s.group.grp), s) for s in shares if s.positions is None]
        some = [(s, s.positions) for s in shares if s.positions is not None]
        made = store.divide(tx, [(s.group.arrival, s.group.grp, positions) for s, positions in some])
        store.plan(tx, whole + list(zip(made, [s for s, _ in some], strict=True)), version)
        store.load(tx, envelope.envelope_id, _loads(shares, people))
        store.choose(tx, envelope.envelope_id, [agencies, warehouses])
        return more

    def _choices(self, tx: Tx, envelope: Any, zones: Sequence[tuple[str, str]]) -> tuple[Choice, Choice]:
        """Agencies and warehouses as they stand, with what was chosen before."""
        serving: dict[str, dict[str, list[Candidate]]] = {AGENCY: defaultdict(list), WAREHOUSE: defaultdict(list)}
        places: dict[tuple[str, str], Candidate] = {}
        for row in store.candidates(tx, envelope.envelope_id, self._source, zones):
            room = None if row.room is None else max(0, int(row.room))
            place = places.setdefault((row.kind, row.id), Candidate(row.id, row.coverage, int(row.load), room))
            serving[row.kind][row.zone_id].append(place)
        found = {kind: Choice(kind, of_kind) for kind, of_kind in serving.items()}
        for row in store.chosen(tx, envelope.envelope_id, zones):
            found[row.kind].chosen[row.zone_id] = Pick(row.place_id, row.chosen_by)
        return found[AGENCY], found[WAREHOUSE]

    # --- cancel -------------------------------------------------------------------------------------------------------

    def _cancel(self, tx: Tx, envelope: Any, arrivals: Sequence[int], cause: Cause) -> bool:
        """What is cancelled and was not said; of cash, which is funds' to cancel, also what was: its places have room again. True
        if there is more."""
        envelope_id, more = envelope.envelope_id, False
        if not envelope.goods:
            groups, more = self._cancelled_by_funds(tx, envelope, arrivals)
        elif envelope.cancelling:
            groups = store.cancellable_groups(tx, envelope_id, _CANCELLED_GROUPS)
            more = len(groups) == _CANCELLED_GROUPS
        elif envelope.asked or (arrivals and store.has_tombstones(tx, envelope_id)):
            asked = store.asked_cancellations(tx, envelope_id) if envelope.asked else []
            ids = [one for request in asked for one in request.disbursement_ids]
            groups = self._apart(tx, store.cancellable_people(tx, envelope_id, arrivals, ids))
        else:
            return False
        if groups:
            tx.lock_exclusive([_cycle_key(envelope)])
            gone = store.cancel_groups(tx, groups, said=not envelope.goods)
            back = {(row.kind, row.place_id): -row.minor for row in gone}
            self._give_back(tx, envelope_id, back, cause)
            store.forget_sealed(tx, sorted({arrival for arrival, _ in groups}))
        return more

    def _cancelled_by_funds(self, tx: Tx, envelope: Any, arrivals: Sequence[int]) -> tuple[list[tuple[int, int]], bool]:
        """The groups of cash that funds has cancelled: of the batches it spoke of since, and of who has just arrived."""
        envelope_id, limit = envelope.envelope_id, self._settings.max_chunk_batches
        batches = store.giving_back(tx, envelope_id, limit) if envelope.gives_back else []
        if not batches and not (arrivals and store.has_tombstones(tx, envelope_id)):
            return [], False
        store.gave_back(tx, [row.batch_id for row in batches])
        among = {*arrivals, *(arrival for row in batches for arrival in row.arrivals)}
        return self._apart(tx, store.people_giving_back(tx, envelope_id, sorted(among))), len(batches) == limit

    @staticmethod
    def _apart(tx: Tx, people: Sequence[tuple[Any, ...]]) -> list[tuple[int, int]]:
        """(arrival, grp, count, position) each -> groups of these people only."""
        whole: list[tuple[int, int]] = []
        some: list[tuple[int, int, Sequence[int]]] = []
        for (arrival, grp, count), found in groupby(people, key=lambda row: (row[0], row[1], row[2])):
            positions = [row[3] for row in found]
            if len(positions) == count:
                whole.append((arrival, grp))
            else:
                some.append((arrival, grp, positions))
        return whole + store.divide(tx, some)

    def _give_back(self, tx: Tx, envelope_id: UUID, change: Mapping[tuple[str, str], int], cause: Cause) -> None:
        """Under the cycle's lock: what is not needed any more may be what others wait for."""
        if change:
            store.load(tx, envelope_id, change)
            store.try_again(tx, ALLOCATE, cause, envelope_id)

    def _answer(self, tx: Tx, envelope: Any, cause: Cause) -> None:
        """Requests of which all is decided: single people at once, an envelope when all its batches are here."""
        if not envelope.asked:
            return
        envelope_id, answered, events = envelope.envelope_id, [], []
        header = EnvelopeHeader.model_validate_json(envelope.header)
        for request in store.asked_cancellations(tx, envelope_id):
            body: allocation.GoodsCancelled | allocation.EntitlementsCancelled
            if not request.whole:
                body = self._of_people(tx, header, request)
            elif request.batches <= store.whole_batches(tx, envelope_id):
                body = self._of_envelope(tx, header, request)
            else:
                continue
            answered.append(request.id)
            events.append(outgoing(body, envelope_id, cause, envelope_id, request.request_id))
        store.answer(tx, answered)
        self._outbox.append(tx, events)

    @staticmethod
    def _of_people(tx: Tx, header: EnvelopeHeader, request: Any) -> allocation.EntitlementsCancelled:
        fates = store.fates(tx, header.envelope_id, request.disbursement_ids)
        gone = [fate for fate in fates if fate.state != domain.ALLOCATED]
        return allocation.EntitlementsCancelled(
            header=header,
            request_id=request.request_id,
            cancelled=[fate.id for fate in gone],
            cancelled_minor=sum(fate.amount_minor or 0 for fate in gone),
            not_cancelled=[
                NotCancelled(disbursement_id=fate.id, reason="ALREADY_ANNOUNCED")
                for fate in fates
                if fate.state == domain.ALLOCATED
            ],
        )

    @staticmethod
    def _of_envelope(tx: Tx, header: EnvelopeHeader, request: Any) -> allocation.GoodsCancelled:
        found = store.totals(tx, header.envelope_id)
        return allocation.GoodsCancelled(
            header=header,
            request_id=request.request_id,
            cancelled=found.cancelled if found else 0,
            cancelled_minor=found.cancelled_minor if found else 0,
            already_announced=found.allocated if found else 0,
            already_announced_minor=found.allocated_minor if found else 0,
        )

    # --- reassign -----------------------------------------------------------------------------------------------------

    def reassign(self, tx: Tx, event: Event[operator.ReassignZone]) -> int:
        """A command: give a zone to another place, for whoever of it was not told yet; who was stays where they are. Returns how
        many people that is."""
        command, cause = event.data, cause_of(event)
        envelope_id, kind, zone_id, place_id = command.envelope_id, command.kind, command.zone_id, command.place_id
        tx.lock_exclusive([lock_key(SERVICE, envelope_id)])
        if not store.is_known(tx, envelope_id):
            raise CommandRefused(f"no envelope {envelope_id} has come here")
        envelope = store.envelope(tx, envelope_id)
        if kind == WAREHOUSE and not envelope.goods:
            raise CommandRefused("cash needs no warehouse")
        if envelope.goods and envelope.cancelling:
            raise CommandRefused("the envelope is cancelled")
        zone = store.groups_of_zone(tx, envelope_id, kind, zone_id)
        if not zone.count:
            if zone.announced:
                raise CommandRefused(f"zone {zone_id} has been announced, and nobody of it is left who was not told")
            raise CommandRefused(f"nobody of this envelope who could be served lives in zone {zone_id}")
        if command.expected is not None and command.expected != zone.count:
            raise CommandRefused(f"the operator saw {command.expected}, there are {zone.count}")
        tx.lock_exclusive([_cycle_key(envelope)])
        planned = store.planned_at(tx, envelope_id, kind, zone_id)
        self._refuse_unfit(tx, command, zone.minor - planned.get(place_id, 0))
        before = store.reassign(tx, envelope_id, kind, zone_id, place_id)
        moved: dict[tuple[str, str], int] = {(kind, place): -minor for place, minor in planned.items() if place != place_id}
        if moved:
            self._give_back(tx, envelope_id, {**moved, (kind, place_id): -sum(moved.values())}, cause)
        body = allocation.ZoneReassigned(
            header=EnvelopeHeader.model_validate_json(envelope.header),
            command_id=event.id,
            kind=kind,
            zone_id=zone_id,
            from_id=before if planned else None,
            to_id=place_id,
            who=command.who,
            reason=command.why,
            count=zone.count,
            total_minor=zone.minor,
        )
        self._outbox.append(tx, [outgoing(body, envelope_id, cause, event.id)])
        self._make_due(tx, ALLOCATE, envelope_id, Cause(event.id, str(envelope_id), event.traceparent))
        return int(zone.count)

    def _refuse_unfit(self, tx: Tx, command: operator.ReassignZone, minor: int) -> None:
        place = f"{command.kind} {command.place_id}"
        found = store.place_for(tx, command.envelope_id, self._source, command.kind, command.zone_id, command.place_id)
        if not found:
            raise CommandRefused(f"{place} does not serve zone {command.zone_id} with this benefit")
        if found[0].room is not None and found[0].room < minor:
            raise CommandRefused(f"{place} has no capacity for that in this cycle")

    # --- announce -----------------------------------------------------------------------------------------------------

    def announce(self, tx: Tx, subject: str, cause: Cause) -> None:
        """Say who serves whom, which is final. The caller holds the envelope's exclusive lock."""
        envelope_id = UUID(subject)
        because = Cause(cause.id, subject, cause.traceparent)
        envelope = store.envelope(tx, envelope_id)
        complete = envelope.completed_at is not None
        if envelope.goods and (envelope.cancelling or not complete):
            return
        # Funds decides on the cancellation of cash, and can do so only when it has been told of everybody.
        if not (complete or envelope.cancelling) or envelope.asked:
            return
        if envelope.letters:  # nothing overtakes a lost message
            self._make_due(tx, ANNOUNCE, envelope_id, because, LETTERS_SECONDS)
            return
        delay = 0.0 if envelope.cancelling else self._settings.announce_delay_seconds
        limit = self._settings.max_chunk_batches
        batches = store.ready_batches(tx, envelope_id, delay, limit)
        if batches:
            more = self._say(tx, envelope, batches, because)
            if more or len(batches) == limit:
                self._make_due(tx, ANNOUNCE, envelope_id, because)
        self._conclude(tx, envelope, because)

    def _say(self, tx: Tx, envelope: Any, batches: Sequence[Any], cause: Cause) -> bool:
        """The next part of each of these batches; True if one of them needs a further one for its size."""
        ids = [batch.batch_id for batch in batches]
        groups = store.announceable(tx, ids)
        places = self._places(tx, groups)
        if not envelope.goods and self._hold_back(tx, envelope, places, cause):
            groups = store.announceable(tx, ids)
        by_key = {(group.arrival, group.grp): group for group in groups}
        people: dict[UUID, list[_Person]] = defaultdict(list)
        for row in store.people_of(tx, by_key):
            group = by_key[row[0], row[1]]
            people[group.batch_id].append(_Person._make((*row, group)))
        planned = [group for group in groups if group.state == domain.PLANNED]
        clear = self._opened(tx, sorted({group.arrival for group in planned}))
        said: dict[UUID, _Said] = {}
        for batch in batches:
            if people[batch.batch_id]:
                said[batch.batch_id] = self._fitting(batch, people[batch.batch_id], clear, places)
        left = _by_group(person for one in said.values() for person in one.left)
        told = _by_group(person for one in said.values() for person in one.told)
        store.divide(tx, [(*key, positions) for key, positions in left.items() if key in told])
        store.announced(
            tx,
            [(*key, said[by_key[key].batch_id].event.part) for key in told],
            [_outcome(batch.batch_id, said.get(batch.batch_id)) for batch in batches],
        )
        self._outbox.append(
            tx, [outgoing(one.event, batch_id, cause, batch_id, one.event.part) for batch_id, one in said.items()]
        )
        return bool(left)

    def _hold_back(self, tx: Tx, envelope: Any, places: Mapping[tuple[str, str], "_Known"], cause: Cause) -> bool:
        """Cash: what is said is final, and funds can't pay an agency whose account is gone since the plan. Whoever is planned there
        is held, makes room and is tried once more; True if somebody is."""
        accounts = {place_id: known.content.get("account") for (kind, place_id), known in places.items() if kind == AGENCY}
        poor = [place_id for place_id, account in accounts.items() if not usable(account)]
        if not poor:
            return False
        tx.lock_exclusive([_cycle_key(envelope)])
        back = {(AGENCY, row.agency_id): -row.minor for row in store.hold_back(tx, envelope.envelope_id, poor)}
        self._give_back(tx, envelope.envelope_id, back, cause)
        self._make_due(tx, ALLOCATE, envelope.envelope_id, cause)
        return True

    def _fitting(
        self, batch: Any, people: Sequence[_Person], clear: Mapping[int, Mapping[str, Any]], places: Mapping[Any, Any]
    ) -> _Said:
        """As many as one event has room for; in a batch's first part the others are named as held, so that all are named."""
        told = [person for person in people if person.group.state == domain.PLANNED]
        held = [person for person in people if person.group.state == domain.HELD]
        left: list[_Person] = []
        while True:
            named = [*held, *left] if batch.parts == 0 else held
            event = self._event(batch, told, named, clear, places)
            if len(told) < 2 or _surely_fits(event) or len(event.model_dump_json().encode()) <= EVENT_BYTES:
                return _Said(event, told, left)
            half = len(told) // 2
            left = told[half:] + left
            told = told[:half]

    def _event(
        self,
        batch: Any,
        told: Sequence[_Person],
        held: Sequence[_Person],
        clear: Mapping[int, Mapping[str, Any]],
        places: Mapping[tuple[str, str], Any],
    ) -> allocation.BatchAllocated:
        header = BatchHeader.model_validate_json(batch.header)
        part = batch.parts + 1
        zones: dict[tuple[Any, ...], list[_Person]] = {}
        for person in told:
            zones.setdefault(person.zone, []).append(person)
        index = {zone: number for number, zone in enumerate(zones)}
        needed = {key for zone in zones for key in ((WAREHOUSE, zone[2]), (AGENCY, zone[3])) if key[1] is not None}
        whose = (header.envelope_id, header.batch_id, part)
        content = {p.disbursement_id: clear[p.arrival].get(p.disbursement_id, {}) for p in told}
        contacts = {f"{kind}/{place_id}": places[kind, place_id].content for kind, place_id in sorted(needed)}
        return allocation.BatchAllocated.model_validate(
            {
                "header": header,
                "part": part,
                "items": ZonedItems(
                    disbursement_id=[p.disbursement_id for p in told],
                    beneficiary_id=[p.beneficiary_id for p in told],
                    amount_minor=[p.amount_minor for p in told],
                    zone=[index[p.zone] for p in told],
                ),
                "count": len(told),
                "total_minor": sum(p.amount_minor for p in told),
                "zones": [_zone(found, places) for found in zones.values()],
                "sealed": self._sealer.seal(by_column(content), "BatchAllocated/people", *whose),
                "places": self._sealer.seal(contacts, "BatchAllocated/places", *whose),
                "held": UnresolvedItems.of(_unserved(person) for person in held),
                "held_count": len(held),
                "held_total_minor": sum(person.amount_minor for person in held),
            }
        )

    def _opened(self, tx: Tx, arrivals: Sequence[int]) -> dict[int, dict[str, Any]]:
        """arrival -> disbursement -> what is sealed of a person."""
        return {
            row.arrival: by_person(
                self._sealer.open_people(
                    Sealed(key_id=row.sealed_key, data=row.sealed),
                    "BatchZonesResolved",
                    row.envelope_id,
                    row.batch_id,
                    row.part,
                )
            )
            for row in store.sealed_parts(tx, arrivals)
        }

    def _places(self, tx: Tx, groups: Sequence[Any]) -> dict[tuple[str, str], "_Known"]:
        """What is known now of all places of these groups; accounts are of the envelope's own benefit."""
        keys = {key for g in groups for key in ((WAREHOUSE, g.warehouse_id), (AGENCY, g.agency_id)) if key[1] is not None}
        if not keys:
            return {}
        benefit = domain.account_key(*store.benefit(tx, groups[0].envelope_id))
        found = {}
        for row in store.places(tx, self._source, sorted(keys)):
            clear = from_json(self._sealer.open_bytes(bytes(row.sealed), "place", row.source, row.kind, row.id))
            account = clear["accounts"].get(benefit)
            content = {**clear["contact"], **({"account": account} if account and row.kind == AGENCY else {})}
            found[row.kind, row.id] = _Known(row.mnemonic, row.name, content)
        return found

    # --- and what it all comes to -------------------------------------------------------------------------------------

    def _conclude(self, tx: Tx, envelope: Any, cause: Cause) -> None:
        """Goods: everybody is here and each is allocated, held or cancelled. Said again, numbered, when that changes."""
        if not envelope.goods or envelope.completed_at is None or store.is_open(tx, envelope.envelope_id):
            return
        found = store.totals(tx, envelope.envelope_id)
        if found is None or (found.arrived, found.arrived_minor) != (envelope.declared, envelope.declared_minor):
            return
        names = ("allocated", "allocated_minor", "held", "held_minor", "cancelled", "cancelled_minor")
        numbers = [getattr(found, name) for name in names]
        if numbers == envelope.said:
            return
        revision = envelope.said_revision + 1
        body = allocation.EnvelopeAllocated(
            header=EnvelopeHeader.model_validate_json(envelope.header),
            revision=revision,
            declared=envelope.declared,
            declared_minor=envelope.declared_minor,
            **dict(zip(names, numbers, strict=True)),
        )
        store.said(tx, envelope.envelope_id, revision, numbers)
        self._outbox.append(tx, [outgoing(body, envelope.envelope_id, cause, envelope.envelope_id, revision)])

    @staticmethod
    def _make_due(tx: Tx, job: str, envelope_id: UUID, cause: Cause, delay_seconds: float = 0) -> None:
        jobs.make_due(tx, job, [str(envelope_id)], [lock_key(SERVICE, envelope_id)], cause, delay_seconds)


class _Known(NamedTuple):
    """A place as people are told of it."""

    mnemonic: str
    name: str
    content: dict[str, Any]


def _cycle_key(envelope: Any) -> int:
    return lock_key_text(f"{SERVICE}/{envelope.programme_id}\x1f{envelope.benefit_code_id}\x1f{envelope.cycle_id}")


def _amounts(tx: Tx, groups: Sequence[Group]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    found: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    if groups:
        for arrival, grp, position, minor, *_ in store.people_of(tx, [(one.arrival, one.grp) for one in groups]):
            found[arrival, grp].append((position, minor))
    return found


def _loads(
    shares: Sequence[domain.Share], people: Mapping[tuple[int, int], Sequence[tuple[int, int]]]
) -> dict[tuple[str, str], int]:
    """(kind, place) -> minor units that are planned there now."""
    found: dict[tuple[str, str], int] = defaultdict(int)
    for share in shares:
        minor = share.group.total_minor
        if share.positions is not None:
            chosen = set(share.positions)
            minor = sum(m for position, m in people[share.group.arrival, share.group.grp] if position in chosen)
        for kind, pick in ((WAREHOUSE, share.warehouse), (AGENCY, share.agency)):
            if pick is not None:
                found[kind, pick.place_id] += minor
    return found


def _by_group(people: Iterable[_Person]) -> dict[tuple[int, int], list[int]]:
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    for person in people:
        found[person.arrival, person.grp].append(person.position)
    return found


def _outcome(batch_id: UUID, said: _Said | None) -> tuple[UUID, int, int, int, bool]:
    """Of a batch of which nobody is left to be told of: that there is nothing to say."""
    if said is None:
        return batch_id, 0, 0, 0, False
    return batch_id, said.event.part, said.event.count, said.event.held_count, bool(said.left)


def _surely_fits(event: allocation.BatchAllocated) -> bool:
    """Spares nearly every event from being encoded twice: a character takes six bytes at most, escaped."""
    ids = len("".join(event.items.disbursement_id)) + len("".join(event.items.beneficiary_id))
    rest = 100 * len(event.items) + 10_000 * len(event.zones) + len(event.sealed.data) + len(event.places.data) + 20_000
    return len(event.held) < 100 and 6 * ids + rest < EVENT_BYTES


def _zone(people: Sequence[_Person], places: Mapping[tuple[str, str], _Known]) -> allocation.ZoneAllocation:
    group = people[0].group
    return allocation.ZoneAllocation(
        large_zone_id=group.large_zone_id,
        large_zone_code=group.large_zone_code,
        small_zone_id=group.small_zone_id,
        small_zone_code=group.small_zone_code,
        warehouse=_place(WAREHOUSE, group.warehouse_id, group.warehouse_by, places) if group.warehouse_id else None,
        agency=_place(AGENCY, group.agency_id, group.agency_by, places),
        count=len(people),
        total_minor=sum(person.amount_minor for person in people),
    )


def _place(kind: str, place_id: str, chosen_by: str, places: Mapping[tuple[str, str], _Known]) -> allocation.Place:
    known = places[kind, place_id]
    return allocation.Place(id=place_id, mnemonic=known.mnemonic, name=known.name, chosen_by=chosen_by)


def _unserved(person: _Person) -> Unresolved:
    held = person.group.state == domain.HELD
    return Unresolved(
        person.disbursement_id,
        person.beneficiary_id,
        person.amount_minor,
        reason=person.group.reason if held else domain.PART_TOO_LARGE,
        message=(person.group.message or "") if held else "goes with the next part",
    )
