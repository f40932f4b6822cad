"""`almoner bench N --replicas`: what a second replica of resolution and of funds brings, when the other side is slow."""

import json
import sys
import time
from typing import Any

from libs.cli import sample
from libs.cli.bench import LIMIT_SECONDS, SOURCE, publish_small, say
from libs.cli.context import CliError, Refused, Views
from libs.cli.demo import environment
from libs.cli.send import Publisher, send_command
from libs.common.contracts.operator import PauseStage, ResumeStage
from libs.local import services
from libs.local.client import BankAdmin, MapperAdmin
from libs.local.stack import StackError, owned

SMALL = 10  # disbursements in an envelope, so that calls decide
LATE_SECONDS = 0.2


def compare_replicas(count: int) -> None:
    """One replica, then two, with simulators that answer after 200 ms; small envelopes, so that calls decide.

    Each replica has 4 calls at once of a kind, so at most 20 a second. Work is held back by pausing a stage and then let
    go, so that the stage which is measured has the machine for itself."""
    rates = {replicas: measure_replicas(count // SMALL, replicas) for replicas in (1, 2)}
    result: dict[str, Any] = {"disbursements": count // SMALL * SMALL}
    for service, one in rates[1].items():
        two = rates[2][service]
        result[service] = {"one_per_second": round(one, 2), "two_per_second": round(two, 2), "ratio": round(two / one, 2)}
    result["ratio"] = min(result[service]["ratio"] for service in rates[1])
    sys.stderr.flush()
    print(json.dumps(result), flush=True)


def measure_replicas(envelopes: int, replicas: int) -> dict[str, float]:
    """Service -> calls a second."""
    say(f"— {replicas} of ingestion, resolution and funds")
    try:
        with owned(simulators=True, name="bench") as stack, environment(stack):
            services.start(stack, names=services.CASH, replicas=replicas, say=say)
            with BankAdmin(stack.addresses.bank_url) as bank, MapperAdmin(stack.addresses.mapper_url) as mapper:
                mapper.put_people((person, sample.address(person)) for _, person, _, _ in sample.people(SMALL))
                bank.add_fault("late", seconds=LATE_SECONDS)
                mapper.add_fault("late", seconds=LATE_SECONDS)
            with Views() as views:
                return measure_stages(views, envelopes)
    except StackError as error:
        raise CliError(str(error)) from error


def measure_stages(views: Views, envelopes: int) -> dict[str, float]:
    waiting = "SELECT count(*) AS n FROM {}.ops_work WHERE kind = '{}' AND state = 'PENDING'"
    for service, kind in (("resolution", "resolve"), ("funds", "check"), ("funds", "dispatch")):
        command(views, service, PauseStage, kind)
    publisher = Publisher(SOURCE)
    for number in range(envelopes):
        publish_small(publisher, f"small-{number}", SMALL)
    publisher.flush()
    wait_for(views, waiting.format("resolution", "resolve"), envelopes)
    resumed = command(views, "resolution", ResumeStage, "resolve")
    done = "SELECT count(resolved_at) AS n, max(resolved_at) AS at FROM resolution.ops_batches"
    rates = {"resolution": envelopes / (wait_for(views, done, envelopes) - resumed)}
    command(views, "funds", ResumeStage, "check")
    wait_for(views, "SELECT count(*) AS n FROM funds.ops_envelopes WHERE blocked_minor > 0", envelopes)
    wait_for(views, waiting.format("funds", "dispatch"), envelopes)
    resumed = command(views, "funds", ResumeStage, "dispatch")
    done = "SELECT count(dispatched_at) AS n, max(dispatched_at) AS at FROM funds.ops_instructions"
    rates["funds"] = envelopes / (wait_for(views, done, envelopes) - resumed)
    say(", ".join(f"{service} {rate:.1f} calls a second" for service, rate in rates.items()))
    return rates


def command(views: Views, service: str, model: type[PauseStage | ResumeStage], stage: str) -> float:
    """Pause or resume a stage; returns the Unix time at which it was done."""
    send_command(views, service, stage, model(who="bench", why="measuring", stage=stage))
    return float(views.one(f"SELECT max(at) AS at FROM {service}.ops_audit").at.timestamp())


def wait_for(views: Views, sql: str, count: int) -> float:
    """Wait until `n` is `count`; returns the Unix time `at`, where the statement has one."""
    until = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < until:
        row = views.one(sql)
        if row.n == count:
            return float(row.at.timestamp()) if hasattr(row, "at") else 0.0
        time.sleep(0.25)
    raise Refused(f"not all done within {LIMIT_SECONDS:.0f} s: {row.n} of {count} ({sql})")
