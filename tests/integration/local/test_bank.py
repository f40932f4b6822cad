"""The simulated bank judges all other tests, so its own word has to be good: every verb, every fault, every crash."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import httpx
import mt940
import pytest

from libs.local.client import BankAdmin, Profile
from tests.support.simulator import SimulatorProcess

BALANCE_MINOR = 100_000_000_00
BOTH = pytest.mark.parametrize("profile", ["example", "full"])


class Wire:
    """One profile's verbs. `key` goes into the header where the profile has one."""

    def __init__(self, base_url: str, profile: Profile) -> None:
        self.profile = profile
        self.http = httpx.Client(base_url=f"{base_url}/{profile}", timeout=20, trust_env=False, verify=False)

    def post(self, path: str, body: Any, key: str | None = None) -> httpx.Response:
        return self.http.post(path, json=body, headers={"Idempotency-Key": key} if key else {})

    def block(self, amount: Any, key: str = "block", account: str = "SPONSOR") -> str:
        body = {"account_number": account, "currency": "EUR", "amount": amount}
        answer = self.post("/block_funds", body, key).json()
        assert answer["status"] == "success", answer
        return cast(str, answer["block_reference_no"])


def payment(block: str, number: int, amount: Any = 100.25, **changes: Any) -> dict[str, Any]:
    reference = f"R{number:015d}"
    return {
        "payment_reference_number": reference,
        "remitting_account": "SPONSOR",
        "remitting_account_currency": "EUR",
        "payment_amount": amount,
        "funds_blocked_reference_number": block,
        "beneficiary_name": "Amina Diallo",
        "beneficiary_account": f"ACCOUNT{number}",
        "beneficiary_account_currency": "EUR",
        "beneficiary_account_type": "BANK_ACCOUNT",
        "beneficiary_bank_code": "EXB",
        "beneficiary_branch_code": "B1",
        "narrative_1": "Cash for June",
        "narrative_2": "PROGRAMME",
        "narrative_3": "CYCLE",
        "narrative_4": f"BENEFICIARY-{number}",
        "narrative_5": reference,
        "narrative_6": f"DISBURSEMENT-{number}",
        "payment_date": "2026-11-21",
        **changes,
    }


@pytest.fixture
def process(tmp_path: Path) -> Iterator[SimulatorProcess]:
    with SimulatorProcess("bank", tmp_path / "bank") as started:
        yield started


@pytest.fixture
def bank(process: SimulatorProcess) -> Iterator[BankAdmin]:
    with BankAdmin(process.base_url) as admin:
        admin.put_account("example", "SPONSOR", "EUR", BALANCE_MINOR)
        admin.put_account("full", "SPONSOR", "EUR", BALANCE_MINOR)
        yield admin


@pytest.fixture
def wire(process: SimulatorProcess, bank: BankAdmin) -> Callable[[Profile], Wire]:
    return lambda profile: Wire(process.base_url, profile)


def references(bank: BankAdmin, profile: Profile) -> list[str]:
    return [row["payment_reference_number"] for row in bank.payments(profile)]


def wait_for(condition: Callable[[], bool], limit_seconds: float = 60) -> None:
    give_up_at = time.monotonic() + limit_seconds
    while not condition():
        assert time.monotonic() < give_up_at, "it never came true"
        time.sleep(0.02)


# What both profiles do


@BOTH
def test_check_answers_200_in_all_cases(wire: Callable[[Profile], Wire], profile: Profile) -> None:
    bank_wire = wire(profile)

    def check(account: str, currency: str, needed: Any) -> tuple[Any, ...]:
        body = {"account_number": account, "account_currency": currency, "total_funds_needed": needed}
        answer = bank_wire.post("/check_funds", body)
        assert answer.status_code == 200
        content = answer.json()
        assert content["account_number"] == account
        return content["status"], content["has_sufficient_funds"], content["error_message"]

    assert check("SPONSOR", "EUR", 100_000_000.00) == ("success", True, "")
    assert check("SPONSOR", "EUR", "100000000.00") == ("success", True, "")
    assert check("SPONSOR", "EUR", "100000000.01") == ("failed", False, "Insufficient funds")
    assert check("NOBODY", "EUR", 1) == ("failed", False, "Account not found")
    assert check("SPONSOR", "USD", 1)[:2] == ("failed", False)
    assert check("SPONSOR", "EUR", 1.001)[:2] == ("failed", False)


