"""Facts about one envelope come by topics with different keys, in any order, twice, at the same moment in two replicas."""

import random
from collections import Counter
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import pytest

from libs.common.clock import utc_now
from libs.common.consumer import Fold, Limits
from libs.common.contracts import funds
from libs.common.contracts.base import EventData
from libs.common.db import Database
from libs.common.envelope import RawMessage
from libs.common.inbox import keep_partitions
from libs.common.jobs import JobRunner
from libs.local.client import BankAdmin
from services.funds.wiring import wire
from tests.faults.bookkeeping import HELD_SECONDS, LIMITS, PATIENT, consumed, idle, reach, settings_of
from tests.support.agencies import AgencyPayout
from tests.support.money import Payout
from tests.support.process import Process
from tests.support.statements import deliver_statements
from tests.support.world import World

ENVELOPES, BATCHES, STATEMENTS = "ingestion.envelopes.v1", "resolution.batches.v1", "ingestion.statements.v1"
ALLOCATED = "allocation.batches.v1"
ROUNDS = 3
PEOPLE = 10


def distinct(world: World, topic: str, model: type[EventData]) -> list[Any]:
    """What was said, each fact once; whatever is said again is the same."""
    found: dict[str, Any] = {}
    for event in world.events(topic, model):
        assert found.setdefault(event.id, event.data) == event.data
    return list(found.values())


def cancelled(world: World, payout: Payout) -> set[str]:
    rows = world.sql("funds", "SELECT disbursement_id FROM ops_cancelled WHERE envelope_id = %(id)s", id=payout.envelope_id)
    return {row.disbursement_id for row in rows}


def assert_given_back(world: World, payouts: Sequence[Payout]) -> None:
    """All that was reserved at the bank is paid or given back, to the cent. The payouts share an account."""
    blocks = payouts[0].bank.blocks("full", payouts[0].account)
    assert all(block["amount_minor"] == block["used_minor"] + block["released_minor"] for block in blocks)
    blocked = {
        row.bank_reference for row in world.sql("funds", "SELECT bank_reference FROM ops_blocks WHERE state = 'BLOCKED'")
    }
    assert blocked == {block["block_reference_no"] for block in blocks}


def has_part_of(replica: Process, *topics: str) -> bool:
    return all(replica.metric("almoner_partitions_assigned", topic=topic) for topic in topics)


@pytest.mark.parametrize("whole", [True, False], ids=["whole envelope", "some of it"])
def test_batch_cancellation_and_envelope_in_all_orders_in_two_replicas_at_once(
    world: World, bank: BankAdmin, whole: bool
) -> None:
    payouts, first = [], []
    for number, order in enumerate([*permutations(("batch", "cancel", "complete"))] * ROUNDS):
        payout = Payout(world, bank, name=f"E{number}")
        payout.batch(PEOPLE, unresolved=2)
        some = [item.disbursement_id for item in payout.items()[:4]]
        facts = {
            "batch": payout.batches[0],
            "cancel": payout.cancelling() if whole else payout.cancelling_some(some),
            "complete": payout.completed(),
        }
        payouts.append((payout, set(some), [facts[name] for name in order]))
        first.append(order[0])
    env = {**payouts[0][0].env, **LIMITS}
    replicas = [world.run("funds", **env), world.run("funds", **env)]
    for replica in replicas:
        world.until(replica.ready)
    topics = [world.prefix + topic for topic in (ENVELOPES, BATCHES)]
    world.until(lambda: all(has_part_of(replica, *topics) for replica in replicas))
    for payout, _, facts_in_order in payouts:
        for fact in facts_in_order:
            payout.publish(fact)
    model = funds.EnvelopeCancelled if whole else funds.DisbursementsCancelled
    world.until(lambda: len({e.data.header.envelope_id for e in world.events("funds.envelopes.v1", model)}) == len(payouts), 60)
    # Of some all is answered before their batch or their completion has come.
    world.until(lambda: consumed(world, ENVELOPES, BATCHES) and idle(world), 60)
    answers = {answer.header.envelope_id: answer for answer in distinct(world, "funds.envelopes.v1", model)}
    assert len(distinct(world, "funds.envelopes.v1", model)) == len(payouts)
    for (payout, some_ids, _), came_first in zip(payouts, first, strict=True):
        payout.assert_balanced()
        position, gone, paid = payout.position(), cancelled(world, payout), payout.ledger()
        everybody = {item.disbursement_id for item in payout.items()}
        assert set(paid.values()) <= {1}
        assert not gone & paid.keys()
        answer = answers[payout.envelope_id]
        if whole:
            assert position["state"] == "CANCELLED"
            assert gone | paid.keys() == everybody
            assert (answer.cancelled, answer.already_dispatched, answer.unknown) == (len(gone), len(paid), 0)
            assert came_first != "cancel" or not paid
        else:
            refused = {one.disbursement_id for one in answer.not_cancelled}
            assert gone == set(answer.cancelled) == some_ids - refused
            held = {item.disbursement_id for item in payout.batches[0].unresolved} - gone
            assert paid.keys() == everybody - gone - held
            assert came_first != "cancel" or gone == some_ids
            assert position["releasing_minor"] == 0
    if whole:
        assert_given_back(world, [payout for payout, _, _ in payouts])
    assert all(replica.alive for replica in replicas)
    assert not world.sql("funds", "SELECT 1 FROM dead_letters")
    handled = [replica.metric("almoner_events_handled_total", outcome="handled") for replica in replicas]
    assert min(handled) > 0, "one replica had all partitions: nothing was a race"


