"""Call-outs: claim, call, settle; what is certain, what is not, and what a lease is good for."""

import asyncio
import socket
import time
from uuid import uuid4

import httpx
import pytest

from libs.common.contracts import operator
from libs.common.envelope import Cause
from libs.common.errors import LeaseLost
from libs.common.workqueue import Claim, NotSent, post
from tests.support.other_side import OtherSide
from tests.support.probe.contracts import Ask, Asked
from tests.support.world import World

IN, COMMANDS, OUT = "probe.in.v1", "probe.commands.v1", "probe.out.v1"


# For a call that is to be under way as long as the test wants.
LONG = {
    "ALMONER_PROBE_ASK_TIMEOUT_SECONDS": "60",
    "ALMONER_PROBE_ASK_LEASE_SECONDS": "70",
    "ALMONER_PROBE_SHUTDOWN_SECONDS": "65",
}


def work(world: World) -> dict[str, tuple[str, bool, int]]:
    rows = world.sql("probe", "SELECT subject, state, ambiguous, attempts_started FROM ops_work")
    return {row.subject: (row.state, row.ambiguous, row.attempts_started) for row in rows}


def states(world: World) -> set[str]:
    return {state for state, _, _ in work(world).values()}


def test_no_more_is_claimed_than_there_are_free_slots(world: World, other_side: OtherSide) -> None:
    world.publish(IN, Ask(subjects=[f"slow-{n}" for n in range(12)]), "k")
    for _ in range(2):
        world.run(
            "probe",
            ALMONER_PROBE_URL=other_side.url,
            ALMONER_PROBE_ASK_CONCURRENCY="2",
            ALMONER_PROBE_ASK_TIMEOUT_SECONDS="20",
            ALMONER_PROBE_ASK_LEASE_SECONDS="30",
        )
    world.until(lambda: states(world) == {"DONE"})
    [row] = world.sql(
        "probe",
        """SELECT max(n) AS most FROM (
               SELECT count(*) AS n FROM attempts a JOIN attempts b ON b.started_at <= a.started_at AND a.started_at < b.finished_at
               GROUP BY a.subject) AS claimed_at_once""",
    )
    assert 2 <= row.most <= 4  # two replicas with two slots each
    assert other_side.most_open <= 4
    assert sorted(request.subject for request in other_side.requests) == sorted(f"slow-{n}" for n in range(12))


def test_a_stage_that_is_off_in_one_replica_is_done_by_another(world: World, other_side: OtherSide) -> None:
    world.publish(IN, Ask(subjects=["a"]), "k")
    off = world.run("probe", ALMONER_PROBE_URL=other_side.url, ALMONER_PROBE_ASK_ENABLED="false")
    world.until(lambda: work(world) == {"a": ("PENDING", False, 0)})
    assert off.stop() == 0  # its worker would have settled what it had claimed
    assert work(world) == {"a": ("PENDING", False, 0)}
    world.run("probe", ALMONER_PROBE_URL=other_side.url)
    world.until(lambda: states(world) == {"DONE"})


def test_one_claim_takes_no_more_than_it_may(world: World, other_side: OtherSide) -> None:
    world.publish(IN, Ask(subjects=[f"hang-{n}" for n in range(9)]), "k")
    world.run("probe", ALMONER_PROBE_URL=other_side.url, ALMONER_PROBE_ASK_CLAIM_MAX_CALLS="1", **LONG)
    world.until(lambda: len(other_side.requests) == 4)  # all slots
    claims = world.sql("probe", "SELECT xmin::text AS transaction FROM attempts WHERE finished_at IS NULL")
    assert len({row.transaction for row in claims}) == len(claims) == 4


def test_what_comes_due_again_is_looked_for_as_often_as_was_set(world: World, other_side: OtherSide) -> None:
    """Asked again long after its back-off, when there is other work to be looked for, because nobody looks sooner."""
    world.publish(IN, Ask(subjects=["error-1"]), "k")
    world.run("probe", ALMONER_PROBE_URL=other_side.url, ALMONER_PROBE_ASK_POLL_SECONDS="3600")
    overdue = (
        "SELECT 1 FROM work WHERE state = 'PENDING' AND code IS NOT NULL AND due_at < clock_timestamp() - interval '1 second'"
    )
    world.until(lambda: world.sql("probe", overdue))  # the back-off is 0.05 s
    other_side.mend()
    world.publish(IN, Ask(subjects=["other-1"]), "k")
    world.until(lambda: work(world) == {"error-1": ("DONE", False, 2), "other-1": ("DONE", False, 1)})
    [again] = world.sql("probe", "SELECT started_at FROM attempts WHERE (subject, attempt) = ('error-1', 2)")
    [other] = world.sql("probe", "SELECT created_at FROM work WHERE subject = 'other-1'")
    assert again.started_at > other.created_at


