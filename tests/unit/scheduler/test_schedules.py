"""When jobs are due: a pure function of the schedule and two moments."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.config import DEFAULTS, Settings
from services.scheduler.domain import Decision, Schedule, decide, next_due
from tests.support.world import SEAL_KEYS, TOKEN_KEY

MINUTELY = Schedule(interval_seconds=60)
NIGHTLY = Schedule(cron="30 2 * * *", time_zone="Europe/Berlin")  # clocks go from 2 to 3 on 29 March 2026, back on 25 October


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def all_due(schedule: Schedule, after: datetime, until: datetime) -> list[str]:
    """Every due time, as a replica that is always awake finds it."""
    found = []
    while (due_at := next_due(schedule, after)) <= until:
        found.append(due_at.strftime("%m-%d %H:%M"))
        after = due_at
    return found


def test_an_interval_is_aligned_to_the_epoch() -> None:
    assert next_due(MINUTELY, at("2026-03-01 10:00:00")) == at("2026-03-01 10:01:00")
    assert next_due(MINUTELY, at("2026-03-01 10:00:59.999999")) == at("2026-03-01 10:01:00")


def test_what_is_not_due_is_not_fired() -> None:
    assert decide(MINUTELY, at("2026-03-01 10:00:00"), at("2026-03-01 10:00:59")) == Decision(None)
    assert decide(NIGHTLY, at("2026-03-01 10:00:00"), at("2026-03-01 23:00:00")) == Decision(None)


def test_what_was_missed_collapses_into_the_last_with_the_count() -> None:
    last = at("2026-03-01 11:00:00")
    assert decide(MINUTELY, at("2026-03-01 10:00:00"), at("2026-03-01 11:00:30")) == Decision(last, last, 59)
    last = at("2026-03-04 01:30:00")
    assert decide(NIGHTLY, at("2026-03-01 10:00:00"), at("2026-03-04 12:00:00")) == Decision(last, last, 2)


def test_skip_passes_over_what_is_too_late() -> None:
    skip = Schedule(interval_seconds=60, misfire="skip", grace_seconds=10)
    last = at("2026-03-01 11:00:00")
    assert decide(skip, at("2026-03-01 10:00:00"), at("2026-03-01 11:00:30")) == Decision(last)
    assert decide(skip, at("2026-03-01 10:00:00"), at("2026-03-01 11:00:10")) == Decision(last, last)


@pytest.mark.parametrize(
    ("cron", "zone", "after", "until", "due"),
    [
        # the night in which 02:30 does not exist: right after the gap (03:00 in Berlin), once
        ("30 2 * * *", "Europe/Berlin", "2026-03-28 00:00", "2026-03-31 00:00", ["03-28 01:30", "03-29 01:00", "03-30 00:30"]),
        # the night in which 02:30 comes twice: at the first, once
        ("30 2 * * *", "Europe/Berlin", "2026-10-24 00:00", "2026-10-27 00:00", ["10-24 00:30", "10-25 00:30", "10-26 01:30"]),
        # two times in the hour that is left out fall together
        ("0,30 2 * * *", "Europe/Berlin", "2026-03-29 00:00", "2026-03-29 23:00", ["03-29 01:00"]),
        # what comes every half hour goes on by the clock of the world
        (
            "*/30 * * * *",
            "Europe/Berlin",
            "2026-10-25 00:15",
            "2026-10-25 01:45",
            ["10-25 00:30", "10-25 01:00", "10-25 01:30"],
        ),
        # south of the equator, and a zone without summer time
        ("30 2 * * *", "America/Santiago", "2026-04-04 00:00", "2026-04-06 00:00", ["04-04 05:30", "04-05 06:30"]),
        ("30 2 * * *", "Africa/Dakar", "2026-03-28 00:00", "2026-03-30 00:00", ["03-28 02:30", "03-29 02:30"]),
        ("0 9 1 * *", "Asia/Kolkata", "2026-01-01 00:00", "2026-03-01 23:00", ["01-01 03:30", "02-01 03:30", "03-01 03:30"]),
    ],
)
def test_cron_in_a_time_zone(cron: str, zone: str, after: str, until: str, due: list[str]) -> None:
    assert all_due(Schedule(cron=cron, time_zone=zone), at(after), at(until)) == due


def test_a_cron_registered_within_the_doubled_hour_never_goes_back() -> None:
    second_pass = at("2026-10-25 01:10:00")  # 02:10 in Berlin, for the second time
    assert next_due(NIGHTLY, second_pass) == at("2026-10-26 01:30:00")


SCHEDULES = st.builds(Schedule, interval_seconds=st.integers(1, 86_400)) | st.builds(
    Schedule,
    cron=st.sampled_from(["30 2 * * *", "*/20 * * * *", "0,30 2 * * *", "15 1-3 * * 0", "0 3 29 3 *"]),
    time_zone=st.sampled_from(["UTC", "Europe/Berlin", "America/Santiago", "Australia/Lord_Howe"]),
)
# Around the days on which the clocks of these zones change.
MOMENTS = st.builds(
    lambda start, seconds: start + timedelta(seconds=seconds),
    st.sampled_from([at("2026-03-20 00:00"), at("2026-10-20 00:00")]),
    st.floats(0, 21 * 86_400),
)


@given(SCHEDULES, MOMENTS, st.lists(st.timedeltas(timedelta(0), timedelta(hours=8)), min_size=1, max_size=6))
def test_whoever_looks_when_every_due_time_is_fired_or_counted_once(
    schedule: Schedule, start: datetime, naps: list[timedelta]
) -> None:
    after, now, counted = start, start, 0
    fired: list[datetime] = []
    for nap in naps:
        now += nap
        decision = decide(schedule, after, now)
        if decision.due_at is not None:
            assert after < decision.due_at <= now
            fired.append(decision.due_at)
            counted += 1 + decision.missed
            assert decision.until is not None
            after = decision.until
    assert fired == sorted(set(fired))
    assert counted == decide(schedule, start, now).missed + 1 if fired else counted == 0
    assert next_due(schedule, now) > now


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("DATABASE_URL", "postgresql:///none")
    monkeypatch.setenv("ALMONER_SEAL_KEYS", SEAL_KEYS)
    monkeypatch.setenv("ALMONER_TOKEN_KEY", TOKEN_KEY)
    return monkeypatch


def test_jobs_are_added_to_those_that_are_there_anyway(environment: pytest.MonkeyPatch) -> None:
    assert Settings().schedules.keys() == DEFAULTS.keys() == {"expire-parked", "funds-due", "reference-due"}
    environment.setenv(
        "ALMONER_SCHEDULER_JOBS",
        '{"funds-due": {"cron": "0 6 * * 1-5", "time_zone": "Africa/Dakar"}, "sweep": {"interval_seconds": 5}}',
    )
    schedules = Settings().schedules
    assert schedules.keys() == {"expire-parked", "funds-due", "reference-due", "sweep"}
    assert schedules["funds-due"] == Schedule(cron="0 6 * * 1-5", time_zone="Africa/Dakar")


@pytest.mark.parametrize(
    ("jobs", "fault"),
    [
        ("{", "is no JSON"),
        ("[]", "should be a valid dictionary"),
        ('{"a": {}}', "either interval_seconds or cron"),
        ('{"a": {"interval_seconds": 5, "cron": "* * * * *"}}', "either interval_seconds or cron"),
        ('{"a": {"interval_seconds": 0}}', "greater than or equal to 1"),
        ('{"a": {"every": 5}}', "Extra inputs are not permitted"),
        ('{"A b": {"interval_seconds": 5}}', "should match pattern"),
        ('{"a": {"cron": "30 2 * *"}}', "has five fields"),
        ('{"a": {"cron": "0 30 2 * * *"}}', "has five fields"),
        ('{"a": {"cron": "61 2 * * *"}}', "is no cron: Bad minute"),
        ('{"a": {"cron": "0 0 30 2 *"}}', "is no cron: Bad day-of-month"),
        ('{"a": {"cron": "0 2 * * *", "time_zone": "Dakar"}}', "is no time zone"),
        ('{"a": {"cron": "0 2 * * *", "time_zone": "../etc"}}', "is no time zone"),
        ('{"a": {"cron": "0 2 * * *", "time_zone": "posix/UTC"}}', "is no time zone"),
        ('{"a": {"interval_seconds": 5, "misfire": "all"}}', "'latest' or 'skip'"),
    ],
)
def test_a_wrong_job_ends_the_process_with_the_rule(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], jobs: Any, fault: str
) -> None:
    environment.setenv("ALMONER_SCHEDULER_JOBS", jobs)
    with pytest.raises(SystemExit) as ended:
        Settings.load()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("ALMONER_SCHEDULER_JOBS")
    assert fault in said
