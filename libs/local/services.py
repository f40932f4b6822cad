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
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from libs.common.migrate import migrate
from libs.local.client import BankAdmin, Profile
from libs.local.stack import Stack, StackError, attach, tail
from libs.local.topics import ensure_topics

SERVICES = ("scheduler", "ingestion", "resolution", "funds")
REPLICATED = ("ingestion", "resolution", "funds")
SPONSOR_ACCOUNT = "ALMONER-SPONSOR"
CURRENCY = "KES"
SPONSOR_BALANCE_MINOR = 9 * 10**14
PROFILES: tuple[Profile, ...] = ("full", "example")
STATEMENT_PATH = "/statements"
READY_SECONDS = 60.0


def start(
    stack: Stack,
    *,
    replicas: int = 1,
    settings: Mapping[str, str] | None = None,
    push_after_ms: int = 150,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Start what doesn't run yet, and wait until all is ready. `settings` are more variables for every service.

    Raises StackError, with the end of the log of whoever did not start."""
    say("topics and schemas …")
    env = {**environment(stack), **(settings or {})}
    ensure_topics(stack.addresses.kafka)
    for service in SERVICES:
        migrate(stack.addresses.database_url, service)
    _seed_bank(stack, push_after_ms)
    say("services …")
    running = {process.name for process in stack.status()}
    names = [f"{service}-{n + 1}" for service in SERVICES for n in range(replicas if service in REPLICATED else 1)]
    for name in names:
        if name not in running:
            service = name.partition("-")[0]
            port = {f"ALMONER_{service.upper()}_HTTP_PORT": str(http_port(stack, name))}
            stack.start(name, [sys.executable, "-m", f"services.{service}", "run"], {**env, **port})
    for name in names:
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
    }
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(made, file)
    return made


def environment(stack: Stack) -> dict[str, str]:
    """What every service of the stack is told."""
    bank_url, kept = stack.addresses.bank_url, _secrets(stack.data_dir)
    return {
        **stack.env,
        "ALMONER_SEAL_KEYS": kept["seal_keys"],
        "ALMONER_TOKEN_KEY": kept["token_key"],
        "ALMONER_INGESTION_MODE": "open",
        "ALMONER_INGESTION_STATEMENT_TOKENS": json.dumps(kept["statement_tokens"]),
        "ALMONER_RESOLUTION_MAPPER_URL": stack.addresses.mapper_url,
        "ALMONER_FUNDS_BANKS": json.dumps(
            {profile.upper(): {"adapter": profile, "url": f"{bank_url}/{profile}"} for profile in PROFILES}
        ),
        "ALMONER_FUNDS_SPONSORS": json.dumps(
            {
                "default": {"bank": "FULL", "account": SPONSOR_ACCOUNT},
                "SCHOOL-MEALS/CASH-2026": {"bank": "EXAMPLE", "account": SPONSOR_ACCOUNT},  # a bank that can't be asked
            }
        ),
    }


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
