"""MT940 text as the simulated bank writes it. Lines end in CRLF, as SWIFT has it."""

from collections.abc import Iterable, Sequence
from datetime import date
from functools import cache
from typing import NamedTuple

_NO_MINOR_UNIT = frozenset(
    [
        "BIF",
        "CLP",
        "DJF",
        "GNF",
        "ISK",
        "JPY",
        "KMF",
        "KRW",
        "PYG",
        "RWF",
        "UGX",
        "UYI",
        "VND",
        "VUV",
        "XAF",
        "XOF",
        "XPF",
    ]
)
_THREE_DIGITS = frozenset(["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"])
SIGN = {"D": -1, "RD": 1, "C": 1, "RC": -1}


class Line(NamedTuple):
    """`mark`: D, RD, C or RC. Trailing empty narratives are lost, more than six are not sent."""

    mark: str
    amount_minor: int
    customer_reference: str
    bank_reference: str
    narratives: Sequence[str | None]

    @property
    def effect_minor(self) -> int:
        return SIGN[self.mark] * self.amount_minor


Fields = tuple[str, int, str, str, Sequence[str | None]]  # a Line, or a plain tuple of the same: thousands are cheaper


def scale(currency: str) -> int:
    """Digits of the minor unit (ISO 4217)."""
    return 0 if currency in _NO_MINOR_UNIT else 3 if currency in _THREE_DIGITS else 2


def statement(
    *,
    reference: str,
    account: str,
    number: int,
    currency: str,
    opening_minor: int,
    closing_minor: int,
    day: date,
    lines: Iterable[Fields],
) -> str:
    """One statement of one account. `reference`: 16 characters at most; both balances may be negative."""
    digits = scale(currency)
    yymmdd = f"{day:%y%m%d}"
    dates = f":61:{yymmdd}{day:%m%d}"
    text = [
        f":20:{reference}",
        f":25:{account}",
        f":28C:{number}/1",
        f":60F:{_balance(opening_minor, yymmdd, currency, digits)}",
    ]
    unit, parts = 10**digits, _parts(digits)
    for mark, amount_minor, customer_reference, bank_reference, narratives in lines:
        whole, part = divmod(amount_minor, unit)
        text.append(f"{dates}{mark}{whole}{parts[part]}NTRF{customer_reference[:16]}//{bank_reference}")
        sent = [narrative[:65] if narrative else "" for narrative in narratives[:6]]
        while sent and not sent[-1]:
            sent.pop()
        if sent:
            text.append(":86:" + "\r\n".join(sent))
    text.append(f":62F:{_balance(closing_minor, yymmdd, currency, digits)}")
    return "\r\n".join(text) + "\r\n"


def _balance(amount_minor: int, yymmdd: str, currency: str, digits: int) -> str:
    return f"{'D' if amount_minor < 0 else 'C'}{yymmdd}{currency}{_amount(abs(amount_minor), digits)}"


def _amount(amount_minor: int, digits: int) -> str:
    whole, part = divmod(amount_minor, 10**digits)
    return f"{whole}{_parts(digits)[part]}"


@cache
def _parts(digits: int) -> list[str]:
    """The comma and what may follow it: ",00" to ",99"."""
    return [f",{part:0{digits}d}" for part in range(10**digits)] if digits else [","]
