"""Batches as resolution locates them, places as PBMS lists them, allocation as a process, and what it said of whom."""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID, uuid4

from libs.common.contracts import allocation, funds, ingestion, operator, resolution
from libs.common.contracts.base import (
    Amount,
    Amounts,
    EnvelopeHeader,
    EventData,
    Mnemonic,
    UnresolvedItems,
    Zone,
    ZonedItems,
    chunk,
    zone_totals,
)
from libs.common.contracts.scheduler import Tick
from libs.common.seal import Sealer, by_column, by_person
from libs.local.reference import Place, Reference
from services.allocation.config import Settings
from tests.support.process import Process
from tests.support.world import SEAL_KEYS, TOKEN_KEY, World

SEALER = Sealer(SEAL_KEYS, TOKEN_KEY)
IN, ENVELOPES, PAYMENTS = "resolution.batches.v1", "ingestion.envelopes.v1", "funds.payments.v1"
OUT, FACTS = "allocation.batches.v1", "allocation.envelopes.v1"
COMMANDS, TICKS = "allocation.commands.v1", "scheduler.ticks.v1"
PROGRAMME, CODE = "RICE", "SEED-01"
SERVES = ((PROGRAMME, CODE, None),)


def warehouse(number: int, *zones: str, capacity: str | None = None, **more: Any) -> Place:
    return Place(number, f"W-{number}", f"Warehouse {number}", zones, ((PROGRAMME, CODE, capacity),), **more)


def agency(number: int, *zones: str, capacity: str | None = None, account: str | None = None, **more: Any) -> Place:
    more = {"admin_name": f"Head of {number}", "admin_email": f"a{number}@example.org", "admin_mobile": "+2210000", **more}
    return Place(number, f"A-{number}", f"Agency {number}", zones, ((PROGRAMME, CODE, capacity),), account=account, **more)


class Envelope:
    """An envelope whose people live in small zones such as "L1-s1"; what comes before the dash is the large zone."""

    def __init__(self, benefit_type: str = "COMMODITY", cycle: str = "C1", **header: Any) -> None:
        goods = benefit_type != "CASH_PHYSICAL"
        fields: dict[str, Any] = {
            "envelope_id": uuid4(),
            "source": "test",
            "publisher_envelope_id": f"E-{uuid4().hex[:6]}",
            "programme": Mnemonic(id=PROGRAMME),
            "benefit_code": Mnemonic(id=CODE),
            "benefit_type": benefit_type,
            "cycle": Mnemonic(id=cycle),
            "currency": "" if goods else "KES",
            "measurement_unit": "kg" if goods else "",
            "unit_scale": 3 if goods else 0,
            "schedule_date": date(2026, 3, 1),
        }
        self.header = EnvelopeHeader(**{**fields, **header})
        self.id: UUID = self.header.envelope_id
        self.parts: list[resolution.BatchZonesResolved] = []

    def batch(self, *zones: str | None, minor: int = 1500) -> resolution.BatchZonesResolved:
        """Part 1 of the next batch: one person for each zone named; None: not in the registry. Amounts differ by a few units."""
        number = len({part.header.batch_id for part in self.parts}) + 1
        people = [(f"D{number}-{n}", f"P{number}-{n}", minor + n % 7, zone) for n, zone in enumerate(zones)]
        return self._part(uuid4(), number, 1, people)

    def later(self, first: resolution.BatchZonesResolved, found: dict[str, str], still: Sequence[str] = ()) -> Any:
        """The next part of a batch: disbursement -> zone of those found meanwhile, and who is not."""
        known = {one.disbursement_id: one for one in first.unresolved}
        people = [
            (name, known[name].beneficiary_id, known[name].amount_minor, zone)
            for name, zone in [*found.items(), *((name, None) for name in still)]
        ]
        part = 1 + max(one.part for one in self.parts if one.header.batch_id == first.header.batch_id)
        return self._part(first.header.batch_id, first.header.number, part, people)

    def _part(
        self, batch_id: UUID, number: int, part: int, people: Sequence[tuple[str, str, int, str | None]]
    ) -> resolution.BatchZonesResolved:
        names = sorted({zone for *_, zone in people if zone})
        items = ZonedItems.of((d, p, minor, names.index(zone)) for d, p, minor, zone in people if zone)
        lost = UnresolvedItems.of((d, p, minor, "NOT_IN_REGISTRY", "unknown there") for d, p, minor, zone in people if not zone)
        zones = [
            resolution.ZoneTotal(**of(name).model_dump(), count=count, total_minor=total)
            for name, (count, total) in zip(names, zone_totals(items, len(names)), strict=True)
        ]
        content = {item.disbursement_id: {"name": f"Name of {item.beneficiary_id}"} for item in items}
        data = resolution.BatchZonesResolved(
            header={**self.header.model_dump(), "batch_id": batch_id, "number": number},
            part=part,
            **chunk(items),
            zones=zones,
            sealed=SEALER.seal(by_column(content), "BatchZonesResolved", self.id, batch_id, part),
            unresolved=lost,
            unresolved_count=len(lost),
            unresolved_total_minor=sum(lost.amount_minor),
        )
        self.parts.append(data)
        return data

    @property
    def everybody(self) -> dict[str, int]:
        """disbursement -> amount, as first declared."""
        first = [part for part in self.parts if part.part == 1]
        return {one.disbursement_id: one.amount_minor for part in first for one in (*part.items, *part.unresolved)}

    def completed(self) -> ingestion.EnvelopeCompleted:
        batches = len({part.header.batch_id for part in self.parts})
        minor = sum(self.everybody.values())
        return ingestion.EnvelopeCompleted(header=self.header, batches=batches, count=len(self.everybody), total_minor=minor)

    def cancelling(self, request: str = "R1") -> ingestion.EnvelopeCancelling:
        """Of all that was cut so far."""
        one = self.completed() if self.parts else None
        counts = {"batches": one.batches, "count": one.count, "total_minor": one.total_minor} if one else None
        return ingestion.EnvelopeCancelling(
            header=self.header, request_id=request, reason="test", **(counts or {"batches": 0, "count": 0, "total_minor": 0})
        )

    def cancelling_people(self, *ids: str, request: str = "R1") -> ingestion.DisbursementsCancelling:
        items = [ingestion.CancelledItem(disbursement_id=one) for one in ids]
        return ingestion.DisbursementsCancelling(header=self.header, request_id=request, reason="test", items=items)

    def cancelled_by_funds(self, batch: resolution.BatchZonesResolved, *ids: str) -> funds.PaymentsCancelled:
        """Of these people of a batch, or of all."""
        people = {one.disbursement_id: one.amount_minor for one in (*batch.items, *batch.unresolved)}
        items = Amounts.of(Amount(one, people[one]) for one in ids or people)
        return funds.PaymentsCancelled(header=batch.header, **chunk(items))


