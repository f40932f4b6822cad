"""What is decided under the envelope's exclusive lock: when to check and to block, what a cancellation finds still unpaid, what
goes back to the sponsor, when an envelope is settled. Every decision reads committed rows and may be taken again.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from uuid import UUID

from libs.common import jobs, workqueue
from libs.common.commands import CommandRefused
from libs.common.contracts import funds, operator
from libs.common.contracts.base import (
    Amount,
    Amounts,
    AmountsWithReason,
    AmountWithReason,
    BatchHeader,
    EnvelopeHeader,
    chunk,
)
from libs.common.contracts.ingestion import NotCancelled
from libs.common.db import Tx, lock_key
from libs.common.envelope import Cause, Event
from libs.common.outbox import Outbox, Outgoing, outgoing
from libs.common.seal import Sealer
from services.funds import orders, queries, repay, store
from services.funds.config import Settings
from services.funds.domain import Money
from services.funds.ports import Bank, Repeat

ADVANCE = "advance"
STATEMENT = "statement"

_OPEN_LETTERS = """EXISTS (SELECT 1 FROM dead_letters d WHERE d.state IN ('OPEN', 'REDRIVEN')
    AND (d.correlation_id IS NULL OR d.correlation_id = e.envelope_id::text) AND d.topic NOT LIKE '%%.commands.v1')"""


class Decisions:
    """The two jobs of funds: `advance` an envelope, close a `statement`."""

    def __init__(self, settings: Settings, banks: Mapping[str, Bank], sealer: Sealer, outbox: Outbox) -> None:
        self._settings = settings
        self._banks = banks
        self._sealer = sealer
        self._outbox = outbox

    def advance(self, tx: Tx, subject: str, cause: Cause) -> None:
        """Take the envelope one step further, whatever the step is. The caller holds its exclusive lock."""
        envelope_id = UUID(subject)
        because = Cause(cause.id, subject, cause.traceparent)
        now = self._where_it_stands(tx, envelope_id)
        if now.cancelling or now.tombstones:
            if self._cancel(tx, envelope_id, now.cancelling, because):  # more of it in the next transaction
                jobs.make_due(tx, ADVANCE, [subject], [lock_key("funds", envelope_id)], because)
                return
            now = self._where_it_stands(tx, envelope_id)
        if now.reschedules:  # before a check may start: whoever has asked in time gets the other date
            self._reschedule(tx, envelope_id, because)
        if now.funds == "WAITING":
            self._start_check(tx, envelope_id, because)
        if now.funds == "BLOCKING":
            self._start_block(tx, envelope_id, because)
        self._release_expired(tx, envelope_id, because)
        if now.to_release:
            self._release_cancelled(tx, envelope_id, because)
        self._mark_overdue(tx, envelope_id, because)
        if now.to_answer:
            self._answer_cancellation(tx, envelope_id, because)
        self._settle(tx, envelope_id, because)

    def _where_it_stands(self, tx: Tx, envelope_id: UUID) -> Any:
        """What says which steps there may be to take: a step looks at all sums of the envelope, which costs the database more to
        plan than this to answer."""
        return tx.one(
            """SELECT e.funds, e.cancelling,
                      EXISTS (SELECT 1 FROM tombstones t WHERE t.envelope_id = e.envelope_id) AS tombstones,
                      EXISTS (SELECT 1 FROM cancelled c WHERE c.envelope_id = e.envelope_id AND c.in_block
                                                          AND c.release_id IS NULL) AS to_release,
                      EXISTS (SELECT 1 FROM reschedules r WHERE r.envelope_id = e.envelope_id AND r.state = 'ASKED') AS reschedules,
                      EXISTS (SELECT 1 FROM cancel_requests r WHERE r.envelope_id = e.envelope_id AND r.whole
                                                                AND r.state = 'DECIDED') AS to_answer
               FROM envelopes e WHERE e.envelope_id = %(id)s""",
            id=envelope_id,
        )

    # --- check and block ----------------------------------------------------------------------------------------------

    def _reschedule(self, tx: Tx, envelope_id: UUID, cause: Cause) -> None:
        """Other dates that are asked for: taken as long as no check has started. They may come in any order, and before the word
        that the envelope is complete: they wait for that, and the one with the highest revision holds."""
        envelope = tx.one(
            """SELECT header, cancelling, completed_minor IS NOT NULL AS complete, funds = 'WAITING' AND round = 0 AS unchecked
               FROM envelopes WHERE envelope_id = %(id)s""",
            id=envelope_id,
        )
        if not envelope.complete and not envelope.cancelling:
            return
        refusal: Literal["CHECK_STARTED", "CANCELLED"] | None = (
            "CANCELLED" if envelope.cancelling else None if envelope.unchecked else "CHECK_STARTED"
        )
        asked = tx.rows(
            """UPDATE reschedules SET state = %(state)s, decided_at = clock_timestamp()
               WHERE envelope_id = %(id)s AND state = 'ASKED' RETURNING request_id, revision, schedule_date, reason""",
            id=envelope_id,
            state="REFUSED" if refusal else "ACCEPTED",
        )
        header = EnvelopeHeader.model_validate_json(envelope.header)
        last = max(asked, key=lambda request: int(request.revision))
        if refusal is None and last.revision > header.revision:
            header = header.model_copy(update={"revision": last.revision, "schedule_date": last.schedule_date})
            tx.run(
                "UPDATE envelopes SET header = %(header)s, schedule_date = %(day)s WHERE envelope_id = %(id)s",
                id=envelope_id,
                header=header.model_dump_json(),
                day=header.schedule_date,
            )
        self._outbox.append(
            tx,
            [
                outgoing(
                    funds.RescheduleDecided(header=header, request_id=one.request_id, reason=one.reason, refusal=refusal),
                    envelope_id,
                    cause,
                    envelope_id,
                    one.request_id,
                )
                for one in sorted(asked, key=lambda request: int(request.revision))
            ],
        )

    def _start_check(self, tx: Tx, envelope_id: UUID, cause: Cause) -> None:
        """Complete, not cancelled, and its day has come where the programme lives."""
        rows = tx.rows(
            """UPDATE envelopes e SET funds = 'CHECKING', round = round + 1
               FROM money m WHERE m.envelope_id = e.envelope_id AND e.envelope_id = %(id)s AND e.funds = 'WAITING'
                 AND NOT e.cancelling AND e.completed_minor > m.cancelled_minor
                 AND (%(future)s OR e.schedule_date <= (clock_timestamp() AT TIME ZONE e.time_zone)::date)
               RETURNING e.round, e.lock_key""",
            id=envelope_id,
            future=self._settings.pay_future_schedules,
        )
        for row in rows:
            workqueue.enqueue(tx, "check", [f"{envelope_id}/{row.round}"], [row.lock_key], [cause])

    def _start_block(self, tx: Tx, envelope_id: UUID, cause: Cause) -> None:
        """After a check that said yes. The amount is fixed here: what is cancelled later is released."""
        rows = tx.rows(
            """SELECT e.header, e.lock_key, e.completed_minor - m.cancelled_minor AS amount,
                      (SELECT count(*) FROM blocks b WHERE b.envelope_id = e.envelope_id) + 1 AS block
               FROM envelopes e JOIN money m USING (envelope_id)
               WHERE e.envelope_id = %(id)s AND e.funds = 'BLOCKING' AND NOT m.block_fixed AND NOT e.cancelling
                 AND e.completed_minor > m.cancelled_minor""",
            id=envelope_id,
        )
        for row in rows:
            header = EnvelopeHeader.model_validate_json(row.header)
            sponsor = self._settings.sponsor(header.programme.id, header.benefit_code.id)
            if sponsor is None:
                return  # the check has said so
            tx.run(
                """INSERT INTO blocks (envelope_id, block, bank, sponsor, account_token, amount_minor)
                   VALUES (%(id)s, %(block)s, %(bank)s, %(sponsor)s, %(token)s, %(amount)s)""",
                id=envelope_id,
                block=row.block,
                bank=sponsor.bank,
                sponsor=f"{header.programme.id}/{header.benefit_code.id}",
                token=self._sealer.token(sponsor.account),
                amount=row.amount,
            )
            workqueue.enqueue(tx, "block", [f"{envelope_id}/{row.block}"], [row.lock_key], [cause])

    # --- cancellation -------------------------------------------------------------------------------------------------

    def _cancel(self, tx: Tx, envelope_id: UUID, whole: bool, cause: Cause) -> bool:
        """Cancel what is asked for and still unpaid; True if there is more than one transaction should do."""
        asked = tx.rows(
            """SELECT id, request_id, whole, disbursement_ids FROM cancel_requests
               WHERE envelope_id = %(id)s AND state = 'ASKED' ORDER BY id""",
            id=envelope_id,
        )
        if whole:
            self._void_block(tx, envelope_id)
        gone, more = self._cancel_unpaid(tx, envelope_id, whole, asked=bool(asked))
        self._say_cancelled(tx, gone, cause)
        if more:
            return True
        for request in asked:
            if not request.whole:
                self._answer_disbursements(tx, envelope_id, request, cause)
        tx.run(
            """UPDATE cancel_requests SET state = CASE WHEN whole THEN 'DECIDED' ELSE 'ANSWERED' END WHERE id = ANY(%(ids)s)""",
            ids=[request.id for request in asked],
        )
        return False

    def _void_block(self, tx: Tx, envelope_id: UUID) -> None:
        """A check or block that nobody has started yet is not needed any more."""
        for kind in ("check", "block"):
            tx.run(
                """UPDATE work SET state = 'VOID', code = 'CANCELLED' WHERE kind = %(kind)s AND state IN ('PENDING', 'ERROR')
                     AND NOT ambiguous AND subject LIKE %(id)s || '/%%'""",
                kind=kind,
                id=str(envelope_id),
            )
        tx.run(
            """WITH void AS (
                   UPDATE blocks b SET state = 'VOID' WHERE b.envelope_id = %(id)s AND (b.state = 'CHECKING' OR b.state = 'PENDING'
                     AND EXISTS (SELECT 1 FROM work w WHERE w.kind = 'block' AND w.subject = b.envelope_id || '/' || b.block
                                     AND w.state = 'VOID'))
                   RETURNING b.envelope_id, b.block, b.further),
               unasked AS (
                   UPDATE repayments r SET state = 'REFUSED' FROM void v WHERE r.envelope_id = v.envelope_id
                     AND r.block = v.block AND r.state = 'ASKED')
               UPDATE cancelled c SET in_block = false FROM void v WHERE c.envelope_id = v.envelope_id
                 AND c.block IS NOT DISTINCT FROM CASE WHEN v.further THEN v.block END""",
            id=envelope_id,
        )
        tx.run(
            """UPDATE envelopes e SET funds = 'WAITING' WHERE envelope_id = %(id)s AND funds IN ('CHECKING', 'BLOCKING', 'SHORT')
                 AND NOT EXISTS (SELECT 1 FROM blocks b WHERE b.envelope_id = e.envelope_id
                                    AND b.state IN ('PENDING', 'SENDING', 'UNKNOWN', 'BLOCKED'))""",
            id=envelope_id,
        )

    def _cancel_unpaid(self, tx: Tx, envelope_id: UUID, whole: bool, *, asked: bool) -> tuple[Sequence[Any], bool]:
        """Held people and payments of instructions that were certainly not sent; bounded by instructions per transaction.

        Where nobody has asked since the last time, only what came back from the bank can be new."""
        limit = self._settings.max_chunk_instructions
        chosen = tx.rows(
            """SELECT i.instruction FROM instructions i
               WHERE i.envelope_id = %(id)s AND i.state = 'WAITING'
                 AND NOT EXISTS (SELECT 1 FROM work w WHERE w.kind = 'dispatch' AND w.subject = i.instruction::text
                                    AND (w.ambiguous OR w.state = 'CLAIMED'))
                 AND (%(asked)s OR EXISTS (SELECT 1 FROM work w WHERE w.kind = 'dispatch' AND w.subject = i.instruction::text
                                               AND w.attempts_started > 0))
                 AND (%(whole)s OR EXISTS (SELECT 1 FROM tombstones t WHERE t.envelope_id = i.envelope_id
                                               AND (t.batch_id IS NULL OR t.batch_id = i.batch_id)))
                 AND EXISTS (SELECT 1 FROM payments p WHERE p.instruction = i.instruction
                     AND (%(whole)s OR EXISTS (SELECT 1 FROM tombstones t WHERE t.envelope_id = i.envelope_id
                                                   AND t.disbursement_id = p.disbursement_id))
                     AND NOT EXISTS (SELECT 1 FROM cancelled c WHERE c.instruction = p.instruction AND c.position = p.position))
               ORDER BY i.instruction LIMIT %(limit)s""",
            id=envelope_id,
            whole=whole,
            asked=asked or whole,
            limit=limit,
        )
        block_fixed = tx.one("SELECT block_fixed FROM money WHERE envelope_id = %(id)s", id=envelope_id).block_fixed
        gone = list(
            tx.rows(
                """WITH hit AS (
                       SELECT i.envelope_id, i.batch_id, p.instruction, p.position, p.amount_minor, p.disbursement_id, i.block
                       FROM instructions i JOIN payments p USING (instruction)
                       WHERE i.instruction = ANY(%(chosen)s::bigint[])
                         AND (%(whole)s OR EXISTS (SELECT 1 FROM tombstones t WHERE t.envelope_id = i.envelope_id
                                                       AND t.disbursement_id = p.disbursement_id))),
                   added AS (
                       INSERT INTO cancelled (envelope_id, disbursement_id, batch_id, instruction, position, amount_minor, in_block,
                                              block)
                       SELECT envelope_id, disbursement_id, batch_id, instruction, position, amount_minor, %(in_block)s, block
                       FROM hit
                       ON CONFLICT DO NOTHING RETURNING batch_id, instruction, disbursement_id, amount_minor),
                   sums AS (SELECT instruction, count(*) AS n, sum(amount_minor) AS total FROM added GROUP BY instruction),
                   counted AS (
                       UPDATE instructions i SET cancelled_count = cancelled_count + n, cancelled_minor = cancelled_minor + total,
                              state = CASE WHEN cancelled_count + refused_count + n = count THEN 'VOID' ELSE state END
                       FROM sums WHERE i.instruction = sums.instruction RETURNING i.instruction, i.state),
                   ended AS (
                       UPDATE work w SET state = 'VOID', code = 'CANCELLED' FROM counted
                       WHERE counted.state = 'VOID' AND w.kind = 'dispatch' AND w.subject = counted.instruction::text)
                   SELECT batch_id, disbursement_id, amount_minor FROM added""",
                chosen=[row.instruction for row in chosen],
                whole=whole,
                in_block=block_fixed,
            )
        )
        gone += tx.rows(
            """WITH hit AS (
                   UPDATE held h SET state = 'CANCELLED' WHERE h.held_id IN (
                       SELECT held_id FROM held x WHERE x.envelope_id = %(id)s AND x.state = 'HELD'
                         AND (%(whole)s OR EXISTS (SELECT 1 FROM tombstones t WHERE t.envelope_id = x.envelope_id
                                                       AND t.disbursement_id = x.disbursement_id))
                       LIMIT 1000 * %(limit)s)
                   RETURNING envelope_id, batch_id, disbursement_id, amount_minor, instruction)
               INSERT INTO cancelled (envelope_id, disbursement_id, batch_id, amount_minor, in_block, block)
               SELECT hit.envelope_id, disbursement_id, hit.batch_id, amount_minor, %(in_block)s, i.block
               FROM hit LEFT JOIN instructions i USING (instruction)
               ON CONFLICT DO NOTHING RETURNING batch_id, disbursement_id, amount_minor""",
            id=envelope_id,
            whole=whole,
            limit=limit,
            in_block=block_fixed,
        )
        gone += repay.cancel_asked(tx, envelope_id, whole=whole)
        return gone, len(chosen) == limit or len(gone) >= 1000 * limit

    def _say_cancelled(self, tx: Tx, gone: Sequence[Any], cause: Cause) -> None:
        grouped = defaultdict(list)
        for row in gone:
            grouped[row.batch_id].append(Amount(row.disbursement_id, row.amount_minor))
        headers = batch_headers(tx, list(grouped))
        events = []
        for batch_id, items in sorted(grouped.items()):
            body = funds.PaymentsCancelled(header=headers[batch_id], **chunk(Amounts.of(items)))
            events.append(outgoing(body, batch_id, cause, batch_id, *(sorted(item.disbursement_id for item in items))))
        self._outbox.append(tx, events)

    def _answer_disbursements(self, tx: Tx, envelope_id: UUID, request: Any, cause: Cause) -> None:
        """What was paid or is under way can't be cancelled; all else is, known by now or not."""
        rows = tx.rows(
            """WITH paying AS MATERIALIZED (  -- one pass over the envelope, however many are asked for
                   SELECT DISTINCT ON (q.disbursement_id) q.disbursement_id, i.state
                   FROM instructions i JOIN payments q USING (instruction)
                   WHERE i.envelope_id = %(envelope)s AND q.disbursement_id = ANY(%(ids)s::text[])
                     AND NOT EXISTS (SELECT 1 FROM held h WHERE h.instruction = q.instruction AND h.position = q.position)
                   ORDER BY q.disbursement_id, i.instruction DESC)
               SELECT asked.id, c.amount_minor, c.disbursement_id IS NULL AND p.state IS NOT NULL AS paying, p.state
               FROM unnest(%(ids)s::text[]) AS asked (id)
               LEFT JOIN cancelled c ON c.envelope_id = %(envelope)s AND c.disbursement_id = asked.id
               LEFT JOIN paying p ON p.disbursement_id = asked.id""",
            envelope=envelope_id,
            ids=request.disbursement_ids,
        )
        refused = [
            NotCancelled(disbursement_id=row.id, reason="UNKNOWN" if row.state == "UNKNOWN" else "ALREADY_DISPATCHED")
            for row in rows
            if row.paying
        ]
        cancelled = [row for row in rows if not row.paying]
        header = self._header(tx, envelope_id)
        body = funds.DisbursementsCancelled(
            header=header,
            request_id=request.request_id,
            cancelled=[row.id for row in cancelled],
            cancelled_minor=sum(row.amount_minor or 0 for row in cancelled),
            not_cancelled=refused,
        )
        self._outbox.append(tx, [outgoing(body, envelope_id, cause, envelope_id, request.request_id)])

    def _answer_cancellation(self, tx: Tx, envelope_id: UUID, cause: Cause) -> None:
        """The whole envelope: answered when all its batches are here and nothing is in flight any more."""
        rows = tx.rows(
            """UPDATE cancel_requests r SET state = 'ANSWERED' FROM money m
               WHERE r.envelope_id = %(id)s AND m.envelope_id = r.envelope_id AND r.whole AND r.state = 'DECIDED'
                 AND m.in_flight = 0 AND r.batches <= (SELECT count(*) FROM parts p JOIN batches b USING (batch_id)
                                                       WHERE b.envelope_id = r.envelope_id AND p.part = 1)
               RETURNING r.request_id, m.cancelled, m.cancelled_minor, m.dispatched, m.dispatched_minor, m.unknown, m.unknown_minor""",
            id=envelope_id,
        )
        if not rows:
            return
        tx.run(
            "UPDATE envelopes SET cancelled_at = coalesce(cancelled_at, clock_timestamp()) WHERE envelope_id = %(id)s",
            id=envelope_id,
        )
        header = self._header(tx, envelope_id)
        events = []
        for row in rows:
            body = funds.EnvelopeCancelled(
                header=header,
                request_id=row.request_id,
                cancelled=row.cancelled,
                cancelled_minor=row.cancelled_minor,
                already_dispatched=row.dispatched,
                already_dispatched_minor=row.dispatched_minor,
                unknown=row.unknown,
                unknown_minor=row.unknown_minor,
            )
            events.append(outgoing(body, envelope_id, cause, envelope_id, row.request_id))
        self._outbox.append(tx, events)

    # --- release and settlement ---------------------------------------------------------------------------------------

    def _release_cancelled(self, tx: Tx, envelope_id: UUID, cause: Cause) -> None:
        """What was cancelled after the block goes back to the sponsor, once there is a block to give back from."""
        rows = tx.rows(
            """SELECT b.block, sum(c.amount_minor)::bigint AS amount
               FROM cancelled c JOIN blocks b ON b.envelope_id = c.envelope_id AND b.state = 'BLOCKED'
                    AND (b.block = c.block OR c.block IS NULL AND NOT b.further)
               WHERE c.envelope_id = %(id)s AND c.in_block AND c.release_id IS NULL GROUP BY b.block ORDER BY b.block""",
            id=envelope_id,
        )
        for row in rows:
            release_id = create_release(tx, self._banks, envelope_id, row.block, row.amount, "CANCELLED", cause)
            tx.run(
                """UPDATE cancelled c SET release_id = %(r)s FROM blocks b WHERE c.envelope_id = %(id)s AND c.in_block
                     AND c.release_id IS NULL AND b.envelope_id = c.envelope_id AND b.block = %(block)s
                     AND (c.block = b.block OR c.block IS NULL AND NOT b.further)""",
                r=release_id,
                id=envelope_id,
                block=row.block,
            )

    def _release_expired(self, tx: Tx, envelope_id: UUID, cause: Cause) -> None:
        """What nobody could pay for too long goes back to the sponsor."""
        if self._settings.held_ttl_days:
            release_held(tx, self._banks, envelope_id, "HELD_TTL", cause, older_than_days=self._settings.held_ttl_days)

    def _mark_overdue(self, tx: Tx, envelope_id: UUID, cause: Cause) -> None:
        """Instructions the bank took and of which no statement shows all: listed for an operator, never sent again. The bank is
        asked for a statement, and what became of them where it can be; what comes late is booked as ever, and ends the exception."""
        if not self._settings.statement_days:
            return
        # One for each instruction: whoever of it is outstanding is seen in its payments, and there may be a million.
        found = tx.rows(
            """WITH late AS (
                   SELECT i.instruction, e.currency, i.count - i.cancelled_count - i.refused_count - i.debited_count AS n,
                          i.total_minor - i.cancelled_minor - i.refused_minor - i.debited_minor AS minor,
                          i.state = 'DISPATCHED'
                              AND i.dispatched_at < clock_timestamp() - make_interval(days => %(days)s) AS overdue
                   FROM instructions i JOIN envelopes e USING (envelope_id) WHERE i.envelope_id = %(id)s),
               changed AS (
                   UPDATE exceptions x SET amount_minor = late.minor,
                          detail = regexp_replace(x.detail, '^[0-9]+', late.n::text),  -- what the bank said of it stays
                          state = CASE WHEN late.n = 0 THEN 'CLOSED' ELSE x.state END,
                          closed_at = CASE WHEN late.n = 0 THEN clock_timestamp() END
                   FROM late WHERE x.instruction = late.instruction AND x.reason = 'NO_STATEMENT_LINE' AND x.state = 'OPEN'
                     AND x.amount_minor <> late.minor)
               INSERT INTO exceptions (reason, instruction, amount_minor, currency, detail)
               SELECT 'NO_STATEMENT_LINE', instruction, minor, currency, n || ' payments without a line'
               FROM late WHERE overdue AND n > 0 ON CONFLICT DO NOTHING RETURNING instruction""",
            id=envelope_id,
            days=self._settings.statement_days,
        )
        if found:
            overdue = tx.rows(
                """SELECT i.instruction, k.sponsor, k.bank, e.lock_key
                   FROM instructions i JOIN blocks k USING (envelope_id, block) JOIN envelopes e USING (envelope_id)
                   WHERE i.instruction = ANY(%(ids)s::bigint[])""",
                ids=[row.instruction for row in found],
            )
            known = self._settings.sponsors
            names = {row.sponsor if row.sponsor in known else "default" for row in overdue} & known.keys()
            orders.ask(tx, sorted(names), Cause(cause.id, None, cause.traceparent))
            queries.ask(tx, self._banks, overdue, cause)

    def _settle(self, tx: Tx, envelope_id: UUID, cause: Cause) -> None:
        """Settled when nothing is waiting, in flight, unknown, held, releasing or outstanding; again when that has changed. Until
        then the position is said."""
        envelope = tx.one(
            f"""SELECT envelope_id, lock_key, completed_minor, cancelling, cancelled_at, header, settled_revision, settled_position,
                       said_revision, said_position, {store.look_is_due("envelope_id")} AS look_is_due,
                       coalesce(floor(extract(epoch FROM said_at) / %(every)s::float8)
                                = floor(extract(epoch FROM clock_timestamp()) / %(every)s::float8), false) AS said_just_now
                FROM envelopes WHERE envelope_id = %(id)s""",
            id=envelope_id,
            every=self._settings.position_seconds,
        )
        if envelope.cancelled_at is None and envelope.completed_minor is None:
            return
        row = tx.one("SELECT * FROM money WHERE envelope_id = %(id)s", id=envelope_id)
        money = Money(**{name: getattr(row, f"{name}_minor") for name in Money.__slots__})
        to_answer = envelope.cancelling and envelope.cancelled_at is None
        if to_answer or not money.settled or store.asked_block(tx, envelope_id):
            self._say_position(tx, envelope, row, money, cause)
            return
        position = _position(money)
        if envelope.settled_position == position.model_dump_json():  # a repayment came to nothing
            self._say_position(tx, envelope, row, money, cause)
            tx.run(
                "UPDATE envelopes SET settled_at = clock_timestamp() WHERE envelope_id = %(id)s AND settled_at IS NULL",
                id=envelope_id,
            )
            return
        revision = envelope.settled_revision + 1
        tx.run(
            """UPDATE envelopes SET settled_revision = %(revision)s, settled_position = %(position)s, settled_at = clock_timestamp(),
                      said_revision = said_revision + 1, said_position = %(position)s, said_at = clock_timestamp()
               WHERE envelope_id = %(id)s""",
            id=envelope_id,
            revision=revision,
            position=position.model_dump_json(),
        )
        body = funds.EnvelopeSettled(
            header=EnvelopeHeader.model_validate_json(envelope.header),
            revision=revision,
            position=position,
            position_revision=envelope.said_revision + 1,
            confirmed=row.confirmed,
            reversed=row.reversed,
            cancelled=row.cancelled,
        )
        self._outbox.append(tx, [outgoing(body, envelope_id, cause, envelope_id, revision, position.model_dump_json())])

    def _say_position(self, tx: Tx, envelope: Any, row: Any, money: Money, cause: Cause) -> None:
        """Once in a stretch of `position_seconds` at most: what has changed since is said at its end. A call that is under way may
        end without asking for a decision: it is looked at again as well."""
        if not money.blocked or not money.balanced or money.waiting < 0:  # of books that don't balance the gauges tell
            return
        envelope_id, position, every = envelope.envelope_id, _position(money), self._settings.position_seconds
        told = position.model_dump_json()
        changed = envelope.said_position != told
        if changed and not envelope.said_just_now:
            changed = False
            revision = envelope.said_revision + 1
            tx.run(
                """UPDATE envelopes SET said_revision = %(revision)s, said_position = %(position)s, said_at = clock_timestamp()
                   WHERE envelope_id = %(id)s""",
                id=envelope_id,
                revision=revision,
                position=told,
            )
            counts = ("waiting", "in_flight", "unknown", "held", "outstanding", "confirmed", "reversed", "cancelled")
            body = funds.EnvelopePosition(
                header=EnvelopeHeader.model_validate_json(envelope.header),
                revision=revision,
                position=position,
                **{name: getattr(row, name) for name in counts},
            )
            self._outbox.append(tx, [outgoing(body, envelope_id, cause, envelope_id, revision, told)])
        if (changed or position.in_flight) and not envelope.look_is_due:
            jobs.make_due(tx, ADVANCE, [str(envelope_id)], [envelope.lock_key], cause, every_seconds=every)

    # --- commands -----------------------------------------------------------------------------------------------------

    def repay(self, tx: Tx, event: Event[operator.Repay]) -> int:
        """See repay.py. An operator who saw another number than there are gets nothing done."""
        envelope_id = event.data.envelope_id
        tx.lock_exclusive([lock_key("funds", envelope_id)])
        expected, asked = event.data.expected, len(set(event.data.disbursement_ids))
        if expected not in (None, asked):
            raise CommandRefused(f"the operator saw {expected}, there are {asked}")
        cause = Cause(event.id, str(envelope_id), event.traceparent)
        return repay.repay(tx, self._settings, self._sealer, event.data, cause)

    # --- statements ---------------------------------------------------------------------------------------------------

    def close_statement(self, tx: Tx, subject: str, cause: Cause) -> None:
        """Say what a statement came to, once all its chunks are here."""
        statement_id = UUID(subject)
        rows = tx.rows(
            """UPDATE statements s SET reconciled_at = clock_timestamp()
               FROM (SELECT count(*) AS chunks, coalesce(sum(lines), 0)::bigint AS lines,
                            coalesce(sum(balance_minor), 0)::bigint AS balance,
                            coalesce(sum(confirmed), 0)::bigint AS confirmed,
                            coalesce(sum(confirmed_minor), 0)::bigint AS confirmed_minor,
                            coalesce(sum(reversed), 0)::bigint AS reversed,
                            coalesce(sum(reversed_minor), 0)::bigint AS reversed_minor
                     FROM statement_chunks WHERE statement_id = %(id)s) AS c
               WHERE s.statement_id = %(id)s AND s.chunks = c.chunks AND s.reconciled_at IS NULL
               RETURNING s.*, c.lines AS seen, c.balance, c.confirmed, c.confirmed_minor, c.reversed, c.reversed_minor""",
            id=statement_id,
        )
        for row in rows:
            agree = row.opening_minor + row.balance == row.closing_minor and row.seen == row.lines
            if not agree:
                self._flag_balance(tx, row)
            exceptions = tx.rows(
                "SELECT reason, count(*) AS n FROM exceptions WHERE statement_id = %(id)s GROUP BY reason ORDER BY reason",
                id=statement_id,
            )
            body = funds.StatementReconciled(
                statement_id=statement_id,
                account_token=row.account_token,
                currency=row.currency,
                lines=row.seen,
                confirmed=row.confirmed,
                confirmed_minor=row.confirmed_minor,
                reversed=row.reversed,
                reversed_minor=row.reversed_minor,
                exceptions=[funds.StatementException(reason=x.reason, count=x.n) for x in exceptions],
                balances_agree=agree,
            )
            self._outbox.append(tx, [outgoing(body, row.account_token, cause, statement_id)])

    @staticmethod
    def _flag_balance(tx: Tx, statement: Any) -> None:
        """Flagged, never refused. A line that cannot be read says so itself, and no sum can agree without it."""
        tx.run(
            """INSERT INTO exceptions (statement_id, reason, amount_minor, currency, detail)
               SELECT %(id)s, 'BALANCE_MISMATCH', %(off)s, %(currency)s, %(detail)s
               WHERE NOT EXISTS (SELECT 1 FROM exceptions WHERE statement_id = %(id)s AND reason = 'UNPARSABLE_LINE')
               ON CONFLICT DO NOTHING""",
            id=statement.statement_id,
            off=abs(statement.closing_minor - statement.opening_minor - statement.balance),
            currency=statement.currency,
            detail=f"{statement.seen} of {statement.lines} lines; opening balance and lines do not come to the closing balance",
        )

    def _header(self, tx: Tx, envelope_id: UUID) -> EnvelopeHeader:
        row = tx.one("SELECT header FROM envelopes WHERE envelope_id = %(id)s", id=envelope_id)
        return EnvelopeHeader.model_validate_json(row.header)


