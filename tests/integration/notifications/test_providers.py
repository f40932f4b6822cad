"""What may go wrong with whoever passes notices on: each is sent once, or nobody knows and nobody sends it again."""

import os
import signal
from datetime import datetime
from pathlib import Path

import pytest

from libs.common.contracts.operator import RetryWork
from libs.local.client import MailAdmin, NovuAdmin
from services.notifications.handlers import COMPOSE
from tests.integration.notifications.batches import (
    COMMANDS,
    Batch,
    idle,
    mailed,
    notices,
    run,
    said,
    states,
    told,
    until_states,
)
from tests.support.points import UNSEEN, points
from tests.support.process import Process
from tests.support.world import World

NOBODY = {"WAREHOUSE_CHANNEL": "none", "AGENCY_CHANNEL": "none"}
# A lease short enough to wait for; with less than that a call on a busy machine finds it too short to begin.
SOON = {
    f"{name}_{limit}": text for name in ("NOVU", "FILE") for limit, text in (("TIMEOUT_SECONDS", "1"), ("LEASE_SECONDS", "4.5"))
}
MAIL_SOON = {"SMTP_TIMEOUT_SECONDS": "1", "SMTP_LEASE_SECONDS": "4.5"}  # only for whoever dies or is kept waiting
# Where it does not matter, whenever the process dies, for the key is known, or nobody was called.
KEYED = [
    *((point, "novu") for point in points("call")),
    *((point, "file") for point in UNSEEN),
    *((point, "") for point in points("fold", "relay")),
]
# What becomes of three mails in one mailing, and how many of them are sent: nobody knows whether there was an answer.
MAILS = {
    "call.before_claim_commit": ("SENT", 3),
    "call.after_claim": ("UNKNOWN", 0),
    "call.after_first_byte": ("UNKNOWN", 0),
    "call.after_answer": ("UNKNOWN", 3),
    "call.before_settle_commit": ("UNKNOWN", 3),
    "call.after_settle": ("SENT", 3),
}
COMPOSED = points("job")
CASES = [*KEYED, *((point, "smtp") for point in MAILS), *((point, COMPOSE) for point in COMPOSED)]


def die_at(tmp_path: Path, point: str, kind: str, number: str = "SIGKILL") -> dict[str, str]:
    crash = {"AT": point, "KIND": kind, "MARK": str(tmp_path / "mark"), "SIGNAL": number}
    return {f"ALMONER_CRASH_{name}": text for name, text in crash.items()}


def died(process: Process, tmp_path: Path, point: str) -> None:
    assert process.wait() == -signal.SIGKILL
    reached, in_flight = (tmp_path / "mark").read_text().split()
    assert reached == point
    assert int(in_flight) > 0


def everything_is_said_once(world: World, batch: Batch) -> None:
    world.until(lambda: idle(world))
    assert {notice: len(events) for notice, events in said(world).items()} == {
        str(row.notice_id): 1 for row in notices(world, batch)
    }


@pytest.mark.parametrize(("point", "kind"), KEYED)
def test_each_person_is_told_once_whenever_the_process_dies(
    world: World, novu: NovuAdmin, mail: MailAdmin, tmp_path: Path, point: str, kind: str
) -> None:
    """By the log of Novu, which knows the keys, or in a folder, where a notice is one file."""
    folder = tmp_path / "notices"
    how = {"BENEFICIARY_CHANNEL": kind or "novu", "FILE_FOLDER": str(folder), **NOBODY, **SOON}
    batch = Batch(world, 5)
    first = run(world, novu, mail, **die_at(tmp_path, point, kind), **how)
    batch.publish(batch.allocated())
    died(first, tmp_path, point)
    run(world, novu, mail, **how)
    until_states(world, batch, {("WAREHOUSE", "SUPPRESSED"): 1, ("AGENCY", "SUPPRESSED"): 2, ("BENEFICIARY", "SENT"): 5})
    everything_is_said_once(world, batch)
    if kind == "file":
        files = {f"beneficiary-{row.notice_id}.eml" for row in notices(world, batch) if row.kind == "BENEFICIARY"}
        assert {path.name for path in folder.iterdir()} == files
    else:
        assert told(novu, batch) == [batch.person(number) for number in range(5)]


