"""The four outside calls by which funds pays. `take` decides under the shared lock whether and how the bank may be called; `settle` stores
what the bank said. What may follow a lost answer is what the bank's adapter declares, never what we hope.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any
from uuid import UUID

import httpx

from libs.common import jobs
from libs.common.contracts import funds
from libs.common.contracts.base import Amount, Amounts, BatchHeader, EnvelopeHeader, Sealed, chunk
from libs.common.db import Tx, lock_key
from libs.common.envelope import Cause
from libs.common.errors import Malformed
from libs.common.outbox import Outbox, outgoing
from libs.common.seal import Sealer, pick
from libs.common.swift import swift, swift_lines
from libs.common.workqueue import Answer, Claim, Done, Later, MaybeDone, NotSent, Settled, Unknown, Void, not_now
from services.funds import agencies, decisions, domain, repay, store
from services.funds.config import Settings
from services.funds.ports import Accepted, Account, Bank, Payment, Refused, Repeat, Succeeded

_HOLD_SECONDS = 0.2  # until a decision that is already asked for has been taken
_LETTER_SECONDS = 5.0  # until somebody has dealt with a dead letter
_CONFIGURATION_SECONDS = 30.0  # until somebody has mended the configuration
_NOBODY = Void("CANCELLED", "nothing of it is to be paid")
_LOST = Unknown("ANSWER_LOST", "an earlier attempt may have been acted upon, and this bank cannot be asked")


@dataclass(frozen=True, slots=True)
class _Request:
    bank: Bank
    account: Account
    counterpart: str  # the bank's code: what one bank asks for does not stop calls to another
    amount_minor: int = 0
    block_reference: str = ""
    payment_date: str = ""
    payments: Sequence[Any] = ()
    sealed: Sealed | None = None
    header: BatchHeader | None = None
    part: int = 0
    incarnation: int = 0
    heads: Mapping[int, agencies.Head] | None = None  # of agency cash: position -> the payment it is part of

    def positions(self, named: int) -> list[int]:
        """What a reference stands for: a payment, or the shares of one."""
        return [named] if self.heads is None else [at for at, head in self.heads.items() if head.head == named]


class _Call:
    """What the four have in common: settings, banks, outbox."""

    read = False
    waits_out_outages = False

    def __init__(self, settings: Settings, banks: Mapping[str, Bank], sealer: Sealer, outbox: Outbox) -> None:
        self._settings = settings
        self._banks = banks
        self._sealer = sealer
        self._outbox = outbox

    def _advance(self, tx: Tx, claim: Claim, envelope_id: UUID, cause: Cause) -> None:
        jobs.make_due(tx, decisions.ADVANCE, [str(envelope_id)], [claim.lock_key], cause)

    def _payer(self, claim: Claim, block: Any) -> tuple[Bank, Account, str] | Later:
        """The bank, the account a block was made on, and the bank's code. Whoever changes the configuration meanwhile is waited
        for, as is a bank that asks for time: nothing is paid from another account."""
        programme, _, benefit_code = block.sponsor.partition("/")
        sponsor = self._settings.sponsor(programme, benefit_code)
        bank = self._banks.get(block.bank)
        if bank is None:
            return Later(_CONFIGURATION_SECONDS, "NO_BANK")
        if sponsor is None:
            return Later(_CONFIGURATION_SECONDS, "NO_SPONSOR")
        if self._sealer.token(sponsor.account) != block.account_token:
            return Later(_CONFIGURATION_SECONDS, "SPONSOR_CHANGED")
        return not_now(claim, block.bank) or (bank, Account(sponsor.account, block.currency), block.bank)


class Check(_Call):
    """Does the sponsor's account cover the envelope? A read, repeated freely."""

    kind = "check"
    exclusive = True  # its settle decides on the block
    read = True  # at every bank: ports.Capabilities

    def take(self, tx: Tx, claims: Sequence[Claim]) -> Mapping[str, Any]:
        rows = tx.rows(
            """SELECT e.envelope_id, e.round, e.funds, e.cancelling, e.header, e.currency,
                      (e.completed_minor - m.cancelled_minor)::bigint AS amount
               FROM unnest(%(ids)s::uuid[]) AS asked (id) JOIN envelopes e ON e.envelope_id = asked.id
               CROSS JOIN LATERAL (SELECT * FROM money x WHERE x.envelope_id = asked.id OFFSET 0) AS m""",
            ids=sorted({_envelope(claim) for claim in claims}),
        )
        envelopes = {row.envelope_id: row for row in rows}
        decided: dict[str, Any] = {}
        for claim in claims:
            row = envelopes[_envelope(claim)]
            if block := _further_block(tx, claim):
                payer = self._payer(claim, block)
                decided[claim.subject] = payer if isinstance(payer, Later) else _Request(*payer, block.amount_minor)
                continue
            header = EnvelopeHeader.model_validate_json(row.header)
            sponsor = self._settings.sponsor(header.programme.id, header.benefit_code.id)
            if row.cancelling or row.funds != "CHECKING" or row.amount <= 0 or not claim.subject.endswith(f"/{row.round}"):
                decided[claim.subject] = Void("NOT_NEEDED", "the envelope is not waiting for this check")
            elif sponsor is None:
                decided[claim.subject] = None  # nobody to ask: answered without a call
            else:
                bank, account = self._banks[sponsor.bank], Account(sponsor.account, row.currency)
                decided[claim.subject] = not_now(claim, sponsor.bank) or _Request(bank, account, sponsor.bank, row.amount)
        return decided

    async def call(self, client: httpx.AsyncClient, claim: Claim, request: _Request | None) -> Answer:
        if request is None:
            return Done(Refused("NO_SPONSOR", "no sponsor is configured for this programme and benefit code, and no default"))
        return await request.bank.check(client, claim, request.account, request.amount_minor)

    def settle(self, tx: Tx, settled: Settled) -> None:
        envelope_id = _envelope(settled.claim)
        cause = Cause(settled.claim.cause.id, str(envelope_id), settled.claim.cause.traceparent)
        if not isinstance(settled.answer, Done):
            return  # nothing happened that anybody must hear of; the work row says what is wrong
        if block := _further_block(tx, settled.claim):
            self._settle_further(tx, settled.claim, block, settled.answer.value, cause)
            self._advance(tx, settled.claim, envelope_id, cause)
            return
        row = tx.one(
            """SELECT e.header, e.funds, e.round, (e.completed_minor - m.cancelled_minor)::bigint AS amount
               FROM envelopes e JOIN money m USING (envelope_id) WHERE e.envelope_id = %(id)s""",
            id=envelope_id,
        )
        if row.funds != "CHECKING" or not settled.claim.subject.endswith(f"/{row.round}"):
            return  # cancelled while the bank was asked: nobody needs the answer
        value = settled.answer.value
        if isinstance(value, Refused):
            which = f"check {settled.claim.subject}"
            decisions.say_short(tx, self._outbox, envelope_id, decisions.reason_code(value.code), value.message, cause, which)
            return
        tx.run("UPDATE envelopes SET funds = 'BLOCKING' WHERE envelope_id = %(id)s", id=envelope_id)
        if row.amount > 0:
            body = funds.FundsChecked(header=EnvelopeHeader.model_validate_json(row.header), amount_minor=row.amount)
            self._outbox.append(tx, [outgoing(body, envelope_id, cause, settled.claim.subject)])
        decisions.Decisions(self._settings, self._banks, self._sealer, self._outbox).advance(tx, str(envelope_id), cause)

    def _settle_further(self, tx: Tx, claim: Claim, block: Any, value: Any, cause: Cause) -> None:
        if isinstance(value, Refused):
            code = decisions.reason_code(value.code)
            decisions.refuse_block(tx, self._outbox, block.envelope_id, block.block, code, value.message, cause)
            return
        body = funds.FundsChecked(header=EnvelopeHeader.model_validate_json(block.header), amount_minor=block.amount_minor)
        self._outbox.append(tx, [outgoing(body, block.envelope_id, cause, claim.subject)])
        repay.checked(tx, block.envelope_id, block.block, cause)