def _position(money: Money) -> funds.Position:
    return funds.Position(**{name: getattr(money, name) for name in Money.__slots__})


def batch_headers(tx: Tx, batch_ids: Sequence[UUID]) -> dict[UUID, BatchHeader]:
    rows = tx.rows("SELECT batch_id, header FROM batches WHERE batch_id = ANY(%(ids)s::uuid[])", ids=list(batch_ids))
    return {row.batch_id: BatchHeader.model_validate_json(row.header) for row in rows}


def release_held(
    tx: Tx, banks: Mapping[str, Bank], envelope_id: UUID, reason: str, cause: Cause, older_than_days: int = 0
) -> int:
    """Held money goes back to the sponsor, each from the block where it lies; returns how many people it was held for."""
    rows = tx.rows(
        """UPDATE held h SET state = 'RELEASING'
           FROM held x LEFT JOIN instructions i USING (instruction) JOIN blocks b ON b.envelope_id = x.envelope_id
           WHERE h.held_id = x.held_id AND x.envelope_id = %(id)s AND x.state = 'HELD' AND b.state = 'BLOCKED'
             AND (b.block = i.block OR i.block IS NULL AND NOT b.further)
             AND x.since <= clock_timestamp() - make_interval(days => %(days)s)
           RETURNING h.held_id, h.amount_minor, b.block""",
        id=envelope_id,
        days=older_than_days,
    )
    per: dict[int, list[Any]] = defaultdict(list)
    for row in rows:
        per[row.block].append(row)
    for block, held in sorted(per.items()):
        release_id = create_release(tx, banks, envelope_id, block, sum(row.amount_minor for row in held), reason, cause)
        ids = [row.held_id for row in held]
        tx.run("UPDATE held SET release_id = %(r)s WHERE held_id = ANY(%(ids)s::bigint[])", r=release_id, ids=ids)
    return len(rows)


