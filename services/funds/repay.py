"""Paying again, by command: who may be paid again, the further block for it, and what becomes of both.

A reversed payment's money is back on the sponsor's account, and so is what was released. It is reserved anew in a further,
numbered block of exactly the sum; only when the bank has blocked it do the disbursements become payments. Until then they stand
where they stood, so that both identities of the books hold at every commit. What the bank refused still lies in its block and
is paid from there.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from libs.common import workqueue
from libs.common.commands import CommandRefused
from libs.common.contracts import operator
from libs.common.contracts.base import EnvelopeHeader
from libs.common.db import Tx, lock_key
from libs.common.envelope import Cause
from libs.common.seal import Sealer
from services.funds import store
from services.funds.config import Settings


def repay(tx: Tx, settings: Settings, sealer: Sealer, command: operator.Repay, cause: Cause) -> int:
    """Pay disbursements again, all or none; the caller holds the envelope's exclusive lock. Raises CommandRefused, which names
    each disbursement that cannot be paid again with the reason."""
    envelope_id, ids = command.envelope_id, sorted(set(command.disbursement_ids))
    envelope = _envelope(tx, envelope_id)
    found = store.standing(tx, envelope_id, ids)
    if wrong := {row.id: reason for row in found if (reason := why_not(row))}:
        raise CommandRefused(f"cannot be paid again: {_by_reason(wrong)}")
    refused = [row for row in found if row.held_state == "HELD"]
    further = [row for row in found if row.held_state != "HELD"]
    if further:
        _ask_for_block(tx, settings, sealer, envelope, further, cause)
    if refused:
        pay_refused(tx, settings, envelope_id, [row.held_id for row in refused], cause)
    return len(found)


def pay_refused(tx: Tx, settings: Settings, envelope_id: UUID, held_ids: Sequence[int], cause: Cause) -> None:
    """What the bank has refused is paid anew, from the block where it is held."""
    numbers = store.pay_refused_anew(tx, settings.incarnation, held_ids)
    keys, causes = [lock_key("funds", envelope_id)] * len(numbers), [cause] * len(numbers)
    workqueue.enqueue(tx, "dispatch", [str(number) for number in numbers], keys, causes)


def why_not(row: Any) -> str:
    """Why a disbursement cannot be paid again; empty where it can. At most one payment of it is ever under way or made."""
    if row.cancelled:
        return "CANCELLED"
    if row.asked:
        return "ALREADY_ASKED"
    if row.live:
        return str(row.live)  # WAITING, IN_FLIGHT, UNKNOWN, OUTSTANDING, CONFIRMED
    if row.disputed:
        return "OPEN_EXCEPTION"  # the bank may have paid it, against what we believe
    if row.held_state == "HELD":
        return "" if row.refused else "NO_ADDRESS"
    if row.held_state == "RELEASED":
        return "" if row.late_part else "RELEASED"
    if row.held_state is None and row.reversed is not None:
        return ""
    return row.held_state or "NOT_KNOWN"


def _envelope(tx: Tx, envelope_id: UUID) -> Any:
    rows = tx.rows(
        "SELECT envelope_id, lock_key, header, funds, cancelling FROM envelopes WHERE envelope_id = %(id)s", id=envelope_id
    )
    if not rows:
        raise CommandRefused(f"there is no envelope {envelope_id}")
    if rows[0].cancelling:
        raise CommandRefused("the envelope is cancelled")
    if rows[0].funds != "BLOCKED":
        raise CommandRefused(f"the envelope's money is not reserved: {rows[0].funds}")
    return rows[0]


def _by_reason(wrong: dict[str, str]) -> str:
    grouped = defaultdict(list)
    for disbursement_id, reason in wrong.items():
        grouped[reason].append(disbursement_id)
    return "; ".join(f"{reason}: {', '.join(ids)}" for reason, ids in sorted(grouped.items()))


# --- The further block ------------------------------------------------------------------------------------------------


def _ask_for_block(tx: Tx, settings: Settings, sealer: Sealer, envelope: Any, rows: Sequence[Any], cause: Cause) -> None:
    """Record what the block is for and have the account checked, as for the first."""
    header = EnvelopeHeader.model_validate_json(envelope.header)
    sponsor = settings.sponsor(header.programme.id, header.benefit_code.id)
    if sponsor is None:
        raise CommandRefused("no sponsor is configured for this programme and benefit code, and no default")
    if asked := store.asked_block(tx, envelope.envelope_id):
        raise CommandRefused(f"block {asked.block} is being asked for ({asked.state}): one at a time")
    row = tx.one(
        """WITH e AS (  -- it moves again: until it settles with the next revision
               UPDATE envelopes SET round = round + 1, settled_at = NULL WHERE envelope_id = %(id)s RETURNING round)
           INSERT INTO blocks (envelope_id, block, further, round, state, bank, sponsor, account_token, amount_minor)
           SELECT %(id)s, (SELECT max(block) + 1 FROM blocks WHERE envelope_id = %(id)s), true, e.round, 'CHECKING', %(bank)s,
                  %(sponsor)s, %(token)s, %(amount)s
           FROM e RETURNING block, round""",
        id=envelope.envelope_id,
        bank=sponsor.bank,
        sponsor=f"{header.programme.id}/{header.benefit_code.id}",
        token=sealer.token(sponsor.account),
        amount=sum(row.amount_minor for row in rows),
    )
    store.add_repayments(tx, envelope.envelope_id, row.block, rows)
    workqueue.enqueue(tx, "check", [f"{envelope.envelope_id}/{row.round}"], [envelope.lock_key], [cause])


def checked(tx: Tx, envelope_id: UUID, block: int, cause: Cause) -> None:
    """The account covers a further block: ask for it."""
    tx.run("UPDATE blocks SET state = 'PENDING' WHERE envelope_id = %(id)s AND block = %(block)s", id=envelope_id, block=block)
    workqueue.enqueue(tx, "block", [f"{envelope_id}/{block}"], [lock_key("funds", envelope_id)], [cause])


def give_up(tx: Tx, envelope_id: UUID, block: int) -> None:
    """Nothing was reserved: nobody is repaid from it, everybody stands where they stood and may be asked for again."""
    tx.run(
        """UPDATE repayments SET state = 'REFUSED' WHERE envelope_id = %(id)s AND block = %(block)s AND state = 'ASKED'""",
        id=envelope_id,
        block=block,
    )
    tx.run("UPDATE envelopes SET funds = 'BLOCKED' WHERE envelope_id = %(id)s", id=envelope_id)


def cancel_asked(tx: Tx, envelope_id: UUID, *, whole: bool) -> Sequence[Any]:
    """Repayments which are asked for and not to be made any more: given back from their block, if it comes about."""
    return tx.rows(
        """WITH hit AS (
               UPDATE repayments r SET state = 'CANCELLED' WHERE r.envelope_id = %(id)s AND r.state = 'ASKED'
                 AND (%(whole)s OR EXISTS (SELECT 1 FROM tombstones t WHERE t.envelope_id = r.envelope_id
                                               AND t.disbursement_id = r.disbursement_id))
               RETURNING envelope_id, disbursement_id, batch_id, amount_minor, block)
           INSERT INTO cancelled (envelope_id, disbursement_id, batch_id, amount_minor, in_block, block)
           SELECT envelope_id, disbursement_id, batch_id, amount_minor, true, block FROM hit
           ON CONFLICT DO NOTHING RETURNING batch_id, disbursement_id, amount_minor""",
        id=envelope_id,
        whole=whole,
    )
