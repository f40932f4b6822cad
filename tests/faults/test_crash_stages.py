"""Ingestion dies of SIGKILL at every point it has, with each kind of work in flight. The other services' cases stand beside their
other tests; that none is missing is checked here."""

import time
from collections import Counter
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from libs.common.contracts import ingestion as c
from libs.common.contracts.base import EventData
from libs.common.contracts.scheduler import Tick
from libs.local.client import BankAdmin
from services.ingestion.cutting import CUT, EXPIRE_PARKED
from services.ingestion.statements import READ_STATEMENT
from services.resolution.domain import LOCATE, RESOLVE
from tests.architecture.test_services import SERVICES, wired
from tests.faults import test_crash_funds as funds
from tests.faults.stories import Story, Teller, Told
from tests.integration.allocation import test_faults as allocation
from tests.integration.ingestion.publisher import (
    BATCHES,
    DISBURSEMENTS,
    ENVELOPES,
    FACTS,
    LINES,
    RESULTS,
    STATEMENTS,
    chunks_of,
    debits,
    envelope,
    statement_text,
    total,
)
from tests.integration.notifications import test_providers as notifications
from tests.integration.resolution import test_crashes as resolution
from tests.integration.resolution import test_zones as zones
from tests.integration.scheduler import test_ticks as scheduler
from tests.support.points import UNSEEN, UNSEEN_KINDS, points
from tests.support.world import World

pytestmark = pytest.mark.xdist_group(__name__)  # its stories are told together

PEOPLE, ROWS = 1300, 1100
JOBS = (CUT, EXPIRE_PARKED, READ_STATEMENT)
CASES = [
    *((point, "") for point in points("fold", "relay")),
    *((point, job) for point in points("job") for job in JOBS),
]
# Of each service: where it is killed, and with which kind of call or job in flight.
CASES_OF = {
    "allocation": allocation.CASES,
    "funds": [(case.point, case.kind) for case in funds.CASES if not case.agencies],
    "ingestion": CASES,
    "notifications": notifications.CASES,
    "resolution": [
        *((point, "") for point in resolution.OTHERS),
        *((point, RESOLVE) for point in resolution.CALLS),
        *((point, LOCATE) for point in zones.LOCATING),
    ],
    "scheduler": [(point, "") for point in (*scheduler.TICKING, *scheduler.BY_HAND)],
}


@pytest.mark.parametrize("service", SERVICES)
def test_no_point_and_no_kind_of_work_is_without_its_case(service: str) -> None:
    parts = wired(service)
    calls = {call.kind for call in parts.callouts}
    settings = import_module(f"services.{service}.config").Settings.model_fields
    assert calls == {name.removesuffix("_lease_seconds") for name in settings if name.endswith("_lease_seconds")}
    jobs = {job.name for job in parts.jobs} if service != "scheduler" else {""}  # its jobs are its configuration
    assert set(CASES_OF[service]) == {
        *((point, "") for point in points("fold", "relay")),
        *((point, kind) for kind in calls for point in (UNSEEN if kind in UNSEEN_KINDS else points("call"))),
        *((point, job) for job in jobs for point in points("job")),
    }


def test_no_point_of_paying_agencies_is_without_its_case() -> None:
    """A payment for all of a zone is another than one to each of its people; where the bank can be asked nothing, wherever it may
    have got the request."""
    dispatched = {(case.profile, case.point) for case in funds.CASES if case.agencies and case.kind == "dispatch"}
    example = [point for point in points("call") if funds.Case(point, "dispatch", "example").leaves_unknown]
    assert dispatched == {*(("full", point) for point in points("call")), *(("example", point) for point in example)}
    folded = {(case.profile, case.point, case.work) for case in funds.CASES if case.agencies and not case.kind}
    assert folded == {("full", "fold.before_commit", work) for work in ("batches", "statement")}


def distinct(world: World, topic: str, *models: type[EventData]) -> list[Any]:
    """Each fact once; whatever is said again is the same."""
    found: dict[str, Any] = {}
    for event in world.events(topic, *models):
        assert found.setdefault(event.id, event.data) == event.data
    return list(found.values())