def create_release(
    tx: Tx, banks: Mapping[str, Bank], envelope_id: UUID, block: int, amount_minor: int, reason: str, cause: Cause
) -> int:
    """Money on its way back: `releasing` from here. A bank without the verb leaves it to an operator, who has it listed."""
    bank = banks.get(
        tx.one("SELECT bank FROM blocks WHERE envelope_id = %(id)s AND block = %(block)s", id=envelope_id, block=block).bank
    )
    offered = bank is None or bank.capabilities.release is not Repeat.NONE  # one that is gone is asked when it is back
    release_id: int = tx.one(
        """INSERT INTO releases (envelope_id, block, amount_minor, reason, state)
           VALUES (%(id)s, %(block)s, %(amount)s, %(reason)s, %(state)s) RETURNING release_id""",
        id=envelope_id,
        block=block,
        amount=amount_minor,
        reason=reason,
        state="PENDING" if offered else "NOT_OFFERED",
    ).release_id
    if offered:
        workqueue.enqueue(tx, "release", [str(release_id)], [lock_key("funds", envelope_id)], [cause])
    return release_id


def end_block(tx: Tx, settings: Settings, outbox: Outbox, envelope_id: UUID, block: int, reference: str, cause: Cause) -> None:
    """The money is reserved: say so and dispatch whatever has arrived, or was to be paid from it."""
    row = tx.one(
        """UPDATE blocks b SET state = 'BLOCKED', bank_reference = %(reference)s, blocked_at = clock_timestamp()
           FROM envelopes e WHERE e.envelope_id = b.envelope_id AND b.envelope_id = %(id)s AND b.block = %(block)s
           RETURNING b.amount_minor, b.further, e.header""",
        id=envelope_id,
        block=block,
        reference=reference,
    )
    tx.run("UPDATE envelopes SET funds = 'BLOCKED' WHERE envelope_id = %(id)s", id=envelope_id)
    if row.further and (numbers := store.pay_repayments(tx, settings.incarnation, envelope_id, block)):
        say_disputed(tx, outbox, store.hold_disputed(tx, store.disputed_of(tx, numbers)), cause)
    body = funds.FundsBlocked(
        header=EnvelopeHeader.model_validate_json(row.header),
        block=block,
        amount_minor=row.amount_minor,
        bank_reference=reference,
    )
    outbox.append(tx, [outgoing(body, envelope_id, cause, envelope_id, block)])
    _dispatch_waiting(tx, envelope_id, cause)


