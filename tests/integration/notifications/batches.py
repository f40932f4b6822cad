"""Batches as allocation and resolution tell of them, payments as funds does, and notifications as a process."""

from collections.abc import Mapping, Sequence
from datetime import date
from types import MappingProxyType
from typing import Any
from uuid import UUID, uuid4

from libs.common.contracts.allocation import BatchAllocated, Place, ZoneAllocation
from libs.common.contracts.base import (
    Amounts,
    BatchHeader,
    EventData,
    Item,
    Items,
    Mnemonic,
    UnresolvedItems,
    ZonedItem,
    ZonedItems,
    chunk,
    totals,
)
from libs.common.contracts.funds import PaymentsConfirmed, PaymentsDispatched
from libs.common.contracts.notifications import (
    NoticesDelivered,
    NoticesFailed,
    NoticesSent,
    NoticesSuppressed,
    NoticesUnknown,
)
from libs.common.contracts.resolution import BatchAddressesResolved
from libs.common.seal import Sealer, by_column
from libs.local.client import MailAdmin, NovuAdmin
from tests.support.process import Process
from tests.support.world import SEAL_KEYS, TOKEN_KEY, World

SEALER = Sealer(SEAL_KEYS, TOKEN_KEY)
ALLOCATED = "allocation.batches.v1"
ADDRESSES = "resolution.batches.v1"
PAYMENTS = "funds.payments.v1"
NOTICES = "notifications.notices.v1"
COMMANDS = "notifications.commands.v1"
SAID = (NoticesSent, NoticesDelivered, NoticesFailed, NoticesUnknown, NoticesSuppressed)
SECRET = "a secret of tests"


