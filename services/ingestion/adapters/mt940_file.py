"""MT940 files, read in pieces: first where its statements begin and end, then their lines.

The fields `:61:` are read by `mt-940`, one at a time: its parser of whole files keeps only the last statement's balances,
drops empty narrative lines (the fifth would become the fourth) and fails altogether at one bad line. Source of the format:
SWIFT's MT940 as banks write it; the details were checked against `mt-940` 5.1.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from typing import Literal, NamedTuple

from mt940 import tags

from libs.common.money import MoneyError, scale, to_minor

MAX_LINE_BYTES = 2_000  # of text; what is longer is no MT940
MAX_NARRATIVES = 20
_MAX_ENTRY_BYTES = 2 * MAX_NARRATIVES * MAX_LINE_BYTES
_MAX_FIELD_61 = 300  # characters; the library's pattern takes quadratic time on hostile ones
_MAX_REFERENCE = 35

# StatementGLS: a customer reference is never cut at 16 characters, where its head could look like another's.
_LINE = tags.StatementGLS()
_OPENING = tags.FinalOpeningBalance()
_NUMBER = tags.StatementNumber()
_BOM = b"\xef\xbb\xbf"
_BEGINNINGS = (b":20:", b":25:", b":60", b":61:", b":62")
_ENTRY = b"\n:61:"
_OF_LINES = (b":61:", b":86:")
_TAG = re.compile(rb":(\d\d[A-Z]?|NS):")
_TYPE = re.compile(r"[NSF][A-Z0-9]{3}")
_CURRENCY = re.compile(r"[A-Z]{3}")
_MARKS: dict[str, Literal["D", "C", "RD", "RC"]] = {"D": "D", "C": "C", "RD": "RD", "RC": "RC"}


@dataclass(slots=True)
class Head:
    """A statement without its lines. `start` and `end` are bytes of the file; `fault` says why it can't be used."""

    start: int
    end: int = 0
    reference: str | None = None
    account: str = ""
    number: str = ""
    sequence: str = ""
    currency: str | None = None
    opening_minor: int | None = None
    closing_minor: int | None = None
    lines: int = 0
    digest: str = ""
    fault: tuple[str, str] | None = None  # code, message


class Line(NamedTuple):
    mark: Literal["D", "C", "RD", "RC"]
    amount_minor: int
    value_date: date
    customer_reference: str
    bank_reference: str


@dataclass(slots=True)
class Entry:
    """One `:61:` with its `:86:`, as text. `start` is its first byte in the file."""

    start: int
    fields: list[str] = field(default_factory=list)
    narratives: list[str] = field(default_factory=list)


class Unreadable(ValueError):
    """A line that is not MT940; the text says why and holds nothing of its content."""


def blocks(pieces: Iterable[bytes], start: int = 0) -> Iterator[tuple[int, list[bytes]]]:
    """(first byte, lines without their LF) of consecutive pieces of a file, the first of which begins at byte `start`.

    By blocks, since a statement has a million lines. A line over MAX_LINE_BYTES comes clipped and in a block of its own, so
    that a file without line ends costs no memory and the byte of every other line is the sum of those before it."""
    begun, size = b"", 0  # of a line that goes on in the next piece
    for piece in pieces:
        if size:
            rest, newline, piece = piece.partition(b"\n")
            begun = (begun + rest)[:MAX_LINE_BYTES]
            size += len(rest)
            if not newline:
                continue
            yield start, [begun]
            start += size + 1
        *lines, last = piece.split(b"\n")
        if lines and max(map(len, lines)) > MAX_LINE_BYTES:
            for line in lines:
                yield start, [line[:MAX_LINE_BYTES]]
                start += len(line) + 1
        elif lines:
            yield start, lines
            start += len(piece) - len(last)
        begun, size = last[:MAX_LINE_BYTES], len(last)
    if size:
        yield start, [begun]