def _dispatch_waiting(tx: Tx, envelope_id: UUID, cause: Cause) -> None:
    """Money is reserved again, or still: whatever has arrived meanwhile is sent."""
    tx.run(
        """INSERT INTO work (kind, subject, lock_key, cause_id, correlation_id, traceparent)
           SELECT 'dispatch', instruction, %(key)s, 'instruction/' || instruction, %(id)s::text, %(trace)s
           FROM instructions WHERE envelope_id = %(id)s AND state = 'WAITING' ON CONFLICT DO NOTHING""",
        id=envelope_id,
        key=lock_key("funds", envelope_id),
        trace=cause.traceparent,
    )
    tx.wakes.add("dispatch")


def refuse_block(tx: Tx, outbox: Outbox, envelope_id: UUID, block: int, code: str, message: str, cause: Cause) -> None:
    """Nothing was reserved: what was cancelled meanwhile needs no release. The next tick checks again; a further block must be
    asked for again."""
    row = tx.one(
        """UPDATE blocks b SET state = 'REFUSED' FROM envelopes e
           WHERE b.envelope_id = %(id)s AND b.block = %(block)s AND e.envelope_id = b.envelope_id
           RETURNING b.further, b.amount_minor, e.header""",
        id=envelope_id,
        block=block,
    )
    tx.run(
        """UPDATE cancelled SET in_block = false WHERE envelope_id = %(id)s AND in_block
             AND block IS NOT DISTINCT FROM %(of)s::int""",
        id=envelope_id,
        of=block if row.further else None,
    )
    if not row.further:
        say_short(tx, outbox, envelope_id, code, message, cause, f"block {block}")
        return
    repay.give_up(tx, envelope_id, block)
    _dispatch_waiting(tx, envelope_id, cause)
    header = EnvelopeHeader.model_validate_json(row.header)
    body = funds.FundsShort(header=header, amount_minor=row.amount_minor, reason=code, message=message)
    outbox.append(tx, [outgoing(body, envelope_id, cause, envelope_id, f"block {block}")])


