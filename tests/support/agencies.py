"""Cash through agencies for tests of funds: the same people, allocated to zones as allocation does it."""

from dataclasses import dataclass, field
from typing import Any

from libs.common.contracts.allocation import BatchAllocated, Place, ZoneAllocation
from libs.common.contracts.base import UnresolvedItems, ZonedItem, ZonedItems, chunk, zone_totals
from libs.common.contracts.resolution import BatchAddressesResolved
from libs.common.seal import by_column
from tests.support.money import Payout


@dataclass
class AgencyPayout(Payout):
    """People live in `zones` small zones in turns. The agencies of `poor` zones have no account; `gone` are people whose share
    is known not to be paid."""

    zones: int = 3
    poor: set[int] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    members: dict[str, dict[str, int]] = field(default_factory=dict)  # zone's code -> disbursement -> amount

    def __post_init__(self) -> None:
        super().__post_init__()
        self.header = self.header.model_copy(update={"benefit_type": "CASH_PHYSICAL"})

    def account_of(self, zone: int) -> str:
        return f"AG-{self.prefix}{zone}"[:34]

    def allocated(self, data: BatchAddressesResolved) -> BatchAllocated:
        """What allocation says of these people; zone codes are unique to batch and part."""
        header, part = data.header, data.part
        items = ZonedItems.of(
            ZonedItem(*item, int(item.disbursement_id.rpartition("-")[2]) % self.zones) for item in data.items
        )
        zones, places = [], {}
        for number, (count, total) in enumerate(zone_totals(items, self.zones)):
            code = f"{self.prefix}{header.number}-{part}-Z{number}"
            self.members[code] = {item.disbursement_id: item.amount_minor for item in items if item.zone == number}
            account = {
                "account_number": self.account_of(number),
                "account_type": "CURRENT",
                "bank_code": "B",
                "branch_code": "R",
            }
            places[f"agency/A{number}"] = {"admin_name": "Admin"} | ({} if number in self.poor else {"account": account})
            zones.append(
                ZoneAllocation(
                    large_zone_id="L1",
                    small_zone_id=f"S{number}",
                    small_zone_code=code,
                    warehouse=None,
                    agency=Place(id=f"A{number}", name=f"Agency {number}", chosen_by="ONLY_ONE"),
                    count=count,
                    total_minor=total,
                )
            )
        place = (self.envelope_id, header.batch_id, part)
        return BatchAllocated(
            header=header,
            part=part,
            **chunk(items),
            zones=zones,
            sealed=self.sealer.seal(by_column({}), "BatchAllocated/people", *place),
            places=self.sealer.seal(places, "BatchAllocated/places", *place),
            held=UnresolvedItems.of(item._replace(reason="NO_AGENCY", message="") for item in data.unresolved),
            held_count=data.unresolved_count,
            held_total_minor=data.unresolved_total_minor,
        )

    def publish(self, data: Any, **kwargs: Any) -> str:
        if not isinstance(data, BatchAddressesResolved):
            return super().publish(data, **kwargs)
        key, told = str(data.header.batch_id), self.allocated(data)
        return self.world.publish("allocation.batches.v1", told, key=key, correlation_id=str(self.envelope_id), **kwargs)

    def lists(self) -> list[tuple[str, int]]:
        """(zone's code, amount) of each payment that the bank has made to this payout's agencies."""
        return [(p["disbursement_id"], p["amount_minor"]) for p in self.payments()]

    def payments(self) -> list[dict[str, Any]]:
        return [p for p in self.bank.payments(self.profile) if p["disbursement_id"].startswith(self.prefix)]

    def ledger(self) -> dict[str, int]:
        """Disbursement -> how often its agency was paid for it: each payment is for all of its zone but those who are gone."""
        paid: dict[str, int] = {}
        for code, amount_minor in self.lists():
            people = {one: minor for one, minor in self.members[code].items() if one not in self.gone}
            assert amount_minor == sum(people.values()), f"{code} was paid {amount_minor} for {people}"
            for one in people:
                paid[one] = paid.get(one, 0) + 1
        return paid