@pytest.mark.parametrize("parts", [(1, 2), (2, 1)], ids=str)
def test_two_parts_of_a_batch_in_one_poll(world: World, bank: BankAdmin, parts: tuple[int, int]) -> None:
    payout = Payout(world, bank)
    batch = payout.batch(PEOPLE, unresolved=3)
    data = {1: batch, 2: payout.next_part(batch, 2)}
    for part in parts:
        payout.publish(data[part])
    payout.publish(payout.completed())
    world.run("funds", **payout.env)
    reach(payout, outstanding=PEOPLE, held=0, waiting=0)
    payout.assert_balanced()
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()}


@pytest.mark.parametrize("answer", ["late", "refuse"])
def test_cancelled_while_the_bank_is_asked(world: World, bank: BankAdmin, answer: str) -> None:
    """The check's answer comes when nobody needs it any more."""
    payout = Payout(world, bank, balance_minor=100_000_000 if answer == "late" else 1)
    payout.batch(PEOPLE)
    bank.add_fault("late", profile="full", path="/check_funds", seconds=HELD_SECONDS)
    process = world.run("funds", **payout.env, **PATIENT)
    payout.publish_all()
    world.until(lambda: world.sql("funds", "SELECT 1 FROM work WHERE kind = 'check' AND state = 'CLAIMED'"))
    payout.publish(payout.cancelling())
    reach(payout, state="CANCELLED", cancelled=PEOPLE)
    bank.delete_faults()
    world.until(lambda: world.sql("funds", "SELECT 1 FROM attempts WHERE kind = 'check' AND finished_at IS NOT NULL"))
    world.until(lambda: idle(world))
    assert process.alive
    assert bank.blocks("full", payout.account) == []
    assert not distinct(world, "funds.envelopes.v1", funds.FundsShort)


def test_cancelling_what_is_paid_already_without_knowing_its_batch(world: World, bank: BankAdmin) -> None:
    """A batch may overtake the cancellation of somebody who was in no batch when it was asked for."""
    payout = Payout(world, bank)
    payout.batch(PEOPLE)
    world.run("funds", **payout.env)
    payout.publish_all()
    reach(payout, outstanding=PEOPLE)
    asked = payout.cancelling_some([payout.items()[0].disbursement_id])
    payout.publish(asked.model_copy(update={"items": [item.model_copy(update={"batch_id": None}) for item in asked.items]}))
    [event] = world.events("funds.envelopes.v1", funds.DisbursementsCancelled, at_least=1)
    assert event.data.cancelled == []
    assert [(one.disbursement_id, one.reason) for one in event.data.not_cancelled] == [
        (payout.items()[0].disbursement_id, "ALREADY_DISPATCHED")
    ]


def life(payout: Payout) -> None:
    """Something of everything: cancelled before and after, held and resolved later, two batches."""
    payout.batch(PEOPLE, unresolved=3)
    payout.batch(PEOPLE)
    early, late = payout.items()[1].disbursement_id, payout.items()[-1].disbursement_id
    if isinstance(payout, AgencyPayout):
        payout.gone = {early, late}
    payout.publish(payout.cancelling_some([early, late], "some-1"))
    payout.publish_all()
    payout.publish(payout.next_part(payout.batches[0], 2))


def again(world: World, messages: Sequence[RawMessage], mark: str = "") -> None:
    """Publish messages once more, byte for byte, or under new ids."""
    for message in messages:
        headers = [(name, value + mark.encode() if name == "ce_id" else value) for name, value in message.headers]
        world.publish_raw(message.topic, message.key, message.value, headers)