def test_what_may_have_happened_is_unknown_where_it_cannot_be_asked_again(world: World, other_side: OtherSide) -> None:
    subjects = ["cut-1", "error-1", "hang-1", "fine-1"]
    world.publish(IN, Ask(subjects=subjects), "k")
    process = world.run(
        "probe", ALMONER_PROBE_URL=other_side.url, ALMONER_PROBE_ASK_AGAIN="false", ALMONER_PROBE_ASK_TIMEOUT_SECONDS="3"
    )
    world.until(lambda: states(world) == {"DONE", "UNKNOWN"})
    assert work(world) == {
        "cut-1": ("UNKNOWN", True, 1),
        "error-1": ("UNKNOWN", True, 1),
        "hang-1": ("UNKNOWN", True, 1),
        "fine-1": ("DONE", False, 1),
    }
    world.publish(COMMANDS, operator.RetryWork(kind="ask", who="ann", why="a test"), "probe")
    world.until(lambda: world.sql("probe", "SELECT 1 FROM audit"))
    assert world.sql("probe", "SELECT affected FROM audit")[0].affected == 0  # unknown is never retried
    world.publish(IN, Ask(subjects=["fine-2"]), "k")
    world.until(lambda: other_side.asked("fine-2"))
    assert [len(other_side.asked(subject)) for subject in subjects] == [1, 1, 1, 1]
    world.until(lambda: process.metric("almoner_calls_total", kind="ask", outcome="MaybeDone") == 3)


def test_what_may_have_happened_is_repeated_with_its_key_where_that_is_safe(world: World, other_side: OtherSide) -> None:
    world.publish(IN, Ask(subjects=["cut-1", "error-1", "cut-2"]), "k")
    world.run("probe", ALMONER_PROBE_URL=other_side.url, ALMONER_PROBE_ASK_MAX_ATTEMPTS="4")
    world.until(lambda: len(other_side.asked("cut-1")) > 1 and len(other_side.asked("error-1")) > 1)
    other_side.mend()
    world.until(lambda: "PENDING" not in states(world) and "CLAIMED" not in states(world))
    assert set(work(world)) == {"cut-1", "error-1", "cut-2"}
    assert len(other_side.acted) == 3  # one key each, whatever the number of requests
    for request in other_side.requests:
        assert other_side.acted[request.key] == request.subject
    request_ids = [request.request_id for request in other_side.requests]
    assert len(set(request_ids)) == len(request_ids)  # each attempt has a lease of its own


def test_attempts_end_as_unknown_if_one_may_have_happened(world: World, other_side: OtherSide) -> None:
    world.publish(IN, Ask(subjects=["cut-1"]), "k")
    world.run("probe", ALMONER_PROBE_URL=other_side.url, ALMONER_PROBE_ASK_MAX_ATTEMPTS="2")
    world.until(lambda: work(world).get("cut-1") == ("UNKNOWN", True, 2))
    assert len(other_side.asked("cut-1")) == 2
    [event] = world.events(OUT, Asked, at_least=1)
    assert event.data.state == "UNKNOWN"


