"""`almoner config`, and docs/configuration.md: every setting of every service, as the service itself describes it.

`python -m libs.cli.settings` writes the document; a test says where it has drifted.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from libs.cli.context import ROOT, SERVICES, Refused, Usage, home, print_json, table

DOCUMENT = ROOT / "docs" / "configuration.md"


class Counterpart(NamedTuple):
    """A parameter of G2P Bridge's Celery modules, and what does its work here. Without a variable it needs none."""

    page: str
    default: str
    variables: tuple[str, ...]
    difference: str


_STAGES = {
    "mapper_resolution": ("mapper_resolve_frequency", "mapper_resolution_max_attempts", "RESOLUTION_RESOLVE"),
    "check_funds": ("funds_available_check_frequency", "check_funds_with_bank_max_attempts", "FUNDS_CHECK"),
    "block_funds": ("funds_blocked_frequency", "block_funds_with_bank_max_attempts", "FUNDS_BLOCK"),
    "disburse_funds": ("funds_disbursement_frequency", "disburse_funds_with_bank_max_attempts", "FUNDS_DISPATCH"),
    "geo_resolution": ("geo_resolution_frequency", "geo_resolution_max_attempts", "RESOLUTION_LOCATE"),
}
_PLACES = ("warehouse", "agency")
_TOLD = ("warehouse", "agency", "beneficiary")
_CHANNELS = ("NOVU", "SMTP", "FILE")
_AT_ONCE = "work is begun as soon as it is there; this is how often a replica looks for what has come due again"
COUNTERPARTS = (
    *(
        Counterpart(frequency, "3600 s", (f"ALMONER_{stage}_POLL_SECONDS",), _AT_ONCE)
        for frequency, _, stage in _STAGES.values()
    ),
    Counterpart(
        "mt940_processor_frequency",
        "3600 s",
        ("ALMONER_INGESTION_JOBS_POLL_SECONDS",),
        "a statement is read as soon as it is stored; this is how often a replica looks for what is left",
    ),
    *(
        Counterpart(
            f"{place}_allocation_frequency",
            "3600 s",
            ("ALMONER_ALLOCATION_JOBS_POLL_SECONDS",),
            "a zone gets its place as soon as somebody in it is known; this is how often a replica looks for what is left",
        )
        for place in _PLACES
    ),
    *(
        Counterpart(
            f"{kind}_notification_frequency",
            "3600 s",
            tuple(f"ALMONER_NOTIFICATIONS_{channel}_POLL_SECONDS" for channel in _CHANNELS),
            _AT_ONCE + "; by channel, not by who is told",
        )
        for kind in _TOLD
    ),
    Counterpart(
        "no_of_tasks_to_process",
        "2",
        (
            *(f"ALMONER_{stage}_CLAIM_MAX_CALLS" for _, _, stage in _STAGES.values()),
            "ALMONER_INGESTION_JOBS_MAX_SUBJECTS",
            "ALMONER_ALLOCATION_MAX_CHUNK_BATCHES",
            *(f"ALMONER_NOTIFICATIONS_{channel}_CLAIM_MAX_CALLS" for channel in _CHANNELS),
        ),
        "a limit of one claim, not of an hour: the next claim follows at once. How many calls go on at a time is "
        "`…_CONCURRENCY`",
    ),
    Counterpart(
        "task_stale_threshold_minutes",
        "60 min",
        (
            *(f"ALMONER_{stage}_LEASE_SECONDS" for _, _, stage in _STAGES.values()),
            "ALMONER_ALLOCATION_REFERENCE_LEASE_SECONDS",
            *(f"ALMONER_NOTIFICATIONS_{channel}_LEASE_SECONDS" for channel in _CHANNELS),
        ),
        "seconds, by the database's clock. What a claim that ran out may have done counts as possible: it is asked for by "
        "its key, or stays unknown, and is never just sent again. Reading statements and choosing places hold no lease: their "
        "transactions end with their process",
    ),
    Counterpart(
        "process_future_disbursement_schedules",
        "false",
        ("ALMONER_FUNDS_PAY_FUTURE_SCHEDULES",),
        "the schedule date is a day in the programme's own time zone",
    ),
    *(
        Counterpart(
            attempts,
            "3",
            (f"ALMONER_{stage}_MAX_ATTEMPTS",),
            "with back-off between them (`…_BACKOFF_FIRST_SECONDS`, `…_BACKOFF_MAX_SECONDS`). At the limit the work is in "
            "ERROR where certainly nothing happened, else it is UNKNOWN",
        )
        for _, attempts, stage in _STAGES.values()
    ),
    *(
        Counterpart(
            f"{place}_allocation_max_attempts",
            "3",
            ("ALMONER_ALLOCATION_REFERENCE_MAX_ATTEMPTS",),
            "of reading warehouses and agencies. A choice is made from what was read and cannot fail half way; where nobody fits, "
            "the zone is held with its reason, and follows when that changes",
        )
        for place in _PLACES
    ),
    *(
        Counterpart(
            f"{kind}_notification_max_attempts",
            "3",
            tuple(f"ALMONER_NOTIFICATIONS_{channel}_MAX_ATTEMPTS" for channel in _CHANNELS),
            "by channel. What a mail server may have taken is UNKNOWN and never sent again by itself",
        )
        for kind in _TOLD
    ),
    Counterpart(
        "suppress_notifications",
        "false",
        ("ALMONER_NOTIFICATIONS_SUPPRESS_NOTIFICATIONS",),
        "the state is SUPPRESSED and says why, instead of looking like a notice that was sent. By who is told: `…_CHANNEL` = none",
    ),
    Counterpart(
        "mt940_processor_max_attempts",
        "3",
        ("ALMONER_INGESTION_READ_STATEMENT_MAX_ATTEMPTS",),
        "of a fault of ours only: a line that cannot be used becomes an exception, and the others go on",
    ),
    Counterpart(
        "celery_broker_url",
        "redis://localhost:6379/0",
        ("ALMONER_KAFKA_BOOTSTRAP_SERVERS",),
        "Kafka in place of Redis; it has no default. All of `ALMONER_KAFKA_*` goes to librdkafka",
    ),
    Counterpart(
        "celery_backend_url",
        "redis://localhost:6379/0",
        (),
        "there is no store of results: what became of work stands in the service's own database",
    ),
    Counterpart(
        "db_datasource", "–", ("DATABASE_URL",), "each service has a schema and a role of its own; it may have a database, too"
    ),
    Counterpart("db_datasource_bridge", "–", ("DATABASE_URL",), "the same"),
    Counterpart(
        "db_datasource_pbms",
        "–",
        ("ALMONER_ALLOCATION_PBMS_URL", "ALMONER_FUNDS_SPONSORS", "ALMONER_FUNDS_BANKS"),
        "warehouses and agencies are read into allocation's own tables, now and then, by a role that may only SELECT. Which account "
        "pays for a programme's benefit is configuration, looked up exactly",
    ),
    Counterpart(
        "mapper_request_jwt_enabled",
        "true",
        ("ALMONER_RESOLUTION_MAPPER_SIGN_KEY", "ALMONER_RESOLUTION_MAPPER_KEYMANAGER_URL"),
        "no switch: requests are signed where a key or a keymanager is configured",
    ),
    Counterpart(
        "sign_key_keymanager_app_id",
        "G2PBRIDGE",
        ("ALMONER_RESOLUTION_MAPPER_KEYMANAGER_APP_ID",),
        "",
    ),
    Counterpart("sign_key_keymanager_ref_id", "", ("ALMONER_RESOLUTION_MAPPER_KEYMANAGER_REF_ID",), ""),
    Counterpart("keymanager_api_base_url", "", ("ALMONER_RESOLUTION_MAPPER_KEYMANAGER_URL",), "empty: none is asked"),
    Counterpart(
        "keymanager_api_timeout",
        "10 s",
        ("ALMONER_RESOLUTION_RESOLVE_TIMEOUT_SECONDS",),
        "each request on behalf of a call has the call's time-out",
    ),
    Counterpart(
        "oauth_enabled", "true", ("ALMONER_RESOLUTION_MAPPER_OAUTH_URL",), "no switch: a token is sent where its server is named"
    ),
    Counterpart("oauth_url", "", ("ALMONER_RESOLUTION_MAPPER_OAUTH_URL",), ""),
    Counterpart(
        "oauth_client_id",
        "openg2p-g2p-bridge",
        ("ALMONER_RESOLUTION_MAPPER_OAUTH_CLIENT_ID", "ALMONER_RESOLUTION_MAPPER_OAUTH_CLIENT_SECRET"),
        "",
    ),
    Counterpart("mapper_request_sender_id", "openg2p-g2p-bridge", ("ALMONER_RESOLUTION_MAPPER_SENDER_ID",), ""),
    Counterpart(
        "bank_fa_deconstruct_strategy",
        "–",
        ("ALMONER_RESOLUTION_BANK_ACCOUNT_PATTERN",),
        "chosen by how the address ends; checked at start: it must compile and name the account number",
    ),
    Counterpart(
        "mobile_wallet_deconstruct_strategy", "–", ("ALMONER_RESOLUTION_MOBILE_WALLET_PATTERN",), "the same for a mobile number"
    ),
    Counterpart(
        "email_wallet_deconstruct_strategy", "–", ("ALMONER_RESOLUTION_EMAIL_WALLET_PATTERN",), "the same for an e-mail address"
    ),
)  # fmt: skip

