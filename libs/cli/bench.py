"""`almoner bench N`: how fast N disbursements go from submission to their last confirmation, and what that costs.

Separate processes, real HTTP, Kafka and PostgreSQL with durable commits; the last line is one JSON object.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from libs.cli import sample, sheet
from libs.cli.books import prove
from libs.cli.context import CliError, Refused, Views
from libs.cli.demo import environment
from libs.cli.send import Publisher
from libs.cli.submit import chunks_of, declared, publish
from libs.cli.usage import Usage
from libs.common import kafka
from libs.common.clock import utc_now
from libs.common.contracts.base import Mnemonic, envelope_uuid
from libs.common.contracts.ingestion import BenefitCode, Cycle, Disbursement, DisbursementsAdded, EnvelopeSubmitted
from libs.local import postgres, services
from libs.local.client import BankAdmin, MapperAdmin
from libs.local.stack import Stack, StackError, owned

SOURCE = "bench"
IDLE_ENVELOPES = 20
WARM_UP = 20_000
IDLE_SILENCE_SECONDS = 2.0
LIMIT_SECONDS = 1800.0
STALLED_SECONDS = 120.0
REST_SECONDS = 60.0


def measure_all(count: int) -> None:
    """Prints the numbers; the last line is JSON. Raises CliError where not all was confirmed or the books don't balance."""
    try:
        with owned(simulators=True, name="bench") as stack, environment(stack):
            services.start(stack, names=services.CASH, say=say)
            result = measure(stack, count)
    except StackError as error:
        raise CliError(str(error)) from error
    sys.stderr.flush()
    print(json.dumps(result), flush=True)


def say(text: str) -> None:
    print(text, flush=True)


def measure(stack: Stack, count: int) -> dict[str, Any]:
    durability(stack)
    with tempfile.TemporaryDirectory(prefix="almoner-bench-") as folder, Views() as views:
        file = Path(folder) / "bench.csv"
        load_people(stack, file, count)
        event, encoded = encode(file)
        warm_up(views, min(count, WARM_UP))
        rows_before = stored_rows(stack)
        with Usage(stack) as usage:
            started = run(event, encoded)
            seconds = wait_until_confirmed(views, "bench", count) - started
        used = usage.report()
        rows = (stored_rows(stack) - rows_before) / count
        say(f"{count:,} disbursements confirmed in {seconds:.2f} s, {count / seconds:,.0f} a second")
        copy_seconds = copy(stack, 3 * count)
        say(f"COPY of {3 * count:,} rows takes {copy_seconds:.2f} s")
        idle = idle_latency(stack, views)
        check_books(views)
    return {
        "disbursements": count,
        "seconds": round(seconds, 3),
        "per_second": round(count / seconds, 1),
        "copy_seconds": round(copy_seconds, 3),
        "ratio": round(seconds / copy_seconds, 2),
        "rows_per_disbursement": round(rows, 2),
        "idle_latency_ms": round(idle, 1),
        **used,
    }


def durability(stack: Stack) -> None:
    """Assert and print that what is committed is durable: speed without it would mean nothing."""
    found = postgres.durability(stack.addresses.database_url)
    if found != postgres.DURABLE:
        raise CliError(f"the database is not durable: {found}")
    settings = {**found, **{name: kafka.DURABLE[name] for name in ("acks", "enable.idempotence")}}
    if settings["acks"] != "all" or settings["enable.idempotence"] is not True:
        raise CliError("the producers do not wait for all replicas")
    say("durable: " + " ".join(f"{name}={value}" for name, value in settings.items()))


def load_people(stack: Stack, file: Path, count: int) -> None:
    say(f"loading {count:,} people into the mapper …")
    sample.write(file, count)
    with MapperAdmin(stack.addresses.mapper_url) as mapper:
        mapper.put_people((person, sample.address(person)) for _, person, _, _ in sample.people(count))


def warm_up(views: Views, count: int) -> None:
    """An envelope before the one that is measured: a system in use has compiled its code and filled its caches, as the best of
    three COPYs has."""
    publisher = Publisher(SOURCE)
    publish_small(publisher, "warm-up", count)
    publisher.flush()
    wait_until_confirmed(views, "warm-up", count)
    say(f"warmed up with {count:,} disbursements")