def say_short(tx: Tx, outbox: Outbox, envelope_id: UUID, code: str, message: str, cause: Cause, which: str) -> None:
    row = tx.one(
        """UPDATE envelopes e SET funds = 'SHORT' FROM money m WHERE m.envelope_id = e.envelope_id AND e.envelope_id = %(id)s
           RETURNING e.header, e.completed_minor - m.cancelled_before_block_minor AS amount""",
        id=envelope_id,
    )
    body = funds.FundsShort(
        header=EnvelopeHeader.model_validate_json(row.header), amount_minor=max(1, row.amount), reason=code, message=message
    )
    outbox.append(tx, [outgoing(body, envelope_id, cause, envelope_id, which)])


def say_dispatched(tx: Tx, outbox: Outbox, instructions: Sequence[int], cause: Cause) -> None:
    """PaymentsDispatched for each instruction, of what is live in it."""
    if not instructions:
        return
    grouped: dict[int, list[Amount]] = defaultdict(list)
    for number, _, amount_minor, disbursement_id, _ in store.payments_of(tx, instructions):
        grouped[number].append(Amount(disbursement_id, amount_minor))
    rows = tx.rows(
        """SELECT i.instruction, i.incarnation, b.header FROM instructions i JOIN batches b USING (batch_id)
           WHERE i.instruction = ANY(%(ids)s::bigint[]) ORDER BY i.instruction""",
        ids=list(instructions),
    )
    events = []
    for row in rows:
        if row.instruction in grouped:
            header = BatchHeader.model_validate_json(row.header)
            items = Amounts.of(grouped[row.instruction])
            events.append(dispatched(header, row.incarnation, row.instruction, items, cause))
    outbox.append(tx, events)


