"""Statements by event and by HTTP: what funds gets to read of them."""

import hashlib
import hmac
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from libs.common.contracts import ingestion as c
from libs.common.contracts.base import derived_id
from libs.common.contracts.operator import HandInStatement
from libs.common.envelope import Event
from libs.local import mt940
from tests.integration.ingestion.publisher import LINES, RESULTS, SEALER, STATEMENTS, answers_to, debits, statement_text
from tests.support.process import Process
from tests.support.world import World

TOKENS = {"ALMONER_INGESTION_STATEMENT_TOKENS": json.dumps({"bank": "s3cret", "cli": "other"})}


def post(process: Process, content: bytes, token: str = "s3cret", field: str = "statement_file") -> httpx.Response:
    return httpx.post(
        f"{process.http_url}/statements",
        files={field: ("statement.sta", content, "text/plain")},
        headers={"Authorization": f"Bearer {token}".strip()},
        trust_env=False,
        verify=False,
        timeout=60,
    )


def opened(world: World, at_least: int) -> list[c.StatementOpened]:
    return [event.data for event in world.events(LINES, c.StatementOpened, at_least=at_least)]


def read(world: World, statement: c.StatementOpened, timeout: float = 60, repeated: bool = False) -> list[c.StatementLines]:
    """All chunks of a statement, each seen once (or more often, by the same id: `repeated`), with their control totals."""

    def of_statement() -> list[Event[Any]]:
        found = [e for e in world.events(LINES, c.StatementLines) if e.data.statement_id == statement.statement_id]
        return found if len({event.id for event in found}) >= statement.chunks else []

    events = world.until(of_statement, timeout) if statement.chunks else []
    by_id = {event.id: event.data for event in events}
    assert len(by_id) == statement.chunks
    assert repeated or len(events) == statement.chunks
    chunks = sorted(by_id.values(), key=lambda data: data.chunk)
    numbers = [line.line for data in chunks for line in [*data.lines, *data.unparsable]]
    assert sorted(numbers) == list(range(1, statement.lines + 1))
    for data in chunks:
        assert data.count == len(data.lines)
        assert data.total_minor == sum(line.amount_minor for line in data.lines)
        assert data.account_token == statement.account_token
    return chunks


def test_by_event(world: World) -> None:
    world.run("ingestion")
    lines = [*debits(3), mt940.Line("RD", 1002, "REF0000000000002", "BANK9", ["", "", "", "p2", "REF0000000000002", "closed"])]
    text = statement_text("DE0247", lines)
    sent = world.publish(STATEMENTS, c.StatementSubmitted(text=text), "DE0247")
    [answer] = answers_to(world, sent)
    assert answer.data.outcome == "stored"
    [statement] = opened(world, 1)
    assert (statement.number, statement.sequence, statement.currency, statement.lines) == ("1", "1", "EUR", 4)
    assert (statement.opening_minor, statement.closing_minor) == (0, -(1001 + 1003))
    assert statement.account_token == SEALER.token("DE0247")
    [chunk] = read(world, statement)
    assert [(line.mark, line.amount_minor) for line in chunk.lines] == [("D", 1001), ("D", 1002), ("D", 1003), ("RD", 1002)]
    assert chunk.lines[0].customer_reference == chunk.lines[0].fifth_narrative == "REF0000000000001"
    assert chunk.lines[0].bank_reference == "BANK1"
    personal = SEALER.open(chunk.sealed, "StatementLines", statement.statement_id, 1)
    assert personal["line"] == [1, 2, 3, 4]
    assert personal["narratives"][0] == ["November", "", "2026-11", "p1", "REF0000000000001"]
    assert personal["narratives"][3][5] == "closed"
    # The same content under another id, and with other line ends, changes nothing.
    world.publish(STATEMENTS, c.StatementSubmitted(text=text), "DE0247", event_id="again")
    world.publish(STATEMENTS, c.StatementSubmitted(text=text.replace("\r\n", "\n")), "DE0247", event_id="other-ends")
    assert answers_to(world, "again")[0].data.outcome == answers_to(world, "other-ends")[0].data.outcome == "stored"
    assert len(world.events(LINES, c.StatementOpened)) == len(world.events(LINES, c.StatementLines)) == 1
    row = world.sql("ingestion", "SELECT * FROM ops_statements")[0]
    assert (row.state, row.lines, row.unparsable, row.account_token) == ("READ", 4, 0, statement.account_token)


