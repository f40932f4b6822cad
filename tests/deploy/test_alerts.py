"""Prometheus' own tool on the rules: they are well formed, and each fires when it should and only then."""

import subprocess
from pathlib import Path

import pytest

from tests.deploy.promtool import promtool
from tests.support.world import World

BANKLESS = {"ALMONER_FUNDS_BANKS": "{}", "ALMONER_FUNDS_SPONSORS": "{}"}
FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"


@pytest.mark.parametrize(("what", "file"), [("check", "alerts.yaml"), ("test", "alerts_test.yaml")])
def test_promtool_agrees(what: str, file: str) -> None:
    done = subprocess.run([promtool(), what, "rules", file], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_promtool_finds_no_fault_with_what_a_service_shows(world: World) -> None:
    shown = world.run("funds", **BANKLESS).get("/metrics").text
    assert "almoner_books_off_balance_envelopes" in shown
    done = subprocess.run([promtool(), "check", "metrics"], input=shown, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