@pytest.mark.parametrize("agencies", [False, True], ids=["people", "agencies"])
def test_every_message_twice_and_again_under_other_ids(world: World, bank: BankAdmin, agencies: bool) -> None:
    payout = (AgencyPayout if agencies else Payout)(world, bank)
    batches = ALLOCATED if agencies else BATCHES
    replicas = [world.run("funds", **payout.env), world.run("funds", **payout.env)]
    life(payout)
    again(world, [*world.messages(ENVELOPES), *world.messages(batches)])
    live = 2 * PEOPLE - 2
    reach(payout, outstanding=live)
    again(world, [*world.messages(ENVELOPES), *world.messages(batches)], "-new")
    deliver_statements(payout)
    again(world, world.messages(STATEMENTS))
    reach(payout, state="SETTLED", confirmed=live)
    sent_back = [f"{payout.prefix}1-1-Z2"] if agencies else [item.disbursement_id for item in payout.items()[2:4]]
    bank.reverse("full", reason="closed", disbursement_ids=sent_back)
    deliver_statements(payout)
    again(world, world.messages(STATEMENTS), "-new")
    reach(payout, reversed=2, revision=2)
    world.until(lambda: consumed(world, ENVELOPES, batches, STATEMENTS) and idle(world))
    assert all(replica.alive for replica in replicas)
    payout.assert_balanced()
    gone = cancelled(world, payout)
    assert len(gone) == 2
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items() if item.disbursement_id not in gone}
    assert len(distinct(world, "funds.envelopes.v1", funds.DisbursementsCancelled)) == 1
    assert len(distinct(world, "funds.envelopes.v1", funds.FundsBlocked)) == 1
    for model, count in ((funds.PaymentsDispatched, live), (funds.PaymentsConfirmed, live), (funds.PaymentsReversed, 2)):
        said = Counter(item.disbursement_id for one in distinct(world, "funds.payments.v1", model) for item in one.items)
        assert (len(said), set(said.values())) == (count, {1})
    assert [one.revision for one in distinct(world, "funds.envelopes.v1", funds.EnvelopeSettled)] == [1, 2]
    assert not world.sql("funds", "SELECT 1 FROM exceptions")
    assert len(bank.blocks("full", payout.account)) == 1


# --- Shuffled partitions ----------------------------------------------------------------------------------------------


def shuffled(messages: Sequence[RawMessage], chance: random.Random) -> list[list[RawMessage]]:
    """Polls of any size, the partitions drained in any order, each in its own."""
    partitions: dict[tuple[str, int], list[RawMessage]] = {}
    for message in messages:
        partitions.setdefault((message.topic, message.partition), []).append(message)
    queue = []
    while partitions:
        place = chance.choice(sorted(partitions))
        queue.append(partitions[place].pop(0))
        if not partitions[place]:
            del partitions[place]
    polls = []
    while queue:
        size = chance.randint(1, 4)
        polls.append(queue[:size])
        queue = queue[size:]
    return polls


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4, "agencies"])
def test_partitions_in_shuffled_order_come_to_the_same(world: World, bank: BankAdmin, seed: int | str) -> None:
    """All facts of two envelopes, one of them cancelled as a whole, folded in another order each time."""
    one = (AgencyPayout if seed == "agencies" else Payout)(world, bank, name="E1")
    other = Payout(world, bank, name="E2")
    life(one)
    other.batch(PEOPLE, unresolved=1)
    other.batch(PEOPLE)
    other.publish_all()
    other.publish(other.cancelling())
    messages = [*world.messages(ENVELOPES), *world.messages(BATCHES), *world.messages(ALLOCATED)]
    chance = random.Random(seed)
    database = Database(world.database_url, "funds")
    keep_partitions(database, utc_now())
    parts = wire(settings_of(one), database)
    fold, jobs = Fold(database, parts.routes, Limits()), JobRunner(database, parts.jobs)
    try:
        for poll in shuffled(messages, chance):
            fold.fold(poll)
            if chance.random() < 0.5:
                jobs.run_due()
            for payout in (one, other):
                if payout.position():
                    payout.assert_balanced()
    finally:
        database.close()
    world.run("funds", "work", **one.env)
    world.run("funds", "relay", **one.env)
    live = 2 * PEOPLE - 2
    world.until(lambda: one.position()["outstanding"] == live and other.position()["state"] == "CANCELLED")
    world.until(lambda: idle(world))
    assert cancelled(world, one) == {one.items()[1].disbursement_id, one.items()[-1].disbursement_id}
    assert cancelled(world, other) == {item.disbursement_id for item in other.items()}
    assert one.ledger() == {i.disbursement_id: 1 for i in one.items() if i.disbursement_id not in cancelled(world, one)}
    assert other.ledger() == {}
    [answer] = distinct(world, "funds.envelopes.v1", funds.EnvelopeCancelled)
    assert (answer.cancelled, answer.already_dispatched) == (2 * PEOPLE, 0)
    [some] = distinct(world, "funds.envelopes.v1", funds.DisbursementsCancelled)
    assert (len(some.cancelled), some.not_cancelled) == (2, [])
    one.assert_balanced()
    assert one.position()["blocked_minor"] - one.position()["released_minor"] == one.position()["outstanding_minor"]
    assert not world.sql("funds", "SELECT 1 FROM dead_letters")