def scan(pieces: Iterable[bytes]) -> list[Head]:
    """The statements of a file: a cheap first pass. Never raises; a statement that can't be used has a fault."""
    heads: list[Head] = []
    content = _Digest()
    end = 0
    for start, lines in blocks(pieces):
        if start == 0 and lines[0].startswith(_BOM):
            lines[0] = lines[0].removeprefix(_BOM)
            start = len(_BOM)
        first = 0 if heads else next((n for n, line in enumerate(lines) if line.startswith(_BEGINNINGS)), len(lines))
        # Looked at are the lines which begin a statement or say something of it, not its thousands of payments.
        marks = [n for n, line in enumerate(lines) if line[:1] == b":" and (line[:4] not in _OF_LINES or n == first)]
        at, place = 0, start
        for n in (*marks, len(lines)):
            skipped = lines[at:n]
            if heads:
                content.add(skipped)
                heads[-1].lines += [line[:4] for line in skipped].count(b":61:")
            place += sum(map(len, skipped)) + len(skipped)
            if n == len(lines):
                break
            line, at = lines[n], n + 1
            if line.startswith(b":20:") or (not heads and line.startswith(_BEGINNINGS)):
                if heads:
                    heads[-1].end, heads[-1].digest = place, content.value()
                heads.append(Head(place))
                content = _Digest()
            if heads:
                content.add([line])
                if line.startswith(b":61:"):
                    heads[-1].lines += 1
                else:
                    _read_head(heads[-1], line)
            place += len(line) + 1
        end = place
    if heads:
        heads[-1].end, heads[-1].digest = end, content.value()
    for found in heads:
        found.fault = _fault(found)
    return heads


class _Digest:
    """Of a statement's text, whatever its line ends, blank lines and SWIFT's blocks around it."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._lines: list[bytes] = []

    def add(self, lines: Iterable[bytes]) -> None:
        self._lines += [line for line in map(bytes.rstrip, lines) if line and (line[0] not in b"-{" or _counts(line))]
        if len(self._lines) >= 1000:
            self._flush()

    def _flush(self) -> None:
        self._hash.update(b"\n".join([*self._lines, b""]))
        self._lines.clear()

    def value(self) -> str:
        self._flush()
        return self._hash.hexdigest()


def _counts(line: bytes) -> bool:
    return line != b"-" and not line.startswith((b"-}", b"{"))


def _read_head(head: Head, line: bytes) -> None:
    name, value = line[1:4], _text(line[line.find(b":", 1) + 1 :])
    if name == b"20:":
        head.reference = clean(value, 16)
    elif name == b"25:" and not head.account:
        head.account = clean(value, 35)
    elif name in (b"28C", b"28:") and not head.number:
        match = _NUMBER.re.match(value)
        head.number = match["statement_number"] if match else clean(value, 11)
        head.sequence = (match["sequence_number"] or "") if match else ""
    elif name in (b"60F", b"60M") and head.opening_minor is None:
        head.currency, head.opening_minor = _balance(value)
    elif name in (b"62F", b"62M"):
        currency, head.closing_minor = _balance(value)
        if currency != head.currency:
            head.closing_minor = None


def _balance(value: str) -> tuple[str | None, int | None]:
    """(currency, signed minor units), None where it can't be read."""
    match = _OPENING.re.match(value)
    currency = match["currency"].upper() if match else ""
    if match is None or not _CURRENCY.fullmatch(currency):
        return None, None
    try:
        minor = _minor(match["amount"], currency)
    except MoneyError:
        return None, None
    return currency, -minor if match["status"].upper() == "D" else minor


def _minor(amount: str, currency: str) -> int:
    """SWIFT's "100,25", "500," -> minor units. Raises MoneyError."""
    return to_minor(amount.replace(",", ".").removesuffix("."), currency)


def _fault(head: Head) -> tuple[str, str] | None:
    if head.reference is None:
        return "NO_REFERENCE", "the statement does not begin with :20:; send the whole file"
    if not head.account:
        return "NO_ACCOUNT", "the statement names no account (:25:)"
    if head.opening_minor is None:
        return (
            "NO_OPENING_BALANCE",
            "the opening balance (:60F: or :60M:) is missing or can't be read; without it there is no currency",
        )
    if head.closing_minor is None:
        # The last line of a file that was cut may show a part of its amount: nothing of it can be trusted.
        return "NO_CLOSING_BALANCE", "the closing balance (:62F: or :62M:) is missing or can't be read; was the file cut?"
    return None


