"""The story of funds, event by event. Folds take the envelopes' shared locks and record; what must be decided by nobody in
particular (checks, cancellations, releases, settlement) is decided by `advance` under the exclusive lock (see decisions.py).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from itertools import groupby
from operator import itemgetter
from typing import Any
from uuid import UUID

from libs.common import jobs, workqueue
from libs.common.commands import CommandRefused
from libs.common.contracts import allocation, funds, ingestion, operator, resolution, scheduler
from libs.common.contracts.base import (
    CASH,
    Amount,
    Amounts,
    AmountsWithReason,
    AmountWithReason,
    BatchHeader,
    Items,
    Sealed,
    Unresolved,
    ZonedItem,
    ZonedItems,
    chunk,
)
from libs.common.db import Tx, lock_key
from libs.common.envelope import Cause, Event
from libs.common.errors import Malformed
from libs.common.log import get
from libs.common.outbox import Outbox, Outgoing, outgoing
from libs.common.seal import Sealer
from services.funds import agencies, decisions, domain, repay, store
from services.funds.config import Settings
from services.funds.ports import Bank

FUNDS_DUE_JOB = "funds-due"
SETTLE_SECONDS = 1.0  # lines come in many chunks, and whoever decides stops those who fold

_log = get("funds")

_Groups = dict[tuple[int, int], list[domain.Share]]  # (instruction, head) -> the shares that are one payment to an agency


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A part of a batch, whichever way its benefit took: who can be paid, and who cannot."""

    cause: Cause
    header: BatchHeader
    part: int
    items: Items | ZonedItems  # payable; with zones where agencies are paid
    unresolved: Iterable[Unresolved]
    sealed: Sealed  # addresses of people, or of agencies
    zones: Sequence[allocation.ZoneAllocation] = ()  # of agency cash


@dataclass
class _Intake:
    """What a run of arriving parts comes to, before it is written. All of them have come the same way."""

    grouped: bool
    instructions: list[tuple[UUID, UUID, int, str, str, int, int]] = field(default_factory=list)
    items: list[Items | ZonedItems] = field(default_factory=list)  # of each instruction
    held: list[tuple[UUID, *tuple[object, ...]]] = field(default_factory=list)
    cancelled: list[tuple[object, ...]] = field(default_factory=list)
    paying: list[tuple[UUID, str]] = field(default_factory=list)
    unblocked: list[tuple[UUID, str]] = field(default_factory=list)
    still: list[tuple[UUID, str, str, str]] = field(default_factory=list)
    arrived: dict[UUID, tuple[BatchHeader, int, int]] = field(default_factory=dict)
    events: list[Outgoing] = field(default_factory=list)


def _of_cash(handle: Callable[["Handlers", Tx, Sequence[Event[Any]]], None]) -> Callable[..., None]:
    """Of goods nothing is to be paid: funds does not know their envelopes."""

    @wraps(handle)
    def of_cash(self: "Handlers", tx: Tx, events: Sequence[Event[Any]]) -> None:
        if cash := [event for event in events if event.data.header.benefit_type in CASH]:
            handle(self, tx, cash)

    return of_cash


