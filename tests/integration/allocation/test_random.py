"""Allocation under whatever comes: batches, people found later, cancellations, places that open and close, operators, processes
that die. After every step the books hold; in the end nobody is held any more."""

import os
import random
from uuid import UUID

import pytest

from libs.common.contracts import allocation, operator
from tests.integration.allocation.goods import COMMANDS, ENVELOPES, IN, PAYMENTS, Allocating, Envelope, agency, warehouse
from tests.support.world import World

STEPS = 18
ZONES = ("L1-s1", "L1-s2", "L2-s1", None)
SOON = {"REFERENCE_TIMEOUT_SECONDS": "5", "REFERENCE_LEASE_SECONDS": "10"}  # whoever dies may have begun to read PBMS
SEEDS = range(int(os.environ.get("ALMONER_TEST_SEEDS", "2")))


class Life:
    """One run of steps, the same for the same seed."""

    def __init__(self, allocating: Allocating, seed: int) -> None:
        self.draw = random.Random(seed)
        self.allocating, self.world = allocating, allocating.world
        self.envelopes = [Envelope(), Envelope("CASH_PHYSICAL"), Envelope()]
        self.open = {envelope.id for envelope in self.envelopes}  # batches may still come
        self.cancelled: set[UUID] = set()
        self.unpaid: set[str] = set()  # of the cash, by funds
        self.lost: list[tuple[Envelope, str]] = []  # in no registry
        self.agencies = 0
        self.paused = False
        self.requests = 0
        self.replicas = [allocating.run(**SOON), allocating.run(**SOON)]

    def step(self) -> str:
        name: str = self.draw.choice(
            "batch batch batch later complete cancel_person cancel_all funds_cancels place place close reassign pause crash refresh".split()
        )
        getattr(self, name)()
        return name

    def some(self, *, goods: bool = False) -> Envelope:
        return self.draw.choice([one for one in self.envelopes if one.header.benefit_type == "COMMODITY" or not goods])

    def batch(self) -> None:
        envelope = self.some()
        if envelope.id in self.open:
            zones = [self.draw.choice(ZONES) for _ in range(self.draw.randrange(1, 6))]
            data = envelope.batch(*zones, minor=self.draw.randrange(500, 4000))
            self.lost += [(envelope, one.disbursement_id) for one in data.unresolved]
            self.allocating.publish(data)

    def later(self) -> None:
        if self.lost:
            self.found(self.lost.pop(self.draw.randrange(len(self.lost))))

    def found(self, who: tuple[Envelope, str]) -> None:
        envelope, name = who
        [first] = [one for one in envelope.parts if one.part == 1 and name in {lost.disbursement_id for lost in one.unresolved}]
        self.allocating.publish(envelope.later(first, {name: self.draw.choice(ZONES[:3])}))

    def complete(self) -> None:
        self.completed(self.some())

    def completed(self, envelope: Envelope) -> None:
        if envelope.id in self.open and envelope.parts:
            self.open.discard(envelope.id)
            self.allocating.publish(envelope.completed())

    def cancel_person(self) -> None:
        envelope = self.some(goods=True)
        self.requests += 1
        someone = self.draw.choice([*envelope.everybody, "D1-1", "nobody"])
        self.allocating.publish(envelope.cancelling_people(someone, request=f"R{self.requests}"))

    def cancel_all(self) -> None:
        envelope = self.envelopes[-1]  # one of the three only, and not at once
        if self.draw.random() < 0.5 and envelope.parts and envelope.id not in self.cancelled:
            self.open.discard(envelope.id)
            self.cancelled.add(envelope.id)
            self.allocating.publish(envelope.cancelling("ALL"))

    def funds_cancels(self) -> None:
        """Whether somebody was told of them or not; some of them it has said before."""
        cash = self.envelopes[1]
        if first := [one for one in cash.parts if one.part == 1]:
            part = self.draw.choice(first)
            people = [one.disbursement_id for one in (*part.items, *part.unresolved)]
            some = self.draw.sample(people, self.draw.randrange(1, len(people) + 1))
            self.unpaid.update(some)
            self.allocating.publish(cash.cancelled_by_funds(part, *some))

    def place(self) -> None:
        self.agencies += 1
        zones = self.draw.sample(ZONES[:3], self.draw.randrange(1, 4))
        room = self.draw.choice([None, "2", "9"])
        self.allocating.put(agency(100 + self.agencies, *zones, capacity=room, account=self.draw.choice([None, "#ACCOUNT#1#"])))
        if self.draw.random() < 0.5:
            large = self.draw.sample(["L1", "L2"], self.draw.randrange(1, 3))
            self.allocating.put(warehouse(200 + self.agencies, *large, capacity=self.draw.choice([None, "12"])))
        self.allocating.refresh()

    def close(self) -> None:
        """Nobody is served there any more; capacities stay as they are."""
        if self.agencies:
            sql = "DELETE FROM g2p_administrative_area_small_g2p_agency_rel WHERE g2p_agency_id = %s"
            with self.allocating.reference._connect("pbms") as connection, connection.cursor() as cursor:
                cursor.execute(sql, (100 + self.draw.randrange(self.agencies) + 1,))
            self.allocating.refresh()

    def reassign(self) -> None:
        zone, number = self.draw.choice(ZONES[:3]), 100 + self.draw.randrange(self.agencies + 1)
        self.allocating.reassign(self.some(), "agency", zone, number)  # or it is refused

    def pause(self) -> None:
        self.paused = not self.paused
        model = operator.PauseStage if self.paused else operator.ResumeStage
        self.allocating.command(model(who="ops", why="test", stage="announce"))

    def crash(self) -> None:
        self.replicas.pop(0).kill()
        self.replicas.append(self.allocating.run(**SOON))

    def refresh(self) -> None:
        self.allocating.refresh()

    def check(self) -> None:
        """Nothing is under way but what is paused, and the books hold."""
        under_way = """SELECT 'outbox' FROM outbox UNION ALL SELECT 'arrival' FROM arrivals WHERE taken_at IS NULL
                       UNION ALL SELECT 'work' FROM work WHERE state IN ('PENDING', 'CLAIMED')
                       UNION ALL SELECT job FROM due WHERE job NOT IN (SELECT stage FROM paused)"""
        known = [one for one in self.envelopes if one.parts]
        topics = (IN, ENVELOPES, COMMANDS, PAYMENTS)
        sent = sum(len(self.world.messages(topic)) for topic in topics)
        read = "SELECT coalesce(sum(next_offset), 0)::bigint AS n FROM consumed WHERE topic LIKE ANY(%(topics)s)"
        like = [f"%{topic}" for topic in topics]
        self.world.until(lambda: self.world.sql("allocation", read, topics=like)[0].n >= sent, what="all of it being read")
        self.world.until(lambda: not self.world.sql("allocation", under_way), what="rest")
        self.allocating.check(*known)

    def end(self) -> None:
        """Everybody is found, everything declared, every zone served without limit."""
        if self.paused:
            self.pause()
        for who in self.lost:
            self.found(who)
        for envelope in self.envelopes:
            self.completed(envelope)
        self.allocating.put(agency(999, *ZONES[:3], account="#ACCOUNT#9#"), warehouse(999, "L1", "L2"))
        self.allocating.refresh()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_life(allocating: Allocating, world: World, seed: int) -> None:
    life = Life(allocating, seed)
    done = []
    for _ in range(STEPS):
        done.append(life.step())
        life.check()
    life.end()
    known = [envelope for envelope in life.envelopes if envelope.parts]
    for envelope in known:
        allocating.until_state(envelope, planned=0, held=0, arrived=len(envelope.everybody))
    life.check()
    last: dict[UUID, allocation.EnvelopeAllocated] = {}
    for fact in allocating.facts(allocation.EnvelopeAllocated):
        if fact.revision > (last[fact.header.envelope_id].revision if fact.header.envelope_id in last else 0):
            last[fact.header.envelope_id] = fact
    for envelope in known:
        row = allocating.state(envelope)
        if envelope.header.benefit_type == "CASH_PHYSICAL":
            rows = allocating.rows(envelope)
            assert {name for name, one in rows.items() if one.state == "CANCELLED" or one.given_back} == life.unpaid, done
            assert {one.state for one in rows.values()} <= {"ALLOCATED", "CANCELLED"}, done
        elif envelope.id not in life.cancelled:
            said = last[envelope.id]
            assert (said.allocated, said.cancelled, said.held) == (row.allocated, row.cancelled, 0), done
    assert not world.sql("allocation", "SELECT 1 FROM dead_letters"), done