@pytest.mark.parametrize("point", COMPOSED)
def test_payments_that_waited_for_their_part_are_told_of_once_whenever_the_process_dies(
    world: World, novu: NovuAdmin, mail: MailAdmin, tmp_path: Path, point: str
) -> None:
    batch = Batch(world, 5, "CASH_DIGITAL")
    first = run(world, novu, mail, **die_at(tmp_path, f"{point}:2", COMPOSE), **SOON)
    batch.publish(batch.confirmed())
    world.until(lambda: world.sql("notifications", "SELECT 1 FROM ops_parked") and idle(world))  # looked for in vain, once
    batch.publish(batch.addresses())
    died(first, tmp_path, point)
    run(world, novu, mail, **SOON)
    until_states(world, batch, {("BENEFICIARY", "SENT"): 5})
    everything_is_said_once(world, batch)
    assert told(novu, batch) == [batch.person(number) for number in range(5)]


@pytest.mark.parametrize("point", MAILS)
def test_a_mail_whose_answer_is_lost_with_the_process_is_unknown_and_never_sent_again(
    world: World, novu: NovuAdmin, mail: MailAdmin, tmp_path: Path, point: str
) -> None:
    state, mails = MAILS[point]
    batch = Batch(world, 3)
    first = run(world, novu, mail, **die_at(tmp_path, point, "smtp"), BENEFICIARY_CHANNEL="smtp", **NOBODY, **MAIL_SOON)
    batch.publish(batch.allocated())
    died(first, tmp_path, point)
    run(world, novu, mail, BENEFICIARY_CHANNEL="smtp", **NOBODY)
    until_states(world, batch, {("WAREHOUSE", "SUPPRESSED"): 1, ("AGENCY", "SUPPRESSED"): 2, ("BENEFICIARY", state): 3})
    world.until(lambda: idle(world))
    assert len(mailed(mail, batch)) == mails
    events = {event for row in notices(world, batch) if row.kind == "BENEFICIARY" for event in said(world)[str(row.notice_id)]}
    assert events == {("Sent", "", "smtp") if state == "SENT" else ("Unknown", "ANSWER_LOST", "smtp")}


@pytest.mark.parametrize(
    ("kind", "point", "state"),
    [
        ("smtp", "call.after_claim", "UNKNOWN"),
        ("novu", "call.after_claim", "SENT"),
        ("novu", "call.after_first_byte", "SENT"),  # the rest of its request may come after the replica's
    ],
)
def test_a_process_that_sleeps_through_its_lease_tells_nobody_once_more(
    world: World, novu: NovuAdmin, mail: MailAdmin, tmp_path: Path, kind: str, point: str, state: str
) -> None:
    batch = Batch(world, 3)
    how = {"BENEFICIARY_CHANNEL": kind, **NOBODY, **SOON, **MAIL_SOON}
    frozen = run(world, novu, mail, **die_at(tmp_path, point, kind, "SIGSTOP"), **how)
    batch.publish(batch.allocated())
    world.until((tmp_path / "mark").exists)
    run(world, novu, mail, **how)
    expected = {("WAREHOUSE", "SUPPRESSED"): 1, ("AGENCY", "SUPPRESSED"): 2, ("BENEFICIARY", state): 3}
    until_states(world, batch, expected)
    frozen.thaw()
    world.until(lambda: frozen.logged("late settle refused"))
    assert states(world, batch) == expected
    everything_is_said_once(world, batch)
    assert mailed(mail, batch) == []
    assert told(novu, batch) == ([batch.person(number) for number in range(3)] if kind == "novu" else [])


