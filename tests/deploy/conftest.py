import pytest


@pytest.fixture(autouse=True)
def _measured_often(request: pytest.FixtureRequest) -> None:
    """Nobody here waits for the usual five seconds between two looks at the gauges."""
    if "world" in request.fixturenames:
        request.getfixturevalue("world").env["ALMONER_MEASURE_SECONDS"] = "0.2"