class Block(_Call):
    """Reserve the money. While it is unknown whether it is reserved, nothing of the envelope is dispatched."""

    kind = "block"
    exclusive = True

    def take(self, tx: Tx, claims: Sequence[Claim]) -> Mapping[str, Any]:
        rows = tx.rows(
            """SELECT b.envelope_id || '/' || b.block AS subject, b.bank, b.sponsor, b.account_token, b.amount_minor, b.state,
                      e.currency
               FROM blocks b JOIN envelopes e USING (envelope_id) WHERE b.envelope_id = ANY(%(ids)s::uuid[])""",
            ids=[_envelope(claim) for claim in claims],
        )
        blocks = {row.subject: row for row in rows}
        decided: dict[str, Any] = {}
        for claim in claims:
            row = blocks[claim.subject]
            payer = self._payer(claim, row)
            if row.state not in ("PENDING", "SENDING"):
                decided[claim.subject] = Void("NOT_NEEDED", "the block is decided")
            elif isinstance(payer, Later):
                decided[claim.subject] = payer
            elif claim.ambiguous and payer[0].capabilities.block is Repeat.ONCE:
                decided[claim.subject] = _LOST
            else:
                decided[claim.subject] = _Request(*payer, row.amount_minor)
        _set_blocks(tx, [subject for subject, request in decided.items() if isinstance(request, _Request)], "SENDING")
        return decided

    async def call(self, client: httpx.AsyncClient, claim: Claim, request: _Request) -> Answer:
        answer = await request.bank.block(client, claim, request.account, request.amount_minor)
        return _by_capability(answer, request.bank.capabilities.block)

    def settle(self, tx: Tx, settled: Settled) -> None:
        claim, answer = settled.claim, settled.answer
        envelope_id, block = _envelope(claim), int(claim.subject.rpartition("/")[2])
        cause = Cause(claim.cause.id, str(envelope_id), claim.cause.traceparent)
        if isinstance(answer, Done) and isinstance(answer.value, Succeeded):
            decisions.end_block(tx, self._settings, self._outbox, envelope_id, block, answer.value.reference, cause)
        elif isinstance(answer, Done):
            code = decisions.reason_code(answer.value.code)
            decisions.refuse_block(tx, self._outbox, envelope_id, block, code, answer.value.message, cause)
        elif settled.state == "UNKNOWN":
            _set_blocks(tx, [claim.subject], "UNKNOWN")
            tx.run("UPDATE envelopes SET funds = 'BLOCK_UNKNOWN' WHERE envelope_id = %(id)s", id=envelope_id)
        elif isinstance(answer, NotSent) and not claim.ambiguous:
            _set_blocks(tx, [claim.subject], "PENDING")
        self._advance(tx, claim, envelope_id, cause)