def test_providers_that_are_out_of_order_are_waited_for_and_a_lost_answer_is_asked_for_by_its_key(
    world: World, novu: NovuAdmin, mail: MailAdmin
) -> None:
    batch = Batch(world, 150)
    for kind in ("error_500_after", "timeout_after", "error_503", "error_429", "nonsense"):
        novu.add_fault(kind, count=1, seconds=0 if kind.startswith("error") else 5)
    fault = novu.add_fault("down")
    mail.add_fault("down", path="MAIL", count=3)
    mail.add_fault("error_503", path="RCPT", count=1)
    run(world, novu, mail, NOVU_BREAKER_FAILURES="3", **SOON)
    batch.publish(batch.allocated())
    world.until(lambda: next(one for one in novu.faults() if one["id"] == fault)["hits"] > 2)
    novu.delete_faults(fault)
    until_states(world, batch, {("WAREHOUSE", "SENT"): 1, ("AGENCY", "SENT"): 2, ("BENEFICIARY", "SENT"): 150})
    assert told(novu, batch) == sorted(batch.person(number) for number in range(150))
    assert len(mailed(mail, batch)) == 3
    world.until(lambda: idle(world))
    assert {events[0][0] for events in said(world).values()} == {"Sent"}
    assert len(said(world)) == 153


@pytest.mark.parametrize("channel", ["novu", "smtp", "file"])
def test_an_outage_is_waited_out_however_many_attempts_that_takes(
    world: World, novu: NovuAdmin, mail: MailAdmin, tmp_path: Path, channel: str
) -> None:
    """Nobody is there, or nobody is ready: Novu and the mail server, whose outage is of both kinds, and a folder that is a file."""
    folder = tmp_path / "notices"
    folder.write_text("in the way")
    for admin, path in ((novu, None), (mail, "MAIL")):
        admin.add_fault("error_503", path=path, count=3)
        admin.add_fault("down", path=path)
    limits = {"MAX_ATTEMPTS": "2", "BACKOFF_FIRST_SECONDS": "0.05", "BACKOFF_MAX_SECONDS": "0.1", "BREAKER_FAILURES": "0"}
    settings = {f"{channel.upper()}_{name}": text for name, text in limits.items()}
    batch = Batch(world, 3)
    run(world, novu, mail, BENEFICIARY_CHANNEL=channel, FILE_FOLDER=str(folder), **NOBODY, **settings)
    batch.publish(batch.allocated())
    tried = "SELECT 1 FROM ops_attempts WHERE outcome <> 'Done'"
    world.until(lambda: len(world.sql("notifications", tried)) >= 8, what="attempts in vain")
    assert {row.state for row in world.sql("notifications", "SELECT state FROM ops_work")} <= {"PENDING", "CLAIMED"}
    nobody = {("WAREHOUSE", "SUPPRESSED"): 1, ("AGENCY", "SUPPRESSED"): 2}
    assert states(world, batch) == {**nobody, ("BENEFICIARY", "PENDING"): 3}
    folder.unlink()
    novu.delete_faults()
    mail.delete_faults()
    until_states(world, batch, {**nobody, ("BENEFICIARY", "SENT"): 3})
    everything_is_said_once(world, batch)
    people = [batch.person(number) for number in range(3)]
    assert told(novu, batch) == (people if channel == "novu" else [])
    assert len(mailed(mail, batch)) == (3 if channel == "smtp" else 0)
    assert not folder.exists() or len(list(folder.iterdir())) == 3


def test_an_outage_in_which_nothing_was_sent_uses_up_no_time_of_the_key(world: World, novu: NovuAdmin, mail: MailAdmin) -> None:
    """The key is known from the first request that may have been taken: an answer that is lost after the outage is asked for."""
    batch = Batch(world, 3)
    busy = novu.add_fault("error_429")
    novu.add_fault("error_500_after", count=1)  # the next that counts
    limits = {"NOVU_BACKOFF_FIRST_SECONDS": "0.05", "NOVU_BACKOFF_MAX_SECONDS": "0.1", "NOVU_BREAKER_FAILURES": "0"}
    run(world, novu, mail, NOVU_KEY_HOURS="0.001", **NOBODY, **limits)
    batch.publish(batch.allocated())
    late = "SELECT 1 FROM ops_attempts GROUP BY subject HAVING max(started_at) - min(started_at) > interval '4 s'"
    world.until(lambda: world.sql("notifications", late), what="more than the 3.6 s of the key")
    novu.delete_faults(busy)
    until_states(world, batch, {("WAREHOUSE", "SUPPRESSED"): 1, ("AGENCY", "SUPPRESSED"): 2, ("BENEFICIARY", "SENT"): 3})
    outcomes = world.sql("notifications", "SELECT outcome FROM ops_attempts ORDER BY attempt DESC LIMIT 3")
    assert [row.outcome for row in outcomes] == ["Done", "MaybeDone", "NotSent"]
    assert told(novu, batch) == [batch.person(number) for number in range(3)]