def dispatched(header: BatchHeader, incarnation: int, number: int, items: Amounts, cause: Cause) -> Outgoing:
    body = funds.PaymentsDispatched(header=header, instruction=number, **chunk(items))
    because = Cause(cause.id, str(header.envelope_id), cause.traceparent)
    return outgoing(body, header.batch_id, because, incarnation, number)


def settle_exceptions(tx: Tx, event: Event[operator.SettleException]) -> int:
    """An operator has dealt with exceptions, outside or by another command: they are closed with who, why and the evidence."""
    data, ids = event.data, sorted(set(event.data.ids))
    found = tx.rows("SELECT id, state FROM exceptions WHERE id = ANY(%(ids)s::bigint[]) ORDER BY id FOR UPDATE", ids=ids)
    known = {row.id: row.state for row in found}
    wrong = [f"{one}: {known.get(one, 'NOT_KNOWN')}" for one in ids if known.get(one) != "OPEN"]
    if wrong:
        raise CommandRefused(f"not open: {', '.join(wrong)}")
    return tx.run(
        """UPDATE exceptions SET state = 'CLOSED', closed_at = clock_timestamp(), closed_by = %(who)s, why = %(why)s,
                  evidence = %(evidence)s WHERE id = ANY(%(ids)s::bigint[])""",
        who=data.who,
        why=data.why,
        evidence=data.evidence,
        ids=ids,
    )