@BOTH
def test_a_block_reserves_money_and_never_more_than_there_is(
    bank: BankAdmin, wire: Callable[[Profile], Wire], profile: Profile
) -> None:
    reference = wire(profile).block("99999999.99")
    body = {"account_number": "SPONSOR", "currency": "EUR", "amount": 0.02}
    refused = wire(profile).post("/block_funds", body, "second").json()
    assert (refused["status"], refused["block_reference_no"]) == ("failed", "")
    assert bank.account(profile, "SPONSOR")["available_minor"] == 1
    [block] = bank.blocks(profile, "SPONSOR")
    assert (block["block_reference_no"], block["amount_minor"], block["used_minor"]) == (reference, 9_999_999_999, 0)


@BOTH
def test_payments_are_booked_once_and_readable_one_by_one(
    bank: BankAdmin, wire: Callable[[Profile], Wire], profile: Profile
) -> None:
    block = wire(profile).block(1000)
    amounts = [100.25, "0.10", 3]
    answer = wire(profile).post("/initiate_payment", [payment(block, i, amounts[i]) for i in range(3)], "pay")
    assert answer.json()["status"] == "success"
    booked = list(bank.payments(profile))
    assert [(row["disbursement_id"], row["amount_minor"]) for row in booked] == [
        ("DISBURSEMENT-0", 10025), ("DISBURSEMENT-1", 10), ("DISBURSEMENT-2", 300),
    ]  # fmt: skip
    first = booked[0]
    assert (first["state"], first["currency"], first["block_reference"]) == ("paid", "EUR", block)
    assert (first["beneficiary_id"], first["beneficiary_account"]) == ("BENEFICIARY-0", "ACCOUNT0")
    account = bank.account(profile, "SPONSOR")
    assert (account["balance_minor"], account["blocked_minor"]) == (BALANCE_MINOR - 10335, 100_000 - 10335)
    assert list(bank.payments(profile, after=first["rowid"])) == booked[1:]


@BOTH
def test_a_body_that_is_no_request_is_422_and_changes_nothing(
    bank: BankAdmin, wire: Callable[[Profile], Wire], profile: Profile
) -> None:
    block = wire(profile).block(1000)
    bodies = [
        b"not json",
        b'{"a": 1}',
        b"[1]",
        json.dumps([payment(block, 1), payment(block, 2, narrative_1={"a": 1})]).encode(),
    ]
    for body in bodies:
        answer = wire(profile).http.post("/initiate_payment", content=body, headers={"Idempotency-Key": "bad"})
        assert answer.status_code == 422, body
    assert references(bank, profile) == []
    assert [row["outcome"] for row in bank.requests()][-4:] == ["malformed"] * 4


def test_a_verb_that_a_bank_does_not_have_is_logged(bank: BankAdmin, wire: Callable[[Profile], Wire]) -> None:
    assert wire("example").post("/release_funds", {}, "key").status_code == 404
    [logged] = bank.requests()
    assert (logged["path"], logged["outcome"], logged["idempotency_key"]) == ("/example/release_funds", "no such path", "key")


# The example profile


def test_example_repeats_whatever_it_is_asked_to(bank: BankAdmin, wire: Callable[[Profile], Wire]) -> None:
    example = wire("example")
    assert example.block(10, key="same") != example.block(10, key="same")
    assert len(bank.blocks("example")) == 2
    block = example.block(1000)
    assert example.post("/initiate_payment", []).json() == {"status": "success", "error_message": ""}
    assert example.post("/initiate_payment", [payment(block, 1)]).json() == {"status": "success", "error_message": ""}
    again = example.post("/initiate_payment", [payment(block, 2), payment(block, 1)])
    assert again.status_code == 500
    twice = example.post("/initiate_payment", [payment(block, 3), payment(block, 3)])
    assert twice.status_code == 500
    assert references(bank, "example") == ["R000000000000001"]
    for path in ("/release_funds", "/query"):
        assert example.post(path, {}).status_code == 404


