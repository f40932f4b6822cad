"""A module here may define `stories(bank) -> {name: teller}`; tests with a parameter `story` see how theirs went."""

from collections.abc import Iterator

import pytest

from libs.local.client import BankAdmin
from tests.faults.stories import Told, tell
from tests.support.simulator import SimulatorProcess
from tests.support.stacks import Databases
from tests.support.world import Kafka


@pytest.fixture(scope="module")
def told(
    request: pytest.FixtureRequest,
    kafka: Kafka,
    databases: Databases,
    template: str,
    bank_process: SimulatorProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Told]]:
    """The stories of this module's selected tests, told together."""
    calls = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    names = {params.get("story") for params in calls}
    with BankAdmin(bank_process.base_url) as bank:
        stories = {name: teller for name, teller in request.module.stories(bank).items() if name in names}
        yield tell(stories, kafka, databases, template, tmp_path_factory)


@pytest.fixture
def ended(story: str, told: dict[str, Told], request: pytest.FixtureRequest) -> Told:
    """How the test's story went; the logs of its processes are shown if it did not go well."""
    request.node.funcargs["world"] = told[story].world
    return told[story]