def killed(point: str, job: str, world: World, folder: Path) -> Story:
    mark = folder / "mark"
    env = {
        "ALMONER_CRASH_AT": point,
        "ALMONER_CRASH_KIND": job,
        "ALMONER_CRASH_MARK": str(mark),
        "ALMONER_INGESTION_PARKED_TTL_SECONDS": "0.2",
    }
    world.publish(ENVELOPES, envelope("e1", PEOPLE, total(1, PEOPLE)), "e1", event_id="e1")
    world.publish_many(DISBURSEMENTS, chunks_of("e1", PEOPLE, 100))
    lost = world.publish(DISBURSEMENTS, c.DisbursementsAdded.model_validate_json(chunks_of("e9", 5, 5)[0][1]), "e9")
    world.publish(STATEMENTS, c.StatementSubmitted(text=statement_text("A", debits(ROWS))), "A", event_id="s1")
    process = world.run("ingestion", **env)

    def answered() -> dict[str, list[str]]:
        answers: dict[str, list[str]] = {}
        for answer in distinct(world, RESULTS, c.SubmissionAccepted, c.SubmissionRejected):
            for submission in answer.submission_ids:
                answers.setdefault(submission, []).append(getattr(answer, "outcome", "rejected"))
        return answers

    def tick() -> None:
        world.publish("scheduler.ticks.v1", Tick(job="expire-parked", due_at=datetime.now(UTC)), "expire-parked")

    def parked_too_long() -> Story:
        yield lambda: lost in answered()
        waited = time.monotonic() + 0.5  # longer than it may be parked: a tick that comes earlier finds nothing
        yield lambda: time.monotonic() > waited

    if job == EXPIRE_PARKED:
        yield from parked_too_long()
        tick()
    yield lambda: not process.alive
    assert process.wait() == -9
    reached, in_flight = mark.read_text().split()
    assert reached == point
    assert int(in_flight) > 0
    again = world.run("ingestion", **env)
    yield from parked_too_long()
    tick()
    yield lambda: set(answered()[lost]) == {"parked", "rejected"}  # a submission that comes again is answered again
    yield lambda: distinct(world, FACTS, c.EnvelopeCompleted) and distinct(world, LINES, c.StatementOpened)
    yield lambda: sum(len(one.lines) for one in distinct(world, LINES, c.StatementLines)) >= ROWS
    yield lambda: sum(one.count for one in distinct(world, BATCHES, c.BatchCut)) >= PEOPLE
    yield lambda: not world.sql("ingestion", "SELECT 1 FROM outbox UNION ALL SELECT 1 FROM due")
    [completed] = distinct(world, FACTS, c.EnvelopeCompleted)
    batches = distinct(world, BATCHES, c.BatchCut)
    assert (completed.count, completed.total_minor, completed.batches) == (PEOPLE, total(1, PEOPLE), len(batches))
    assert Counter(item.disbursement_id for one in batches for item in one.items) == Counter(
        f"d{n}" for n in range(1, PEOPLE + 1)
    )
    [opened] = distinct(world, LINES, c.StatementOpened)
    chunks = distinct(world, LINES, c.StatementLines)
    assert (opened.lines, opened.chunks) == (ROWS, len(chunks))
    assert sorted(line.line for one in chunks for line in one.lines) == list(range(1, ROWS + 1))
    assert len(distinct(world, FACTS, c.EnvelopeAccepted)) == 1
    assert {"e1", "s1", *(f"e1-{first}" for first in range(1, PEOPLE, 100))} <= answered().keys()
    assert not world.sql("ingestion", "SELECT 1 FROM dead_letters")
    assert again.alive


def stories(_bank: BankAdmin) -> dict[str, Teller]:
    def teller(point: str, job: str) -> Teller:
        return lambda world, folder: killed(point, job, world, folder)

    return {f"{point} {job}".strip(): teller(point, job) for point, job in CASES}


@pytest.mark.parametrize("story", [f"{point} {job}".strip() for point, job in CASES])
def test_ingestion_killed_at(story: str, ended: Told) -> None:
    ended.well()
