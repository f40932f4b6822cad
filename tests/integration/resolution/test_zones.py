"""Batches of goods and agency cash in, zones out, from a registry's own database, whatever becomes of it."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from libs.common.contracts.base import GOODS
from libs.common.contracts.operator import RetryWork
from libs.local.client import MapperAdmin
from tests.integration.resolution.batches import BATCHES, COMMANDS, cut, fa, idle, publish, resolved
from tests.integration.resolution.test_held import ask
from tests.integration.resolution.zones import Registry, goods, homes, located, opened, reasons, registry_of, start, zone
from tests.support.points import UNSEEN
from tests.support.simulator import SimulatorProcess
from tests.support.world import World

LOCATING = UNSEEN
# None is asked for again only because the machine is busy.
PATIENT = {"ALMONER_RESOLUTION_LOCATE_TIMEOUT_SECONDS": "20", "ALMONER_RESOLUTION_LOCATE_LEASE_SECONDS": "40"}


@pytest.fixture
def registry(world: World) -> Iterator[Registry]:
    with registry_of(world) as registry:
        yield registry


@pytest.mark.parametrize("benefit_type", GOODS)
def test_a_thousand_people_in_forty_zones_of_whom_seven_are_unknown(
    world: World, registry: Registry, benefit_type: str
) -> None:
    people = [f"{world.name}-{number}" for number in range(999)]
    people.append(people[0])  # one person twice
    unknown = set(people[500:507])
    registry.put_people((person, *zone(n)) for n, person in enumerate(people[:999]) if person not in unknown)
    batch = goods(people, benefit_type=benefit_type)
    start(world, {"farmers": registry.settings()})
    for event_id in ("one", "one", "two"):
        world.publish(BATCHES, batch, batch.header.batch_id, event_id=event_id, correlation_id=str(batch.header.envelope_id))

    [event] = located(world, 1)
    data = event.data
    assert event.correlation_id == str(batch.header.envelope_id)
    assert event.raw.key == str(batch.header.batch_id).encode()
    assert data.header == batch.header
    assert (data.part, data.count, data.unresolved_count) == (1, 993, 7)
    assert data.total_minor + data.unresolved_total_minor == batch.total_minor
    assert {(one.beneficiary_id, one.reason) for one in data.unresolved} == {(one, "NOT_IN_REGISTRY") for one in unknown}
    expected = {f"D1-{n}": (zone(n % 999)[0], zone(n % 999)[2]) for n in range(1000) if people[n] not in unknown}
    assert homes(data) == expected
    amounts = {item.disbursement_id: item.amount_minor for item in batch.items}
    totals: Counter[tuple[str, str]] = Counter()
    for disbursement_id, place in expected.items():
        totals[place] += amounts[disbursement_id]
    assert {(one.large_zone_id, one.small_zone_id): one.total_minor for one in data.zones} == totals
    assert {(one.large_zone_code, one.small_zone_code) for one in data.zones} == {zone(n)[1::2] for n in range(999)}
    assert len(data.zones) == len(totals) == 40
    sealed = opened(event)
    assert sealed.keys() == expected.keys()
    assert sealed["D1-0"] == sealed["D1-999"] == {"name": f"Name of {people[0]}", "narrative": "March"}

    world.until(lambda: world.sql("resolution", "SELECT 1 FROM inbox WHERE id = 'two'"))
    registry.put_people((person, *zone(3)) for person in unknown)
    envelope_id = batch.header.envelope_id
    assert ask(world, envelope_id=envelope_id, disbursement_ids=["D1-1"]) == 0  # a zone that is known is not asked for again
    assert ask(world, envelope_id=envelope_id, expected=7) == 7
    second = located(world, 2)[1]
    assert (second.data.part, list(second.data.unresolved)) == (2, [])
    assert homes(second.data) == {f"D1-{n}": (zone(3)[0], zone(3)[2]) for n in range(500, 507)}
    assert opened(second).keys() == homes(second.data).keys()
    world.until(lambda: idle(world))
    assert len(located(world, 2)) == 2
    [row] = world.sql("resolution", "SELECT * FROM ops_batches")
    assert (row.kind, row.benefit_type, row.registry) == ("locate", benefit_type, "farmers")
    assert (row.parts, row.resolved, row.unresolved) == (2, 1000, 0)
    [row] = world.sql("resolution", "SELECT body, disbursements FROM batches")
    assert tuple(row) == (None, None)
    steps = world.sql("resolution", "SELECT step, kind FROM ops_history WHERE disbursement_id IS NULL ORDER BY at")
    assert [row.step for row in steps] == ["batch to be located", "zones resolved", "registry asked again", "zones resolved"]
    steps = world.sql("resolution", "SELECT step FROM ops_history WHERE disbursement_id = 'D1-500' ORDER BY at")
    assert [row.step for row in steps] == ["held", "zone resolved"]


def test_both_kinds_of_batches_of_one_poll(
    world: World, registry: Registry, mapper: MapperAdmin, mapper_process: SimulatorProcess
) -> None:
    """Each is asked where it belongs; who is held is listed with what was asked."""
    people = [f"{world.name}-{number}" for number in range(3)]
    mapper.put_people((person, fa(person)) for person in people[1:])
    registry.put_people([(people[0], *zone(0))])
    batches = [
        cut(people, 1),
        goods(people, 2, benefit_type="CASH_PHYSICAL", currency="KES", measurement_unit="", unit_scale=0),
    ]
    start(world, {"default": registry.settings()}, ALMONER_RESOLUTION_MAPPER_URL=mapper_process.base_url)
    publish(world, batches)
    [address], [home] = resolved(world, 1), located(world, 1)
    assert [one.disbursement_id for one in address.data.items] == ["D1-1", "D1-2"]
    assert homes(home.data).keys() == {"D2-0"}
    held = world.sql("resolution", "SELECT kind, registry, disbursement_id, reason FROM ops_held ORDER BY disbursement_id")
    assert [tuple(row) for row in held] == [
        ("resolve", "", "D1-0", "NOT_LINKED"),
        ("locate", "farmers", "D2-1", "NOT_IN_REGISTRY"),
        ("locate", "farmers", "D2-2", "NOT_IN_REGISTRY"),
    ]


def test_what_a_registry_may_say_of_people(world: World, registry: Registry) -> None:
    """A table of other names, which holds all that can be wrong: each person is held with a reason, nobody stops another."""
    people = [f"{world.name}-{number}" for number in range(10)]
    rows = [
        (people[0], 7, "a \\ b'\"c\u00a0%s {x} \u202e"),  # odd, and good
        (people[1], None, "small"),
        (people[2], 7, None),
        (people[3], 7, ""),
        (people[4], 7, "x" * 65),
        (people[5], 7, "line\nbreak"),
        (people[6], 7, "one"), (people[6], 7, "other"),
        (people[7], 7, "one"), (people[7], 7, "one"),
        (people[8].upper(), 7, "one"),
    ]  # fmt: skip
    table = '"re%s"."peo""ple; DROP TABLE g2p_farmer_registry"'
    values = ", ".join(
        "(" + ", ".join("NULL" if v is None else "'" + str(v).replace("'", "''") + "'" for v in row) + ")" for row in rows
    )
    registry.sql(
        'CREATE SCHEMA "re%s"',
        f'CREATE TABLE {table} ("the id" text, "L:z" int, "Small ""zone""" text)',
        f"INSERT INTO {table} VALUES {values}",
        'GRANT USAGE ON SCHEMA "re%s" TO PUBLIC',
        f"GRANT SELECT ON {table} TO PUBLIC",
    )
    settings = registry.settings(
        table='re%s.peo"ple; DROP TABLE g2p_farmer_registry',
        id="the id",
        large_zone_id="L:z",
        small_zone_id='Small "zone"',
        large_zone_code="",
        small_zone_code="",
    )
    batch = goods(people)
    start(world, {"farmers": settings})
    publish(world, [batch])
    [event] = located(world, 1)
    assert homes(event.data) == {"D1-0": ("7", rows[0][2]), "D1-7": ("7", "one")}
    assert {one.large_zone_code + one.small_zone_code for one in event.data.zones} == {""}
    assert reasons(event.data) == {
        "D1-1": "NO_ZONE",
        "D1-2": "NO_ZONE",
        "D1-3": "NO_ZONE",
        "D1-4": "ZONE_UNREADABLE",
        "D1-5": "ZONE_UNREADABLE",
        "D1-6": "AMBIGUOUS_ANSWER",
        "D1-8": "NOT_IN_REGISTRY",
        "D1-9": "NOT_IN_REGISTRY",
    }
    assert event.data.total_minor + event.data.unresolved_total_minor == batch.total_minor