def test_by_event_unreadable(world: World) -> None:
    world.run("ingestion")
    refused = {
        "garbage": "INVALID_STATEMENT",
        statement_text("A", debits(2)).split(":62F:")[0]: "NO_CLOSING_BALANCE",
        statement_text("A", debits(2)).replace(":60F:", ":60Q:"): "NO_OPENING_BALANCE",
    }
    for text, code in refused.items():
        [answer] = answers_to(world, world.publish(STATEMENTS, c.StatementSubmitted(text=text), "A"))
        assert [fault.code for fault in answer.data.errors] == [code]
    assert world.events(LINES, c.StatementOpened) == []
    states = world.sql("ingestion", "SELECT state FROM ops_statements")
    assert [row.state for row in states] == ["REJECTED", "REJECTED"]


def test_who_handed_in_a_file_is_written_down_and_no_other_file_can_be_claimed(world: World) -> None:
    process = world.run("ingestion", **TOKENS)
    content = statement_text("A", debits(2)) + statement_text("B", debits(1))
    stored = post(process, content.encode()).json()["file_id"]
    again = post(process, content.replace("\n", "\r\n").encode()).json()["file_id"]  # another file of the same statements
    for file_id in (stored, again, derived_id("statement-file", "nobody's")):
        command = HandInStatement(who="ann", why="their call-back was down", file_id=file_id, file="friday.sta")
        world.publish("ingestion.commands.v1", command, "k")  # one after the other
    audit = "SELECT who, affected, detail FROM ops_audit ORDER BY id"
    world.until(lambda: len(world.sql("ingestion", audit)) == 3, what="three commands")
    taken, known, refused = world.sql("ingestion", audit)
    assert (taken.who, taken.affected) == ("ann", 2)
    assert (known.affected, known.detail.startswith("refused")) == (0, False)
    assert (refused.affected, refused.detail.partition(";")[0][:17]) == (0, "refused: no file ")


def test_several_statements_in_one_file_and_a_bad_line(world: World) -> None:
    process = world.run("ingestion", **TOKENS)
    first = statement_text("A", debits(3)).replace("D10,02", "D10,0x2")
    cut = statement_text("C", debits(1)).split(":62F:")[0]
    empty = statement_text("D", [])
    content = first + statement_text("B", debits(2, 50), currency="JPY") + cut + empty
    response = post(process, content.encode())
    assert (response.status_code, response.json()["outcome"], response.json()["warnings"]) == (200, "stored", [])
    [rejected] = response.json()["rejected"]  # the others are stored
    assert rejected["code"] == "NO_CLOSING_BALANCE"
    found = {statement.account_token: statement for statement in opened(world, 3)}
    assert found.keys() == {SEALER.token(account) for account in "ABD"}
    [chunk] = read(world, found[SEALER.token("A")])
    assert [line.line for line in chunk.lines] == [1, 3]
    assert [line.line for line in chunk.unparsable] == [2]
    personal = SEALER.open(chunk.sealed, "StatementLines", chunk.statement_id, 1)
    assert "10,0x2" in personal["text"][1][0]
    assert personal["text"][0] is None
    [chunk] = read(world, found[SEALER.token("B")])
    assert [line.amount_minor for line in chunk.lines] == [1050, 1051]
    assert read(world, found[SEALER.token("D")]) == []
    rows = {row.account_token: row for row in world.sql("ingestion", "SELECT * FROM ops_statements")}
    assert rows[SEALER.token("A")].unparsable == 1
    assert rows[SEALER.token("C")].state == "REJECTED"
    assert rows[SEALER.token("C")].reason.startswith("NO_CLOSING_BALANCE")


def test_short_statements_are_read_at_once_and_the_others_by_the_job(world: World) -> None:
    process = world.run("ingestion", **TOKENS)
    world.sql("ingestion", "INSERT INTO paused (stage, who, why) VALUES ('read-statement', 'ann', 'a test')")
    sizes = {"A": 2100, "B": 2100, "C": 7}
    content = "".join(statement_text(account, debits(lines)) for account, lines in sizes.items())
    assert post(process, content.encode()).status_code == 200
    assert post(process, content.encode()).status_code == 200  # what came before changes nothing
    states = {row.account_token: row.state for row in world.sql("ingestion", "SELECT account_token, state FROM ops_statements")}
    assert states == {SEALER.token("A"): "READ", SEALER.token("B"): "READING", SEALER.token("C"): "READ"}
    world.sql("ingestion", "DELETE FROM paused")
    for statement in opened(world, 3):
        lines = [line for chunk in read(world, statement) for line in chunk.lines]
        assert sorted(line.amount_minor for line in lines) == [1000 + n for n in range(1, statement.lines + 1)]
    assert not world.sql("ingestion", "SELECT 1 FROM due")


