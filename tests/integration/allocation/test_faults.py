"""Allocation dies, and meets itself: each fact is said once, nobody is lost, and no place gets more than it can take."""

import threading
from pathlib import Path
from typing import Any

import pytest

from libs.common.clock import utc_now
from libs.common.consumer import Fold, Limits
from libs.common.contracts import allocation
from libs.common.db import Database, lock_key
from libs.common.envelope import Cause, RawMessage
from libs.common.inbox import keep_partitions
from libs.common.jobs import JobRunner, make_due
from libs.local.stack import Addresses
from services.allocation.decisions import ALLOCATE, ANNOUNCE
from services.allocation.reference import KIND, REFIT
from services.allocation.wiring import wire
from tests.integration.allocation.goods import ENVELOPES, IN, Allocating, Envelope, agency, settings_of, warehouse
from tests.support.counting import statements
from tests.support.points import UNSEEN, points
from tests.support.world import World

CASES = [
    *((point, "") for point in points("fold", "relay")),
    *((point, job) for point in points("job") for job in (ALLOCATE, ANNOUNCE, REFIT)),
    *((point, KIND) for point in UNSEEN),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case).strip())
def test_killed_at(allocating: Allocating, tmp_path: Path, case: tuple[str, str]) -> None:
    """The stories of all kinds at once: batches, a part that comes later, a cancellation, places that change."""
    point, kind = case
    allocating.put(warehouse(1, "L1"), agency(11, "L1-s1", capacity="4"))
    envelope, gone = Envelope(), Envelope()
    first = envelope.batch("L1-s1", "L1-s1", None, "L1-s2")
    mark = tmp_path / "mark"
    env = {"ALMONER_CRASH_AT": point, "ALMONER_CRASH_KIND": kind, "ALMONER_CRASH_MARK": str(mark)}
    env |= {"REFERENCE_TIMEOUT_SECONDS": "2", "REFERENCE_LEASE_SECONDS": "5"}  # short enough to wait for
    allocating.publish(first, envelope.batch("L1-s1"), envelope.completed(), gone.batch("L1-s1"), gone.cancelling())
    process = allocating.run(**env)
    assert process.wait() == -9
    reached, in_flight = mark.read_text().split()
    assert reached == point
    assert int(in_flight) > 0
    allocating.run(**env)
    allocating.publish(envelope.later(first, {"D1-2": "L1-s1"}))
    allocating.until_state(gone, cancelled=1, state="CANCELLED")
    allocating.put(agency(12, "L1-s1", "L1-s2"))
    allocating.refresh()
    allocating.until_state(envelope, allocated=5, held=0)
    open_work = "SELECT 1 FROM work WHERE state IN ('PENDING', 'CLAIMED')"
    allocating.world.until(lambda: not allocating.world.sql("allocation", open_work))
    allocating.quiet()
    allocating.check(envelope, gone)
    assert len(allocating.facts(allocation.GoodsCancelled)) == 1
    last = max(allocating.facts(allocation.EnvelopeAllocated), key=lambda one: one.revision)
    assert (last.allocated, last.held) == (5, 0)
    assert not allocating.world.sql("allocation", "SELECT 1 FROM dead_letters")


