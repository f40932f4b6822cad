"""Submission files: CSV with a header, or JSON Lines. The only place where money is decimal text.

The published schemas are docs/schemas/*.json; they are written from the models here (`python -m libs.cli.sheet`).
"""

import csv
import json
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Any, TextIO

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from libs.cli.context import ROOT, Refused, printable
from libs.common.contracts.base import (
    Contact,
    Currency,
    EmailOrNone,
    MeasurementUnit,
    Mnemonic,
    Name,
    PhoneOrNone,
    PublisherId,
    UnitScale,
)
from libs.common.contracts.ingestion import BenefitCode, Cycle, Disbursement
from libs.common.envelope import pointer
from libs.common.money import MAX_MINOR, MoneyError, Unit, scale

SHOWN_FAULTS = 100
_LINE_CHARACTERS = 1_000_000  # no disbursement is so long: whatever the file is, little of it is in memory
_NOT_UTF8 = "not UTF-8: save the file with that encoding"
SCHEMAS = ROOT / "docs" / "schemas"

DecimalText = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]{1,18}(\.[0-9]{1,4})?$"),
    Field(description="major units as text, with at most the currency's decimals (ISO 4217: JPY 0, EUR 2, KWD 3)"),
]
Declared = Annotated[int, Field(gt=0, le=100_000_000)]


class EnvelopeFile(BaseModel):
    """An envelope: one payment run of a programme. What is declared is counted from the file where it is left out."""

    model_config = ConfigDict(extra="forbid", title="Envelope")
    envelope_id: PublisherId
    programme: Mnemonic
    benefit_code: BenefitCode
    cycle: Cycle
    target_registry: Name = ""
    currency: Currency | None = Field(default=None, description="of cash")
    measurement_unit: MeasurementUnit | None = Field(default=None, description='of goods and services, such as "kg"')
    unit_scale: UnitScale = 0
    schedule_date: date = Field(description="local date in `time_zone`")
    time_zone: str = Field(default="UTC", max_length=64)
    number_of_beneficiaries: Declared | None = None
    number_of_disbursements: Declared | None = None
    total: DecimalText | None = None

    @property
    def unit(self) -> Unit:
        """Raises MoneyError for an unknown currency, and where there is neither a currency nor a unit, or both."""
        if (self.currency is None) == (self.measurement_unit is None):
            raise MoneyError("cash has a currency (--currency), goods a unit (--unit): one of both is needed")
        return Unit(self.currency, scale(self.currency)) if self.currency else Unit(str(self.measurement_unit), self.unit_scale)


class DisbursementLine(BaseModel):
    """One disbursement: a line of JSON, or a row of CSV with these names in its header."""

    model_config = ConfigDict(extra="forbid", title="Disbursement")
    disbursement_id: PublisherId
    beneficiary_id: PublisherId
    amount: DecimalText
    beneficiary_name: Name = ""
    narrative: Name = ""
    email: EmailOrNone = Field(default="", description="where the person is told; else where their address says")
    phone: PhoneOrNone = Field(default="", description="the same")

    def contact(self) -> Contact | None:
        return Contact(email=self.email, phone=self.phone) if self.email or self.phone else None


@dataclass(frozen=True)
class Fault:
    """Something wrong in the file. `place` is a column of CSV or a JSON pointer; empty for the whole line."""

    line: int
    place: str
    message: str

    def __str__(self) -> str:
        return printable(f"line {self.line}" + (f", {self.place[:80]}" if self.place else "") + f": {self.message}")


@dataclass
class Summary:
    """What a file holds, as far as it could be read."""

    count: int = 0
    total_minor: int = 0
    beneficiaries: int = 0
    faults: list[Fault] = field(default_factory=list)  # the first SHOWN_FAULTS
    fault_count: int = 0
    warnings: list[Fault] = field(default_factory=list)
    warning_count: int = 0

    def fault(self, fault: Fault) -> None:
        self.fault_count += 1
        if len(self.faults) < SHOWN_FAULTS:
            self.faults.append(fault)

    def warn(self, warning: Fault) -> None:
        self.warning_count += 1
        if len(self.warnings) < SHOWN_FAULTS:
            self.warnings.append(warning)


