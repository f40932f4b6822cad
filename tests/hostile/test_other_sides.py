"""Banks and mappers which answer nonsense, over real HTTP: whatever comes back, the result is one of the three that the domain
knows, and it never says more than the answer proves. Nothing is raised; an endless answer ends, and costs little memory."""

import asyncio
import gc
import gzip
import json
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.envelope import Cause
from libs.common.errors import LeaseLost
from libs.common.workqueue import MARGIN_SECONDS, Answer, Claim, Done, Limits, MaybeDone, NotSent, http_client, post
from services.funds.adapters.example_bank import ExampleBank
from services.funds.adapters.full_bank import FullBank
from services.funds.ports import Accepted, Account, Became, NotKnown, Payment, Refused, Succeeded, Sufficient
from services.resolution.adapters.spar import MOST_SPLITS, Spar
from services.resolution.adapters.spar2 import Spar2
from services.resolution.config import Settings
from services.resolution.domain import Hold
from tests.hostile.raw_server import RawServer, http

ACCOUNT = Account("SP1", "EUR")
REFERENCES = [f"REFERENCE{n:07}" for n in range(3)]
PAYMENTS = [
    Payment(reference, 1000, "A", "ACC", "BANK_ACCOUNT", "B", "BR", "", "", "", "", ("",) * 6) for reference in REFERENCES
]
PATTERNS = {
    kind: Settings.model_fields[f"{kind.lower()}_pattern"].default for kind in ("BANK_ACCOUNT", "MOBILE_WALLET", "EMAIL_WALLET")
}
PEOPLE = [("r1", "p1"), ("r2", "p2")]
VERBS = ("check", "block", "dispatch", "release", "query")


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def claim(ambiguous: bool = False, timeout_seconds: float = 30.0) -> Claim:
    return Claim(
        "k", "s", 0, uuid4(), UUID(int=7), 1, ambiguous, time.monotonic() + timeout_seconds + 10, timeout_seconds, Cause("c")
    )


async def ask(bank: ExampleBank, verb: str, client: httpx.AsyncClient, call: Claim) -> Answer:
    if verb == "check":
        return await bank.check(client, call, ACCOUNT, 5)
    if verb == "block":
        return await bank.block(client, call, ACCOUNT, 5)
    if verb == "release":
        return await bank.release(client, call, ACCOUNT, "BLK", 5)
    if verb == "query":
        return await bank.query(client, call, UUID(int=8))
    return await bank.dispatch(client, call, ACCOUNT, "BLK", "2026-11-21", PAYMENTS)


def results(*refused: int) -> list[dict[str, Any]]:
    return [
        {"payment_reference_number": one, "status": "refused" if n in refused else "accepted", "error_code": "X"}
        for n, one in enumerate(REFERENCES)
    ]


# What each verb answers where all is well; the nonsense is made of it.
GOOD: dict[str, dict[str, Any]] = {
    "check": {"status": "success", "account_number": "SP1", "has_sufficient_funds": True, "error_message": ""},
    "block": {"status": "success", "block_reference_no": "BLK1", "error_message": ""},
    "release": {"status": "success", "release_reference_no": "REL1", "error_message": ""},
    "dispatch": {"status": "success", "error_message": "", "results": results()},
}
GOOD["query"] = {"found": True, "status_code": 200, "answer": GOOD["dispatch"]}

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["success", "failed", "partial", "accepted", "refused", "x" * 5000, "\x00", "\ud83d", *REFERENCES]),
)
_JSON = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6
)


@st.composite
def _altered(draw: st.DrawFn, good: Any) -> bytes:
    """A good answer, of which some values are others."""
    document = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(0, 3))):
        place = document
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if draw(st.booleans()) and isinstance(place[key], dict | list) and place[key]:
                place = place[key]
                continue
            place[key] = draw(_JSON)
            break
    return json.dumps(document).encode(
        draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])), "replace"
    )