def test_example_fails_a_list_as_a_whole(bank: BankAdmin, wire: Callable[[Profile], Wire]) -> None:
    example = wire("example")
    block = example.block(1000)
    bank.close_accounts("example", ["ACCOUNT2"])
    faulty = [
        payment(block, 2),
        payment(block, 2, amount=-1),
        payment(block, 2, amount=1000.01),
        payment(block, 2, beneficiary_account="X", amount=901),
        payment("BLK0000000000099", 2, beneficiary_account="X"),
        payment(block, 2, beneficiary_account="X", remitting_account="NOBODY"),
    ]
    for one in faulty:
        answer = example.post("/initiate_payment", [payment(block, 1), one])
        assert (answer.status_code, answer.json()["status"]) == (200, "failed")
        assert answer.json()["error_message"]
    assert references(bank, "example") == []
    assert bank.blocks("example")[0]["used_minor"] == 0


# The full profile


def test_a_key_repeats_its_answer_byte_for_byte(bank: BankAdmin, wire: Callable[[Profile], Wire]) -> None:
    full = wire("full")
    body = {"account_number": "SPONSOR", "currency": "EUR", "amount": 500}
    first, again = full.post("/block_funds", body, "b"), full.post("/block_funds", body, "b")
    assert first.content == again.content
    assert len(bank.blocks("full")) == 1
    block = first.json()["block_reference_no"]
    calls: list[tuple[str, Any]] = [
        ("/initiate_payment", [payment(block, 1), payment(block, 2, amount=0)]),
        ("/release_funds", {"account_number": "SPONSOR", "currency": "EUR", "block_reference_no": block, "amount": 1}),
        ("/check_funds", {"account_number": "SPONSOR", "account_currency": "EUR", "total_funds_needed": 5}),
    ]
    for path, content in calls:
        answers = [full.post(path, content, key=path).content for _ in range(3)]
        assert len(set(answers)) == 1
    assert references(bank, "full") == ["R000000000000001"]
    assert bank.blocks("full")[0]["released_minor"] == 100
    reused = full.post("/block_funds", {**body, "amount": 501}, "b")
    assert (reused.status_code, reused.json()) == (422, {"status": "failed", "error_code": "KEY_REUSED"})
    assert full.post("/release_funds", body, "b").status_code == 422
    assert full.post("/block_funds", body).json()["error_code"] == "KEY_MISSING"
    assert [row["outcome"] for row in bank.requests() if row["idempotency_key"] == "b"] == [
        "success", "repeated", "KEY_REUSED", "KEY_REUSED",
    ]  # fmt: skip


def test_full_answers_for_each_payment(bank: BankAdmin, wire: Callable[[Profile], Wire]) -> None:
    full = wire("full")
    block = full.block(1000)
    bank.close_accounts("full", ["CLOSED"])
    assert full.post("/initiate_payment", [payment(block, 1)], "first").json()["status"] == "success"
    payments = [
        payment(block, 1),
        payment(block, 2, beneficiary_account="CLOSED"),
        payment(block, 3, amount=1.005),
        payment(block, 4, amount=899.76),
        payment(block, 5),
        payment(block, 5),
        payment("BLK0000000000099", 6),
        payment(block, 7, payment_reference_number="R" * 17),
        payment(block, 8, remitting_account="NOBODY"),
        payment(block, 9, remitting_account_currency="USD"),
    ]
    answer = full.post("/initiate_payment", payments, "second").json()
    assert answer["status"] == "partial"
    assert [one["payment_reference_number"] for one in answer["results"]] == [
        one["payment_reference_number"] for one in payments
    ]
    assert [one["error_code"] for one in answer["results"]] == [
        "DUPLICATE_REFERENCE", "ACCOUNT_CLOSED", "INVALID_AMOUNT", "INSUFFICIENT_BLOCK", None, "DUPLICATE_REFERENCE",
        "UNKNOWN_BLOCK", "INVALID_REFERENCE", "UNKNOWN_ACCOUNT", "CURRENCY_MISMATCH",
    ]  # fmt: skip
    assert references(bank, "full") == ["R000000000000001", "R000000000000005"]
    assert full.post("/initiate_payment", [payment(block, 1)], "third").json()["status"] == "failed"
    assert full.post("/initiate_payment", [], "fourth").json()["status"] == "failed"


