"""Who serves whom: a place for each zone by a stable rule, and within what a place can take.

Everything here is a function of its arguments. What is the same in the database (zones known, loads, rooms, choices made) is
decided the same again, whatever order it comes in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

WAREHOUSE, AGENCY = "warehouse", "agency"

# The states of a group of people (those of one part of a batch who live in one zone and are served alike) by which something is
# decided here; NEW comes before them, CANCELLED is an end.
PLANNED = "PLANNED"  # has places, nobody was told: may be reassigned, and cancelled if it is goods
ALLOCATED = "ALLOCATED"  # BatchAllocated has been said: final
HELD = "HELD"  # no place, with a reason

# Why a place was chosen, and why there is none.
ONLY_ONE, COVERAGE, LOAD, ID = "ONLY_ONE", "COVERAGE", "LOAD", "ID"  # besides, OPERATOR: a person has
NO_WAREHOUSE, NO_AGENCY, NO_CAPACITY = "NO_WAREHOUSE", "NO_AGENCY", "NO_CAPACITY"
PART_TOO_LARGE = "PART_TOO_LARGE"  # planned, but the event would exceed its limit: goes with the next part


def account_key(programme_id: str, benefit_code_id: str) -> str:
    """Under which the sealed part of an agency has the account for a benefit."""
    return f"{programme_id}\x1f{benefit_code_id}"


class Pick(NamedTuple):
    """A place for a zone, and what decided."""

    place_id: str
    chosen_by: str


@dataclass(slots=True)
class Candidate:
    """A place as it stands in this cycle; amounts in the envelope's minor units."""

    id: str
    coverage: int  # how many of the envelope's zones that are known it serves
    load: int  # given to it so far
    room: int | None  # what it can still take; None: no limit

    def takes(self, minor: int) -> bool:
        return self.room is None or minor <= self.room

    @property
    def coverage_load_id(self) -> tuple[int, int, str]:
        """The policy COVERAGE_LOAD_ID (ADR 16): of places that fit, the first in this order is chosen."""
        return -self.coverage, self.load, self.id


@dataclass(slots=True)
class Choice:
    """All places of one kind: who serves which zone, and which of them is chosen for it by now."""

    kind: str
    serving: Mapping[str, Sequence[Candidate]]  # zone -> places; one place may be under several zones
    chosen: dict[str, Pick] = field(default_factory=dict)

    def pick(self, zone_id: str, minor: int) -> Pick | None:
        """Who can take so much: the zone's own place if it can, else the best of those that can."""
        able = sorted((one for one in self.serving.get(zone_id, ()) if one.takes(minor)), key=lambda one: one.coverage_load_id)
        own = self.chosen.get(zone_id)
        if own is not None and any(one.id == own.place_id for one in able):
            return own
        return Pick(able[0].id, _decided_by(able)) if able else None

    def take(self, zone_id: str, pick: Pick, minor: int) -> None:
        """Give it; the first place of a zone, or the first after its own is gone, stays the zone's own."""
        places = {one.id: one for one in self.serving[zone_id]}
        place = places[pick.place_id]
        place.load += minor
        if place.room is not None:
            place.room -= minor
        own = self.chosen.get(zone_id)
        if own is None or own.place_id not in places:
            self.chosen[zone_id] = pick


def _decided_by(ranked: Sequence[Candidate]) -> str:
    if len(ranked) == 1:
        return ONLY_ONE
    best, second = ranked[:2]
    if best.coverage != second.coverage:
        return COVERAGE
    return LOAD if best.load != second.load else ID


class Group(NamedTuple):
    """People of one zone, by the number of the part that brought them and their own number in it."""

    arrival: int
    grp: int
    large_zone_id: str
    small_zone_id: str
    total_minor: int


class Share(NamedTuple):
    """What becomes of a group, or of some of its people (`positions`; None: of all)."""

    group: Group
    positions: tuple[int, ...] | None
    warehouse: Pick | None
    agency: Pick | None
    reason: str = ""  # of those who are held
    message: str = ""


def tight(groups: Sequence[Group], warehouses: Choice | None, agencies: Choice) -> list[Group]:
    """The groups that may have to be divided: all that might go to a place which can't take all that might go to it."""
    demand: dict[int, int] = {}
    for group in groups:
        for place in _places(group, warehouses, agencies):
            demand[id(place)] = demand.get(id(place), 0) + group.total_minor
    return [
        group for group in groups if any(not place.takes(demand[id(place)]) for place in _places(group, warehouses, agencies))
    ]


def _places(group: Group, warehouses: Choice | None, agencies: Choice) -> list[Candidate]:
    found = list(agencies.serving.get(group.small_zone_id, ()))
    if warehouses is not None:
        found += warehouses.serving.get(group.large_zone_id, ())
    return found


def plan(
    groups: Sequence[Group],
    people: Mapping[tuple[int, int], Sequence[tuple[int, int]]],
    warehouses: Choice | None,
    agencies: Choice,
) -> list[Share]:
    """A place for each group, in the order of their zones; what no place can take as a whole is divided by people.

    `people`: (arrival, grp) -> (position, amount) of the tight groups. `warehouses`: None for cash, which needs none."""
    shares: list[Share] = []
    for group in sorted(groups, key=lambda one: (one.large_zone_id, one.small_zone_id, one.arrival, one.grp)):
        reason, message = _unserved(group, warehouses, agencies)
        if reason:
            shares.append(Share(group, None, None, None, reason, message))
            continue
        places = _give(group, group.total_minor, warehouses, agencies)
        if places is not None:
            shares.append(Share(group, None, *places))
        else:
            shares += _divide(group, people[group.arrival, group.grp], warehouses, agencies)
    return shares


def _unserved(group: Group, warehouses: Choice | None, agencies: Choice) -> tuple[str, str]:
    if warehouses is not None and not warehouses.serving.get(group.large_zone_id):
        return NO_WAREHOUSE, f"no warehouse serves large zone {group.large_zone_id}"
    if not agencies.serving.get(group.small_zone_id):
        what = "agency with an account that a bank can be told" if warehouses is None else "agency"
        return NO_AGENCY, f"no {what} serves small zone {group.small_zone_id}"
    return "", ""


def _give(group: Group, minor: int, warehouses: Choice | None, agencies: Choice) -> tuple[Pick | None, Pick] | None:
    """A warehouse and an agency that can both take so much, or neither."""
    agency = agencies.pick(group.small_zone_id, minor)
    warehouse = warehouses.pick(group.large_zone_id, minor) if warehouses is not None else None
    if agency is None or (warehouses is not None and warehouse is None):
        return None
    if warehouses is not None and warehouse is not None:
        warehouses.take(group.large_zone_id, warehouse, minor)
    agencies.take(group.small_zone_id, agency, minor)
    return warehouse, agency


def _divide(group: Group, people: Sequence[tuple[int, int]], warehouses: Choice | None, agencies: Choice) -> list[Share]:
    """One by one, in their order: each goes to the first places with room for them; who fits nowhere is held."""
    found: dict[tuple[Pick | None, Pick] | None, list[int]] = {}
    for position, minor in sorted(people):
        found.setdefault(_give(group, minor, warehouses, agencies), []).append(position)
    shares = []
    for places, positions in found.items():
        some = tuple(positions) if len(positions) < len(people) else None
        if places is None:
            shares.append(Share(group, some, None, None, NO_CAPACITY, "no place of this zone can take more in this cycle"))
        else:
            shares.append(Share(group, some, *places))
    return shares
