"""Money is an integer of minor units and an ISO 4217 code; decimal text exists only at the edges (files, banks, people).

Goods are counted in the same way, in a unit that says its decimals itself: 25.5 kg at 3 decimals is 25500.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

MAX_MINOR = 2**63 - 1  # what a bigint column holds

# ISO 4217 (2026): the codes whose minor unit is not 2 decimals, then all the others that are in use.
_SCALES = {
    **dict.fromkeys("BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF".split(), 0),
    **dict.fromkeys("BHD IQD JOD KWD LYD OMR TND".split(), 3),
    **dict.fromkeys("CLF UYW".split(), 4),
    **dict.fromkeys(
        "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF CHW "
        "CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF "
        "IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK "
        "MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP "
        "SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XCD XCG YER "
        "ZAR ZMW ZWG".split(),
        2,
    ),
}


_PLAIN = re.compile(r"[+-]?[0-9]{1,20}(\.[0-9]{1,20})?")


class Unit(NamedTuple):
    """What amounts are counted in: a currency, or the unit of goods."""

    name: str
    decimals: int

    def to_minor(self, text: str | Decimal) -> int:
        """Decimal text -> whole parts of the unit's smallest. Raises MoneyError as the function below does."""
        plain = f"{text:f}" if isinstance(text, Decimal) else text
        if not _PLAIN.fullmatch(plain):
            raise MoneyError(f"{text!r} is not a decimal number such as 100.25")
        whole, _, fraction = plain.partition(".")
        if fraction[self.decimals :].strip("0"):
            raise MoneyError(f"{text} has more decimals than {self.name} has ({self.decimals})")
        return checked(int(whole + fraction[: self.decimals].ljust(self.decimals, "0")))

    def to_decimal(self, minor: int) -> Decimal:
        """The exact decimal, with all decimals of the unit."""
        return Decimal(minor).scaleb(-self.decimals)


class MoneyError(ValueError):
    """An amount or a currency which cannot be represented exactly; the text names it and the rule."""


def scale(currency: str) -> int:
    """Decimals of a currency's minor unit (JPY 0, EUR 2, KWD 3). Raises MoneyError for an unknown code."""
    try:
        return _SCALES[currency]
    except KeyError:
        raise MoneyError(f"{currency!r} is not an ISO 4217 currency code") from None


def to_minor(text: str | Decimal, currency: str) -> int:
    """Decimal text in major units -> minor units. "100.25", "EUR" -> 10025.

    Raises MoneyError for what is not a plain finite decimal, has more decimals than the currency, or overflows bigint."""
    return Unit(currency, scale(currency)).to_minor(text)


def to_decimal(minor: int, currency: str) -> Decimal:
    """Minor units -> exact decimal in major units, with all decimals of the currency. 10025, "EUR" -> Decimal("100.25")."""
    return Unit(currency, scale(currency)).to_decimal(minor)


def to_text(minor: int, currency: str) -> str:
    """The same as text. 10025, "EUR" -> "100.25"; 7, "JPY" -> "7". Not for negative amounts."""
    return to_texts([minor], currency)[0]


def to_texts(minors: Sequence[int], currency: str) -> list[str]:
    """The same for many."""
    decimals = scale(currency)
    if not decimals:
        return list(map(str, minors))
    return [f"{digits[:-decimals]}.{digits[-decimals:]}" for digits in (str(minor).zfill(decimals + 1) for minor in minors)]


def checked(minor: int) -> int:
    """The same number, or MoneyError if a bigint cannot hold it."""
    if not -MAX_MINOR <= minor <= MAX_MINOR:
        raise MoneyError(f"{minor} is more than can be booked (at most {MAX_MINOR} minor units)")
    return minor