_NONSENSE = st.one_of(
    st.binary(max_size=50),
    _JSON.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(
        [
            b"",
            b"null",
            b"[]",
            b"[" * 200_000,
            b'{"status":' * 50_000,
            b'{"status": ' + b"9" * 10_000 + b"}",
            b'{"status": "success", "block_reference_no": 1e999, "results": NaN}',
            b'{"status": "success", "status": "failed"}',
            b"<html>Welcome</html>",
        ]
    ),
)
_STATUSES = st.one_of(
    st.just(200),
    st.just(200),
    st.sampled_from(
        [201, 202, 204, 206, 301, 302, 307, 308]
        + [400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 412, 413, 415, 418, 421, 422, 423, 424, 425, 428, 429, 451, 499]
        + [500, 502, 503, 504, 599]
    ),
)
_HEADERS = st.lists(
    st.sampled_from(
        [
            ("Location", "http://127.0.0.1:1/elsewhere"),
            ("Location", "::::"),
            ("Content-Encoding", "gzip"),
            ("Content-Encoding", "zstd"),
            ("Content-Type", "application/json; charset=utf-7"),
            ("Content-Type", "\u00e9"),
            ("Retry-After", "9" * 400),
            ("Retry-After", "Fri, 99 Nov 2026 99:99:99 GMT"),
            ("Set-Cookie", "a=b; Domain=\u00e9; Expires=never; Max-Age=x"),
            ("X", "y" * 60_000),
        ]
    ),
    max_size=2,
)


@st.composite
def _wire(draw: st.DrawFn, good: Any) -> tuple[bytes, int, bytes | None]:
    """(what is sent, its status, its body if all of it arrives)."""
    status, body = draw(_STATUSES), draw(st.one_of(_altered(good), _NONSENSE))
    if status == 204:
        body = b""
    headers = draw(_HEADERS)
    framing = draw(st.sampled_from(["length", "length", "chunked", "short", "cut", "no HTTP", "silence"]))
    if framing == "no HTTP":
        return draw(st.binary(min_size=1, max_size=30)) + body, 0, None
    if framing == "silence":
        return b"", 0, None
    if framing == "chunked":
        sent = http(status, body, *headers, chunked=True)
    else:
        sent = http(status, body, *headers, length=len(body) + (5 if framing == "short" and status != 204 else 0))
    if framing == "cut":
        sent = sent[: draw(st.integers(0, len(sent) - 1))]
    whole = framing in ("length", "chunked") and not any(name == "Content-Encoding" for name, _ in headers)
    return sent, status, body if whole else None