class Handlers:
    def __init__(
        self, settings: Settings, banks: Mapping[str, Bank], sealer: Sealer, outbox: Outbox, tokens: frozenset[str]
    ) -> None:
        self._settings = settings
        self._banks = banks
        self._sealer = sealer
        self._outbox = outbox
        self._tokens = tokens  # of the sponsors' accounts

    # --- envelopes ----------------------------------------------------------------------------------------------------

    @_of_cash
    def on_accepted(self, tx: Tx, events: Sequence[Event[ingestion.EnvelopeAccepted]]) -> None:
        _lock(tx, events)
        store.ensure_envelopes(tx, [event.data.header for event in events])

    @_of_cash
    def on_completed(self, tx: Tx, events: Sequence[Event[ingestion.EnvelopeCompleted]]) -> None:
        _lock(tx, events)
        store.ensure_envelopes(tx, [event.data.header for event in events])
        store.complete_envelopes(tx, [(e.data.header, e.data.batches, e.data.count, e.data.total_minor) for e in events])
        _make_due(tx, [event.data.header.envelope_id for event in events], _cause(events[-1]))

    @_of_cash
    def on_envelope_cancelling(self, tx: Tx, events: Sequence[Event[ingestion.EnvelopeCancelling]]) -> None:
        _lock(tx, events)
        store.ensure_envelopes(tx, [event.data.header for event in events])
        for event in events:  # rare, and a person is behind each
            store.ask_cancellation(tx, event.data.header.envelope_id, event.data.request_id, event.data.batches, ())
        _make_due(tx, [event.data.header.envelope_id for event in events], _cause(events[-1]))

    @_of_cash
    def on_disbursements_cancelling(self, tx: Tx, events: Sequence[Event[ingestion.DisbursementsCancelling]]) -> None:
        _lock(tx, events)
        store.ensure_envelopes(tx, [event.data.header for event in events])
        for event in events:
            ids = [(item.disbursement_id, item.batch_id) for item in event.data.items]
            store.ask_cancellation(tx, event.data.header.envelope_id, event.data.request_id, None, ids)
        _make_due(tx, [event.data.header.envelope_id for event in events], _cause(events[-1]))

    @_of_cash
    def on_rescheduling(self, tx: Tx, events: Sequence[Event[ingestion.EnvelopeRescheduling]]) -> None:
        _lock(tx, events)
        store.ensure_envelopes(tx, [event.data.header for event in events])
        store.ask_reschedules(tx, [event.data for event in events])
        _make_due(tx, [event.data.header.envelope_id for event in events], _cause(events[-1]))

    def on_tick(self, tx: Tx, events: Sequence[Event[scheduler.Tick]]) -> None:
        """Envelopes whose day had come as of the tick, those that were short, and those in which something is held or outstanding
        for too long. A tick speaks for its `due_at`, however late it comes, and for no later moment than it is by the database's
        own clock: one for the future cannot make anybody be paid early. The decision reads that clock once more."""
        due = [event for event in events if event.data.job == FUNDS_DUE_JOB]
        if not due:
            return
        come = "(%(future)s OR schedule_date <= (least(%(due_at)s, clock_timestamp()) AT TIME ZONE time_zone)::date)"
        when = {"future": self._settings.pay_future_schedules, "due_at": max(event.data.due_at for event in due)}
        tx.run(f"UPDATE envelopes SET funds = 'WAITING' WHERE funds = 'SHORT' AND {come}", **when)
        tx.run(
            f"""INSERT INTO due (job, subject, lock_key, cause_id, correlation_id, traceparent)
                SELECT %(job)s, envelope_id, lock_key, %(cause)s, envelope_id, %(trace)s FROM envelopes
                WHERE funds = 'WAITING' AND completed_minor IS NOT NULL AND settled_at IS NULL AND cancelled_at IS NULL
                  AND {come}""",
            **when,
            job=decisions.ADVANCE,
            cause=due[-1].id,
            trace=due[-1].traceparent,
        )
        held_days, statement_days = self._settings.held_ttl_days, self._settings.statement_days
        _make_due(tx, store.overdue(tx, held_days, statement_days), Cause(due[-1].id, None, due[-1].traceparent))
        tx.wakes.add(jobs.WAKE)

    # --- batches ------------------------------------------------------------------------------------------------------

    def on_addresses_resolved(self, tx: Tx, events: Sequence[Event[resolution.BatchAddressesResolved]]) -> None:
        """People who are paid themselves."""
        _lock(tx, events)
        found = [(_cause(event), event.data) for event in events]
        self._arrive(
            tx,
            [_Arrival(cause, data.header, data.part, data.items, data.unresolved, data.sealed) for cause, data in found],
            grouped=False,
        )

    @_of_cash
    def on_allocated(self, tx: Tx, events: Sequence[Event[allocation.BatchAllocated]]) -> None:
        """People whose agency is paid."""
        arrivals = []
        for event in events:
            data = event.data
            items, held = agencies.payable(data, self._sealer)
            arrivals.append(_Arrival(_cause(event), data.header, data.part, items, held, data.places, data.zones))
        _lock(tx, events)
        self._arrive(tx, arrivals, grouped=True)

    def _arrive(self, tx: Tx, arrivals: Sequence[_Arrival], *, grouped: bool) -> None:
        """A batch's people arrive: payable ones become an instruction, the others are held, cancelled ones stay cancelled."""
        store.ensure_envelopes(tx, [arrival.header for arrival in arrivals])
        new = store.take_parts(tx, [(arrival.header.batch_id, arrival.part) for arrival in arrivals])
        unique = {(arrival.header.batch_id, arrival.part): arrival for arrival in arrivals}
        fresh = [arrival for key, arrival in unique.items() if key in new]
        if not fresh:
            return
        context = store.intake_context(tx, list({arrival.header.envelope_id for arrival in fresh}))
        dead = self._tombstoned(tx, fresh, context)
        # A batch which comes in parts, perhaps out of order: who is in it already?
        seen = store.seen_before(tx, list({arrival.header.batch_id for arrival in fresh})) if self._in_parts(tx, fresh) else {}
        intake = _Intake(grouped)
        for arrival in fresh:
            self._sort(arrival, context[arrival.header.envelope_id], dead, seen, intake)
        self._write(tx, intake, context)
        if grouped:
            agencies.add_zones(tx, {(arrival.header.batch_id, arrival.part): arrival.zones for arrival in fresh})
        _keep_late_addresses(tx, fresh, intake)
        for arrival in fresh:
            envelope = context[arrival.header.envelope_id]
            if envelope.cancelling or intake.cancelled:
                _make_due(tx, [arrival.header.envelope_id], arrival.cause)
        # Whoever is held, or is not any more, changes the position of an envelope under way.
        moved = {row[0] for rows in (intake.held, intake.paying, intake.unblocked) for row in rows}
        if under_way := [envelope_id for envelope_id in moved if context[envelope_id].funds == "BLOCKED"]:
            _make_due(tx, under_way, fresh[-1].cause, every_seconds=self._settings.position_seconds)

    def _tombstoned(self, tx: Tx, arrivals: Sequence[_Arrival], context: Any) -> dict[UUID, set[str]]:
        marked = [arrival for arrival in arrivals if context[arrival.header.envelope_id].has_tombstones]
        if not marked:
            return {}
        ids = [item.disbursement_id for arrival in marked for item in (*arrival.items, *arrival.unresolved)]
        return store.tombstoned(tx, list({arrival.header.envelope_id for arrival in marked}), ids)

    @staticmethod
    def _in_parts(tx: Tx, arrivals: Sequence[_Arrival]) -> bool:
        if any(arrival.part > 1 for arrival in arrivals):
            return True
        rows = tx.rows(
            "SELECT 1 FROM batches WHERE batch_id = ANY(%(ids)s::uuid[]) LIMIT 1",
            ids=[arrival.header.batch_id for arrival in arrivals],
        )
        return bool(rows)

    def _sort(
        self,
        arrival: _Arrival,
        envelope: Any,
        dead: dict[UUID, set[str]],
        seen: dict[UUID, dict[str, str]],
        intake: _Intake,
    ) -> None:
        header, sealed = arrival.header, arrival.sealed
        envelope_id, batch_id = header.envelope_id, header.batch_id
        in_block = envelope.block is not None
        tombstones = dead.get(envelope_id, set())
        before = seen.setdefault(batch_id, {})
        simple = not (before or tombstones or envelope.cancelling)  # as nearly always: whoever is resolved can be paid
        payable: list[Any] = []
        cancelled: list[Any] = []
        held: list[AmountWithReason] = []
        new: list[Any] = []  # seen for the first time
        for item in arrival.unresolved if simple else (*arrival.items, *arrival.unresolved):
            state = before.get(item.disbursement_id)
            resolved = not isinstance(item, Unresolved)
            if state is None:
                new.append(item)
                if envelope.cancelling or item.disbursement_id in tombstones:
                    cancelled.append(item)
                elif not isinstance(item, Unresolved):
                    payable.append(item)
                else:
                    row = (envelope_id, batch_id, item.disbursement_id, item.beneficiary_id, item.amount_minor)
                    intake.held.append((*row, item.reason, item.message))
                    held.append(AmountWithReason(item.disbursement_id, item.amount_minor, item.reason, item.message))
            elif state == "HELD" and resolved:
                payable.append(item)
                intake.paying.append((envelope_id, item.disbursement_id))
            elif state == "HELD" and isinstance(item, Unresolved):
                intake.still.append((envelope_id, item.disbursement_id, item.reason, item.message))
            elif state in ("RELEASING", "RELEASED") and resolved:
                intake.unblocked.append((envelope_id, item.disbursement_id))
        people = arrival.items if simple else type(arrival.items).of(payable)
        # The next part of the same batch may be in the same run.
        before |= {i.disbursement_id: "HELD" for i in held}
        before |= {i.disbursement_id: "CANCELLED" for i in cancelled}
        before |= dict.fromkeys(people.disbursement_id, "PAYMENT")
        intake.cancelled += [(envelope_id, i.disbursement_id, batch_id, i.amount_minor, in_block) for i in cancelled]
        header_before, count, total_minor = intake.arrived.get(batch_id, (header, 0, 0))
        amounts = [item.amount_minor for item in new] + (people.amount_minor if simple else [])
        intake.arrived[batch_id] = (header_before, count + len(amounts), total_minor + sum(amounts))
        if people:
            intake.instructions.append(
                (envelope_id, batch_id, arrival.part, sealed.key_id, sealed.data, len(people), sum(people.amount_minor))
            )
            intake.items.append(people)
        if held:
            body = funds.PaymentsHeld(header=header, **chunk(AmountsWithReason.of(held)))
            intake.events.append(outgoing(body, batch_id, arrival.cause, batch_id, arrival.part))
        if cancelled:
            gone = Amounts.of(Amount(i.disbursement_id, i.amount_minor) for i in cancelled)
            body_cancelled = funds.PaymentsCancelled(header=header, **chunk(gone))
            intake.events.append(outgoing(body_cancelled, batch_id, arrival.cause, batch_id, "part", arrival.part))

    def _write(self, tx: Tx, intake: _Intake, context: dict[UUID, Any]) -> None:
        store.add_batches(tx, intake.arrived)
        if intake.instructions:
            numbers = store.add_instructions(tx, self._settings.incarnation, intake.instructions, grouped=intake.grouped)
            people: dict[int, Any] = dict(zip(numbers, intake.items, strict=True))
            (agencies.add_shares if intake.grouped else store.add_payments)(tx, people)
            ready = [
                (str(number), row[0])
                for number, row in zip(numbers, intake.instructions, strict=True)
                if context[row[0]].funds == "BLOCKED"
            ]
            if ready:
                workqueue.enqueue(
                    tx,
                    "dispatch",
                    [subject for subject, _ in ready],
                    [context[envelope_id].lock_key for _, envelope_id in ready],
                    [Cause(f"instruction/{subject}", str(envelope_id)) for subject, envelope_id in ready],
                )
        store.add_held(tx, intake.held)
        store.add_cancelled(tx, intake.cancelled)
        if intake.paying:
            store.pay_held(tx, intake.paying)
        if intake.unblocked:
            store.hold_unblocked(tx, intake.unblocked)
        if intake.still:
            store.hold_still(tx, intake.still)
        self._outbox.append(tx, intake.events)

    # --- statements ---------------------------------------------------------------------------------------------------

    def on_statement_opened(self, tx: Tx, events: Sequence[Event[ingestion.StatementOpened]]) -> None:
        rows = []
        for data in (event.data for event in events):
            known = data.account_token in self._tokens
            rows.append(
                (data.statement_id, data.account_token, data.number, data.sequence, data.currency)
                + (data.opening_minor, data.closing_minor, data.lines, data.chunks, known)
            )
        store.open_statements(tx, rows)
        strange = [event.data for event in events if event.data.account_token not in self._tokens]
        store.add_exceptions(
            tx,
            [(d.statement_id, 0, "UNKNOWN_ACCOUNT", "", None, None, None, d.currency, "no sponsor has it") for d in strange],
        )
        _make_statements_due(tx, events)

    def on_statement_lines(self, tx: Tx, events: Sequence[Event[ingestion.StatementLines]]) -> None:
        """Any debit with our reference confirms its payment, whatever the payment's state was."""
        store.ensure_statements(
            tx, [(e.data.statement_id, e.data.account_token, e.data.account_token in self._tokens) for e in events]
        )
        new = store.new_chunks(tx, [(event.data.statement_id, event.data.chunk) for event in events])
        unique = {(e.data.statement_id, e.data.chunk): e for e in events}
        fresh = [event for key, event in unique.items() if key in new]
        for event in fresh:  # a chunk is up to 1,000 lines: a set of its own
            self._reconcile(tx, event)
        if fresh:
            _make_statements_due(tx, fresh)

    def _reconcile(self, tx: Tx, event: Event[ingestion.StatementLines]) -> None:
        data = event.data
        lines, incarnations, strange = _decoded(data)
        named = sorted({line.instruction for line in lines})
        tx.lock_shared(store.lock_keys_of(tx, named))
        instructions = store.instructions_for_update(tx, named)
        # After a restore the same number may stand for something else: did this database issue the reference?
        issued = {(number, row.incarnation) for number, row in instructions.items()}
        found = list(zip(lines, incarnations, strict=True))
        mine = [line for line, incarnation in found if (line.instruction, incarnation) in issued]
        strange += [line for line, incarnation in found if (line.instruction, incarnation) not in issued]
        early = store.with_early_reversals(tx, named)
        payments, groups = _known(tx, mine, instructions, early)
        # Sent anew, and yet the first one was made: what is not on its way yet is taken back, then the first one counts.
        lists = {n: domain.PaidFrom(row.currency, row.live_block is not None) for n, row in instructions.items()}
        anew = [
            key
            for key in _debited_keys(mine, payments)
            if payments[key].held_state == "PAYING"
            and not payments[key].cancelled
            and lists[key[0]] == domain.PaidFrom(data.currency, blocked=True)
        ]
        retired = _take_back(tx, anew, groups) if anew else set()
        result = domain.reconcile(mine, data.currency, payments, lists, retired)
        if doubted := [line for line, reason in result.exceptions if line.mark == "D" and reason != "UNKNOWN_REFERENCE"]:
            self._hold_disputed(tx, event, doubted, groups)
        result.exceptions += [(line, "UNKNOWN_REFERENCE") for line in strange]
        if groups:
            result.debits, result.reversals = domain.spread(result.debits, groups), domain.spread(result.reversals, groups)
            payments |= {(key[0], share.position): share.named for key, shares in groups.items() for share in shares}
        self._store_facts(tx, event, result, instructions, payments, early)
        self._store_exceptions(tx, data, result.exceptions)

    def _hold_disputed(
        self, tx: Tx, event: Event[ingestion.StatementLines], lines: Sequence[domain.Line], groups: _Groups
    ) -> None:
        """A debit that cannot count may have paid somebody all the same: what is to be paid to them anew and is not on its way yet
        is held until an operator has settled the exception."""
        found = store.successors(tx, [key for line in lines for key in _shares(groups, (line.instruction, line.position))])
        held = store.hold_disputed(tx, [(one.instruction, one.position) for one in found if one.held_id is None])
        decisions.say_disputed(tx, self._outbox, held, Cause(event.id, event.correlation_id, event.traceparent))

    @staticmethod
    def _store_exceptions(tx: Tx, data: ingestion.StatementLines, found: Sequence[tuple[domain.Line, str]]) -> None:
        references = dict(zip(data.lines.line, data.lines.customer_reference, strict=True)) if found else {}
        store.add_exceptions(
            tx,
            [
                (data.statement_id, x.statement_line, reason, references[x.statement_line], x.instruction or None)
                + (x.position if x.instruction else None, x.amount_minor, data.currency, f"{x.mark} line")
                for x, reason in found
            ]
            + [
                (data.statement_id, bad.line, "UNPARSABLE_LINE", "", None, None, None, data.currency, bad.reason[:500])
                for bad in data.unparsable
            ],
        )

    def _store_facts(
        self,
        tx: Tx,
        event: Event[ingestion.StatementLines],
        result: domain.Reconciliation,
        instructions: dict[int, Any],
        payments: Mapping[tuple[int, int], domain.Named],
        early: set[int],
    ) -> None:
        data = event.data
        debits = [(line.instruction, line.position) for line in result.debits]
        reversals = [(line.instruction, line.position) for line in result.reversals]
        refused = [key for key in debits if payments[key].held_state is not None]
        if refused:
            store.end_refusals(tx, refused)
        store.add_facts(tx, data.statement_id, result.debits, result.reversals)
        reasons = self._reversal_reasons(data, result.reversals, payments) if result.reversals else {}
        if reasons:
            store.add_reversal_reasons(tx, reasons)
        overtaken = store.end_early_reversals(tx, debits) if early else set()
        now_debited = set(debits)
        counting = [key for key in reversals if key in now_debited or payments[key].debit is not None]  # both facts are there
        waiting = [key for key in reversals if key not in set(counting)]
        if waiting:
            store.keep_early_reversals(tx, waiting)
        reversed_now = sorted({*counting, *overtaken})
        if overtaken:  # why was said when the reversal came
            reasons |= store.reversal_reasons(tx, overtaken)
        per: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0, 0])  # debits, their sum, reversals, their sum
        for line in result.debits:  # of the payment's amount, or it would be an exception
            counted = per[line.instruction]
            counted[0] += 1
            counted[1] += line.amount_minor
        for key in reversed_now:
            per[key[0]][2] += 1
            per[key[0]][3] += payments[key].amount_minor
        store.count_facts(tx, [(n, sums[0], sums[1], sums[2], sums[3]) for n, sums in sorted(per.items())])
        sums = [0, 0]
        for counts in per.values():
            sums[0] += counts[1]
            sums[1] += counts[3]
        balance = sum(
            amount if mark in ("C", "RD") else -amount
            for mark, amount in zip(data.lines.mark, data.lines.amount_minor, strict=True)
        )
        row = (data.statement_id, data.chunk, len(data.lines) + len(data.unparsable), balance)
        store.add_chunks(tx, [(*row, len(debits), sums[0], len(reversed_now), sums[1])])
        cause = Cause(event.id, event.correlation_id, event.traceparent)
        place = (data.statement_id, data.chunk)
        events = _payments(
            funds.PaymentsConfirmed, debits, instructions, payments, cause, place, statement_id=data.statement_id
        )
        for _, keys in groupby(reversed_now, key=itemgetter(0)):
            of_list = list(keys)
            why = [reasons.get(key, "") for key in of_list]
            events += _payments(
                funds.PaymentsReversed,
                of_list,
                instructions,
                payments,
                cause,
                place,
                statement_id=data.statement_id,
                reasons=why if any(why) else [],
            )
        self._outbox.append(tx, events)
        self._prove_dispatch(tx, per, instructions, cause)
        for envelope_id, key in sorted({(i.envelope_id, i.lock_key) for n, i in instructions.items() if n in per}):
            because = Cause(event.id, str(envelope_id), event.traceparent)
            jobs.make_due(tx, decisions.ADVANCE, [str(envelope_id)], [key], because, every_seconds=SETTLE_SECONDS)

    def _reversal_reasons(
        self, data: ingestion.StatementLines, reversals: Sequence[domain.Line], payments: Mapping[tuple[int, int], domain.Named]
    ) -> dict[tuple[int, int], str]:
        """Payment -> why it came back, where the bank says so. Nobody opens the seal of a chunk without reversals."""
        try:
            told = self._sealer.open(data.sealed, "StatementLines", data.statement_id, data.chunk)
        except Malformed as error:  # what the lines prove doesn't wait for it
            _log.warning("reasons of reversals can't be read", statement_id=str(data.statement_id), code=error.code)
            return {}
        narratives = dict(zip(told.get("line", ()), told.get("narratives", ()), strict=True))
        found = {}
        for line in reversals:
            key = (line.instruction, line.position)
            if reason := domain.reversal_reason(narratives.get(line.statement_line, ()), payments[key].disbursement_id):
                found[key] = reason
        return found

    def _prove_dispatch(self, tx: Tx, per: dict[int, list[int]], instructions: dict[int, Any], cause: Cause) -> None:
        """A confirmed payment of an atomic list proves the whole list; of another, only when nothing of it is left open.
        Voids the lease: a later settle or retry does nothing."""
        proven = []
        doubtful = []
        for number, counts in per.items():
            row = instructions[number]
            live = row.count - row.cancelled_count - row.refused_count
            bank = self._banks.get(row.bank or "")
            atomic = bank is not None and bank.capabilities.atomic_list
            if not counts[0] or row.state == "DISPATCHED":
                continue
            if atomic and row.state == "REFUSED":
                self._take_back_refusal(tx, number)
            if atomic or (row.state != "REFUSED" and row.debited_count + counts[0] >= live):
                proven.append(number)
            elif row.state == "WAITING":  # we believed that nothing was sent, and were wrong
                doubtful.append(number)
        if doubtful:
            store.set_instructions(tx, doubtful, "UNKNOWN", ("WAITING",))
            workqueue.finish(tx, "dispatch", [str(number) for number in doubtful], "UNKNOWN", "DEBITED_UNSENT")
        if not proven:
            return
        moved = store.set_instructions(tx, proven, "DISPATCHED", ("WAITING", "SENDING", "UNKNOWN", "REFUSED"))
        workqueue.finish(tx, "dispatch", [str(number) for number in proven], "DONE", "PROVEN_BY_STATEMENT")
        decisions.say_dispatched(tx, self._outbox, sorted(moved), cause)

    @staticmethod
    def _take_back_refusal(tx: Tx, number: int) -> None:
        """One member of an atomic list was paid, so all were: nobody of it is held, or sent anew if it is not too late."""
        refused = store.refused_of(tx, number)
        anew = [(row.instruction, row.position) for row in refused if row.state == "PAYING"]
        retired = store.take_back(tx, store.successors(tx, anew)) if anew else set()
        store.end_refusals(tx, [(r.instruction, r.position) for r in refused if r.state == "HELD"] + sorted(retired))

    # --- commands -----------------------------------------------------------------------------------------------------

    def release_held(self, tx: Tx, event: Event[operator.ReleaseRequested]) -> int:
        """Held money goes back to the sponsor: it moves to `releasing` before the call."""
        envelope_id = event.data.envelope_id
        tx.lock_exclusive([lock_key("funds", envelope_id)])
        held = tx.rows("SELECT count(*) AS n FROM held WHERE envelope_id = %(id)s AND state = 'HELD'", id=envelope_id)[0].n
        _expect(event, held)
        return decisions.release_held(tx, self._banks, envelope_id, "OPERATOR", _because(event, envelope_id))

    def retry_held(self, tx: Tx, event: Event[operator.RetryHeld]) -> int:
        """Those whom the bank has definitely refused are paid anew, in instructions of their own; nobody whom an open exception names."""
        data = event.data
        tx.lock_exclusive([lock_key("funds", data.envelope_id)])
        rows = tx.rows(
            """SELECT held_id FROM retriable WHERE envelope_id = %(id)s
                 AND (cardinality(%(ids)s::text[]) = 0 OR disbursement_id = ANY(%(ids)s::text[]))""",
            id=data.envelope_id,
            ids=data.disbursement_ids,
        )
        _expect(event, len(rows))
        if rows:
            held_ids = [row.held_id for row in rows]
            repay.pay_refused(tx, self._settings, data.envelope_id, held_ids, _because(event, data.envelope_id))
            _make_due(tx, [data.envelope_id], _because(event, data.envelope_id))  # the position has changed
        return len(rows)

    def settle_unknown(self, tx: Tx, event: Event[operator.SettleUnknown]) -> int:
        return decisions.settle_unknown(tx, self._settings, self._outbox, event)