def encode(file: Path) -> tuple[EnvelopeSubmitted, Path]:
    """The events of a file, as a publisher has them ready: the envelope's, and a file with one line for each of the others.
    What a publisher does before it publishes is not measured."""
    envelope = sheet.EnvelopeFile(
        envelope_id="bench",
        programme=Mnemonic(id="BENCH"),
        benefit_code=BenefitCode(id="CASH", type="CASH_DIGITAL"),
        cycle=Cycle(id="2026-11"),
        currency=services.CURRENCY,
        schedule_date=utc_now().date(),
    )
    return declared(envelope, sheet.check(file, envelope.unit)), encoded_chunks(envelope, file)


def encoded_chunks(envelope: sheet.EnvelopeFile, file: Path) -> Path:
    """A file with one line for each event that adds disbursements."""
    encoded = file.with_suffix(".events")
    with encoded.open("w") as lines:
        for added in chunks_of(envelope.envelope_id, sheet.disbursements(file, envelope.unit)):
            lines.write(added.model_dump_json() + "\n")
    return encoded


def run(event: EnvelopeSubmitted, encoded: Path) -> float:
    """Publish an envelope; returns the Unix time of the first delivery report."""
    publisher = Publisher(SOURCE)
    publisher.submit("ingestion.inbox-envelopes.v1", event.envelope_id, event)
    with encoded.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            key = f"{event.envelope_id}/{number}"
            publisher.submit_encoded("ingestion.inbox-disbursements.v1", key, DisbursementsAdded, line.rstrip(b"\n"))
    publisher.flush()
    assert publisher.first_delivered_at is not None
    return publisher.first_delivered_at


def wait_until_confirmed(views: Views, publisher_id: str, count: int) -> float:
    """Unix time when the last confirmation is seen, a look after its commit: 5 ms of one, 50 ms of many at the end of the run.
    Raises Refused when nothing is confirmed for a while."""
    envelope_id = envelope_uuid(SOURCE, publisher_id)
    until = time.monotonic() + LIMIT_SECONDS
    confirmed, moved_at, said_at = 0, time.monotonic(), time.monotonic()
    while time.monotonic() < until:
        row = views.one(
            "SELECT confirmed, held, unknown FROM funds.ops_envelopes WHERE envelope_id = %(id)s",
            id=envelope_id,
        )
        if row is not None and row.confirmed == count:
            return time.time()
        if row is not None and row.confirmed != confirmed:
            confirmed, moved_at = row.confirmed, time.monotonic()
        if time.monotonic() - moved_at > STALLED_SECONDS:
            raise Refused(f"{confirmed:,} of {count:,} confirmed, and nothing for {STALLED_SECONDS:.0f} s: {row}")
        if count > 1 and time.monotonic() - said_at > 5:
            said_at = time.monotonic()
            say(f"  {confirmed:,} confirmed")
        time.sleep(0.005 if count == 1 else 0.05 if confirmed > 0.9 * count else 0.25)
    raise Refused(f"not all confirmed within {LIMIT_SECONDS:.0f} s")


def stored_rows(stack: Stack) -> int:
    """Rows in all tables of the services' schemas."""
    connection = postgres.connect(stack.addresses.database_url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                """SELECT format('SELECT count(*) FROM %%I.%%I', schemaname, tablename) FROM pg_tables
                   WHERE schemaname = ANY(%s) AND tablename NOT LIKE 'inbox\\_%%'""",
                (list(services.SERVICES),),
            )
            queries = " UNION ALL ".join(query for (query,) in cursor.fetchall())
            cursor.execute(f"SELECT sum(count) FROM ({queries}) AS counted")
            return int(cursor.fetchall()[0][0])
    finally:
        connection.close()


