"""Money is exact or refused; a local date is that of the programme."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.clock import as_of, local_date, utc_now
from libs.common.money import MAX_MINOR, MoneyError, checked, scale, to_decimal, to_minor, to_text


@pytest.mark.parametrize(("currency", "decimals"), [("JPY", 0), ("EUR", 2), ("KWD", 3), ("CLF", 4), ("LKR", 2)])
def test_scales_are_those_of_iso_4217(currency: str, decimals: int) -> None:
    assert scale(currency) == decimals


@pytest.mark.parametrize("currency", ["EURO", "eur", "", "XXX", "XAU"])
def test_other_codes_are_refused(currency: str) -> None:
    with pytest.raises(MoneyError, match="ISO 4217"):
        scale(currency)


@pytest.mark.parametrize(
    ("text", "currency", "minor"),
    [
        ("100.25", "EUR", 10025),
        ("100", "EUR", 10000),
        ("0.1", "EUR", 10),
        ("-0.05", "EUR", -5),
        ("+7", "JPY", 7),
        ("1.500", "EUR", 150),
        ("1.234", "KWD", 1234),
        (Decimal("1E+3"), "EUR", 100000),
        (Decimal("12.30"), "EUR", 1230),
        ("92233720368547758.07", "EUR", MAX_MINOR),
    ],
)
def test_decimal_text_becomes_minor_units(text: str | Decimal, currency: str, minor: int) -> None:
    assert to_minor(text, currency) == minor


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1,5",
        "1_000",
        " 1",
        "1 ",
        "1e3",
        "NaN",
        "Infinity",
        ".5",
        "5.",
        "١٢",
        "1.0.0",
        "--1",
        "9" * 5000,
        "0." + "1" * 5000,
    ],
)
def test_what_is_no_plain_decimal_is_refused(text: str) -> None:
    with pytest.raises(MoneyError):
        to_minor(text, "EUR")


@pytest.mark.parametrize("text", ["0.001", "1.00000000000000000001", Decimal("1.005"), Decimal("NaN"), Decimal("1E-30")])
def test_nothing_is_rounded(text: str | Decimal) -> None:
    with pytest.raises(MoneyError):
        to_minor(text, "EUR")


def test_what_a_bigint_cannot_hold_is_refused() -> None:
    for text in ("92233720368547758.08", "-92233720368547758.08", "9" * 20):
        with pytest.raises(MoneyError, match="more than can be booked"):
            to_minor(text, "EUR")
    with pytest.raises(MoneyError):
        checked(MAX_MINOR + 1)


@given(st.integers(-MAX_MINOR, MAX_MINOR), st.sampled_from(["JPY", "EUR", "KWD", "CLF"]))
def test_money_survives_the_way_to_text_and_back(minor: int, currency: str) -> None:
    decimal = to_decimal(minor, currency)
    assert to_minor(decimal, currency) == minor
    assert to_minor(f"{decimal:f}", currency) == minor


def test_a_tick_of_the_future_makes_nothing_happen_early() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert as_of(now + timedelta(days=3), now) == now
    assert as_of(now - timedelta(days=3), now) == now - timedelta(days=3)
    assert utc_now().tzinfo is UTC


def test_a_local_date_is_that_of_the_time_zone() -> None:
    moment = datetime(2026, 3, 1, 20, tzinfo=UTC)
    assert local_date(moment, "Asia/Colombo") == date(2026, 3, 2)
    assert local_date(moment, "America/New_York") == date(2026, 3, 1)


@given(st.integers(0, MAX_MINOR), st.sampled_from(["JPY", "EUR", "KWD", "CLF"]))
def test_text_is_the_decimal_and_leads_back(minor: int, currency: str) -> None:
    assert to_text(minor, currency) == format(to_decimal(minor, currency), "f")
    assert to_minor(to_text(minor, currency), currency) == minor
