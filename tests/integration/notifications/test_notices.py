"""Who is told what, and when: goods at once, cash when it is paid, each once; and what is not told, with a reason."""

from pathlib import Path

import pytest

from libs.common.contracts.notifications import NoticesSuppressed
from libs.local.client import MailAdmin, NovuAdmin
from tests.integration.notifications.batches import (
    NOTICES,
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
from tests.support.world import World


def test_goods_tell_the_warehouse_the_agencies_in_pages_and_every_person_once(
    world: World, novu: NovuAdmin, mail: MailAdmin
) -> None:
    batch = Batch(world, 250)  # three calls to Novu; 125 people an agency
    process = run(world, novu, mail, AGENCY_PAGE_ITEMS="50")
    batch.publish(batch.allocated(), twice=True)
    until_states(world, batch, {("WAREHOUSE", "SENT"): 1, ("AGENCY", "SENT"): 6, ("BENEFICIARY", "SENT"): 250})
    assert told(novu, batch) == sorted(batch.person(number) for number in range(250))
    triggered = [row for row in novu.triggered() if row["subscriber_id"] == batch.person(7)]
    assert triggered[0]["recipient"] == {"subscriberId": batch.person(7), "email": batch.email(7), "phone": "+221 700"}
    payload = triggered[0]["payload"]
    assert payload["total_quantity"] == "1.007"
    assert payload["beneficiary_name"] == "Name <b>7</b> Bcc: x@y.example"
    assert (payload["agency_id"], payload["administrative_zone_id_small"]) == (batch.agency(1), "S1")
    mails = mailed(mail, batch)
    assert [one["recipient"].partition("@")[0] for one in mails] == [
        *[batch.agency(0)] * 3,
        *[batch.agency(1)] * 3,
        f"W{batch.tag}",
    ]
    pages = sorted((one for one in mails if one["recipient"].startswith(batch.agency(1))), key=lambda one: str(one["subject"]))
    assert [one["subject"].rpartition("(")[2] for one in pages] == ["page 1 of 3)", "page 2 of 3)", "page 3 of 3)"]
    listed = [line.split()[0] for one in pages for line in one["text"].splitlines() if line.startswith(world.name)]
    assert listed == [batch.person(number) for number in range(1, 250, 2)]
    assert "Name &lt;b&gt;1&lt;/b&gt;" in pages[0]["html"]
    [row] = [row for row in notices(world, batch) if row.kind == "WAREHOUSE"]
    [depot] = [one for one in mails if one["recipient"].startswith("W")]
    assert depot["message_id"] == f"<{row.notice_id}@almoner.example>"
    assert "281.125 kg" in depot["text"]  # all of the batch
    world.until(lambda: idle(world))
    once = said(world)
    assert len(once) == 257
    assert {tuple(events) for events in once.values()} == {(("Sent", "", "novu"),), (("Sent", "", "smtp"),)}
    for secret in ("people.example", "places.example", "Bcc: x", "+221"):
        assert secret not in process.log_text()
        assert not world.sql("notifications", "SELECT 1 FROM notices n WHERE n::text LIKE %(secret)s", secret=f"%{secret}%")
        assert not any(secret.encode() in message.value for message in world.messages(NOTICES))


@pytest.mark.parametrize("early", [False, True], ids=["in order", "payments first"])
def test_agency_cash_tells_agencies_of_what_is_paid_and_people_once_it_is_confirmed(
    world: World, novu: NovuAdmin, mail: MailAdmin, early: bool
) -> None:
    batch = Batch(world, 12, "CASH_PHYSICAL", zones=3)
    run(world, novu, mail)
    run(world, novu, mail)  # a second replica
    live = [number for number in range(12) if number != 4]  # one was cancelled before dispatch
    payments = [batch.dispatched(1, live), batch.confirmed(1, live[:6]), batch.confirmed(1, live[6:])]
    if early:
        batch.publish(*reversed(payments))
        world.until(lambda: len(world.sql("notifications", "SELECT 1 FROM ops_parked")) == 3)
        assert notices(world, batch) == []
        batch.publish(batch.allocated(1, range(6)))
        until_states(world, batch, {("BENEFICIARY", "SENT"): 5})  # nobody of agency lists that are not whole
        batch.publish(batch.allocated(2, range(6, 12)), twice=True)
    else:
        batch.publish(batch.allocated(1, range(6)), batch.allocated(2, range(6, 12)))
        world.until(lambda: len(world.sql("notifications", "SELECT 1 FROM parts")) == 2)
        assert notices(world, batch) == []  # nobody is told of money that may not come
        batch.publish(payments[0], twice=True)
        until_states(world, batch, {("AGENCY", "SENT"): 3})
        batch.publish(*payments[1:], twice=True)
    until_states(world, batch, {("AGENCY", "SENT"): 3, ("BENEFICIARY", "SENT"): 11})
    batch.publish(batch.confirmed(2, [3]))  # paid again after a reversal
    world.until(
        lambda: idle(world) and len(world.sql("notifications", "SELECT 1 FROM inbox WHERE topic = 'funds.payments.v1'")) == 4
    )
    assert states(world, batch) == {("AGENCY", "SENT"): 3, ("BENEFICIARY", "SENT"): 11}
    assert told(novu, batch) == sorted(batch.person(number) for number in live)
    lists = {one["recipient"].partition("@")[0]: one["text"] for one in mailed(mail, batch)}
    assert lists.keys() == {batch.agency(zone) for zone in range(3)}
    assert "30.18 EUR" in lists[batch.agency(1)]  # 10.01 + 10.07 + 10.10, without the one who was cancelled
    assert batch.person(4) not in lists[batch.agency(1)]


@pytest.mark.parametrize("early", [False, True], ids=["in order", "payments first"])
def test_digital_cash_tells_people_where_their_address_says_and_holds_nobody_back(
    world: World, novu: NovuAdmin, mail: MailAdmin, early: bool
) -> None:
    batch = Batch(world, 6, "CASH_DIGITAL")
    run(world, novu, mail, BENEFICIARY_CHANNEL="smtp")
    parts = [batch.addresses(1, range(4)), batch.addresses(2, [4, 5], contact=False)]
    paid = [batch.dispatched(), batch.confirmed()]
    batch.publish(*(paid + parts if early else parts + paid))
    # The last two have no contact: one is told by the wallet's address, the other has an account only.
    until_states(world, batch, {("BENEFICIARY", "SENT"): 5, ("BENEFICIARY", "SUPPRESSED"): 1})
    assert [one["recipient"] for one in mailed(mail, batch)] == [
        *[batch.email(number) for number in range(4)],
        f"wallet-{batch.email(5)}",
    ]
    [row] = [row for row in notices(world, batch) if row.state == "SUPPRESSED"]
    assert (row.subject, row.code) == (batch.ids[4], "NO_CONTACT")
    world.until(lambda: idle(world))
    assert said(world)[str(row.notice_id)] == [("Suppressed", "NO_CONTACT", "")]
    assert len(said(world)) == 6


def test_what_configuration_suppresses_is_recorded_and_said(world: World, novu: NovuAdmin, mail: MailAdmin) -> None:
    batch = Batch(world, 3)
    run(world, novu, mail, AGENCY_CHANNEL="none")
    batch.publish(batch.allocated())
    until_states(world, batch, {("WAREHOUSE", "SENT"): 1, ("AGENCY", "SUPPRESSED"): 2, ("BENEFICIARY", "SENT"): 3})
    world.processes[-1].stop()
    run(world, novu, mail, SUPPRESS_NOTIFICATIONS="true")
    other = Batch(world, 3)
    other.publish(other.allocated())
    until_states(world, other, {("WAREHOUSE", "SUPPRESSED"): 1, ("AGENCY", "SUPPRESSED"): 2, ("BENEFICIARY", "SUPPRESSED"): 3})
    events = world.events(NOTICES, NoticesSuppressed, at_least=4)
    assert {(event.data.kind, item.reason) for event in events for item in event.data.items} == {
        (kind, "SUPPRESSED") for kind in ("WAREHOUSE", "AGENCY", "BENEFICIARY")
    }
    assert told(novu, other) == []
    assert mailed(mail, other) == []


def test_a_folder_gets_each_notice_as_one_mail(world: World, novu: NovuAdmin, mail: MailAdmin, tmp_path: Path) -> None:
    folder = tmp_path / "notices"
    channels = dict.fromkeys(("WAREHOUSE_CHANNEL", "AGENCY_CHANNEL", "BENEFICIARY_CHANNEL"), "file")
    (tmp_path / "notices").touch()  # what is no folder can't be written to
    batch = Batch(world, 3)
    run(world, novu, mail, **channels, FILE_FOLDER=str(folder))
    batch.publish(batch.allocated(contact=False))
    world.until(lambda: world.sql("notifications", "SELECT 1 FROM ops_attempts WHERE code = 'FOLDER'"))
    folder.unlink()
    until_states(world, batch, {("WAREHOUSE", "SENT"): 1, ("AGENCY", "SENT"): 2, ("BENEFICIARY", "SENT"): 3})
    names = {f"{row.kind.lower()}-{row.notice_id}.eml" for row in notices(world, batch)}
    assert {path.name for path in folder.iterdir()} == names
