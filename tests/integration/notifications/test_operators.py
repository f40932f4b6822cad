"""What operators do about notices, and what Novu says of them afterwards."""

import subprocess
import sys
from itertools import permutations
from typing import Any

import httpx
import pytest

from libs.common.contracts.operator import CommandHandled, SendNotices, SettleNotices, SuppressSubject
from libs.local.client import MailAdmin, NovuAdmin
from libs.local.supervisor import ROOT
from tests.integration.notifications.batches import (
    COMMANDS,
    Batch,
    env,
    idle,
    mailed,
    notices,
    run,
    said,
    told,
    until_states,
)
from tests.support.world import World

WHO = {"who": "ops", "why": "a test"}
NOBODY = {"WAREHOUSE_CHANNEL": "none", "AGENCY_CHANNEL": "none"}


def handled(world: World, count: int) -> list[Any]:
    return [event.data for event in world.events("notifications.audit.v1", CommandHandled, at_least=count)]


def of_people(world: World, batch: Batch) -> list[Any]:
    return [row for row in notices(world, batch) if row.kind == "BENEFICIARY"]


def test_another_notice_is_sent_only_where_an_operator_asks_for_it_and_once_for_each(
    world: World, novu: NovuAdmin, mail: MailAdmin
) -> None:
    batch = Batch(world, 3)
    mail.refuse({batch.email(1): "550 5.1.1 nobody"})
    mail.add_fault("timeout_after", path="DATA", count=1)
    run(world, novu, mail, BENEFICIARY_CHANNEL="smtp", **NOBODY)
    batch.publish(batch.allocated())
    world.until(lambda: {row.state for row in of_people(world, batch)} == {"SENT", "FAILED", "UNKNOWN"})
    mail.refuse()
    by_state = {row.state: row for row in of_people(world, batch)}
    unknown, failed = by_state["UNKNOWN"].notice_id, by_state["FAILED"].notice_id

    world.publish(COMMANDS, SendNotices(**WHO, notice_ids=[failed, unknown]), "x")
    [refused] = handled(world, 1)
    assert refused.refused == f"notice {unknown} is UNKNOWN; settle it first"
    world.publish(COMMANDS, SettleNotices(**WHO, notice_ids=[unknown], outcome="not_sent", evidence="log"), "x")
    handled(world, 2)
    world.publish(COMMANDS, SendNotices(**WHO, expected=2, notice_ids=[failed, unknown]), "x")
    world.until(lambda: len([row for row in of_people(world, batch) if row.state == "SENT"]) == 3)
    again = {row.replaces: row for row in of_people(world, batch) if row.serial == 2}
    assert again.keys() == {failed, unknown}
    assert {row.code for row in of_people(world, batch) if row.state == "FAILED"} == {"REFUSED", "NOT_SENT"}
    # One address was in the mail that was taken without a word, and in the one an operator asked for.
    assert len(mailed(mail, batch)) == 4
    assert len({one["message_id"] for one in mailed(mail, batch)}) == 4

    world.publish(COMMANDS, SendNotices(**WHO, notice_ids=[failed]), "x")
    assert "was sent once more already" in handled(world, 4)[-1].refused
    world.until(lambda: idle(world))
    events = said(world)
    assert events[str(unknown)] == [("Unknown", "ANSWER_LOST", "smtp"), ("Failed", "NOT_SENT", "smtp")]
    assert not world.sql("notifications", "SELECT 1 FROM ops_work WHERE state = 'UNKNOWN'")


def test_whom_an_operator_suppresses_gets_nothing_until_it_is_lifted(world: World, novu: NovuAdmin, mail: MailAdmin) -> None:
    batch, later = Batch(world, 3), Batch(world, 3)
    novu.add_fault("down")
    run(world, novu, mail, NOVU_ENABLED="false")  # everything waits
    batch.publish(batch.allocated())
    until_states(world, batch, {("WAREHOUSE", "SENT"): 1, ("AGENCY", "SENT"): 2, ("BENEFICIARY", "PENDING"): 3})
    for kind, subject in (("BENEFICIARY", batch.person(1)), ("BENEFICIARY", later.person(2)), ("AGENCY", later.agency(0))):
        world.publish(COMMANDS, SuppressSubject(**WHO, kind=kind, subject=subject), "x")
    handled(world, 3)
    later.publish(later.allocated())
    world.until(lambda: len(notices(world, later)) == 6)
    novu.delete_faults()
    world.processes[-1].stop()
    run(world, novu, mail)
    until_states(
        world,
        later,
        {
            ("WAREHOUSE", "SENT"): 1,
            ("AGENCY", "SENT"): 1,
            ("AGENCY", "SUPPRESSED"): 1,
            ("BENEFICIARY", "SENT"): 2,
            ("BENEFICIARY", "SUPPRESSED"): 1,
        },
    )
    world.until(lambda: [row.state for row in of_people(world, batch)] == ["SENT", "SUPPRESSED", "SENT"])
    assert told(novu, batch) == [batch.person(0), batch.person(2)]
    [muted] = [row for row in of_people(world, batch) if row.state == "SUPPRESSED"]
    assert muted.code == "SUBJECT_SUPPRESSED"

    world.publish(COMMANDS, SuppressSubject(**WHO, kind="BENEFICIARY", subject=batch.person(1), suppressed=False), "x")
    world.publish(COMMANDS, SendNotices(**WHO, notice_ids=[muted.notice_id]), "x")
    world.until(lambda: len(told(novu, batch)) == 3)
    world.until(lambda: idle(world))
    assert said(world)[str(muted.notice_id)] == [("Suppressed", "SUBJECT_SUPPRESSED", "")]


