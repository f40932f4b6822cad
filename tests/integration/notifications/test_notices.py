"""Who is told what, and when: goods at once, cash when it is paid, each once; and what is not told, with a reason."""

from collections import Counter
from itertools import permutations
from pathlib import Path

import pytest

from libs.common.contracts.base import GOODS, EventData
from libs.common.contracts.notifications import NoticesSuppressed
from libs.common.contracts.operator import SendNotices
from libs.local.client import MailAdmin, NovuAdmin
from tests.integration.notifications.batches import (
    COMMANDS,
    NOTICES,
    Batch,
    idle,
    mailed,
    notices,
    run,
    said,
    told,
    until_states,
)
from tests.support.world import World


@pytest.mark.parametrize("benefit_type", GOODS)
def test_goods_tell_the_warehouse_the_agencies_in_pages_and_every_person_once(
    world: World, novu: NovuAdmin, mail: MailAdmin, benefit_type: str
) -> None:
    batch = Batch(world, 250, benefit_type)  # three calls to Novu; 125 people an agency
    process = run(world, novu, mail, AGENCY_PAGE_ITEMS="50")
    batch.publish(batch.allocated(), twice=True)
    until_states(world, batch, {("WAREHOUSE", "SENT"): 1, ("AGENCY", "SENT"): 6, ("BENEFICIARY", "SENT"): 250})
    assert told(novu, batch) == sorted(batch.person(number) for number in range(250))
    triggered = [row for row in novu.triggered() if row["subscriber_id"] == batch.person(7)]
    assert triggered[0]["recipient"] == {"subscriberId": batch.person(7), "email": batch.email(7), "phone": "+221 700"}
    payload = triggered[0]["payload"]
    assert (payload["total_quantity"], payload["benefit_type"]) == ("1.007", benefit_type)
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
    batch.publish(
        batch.dispatched(2, [3]), batch.confirmed(2, [3])
    )  # paid again after a reversal: through its agency, once more
    world.until(
        lambda: idle(world) and len(world.sql("notifications", "SELECT 1 FROM inbox WHERE topic = 'funds.payments.v1'")) == 5
    )
    until_states(world, batch, {("AGENCY", "SENT"): 4, ("BENEFICIARY", "SENT"): 11})
    assert told(novu, batch) == sorted(batch.person(number) for number in live)
    mails = {one["message_id"].strip("<>").partition("@")[0]: one for one in mailed(mail, batch)}
    first = [str(row.notice_id) for row in notices(world, batch) if row.kind == "AGENCY" and row.instruction == 1]
    lists = {mails[one]["recipient"].partition("@")[0]: mails[one]["text"] for one in first}
    assert lists.keys() == {batch.agency(zone) for zone in range(3)}
    assert "30.18 EUR" in lists[batch.agency(1)]  # 10.01 + 10.07 + 10.10, without the one who was cancelled
    assert batch.person(4) not in lists[batch.agency(1)]


def listed(mail: MailAdmin, batch: Batch) -> Counter[tuple[str, str]]:
    """(agency, person) of the lists that were mailed."""
    found: Counter[tuple[str, str]] = Counter()
    for one in mailed(mail, batch):
        people = [line.split()[0] for line in one["text"].splitlines() if line.startswith(f"{batch.world.name}-{batch.tag}-")]
        found.update((one["recipient"].partition("@")[0], person) for person in people)
    return found


def until_heard(world: World, events: int) -> None:
    """So many different ones have come in."""
    world.until(lambda: world.sql("notifications", "SELECT count(*) AS n FROM inbox")[0].n == events)


def test_an_agency_that_was_paid_has_its_list_whatever_the_bank_said_of_it_before(
    world: World, novu: NovuAdmin, mail: MailAdmin
) -> None:
    """Whatever comes in whatever order, each twice: an agency has one list. Of two, the first is paid in all of these; the second is
    paid, or was not and is told nothing."""
    some, others, everybody = [0, 2, 4], [1, 3, 5], list(range(6))
    found: list[tuple[Batch, list[EventData], int]] = []

    def add(agencies: int, *payments: tuple[str, list[int]]) -> None:
        for order in permutations(range(len(payments) + 1)):
            batch = Batch(world, 6, "CASH_PHYSICAL")
            events = [batch.allocated(), *(getattr(batch, step)(1, people) for step, people in payments)]
            found.append((batch, [events[number] for number in order], agencies))

    add(2, ("dispatched", others), ("confirmed", some), ("confirmed", others))  # its payment was refused, and is debited
    add(2, ("confirmed", some), ("dispatched", everybody))  # the answer was lost, and debits prove the list
    add(1, ("confirmed", some))  # the answer was lost, and of the others an operator knows that they were not paid
    run(world, novu, mail, BENEFICIARY_CHANNEL="none")
    for step in range(4):
        for batch, events, _ in found:
            for event in events[step : step + 1] * 2:  # by another id each
                batch.publish(event, twice=True)
        until_heard(world, 2 * sum(len(events[: step + 1]) for _, events, _ in found))
    world.until(lambda: idle(world))
    for batch, events, agencies in found:
        wanted = {(batch.agency(number % 2), batch.person(number)): 1 for number in everybody if number % 2 < agencies}
        assert listed(mail, batch) == wanted, events
        told_of = Counter((row.kind, row.subject) for row in notices(world, batch) if row.kind == "AGENCY")
        assert told_of == {("AGENCY", batch.agency(number)): 1 for number in range(agencies)}, events