def of(small: str) -> Zone:
    large = small.partition("-")[0]
    return Zone(large_zone_id=large, large_zone_code=f"code {large}", small_zone_id=small, small_zone_code=f"code {small}")


class Allocating:
    """Allocation in a test's world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.reference = Reference(world.database_url, prefix=world.name)

    def run(self, **env: str) -> Process:
        settings = {"PBMS_URL": self.reference.pbms_url, "REFERENCE_BACKOFF_FIRST_SECONDS": "0.1", **env}
        names = {name if name.startswith("ALMONER_") else f"ALMONER_ALLOCATION_{name}": text for name, text in settings.items()}
        return self.world.run("allocation", **names)

    def begin(self, **env: str) -> Process:
        """And it has read PBMS: what comes before that is held, and said so, until it has."""
        process = self.run(**env)
        self.world.until(
            lambda: self.world.sql("allocation", "SELECT 1 FROM reference WHERE taken_at IS NOT NULL"), what="PBMS read"
        )
        return process

    def put(self, *places: Place) -> None:
        for place in places:
            (self.reference.put_warehouse if place.mnemonic.startswith("W") else self.reference.put_agency)(place)

    def publish(self, *events: EventData) -> None:
        for event in events:
            header: Any = event.header  # type: ignore[attr-defined]
            if isinstance(event, resolution.BatchZonesResolved | funds.PaymentsCancelled):
                topic = IN if isinstance(event, resolution.BatchZonesResolved) else PAYMENTS
                self.world.publish(topic, event, header.batch_id, correlation_id=str(header.envelope_id))
            else:
                self.world.publish(ENVELOPES, event, header.envelope_id, correlation_id=str(header.envelope_id))

    def command(self, command: operator.Command) -> Any:
        """Its audit row."""
        event_id = self.world.publish(COMMANDS, command, "x")
        [row] = self.world.until(
            lambda: self.world.sql("allocation", "SELECT * FROM ops_audit WHERE command_id = %(id)s", id=event_id), what="audit"
        )
        return row

    def refresh(self) -> None:
        assert self.command(operator.RefreshReference(who="ops", why="test")).affected == 1

    def tick(self) -> None:
        self.world.publish(TICKS, Tick(job="reference-due", due_at=datetime.now(UTC)), "reference-due")

    def reassign(self, envelope: Envelope, kind: str, zone: str, place: int, **more: Any) -> Any:
        fields = {
            "who": "ops",
            "why": "flooded",
            "envelope_id": envelope.id,
            "kind": kind,
            "zone_id": zone,
            "place_id": str(place),
        }
        return self.command(operator.ReassignZone.model_validate({**fields, **more}))

    def state(self, envelope: Envelope) -> Any:
        rows = self.world.sql("allocation", "SELECT * FROM ops_envelopes WHERE envelope_id = %(id)s", id=envelope.id)
        return rows[0] if rows else None

    def until_state(self, envelope: Envelope, **wanted: Any) -> Any:
        def reached() -> Any:
            row = self.state(envelope)
            return row if row and all(getattr(row, name) == value for name, value in wanted.items()) else None

        try:
            return self.world.until(reached, what=str(wanted))
        except AssertionError:
            raise AssertionError(f"{wanted} not reached: {self.state(envelope)}") from None

    def quiet(self) -> None:
        """Nothing is left to be decided or said."""
        left = "SELECT 1 FROM outbox UNION ALL SELECT 1 FROM due UNION ALL SELECT 1 FROM arrivals WHERE taken_at IS NULL"
        self.world.until(lambda: not self.world.sql("allocation", left), what="quiet")

    def _published(self, topic: str) -> None:
        """What rows say by now, events say."""
        left = "SELECT 1 FROM outbox WHERE topic = %(topic)s"
        self.world.until(lambda: not self.world.sql("allocation", left, topic=topic), what="all being published")

    def said(self, at_least: int = 0) -> list[allocation.BatchAllocated]:
        """Each fact once, in the order of its batch and part; whatever is said again is the same."""
        self._published(OUT)
        found: dict[str, allocation.BatchAllocated] = {}
        for event in self.world.events(OUT, allocation.BatchAllocated, at_least=at_least):
            assert found.setdefault(event.id, event.data) == event.data
        return sorted(found.values(), key=lambda one: (str(one.header.envelope_id), one.header.number, one.part))

    def facts(self, model: type[EventData], at_least: int = 0) -> list[Any]:
        self._published(FACTS)
        found: dict[str, Any] = {}
        for event in self.world.events(FACTS, model, at_least=at_least):
            found.setdefault(event.id, event.data)
        return list(found.values())

    def served(self, envelope: Envelope) -> dict[str, tuple[str | None, str, int]]:
        """disbursement -> warehouse, agency and amount, as said; nobody is said twice."""
        found: dict[str, tuple[str | None, str, int]] = {}
        for event in self.said():
            if event.header.envelope_id == envelope.id:
                for item in event.items:
                    zone = event.zones[item.zone]
                    assert item.disbursement_id not in found
                    found[item.disbursement_id] = (
                        zone.warehouse.id if zone.warehouse else None,
                        zone.agency.id,
                        item.amount_minor,
                    )
        return found

    def rows(self, envelope: Envelope) -> dict[str, Any]:
        rows = self.world.sql("allocation", "SELECT * FROM ops_entitlements WHERE envelope_id = %(id)s", id=envelope.id)
        assert len({row.disbursement_id for row in rows}) == len(rows)
        return {row.disbursement_id: row for row in rows}

    def check(self, *envelopes: Envelope) -> None:
        """The books: everybody who was declared is in one state, sums agree, events say what the rows say, and what places were
        given is what is planned and announced there and not given back, within their capacity."""
        for envelope in envelopes:
            rows, row = self.rows(envelope), self.state(envelope)
            assert {name: one.amount_minor for name, one in rows.items()} == envelope.everybody
            for state in ("planned", "allocated", "held", "cancelled"):
                alike = [one.amount_minor for one in rows.values() if one.state == state.upper()]
                assert (getattr(row, state), getattr(row, f"{state}_minor")) == (len(alike), sum(alike)), state
            served = self.served(envelope)
            final = {name: one for name, one in rows.items() if one.state == "ALLOCATED"}
            assert served == {name: (one.warehouse_id, one.agency_id, one.amount_minor) for name, one in final.items()}
        off = self.world.sql(
            "allocation",
            """SELECT kind, place_id, programme_id, benefit_code_id, cycle_id, sum(units) AS units FROM (
                   SELECT kind, place_id, programme_id, benefit_code_id, cycle_id, units FROM loads
                   UNION ALL
                   SELECT p.kind, p.place_id, programme_id, benefit_code_id, cycle_id, -total_minor / 10::numeric ^ scale
                   FROM groups g JOIN envelopes e USING (envelope_id)
                   CROSS JOIN LATERAL (VALUES ('warehouse', warehouse_id), ('agency', agency_id)) AS p (kind, place_id)
                   WHERE g.state IN ('PLANNED', 'ALLOCATED') AND p.place_id IS NOT NULL AND NOT g.given_back) AS x
               GROUP BY 1, 2, 3, 4, 5 HAVING sum(units) <> 0""",
        )
        assert off == []
        over = self.world.sql(
            "allocation",
            """SELECT * FROM loads l JOIN serves s ON s.source = 'pbms' AND s.id = l.place_id
                    AND (s.kind, s.programme_id, s.benefit_code_id) = (l.kind, l.programme_id, l.benefit_code_id)
               WHERE units > s.capacity_units""",
        )
        assert over == []


def settings_of(allocating: Allocating, **more: Any) -> Settings:
    """What a process is told by the environment, for the parts of one that a test runs itself."""
    world = allocating.world
    known = {"database_url": world.database_url, "seal_keys": SEAL_KEYS, "token_key": TOKEN_KEY}
    return Settings.model_validate({**known, "pbms_url": allocating.reference.pbms_url, **more})


def opened(event: allocation.BatchAllocated) -> tuple[dict[str, Any], dict[str, Any]]:
    """People and places."""
    place = (event.header.envelope_id, event.header.batch_id, event.part)
    return (
        by_person(SEALER.open_people(event.sealed, "BatchAllocated/people", *place)),
        SEALER.open(event.places, "BatchAllocated/places", *place),
    )


def ids(people: Iterable[Any]) -> list[str]:
    return sorted(one.disbursement_id for one in people)
