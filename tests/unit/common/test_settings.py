"""Settings come from where they should, and a wrong one is named with its rule; waiting times stay within theirs."""

import base64
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, SecretStr

from libs.common.config import ServiceSettings
from libs.common.contracts.base import derived_id, envelope_uuid
from libs.common.db import _copy_field, lock_key_text
from libs.common.errors import Fatal
from libs.common.kafka import admin, connection, producer
from libs.common.retry import backoff_seconds
from libs.common.workqueue import Limits

KEYS = "k1:" + base64.b64encode(bytes(32)).decode()


class Settings(ServiceSettings):
    SERVICE = "demo"
    REQUESTS = {"pay": 2}
    pay_concurrency: int = Field(default=7, ge=1)
    pay_timeout_seconds: float = 3.0
    pay_lease_seconds: float = 60.0
    ask_timeout_seconds: float = 3.0
    ask_lease_seconds: float = 60.0
    pay_tokens: dict[str, str] = {}
    pay_password: SecretStr = SecretStr("")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("DATABASE_URL", "postgresql://shared")
    monkeypatch.setenv("ALMONER_SEAL_KEYS", KEYS)
    monkeypatch.setenv("ALMONER_TOKEN_KEY", "sixteen characters")
    return monkeypatch


def test_a_services_own_variable_wins_over_the_shared_one(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ALMONER_LOG_LEVEL", "ERROR")
    environment.setenv("LOG_LEVEL", "DEBUG")  # not ours
    assert Settings.load().log_level == "ERROR"
    environment.setenv("ALMONER_DEMO_LOG_LEVEL", "DEBUG")
    assert Settings.load().log_level == "DEBUG"
    assert Settings.load().database_url.get_secret_value() == "postgresql://shared"
    environment.setenv("ALMONER_DEMO_DATABASE_URL", "postgresql://own")
    assert Settings.load().database_url.get_secret_value() == "postgresql://own"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ALMONER_DEMO_PAY_CONCURRENCY", "0", "ALMONER_DEMO_PAY_CONCURRENCY='0': Input should be greater than or equal to 1"),
        ("ALMONER_DEMO_HTTP_PORT", "70000", "ALMONER_DEMO_HTTP_PORT='70000': Input should be less than or equal to 65535"),
        ("ALMONER_HTTP_PORT", "70000", "ALMONER_HTTP_PORT='70000': Input should be less than or equal to 65535"),
        ("ALMONER_DEMO_PAY_TOKENS", '{"a": 5}', "ALMONER_DEMO_PAY_TOKENS at /a: Input should be a valid string"),
        ("ALMONER_DEMO_PAY_TOKENS", "{secret", "ALMONER_DEMO_PAY_TOKENS: is no JSON: Expecting property name"),
        ("ALMONER_TOKEN_KEY", "secret", "ALMONER_TOKEN_KEY: Value should have at least 16 items"),
        ("ALMONER_SEAL_KEYS", "k1:secret", "ALMONER_SEAL_KEYS: a key is not base64"),
        (
            "ALMONER_DEMO_PAY_LEASE_SECONDS",
            "5",
            "ALMONER_DEMO_PAY_LEASE_SECONDS=5.0: Should be more than 2.0 s longer than ALMONER_DEMO_PAY_TIMEOUT_SECONDS=3.0",
        ),
        (
            "ALMONER_SHUTDOWN_SECONDS",
            "8",
            "ALMONER_SHUTDOWN_SECONDS=8.0: Should be more than 2.0 s longer than 2 times ALMONER_DEMO_PAY_TIMEOUT_SECONDS=3.0",
        ),
        (
            "ALMONER_DEMO_ASK_TIMEOUT_SECONDS",
            "23",
            "ALMONER_DEMO_SHUTDOWN_SECONDS=25.0: Should be more than 2.0 s longer than ALMONER_DEMO_ASK_TIMEOUT_SECONDS=23.0",
        ),
        (
            "ALMONER_DEMO_PAY_TIMEOUT",
            "secret",
            "ALMONER_DEMO_PAY_TIMEOUT: There is no such setting; the nearest name is ALMONER_DEMO_PAY_TIMEOUT_SECONDS",
        ),
    ],
)
def test_a_wrong_setting_ends_the_process_with_variable_and_rule(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, value: str, said: str
) -> None:
    environment.setenv(variable, value)
    with pytest.raises(SystemExit) as caught:
        Settings.load()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert "secret" not in error