def test_a_cancellation_races_with_its_batches_in_two_replicas(allocating: Allocating, world: World) -> None:
    """Whatever comes first: who was told is told once and listed, nobody else is served, and each answer is said once."""
    allocating.put(warehouse(1, "L1"), agency(11, "L1-s1", capacity="100"))
    envelopes = [Envelope() for _ in range(16)]
    replicas = [allocating.run(), allocating.run()]
    world.until(lambda: all(replica.ready() for replica in replicas))
    world.until(lambda: len(world.sql("allocation", "SELECT 1 FROM ops_places")) == 2)
    for number, envelope in enumerate(envelopes):
        batches = [envelope.batch("L1-s1", "L1-s1", "L1-s1") for _ in range(2)]
        allocating.publish(*batches[: number % 3], envelope.completed() if number % 2 else envelope.cancelling("R0"))
        allocating.publish(*batches[number % 3 :], envelope.cancelling(), envelope.cancelling_people("D1-0", request="R2"))
    for envelope in envelopes:
        allocating.until_state(envelope, arrived=6, planned=0, state="CANCELLED")
    answered = "SELECT 1 FROM cancel_requests WHERE state = 'ANSWERED'"  # R1 and R2 of each, R0 of every other
    world.until(lambda: len(world.sql("allocation", answered)) == 40, what="all answers")
    allocating.quiet()
    allocating.check(*envelopes)
    answers = {one.header.envelope_id: one for one in allocating.facts(allocation.GoodsCancelled) if one.request_id == "R1"}
    singles = {one.header.envelope_id: one for one in allocating.facts(allocation.EntitlementsCancelled)}
    assert len(answers) == len(singles) == len(envelopes)
    for envelope in envelopes:
        served, answer = allocating.served(envelope), answers[envelope.id]
        assert (answer.cancelled, answer.already_announced) == (6 - len(served), len(served))
        assert answer.already_announced_minor == sum(minor for *_, minor in served.values())
        assert bool(singles[envelope.id].not_cancelled) == ("D1-0" in served)
    assert not world.sql("allocation", "SELECT 1 FROM dead_letters")


class Hands:
    """A service's parts in this process: what is folded and decided, and when."""

    def __init__(self, allocating: Allocating, **settings: Any) -> None:
        self.database = Database(allocating.world.database_url, "allocation")
        keep_partitions(self.database, utc_now())
        self.parts = wire(settings_of(allocating, **settings), self.database)
        self.jobs = JobRunner(self.database, self.parts.jobs)
        self.seen: set[tuple[str, int, int]] = set()
        self.world = allocating.world

    def new(self, *topics: str) -> list[RawMessage]:
        found = [m for topic in topics for m in self.world.messages(topic) if (m.topic, m.partition, m.offset) not in self.seen]
        self.seen |= {(m.topic, m.partition, m.offset) for m in found}
        return found

    def fold(self, *topics: str) -> None:
        Fold(self.database, self.parts.routes, Limits()).fold(self.new(*topics))

    def decide(self) -> None:
        """Until nothing is due."""
        for _ in range(100):
            if not self.jobs.run_due():
                return
        raise AssertionError("there is always more to decide")


def open_places(world: World) -> None:
    """A warehouse for L1 and an agency for L1-s1, each with room for 10 kg; said by a topic, so that nobody has to be asked."""
    world.sql(
        "allocation",
        """INSERT INTO places (source, kind, id, mnemonic, name, sealed, digest, gone)
           SELECT 'topic', kind, '1', '', '', '', '', false FROM unnest(ARRAY['warehouse', 'agency']) AS kind;
           INSERT INTO serves SELECT 'topic', kind, '1', 'RICE', 'SEED-01', NULL, 10, true
           FROM unnest(ARRAY['warehouse', 'agency']) AS kind;
           INSERT INTO place_zones VALUES ('topic', 'warehouse', 'L1', '1'), ('topic', 'agency', 'L1-s1', '1')""",
    )


def test_everybody_is_somewhere_once_whatever_comes_twice_or_late(allocating: Allocating, world: World) -> None:
    """Step by step in this process, so that whoever is lost or doubled is seen without waiting: served, not to be served, in no
    registry or found there later, cancelled before or after they came."""
    hands = Hands(allocating, reference_source="topic")
    open_places(world)
    envelope = Envelope()
    first = envelope.batch("L1-s1", "L1-s1", "L9-s9", None, None)
    for _ in range(2):  # under another id
        allocating.publish(first)
        hands.fold(IN)
        hands.decide()
    allocating.publish(envelope.cancelling_people("D1-1", "D2-0"))
    hands.fold(ENVELOPES)
    hands.decide()
    allocating.publish(envelope.later(first, {"D1-3": "L1-s1"}, ["D1-4"]), envelope.batch("L1-s1", None))
    hands.fold(IN)
    hands.decide()
    states = {"D1-0": "PLANNED", "D1-1": "CANCELLED", "D1-2": "HELD", "D1-3": "PLANNED", "D1-4": "HELD"}
    rows = allocating.rows(envelope)
    assert {name: row.state for name, row in rows.items()} == states | {"D2-0": "CANCELLED", "D2-1": "HELD"}
    assert {name: row.amount_minor for name, row in rows.items()} == envelope.everybody
    allocating.check(envelope)
    hands.database.close()


