"""Batches in, addresses out, through a real mapper, whatever the mapper does."""

from pathlib import Path
from uuid import uuid4

import pytest

from libs.common.contracts.base import Items
from libs.common.contracts.operator import RetryWork
from libs.local.client import MapperAdmin
from tests.integration.resolution.batches import (
    BATCHES,
    COMMANDS,
    PATIENT,
    cut,
    fa,
    idle,
    ids,
    opened,
    publish,
    resolved,
    run,
)
from tests.support.simulator import SimulatorProcess
from tests.support.world import World


def last_request(mapper: MapperAdmin) -> int:
    return max((request["id"] for request in mapper.requests()), default=0)


def test_a_thousand_people_of_whom_twelve_are_unknown(
    world: World, mapper: MapperAdmin, mapper_process: SimulatorProcess
) -> None:
    people = [f"{world.name}-{number}" for number in range(999)]
    people.append(people[0])  # one person twice
    unknown = set(people[500:512])
    mapper.put_people((person, fa(person)) for person in people if person not in unknown)
    batch = cut(people)
    before = last_request(mapper)
    run(world, mapper_process.base_url, **PATIENT)
    publish(world, [batch])

    [event] = resolved(world, 1)
    assert event.correlation_id == str(batch.header.envelope_id)
    assert event.raw.key == str(batch.header.batch_id).encode()
    data = event.data
    assert data.header == batch.header
    assert (data.part, data.count, data.unresolved_count) == (1, 988, 12)
    assert data.total_minor + data.unresolved_total_minor == batch.total_minor
    assert {one.beneficiary_id for one in data.unresolved} == unknown
    assert {(one.reason, one.message) for one in data.unresolved} == {("NOT_LINKED", "succ.fa.not_linked_to_id")}
    sealed = opened(event)
    assert sealed.keys() == {item.disbursement_id for item in data.items}
    assert sealed["D1-0"] == sealed["D1-999"] == {
        "name": f"Name of {people[0]}",
        "narrative": "March",
        "fa_type": "BANK_ACCOUNT",
        "account_number": "ACC0",
        "branch_code": "B1",
        "bank_code": "EXB",
        "mobile_number": "+2210",
    }  # fmt: skip
    assert sealed["D1-1"]["fa_type"] == "MOBILE_WALLET"
    assert sealed["D1-1"]["wallet_provider_code"] == "WV"
    assert sealed["D1-2"]["email_address"] == "p2@d.example"

    assert [request["items"] for request in mapper.requests(before)] == [1000]
    [row] = world.sql("resolution", "SELECT * FROM ops_batches")
    assert (row.batch_id, row.parts, row.count, row.resolved, row.unresolved) == (batch.header.batch_id, 1, 1000, 988, 12)
    assert row.resolved_at is not None
    held = world.sql("resolution", "SELECT * FROM ops_held")
    assert {row.beneficiary_id for row in held} == unknown
    steps = world.sql("resolution", "SELECT step, detail FROM ops_history WHERE disbursement_id IS NULL ORDER BY at")
    assert [row.step for row in steps] == ["batch received", "addresses resolved"]


def test_a_mapper_that_takes_fewer_people_is_asked_more_often(
    world: World, mapper: MapperAdmin, mapper_process: SimulatorProcess
) -> None:
    people = [f"{world.name}-{number}" for number in range(250)]
    mapper.put_people((person, fa(person)) for person in people)
    mapper.set_limits(max_items=100, refuse_repeated_message_id=True)
    before = last_request(mapper)
    run(world, mapper_process.base_url, ALMONER_RESOLUTION_RESOLVE_MAX_ITEMS="100", **PATIENT)
    publish(world, [cut(people)])
    [event] = resolved(world, 1)
    assert event.data.count == 250
    assert [request["items"] for request in mapper.requests(before)] == [100, 100, 50]


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        ("down", 0.0),
        ("fail_before", 0.0),
        ("late", 1.5),
        ("late_before", 1.5),
        ("timeout_after", 1.5),
        ("nonsense", 0.0),
        ("error_500", 0.0),
        ("error_500_after", 0.0),
        ("refuse", 0.0),
    ],
)
def test_a_faulty_mapper_is_asked_again(
    world: World, mapper: MapperAdmin, mapper_process: SimulatorProcess, kind: str, seconds: float
) -> None:
    people = [f"{world.name}-{number}" for number in range(10)]
    mapper.put_people((person, fa(person)) for person in people[1:])
    mapper.set_limits(refuse_repeated_message_id=True)
    mapper.add_fault(kind, count=2, seconds=seconds)
    run(world, mapper_process.base_url)
    publish(world, [cut(people)])
    [event] = resolved(world, 1)
    assert (event.data.count, event.data.unresolved_count) == (9, 1)
    [row] = world.sql("resolution", "SELECT state, attempts_started, ambiguous FROM ops_work")
    assert (row.state, row.ambiguous) == ("DONE", False)
    assert row.attempts_started >= 3
    world.until(lambda: idle(world))
    assert len(resolved(world, 1)) == 1


def test_a_mapper_that_stays_away_is_an_error_which_an_operator_retries(
    world: World, mapper: MapperAdmin, mapper_process: SimulatorProcess
) -> None:
    people = [f"{world.name}-{number}" for number in range(3)]
    mapper.put_people((person, fa(person)) for person in people)
    mapper.add_fault("timeout_after", count=1, seconds=0.2)  # what happened is open, but to ask is only to ask
    mapper.add_fault("error_500", count=1)
    run(world, mapper_process.base_url, ALMONER_RESOLUTION_RESOLVE_MAX_ATTEMPTS="2", **PATIENT)
    publish(world, [cut(people)])
    [row] = world.until(lambda: world.sql("resolution", "SELECT * FROM ops_work WHERE state NOT IN ('PENDING', 'CLAIMED')"))
    assert (row.state, row.code, row.attempts_started, row.ambiguous) == ("ERROR", "HTTP_500", 2, False)

    world.publish(COMMANDS, RetryWork(who="ops", why="mapper is back", kind="resolve"), "resolve")
    [event] = resolved(world, 1)
    assert event.data.count == 3


