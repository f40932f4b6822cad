"""What is read out of a mapper's answer, whatever the answer is."""

import asyncio
import json
import re
import time
from collections.abc import Container
from typing import Any
from uuid import uuid4

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.envelope import Cause
from libs.common.swift import swift
from libs.common.workqueue import Claim, MaybeDone, NotSent
from services.resolution import jws
from services.resolution.adapters.access import Access
from services.resolution.adapters.spar import ESSENTIAL, MOST_SPLITS, Spar
from services.resolution.adapters.spar2 import Spar2
from services.resolution.config import Settings
from services.resolution.domain import Hold, Reply

BANK = "account_number:111.branch_code:B1.bank_code:EXB.mobile_number:+22177.email_address:a@b.example.fa_type:BANK_ACCOUNT"
MOBILE = "mobile_number:+22177.wallet_provider_name:Wave.wallet_provider_code:WV.fa_type:MOBILE_WALLET"
EMAIL = "email_address:c@d.example.wallet_provider_name:Pay.wallet_provider_code:PP.fa_type:EMAIL_WALLET"
PATTERNS = {
    "BANK_ACCOUNT": Settings.model_fields["bank_account_pattern"].default,
    "MOBILE_WALLET": Settings.model_fields["mobile_wallet_pattern"].default,
    "EMAIL_WALLET": Settings.model_fields["email_wallet_pattern"].default,
}
SPAR = Spar("http://mapper.example", PATTERNS, sender_id="almoner", sender_uri="http://a.example", receiver_id="s", max_items=9)
SPAR2 = Spar2("http://mapper.example", {}, sender_id="almoner", sender_uri="http://a.example", receiver_id="s", max_items=9)

# What each code means, in both versions of the API: of one person, and of a whole request.
HELD = {
    "rjct.reference_id.invalid": "ASKED_WRONGLY",
    "rjct.reference_id.duplicate": "ASKED_WRONGLY",
    "rjct.timestamp.invalid": "ASKED_WRONGLY",
    "rjct.resolve_type.not_supported": "ASKED_WRONGLY",
    "rjct.id.invalid": "REFUSED",
    "rjct.fa.invalid": "REFUSED",
    "succ.fa.inactive": "INACTIVE",
    "succ.id.inactive": "INACTIVE",
    "succ.fa.not_found": "NOT_LINKED",
    "succ.fa.not_linked_to_id": "NOT_LINKED",
    "succ.id.not_found": "NOT_FOUND",
    "succ.something.new": "UNKNOWN_CODE",
    "rjct.something.new": "REFUSED",
}
ACTIVE = ["succ.fa.active", "succ.id.active", "", None]
REFUSED = {  # the whole request: whether an operator must act before it is sent again
    "rjct.version.invalid": True,
    "rjct.action.invalid": True,
    "rjct.action.not_supported": True,
    "rjct.total_count.invalid": True,
    "rjct.total_count.limit_exceeded": True,
    "rjct.jwt.invalid": True,
    "rjct.request.validation": True,
    "rjct.message_id.duplicate": False,
    "rjct.message_ts.invalid": False,
    "rjct.errors.too_many": False,
    "rjct.internal.error": False,
    "rjct.something.new": False,
}


def response(reference: Any, fa: Any = BANK, code: Any = "succ.id.active", status: Any = "succ", **more: Any) -> dict[str, Any]:
    return {"reference_id": reference, "id": "P", "fa": fa, "status": status, "status_reason_code": code, **more}


def answer(*responses: Any, status: Any = "succ", message_id: Any = "M", **header: Any) -> bytes:
    return json.dumps(
        {
            "header": {"status": status, "message_id": message_id, **header},
            "message": {"transaction_id": "T", "resolve_response": list(responses)},
        }
    ).encode()


def answer2(*responses: Any, status: Any = "SUCCESS", request_id: Any = "M", code: Any = None) -> bytes:
    header = {"request_id": request_id, "response_status": status, "response_error_code": code}
    payload = {"transaction_id": "T", "correlation_id": None, "resolve_response": list(responses)}
    return json.dumps({"response_header": header, "response_body": {"response_payload": payload}}).encode()