def _decoded(data: ingestion.StatementLines) -> tuple[list[domain.Line], list[int], list[domain.Line]]:
    """Debits and reversals with a reference of ours, the incarnations of these, and those without; credits are only counted."""
    decode, lines = domain.decode_reference, data.lines
    references = zip(lines.fifth_narrative, lines.customer_reference, strict=True)
    decoded = [decode(fifth) or decode(customer) or (-1, 0, 0) for fifth, customer in references]
    incarnations, instructions, positions = zip(*decoded, strict=True) if decoded else ((), (), ())
    columns = (lines.line, lines.mark, lines.amount_minor, instructions, positions, lines.bank_reference)
    found = list(map(domain.Line._make, zip(*columns, strict=True)))
    if set(lines.mark) <= {"D", "RD"} and all(instructions):  # as nearly always
        return found, list(incarnations), []
    told = [(line, one) for line, one in zip(found, incarnations, strict=True) if line.mark in ("D", "RD")]
    ours = [(line, one) for line, one in told if line.instruction]
    return [line for line, _ in ours], [one for _, one in ours], [line for line, _ in told if not line.instruction]


def _known(
    tx: Tx, lines: Sequence[domain.Line], instructions: dict[int, Any], early: set[int]
) -> tuple[dict[tuple[int, int], domain.Named], _Groups]:
    """What lines name: payments, and of agency cash the groups of shares that are one payment."""
    grouped = {number for number, row in instructions.items() if row.grouped}
    if not grouped:
        return store.payments_named(tx, lines, instructions, early), {}
    groups = agencies.groups_named(tx, [line for line in lines if line.instruction in grouped])
    alone = {number: row for number, row in instructions.items() if number not in grouped}
    payments = store.payments_named(tx, [line for line in lines if line.instruction in alone], alone, early)
    return payments | {key: domain.as_one(shares) for key, shares in groups.items()}, groups