def document(body: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(body or b"")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def assert_storable(code: str, message: str) -> None:
    """For columns of text, and for people."""
    assert code
    assert "\x00" not in code + message
    (code + message).encode()


@pytest.mark.parametrize("bank", [ExampleBank, FullBank])
@pytest.mark.parametrize("verb", VERBS)
@settings(max_examples=40)
@given(data=st.data())
def test_a_bank_may_answer_anything(loop: asyncio.Runner, bank: type[ExampleBank], verb: str, data: st.DataObject) -> None:
    if bank is ExampleBank and verb in ("release", "query"):
        return  # it has none, and says so
    good = GOOD[verb]
    sent, status, body = data.draw(_wire(good))
    ambiguous = bank is FullBank and verb not in ("check", "query") and data.draw(st.booleans())
    if ambiguous:  # the query is answered with nonsense
        sent, status, body = data.draw(_wire({"found": True, "status_code": 200, "answer": good}))

    async def one() -> Answer:
        async with RawServer(lambda _: iter([sent])) as server, httpx.AsyncClient(verify=False) as client:
            return await ask(bank(server.url), verb, client, claim(ambiguous))

    answer = loop.run(one())
    if isinstance(answer, NotSent):  # the request itself was refused: money.md §3 leaves nothing else
        assert status in (400, 401, 403, 404, 413, 415, 422, 429)
        assert_storable(answer.code, answer.message)
    elif isinstance(answer, MaybeDone):
        assert_storable(answer.code, answer.message)
    else:
        assert status == 200
        assert isinstance(answer, Done)
        said = document(body)
        if (ambiguous or verb == "query") and said.get("found") is True:
            said = said["answer"]
        value = answer.value
        if isinstance(value, Succeeded):
            assert value.reference in (said.get("block_reference_no"), said.get("release_reference_no"))
            assert_storable(value.reference, "")
        elif isinstance(value, Sufficient):
            assert said["has_sufficient_funds"] is True
        elif isinstance(value, Refused):
            assert said["status"] == "failed" or verb == "check"
            assert_storable("x", value.message)
        elif isinstance(value, Became):
            states = [one["status"] for one in said["results"]]
            assert (value.accepted, value.refused) == (states.count("accepted"), states.count("refused"))
            assert value.accepted + value.refused == len(states)
        elif isinstance(value, NotKnown):
            assert said["found"] is False
        else:
            assert isinstance(value, Accepted)
            assert said["status"] in ("success", "partial", "failed")
            if bank is FullBank:  # it answers for each payment: none is forgotten, none told twice
                assert sorted(one["payment_reference_number"] for one in said["results"]) == REFERENCES
            for reference, _, message in value.refused:
                assert reference in REFERENCES
                assert_storable("x", message)


@pytest.mark.parametrize(
    "found",
    [
        results()[:2],
        [*results(), *results(1)[1:2]],
        [*results()[:2], {"payment_reference_number": "SOMEBODY ELSE'S", "status": "refused"}],
    ],
    ids=["one is missing", "one is told twice", "one is another's"],
)
def test_results_which_are_not_those_of_the_payments_prove_nothing(loop: asyncio.Runner, found: list[Any]) -> None:
    """Whoever is not named may or may not be paid; whoever is refused and accepted at once must not be sent again."""
    body = json.dumps({"status": "partial", "results": found}).encode()

    async def one() -> Answer:
        async with RawServer(lambda _: iter([http(200, body)])) as server, httpx.AsyncClient(verify=False) as client:
            return await ask(FullBank(server.url), "dispatch", client, claim())

    assert isinstance(loop.run(one()), MaybeDone)


@pytest.mark.parametrize("verb", VERBS)
def test_a_bank_that_makes_sense_is_understood(loop: asyncio.Runner, verb: str) -> None:
    """The other tests here would pass with an adapter that understands nothing."""

    async def one() -> Answer:
        body = json.dumps(GOOD[verb]).encode()
        async with (
            RawServer(lambda _: iter([http(200, body, chunked=True)])) as server,
            httpx.AsyncClient(verify=False) as client,
        ):
            return await ask(FullBank(server.url), verb, client, claim())

    assert isinstance(loop.run(one()), Done)


# --- Mapper -----------------------------------------------------------------------------------------------------------


def resolved(version: type[Spar], fa: Any) -> dict[str, Any]:
    found = [
        {"reference_id": one, "id": person, "fa": fa, "status": "succ", "status_reason_code": "succ.id.active"}
        for one, person in PEOPLE
    ]
    if version is Spar2:
        header = {"request_id": None, "response_status": "SUCCESS"}
        return {"response_header": header, "response_body": {"response_payload": {"resolve_response": found}}}
    return {"header": {"status": "succ", "message_id": None}, "message": {"resolve_response": found}}


FA = {
    Spar: "account_number:1.branch_code:2.bank_code:3.mobile_number:.email_address:.fa_type:BANK_ACCOUNT",
    Spar2: {"account_number": "1", "bank_code": "3", "fa_type": "BANK"},
}


async def resolve(version: type[Spar], url: str, client: httpx.AsyncClient, call: Claim) -> Any:
    mapper = version(url, PATTERNS, sender_id="s", sender_uri="", receiver_id="", max_items=1000)
    return await mapper.resolve(client, call, "T", PEOPLE)


@pytest.mark.parametrize("version", [Spar, Spar2])
@settings(max_examples=80)
@given(data=st.data())
def test_a_mapper_may_answer_anything(loop: asyncio.Runner, version: type[Spar], data: st.DataObject) -> None:
    sent, _, body = data.draw(_wire(resolved(version, FA[version])))

    async def one() -> Any:
        async with RawServer(lambda _: iter([sent])) as server, httpx.AsyncClient(verify=False) as client:
            return await resolve(version, server.url, client, claim())

    answer = loop.run(one())
    if isinstance(answer, NotSent | MaybeDone):
        assert_storable(answer.code, answer.message)
        return
    assert body is not None
    for reference, reply in answer.items():
        assert reference in ("r1", "r2")  # nobody else gets an address
        if isinstance(reply, Hold):
            assert_storable(reply.reason, reply.message)
        else:
            assert all(isinstance(text, str) and 0 < len(text) <= 500 and text.isprintable() for text in reply.values())


@pytest.mark.parametrize("version", [Spar, Spar2])
def test_a_mapper_that_makes_sense_is_understood(loop: asyncio.Runner, version: type[Spar]) -> None:
    async def one() -> Any:
        body = json.dumps(resolved(version, FA[version])).encode()
        async with RawServer(lambda _: iter([http(200, body)])) as server, httpx.AsyncClient(verify=False) as client:
            return await resolve(version, server.url, client, claim())

    assert {reply["account_number"] for reply in loop.run(one()).values()} == {"1"}


def test_a_mapper_that_refuses_whatever_it_is_asked_is_not_asked_beyond_the_lease(loop: asyncio.Runner) -> None:
    """Each refusal is a reason to ask for fewer people; the lease ends long before the last of them would be asked for."""
    body = json.dumps({"header": {"status": "rjct", "status_reason_code": "rjct.errors.too_many"}}).encode()
    answer = http(200, body, ("Connection", "close"))
    short = replace(claim(timeout_seconds=5.0), deadline=time.monotonic() + 5.0 + MARGIN_SECONDS + 2.0)
    people = [(f"r{n}", f"p{n}") for n in range(1000)]

    async def one() -> int:
        async with (
            RawServer(lambda _: iter([answer[:-1], answer[-1:]]), pause_seconds=0.15) as server,
            httpx.AsyncClient(verify=False) as client,
        ):
            mapper = Spar(server.url, PATTERNS, sender_id="s", sender_uri="", receiver_id="", max_items=1000)
            with pytest.raises(LeaseLost):
                await mapper.resolve(client, short, "T", people)
            return len(server.requests)

    assert 1 < loop.run(one()) < 1 + 2 * MOST_SPLITS


# --- Cookies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [True, False])
def test_the_other_side_cannot_leave_a_cookie_with_us(loop: asyncio.Runner, read: bool) -> None:
    """Neither bank nor mapper; what we say in a header of our own (a keymanager wants its token there) is sent as it is."""
    cookies = [
        ("Set-Cookie", "session=1"),
        ("Set-Cookie", "kept=1; Path=/; Max-Age=999999999"),
        ("Set-Cookie", "wide=1; Domain=127.0.0.1; Path=/; HttpOnly"),
        ("Set-Cookie2", "old=1; Version=1"),
        ("Connection", "close"),
    ]
    bodies = {"/check_funds": GOOD["check"], "/sync/resolve": resolved(Spar, FA[Spar])}

    async def all_calls() -> tuple[list[Any], list[str]]:
        async with (
            RawServer(lambda path: iter([http(200, json.dumps(bodies[path]).encode(), *cookies)])) as server,
            http_client(Limits(), read=read) as client,
        ):
            answers = []
            for _ in range(2):
                answers.append(await ask(ExampleBank(server.url), "check", client, claim()))
                answers.append(await resolve(Spar, server.url, client, claim()))
            await post(client, claim(), f"{server.url}/sync/resolve", b"{}", {"Cookie": "Authorization=ours"})
            assert not list(client.cookies.jar)
            return answers, server.heads

    answers, heads = loop.run(all_calls())
    assert answers[:2] == answers[2:]
    assert isinstance(answers[0], Done)
    assert [line for head in heads for line in head.splitlines() if line.lower().startswith("cookie")] == [
        "Cookie: Authorization=ours"
    ]
    assert len(heads) == 5


# --- Answers without an end -------------------------------------------------------------------------------------------

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
_MEGABYTE = b" " * 1_000_000


def _zipped() -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(_MEGABYTE) for _ in range(100)) + packer.flush()