def test_http_refusals(world: World) -> None:
    process = world.run("ingestion", ALMONER_INGESTION_STATEMENT_MAX_BYTES="1000000", **TOKENS)
    world.until(process.ready)
    text = statement_text("A", debits(1)).encode()
    assert post(process, text, token="wrong").status_code == 401
    assert post(process, text, token="").status_code == 401
    no_token = httpx.post(f"{process.http_url}/statements", content=text, trust_env=False, verify=False, timeout=60)
    assert no_token.status_code == 401
    too_large = post(process, text + b"x" * 1_000_000)
    assert (too_large.status_code, too_large.json()["code"]) == (413, "STATEMENT_TOO_LARGE")
    assert post(process, b"y" * 3_000_000).status_code == 413
    for response in (post(process, b"garbage"), post(process, text, field="other"), post(process, b"")):
        assert (response.status_code, response.json()["code"]) == (422, "INVALID_STATEMENT")
    bad_form = httpx.post(
        f"{process.http_url}/statements",
        content=b"not a form",
        headers={"Authorization": "Bearer other", "Content-Type": "multipart/form-data"},
        trust_env=False,
        verify=False,
        timeout=60,
    )
    assert bad_form.status_code == 422
    assert world.sql("ingestion", "SELECT 1 FROM statement_files") == []
    assert post(process, text, token="other").status_code == 200
    assert post(process, text).status_code == 200  # the same again
    assert len(world.sql("ingestion", "SELECT 1 FROM statement_files")) == 1
    assert process.ready()


def test_nobody_without_configured_tokens(world: World) -> None:
    process = world.run("ingestion")
    assert post(process, statement_text("A", debits(1)).encode(), token="").status_code == 401


def signed(process: Process, content: bytes, key: str, **headers: str) -> httpx.Response:
    """Posted by a bank that signs the body of its request."""
    request = httpx.Request(
        "POST", f"{process.http_url}/statements", files={"statement_file": ("s.sta", content, "text/plain")}
    )
    request.read()
    signature = "sha256=" + hmac.new(key.encode(), request.content, hashlib.sha256).hexdigest()
    request.headers.update({"X-Almoner-Signature": signature, **headers})
    with httpx.Client(trust_env=False, verify=False, timeout=60) as client:
        return client.send(request)


def test_tokens_and_keys_of_each_bank_and_their_successors(world: World) -> None:
    process = world.run(
        "ingestion",
        ALMONER_INGESTION_STATEMENT_TOKENS=json.dumps({"ALPHA": ["new-alpha", "old-alpha"], "BETA": "beta"}),
        ALMONER_INGESTION_STATEMENT_SIGNING_KEYS=json.dumps({"GAMMA": ["gamma " + "n" * 20, "gamma " + "o" * 20]}),
        ALMONER_INGESTION_STATEMENT_MAX_BYTES="3000000",
    )

    def text(account: str, lines: int = 1) -> bytes:
        return statement_text(account, debits(lines)).encode()

    for number, token in enumerate(("new-alpha", "old-alpha", "beta")):
        assert post(process, text(f"T{number}"), token).status_code == 200
    for number, key in enumerate(("gamma " + "n" * 20, "gamma " + "o" * 20)):
        assert signed(process, text(f"S{number}", 1500), key).status_code == 200  # of several pieces
    sources = [row.source for row in world.sql("ingestion", "SELECT source FROM statement_files ORDER BY received_at")]
    assert sources == ["http/ALPHA", "http/ALPHA", "http/BETA", "http/GAMMA", "http/GAMMA"]
    [of_pieces] = [statement for statement in opened(world, 5) if statement.account_token == SEALER.token("S1")]
    assert len(read(world, of_pieces)) == 2

    key = "gamma " + "n" * 20
    refusals = [
        post(process, text("X"), "nobody's"),
        post(process, text("X"), "bet"),
        post(process, text("X"), key),  # whoever signs has no token
        signed(process, text("X"), "another key of this length"),
        signed(process, text("X"), "beta"),
        signed(process, text("X"), key, **{"X-Almoner-Signature": "sha256="}),
        signed(process, b"garbage", "another key of this length"),
        *(
            httpx.post(f"{process.http_url}/statements", **sent, trust_env=False, verify=False, timeout=60)
            for sent in ({"content": text("X")}, {"headers": {"Authorization": "Basic beta"}})
        ),
    ]
    request = signed(process, text("X"), key).request  # the same signature over another body
    altered = httpx.post(
        request.url,
        headers=dict(request.headers),
        content=request.content.replace(b"D10,01", b"D90,01"),
        trust_env=False,
        timeout=60,
    )
    answers = {(r.status_code, r.text, r.headers["www-authenticate"]) for r in [*refusals, altered]}
    assert len(answers) == 1  # nothing tells what was wrong, nor with whom
    [(status, said, _)] = answers
    assert (status, json.loads(said)["code"]) == (401, "UNAUTHORIZED")
    assert "Bearer" in json.loads(said)["message"]
    assert signed(process, b"y" * 4_000_000, key).status_code == 413
    assert signed(process, b"garbage", key).status_code == 422
    assert len(world.sql("ingestion", "SELECT 1 FROM statement_files")) == 6


