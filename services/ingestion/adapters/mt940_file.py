"""MT940 files, read in pieces: first where its statements begin and end, then their lines.

The fields `:61:` are read by `mt-940`, one at a time: its parser of whole files keeps only the last statement's balances,
drops empty narrative lines (the fifth would become the fourth) and fails altogether at one bad line. Source of the format:
SWIFT's MT940 as banks write it; the details were checked against `mt-940` 5.1. Why so:
docs/adr/0018-reading-mt940.md.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

from mt940 import tags

from libs.common.money import MoneyError, checked, scale, to_minor

MAX_LINE_BYTES = 2_000  # of text; what is longer is no MT940
MAX_NARRATIVES = 20
_MAX_ENTRY_BYTES = 2 * MAX_NARRATIVES * MAX_LINE_BYTES
_MAX_FIELD_61 = 300  # characters; the library's pattern takes quadratic time on hostile ones
_MAX_REFERENCE = 35

# StatementGLS: a customer reference is never cut at 16 characters, where its head could look like another's.
_LINE = tags.StatementGLS()
_GROUPS = ("year", "month", "day", "status", "amount", "id", "customer_reference", "bank_reference")
# What nearly all lines look like, matched in a fifth of the time. Whatever it matches the library's pattern reads as it does.
_USUAL_LINE = re.compile(
    r"(\d\d)(\d\d)(\d\d)(?:\d{4})?(R?[DC])(\d{1,11}),(\d{0,3})([NSF][A-Z0-9]{3})([!-.0-~]{0,16})//([!-.0-~]{1,16})", re.ASCII
)
_OPENING = tags.FinalOpeningBalance()
_NUMBER = tags.StatementNumber()
_BOM = b"\xef\xbb\xbf"
_BEGINNING = re.compile(rb"\n:(?:20:|25:|60|61:|62)")
_ENTRY = b"\n:61:"
_OF_LINES = (b":61:", b":86:")
_OF_HEAD = re.compile(rb"\n:(?!61:|86:)")
_UNUSUAL = (b"\r", b"\t", b"\v", b"\f", b"{", b" \n", b"\n\n", b"\n-")  # what may be left out of a digest
_TAG = re.compile(rb":(\d\d[A-Z]?|NS):")
_TYPE = re.compile(r"[NSF][A-Z0-9]{2}[A-Z0-9 ]")  # some banks have types of two letters and a space
_CURRENCY = re.compile(r"[A-Z]{3}")
_NOT_A_LINE = "not in the form of :61: (date, mark, amount, type, references)"
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
    closing_date: date | None = None
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


def blocks(pieces: Iterable[bytes], start: int = 0) -> Iterator[tuple[int, bytes, bool]]:
    """(first byte, text, whether an LF ends it) of consecutive pieces of a file, the first of which begins at byte `start`.
    A text is lines, without the last LF. What no LF ends is the file's last line, alone.

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
            yield start, begun, True
            start += size + 1
        text, newline, last = piece.rpartition(b"\n")
        if newline and _has_long_line(text):
            for line in text.split(b"\n"):
                yield start, line[:MAX_LINE_BYTES], True
                start += len(line) + 1
        elif newline:
            yield start, text, True
            start += len(text) + 1
        begun, size = last[:MAX_LINE_BYTES], len(last)
    if size:
        yield start, begun, False


def _has_long_line(text: bytes) -> bool:
    """Found in leaps: from a line's end to the last one within the limit."""
    at = 0
    while len(text) - at > MAX_LINE_BYTES:
        at = text.rfind(b"\n", at, at + MAX_LINE_BYTES + 1) + 1
        if not at:
            return True
    return False


def scan(pieces: Iterable[bytes]) -> list[Head]:
    """The statements of a file: a cheap first pass. Never raises; a statement that can't be used has a fault."""
    heads: list[Head] = []
    content = _Digest()
    end = 0
    for start, text, ended in blocks(pieces):
        if start == 0 and text.startswith(_BOM):
            text, start = text.removeprefix(_BOM), len(_BOM)
        text = b"\n" + text  # every line begins behind an LF; the one at text[n] is at byte start + n
        end = start + len(text)
        first = None if heads else _BEGINNING.search(text)
        if first is None and not heads:
            continue
        # Looked at are the lines which begin a statement or say something of it, not its thousands of payments.
        begin = first.start() if first else 0
        cuts = sorted({begin, *(found.start() for found in _OF_HEAD.finditer(text, begin)), len(text)})
        for at, following in pairwise(cuts):
            tag = text[at + 1 : at + 5]
            if tag == b":20:" or not heads:
                if heads:
                    heads[-1].end, heads[-1].digest = start + at, content.value()
                heads.append(Head(start + at))
                content = _Digest()
            content.add(text[at:following])
            heads[-1].lines += text.count(_ENTRY, at, following)
            if tag[:1] == b":" and tag not in _OF_LINES:
                line_end = text.find(b"\n", at + 1, following)
                _read_head(heads[-1], text[at + 1 : following if line_end < 0 else line_end], ended)
    if heads:
        heads[-1].end, heads[-1].digest = end, content.value()
    for head in heads:
        head.fault = _fault(head)
    return heads


