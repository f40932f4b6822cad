"""What a notice tells, made from the sealed rows of its part whenever it is needed: nothing of it is stored.

The keys are those that workflows at Novu know from G2P Bridge; quantities are decimal text, exact in any unit.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property, lru_cache
from typing import Any
from uuid import UUID

from libs.common.contracts.allocation import Place, ZoneAllocation
from libs.common.contracts.base import BatchHeader, Item, Mnemonic, ZonedItem
from libs.common.contracts.resolution import BatchAddressesResolved
from libs.common.money import Unit
from libs.common.seal import Sealer, by_person
from services.notifications import domain, store
from services.notifications.domain import Kind, one_line, quantity
from services.notifications.ports import Message
from services.notifications.store import Mailing, NoticeRow

ADDRESSES = "BatchAddressesResolved"
PEOPLE = "BatchAllocated/people"
PLACES = "BatchAllocated/places"


@dataclass(frozen=True)
class Part:
    """One part of a batch, opened: who is in it, what they are called, where they are served."""

    header: BatchHeader  # as it was then: what is repeated with its key has to be the same
    items: Mapping[str, Item | ZonedItem]  # by disbursement
    people: Mapping[str, Mapping[str, Any]]
    zones: Mapping[str, ZoneAllocation]  # of each disbursement; empty where people are paid by account
    places: Mapping[str, Mapping[str, Any]]


class Opener:
    """Opens parts as they lie in their rows. The last few are kept: the mailings of a part follow each other."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer
        self.open = lru_cache(maxsize=4)(self._open)

    def _open(self, body: bytes, digital: bool) -> Part:
        """Raises Malformed where a seal does not open."""
        data = store.unpack(body, digital=digital)
        place = data.header.envelope_id, data.header.batch_id, data.part
        items: dict[str, Item | ZonedItem] = {item.disbursement_id: item for item in data.items}
        if isinstance(data, BatchAddressesResolved):
            return Part(data.header, items, by_person(self._sealer.open_people(data.sealed, ADDRESSES, *place)), {}, {})
        zones = {item.disbursement_id: data.zones[item.zone] for item in data.items}
        people = by_person(self._sealer.open_people(data.sealed, PEOPLE, *place))
        return Part(data.header, items, people, zones, self._sealer.open(data.places, PLACES, *place))


