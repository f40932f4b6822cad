"""Ingestion's rules: what an envelope must say, what may be added to it, when a batch is cut. Pure, no I/O."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal, NamedTuple

from libs.common.clock import known_time_zone
from libs.common.money import MoneyError, scale

BATCH_ITEMS = 1000
MAX_FAULTS = 100  # of one submission; whoever repairs a hundred sees the rest next time

# RECEIVING -> COMPLETED -> SETTLED; RECEIVING, COMPLETED or SETTLED -> CANCELLING -> CANCELLED
State = Literal["RECEIVING", "COMPLETED", "CANCELLING", "CANCELLED", "SETTLED"]
ENDED = ("CANCELLING", "CANCELLED")

# The code of a fault in the shape of a field, by the last name of its pointer that is listed here.
FIELD_CODES = {
    "envelope_id": "INVALID_ENVELOPE_ID",
    "programme": "INVALID_PROGRAM",
    "benefit_code": "INVALID_BENEFIT_CODE",
    "cycle": "INVALID_CYCLE",
    "frequency": "INVALID_DISBURSEMENT_FREQUENCY",
    "target_registry": "INVALID_TARGET_REGISTRY",
    "number_of_beneficiaries": "INVALID_NO_OF_BENEFICIARIES",
    "number_of_disbursements": "INVALID_NO_OF_DISBURSEMENTS",
    "total_minor": "INVALID_DISBURSEMENT_QUANTITY",
    "amount_minor": "INVALID_DISBURSEMENT_QUANTITY",
    "currency": "INVALID_CURRENCY",
    "schedule_date": "INVALID_DISBURSEMENT_SCHEDULE_DATE",
    "time_zone": "INVALID_TIME_ZONE",
    "disbursement_id": "INVALID_DISBURSEMENT_ID",
    "disbursement_ids": "INVALID_DISBURSEMENT_ID",
    "beneficiary_id": "INVALID_BENEFICIARY_ID",
    "beneficiary_name": "INVALID_BENEFICIARY_NAME",
    "narrative": "INVALID_NARRATIVE",
    "reason": "INVALID_REASON",
    "count": "INVALID_CONTROL_TOTALS",
    "text": "INVALID_STATEMENT",
    "format": "INVALID_STATEMENT",
}


class Fault(NamedTuple):
    """What is wrong with a submission. `pointer` is a JSON pointer into its data; `message` says what to do."""

    code: str
    pointer: str
    message: str


def field_code(loc: Sequence[str | int]) -> str:
    """The code for a fault at this place."""
    for part in reversed(loc):
        if part in FIELD_CODES:
            return FIELD_CODES[str(part)]
    return "INVALID_DATA"


def envelope_faults(fields: Mapping[str, Any], default_time_zone: str, today: Callable[[str], date]) -> list[Fault]:
    """What the shape of an envelope's fields does not tell. Looks only at fields of the right shape, so that it can say
    all faults at once with those of the shape. `today` is the date in a time zone when the envelope was received."""
    faults: list[Fault] = []
    benefit = fields.get("benefit_code")
    kind = benefit.get("type") if isinstance(benefit, Mapping) else None
    if kind in ("CASH_PHYSICAL", "COMMODITY", "SERVICE", "COMBINATION"):
        faults.append(Fault("INVALID_BENEFIT_CODE", "/benefit_code/type", f"{kind} is not served; send CASH_DIGITAL"))
    currency = fields.get("currency")
    if isinstance(currency, str) and len(currency) == 3 and currency.isascii() and currency.isupper():
        try:
            scale(currency)
        except MoneyError as error:
            faults.append(Fault("INVALID_CURRENCY", "/currency", str(error)))
    people, declared, total = (
        value if type(value) is int and value > 0 else None
        for value in map(fields.get, ("number_of_beneficiaries", "number_of_disbursements", "total_minor"))
    )
    if people and declared and people > declared:
        text = f"{people} beneficiaries can't be paid by {declared} disbursements"
        faults.append(Fault("INVALID_NO_OF_BENEFICIARIES", "/number_of_beneficiaries", text))
    if declared and total and total < declared:
        text = f"{declared} disbursements of at least 1 minor unit are more than {total}"
        faults.append(Fault("INVALID_DISBURSEMENT_QUANTITY", "/total_minor", text))
    return faults + _date_faults(fields, default_time_zone, today)


def _date_faults(fields: Mapping[str, Any], default_time_zone: str, today: Callable[[str], date]) -> list[Fault]:
    zone = fields.get("time_zone", default_time_zone)
    if not isinstance(zone, str) or len(zone) > 64:
        return []
    if not known_time_zone(zone):
        return [Fault("INVALID_TIME_ZONE", "/time_zone", "not a time zone of the IANA database, such as Africa/Kampala")]
    day = fields.get("schedule_date")
    if isinstance(day, str):
        try:
            day = date.fromisoformat(day)
        except ValueError:
            return []
    if isinstance(day, date) and day < (now := today(zone)):
        text = f"{day} has passed in {zone} (there it was {now}); send today's date or a later one"
        return [Fault("INVALID_DISBURSEMENT_SCHEDULE_DATE", "/schedule_date", text)]
    return []


# --- Adding to an envelope --------------------------------------------------------------------------------------------

Row = Sequence[Any]  # disbursement id, beneficiary id, amount in minor units, name, narrative


class Chunk(NamedTuple):
    """One submission's disbursements. `received_on` is the date in the envelope's time zone."""

    submission: str
    received_on: date
    rows: Sequence[Row]


class Verdict(NamedTuple):
    submission: str
    items: int
    faults: list[Fault]
    warnings: list[Fault]


@dataclass(slots=True)
class Book:
    """An envelope's books while staged submissions are judged one after the other.

    `ids` and `people` are those already there, as far as the submissions ask about them."""

    declared: int
    declared_minor: int
    received: int
    received_minor: int
    state: State
    schedule_date: date
    refuse_same_person: bool
    ids: set[str] = field(default_factory=set)
    people: set[str] = field(default_factory=set)

    def judge(self, chunk: Chunk) -> Verdict:
        """All of a chunk is taken, or nothing of it."""
        ids, people, amounts, *_ = zip(*chunk.rows, strict=True)
        count, total = len(amounts), sum(amounts)
        faults = self._envelope_faults(chunk.received_on, count, total)
        warnings: list[Fault] = []
        if not faults:
            faults = self._repeated_ids(ids)
            same = self._same_people(people)
            faults, warnings = (faults + same, []) if self.refuse_same_person else (faults, same)
        if not faults:
            self.received += count
            self.received_minor += total
            self.ids.update(ids)
            self.people.update(people)
        return Verdict(chunk.submission, count, faults[:MAX_FAULTS], [] if faults else warnings)

    @property
    def complete(self) -> bool:
        return self.received == self.declared and self.received_minor == self.declared_minor

    def _envelope_faults(self, received_on: date, count: int, total: int) -> list[Fault]:
        if self.state in ENDED:
            return [already_cancelled()]
        if received_on > self.schedule_date:
            text = f"the envelope's date, {self.schedule_date}, had passed when this came; cancel it and submit a new one"
            return [Fault("DISBURSEMENT_ENVELOPE_DATE_PASSED", "", text)]
        faults = []
        if self.received + count > self.declared:
            text = f"{self.declared} are declared and {self.received} are there; {count} more are too many"
            faults.append(Fault("NO_OF_DISBURSEMENTS_EXCEEDS_DECLARED", "/count", text))
        if self.received_minor + total > self.declared_minor:
            text = f"{self.declared_minor} is declared and {self.received_minor} is there; {total} more is too much"
            faults.append(Fault("TOTAL_DISBURSEMENT_QUANTITY_EXCEEDS_DECLARED", "/total_minor", text))
        return faults

    def _repeated_ids(self, ids: Sequence[str]) -> list[Fault]:
        if self.ids.isdisjoint(ids) and len(set(ids)) == len(ids):
            return []
        return [
            Fault("DUPLICATE_DISBURSEMENT_ID", f"/items/{index}/disbursement_id", "used before in this envelope; send a new id")
            for index in _repeats(ids, self.ids)
        ]

    def _same_people(self, people: Sequence[str]) -> list[Fault]:
        if self.people.isdisjoint(people) and len(set(people)) == len(people):
            return []
        advice = "send one disbursement for each" if self.refuse_same_person else "each disbursement will be paid"
        return [
            Fault("DUPLICATE_BENEFICIARY", f"/items/{index}/beneficiary_id", f"is in this envelope more than once; {advice}")
            for index in _repeats(people, self.people)
        ]


def _repeats(values: Sequence[str], before: set[str]) -> Iterator[int]:
    seen: set[str] = set()
    for index, value in enumerate(values):
        if value in before or value in seen:
            yield index
        seen.add(value)


def already_cancelled() -> Fault:
    return Fault(
        "DISBURSEMENT_ENVELOPE_ALREADY_CANCELLED", "", "its cancellation was asked for; nothing of it changes any more"
    )


def envelope_unknown() -> Fault:
    text = "no envelope with this id came from this source; submit the envelope first"
    return Fault("DISBURSEMENT_ENVELOPE_NOT_FOUND", "/envelope_id", text)
