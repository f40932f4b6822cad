"""The simulated mapper: SPAR's resolve in detail, in both versions, who is let in, bulk loading, faults."""

import base64
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from joserfc import jws
from joserfc.jwk import OKPKey

from libs.local.client import MapperAdmin
from tests.support.simulator import SimulatorProcess

pytestmark = pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")  # EdDSA has a newer name
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


def body2(items: list[dict[str, Any]], **header: Any) -> dict[str, Any]:
    named = {"sender_app_mnemonic": "almoner", "sender_app_url": "", "request_id": "R-1", "request_timestamp": NOW}
    return {
        "request_header": {**named, "instance_id": "", **header},
        "request_body": {
            "pagination_request": None,
            "request_payload": {"transaction_id": "T-1", "resolve_request": items},
        },
    }


def post(process: SimulatorProcess, content: Any, path: str = "/sync/resolve", **headers: str) -> httpx.Response:
    sent = json.dumps(content).encode() if not isinstance(content, bytes) else content
    return httpx.post(f"{process.base_url}{path}", content=sent, headers=headers, timeout=20, trust_env=False, verify=False)


def post2(process: SimulatorProcess, content: Any, **headers: str) -> httpx.Response:
    return post(process, content, "/mapper/resolve", **headers)


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


def test_spar_2_tells_the_same_in_another_envelope(process: SimulatorProcess, mapper: MapperAdmin) -> None:
    mapper.put_people([("P-4", "somewhere")])
    items = [item(person, str(number)) for number, person in enumerate(["P-1", "NOBODY", "P-2", "P/3 é", "P-4", ""])]
    answer = post2(process, body2(items)).json()
    header, payload = answer["response_header"], answer["response_body"]["response_payload"]
    assert (header["request_id"], header["response_status"], header["response_error_code"]) == ("R-1", "SUCCESS", None)
    assert payload["transaction_id"] == "T-1"
    found = [
        (one["reference_id"], one["id"], one["status"], one["status_reason_code"], one["fa"])
        for one in payload["resolve_response"]
    ]
    assert found == [
        ("0", "P-1", "succ", "succ.id.active", {
            "account_number": "111", "branch_code": "B1", "branch_name": "Branch B1", "bank_code": "EXB", "bank_name": "Bank EXB",
            "fa_type": "BANK", "strategy_id": 1,
        }),
        ("1", None, "succ", "succ.fa.not_linked_to_id", None),
        ("2", "P-2", "succ", "succ.id.active", {
            "mobile_number": "+221700000001", "wallet_provider_name": "Wave", "wallet_provider_code": "WV",
            "fa_type": "MOBILE_WALLET", "strategy_id": 1,
        }),
        ("3", "P/3 é", "succ", "succ.id.active", {
            "email_address": "c@d.example", "wallet_provider_name": "Pay", "wallet_provider_code": "PP",
            "fa_type": "EMAIL_WALLET", "strategy_id": 1,
        }),
        ("4", "P-4", "succ", "succ.id.active", {"fa_type": "", "strategy_id": 1}),
        ("5", None, "rjct", "rjct.id.invalid", None),
    ]  # fmt: skip
    refused = post2(process, body2(items, request_timestamp="soon")).json()["response_header"]
    assert (refused["response_status"], refused["response_error_code"]) == ("ERROR", "rjct.message_ts.invalid")
    mapper.set_limits(max_items=5, refuse_repeated_message_id=True)
    refused = post2(process, body2(items)).json()["response_header"]
    assert refused["response_error_code"] == "rjct.total_count.limit_exceeded"
    assert post2(process, body2(items[:1])).json()["response_header"]["response_status"] == "SUCCESS"
    assert post2(process, body2(items[:1])).json()["response_header"]["response_error_code"] == "rjct.message_id.duplicate"
    assert [(row["profile"], row["items"], row["outcome"]) for row in mapper.requests()] == [
        ("spar2", 6, "succ"), ("spar2", 6, "rjct"), ("spar2", 6, "rjct"), ("spar2", 1, "succ"), ("spar2", 1, "rjct"),
    ]  # fmt: skip


def test_codes_of_single_people_outlive_a_sigkill(process: SimulatorProcess, mapper: MapperAdmin, resolve: Resolve) -> None:
    mapper.set_codes({"P-1": "succ.id.inactive", "P-2": "rjct.fa.invalid", "P/3 é": "succ.fa.active", "X": "succ.id.not_found"})
    process.kill()
    process.start()
    items = [item(person, person) for person in ("P-1", "P-2", "P/3 é", "X")]
    found = {one["reference_id"]: one for one in resolve(items)["message"]["resolve_response"]}
    assert {person: (one["status"], one["status_reason_code"], one["fa"]) for person, one in found.items()} == {
        "P-1": ("succ", "succ.id.inactive", ""),
        "P-2": ("rjct", "rjct.fa.invalid", ""),
        "P/3 é": ("succ", "succ.fa.active", EMAIL_FA),
        "X": ("succ", "succ.id.not_found", ""),
    }
    mapper.set_codes()
    assert resolve(items)["message"]["resolve_response"][0]["status_reason_code"] == "succ.id.active"


