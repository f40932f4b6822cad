"""The database is restored to an earlier moment: what it shows as not sent yet was sent in the time that is lost."""

import time
from collections.abc import Iterator

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition

from libs.common.contracts import operator
from libs.local.client import BankAdmin, Profile
from tests.integration.funds.test_operations import command, until_position
from tests.support.money import Payout
from tests.support.statements import deliver_statements
from tests.support.world import TIMEOUT_SECONDS, World

STAGES = ["block", "check", "dispatch", "release"]


@pytest.fixture
def backup(world: World) -> Iterator[str]:
    name = f"{world.name}_backup"
    yield name
    world.databases.drop(name)


def paused(world: World) -> list[str]:
    return [row.stage for row in world.sql("funds", "SELECT stage FROM ops_paused ORDER BY stage")]


def asked(payout: Payout) -> int:
    return len(list(payout.bank.requests()))


def restore(world: World, backup: str) -> None:
    world._engine.dispose()
    world.databases.drop(world.name)
    world.databases.create(world.name, backup)


def lose_what_was_paid(world: World, payout: Payout, backup: str, stage: str) -> None:
    """Up to a call that is yet to be made; it and all behind it are made in the time that is lost."""
    process = world.run("funds", **payout.env)
    command(world, operator.PauseStage, stage=stage)
    world.until(lambda: paused(world) == [stage])
    payout.publish_all()
    world.until(lambda: world.sql("funds", "SELECT 1 FROM work WHERE kind = %(kind)s AND state = 'PENDING'", kind=stage))
    assert process.stop() == 0, process.log_text()
    world._engine.dispose()
    world.databases.create(backup, world.name)
    process = world.run("funds", **payout.env)
    command(world, operator.ResumeStage, stage=stage)
    until_position(payout, outstanding=5)
    assert process.stop() == 0, process.log_text()
    restore(world, backup)


def reset_offsets(world: World) -> None:
    """As the runbook says: each partition to where the data is, from its beginning where the data knows nothing."""
    group = f"{world.prefix}almoner-funds"
    [listed] = world.kafka.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)]).values()
    stored = {
        (world.prefix + row.topic, row.partition): row.next_offset for row in world.sql("funds", "SELECT * FROM ops_consumed")
    }
    wanted = [
        TopicPartition(tp.topic, tp.partition, stored.get((tp.topic, tp.partition), 0))
        for tp in listed.result(TIMEOUT_SECONDS).topic_partitions
    ]
    [done] = world.kafka.admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, wanted)]).values()
    assert not [tp for tp in done.result(TIMEOUT_SECONDS).topic_partitions if tp.error]


@pytest.mark.parametrize(("profile", "stage"), [("example", "block"), ("example", "dispatch"), ("full", "dispatch")])
def test_nothing_is_asked_of_a_bank_from_old_data(
    world: World, bank: BankAdmin, backup: str, profile: Profile, stage: str
) -> None:
    payout = Payout(world, bank, profile)
    payout.batch(5)
    lose_what_was_paid(world, payout, backup, stage)
    before = asked(payout)

    for verb in ("work", "relay", "consume", "run"):
        process = world.run("funds", verb, **payout.env)
        assert process.wait() == 1, process.log_text()
        [said] = process.logged("cannot go on")
        assert "The database is older than Kafka's offsets" in said["error"]
        assert "runbook" in said["error"]
        assert not process.logged("started")
        assert paused(world) == STAGES
    assert asked(payout) == before

    reset_offsets(world)
    world.run("funds", **payout.env)  # and hears again that an operator had the stage resumed
    world.until(lambda: world.sql("funds", "SELECT 1 FROM audit WHERE action LIKE '%%ResumeStage%%'"))
    time.sleep(1)  # longer than two looks for work
    assert paused(world) == STAGES
    assert asked(payout) == before

    for resumed in ("check", "block", "release"):
        command(world, operator.ResumeStage, stage=resumed)
    if stage == "block":  # this bank cannot be asked what became of it
        world.until(lambda: world.sql("funds", "SELECT 1 FROM blocks WHERE state = 'UNKNOWN'"))
        [block] = bank.blocks(profile, payout.account)
        known = {"outcome": "happened", "reference": block["block_reference_no"], "evidence": "the bank's own list"}
        command(world, operator.SettleUnknown, kind="block", subject=f"{payout.envelope_id}/1", **known)
        until_position(payout, state="BLOCKED", waiting=5)
        deliver_statements(payout)
        until_position(payout, confirmed=5)
    command(world, operator.ResumeStage, stage="dispatch")
    if stage == "dispatch":
        until_position(payout, **({"unknown": 5} if profile == "example" else {"outstanding": 5}))
        deliver_statements(payout)
    until_position(payout, state="SETTLED", confirmed=5)
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()}
    assert len(bank.blocks(profile, payout.account)) == 1
    world.until(lambda: not paused(world))
