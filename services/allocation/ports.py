"""What allocation needs of the world: somebody who knows warehouses and agencies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Protocol

from libs.common.contracts.reference import ReferenceFault
from libs.common.envelope import RawMessage
from libs.common.workqueue import NotSent


@dataclass(frozen=True, slots=True)
class Serving:
    """What a place hands out, and how much of it in one cycle: in minor units, or in whole units of the benefit."""

    programme_id: str
    benefit_code_id: str
    capacity_minor: int | None = None
    capacity_units: Decimal | None = None
    account: Mapping[str, str] | None = None  # of an agency: where cash for this benefit is paid


@dataclass(frozen=True, slots=True)
class Listing:
    """A warehouse or an agency as its owner describes it; contact and accounts are sealed before they are stored."""

    kind: str
    id: str
    mnemonic: str = ""
    name: str = ""
    contact: Mapping[str, str] | None = None  # None: the place is gone
    zone_ids: Sequence[str] = ()  # large zones of a warehouse, small ones of an agency
    serves: Sequence[Serving] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All places at one moment of the other side's clock."""

    taken_at: datetime
    places: Sequence[Listing]
    faulty: int  # left out, because they can't be used


class Pbms(Protocol):
    def read(self, timeout_seconds: float) -> Snapshot | NotSent:
        """Everything, as it was at one moment. Blocks; changes nothing there."""
        ...


class Topic(Protocol):
    def __call__(self, message: RawMessage) -> Listing | Sequence[ReferenceFault]:
        """What one message on a topic of reference data says, or what is wrong with it."""
        ...
