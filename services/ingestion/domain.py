"""Ingestion's rules: what an envelope must say, what may be added to it, when a batch is cut. Pure, no I/O."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, Literal, NamedTuple

from libs.common.clock import known_time_zone
from libs.common.money import MoneyError, scale

BATCH_ITEMS = 1000
MAX_FAULTS = 100  # of one submission; whoever repairs a hundred sees the rest next time

# RECEIVING -> COMPLETED -> SETTLED; RECEIVING, COMPLETED or SETTLED -> CANCELLING -> CANCELLED
State = Literal["RECEIVING", "COMPLETED", "CANCELLING", "CANCELLED", "SETTLED"]
ENDED = ("CANCELLING", "CANCELLED")

CASH = ("CASH_DIGITAL", "CASH_PHYSICAL")
PAID_THEMSELVES = "CASH_DIGITAL"  # of everything else places are told of the date as soon as all has come
GOODS = ("COMMODITY", "SERVICE", "COMBINATION")

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
    "measurement_unit": "INVALID_MEASUREMENT_UNIT",
    "unit_scale": "INVALID_MEASUREMENT_UNIT",
    "schedule_date": "INVALID_DISBURSEMENT_SCHEDULE_DATE",
    "time_zone": "INVALID_TIME_ZONE",
    "disbursement_id": "INVALID_DISBURSEMENT_ID",
    "disbursement_ids": "INVALID_DISBURSEMENT_ID",
    "beneficiary_id": "INVALID_BENEFICIARY_ID",
    "beneficiary_name": "INVALID_BENEFICIARY_NAME",
    "narrative": "INVALID_NARRATIVE",
    "contact": "INVALID_CONTACT",
    "reason": "INVALID_REASON",
    "count": "INVALID_CONTROL_TOTALS",
    "text": "INVALID_STATEMENT",
    "format": "INVALID_STATEMENT",
}

_WHOLE = "send a whole number from 1 to 100,000,000, without quotes"
_ID = "send 1 to 64 characters on one line"
_TEXT = "send at most 200 characters without control characters, or leave it out"

# What to do about a field of the wrong shape, or a missing one, by its code.
ADVICE = {
    "INVALID_ENVELOPE_ID": _ID,
    "INVALID_PROGRAM": "send an object with its id (1 to 64 characters on one line), and its mnemonic if it has one",
    "INVALID_BENEFIT_CODE": f"send an object with its id and its type, one of {', '.join((*CASH, *GOODS))}",
    "INVALID_CYCLE": "send an object with its id (1 to 64 characters on one line), and its mnemonic if it has one",
    "INVALID_DISBURSEMENT_FREQUENCY": "send one of these words, or leave it out",
    "INVALID_TARGET_REGISTRY": _TEXT,
    "INVALID_NO_OF_BENEFICIARIES": _WHOLE,
    "INVALID_NO_OF_DISBURSEMENTS": _WHOLE,
    "INVALID_DISBURSEMENT_QUANTITY": "send minor units as a whole number from 1 on, without quotes: 1250 for 12.50 EUR",
    "INVALID_CURRENCY": "send its three capital letters of ISO 4217, such as KES",
    "INVALID_MEASUREMENT_UNIT": "send a unit of 1 to 20 characters, such as kg, and in unit_scale its decimals, from 0 to 6",
    "INVALID_DISBURSEMENT_SCHEDULE_DATE": "send a date as YYYY-MM-DD",
    "INVALID_TIME_ZONE": "send one of the IANA database, such as Africa/Kampala, or leave it out",
    "INVALID_DISBURSEMENT_ID": f"{_ID}; in a list from 1 to 1,000 of them",
    "INVALID_BENEFICIARY_ID": _ID,
    "INVALID_BENEFICIARY_NAME": _TEXT,
    "INVALID_NARRATIVE": _TEXT,
    "INVALID_CONTACT": "send an object with email, phone or both in their usual form, or leave it out",
    "INVALID_REASON": "send why, in 1 to 500 characters",
    "INVALID_CONTROL_TOTALS": "send how many items there are, from 1 to 1,000",
    "INVALID_STATEMENT": "send MT940 as text of up to 900,000 characters, what is longer by HTTP",
    "INVALID_DATA": "send what docs/events.md says of its type",
}


# What an amendment may change, by the name that the publisher gives it.
AMENDABLE = ("number_of_beneficiaries", "number_of_disbursements", "total_minor", "schedule_date")


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


@dataclass(frozen=True, slots=True)
class Publishers:
    """Who may publish for which programmes; for none of them (`[]`), or all (`*`), also statements. `open`: whoever is not listed
    may publish everything."""

    listed: Mapping[str, Collection[str]]
    open: bool

    def refusal(self, source: str, programme: str | None = None, pointer: str = "") -> Fault | None:
        """Why nothing is taken of a source, or of its programme where one is named."""
        programmes = self.listed.get(source)
        if programmes is None:
            text = f"{source} is not listed as a publisher; ask Almoner's operators to list it, then send this again"
            return None if self.open else Fault("INVALID_SOURCE", "", text)
        if programme is None or "*" in programmes or programme in programmes:
            return None
        text = f"{source} may not publish for this programme; ask Almoner's operators to allow it, then send this again"
        return Fault("INVALID_SOURCE", pointer, text)

    def statement_refusal(self, source: str) -> Fault | None:
        """Why no statement is taken of a source: one settles the payments of whatever programme."""
        programmes = self.listed.get(source)
        if not programmes or "*" in programmes:
            return self.refusal(source)
        text = f"{source} may publish for its programmes, not statements; ask Almoner's operators who may, or post it by HTTP"
        return Fault("INVALID_SOURCE", "", text)


def envelope_faults(
    fields: Mapping[str, Any], default_time_zone: str, today: Callable[[str], date], days_ahead: int
) -> list[Fault]:
    """What the shape of an envelope's fields does not tell. Looks only at fields of the right shape, so that it can say
    all faults at once with those of the shape. `today` is the date in a time zone when the envelope was received."""
    faults = _unit_faults(fields)
    people, declared, total = (
        value if type(value) is int and value > 0 else None
        for value in map(fields.get, ("number_of_beneficiaries", "number_of_disbursements", "total_minor"))
    )
    faults += _count_faults(people, declared, total)
    return faults + _date_faults(fields, default_time_zone, today, days_ahead)


def _unit_faults(fields: Mapping[str, Any]) -> list[Fault]:
    """Cash has a currency, which says how many decimals there are; everything else has a unit of its own and says so itself."""
    faults: list[Fault] = []
    benefit = fields.get("benefit_code")
    kind = benefit.get("type") if isinstance(benefit, Mapping) else None
    currency, unit, decimals = (fields.get(name) for name in ("currency", "measurement_unit", "unit_scale"))
    if kind in CASH:
        if currency is None:
            faults.append(Fault("INVALID_CURRENCY", "/currency", f"{kind} is paid in a currency; send one, such as KES"))
        if unit is not None:
            text = f"{kind} is paid in a currency; leave it out"
            faults.append(Fault("INVALID_MEASUREMENT_UNIT", "/measurement_unit", text))
        if decimals not in (None, 0):
            text = f"a currency has decimals of its own (ISO 4217); leave it out for {kind}"
            faults.append(Fault("INVALID_MEASUREMENT_UNIT", "/unit_scale", text))
    elif kind in GOODS:
        if currency is not None:
            text = f"{kind} is counted in a measurement_unit; leave it out"
            faults.append(Fault("INVALID_CURRENCY", "/currency", text))
        if unit is None:
            text = f'{kind} is counted in a unit; send one, such as "kg", and with unit_scale its decimals'
            faults.append(Fault("INVALID_MEASUREMENT_UNIT", "/measurement_unit", text))
    if isinstance(currency, str) and len(currency) == 3 and currency.isascii() and currency.isupper():
        try:
            scale(currency)
        except MoneyError as error:
            faults.append(Fault("INVALID_CURRENCY", "/currency", f"{error}; send one, such as KES"))
    return faults


def _count_faults(people: int | None, declared: int | None, total: int | None) -> list[Fault]:
    """Counts that can never be met, whatever comes."""
    faults = []
    if people and declared and people > declared:
        text = f"{people} beneficiaries can't be paid by {declared} disbursements; send fewer of the one or more of the other"
        faults.append(Fault("INVALID_NO_OF_BENEFICIARIES", "/number_of_beneficiaries", text))
    if declared and total and total < declared:
        text = f"{declared} disbursements of at least 1 are more than {total}; send the total in minor units"
        faults.append(Fault("INVALID_DISBURSEMENT_QUANTITY", "/total_minor", text))
    return faults


def _date_faults(
    fields: Mapping[str, Any], default_time_zone: str, today: Callable[[str], date], days_ahead: int
) -> list[Fault]:
    zone = fields.get("time_zone", default_time_zone)
    if not isinstance(zone, str) or len(zone) > 64:
        return []
    if not known_time_zone(zone):
        text = "not a time zone of the IANA database; send one, such as Africa/Kampala"
        return [Fault("INVALID_TIME_ZONE", "/time_zone", text)]
    day = fields.get("schedule_date")
    if isinstance(day, str):
        try:
            day = date.fromisoformat(day)
        except ValueError:
            return []
    return _day_faults(day, today(zone), days_ahead) if isinstance(day, date) else []


def _day_faults(day: date | None, now: date, days_ahead: int) -> list[Fault]:
    text = ""
    if day is None:
        return []
    if day < now:
        text = f"{day} has passed (there it was {now}); send today's date or a later one"
    elif (day - now).days > days_ahead:
        text = f"{day} is more than {days_ahead} days ahead; send {now + timedelta(days_ahead)} or an earlier date"
    return [Fault("INVALID_DISBURSEMENT_SCHEDULE_DATE", "/schedule_date", text)] if text else []


# --- Adding to an envelope, and amending it ---------------------------------------------------------------------------

# Disbursement id, beneficiary id, amount in minor units, name, narrative, and the contact where one is given.
Row = Sequence[Any]


class Chunk(NamedTuple):
    """One submission's disbursements. `received_on` is the date in the envelope's time zone."""

    submission: str
    received_on: date
    rows: Sequence[Row]


class Amendment(NamedTuple):
    """What is to be declared instead, under the publisher's names; None stays as it is."""

    number_of_beneficiaries: int | None = None
    number_of_disbursements: int | None = None
    total_minor: int | None = None
    schedule_date: date | None = None

    def pointers(self) -> list[str]:
        return [f"/{name}" for name, value in zip(AMENDABLE, self, strict=True) if value is not None]