def test_a_bank_has_tokens_or_signs(world: World) -> None:
    both = {"STATEMENT_TOKENS": {"A": "t"}, "STATEMENT_SIGNING_KEYS": {"A": "k" * 16}}
    process = world.run("ingestion", **{f"ALMONER_INGESTION_{name}": json.dumps(value) for name, value in both.items()})
    assert process.wait() == 2
    assert "A bank has tokens or signs; ['A'] are in both" in process.log_text()


def test_who_writes_no_usable_numbers_is_somebody_who_posts(world: World) -> None:
    process = world.run("ingestion", **TOKENS, ALMONER_INGESTION_STATEMENTS_UNNUMBERED=json.dumps(["bank", "bnak"]))
    assert process.wait() == 2
    assert "['bnak'] have neither tokens nor signing keys" in process.log_text()


def numbered(number: str, opening: int, day: int, lines: int = 1, account: str = "A", first: int = 1) -> str:
    """A statement of so many debits on a day of November 2026; `number` as in `:28C:`."""
    text = statement_text(account, debits(lines, first))
    closing = opening - sum(line.amount_minor for line in debits(lines, first))
    text = re.sub(":28C:.*\r", f":28C:{number}\r", text)
    text = re.sub(":60F:.*\r", f":60F:C2611{day:02}EUR{opening // 100},{opening % 100:02}\r", text)
    return re.sub(":62F:.*\r", f":62F:C2611{day:02}EUR{closing // 100},{closing % 100:02}\r", text)


def test_what_is_strange_beside_the_others_is_told_and_stops_nothing(world: World) -> None:
    process = world.run("ingestion", **TOKENS)
    opening = 1_000_000
    first = numbered("7/1", opening, 2)
    second = numbered("00008/00001", opening - 1001, 3)
    third = numbered("8/2", opening - 2002, 3)
    fifth = numbered("10/1", opening - 3003 - 500, 5)
    fourth = numbered("9/1", opening - 3003, 4, first=2)
    other_content = numbered("7/1", opening, 2, lines=2)

    def told(content: str) -> list[str]:
        answer = post(process, content.encode())
        assert (answer.status_code, answer.json()["rejected"]) == (200, [])
        return [warning["code"] for warning in answer.json()["warnings"]]

    assert told(first) == []
    assert told(second + third) == []  # one statement over two messages
    assert told(fifth) == ["NUMBER_GAP", "BALANCE_GAP"]
    assert told(fourth) == []
    assert told(other_content) == ["SAME_NUMBER"]
    assert told(numbered("1/1", opening, 2, account="B") + numbered("1/1", opening, 3, lines=2, account="B")) == [
        "SAME_NUMBER"
    ] * 2 + ["BALANCE_GAP"]
    assert (
        told(numbered("0", opening, 2, account="C") + numbered("0", opening - 1001, 3, account="C")) == []
    )  # banks without numbers
    assert told(first) == []  # what came before is not looked at again
    text = c.StatementSubmitted(text=numbered("7/1", opening, 2, lines=3))
    [answer] = answers_to(world, world.publish(STATEMENTS, text, "A"))
    assert (answer.data.outcome, [(w.code, w.pointer) for w in answer.data.warnings]) == ("stored", [("SAME_NUMBER", "/text")])
    world.publish(STATEMENTS, text, "A", event_id=answer.data.submission_ids[0])
    assert answers_to(world, answer.data.submission_ids[0], at_least=2)[1].data == answer.data
    # The view tells how it is by now: the fourth came after the fifth, which still does not open where the fourth closed.
    rows = world.sql(
        "ingestion",
        "SELECT number, sequence, flags FROM ops_statements WHERE account_token = %(a)s",
        a=SEALER.token("A"),
    )
    assert {(row.number, row.sequence): row.flags for row in rows if row.number != "7"} == {
        ("8", "1"): ["BALANCE_GAP"],  # behind the other 7/1, which came last
        ("8", "2"): [],
        ("9", "1"): [],
        ("10", "1"): ["BALANCE_GAP"],
    }
    assert [row.flags for row in rows if row.number == "7"] == [["SAME_NUMBER"]] * 3
    assert len(opened(world, 11)) == 11
    assert process.logged("strange statement")


