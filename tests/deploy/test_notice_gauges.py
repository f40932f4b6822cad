"""What notifications' /metrics says of notices that wait, failed or are unknown, from real processes and a real mail server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from libs.common.contracts.operator import SendNotices
from libs.common.db import Database
from libs.local.client import MailAdmin
from services.notifications import gauges
from tests.integration.notifications.batches import COMMANDS, Batch, notices, until_states
from tests.support.process import Process
from tests.support.simulator import SimulatorProcess
from tests.support.world import World

OPEN, OLDEST = "almoner_notices_open", "almoner_notices_oldest_seconds"
FAILED, PARKED = "almoner_notices_failed", "almoner_payments_parked"


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[MailAdmin]:
    with SimulatorProcess("mail", tmp_path) as process, MailAdmin(process.base_url) as mail:
        yield mail


def run(world: World, mail: MailAdmin, verb: str = "run") -> Process:
    settings = {
        "WAREHOUSE_CHANNEL": "none",
        "AGENCY_CHANNEL": "smtp",
        "BENEFICIARY_CHANNEL": "smtp",
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": str(mail.smtp_port()),
        "SMTP_SECURITY": "none",
        "SMTP_SENDER": "almoner@almoner.example",
        "SMTP_BACKOFF_FIRST_SECONDS": "0.1",
        "SMTP_BACKOFF_MAX_SECONDS": "3600",
    }
    return world.run("notifications", verb, **{f"ALMONER_NOTIFICATIONS_{name}": text for name, text in settings.items()})


def looked(world: World, mail: MailAdmin) -> Process:
    """A replica that changes nothing, once it has read these gauges."""
    process = run(world, mail, "relay")
    world.until(lambda: process.metric("almoner_measured_timestamp_seconds", measure="notices") > 0)
    return process


def test_what_waits_failed_or_is_unknown_is_shown_until_somebody_has_seen_to_it(world: World, mail: MailAdmin) -> None:
    batch, cash = Batch(world, 6), Batch(world, 4, "CASH_PHYSICAL")
    mail.refuse(
        {
            f"{batch.agency(0)}@places.example": "550 5.1.1 nobody",
            batch.email(1): "550 5.1.1 nobody",
            batch.email(2): "450 4.2.1 busy",
        }
    )
    mail.add_fault("timeout_after", path="DATA", count=1)
    run(world, mail)
    batch.publish(batch.allocated())
    cash.publish(cash.dispatched(), cash.confirmed(1, [0, 1]))
    world.until(lambda: {row.state for row in notices(world, batch)} == {"SENT", "FAILED", "UNKNOWN", "PENDING", "SUPPRESSED"})
    world.until(lambda: len(world.sql("notifications", "SELECT 1 FROM ops_parked")) == 2)
    world.until(lambda: len([row for row in notices(world, batch) if row.state in ("SENT", "FAILED", "UNKNOWN")]) == 7)
    waiting = "UPDATE notices SET created_at = created_at - interval '3 hours' WHERE state = 'PENDING'"
    world.sql("notifications", waiting)

    process = looked(world, mail)
    assert (process.metric(OPEN, state="PENDING"), process.metric(OPEN, state="UNKNOWN")) == (1, 1)
    assert process.metric(OLDEST) >= 3 * 3600
    assert process.metric(FAILED, kind="AGENCY", code="REFUSED") == 1
    assert process.metric(FAILED, kind="BENEFICIARY", code="REFUSED") == 1
    assert process.metric(FAILED) == 2
    assert process.metric(PARKED) == 6
    text = process.get("/metrics").text
    assert not any(secret in text for secret in ("@places", "@people", batch.tag, "5.1.1"))

    # Another one was sent to the agency; a person's is older than a day; the part has come; nothing waits any more.
    mail.refuse()
    [agency] = [row for row in notices(world, batch) if (row.kind, row.state) == ("AGENCY", "FAILED")]
    world.publish(COMMANDS, SendNotices(who="ops", why="mended", notice_ids=[agency.notice_id]), "x")
    yesterday = "UPDATE notices SET updated_at = updated_at - interval '25 hours' WHERE subject = %(id)s"
    world.sql("notifications", yesterday, id=batch.ids[1])
    world.sql("notifications", "UPDATE mailings SET not_before = now() WHERE not_before > now()")
    world.sql("notifications", "UPDATE work SET due_at = now() WHERE state = 'PENDING'")
    cash.publish(cash.allocated())
    world.until(lambda: not world.sql("notifications", "SELECT 1 FROM notices WHERE state = 'PENDING'"))
    until_states(world, cash, {("AGENCY", "SENT"): 2, ("BENEFICIARY", "SENT"): 2})
    process = looked(world, mail)
    assert (process.metric(OPEN, state="PENDING"), process.metric(OPEN, state="UNKNOWN")) == (0, 1)
    assert (process.metric(OLDEST), process.metric(PARKED)) == (0, 0)
    assert FAILED + "{" not in process.get("/metrics").text


def test_reading_looks_at_what_is_open_or_failed_lately_and_not_at_all_there_ever_was(world: World) -> None:
    world.sql("notifications", "INSERT INTO batches VALUES (uuidv7(), uuidv7(), '{}', 1)")
    world.sql(
        "notifications",
        """INSERT INTO mailings (mailing, envelope_id, batch_id, part, page_items, kind, channel)
           SELECT n, envelope_id, batch_id, 1, 1, 'BENEFICIARY', 'file' FROM batches, generate_series(1, 100) AS n""",
    )
    world.sql(
        "notifications",
        """INSERT INTO notices (notice_id, mailing, position, subject, party, state, code, sent_at, created_at, updated_at)
           SELECT uuidv7(), m, n, 'D', 'P', CASE WHEN n = 1 THEN 'PENDING' WHEN n <= 20 THEN 'FAILED' ELSE 'SENT' END,
                  CASE WHEN n BETWEEN 2 AND 20 THEN 'REFUSED' END, now(), now() - old, now() - old
           FROM generate_series(1, 100) AS m, generate_series(1, 100) AS n,
                LATERAL (SELECT CASE WHEN m > 1 THEN interval '30 days' ELSE interval '0' END AS old) AS x""",
    )
    world.sql("notifications", "ANALYZE")
    database = Database(world.database_url, "notifications")
    try:
        before = world.scanned("notifications", "notices")
        with database.transaction() as tx:
            gauges.read_notices(tx)
            tx.run("SELECT pg_stat_force_next_flush()")
        # Of 10,000: 100 wait, 19 of those that failed did so lately.
        assert world.scanned("notifications", "notices") - before < 500
    finally:
        database.close()
