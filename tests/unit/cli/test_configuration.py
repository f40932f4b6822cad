"""Every setting of every service is documented, refused where it is wrong, and shown without its secrets."""

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from libs.cli.context import SERVICES
from libs.cli.settings import COUNTERPARTS, DOCUMENT, document
from tests.support import forked
from tests.support.world import SEAL_KEYS, TOKEN_KEY

GOOD = {
    "DATABASE_URL": "postgresql://nobody:hush@127.0.0.1:1/none",
    "ALMONER_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "ALMONER_SEAL_KEYS": SEAL_KEYS,
    "ALMONER_TOKEN_KEY": TOKEN_KEY,
    "ALMONER_RESOLUTION_MAPPER_URL": "http://127.0.0.1:1",
    "ALMONER_FUNDS_BANKS": '{"FULL": {"adapter": "full", "url": "http://127.0.0.1:1"}}',
    "ALMONER_FUNDS_SPONSORS": '{"default": {"bank": "FULL", "account": "HUSH-4711"}}',
    **{f"ALMONER_NOTIFICATIONS_{kind}_CHANNEL": "none" for kind in ("WAREHOUSE", "AGENCY", "BENEFICIARY")},
}
# Of G2P Bridge's page: all of it.
PAGE = """
mapper_resolve_frequency funds_available_check_frequency funds_blocked_frequency funds_disbursement_frequency
mt940_processor_frequency no_of_tasks_to_process task_stale_threshold_minutes process_future_disbursement_schedules
mapper_resolution_max_attempts check_funds_with_bank_max_attempts block_funds_with_bank_max_attempts
disburse_funds_with_bank_max_attempts mt940_processor_max_attempts
celery_broker_url celery_backend_url db_datasource db_datasource_bridge db_datasource_pbms
mapper_request_jwt_enabled mapper_request_sender_id sign_key_keymanager_app_id sign_key_keymanager_ref_id
keymanager_api_timeout keymanager_api_base_url oauth_enabled oauth_url oauth_client_id
geo_resolution_frequency geo_resolution_max_attempts suppress_notifications
warehouse_allocation_frequency warehouse_allocation_max_attempts agency_allocation_frequency agency_allocation_max_attempts
warehouse_notification_frequency warehouse_notification_max_attempts
agency_notification_frequency agency_notification_max_attempts
beneficiary_notification_frequency beneficiary_notification_max_attempts
bank_fa_deconstruct_strategy mobile_wallet_deconstruct_strategy email_wallet_deconstruct_strategy
""".split()


@pytest.fixture(scope="module", autouse=True)
def bare() -> Iterator[None]:
    """Whatever the session is told of a stack, these tests' processes are told what stands here."""
    with pytest.MonkeyPatch.context() as environment:
        for name in os.environ:
            if name.upper().startswith(("ALMONER_", "DATABASE_URL")):
                environment.delenv(name)
        yield


@pytest.fixture(scope="module")
def services(bare: None) -> dict[str, dict[str, Any]]:
    return {service: json.loads(forked.run(f"services.{service}", ["config"], {}).stdout) for service in SERVICES}


def test_the_document_has_not_drifted(services: dict[str, dict[str, Any]]) -> None:
    assert DOCUMENT.read_text() == document(list(services.values())), "run `make docs`"


def test_every_setting_says_what_it_means(services: dict[str, dict[str, Any]]) -> None:
    fields = [(name, one) for name, service in services.items() for one in service["settings"]]
    fields += [(part, one) for service in services.values() for part, parts in service["parts"].items() for one in parts]
    assert [(name, one["name"]) for name, one in fields if not one["description"]] == []
    # A number's unit is in its name, or it is a count.
    assert [one["name"] for _, one in fields if one["type"] == "number" and not one["unit"]] == []


def test_every_parameter_of_the_page_has_its_counterpart_and_that_exists(services: dict[str, dict[str, Any]]) -> None:
    assert sorted(one.page for one in COUNTERPARTS) == sorted(PAGE)
    known = {one["variable"] for service in services.values() for one in service["settings"]}
    known |= {"DATABASE_URL", "ALMONER_KAFKA_BOOTSTRAP_SERVERS"}
    assert [name for one in COUNTERPARTS for name in one.variables if name not in known] == []
    assert [one.page for one in COUNTERPARTS if not one.variables and not one.difference] == []


@pytest.mark.parametrize("page", ["no_of_tasks_to_process", "task_stale_threshold_minutes"])
def test_what_the_page_sets_for_all_tasks_has_a_counterpart_for_each(page: str) -> None:
    tasks = "RESOLUTION_RESOLVE FUNDS_CHECK FUNDS_BLOCK FUNDS_DISPATCH RESOLUTION_LOCATE ALLOCATION NOTIFICATIONS".split()
    [variables] = [one.variables for one in COUNTERPARTS if one.page == page]
    assert [task for task in tasks if not any(name.startswith(f"ALMONER_{task}_") for name in variables)] == []


