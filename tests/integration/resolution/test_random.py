"""Locating under whatever comes: batches said twice, people whom the registry does not know, or knows elsewhere by now, a registry
that refuses, operators, a process that dies. After every step everybody is located once, held once, or waited for, as the
registry says it, and each zone of each part comes to what its people do; in the end everybody is located."""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest

from libs.common.contracts.ingestion import BatchCut
from libs.common.contracts.operator import RetryWork
from libs.common.contracts.resolution import BatchZonesResolved
from services.resolution.domain import NO_ZONE, NOT_IN_REGISTRY
from tests.integration.resolution.batches import BATCHES, COMMANDS, idle
from tests.integration.resolution.test_held import ask
from tests.integration.resolution.zones import Registry, goods, homes, located, opened, reasons, registry_of, start, zone
from tests.support.process import Process
from tests.support.world import World

# In any order, after a first batch.
STEPS = "batch batch batch batch again put put put gone ask ask ask ask refuse refuse mend retry retry retry crash".split()
SEEDS = range(int(os.environ.get("ALMONER_TEST_SEEDS", "1")))
PEOPLE = 30
Place = tuple[str, str, str, str]  # id and code of the large zone, of the small one
NOWHERE: Place = ("L/0", "large-0", "", "")
PLACES: list[Place] = [zone(0), zone(1), zone(8), (*zone(8)[:2], *zone(0)[2:])]  # two large zones have a small one of one name
CASH = {"benefit_type": "CASH_PHYSICAL", "currency": "KES", "measurement_unit": "", "unit_scale": 0}
SOON = {"ALMONER_RESOLUTION_LOCATE_TIMEOUT_SECONDS": "1", "ALMONER_RESOLUTION_LOCATE_LEASE_SECONDS": "3.2"}
TABLE = "g2p_farmer_registry"


@dataclass
class Batch:
    """What should have become of it. `waiting`: those asked for in a part that is not answered; `parts`: disbursement -> place,
    or why there is none, of each that is."""

    cut: BatchCut
    waiting: list[str]
    held: list[str] = field(default_factory=list)
    parts: list[dict[str, Place | str]] = field(default_factory=list)

    @property
    def envelope_id(self) -> UUID:
        return self.cut.header.envelope_id


@pytest.fixture
def registry(world: World) -> Iterator[Registry]:
    with registry_of(world) as registry:
        yield registry


