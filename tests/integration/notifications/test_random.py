"""Notifications under whatever comes: parts and payments in any order, providers that fail, operators, webhooks, processes that
die. After every step everybody who should be told has exactly one state, and no provider was told twice; in the end nobody waits."""

import os
import random
from collections import Counter
from typing import Any
from uuid import UUID

import pytest

from libs.common.contracts import operator
from libs.common.contracts.allocation import BatchAllocated
from libs.common.contracts.base import CASH, EventData
from libs.common.contracts.funds import PaymentsConfirmed, PaymentsDispatched
from libs.common.contracts.resolution import BatchAddressesResolved
from libs.local.client import MailAdmin, NovuAdmin
from tests.integration.notifications.batches import (
    ADDRESSES,
    ALLOCATED,
    COMMANDS,
    PAYMENTS,
    SECRET,
    Batch,
    notices,
    run,
    said,
)
from tests.support.process import Process
from tests.support.world import World

STEPS = 24
SEEDS = range(int(os.environ.get("ALMONER_TEST_SEEDS", "2")))
ENDED = {"SENT", "FAILED", "SUPPRESSED"}
WHO = {"who": "ops", "why": "a test"}
# With a shorter lease a call on a busy machine finds it too short to begin, again and again.
SOON = {
    f"{name}_{limit}": text for name in ("NOVU", "SMTP") for limit, text in (("TIMEOUT_SECONDS", "1"), ("LEASE_SECONDS", "4.5"))
}
NOVU_FAULTS = ("error_500", "error_500_after", "error_503", "timeout_after", "nonsense", "fail_before", "refuse", "down")
MAIL_FAULTS = (
    ("timeout_after", "DATA"),
    ("timeout_after", "RCPT"),
    ("error_503", "RCPT"),
    ("error_500", "DATA"),
    ("down", "MAIL"),
    ("refuse", "RCPT"),
)


