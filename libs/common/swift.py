"""What goes to a bank: plain lines of SWIFT's character set, and accounts that can be written in it."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

_SWIFT = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/-?:().,'+ "
_SWIFT_BYTES = _SWIFT.encode() + b"\n"
_ALREADY_SWIFT = re.compile(r"[A-Za-z0-9/?().,'+](?:[A-Za-z0-9/?:().,'+ -]*[A-Za-z0-9/?:().,'+-])?")
_NOT_YET = re.compile(r"\n[\n:\- ]| \n")  # in lines between line breaks: empty, with a mark or a space where none may be
_NARRATIVE_CHARACTERS = 65


def swift(text: str, longest: int = _NARRATIVE_CHARACTERS) -> str:
    """One line of SWIFT's character set X, no leading ':' or '-', never empty.

    A line break in a narrative could otherwise forge a statement line."""
    if len(text) <= longest and _ALREADY_SWIFT.fullmatch(text):
        return text
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    clean = "".join(c if c in _SWIFT else " " if c.isspace() else "?" for c in text).strip()
    return clean.lstrip(":- ")[:longest].rstrip() or "."


def swift_lines(texts: Sequence[str], longest: int = _NARRATIVE_CHARACTERS) -> Sequence[str]:
    """The same for each of many; nearly all lists are of that form already, which is seen at one look."""
    joined = "\n" + "\n".join(texts) + "\n"
    if (
        joined.count("\n") == len(texts) + 1
        and joined.isascii()
        and not joined.encode().translate(None, _SWIFT_BYTES)
        and max(map(len, texts), default=0) <= longest
        and not _NOT_YET.search(joined)
    ):
        return texts
    return [swift(text, longest) for text in texts]


def are_swift(texts: Iterable[str]) -> bool:
    """Whether each of them is such a line as it is, of any length: `swift` would change nothing of it."""
    return all(map(_ALREADY_SWIFT.fullmatch, texts))


MAX_ACCOUNT = 34


def usable(account: object) -> bool:
    """An agency's account that a bank can be told. Of an agency without one no cash is handed out, and none is paid to it."""
    if not isinstance(account, Mapping) or not all(isinstance(text, str) and text.isprintable() for text in account.values()):
        return False
    number = account.get("account_number", "")
    return 0 < len(number) <= MAX_ACCOUNT and swift(number, MAX_ACCOUNT) == number