def test_statements_of_a_bank_without_usable_numbers_are_compared_with_nothing(world: World) -> None:
    process = world.run("ingestion", **TOKENS, ALMONER_INGESTION_STATEMENTS_UNNUMBERED=json.dumps(["bank"]))

    def told(number: str, day: int, account: str, token: str) -> list[str]:
        """Of one more statement that opens with the same balance."""
        answer = post(process, numbered(number, 1_000_000, day, lines=day, account=account).encode(), token=token)
        assert (answer.status_code, answer.json()["rejected"]) == (200, [])
        return [warning["code"] for warning in answer.json()["warnings"]]

    assert [told("1/1", day, "A", "s3cret") for day in (1, 2, 3)] == [[], [], []]
    assert [told("1/1", day, "B", "other") for day in (1, 2, 3)] == [[], *[["SAME_NUMBER", "BALANCE_GAP"]] * 2]
    # By another hand, for the same account: beside those of the bank it is not strange, beside another of this hand it is.
    assert told("1/1", 4, "A", "other") == []
    assert told("3/1", 5, "A", "other") == ["NUMBER_GAP", "BALANCE_GAP"]
    rows = world.sql(
        "ingestion",
        "SELECT number, flags FROM ops_statements WHERE account_token = %(a)s ORDER BY closing_date",
        a=SEALER.token("A"),
    )
    assert [(row.number, row.flags) for row in rows] == [("1", [])] * 4 + [("3", ["NUMBER_GAP", "BALANCE_GAP"])]
    assert len(opened(world, 8)) == 8


def test_hundred_thousand_lines_in_flat_memory(world: World) -> None:
    process = world.run("ingestion", **TOKENS)
    assert post(process, statement_text("small", debits(5000)).encode()).status_code == 200
    read(world, opened(world, 1)[0])
    before = resident_mb(process)
    content = statement_text("large", debits(100_000)).encode()
    assert post(process, content).status_code == 200
    statement = next(s for s in opened(world, 2) if s.lines == 100_000)
    assert statement.chunks == 100
    chunks = read(world, statement, timeout=120)
    assert sum(chunk.total_minor for chunk in chunks) == sum(line.amount_minor for line in debits(100_000))
    assert not any(chunk.unparsable for chunk in chunks)
    assert resident_mb(process) - before < 60  # the file has 14 MB, its lines as objects hundreds


def resident_mb(process: Process) -> int:
    with open(f"/proc/{process.pid}/status") as status:
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read())
    assert found
    return int(found[1]) // 1024


def test_killed_while_reading_goes_on_without_repeating(world: World, tmp_path: Any) -> None:
    crash = {"ALMONER_CRASH_AT": "job.before_commit:2", "ALMONER_CRASH_KIND": "read-statement"}
    text = statement_text("A", debits(11_000))
    process = world.run("ingestion", ALMONER_CRASH_MARK=str(tmp_path / "mark"), **crash, **TOKENS)
    assert post(process, text.encode()).status_code == 200
    assert process.wait() == -9
    world.run("ingestion", **TOKENS)
    # A process dies with its relay, which may just have published: then that is said again, with the same id.
    [statement] = {event.id: event.data for event in world.events(LINES, c.StatementOpened, at_least=1)}.values()
    assert len(read(world, statement, repeated=True)) == 11
    assert len(world.events(RESULTS, c.SubmissionRejected)) == 0


@pytest.fixture(autouse=True)
def _no_dead_letters(world: World) -> Iterator[None]:
    yield
    assert world.sql("ingestion", "SELECT 1 FROM dead_letters") == []