def _shares(groups: _Groups, key: tuple[int, int]) -> list[tuple[int, int]]:
    """A payment, or the shares of one."""
    return [(key[0], share.position) for share in groups[key]] if key in groups else [key]


def _take_back(tx: Tx, keys: Sequence[tuple[int, int]], groups: _Groups) -> set[tuple[int, int]]:
    """Of payments which were sent anew: those that may count, because nothing of what was made of them is on its way. Of a payment
    to an agency that means all of its shares."""
    paying = {key: [key] for key in keys}
    for key in groups.keys() & paying.keys():
        sent = domain.sent_of(groups[key])
        paying[key] = [(key[0], share.position) for share in sent if share.named.held_state == "PAYING"]
    found = store.successors(tx, [one for ones in paying.values() for one in ones])
    possible = {one.old for one in found}
    whole = {key for key, ones in paying.items() if possible.issuperset(ones)}
    chosen = {one for key in whole for one in paying[key]}
    store.take_back(tx, [one for one in found if one.old in chosen])
    return whole


def _debited_keys(lines: Sequence[domain.Line], payments: Mapping[tuple[int, int], domain.Named]) -> list[tuple[int, int]]:
    """The payments which these lines debit for the first time, with the amount that was sent."""
    if not any(payment.held_state for payment in payments.values()):
        return []  # only what the bank has refused can be sent anew
    keys = {(line.instruction, line.position): line for line in lines if line.mark == "D"}
    return [
        k for k, x in keys.items() if k in payments and not payments[k].debit and payments[k].amount_minor == x.amount_minor
    ]


