"""What allocation's /metrics says of who is held, what is overdue and whether everybody is somewhere, from real processes."""

from collections.abc import Iterator
from contextlib import suppress

import pytest
from prometheus_client import REGISTRY

from libs.common.contracts import operator
from libs.common.db import Database
from services.allocation import gauges
from tests.integration.allocation.goods import Allocating, Envelope, agency, settings_of, warehouse
from tests.support.process import Process
from tests.support.world import World

PEOPLE, MINOR = "almoner_entitlements_held_people", "almoner_entitlements_held_minor"
AGE, OVERDUE = "almoner_reference_age_seconds", "almoner_announce_oldest_seconds"
OFF, CHECKED = "almoner_goods_off_balance_envelopes", "almoner_goods_checked_envelopes"

# What is done to the rows of an envelope in which one person is allocated and two are held.
FAULTS = {
    "a held person is lost": "UPDATE groups SET count = 0, total_minor = 0 WHERE reason = 'NO_AGENCY'",
    "a held person is there twice": "UPDATE groups SET count = 2, total_minor = 2 * total_minor WHERE reason = 'NO_AGENCY'",
    "somebody is told who is not allocated": "UPDATE announcements SET count = count + 1",
    "somebody is allocated who was not told": """UPDATE groups SET state = 'ALLOCATED', part = 9, agency_id = 'x', agency_by = 'x'
                                                 WHERE reason = 'NO_AGENCY'""",
    "an amount is another": "UPDATE groups SET total_minor = total_minor + 1 WHERE reason = 'NO_AGENCY'",
    "fewer were declared": "UPDATE envelopes SET declared = declared - 1, declared_minor = declared_minor - 1",
}
OLD = """WITH a AS (UPDATE announcements SET at = at - interval '2 days')
         UPDATE envelopes SET completed_at = completed_at - interval '2 days', said_at = said_at - interval '2 days'"""
PLANNED = "UPDATE groups SET state = 'PLANNED', part = NULL WHERE state = 'ALLOCATED'"


class Undone(Exception):
    pass


@pytest.fixture
def allocating(world: World) -> Iterator[Allocating]:
    found = Allocating(world)
    found.reference.prepare()
    yield found
    for process in world.processes:
        process.kill()
    found.reference.drop()


def looked(allocating: Allocating, measure: str, **env: str) -> Process:
    """A replica that changes nothing, once it has read these gauges."""
    process = allocating.world.run("allocation", "relay", ALMONER_ALLOCATION_PBMS_URL=allocating.reference.pbms_url, **env)
    allocating.world.until(lambda: process.metric("almoner_measured_timestamp_seconds", measure=measure) > 0)
    return process


def test_who_is_held_what_is_old_and_what_is_overdue(allocating: Allocating, world: World) -> None:
    allocating.put(warehouse(1, "L1"), agency(11, "L1-s1"))
    envelope, cash = Envelope(), Envelope("CASH_PHYSICAL")
    allocating.begin()
    allocating.publish(envelope.batch("L1-s1", "L1-s2", "L1-s2", None), envelope.completed())
    allocating.publish(cash.batch("L1-s2"), cash.completed())
    allocating.until_state(envelope, allocated=1, held=3, revision=1)
    allocating.until_state(cash, held=1)
    allocating.quiet()
    # What nobody has read since, and an envelope that could have been announced for long.
    world.sql("allocation", "UPDATE reference SET taken_at = taken_at - interval '3 hours' WHERE source = 'pbms'")
    assert allocating.command(operator.PauseStage(who="ops", why="test", stage="announce")).affected == 1
    late = Envelope()
    allocating.publish(late.batch("L1-s1", "L1-s1"), late.completed())
    allocating.until_state(late, planned=2, state="ALLOCATING")  # which is complete, too
    for table, column in (("batches", "ready_at"), ("envelopes", "completed_at")):
        moved = f"UPDATE {table} SET {column} = {column} - interval '2 hours' WHERE envelope_id = %(id)s"
        world.sql("allocation", moved, id=late.id)

    process = looked(allocating, "goods")  # which is read last
    everybody = envelope.everybody
    labels = {"programme": "RICE", "unit": "0.001 kg"}
    assert process.metric(PEOPLE, **labels, reason="NO_AGENCY") == 2
    assert process.metric(MINOR, **labels, reason="NO_AGENCY") == everybody["D1-1"] + everybody["D1-2"]
    assert process.metric(MINOR, **labels, reason="NOT_IN_REGISTRY") == everybody["D1-3"]
    assert process.metric(PEOPLE) == 3  # what is held of agency cash is money, and funds shows it
    assert process.metric(AGE, source="pbms") >= 3 * 3600
    assert process.metric(OVERDUE) >= 2 * 3600
    assert (process.metric(CHECKED), process.metric(OFF)) == (3, 0)
    text = process.get("/metrics").text
    assert not any(name in text for name in ("D1-", "P1-", str(envelope.id)))

    # It may be late: operators are to look at it first. Or somebody said the first of many parts just now.
    assert looked(allocating, "entitlements", ALMONER_ALLOCATION_ANNOUNCE_DELAY_SECONDS="86400").metric(OVERDUE) == 0
    said = "INSERT INTO announcements SELECT batch_id, 1, envelope_id, 1, 0 FROM batches WHERE envelope_id = %(id)s"
    world.sql("allocation", said, id=late.id)
    process = looked(allocating, "goods")
    assert process.metric(OVERDUE) < 2 * 3600
    assert process.metric(OFF) == 1  # which is a lie
    [line] = process.logged("goods out of balance: run `almoner books`")
    assert line["some"] == [str(late.id)]

    # PBMS is away: its call is open since the last tick, not since the first one ever.
    world.sql("allocation", "UPDATE work SET created_at = created_at - interval '9 days' WHERE kind = 'reference'")
    allocating.reference.drop()
    allocating.tick()
    world.until(lambda: world.sql("allocation", "SELECT 1 FROM ops_work WHERE kind = 'reference' AND state = 'PENDING'"))
    assert 0 < looked(allocating, "runtime").metric("almoner_work_oldest_seconds", kind="reference") < 9 * 86400