def object_of(kind: str, **fields: Any) -> dict[str, Any]:
    return {"fa_type": kind, "strategy_id": 3, **fields}


BANK2 = object_of("BANK", account_number="111", bank_name="Ex", bank_code="EXB", branch_name="One", branch_code="B1")
MOBILE2 = object_of("MOBILE_WALLET", mobile_number="+22177", wallet_provider_name="Wave", wallet_provider_code="WV")
EMAIL2 = object_of("EMAIL_WALLET", email_address="c@d.example", wallet_provider_name="Pay", wallet_provider_code="PP")


def read(content: bytes) -> dict[str, Reply] | NotSent | MaybeDone:
    return SPAR.read(content, "M", {"a", "b"})


def only(one: dict[str, Any]) -> Reply:
    replies = read(answer(one))
    assert isinstance(replies, dict)
    return replies["a"]


@pytest.mark.parametrize(
    ("fa", "address"),
    [
        (
            BANK,
            {
                "fa_type": "BANK_ACCOUNT",
                "account_number": "111",
                "branch_code": "B1",
                "bank_code": "EXB",
                "mobile_number": "+22177",
                "email_address": "a@b.example",
            },
        ),
        (
            MOBILE,
            {
                "fa_type": "MOBILE_WALLET",
                "mobile_number": "+22177",
                "wallet_provider_name": "Wave",
                "wallet_provider_code": "WV",
            },
        ),
        (
            EMAIL,
            {
                "fa_type": "EMAIL_WALLET",
                "email_address": "c@d.example",
                "wallet_provider_name": "Pay",
                "wallet_provider_code": "PP",
            },
        ),
        (
            "account_number:1.branch_code:.bank_code:.mobile_number:.email_address:.fa_type:BANK_ACCOUNT",
            {"fa_type": "BANK_ACCOUNT", "account_number": "1"},
        ),
    ],
)
def test_an_address_is_taken_apart_by_its_ending(fa: str, address: dict[str, str]) -> None:
    assert only(response("a", fa)) == address


@pytest.mark.parametrize(
    "fa",
    [
        "IBAN DE00",
        "fa_type:BANK_ACCOUNT",
        BANK.replace("account_number:111", "account_number:"),
        MOBILE.replace("MOBILE_WALLET", "BANK_ACCOUNT"),
        BANK.replace("111", "1\n1"),
        BANK.replace("111", "1" * 600),
        BANK.replace("111", ":\u00e9\u2603"),
        BANK.replace("111", "111_2"),
        BANK.replace("a@b.example", "").replace("111", "-111"),
        BANK.replace("B1", "\u00e9"),
        BANK.replace("EXB", "EX B "),
        BANK.replace("+22177", "\uff0b22177"),
        MOBILE.replace("Wave", "W@ve"),
        EMAIL.replace("Pay", "P\u00e4y"),
    ],
)
def test_an_address_which_cannot_be_read_holds_its_person(fa: str) -> None:
    reply = only(response("a", fa))
    assert isinstance(reply, Hold)
    assert reply.reason == "ADDRESS_UNREADABLE"
    assert "111" not in reply.message


@pytest.mark.parametrize(
    "told",
    [("+22177", "+221 (77) 1-2"), ("Wave", "Orange Money/Sahel"), ("c@d.example", "\u00e9_d@d.example"), ("PP", "P_\u00e9")],
)
def test_what_a_bank_can_be_told_is_taken(told: tuple[str, str]) -> None:
    """An e-mail address as it is, since it needs its `@`; and no bank is told a provider's code."""
    for fa, fa2 in ((MOBILE, MOBILE2), (EMAIL, EMAIL2)):
        changed = {name: value.replace(*told) if isinstance(value, str) else value for name, value in fa2.items()}
        reply = outcome(SPAR2, changed, "succ.id.active", "succ")
        assert reply == only(response("a", fa.replace(*told)))
        assert isinstance(reply, dict)
        assert set(reply.values()) == set(changed.values()) - {3}


