"""SIGKILL at each registered point, with work in flight; afterwards nothing is lost and nothing is done twice."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from libs.common import crash
from tests.support.other_side import OtherSide
from tests.support.probe.contracts import TOPICS, Ask, Asked, Decide, Decided, Note, Noted
from tests.support.process import Process
from tests.support.stacks import Databases
from tests.support.world import Kafka, World

pytestmark = pytest.mark.xdist_group(__name__)  # its processes are started together
IN, OUT = "probe.in.v1", "probe.out.v1"
NOTES, SUBJECTS = 30, 4

# Point -> how many events, rows or calls are under way at least; the process dies there with all three kinds of work to do.
CASES = dict.fromkeys(
    [
        "fold.before_commit",
        "fold.after_commit",
        "fold.after_offsets",
        "relay.after_produce",
        "relay.after_delivery",
        "relay.after_delete",
        "call.before_claim_commit",
        "call.after_claim",
        "call.after_first_byte",
        "call.after_answer",
        "call.before_settle_commit",
        "call.after_settle",
        "job.before_commit",
        "job.after_commit",
    ],
    1,
)


def test_every_registered_point_has_a_case() -> None:
    assert set(CASES) == set(crash.POINTS)


class Run:
    """One point's world, with the same work for all: published before the process which dies starts."""

    def __init__(self, point: str, world: World, other_side: OtherSide, mark: Path) -> None:
        self.point = point
        self.world = world
        self.other_side = other_side
        self.mark = mark
        world.register(*TOPICS)
        self.subjects = [f"s{number}" for number in range(SUBJECTS)]
        self.causes = [world.publish(IN, Decide(subject=subject), subject) for subject in self.subjects]
        world.publish(IN, Ask(subjects=self.subjects), "k")
        self.notes = [world.publish(IN, Note(number=number), number) for number in range(NOTES)]

    def start(self) -> Process:
        return self.world.run(
            "probe",
            ALMONER_PROBE_URL=self.other_side.url,
            ALMONER_PROBE_CONSUME_MAX_MESSAGES="10",
            ALMONER_PROBE_ASK_TIMEOUT_SECONDS="3",  # many processes start at once: slowness must cost no lease
            ALMONER_PROBE_ASK_LEASE_SECONDS="8",
            ALMONER_PROBE_ASK_MAX_ATTEMPTS="50",  # nor an answer
            ALMONER_CRASH_AT=self.point,
            ALMONER_CRASH_MARK=str(self.mark),
        )


@pytest.fixture(scope="module")
def runs(
    kafka: Kafka, databases: Databases, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Run]]:
    """All points at once: most of the time goes into waiting for leases and group members to be missed."""
    with ExitStack() as stack:
        found = {}
        for point in CASES:
            folder = tmp_path_factory.mktemp("crash")
            world = World(kafka, databases, template, folder)
            stack.callback(world.close)
            found[point] = Run(point, world, stack.enter_context(OtherSide()), folder / "mark")
            found[point].start()
        for run in found.values():
            run.world.until(lambda run=run: not run.world.processes[0].alive, timeout=90, what=f"{run.point} being reached")  # type: ignore[misc]
            run.start()
        yield found


@pytest.fixture
def run(point: str, runs: dict[str, Run]) -> Run:
    return runs[point]


@pytest.fixture
def world(run: Run) -> World:
    return run.world


@pytest.mark.parametrize("point", CASES)
def test_sigkill_at(point: str, run: Run, world: World) -> None:
    killed, restarted = world.processes
    assert killed.wait() == -9
    reached, in_flight = run.mark.read_text().split()
    assert reached == point
    assert int(in_flight) >= CASES[point]
    world.until(lambda: is_settled(world), timeout=90, what="all work")  # of all points at once, beside other workers
    assert restarted.alive
    subjects, causes, notes, other_side = run.subjects, run.causes, run.notes, run.other_side

    noted = world.sql("probe", "SELECT event_id FROM noted")
    assert Counter(row.event_id for row in noted) == Counter(notes)
    decided = world.sql("probe", "SELECT subject, cause_id FROM decided")
    assert Counter((row.subject, row.cause_id) for row in decided) == Counter(zip(subjects, causes, strict=True))
    settled = world.sql("probe", "SELECT subject, state FROM settled")
    assert Counter((row.subject, row.state) for row in settled) == Counter((subject, "DONE") for subject in subjects)
    assert sorted(other_side.acted.values()) == subjects  # one key for each, whatever the number of requests
    assert not world.sql("probe", "SELECT 1 FROM dead_letters")

    events = world.events(OUT, Noted, Asked, Decided, at_least=NOTES + 2 * SUBJECTS)
    distinct = {event.id: event.data for event in events}
    assert len(distinct) == NOTES + 2 * SUBJECTS
    assert sorted(data.number for data in distinct.values() if isinstance(data, Noted)) == list(range(NOTES))
    assert sorted(data.subject for data in distinct.values() if isinstance(data, Asked)) == subjects
    assert sorted(data.subject for data in distinct.values() if isinstance(data, Decided)) == subjects
    if point == "relay.after_delivery":  # repeated with the same id
        assert len(events) >= len(distinct) + int(in_flight)


def is_settled(world: World) -> bool:
    [row] = world.sql(
        "probe",
        """SELECT (SELECT count(*) FROM noted) AS noted, (SELECT count(*) FROM decided) AS decided,
                  (SELECT count(*) FROM settled) AS settled, (SELECT count(*) FROM outbox) AS outbox,
                  (SELECT count(*) FROM due) AS due, (SELECT count(*) FROM work WHERE state <> 'DONE') AS work""",
    )
    return (
        row.noted >= NOTES and row.decided >= SUBJECTS and row.settled >= SUBJECTS and not (row.outbox or row.due or row.work)
    )