class Dispatch(_Call):
    """Pay an instruction: up to 1,000 payments in one list, written before the first attempt and immutable after it."""

    kind = "dispatch"
    exclusive = False

    def take(self, tx: Tx, claims: Sequence[Claim]) -> Mapping[str, Any]:
        numbers = [int(claim.subject) for claim in claims]
        rows = tx.rows(
            f"""SELECT i.*, b.header, e.funds, e.cancelling, e.currency, k.bank, k.sponsor, k.account_token, k.bank_reference,
                      EXISTS (SELECT 1 FROM cancel_requests r WHERE r.envelope_id = i.envelope_id AND r.state = 'ASKED') AS asked,
                      {decisions._OPEN_LETTERS} AS letters, {store.look_is_due("i.envelope_id")} AS look_is_due
               FROM instructions i JOIN batches b USING (batch_id) JOIN envelopes e ON e.envelope_id = i.envelope_id
               LEFT JOIN blocks k ON k.envelope_id = i.envelope_id AND k.state = 'BLOCKED'
                    AND (k.block = i.block OR i.block IS NULL AND NOT k.further)
               WHERE i.instruction = ANY(%(ids)s::bigint[]) ORDER BY i.instruction FOR NO KEY UPDATE OF i""",
            ids=numbers,
        )
        found = {str(row.instruction): row for row in rows}
        decided: dict[str, Any] = {claim.subject: self._decide(claim, found[claim.subject]) for claim in claims}
        # Read after the rows are locked: a statement may be taking back what it has shown to be paid already.
        live = defaultdict(list)
        for payment in store.payments_of(tx, [int(s) for s, request in decided.items() if isinstance(request, _Request)]):
            live[str(payment.instruction)].append(payment)
        for subject, request in decided.items():
            if isinstance(request, _Request):
                decided[subject] = replace(request, payments=live[subject]) if live[subject] else _NOBODY
        if grouped := [row.instruction for row in rows if row.grouped and isinstance(decided[str(row.instruction)], _Request)]:
            for number, heads in agencies.heads_of(tx, grouped).items():
                decided[str(number)] = replace(decided[str(number)], heads=heads)
        dates = tx.rows(
            """UPDATE instructions i SET state = 'SENDING', block = coalesce(i.block, k.block),
                      payment_date = coalesce(i.payment_date, (clock_timestamp() AT TIME ZONE e.time_zone)::date)
               FROM envelopes e JOIN blocks k ON k.envelope_id = e.envelope_id AND k.state = 'BLOCKED'
               WHERE i.instruction = ANY(%(ids)s::bigint[]) AND e.envelope_id = i.envelope_id
                 AND (k.block = i.block OR i.block IS NULL AND NOT k.further)
                 AND i.state IN ('WAITING', 'SENDING') RETURNING i.instruction, i.payment_date""",
            ids=[int(subject) for subject, request in decided.items() if isinstance(request, _Request)],
        )
        for row in dates:  # the same at every attempt
            decided[str(row.instruction)] = replace(decided[str(row.instruction)], payment_date=str(row.payment_date))
        self._look_later(tx, claims, [found[str(row.instruction)] for row in dates])
        return decided

    def _look_later(self, tx: Tx, claims: Sequence[Claim], sent: Sequence[Any]) -> None:
        """What is sent changes its envelope's position, which is said when `advance` looks: asked for once in a while, not by each."""
        ids = sorted({row.envelope_id for row in sent if not row.look_is_due})
        if ids:
            keys = [lock_key("funds", envelope_id) for envelope_id in ids]
            cause = Cause(claims[-1].cause.id, None, claims[-1].cause.traceparent)
            jobs.make_due(
                tx, decisions.ADVANCE, [str(i) for i in ids], keys, cause, every_seconds=self._settings.position_seconds
            )

    def _decide(self, claim: Claim, row: Any) -> Any:
        if row.state not in ("WAITING", "SENDING"):
            return Void("NOT_NEEDED", f"the instruction is {row.state}")
        payer = self._payer(claim, row) if row.bank else Later(_HOLD_SECONDS, "NOT_BLOCKED")
        if isinstance(payer, Later):
            return payer
        bank, account, code = payer
        if claim.ambiguous and bank.capabilities.dispatch is Repeat.ONCE:
            return _LOST
        if not claim.ambiguous:  # what may have been sent already is finished whatever else was decided since
            if row.cancelling or row.asked:
                return Later(_HOLD_SECONDS, "CANCELLATION_PENDING")
            if row.letters:
                return Later(_LETTER_SECONDS, "DEAD_LETTER_OPEN")
        if row.funds != "BLOCKED":
            return Later(_HOLD_SECONDS, "NOT_BLOCKED")
        return _Request(
            bank,
            account,
            code,
            block_reference=row.bank_reference,
            sealed=Sealed(key_id=row.sealed_key, data=row.sealed),
            header=BatchHeader.model_validate_json(row.header),
            part=row.part,
            incarnation=row.incarnation,
        )

    async def call(self, client: httpx.AsyncClient, claim: Claim, request: _Request) -> Answer:
        try:
            payments = self._payments(int(claim.subject), request)
        except Malformed as error:  # a seal that does not open: somebody must bring the key
            return NotSent(error.code, error.message)
        except (KeyError, TypeError) as error:
            return NotSent("ADDRESS_MISSING", f"the sealed addresses are not what they should be ({type(error).__name__})")
        answer = await request.bank.dispatch(
            client, claim, request.account, request.block_reference, request.payment_date, payments
        )
        return _by_capability(answer, request.bank.capabilities.dispatch)

    def _payments(self, instruction: int, request: _Request) -> list[Payment]:
        header, sealed = request.header, request.sealed
        assert header is not None
        assert sealed is not None
        place = (header.envelope_id, header.batch_id, request.part)
        if request.heads is not None:
            heads = sorted({request.heads[share.position].head for share in request.payments})
            called = dict(zip(heads, domain.references(request.incarnation, instruction, heads), strict=True))
            places = self._sealer.open(sealed, agencies.SEALED_AS, *place)
            return agencies.bank_list(request.payments, request.heads, places, header, called)
        ids = [row.disbursement_id for row in request.payments]
        people = pick(self._sealer.open_people(sealed, "BatchAddressesResolved", *place), ids)
        nothing = [""] * len(ids)

        def known(field: str) -> list[str]:
            return [value or "" for value in people[field]] if field in people else nothing

        kinds = people["fa_type"]
        if None in kinds:  # somebody has no address here
            raise KeyError("fa_type")
        references = domain.references(request.incarnation, instruction, [row.position for row in request.payments])
        programme = swift(header.programme.mnemonic or header.programme.id)
        cycle = swift(header.cycle.mnemonic or header.cycle.id)
        narratives = zip(
            swift_lines([told or "." for told in known("narrative")]),
            repeat(programme),
            repeat(cycle),
            swift_lines([row.beneficiary_id for row in request.payments]),
            references,
            swift_lines(ids),
            strict=False,  # what repeats has no end
        )
        providers = list(zip(kinds, known("wallet_provider_name"), strict=True))
        columns = (
            references,
            [row.amount_minor for row in request.payments],
            swift_lines([name or "." for name in known("name")], 70),
            known("account_number"),
            kinds,
            known("bank_code"),
            known("branch_code"),
            known("mobile_number"),
            [provider if kind == "MOBILE_WALLET" else "" for kind, provider in providers],
            known("email_address"),
            [provider if kind == "EMAIL_WALLET" else "" for kind, provider in providers],
            narratives,
        )
        return list(map(Payment._make, zip(*columns, strict=True)))

    def settle(self, tx: Tx, settled: Settled) -> None:
        claim, answer = settled.claim, settled.answer
        number = int(claim.subject)
        row = tx.one(
            """SELECT i.envelope_id, i.incarnation, e.cancelling FROM instructions i JOIN envelopes e USING (envelope_id)
               WHERE i.instruction = %(n)s FOR NO KEY UPDATE OF i""",  # a statement may be booking its debits now
            n=number,
        )
        cause = Cause(claim.cause.id, str(row.envelope_id), claim.cause.traceparent)
        if isinstance(answer, Done) and isinstance(answer.value, Refused):
            decisions.refuse_instruction(tx, self._outbox, number, answer.value.code, answer.value.message, cause)
            self._advance(tx, claim, row.envelope_id, cause)
        elif isinstance(answer, Done):
            self._accepted(tx, number, settled.request, answer.value, cause)
            if row.cancelling or answer.value.refused:
                self._advance(tx, claim, row.envelope_id, cause)
        elif settled.state == "UNKNOWN":
            store.set_instructions(tx, [number], "UNKNOWN", ("WAITING", "SENDING"))
            self._say_unknown(tx, number, row.incarnation, answer.code, cause)
            self._advance(tx, claim, row.envelope_id, cause)
        elif isinstance(answer, NotSent) and not claim.ambiguous:
            store.set_instructions(tx, [number], "WAITING", ("SENDING",))
            self._advance(tx, claim, row.envelope_id, cause)

    def _accepted(self, tx: Tx, number: int, request: _Request, value: Accepted, cause: Cause) -> None:
        assert request.header is not None
        live = {payment.position: payment for payment in request.payments}  # as they were sent: nothing of it can have changed
        if value.refused:
            decoded = {domain.decode_reference(reference): (code, text) for reference, code, text in value.refused}
            refused = [
                (live.pop(position), code, text)
                for key, (code, text) in decoded.items()
                if key is not None and key[:2] == (request.incarnation, number)
                for position in request.positions(key[2])
                if position in live
            ]
            decisions.say_refused(tx, self._outbox, number, refused, cause)
            store.refuse_payments(
                tx, number, [(payment.position, decisions.reason_code(code), text) for payment, code, text in refused]
            )
        store.set_instructions(tx, [number], "DISPATCHED", ("SENDING",))
        if live:
            items = Amounts(
                disbursement_id=[payment.disbursement_id for payment in live.values()],
                amount_minor=[payment.amount_minor for payment in live.values()],
            )
            event = decisions.dispatched(request.header, request.incarnation, number, items, cause)
            self._outbox.append(tx, [event])

    def _say_unknown(self, tx: Tx, number: int, incarnation: int, code: str, cause: Cause) -> None:
        live = store.payments_of(tx, [number])
        row = tx.one(
            "SELECT b.header FROM instructions i JOIN batches b USING (batch_id) WHERE i.instruction = %(n)s", n=number
        )
        header = BatchHeader.model_validate_json(row.header)
        if live:
            items = Amounts.of(Amount(p.disbursement_id, p.amount_minor) for p in live)
            body = funds.PaymentsUnknown(header=header, instruction=number, reason=decisions.reason_code(code), **chunk(items))
            self._outbox.append(tx, [outgoing(body, header.batch_id, cause, incarnation, number)])


