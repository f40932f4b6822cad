"""Who may be paid again, and why not."""

from types import SimpleNamespace
from typing import Any

import pytest

from services.funds.repay import why_not

NOBODY = {
    "cancelled": False,
    "asked": False,
    "live": None,
    "disputed": False,
    "held_state": None,
    "refused": False,
    "late_part": None,
    "reversed": None,
}
REVERSED = {"reversed": 7}
REFUSED = {"held_state": "HELD", "refused": True}
RELEASED = {"held_state": "RELEASED"}


@pytest.mark.parametrize(
    "may", [REVERSED, REFUSED, {**RELEASED, "late_part": 2}, {**RELEASED, "refused": True, "late_part": 3}]
)
def test_these_may_be_paid_again(may: dict[str, Any]) -> None:
    assert why_not(SimpleNamespace(**{**NOBODY, **may})) == ""


@pytest.mark.parametrize("otherwise", [REVERSED, REFUSED, {**RELEASED, "late_part": 2}])
@pytest.mark.parametrize(
    ("but", "reason"),
    [({"cancelled": True}, "CANCELLED"), ({"asked": True}, "ALREADY_ASKED"), ({"disputed": True}, "OPEN_EXCEPTION")]
    + [({"live": state}, state) for state in ("WAITING", "IN_FLIGHT", "UNKNOWN", "OUTSTANDING", "CONFIRMED")],
)
def test_these_may_not_whatever_else_is_so(otherwise: dict[str, Any], but: dict[str, Any], reason: str) -> None:
    assert why_not(SimpleNamespace(**{**NOBODY, **otherwise, **but})) == reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "NOT_KNOWN"),
        ({"held_state": "HELD"}, "NO_ADDRESS"),
        ({"held_state": "RELEASING", "late_part": 2}, "RELEASING"),
        (RELEASED, "RELEASED"),
        ({**RELEASED, "refused": True}, "RELEASED"),
        ({**RELEASED, "reversed": 7}, "RELEASED"),
        ({"held_state": "HELD", "reversed": 7}, "NO_ADDRESS"),
    ],
)
def test_these_may_not(row: dict[str, Any], reason: str) -> None:
    assert why_not(SimpleNamespace(**{**NOBODY, **row})) == reason