_HEAD = """# Configuration

<!-- Generated by `python -m libs.cli.settings` from the services' own settings. Do not edit. -->

A service is told everything by its environment. `ALMONER_FUNDS_LOG_LEVEL` counts for funds, `ALMONER_LOG_LEVEL` for every service
whose own variable is not set. Values that are structures are JSON.

A service does not start with a wrong setting: it names every variable that is wrong, its value (unless that might be a secret) and
the rule, and ends with exit code 2. The same for a variable under a service's own prefix that it does not know
(`ALMONER_FUNDS_CHEK_MAX_ATTEMPTS`), with the nearest name: a limit that nobody applies is worse than a service that does not start.
So take a variable away together with the release that no longer knows it, and before going back to a release that did not yet.
What Kubernetes adds for a Service called `almoner-funds` (`ALMONER_FUNDS_SERVICE_HOST` …) is let pass. A shared name that is nearly
right (`ALMONER_LOG_LEVL`) is warned of only, because other programs may read variables that look alike.

`almoner config SERVICE` shows what an environment tells a service, with where each value comes from and secrets masked;
`python -m services.SERVICE config` says the same as JSON where only the service is installed.

Kafka is told in librdkafka's own words: `ALMONER_KAFKA_BOOTSTRAP_SERVERS` (required), `ALMONER_KAFKA_SECURITY_PROTOCOL`,
`ALMONER_KAFKA_SASL_MECHANISM` and so on become `bootstrap.servers`, `security.protocol`, `sasl.mechanism`.

Each outside call has the same limits: on or off, calls at once, calls in a claim, how often to look, time-out, lease, attempts,
back-off. A stage that is off in one replica is done by another; `almoner pause` stops it in all of them.
"""

