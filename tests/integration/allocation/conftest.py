from collections.abc import Iterator

import pytest

from tests.integration.allocation.goods import Allocating
from tests.support.world import World


@pytest.fixture
def allocating(world: World) -> Iterator[Allocating]:
    """With a PBMS of its own, in which there is nothing yet."""
    found = Allocating(world)
    found.reference.prepare()
    yield found
    for process in world.processes:
        process.kill()
    found.reference.drop()