def test_a_missing_setting_is_named(environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    environment.delenv("ALMONER_TOKEN_KEY")
    with pytest.raises(SystemExit):
        Settings.load()
    assert capsys.readouterr().err == "ALMONER_DEMO_TOKEN_KEY: Field required\n"


def test_everything_wrong_is_named_at_once(environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    environment.setenv("ALMONER_DEMO_PAY_CONCURRENCY", "none")
    environment.setenv("ALMONER_DEMO_PAY_TOKENS", "{")
    environment.setenv("ALMONER_DEMO_PAY_TIMEOUT_SECOND", "4")
    environment.setenv("ALMONER_LOG_LEVEL", "chatty")
    with pytest.raises(SystemExit):
        Settings.load()
    named = [line.partition(":")[0].partition("=")[0] for line in capsys.readouterr().err.splitlines()]
    assert sorted(named) == [
        "ALMONER_DEMO_PAY_CONCURRENCY",
        "ALMONER_DEMO_PAY_TIMEOUT_SECOND",
        "ALMONER_DEMO_PAY_TOKENS",
        "ALMONER_LOG_LEVEL",
    ]


def test_what_kubernetes_adds_and_what_others_read_stops_nobody(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For a Service called almoner-demo every pod gets these, whether it wants them or not."""
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_8080_TCP", "PORT_8080_TCP_ADDR"):
        environment.setenv(f"ALMONER_DEMO_{name}", "x")
    environment.setenv("ALMONER_OTHER_PAY_CONCURRENCY", "x")
    environment.setenv("ALMONER_HOME", "/somewhere")
    Settings.load()
    assert capsys.readouterr().err == ""
    environment.setenv("ALMONER_LOG_LEVL", "DEBUG")
    Settings.load()
    assert capsys.readouterr().err == "ALMONER_LOG_LEVL is no setting of demo and is ignored; is ALMONER_LOG_LEVEL meant?\n"


def test_settings_describe_themselves_and_show_no_secret(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ALMONER_DEMO_PAY_TOKENS", '{"bank": "hush"}')
    environment.setenv("ALMONER_DEMO_PAY_PASSWORD", "hush")
    environment.setenv("ALMONER_DEMO_PAY_CONCURRENCY", "0")
    found = Settings.described()
    assert "hush" not in str(found)
    assert "sixteen characters" not in str(found)
    assert [fault.partition("=")[0] for fault in found["faults"]] == ["ALMONER_DEMO_PAY_CONCURRENCY"]
    by_name = {one["name"]: one for one in found["settings"]}
    assert by_name["pay_tokens"]["value"] == '{"bank": …}'
    assert (by_name["pay_password"]["value"], by_name["pay_password"]["secret"]) == ("…", True)
    assert (by_name["pay_concurrency"]["value"], by_name["pay_concurrency"]["rule"]) == ("0", "≥ 1")
    assert (by_name["seal_keys"]["source"], by_name["log_level"]["source"]) == ("ALMONER_SEAL_KEYS", "default")
    assert (by_name["pay_timeout_seconds"]["unit"], by_name["pay_timeout_seconds"]["default"]) == ("seconds", "3.0")


def test_limits_are_read_by_the_kind_of_call() -> None:
    limits = Settings.load().limits("pay")
    assert (limits.concurrency, limits.timeout_seconds, limits.lease_seconds) == (7, 3.0, 60.0)
    assert limits.backoff_max_seconds == Limits().backoff_max_seconds  # what the service does not let be set


def test_kafka_settings_pass_through() -> None:
    given_ = {"ALMONER_KAFKA_BOOTSTRAP_SERVERS": "b:1", "ALMONER_KAFKA_SASL_MECHANISM": "PLAIN", "OTHER": "x"}
    assert connection(given_) == {"bootstrap.servers": "b:1", "sasl.mechanism": "PLAIN"}
    with pytest.raises(Fatal, match="ALMONER_KAFKA_BOOTSTRAP_SERVERS"):
        connection({})


@given(st.integers(1, 10_000), st.floats(0.1, 600), st.floats(0.01, 60))
def test_backing_off_grows_to_its_limit(attempt: int, longest_seconds: float, first_seconds: float) -> None:
    seconds = backoff_seconds(attempt, longest_seconds, first_seconds)
    ceiling = min(longest_seconds, first_seconds * 2 ** min(attempt - 1, 30))
    assert ceiling / 2 <= seconds <= ceiling


def test_those_who_failed_together_do_not_come_back_together() -> None:
    waits = [backoff_seconds(5, 60.0, 1.0) for _ in range(100)]
    assert len(set(waits)) > 90  # numbers of 53 bits: two that are equal are next to impossible
    assert max(waits) - min(waits) > 4  # they spread over most of the 8 s; by chance less than once in 10^28


def test_derived_ids_and_locks_are_stable_and_tell_their_parts_apart() -> None:
    assert derived_id("a", 1) == derived_id("a", "1")
    assert derived_id("a", "b") != derived_id("ab")
    assert envelope_uuid("s", "e") == derived_id("envelope", "s", "e")
    assert lock_key_text("funds/1") == lock_key_text("funds/1")
    assert -(2**63) <= lock_key_text("funds/1") < 2**63


def test_copy_keeps_what_would_break_a_line() -> None:
    assert [_copy_field(value) for value in (None, True, 5, "a\tb\nc\\d\r")] == ["\\N", "t", "5", "a\\tb\\nc\\\\d\\r"]


def test_a_wrong_setting_of_the_broker_names_its_variable() -> None:
    for variable, value in (("SECURITY_PROTOCL", "ssl"), ("SECURITY_PROTOCOL", "tls")):
        name = f"ALMONER_KAFKA_{variable}"
        for client in (partial(producer, "test"), admin):
            with pytest.raises(Fatal, match=f"^{name}: .*{variable.lower().replace('_', '.')}"):
                client({"ALMONER_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9", name: value})
