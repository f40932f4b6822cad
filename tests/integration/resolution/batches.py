"""Batches as ingestion cuts them, people as the mapper knows them, resolution as a process."""

from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any
from uuid import UUID, uuid4

from libs.common.contracts.base import BatchHeader, Item, Items, Mnemonic, chunk
from libs.common.contracts.ingestion import BatchCut
from libs.common.contracts.resolution import BatchAddressesResolved
from libs.common.envelope import Event
from libs.common.seal import Sealer, by_column, by_person
from tests.support.process import Process
from tests.support.world import SEAL_KEYS, TOKEN_KEY, World

SEALER = Sealer(SEAL_KEYS, TOKEN_KEY)
BATCHES = "ingestion.batches.v1"
RESOLVED = "resolution.batches.v1"
COMMANDS = "resolution.commands.v1"
# For tests which count requests: none is given up only because the machine is busy.
PATIENT = {"ALMONER_RESOLUTION_RESOLVE_TIMEOUT_SECONDS": "10", "ALMONER_RESOLUTION_RESOLVE_LEASE_SECONDS": "25"}
FAS = (
    "account_number:ACC{0}.branch_code:B1.bank_code:EXB.mobile_number:+221{0}.email_address:.fa_type:BANK_ACCOUNT",
    "mobile_number:+221{0}.wallet_provider_name:Wave.wallet_provider_code:WV.fa_type:MOBILE_WALLET",
    "email_address:p{0}@d.example.wallet_provider_name:Pay.wallet_provider_code:PP.fa_type:EMAIL_WALLET",
)


def fa(person: str) -> str:
    """An address of one of the three types; the person's number decides."""
    number = person.rpartition("-")[2]
    return FAS[int(number) % 3].format(number)


def cut(people: Sequence[str], number: int = 1, envelope_id: UUID | None = None, **header: Any) -> BatchCut:
    """A batch which pays each person once, 10.00 and some cents. Disbursement ids: D<batch>-<position>."""
    batch_id, envelope_id = uuid4(), envelope_id or uuid4()
    items = [
        Item(disbursement_id=f"D{number}-{position}", beneficiary_id=person, amount_minor=1000 + position % 100)
        for position, person in enumerate(people)
    ]
    names = {item.disbursement_id: {"name": f"Name of {item.beneficiary_id}", "narrative": "March"} for item in items}
    fields: dict[str, Any] = {
        "envelope_id": envelope_id,
        "source": "test",
        "publisher_envelope_id": "E-1",
        "programme": Mnemonic(id="P1"),
        "benefit_code": Mnemonic(id="B1"),
        "benefit_type": "CASH_DIGITAL",
        "cycle": Mnemonic(id="C1"),
        "currency": "EUR",
        "schedule_date": date(2026, 3, 1),
        "batch_id": batch_id,
        "number": number,
    }
    return BatchCut(
        header=BatchHeader(**{**fields, **header}),
        **chunk(Items.of(items)),
        sealed=SEALER.seal(by_column(names), "BatchCut", envelope_id, batch_id),
    )


def publish(world: World, batches: Iterable[BatchCut]) -> None:
    for batch in batches:
        world.publish(BATCHES, batch, batch.header.batch_id, correlation_id=str(batch.header.envelope_id))


def run(world: World, mapper_url: str, **env: str) -> Process:
    """Resolution with short time-outs and leases, which gives nothing up."""
    settings = {
        "MAPPER_URL": mapper_url,
        "RESOLVE_TIMEOUT_SECONDS": "1.0",
        "RESOLVE_LEASE_SECONDS": "4.0",
        "RESOLVE_BACKOFF_FIRST_SECONDS": "0.1",
        "RESOLVE_BACKOFF_MAX_SECONDS": "0.5",
        "RESOLVE_MAX_ATTEMPTS": "100",
        "RESOLVE_BREAKER_FAILURES": "0",
    }
    return world.run("resolution", **{**{f"ALMONER_RESOLUTION_{name}": text for name, text in settings.items()}, **env})


def resolved(world: World, at_least: int) -> list[Event[BatchAddressesResolved]]:
    return world.events(RESOLVED, BatchAddressesResolved, at_least=at_least)


def opened(event: Event[BatchAddressesResolved]) -> dict[str, dict[str, str]]:
    header = event.data.header
    place = (header.envelope_id, header.batch_id, event.data.part)
    return by_person(SEALER.open_people(event.data.sealed, "BatchAddressesResolved", *place))


def ids(event: Event[BatchAddressesResolved]) -> tuple[list[str], list[str]]:
    """(resolved, unresolved) disbursement ids."""
    return [i.disbursement_id for i in event.data.items], [u.disbursement_id for u in event.data.unresolved]


def idle(world: World) -> bool:
    """Nothing is left to be asked or published."""
    rows = world.sql(
        "resolution",
        "SELECT (SELECT count(*) FROM work WHERE state IN ('PENDING', 'CLAIMED')) + (SELECT count(*) FROM outbox) AS n",
    )
    return bool(rows[0].n == 0)