class Life:
    """One run of steps, the same for the same seed."""

    def __init__(self, world: World, registry: Registry, seed: int) -> None:
        self.draw = random.Random(seed)
        self.world, self.registry = world, registry
        self.people = [f"{world.name}-{number}" for number in range(PEOPLE)]
        self.known: dict[str, Place] = {}  # as the registry has it
        self.refuses = False
        self.envelopes = [uuid4(), uuid4()]
        self.batches: list[Batch] = []
        self.move(self.people[: PEOPLE // 2])
        self.replicas = [self.start(), self.start()]

    def start(self) -> Process:
        return start(self.world, {"farmers": self.registry.settings()}, **SOON)

    # --- what may happen ----------------------------------------------------------------------------------------------

    def batch(self) -> None:
        people = self.draw.choices(self.people, k=self.draw.randrange(1, 25))  # some of them twice
        more = self.draw.choice([{}, CASH])
        cut = goods(people, len(self.batches) + 1, self.draw.choice(self.envelopes), **more)
        self.batches.append(Batch(cut, waiting=list(cut.items.disbursement_id)))
        self.publish(cut, *[f"cut-{cut.header.number}"] * self.draw.choice([1, 1, 2]))
        self.answered(self.batches[-1])

    def again(self) -> None:
        self.publish(self.draw.choice(self.batches).cut, str(uuid4()))

    def publish(self, cut: BatchCut, *event_ids: str) -> None:
        header = cut.header
        for one in event_ids:
            self.world.publish(BATCHES, cut, header.batch_id, event_id=one, correlation_id=str(header.envelope_id))

    def put(self) -> None:
        self.move(self.draw.sample(self.people, 8))

    def move(self, people: list[str]) -> None:
        if not self.refuses:
            places = {person: self.draw.choice([*PLACES, NOWHERE]) for person in people}
            self.known |= places
            self.registry.put_people((person, *place) for person, place in places.items())

    def gone(self) -> None:
        if not self.refuses:
            person = self.draw.choice(sorted(self.known))
            del self.known[person]
            self.registry.sql(f"DELETE FROM {TABLE} WHERE link_registry_id = '{person}'")

    def ask(self) -> None:
        """For all who are held, or some; now and then for another number than there are."""
        chosen = self.draw.choice(self.batches)
        named: dict[str, Any] = self.draw.choice(
            [
                {},
                {"envelope_id": chosen.envelope_id},
                {"batch_ids": [chosen.cut.header.batch_id]},
                {"envelope_id": chosen.envelope_id, "disbursement_ids": chosen.cut.items.disbursement_id[:3]},
            ]
        )
        whom = [(batch, self.concerned(batch, **named)) for batch in self.batches]
        expected = sum(len(ids) for _, ids in whom)
        if self.draw.random() < 0.2:
            assert ask(self.world, expected=expected + 1, **named) == 0
            return
        assert ask(self.world, **named) == expected
        self.asked(whom)

    def concerned(
        self, batch: Batch, envelope_id: UUID | None = None, batch_ids: Any = (), disbursement_ids: Any = ()
    ) -> list[str]:
        if batch.waiting or envelope_id not in (None, batch.envelope_id):
            return []
        if batch_ids and batch.cut.header.batch_id not in batch_ids:
            return []
        return [one for one in batch.held if not disbursement_ids or one in disbursement_ids]

    def refuse(self) -> None:
        """The registry's table is away; what is refused waits for an operator."""
        if not self.refuses:
            self.registry.sql(f"ALTER TABLE {TABLE} RENAME TO away")
            self.refuses = True

    def mend(self) -> None:
        if self.refuses:
            self.registry.sql(f"ALTER TABLE away RENAME TO {TABLE}")
            self.refuses = False

    def retry(self) -> None:
        """By an operator who has seen to it that the table is there, or in vain."""
        if self.draw.random() < 0.7:
            self.mend()
        self.world.publish(COMMANDS, RetryWork(who="ops", why="it is back", kind="locate"), "locate")
        self.answered(*self.batches)

    def crash(self) -> None:
        """With a batch on its way."""
        self.batch()
        self.replicas.pop(0).kill()
        self.replicas.append(self.start())

    # --- what must be so ----------------------------------------------------------------------------------------------

    def asked(self, again: list[tuple[Batch, list[str]]]) -> None:
        for batch, ids in again:
            if ids:
                batch.waiting = ids
                batch.held = [one for one in batch.held if one not in ids]
                self.answered(batch)

    def answered(self, *batches: Batch) -> None:
        """What follows for these, if the registry answers now."""
        for batch in () if self.refuses else batches:
            if batch.waiting:
                person = dict(zip(batch.cut.items.disbursement_id, batch.cut.items.beneficiary_id, strict=True))
                part = {one: self.reply(person[one]) for one in batch.waiting}
                batch.parts.append(part)
                batch.held += [one for one, reply in part.items() if isinstance(reply, str)]
                batch.waiting = []

    def reply(self, person: str) -> Place | str:
        place = self.known.get(person, NOT_IN_REGISTRY)
        return NO_ZONE if place == NOWHERE else place

    def check(self) -> None:
        """Nothing is under way but what the registry has refused; events and tables are what they should be."""
        self.rest()
        events = {event.id: event for event in located(self.world, 0)}  # what a relay repeats has the same id
        said = {(event.data.header.number, event.data.part): event.data for event in events.values()}
        assert len(said) == len(events)
        assert said.keys() == {(b.cut.header.number, part) for b in self.batches for part in range(1, len(b.parts) + 1)}
        for event in events.values():
            assert opened(event).keys() == homes(event.data).keys()
        held = self.world.sql("resolution", "SELECT * FROM held WHERE resolved_at IS NULL")
        rows = {row.number: row for row in self.world.sql("resolution", "SELECT * FROM ops_batches")}
        for batch in self.batches:
            number, ids = batch.cut.header.number, batch.cut.items.disbursement_id
            found: list[str] = []
            for part, expected in enumerate(batch.parts, 1):
                self.check_part(batch, said[number, part], expected)
                found += said[number, part].items.disbursement_id
            of_batch = [row for row in held if row.batch_id == batch.cut.header.batch_id]
            waiting = [row.disbursement_id for row in of_batch if row.asked_in] if batch.parts else batch.waiting
            free = [row.disbursement_id for row in of_batch if not row.asked_in]
            assert sorted(found + free + waiting) == sorted(ids)  # each once, and nobody is lost
            assert (sorted(free), sorted(waiting)) == (sorted(batch.held), sorted(batch.waiting))
            unresolved = len(free) + len(waiting) if batch.parts else 0
            assert (rows[number].resolved, rows[number].unresolved) == (len(found), unresolved)
        errors = self.world.sql("resolution", "SELECT 1 FROM work WHERE state = 'ERROR'")
        assert len(errors) == sum(bool(batch.waiting) for batch in self.batches)
        assert not self.world.sql("resolution", "SELECT 1 FROM dead_letters")

    def check_part(self, batch: Batch, data: BatchZonesResolved, expected: dict[str, Place | str]) -> None:
        amounts = dict(zip(batch.cut.items.disbursement_id, batch.cut.items.amount_minor, strict=True))
        assert reasons(data) == {one: reply for one, reply in expected.items() if isinstance(reply, str)}
        places = {one: reply for one, reply in expected.items() if isinstance(reply, tuple)}
        assert homes(data) == {one: (place[0], place[2]) for one, place in places.items()}
        totals: dict[Place, tuple[int, int]] = {}
        for one, place in places.items():
            count, minor = totals.get(place, (0, 0))
            totals[place] = (count + 1, minor + amounts[one])
        said = [
            ((one.large_zone_id, one.large_zone_code, one.small_zone_id, one.small_zone_code), (one.count, one.total_minor))
            for one in data.zones
        ]
        assert sorted(said) == sorted(totals.items())
        assert data.unresolved_total_minor == sum(amounts[one] for one in reasons(data))
        assert data.total_minor + data.unresolved_total_minor == sum(amounts[one] for one in expected)

    def rest(self) -> None:
        sql = "SELECT coalesce(sum(next_offset), 0)::bigint AS n FROM consumed WHERE topic = ANY(%(topics)s)"
        topics = [BATCHES, COMMANDS]
        published = sum(len(self.world.messages(topic)) for topic in topics)
        self.world.until(lambda: self.world.sql("resolution", sql, topics=topics)[0].n >= published, what="all being read")
        self.world.until(lambda: idle(self.world), what="rest")

    def end(self) -> None:
        """The registry answers, and knows everybody."""
        self.mend()
        self.known = dict.fromkeys(self.people, PLACES[0])
        self.registry.put_people((person, *PLACES[0]) for person in self.people)
        self.retry()
        self.rest()
        assert ask(self.world) == sum(len(batch.held) for batch in self.batches)
        self.asked([(batch, batch.held) for batch in self.batches])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_life(world: World, registry: Registry, seed: int) -> None:
    life = Life(world, registry, seed)
    steps = ["batch", *life.draw.sample(STEPS, len(STEPS))]
    for step in steps:
        getattr(life, step)()
        life.check()
    life.end()
    life.check()
    assert [batch.held + batch.waiting for batch in life.batches] == [[]] * len(life.batches), steps