class _Digest:
    """Of a statement's text, whatever its line ends, blank lines and SWIFT's blocks around it."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, text: bytes) -> None:
        """Lines, each behind an LF."""
        text = text.rstrip().replace(b"\r\n", b"\n")
        if any(unusual in text for unusual in _UNUSUAL):
            lines = map(bytes.rstrip, text.split(b"\n"))
            text = b"\n".join([b"", *(line for line in lines if line and (line[0] not in b"-{" or _counts(line)))])
        if text:
            self._hash.update(text[1:])
            self._hash.update(b"\n")

    def value(self) -> str:
        return self._hash.hexdigest()


def _counts(line: bytes) -> bool:
    return line != b"-" and not line.startswith((b"-}", b"{"))


def _read_head(head: Head, line: bytes, ended: bool) -> None:
    name, value = line[1:4], _text(line[line.find(b":", 1) + 1 :])
    if name == b"20:":
        head.reference = clean(value, 16)
    elif name == b"25:" and not head.account:
        head.account = clean(value, 35)
    elif name in (b"28C", b"28:") and not head.number:
        match = _NUMBER.re.match(value)
        head.number = _plain(match["statement_number"]) if match else clean(value, 11)
        head.sequence = _plain(match["sequence_number"] or "") if match else ""
    elif name in (b"60F", b"60M") and head.opening_minor is None:
        head.currency, head.opening_minor, _ = _balance(value)
    elif name in (b"62F", b"62M"):
        currency, head.closing_minor, head.closing_date = _balance(value)
        # Where the file ends in this line, `40,` and `40` may be a part of `40,10`; some banks write `40,` and then end the line.
        if currency != head.currency or not (ended or _has_all_decimals(value, currency)):
            head.closing_minor = None


def _plain(number: str) -> str:
    """Without leading zeros: the same number, however a bank fills it up."""
    return number.lstrip("0") or number[-1:]


def _balance(value: str) -> tuple[str | None, int | None, date | None]:
    """(currency, signed minor units, date), None where it can't be read."""
    match = _OPENING.re.fullmatch(value)  # else "100.25" would pass as 100
    currency = match["currency"].upper() if match else ""
    if match is None or not _CURRENCY.fullmatch(currency):
        return None, None, None
    try:
        minor = _minor(match["amount"], currency)
    except MoneyError:
        return None, None, None
    try:
        day = date(2000 + int(match["year"]), int(match["month"]), int(match["day"]))
    except ValueError:
        day = None
    return currency, -minor if match["status"].upper() == "D" else minor, day


def _has_all_decimals(balance: str, currency: str | None) -> bool:
    _, comma, fraction = balance.partition(",")
    return currency is not None and bool(comma) and len(fraction) >= scale(currency)


def _minor(amount: str, currency: str) -> int:
    """SWIFT's "100,25", "500," -> minor units. Raises MoneyError."""
    whole, _, fraction = amount.partition(",")
    digits = whole + fraction
    if whole and len(fraction) == scale(currency) and digits.isascii() and digits.isdecimal():  # as nearly all are
        return checked(int(digits))
    return to_minor(amount.replace(",", ".").removesuffix("."), currency)


def _fault(head: Head) -> tuple[str, str] | None:
    if head.reference is None:
        return "NO_REFERENCE", "the statement does not begin with :20:; send the whole file"
    if not head.account:
        return "NO_ACCOUNT", "the statement names no account (:25:); send it with its account"
    if head.opening_minor is None:
        return (
            "NO_OPENING_BALANCE",
            "the opening balance (:60F: or :60M:) is missing or can't be read; send it, without it there is no currency",
        )
    if head.closing_minor is None:
        # The last line of a file that was cut may show a part of its amount: nothing of it can be trusted.
        return (
            "NO_CLOSING_BALANCE",
            "the closing balance (:62F: or :62M:) is missing or can't be read; send the file again, it may have been cut",
        )
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
    if usual := _USUAL_LINE.fullmatch(value):
        year, month, day, status, whole, fraction, kind, customer, bank = usual.groups()
        amount = int(whole + fraction)
        if amount and len(fraction) == scale(currency):
            value_date, mark = _form(year, month, day, status, kind)
            return Line(mark, amount, value_date, customer, bank)
    found = _LINE.re.match(value)  # not its `parse`, which writes what it can't read, account data, into the log
    if found is None:
        raise Unreadable(_NOT_A_LINE)
    year, month, day, status, amount_text, kind, customer, bank = found.group(*_GROUPS)
    value_date, mark = _form(year, month, day, status, kind)
    try:
        amount = _minor(amount_text, currency)
    except MoneyError:
        raise Unreadable(f"the amount is not one of {currency}, with at most {scale(currency)} decimals") from None
    if amount <= 0:
        raise Unreadable("the amount is zero")
    return Line(mark, amount, value_date, clean(customer or "", _MAX_REFERENCE), clean(bank or "", _MAX_REFERENCE))


@lru_cache(maxsize=256)  # the same in nearly all lines of a statement
def _form(year: str, month: str, day: str, status: str, kind: str | None) -> tuple[date, Literal["D", "C", "RD", "RC"]]:
    # The library takes any four characters for the type, or none: a damaged amount would pass as a smaller one.
    if not _TYPE.fullmatch(kind or ""):
        raise Unreadable(_NOT_A_LINE)
    try:
        return date(2000 + int(year), int(month), int(day)), _MARKS[status.upper()]
    except ValueError:
        raise Unreadable("the value date is not a date") from None


def clean(value: str, characters: int) -> str:
    """Printable, without spaces around, of at most so many characters."""
    value = value.strip()
    if not value.isprintable():
        value = "".join(c if c.isprintable() else "\ufffd" for c in value)
    return value[:characters]


def are_clean(texts: Sequence[str], characters: int) -> bool:
    """Whether `clean` would change none of them: told at once, for narratives by the thousand."""
    lines = "\n".join(["", *texts, ""])
    return (
        "".join(texts).isprintable()
        and " \n" not in lines  # of what is printable, only this is a space
        and "\n " not in lines
        and max(map(len, texts), default=0) <= characters
    )


def _text(line: bytes) -> str:
    try:
        return line.decode().rstrip()
    except UnicodeDecodeError:
        return line.decode("latin-1").rstrip()