def test_two_that_plan_at_the_same_moment_share_what_a_place_can_take(allocating: Allocating, world: World) -> None:
    """Both decide on envelopes of one cycle; the second waits for the first, and reads what it has left."""
    hands = Hands(allocating, reference_source="topic")
    open_places(world)
    envelopes = [Envelope(), Envelope()]
    for envelope in envelopes:
        allocating.publish(envelope.batch(*["L1-s1"] * 6))
    hands.fold(IN)
    others = Hands(allocating, reference_source="topic")
    decide = {job.name: job.decide for job in others.parts.jobs}[ALLOCATE]
    waiting = threading.Event()

    def second() -> None:
        with others.database.transaction() as tx:
            waiting.set()
            decide(tx, str(envelopes[1].id), Cause("second"))

    thread = threading.Thread(target=second)
    with hands.database.transaction() as tx:
        {job.name: job.decide for job in hands.parts.jobs}[ALLOCATE](tx, str(envelopes[0].id), Cause("first"))
        thread.start()
        waiting.wait(10)
        world.until(lambda: world.sql(None, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
    thread.join(30)
    rows = [allocating.state(envelope) for envelope in envelopes]
    assert [(row.planned, row.held) for row in rows] == [(6, 0), (0, 6)]  # 9 of 10 kg are taken
    assert {row.reason for row in world.sql("allocation", "SELECT reason FROM ops_held")} == {"NO_CAPACITY"}
    # The same asked again changes nothing: what is planned stays, what is full stays full.
    with hands.database.transaction() as tx:
        make_due(
            tx, ALLOCATE, [str(e.id) for e in envelopes], [lock_key("allocation", e.id) for e in envelopes], Cause("again")
        )
    hands.decide()
    assert [(row.planned, row.held) for row in map(allocating.state, envelopes)] == [(6, 0), (0, 6)]
    for one in (hands, others):
        one.database.close()


def test_statements_are_the_same_for_two_people_and_for_a_hundred_thousand(
    allocating: Allocating, world: World, stack: Addresses
) -> None:
    allocating.put(warehouse(1, "L1", "L2", capacity="1000000"), *(agency(10 + n, "L1-s1", f"L2-s{n}") for n in range(40)))
    process = allocating.run()  # reads PBMS
    world.until(lambda: len(world.sql("allocation", "SELECT 1 FROM ops_places")) == 41)
    allocating.quiet()
    assert process.stop() == 0
    hands = Hands(allocating, max_chunk_batches=200)
    with statements(stack, (world.name, "almoner_allocation")) as count:

        def life(batches: int, people: int) -> dict[str, int]:
            envelope, costs = Envelope(), {}
            zones = ["L9-s9", *(f"L2-s{n % 40}" for n in range(people - 1))]
            allocating.publish(*(envelope.batch(*zones) for _ in range(batches)), envelope.completed())
            for name, act in {
                "completion": lambda: hands.fold(ENVELOPES),
                "intake": lambda: hands.fold(IN),
                "decisions": hands.decide,
            }.items():
                before = count()
                act()
                costs[name] = count() - before
            row = allocating.state(envelope)
            assert (row.allocated, row.held, row.revision) == ((people - 1) * batches, batches, 1)
            return costs

        few = life(1, 2)
        assert few == life(1, 1000) == life(100, 1000)
        assert max(few.values()) < 60, few
    hands.database.close()
