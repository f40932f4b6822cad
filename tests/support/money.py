"""Envelopes and batches for tests of funds, with addresses sealed as resolution seals them."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from uuid import UUID

from libs.common.contracts.base import (
    BatchHeader,
    EnvelopeHeader,
    Item,
    Items,
    Unresolved,
    UnresolvedItems,
    chunk,
    derived_id,
    envelope_uuid,
    totals,
)
from libs.common.contracts.ingestion import CancelledItem, DisbursementsCancelling, EnvelopeCancelling, EnvelopeCompleted
from libs.common.contracts.resolution import BatchAddressesResolved
from libs.common.seal import Sealer, by_column
from libs.local.client import BankAdmin, Profile
from tests.support.world import World

_INCARNATIONS = itertools.count(1)


@dataclass
class Payout:
    """One envelope at funds' door. Amounts are 10.00, 10.01, … so that each payment can be told from the others."""

    world: World
    bank: BankAdmin
    profile: Profile = "full"
    name: str = "E1"
    balance_minor: int = 100_000_000_000
    batches: list[BatchAddressesResolved] = field(default_factory=list)
    schedule_date: date = date(2026, 1, 2)

    def __post_init__(self) -> None:
        # Each test has a new database and counts instructions from 1, at a bank which remembers every reference.
        self.incarnation = next(_INCARNATIONS)
        self.prefix = f"{self.world.name}-{self.name}-"  # the bank's ledger serves many tests
        self.account = f"SP{self.world.name}{self.profile}".upper()[:34]
        self.bank.put_account(self.profile, self.account, "EUR", self.balance_minor)
        self.sealer = Sealer(self.world.env["ALMONER_SEAL_KEYS"], self.world.env["ALMONER_TOKEN_KEY"])
        self.header = EnvelopeHeader(
            envelope_id=envelope_uuid("test", self.name),
            source="test",
            publisher_envelope_id=self.name,
            programme={"id": "P1", "mnemonic": "Rice"},
            benefit_code={"id": "B1", "mnemonic": "CASH"},
            benefit_type="CASH_DIGITAL",
            cycle={"id": "C1", "mnemonic": "2026-11"},
            currency="EUR",
            schedule_date=self.schedule_date,
        )

    @property
    def env(self) -> dict[str, str]:
        """What a funds process must be told of the bank."""
        banks = {code: {"adapter": code.lower(), "url": f"{self.bank.base_url}/{code.lower()}"} for code in ("FULL", "EXAMPLE")}
        sponsor = {"bank": self.profile.upper(), "account": self.account}
        return {
            "ALMONER_FUNDS_BANKS": json.dumps(banks),
            "ALMONER_FUNDS_SPONSORS": json.dumps({"default": sponsor}),
            "ALMONER_FUNDS_INCARNATION": str(self.incarnation),
            "ALMONER_FUNDS_POSITION_SECONDS": "1",
        }

    @property
    def envelope_id(self) -> UUID:
        return self.header.envelope_id

    def batch(self, count: int, unresolved: int = 0) -> BatchAddressesResolved:
        """The next batch of `count` people, of whom the last `unresolved` have no address."""
        number = len(self.batches) + 1
        batch_id = derived_id("batch", self.envelope_id, number)
        people = [
            Item(
                disbursement_id=f"{self.prefix}{number}-{n}", beneficiary_id=f"person-{number}-{n}", amount_minor=1000 + n % 100
            )
            for n in range(count)
        ]
        split = count - unresolved
        data = self._resolved(batch_id, number, 1, people[:split], people[split:])
        self.batches.append(data)
        return data

    def next_part(self, batch: BatchAddressesResolved, part: int) -> BatchAddressesResolved:
        """Everybody who was unresolved has an address now."""
        people = [Item(*item[:3]) for item in batch.unresolved]
        return self._resolved(batch.header.batch_id, batch.header.number, part, people, [])

    def _resolved(
        self, batch_id: UUID, number: int, part: int, people: Sequence[Item], missing: Sequence[Item]
    ) -> BatchAddressesResolved:
        addresses = {item.disbursement_id: _address(item.beneficiary_id) for item in people}
        return BatchAddressesResolved(
            header=BatchHeader(**self.header.model_dump(), batch_id=batch_id, number=number),
            part=part,
            **chunk(Items.of(people)),
            sealed=self.sealer.seal(by_column(addresses), "BatchAddressesResolved", self.envelope_id, batch_id, part),
            unresolved=UnresolvedItems.of(Unresolved(*item, "NOT_LINKED") for item in missing),
            unresolved_count=len(missing),
            unresolved_total_minor=sum(item.amount_minor for item in missing),
        )

    def items(self) -> list[Item | Unresolved]:
        return [item for batch in self.batches for item in (*batch.items, *batch.unresolved)]

    def completed(self) -> EnvelopeCompleted:
        return EnvelopeCompleted(
            header=self.header, batches=len(self.batches), **totals([item.amount_minor for item in self.items()])
        )

    def cancelling(self, request_id: str = "cancel-1") -> EnvelopeCancelling:
        return EnvelopeCancelling(
            header=self.header,
            request_id=request_id,
            reason="test",
            batches=len(self.batches),
            **totals([item.amount_minor for item in self.items()]),
        )

    def cancelling_some(self, ids: Sequence[str], request_id: str = "some-1") -> DisbursementsCancelling:
        where = {
            item.disbursement_id: batch.header.batch_id for batch in self.batches for item in (*batch.items, *batch.unresolved)
        }
        items = [CancelledItem(disbursement_id=one, batch_id=where.get(one)) for one in ids]
        return DisbursementsCancelling(header=self.header, request_id=request_id, reason="test", items=items)

    def publish(self, data: Any, **kwargs: Any) -> str:
        """Publish one of the events above on its topic, with the key and correlation that its service gives it."""
        batch = isinstance(data, BatchAddressesResolved)
        topic = "resolution.batches.v1" if batch else "ingestion.envelopes.v1"
        key = str(data.header.batch_id if batch else self.envelope_id)
        return self.world.publish(topic, data, key=key, correlation_id=str(self.envelope_id), **kwargs)

    def publish_all(self) -> None:
        self.publish(self.completed())
        for data in self.batches:
            self.publish(data)

    def position(self) -> Mapping[str, Any]:
        rows = self.world.sql("funds", "SELECT * FROM ops_envelopes WHERE envelope_id = %(id)s", id=self.envelope_id)
        return rows[0]._mapping if rows else {}

    def ledger(self) -> dict[str, int]:
        """Disbursement -> how often the bank has paid it out of this account."""
        paid: dict[str, int] = {}
        for payment in self.bank.payments(self.profile):
            if payment["disbursement_id"].startswith(self.prefix):
                paid[payment["disbursement_id"]] = paid.get(payment["disbursement_id"], 0) + 1
        return paid

    def assert_balanced(self) -> None:
        """Both identities of the books, as the database has them."""
        p = self.position()
        moved = p["in_flight_minor"] + p["unknown_minor"] + p["dispatched_minor"] + p["released_minor"]
        if p["blocked_minor"]:
            assert p["blocked_minor"] == p["waiting_minor"] + p["held_minor"] + p["releasing_minor"] + moved, dict(p)
        else:  # what is cancelled while nobody knows whether there is a block will be given back if there is
            assert moved == 0, dict(p)
        assert p["dispatched_minor"] == p["outstanding_minor"] + p["confirmed_minor"] + p["reversed_minor"], dict(p)


def _address(beneficiary_id: str) -> dict[str, str]:
    return {
        "name": f"Name of {beneficiary_id}",
        "narrative": "November",
        "fa_type": "BANK_ACCOUNT",
        "account_number": f"ACC-{beneficiary_id}",
        "bank_code": "BANK1",
        "branch_code": "BR1",
    }
