"""What the command says, and how it ends."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from libs.cli import app
from libs.cli.context import Usage, confirm, money, plural, table
from libs.cli.submit import placed
from libs.cli.watch import Rates, at_rest, goals, progress, remaining_seconds
from libs.common.clock import utc_now


def row(**given: object) -> SimpleNamespace:
    counts = dict.fromkeys(
        "received cut looked_up dispatched confirmed reversed held cancelled unknown arrived planned allocated".split(), 0
    )
    minors = dict.fromkeys("blocked_minor waiting_minor in_flight_minor releasing_minor outstanding_minor".split(), 0)
    envelope = {
        "declared": 10,
        "benefit_type": "CASH_DIGITAL",
        "state": "",
        "funds_state": "BLOCKED",
        "settled_at": None,
        "last_confirmed_at": None,
    }
    return SimpleNamespace(**{**counts, **minors, **envelope, **given})


def test_words() -> None:
    assert money(1_002_530, "EUR") == "10,025.30 EUR"
    assert money(7, "JPY") == "7 JPY"
    assert [plural(n, "batch") for n in (1, 2)] == ["1 batch", "2 batches"]
    assert plural(3, "person") == "3 people"


def test_what_others_wrote_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table("Held", ("id", "reason"), [("D-1", "\x1b[2Jgone\r\x9b"), ("é", "ﬀ")])
    assert capsys.readouterr().out == "id\treason\nD-1\t\ufffd[2Jgone\ufffd\ufffd\né\tﬀ\n"


def test_a_rejected_item_is_named_by_its_record_in_the_file() -> None:
    assert placed([2], "/items/17/amount_minor") == "record 1,018, amount_minor"
    assert placed([0], "/currency") == "the envelope, /currency"


def test_without_a_terminal_nobody_is_asked() -> None:
    confirm("Really?", yes=True)
    with pytest.raises(Usage, match="--yes"):
        confirm("Really?", yes=False)


def test_an_envelope_is_at_rest_when_what_is_left_waits_for_an_operator() -> None:
    assert not at_rest(row(received=10, cut=10, blocked_minor=100, outstanding_minor=5))
    assert not at_rest(row(received=9, cut=9, blocked_minor=100))
    assert at_rest(row(received=10, cut=10, blocked_minor=100, held=2))
    assert at_rest(row(settled_at=datetime.now(UTC)))
    assert at_rest(row(looked_up=10, funds_state="BLOCK_UNKNOWN"))  # nothing is sent until somebody knows
    assert not at_rest(row(looked_up=9, funds_state="BLOCK_UNKNOWN"))


def test_goods_are_at_rest_when_everybody_is_allocated_or_held() -> None:
    rice = {"benefit_type": "COMMODITY", "received": 10, "cut": 10, "looked_up": 10}
    assert not at_rest(row(**rice, arrived=9, allocated=9))
    assert not at_rest(row(**rice, arrived=10, allocated=9, planned=1))
    assert at_rest(row(**rice, arrived=10, allocated=7, held=3))
    assert at_rest(row(**rice, state="CANCELLED"))
    both = [row(**rice, arrived=10, allocated=10), row(received=10, confirmed=4, dispatched=6)]
    assert progress(both) == {
        "received": 20, "batched": 10, "looked up": 10, "allocated": 10, "dispatched": 6, "confirmed": 4,
    }  # fmt: skip
    assert goals(both) == {
        **dict.fromkeys(("received", "batched", "looked up"), 20),
        "allocated": 10,
        "dispatched": 10,
        "confirmed": 10,
    }


def test_while_somebody_is_about_to_be_told_nothing_is_at_rest() -> None:
    now = utc_now()
    rice = row(benefit_type="COMMODITY", arrived=10, allocated=7, held=3, created_at=now)

    def told(count: int, **given: object) -> SimpleNamespace:
        return SimpleNamespace(**{"told": count, "made": count, "pending": False, "lost": False, **given})

    assert at_rest(rice, told(7))
    assert not at_rest(rice, told(6))  # notifications has not heard of one
    assert not at_rest(rice, told(6, made=7, pending=True))
    assert at_rest(rice, told(5, made=7))  # failed, or unknown: that waits for an operator
    assert at_rest(rice, told(6, lost=True))
    old = now - timedelta(days=30)
    assert at_rest(row(**{**vars(rice), "created_at": old}), told(0))  # before there was notifications
    paid = row(received=10, cut=10, blocked_minor=100, confirmed=8, reversed=2, created_at=old, last_confirmed_at=now)
    assert at_rest(paid, told(10))
    assert not at_rest(paid, told(7))
    assert progress([rice], {"1": told(6)})["told"] == 6  # type: ignore[dict-item]
    assert goals([rice], {"1": told(6)})["told"] == 10  # type: ignore[dict-item]


def test_remaining_time_leaves_out_who_is_held() -> None:
    rates = {"confirmed": 2.0}
    assert remaining_seconds([row(received=10, confirmed=4, held=2)], rates) == 2.0
    assert remaining_seconds([row(received=10, confirmed=8, held=2)], rates) == 0.0
    assert remaining_seconds([row(received=10)], {"confirmed": 0.0, "dispatched": 0.0}) is None


def test_rates_look_at_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("libs.cli.watch.time.monotonic", lambda: now)
    rates = Rates(window_seconds=5)
    assert rates.add({"confirmed": 0}) == {"confirmed": 0.0}
    now = 102.0
    assert rates.add({"confirmed": 100}) == {"confirmed": 50.0}
    now = 110.0
    assert rates.add({"confirmed": 100}) == {"confirmed": 0.0}


def test_exit_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    for name in ("ALMONER_KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALMONER_HOME", str(tmp_path))
    assert app.run(["status"]) == 3
    assert "run `./almoner up`" in capsys.readouterr().err
    assert app.run(["no-such-verb"]) == 2
    assert app.run(["submit", "no-such-file.csv"]) == 2
    assert app.run(["settle-unknown", "dispatch", "1", "--evidence", "x"]) == 2