def test_a_long_list_over_two_blocks_books_each_payment_as_it_was_sent(
    bank: BankAdmin, wire: Callable[[Profile], Wire]
) -> None:
    full = wire("full")
    blocks = [full.block(10_000, "one"), full.block("0.01", "two")]
    payments = [payment(blocks[number % 2], number, "0.01", narrative_3=None) for number in range(600)]
    payments[4]["beneficiary_email"] = "amina@example.org"
    answer = full.post("/initiate_payment", payments, "pay").json()
    accepted = [one["payment_reference_number"] for one in answer["results"] if one["status"] == "accepted"]
    assert accepted == [f"R{number:015d}" for number in range(600) if number % 2 == 0 or number == 1]
    booked = list(bank.payments("full"))
    assert [row["payment_reference_number"] for row in booked] == accepted
    for row in booked:
        number = int(row["payment_reference_number"][1:])
        assert row["block_reference"] == blocks[number % 2]
        assert (row["beneficiary_account"], row["disbursement_id"]) == (f"ACCOUNT{number}", f"DISBURSEMENT-{number}")
    assert [row["used_minor"] for row in bank.blocks("full", "SPONSOR")] == [300, 1]
    account = bank.account("full", "SPONSOR")
    assert (BALANCE_MINOR - account["balance_minor"], account["unstated_lines"]) == (301, 301)


def test_one_block_by_two_spellings_is_drawn_once(bank: BankAdmin, wire: Callable[[Profile], Wire]) -> None:
    full = wire("full")
    block = full.block(10)
    short = f"BLK{int(block[3:])}"
    answer = full.post("/initiate_payment", [payment(block, 1, 6), payment(short, 2, 6), payment(short, 3, 4)], "pay").json()
    assert [one["error_code"] for one in answer["results"]] == [None, "INSUFFICIENT_BLOCK", None]
    assert bank.blocks("full", "SPONSOR")[0]["used_minor"] == 1000
    assert bank.account("full", "SPONSOR")["blocked_minor"] == 0


def test_release_gives_back_what_is_left_and_no_more(bank: BankAdmin, wire: Callable[[Profile], Wire]) -> None:
    full = wire("full")
    block = full.block(1000)
    full.post("/initiate_payment", [payment(block, 1)], "pay")

    def release(amount: Any, key: str, reference: str = block) -> dict[str, Any]:
        body = {"account_number": "SPONSOR", "currency": "EUR", "block_reference_no": reference, "amount": amount}
        return cast(dict[str, Any], full.post("/release_funds", body, key).json())

    assert release(899.76, "r1")["error_code"] == "INSUFFICIENT_BLOCK"
    assert release(1, "r2", "BLK0000000000099")["error_code"] == "UNKNOWN_BLOCK"
    answer = release("899.75", "r3")
    assert answer["status"] == "success"
    assert answer["release_reference_no"]
    assert release(0.01, "r4")["error_code"] == "INSUFFICIENT_BLOCK"
    assert bank.account("full", "SPONSOR")["available_minor"] == BALANCE_MINOR - 10025
    late = full.post("/initiate_payment", [payment(block, 2)], "late").json()
    assert late["results"][0]["error_code"] == "INSUFFICIENT_BLOCK"