_PAGE_HEAD = """## Coming from G2P Bridge

What the parameters of its Celery producers and workers are called here, for all its eleven tasks. Here nothing waits for an hour to
pass: an event begins the next stage, and a time is how long a replica may miss what came due without one.
"""


def described(service: str, environ: dict[str, str] | None = None) -> dict[str, Any]:
    """What a service says of its settings: a process of its own, as services are nobody's library."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", f"services.{service}", "config"],
        env={**(os.environ if environ is None else environ), "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Refused(f"services.{service} does not say what its settings are: {done.stderr.strip()[-500:]}")
    return dict(json.loads(done.stdout))


def config(service: str, as_json: bool) -> None:
    """What the environment, or else the stack that is up, tells a service; ends with 1 where something is wrong."""
    if service not in SERVICES:
        raise Usage(f"no service is called {service!r}: there are {', '.join(SERVICES)}")
    found = described(service, {**_of_the_stack(), **os.environ})
    if as_json:
        print_json(found)
    else:
        rows = [(one["variable"], "–" if one["value"] is None else one["value"], one["source"]) for one in found["settings"]]
        table(f"Settings of {service}", ("variable", "value", "from"), rows)
    if found["faults"]:
        raise Refused(f"{service} would not start:\n  " + "\n  ".join(found["faults"]))


def _of_the_stack() -> dict[str, str]:
    """What `up` tells its services; nothing where none is up."""
    from libs.local import services
    from libs.local.stack import attach

    stack = attach(home())
    return {} if stack is None else services.environment(stack)


# --- docs/configuration.md --------------------------------------------------------------------------------------------


def document(found: Sequence[dict[str, Any]]) -> str:
    """What each service says of its settings, for people."""
    shared = [{**one, "variable": f"ALMONER_{one['name'].upper()}"} for one in found[0]["settings"] if one["shared"]]
    lines = [_HEAD, "## All services", "", *_settings(shared)]
    for service in found:
        lines += ["", f"## {service['service']}", "", *_settings([one for one in service["settings"] if not one["shared"]])]
        for name, fields in service["parts"].items():
            lines += ["", f"### {name}", "", *_table([{**one, "variable": one["name"]} for one in fields], "field")]
    lines += ["", _PAGE_HEAD, *_counterparts({one["variable"]: one for of in found for one in of["settings"]})]
    return "\n".join(lines) + "\n"


def _settings(settings: list[dict[str, Any]]) -> list[str]:
    return _table(settings, "variable")


def _table(rows: list[dict[str, Any]], first: str) -> list[str]:
    lines = [f"| {first} | type | default | unit | rule | meaning |", "| --- | --- | --- | --- | --- | --- |"]
    for one in rows:
        default = "required" if one["default"] is None else _code(one["default"])
        cells = (_code(one["variable"]), one["type"], default, one["unit"], one["rule"], one["description"])
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return lines


def _counterparts(settings: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["| parameter | its default | here | default | what is different |", "| --- | --- | --- | --- | --- |"]
    for one in COUNTERPARTS:
        defaults = dict.fromkeys(_default(settings.get(variable)) for variable in one.variables)
        here = "<br>".join(map(_code, one.variables)) or "–"
        cells = (_code(one.page), one.default, here, ", ".join(defaults), one.difference)
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return lines


def _default(setting: dict[str, Any] | None) -> str:
    if setting is None or setting["default"] is None:
        return "required"
    if not setting["default"]:
        return "empty"
    default = setting["default"] if len(setting["default"]) <= 40 else "the usual form, above"
    return f"{default} {setting['unit']}".strip()


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    if not text.startswith("`"):
        text = text.replace("<", "&lt;").replace("&lt;br>", "<br>")
    return text.replace("|", "\\|")


def main() -> None:
    with ThreadPoolExecutor() as pool:
        DOCUMENT.write_text(document(list(pool.map(lambda service: described(service, {}), SERVICES))))


if __name__ == "__main__":
    main()