def test_a_refusal_is_of_one_person_and_tells_why_without_telling_whom(world: World, novu: NovuAdmin, mail: MailAdmin) -> None:
    batch = Batch(world, 8)
    novu.refuse({batch.person(2): "invalid_recipients"})
    mail.refuse({f"{batch.agency(0)}@places.example": f"550 5.1.1 <{batch.agency(0)}@places.example> is nobody"})
    run(world, novu, mail)
    allocated = batch.allocated()
    batch.publish(allocated)
    until_states(
        world,
        batch,
        {
            ("WAREHOUSE", "SENT"): 1,
            ("AGENCY", "SENT"): 1,
            ("AGENCY", "FAILED"): 1,
            ("BENEFICIARY", "SENT"): 7,
            ("BENEFICIARY", "FAILED"): 1,
        },
    )
    failed = {row.subject: (row.code, row.message) for row in notices(world, batch) if row.state == "FAILED"}
    assert failed == {batch.ids[2]: ("REFUSED", "invalid_recipients"), batch.agency(0): ("REFUSED", "550 5.1.1")}


def test_one_address_that_novu_cannot_take_does_not_keep_the_others_from_being_told(
    world: World, novu: NovuAdmin, mail: MailAdmin
) -> None:
    batch = Batch(world, 6)
    batch.email = lambda number: f"p{number}@.{'' if number == 3 else 'people.example'}"  # type: ignore[method-assign]
    run(world, novu, mail, **NOBODY)
    batch.publish(batch.allocated())
    sent = {("WAREHOUSE", "SUPPRESSED"): 1, ("AGENCY", "SUPPRESSED"): 2, ("BENEFICIARY", "SENT"): 5}
    until_states(world, batch, {**sent, ("BENEFICIARY", "FAILED"): 1})
    assert told(novu, batch) == [batch.person(number) for number in range(6) if number != 3]
    [failed] = [row for row in notices(world, batch) if row.state == "FAILED"]
    assert (failed.subject, failed.code, failed.message) == (batch.ids[3], "REFUSED", "HTTP_422")


def test_a_mail_that_is_taken_without_a_word_is_unknown_and_those_behind_it_go_out(
    world: World, novu: NovuAdmin, mail: MailAdmin
) -> None:
    batch = Batch(world, 5)
    mail.add_fault("timeout_after", path="DATA", count=1, seconds=10)
    mail.refuse({batch.email(4): "450 4.2.1 busy"})
    run(world, novu, mail, BENEFICIARY_CHANNEL="smtp", **NOBODY, SMTP_TIMEOUT_SECONDS="4", SMTP_LEASE_SECONDS="8")
    batch.publish(batch.allocated())
    nobody = {("WAREHOUSE", "SUPPRESSED"): 1, ("AGENCY", "SUPPRESSED"): 2}
    expected = {**nobody, ("BENEFICIARY", "UNKNOWN"): 1, ("BENEFICIARY", "SENT"): 3, ("BENEFICIARY", "PENDING"): 1}
    until_states(world, batch, expected)
    mail.refuse()
    until_states(world, batch, {**nobody, ("BENEFICIARY", "UNKNOWN"): 1, ("BENEFICIARY", "SENT"): 4})
    assert [one["recipient"] for one in mailed(mail, batch)] == [batch.email(number) for number in range(5)]