def test_query_tells_what_became_of_a_key(wire: Callable[[Profile], Wire]) -> None:
    full = wire("full")
    assert full.post("/query", {"idempotency_key": "b"}).json() == {"found": False}
    body = {"account_number": "SPONSOR", "currency": "EUR", "amount": 500}
    answer = full.post("/block_funds", body, "b").json()
    asked = full.post("/query", {"idempotency_key": "b"}).json()
    assert asked == {"found": True, "verb": "block_funds", "status_code": 200, "answer": answer}


# Faults


# kind → whether the bank acted, and what the caller saw
FAULTS: dict[str, tuple[bool, Any]] = {
    "refuse": (False, "refused"),
    "fail_before": (False, "cut"),
    "down": (False, "cut"),
    "error_500": (False, 500),
    "error_500_after": (True, 500),
    "nonsense": (True, "unreadable"),
    "timeout_after": (True, "cut"),
    "late": (True, "success"),
    "late_before": (True, "success"),
}


@BOTH
def test_each_fault_and_what_the_ledger_says_afterwards(
    bank: BankAdmin, wire: Callable[[Profile], Wire], profile: Profile
) -> None:
    bank_wire = wire(profile)
    block = bank_wire.block(10_000)
    for number, (kind, (acted, seen)) in enumerate(FAULTS.items()):
        before, log_before = references(bank, profile), len(list(bank.requests()))
        fault_id = bank.add_fault(kind, profile=profile, path="/initiate_payment", count=1, seconds=0.2)
        assert _pay_and_look(bank_wire, payment(block, number), f"pay{number}") == seen, kind
        assert references(bank, profile) == before + [f"R{number:015d}"] * acted, kind
        assert [row["fault"] for row in bank.requests()][log_before:] == ([] if kind == "down" else [kind])
        if profile == "full":
            found = bank_wire.post("/query", {"idempotency_key": f"pay{number}"}).json()["found"]
            assert found is (acted or kind == "refuse"), kind
        [fault] = [one for one in bank.faults() if one["id"] == fault_id]
        assert (fault["calls"], fault["hits"]) == (1, 1)
        # The fault is used up: another list goes through.
        assert _pay_and_look(bank_wire, payment(block, 100 + number), f"next{number}") == "success"


def _pay_and_look(bank_wire: Wire, one: dict[str, Any], key: str) -> Any:
    try:
        answer = bank_wire.post("/initiate_payment", [one], key)
    except (httpx.RemoteProtocolError, httpx.ReadError):
        return "cut"
    return _what_was_seen(answer)


def _what_was_seen(answer: httpx.Response) -> Any:
    if answer.status_code != 200:
        return answer.status_code
    try:
        status = answer.json()["status"]
    except ValueError:
        return "unreadable"
    return "refused" if status == "failed" else status


def test_a_late_call_acts_although_the_caller_has_gone_and_blocks_nobody(
    bank: BankAdmin, wire: Callable[[Profile], Wire]
) -> None:
    full = wire("full")
    block = full.block(1000)
    bank.add_fault("late_before", path="/initiate_payment", count=1, seconds=4)  # time enough for the other calls
    with pytest.raises(httpx.ReadTimeout):
        full.http.post("/initiate_payment", json=[payment(block, 1)], headers={"Idempotency-Key": "pay"}, timeout=0.2)
    assert full.post("/query", {"idempotency_key": "pay"}).json() == {"found": False}
    assert full.post("/initiate_payment", [payment(block, 2)], "other").json()["status"] == "success"
    assert references(bank, "full") == ["R000000000000002"]
    wait_for(lambda: len(references(bank, "full")) == 2)
    assert full.post("/query", {"idempotency_key": "pay"}).json()["found"] is True


def test_a_share_hits_the_same_calls_in_every_run(
    bank: BankAdmin, process: SimulatorProcess, wire: Callable[[Profile], Wire]
) -> None:
    body = {"account_number": "SPONSOR", "account_currency": "EUR", "total_funds_needed": 1}

    def hits(calls: int) -> list[bool]:
        return [wire("example").post("/check_funds", body).status_code == 500 for _ in range(calls)]

    first_id = bank.add_fault("error_500", path="/check_funds", share=0.3, seed=7)
    first = hits(60)
    assert 8 < sum(first) < 28
    bank.delete_faults(first_id)
    bank.add_fault("error_500", path="/check_funds", share=0.3, seed=7)
    second = hits(25)
    process.kill()
    process.start()
    assert second + hits(35) == first
    bank.delete_faults()
    assert bank.faults() == []
    assert not any(hits(3))