def test_whoever_is_lost_or_doubled_is_noticed_while_an_envelope_moves(allocating: Allocating, world: World) -> None:
    allocating.put(warehouse(1, "L1"), agency(11, "L1-s1"))
    envelope = Envelope()
    allocating.begin()
    allocating.publish(envelope.batch("L1-s1", "L1-s2", None), envelope.completed())
    allocating.until_state(envelope, allocated=1, held=2, revision=1)
    allocating.quiet()
    database = Database(world.database_url, "allocation")

    def after(*changes: str) -> tuple[float | None, float | None]:
        """Envelopes that are looked at and those that are off balance, had this happened."""
        with suppress(Undone), database.transaction() as tx:
            for change in changes:
                tx.run(change)
            gauges.read_goods(tx)
            raise Undone
        return REGISTRY.get_sample_value(CHECKED), REGISTRY.get_sample_value(OFF)

    try:
        assert after() == (1, 0)
        for what, fault in FAULTS.items():
            assert after(fault) == (1, 1), what
        assert after(OLD) == (0, 0)
        assert after(OLD, PLANNED) == (1, 1)  # it moves again, and was said
        # What is still on its way is not lost, and who has come of a batch without its first part is there.
        more = "UPDATE envelopes SET declared = declared + 1, declared_minor = declared_minor + 9"
        assert after(more) == (1, 0)
        never_said = "UPDATE envelopes SET said_revision = 0"
        assert after(more, never_said, OLD) == (1, 1)  # but a day is long enough
        assert after(more, never_said, OLD, "UPDATE envelopes SET cancelling = true, cancelled_at = completed_at") == (0, 0)
        assert after("UPDATE batches SET whole = false", FAULTS["a held person is lost"], more) == (1, 0)
    finally:
        database.close()


def test_what_announcing_waits_for_by_right_is_not_overdue(allocating: Allocating, world: World) -> None:
    allocating.put(warehouse(1, "L1"), agency(11, "L1-s1"))
    envelope = Envelope()
    allocating.begin()
    allocating.publish(envelope.batch("L1-s1"))
    allocating.until_state(envelope, planned=1)
    allocating.quiet()
    database = Database(world.database_url, "allocation")
    ready = "UPDATE batches SET ready_at = ready_at - interval '2 hours'"
    complete = "UPDATE envelopes SET completed_at = now() - interval '1 hour', declared = 1, declared_minor = 1"
    cancelling, cash = "UPDATE envelopes SET cancelling = true", "UPDATE envelopes SET goods = false"

    def overdue(*changes: str, delay_seconds: float = 0) -> float:
        """Had this happened."""
        with suppress(Undone), database.transaction() as tx:
            for change in changes:
                tx.run(change)
            gauges.read_entitlements(settings_of(allocating, announce_delay_seconds=delay_seconds), tx)
            raise Undone
        return REGISTRY.get_sample_value(OVERDUE) or 0.0

    try:
        assert overdue(ready) == 0  # not complete
        assert 3600 <= overdue(ready, complete) < 7200
        assert 1800 <= overdue(ready, complete, delay_seconds=1800) < 3600
        assert overdue(ready, complete, cancelling) == 0  # goods: nobody is told any more
        assert overdue(ready, cancelling, cash, delay_seconds=86400) >= 7200  # funds can answer only what it was told of
        assert overdue(ready, complete, "UPDATE batches SET whole = false") == 0
    finally:
        database.close()