class KeyTwiceError(ValueError):
    """An object of JSON has a key more than once: which of its values was meant, nobody can know."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {printable(key[:80])!r} is there twice")
        self.key = key


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises KeyTwiceError where the last of several values would silently win, else ValueError."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    given = dict(pairs)
    if len(given) < len(pairs):
        raise KeyTwiceError(next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1))
    return given


def is_csv(path: Path) -> bool:
    """By its ending; else by its first character, which is `{` in JSON Lines."""
    if path.suffix.lower() in (".csv", ".jsonl", ".ndjson"):
        return path.suffix.lower() == ".csv"
    with path.open("rb") as file:
        return not file.read(200).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{")


def envelope_from(path: Path) -> dict[str, Any] | None:
    """The envelope's fields in the first line of JSON Lines, `{"envelope": {…}}`, if they are there.

    Raises Refused where one is there twice."""
    if is_csv(path):
        return None
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        text = file.readline(_LINE_CHARACTERS)
    try:
        first = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not (isinstance(first, dict) and set(first) == {"envelope"} and isinstance(first["envelope"], dict)):
        return None  # a disbursement: what is wrong with it is named with all the others
    try:
        return dict(parse_json(text)["envelope"])
    except KeyTwiceError as error:
        raise Refused(f"the envelope in line 1: {error}") from None


def parse_envelope(fields: dict[str, Any]) -> EnvelopeFile:
    """Raises Refused, naming every fault by its JSON pointer."""
    try:
        envelope = EnvelopeFile.model_validate_json(json.dumps(fields))
        unit = envelope.unit
        if envelope.total is not None:
            unit.to_minor(envelope.total)
        return envelope
    except ValidationError as error:
        faults = [f"  {printable(pointer(one['loc'])) or '/'}: {one['msg']}" for one in error.errors(include_url=False)]
        raise Refused("the envelope is not complete:\n" + "\n".join(faults)) from None
    except MoneyError as error:
        raise Refused(f"the envelope: {error}") from None


def read(path: Path) -> Iterator[tuple[int, DisbursementLine | list[Fault]]]:
    """(line number, the disbursement or what is wrong with it), one at a time."""
    return _read_csv(path) if is_csv(path) else _read_json_lines(path)


def _read_csv(path: Path) -> Iterator[tuple[int, DisbursementLine | list[Fault]]]:
    known = list(DisbursementLine.model_fields)
    required = [name for name, info in DisbursementLine.model_fields.items() if info.is_required()]
    with path.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as file:
        first = file.readline(_LINE_CHARACTERS)
        if not _is_utf8(first) or "\0" in first:
            yield 1, [Fault(1, "", _NOT_UTF8)]
            return
        file.seek(0)
        rows = csv.reader(_pieces(file), delimiter=max(",;\t|", key=first.count), strict=True)
        try:
            header = [name.strip().lower() for name in next(rows, [])]
        except csv.Error as error:
            yield 1, [Fault(1, "", f"not CSV: {error}")]
            return
        faults = [
            Fault(1, name, "a column we don't know; known are " + ", ".join(known)) for name in header if name not in known
        ]
        faults += [Fault(1, name, "the column is missing in the header") for name in required if name not in header]
        faults += [Fault(1, name, "the column is there twice") for name in sorted(set(header)) if header.count(name) > 1]
        if faults:
            yield 1, faults
            return
        while True:
            line = rows.line_num + 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, [Fault(line, "", f"not CSV: {error}")]
                return  # whatever follows an open quote can't be told apart
            if not row:
                continue
            if len(row) != len(header):
                yield line, [Fault(line, "", f"{len(row)} fields, the header has {len(header)}")]
                continue
            given = dict(zip(header, row, strict=True))
            yield line, _line(line, given, csv_columns=True)


def _read_json_lines(path: Path) -> Iterator[tuple[int, DisbursementLine | list[Fault]]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for line, text in enumerate(_pieces(file), 1):
            if not text.strip():
                continue
            try:
                given = parse_json(text)
            except KeyTwiceError as error:
                yield line, [Fault(line, pointer([error.key]), "the key is there twice")]
                continue
            except (ValueError, RecursionError) as error:
                yield line, [Fault(line, "", f"not JSON: {error}")]
                if len(text) == _LINE_CHARACTERS:
                    return  # of a longer line the end is missing, and no line after it could be counted
                continue
            if not isinstance(given, dict):
                yield line, [Fault(line, "", "a line is a JSON object")]
            elif line == 1 and set(given) == {"envelope"}:
                continue
            else:
                yield line, _line(line, given, csv_columns=False)


def _pieces(file: TextIO) -> Iterator[str]:
    """The lines of a file; one that is too long comes in several."""
    return iter(lambda: file.readline(_LINE_CHARACTERS), "")


def _line(line: int, given: dict[str, Any], *, csv_columns: bool) -> DisbursementLine | list[Fault]:
    if any(isinstance(value, str) and not value.isascii() and not _is_utf8(value) for value in given.values()):
        return [Fault(line, "", _NOT_UTF8)]
    if csv_columns:
        given = {name: value.strip() for name, value in given.items()}
    try:
        return DisbursementLine.model_validate(given)
    except ValidationError as error:
        return [
            Fault(line, str(one["loc"][0]) if csv_columns else pointer(one["loc"]), _plain(one))
            for one in error.errors(include_url=False)
        ]


def _plain(error: Any) -> str:
    if error["type"] == "missing":
        return "is missing"
    if error["type"] == "extra_forbidden":
        return "a field we don't know"
    if error["loc"] and error["loc"][0] == "amount":
        return f'{str(error.get("input"))[:40]!r} is not a positive decimal number as text, such as "100.25"'
    if error["type"] == "string_too_short":
        return "is empty"
    return str(error["msg"])


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def disbursements(path: Path, unit: Unit) -> Iterator[Disbursement]:
    """What `check` has found to be without fault, ready to publish. Raises Refused if the file has changed since."""
    for line, found in read(path):
        if isinstance(found, list):
            raise Refused(f"{path.name} has changed while it was read: {found[0]}")
        try:
            amount_minor = unit.to_minor(found.amount)
        except MoneyError as error:
            raise Refused(f"{path.name} has changed while it was read: line {line}: {error}") from None
        one = Disbursement(
            disbursement_id=found.disbursement_id, beneficiary_id=found.beneficiary_id, amount_minor=amount_minor
        )
        if found.beneficiary_name:
            one["beneficiary_name"] = found.beneficiary_name
        if found.narrative:
            one["narrative"] = found.narrative
        if contact := found.contact():
            one["contact"] = contact
        yield one


def check(path: Path, unit: Unit) -> Summary:
    """Read all of a file and name every fault in it. Ids seen so far are kept on disk, so memory stays flat."""
    summary = Summary()
    amount_place = "amount" if is_csv(path) else "/amount"
    id_place = amount_place.replace("amount", "disbursement_id")
    person_place = amount_place.replace("amount", "beneficiary_id")
    with tempfile.TemporaryDirectory(prefix="almoner-submit-") as folder:
        seen = sqlite3.connect(Path(folder) / "seen.sqlite", isolation_level=None)
        seen.executescript(
            """PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
               CREATE TABLE seen (kind INT, id TEXT, line INT, PRIMARY KEY (kind, id)) WITHOUT ROWID; BEGIN"""
        )
        for line, found in read(path):
            if isinstance(found, list):
                for fault in found:
                    summary.fault(fault)
                continue
            summary.count += 1
            try:
                amount_minor = unit.to_minor(found.amount)
            except MoneyError as error:
                summary.fault(Fault(line, amount_place, str(error)))
                continue
            if amount_minor == 0:
                summary.fault(Fault(line, amount_place, "nothing to pay: the amount is zero"))
            summary.total_minor += amount_minor
            if earlier := _seen(seen, 0, found.disbursement_id, line):
                summary.fault(Fault(line, id_place, f"{found.disbursement_id} stands in line {earlier} already"))
            if earlier := _seen(seen, 1, found.beneficiary_id, line):
                text = f"{found.beneficiary_id} stands in line {earlier} already; both will be paid"
                summary.warn(Fault(line, person_place, text))
            else:
                summary.beneficiaries += 1
        seen.close()
    if summary.total_minor > MAX_MINOR:
        summary.fault(Fault(0, amount_place, "the total is more than can be booked"))
    if not summary.count and not summary.fault_count:
        summary.fault(Fault(1, "", "there is no disbursement in the file"))
    return summary


def _seen(seen: sqlite3.Connection, kind: int, value: str, line: int) -> int | None:
    """The line where the value stood first, or None for now."""
    if seen.execute("INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", (kind, value, line)).rowcount:
        return None
    found: int = seen.execute("SELECT line FROM seen WHERE kind = ? AND id = ?", (kind, value)).fetchone()[0]
    return found


def schemas() -> dict[str, str]:
    """File name -> text of the published JSON Schemas."""
    written = {}
    for name, model in (("envelope", EnvelopeFile), ("disbursement", DisbursementLine)):
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
        written[f"{name}.schema.json"] = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    return written


if __name__ == "__main__":
    SCHEMAS.mkdir(parents=True, exist_ok=True)
    for file_name, text in schemas().items():
        (SCHEMAS / file_name).write_text(text)