PIECES = [
    "",
    " ",
    "-",
    "_",
    "@",
    "1",
    "a.b",
    ":",
    "\u00e9",
    ".fa_type:",
    ".bank_code:",
    ".mobile_number:",
    "account_number:",
    ".fa_type:BANK_ACCOUNT",
]
FIELDS = st.lists(st.sampled_from(PIECES), max_size=3).map("".join)


def for_a_bank(fields: dict[str, str]) -> bool:
    """Whether all of it that a bank is told is as if it had been made for one."""
    told = ("account_number", "bank_code", "branch_code", "mobile_number", "wallet_provider_name")
    return all(swift(fields[name], 500) == fields[name] for name in told if fields.get(name))


@given(
    st.lists(FIELDS | st.text(max_size=9), min_size=7, max_size=7), st.sampled_from(["BANK", "MOBILE_WALLET", "EMAIL_WALLET"])
)
def test_no_object_is_taken_that_a_bank_cannot_be_told(texts: list[str], kind: str) -> None:
    names = ("account_number", "bank_code", "branch_code", "mobile_number", "email_address")
    fields = dict(zip((*names, "wallet_provider_name", "wallet_provider_code"), texts, strict=True))
    essential = ESSENTIAL["BANK_ACCOUNT" if kind == "BANK" else kind]
    good = bool(fields[essential]) and all(map(str.isprintable, texts)) and for_a_bank(fields)
    assert isinstance(outcome(SPAR2, object_of(kind, **fields), "succ.id.active", "succ"), dict if good else Hold)


@pytest.mark.parametrize("kind", list(PATTERNS))
@given(data=st.data())
def test_addresses_are_taken_apart_as_their_pattern_says(kind: str, data: st.DataObject) -> None:
    """Whatever way they are matched in, and even where a field looks like the key of another."""
    pattern = re.compile(PATTERNS[kind])
    keys = [f"{name}:" for name in pattern.groupindex]
    fa = ".".join(key + data.draw(FIELDS) for key in keys[:-1]) + f".{keys[-1]}{kind}"
    found = pattern.match(fa)
    assert found is not None
    reply = only(response("a", fa))
    if isinstance(reply, Hold):
        assert not found[next(iter(pattern.groupindex))] or not for_a_bank(found.groupdict())
    else:
        assert for_a_bank(reply)
        assert reply == {**{name: value for name, value in found.groupdict().items() if value}, "fa_type": kind}


def test_a_pattern_of_another_form_is_taken_as_it_is() -> None:
    pattern = r"^(?P<account_number>.*):?(?P<bank_code>.*)/BANK_ACCOUNT$"
    spar = Spar("http://mapper.example", {"BANK_ACCOUNT": pattern}, sender_id="", sender_uri="", receiver_id="", max_items=1)
    replies = spar.read(answer(response("a", "12:EXB/BANK_ACCOUNT")), "M", {"a"})
    assert replies == {"a": {"account_number": "12:EXB", "fa_type": "BANK_ACCOUNT"}}
    held = spar.read(answer(response("a", "\u00e9:EXB/BANK_ACCOUNT")), "M", {"a"})
    assert isinstance(held, dict)
    assert isinstance(held["a"], Hold)


@pytest.mark.parametrize(
    ("one", "reason", "message"),
    [
        (response("a", "", "succ.fa.not_linked_to_id"), "NOT_LINKED", "succ.fa.not_linked_to_id"),
        (response("a", "", "succ.id.active"), "NOT_LINKED", "succ.id.active"),
        (response("a", None), "NOT_LINKED", "succ.id.active"),
        (response("a", BANK, "succ.fa.inactive"), "INACTIVE", "succ.fa.inactive"),
        (response("a", "", "succ.id.not_found"), "NOT_FOUND", "succ.id.not_found"),
        (response("a", "", "rjct.id.invalid", "rjct"), "REFUSED", "rjct.id.invalid"),
        (response("a", BANK, "succ.new.code"), "UNKNOWN_CODE", "succ.new.code"),
        (response("a", BANK, ["succ.id.active"]), "UNKNOWN_CODE", ""),
        (response("a", BANK, "Mr Diop, +221 77"), "UNKNOWN_CODE", ""),
        (response("a", BANK, "succ.id.active", "pdng"), "NO_ANSWER", "succ.id.active"),
    ],
)
def test_who_has_no_address_is_held_with_a_reason(one: dict[str, Any], reason: str, message: str) -> None:
    assert only(one) == Hold(reason, message)


