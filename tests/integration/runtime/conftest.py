"""The runtime is tested with the probe, a service that exists only here, as a real separate process."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.support.other_side import OtherSide
from tests.support.probe.contracts import TOPICS
from tests.support.process import Process
from tests.support.stacks import Databases
from tests.support.world import SEAL_KEYS, TOKEN_KEY, World


@pytest.fixture(scope="session")
def template(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database in which the probe is migrated, by its own verb."""
    name = f"template_{uuid4().hex[:12]}"
    env = {"DATABASE_URL": databases.create(name), "ALMONER_SEAL_KEYS": SEAL_KEYS, "ALMONER_TOKEN_KEY": TOKEN_KEY}
    process = Process("probe-migrate", "tests.support.probe", "migrate", env, tmp_path_factory.mktemp("probe") / "log")
    assert process.wait() == 0, process.log_text()
    yield name
    databases.drop(name)


@pytest.fixture
def world(world: World) -> World:
    world.register(*TOPICS)
    return world


@pytest.fixture
def other_side() -> Iterator[OtherSide]:
    with OtherSide() as server:
        yield server