class Release(_Call):
    """Give money back to the sponsor. Only banks which offer it; the money is `releasing` before the call."""

    kind = "release"
    exclusive = True

    def take(self, tx: Tx, claims: Sequence[Claim]) -> Mapping[str, Any]:
        rows = tx.rows(
            """SELECT r.release_id, r.amount_minor, r.state, b.bank, b.sponsor, b.account_token, b.bank_reference, e.currency
               FROM releases r JOIN blocks b USING (envelope_id, block) JOIN envelopes e USING (envelope_id)
               WHERE r.release_id = ANY(%(ids)s::bigint[])""",
            ids=[int(claim.subject) for claim in claims],
        )
        decided: dict[str, Any] = {}
        for row in rows:
            claim = next(claim for claim in claims if int(claim.subject) == row.release_id)
            payer = self._payer(claim, row)
            if row.state not in ("PENDING", "SENDING"):
                decided[claim.subject] = Void("NOT_NEEDED", "the release is decided")
            elif isinstance(payer, Later):
                decided[claim.subject] = payer
            elif claim.ambiguous and payer[0].capabilities.release is Repeat.ONCE:
                decided[claim.subject] = _LOST
            else:
                decided[claim.subject] = _Request(*payer, row.amount_minor, row.bank_reference)
        tx.run(
            "UPDATE releases SET state = 'SENDING' WHERE release_id = ANY(%(ids)s::bigint[])",
            ids=[int(subject) for subject, request in decided.items() if isinstance(request, _Request)],
        )
        return decided

    async def call(self, client: httpx.AsyncClient, claim: Claim, request: _Request) -> Answer:
        answer = await request.bank.release(client, claim, request.account, request.block_reference, request.amount_minor)
        return _by_capability(answer, request.bank.capabilities.release)

    def settle(self, tx: Tx, settled: Settled) -> None:
        claim, answer = settled.claim, settled.answer
        release_id = int(claim.subject)
        envelope_id = tx.one("SELECT envelope_id FROM releases WHERE release_id = %(id)s", id=release_id).envelope_id
        cause = Cause(claim.cause.id, str(envelope_id), claim.cause.traceparent)
        if isinstance(answer, Done) and isinstance(answer.value, Succeeded):
            decisions.end_release(tx, self._outbox, release_id, answer.value.reference, cause)
        else:
            state = "REFUSED" if isinstance(answer, Done) else "UNKNOWN" if settled.state == "UNKNOWN" else None
            if isinstance(answer, NotSent) and not claim.ambiguous:
                state = "PENDING"
            if state:
                tx.run("UPDATE releases SET state = %(state)s WHERE release_id = %(id)s", state=state, id=release_id)
        self._advance(tx, claim, envelope_id, cause)


