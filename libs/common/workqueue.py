"""The call-out: claim -> call -> settle. No network call inside a transaction, no call without a stored key and a lease.

The runtime knows whether an earlier attempt may have been acted upon (`Claim.ambiguous`); what may be repeated then is the
domain's decision, taken in `take` from what the other side declares: call again (a read, or with the same key), ask first,
or let it be unknown.
"""

import asyncio
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Literal, Protocol
from uuid import UUID

import httpx

from libs.common import crash, metrics
from libs.common.clock import utc_now
from libs.common.db import Database, Tx
from libs.common.envelope import Cause
from libs.common.errors import Fatal, LeaseLost, Transient
from libs.common.gate import Gate, retry_after_seconds
from libs.common.jobs import FAILED_SECONDS, wait
from libs.common.log import get
from libs.common.retry import backoff_seconds

MARGIN_SECONDS = 2.0  # by which a lease must outlast a call
ANSWER_BYTES = 8_000_000  # of an answer; what is about a thousand people has a tenth of it

_log = get("work")


@dataclass(frozen=True, slots=True)
class Claim:
    """One unit of work under our lease. `deadline` is monotonic time: nothing may be sent that could outlast it."""

    kind: str
    subject: str
    lock_key: int
    idempotency_key: UUID
    lease_token: UUID
    attempt: int
    ambiguous: bool
    deadline: float
    timeout_seconds: float
    cause: Cause
    gate: Gate | None = None  # before the other side, for all requests under this claim
    counterpart: str = ""  # which of several other sides is called; the request names it


@dataclass(frozen=True, slots=True)
class Done:
    """The other side answered; `value` is the answer in the domain's words, a refusal among them."""

    value: Any


@dataclass(frozen=True, slots=True)
class NotSent:
    """Nothing happened, for certain: it may be tried again."""

    code: str
    message: str
    final: bool = False  # again would be in vain until an operator has acted: ERROR at once
    outage: bool = False  # the other side is not there: counts for the breaker
    after_seconds: float = 0.0  # not before: the other side asked for it


@dataclass(frozen=True, slots=True)
class MaybeDone:
    """It may have happened: the answer was lost, or makes no sense."""

    code: str
    message: str
    repeatable: bool = False  # the same call (a read, the same key, or a question) may find out
    outage: bool = True
    after_seconds: float = 0.0


Answer = Done | NotSent | MaybeDone


@dataclass(frozen=True, slots=True)
class Unknown:
    """`take`'s decision not to call: what an earlier attempt did cannot be found out by calling."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Void:
    """`take`'s decision not to call: there is nothing to do any more."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Later:
    """`take`'s decision not to call yet (a stage before it, a hold)."""

    seconds: float
    code: str = ""


State = Literal["DONE", "PENDING", "UNKNOWN", "ERROR"]


@dataclass(frozen=True, slots=True)
class Settled:
    """A claim with what came of it; `state` is where the work row stands now, `request` what `take` made (None: not called)."""

    claim: Claim
    answer: Answer | Unknown
    state: State
    request: Any = None


class CallOut(Protocol):
    """One kind of outside call. `take` and `settle` run in the runtime's transactions, `call` in none."""

    kind: str
    exclusive: bool  # settle under the envelope's exclusive lock instead of the shared one
    read: bool  # changes nothing at the other side: nothing about it is ever unknown
    waits_out_outages: bool  # while the other side is not there, no attempt counts towards `max_attempts`: it waits, PENDING

    def take(self, tx: Tx, claims: Sequence[Claim]) -> Mapping[str, Any]:
        """subject -> request to call with, or Unknown, Void, Later. Runs under the envelopes' shared locks.

        Where calls of this kind go to several other sides, a request has a `counterpart`, and `not_now` was asked before."""
        ...

    async def call(self, client: httpx.AsyncClient, claim: Claim, request: Any) -> Answer: ...

    def settle(self, tx: Tx, settled: Settled) -> None:
        """Store the outcome and say it. Runs only while the lease still holds."""
        ...