def copy(stack: Stack, rows: int) -> float:
    """Seconds to COPY rows of about 105 bytes with key (batch, position), one connection, best of three."""
    connection = postgres.connect(stack.addresses.database_url)
    best = float("inf")
    try:
        with connection.cursor() as cursor:
            cursor.execute("DROP SCHEMA IF EXISTS bench CASCADE; CREATE SCHEMA bench")
            cursor.execute(
                """CREATE TABLE bench.rows (batch int, position int, amount_minor bigint, disbursement_id text COLLATE "C",
                   beneficiary_id text COLLATE "C", reference text, detail text, PRIMARY KEY (batch, position))"""
            )
            for _ in range(3):
                cursor.execute("TRUNCATE bench.rows")
                started = time.monotonic()
                cursor.copy_expert("COPY bench.rows FROM STDIN", Lines(rows))  # type: ignore[arg-type]
                best = min(best, time.monotonic() - started)
            cursor.execute("SELECT count(*) FROM bench.rows")
            assert cursor.fetchall()[0][0] == rows
            cursor.execute("DROP SCHEMA bench CASCADE")
    finally:
        connection.close()
    return best


class Lines:
    """A file of rows which is made while it is read, so that no disk and no memory is measured with it."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._made = 0
        tail = "\tNRB31000007\tA00000000010A1B2C\tDrought relief November 2026, a narrative as it is\n"
        self._template = [f"\t{position}\t421550\tDR26-11-{position:07d}{tail}" for position in range(1000)]

    def read(self, _size: int = 0) -> bytes:
        """One batch of 1,000 rows; empty at the end."""
        count = min(1000, self._rows - self._made)
        batch = str(self._made // 1000)
        self._made += count
        return "".join([batch + line for line in self._template[:count]]).encode()


def idle_latency(stack: Stack, views: Views) -> float:
    """Median milliseconds from a single disbursement's delivery report to the commit of its confirmation, when all is idle."""
    with BankAdmin(stack.addresses.bank_url) as bank:
        services.push_statements(stack, bank, push_after_ms=0)
    publisher = Publisher(SOURCE)
    found: list[float] = []
    for number in range(IDLE_ENVELOPES):
        time.sleep(IDLE_SILENCE_SECONDS)
        publisher.first_delivered_at = None
        publish_small(publisher, f"idle-{number}", 1)
        publisher.flush()
        assert publisher.first_delivered_at is not None
        confirmed_at = wait_until_confirmed(views, f"idle-{number}", 1)
        found.append((confirmed_at - publisher.first_delivered_at) * 1000)
    median = statistics.median(found)
    say(f"idle latency: median {median:.0f} ms of {IDLE_ENVELOPES}, from {min(found):.0f} to {max(found):.0f}")
    return median


def publish_small(publisher: Publisher, envelope_id: str, count: int) -> None:
    """An envelope of a few of the sample's people, with disbursement ids of its own."""
    items = [
        Disbursement(
            disbursement_id=f"{envelope_id}-{number}", beneficiary_id=person, amount_minor=amount_minor, beneficiary_name=name
        )
        for number, (_, person, name, amount_minor) in enumerate(sample.people(count))
    ]
    event = EnvelopeSubmitted(
        envelope_id=envelope_id,
        programme=Mnemonic(id="BENCH"),
        benefit_code=BenefitCode(id="CASH", type="CASH_DIGITAL"),
        cycle=Cycle(id="2026-11"),
        number_of_beneficiaries=count,
        number_of_disbursements=count,
        total_minor=sum(item["amount_minor"] for item in items),
        currency=services.CURRENCY,
        schedule_date=utc_now().date(),
    )
    publish(publisher, event, iter(items))


def check_books(views: Views) -> None:
    """A fast run that loses money is worth nothing."""
    until = time.monotonic() + REST_SECONDS
    unsettled = "SELECT count(*) AS n FROM funds.ops_envelopes WHERE settled_at IS NULL"
    while views.one(unsettled).n and time.monotonic() < until:
        time.sleep(0.2)
    report = prove(None)
    if not (report.balanced and report.at_rest):
        faults = [finding for findings in report.findings.values() for finding in findings]
        raise Refused("the books do not balance after the run: " + "; ".join((faults or report.notes)[:5]))
    say("books balance: rows, statement lines and events agree")