def test_before_pbms_was_ever_read_its_age_counts_from_the_first_try(allocating: Allocating, world: World) -> None:
    database = Database(world.database_url, "allocation")
    try:

        def age(**more: str) -> float | None:
            with database.transaction() as tx:
                gauges.read_entitlements(settings_of(allocating, **more), tx)
            return REGISTRY.get_sample_value(AGE, {"source": more.get("reference_source", "pbms")})

        assert age() is None
        assert age(reference_source="topic") is None
        world.sql(
            "allocation",
            """INSERT INTO attempts (kind, subject, attempt, lease_token, started_at, outcome)
               VALUES ('reference', 'pbms', 1, uuidv7(), now() - interval '5 hours', 'NotSent'),
                      ('reference', 'pbms', 2, uuidv7(), now() - interval '4 hours', 'NotSent')""",
        )
        assert (age() or 0) >= 5 * 3600
        world.sql(
            "allocation",
            """INSERT INTO places (source, kind, id, mnemonic, name, digest, gone, updated_at)
               SELECT 'topic', 'agency', n::text, '', '', '', true, now() - make_interval(days => n) FROM generate_series(1, 3) AS n""",
        )
        assert 86400 <= (age(reference_source="topic") or 0) < 2 * 86400
        assert REGISTRY.get_sample_value(AGE, {"source": "pbms"}) is None  # it is not asked
    finally:
        database.close()


def test_reading_looks_at_what_is_held_or_moves_and_not_at_all_there_ever_was(allocating: Allocating, world: World) -> None:
    """Of 2,000 envelopes three move and three others have somebody who is held."""
    world.sql(
        "allocation",
        """INSERT INTO envelopes (envelope_id, lock_key, header, revision, benefit_type, goods, programme, programme_id, benefit_code_id,
                                  cycle_id, currency, measurement_unit, scale, declared, declared_minor, completed_at,
                                  said_revision)
           SELECT uuidv7(), n, '{}', 1, 'COMMODITY', true, 'P', 'P', 'C', '1', '', 'kg', 3, 10, 10,
                  clock_timestamp() - CASE WHEN n > 3 THEN interval '9 days' ELSE interval '0' END, 1 FROM generate_series(1, 2000) AS n""",
    )
    world.sql("allocation", "INSERT INTO batches SELECT uuidv7(), envelope_id, 1, '{}', true FROM envelopes")
    world.sql(
        "allocation",
        """INSERT INTO arrivals (envelope_id, batch_id, part, located, unresolved, taken_at)
           SELECT envelope_id, batch_id, 1, 10, 0, clock_timestamp() FROM batches""",
    )
    world.sql(
        "allocation",
        """INSERT INTO announcements (batch_id, part, envelope_id, count, held, at)
           SELECT batch_id, 1, envelope_id, 10, 0, clock_timestamp() - interval '9 days' FROM batches""",
    )
    world.sql(
        "allocation",
        """INSERT INTO groups (arrival, grp, envelope_id, batch_id, large_zone_id, small_zone_id, count, total_minor, state, reason,
                               agency_id, agency_by, part)
           SELECT a.arrival, g, a.envelope_id, a.batch_id, 'L', 'S', 1, 1, CASE WHEN held THEN 'HELD' ELSE 'ALLOCATED' END,
                  CASE WHEN held THEN 'NO_AGENCY' END, CASE WHEN NOT held THEN 'A' END, CASE WHEN NOT held THEN 'ID' END,
                  CASE WHEN NOT held THEN 1 END
           FROM arrivals a JOIN envelopes e USING (envelope_id) CROSS JOIN generate_series(1, 10) AS g
           CROSS JOIN LATERAL (SELECT e.lock_key BETWEEN 4 AND 6 AND g = 1 AS held) AS h""",
    )
    world.sql("allocation", "ANALYZE")
    database = Database(world.database_url, "allocation")
    try:
        before = world.scanned("allocation", "groups", "arrivals", "announcements")
        with database.transaction() as tx:
            gauges.read_entitlements(settings_of(allocating), tx)
            gauges.read_goods(tx)
            tx.run("SELECT pg_stat_force_next_flush()")
        assert world.scanned("allocation", "groups", "arrivals", "announcements") - before < 500
    finally:
        database.close()
    assert (REGISTRY.get_sample_value(CHECKED), REGISTRY.get_sample_value(OFF)) == (3, 0)
    held = {"programme": "P", "unit": "0.001 kg", "reason": "NO_AGENCY"}
    assert REGISTRY.get_sample_value(PEOPLE, held) == 3
