"""Events in, events out: what a publisher sees of an envelope's life."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

from libs.common.contracts import ingestion as c
from libs.common.contracts.funds import EnvelopePosition, EnvelopeSettled, FundsBlocked, FundsChecked, Position
from libs.common.contracts.scheduler import Tick
from tests.integration.ingestion.publisher import (
    BATCHES,
    DISBURSEMENTS,
    ENVELOPES,
    FACTS,
    answers_to,
    check_batches,
    chunk,
    chunks_of,
    codes,
    disbursements,
    envelope,
    message,
    total,
    uuid_of,
)
from tests.support.world import World


def test_thousand_in_one_chunk(world: World) -> None:
    world.run("ingestion")
    submitted = world.publish(ENVELOPES, envelope("e1", 1000, total(1, 1000)), "e1")
    [accepted] = answers_to(world, submitted)
    assert accepted.data.outcome == "accepted"
    added = world.publish(DISBURSEMENTS, chunk("e1", disbursements(1, 1000)), "e1/1")
    check_batches(world, "e1", 1000, [1000])
    [answer] = answers_to(world, added)
    assert (answer.data.outcome, answer.data.items, answer.data.envelope_id) == ("accepted", 1000, uuid_of("e1"))
    assert answer.raw.key == str(uuid_of("e1")).encode()
    [fact] = world.events(FACTS, c.EnvelopeAccepted, at_least=1)
    assert (fact.data.declared, fact.data.declared_minor) == (1000, total(1, 1000))
    [completed] = world.events(FACTS, c.EnvelopeCompleted, at_least=1)
    assert (completed.data.batches, completed.data.count, completed.data.total_minor) == (1, 1000, total(1, 1000))
    assert completed.data.header.benefit_type == "CASH_DIGITAL"


def test_one_item_events_become_whole_batches(world: World) -> None:
    world.publish(ENVELOPES, envelope("e1", 3000, total(1, 3000)), "e1")
    world.publish_many(DISBURSEMENTS, chunks_of("e1", 3000, 1))
    world.run("ingestion", ALMONER_INGESTION_LINGER_SECONDS="60")
    check_batches(world, "e1", 3000, [1000, 1000, 1000])
    world.events(FACTS, c.EnvelopeCompleted, at_least=1)
    answered = world.until(
        lambda: world.sql(
            "ingestion", "SELECT count(*) AS n FROM submissions WHERE outcome = 'accepted' HAVING count(*) = 3001"
        )
    )
    assert answered[0].n == 3001


def test_early_chunks_are_parked_and_folded_when_the_envelope_comes(world: World) -> None:
    world.run("ingestion")
    world.publish_many(DISBURSEMENTS, chunks_of("e1", 1500, 500))
    submissions = ("e1-1", "e1-501", "e1-1001")
    for submission in submissions:
        [parked] = answers_to(world, submission)
        assert (parked.data.outcome, parked.data.envelope_id) == ("parked", uuid_of("e1"))
    world.publish(ENVELOPES, envelope("e1", 1500, total(1, 1500)), "e1")
    check_batches(world, "e1", 1500, [1000, 500])
    for submission in submissions:
        outcomes = [answer.data.outcome for answer in answers_to(world, submission, at_least=2)]
        assert outcomes == ["parked", "accepted"]


def test_parked_too_long(world: World) -> None:
    world.run("ingestion", ALMONER_INGESTION_PARKED_TTL_SECONDS="0.2")
    world.publish_many(DISBURSEMENTS, chunks_of("never", 3, 1))
    request = c.EnvelopeCancellationRequested(envelope_id="never", reason="mistake")
    cancel = world.publish(ENVELOPES, request, "never")
    for submission in ("never-1", "never-2", "never-3", cancel):
        answers_to(world, submission)
    world.publish("scheduler.ticks.v1", Tick(job="another", due_at=datetime.now(UTC)), "another")
    old = datetime.now(UTC) - timedelta(hours=1)
    world.publish("scheduler.ticks.v1", Tick(job="expire-parked", due_at=old), "expire-parked")  # speaks for the past
    world.until(lambda: world.sql("ingestion", "SELECT 1 FROM inbox HAVING count(*) = 2"), what="both ticks")
    assert world.sql("ingestion", "SELECT 1 FROM staged WHERE NOT EXISTS (SELECT 1 FROM due WHERE job = 'expire-parked')")
    young = "SELECT 1 FROM staged WHERE created_at > clock_timestamp() - interval '0.3 seconds'"
    world.until(lambda: not world.sql("ingestion", young))
    world.publish("scheduler.ticks.v1", Tick(job="expire-parked", due_at=datetime.now(UTC)), "expire-parked")
    for submission in ("never-1", "never-2", "never-3", cancel):
        parked, refused = answers_to(world, submission, at_least=2)
        assert parked.data.outcome == "parked"
        assert codes(refused) == [("DISBURSEMENT_ENVELOPE_NOT_FOUND", "/envelope_id")]
    assert world.sql("ingestion", "SELECT 1 FROM staged") == []


def test_everything_delivered_twice_and_shuffled(world: World) -> None:
    messages = [(DISBURSEMENTS, one) for one in chunks_of("e1", 2300, 100)] * 2
    messages += [(ENVELOPES, message(envelope("e1", 2300, total(1, 2300)), "e1", "env"))] * 2
    random.Random(7).shuffle(messages)
    world.run("ingestion", ALMONER_INGESTION_LINGER_SECONDS="60")
    for topic, one in messages:
        world.publish_many(topic, [one])
    world.events(FACTS, c.EnvelopeCompleted, at_least=1)
    check_batches(world, "e1", 2300, [1000, 1000, 300])
    assert len(world.events(FACTS, c.EnvelopeAccepted)) == 1
    assert len(world.events(FACTS, c.EnvelopeCompleted)) == 1
    rows = world.until(
        lambda: world.sql("ingestion", "SELECT DISTINCT outcome FROM submissions WHERE NOT EXISTS (SELECT 1 FROM outbox)")
    )
    assert [row.outcome for row in rows] == ["accepted"]


def test_same_id_same_answer_other_content_refused(world: World) -> None:
    world.run("ingestion")
    world.publish(ENVELOPES, envelope("e1", 10, total(1, 10)), "e1", event_id="env")
    answers_to(world, "env")
    world.publish(ENVELOPES, envelope("e1", 10, total(1, 10)), "e1", event_id="env")
    first, again = answers_to(world, "env", at_least=2)
    assert first.data == again.data
    assert first.id != again.id
    world.publish(ENVELOPES, envelope("e1", 11, total(1, 11)), "e1", event_id="env")
    assert codes(answers_to(world, "env", at_least=3)[2]) == [("ID_REUSED", "")]
    world.publish(ENVELOPES, envelope("e1", 10, total(1, 10)), "e1", event_id="env")
    assert answers_to(world, "env", at_least=4)[3].data == first.data
    # The same id of another source is another event, and its envelope another envelope.
    world.publish(ENVELOPES, envelope("e1", 11, total(1, 11)), "e1", source="other", event_id="env")
    assert uuid_of("e1", "other") in {answer.data.envelope_id for answer in answers_to(world, "env", at_least=5)}


def test_two_replicas_at_once(world: World) -> None:
    for _ in range(2):
        world.run("ingestion", ALMONER_INGESTION_LINGER_SECONDS="60")
    names = [f"e{n}" for n in range(6)]
    for name in names:
        world.publish_many(DISBURSEMENTS, chunks_of(name, 1250, 50))
        world.publish(ENVELOPES, envelope(name, 1250, total(1, 1250)), name)
    world.events(FACTS, c.EnvelopeCompleted, at_least=len(names))
    for name in names:
        check_batches(world, name, 1250, [1000, 250])


def test_the_rest_is_cut_after_the_linger(world: World) -> None:
    world.run("ingestion", ALMONER_INGESTION_LINGER_SECONDS="0.5")
    world.publish(ENVELOPES, envelope("e1", 1700, total(1, 1700)), "e1")
    world.publish_many(DISBURSEMENTS, chunks_of("e1", 1100, 100))
    world.events(BATCHES, c.BatchCut, at_least=2)
    rest = [message(chunk("e1", disbursements(first, 100)), "e1") for first in range(1101, 1700, 100)]
    world.publish_many(DISBURSEMENTS, rest)
    completed = world.events(FACTS, c.EnvelopeCompleted, at_least=1)[0].data
    assert (completed.count, completed.total_minor) == (1700, total(1, 1700))
    batches = world.events(BATCHES, c.BatchCut, at_least=completed.batches)
    assert sum(batch.data.count for batch in batches) == 1700
    assert world.sql("ingestion", "SELECT 1 FROM uncut") == []
    assert sorted(b.data.header.number for b in batches) == list(range(1, completed.batches + 1))
    misplaced = """SELECT 1 FROM ops_disbursements d LEFT JOIN ops_batches b USING (batch_id)
                   GROUP BY b.batch_id HAVING b.batch_id IS NULL OR count(*) <> max(b.count) OR max(d.position) <> max(b.count)"""
    assert world.sql("ingestion", misplaced) == []


def test_killed_between_commit_and_offsets_repeats_nothing(world: World, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    crash = {"ALMONER_CRASH_AT": "fold.after_commit", "ALMONER_CRASH_MARK": str(mark)}
    world.publish(ENVELOPES, envelope("e1", 2000, total(1, 2000)), "e1")
    world.publish_many(DISBURSEMENTS, chunks_of("e1", 2000, 100))
    assert world.run("ingestion", **crash).wait() == -9
    assert world.run("ingestion", ALMONER_CRASH_AT="job.before_commit", ALMONER_CRASH_MARK=f"{mark}2").wait() == -9
    world.run("ingestion", ALMONER_INGESTION_LINGER_SECONDS="60")
    check_batches(world, "e1", 2000, [1000, 1000])
    assert len(world.events(FACTS, c.EnvelopeCompleted, at_least=1)) == 1


def test_status(world: World) -> None:
    world.run("ingestion", ALMONER_INGESTION_LINGER_SECONDS="60")
    ask = c.EnvelopeStatusRequested(envelope_id="e1")
    world.publish(ENVELOPES, ask, "e1", event_id="q1")
    assert codes(answers_to(world, "q1")[0]) == [("DISBURSEMENT_ENVELOPE_NOT_FOUND", "/envelope_id")]
    world.publish(ENVELOPES, envelope("e1", 1200, total(1, 1200)), "e1")
    added = world.publish(DISBURSEMENTS, chunk("e1", disbursements(1, 700)), "e1")
    world.until(lambda: any(a.data.outcome == "accepted" for a in answers_to(world, added)))
    world.publish(ENVELOPES, ask, "e1", event_id="q2")
    [status] = answers_to(world, "q2")
    assert (status.data.state, status.data.declared, status.data.received) == ("RECEIVING", 1200, 700)
    assert (status.data.received_minor, status.data.batches, status.data.funds) == (total(1, 700), 0, "NONE")
    world.publish(DISBURSEMENTS, chunk("e1", disbursements(701, 500)), "e1")
    world.events(FACTS, c.EnvelopeCompleted, at_least=1)
    header = status.data.header
    world.publish("funds.envelopes.v1", FundsChecked(header=header, amount_minor=total(1, 1200)), header.envelope_id)
    block = FundsBlocked(header=header, block=1, amount_minor=total(1, 1200), bank_reference="B1")
    world.publish("funds.envelopes.v1", block, header.envelope_id)
    world.until(lambda: world.sql("ingestion", "SELECT 1 FROM envelopes WHERE funds = 'BLOCKED'"))
    world.publish(ENVELOPES, ask, "e1", event_id="q2")  # the same question again: as things are now
    status = answers_to(world, "q2", at_least=2)[1]
    assert (status.data.state, status.data.batches, status.data.funds) == ("COMPLETED", 2, "BLOCKED")
    assert (status.data.progress, status.data.settlement) == (None, None)

    def settled(revision: int, confirmed: int, reversed_: int) -> None:
        blocked, released = total(1, 1200), 5000
        position = {"blocked": blocked, "released": released, "dispatched": blocked - released}
        position |= {"confirmed": confirmed, "reversed": reversed_}
        place = Position(**{**dict.fromkeys(Position.model_fields, 0), **position})
        data = EnvelopeSettled(header=header, revision=revision, position=place, confirmed=7, reversed=revision, cancelled=3)
        world.publish("funds.envelopes.v1", data, header.envelope_id)

    # A reversal comes late and the envelope settles once more; an older word that is said last changes nothing.
    for revision, confirmed, reversed_ in ((1, 1000, 10), (2, 900, 110), (1, 1000, 10)):
        settled(revision, confirmed, reversed_)
    world.until(lambda: world.sql("ingestion", "SELECT 1 FROM envelopes WHERE settlement->>'revision' = '2'"))
    world.until(lambda: world.sql("ingestion", "SELECT 1 FROM inbox HAVING count(*) = 5"))
    world.publish(ENVELOPES, ask, "e1", event_id="q3")
    [status] = answers_to(world, "q3")
    assert status.data.state == "SETTLED"
    assert status.data.settlement == c.Settlement(
        revision=2,
        confirmed=7,
        reversed=2,
        cancelled=3,
        blocked_minor=total(1, 1200),
        released_minor=5000,
        confirmed_minor=900,
        reversed_minor=110,
    )
    steps = [row.step for row in world.sql("ingestion", "SELECT step FROM ops_history ORDER BY at")]
    assert steps.count("batch cut") == 2
    assert "complete" in steps


def test_the_newest_of_what_funds_says_is_told_whatever_the_order(world: World) -> None:
    chance = random.Random(7)
    names = [f"e{n}" for n in range(12)]
    world.run("ingestion")
    for name in names:
        world.publish(ENVELOPES, envelope(name, 10, total(1, 10)), name)
    headers = {
        event.data.header.envelope_id: event.data.header for event in world.events(FACTS, c.EnvelopeAccepted, at_least=12)
    }
    counts = ("waiting", "in_flight", "unknown", "held", "outstanding", "confirmed", "reversed", "cancelled")
    words: list[EnvelopePosition | EnvelopeSettled] = []
    newest: dict[str, tuple[int, int, int]] = {}
    for name in names:
        header = headers[uuid_of(name)]
        last = chance.randint(1, 8)
        settling = sorted(chance.sample(range(1, last + 1), chance.randint(0, min(2, last))))
        for revision in range(1, last + 1):
            place = Position(**dict.fromkeys(Position.model_fields, 0) | {"blocked": 99, "confirmed": revision})
            if revision in settling:
                number = settling.index(revision) + 1
                ended = {"confirmed": revision, "reversed": 0, "cancelled": 0}
                words.append(
                    EnvelopeSettled(header=header, revision=number, position=place, position_revision=revision, **ended)
                )
            else:
                far = dict.fromkeys(counts, 0) | {"confirmed": revision}
                words.append(EnvelopePosition(header=header, revision=revision, position=place, **far))
        newest[name] = (last, last, len(settling))
    words *= 2  # each of them comes twice
    chance.shuffle(words)
    for number, word in enumerate(words):
        world.publish("funds.envelopes.v1", word, str(number))  # on any partition
    world.until(lambda: world.sql("ingestion", f"SELECT 1 FROM inbox HAVING count(*) = {len(words)}"))
    told = {}
    for name in names:
        [status] = answers_to(world, world.publish(ENVELOPES, c.EnvelopeStatusRequested(envelope_id=name), name))
        progress, settlement = status.data.progress, status.data.settlement
        assert progress.confirmed == progress.confirmed_minor
        told[name] = (progress.revision, progress.confirmed, settlement.revision if settlement else 0)
    assert told == newest


def test_a_batch_of_noise_stops_nobody(world: World) -> None:
    noise = random.Random(1)

    def text(characters: int) -> str:
        return "".join(chr(noise.randrange(0x10000, 0x1F000)) for _ in range(characters))

    items = [
        c.Disbursement(
            disbursement_id=text(64), beneficiary_id=text(64), amount_minor=1, beneficiary_name=text(200), narrative=text(200)
        )
        for _ in range(1000)
    ]
    world.publish(ENVELOPES, envelope("e1", 1000, 1000), "e1")
    world.publish_many(DISBURSEMENTS, [message(chunk("e1", items[n : n + 250]), f"e1/{n}") for n in range(0, 1000, 250)])
    process = world.run("ingestion")
    [batch] = world.events(BATCHES, c.BatchCut, at_least=1)
    assert [item.disbursement_id for item in sorted(batch.data.items, key=lambda i: i.disbursement_id)] == sorted(
        item["disbursement_id"] for item in items
    )
    assert process.logged("names and narratives left out: too large")
    assert process.alive