def test_whatever_concerns_the_bank_is_tried_as_often_as_on_the_page(services: dict[str, dict[str, Any]]) -> None:
    defaults = {one["variable"]: one["default"] for service in services.values() for one in service["settings"]}
    of_the_bank = "check_funds_with_bank block_funds_with_bank disburse_funds_with_bank mt940_processor".split()
    tried = {one.page: (one.default, str(defaults[one.variables[0]])) for one in COUNTERPARTS if "max_attempts" in one.page}
    assert [tried[f"{name}_max_attempts"] for name in of_the_bank] == [("3", "3")] * 4


def test_every_stage_has_all_its_limits(services: dict[str, dict[str, Any]]) -> None:
    """On or off, at once, in one claim, how often, how long, how many times."""
    limits = "ENABLED CONCURRENCY CLAIM_MAX_CALLS POLL_SECONDS TIMEOUT_SECONDS LEASE_SECONDS MAX_ATTEMPTS".split()
    known = {one["variable"] for service in services.values() for one in service["settings"]}
    stages: tuple[str, ...] = (
        "RESOLUTION_RESOLVE",
        "FUNDS_CHECK",
        "FUNDS_BLOCK",
        "FUNDS_DISPATCH",
        "FUNDS_RELEASE",
        "RESOLUTION_LOCATE",
    )
    stages += ("ALLOCATION_REFERENCE", "NOTIFICATIONS_NOVU", "NOTIFICATIONS_SMTP", "NOTIFICATIONS_FILE")
    assert {f"ALMONER_{stage}_{limit}" for stage in stages for limit in limits} <= known


WRONG = {
    "ingestion": {
        "ALMONER_INGESTION_LINGER_SECONDS": ("-1", "='-1': Input should be greater than or equal to 0"),
        "ALMONER_INGESTION_DUPLICATE_BENEFICIARY": ("shrug", "='shrug': Input should be 'warn' or 'refuse'"),
        "ALMONER_INGESTION_STATEMENT_TOKENS": ("{hush", ": is no JSON: "),
    },
    "resolution": {
        "ALMONER_RESOLUTION_MAPPER_URL": ("ftp://hush", ": String should match pattern '^https?://'"),
        "ALMONER_RESOLUTION_RESOLVE_MAX_ITEMS": ("5000", "='5000': Input should be less than or equal to 1000"),
        "ALMONER_RESOLUTION_MOBILE_WALLET_PATTERN": ("^(x$", "='^(x$': is no regular expression"),
    },
    "funds": {
        "ALMONER_FUNDS_CHECK_MAX_ATTEMPTS": ("0", "='0': Input should be greater than or equal to 1"),
        "ALMONER_FUNDS_DISPATCH_ENABLED": ("perhaps", "='perhaps': Input should be a valid boolean"),
        "ALMONER_FUNDS_SPONSORS": (
            '{"default": {"bank": "GONE", "account": "HUSH-4711"}}',
            ": sponsor 'default' names bank 'GONE', which is not among ['FULL']",
        ),
    },
    "allocation": {
        "ALMONER_ALLOCATION_REFERENCE_SOURCE": ("hearsay", "='hearsay': Input should be 'pbms' or 'topic'"),
        "ALMONER_ALLOCATION_ANNOUNCE_DELAY_SECONDS": ("-1", "='-1': Input should be greater than or equal to 0"),
    },
    "notifications": {
        "ALMONER_NOTIFICATIONS_AGENCY_CHANNEL": ("pigeon", "='pigeon': Input should be 'novu', 'smtp', 'file' or 'none'"),
        "ALMONER_NOTIFICATIONS_SMTP_SENDER": ("nobody", "='nobody': String should match pattern"),
        "ALMONER_NOTIFICATIONS_NOVU_MAX_ITEMS": ("101", "='101': Input should be less than or equal to 100"),
    },
    "scheduler": {
        "ALMONER_SCHEDULER_JOBS": ('{"poll": {"cron": "every day"}}', " at /poll/cron: a cron has five fields"),
        "ALMONER_SCHEDULER_KEEP_TICKS_DAYS": ("0", "='0': Input should be greater than or equal to 1"),
    },
}
SHARED = {
    "DATABASE_URL": ("mysql://hush@db/almoner", ": must be postgresql://"),
    "ALMONER_TIME_ZONE": ("Mars/Base", "='Mars/Base': is no time zone of the IANA database"),
    "ALMONER_TOKEN_KEY": ("hush", ": Value should have at least 16 items"),
    "ALMONER_SEAL_KEYS": ("k1:hush", ": must be name:base64 of 32 bytes"),
    "ALMONER_HTTP_PORT": ("http", "='http': Input should be a valid integer"),
}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_names_everything_that_is_wrong_and_does_not_start(service: str) -> None:
    wrong = {**WRONG[service], **SHARED}
    typo = f"ALMONER_{service.upper()}_POOL_SISE"
    values = {name: value for name, (value, _) in wrong.items()}
    done = forked.run(f"services.{service}", ["run"], {**GOOD, **values, typo: "3"})
    assert done.returncode == 2
    said = {re.match("[A-Z0-9_]+", line).group(): line for line in done.stderr.splitlines()}  # type: ignore[union-attr]
    assert set(said) == {*wrong, typo}
    for name, (_, rule) in wrong.items():
        assert said[name].startswith(name + rule), said[name]
    assert said[typo].endswith(f"nearest name is ALMONER_{service.upper()}_POOL_SIZE")
    assert "hush" not in done.stderr.lower()


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("BANKS", '{"FULL": {"adapter": "full", "url": "http://bank", "urll": "hush"}}', " at /FULL/urll: Extra inputs"),
        ("SPONSORS", '{"default": {"bank": "FULL", "account": "1", "account_typ": "hush"}}', " at /default/account_typ: Extra"),
        (
            "SPONSORS",
            '{"RICE": {"bank": "FULL", "account": "1"}}',
            ': sponsor \'RICE\' is neither "default" nor "<programme id>/',
        ),
    ],
)
def test_what_is_wrong_inside_is_named_as_well(variable: str, value: str, said: str) -> None:
    name = f"ALMONER_FUNDS_{variable}"
    done = forked.run("services.funds", ["run"], {**GOOD, name: value})
    assert done.returncode == 2
    assert done.stderr.startswith(name + said)
    assert "hush" not in done.stderr