def test_a_registry_that_is_down_is_waited_for(world: World, registry: Registry) -> None:
    people = [f"{world.name}-{number}" for number in range(3)]
    registry.put_people((person, *zone(0)) for person in people)
    process = start(world, {"farmers": registry.settings()})
    publish(world, [goods(people, 1)])
    located(world, 1)
    world.databases.cut_off(registry.name)  # also the connection that it has
    publish(world, [goods(people, 2)])
    world.until(lambda: world.sql("resolution", "SELECT 1 FROM ops_attempts WHERE outcome = 'NotSent' AND attempt > 1"))
    world.databases.bring_back(registry.name)
    assert {event.data.header.number for event in located(world, 2)} == {1, 2}
    assert process.metric("almoner_calls_total", kind="locate", outcome="NotSent") > 1
    assert not world.sql("resolution", "SELECT 1 FROM ops_dead_letters")


def test_a_registry_nobody_has_named_or_that_refuses_is_an_error_which_an_operator_retries(
    world: World, registry: Registry
) -> None:
    people = [f"{world.name}-{number}" for number in range(3)]
    registry.put_people((person, *zone(0)) for person in people)
    process = start(world, {"farmers": registry.settings(), "fishers": registry.settings(table="fishers")}, **PATIENT)
    strange, refused = goods(people, 2, target_registry="herders"), goods(people, 3, target_registry="fishers")
    publish(world, [strange, refused, goods(people, 1)])
    assert located(world, 1)[0].data.header.number == 1
    world.until(lambda: len(world.sql("resolution", "SELECT 1 FROM ops_work WHERE state = 'ERROR'")) == 2)
    errors = world.sql("resolution", "SELECT subject, code, message, attempts_started FROM ops_work WHERE state = 'ERROR'")
    assert {(row.subject, row.code, row.attempts_started) for row in errors} == {
        (f"{strange.header.batch_id}/1", "UNKNOWN_REGISTRY", 1),
        (f"{refused.header.batch_id}/1", "REGISTRY_REFUSED", 1),
    }
    assert any("'herders'" in row.message for row in errors)
    assert any("UndefinedTable" in row.message for row in errors)

    registry.sql("CREATE VIEW fishers AS SELECT * FROM g2p_farmer_registry")
    process.kill()
    start(world, {"default": registry.settings(), "fishers": registry.settings(table="fishers")})
    world.publish(COMMANDS, RetryWork(who="ops", why="both are there now", kind="locate"), "locate")
    assert {event.data.header.number for event in located(world, 3)} == {1, 2, 3}


