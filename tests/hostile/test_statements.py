"""Hostile statements: what is cut, forged, oversized or in another encoding is refused with a reason or read line by line; it is
never taken for something else, and what comes beside it is read."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from libs.common.contracts import ingestion as c
from libs.common.swift import swift_lines
from libs.local import mt940 as bank
from services.funds import domain
from services.ingestion.adapters import mt940_file as mt940
from tests.integration.ingestion.publisher import LINES, SEALER, debits, statement_text
from tests.support.process import Process
from tests.support.world import World

WHOLE = statement_text("DE0247", debits(4)).encode()
FORGED = ":61:2611211121D1,00NTRFREF0000000000001//FORGED"


def read(data: bytes) -> list[tuple[mt940.Head, list[mt940.Line]]]:
    """The statements which can be used, with the lines of them which can be read; nothing else may happen to one."""
    found = []
    for head in mt940.scan([data]):
        lines = []
        entries = list(mt940.entries([data[head.start :]], head.start, head.end))
        assert len(entries) == head.lines
        for entry in entries:
            assert len("".join(entry.fields + entry.narratives)) <= 2 * mt940.MAX_NARRATIVES * mt940.MAX_LINE_BYTES
            try:
                lines.append(mt940.parse(entry, head.currency or "EUR"))
            except mt940.Unreadable:
                continue
        if head.fault is None:
            found.append((head, lines))
        else:
            assert all(head.fault)
    return found


def test_a_statement_cut_at_any_byte_is_never_taken_for_a_whole_one() -> None:
    [(_, whole)] = read(WHOLE)
    taken = 0
    for end in range(len(WHOLE)):
        for head, lines in read(WHOLE[:end]):
            taken += 1
            assert (head.account, head.currency, head.opening_minor) == ("DE0247", "EUR", 0)
            assert head.closing_minor == -4010
            assert lines == whole  # cut behind the last of them: no amount is a part of another
    assert taken == 2  # of which only the line end is missing, or its LF


@given(st.integers(0, len(WHOLE)))
def test_a_statement_without_its_beginning_is_not_taken_for_one(start: int) -> None:
    [(_, whole)] = read(WHOLE)
    for _, lines in read(WHOLE[start:]):
        assert lines == whole


_EVIL = st.lists(
    st.one_of(
        st.sampled_from(
            [
                FORGED,
                "\n",
                "\r\n",
                "\r",
                "\x85",
                "\u2028",
                "\x0b",
                ":61:",
                ":62F:C261121EUR0,00",
                ":20:",
                "-}",
                "-",
                "{4:",
                "\x00",
            ]
        ),
        st.text(max_size=5),
    ),
    max_size=5,
).map("".join)


@given(st.lists(st.tuples(_EVIL, _EVIL, _EVIL), min_size=1, max_size=4))
def test_nobody_forges_a_line_by_a_name_or_a_narrative(texts: list[tuple[str, str, str]]) -> None:
    """From what funds makes of a publisher's words for the bank, through the bank's statement, to the reader of statements."""
    references = domain.references(1, 1, list(range(len(texts))))
    lines = []
    for reference, (narrative, person, disbursement) in zip(references, texts, strict=True):
        safe = swift_lines([narrative or ".", person or ".", disbursement or "."])
        lines.append(bank.Line("D", 1000, reference, "BANK1", [safe[0], "P", "C", safe[1], reference, safe[2]]))
    data = statement_text("DE0247", lines).encode()
    [(head, found)] = read(data)
    assert head.lines == len(texts)
    assert [(line.customer_reference, line.amount_minor) for line in found] == [(one, 1000) for one in references]
    entries = list(mt940.entries([data[head.start :]], head.start, head.end))
    assert [entry.narratives[4] for entry in entries] == references


# Single lines of a statement made into something else.
_LINES = WHOLE.split(b"\r\n")[:-1]
_OTHER_LINES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            b"",
            b":61:" + b"9" * 100_000,
            b":86:" + b"x" * 100_000,
            b"x" * 100_000,
            b":28C:-1/-1",
            b":28C:99999999999999999999/99999999999",
            b":60F:C261121XXX1,00",
            b":60F:D999999EUR" + b"9" * 400 + b",00",
            b":60M:C261121JPY1,00",
            b":62F:C261121USD1,00",
            b":62F:",
            b":61:2611211121RD-1,00NTRFX",
            b":61:2611211121D1e9,00NTRFX",
            b":61:0000000000D1,00NTRFX",
            b":61:2611211121D1,00NTRF" + b"A" * 35 + b"//" + b"B" * 400,
            b":20:\x00\x00",
            b":25:" + b"9" * 5000,
            b":25:\xff\xfe",
            FORGED.encode(),
            b"-}{5:}{1:F01}{4:",
        ]
    ),
)


@st.composite
def _hostile_statements(draw: st.DrawFn) -> bytes:
    lines = list(_LINES)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(lines) - 1))
        lines[place : place + draw(st.integers(0, 2))] = draw(st.lists(_OTHER_LINES, max_size=2))
        lines = lines or [b""]
    text = draw(st.sampled_from([b"\r\n", b"\n", b"\r", b"\n\n"])).join(lines)
    kind = draw(st.sampled_from(["as it is", "as it is", "as it is", "utf-16", "latin-1", "cut", "twice"]))
    if kind in ("utf-16", "latin-1"):
        return text.decode("latin-1").encode(kind)
    return text[: draw(st.integers(0, len(text)))] if kind == "cut" else text * 2 if kind == "twice" else text


@given(_hostile_statements())
def test_any_damage_is_told_or_read(data: bytes) -> None:
    for head, lines in read(data):
        assert head.account
        assert (head.account + head.number + head.sequence + (head.reference or "")).isprintable()
        assert head.closing_minor is not None
        for line in lines:
            assert 0 < line.amount_minor < 2**63
            assert (line.customer_reference + line.bank_reference).isprintable()


# --- Over HTTP --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ingestion(world: World) -> Iterator[Process]:
    """One process for all examples; in the end it still runs and has left nothing undone."""
    process = world.run("ingestion", ALMONER_INGESTION_STATEMENT_TOKENS=json.dumps({"bank": "s3cret"}))
    yield process
    world.until(lambda: not world.sql("ingestion", "SELECT 1 FROM due"), what="an end of reading")
    assert process.ready()
    assert not world.sql("ingestion", "SELECT 1 FROM ops_statements WHERE state = 'READING'")
    assert not world.sql("ingestion", "SELECT 1 FROM dead_letters")
    assert "Traceback" not in process.log_text()


def post(process: Process, content: bytes) -> httpx.Response:
    return httpx.post(
        f"{process.http_url}/statements",
        files={"statement_file": ("statement.sta", content, "text/plain")},
        headers={"Authorization": "Bearer s3cret"},
        trust_env=False,
        verify=False,
        timeout=60,
    )


@settings(
    max_examples=5,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(st.one_of(_hostile_statements(), st.binary(max_size=200)), min_size=10, max_size=15), st.uuids())
def test_a_bank_that_posts_anything(world: World, ingestion: Process, files: list[bytes], good: Any) -> None:
    account = f"GOOD{good.hex[:20]}"
    for data in files:
        answer = post(ingestion, data)
        assert answer.status_code in (200, 422), answer.text
        faults = [answer.json()] if answer.status_code == 422 else answer.json()["rejected"]
        assert all(fault["code"] and fault["message"] for fault in faults)
        assert "DE0247" not in answer.text  # nothing of the content
    assert post(ingestion, statement_text(account, debits(3)).encode()).status_code == 200

    def lines() -> list[c.StatementLines]:
        found = [event.data for event in world.events(LINES, c.StatementLines)]
        return [one for one in found if one.account_token == SEALER.token(account)]

    [read_lines] = world.until(lines)
    assert [line.amount_minor for line in read_lines.lines] == [1001, 1002, 1003]


_BOUNDARIES = st.sampled_from(["B", "", "B" * 300, "é", '"', "B; charset=utf-16"])
_PARTS = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            b"--B\r\n",
            b"--B--\r\n",
            b'Content-Disposition: form-data; name="statement_file"; filename="x"\r\n\r\n',
            b'Content-Disposition: form-data; name="statement_file"\r\n\r\n',
            b'Content-Disposition: form-data; name="\xff\x00"; filename="../../x"\r\n\r\n',
            b"Content-Disposition: attachment\r\nContent-Transfer-Encoding: base64\r\n\r\n",
            b"X: " + b"y" * 20_000 + b"\r\n",
            b"\r\n",
            WHOLE[:200],
        ]
    ),
)


@settings(
    max_examples=40,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    _BOUNDARIES,
    st.lists(_PARTS, max_size=8).map(b"".join),
    st.sampled_from(["multipart/form-data", "text/plain", "application/x-www-form-urlencoded"]),
)
def test_a_form_that_is_none_is_refused(world: World, ingestion: Process, boundary: str, body: bytes, kind: str) -> None:
    headers = {b"Authorization": b"Bearer s3cret", b"Content-Type": f"{kind}; boundary={boundary}".encode()}
    answer = httpx.post(
        f"{ingestion.http_url}/statements", content=body, headers=headers, trust_env=False, verify=False, timeout=60
    )
    assert answer.status_code in (200, 422), (answer.status_code, answer.text)
    assert answer.json().get("code", "") == ("INVALID_STATEMENT" if answer.status_code == 422 else "")