def _payments(
    model: type[funds.Payments],
    keys: Sequence[tuple[int, int]],
    instructions: dict[int, Any],
    payments: Mapping[tuple[int, int], domain.Named],
    cause: Cause,
    place: tuple[object, ...],
    **fields: Any,
) -> list[Outgoing]:
    """One event for each instruction; its id derives from the place in the statement, which comes once."""
    grouped: dict[int, list[domain.Named]] = defaultdict(list)
    for key in keys:
        grouped[key[0]].append(payments[key])
    events = []
    for number, paid in sorted(grouped.items()):
        header = BatchHeader.model_validate_json(instructions[number].header)
        items = Amounts(disbursement_id=[one.disbursement_id for one in paid], amount_minor=[one.amount_minor for one in paid])
        body = model(header=header, instruction=number, **chunk(items), **fields)
        because = Cause(cause.id, str(header.envelope_id), cause.traceparent)
        events.append(outgoing(body, header.batch_id, because, *place, number))
    return events


def _keep_late_addresses(tx: Tx, arrivals: Sequence[_Arrival], intake: _Intake) -> None:
    """Whoever is resolved in a later part and not paid by it: paid already, or their money was given back."""
    later = [arrival for arrival in arrivals if arrival.part > 1]
    if not later:
        return
    payable = {
        (row[1], row[2], item.disbursement_id)
        for row, items in zip(intake.instructions, intake.items, strict=True)
        for item in items
    }
    rows = []
    for arrival in later:
        place, sealed = (arrival.header.batch_id, arrival.part), arrival.sealed
        people = [
            (one.disbursement_id, one.zone if isinstance(one, ZonedItem) else None)
            for one in arrival.items
            if (*place, one.disbursement_id) not in payable
        ]
        if people:
            rows.append((arrival.header.envelope_id, *place, sealed.key_id, sealed.data, people))
    if rows:
        store.keep_late_addresses(tx, rows, grouped=intake.grouped)


