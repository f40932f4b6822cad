"""The choice of places: stable, never over capacity, and everybody is somewhere."""

from collections import Counter, defaultdict
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from services.allocation.domain import (
    COVERAGE,
    ID,
    LOAD,
    NO_AGENCY,
    NO_CAPACITY,
    NO_WAREHOUSE,
    ONLY_ONE,
    Candidate,
    Choice,
    Group,
    Pick,
    Share,
    plan,
    tight,
)

People = dict[tuple[int, int], list[tuple[int, int]]]
LARGE, SMALL = ("L1", "L2"), ("s1", "s2", "s3", "s4")


def choice(kind: str, places: dict[str, Candidate], serving: dict[str, list[str]], chosen: dict[str, str]) -> Choice:
    """With places of its own, since a plan writes into them."""
    own = {name: replace(place) for name, place in places.items()}
    zones = {zone: [own[name] for name in names] for zone, names in serving.items() if names}
    return Choice(kind, zones, {zone: Pick(place, COVERAGE) for zone, place in chosen.items()})


@st.composite
def markets(
    draw: st.DrawFn, kind: str, zones: tuple[str, ...]
) -> tuple[dict[str, Candidate], dict[str, list[str]], dict[str, str]]:
    names = [f"{kind[0]}{number}" for number in range(draw(st.integers(0, 4)))]
    places = {
        name: Candidate(name, draw(st.integers(0, 3)), draw(st.integers(0, 50)), draw(st.one_of(st.none(), st.integers(0, 60))))
        for name in names
    }
    serving = {zone: draw(st.lists(st.sampled_from(names), unique=True)) if names else [] for zone in zones}
    some = draw(st.sets(st.sampled_from(zones)))
    sticky = {zone: draw(st.sampled_from(able)) for zone, able in serving.items() if able and zone in some}
    return places, serving, sticky


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[list[Group], People]:
    groups, people = [], {}
    for number in range(draw(st.integers(1, 6))):
        amounts = draw(st.lists(st.integers(1, 20), min_size=1, max_size=6))
        small = draw(st.sampled_from(SMALL))
        large = LARGE[SMALL.index(small) // 2]
        groups.append(Group(number // 3, number, large, small, sum(amounts)))
        people[number // 3, number] = list(enumerate(amounts))
    return groups, people


@given(arrivals(), markets("warehouse", LARGE), markets("agency", SMALL), st.booleans(), st.randoms())
def test_a_plan(arrived, stores, agents, goods, random) -> None:  # type: ignore[no-untyped-def]
    groups, people = arrived

    def planned(order: list[Group]) -> tuple[list[Share], Choice | None, Choice]:
        warehouses = choice("warehouse", *stores) if goods else None
        agencies = choice("agency", *agents)
        needed = {(one.arrival, one.grp) for one in tight(order, warehouses, agencies)}
        # Only who may have to be divided is looked at: a plan that needs more raises KeyError.
        return (
            plan(order, {key: found for key, found in people.items() if key in needed}, warehouses, agencies),
            warehouses,
            agencies,
        )

    shares, warehouses, agencies = planned(groups)

    # Everybody is somewhere, once, with a place of each kind that is needed, or with a reason.
    found: Counter[tuple[int, int, int]] = Counter()
    given_to: dict[tuple[str, str], int] = defaultdict(int)
    for share in shares:
        key = (share.group.arrival, share.group.grp)
        positions = share.positions if share.positions is not None else [position for position, _ in people[key]]
        found.update((*key, position) for position in positions)
        assert bool(share.agency) != bool(share.reason)
        assert bool(share.warehouse) == (goods and not share.reason)
        minor = sum(amount for position, amount in people[key] if position in set(positions))
        for kind, pick in (("warehouse", share.warehouse), ("agency", share.agency)):
            if pick:
                given_to[kind, pick.place_id] += minor
    assert found == Counter((*key, position) for key, those in people.items() for position, _ in those)

    # Nobody gets more than there was room for, nor from somebody who does not serve the zone; the counters say what was given.
    for kind, market, after in (("agency", agents, agencies), ("warehouse", stores, warehouses)):
        places, serving, _ = market
        for name, place in places.items():
            assert place.room is None or given_to[kind, name] <= place.room
        for one in {id(c): c for zone in (after.serving if after else {}).values() for c in zone}.values():
            assert one.load == places[one.id].load + given_to[kind, one.id]
        for share in shares:
            pick, zone = (
                (share.agency, share.group.small_zone_id) if kind == "agency" else (share.warehouse, share.group.large_zone_id)
            )
            assert pick is None or pick.place_id in serving[zone]

    # Reasons are true: whoever is held for want of a place has none, and for want of room would not fit now either.
    for share in shares:
        no_store = goods and not stores[1][share.group.large_zone_id]
        no_agent = not agents[1][share.group.small_zone_id]
        if share.reason in {NO_WAREHOUSE, NO_AGENCY}:
            assert no_store if share.reason == NO_WAREHOUSE else no_agent
        elif share.reason == NO_CAPACITY:
            smallest = min(amount for position, amount in people[share.group.arrival, share.group.grp]
                           if share.positions is None or position in set(share.positions))  # fmt: skip
            full = agencies.pick(share.group.small_zone_id, smallest) is None
            full |= warehouses is not None and warehouses.pick(share.group.large_zone_id, smallest) is None
            assert full
        else:
            assert not no_store
            assert not no_agent

    # A place chosen before stays as long as it serves the zone.
    for zone, name in agents[2].items():
        assert agencies.chosen[zone].place_id == name

    # The same again, in whatever order it is asked.
    other = list(groups)
    random.shuffle(other)
    assert sorted(planned(other)[0], key=repr) == sorted(shares, key=repr)


def serves(*places: Candidate) -> Choice:
    return Choice("agency", {"s1": list(places)})


def test_what_decided_is_told() -> None:
    def decided(*places: Candidate) -> Pick | None:
        return serves(*places).pick("s1", 1)

    assert decided() is None
    assert decided(Candidate("b", 1, 0, None)) == ("b", ONLY_ONE)
    assert decided(Candidate("a", 1, 0, None), Candidate("b", 2, 9, None)) == ("b", COVERAGE)
    assert decided(Candidate("a", 2, 5, None), Candidate("b", 2, 4, None)) == ("b", LOAD)
    assert decided(Candidate("b", 2, 4, None), Candidate("a", 2, 4, None)) == ("a", ID)
    assert decided(Candidate("a", 9, 0, 0), Candidate("b", 1, 0, None)) == ("b", ONLY_ONE)


def test_later_ones_follow_whatever_is_better_by_now() -> None:
    small, great = Candidate("small", 1, 0, None), Candidate("great", 1, 10, None)
    choice = serves(small, great)
    [first] = plan([Group(1, 0, "L1", "s1", 100)], {}, None, choice)
    assert first.agency == ("small", LOAD)
    great.coverage, small.load = 7, 1000
    [second] = plan([Group(2, 0, "L1", "s1", 100)], {}, None, choice)
    assert second.agency == first.agency
    choice.chosen["s1"] = Pick("great", "OPERATOR")
    [third] = plan([Group(3, 0, "L1", "s1", 100)], {}, None, choice)
    assert third.agency == ("great", "OPERATOR")


def test_what_is_left_over_goes_to_the_next_best_and_the_zone_keeps_its_place() -> None:
    choice = serves(Candidate("a", 2, 0, 25), Candidate("b", 1, 0, 10))
    people = {(1, 0): [(0, 10), (1, 10), (2, 10), (3, 10)]}
    shares = plan([Group(1, 0, "L1", "s1", 40)], people, None, choice)
    assert [(share.positions, share.agency, share.reason) for share in shares] == [
        ((0, 1), ("a", COVERAGE), ""),
        ((2,), ("b", ONLY_ONE), ""),
        ((3,), None, NO_CAPACITY),
    ]
    assert choice.chosen["s1"].place_id == "a"