def settle_unknown(tx: Tx, settings: Settings, outbox: Outbox, event: Event[operator.SettleUnknown]) -> int:
    """An operator knows, with evidence, what became of a call whose answer was lost, or that what the bank took and no statement
    shows (NO_STATEMENT_LINE) will not be paid."""
    data = event.data
    happened = data.outcome == "happened"
    envelope_id = _envelope_of(tx, data.kind, data.subject)
    key = lock_key("funds", envelope_id)
    tx.lock_exclusive([key])
    cause = Cause(event.id, str(envelope_id), event.traceparent)
    if data.kind == "block":
        number = int(data.subject.rpartition("/")[2])
        if not _is(
            tx, "SELECT state FROM blocks WHERE envelope_id = %(id)s AND block = %(n)s", "UNKNOWN", id=envelope_id, n=number
        ):
            raise CommandRefused(f"block {data.subject} is not unknown")
        if happened and not data.reference:
            raise CommandRefused("a block that happened needs the bank's block reference")
        if happened:
            end_block(tx, settings, outbox, envelope_id, number, data.reference, cause)
        else:
            refuse_block(tx, outbox, envelope_id, number, "DID_NOT_HAPPEN", data.evidence, cause)
    elif data.kind == "dispatch":
        number = int(data.subject)
        unknown = _is(tx, "SELECT state FROM instructions WHERE instruction = %(n)s", "UNKNOWN", n=number)
        if not unknown and (happened or not _is_overdue(tx, number)):
            raise CommandRefused(f"instruction {number} is neither unknown nor without a line on a statement for too long")
        if happened:
            store.set_instructions(tx, [number], "DISPATCHED", ("UNKNOWN",))
            say_dispatched(tx, outbox, [number], cause)
        else:
            refuse_instruction(tx, outbox, number, "DID_NOT_HAPPEN", data.evidence, cause)
    else:
        number = int(data.subject)
        states = ("UNKNOWN", "NOT_OFFERED", "REFUSED")
        if not _is(tx, "SELECT state FROM releases WHERE release_id = %(n)s", *states, n=number):
            raise CommandRefused(f"release {number} is not waiting for an operator")
        if happened:
            end_release(tx, outbox, number, data.reference or "settled by an operator", cause)
        else:
            tx.run("UPDATE releases SET state = 'REFUSED' WHERE release_id = %(n)s", n=number)
    workqueue.finish(tx, data.kind, [data.subject], "DONE", "SETTLED_BY_OPERATOR")
    jobs.make_due(tx, ADVANCE, [str(envelope_id)], [key], cause)
    return 1


