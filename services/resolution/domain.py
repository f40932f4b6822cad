"""Where a person is paid, or lives, or why nobody knows. Every person asked for is in exactly one of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, TypeVar
from uuid import UUID

from libs.common.swift import are_swift

# The two stages: the mapper is asked for addresses, a registry for zones.
RESOLVE = "resolve"
LOCATE = "locate"

# Why a person is held. The mapper's own code stands in the message.
NOT_LINKED = "NOT_LINKED"  # the mapper knows no address for this id
NOT_FOUND = "NOT_FOUND"  # the mapper does not know this id
INACTIVE = "INACTIVE"  # the id or its address is switched off
REFUSED = "REFUSED"  # the mapper refuses this id or its address
ASKED_WRONGLY = "ASKED_WRONGLY"  # the mapper refuses how this item was asked for: our fault, not the person's
NO_ANSWER = "NO_ANSWER"  # the answer leaves this person out, or open
AMBIGUOUS_ANSWER = "AMBIGUOUS_ANSWER"  # the answer names this person more than once
UNKNOWN_CODE = "UNKNOWN_CODE"  # a code we don't know: no money goes where we don't understand the answer
ADDRESS_UNREADABLE = "ADDRESS_UNREADABLE"  # the address does not match its pattern, or no bank can be told it
NOT_IN_REGISTRY = "NOT_IN_REGISTRY"  # the registry does not know this id
NO_ZONE = "NO_ZONE"  # the registry knows the person, and no large or no small zone
ZONE_UNREADABLE = "ZONE_UNREADABLE"  # the zone's id or code is longer than 64 or 200 characters, or not printable
PART_TOO_LARGE = "PART_TOO_LARGE"  # resolved, but the event would exceed its limit: goes with the next part

# "fa_type" BANK_ACCOUNT | MOBILE_WALLET | EMAIL_WALLET and the fields of that type which are not empty
Address: TypeAlias = dict[str, str]


@dataclass(frozen=True, slots=True)
class Hold:
    """No address. `message` carries the mapper's code, never personal data."""

    reason: str
    message: str = ""


class Home(NamedTuple):
    """Where a registry says that somebody lives; empty where it says nothing."""

    large_zone_id: str
    large_zone_code: str
    small_zone_id: str
    small_zone_code: str


# What goes to a bank as it is, in SWIFT's character set. An e-mail address goes there too, but needs its `@`, which the set lacks.
TO_THE_BANK = ("account_number", "bank_code", "branch_code", "mobile_number", "wallet_provider_name")


def tellable(address: Address) -> bool:
    """Whether a bank can be told it: in SWIFT's character set, one line each, no leading ':' or '-', no space around."""
    return are_swift(value for name, value in address.items() if name in TO_THE_BANK)


Reply: TypeAlias = Address | Hold
T = TypeVar("T")
LEFT_OUT = Hold(NO_ANSWER, "the mapper's answer leaves this person out")


def references(batch_id: UUID, count: int) -> list[str]:
    """The reference ids of a batch's items, by their position: two payments of one person are two items."""
    prefix = batch_id.hex
    return [f"{prefix}-{position}" for position in range(count)]


def kind_of(benefit_type: str) -> str:
    """Who is paid by account needs an address; everything else is handed out somewhere."""
    return RESOLVE if benefit_type == "CASH_DIGITAL" else LOCATE


def home(registry: str, homes: Sequence[Home]) -> Home | Hold:
    """Where a person lives, by all that the registry says of them; the same twice is one."""
    if not homes:
        return Hold(NOT_IN_REGISTRY, f"not in the registry {registry}" if registry else "")
    first = homes[0]
    if any((one.large_zone_id, one.small_zone_id) != (first.large_zone_id, first.small_zone_id) for one in homes):
        return Hold(AMBIGUOUS_ANSWER, "the registry has this person in several zones")
    if not first.large_zone_id or not first.small_zone_id:
        return Hold(NO_ZONE, "no small zone" if first.large_zone_id else "no large zone")
    return first


def sort_out(asked: Sequence[str], replies: Mapping[str, T | Hold]) -> tuple[dict[int, T], dict[int, Hold]]:
    """Index in `asked` -> what was found, and index -> why there is nothing; whoever was not answered is held."""
    found: dict[int, T] = {}
    held: dict[int, Hold] = {}
    for index, key in enumerate(asked):
        reply = replies.get(key, LEFT_OUT)
        if isinstance(reply, Hold):
            held[index] = reply
        else:
            found[index] = reply
    return found, held
