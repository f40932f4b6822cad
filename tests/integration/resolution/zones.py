"""A registry of people in zones, batches of goods for them, and what resolution says of both."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import sqlalchemy

from libs.common.contracts.ingestion import BatchCut
from libs.common.contracts.resolution import BatchZonesResolved
from libs.common.envelope import Event
from libs.common.seal import by_person
from libs.local.reference import READER, Reference
from tests.integration.resolution.batches import RESOLVED, SEALER, cut, run
from tests.support.process import Process
from tests.support.world import World

GOODS = {"benefit_type": "COMMODITY", "currency": "", "measurement_unit": "kg", "unit_scale": 3, "target_registry": "farmers"}


class Registry(Reference):
    """A world's own registry; `name` is its database."""

    def __init__(self, world: World) -> None:
        super().__init__(world.database_url, f"{world.name}_")
        self.name = f"{world.name}_registry"
        self._url = sqlalchemy.make_url(world.database_url).set(database=self.name)

    def sql(self, *statements: str) -> None:
        """As its owner; whoever reads may read what is new."""
        engine = sqlalchemy.create_engine(self._url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            for statement in (*statements, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {READER}"):
                connection.exec_driver_sql(statement.replace("%", "%%"))

    def settings(self, **changed: str) -> dict[str, str]:
        return {"url": self.registry_url, **changed}


@contextmanager
def registry_of(world: World) -> Iterator[Registry]:
    registry = Registry(world)
    registry.prepare()
    try:
        yield registry
    finally:
        for process in world.processes:
            process.kill()
        registry.drop()


def zone(number: int) -> tuple[str, str, str, str]:
    """Of forty small zones in five large ones; their ids are odd."""
    large, small = number % 40 // 8, number % 40
    return f"L/{large} 'é\"", f"large-{large}", f"Ñ%s:{small};--🌾", f"small-{small}"


def goods(people: Sequence[str], number: int = 1, envelope_id: UUID | None = None, **header: Any) -> BatchCut:
    return cut(people, number, envelope_id, **{**GOODS, **header})


def start(world: World, registries: dict[str, Any], **env: str) -> Process:
    """Resolution with short time-outs, and no mapper."""
    settings = {
        "REGISTRIES": json.dumps(registries),
        "LOCATE_TIMEOUT_SECONDS": "2.0",
        "LOCATE_LEASE_SECONDS": "6.0",
        "LOCATE_BACKOFF_FIRST_SECONDS": "0.1",
        "LOCATE_BACKOFF_MAX_SECONDS": "0.5",
        "LOCATE_MAX_ATTEMPTS": "100",
        "LOCATE_BREAKER_FAILURES": "0",
    }
    return run(
        world, "http://127.0.0.1:1", **{**{f"ALMONER_RESOLUTION_{name}": text for name, text in settings.items()}, **env}
    )


def located(world: World, at_least: int) -> list[Event[BatchZonesResolved]]:
    return world.events(RESOLVED, BatchZonesResolved, at_least=at_least)


def opened(event: Event[BatchZonesResolved]) -> dict[str, Any]:
    header = event.data.header
    place = (header.envelope_id, header.batch_id, event.data.part)
    return by_person(SEALER.open_people(event.data.sealed, "BatchZonesResolved", *place))


def homes(data: BatchZonesResolved) -> dict[str, tuple[str, str]]:
    """Disbursement -> ids of large and small zone."""
    return {
        item.disbursement_id: (data.zones[item.zone].large_zone_id, data.zones[item.zone].small_zone_id) for item in data.items
    }


def reasons(data: BatchZonesResolved) -> dict[str, str]:
    return {one.disbursement_id: one.reason for one in data.unresolved}
