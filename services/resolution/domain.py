"""Where a person is paid, or why nobody knows. Every person asked for is in exactly one of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

# Why a person is held. The mapper's own code stands in the message.
NOT_LINKED = "NOT_LINKED"  # the mapper knows no address for this id
NOT_FOUND = "NOT_FOUND"  # the mapper does not know this id
INACTIVE = "INACTIVE"  # the id or its address is switched off
REFUSED = "REFUSED"  # the mapper refuses this id or its address
ASKED_WRONGLY = "ASKED_WRONGLY"  # the mapper refuses how this item was asked for: our fault, not the person's
NO_ANSWER = "NO_ANSWER"  # the answer leaves this person out, or open
AMBIGUOUS_ANSWER = "AMBIGUOUS_ANSWER"  # the answer names this person more than once
UNKNOWN_CODE = "UNKNOWN_CODE"  # a code we don't know: no money goes where we don't understand the answer
ADDRESS_UNREADABLE = "ADDRESS_UNREADABLE"  # the address does not match its pattern
PART_TOO_LARGE = "PART_TOO_LARGE"  # resolved, but the event would exceed its limit: goes with the next part

# "fa_type" BANK_ACCOUNT | MOBILE_WALLET | EMAIL_WALLET and the fields of that type which are not empty
Address: TypeAlias = dict[str, str]


@dataclass(frozen=True, slots=True)
class Hold:
    """No address. `message` carries the mapper's code, never personal data."""

    reason: str
    message: str = ""


Reply: TypeAlias = Address | Hold
LEFT_OUT = Hold(NO_ANSWER, "the mapper's answer leaves this person out")


def references(batch_id: UUID, count: int) -> list[str]:
    """The reference ids of a batch's items, by their position: two payments of one person are two items."""
    prefix = batch_id.hex
    return [f"{prefix}-{position}" for position in range(count)]


def sort_out(asked: Sequence[str], replies: Mapping[str, Reply]) -> tuple[dict[int, Address], dict[int, Hold]]:
    """Index in `asked` -> address, and index -> why there is none; whoever was not answered is held."""
    found: dict[int, Address] = {}
    held: dict[int, Hold] = {}
    for index, key in enumerate(asked):
        reply = replies.get(key, LEFT_OUT)
        if isinstance(reply, Hold):
            held[index] = reply
        else:
            found[index] = reply
    return found, held