ENDLESS: dict[str, Any] = {
    "a body without an end": lambda: (_HEAD + b"\r\n", *repeat(_MEGABYTE, 100)),
    "a chunk without an end": lambda: (_HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffff\r\n", *repeat(_MEGABYTE, 100)),
    "a length that nobody can hold": lambda: (_HEAD + b"Content-Length: 99999999999\r\n\r\n", *repeat(_MEGABYTE, 100)),
    "headers without an end": lambda: (_HEAD, *repeat(b"X: " + b"y" * 60_000 + b"\r\n", 2000)),
    "little that unpacks to much": lambda: (http(200, _zipped(), ("Content-Encoding", "gzip")),),
    "less that unpacks to more": lambda: (
        http(200, zstandard.ZstdCompressor().compress(_MEGABYTE * 100), ("Content-Encoding", "zstd")),
    ),
    "packed twice": lambda: (http(200, gzip.compress(_zipped()), ("Content-Encoding", "gzip, gzip")),),
}


@pytest.mark.parametrize("kind", list(ENDLESS))
def test_an_answer_without_an_end_costs_little_memory(loop: asyncio.Runner, kind: str) -> None:
    pieces = ENDLESS[kind]()

    async def one() -> tuple[Answer, int]:
        async with RawServer(lambda _: iter(pieces)) as server, httpx.AsyncClient(verify=False) as client:
            tracemalloc.start()
            try:
                answer = await ask(FullBank(server.url), "dispatch", client, claim(timeout_seconds=20))
                return answer, tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    answer, peak_bytes = loop.run(one())
    assert isinstance(answer, MaybeDone)
    assert answer.code in ("ANSWER_UNREADABLE", "NO_ANSWER")
    assert peak_bytes < 40_000_000  # the answer, the buffers of both sides, and what else the loop does


@pytest.mark.parametrize("answer", [http(200, b"{}"), http(200, b"", ("Content-Encoding", "gzip"))], ids=["read", "unread"])
def test_what_was_sent_is_forgotten_with_the_answer(loop: asyncio.Runner, answer: bytes) -> None:
    """Not only when the collector of cycles comes by: lists of payments are long, and by then there are a hundred."""

    async def kept_bytes() -> int:
        async with RawServer(lambda _: iter((answer,))) as server, http_client(Limits(), read=False) as client:
            await post(client, claim(), server.url, _MEGABYTE)
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(5):
                await post(client, claim(), server.url, b"%d" % time.monotonic_ns() + _MEGABYTE)
            server.requests.clear()
            return tracemalloc.get_traced_memory()[0] - before

    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        assert loop.run(kept_bytes()) < 1_000_000
    finally:
        tracemalloc.stop()
        gc.enable()


def test_a_slow_drip_ends_with_the_time_out(loop: asyncio.Runner) -> None:
    async def one() -> tuple[Answer, int]:
        async with RawServer(lambda _: iter((_HEAD + b"\r\n", *repeat(b" ", 100_000))), pause_seconds=0.02) as server:
            client = httpx.AsyncClient(verify=False)
            return await ask(FullBank(server.url), "block", client, claim(timeout_seconds=2)), server.sent_bytes

    answer, sent_bytes = loop.run(one())
    assert isinstance(answer, MaybeDone)
    assert answer.code == "NO_ANSWER"
    assert sent_bytes < 5_000