class Life:
    """One run of steps, the same for the same seed."""

    def __init__(self, world: World, novu: NovuAdmin, mail: MailAdmin, seed: int) -> None:
        self.draw = random.Random(seed)
        self.world, self.novu, self.mail = world, novu, mail
        self.told: dict[Batch, list[EventData]] = {}  # what was published of each batch
        self.coming: list[tuple[Batch, EventData]] = []
        self.paused: set[str] = set()
        self.replicas = [self.start(), self.start()]

    def start(self) -> Process:
        return run(self.world, self.novu, self.mail, **SOON)

    def step(self) -> str:
        name: str = self.draw.choice(
            "batch batch tell tell tell tell tell again suppress fault fault crash pause settle webhook".split()
        )
        getattr(self, name)()
        return name

    # --- what may happen ----------------------------------------------------------------------------------------------

    def batch(self) -> None:
        """Its parts and payments, which come in any order, each once or twice."""
        kind = self.draw.choice(["COMMODITY", "CASH_PHYSICAL", "CASH_DIGITAL"])
        people = self.draw.randrange(2, 7)
        cut = self.draw.randrange(1, people)
        batch = Batch(self.world, people, kind)
        self.told[batch] = []
        parts = [list(range(cut)), list(range(cut, people))]
        make = batch.addresses if kind == "CASH_DIGITAL" else batch.allocated
        events: list[EventData] = [make(number, part) for number, part in enumerate(parts, 1)]
        if kind in CASH:
            # The bank may have refused somebody, or funds may never have heard of the list: a statement shows them all the same.
            taken = list(range(self.draw.choice([0, cut, people, people])))
            events += [batch.dispatched(1, taken)] if taken else []
            events += [batch.confirmed(1, part) for part in parts]
        self.coming += [(batch, event) for event in events]

    def tell(self) -> None:
        if self.coming:
            self.publish(*self.coming.pop(self.draw.randrange(len(self.coming))), twice=self.draw.random() < 0.3)

    def publish(self, batch: Batch, event: EventData, *, twice: bool = False) -> None:
        self.told[batch].append(event)
        batch.publish(event, twice=twice)

    def again(self) -> None:
        if rows := self.rows():
            self.command(operator.SendNotices(**WHO, notice_ids=[self.draw.choice(rows).notice_id]))  # or it is refused

    def suppress(self) -> None:
        if self.told:
            batch = self.draw.choice(list(self.told))
            kind, subject = self.draw.choice([("BENEFICIARY", batch.person(0)), ("AGENCY", batch.agency(0))])
            suppressed = self.draw.random() < 0.6
            self.command(operator.SuppressSubject(**WHO, kind=kind, subject=subject, suppressed=suppressed))

    def fault(self) -> None:
        count = self.draw.randrange(1, 3)
        if self.draw.random() < 0.5:
            self.novu.add_fault(self.draw.choice(NOVU_FAULTS), count=count, seconds=0)
        else:
            kind, path = self.draw.choice(MAIL_FAULTS)
            self.mail.add_fault(kind, path=path, count=count, seconds=2 if kind == "timeout_after" else 0)

    def crash(self) -> None:
        self.replicas.pop(0).kill()
        self.replicas.append(self.start())

    def pause(self) -> None:
        stage = self.draw.choice(["novu", "smtp"])
        self.paused ^= {stage}
        model = operator.PauseStage if stage in self.paused else operator.ResumeStage
        self.command(model(**WHO, stage=stage))

    def settle(self) -> None:
        """An operator who has asked the provider."""
        if unknown := [row for row in self.rows() if row.state == "UNKNOWN"]:
            row = self.draw.choice(unknown)
            outcome = "sent" if self.sent()[row.notice_id] else "not_sent"
            self.command(operator.SettleNotices(**WHO, notice_ids=[row.notice_id], outcome=outcome, evidence="its log"))

    def webhook(self) -> None:
        sent = self.sent()
        if arrived := [row for row in self.rows() if row.channel == "novu" and sent[row.notice_id]]:
            url = f"{self.replicas[-1].http_url}/webhooks/novu"
            self.novu.set(api_key="key", webhook_url=url, webhook_secret=SECRET)
            kind = self.draw.choice(["message.delivered", "message.delivered", "message.bounced"])
            assert self.novu.tell((kind, str(self.draw.choice(arrived).notice_id))) == 202

    def command(self, data: EventData) -> None:
        self.world.publish(COMMANDS, data, "x")

    # --- what must be so ----------------------------------------------------------------------------------------------

    def rows(self) -> list[Any]:
        return [row for batch in self.told for row in notices(self.world, batch)]

    def sent(self) -> Counter[UUID]:
        """How often each notice was taken, by the providers' own books."""
        by_novu = [row["transaction_id"] for row in self.novu.triggered()]
        by_mail = [row["message_id"].strip("<>").partition("@")[0] for row in self.mail.mails()]
        return Counter(UUID(one) for one in by_novu + by_mail)

    def check(self) -> None:
        """Nothing is under way but what is paused; everybody has one state, which providers and events bear out."""
        self.rest()
        rows, sent, events = self.rows(), self.sent(), said(self.world)
        for batch in self.told:
            first = Counter((row.kind, row.subject) for row in notices(self.world, batch) if row.serial == 1)
            assert first == self.expected(batch) + self.listed(batch), batch.header.benefit_type
        for row in rows:
            names = Counter(name for name, *_ in events.get(str(row.notice_id), []))
            times = sent[row.notice_id]
            assert times <= 1, row
            assert row.state != "PENDING" or row.channel in self.paused, row
            if row.state == "SENT":
                assert times == 1, row
                assert names["Sent"] or names["Delivered"], (row, names)
                assert not names["Failed"] + names["Suppressed"], (row, names)
            elif row.state == "FAILED":
                assert times == (row.code == "BOUNCED"), row
                assert names["Failed"] == 1, (row, names)
            elif row.state == "SUPPRESSED":
                assert times == 0, row
                assert names == {"Suppressed": 1}, (row, names)
            elif row.state == "UNKNOWN":
                assert names["Unknown"] == 1, (row, names)
                assert names.total() == 1 + names["Delivered"], (row, names)
            elif row.channel == "smtp":
                assert times == 0, row  # what may have been mailed never waits to be mailed
        assert not self.world.sql("notifications", "SELECT 1 FROM dead_letters")

    def expected(self, batch: Batch) -> Counter[tuple[str, str]]:
        """(kind, subject) of whoever should have a notice, by what was published."""
        told = self.told[batch]
        parts = {e.part: e.items for e in told if isinstance(e, BatchAllocated | BatchAddressesResolved)}
        here = {one for items in parts.values() for one in items.disbursement_id}
        agency = {one: batch.agency(number % batch.zones) for number, one in enumerate(batch.ids)}
        found: Counter[tuple[str, str]] = Counter()
        if batch.header.benefit_type == "COMMODITY":
            found.update(("BENEFICIARY", one) for one in here)
            for items in parts.values():
                found["WAREHOUSE", f"W{batch.tag}"] += 1
                found.update(("AGENCY", one) for one in {agency[one] for one in items.disbursement_id})
            return found
        paid = {one for e in told if isinstance(e, PaymentsConfirmed) for one in e.items.disbursement_id}
        found.update(("BENEFICIARY", one) for one in here & paid)
        return found

    def listed(self, batch: Batch) -> Counter[tuple[str, str]]:
        """Each agency as often as it has a list. Nobody is on two, and whoever is paid through an agency is on one, at the latest
        when all of the batch are here."""
        sql = "SELECT disbursement_ids, agency_ids FROM instructions WHERE batch_id = %(batch)s"
        rows = self.world.sql("notifications", sql, batch=batch.header.batch_id)
        told = self.told[batch]
        parts = [one for event in told if isinstance(event, BatchAllocated) for one in event.items.disbursement_id]
        payments = [event for event in told if isinstance(event, PaymentsDispatched | PaymentsConfirmed) and parts]
        wanted = {one for event in payments for one in event.items.disbursement_id}
        found = Counter(one for row in rows for one in row.disbursement_ids)
        assert set(found.values()) <= {1}, found
        assert found.keys() == wanted if set(parts) == set(batch.ids) else found.keys() <= wanted & set(parts)
        return Counter(("AGENCY", one) for row in rows for one in set(row.agency_ids))

    def rest(self) -> None:
        read = "SELECT coalesce(sum(next_offset), 0)::bigint AS n FROM consumed WHERE topic = ANY(%(topics)s)"
        topics = [ALLOCATED, ADDRESSES, PAYMENTS, COMMANDS]
        published = sum(len(self.world.messages(topic)) for topic in topics)
        self.world.until(lambda: self.world.sql("notifications", read, topics=topics)[0].n >= published, what="all being read")
        under_way = """SELECT 'outbox' FROM outbox UNION ALL SELECT job FROM due UNION ALL
                       SELECT kind FROM work WHERE state IN ('PENDING', 'CLAIMED')
                          AND (state = 'CLAIMED' AND leased_until > clock_timestamp()
                               OR kind NOT IN (SELECT stage FROM paused))"""
        self.world.until(lambda: not self.world.sql("notifications", under_way), what="rest")

    def end(self) -> None:
        """The faults are mended, all comes that was to come, nothing is paused, what is unknown was asked for."""
        self.novu.delete_faults()
        self.mail.delete_faults()
        for stage in self.paused:
            self.command(operator.ResumeStage(**WHO, stage=stage))
        self.paused.clear()
        while self.coming:
            self.tell()
        self.rest()
        while any(row.state == "UNKNOWN" for row in self.rows()):
            self.settle()
            self.rest()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_life(world: World, novu: NovuAdmin, mail: MailAdmin, seed: int) -> None:
    life = Life(world, novu, mail, seed)
    done = []
    for _ in range(STEPS):
        done.append(life.step())
        life.check()
    life.end()
    life.check()
    assert {row.state for row in life.rows()} <= ENDED, done
    assert life.rows(), done