@dataclass(frozen=True)
class Limits:
    """Of one kind: how much at once, how long, how often."""

    concurrency: int = 4
    timeout_seconds: float = 30.0
    lease_seconds: float = 60.0
    max_attempts: int = 3
    backoff_first_seconds: float = 1.0
    backoff_max_seconds: float = 300.0
    poll_seconds: float = 0.5  # new work is begun at once; this is for what comes due again
    claim_max_calls: int = 100  # in one transaction
    enabled: bool = True  # off: another replica does it
    calls_per_second: float = 0  # requests, per replica; 0: as many as there are
    breaker_failures: int = 0  # in a row; 0: no breaker
    breaker_seconds: float = 30.0


def enqueue(tx: Tx, kind: str, subjects: Sequence[str], lock_keys: Sequence[int], causes: Sequence[Cause]) -> None:
    """Insert work to be done now; what is already there stays as it is."""
    tx.run(
        """INSERT INTO work (kind, subject, lock_key, cause_id, correlation_id, traceparent)
           SELECT %(kind)s, * FROM unnest(%(subjects)s::text[], %(lock_keys)s::bigint[], %(causes)s::text[],
                                          %(correlations)s::text[], %(traces)s::text[])
           ON CONFLICT (kind, subject) DO NOTHING""",
        kind=kind,
        subjects=list(subjects),
        lock_keys=list(lock_keys),
        causes=[cause.id for cause in causes],
        correlations=[cause.correlation_id for cause in causes],
        traces=[cause.traceparent for cause in causes],
    )
    tx.wakes.add(kind)


def retry(tx: Tx, kind: str, subjects: Sequence[str]) -> list[str]:
    """Give work in ERROR a new set of attempts; all of the kind if `subjects` is empty. Never what is unknown."""
    tx.wakes.add(kind)
    return [
        row.subject
        for row in tx.rows(
            """UPDATE work SET state = 'PENDING', tries = 0, due_at = clock_timestamp(), updated_at = clock_timestamp()
               WHERE kind = %(kind)s AND state = 'ERROR'
                 AND (cardinality(%(subjects)s::text[]) = 0 OR subject = ANY(%(subjects)s::text[])) RETURNING subject""",
            kind=kind,
            subjects=list(subjects),
        )
    ]


def finish(tx: Tx, kind: str, subjects: Sequence[str], state: Literal["DONE", "VOID", "UNKNOWN"], code: str) -> None:
    """End work from outside (a statement line, an operator): voids the lease, so a later settle does nothing."""
    tx.run(
        """UPDATE work SET state = %(state)s, code = %(code)s, ambiguous = false, lease_token = NULL, leased_until = NULL,
                  updated_at = clock_timestamp()
           WHERE kind = %(kind)s AND subject = ANY(%(subjects)s::text[]) AND state NOT IN ('DONE', 'VOID')""",
        kind=kind,
        subjects=list(subjects),
        state=state,
        code=code,
    )