def test_what_was_never_sent_ends_in_error_and_can_be_retried(world: World) -> None:
    closed = socket.socket()  # nobody listens there, nor can anybody else
    closed.bind(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    world.publish(IN, Ask(subjects=["a"]), "k")
    world.run("probe", ALMONER_PROBE_URL=f"http://127.0.0.1:{port}/ask", ALMONER_PROBE_ASK_AGAIN="false")
    world.until(lambda: work(world).get("a") == ("ERROR", False, 3), what="three attempts")
    [row] = world.sql("probe", "SELECT code, message, created_at, updated_at FROM ops_work")
    assert row.code == "NOT_REACHED"
    assert "ConnectError" in row.message
    attempts = world.sql("probe", "SELECT outcome, started_at FROM ops_attempts ORDER BY attempt")
    assert [attempt.outcome for attempt in attempts] == ["NotSent"] * 3
    assert row.created_at < attempts[-1].started_at < row.updated_at  # it changed last when the last attempt had ended
    world.publish(COMMANDS, operator.RetryWork(kind="ask", expected=2, who="ann", why="I saw two"), "probe")
    [refused] = world.until(lambda: world.sql("probe", "SELECT detail, affected FROM audit"))
    assert refused.detail.startswith("refused: the operator saw 2, there are 1")
    assert (refused.affected, work(world)["a"]) == (0, ("ERROR", False, 3))
    closed.close()
    with OtherSide(port) as other_side:
        world.publish(COMMANDS, operator.RetryWork(kind="ask", subjects=["a"], who="ann", why="it is back"), "probe")
        world.until(lambda: work(world)["a"] == ("DONE", False, 4))
        assert len(other_side.requests) == 1
    assert [event.data.state for event in world.events(OUT, Asked, at_least=2)] == ["ERROR", "DONE"]


def test_a_lease_that_ran_out_makes_the_next_attempt_ambiguous(world: World, other_side: OtherSide) -> None:
    world.publish(IN, Ask(subjects=["hang-1"]), "k")
    process = world.run("probe", ALMONER_PROBE_URL=other_side.url, ALMONER_PROBE_ASK_AGAIN="false", **LONG)
    world.until(lambda: other_side.requests)
    process.kill()
    assert work(world) == {"hang-1": ("CLAIMED", False, 1)}
    world.end_leases("probe")
    world.run("probe", ALMONER_PROBE_URL=other_side.url, ALMONER_PROBE_ASK_AGAIN="false")
    world.until(lambda: work(world) == {"hang-1": ("UNKNOWN", True, 1)})  # declined: that was no attempt
    assert len(other_side.requests) == 1
    [row] = world.sql("probe", "SELECT attempt, finished_at FROM ops_attempts")
    assert (row.attempt, row.finished_at) == (1, None)


def test_a_frozen_caller_is_replaced_and_its_late_settle_refused(world: World, other_side: OtherSide) -> None:
    frozen = world.run("probe", ALMONER_PROBE_URL=other_side.url, **LONG)
    frozen.started()
    world.publish(IN, Ask(subjects=["hang-1"]), "k")
    world.until(lambda: other_side.requests)
    frozen.freeze()
    world.end_leases("probe")
    other_side.mend()
    replica = world.run("probe", ALMONER_PROBE_URL=other_side.url)
    world.until(lambda: states(world) == {"DONE"}, what="the replica's settle")
    frozen.thaw()
    other_side.release()
    world.until(lambda: frozen.logged("late settle refused"))
    first, second = other_side.requests
    assert first.key == second.key
    assert first.request_id != second.request_id
    attempts = world.sql("probe", "SELECT attempt, outcome, late FROM ops_attempts ORDER BY attempt")
    assert [tuple(row) for row in attempts] == [(1, "Done", True), (2, "Done", False)]
    assert work(world) == {"hang-1": ("DONE", False, 2)}
    assert len(world.sql("probe", "SELECT 1 FROM settled")) == 1
    assert frozen.metric("almoner_late_settles_total", kind="ask") == 1
    assert replica.metric("almoner_late_settles_total", kind="ask") == 0


@pytest.mark.parametrize(
    ("bug", "left"), [("bug-1", ("CLAIMED", False, 1)), ("stop-1", ("PENDING", False, 0))], ids=["settle", "take"]
)
def test_a_bug_stops_its_own_subject_only(world: World, other_side: OtherSide, bug: str, left: tuple[str, bool, int]) -> None:
    """What settles: its answer is not stored, so the next attempt is ambiguous. What takes: nothing was claimed."""
    world.publish(IN, Ask(subjects=["fine-1", bug, "fine-2"]), "k")
    process = world.run("probe", ALMONER_PROBE_URL=other_side.url)
    world.until(lambda: [row.code for row in world.sql("probe", "SELECT code FROM ops_work WHERE code IS NOT NULL")] == ["BUG"])
    world.publish(IN, Ask(subjects=["fine-3"]), "k")
    world.until(lambda: work(world) == {**{f"fine-{n}": ("DONE", False, 1) for n in (1, 2, 3)}, bug: left})
    [row] = world.sql("probe", "SELECT message FROM ops_work WHERE code = 'BUG'")
    assert row.message == "RuntimeError"
    assert process.alive
    assert process.metric("almoner_calls_total", kind="ask", outcome="bug") == 1


@pytest.mark.parametrize("lease_seconds", [0.5, 2.5])
def test_nothing_is_sent_that_could_outlast_its_lease(other_side: OtherSide, lease_seconds: float) -> None:
    """A process that was frozen between its claim and its call."""
    claim = Claim("ask", "a", 1, uuid4(), uuid4(), 1, False, time.monotonic() + lease_seconds, 1.0, Cause("c"))

    async def call() -> None:
        async with httpx.AsyncClient(verify=False) as client:
            await post(client, claim, other_side.url, b"{}")

    with pytest.raises(LeaseLost):
        asyncio.run(call())
    assert other_side.requests == []


def test_a_connection_that_never_comes_about_was_not_sent() -> None:
    with socket.socket() as full:  # accepts nobody: its queue is full
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        try:
            for client_socket in waiting:
                client_socket.setblocking(False)
                client_socket.connect_ex(full.getsockname())
            claim = Claim("ask", "a", 1, uuid4(), uuid4(), 1, False, time.monotonic() + 60, 0.5, Cause("c"))

            async def call() -> object:
                async with httpx.AsyncClient(verify=False) as client:
                    return await post(client, claim, f"http://127.0.0.1:{full.getsockname()[1]}/", b"{}")

            answer = asyncio.run(call())
        finally:
            for client_socket in waiting:
                client_socket.close()
    assert isinstance(answer, NotSent)
    assert answer.code == "NOT_REACHED"