class Batch:
    """A batch of people of a world: everybody of goods or agency cash has a zone, each zone its agency, all one warehouse."""

    def __init__(
        self, world: World, people: int, benefit_type: str = "COMMODITY", *, zones: int = 2, envelope_id: UUID | None = None
    ) -> None:
        self.world = world
        cash = benefit_type in ("CASH_DIGITAL", "CASH_PHYSICAL")
        self.header = BatchHeader(
            envelope_id=envelope_id or uuid4(),
            source="test",
            publisher_envelope_id="E-1",
            programme=Mnemonic(id="P1", mnemonic="Rice"),
            benefit_code=Mnemonic(id="B1", mnemonic="Seed"),
            benefit_type=benefit_type,
            cycle=Mnemonic(id="C1", mnemonic="March"),
            currency="EUR" if cash else "",
            measurement_unit="" if cash else "kg",
            unit_scale=0 if cash else 3,
            schedule_date=date(2026, 3, 1),
            batch_id=uuid4(),
            number=1,
        )
        self.tag = self.header.batch_id.hex[:6]  # so that the session's simulators tell batches apart
        self.zones = zones
        self.ids = [f"D{self.tag}-{number}" for number in range(people)]

    def person(self, number: int) -> str:
        return f"{self.world.name}-{self.tag}-{number}"

    def email(self, number: int) -> str:
        return f"{self.person(number)}@people.example"

    def agency(self, zone: int) -> str:
        return f"A{self.tag}-{zone}"

    def minor(self, number: int) -> int:
        return 1000 + number

    def item(self, number: int) -> Item:
        return Item(disbursement_id=self.ids[number], beneficiary_id=self.person(number), amount_minor=self.minor(number))

    def _names(self, numbers: Sequence[int], contact: bool) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for number in numbers:
            found[self.ids[number]] = {"name": f"Name <b>{number}</b>\r\nBcc: x@y.example"}
            if contact:
                found[self.ids[number]]["contact"] = {"email": self.email(number), "phone": "+221 700"}
        return found

    def allocated(
        self,
        part: int = 1,
        numbers: Sequence[int] | None = None,
        *,
        contact: bool = True,
        lacking: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> BatchAllocated:
        """`lacking`: id of a place -> what is not known of whoever runs it."""
        chosen = list(range(len(self.ids))) if numbers is None else list(numbers)
        used = sorted({number % self.zones for number in chosen})
        items = ZonedItems.of(ZonedItem(*self.item(number), used.index(number % self.zones)) for number in chosen)
        warehouse = Place(id=f"W{self.tag}", mnemonic="W", name="Depot", chosen_by="ONLY_ONE")
        zones = [
            ZoneAllocation(
                large_zone_id="L1",
                large_zone_code="Large",
                small_zone_id=f"S{zone}",
                small_zone_code=f"Small {zone}",
                warehouse=None if self.header.benefit_type == "CASH_PHYSICAL" else warehouse,
                agency=Place(id=self.agency(zone), mnemonic="A", name=f"Agency {zone}", chosen_by="ONLY_ONE"),
                **totals([item.amount_minor for item in items if item.zone == index]),
            )
            for index, zone in enumerate(used)
        ]
        places = {f"agency/{self.agency(zone)}": admin(self.agency(zone)) for zone in used} | {
            f"warehouse/W{self.tag}": admin(f"W{self.tag}")
        }
        for place_id, names in lacking.items():
            for kind in ("agency", "warehouse"):
                places.get(f"{kind}/{place_id}", {}).update(dict.fromkeys(names, ""))
        place = self.header.envelope_id, self.header.batch_id, part
        return BatchAllocated(
            header=self.header,
            part=part,
            **chunk(items),
            zones=zones,
            sealed=SEALER.seal(by_column(self._names(chosen, contact)), "BatchAllocated/people", *place),
            places=SEALER.seal(places, "BatchAllocated/places", *place),
            held=UnresolvedItems.of([]),
            held_count=0,
            held_total_minor=0,
        )

    def addresses(self, part: int = 1, numbers: Sequence[int] | None = None, *, contact: bool = True) -> BatchAddressesResolved:
        chosen = list(range(len(self.ids))) if numbers is None else list(numbers)
        items = Items.of(self.item(number) for number in chosen)
        content = self._names(chosen, contact)
        for number in chosen:
            wallet = {"fa_type": "EMAIL_WALLET", "email_address": f"wallet-{self.email(number)}"}
            content[self.ids[number]] |= wallet if number % 2 else {"fa_type": "BANK_ACCOUNT", "account_number": "1"}
        place = self.header.envelope_id, self.header.batch_id, part
        return BatchAddressesResolved(
            header=self.header,
            part=part,
            **chunk(items),
            sealed=SEALER.seal(by_column(content), "BatchAddressesResolved", *place),
            unresolved=UnresolvedItems.of([]),
            unresolved_count=0,
            unresolved_total_minor=0,
        )

    def _payments(self, numbers: Sequence[int] | None) -> dict[str, Any]:
        chosen = range(len(self.ids)) if numbers is None else numbers
        return {"header": self.header, **chunk(Amounts.of((self.ids[number], self.minor(number)) for number in chosen))}

    def dispatched(self, instruction: int = 1, numbers: Sequence[int] | None = None) -> PaymentsDispatched:
        return PaymentsDispatched(instruction=instruction, **self._payments(numbers))

    def confirmed(self, instruction: int = 1, numbers: Sequence[int] | None = None) -> PaymentsConfirmed:
        return PaymentsConfirmed(instruction=instruction, statement_id=None, **self._payments(numbers))

    def publish(self, *events: EventData, twice: bool = False) -> None:
        topics = {
            BatchAllocated: ALLOCATED,
            BatchAddressesResolved: ADDRESSES,
            PaymentsDispatched: PAYMENTS,
            PaymentsConfirmed: PAYMENTS,
        }
        for event in events:
            again = {"correlation_id": str(self.header.envelope_id), "event_id": str(uuid4())}
            for _ in range(2 if twice else 1):
                self.world.publish(topics[type(event)], event, self.header.batch_id, **again)  # type: ignore[arg-type]


def admin(place_id: str) -> dict[str, str]:
    return {"admin_name": f"Head of {place_id}", "admin_email": f"{place_id}@places.example", "admin_mobile": "+221 33"}


def env(novu: NovuAdmin, mail: MailAdmin, **channels: str) -> dict[str, str]:
    """Settings with short time-outs and leases, but for mail: of what is answered late there nobody knows anything. Places are told by
    mail and people by Novu unless said otherwise."""
    settings: dict[str, str] = {
        "WAREHOUSE_CHANNEL": "smtp",
        "AGENCY_CHANNEL": "smtp",
        "BENEFICIARY_CHANNEL": "novu",
        "NOVU_URL": novu.base_url,
        "NOVU_API_KEY": "key",
        "NOVU_WEBHOOK_SECRET": SECRET,
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": str(mail.smtp_port()),
        "SMTP_SECURITY": "none",
        "SMTP_SENDER": "almoner@almoner.example",
    }
    for name in ("NOVU", "SMTP", "FILE"):
        settings |= {
            f"{name}_TIMEOUT_SECONDS": "2.0" if name != "SMTP" else "20",
            f"{name}_LEASE_SECONDS": "6.0" if name != "SMTP" else "30",
            f"{name}_BACKOFF_FIRST_SECONDS": "0.1",
            f"{name}_BACKOFF_MAX_SECONDS": "0.3",
            f"{name}_BREAKER_SECONDS": "0.5",
        }
    return {f"ALMONER_NOTIFICATIONS_{name}": text for name, text in {**settings, **channels}.items()}


def run(world: World, novu: NovuAdmin, mail: MailAdmin, **settings: str) -> Process:
    """With these settings, and whatever else is named in full."""
    more = {name: text for name, text in settings.items() if name.startswith("ALMONER_")}
    channels = {name: text for name, text in settings.items() if name not in more}
    return world.run("notifications", **env(novu, mail, **channels), **more)


def notices(world: World, batch: Batch) -> list[Any]:
    rows = "SELECT * FROM ops_notices WHERE batch_id = %(batch)s ORDER BY kind, subject, page, serial"
    return world.sql("notifications", rows, batch=batch.header.batch_id)


def states(world: World, batch: Batch) -> dict[tuple[str, str], int]:
    """(kind, state) -> notices."""
    found: dict[tuple[str, str], int] = {}
    for row in notices(world, batch):
        found[row.kind, row.state] = found.get((row.kind, row.state), 0) + 1
    return found


def until_states(world: World, batch: Batch, expected: dict[tuple[str, str], int], timeout: float = 30.0) -> None:
    world.until(lambda: states(world, batch) == expected, timeout, f"{expected}; found {states(world, batch)}")


def idle(world: World) -> bool:
    sql = """SELECT (SELECT count(*) FROM work WHERE state IN ('PENDING', 'CLAIMED')) + (SELECT count(*) FROM outbox)
                    + (SELECT count(*) FROM due) AS n"""
    return bool(world.sql("notifications", sql)[0].n == 0)


def said(world: World) -> dict[str, list[tuple[str, str, str]]]:
    """Notice -> (event, reason, channel) of all that was said of it. A relay that died may say the same event again."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for event in {event.id: event for event in world.events(NOTICES, *SAID)}.values():
        for item in event.data.items:
            name = type(event.data).__name__.removeprefix("Notices")
            reason, channel = getattr(item, "reason", ""), getattr(event.data, "channel", "")
            found.setdefault(str(item.notice_id), []).append((name, reason, channel))
    return found


def told(novu: NovuAdmin, batch: Batch) -> list[str]:
    """Whom Novu was to tell, each as often as it was."""
    prefix = f"{batch.world.name}-{batch.tag}-"
    return sorted(row["subscriber_id"] for row in novu.triggered() if row["subscriber_id"].startswith(prefix))


def mailed(mail: MailAdmin, batch: Batch) -> list[dict[str, Any]]:
    """The mails about a batch, by recipient."""
    return sorted((one for one in mail.mails() if batch.tag in one["recipient"]), key=lambda one: str(one["recipient"]))