def entries(pieces: Iterable[bytes], start: int, end: int) -> Iterator[Entry]:
    """The `:61:` of a statement up to byte `end` of its file, each with the narratives of its `:86:`. The pieces begin at
    byte `start`. Nearly all are cut out whole; what is not in the usual form is read line by line."""
    for place, content in _cut(pieces, start, end):
        text = _text(content)
        field, _, narrative = text.partition("\n:86:")
        if "\n" in field or "\n:" in narrative or "\n-" in narrative or len(content) > MAX_LINE_BYTES:
            yield _read_entry(place, content)
        else:
            yield Entry(place, [field.rstrip()], narrative.replace("\r\n", "\n").split("\n") if narrative else [])


def _cut(pieces: Iterable[bytes], start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """(its first byte, what follows `:61:` up to the next one)."""
    rest, begin = b"\n", start - 1  # the first entry may begin the first piece
    place: int | None = None  # of the entry in `rest`
    for piece in pieces:
        *whole, rest = (rest + piece[: max(0, end - begin - len(rest))]).split(_ENTRY)
        for content in whole:
            if place is not None:
                yield place, content
            begin += len(content) + len(_ENTRY)
            place = begin - len(_ENTRY) + 1
        if len(rest) > _MAX_ENTRY_BYTES:  # no entry is so long, and nobody's memory is to hold it
            clipped = rest[:_MAX_ENTRY_BYTES] + b"?" + rest[-len(_ENTRY) :]
            begin += len(rest) - len(clipped)
            rest = clipped
        if begin + len(rest) >= end:
            break
    if place is not None:
        yield place, rest


def _read_entry(place: int, content: bytes) -> Entry:
    first, *lines = content.split(b"\n")
    entry = Entry(place, [_text(first[:MAX_LINE_BYTES])])
    into: list[str] | None = entry.fields  # what the next line of text belongs to
    for line in lines:
        if line.startswith(b":86:"):
            into, line = entry.narratives, line[4:]
        elif line[:1] == b":" and _TAG.match(line):
            break
        elif line.rstrip() == b"-" or line.startswith(b"-}"):
            into = None
        if into is not None and len(into) < MAX_NARRATIVES:
            into.append(_text(line[:MAX_LINE_BYTES]))
    return entry


def parse(entry: Entry, currency: str) -> Line:
    """One line in minor units of the currency. Raises Unreadable."""
    value = "\n".join(entry.fields).strip()
    if len(value) > _MAX_FIELD_61:
        raise Unreadable("longer than a :61: can be")
    found = _LINE.re.match(value)  # not its `parse`, which writes what it can't read, account data, into the log
    # The library takes any four characters for the type, or none: a damaged amount would pass as a smaller one.
    if found is None or not _TYPE.fullmatch(found["id"] or ""):
        raise Unreadable("not in the form of :61: (date, mark, amount, type, references)")
    try:
        day = date(2000 + int(found["year"]), int(found["month"]), int(found["day"]))
    except ValueError:
        raise Unreadable("the value date is not a date") from None
    try:
        amount = _minor(found["amount"], currency)
    except MoneyError:
        raise Unreadable(f"the amount is not one of {currency}, with at most {scale(currency)} decimals") from None
    if amount <= 0:
        raise Unreadable("the amount is zero")
    customer, bank = found["customer_reference"] or "", found["bank_reference"] or ""
    return Line(_MARKS[found["status"].upper()], amount, day, clean(customer, _MAX_REFERENCE), clean(bank, _MAX_REFERENCE))


def clean(value: str, characters: int) -> str:
    """Printable, without spaces around, of at most so many characters."""
    value = value.strip()
    if not value.isprintable():
        value = "".join(c if c.isprintable() else "\ufffd" for c in value)
    return value[:characters]


def _text(line: bytes) -> str:
    try:
        return line.decode().rstrip()
    except UnicodeDecodeError:
        return line.decode("latin-1").rstrip()