def _lock(tx: Tx, events: Sequence[Event[Any]]) -> None:
    tx.lock_shared(lock_key("funds", event.data.header.envelope_id) for event in events)


def _cause(event: Event[Any]) -> Cause:
    return _because(event, event.data.header.envelope_id)


def _because(event: Event[Any], envelope_id: UUID) -> Cause:
    return Cause(event.id, str(envelope_id), event.traceparent)


def _make_due(tx: Tx, envelope_ids: Sequence[UUID], cause: Cause, every_seconds: float = 0) -> None:
    ids = sorted(set(envelope_ids))
    jobs.make_due(
        tx, decisions.ADVANCE, [str(i) for i in ids], [lock_key("funds", i) for i in ids], cause, every_seconds=every_seconds
    )


def _make_statements_due(tx: Tx, events: Sequence[Event[Any]]) -> None:
    ids = sorted({event.data.statement_id for event in events})
    last = events[-1]
    cause = Cause(last.id, last.correlation_id, last.traceparent)
    jobs.make_due(tx, decisions.STATEMENT, [str(i) for i in ids], [lock_key("funds", i) for i in ids], cause)


def _expect(event: Event[Any], found: int) -> None:
    """What the operator saw is not so any more: do nothing rather than something else."""
    if event.data.expected is not None and event.data.expected != found:
        raise CommandRefused(f"the operator saw {event.data.expected}, there are {found}")
