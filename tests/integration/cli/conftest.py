"""All services at work in a test's world, and `almoner` as a process of its own."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from libs.cli import sample
from libs.local.client import BankAdmin, MailAdmin, MapperAdmin, NovuAdmin
from libs.local.reference import Reference
from tests.support import forked
from tests.support.simulator import SimulatorProcess
from tests.support.world import World

SPONSOR = "SPONSOR"
PLAIN_NAME = "SCHOOL-MEALS/CASH-2026"  # paid by a bank that can be asked nothing
CURRENCY = "KES"
TOKEN = "a token for tests only"


class Almoner:
    """The command, in a test's world."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.folder = folder

    def almoner(self, *argv: str, code: int = 0, **env: str) -> str:
        """Run a verb; its standard output. Fails where it ends with another code than expected."""
        return self.run(*argv, code=code, **env).stdout

    def run(self, *argv: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        done = forked.run("libs.cli", argv, {**self.world.env, **env})
        assert done.returncode == code, f"{argv} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *argv: str, code: int = 0, **env: str) -> Any:
        return json.loads(self.almoner(*argv, "-o", "json", code=code, **env))


class Town(Almoner):
    """The command, and everything it speaks of: services, a bank, a mapper."""

    def __init__(self, world: World, folder: Path, bank: BankAdmin, mapper: MapperAdmin) -> None:
        super().__init__(world, folder)
        self.bank = bank
        self.mapper = mapper

    def submit(self, envelope_id: str, count: int, strangers: int = 0, options: Sequence[str] = ()) -> list[str]:
        """Submit the sample; the mapper does not know the last `strangers`. Returns the disbursements' ids."""
        path = self.folder / f"{envelope_id}.csv"
        sample.write(path, count)
        people = list(sample.people(count))
        self.mapper.put_people((person, sample.address(person)) for _, person, _, _ in people[: count - strangers])
        self.almoner("submit", str(path), *sample.envelope_options(envelope_id, CURRENCY), *options, "--yes")
        return [row[0] for row in people]


@pytest.fixture
def alone(world: World, tmp_path: Path) -> Almoner:
    """The command with broker and database, and no service at work."""
    world.topics("ingestion.results.v1", "ingestion.inbox-envelopes.v1")
    return Almoner(world, tmp_path)


@pytest.fixture
def limits() -> dict[str, str]:
    """More settings of the town's services; a test file may have its own."""
    return {}


@pytest.fixture
def town(world: World, tmp_path: Path, limits: dict[str, str]) -> Iterator[Town]:
    with (
        SimulatorProcess("bank", tmp_path / "bank") as bank_process,
        SimulatorProcess("mapper", tmp_path / "mapper") as mapper_process,
        BankAdmin(bank_process.base_url) as bank,
        MapperAdmin(mapper_process.base_url) as mapper,
    ):
        banks = {
            "FULL": {"adapter": "full", "url": f"{bank_process.base_url}/full"},
            "PLAIN": {"adapter": "example", "url": f"{bank_process.base_url}/example"},
        }
        sponsors = {"default": {"bank": "FULL", "account": SPONSOR}, PLAIN_NAME: {"bank": "PLAIN", "account": SPONSOR}}
        world.topics("ingestion.results.v1", "funds.commands.v1", "funds.payments.v1", "funds.envelopes.v1")
        world.run("scheduler")
        ingestion = world.run("ingestion", ALMONER_INGESTION_STATEMENT_TOKENS=json.dumps({"full": TOKEN}))
        registries = json.dumps({"default": {"url": Reference(world.database_url, prefix=world.name).registry_url}})
        world.env["ALMONER_RESOLUTION_REGISTRIES"] = registries  # which is there where `places` is
        world.run("resolution", **limits, ALMONER_RESOLUTION_MAPPER_URL=mapper_process.base_url)
        world.run(
            "funds",
            **limits,
            ALMONER_FUNDS_BANKS=json.dumps(banks),
            ALMONER_FUNDS_SPONSORS=json.dumps(sponsors),
            ALMONER_FUNDS_POSITION_SECONDS="1",
        )
        for profile in ("full", "example"):
            bank.put_account(profile, SPONSOR, CURRENCY, 10**12)
            bank.set_statements(profile, callback_url=f"{ingestion.http_url}/statements", token=TOKEN, push_after_ms=100)
        for process in world.processes:
            world.until(process.ready, what=f"{process.name} being ready")
        yield Town(world, tmp_path, bank, mapper)


@contextmanager
def places(world: World, folder: Path) -> Iterator[Reference]:
    """Allocation and notifications, with a registry and a PBMS that are empty, a Novu and a mail server."""
    reference = Reference(world.database_url, prefix=world.name)
    reference.prepare()
    with (
        SimulatorProcess("novu", folder / "novu") as novu_process,
        SimulatorProcess("mail", folder / "mail") as mail_process,
        NovuAdmin(novu_process.base_url) as novu,
        MailAdmin(mail_process.base_url) as mail,
    ):
        novu.set(api_key="key")
        told = {
            "WAREHOUSE_CHANNEL": "smtp",
            "AGENCY_CHANNEL": "smtp",
            "BENEFICIARY_CHANNEL": "novu",
            "NOVU_URL": novu_process.base_url,
            "NOVU_API_KEY": "key",
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(mail.smtp_port()),
            "SMTP_SECURITY": "none",
            "SMTP_SENDER": "almoner@example.org",
        }
        world.env.update({f"ALMONER_NOTIFICATIONS_{name}": value for name, value in told.items()})
        world.env["ALMONER_RESOLUTION_REGISTRIES"] = json.dumps({"default": {"url": reference.registry_url}})
        world.run("allocation", ALMONER_ALLOCATION_PBMS_URL=reference.pbms_url)
        world.run("notifications")
        yield reference
        for process in world.processes:
            process.kill()
        reference.drop()