def outcome(spar: Spar, fa: Any, code: Any, status: str) -> Reply:
    one = response("a", fa, code, status)
    replies = spar.read(answer2(one) if isinstance(spar, Spar2) else answer(one), "M", {"a"})
    assert isinstance(replies, dict)
    return replies["a"]


@pytest.mark.parametrize("code", HELD)
@pytest.mark.parametrize(("spar", "fa"), [(SPAR, BANK), (SPAR2, BANK2)])
def test_each_code_of_a_person_without_address_is_a_reason(spar: Spar, fa: Any, code: str) -> None:
    """Even where an address stands beside it."""
    assert outcome(spar, fa, code, code.partition(".")[0]) == Hold(HELD[code], code)


@pytest.mark.parametrize("code", ACTIVE)
@pytest.mark.parametrize(("spar", "fa"), [(SPAR, BANK), (SPAR2, BANK2)])
def test_each_code_of_a_good_address_gives_it(spar: Spar, fa: Any, code: str | None) -> None:
    reply = outcome(spar, fa, code, "succ")
    assert isinstance(reply, dict)
    assert (reply["fa_type"], reply["account_number"]) == ("BANK_ACCOUNT", "111")
    assert outcome(spar, None, code, "succ") == Hold("NOT_LINKED", code or "")
    assert outcome(spar, fa, code, "rjct") == Hold("REFUSED", code or "")


@pytest.mark.parametrize("code", REFUSED)
def test_each_code_of_a_whole_request_is_an_error_about_nobody(code: str) -> None:
    expected = NotSent("MAPPER_REFUSED", code, final=REFUSED[code])
    assert SPAR.read(answer(status="rjct", status_reason_code=code), "M", {"a"}) == expected
    assert SPAR2.read(answer2(status="ERROR", code=code), "M", {"a"}) == expected


@pytest.mark.parametrize("code", [None, 7, ["x"], "Mr Diop, +221 77", ""])
def test_a_refusal_without_a_proper_code_is_tried_again(code: Any) -> None:
    assert SPAR.read(answer(status="rjct", status_reason_code=code), "M", {"a"}) == NotSent("MAPPER_REFUSED", "")
    assert SPAR2.read(answer2(status="ERROR", code=code), "M", {"a"}) == NotSent("MAPPER_REFUSED", "")


@pytest.mark.parametrize(
    ("fa", "address"),
    [
        (BANK2, {"fa_type": "BANK_ACCOUNT", "account_number": "111", "branch_code": "B1", "bank_code": "EXB"}),
        (
            {**BANK2, "fa_type": "BANK_ACCOUNT", "branch_code": None},
            {"fa_type": "BANK_ACCOUNT", "account_number": "111", "bank_code": "EXB"},
        ),
        (
            MOBILE2,
            {
                "fa_type": "MOBILE_WALLET",
                "mobile_number": "+22177",
                "wallet_provider_name": "Wave",
                "wallet_provider_code": "WV",
            },
        ),
        (
            EMAIL2,
            {
                "fa_type": "EMAIL_WALLET",
                "email_address": "c@d.example",
                "wallet_provider_name": "Pay",
                "wallet_provider_code": "PP",
            },
        ),
    ],
)  # fmt: skip
def test_an_address_of_spar_2_is_an_object(fa: dict[str, Any], address: dict[str, str]) -> None:
    assert outcome(SPAR2, fa, "succ.id.active", "succ") == address


