"""What the two sources of reference data say, taken apart."""

import json

import pytest

from libs.common.contracts.reference import AgencyListed, WarehouseListed
from libs.common.envelope import RawMessage
from services.allocation.adapters.pbms import account
from services.allocation.adapters.topic import read
from services.allocation.ports import Listing

AGENCY = {
    "id": "A1",
    "mnemonic": "A-1",
    "name": "Agency",
    "admin_email": "desk@example.org",
    "serves": [{"programme_id": "P", "benefit_code_id": "B", "capacity_minor": 5}],
    "small_zone_ids": ["s1", "s1", "s2"],
    "account": {"account_number": "12", "bank_code": "ABC"},
}


def message(
    data: object, key: bytes | None = b"A1", topic: str = "reference.agencies.v1", kind: str = AgencyListed.TYPE
) -> RawMessage:
    headers = {"ce_specversion": "1.0", "ce_id": "1", "ce_source": "test", "ce_type": kind, "content-type": "application/json"}
    value = data if isinstance(data, bytes) else json.dumps(data).encode()
    return RawMessage(topic, 0, 7, 0, key, value, tuple((name, text.encode()) for name, text in headers.items()))


def test_an_account_is_found_by_its_tags() -> None:
    assert account("#ACCOUNT#12#TYPE#SAVINGS#BRANCH#3#BANK#ABC#") == {
        "account_number": "12",
        "account_type": "SAVINGS",
        "branch_code": "3",
        "bank_code": "ABC",
    }
    assert account("noted by hand #BANK#ABC#ACCOUNT#9") == {
        "account_number": "9",
        "account_type": "",
        "branch_code": "",
        "bank_code": "ABC",
    }
    for nothing in (None, "", "12", "#ACCOUNT##BANK#ABC#", "#TYPE#SAVINGS#"):
        assert account(nothing) is None
    with pytest.raises(ValueError, match="account_number"):
        account(f"#ACCOUNT#{'1' * 65}#")


def test_a_message_says_all_about_a_place() -> None:
    found = read(message(AGENCY))
    assert isinstance(found, Listing)
    assert (found.kind, found.id, found.zone_ids) == ("agency", "A1", ["s1", "s2"])
    assert [(s.capacity_minor, s.capacity_units) for s in found.serves] == [(5, None)]
    assert found.serves[0].account is not None
    assert found.serves[0].account["account_number"] == "12"
    gone = read(message(b""))
    assert isinstance(gone, Listing)
    assert gone.contact is None


@pytest.mark.parametrize(
    ("broken", "code", "pointer"),
    [
        (message(AGENCY, key=None), "INVALID_KEY", ""),
        (message(AGENCY, key=b"\xff"), "INVALID_KEY", ""),
        (message(AGENCY, key=b"x" * 65), "INVALID_KEY", ""),
        (message(AGENCY, key=b"A2"), "KEY_DIFFERS", "/id"),
        (message(b"{"), "INVALID_DATA", ""),
        (message(b"[" * 100_000), "INVALID_DATA", ""),
        (message({**AGENCY, "small_zone_ids": "s1"}), "INVALID_DATA", "/small_zone_ids"),
        (message({**AGENCY, "admin_email": "secret\x00"}), "INVALID_DATA", "/admin_email"),
        (message({**AGENCY, "serves": AGENCY["serves"] * 2}), "SERVED_TWICE", "/serves/1"),  # type: ignore[operator]
        (message({**AGENCY, "serves": [{"programme_id": "P", "benefit_code_id": "B", "capacity_minor": -1}]}),
         "INVALID_DATA", "/serves/0/capacity_minor"),
        (message({**AGENCY, "name": "x" * 1_000_001}), "EVENT_TOO_LARGE", ""),
        (message(AGENCY, kind=WarehouseListed.TYPE), "UNKNOWN_TYPE", ""),
        (RawMessage("reference.agencies.v1", 0, 7, 0, b"A1", b"{}", ()), "INVALID_CLOUDEVENT", "/specversion"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)  # fmt: skip
def test_what_cannot_be_used_is_named_and_never_repeated(broken: RawMessage, code: str, pointer: str) -> None:
    found = read(broken)
    assert not isinstance(found, Listing)
    assert (found[0].code, found[0].pointer) == (code, pointer)
    assert "secret" not in str(found)
