"""The rules of money, pure: references, what may be repeated, what a statement line means, when an envelope is settled.

The states, and the only moves between them:

    envelope     WAITING -> CHECKING -> SHORT -> WAITING …            (its day has come, the check said no, the next tick)
                            CHECKING -> BLOCKING -> BLOCKED           (money is reserved: dispatch begins)
                                        BLOCKING -> BLOCK_UNKNOWN     (nothing is dispatched until somebody knows)
                                        BLOCKING -> SHORT             (the bank refused the block)
    instruction  WAITING -> SENDING -> DISPATCHED | REFUSED | UNKNOWN | WAITING (certainly not sent)
                 UNKNOWN -> DISPATCHED (a statement line, an operator) | REFUSED (an operator: it did not happen)
                 WAITING -> VOID                                      (all of it was cancelled)
    release      PENDING -> SENDING -> RELEASED | REFUSED | UNKNOWN; NOT_OFFERED where the bank has no such verb
"""

import hashlib
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from libs.common.swift import swift

# --- References: 16 characters [A-Z0-9] which decode to the primary key -------------------------------------------------

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_VERSION = "A"
_CHECKS = 36**4
MAX_INSTRUCTION = 36**7 - 1
MAX_POSITION = 36**2 - 1


def references(incarnation: int, instruction: int, positions: Iterable[int]) -> list[str]:
    """The references of an instruction's payments: version, incarnation (2), instruction (7), position (2), check (4).

    The check characters catch any mistyped or truncated reference with odds of 1 in 1.7 million."""
    head = _VERSION + _base36(incarnation, 2) + _base36(instruction, 7)
    seed = _seed(head)
    found = []
    for position in positions:
        high, low = divmod((seed + position * 104_729) % _CHECKS, 36**2)
        found.append(head + _PAIRS[position] + _PAIRS[high] + _PAIRS[low])
    return found


def decode_reference(text: str) -> tuple[int, int, int] | None:
    """(incarnation, instruction, position), or None if we never issued such a reference."""
    if len(text) != 16 or (head := _decoded_head(text[:10])) is None:
        return None
    incarnation, instruction, seed = head
    try:
        position = _NUMBERS[text[10:12]]
        check = _NUMBERS[text[12:14]] * 36**2 + _NUMBERS[text[14:16]]
    except KeyError:
        return None
    return (incarnation, instruction, position) if (seed + position * 104_729) % _CHECKS == check else None


@lru_cache(maxsize=4096)  # the lines of a statement name few instructions, a thousand times each
def _decoded_head(head: str) -> tuple[int, int, int] | None:
    """(incarnation, instruction, seed of the checks) of a reference's first ten characters."""
    if head[0] != _VERSION or not set(head) <= set(_DIGITS):
        return None
    return int(head[1:3], 36), int(head[3:10], 36), _seed(head)


def _base36(number: int, width: int) -> str:
    text = ""
    for _ in range(width):
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
    if number:
        raise ValueError("a reference has no room for this number")
    return text


_PAIRS = [_base36(number, 2) for number in range(36**2)]
_NUMBERS = {pair: number for number, pair in enumerate(_PAIRS)}


def _seed(head: str) -> int:
    # MD5 because PostgreSQL has it too (the views show references); it guards against mistakes, not against people.
    return int(hashlib.md5(head.encode(), usedforsecurity=False).hexdigest()[:12], 16)


# --- A bank's own words ------------------------------------------------------------------------------------------------

_LONG_NUMBER = re.compile(r"\d{5,}")


def plain(text: object) -> str:
    """A bank's own words: short enough to be repeated for each of 1,000 payments, printable, without long numbers, which
    may be accounts or phones."""
    words = "".join(c for c in str(text or "") if c.isprintable())
    return _LONG_NUMBER.sub("…", words).encode()[:200].decode(errors="ignore")


# --- What a statement line means ----------------------------------------------------------------------------------------

EXCEPTIONS = (
    "UNKNOWN_REFERENCE",
    "DUPLICATE_DEBIT",
    "AMOUNT_MISMATCH",
    "REVERSAL_WITHOUT_DEBIT",
    "DUPLICATE_REVERSAL",
    "UNKNOWN_ACCOUNT",
    "UNPARSABLE_LINE",
    "PAID_AFTER_CANCEL",
    "PAID_AFTER_RETRY",
    "PAID_BEFORE_BLOCK",
)


class Line(NamedTuple):
    """A debit or reversal with a reference of ours."""

    statement_line: int
    mark: str  # D or RD
    amount_minor: int
    instruction: int
    position: int
    bank_reference: str


class Named(NamedTuple):
    """What the database knows of a payment that a line may name; of agency cash also of a single share."""

    amount_minor: int
    disbursement_id: str
    debit: str | None = None  # bank reference of the debit that confirmed it
    reversal: str | None = None
    held_state: str | None = None  # where the bank has refused it
    cancelled: bool = False  # or released: its money is not there any more


class Share(NamedTuple):
    """A person's part of what goes to an agency as one payment."""

    position: int
    unsent: bool  # taken out before the list went to the bank
    named: Named