class Contents:
    """What the notices of one mailing tell. Raises Malformed where a seal does not open."""

    def __init__(self, mailing: Mailing, opener: Opener, programmes: Mapping[str, str], benefits: Mapping[str, str]) -> None:
        self._mailing = mailing
        digital = mailing.header.benefit_type == "CASH_DIGITAL"
        self._parts = [opener.open(body, digital) for body in mailing.bodies]
        self._header = self._parts[0].header
        self._common = _common(self._header, programmes, benefits)

    def messages(self) -> list[Message]:
        make = {"BENEFICIARY": self._beneficiary, "AGENCY": self._agency, "WAREHOUSE": self._warehouse}[self._mailing.kind]
        return [make(notice) for notice in self._mailing.notices]

    @cached_property
    def _unit(self) -> Unit:
        header = self._header
        return domain.unit(header.benefit_type, header.currency, header.measurement_unit, header.unit_scale)

    def _beneficiary(self, notice: NoticeRow) -> Message:
        part = next((part for part in self._parts if notice.subject in part.items), None)
        if part is None:
            raise LookupError(f"{notice.subject} is not in its part")
        item, person = part.items[notice.subject], part.people.get(notice.subject, {})
        zone = part.zones.get(notice.subject)
        email, phone = domain.contact(person)
        name = one_line(person.get("name"))
        payload = {
            **self._payload([zone] if zone else [], item.amount_minor, 1),
            "beneficiary_id": item.beneficiary_id,
            "beneficiary_name": name,
        }
        return _message(notice, "BENEFICIARY", item.beneficiary_id, name, email, phone, payload)

    def _agency(self, notice: NoticeRow) -> Message:
        served = self._served(notice.subject)
        start = (notice.page - 1) * self._mailing.page_items
        entitlements = [
            {
                "beneficiary_id": part.items[one].beneficiary_id,
                "beneficiary_name": one_line(part.people.get(one, {}).get("name")),
                "total_quantity": quantity(minor, self._unit),
            }
            for part, one, minor in served[start : start + self._mailing.page_items]
        ]
        zones = _distinct(part.zones[one] for part, one, _ in served)
        payload = {
            **self._payload(zones, sum(minor for *_, minor in served), len(served)),
            "beneficiary_entitlements": entitlements,
            "page": notice.page,
            "pages": notice.pages,
        }
        return self._to_place(notice, "AGENCY", f"agency/{notice.subject}", payload)

    def _warehouse(self, notice: NoticeRow) -> Message:
        [part] = self._parts
        served = [
            (zone.agency, part.items[one].amount_minor, zone)
            for one, zone in part.zones.items()
            if zone.warehouse is not None and zone.warehouse.id == notice.subject
        ]
        totals: dict[str, tuple[Place, int, int]] = {}
        for agency, minor, _ in served:
            _, count, total = totals.get(agency.id, (agency, 0, 0))
            totals[agency.id] = agency, count + 1, total + minor
        payload = self._payload(_distinct(zone for *_, zone in served), sum(minor for _, minor, _ in served), len(served))
        agencies = [
            {
                "agency_id": agency.id,
                "agency_mnemonic": agency.mnemonic,
                "agency_name": one_line(agency.name),
                "total_quantity": quantity(total, self._unit),
                "no_of_beneficiaries": count,
            }
            for agency, count, total in totals.values()
        ]
        return self._to_place(notice, "WAREHOUSE", f"warehouse/{notice.subject}", payload, {"agencies": agencies})

    def _served(self, agency: str) -> list[tuple[Part, str, int]]:
        """(part, disbursement, amount) of an agency's people: of a part of goods, or of an instruction that pays the agency."""
        instruction = self._mailing.instruction_items
        if instruction is None:
            [part] = self._parts
            return [(part, one, part.items[one].amount_minor) for one, zone in part.zones.items() if zone.agency.id == agency]
        where = {one: part for part in self._parts for one in part.items}
        return [(where[one], one, minor) for one, minor, of in instruction if of == agency]

    def _to_place(
        self, notice: NoticeRow, kind: Kind, name: str, payload: dict[str, Any], more: Mapping[str, Any] | None = None
    ) -> Message:
        found = next((part.places[name] for part in self._parts if name in part.places), {})
        email, phone = str(found.get("admin_email") or ""), str(found.get("admin_mobile") or "")
        who = one_line(found.get("admin_name"))
        return _message(notice, kind, name.replace("/", "-"), who, email, phone, payload, more)

    def _payload(self, zones: Sequence[ZoneAllocation], total_minor: int, people: int) -> dict[str, Any]:
        warehouses = _distinct(zone.warehouse for zone in zones if zone.warehouse)
        agencies = _distinct(zone.agency for zone in zones)
        return {
            **self._common,
            **_place("warehouse", warehouses),
            **_place("agency", agencies),
            "total_quantity": quantity(total_minor, self._unit),
            "no_of_beneficiaries": people,
            "no_of_bebeficiaries": people,  # as G2P Bridge writes it: workflows that were made for it go on as they are
            "administrative_zone_id_large": _list(zone.large_zone_id for zone in zones),
            "administrative_zone_mnemonic_large": _list(zone.large_zone_code for zone in zones),
            "administrative_zone_id_small": _list(zone.small_zone_id for zone in zones),
            "administrative_zone_mnemonic_small": _list(zone.small_zone_code for zone in zones),
        }


def _common(header: BatchHeader, programmes: Mapping[str, str], benefits: Mapping[str, str]) -> dict[str, Any]:
    benefit = benefits.get(header.benefit_code.id, "")
    return {
        "program_mnemonic": _said(header.programme),
        "program_description": programmes.get(header.programme.id, ""),
        "target_registry": one_line(header.target_registry),
        "disbursement_cycle_mnemonic": _said(header.cycle),
        "disbursement_date": header.schedule_date.isoformat(),
        "benefit_code_id": header.benefit_code.id,
        "benefit_code_mnemonic": _said(header.benefit_code),
        "benefit_code_description": benefit,
        "benefit_type": header.benefit_type,
        "measurement_unit": one_line(header.measurement_unit or header.currency),
        "benefit_description": benefit,
    }


def _said(named: Mnemonic) -> str:
    return one_line(named.mnemonic) or named.id


def _place(kind: str, places: Sequence[Place]) -> dict[str, str]:
    return {
        f"{kind}_id": _list(place.id for place in places),
        f"{kind}_mnemonic": _list(place.mnemonic for place in places),
        f"{kind}_name": _list(place.name for place in places),
    }