def refuse_instruction(tx: Tx, outbox: Outbox, number: int, code: str, message: str, cause: Cause) -> None:
    """The whole list was definitely refused: everybody in it who is not confirmed is held."""
    message = message[:200]  # it is repeated for each of up to 1,000 people in one event
    debited = {row.position for row in tx.rows("SELECT position FROM facts WHERE instruction = %(n)s AND kind = 'D'", n=number)}
    live = [row for row in store.payments_of(tx, [number]) if row.position not in debited]
    say_refused(tx, outbox, number, [(row, code, message) for row in live], cause)
    store.refuse_payments(tx, number, [(row.position, reason_code(code), message) for row in live])
    store.set_instructions(tx, [number], "REFUSED", ("SENDING", "UNKNOWN"))


def say_refused(tx: Tx, outbox: Outbox, number: int, refused: Sequence[tuple[Any, str, str]], cause: Cause) -> None:
    """(payment, code, message) each."""
    if not refused:
        return
    row = tx.one("SELECT b.header FROM instructions i JOIN batches b USING (batch_id) WHERE i.instruction = %(n)s", n=number)
    header = BatchHeader.model_validate_json(row.header)
    items = [AmountWithReason(p.disbursement_id, p.amount_minor, reason_code(code), message) for p, code, message in refused]
    body = funds.PaymentsRefused(header=header, instruction=number, **chunk(AmountsWithReason.of(items)))
    outbox.append(tx, [outgoing(body, header.batch_id, cause, number, *(sorted(item.disbursement_id for item in items)))])


def say_disputed(tx: Tx, outbox: Outbox, held: Sequence[Any], cause: Cause) -> None:
    """PaymentsHeld for those whom an open exception names, of each instruction they were to be paid by."""
    grouped = defaultdict(list)
    for row in held:
        grouped[row.instruction, row.batch_id].append(AmountWithReason(row.disbursement_id, row.amount_minor, "OPEN_EXCEPTION"))
    headers = batch_headers(tx, [batch_id for _, batch_id in grouped])
    events = []
    for (number, batch_id), items in sorted(grouped.items()):
        body = funds.PaymentsHeld(header=headers[batch_id], **chunk(AmountsWithReason.of(items)))
        because = Cause(cause.id, str(headers[batch_id].envelope_id), cause.traceparent)
        events.append(outgoing(body, batch_id, because, number, *(sorted(item.disbursement_id for item in items))))
    outbox.append(tx, events)


def reason_code(code: str) -> str:
    """A bank's own code in the form that ours have."""
    clean = "".join(c if c.isalnum() and c.isascii() else "_" for c in code.upper()).strip("_")[:50]
    return clean if len(clean) > 1 and clean[0].isalpha() else f"CODE_{clean}"


def end_release(tx: Tx, outbox: Outbox, release_id: int, reference: str, cause: Cause) -> None:
    row = tx.one(
        """UPDATE releases r SET state = 'RELEASED', bank_reference = %(reference)s, released_at = clock_timestamp()
           FROM envelopes e WHERE e.envelope_id = r.envelope_id AND r.release_id = %(id)s
           RETURNING r.block, r.amount_minor, e.header, e.envelope_id""",
        id=release_id,
        reference=reference,
    )
    tx.run("UPDATE held SET state = 'RELEASED' WHERE release_id = %(id)s AND state = 'RELEASING'", id=release_id)
    body = funds.FundsReleased(
        header=EnvelopeHeader.model_validate_json(row.header),
        release_id=release_id,
        block=row.block,
        amount_minor=row.amount_minor,
        bank_reference=reference,
    )
    outbox.append(tx, [outgoing(body, row.envelope_id, cause, "release", release_id, reference)])


def _envelope_of(tx: Tx, kind: str, subject: str) -> UUID:
    if kind == "block":
        envelope_id, _, number = subject.rpartition("/")
        try:
            if number.isdecimal():
                return UUID(envelope_id)
        except ValueError:
            pass
        raise CommandRefused(f"{subject!r} does not name a block: <envelope>/<number>")
    table, column = {"dispatch": ("instructions", "instruction"), "release": ("releases", "release_id")}[kind]
    rows = tx.rows(f"SELECT envelope_id FROM {table} WHERE {column} = %(n)s", n=int(subject)) if subject.isdecimal() else []
    if not rows:
        raise CommandRefused(f"there is no {kind} {subject!r}")
    found: UUID = rows[0].envelope_id
    return found


def _is_overdue(tx: Tx, instruction: int) -> bool:
    """Whether some of it was listed as NO_STATEMENT_LINE and is outstanding still."""
    return bool(
        tx.rows(
            """SELECT 1 FROM instructions i JOIN exceptions x USING (instruction)
               WHERE i.instruction = %(n)s AND i.state = 'DISPATCHED' AND x.reason = 'NO_STATEMENT_LINE'
                 AND i.cancelled_count + i.refused_count + i.debited_count < i.count""",
            n=instruction,
        )
    )


def _is(tx: Tx, query: str, *states: str, **params: Any) -> bool:
    rows = tx.rows(query, **params)
    return bool(rows) and rows[0].state in states