class Worker:
    """Runs one kind of call. Several workers of one kind, here or elsewhere, share the rows by their leases."""

    def __init__(self, database: Database, callout: CallOut, limits: Limits) -> None:
        if limits.lease_seconds <= limits.timeout_seconds + MARGIN_SECONDS:
            raise ValueError(f"{callout.kind}: the lease must outlast time-out and margin")
        self._database = database
        self._callout = callout
        self._limits = limits
        self._gate = Gate(callout.kind, limits.calls_per_second, limits.breaker_failures, limits.breaker_seconds)
        self._more = False  # whether there may be more due than was claimed at the last look
        self.kind = callout.kind

    def claim(self, free: int) -> list[tuple[Claim, Any]]:
        """Claim at most `free` due rows. What an earlier attempt left open comes back as ambiguous."""
        try:
            return self._claim(None, free)
        except (Transient, Fatal):
            raise
        except Exception:
            _log.exception("nothing could be claimed; looking for what is at fault", kind=self.kind)
            return self._claim_singly(free)

    def _claim_singly(self, free: int) -> list[tuple[Claim, Any]]:
        """After a bug: whatever is at fault waits, visibly, in case the next release knows better; the rest goes on."""
        calls: list[tuple[Claim, Any]] = []
        for key in self._candidates(free)[:free]:
            try:
                calls += self._claim(key, 1)
            except (Transient, Fatal):
                break  # what is claimed by now is called
            except Exception as error:
                self._blame(key[0], error)
        return calls

    def _blame(self, subject: str, error: Exception) -> None:
        metrics.CALLS.labels(self.kind, "bug").inc()
        with self._database.transaction() as tx:
            tx.run(
                """UPDATE work SET due_at = clock_timestamp() + make_interval(secs => %(seconds)s),
                          leased_until = CASE WHEN state = 'CLAIMED' THEN
                              greatest(leased_until, clock_timestamp() + make_interval(secs => %(seconds)s)) END,
                          code = 'BUG', message = %(error)s
                   WHERE kind = %(kind)s AND subject = %(subject)s AND state IN ('PENDING', 'CLAIMED')""",
                kind=self.kind,
                subject=subject,
                seconds=FAILED_SECONDS,
                error=type(error).__name__,
            )

    def _claim(self, only: tuple[str, int] | None, free: int) -> list[tuple[Claim, Any]]:
        keys = self._candidates(free) if only is None else [only]
        if not keys:
            return []
        started = time.monotonic()
        calls: list[tuple[Claim, Any]] = []
        with self._database.transaction() as tx:
            tx.lock_shared(key for _, key in keys)
            claims = self._lease(tx, [subject for subject, _ in keys], free, started + self._limits.lease_seconds)
            self._more = bool(claims) and len(keys) >= free
            decisions = self._callout.take(tx, claims) if claims else {}
            for claim in claims:
                decision = decisions[claim.subject]
                if isinstance(decision, Unknown | Void | Later):
                    self._decline(tx, claim, decision)
                else:
                    calls.append((replace(claim, counterpart=getattr(decision, "counterpart", "")), decision))
            if calls:
                tx.run(
                    """INSERT INTO attempts (kind, subject, attempt, lease_token)
                       SELECT %(kind)s, * FROM unnest(%(subjects)s::text[], %(attempts)s::int[], %(tokens)s::uuid[])""",
                    kind=self.kind,
                    subjects=[claim.subject for claim, _ in calls],
                    attempts=[claim.attempt for claim, _ in calls],
                    tokens=[claim.lease_token for claim, _ in calls],
                )
            crash.reached("call.before_claim_commit", len(calls), self.kind)
        crash.reached("call.after_claim", len(calls), self.kind)
        return calls

    def _candidates(self, free: int) -> list[tuple[str, int]]:
        # Without row locks: whoever decides under the envelope's lock must not wait for us while we wait for the lock.
        rows = self._database.look(
            """(SELECT subject, lock_key FROM work WHERE kind = %(kind)s AND state = 'PENDING'
                   AND due_at <= clock_timestamp() AND NOT EXISTS (SELECT 1 FROM paused WHERE stage = %(kind)s)
                ORDER BY due_at LIMIT %(some)s)
               UNION ALL
               (SELECT subject, lock_key FROM work WHERE kind = %(kind)s AND state = 'CLAIMED'
                   AND leased_until < clock_timestamp() AND NOT EXISTS (SELECT 1 FROM paused WHERE stage = %(kind)s)
                ORDER BY leased_until LIMIT %(some)s)""",
            kind=self.kind,
            some=free * 4,  # other replicas see the same rows first
        )
        return [(row.subject, row.lock_key) for row in rows]

    def _lease(self, tx: Tx, subjects: Sequence[str], free: int, deadline: float) -> list[Claim]:
        # Read again after the lock: what was decided under it while we waited counts.
        rows = tx.rows(
            """WITH chosen AS MATERIALIZED (  -- once: a repeated scan with SKIP LOCKED would take more than the limit
                   SELECT kind, subject FROM work WHERE kind = %(kind)s AND subject = ANY(%(subjects)s::text[])
                      AND (state = 'PENDING' AND due_at <= clock_timestamp()
                           OR state = 'CLAIMED' AND leased_until < clock_timestamp())
                   ORDER BY due_at LIMIT %(free)s FOR UPDATE SKIP LOCKED)
               UPDATE work w SET state = 'CLAIMED', ambiguous = NOT %(read)s AND (ambiguous OR state = 'CLAIMED'),
                      attempts_started = attempts_started + 1, tries = tries + 1, lease_token = gen_random_uuid(),
                      leased_until = clock_timestamp() + make_interval(secs => %(lease)s), updated_at = clock_timestamp()
               FROM chosen WHERE w.kind = chosen.kind AND w.subject = chosen.subject
               RETURNING w.*""",
            kind=self.kind,
            subjects=list(subjects),
            free=free,
            read=self._callout.read,
            lease=self._limits.lease_seconds,
        )
        return [
            Claim(
                self.kind,
                row.subject,
                row.lock_key,
                row.idempotency_key,
                row.lease_token,
                row.attempts_started,
                row.ambiguous,
                deadline,
                self._limits.timeout_seconds,
                Cause(row.cause_id, row.correlation_id, row.traceparent),
                self._gate,
            )
            for row in rows
        ]

    def _decline(self, tx: Tx, claim: Claim, decision: Unknown | Void | Later) -> None:
        """Not called after all: the attempt does not count."""
        state = {Unknown: "UNKNOWN", Void: "VOID", Later: "PENDING"}[type(decision)]
        tx.run(
            """UPDATE work SET state = %(state)s, code = %(code)s, message = %(message)s, lease_token = NULL,
                      leased_until = NULL, attempts_started = attempts_started - 1, tries = tries - 1,
                      due_at = clock_timestamp() + make_interval(secs => %(seconds)s), updated_at = clock_timestamp(),
                      attempts_finished = least(attempts_finished, attempts_started - 1)
               WHERE kind = %(kind)s AND subject = %(subject)s""",
            kind=self.kind,
            subject=claim.subject,
            state=state,
            code=decision.code,
            message=getattr(decision, "message", ""),
            seconds=decision.seconds if isinstance(decision, Later) else 0,
        )
        if isinstance(decision, Unknown):
            self._callout.settle(tx, Settled(claim, decision, "UNKNOWN"))

    async def call(self, client: httpx.AsyncClient, claim: Claim, request: Any) -> Answer:
        try:
            with metrics.timed(metrics.CALL, kind=self.kind):
                answer = await self._callout.call(client, claim, request)
            if isinstance(answer, Done):
                self._gate.answered()
            elif answer.outage:
                self._gate.failed()
            if self._callout.read and isinstance(answer, MaybeDone):
                return NotSent(answer.code, answer.message, outage=answer.outage, after_seconds=answer.after_seconds)
            return answer
        except LeaseLost as error:
            return NotSent("LEASE_LOST", str(error))
        except Exception as error:  # a bug of ours: nobody can say how far it came, and it must not stop the others
            _log.exception("a call failed", kind=self.kind, subject=claim.subject)
            return (NotSent if self._callout.read else MaybeDone)("BUG", type(error).__name__)

    def settle(self, claim: Claim, request: Any, answer: Answer) -> None:
        """Store what came of a call; if the lease is no longer ours, only that it came too late."""
        crash.reached("call.after_answer", 1, self.kind)
        with self._database.transaction() as tx:
            (tx.lock_exclusive if self._callout.exclusive else tx.lock_shared)([claim.lock_key])
            state = self._settle_row(tx, claim, answer)
            if state is not None:
                self._callout.settle(tx, Settled(claim, answer, state, request))
            crash.reached("call.before_settle_commit", 1, self.kind)
        outcome = type(answer).__name__ if state is not None else "late"
        metrics.CALLS.labels(self.kind, outcome).inc()
        if state is None:
            metrics.LATE_SETTLES.labels(self.kind).inc()
            _log.warning("late settle refused", kind=self.kind, subject=claim.subject, attempt=claim.attempt)
        elif not isinstance(answer, Done):
            _log.warning("call failed", kind=self.kind, subject=claim.subject, state=state, code=answer.code)
        crash.reached("call.after_settle", 1, self.kind)

    def _settle_row(self, tx: Tx, claim: Claim, answer: Answer) -> State | None:
        """Guarded by the lease token. None: the lease was taken over or voided, and only the attempt's own story is written."""
        limits = self._limits
        ambiguous = isinstance(answer, MaybeDone)
        waits = self._callout.waits_out_outages and not isinstance(answer, Done) and answer.outage
        state: State | None = tx.one(
            """WITH settled AS (
                   UPDATE work SET
                       state = CASE WHEN %(done)s THEN 'DONE'
                                    WHEN %(ambiguous)s AND NOT %(repeatable)s THEN 'UNKNOWN'
                                    WHEN tries - %(given_back)s < %(max_attempts)s AND NOT %(final)s THEN 'PENDING'
                                    WHEN ambiguous OR %(ambiguous)s THEN 'UNKNOWN' ELSE 'ERROR' END,
                       tries = tries - %(given_back)s, ambiguous = NOT %(done)s AND (ambiguous OR %(ambiguous)s),
                       code = %(code)s, message = %(message)s, attempts_finished = attempts_started,
                       due_at = clock_timestamp() + make_interval(secs => %(backoff)s),
                       lease_token = NULL, leased_until = NULL, updated_at = clock_timestamp()
                   WHERE kind = %(kind)s AND subject = %(subject)s AND state = 'CLAIMED' AND lease_token = %(token)s
                   RETURNING state),
               logged AS (
                   UPDATE attempts SET finished_at = clock_timestamp(), outcome = %(outcome)s, code = %(code)s,
                          message = %(message)s, late = NOT EXISTS (SELECT 1 FROM settled)
                   WHERE kind = %(kind)s AND subject = %(subject)s AND lease_token = %(token)s)
               SELECT (SELECT state FROM settled) AS state""",
            kind=self.kind,
            subject=claim.subject,
            token=claim.lease_token,
            done=isinstance(answer, Done),
            ambiguous=ambiguous,
            repeatable=not ambiguous or answer.repeatable,  # type: ignore[union-attr]
            max_attempts=limits.max_attempts,
            given_back=int(waits),
            final=isinstance(answer, NotSent) and answer.final,
            outcome=type(answer).__name__,
            code=None if isinstance(answer, Done) else answer.code,
            message=None if isinstance(answer, Done) else answer.message[:500],
            backoff=max(
                backoff_seconds(claim.attempt, limits.backoff_max_seconds, limits.backoff_first_seconds),
                0.0 if isinstance(answer, Done) else answer.after_seconds,
            ),
        ).state
        return state

    async def run(self, wake: asyncio.Event, stop: threading.Event) -> None:
        """Claim no more than there are free slots, call, settle; returns when stopped and all calls are settled.

        Looked is when something was enqueued here, when a slot is free again of which there were too few, and after each poll."""
        running: set[asyncio.Task[None]] = set()
        async with http_client(self._limits, read=self._callout.read) as client:
            while not stop.is_set():
                wake.clear()
                free = min(self._limits.concurrency - len(running), self._limits.claim_max_calls)
                free = self._gate.allowed(free, len(running))
                if free:
                    self._more = False
                for claim, request in (await _when_possible(self.claim, free) if free else None) or ():
                    task = asyncio.create_task(self._one(client, claim, request))
                    running.add(task)
                    task.add_done_callback(lambda _: wake.set() if self._more else None)
                if not (free and self._more):
                    await wait(wake, self._gate.wait_seconds(self._limits.poll_seconds))
                for task in [task for task in running if task.done()]:
                    running.discard(task)
                    task.result()
            await asyncio.gather(*running)

    async def _one(self, client: httpx.AsyncClient, claim: Claim, request: Any) -> None:
        answer = await self.call(client, claim, request)
        attempt = 0
        try:
            while await _when_possible(self._settled, claim, request, answer) is None:
                attempt += 1
                await asyncio.sleep(backoff_seconds(attempt, 5.0))  # the answer is worth waiting for the database
        except Fatal:
            raise
        except Exception as error:  # the answer is lost to us: once the lease has ended, the next attempt is ambiguous
            _log.exception("an answer could not be stored; the others go on", kind=self.kind, subject=claim.subject)
            await _when_possible(self._blame, claim.subject, error)

    def _settled(self, claim: Claim, request: Any, answer: Answer) -> bool:
        self.settle(claim, request, answer)
        return True


