"""A gauge shows what there is now, and no more series than whoever scrapes can bear."""

from collections import Counter
from decimal import Decimal
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge

from libs.common.metrics import show
from services.allocation import gauges as allocation
from services.funds.gauges import bounded

ROW = st.builds(
    SimpleNamespace,
    programme=st.sampled_from("ABCD"),
    currency=st.sampled_from(["EUR", "KES"]),
    what=st.sampled_from(["NOT_LINKED", "OTHER"]),
    minor=st.integers(1, 10**15),
)


@given(rows=st.lists(ROW, max_size=20), most=st.integers(0, 8))
def test_every_unit_is_shown_in_its_currency_by_few_series(rows: list[SimpleNamespace], most: int) -> None:
    found = bounded(rows, most)
    assert len(found) <= most + len({row.currency for row in rows})
    wanted: Counter[str] = Counter()
    for row in rows:
        wanted[row.currency] += row.minor
    shown: Counter[str] = Counter()
    for (_, currency, _), minor in found.items():
        shown[currency] += int(minor)
    assert shown == wanted


HELD = st.builds(
    SimpleNamespace,
    programme=st.sampled_from("ABCD"),
    measurement_unit=st.sampled_from(["kg", "bag"]),
    scale=st.integers(0, 6),
    reason=st.sampled_from(["NO_AGENCY", "NO_CAPACITY"]),
    people=st.integers(1, 10**9),
    minor=st.integers(1, 10**15),
)


def _series(row: SimpleNamespace) -> tuple[object, ...]:
    return row.programme, row.measurement_unit, row.scale, row.reason


@given(rows=st.lists(HELD, max_size=20, unique_by=_series), most=st.integers(0, 8))
def test_everybody_held_is_shown_by_few_series_and_goods_in_their_own_unit(rows: list[SimpleNamespace], most: int) -> None:
    people, minor = allocation.bounded(rows, most)
    assert sum(people.values()) == sum(row.people for row in rows)
    assert len(people) == min(len(rows), most + 1)
    assert len(minor) == min(len(rows), most)
    amounts = Counter(
        (row.programme, row.reason, row.measurement_unit, Decimal(int(row.minor)).scaleb(-row.scale)) for row in rows
    )
    for (programme, unit, reason), count in minor.items():
        one, name = unit.split()
        assert amounts[programme, reason, name, int(count) * Decimal(one)] > 0
    if most and rows:
        assert max(row.people for row in rows) in people.values()


def test_what_is_gone_is_shown_no_more_and_what_stays_is_never_missing() -> None:
    registry = CollectorRegistry()
    gauge = Gauge("things", "of a test", ["kind", "state"], registry=registry)
    show(gauge, {("a", "open"): 1, ("b", "open"): 2})
    kept = gauge.labels("a", "open")
    show(gauge, {("a", "open"): 3, ("c", "closed"): 4})
    assert gauge.labels("a", "open") is kept
    samples = {tuple(sample.labels.values()): sample.value for metric in registry.collect() for sample in metric.samples}
    assert samples == {("a", "open"): 3, ("c", "closed"): 4}
