"""Fixtures for tests on real Kafka, real PostgreSQL and real HTTP: one stack per session, one world per test."""

import compileall
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from libs.local.client import BankAdmin, MapperAdmin
from libs.local.stack import Addresses
from libs.local.supervisor import ROOT
from tests.support import stacks
from tests.support.simulator import SimulatorProcess
from tests.support.world import Kafka, World

# How fast a machine is says nothing of what is tested: no test fails for having been slow to make its examples. In CI they are
# the same each time, so that what fails there fails here.
settings.register_profile(
    "almoner", deadline=None, derandomize=os.environ.get("CI") == "true", suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("almoner")

SHARED: pytest.StashKey[tuple[str, str, str]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--stack",
        choices=["embedded", "containers"],
        default="embedded",
        help="where broker and database come from, unless the environment names them",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Compile once what hundreds of processes import, or each does so where the environment forbids them to keep it."""
    if not hasattr(config, "workerinput"):
        for folder in ("libs", "services", "tests/support"):
            compileall.compile_dir(ROOT / folder, quiet=2)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """One stack for all workers: each starts its tests with the addresses and the template's name."""
    held = ExitStack()
    config.add_cleanup(held.close)
    addresses = held.enter_context(stacks.started(config.getoption("--stack")))
    template = held.enter_context(stacks.Databases(addresses.database_url).template())
    config.stash[SHARED] = (addresses.kafka, addresses.database_url, template)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["shared"] = node.config.stash[SHARED]


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest) -> tuple[str, str, str] | None:
    """Broker, database server and template which the controller keeps for its workers; nothing in a session without workers."""
    return getattr(request.config, "workerinput", {}).get("shared")


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest, shared: tuple[str, str, str] | None) -> Iterator[Addresses]:
    if shared:
        yield Addresses(shared[0], shared[1])
    else:
        with stacks.started(request.config.getoption("--stack")) as addresses:
            yield addresses


@pytest.fixture(scope="session")
def kafka(stack: Addresses) -> Kafka:
    return Kafka(stack.kafka)


@pytest.fixture(scope="session")
def databases(stack: Addresses) -> stacks.Databases:
    return stacks.Databases(stack.database_url)


@pytest.fixture(scope="session")
def template(databases: stacks.Databases, shared: tuple[str, str, str] | None) -> Iterator[str]:
    if shared:
        yield shared[2]
    else:
        with databases.template() as name:
            yield name


@pytest.fixture
def world(kafka: Kafka, databases: stacks.Databases, template: str, tmp_path: Path) -> Iterator[World]:
    with closing(World(kafka, databases, template, tmp_path)) as world:
        yield world


@pytest.fixture(scope="session")
def bank_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatorProcess]:
    with SimulatorProcess("bank", tmp_path_factory.mktemp("bank")) as process:
        yield process


@pytest.fixture(scope="session")
def mapper_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatorProcess]:
    with SimulatorProcess("mapper", tmp_path_factory.mktemp("mapper")) as process:
        yield process


@pytest.fixture
def bank(bank_process: SimulatorProcess) -> Iterator[BankAdmin]:
    """The session's bank: use accounts of your own (`world.name`). Faults end with the test."""
    if bank_process.process is None:
        bank_process.start()  # a test had stopped it
    with BankAdmin(bank_process.base_url) as bank:
        yield bank
        if bank_process.process is not None:
            bank.delete_faults()


@pytest.fixture
def mapper(mapper_process: SimulatorProcess) -> Iterator[MapperAdmin]:
    """The session's mapper: use people of your own (ids with `world.name`). Faults and limits end with the test."""
    if mapper_process.process is None:
        mapper_process.start()
    with MapperAdmin(mapper_process.base_url) as mapper:
        yield mapper
        if mapper_process.process is not None:
            mapper.delete_faults()
            mapper.set_limits()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where a test fails, show what its processes said."""
    report = yield
    world = getattr(item, "funcargs", {}).get("world")
    if report.failed and isinstance(world, World):
        for process in world.processes:
            report.sections.append((f"log of {process.name}", "\n".join(process.log_text().splitlines()[-60:])))
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A skipped test is a failure: what needs a broker, a database or a simulator gets one. (One about processes needs Linux.)"""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if reporter and sys.platform == "linux" and skipped and exitstatus == pytest.ExitCode.OK:
        reporter.write_line(f"\n{len(skipped)} skipped: that fails the run", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