def test_deliveries_count_in_any_order_and_however_often_they_are_told(world: World, novu: NovuAdmin, mail: MailAdmin) -> None:
    batch = Batch(world, 7)
    process = run(world, novu, mail, **NOBODY)
    batch.publish(batch.allocated())
    world.until(lambda: [row.state for row in of_people(world, batch)] == ["SENT"] * 7)
    novu.set(api_key="key", webhook_url=f"{process.http_url}/webhooks/novu", webhook_secret="a secret of tests")
    rows = of_people(world, batch)
    orders = list(permutations(["message.delivered", "message.bounced", "message.delivered"]))
    for row, order in zip(rows, orders, strict=False):
        for kind in order:
            assert novu.tell((kind, str(row.notice_id))) == 202
    delivered = str(rows[6].notice_id)
    unknown = "00000000-0000-0000-0000-000000000000"
    for _ in range(2):
        assert novu.tell(("message.delivered", delivered), ("message.seen", delivered), ("message.delivered", unknown)) == 202
    found = of_people(world, batch)
    assert [(row.state, row.code, row.delivery) for row in found[:6]] == [("FAILED", "BOUNCED", "BOUNCED")] * 6
    assert [(row.state, row.code, row.delivery) for row in found[6:]] == [("SENT", None, "DELIVERED")]
    world.until(lambda: idle(world))
    events = said(world)
    assert events[delivered] == [("Sent", "", "novu"), ("Delivered", "", "novu")]
    for row in rows[:6]:
        said_of = events[str(row.notice_id)]
        assert said_of[0] == ("Sent", "", "novu")
        assert said_of.count(("Failed", "BOUNCED", "novu")) == 1
        assert said_of.count(("Delivered", "", "novu")) <= 1
    assert process.metric("almoner_webhook_events_total", outcome="unknown") == 2


def test_a_webhook_that_is_forged_or_makes_no_sense_changes_nothing(world: World, novu: NovuAdmin, mail: MailAdmin) -> None:
    batch = Batch(world, 1)
    process = run(world, novu, mail, **NOBODY)
    batch.publish(batch.allocated())
    world.until(lambda: [row.state for row in of_people(world, batch)] == ["SENT"])
    [row] = of_people(world, batch)
    url = f"{process.http_url}/webhooks/novu"
    event = ("message.bounced", str(row.notice_id))
    novu.set(api_key="key", webhook_url=url, webhook_secret="a secret of tests")
    for signature in ("sha256=" + "0" * 64, "sha256="):
        assert novu.tell(event, signature=signature) == 401
    for headers in ({}, {b"X-Novu-Signature": "sha256=é".encode()}):
        assert httpx.post(url, content=b"{}", headers=headers, trust_env=False, verify=False, timeout=30).status_code == 401
    novu.set(api_key="key", webhook_url=url, webhook_secret="another")
    assert novu.tell(event) == 401
    novu.set(api_key="key", webhook_url=url, webhook_secret="a secret of tests")
    assert novu.tell(*[event] * 12_000) == 413
    assert novu.tell(("message.bounced", "no id")) == 202  # signed, and of nobody
    assert [(row.state, row.delivery) for row in of_people(world, batch)] == [("SENT", None)]


def test_a_lost_answer_ends_when_novu_tells_of_a_delivery(world: World, novu: NovuAdmin, mail: MailAdmin) -> None:
    batch = Batch(world, 2)
    novu.add_fault("error_500_after")
    process = run(world, novu, mail, NOVU_KEY_HOURS="0.0005", **NOBODY)  # two seconds
    batch.publish(batch.allocated())
    world.until(lambda: [row.state for row in of_people(world, batch)] == ["UNKNOWN"] * 2)
    novu.set(api_key="key", webhook_url=f"{process.http_url}/webhooks/novu", webhook_secret="a secret of tests")
    first, second = of_people(world, batch)
    assert (first.code, second.code) == ("KEY_EXPIRED", "KEY_EXPIRED")
    novu.tell(("message.delivered", str(first.notice_id)), ("message.bounced", str(second.notice_id)))
    assert [(row.state, row.code) for row in of_people(world, batch)] == [("SENT", None), ("FAILED", "BOUNCED")]
    assert not world.sql("notifications", "SELECT 1 FROM ops_work WHERE state = 'UNKNOWN'")
    assert told(novu, batch) == [batch.person(0), batch.person(1)]


@pytest.mark.parametrize("html", [False, True])
def test_a_stored_notice_can_be_shown_as_its_receiver_sees_it(
    world: World, novu: NovuAdmin, mail: MailAdmin, html: bool
) -> None:
    batch = Batch(world, 2, zones=1)
    run(world, novu, mail)
    batch.publish(batch.allocated())
    until_states(world, batch, {("WAREHOUSE", "SENT"): 1, ("AGENCY", "SENT"): 1, ("BENEFICIARY", "SENT"): 2})
    [row] = [row for row in notices(world, batch) if row.kind == "AGENCY"]
    command = [sys.executable, "-m", "services.notifications", "show", str(row.notice_id), *(["--html"] if html else [])]
    environment = {**world.env, **env(novu, mail), "PATH": ""}
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    [sent] = [one for one in mailed(mail, batch) if one["recipient"].startswith("A")]
    if html:
        assert shown.stdout == sent["html"].replace("\r\n", "\n")
    else:
        assert shown.stdout == f"{sent['subject']}\n\n{sent['text']}".replace("\r\n", "\n")
