"""Stories of a file are told together, by one worker: were the group lost on the way, each worker would tell all of them."""

import os

import pytest


@pytest.mark.xdist_group("together")
def test_workers_know_groups(request: pytest.FixtureRequest) -> None:
    assert ("@together" in request.node.nodeid) == ("PYTEST_XDIST_WORKER" in os.environ)
