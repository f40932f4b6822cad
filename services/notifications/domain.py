"""What a notice is, what may become of it, and how people's lists are cut into pages. Standard library and money only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from libs.common.money import Unit, scale

Kind = Literal["WAREHOUSE", "AGENCY", "BENEFICIARY"]
State = Literal["PENDING", "SENT", "FAILED", "SUPPRESSED", "UNKNOWN"]
Delivery = Literal["DELIVERED", "BOUNCED"]

KINDS: tuple[Kind, ...] = ("WAREHOUSE", "AGENCY", "BENEFICIARY")
CASH = ("CASH_DIGITAL", "CASH_PHYSICAL")

# Why a notice is not sent.
NO_CONTACT = "NO_CONTACT"  # nobody has said where this person or place is told
SUPPRESSED = "SUPPRESSED"  # by configuration: no channel for its kind, or all notices switched off
SUBJECT_SUPPRESSED = "SUBJECT_SUPPRESSED"  # by an operator
# Why it failed, or may have.
REFUSED = "REFUSED"  # the provider said no
ADDRESS_UNUSABLE = "ADDRESS_UNUSABLE"  # no mail can be addressed so
BOUNCED = "BOUNCED"  # taken, and given back later
NOT_SENT = "NOT_SENT"  # an operator knows that it was not
ANSWER_LOST = "ANSWER_LOST"  # handed over, and nobody said what became of it
KEY_EXPIRED = "KEY_EXPIRED"  # the provider does not know the key any more under which it may have been taken


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one notice. PENDING: certainly not sent, to be tried again; `alone`: without the others, one of which
    the provider can't take."""

    state: State
    code: str = ""
    message: str = ""
    alone: bool = False


SENT = Outcome("SENT")


def pages(items: int, page_items: int) -> int:
    return max(1, -(-items // page_items))


def contact(person: Mapping[str, object]) -> tuple[str, str]:
    """(email, phone): each as the disbursement says, else as the resolved address does."""
    contact = person.get("contact")
    given = contact if isinstance(contact, Mapping) else {}
    email = given.get("email") or person.get("email_address") or ""
    phone = given.get("phone") or person.get("mobile_number") or ""
    return str(email), str(phone)


def unit(benefit_type: str, currency: str, measurement_unit: str, unit_scale: int) -> Unit:
    """What amounts are counted in: money in its currency, goods in their own unit."""
    return Unit(currency, scale(currency)) if benefit_type in CASH else Unit(measurement_unit, unit_scale)


def quantity(minor: int, of: Unit) -> str:
    return f"{of.to_decimal(minor):f}"


def one_line(text: object) -> str:
    """Names come from outside: a line break in one must not look like a line, or a header, of ours."""
    return " ".join(str(text or "").split())
