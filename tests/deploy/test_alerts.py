"""Prometheus' own tool on the rules: they are well formed, and each fires when it should and only then."""

import subprocess
from pathlib import Path

import pytest

from tests.deploy.promtool import promtool
from tests.support.world import World

# Each with neither bank nor PBMS nor mail server, and a gauge of its own.
SERVICES = {
    "funds": ("almoner_books_off_balance_envelopes", {"BANKS": "{}", "SPONSORS": "{}"}),
    "allocation": ("almoner_goods_off_balance_envelopes", {"REFERENCE_SOURCE": "topic"}),
    "notifications": (
        "almoner_notices_oldest_seconds",
        {"WAREHOUSE_CHANNEL": "none", "AGENCY_CHANNEL": "none", "BENEFICIARY_CHANNEL": "none"},
    ),
}
FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"


@pytest.mark.parametrize(
    ("what", "file"), [("check", "alerts.yaml"), ("test", "alerts_test.yaml"), ("test", "alerts_days_test.yaml")]
)
def test_promtool_agrees(what: str, file: str) -> None:
    done = subprocess.run([promtool(), what, "rules", file], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


@pytest.mark.parametrize("service", SERVICES)
def test_promtool_finds_no_fault_with_what_a_service_shows(world: World, service: str) -> None:
    gauge, settings = SERVICES[service]
    shown = (
        world.run(service, **{f"ALMONER_{service.upper()}_{name}": text for name, text in settings.items()})
        .get("/metrics")
        .text
    )
    assert gauge in shown
    done = subprocess.run([promtool(), "check", "metrics"], input=shown, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
