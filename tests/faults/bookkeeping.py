"""What the tests of faults ask of funds, and of its books."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from libs.common.contracts import operator
from libs.common.contracts.scheduler import Tick
from services.funds.config import Settings
from tests.support.money import Payout
from tests.support.world import World

# A lease short enough to wait for, a time-out long enough for a busy machine; the retries come soon.
LIMITS = {
    f"ALMONER_FUNDS_{kind}_{name}": value
    for kind in ("CHECK", "BLOCK", "DISPATCH", "RELEASE", "ORDER", "QUERY")
    for name, value in {
        "TIMEOUT_SECONDS": "5",
        "LEASE_SECONDS": "8",
        "BACKOFF_FIRST_SECONDS": "0.2",
        "MAX_ATTEMPTS": "6",
    }.items()
}

# Where the bank holds an answer back until the test lets it go, however late that is.
PATIENT = {
    f"ALMONER_FUNDS_{kind}_{name}": value
    for kind in ("CHECK", "BLOCK", "DISPATCH")
    for name, value in {"TIMEOUT_SECONDS": "60", "LEASE_SECONDS": "180"}.items()
} | {"ALMONER_FUNDS_SHUTDOWN_SECONDS": "150"}
HELD_SECONDS = 60.0


def command(world: World, model: type[operator.Command], **fields: Any) -> None:
    world.publish("funds.commands.v1", model(who="tester", why="test", **fields), key="k")


def tick(world: World) -> None:
    due_at = datetime.now(UTC) + timedelta(days=1)
    world.publish("scheduler.ticks.v1", Tick(job="funds-due", due_at=due_at), key="funds-due")


def unknown(world: World) -> list[Any]:
    return world.sql("funds", "SELECT * FROM ops_unknown ORDER BY kind, subject")


def idle(world: World) -> bool:
    """Nothing is left to decide, to call or to say."""
    [row] = world.sql(
        "funds",
        """SELECT (SELECT count(*) FROM due) AS due, (SELECT count(*) FROM outbox) AS outbox,
                  (SELECT count(*) FROM work WHERE state IN ('PENDING', 'CLAIMED')) AS work""",
    )
    return not (row.due or row.outbox or row.work)


def consumed(world: World, *topics: str) -> bool:
    """Funds has consumed all that is on these topics."""
    ends = Counter((message.topic, message.partition) for topic in topics for message in world.messages(topic))
    rows = world.sql("funds", "SELECT topic, partition, next_offset FROM consumed")
    return ends.items() <= {(row.topic, row.partition): row.next_offset for row in rows}.items()


def reach(payout: Payout, timeout: float = 40, **wanted: object) -> None:
    """Wait until the envelope's position has these values. Raises AssertionError with the last one."""
    try:
        payout.world.until(lambda: wanted.items() <= payout.position().items(), timeout)
    except AssertionError as error:
        raise AssertionError(f"wanted {wanted}, the last position is {dict(payout.position())}") from error


def settings_of(payout: Payout) -> Settings:
    """What a funds process is told by the environment, for the parts of one that a test runs itself."""
    env = payout.env
    return Settings.model_validate(
        {
            "database_url": payout.world.database_url,
            "seal_keys": payout.world.env["ALMONER_SEAL_KEYS"],
            "token_key": payout.world.env["ALMONER_TOKEN_KEY"],
            "banks": json.loads(env["ALMONER_FUNDS_BANKS"]),
            "sponsors": json.loads(env["ALMONER_FUNDS_SPONSORS"]),
            "incarnation": payout.incarnation,
            "position_seconds": float(env["ALMONER_FUNDS_POSITION_SECONDS"]),
        }
    )