def _list(texts: Iterable[str]) -> str:
    """Each once, in their order; mostly there is but one."""
    return ", ".join(dict.fromkeys(filter(None, map(one_line, texts))))


def _distinct(found: Iterable[Any]) -> list[Any]:
    kept: list[Any] = []
    seen: set[int] = set()
    for one in found:
        if id(one) not in seen:
            seen.add(id(one))
            kept.append(one)
    return kept


def _message(
    notice: NoticeRow,
    kind: Kind,
    party: str,
    name: str,
    email: str,
    phone: str,
    payload: dict[str, Any],
    more: Mapping[str, Any] | None = None,
) -> Message:
    told = {"recipient_name": name, **(more or {})}
    return Message(notice.notice_id, kind, party, name, email, phone, notice.created_at, payload, told)


_SAMPLES = {"COMMODITY": ("Seed rice", "kg"), "SERVICE": ("Ploughing", "hours"), "COMBINATION": ("Seed rice and tools", "sets")}


def sample(kind: Kind, benefit_type: str = "COMMODITY") -> Message:
    """Invented people and places, for previews and for trying templates before anybody is told by them."""
    cash = benefit_type in domain.CASH
    benefit, unit = _SAMPLES.get(benefit_type, ("Cash", ""))
    header = BatchHeader(
        envelope_id=UUID(int=1),
        batch_id=UUID(int=2),
        number=1,
        source="sample",
        publisher_envelope_id="RUN-1",
        programme=Mnemonic(id="RICE", mnemonic="Rice for farmers"),
        benefit_code=Mnemonic(id="SEED-01", mnemonic=benefit),
        benefit_type=benefit_type,
        cycle=Mnemonic(id="2026-11", mnemonic="November 2026"),
        target_registry="farmers",
        currency="PHP" if cash else "",
        measurement_unit=unit,
        unit_scale=0 if cash else 3,
        schedule_date=date(2026, 11, 30),
    )
    village = {"large_zone_id": "PH-ISA", "large_zone_code": "Isabela", "small_zone_id": "ISA-014", "small_zone_code": "Alicia"}
    warehouse = Place(id="W-2", mnemonic="CAUAYAN", name="Cauayan depot", chosen_by="ONLY_ONE")
    agency = Place(id="A-31", mnemonic="ALICIA", name="Alicia co-operative", chosen_by="ONLY_ONE")
    placed = benefit_type != "CASH_DIGITAL"
    payload = {
        **_common(header, {"RICE": "Seed and cash after the floods"}, {"SEED-01": "After the floods"}),
        **_place("warehouse", [] if cash else [warehouse]),
        **_place("agency", [agency] if placed else []),
        "total_quantity": "250.00" if cash else "50.000",
        "no_of_beneficiaries": 2,
        "no_of_bebeficiaries": 2,
        "administrative_zone_id_large": village["large_zone_id"] if placed else "",
        "administrative_zone_mnemonic_large": village["large_zone_code"] if placed else "",
        "administrative_zone_id_small": village["small_zone_id"] if placed else "",
        "administrative_zone_mnemonic_small": village["small_zone_code"] if placed else "",
    }
    name, party = "Rosa Dela Cruz", "FARMER-1004711"
    each = "125.00" if cash else "25.000"
    if kind == "BENEFICIARY":
        payload |= {"beneficiary_id": party, "beneficiary_name": name, "total_quantity": each, "no_of_beneficiaries": 1}
    elif kind == "AGENCY":
        people = [(party, name), ("FARMER-1004712", "Juan Santos")]
        payload["beneficiary_entitlements"] = [
            {"beneficiary_id": person, "beneficiary_name": called, "total_quantity": each} for person, called in people
        ]
        payload |= {"page": 1, "pages": 2}
        name, party = "Ana Reyes", "agency-A-31"
    else:
        name, party = "Ben Cruz", "warehouse-W-2"
    agencies = [{"agency_id": "A-31", "agency_mnemonic": "ALICIA", "agency_name": "Alicia co-operative",
                 "total_quantity": "50.000", "no_of_beneficiaries": 2}]  # fmt: skip
    notice = NoticeRow(UUID(int=3), "D-1", 1, 1, datetime(2026, 11, 21, 9, 0, tzinfo=UTC))
    more = {"agencies": agencies} if kind == "WAREHOUSE" else None
    return _message(notice, kind, party, name, "sample@example.org", "+639171234567", payload, more)