# Durability


@BOTH
def test_a_sigkill_under_load_loses_nothing_that_was_answered(
    bank: BankAdmin, process: SimulatorProcess, wire: Callable[[Profile], Wire], profile: Profile
) -> None:
    block = wire(profile).block(1_000_000)
    answered: list[int] = []
    sent: list[int] = []

    def pay_until_killed(worker: int) -> None:
        with wire(profile).http as http:
            for number in range(worker * 100_000, worker * 100_000 + 5000):
                sent.append(number)
                body = [payment(block, number, 0.01)]
                try:
                    answer = http.post("/initiate_payment", json=body, headers={"Idempotency-Key": f"k{number}"})
                except httpx.HTTPError:
                    return
                assert answer.json()["status"] == "success"
                answered.append(number)

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(pay_until_killed, worker) for worker in range(4)]
        wait_for(lambda: len(answered) >= 150)
        process.kill()
        for worker in workers:
            worker.result()
    process.start()
    booked = {int(reference[1:]) for reference in references(bank, profile)}
    assert set(answered) <= booked <= set(sent)
    assert len(booked) == len(references(bank, profile))
    assert bank.account(profile, "SPONSOR")["balance_minor"] == BALANCE_MINOR - len(booked)
    assert bank.blocks(profile)[0]["used_minor"] == len(booked)
    outcomes = {row["idempotency_key"]: row["outcome"] for row in bank.requests()}
    assert all(outcomes[f"k{number}"] == "success" for number in booked)
    assert process.stop() == 0


def test_sigterm_ends_it_although_a_fault_holds_a_call_open(
    bank: BankAdmin, process: SimulatorProcess, wire: Callable[[Profile], Wire]
) -> None:
    bank.add_fault("timeout_after", path="/block_funds", seconds=60)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(wire("full").block, 10)
        wait_for(lambda: len(bank.blocks("full")) == 1)
        assert process.stop() == 0
        with pytest.raises(httpx.HTTPError):
            held.result(timeout=20)


# Statements


