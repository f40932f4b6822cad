"""The simulated mapper: SPAR's resolve in detail, bulk loading, faults."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from libs.local.client import MapperAdmin, SimulatorProcess

NOW = datetime.now(UTC).isoformat()
BANK_FA = (
    "account_number:{}.branch_code:B1.bank_code:EXB.mobile_number:+221700000000.email_address:a@b.example.fa_type:BANK_ACCOUNT"
)
MOBILE_FA = "mobile_number:+221700000001.wallet_provider_name:Wave.wallet_provider_code:WV.fa_type:MOBILE_WALLET"
EMAIL_FA = "email_address:c@d.example.wallet_provider_name:Pay.wallet_provider_code:PP.fa_type:EMAIL_WALLET"
Resolve = Callable[..., dict[str, Any]]


@pytest.fixture
def process(tmp_path: Path) -> Iterator[SimulatorProcess]:
    with SimulatorProcess("mapper", tmp_path / "mapper") as started:
        yield started


@pytest.fixture
def mapper(process: SimulatorProcess) -> Iterator[MapperAdmin]:
    with MapperAdmin(process.base_url) as admin:
        admin.put_people([("P-1", BANK_FA.format("111")), ("P-2", MOBILE_FA), ("P/3 é", EMAIL_FA)])
        yield admin


@pytest.fixture
def resolve(process: SimulatorProcess, mapper: MapperAdmin) -> Resolve:
    def call(items: list[dict[str, Any]], **header: Any) -> dict[str, Any]:
        answer = post(process, body(items, **header))
        assert answer.status_code == 200, answer.text
        return cast(dict[str, Any], answer.json())

    return call


def item(person: str, reference: str, **changes: Any) -> dict[str, Any]:
    return {
        "reference_id": reference, "timestamp": NOW, "fa": "", "id": person, "scope": "details", "locale": "en", **changes,
    }  # fmt: skip


def body(items: list[dict[str, Any]], **header: Any) -> dict[str, Any]:
    return {
        "signature": "",
        "header": {
            "version": "1.0.0",
            "message_id": "M-1",
            "message_ts": NOW,
            "action": "resolve",
            "sender_id": "almoner",
            "sender_uri": "",
            "receiver_id": "spar",
            "total_count": len(items),
            "is_msg_encrypted": False,
            "meta": {},
            **header,
        },
        "message": {"transaction_id": "T-1", "resolve_request": items},
    }


def post(process: SimulatorProcess, content: Any) -> httpx.Response:
    return httpx.post(f"{process.base_url}/sync/resolve", json=content, timeout=20, trust_env=False)


def test_people_are_resolved_and_strangers_have_neither_address_nor_id(resolve: Resolve) -> None:
    answer = resolve([item("P-1", "1"), item("NOBODY", "2"), item("P/3 é", "3"), item("P-1", "4"), item("P-2", "5")])
    header, message = answer["header"], answer["message"]
    assert (header["status"], header["status_reason_code"], header["action"]) == ("succ", None, "resolve")
    assert (header["total_count"], header["completed_count"], header["message_id"]) == (5, 5, "M-1")
    assert message["transaction_id"] == "T-1"
    found = {one["reference_id"]: one for one in message["resolve_response"]}
    assert list(found) == ["1", "2", "3", "4", "5"]
    for reference, person, fa in (("1", "P-1", BANK_FA.format("111")), ("3", "P/3 é", EMAIL_FA), ("5", "P-2", MOBILE_FA)):
        one = found[reference]
        assert (one["status"], one["status_reason_code"], one["id"], one["fa"]) == ("succ", "succ.id.active", person, fa)
    assert found["4"]["fa"] == found["1"]["fa"]
    unknown = found["2"]
    assert (unknown["status"], unknown["status_reason_code"]) == ("succ", "succ.fa.not_linked_to_id")
    assert (unknown["fa"], unknown["id"]) == ("", None)
    assert set(unknown) == {
        "reference_id", "timestamp", "fa", "id", "account_provider_info", "status", "status_reason_code",
        "status_reason_message", "additional_info", "locale",
    }  # fmt: skip


def test_only_the_scope_details_gets_the_address(resolve: Resolve) -> None:
    [one] = resolve([item("P-1", "1", scope="yes_no")])["message"]["resolve_response"]
    assert (one["status_reason_code"], one["id"], one["fa"]) == ("succ.id.active", "P-1", "")


def test_a_bad_header_is_rejected_as_a_whole(resolve: Resolve) -> None:
    faulty: list[tuple[dict[str, Any], str]] = [
        ({"version": "2.0.0"}, "rjct.version.invalid"),
        ({"message_ts": "yesterday"}, "rjct.message_ts.invalid"),
        ({"action": ""}, "rjct.action.invalid"),
        ({"action": "link"}, "rjct.action.not_supported"),
        ({"total_count": 2}, "rjct.total_count.invalid"),
    ]
    for header, code in faulty:
        answer = resolve([item("P-1", "1")], **header)
        assert (answer["header"]["status"], answer["header"]["status_reason_code"]) == ("rjct", code)
        assert answer["message"] == {}


def test_a_bad_item_is_rejected_alone(resolve: Resolve) -> None:
    items = [
        item("P-1", "1"),
        item("P-1", ""),
        item("P-1", "1"),
        item("P-1", "2", timestamp="soon"),
        item("", "3"),
        item("P-1", "4", scope="everything"),
    ]
    answer = resolve(items)
    assert (answer["header"]["status"], answer["header"]["completed_count"]) == ("succ", 1)
    assert [one["status_reason_code"] for one in answer["message"]["resolve_response"]] == [
        "succ.id.active", "rjct.reference_id.invalid", "rjct.reference_id.duplicate", "rjct.timestamp.invalid",
        "rjct.id.invalid", "rjct.resolve_type.not_supported",
    ]  # fmt: skip
    assert resolve(items[4:])["header"]["status_reason_code"] == "rjct.errors.too_many"


def test_the_limits_can_be_set_and_outlive_a_sigkill(process: SimulatorProcess, mapper: MapperAdmin, resolve: Resolve) -> None:
    assert resolve([item("P-1", "1")])["header"]["status"] == "succ"
    assert resolve([item("P-1", "1")])["header"]["status"] == "succ"
    mapper.set_limits(max_items=2, refuse_repeated_message_id=True)
    process.kill()
    process.start()
    many = resolve([item("P-1", str(number)) for number in range(3)])
    assert many["header"]["status_reason_code"] == "rjct.total_count.limit_exceeded"
    assert resolve([item("P-1", "1")], message_id="M-2")["header"]["status"] == "succ"
    again = resolve([item("P-1", "1")], message_id="M-2")
    assert again["header"]["status_reason_code"] == "rjct.message_id.duplicate"


def test_what_is_no_request_at_all_is_422(process: SimulatorProcess, mapper: MapperAdmin) -> None:
    bodies: list[Any] = [[], {}, {"header": {}}, {**body([]), "message": {"transaction_id": "T"}}, body(cast(Any, ["x"]))]
    assert [post(process, content).status_code for content in bodies] == [422] * len(bodies)
    assert [row["outcome"] for row in mapper.requests()] == ["malformed"] * len(bodies)


def test_a_hundred_thousand_people_are_loaded_replaced_and_found(
    process: SimulatorProcess, mapper: MapperAdmin, resolve: Resolve
) -> None:
    assert mapper.put_people((f"B{number}", BANK_FA.format(number)) for number in range(100_000)) == 100_000
    assert mapper.count_people() == 100_003
    assert mapper.put_people([("B5", BANK_FA.format("new"))]) == 1
    assert mapper.delete_person("B6") is True
    assert mapper.delete_person("B6") is False
    assert mapper.delete_person("P/3 é") is True
    process.kill()
    process.start()
    answer = resolve([item(f"B{number}", str(number)) for number in range(1000)])
    found = {one["reference_id"]: one["fa"] for one in answer["message"]["resolve_response"]}
    expected = {str(number): BANK_FA.format(number) for number in range(1000)}
    assert found == {**expected, "5": BANK_FA.format("new"), "6": ""}
    [logged] = mapper.requests()
    assert (logged["items"], logged["outcome"], logged["status_code"]) == (1000, "succ", 200)


def test_a_bad_line_of_people_is_refused(process: SimulatorProcess, mapper: MapperAdmin) -> None:
    for content in (b'{"id": "X", "fa": "y"}\n{"id": "Z"}\n', b"nonsense\n", b"[1]\n"):
        answer = httpx.post(f"{process.base_url}/admin/people", content=content, trust_env=False)
        assert answer.status_code == 400, content
    assert mapper.count_people() == 3


def test_each_fault(process: SimulatorProcess, mapper: MapperAdmin) -> None:
    faults = {
        "fail_before": "cut", "down": "cut", "timeout_after": "cut", "error_500": 500, "error_500_after": 500,
        "nonsense": "unreadable", "refuse": "rjct", "late": "succ", "late_before": "succ",
    }  # fmt: skip
    for kind, seen in faults.items():
        log_before = len(list(mapper.requests()))
        mapper.add_fault(kind, path="/sync/resolve", count=1, seconds=0.1)
        assert _ask_and_look(process) == seen, kind
        assert [row["fault"] for row in mapper.requests()][log_before:] == ([] if kind == "down" else [kind])
        assert _ask_and_look(process) == "succ"


def _ask_and_look(process: SimulatorProcess) -> Any:
    try:
        answer = post(process, body([item("P-1", "1")]))
    except (httpx.RemoteProtocolError, httpx.ReadError):
        return "cut"
    if answer.status_code != 200:
        return answer.status_code
    try:
        return answer.json()["header"]["status"]
    except ValueError:
        return "unreadable"