@pytest.mark.parametrize("point", LOCATING)
def test_a_batch_survives(world: World, registry: Registry, tmp_path: Path, point: str) -> None:
    """One part has one event, however the process dies; a second part knows of the first."""
    people = [f"{world.name}-{number}" for number in range(5)]
    registry.put_people((person, *zone(n)) for n, person in enumerate(people[1:]))
    mark = tmp_path / "mark"
    env = {"ALMONER_CRASH_AT": point, "ALMONER_CRASH_KIND": "locate", "ALMONER_CRASH_MARK": str(mark), **PATIENT}
    process = start(world, {"farmers": registry.settings()}, **env)
    publish(world, [goods(people)])
    assert process.wait() == -9
    assert mark.read_text() == f"{point} 1\n"
    world.end_leases("resolution")
    start(world, {"farmers": registry.settings()}, **env)
    located(world, 1)
    registry.put_people([(people[0], *zone(39))])
    assert ask(world) == 1
    world.until(lambda: any(event.data.part == 2 for event in located(world, 2)))
    world.until(lambda: idle(world))
    said = {event.id: event.data for event in located(world, 2)}  # what a relay repeats has the same id
    assert sorted((data.part, data.count, data.unresolved_count) for data in said.values()) == [(1, 4, 1), (2, 1, 0)]
    [row] = world.sql("resolution", "SELECT resolved, unresolved FROM ops_batches")
    assert tuple(row) == (5, 0)


def test_one_that_sleeps_through_its_lease_says_nothing(world: World, registry: Registry, tmp_path: Path) -> None:
    """Frozen with the answer in its hands: a replica has asked again by the time it wakes."""
    people = [f"{world.name}-{number}" for number in range(5)]
    registry.put_people((person, *zone(n)) for n, person in enumerate(people[1:]))
    mark = tmp_path / "mark"
    env = {"AT": "call.after_answer", "KIND": "locate", "MARK": str(mark), "SIGNAL": "SIGSTOP"}
    settings = {"farmers": registry.settings()}
    frozen = start(world, settings, **{f"ALMONER_CRASH_{name}": text for name, text in env.items()}, **PATIENT)
    publish(world, [goods(people)])
    world.until(mark.exists)
    world.end_leases("resolution")
    start(world, settings, **PATIENT)
    answered = "SELECT 1 FROM ops_batches WHERE (parts, resolved, unresolved) = (1, 4, 1)"
    world.until(lambda: world.sql("resolution", answered))
    frozen.thaw()
    world.until(lambda: frozen.logged("late settle refused"))
    world.until(lambda: idle(world))
    assert len({event.id for event in located(world, 1)}) == 1
    assert world.sql("resolution", answered)