@pytest.mark.parametrize(
    "fa",
    [
        BANK,
        [BANK2],
        {"strategy_id": 3},
        {**BANK2, "fa_type": "CHEQUE"},
        {**BANK2, "fa_type": ["BANK"]},
        {**BANK2, "account_number": ""},
        {**BANK2, "account_number": 111},
        {**BANK2, "account_number": "1" * 600},
        {**BANK2, "branch_code": "1\n1"},
        {**MOBILE2, "mobile_number": None},
        {**EMAIL2, "fa_type": "MOBILE_WALLET"},
        {**BANK2, "account_number": ":\u00e9\u2603"},
        {**BANK2, "account_number": "-111"},
        {**BANK2, "bank_code": "EX_B"},
        {**BANK2, "branch_code": "B1 "},
        {**MOBILE2, "mobile_number": "\uff0b22177"},
        {**EMAIL2, "wallet_provider_name": "P\u00e4y"},
    ],
)
def test_an_object_which_is_no_address_holds_its_person(fa: Any) -> None:
    reply = outcome(SPAR2, fa, "succ.id.active", "succ")
    assert isinstance(reply, Hold)
    assert reply.reason == "ADDRESS_UNREADABLE"
    assert "111" not in reply.message


def test_answers_are_matched_by_reference_id_and_a_doubled_one_is_none() -> None:
    replies = read(answer(response("b", MOBILE), response("z"), response(None), response(["a"]), response("a"), response("a")))
    assert isinstance(replies, dict)
    assert replies.keys() == {"a", "b"}
    assert isinstance(replies["b"], dict)
    assert replies["b"]["fa_type"] == "MOBILE_WALLET"
    assert isinstance(replies["a"], Hold)
    assert replies["a"].reason == "AMBIGUOUS_ANSWER"


def test_a_refusal_of_the_whole_message_is_no_answer_about_anybody() -> None:
    refused = read(answer(status="rjct", status_reason_code="rjct.message_id.duplicate"))
    assert refused == NotSent("MAPPER_REFUSED", "rjct.message_id.duplicate")


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        answer(response("a")),
        answer2(response("a", BANK2), status="PENDING"),
        answer2(response("a", BANK2), request_id="another"),
        answer2(7),
        b'{"response_header": {"response_status": "SUCCESS", "request_id": "M"}, "response_body": []}',
        b'{"response_header": [], "response_body": {}}',
    ],
)
def test_nonsense_of_spar_2_is_asked_again(content: bytes) -> None:
    assert isinstance(SPAR2.read(content, "M", {"a", "b"}), MaybeDone)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"<html>",
        b"[]",
        b"{}",
        b'{"header": {"status": "succ"}}',
        answer(status="pdng"),
        answer(response("a"), message_id="another"),
        answer(response("a"), 7),
        json.dumps({"header": {"status": "succ", "message_id": "M"}, "message": {"resolve_response": {}}}).encode(),
        b"[" * 100_000,
    ],
)
def test_nonsense_is_asked_again(content: bytes) -> None:
    assert isinstance(read(content), MaybeDone)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["a", "b", "succ", "rjct", BANK]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)
KEYS = ["reference_id", "id", "fa", "status", "status_reason_code", "timestamp"]
ITEMS = JSON | st.dictionaries(st.sampled_from(KEYS), JSON | st.sampled_from(["succ.id.active", "a", MOBILE]))


@settings(max_examples=300)
@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_body_breaks_the_parser(content: bytes) -> None:
    assert isinstance(read(content), dict | NotSent | MaybeDone)


@settings(max_examples=300)
@given(header=JSON | st.fixed_dictionaries({"status": JSON}), message=JSON, items=st.lists(ITEMS, max_size=5))
def test_no_answer_breaks_the_parser(header: Any, message: Any, items: list[Any]) -> None:
    for body in (
        {"header": header, "message": message},
        {"header": header, "message": {"resolve_response": items}},
        {"header": {"status": "succ"}, "message": {"resolve_response": items}},
        {"response_header": header, "response_body": message},
        {"response_header": {"response_status": "SUCCESS"}, "response_body": {"response_payload": {"resolve_response": items}}},
    ):
        spar = SPAR2 if "response_header" in body else SPAR
        replies = spar.read(json.dumps(body).encode(), "M", {"a", "b"})
        assert isinstance(replies, dict | NotSent | MaybeDone)
        if isinstance(replies, dict):
            assert replies.keys() <= {"a", "b"}
            for reply in replies.values():
                assert isinstance(reply, Hold) or all(isinstance(value, str) and value for value in reply.values())