def test_what_an_agency_is_paid_for_later_of_the_same_instruction_is_a_list_of_its_own(
    world: World, novu: NovuAdmin, mail: MailAdmin
) -> None:
    """It serves several zones, each a payment: two of three were refused, and statements show one by one that they were made."""
    batch = Batch(world, 9, "CASH_PHYSICAL", zones=1)
    run(world, novu, mail, BENEFICIARY_CHANNEL="none", AGENCY_PAGE_ITEMS="2")
    batch.publish(batch.allocated(), batch.dispatched(1, range(3)))
    world.until(lambda: [row.state for row in notices(world, batch)] == ["SENT"] * 2)
    for before, people in enumerate(([3, 4, 5], [5, 4, 3], [6, 7, 8], range(9)), 2):
        batch.publish(batch.confirmed(1, people))
        until_heard(world, before + 1)
    world.until(lambda: idle(world))
    assert listed(mail, batch) == {(batch.agency(0), batch.person(number)): 1 for number in range(9)}
    agency = [row for row in notices(world, batch) if row.kind == "AGENCY"]
    assert sorted((row.instruction, row.list_number, row.page, row.pages) for row in agency) == [
        (1, number, page, 2) for number in (1, 2, 3) for page in (1, 2)
    ]
    mails = {one["message_id"].strip("<>").partition("@")[0]: one["text"] for one in mailed(mail, batch)}
    [second] = [row for row in agency if (row.list_number, row.page) == (2, 1)]
    assert "30.12 EUR are being paid" in mails[str(second.notice_id)]  # 10.03 + 10.04 + 10.05

    # An operator who asks for one of them again gets that one.
    world.publish(COMMANDS, SendNotices(who="ops", why="a test", notice_ids=[second.notice_id]), "x")
    world.until(lambda: [row for row in notices(world, batch) if row.replaces == second.notice_id and row.state == "SENT"])
    [again] = [row for row in notices(world, batch) if row.replaces]
    mails = {one["message_id"].strip("<>").partition("@")[0]: one["text"] for one in mailed(mail, batch)}
    assert mails[str(again.notice_id)] == mails[str(second.notice_id)]


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


def test_a_place_without_a_contact_is_no_subscriber_that_novu_could_reach(
    world: World, novu: NovuAdmin, mail: MailAdmin
) -> None:
    """Novu would take it, and tell nobody. People are subscribers there by themselves."""
    batch = Batch(world, 8, zones=4)
    nothing, no_mail, no_phone = ("admin_email", "admin_mobile"), ("admin_email",), ("admin_mobile",)
    lacking = {batch.agency(0): nothing, batch.agency(1): no_mail, batch.agency(2): no_phone, f"W{batch.tag}": nothing}
    run(world, novu, mail, WAREHOUSE_CHANNEL="novu", AGENCY_CHANNEL="novu")
    batch.publish(batch.allocated(contact=False, lacking=lacking))
    sent = {("AGENCY", "SENT"): 3, ("BENEFICIARY", "SENT"): 8}
    until_states(world, batch, {("WAREHOUSE", "SUPPRESSED"): 1, ("AGENCY", "SUPPRESSED"): 1, **sent})
    untold = [row for row in notices(world, batch) if row.state == "SUPPRESSED"]
    assert [(row.subject, row.code) for row in untold] == [(batch.agency(0), "NO_CONTACT"), (f"W{batch.tag}", "NO_CONTACT")]
    places = {row["subscriber_id"]: row["recipient"] for row in novu.triggered() if batch.tag in row["subscriber_id"]}
    assert {name for name in places if name.startswith(("agency-", "warehouse-"))} == {
        f"agency-{batch.agency(number)}" for number in (1, 2, 3)
    }
    reached = [sorted(places[f"agency-{batch.agency(number)}"]) for number in (1, 2, 3)]
    assert reached == [["phone", "subscriberId"], ["email", "subscriberId"], ["email", "phone", "subscriberId"]]
    assert told(novu, batch) == [batch.person(number) for number in range(8)]
    world.until(lambda: idle(world))
    assert {said(world)[str(row.notice_id)][0] for row in untold} == {("Suppressed", "NO_CONTACT", "")}


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
    # Whoever takes them from the folder knows a way to those without a contact.
    lacking = dict.fromkeys((batch.agency(0), f"W{batch.tag}"), ("admin_email", "admin_mobile"))
    batch.publish(batch.allocated(contact=False, lacking=lacking))
    world.until(lambda: world.sql("notifications", "SELECT 1 FROM ops_attempts WHERE code = 'FOLDER'"))
    folder.unlink()
    until_states(world, batch, {("WAREHOUSE", "SENT"): 1, ("AGENCY", "SENT"): 2, ("BENEFICIARY", "SENT"): 3})
    names = {f"{row.kind.lower()}-{row.notice_id}.eml" for row in notices(world, batch)}
    assert {path.name for path in folder.iterdir()} == names
