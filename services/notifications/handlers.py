"""Who is to be told what, event by event. Goods: everybody, once allocated. Cash: an agency once the bank has its instruction, or
the bank's statement shows that it was paid all the same; a person once the statement shows the debit. Nobody is told of money that
may not come."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any
from uuid import UUID

from libs.common import jobs, workqueue
from libs.common.commands import CommandRefused
from libs.common.contracts import operator
from libs.common.contracts.allocation import BatchAllocated
from libs.common.contracts.base import CHUNK_ITEMS, BatchHeader, derived_id
from libs.common.contracts.funds import Payments, PaymentsConfirmed, PaymentsDispatched
from libs.common.contracts.resolution import BatchAddressesResolved
from libs.common.db import Tx, lock_key
from libs.common.envelope import Cause, Event, attributes, cause_of
from libs.common.errors import Malformed
from libs.common.outbox import Outbox, Outgoing
from services.notifications import domain, store
from services.notifications.config import Settings
from services.notifications.domain import Delivery
from services.notifications.saying import said
from services.notifications.store import AgencyList, Changed, NewMailing, Notice, Paid, Person, Planned

SERVICE = "notifications"
COMPOSE = "compose"
DISPATCHED, CONFIRMED = "DISPATCHED", "CONFIRMED"
_STEPS = {PaymentsDispatched: DISPATCHED, PaymentsConfirmed: CONFIRMED}


def notice_id(one: Planned) -> UUID:
    """The same subject and kind have the same id, whoever says so and how often: that is what makes it one notice. A disbursement
    is known within its envelope, a place within a part (of goods) or a list of an instruction (of cash), which mostly has but one."""
    if one.kind == "BENEFICIARY":
        return derived_id("notice", one.kind, one.header.envelope_id, one.subject, one.serial)
    where = f"part {one.part}" if one.instruction is None else f"instruction {one.instruction}"
    where += f" list {one.list_number}" if one.list_number > 1 else ""
    return derived_id("notice", one.kind, one.header.batch_id, where, one.subject, one.page, one.serial)


class Handlers:
    def __init__(self, settings: Settings, outbox: Outbox) -> None:
        self._settings = settings
        self._outbox = outbox
        # A mailing of what nobody is told is as large as an event.
        self._max_items: dict[str | None, int] = {None: CHUNK_ITEMS}
        self._max_items |= {name: getattr(settings, f"{name}_max_items") for name in ("novu", "smtp", "file")}

    # --- what comes in ------------------------------------------------------------------------------------------------

    def on_allocated(self, tx: Tx, events: Sequence[Event[BatchAllocated]]) -> None:
        """The people of a part have their places. Goods can be told of now, cash only once it is paid."""
        agencies = {
            (e.data.header.batch_id, e.data.part): [e.data.zones[zone].agency.id for zone in e.data.items.zone] for e in events
        }
        fresh = self._keep(tx, events, agencies)
        planned = [
            (notice, _cause(event))
            for event in fresh
            if event.data.header.benefit_type not in domain.CASH
            for notice in self._of_goods(event.data)
        ]
        self._make(tx, planned)

    def on_addresses(self, tx: Tx, events: Sequence[Event[BatchAddressesResolved]]) -> None:
        """Names and contacts of people who are paid by account; they are told once they are paid."""
        self._keep(tx, events, {})

    def on_payments(self, tx: Tx, events: Sequence[Event[Any]]) -> None:
        """Payments were dispatched (agencies are told of those) or confirmed (people are told, and agencies that were not yet). Whose
        part is not here yet waits."""
        told = [event for event in events if isinstance(event.data, PaymentsConfirmed) or _pays_agencies(event.data.header)]
        if not told:
            return
        _lock(tx, told)
        store.ensure_batches(tx, [event.data.header for event in told])
        causes = {event.data.header.batch_id: _cause(event) for event in told}
        headers = {event.data.header.batch_id: event.data.header for event in told}
        self._compose(tx, [_paid(event.data) for event in told], headers, causes, park=True)

    def compose(self, tx: Tx, subject: str, cause: Cause) -> None:
        """The job: take up what waits for a batch. Under the exclusive lock: whoever brought a part has committed it."""
        batch_id = UUID(subject)
        waiting = store.unpark(tx, batch_id)
        if waiting:
            self._compose(tx, waiting, {batch_id: store.header_of(tx, batch_id)}, {batch_id: cause}, park=False)

    def _keep(self, tx: Tx, events: Sequence[Event[Any]], agencies: Mapping[tuple[UUID, int], list[str]]) -> list[Event[Any]]:
        """Store parts; returns the events of those that are new."""
        for event in events:
            ids = event.data.items.disbursement_id
            if len(set(ids)) < len(ids):
                raise Malformed("DUPLICATE_DISBURSEMENT_ID", "a disbursement is twice in the part", "/items")
        _lock(tx, events)
        store.ensure_batches(tx, [event.data.header for event in events])
        by_part = {(event.data.header.batch_id, event.data.part): event for event in events if event.data.items}
        rows = {key: (event, attributes(event.raw).data, agencies.get(key)) for key, event in by_part.items()}
        new = store.add_parts(tx, rows)  # type: ignore[arg-type]
        cash = {key[0]: by_part[key] for key in sorted(new) if by_part[key].data.header.benefit_type in domain.CASH}
        if cash:
            for batch_id in store.parked_batches(tx, list(cash)):
                _make_due(tx, cash[batch_id].data.header, _cause(cash[batch_id]))
        return [by_part[key] for key in sorted(new)]

    # --- notices ------------------------------------------------------------------------------------------------------

    def _of_goods(self, data: BatchAllocated) -> list[Planned]:
        """The warehouses, the agencies with their lists in pages, and the people of a part."""
        header, part, size = data.header, data.part, self._settings.agency_page_items
        found: list[Planned] = []
        served: defaultdict[str, int] = defaultdict(int)
        warehouses: dict[str, None] = {}
        for zone in data.zones:
            served[zone.agency.id] += zone.count
            if zone.warehouse is not None and zone.count:
                warehouses[zone.warehouse.id] = None
        for place in warehouses:
            found.append(_planned(header, "WAREHOUSE", place, place, part=part))
        for agency, count in served.items():
            found += _paged(header, agency, count, size, part=part)
        for item in data.items:
            found.append(_planned(header, "BENEFICIARY", item.disbursement_id, item.beneficiary_id, part=part))
        return found

    def _compose(
        self, tx: Tx, payments: Sequence[Paid], headers: Mapping[UUID, BatchHeader], causes: Mapping[UUID, Cause], *, park: bool
    ) -> None:
        """Make the notices of those payments whose people are here; the others wait."""
        here = store.people(tx, [(paid.batch_id, paid.disbursement_ids) for paid in payments])
        found = [(paid, [here.get((paid.batch_id, one)) for one in paid.disbursement_ids]) for paid in payments]
        # An agency is told of its list as a whole: all that is known of an instruction waits for those who are not here.
        late = {(paid.batch_id, paid.instruction) for paid, people in found if None in people}
        planned: list[Planned] = []
        waiting: list[Paid] = []
        lists: list[tuple[Paid, list[Person]]] = []
        for paid, people in found:
            header = headers[paid.batch_id]
            if paid.step == CONFIRMED:
                for one, person in zip(paid.disbursement_ids, people, strict=True):
                    if person is not None:
                        planned.append(_planned(header, "BENEFICIARY", one, person.beneficiary_id, part=person.part))
            if _pays_agencies(header):
                if (paid.batch_id, paid.instruction) in late:
                    waiting.append(paid)
                else:
                    lists.append((paid, [person for person in people if person is not None]))
            elif missing := [index for index, person in enumerate(people) if person is None]:
                ids, amounts = [paid.disbursement_ids[n] for n in missing], [paid.amounts[n] for n in missing]
                waiting.append(replace(paid, disbursement_ids=ids, amounts=amounts))
        planned += self._of_instructions(tx, lists, headers)
        if waiting:
            store.park(tx, waiting)
            if park:  # or the part may have come, unseen, between our look and our commit
                for batch_id in {paid.batch_id for paid in waiting}:
                    _make_due(tx, headers[batch_id], causes[batch_id])
        self._make(tx, [(notice, causes[notice.header.batch_id]) for notice in planned])

    def _of_instructions(
        self, tx: Tx, payments: Sequence[tuple[Paid, list[Person]]], headers: Mapping[UUID, BatchHeader]
    ) -> list[Planned]:
        """Whom each agency is paid for and was not told of yet, in pages. Mostly that is all of an instruction, once it is dispatched.
        But a statement may show what the bank had refused, or what nobody knew to be dispatched: that is a further list."""
        if not payments:
            return []
        listed = store.listed(tx, {(paid.batch_id, paid.instruction) for paid, _ in payments})
        lists: dict[tuple[UUID, int], AgencyList] = {}
        for paid, people in payments:
            key = paid.batch_id, paid.instruction
            before, known = listed.get(key, (0, set()))
            new = lists.setdefault(key, AgencyList(*key, before + 1))
            for one, minor, person in zip(paid.disbursement_ids, paid.amounts, people, strict=True):
                if one not in known:
                    new.shares[one] = (minor, person.agency_id or "", person.part)
        some = [one for one in lists.values() if one.shares]
        store.add_lists(tx, some)
        size = self._settings.agency_page_items
        return [
            notice
            for one in some
            for agency, count in Counter(agency for _, agency, _ in one.shares.values()).items()
            for notice in _paged(
                headers[one.batch_id], agency, count, size, instruction=one.instruction, list_number=one.list_number
            )
        ]

    def _make(self, tx: Tx, planned: Sequence[tuple[Planned, Cause]]) -> None:
        """Notices that are not there yet become mailings, or are recorded as not to be sent."""
        if not planned:
            return
        known = store.known(tx, [notice.notice_id for notice, _ in planned])
        new = {notice.notice_id: (notice, cause) for notice, cause in planned if notice.notice_id not in known}
        if not new:
            return
        muted = store.suppressed(tx, ((notice.kind, notice.party) for notice, _ in new.values()))
        mailings, causes = self._cut(list(new.values()), muted)
        numbers = store.add_mailings(tx, mailings)
        store.add_notices(tx, numbers, mailings)
        self._hand_over(tx, mailings, numbers, causes)

    def _cut(
        self, planned: Iterable[tuple[Planned, Cause]], muted: set[tuple[str, str]]
    ) -> tuple[list[NewMailing], list[Cause]]:
        """Mailings of one kind and channel and of one part, or instruction, none larger than its channel takes."""
        groups: dict[tuple[Any, ...], list[tuple[Planned, Cause]]] = {}
        for notice, cause in planned:
            channel = self._settings.channel(notice.kind)
            code = domain.SUPPRESSED if channel is None else ""
            if (notice.kind, notice.party) in muted:
                channel, code = None, domain.SUBJECT_SUPPRESSED
            where = notice.header.batch_id, notice.part, notice.instruction, notice.list_number, notice.page_items
            groups.setdefault((*where, notice.kind, channel, code), []).append((notice, cause))
        mailings: list[NewMailing] = []
        causes: list[Cause] = []
        for (*_, channel, code), found in groups.items():
            size = self._max_items[channel]
            for start in range(0, len(found), size):
                some = found[start : start + size]
                mailings.append(NewMailing(channel, code, [notice for notice, _ in some]))
                causes.append(some[0][1])
        return mailings, causes

    def _hand_over(self, tx: Tx, mailings: Sequence[NewMailing], numbers: Sequence[int], causes: Sequence[Cause]) -> None:
        """What is to be sent becomes work; what is not is said."""
        found = list(zip(mailings, numbers, causes, strict=True))
        for channel, of_channel in groupby(sorted(found, key=lambda one: one[0].channel or ""), key=lambda one: one[0].channel):
            if channel is None:
                continue
            some = list(of_channel)
            workqueue.enqueue(
                tx,
                channel,
                [str(number) for _, number, _ in some],
                [lock_key(SERVICE, mailing.notices[0].header.envelope_id) for mailing, _, _ in some],
                [cause for *_, cause in some],
            )
        news: list[Outgoing] = []
        for mailing, _, cause in found:
            if mailing.code:
                header, kind = mailing.notices[0].header, mailing.notices[0].kind
                changed = [Changed(n.notice_id, n.subject, "SUPPRESSED", mailing.code, "") for n in mailing.notices]
                news += said(header, kind, None, changed, cause)
        self._outbox.append(tx, news)

    # --- operators, and what providers say ----------------------------------------------------------------------------

    def send_again(self, tx: Tx, event: Event[operator.SendNotices]) -> int:
        """Another notice for each of those named, all or none: nobody is told twice by mistake."""
        found = self._named(tx, event.data, event.data.notice_ids)
        for notice in found:
            if notice.changed.state in ("PENDING", "UNKNOWN"):
                raise CommandRefused(f"notice {notice.changed.notice_id} is {notice.changed.state}; settle it first")
            if notice.replaced:
                raise CommandRefused(f"notice {notice.changed.notice_id} was sent once more already; name its successor")
        self._make(tx, [(_successor(notice), _of_envelope(event, notice.header)) for notice in found])
        return len(found)

    def settle(self, tx: Tx, event: Event[operator.SettleNotices]) -> int:
        """An operator knows what became of notices whose answer was lost."""
        command = event.data
        found = self._named(tx, command, command.notice_ids)
        for notice in found:
            if notice.changed.state != "UNKNOWN":
                raise CommandRefused(f"notice {notice.changed.notice_id} is {notice.changed.state}, not UNKNOWN")
        state: domain.State = "SENT" if command.outcome == "sent" else "FAILED"
        code = "" if state == "SENT" else domain.NOT_SENT
        store.change(tx, [notice.changed.notice_id for notice in found], state, code)
        for channel, number in store.settled_mailings(tx, (notice.mailing for notice in found)):
            workqueue.finish(tx, channel, [str(number)], "DONE", "SETTLED")
        self._say_changed(tx, found, {n.changed.notice_id: (state, code) for n in found}, cause_of(event))
        return len(found)

    @staticmethod
    def suppress(tx: Tx, event: Event[operator.SuppressSubject]) -> int:
        """Somebody is told nothing any more, nor what waits and was never attempted; or that is lifted, and counts for what comes."""
        command = event.data
        if command.suppressed:
            return store.suppress(tx, command.kind, command.subject, command.who, command.why)
        return store.lift(tx, command.kind, command.subject)

    def delivered(self, tx: Tx, deliveries: Mapping[UUID, Delivery], cause: Cause) -> int:
        """What Novu says of notices it has taken, in any order and as often as it likes; returns how many it names that we don't
        know. What it says of those that are not settled yet counts when they are."""
        found = [notice for notice in store.locked(tx, sorted(deliveries)) if notice.channel == "novu"]
        news = set(store.delivered(tx, {n.changed.notice_id: deliveries[n.changed.notice_id] for n in found}))
        told = [notice for notice in found if notice.changed.notice_id in news]
        arrived = [notice for notice in told if deliveries[notice.changed.notice_id] == "DELIVERED"]
        self._say_changed(tx, arrived, {}, cause)
        bounced: dict[UUID, tuple[domain.State, str]] = {
            notice.changed.notice_id: ("FAILED", domain.BOUNCED)
            for notice in told
            if deliveries[notice.changed.notice_id] == "BOUNCED" and notice.changed.state != "PENDING"
        }
        self._say_changed(tx, [notice for notice in told if notice.changed.notice_id in bounced], bounced, cause)
        for channel, number in store.settled_mailings(tx, (n.mailing for n in told if n.changed.state == "UNKNOWN")):
            workqueue.finish(tx, channel, [str(number)], "DONE", "DELIVERED")
        return len(deliveries) - len(found)

    @staticmethod
    def _named(tx: Tx, command: operator.Command, notice_ids: Sequence[UUID]) -> list[Notice]:
        """Those notices, each once and all of them there."""
        ids = list(dict.fromkeys(notice_ids))
        found = store.locked(tx, ids)
        missing = set(ids) - {notice.changed.notice_id for notice in found}
        if missing:
            raise CommandRefused(f"there is no notice {min(missing)}")
        if command.expected not in (None, len(found)):
            raise CommandRefused(f"{len(found)} notices are named, {command.expected} were expected")
        return found

    def _say_changed(self, tx: Tx, found: Iterable[Notice], now: Mapping[UUID, tuple[domain.State, str]], cause: Cause) -> None:
        """Events for notices of any batches that have a new state (those without: that they have arrived), by batch, kind and
        channel."""
        groups: dict[tuple[UUID, str, str | None, bool], list[Notice]] = {}
        for notice in found:
            arrived = notice.changed.notice_id not in now
            groups.setdefault((notice.header.batch_id, notice.kind, notice.channel, arrived), []).append(notice)
        news: list[Outgoing] = []
        for (_, _, channel, arrived), notices in groups.items():
            first = notices[0]
            changed = [_now(notice.changed, now) for notice in notices]
            news += said(first.header, first.kind, channel, changed, cause, delivered=arrived)
        self._outbox.append(tx, news)


def _now(before: Changed, now: Mapping[UUID, tuple[domain.State, str]]) -> Changed:
    state, code = now.get(before.notice_id, ("SENT", ""))
    return Changed(before.notice_id, before.subject, state, code, "")


def _planned(header: BatchHeader, kind: domain.Kind, subject: str, party: str, **more: Any) -> Planned:
    one = Planned(UUID(int=0), header, kind, subject, party, **more)
    return replace(one, notice_id=notice_id(one))


def _paged(header: BatchHeader, agency: str, count: int, page_items: int, **where: int) -> list[Planned]:
    """The notices to an agency: a page each."""
    pages = domain.pages(count, page_items)
    more = {"pages": pages, "page_items": page_items, **where}
    return [_planned(header, "AGENCY", agency, agency, page=page, **more) for page in range(1, pages + 1)] if count else []


def _successor(notice: Notice) -> Planned:
    before = notice.changed
    return _planned(
        notice.header,
        notice.kind,
        before.subject,
        notice.party,
        part=notice.part,
        instruction=notice.instruction,
        list_number=notice.list_number,
        page=notice.page,
        pages=notice.pages,
        page_items=notice.page_items,
        serial=notice.serial + 1,
        replaces=before.notice_id,
    )


def _pays_agencies(header: BatchHeader) -> bool:
    return header.benefit_type == "CASH_PHYSICAL"


def _paid(data: Payments) -> Paid:
    items = data.items
    return Paid(data.header.batch_id, _STEPS[type(data)], data.instruction, items.disbursement_id, items.amount_minor)


def _lock(tx: Tx, events: Sequence[Event[Any]]) -> None:
    tx.lock_shared(lock_key(SERVICE, event.data.header.envelope_id) for event in events)


def _make_due(tx: Tx, header: BatchHeader, cause: Cause) -> None:
    jobs.make_due(tx, COMPOSE, [str(header.batch_id)], [lock_key(SERVICE, header.envelope_id)], cause)


def _cause(event: Event[Any]) -> Cause:
    return Cause(event.id, str(event.data.header.envelope_id), event.traceparent)


def _of_envelope(event: Event[Any], header: BatchHeader) -> Cause:
    return Cause(event.id, str(header.envelope_id), event.traceparent)
