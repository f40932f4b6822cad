"""What needs no promtool: rules and dashboard name metrics that there are, each alert has its entry in the runbook, and a case in
which it fires and one in which it does not."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY
from typer.main import get_command

from deploy.grafana import dashboard
from libs.cli.app import app
from libs.common import metrics

ROOT = Path(__file__).parents[3]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()

RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
FILES = ("alerts_test.yaml", "alerts_days_test.yaml")
CASES: list[dict[str, Any]] = [case for file in FILES for case in yaml.safe_load((PROMETHEUS / file).read_text())["tests"]]
OF_PROMETHEUS = {"ALERTS"}
NAME = re.compile(r"\b(?:almoner|kafka|process|python|job)_?\w*(?::\w+)*\b|\bALERTS\b")


def exported() -> set[str]:
    """Every sample's name that a service may show."""
    assert metrics.LAG
    for path in sorted((ROOT / "services").glob("*/wiring.py")):
        importlib.import_module(f"services.{path.parent.name}.wiring")
    suffixes = {"gauge": [""], "counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    return {family.name + suffix for family in REGISTRY.collect() for suffix in suffixes.get(family.type, [""])}


def named(expr: str) -> set[str]:
    """The metrics of an expression: what is neither a label nor a value of one."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    bare = re.sub(r"\{[^}]*\}", "", bare)
    bare = re.sub(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    return set(NAME.findall(bare))


def expressions() -> list[str]:
    board = json.loads(dashboard.PATH.read_text())
    panels = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    return [rule["expr"] for rule in RULES] + panels


@pytest.mark.parametrize("expr", expressions())
def test_every_metric_there_is_talk_of_exists(expr: str) -> None:
    assert named(expr)
    assert named(expr) - exported() - RECORDED - OF_PROMETHEUS == set()


def test_every_recorded_series_is_used() -> None:
    used = {name for expr in expressions() for name in named(expr)}
    assert RECORDED - used == set()


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_an_alert_says_how_bad_what_and_where_to_read_on(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{alert.lower()}"


def test_every_alert_has_its_entry_in_the_runbook_and_every_entry_its_alert() -> None:
    entries = re.findall(r"^### (Almoner\w+)$", RUNBOOK, re.MULTILINE)
    assert sorted(entries) == sorted(ALERTS)


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_an_entry_has_what_somebody_who_was_woken_needs(alert: str) -> None:
    [entry] = re.findall(rf"^### {alert}\n(.*?)(?=^##|\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    for part in ("Symptom", "Meaning", "Check", "Do"):
        assert re.search(rf"^\*\*{part}:\*\* \S", entry, re.MULTILINE), part
    assert "`" in entry  # a command, or what to look at


@pytest.mark.parametrize("line", sorted(set(re.findall(r"`almoner ([^`]+)`", RUNBOOK))))
def test_every_command_of_the_runbook_exists(line: str) -> None:
    command: Any = get_command(app)
    words = line.split()
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("-")} <= options


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_an_alert_is_tested_with_a_series_that_fires_and_one_that_does_not(alert: str) -> None:
    cases = [
        (check, check["exp_samples"])
        for case in CASES
        for check in case["promql_expr_test"]
        if re.search(rf"\b{alert}\b", check["expr"])
    ]
    fires = [samples for _, samples in cases if samples]
    assert fires
    assert len(fires) < len(cases)
    [sample] = fires[0]
    labels = set(re.findall(r"(\w+)=", sample["labels"]))
    said = " ".join(ALERTS[alert]["annotations"].values())
    assert set(re.findall(r"\$labels\.(\w+)", said)) <= labels  # or the words would have gaps


def test_no_label_of_ours_is_one_that_prometheus_gives() -> None:
    """It would be renamed when it is scraped, and every rule would look for it in vain."""
    exported()
    found = {(metric.name, label) for metric in REGISTRY.collect() for sample in metric.samples for label in sample.labels}
    declared = {
        (name, label)
        for name, collector in REGISTRY._names_to_collectors.items()
        for label in getattr(collector, "_labelnames", ())
    }
    assert {pair for pair in found | declared if pair[1] in ("job", "instance")} == set()


def test_the_dashboard_has_not_drifted() -> None:
    assert dashboard.PATH.read_text() == dashboard.built(), "run `python -m deploy.grafana.dashboard`"


def test_the_dashboard_asks_of_its_data_source_only_and_every_panel_has_a_place() -> None:
    panels = json.loads(dashboard.PATH.read_text())["panels"]
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == list(dashboard.ROWS)
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    for panel in panels:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["targets"]