def not_now(claim: Claim, counterpart: str) -> Later | None:
    """For `take`: this one of several other sides has asked for time, so nothing of it is begun yet."""
    seconds = claim.gate.paused_seconds(counterpart) if claim.gate else 0.0
    return Later(seconds, "ASKED_TO_WAIT") if seconds else None


@cache
def _trusted() -> ssl.SSLContext:
    """The certificates which the system trusts, read once a process: that takes 40 ms."""
    return httpx.create_ssl_context()


def http_client(limits: Limits, *, read: bool) -> httpx.AsyncClient:
    """The client of all calls of a worker, which remembers nothing of any of them."""
    # A connection per call: one kept alive may be closed by the other side just as we write, and a payment whose
    # request met that can't be told from one that was taken. A read is simply repeated.
    kept = limits.concurrency if read else 0
    return httpx.AsyncClient(
        verify=_trusted(),
        limits=httpx.Limits(max_connections=limits.concurrency, max_keepalive_connections=kept, keepalive_expiry=2),
        timeout=httpx.Timeout(limits.timeout_seconds, connect=min(5.0, limits.timeout_seconds)),
        follow_redirects=False,
        # No cookie is taken, so none is sent: the other side's sessions would join calls that have nothing in common, and
        # what it sets would be kept as long as the process lives.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


def must_not_outlast(claim: Claim, seconds: float) -> None:
    """Raises LeaseLost unless the lease outlasts `seconds` from now: a process that slept must not send."""
    if time.monotonic() + seconds > claim.deadline:
        raise LeaseLost(f"{claim.kind} {claim.subject}: the lease ends before an answer could come; not sent")


async def post(
    client: httpx.AsyncClient, claim: Claim, url: str, body: bytes, headers: Mapping[str, str] | None = None
) -> httpx.Response | NotSent | MaybeDone:
    """POST JSON under a claim. NotSent only before the first byte was written; after it every failure is MaybeDone.

    Raises LeaseLost where the lease would not outlast the call."""
    if claim.gate:
        await claim.gate.turn()
    must_not_outlast(claim, claim.timeout_seconds + MARGIN_SECONDS)
    sent = False

    async def trace(event: str, _info: dict[str, Any]) -> None:
        nonlocal sent
        if event.endswith("send_request_headers.started"):
            must_not_outlast(claim, claim.timeout_seconds)  # we may have slept since
            sent = True
        elif event.endswith("send_request_headers.complete"):
            crash.reached("call.after_first_byte", 1, claim.kind)

    try:
        async with asyncio.timeout(claim.timeout_seconds):
            response = await _answer(
                client,
                url,
                body,
                {
                    "Content-Type": "application/json",
                    "Accept-Encoding": "identity",
                    "X-Request-Id": str(claim.lease_token),
                    **(headers or {}),
                },
                trace,
            )
    except (httpx.HTTPError, TimeoutError) as error:
        text = f"{type(error).__name__}: {error}"
        return MaybeDone("NO_ANSWER", text) if sent else NotSent("NOT_REACHED", text, outage=True)
    if response is None:
        return MaybeDone("ANSWER_UNREADABLE", f"the answer is compressed, or longer than {ANSWER_BYTES} bytes")
    if claim.gate and (seconds := asked_to_wait_seconds(response)):
        claim.gate.pause(seconds, claim.counterpart)
    return response


async def _answer(
    client: httpx.AsyncClient, url: str, body: bytes, headers: Mapping[str, str], trace: Callable[..., Any]
) -> httpx.Response | None:
    """An answer that memory can hold; None for one that is too long, or could grow: a small compressed one may hide gigabytes."""
    async with client.stream("POST", url, content=body, headers=headers, extensions={"trace": trace}) as response:
        content = await _content(response)
    # A response and its stream hold each other, and with them the request and its body: half a megabyte a call, which would
    # stay until the collector looks at the oldest objects, a hundred calls later.
    response.stream = httpx.ByteStream(b"")
    return None if content is None else httpx.Response(response.status_code, headers=response.headers, content=content)


async def _content(response: httpx.Response) -> bytes | None:
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        return None
    content = bytearray()
    async for piece in response.aiter_raw():
        content += piece
        if len(content) > ANSWER_BYTES:
            return None
    return bytes(content)


def asked_to_wait_seconds(response: httpx.Response) -> float:
    """For how long the other side wants no further request."""
    if response.status_code not in (429, 503):
        return 0.0
    return retry_after_seconds(response.headers.get("Retry-After"), utc_now())


async def _when_possible(step: Callable[..., Any], *args: Any) -> Any:
    """Run a database step in a thread; None where the database is away."""
    try:
        return await asyncio.to_thread(step, *args)
    except Transient as error:
        _log.warning("database", error=str(error))
        await asyncio.sleep(0.5)
        return None
