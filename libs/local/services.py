"""All services on a stack: topics, keys, migrations, a sponsor at the simulated bank, and each service as processes.

Keys and tokens are made once and kept in the stack's data folder, readable by its owner only.
"""

import base64
import json
import os
import secrets
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from libs.common.migrate import migrate
from libs.local.client import BankAdmin, MailAdmin, NovuAdmin, Profile
from libs.local.reference import Reference
from libs.local.stack import Stack, StackError, attach, tail
from libs.local.topics import ensure_topics

SERVICES = ("scheduler", "ingestion", "resolution", "allocation", "funds", "notifications")
CASH = ("scheduler", "ingestion", "resolution", "funds")  # all that CASH_DIGITAL needs, without notices
REPLICATED = ("ingestion", "resolution", "allocation", "funds", "notifications")
SPONSOR_ACCOUNT = "ALMONER-SPONSOR"
CURRENCY = "KES"
SPONSOR_BALANCE_MINOR = 9 * 10**14
PROFILES: tuple[Profile, ...] = ("full", "example")
STATEMENT_PATH = "/statements"
READY_SECONDS = 60.0


def start(
    stack: Stack,
    *,
    names: Sequence[str] = SERVICES,
    replicas: int = 1,
    settings: Mapping[str, str] | None = None,
    push_after_ms: int = 150,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Start what doesn't run yet of these services, and wait until all is ready; all are migrated. `settings` are more
    variables for every service.

    Raises StackError, with the end of the log of whoever did not start."""
    say("topics and schemas …")
    env = {**environment(stack), **(settings or {})}
    ensure_topics(stack.addresses.kafka)
    for service in SERVICES:
        migrate(stack.addresses.database_url, service)
    Reference(stack.addresses.database_url).prepare()
    _seed_bank(stack, push_after_ms)
    _seed_novu(stack)
    say("services …")
    running = {process.name for process in stack.status()}
    processes = [f"{service}-{n + 1}" for service in names for n in range(replicas if service in REPLICATED else 1)]
    for name in processes:
        if name not in running:
            service = name.partition("-")[0]
            port = {f"ALMONER_{service.upper()}_HTTP_PORT": str(http_port(stack, name))}
            stack.start(name, [sys.executable, "-m", f"services.{service}", "run"], {**env, **port})
    for name in processes:
        _wait_until_ready(stack, name)


def http_port(stack: Stack, name: str) -> int:
    """The port of one replica ("funds-1"): health, metrics, and ingestion's door for statements."""
    return stack.free_port(f"{name}-http")


def statement_door(data_dir: Path) -> tuple[str, str] | None:
    """(URL, token) where statements can be handed in; None where no stack runs in this folder."""
    stack = attach(data_dir)
    if stack is None or "ingestion-1" not in {process.name for process in stack.status()}:
        return None
    return _statement_url(stack), str(_secrets(stack.data_dir)["statement_tokens"]["operator"])


def _statement_url(stack: Stack) -> str:
    return f"http://127.0.0.1:{http_port(stack, 'ingestion-1')}{STATEMENT_PATH}"


def _secrets(data_dir: Path) -> dict[str, Any]:
    path = data_dir / "secrets.json"
    with suppress(FileNotFoundError):
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    made = {
        "seal_keys": "k1:" + base64.b64encode(secrets.token_bytes(32)).decode(),
        "token_key": secrets.token_urlsafe(32),
        "statement_tokens": {name: secrets.token_urlsafe(32) for name in (*PROFILES, "operator")},
        "novu_api_key": secrets.token_urlsafe(32),
        "novu_webhook_secret": secrets.token_urlsafe(32),
    }
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(made, file)
    return made


def environment(stack: Stack) -> dict[str, str]:
    """What every service of the stack is told."""
    bank_url, kept = stack.addresses.bank_url, _secrets(stack.data_dir)
    reference = Reference(stack.addresses.database_url)
    return {
        **stack.env,
        "ALMONER_SEAL_KEYS": kept["seal_keys"],
        "ALMONER_TOKEN_KEY": kept["token_key"],
        "ALMONER_INGESTION_MODE": "open",
        "ALMONER_INGESTION_STATEMENT_TOKENS": json.dumps(kept["statement_tokens"]),
        "ALMONER_INGESTION_STATEMENTS_UNNUMBERED": json.dumps(["example"]),  # every one of its statements is 1/1
        "ALMONER_RESOLUTION_MAPPER_URL": stack.addresses.mapper_url,
        "ALMONER_RESOLUTION_REGISTRIES": json.dumps({"default": {"url": reference.registry_url}}),
        "ALMONER_ALLOCATION_PBMS_URL": reference.pbms_url,
        "ALMONER_FUNDS_BANKS": json.dumps(
            {profile.upper(): {"adapter": profile, "url": f"{bank_url}/{profile}"} for profile in PROFILES}
        ),
        "ALMONER_FUNDS_SPONSORS": json.dumps(
            {
                "default": {"bank": "FULL", "account": SPONSOR_ACCOUNT},
                "SCHOOL-MEALS/CASH-2026": {"bank": "EXAMPLE", "account": SPONSOR_ACCOUNT},  # a bank that can't be asked
            }
        ),
        **_notices(stack),
    }


def _notices(stack: Stack) -> dict[str, str]:
    """People are told by Novu, places by mail."""
    with MailAdmin(stack.addresses.mail_url) as mail:
        smtp_port = mail.smtp_port()
    kept = _secrets(stack.data_dir)
    told = {
        "WAREHOUSE_CHANNEL": "smtp",
        "AGENCY_CHANNEL": "smtp",
        "BENEFICIARY_CHANNEL": "novu",
        "NOVU_URL": stack.addresses.novu_url,
        "NOVU_API_KEY": kept["novu_api_key"],
        "NOVU_WEBHOOK_SECRET": kept["novu_webhook_secret"],
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": str(smtp_port),
        "SMTP_SECURITY": "none",
        "SMTP_SENDER": "almoner@localhost",
    }
    return {f"ALMONER_NOTIFICATIONS_{name}": value for name, value in told.items()}


def _seed_novu(stack: Stack) -> None:
    """Who is let in there, and whom it tells of deliveries."""
    kept, port = _secrets(stack.data_dir), http_port(stack, "notifications-1")
    with NovuAdmin(stack.addresses.novu_url) as novu:
        novu.set(
            api_key=kept["novu_api_key"],
            webhook_url=f"http://127.0.0.1:{port}/webhooks/novu",
            webhook_secret=kept["novu_webhook_secret"],
        )


def _seed_bank(stack: Stack, push_after_ms: int) -> None:
    """A sponsor with money, and statements pushed to ingestion; an account that is there keeps its balance."""
    with BankAdmin(stack.addresses.bank_url) as bank:
        for profile in PROFILES:
            try:
                bank.account(profile, SPONSOR_ACCOUNT)
            except httpx.HTTPStatusError:
                bank.put_account(profile, SPONSOR_ACCOUNT, CURRENCY, SPONSOR_BALANCE_MINOR)
        push_statements(stack, bank, push_after_ms)


def push_statements(stack: Stack, bank: BankAdmin, push_after_ms: int) -> None:
    """Have both profiles push their statements to ingestion, this long after the last booking."""
    for profile in PROFILES:
        bank.set_statements(
            profile,
            callback_url=_statement_url(stack),
            token=_secrets(stack.data_dir)["statement_tokens"][profile],
            push_after_ms=push_after_ms,
            max_lines=5000,
        )


def _wait_until_ready(stack: Stack, name: str) -> None:
    url = f"http://127.0.0.1:{http_port(stack, name)}/readyz"
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        with suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        if next(process.restarts for process in stack.status() if process.name == name) > 2:
            break
        time.sleep(0.05)
    raise StackError(f"{name} did not become ready:\n{tail(stack.log(name))}")