def test_a_rule_over_two_settings_names_both_and_no_secret() -> None:
    done = forked.run("services.funds", ["run"], {**GOOD, "ALMONER_FUNDS_BLOCK_LEASE_SECONDS": "10"})
    assert done.returncode == 2
    assert done.stderr == (
        "ALMONER_FUNDS_BLOCK_LEASE_SECONDS=10.0: Should be more than 2.0 s longer than "
        "ALMONER_FUNDS_BLOCK_TIMEOUT_SECONDS=10.0\n"
    )


def test_no_service_may_be_stopped_within_a_call_of_its_defaults() -> None:
    done = forked.run("services.funds", ["run"], {**GOOD, "ALMONER_FUNDS_DISPATCH_TIMEOUT_SECONDS": "11.5"})
    assert done.returncode == 2
    assert done.stderr == (
        "ALMONER_FUNDS_SHUTDOWN_SECONDS=25.0: Should be more than 2.0 s longer than 2 times "
        "ALMONER_FUNDS_DISPATCH_TIMEOUT_SECONDS=11.5\n"
    )


def test_config_shows_where_each_value_comes_from_and_masks_secrets(tmp_path: Any) -> None:
    env = {**GOOD, "ALMONER_HOME": str(tmp_path), "ALMONER_FUNDS_POOL_SIZE": "4", "ALMONER_LOG_LEVEL": "DEBUG"}
    done = forked.run("libs.cli", ["config", "funds", "-o", "json"], env)
    assert done.returncode == 0, done.stderr
    shown = {one["variable"]: (one["value"], one["source"]) for one in json.loads(done.stdout)["settings"]}
    assert shown["ALMONER_FUNDS_POOL_SIZE"] == ("4", "ALMONER_FUNDS_POOL_SIZE")
    assert shown["ALMONER_FUNDS_LOG_LEVEL"] == ("DEBUG", "ALMONER_LOG_LEVEL")
    assert shown["ALMONER_FUNDS_CHECK_MAX_ATTEMPTS"] == ("3", "default")
    assert shown["ALMONER_FUNDS_DATABASE_URL"] == ("…", "DATABASE_URL")
    assert shown["ALMONER_FUNDS_SPONSORS"] == ('{"default": …}', "ALMONER_FUNDS_SPONSORS")
    for secret in ("hush", "HUSH", TOKEN_KEY, SEAL_KEYS.partition(":")[2]):
        assert secret not in done.stdout
    wrong = forked.run("libs.cli", ["config", "funds"], {**env, "ALMONER_FUNDS_CHEK_MAX_ATTEMPTS": "3"})
    assert wrong.returncode == 1
    assert "ALMONER_FUNDS_CHECK_MAX_ATTEMPTS" in wrong.stderr
    assert "no service is called 'bank'" in forked.run("libs.cli", ["config", "bank"], env).stderr