def _by_capability(answer: Answer, repeat: Repeat) -> Answer:
    """A lost answer is asked for again only at a bank which knows our key."""
    return replace(answer, repeatable=True) if isinstance(answer, MaybeDone) and repeat is Repeat.KEYED else answer


def _further_block(tx: Tx, claim: Claim) -> Any:
    """The further block that waits for this check; None: it is the envelope's own that does, or nobody any more."""
    rows = tx.rows(
        """SELECT b.*, e.header, e.currency FROM blocks b JOIN envelopes e USING (envelope_id)
           WHERE b.envelope_id = %(id)s AND b.round = %(round)s AND b.state = 'CHECKING'""",
        id=_envelope(claim),
        round=int(claim.subject.rpartition("/")[2]),
    )
    return rows[0] if rows else None


def _envelope(claim: Claim) -> UUID:
    return UUID(claim.subject.rpartition("/")[0])


def _set_blocks(tx: Tx, subjects: Sequence[str], state: str) -> None:
    tx.run(
        """UPDATE blocks SET state = %(state)s WHERE envelope_id || '/' || block = ANY(%(subjects)s::text[])
             AND envelope_id = ANY(%(ids)s::uuid[])""",
        state=state,
        subjects=list(subjects),
        ids=[UUID(subject.rpartition("/")[0]) for subject in subjects],
    )