def test_tokens_are_asked_for_when_it_is_told_to(process: SimulatorProcess, mapper: MapperAdmin) -> None:
    credentials = {"client_id": "us", "client_secret": "s&cret"}
    mapper.set_guard(**credentials)
    process.kill()
    process.start()

    def token(**form: str) -> httpx.Response:
        form = {"grant_type": "client_credentials", **credentials, **form}
        return httpx.post(f"{process.base_url}/oauth/token", data=form, timeout=20, trust_env=False, verify=False)

    assert post(process, body([item("P-1", "1")])).status_code == 401
    assert token(client_secret="wrong").status_code == 401
    assert token(grant_type="password").status_code == 400
    given = token().json()
    assert given["expires_in"] == 300
    shown = {"Authorization": f"Bearer {given['access_token']}"}
    assert post(process, body([item("P-1", "1")]), **shown).status_code == 200
    assert post2(process, body2([item("P-1", "1")]), **shown).status_code == 200
    mapper.revoke_tokens()
    assert post2(process, body2([item("P-1", "1")]), **shown).status_code == 401
    mapper.set_guard(**credentials, token_seconds=0.0001)
    shown = {"Authorization": f"Bearer {token().json()['access_token']}"}
    assert post(process, body([item("P-1", "1")]), **shown).status_code == 401


def test_signatures_are_asked_for_and_given_when_it_is_told_to(process: SimulatorProcess, mapper: MapperAdmin) -> None:
    ours, theirs = OKPKey.generate_key("Ed25519"), OKPKey.generate_key("Ed25519")
    mapper.set_guard(request_key=ours.as_dict(private=False), answer_key=theirs.as_dict(private=True))
    asked = body([item("P-1", "1")])
    canonical = sorted_json(asked)
    signature = jws.detach_content(jws.serialize_compact({"alg": "EdDSA"}, canonical, ours, algorithms=["EdDSA"]))
    answer = post(process, asked, Signature=signature)
    assert answer.json()["header"]["status"] == "succ"
    signed = sorted_json(answer.json())
    assert jws.deserialize_compact(answer.headers["Signature"], theirs, algorithms=["EdDSA"], payload=signed)

    forged = jws.detach_content(jws.serialize_compact({"alg": "EdDSA"}, canonical, theirs, algorithms=["EdDSA"]))
    whole = jws.serialize_compact({"alg": "EdDSA"}, canonical, ours, algorithms=["EdDSA"])
    other = {**asked, "signature": "x"}
    for content, header in ((asked, forged), (asked, ""), (asked, "x"), (asked, whole), (other, signature)):
        assert post(process, content, Signature=header).json()["header"]["status_reason_code"] == "rjct.jwt.invalid"
    refused = post2(process, body2([item("P-1", "1")]), Signature=signature).json()["response_header"]
    assert refused["response_error_code"] == "rjct.jwt.invalid"


def test_the_keymanager_signs_what_it_is_given(process: SimulatorProcess, mapper: MapperAdmin) -> None:
    key = OKPKey.generate_key("Ed25519")

    def sign(**more: Any) -> Any:
        data = base64.urlsafe_b64encode(b"what it is").decode().rstrip("=")
        request = {"dataToSign": data, "applicationId": "A", "referenceId": "", "includePayload": False, **more}
        return post(process, {"request": request}, "/keymanager/jwtSign").json()

    assert sign()["errors"]
    mapper.set_guard(keymanager_key=key.as_dict(private=True))
    signature = sign()["response"]["jwtSignedData"]
    assert ".." in signature
    assert jws.deserialize_compact(signature, key, algorithms=["EdDSA"], payload=b"what it is")
    assert ".." not in sign(includePayload=True)["response"]["jwtSignedData"]
    assert post(process, {"request": {"dataToSign": "_"}}, "/keymanager/jwtSign").status_code == 422
    assert post(process, {}, "/keymanager/jwtSign").status_code == 422


def sorted_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


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
    bodies2: list[Any] = [[], {}, body([]), {**body2([]), "request_body": []}, body2(cast(Any, ["x"])), body2([], request_id=1)]
    assert [post2(process, content).status_code for content in bodies2] == [422] * len(bodies2)
    assert [row["outcome"] for row in mapper.requests()] == ["malformed"] * len(bodies + bodies2)


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
        answer = httpx.post(f"{process.base_url}/admin/people", content=content, timeout=20, trust_env=False, verify=False)
        assert answer.status_code == 400, content
    assert mapper.count_people() == 3


def test_each_fault(process: SimulatorProcess, mapper: MapperAdmin) -> None:
    faults = {
        "fail_before": "cut", "down": "cut", "timeout_after": "cut", "error_500": 500, "error_500_after": 500,
        "nonsense": "unreadable", "refuse": "rjct", "late": "succ", "late_before": "succ", "error_429": 429, "error_503": 503,
    }  # fmt: skip
    for kind, seen in faults.items():
        log_before = len(list(mapper.requests()))
        mapper.add_fault(kind, path="/sync/resolve", count=1, seconds=0.1)
        assert _ask_and_look(process) == seen, kind
        assert [row["fault"] for row in mapper.requests()][log_before:] == ([] if kind == "down" else [kind])
        assert _ask_and_look(process) == "succ"


def test_whoever_asks_too_often_is_told_when_to_come_again(process: SimulatorProcess, mapper: MapperAdmin) -> None:
    mapper.add_fault("error_429", count=1, seconds=1.5)
    mapper.add_fault("error_503", count=1, seconds=3)
    answers = [post2(process, body2([item("P-1", "1")])) for _ in range(3)]
    assert [(answer.status_code, answer.headers.get("Retry-After")) for answer in answers] == [
        (429, "2"),
        (503, "3"),
        (200, None),
    ]
    assert [(row["outcome"], row["status_code"]) for row in mapper.requests()] == [
        ("not done", 429),
        ("not done", 503),
        ("succ", 200),
    ]


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