class Verdict(NamedTuple):
    submission: str
    items: int
    faults: list[Fault]
    warnings: list[Fault]


@dataclass(slots=True)
class Book:
    """An envelope's books while staged submissions are judged one after the other.

    `ids` and `people` are those already there, as far as the submissions ask about them."""

    beneficiaries: int  # declared
    declared: int
    declared_minor: int
    received: int
    received_minor: int
    state: State
    schedule_date: date
    days_ahead: int  # which a date may be
    refuse_same_person: bool
    date_moves: bool = False  # once it is complete; then funds decides
    ids: set[str] = field(default_factory=set)
    people: set[str] = field(default_factory=set)

    def judge(self, chunk: Chunk) -> Verdict:
        """All of a chunk is taken, or nothing of it."""
        ids, people, amounts, *_ = zip(*chunk.rows, strict=False)  # with a contact a row is longer
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

    def asks_who_is_there(self, change: Amendment) -> bool:
        """Whether it may declare fewer people than are there: more of them than disbursements there are never."""
        return self.state == "RECEIVING" and (change.number_of_beneficiaries or self.received) < self.received

    def amend(self, change: Amendment, received_on: date, people_there: int = 0) -> list[Fault]:
        """All of an amendment is taken, or nothing of it; nothing yet of one that is for funds to decide. `people_there`: how many
        got something so far, where it asks."""
        faults = self._amendment_faults(change, received_on, people_there)
        if not faults and not self.is_for_funds(change):
            self.beneficiaries = change.number_of_beneficiaries or self.beneficiaries
            self.declared = change.number_of_disbursements or self.declared
            self.declared_minor = change.total_minor or self.declared_minor
            self.schedule_date = change.schedule_date or self.schedule_date
        return faults

    def is_for_funds(self, change: Amendment) -> bool:
        """The date alone, once all has come: funds knows whether its check has started."""
        return self.state == "COMPLETED" and self.date_moves and change.pointers() == ["/schedule_date"]

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
            text = f"{self.declared} are declared and {self.received} are there; {count} more are too many; amend it first"
            faults.append(Fault("NO_OF_DISBURSEMENTS_EXCEEDS_DECLARED", "/count", text))
        if self.received_minor + total > self.declared_minor:
            text = f"{self.declared_minor} is declared and {self.received_minor} is there; {total} more is too much; amend it first"
            faults.append(Fault("TOTAL_DISBURSEMENT_QUANTITY_EXCEEDS_DECLARED", "/total_minor", text))
        return faults

    def _amendment_faults(self, change: Amendment, received_on: date, people_there: int) -> list[Fault]:
        if self.state in ENDED:
            return [already_cancelled()]
        if received_on >= self.schedule_date:
            text = f"the envelope's date, {self.schedule_date}, has come; cancel what must not be paid and submit a new one"
            return [Fault("DISBURSEMENT_ENVELOPE_DATE_PASSED", "", text)]
        late = _day_faults(change.schedule_date, received_on, self.days_ahead)
        if self.state == "RECEIVING":
            return self._amended_counts(change, people_there) + late
        return late if self.is_for_funds(change) else [self._frozen(pointer) for pointer in change.pointers()]

    def _frozen(self, pointer: str) -> Fault:
        text = "all that was declared has come, nothing of it changes any more; submit what is still to come as a new envelope"
        if pointer == "/schedule_date":
            text = "all that was declared has come and its date stays; cancel what must not be paid on it and submit a new envelope"
            if self.state == "COMPLETED" and self.date_moves:
                text = "all that was declared has come, only the date may still change; send it alone"
        return Fault("DISBURSEMENT_ENVELOPE_COMPLETE", pointer, text)

    def _amended_counts(self, change: Amendment, people_there: int) -> list[Fault]:
        people = change.number_of_beneficiaries or self.beneficiaries
        declared = change.number_of_disbursements or self.declared
        total = change.total_minor or self.declared_minor
        left, left_minor = declared - self.received, total - self.received_minor
        faults = []
        if left < 0:
            text = f"{self.received} are there already; declare at least as many"
            faults.append(Fault("INVALID_NO_OF_DISBURSEMENTS", "/number_of_disbursements", text))
        if left_minor < max(left, 0) or (left == 0 and left_minor > 0):  # less than is there, or what could never come true
            text = f"{self.received_minor} is there already and {max(left, 0)} more are to come: declare a total that fits"
            faults.append(Fault("INVALID_DISBURSEMENT_QUANTITY", "/total_minor", text))
        if change.number_of_beneficiaries and change.number_of_beneficiaries < people_there:
            text = f"{people_there} people are there already; declare at least as many"
            faults.append(Fault("INVALID_NO_OF_BENEFICIARIES", "/number_of_beneficiaries", text))
        return faults or _count_faults(people, declared, total)

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
    text = "its cancellation was asked for, nothing of it changes any more; submit a new envelope"
    return Fault("DISBURSEMENT_ENVELOPE_ALREADY_CANCELLED", "", text)


def date_refused(refusal: str) -> Fault:
    """What funds says to a change of date after all has come."""
    if refusal == "CANCELLED":
        return already_cancelled()
    text = (
        "its funds are being checked or reserved already; cancel what must not be paid on that date and submit a new envelope"
    )
    return Fault("DISBURSEMENT_ENVELOPE_COMPLETE", "/schedule_date", text)


def nothing_amended() -> Fault:
    return Fault("INVALID_AMENDMENT", "", f"it changes nothing; send at least one of {', '.join(AMENDABLE)}")


def envelope_unknown() -> Fault:
    text = "no envelope with this id came from this source; submit the envelope first"
    return Fault("DISBURSEMENT_ENVELOPE_NOT_FOUND", "/envelope_id", text)