@given(st.lists(st.tuples(st.text(), st.text()), max_size=3), st.text(), st.text())
@pytest.mark.parametrize("kind", [Spar, Spar2])
def test_a_request_is_written_as_it_is_signed(kind: type[Spar], people: list[tuple[str, str]], sender: str, uri: str) -> None:
    spar = kind("http://mapper.example", {}, sender_id=sender, sender_uri=uri, receiver_id="\u00e9", max_items=1)
    body = spar.request("M", "T", people)
    assert body == jws.canonical(json.loads(body))


# --- Who is at fault where a whole request is refused -----------------------------------------------------------------


class Refusing(Access):
    """Lets everybody in, and is the mapper too: a request in which one of `faulty` stands is refused as a whole."""

    def __init__(self, faulty: Container[str]) -> None:
        super().__init__()
        self.faulty = faulty
        self.asked: list[list[str]] = []
        self.message_ids: list[str] = []

    async def post(self, client: Any, claim: Claim, url: str, body: bytes) -> bytes:
        request = json.loads(body)
        one = request["message"]["resolve_request"]
        assert request["header"]["total_count"] == len(one)
        self.asked.append([item["reference_id"] for item in one])
        self.message_ids.append(request["header"]["message_id"])
        if any(item["id"] in self.faulty for item in one):
            return answer(status="rjct", status_reason_code="rjct.errors.too_many", message_id=self.message_ids[-1])
        return answer(*(response(item["reference_id"]) for item in one), message_id=self.message_ids[-1])


def resolve(access: Access, count: int, max_items: int) -> Any:
    spar = Spar("http://m.example", PATTERNS, sender_id="", sender_uri="", receiver_id="", max_items=max_items, access=access)
    claim = Claim("resolve", "s", 0, uuid4(), uuid4(), 1, False, time.monotonic() + 60, 20, Cause("c"))

    async def one() -> Any:
        async with httpx.AsyncClient(verify=False) as client:
            return await spar.resolve(client, claim, "T", [(f"r{n}", f"p{n}") for n in range(count)])

    return asyncio.run(one())


TOO_MANY = Hold("REFUSED", "rjct.errors.too_many")


@settings(max_examples=40)
@given(st.integers(1, 120), st.integers(1, 130), st.data())
def test_a_refused_request_is_split_until_it_is_known_who_is_at_fault(count: int, max_items: int, data: st.DataObject) -> None:
    faulty = data.draw(st.sets(st.integers(0, count - 1), max_size=6))
    mapper = Refusing({f"p{n}" for n in faulty})
    replies = resolve(mapper, count, max_items)
    assert {reference for reference, reply in replies.items() if reply == TOO_MANY} == {f"r{n}" for n in faulty}
    assert all(reply["account_number"] == "111" for reply in replies.values() if reply != TOO_MANY)
    assert len(replies) == count
    assert max(map(len, mapper.asked)) <= max_items
    assert len(set(mapper.message_ids)) == len(mapper.message_ids)


@pytest.mark.parametrize("faulty", [range(1000), range(0, 1000, 20)], ids=["everybody", "every twentieth"])
def test_there_is_an_end_to_splitting_and_everybody_is_somewhere(faulty: range) -> None:
    mapper = Refusing({f"p{n}" for n in faulty})
    replies = resolve(mapper, 1000, 1000)
    assert len(mapper.asked) == 1 + 2 * MOST_SPLITS
    assert len(replies) == 1000
    held = {reference for reference, reply in replies.items() if reply == TOO_MANY}
    assert held >= {f"r{n}" for n in faulty}
    answered = {one for group in mapper.asked for one in group if one not in held}
    assert answered == replies.keys() - held


def test_another_refusal_while_splitting_is_one_of_the_whole_call() -> None:
    class Tired(Refusing):
        async def post(self, client: Any, claim: Claim, url: str, body: bytes) -> bytes:
            content = await super().post(client, claim, url, body)
            return content if len(self.asked) < 4 else content.replace(b"rjct.errors.too_many", b"rjct.internal.error")

    assert resolve(Tired({"p3"}), 8, 8) == NotSent("MAPPER_REFUSED", "rjct.internal.error")
