"""`almoner bench N --kind goods`: how fast N entitlements of rice go from submission until the last one has a warehouse and an agency,
and until the last notice is sent; measured as money is (bench.py), against the same COPY.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from libs.cli import sample, sheet
from libs.cli.bench import (
    LIMIT_SECONDS,
    SOURCE,
    STALLED_SECONDS,
    copy,
    durability,
    encoded_chunks,
    run,
    say,
    stored_rows,
)
from libs.cli.books import prove
from libs.cli.context import CliError, Refused, Views
from libs.cli.demo import environment
from libs.cli.places import refresh
from libs.cli.submit import declared
from libs.cli.usage import Usage
from libs.common.clock import utc_now
from libs.common.contracts.base import Mnemonic, envelope_uuid
from libs.common.contracts.ingestion import BenefitCode, Cycle
from libs.local import services
from libs.local.reference import Reference
from libs.local.stack import Stack, StackError, owned

SERVICES = ("scheduler", "ingestion", "resolution", "allocation", "notifications")
WARM_UP = 5_000


def measure_goods(count: int) -> None:
    """Prints the numbers; the last line is JSON. Raises CliError where not all was allocated or the books don't balance."""
    try:
        with owned(simulators=True, name="bench") as stack, environment(stack):
            services.start(stack, names=SERVICES, say=say)
            result = measure(stack, count)
    except StackError as error:
        raise CliError(str(error)) from error
    sys.stderr.flush()
    print(json.dumps(result), flush=True)


def measure(stack: Stack, count: int) -> dict[str, Any]:
    durability(stack)
    with tempfile.TemporaryDirectory(prefix="almoner-bench-") as folder, Views() as views:
        load(stack, count)
        for envelope_id, size in (("warm-up", min(count, WARM_UP)), ("bench", count)):
            file = Path(folder) / f"{envelope_id}.csv"
            sample.write_goods(file, size)
            envelope = sheet.EnvelopeFile(
                envelope_id=envelope_id,
                programme=Mnemonic(id=sample.PROGRAMME),
                benefit_code=BenefitCode(id="RICE-2026", type="COMMODITY"),
                cycle=Cycle(id="2026-11"),
                measurement_unit="kg",
                unit_scale=3,
                schedule_date=utc_now().date(),
            )
            event, encoded = declared(envelope, sheet.check(file, envelope.unit)), encoded_chunks(envelope, file)
            if envelope_id == "warm-up":
                run(event, encoded)
                wait_until_allocated(views, envelope_id, size)
                wait_until_told(views, envelope_id, size)
                rows_before = stored_rows(stack)
        with Usage(stack, (*SERVICES, "novu", "mail", "bench")) as usage:
            started = run(event, encoded)
            seconds = wait_until_allocated(views, "bench", count) - started
            told = wait_until_told(views, "bench", count) - started
        used = usage.report()
        rows = (stored_rows(stack) - rows_before) / count
        say(f"{count:,} entitlements allocated in {seconds:.2f} s, all notices sent after {told:.2f} s")
        copy_seconds = copy(stack, 3 * count)
        say(f"COPY of {3 * count:,} rows takes {copy_seconds:.2f} s")
        report = prove(None)
        if not (report.balanced and report.at_rest):
            faults = [finding for findings in report.findings.values() for finding in findings]
            raise Refused("the books do not balance after the run: " + "; ".join((faults or report.notes)[:5]))
    return {
        "entitlements": count,
        "seconds": round(seconds, 3),
        "per_second": round(count / seconds, 1),
        "told_seconds": round(told, 3),
        "copy_seconds": round(copy_seconds, 3),
        "ratio": round(seconds / copy_seconds, 2),
        "told_ratio": round(told / copy_seconds, 2),
        "rows_per_entitlement": round(rows, 2),
        **used,
    }


def load(stack: Stack, count: int) -> None:
    say(f"loading {count:,} people into the registry …")
    sample.settle(Reference(stack.addresses.database_url), dict.fromkeys(row[1] for row in sample.people(count)))
    refresh(None, "the benchmark's warehouses and agencies are known", yes=True, as_json=False)


def wait_until_allocated(views: Views, publisher_id: str, count: int) -> float:
    """Unix time when the last allocation is seen, 50 ms after its commit at most. Raises Refused when nothing moves for a while."""
    query = "SELECT coalesce(allocated, 0) AS n, held FROM allocation.ops_envelopes WHERE envelope_id = %(id)s"
    envelope_id = envelope_uuid(SOURCE, publisher_id)
    _wait(views, query, lambda row: row is not None and row.n == count, envelope_id, pause_seconds=0.05)
    return time.time()


def wait_until_told(views: Views, publisher_id: str, people: int) -> float:
    """Unix time when the last notice was sent. A part's notices to places are there with those to its people."""
    query = """SELECT count(*) FILTER (WHERE kind = 'BENEFICIARY') AS people, count(*) FILTER (WHERE state = 'SENT') AS sent,
                      count(*) FILTER (WHERE state NOT IN ('SENT', 'SUPPRESSED')) AS open,
                      max(sent_at) AS at FROM notifications.ops_notices WHERE envelope_id = %(id)s"""
    envelope_id = envelope_uuid(SOURCE, publisher_id)
    _wait(views, query, lambda row: row.people == people and not row.open, envelope_id, pause_seconds=1.0)
    return float(views.one(query, id=envelope_id).at.timestamp())


def _wait(views: Views, query: str, done: Any, envelope_id: Any, pause_seconds: float) -> None:
    until, seen, moved_at = time.monotonic() + LIMIT_SECONDS, None, time.monotonic()
    while time.monotonic() < until:
        row = views.one(query, id=envelope_id)
        if done(row):
            return
        if row != seen:
            seen, moved_at = row, time.monotonic()
        if time.monotonic() - moved_at > STALLED_SECONDS:
            raise Refused(f"nothing has moved for {STALLED_SECONDS:.0f} s: {row}")
        time.sleep(pause_seconds)
    raise Refused(f"not done within {LIMIT_SECONDS:.0f} s")