def test_a_stopped_mapper_is_waited_for(world: World, mapper: MapperAdmin, mapper_process: SimulatorProcess) -> None:
    people = [f"{world.name}-{number}" for number in range(3)]
    mapper.put_people((person, fa(person)) for person in people)
    mapper_process.kill()
    run(world, mapper_process.base_url)
    publish(world, [cut(people)])
    world.until(lambda: world.sql("resolution", "SELECT 1 FROM ops_attempts WHERE outcome = 'NotSent'"))
    mapper_process.start()
    [event] = resolved(world, 1)
    assert event.data.count == 3


def test_the_same_batch_changes_nothing(world: World, mapper: MapperAdmin, mapper_process: SimulatorProcess) -> None:
    people = [f"{world.name}-{number}" for number in range(3)]
    mapper.put_people((person, fa(person)) for person in people)
    batch = cut(people)
    process = run(world, mapper_process.base_url)
    world.publish(BATCHES, batch, batch.header.batch_id, event_id="one")
    world.publish(BATCHES, batch, batch.header.batch_id, event_id="one")
    resolved(world, 1)
    world.publish(BATCHES, batch, batch.header.batch_id, event_id="two")
    world.until(lambda: world.sql("resolution", "SELECT 1 FROM inbox WHERE id = 'two'"))
    world.until(lambda: idle(world))
    assert len(resolved(world, 1)) == 1
    assert process.alive


def test_what_cannot_be_resolved_at_all(world: World, mapper: MapperAdmin, mapper_process: SimulatorProcess) -> None:
    """A batch that contradicts itself is a dead letter; one whose seal does not open is an error; the next goes on."""
    people = [f"{world.name}-{number}" for number in range(2)]
    mapper.put_people((person, fa(person)) for person in people)
    good = cut(people, 2)
    twice = cut(people, 3)
    twice = twice.model_copy(update={"items": Items.of([twice.items[0], twice.items[0]]), "total_minor": 2000})
    foreign = cut(people, 4).model_copy(update={"header": cut(people, 4).header})  # sealed for another place
    run(world, mapper_process.base_url, ALMONER_RESOLUTION_RESOLVE_MAX_ATTEMPTS="2", **PATIENT)
    publish(world, [twice, foreign, good])
    [event] = resolved(world, 1)
    assert event.data.header.batch_id == good.header.batch_id
    [letter] = world.until(lambda: world.sql("resolution", "SELECT * FROM ops_dead_letters"))
    assert letter.code == "DUPLICATE_DISBURSEMENT_ID"
    [row] = world.until(lambda: world.sql("resolution", "SELECT * FROM ops_work WHERE state = 'ERROR'"))
    assert (row.subject, row.code) == (f"{foreign.header.batch_id}/1", "BROKEN_SEAL")


def test_two_replicas_share_the_work(world: World, mapper: MapperAdmin, mapper_process: SimulatorProcess) -> None:
    envelope_id = uuid4()
    batches = [cut([f"{world.name}-{n}-{i}" for i in range(20)], n, envelope_id) for n in range(1, 41)]
    mapper.put_people((item.beneficiary_id, fa(item.beneficiary_id)) for batch in batches for item in list(batch.items)[1:])
    mapper.add_fault("late", seconds=0.1)
    before = last_request(mapper)
    replicas = [run(world, mapper_process.base_url, **PATIENT) for _ in range(2)]
    topic = world.prefix + BATCHES
    world.until(lambda: all(one.metric("almoner_partitions_assigned", topic=topic) for one in replicas))
    publish(world, batches)
    events = resolved(world, 40)
    assert {event.data.header.batch_id for event in events} == {batch.header.batch_id for batch in batches}
    world.until(lambda: idle(world))
    assert len(resolved(world, 40)) == 40
    assert len(list(mapper.requests(before))) == 40
    assert all(ids(event)[1] == [f"D{event.data.header.number}-0"] for event in events)
    assert all(replica.metric("almoner_calls_total", kind="resolve", outcome="Done") > 0 for replica in replicas)


def test_an_answer_after_the_lease_changes_nothing(
    world: World, mapper: MapperAdmin, mapper_process: SimulatorProcess, tmp_path: Path
) -> None:
    people = [f"{world.name}-{number}" for number in range(3)]
    mapper.put_people((person, fa(person)) for person in people[1:])
    mark = tmp_path / "mark"
    freeze = {"AT": "call.after_answer", "KIND": "resolve", "MARK": str(mark), "SIGNAL": "SIGSTOP"}
    frozen = run(world, mapper_process.base_url, **PATIENT, **{f"ALMONER_CRASH_{name}": text for name, text in freeze.items()})
    publish(world, [cut(people)])
    world.until(mark.exists)
    world.end_leases("resolution")
    run(world, mapper_process.base_url, **PATIENT)
    world.until(lambda: world.sql("resolution", "SELECT 1 FROM ops_work WHERE state = 'DONE'"))
    frozen.thaw()
    world.until(lambda: frozen.logged("late settle refused"))
    world.until(lambda: idle(world))
    assert len(resolved(world, 1)) == 1
    attempts = world.sql("resolution", "SELECT attempt, late FROM ops_attempts WHERE finished_at IS NOT NULL ORDER BY attempt")
    assert (tuple(attempts[0]), tuple(attempts[-1])) == ((1, True), (len(attempts), False))