def as_one(shares: Sequence[Share]) -> Named:
    """A payment to an agency, as a line sees it: what was sent is the sum of its shares, and where a share's money is elsewhere
    by now, none of it can count."""
    sent = [share.named for share in sent_of(shares) or shares]
    states = {one.held_state for one in sent}
    return Named(
        sum(one.amount_minor for one in sent),
        "",
        debit=next((one.debit for one in sent if one.debit is not None), None),
        reversal=next((one.reversal for one in sent if one.reversal is not None), None),
        held_state=next((state for state in ("SUPERSEDED", "PAYING", "HELD") if state in states), None),
        cancelled=any(one.cancelled for one in sent),
    )


def sent_of(shares: Sequence[Share]) -> list[Share]:
    return [share for share in shares if not share.unsent]


def spread(lines: Iterable[Line], groups: Mapping[tuple[int, int], Sequence[Share]]) -> list[Line]:
    """A line that counts for a payment to an agency counts for each share that was sent."""
    found = []
    for line in lines:
        shares = groups.get((line.instruction, line.position))
        if shares is None:
            found.append(line)
        else:
            found += [
                line._replace(position=share.position, amount_minor=share.named.amount_minor) for share in sent_of(shares)
            ]
    return found


class PaidFrom(NamedTuple):
    """What a list of payments is paid in and from."""

    currency: str
    blocked: bool  # there is a block


@dataclass
class Reconciliation:
    """What a chunk of lines comes to: facts to insert, exceptions to keep."""

    debits: list[Line]
    reversals: list[Line]
    exceptions: list[tuple[Line, str]]


def reconcile(
    lines: Sequence[Line],
    currency: str,
    payments: Mapping[tuple[int, int], Named],
    lists: Mapping[int, PaidFrom],
    retired: Container[tuple[int, int]] = (),
) -> Reconciliation:
    """Decide each line. Order of arrival doesn't matter: a reversal before its debit is kept and counts once both are there.

    The same bank reference again is the same line in another statement and changes nothing. `retired`: refused payments whose
    successor was taken back, so that they count themselves."""
    result = Reconciliation([], [], [])
    debits: dict[tuple[int, int], str] = {key: k.debit for key, k in payments.items() if k.debit is not None}
    reversals: dict[tuple[int, int], str] = {key: k.reversal for key, k in payments.items() if k.reversal is not None}
    for line in lines:
        key = (line.instruction, line.position)
        payment = payments.get(key)
        seen, facts = (debits, result.debits) if line.mark == "D" else (reversals, result.reversals)
        if payment is None:
            result.exceptions.append((line, "UNKNOWN_REFERENCE"))
        elif payment.amount_minor != line.amount_minor or lists[line.instruction].currency != currency:
            result.exceptions.append((line, "AMOUNT_MISMATCH"))
        elif key in seen:
            if not _identifies(line.bank_reference) or seen[key] != line.bank_reference:
                result.exceptions.append((line, "DUPLICATE_DEBIT" if line.mark == "D" else "DUPLICATE_REVERSAL"))
        elif line.mark == "D" and (reason := _cannot_count(payment, lists[line.instruction].blocked, key in retired)):
            result.exceptions.append((line, reason))
        else:
            seen[key] = line.bank_reference
            facts.append(line)
    result.exceptions += [
        (line, "REVERSAL_WITHOUT_DEBIT") for line in result.reversals if (line.instruction, line.position) not in debits
    ]
    return result


def _cannot_count(payment: Named, blocked: bool, retired: bool) -> str:
    """Why a debit is only an exception: its money is elsewhere by now, and counting it would count twice."""
    if payment.cancelled:
        return "PAID_AFTER_CANCEL"
    if payment.held_state in ("PAYING", "SUPERSEDED") and not retired:
        return "PAID_AFTER_RETRY"
    return "" if blocked else "PAID_BEFORE_BLOCK"


def _identifies(bank_reference: str) -> bool:
    return bank_reference not in ("", "NONREF")


def reversal_reason(narratives: Sequence[str], disbursement_id: str) -> str:
    """Why a payment came back, in the bank's words: the last narrative of its line. Empty where the last one is only our own: the
    fourth (the beneficiary), the fifth (the reference) or the disbursement's id, from a bank that repeats what we sent."""
    told = list(narratives)
    while told and told[-1].strip() in ("", "."):  # what we send empty is a full stop there
        told.pop()
    if not told or len(told) in (4, 5) or told[-1] == swift(disbursement_id):
        return ""
    return plain(told[-1].strip())


# --- Where an envelope's money is ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Money:
    """money.md §1, in minor units."""

    blocked: int
    waiting: int
    in_flight: int
    unknown: int
    held: int
    dispatched: int
    releasing: int
    released: int
    outstanding: int
    confirmed: int
    reversed: int

    @property
    def balanced(self) -> bool:
        """Both identities. Without a block there is nothing that could have moved; what is cancelled while nobody knows yet
        whether there is one will be given back if there is."""
        moved = self.in_flight + self.unknown + self.dispatched + self.released
        if not self.blocked:
            return moved == 0
        return (
            self.blocked == self.waiting + self.held + self.releasing + moved
            and self.dispatched == self.outstanding + self.confirmed + self.reversed
        )

    @property
    def settled(self) -> bool:
        return not (self.waiting or self.in_flight or self.unknown or self.held or self.releasing or self.outstanding)