class Callback:
    """A real HTTP server that takes statements, or refuses them as long as `refuses` is set."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.received: list[tuple[str | None, bytes]] = []
        self.refuses = refuses

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:  # noqa: N805
                body = handler.rfile.read(int(handler.headers["Content-Length"]))
                boundary = b"--" + handler.headers["Content-Type"].partition("boundary=")[2].encode()
                part = body.split(boundary)[1]
                assert b'name="statement_file"' in part
                content = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
                self.received.append((handler.headers["Authorization"], content))
                handler.send_response(503 if self.refuses else 202)
                handler.end_headers()

            def log_message(handler, *arguments: Any) -> None:  # noqa: N805
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/statements"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> "Callback":
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def minor(amount: Any) -> int:
    return int(Decimal(str(amount.amount)) * 100)


def parsed(content: bytes) -> Any:
    """The statement as the mt-940 library reads it, after opening + lines = closing was proved."""
    transactions = mt940.parse(content.decode())
    opening = minor(transactions.data["final_opening_balance"].amount)
    closing = minor(transactions.data["final_closing_balance"].amount)
    assert opening + sum(minor(one.data["amount"]) for one in transactions) == closing
    return transactions


def opening_and_closing(content: bytes) -> tuple[int, int]:
    data = parsed(content).data
    return minor(data["final_opening_balance"].amount), minor(data["final_closing_balance"].amount)


@BOTH
def test_a_statement_shows_payments_and_reversals_as_they_were_sent(
    bank: BankAdmin, wire: Callable[[Profile], Wire], profile: Profile
) -> None:
    block = wire(profile).block(1000)
    payments = [payment(block, 1), payment(block, 2, 7, narrative_6=None), payment(block, 3, narrative_3=None)]
    wire(profile).post("/initiate_payment", payments, "pay")
    assert bank.reverse(profile, reason="ACCOUNT CLOSED", references=["R000000000000002", "NEVER-SEEN"]) == 1
    assert bank.reverse(profile, reason="NAME DIFFERS", disbursement_ids=["DISBURSEMENT-1"]) == 1
    answer = wire(profile).post("/generate_account_statement", {"program_account_number": "SPONSOR"}).json()
    assert answer["status"] == "success"
    content = bank.statement_content(profile, int(answer["account_statement_id"]))
    lines = [one.data for one in parsed(content)]
    assert [(one["status"], one["customer_reference"], minor(one["amount"])) for one in lines] == [
        ("D", "R000000000000001", -10025),
        ("D", "R000000000000002", -700),
        ("D", "R000000000000003", -10025),
        ("RD", "R000000000000002", 700),
        ("RD", "R000000000000001", 10025),
    ]
    assert len({one["bank_reference"] for one in lines}) == 5
    assert lines[0]["transaction_details"].split("\n") == [
        "Cash for June", "PROGRAMME", "CYCLE", "BENEFICIARY-1", "R000000000000001", "DISBURSEMENT-1",
    ]  # fmt: skip
    assert lines[1]["transaction_details"].split("\n")[-1] == "R000000000000002"
    assert lines[3]["transaction_details"].split("\n")[3:] == ["BENEFICIARY-2", "R000000000000002", "ACCOUNT CLOSED"]
    assert lines[4]["transaction_details"].split("\n")[3:] == ["BENEFICIARY-1", "R000000000000001", "NAME DIFFERS"]
    states = {row["disbursement_id"]: (row["state"], row["reversals"]) for row in bank.payments(profile)}
    assert states["DISBURSEMENT-1"] == ("reversed", 1)
    assert states["DISBURSEMENT-3"] == ("paid", 0)
    assert bank.account(profile, "SPONSOR")["balance_minor"] == BALANCE_MINOR - 10025


def test_full_statements_follow_one_another_and_example_statements_do_not(
    bank: BankAdmin, wire: Callable[[Profile], Wire]
) -> None:
    seen: dict[Profile, list[tuple[str, int, int]]] = {"example": [], "full": []}
    for profile in seen:
        bank.set_statements(profile, max_lines=2)
        block = wire(profile).block(1000)
        wire(profile).post("/initiate_payment", [payment(block, number, 1) for number in range(3)], "pay")
        ids = bank.order_statement(profile, "SPONSOR") + bank.order_statement(profile, "SPONSOR")
        assert [row["lines"] for row in bank.statements(profile, "SPONSOR")] == [2, 1, 0]
        for statement_id in ids:
            content = bank.statement_content(profile, statement_id)
            number = content.decode().partition(":28C:")[2].partition("\r\n")[0]
            seen[profile].append((number, *opening_and_closing(content)))
    start = BALANCE_MINOR
    assert seen["full"] == [
        ("1/1", start, start - 200), ("2/1", start - 200, start - 300), ("3/1", start - 300, start - 300),
    ]  # fmt: skip
    assert seen["example"] == [("1/1", start, start - 200), ("1/1", start, start - 100), ("1/1", start, start)]


@BOTH
def test_a_statement_is_pushed_until_it_is_acknowledged_also_over_a_sigkill(
    bank: BankAdmin, process: SimulatorProcess, wire: Callable[[Profile], Wire], profile: Profile
) -> None:
    with Callback(refuses=True) as callback:
        bank.set_statements(profile, callback_url=callback.url, token="secret", push_after_ms=0)
        block = wire(profile).block(1000)
        wire(profile).post("/initiate_payment", [payment(block, 1)], "pay")
        wait_for(lambda: len(callback.received) >= 2)
        process.kill()
        assert not bank_says_acknowledged(process, profile)
        callback.refuses = False
        wait_for(lambda: bank.statements(profile)[0]["acknowledged"])
        assert {authorization for authorization, _ in callback.received} == {"Bearer secret"}
        assert {content for _, content in callback.received} == {bank.statement_content(profile, 1)}
        assert len(callback.received) >= 3
        assert bank.account(profile, "SPONSOR")["unstated_lines"] == 0
        assert len(bank.statements(profile)) == 1


def bank_says_acknowledged(process: SimulatorProcess, profile: Profile) -> bool:
    process.start()
    with BankAdmin(process.base_url) as fresh:
        return bool(fresh.statements(profile)[0]["acknowledged"])


def test_bookings_in_quick_succession_share_a_statement(bank: BankAdmin, wire: Callable[[Profile], Wire]) -> None:
    with Callback() as callback:
        bank.set_statements("full", callback_url=callback.url, push_after_ms=600_000)  # until all three are made
        block = wire("full").block(1000)
        for number in range(3):
            wire("full").post("/initiate_payment", [payment(block, number)], f"pay{number}")
        bank.set_statements("full", callback_url=callback.url, push_after_ms=400)
        wait_for(lambda: len(callback.received) == 1)
        assert len(parsed(callback.received[0][1])) == 3
        # A file that is full does not wait.
        bank.set_statements("full", callback_url=callback.url, push_after_ms=600_000, max_lines=2)
        wire("full").post("/initiate_payment", [payment(block, number, 1) for number in range(3, 8)], "more")
        wait_for(lambda: len(callback.received) == 3)
        assert bank.account("full", "SPONSOR")["unstated_lines"] == 1


def test_ten_thousand_payments_are_on_the_ledger_and_on_the_statement(bank: BankAdmin, wire: Callable[[Profile], Wire]) -> None:
    full = wire("full")
    block = full.block("1002500.00")
    for start in range(0, 10_000, 1000):
        body = [payment(block, number) for number in range(start, start + 1000)]
        assert full.post("/initiate_payment", body, f"pay{start}").json()["status"] == "success"
    [row] = bank.blocks("full")
    assert row["used_minor"] == row["amount_minor"]
    booked = {row["payment_reference_number"]: row["amount_minor"] for row in bank.payments("full")}
    assert len(booked) == 10_000
    [statement_id] = bank.order_statement("full", "SPONSOR")
    content = bank.statement_content("full", statement_id)
    stated = {one.data["customer_reference"]: -minor(one.data["amount"]) for one in parsed(content)}
    assert stated == booked


def test_a_top_up_is_a_credit_line(bank: BankAdmin) -> None:
    bank.put_account("full", "SPONSOR", "EUR", BALANCE_MINOR + 500)
    [statement_id] = bank.order_statement("full", "SPONSOR")
    [line] = parsed(bank.statement_content("full", statement_id))
    assert (line.data["status"], line.data["customer_reference"], minor(line.data["amount"])) == ("C", "NONREF", 500)
    with pytest.raises(httpx.HTTPStatusError):
        bank.put_account("full", "SPONSOR", "USD", 1)


def test_yen_and_dinar_keep_their_own_scale(bank: BankAdmin, wire: Callable[[Profile], Wire]) -> None:
    for currency, amount, amount_minor, text in (("JPY", 1500, 1500, "1500,"), ("KWD", "1.234", 1234, "1,234")):
        bank.put_account("full", currency, currency, 1_000_000)
        body = {"account_number": currency, "currency": currency, "amount": amount}
        block = wire("full").post("/block_funds", body, currency).json()["block_reference_no"]
        changes = {"remitting_account": currency, "remitting_account_currency": currency}
        wire("full").post("/initiate_payment", [payment(block, amount_minor, amount, **changes)], "pay" + currency)
        [statement_id] = bank.order_statement("full", currency)
        content = bank.statement_content("full", statement_id)
        assert f"D{text}NTRF" in content.decode()
        [line] = mt940.parse(content.decode())
        assert line.data["amount"].amount == -Decimal(amount)