def test_what_somebody_has_to_mend_is_an_error_and_goes_out_once_it_is_mended(
    world: World, novu: NovuAdmin, mail: MailAdmin, tmp_path: Path
) -> None:
    """A wrong key at Novu, and a template that fails for what is told now though it did for the sample."""
    templates = tmp_path / "templates" / "en"
    templates.mkdir(parents=True)
    (templates / "agency.text.j2").write_text("{% if no_of_beneficiaries == 2 %}fine{% else %}{{ nothing }}{% endif %}")
    novu.set(api_key="another")
    batch = Batch(world, 6)
    run(world, novu, mail, TEMPLATE_FOLDER=str(tmp_path / "templates"))
    batch.publish(batch.allocated())
    world.until(lambda: len(world.sql("notifications", "SELECT 1 FROM ops_work WHERE state = 'ERROR'")) == 2)
    world.until(lambda: ("WAREHOUSE", "SENT") in states(world, batch))
    pending = {(row.kind, row.code, row.message) for row in notices(world, batch) if row.state == "PENDING"}
    assert pending == {
        ("AGENCY", "TEMPLATE_FAILED", "en/agency.text.j2: UndefinedError: 'nothing' is undefined"),
        ("BENEFICIARY", "HTTP_401", "Novu does not let us"),
    }
    (templates / "agency.text.j2").write_text("{{ no_of_beneficiaries }} people")
    novu.set(api_key="key")
    for kind in ("smtp", "novu"):
        world.publish(COMMANDS, RetryWork(who="ops", why="mended", kind=kind), kind)
    until_states(world, batch, {("WAREHOUSE", "SENT"): 1, ("AGENCY", "SENT"): 2, ("BENEFICIARY", "SENT"): 6})
    assert told(novu, batch) == [batch.person(number) for number in range(6)]


@pytest.mark.parametrize(("channel", "max_items", "path"), [("novu", 1, "/v1/events/trigger"), ("smtp", 5, "DATA")])
def test_notices_keep_to_the_rate_of_their_channel(
    world: World, novu: NovuAdmin, mail: MailAdmin, channel: str, max_items: int, path: str
) -> None:
    """By the other side's own log. At Novu a request counts, with however many notices; at a mail server each mail, of which a
    mailing has several."""
    batch = Batch(world, 17)
    admin = {"novu": novu, "smtp": mail}[channel]
    before = max((request["id"] for request in admin.requests()), default=0)
    rate = {"CALLS_PER_SECOND": "4", "LEASE_SECONDS": "60", "MAX_ITEMS": str(max_items)}
    settings = {f"{channel.upper()}_{name}": text for name, text in rate.items()}
    run(world, novu, mail, BENEFICIARY_CHANNEL=channel, **NOBODY, **settings)
    batch.publish(batch.allocated())
    until_states(world, batch, {("WAREHOUSE", "SUPPRESSED"): 1, ("AGENCY", "SUPPRESSED"): 2, ("BENEFICIARY", "SENT"): 17})
    times = [datetime.fromisoformat(request["at"]) for request in admin.requests(before) if request["path"] == path]
    assert len(times) == 17
    assert (times[-1] - times[0]).total_seconds() >= 2.5  # 4, less what the first may be late


def test_files_keep_to_the_rate_of_their_channel(world: World, novu: NovuAdmin, mail: MailAdmin, tmp_path: Path) -> None:
    settings = {"FILE_FOLDER": str(tmp_path), "FILE_CALLS_PER_SECOND": "4", "FILE_MAX_ITEMS": "5", "FILE_LEASE_SECONDS": "60"}
    batch = Batch(world, 17)
    run(world, novu, mail, BENEFICIARY_CHANNEL="file", **NOBODY, **settings)
    batch.publish(batch.allocated())
    until_states(world, batch, {("WAREHOUSE", "SUPPRESSED"): 1, ("AGENCY", "SUPPRESSED"): 2, ("BENEFICIARY", "SENT"): 17})
    times = sorted(path.stat().st_mtime for path in tmp_path.glob("*.eml"))
    assert len(times) == 17
    assert times[-1] - times[0] >= 2.5  # 4, less what the first may be late


def test_a_template_that_fails_for_the_sample_ends_the_process_at_its_start(
    world: World, novu: NovuAdmin, mail: MailAdmin, tmp_path: Path
) -> None:
    templates = tmp_path / "templates" / "en"
    templates.mkdir(parents=True)
    (templates / "beneficiary.smtp.html.j2").write_text("{{ beneficiary_nam }}")
    process = run(world, novu, mail, TEMPLATE_FOLDER=str(tmp_path / "templates"))
    assert process.wait() == 1
    assert "en/beneficiary.smtp.html.j2: UndefinedError: 'beneficiary_nam' is undefined" in process.log_text()
    assert os.fspath(tmp_path) not in process.log_text()
