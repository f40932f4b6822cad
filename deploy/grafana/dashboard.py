"""Writes almoner.json, the Grafana dashboard: python -m deploy.grafana.dashboard"""

from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, StackingMode, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
)

PATH = Path(__file__).with_name("almoner.json")
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
JOB = 'job=~"$job"'


@dataclass(frozen=True)
class Panel:
    """`queries`: legend -> PromQL. A number is red from `red` on."""

    title: str
    unit: str
    queries: dict[str, str]
    description: str = ""
    red: float | None = None
    stacked: bool = False
    span: int = 8


def p95(metric: str, label: str) -> str:
    return f"histogram_quantile(0.95, sum by ({label}, le) (rate({metric}_bucket{{{JOB}}}[5m])))"


# What is the same in every replica is shown once: the highest of them.
ROWS: dict[str, list[Panel]] = {
    "Overview": [
        Panel("Alerts", "none", {"": 'sum(ALERTS{alertname=~"Almoner.*", alertstate="firing"}) or vector(0)'}, red=1, span=4),
        Panel("Processes not ready", "none", {"": f"count(almoner_ready{{{JOB}}} == 0) or vector(0)"}, red=1, span=4),
        Panel("Dead letters", "none", {"": "sum(max by (job, topic, code) (almoner_dead_letters_open)) or vector(0)"}, red=1, span=4),
        Panel("Stages paused", "none", {"": "sum(max by (job, stage) (almoner_paused)) or vector(0)"}, red=1, span=4),
        Panel("Money unknown", "none", {"": "count(max by (programme, currency, kind) (almoner_unknown_minor)) or vector(0)"},
              "programmes and kinds of call", red=1, span=4),
        Panel("Off balance", "none", {
            "money": "max(almoner_books_off_balance_envelopes)",
            "goods": "max(almoner_goods_off_balance_envelopes)",
        }, "envelopes", red=1, span=4),
        Panel("Lag in messages", "short", {"{{job}} {{topic}}": f"job_topic:kafka_consumergroup_lag:sum{{{JOB}}}"},
              "a message carries up to 1,000 disbursements"),
        Panel("Lag in seconds (95 %)", "s", {"{{job}}": f"job:almoner_event_age_seconds:p95_5m{{{JOB}}}"},
              "age of events when they are handled; what was parked or redriven counts with its whole age"),
        Panel("Events a second", "ops",
              {"{{job}}": f'sum by (job) (rate(almoner_events_handled_total{{{JOB}, outcome="handled"}}[5m]))'}),
        Panel("Errors a second", "ops", {
            "{{job}} dead letters": f"sum by (job) (rate(almoner_dead_letters_total{{{JOB}}}[5m]))",
            "{{job}} calls": f'sum by (job) (rate(almoner_calls_total{{{JOB}, outcome!="Done"}}[5m]))',
            "{{job}} decisions": f'sum by (job) (rate(almoner_jobs_total{{{JOB}, outcome="failed"}}[5m]))',
        }),
        Panel("Partitions by replica", "none", {"{{job}} {{instance}}": f"sum by (job, instance) (almoner_partitions_assigned{{{JOB}}})"}),
        Panel("Seen before", "ops", {"{{job}}": f'sum by (job) (rate(almoner_events_handled_total{{{JOB}, outcome="repeated"}}[5m]))'},
              "events which were delivered again, and changed nothing"),
    ],
    "Stages": [
        Panel("Events by type", "ops",
              {"{{type}}": f'sum by (type) (rate(almoner_events_handled_total{{{JOB}, outcome="handled"}}[5m]))'}),
        Panel("Duration of handlers (95 %)", "s", {"{{type}}": p95("almoner_handler_seconds", "type")}),
        Panel("Time spent in handlers", "percentunit",
              {"{{type}}": f"sum by (type) (rate(almoner_handler_seconds_sum{{{JOB}}}[5m]))"}, "100 %: one replica all the time"),
        Panel("Decisions a second", "ops",
              {"{{decision}} {{outcome}}": f"sum by (decision, outcome) (rate(almoner_jobs_total{{{JOB}}}[5m]))"}),
        Panel("Oldest decision due", "s", {"{{decision}}": f"max by (decision) (almoner_jobs_oldest_seconds{{{JOB}}})"}),
        Panel("Paused", "none", {"{{job}} {{stage}}": f"max by (job, stage) (almoner_paused{{{JOB}}}) == 1"}),
    ],
    "Outside calls": [
        Panel("Calls a second", "ops", {"{{kind}} {{outcome}}": f"sum by (kind, outcome) (rate(almoner_calls_total{{{JOB}}}[5m]))"}),
        Panel("Without a definite answer", "percentunit", {
            "{{kind}} 5 min": f"job_kind:almoner_calls_failed:ratio_rate5m{{{JOB}}}",
            "{{kind}} 1 h": f"job_kind:almoner_calls_failed:ratio_rate1h{{{JOB}}}",
        }, "the error budget is 1 %"),
        Panel("Duration (95 %)", "s", {"{{kind}}": p95("almoner_call_seconds", "kind")}),
        Panel("Open calls", "short",
              {"{{kind}} {{state}}": f'max by (job, kind, state) (almoner_work_rows{{{JOB}, state!~"DONE|VOID"}})'}),
        Panel("Oldest call", "s", {"{{kind}}": f"max by (job, kind) (almoner_work_oldest_seconds{{{JOB}}})"}),
        Panel("Breakers open", "none", {"{{job}} {{kind}}": f"max by (job, kind) (almoner_breaker_open{{{JOB}}})"}),
        Panel("Answers after their lease", "ops", {"{{kind}}": f"sum by (kind) (rate(almoner_late_settles_total{{{JOB}}}[5m]))"}),
    ],
    "Money": [
        Panel("Held", "short", {"{{programme}} {{currency}} {{reason}}": "max by (programme, currency, reason) (almoner_held_minor)"},
              "minor units", stacked=True, span=12),
        Panel("Unknown", "short", {"{{programme}} {{currency}} {{kind}}": "max by (programme, currency, kind) (almoner_unknown_minor)"},
              "minor units", stacked=True, span=12),
        Panel("Books", "none", {
            "off balance": "max(almoner_books_off_balance_envelopes)",
            "looked at": "max(almoner_books_checked_envelopes)",
        }, "envelopes that still move, or moved within a day", span=12),
        Panel("Age of these gauges", "s",
              {"{{measure}}": 'time() - min by (measure) (almoner_measured_timestamp_seconds{measure=~"money|books"})'}, span=12),
    ],
    "Goods and agency cash": [
        Panel("Entitlements held", "short",
              {"{{programme}} {{reason}} ({{unit}})": "max by (programme, unit, reason) (almoner_entitlements_held_people)"},
              "of goods; what is held of agency cash is money", stacked=True),
        Panel("Goods held", "short",
              {"{{programme}} {{reason}} × {{unit}}": "max by (programme, unit, reason) (almoner_entitlements_held_minor)"},
              "each in its own unit"),
        Panel("Not announced", "s", {"": "max(almoner_announce_oldest_seconds)"},
              "how long the oldest envelope could have been announced, and nothing was said of it"),
        Panel("Age of warehouses and agencies", "s", {"{{source}}": "max by (source) (almoner_reference_age_seconds)"},
              "since PBMS was read, or a topic said anything"),
        Panel("Balance", "none", {
            "off balance": "max(almoner_goods_off_balance_envelopes)",
            "looked at": "max(almoner_goods_checked_envelopes)",
        }, "envelopes that still move, or moved within a day"),
        Panel("Age of these gauges", "s",
              {"{{measure}}": 'time() - min by (measure) (almoner_measured_timestamp_seconds{measure=~"entitlements|goods"})'}),
    ],
    "Notices": [
        Panel("Open", "short", {"{{state}}": "max by (state) (almoner_notices_open)"}),
        Panel("Oldest that waits", "s", {"": "max(almoner_notices_oldest_seconds)"}),
        Panel("Failed within a day", "short", {"{{kind}} {{code}}": "max by (kind, code) (almoner_notices_failed)"},
              "and not sent again since", stacked=True),
        Panel("Mailings a second", "ops",
              {"{{kind}} {{outcome}}": 'sum by (kind, outcome) (rate(almoner_calls_total{kind=~"novu|smtp|file"}[5m]))'},
              "a mailing carries up to 100 notices"),
        Panel("Payments parked", "short", {"": "max(almoner_payments_parked)"}, "of people whose part of the batch has not come"),
        Panel("Age of these gauges", "s",
              {"{{measure}}": 'time() - min by (measure) (almoner_measured_timestamp_seconds{measure="notices"})'}),
    ],
    "Runtime": [
        Panel("Outbox", "short", {
            "{{job}}": f"max by (job) (almoner_outbox_rows{{{JOB}}})",
            "{{job}} refused": f"max by (job) (almoner_outbox_stuck_rows{{{JOB}}}) > 0",
        }, "events committed and not yet published"),
        Panel("Oldest event in the outbox", "s", {"{{job}}": f"max by (job) (almoner_outbox_oldest_seconds{{{JOB}}})"}),
        Panel("Published a second", "ops", {"{{job}}": f"sum by (job) (rate(almoner_relayed_total{{{JOB}}}[5m]))"}),
        Panel("Dead letters", "short", {"{{job}} {{topic}} {{code}}": f"max by (job, topic, code) (almoner_dead_letters_open{{{JOB}}})"}),
        Panel("Lateness of ticks", "s", {"{{tick}}": "max by (tick) (almoner_tick_lag_seconds)"}),
        Panel("CPU", "percentunit", {"{{job}} {{instance}}": f"rate(process_cpu_seconds_total{{{JOB}}}[5m])"}),
        Panel("Memory", "bytes", {"{{job}} {{instance}}": f"process_resident_memory_bytes{{{JOB}}}"}),
        Panel("Starts in an hour", "none", {"{{job}}": f"sum by (job) (changes(process_start_time_seconds{{{JOB}}}[1h]))"}),
    ],
}  # fmt: skip


def built() -> str:
    """The dashboard as Grafana reads it."""
    board = (
        dashboard.Dashboard("Almoner")
        .uid("almoner")
        .tags(["almoner"])
        .description(
            "Delivery of benefits: lag, stages, outside calls, money, goods, notices, runtime. Written by deploy/grafana/dashboard.py."
        )
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("utc")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("job")
            .label("Service")
            .query("label_values(almoner_ready, job)")
            .datasource(SOURCE)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .current(VariableOption(text="All", value="$__all"))
        )
    )
    number = 0
    for name, panels in ROWS.items():
        number += 1
        board.with_row(dashboard.Row(name).id(number))
        for panel in panels:
            number += 1
            board.with_panel((_graph if panel.red is None else _number)(panel).id(number))
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


def _graph(panel: Panel) -> timeseries.Panel:
    graph = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .min(0)
        .span(panel.span)
        .height(8)
        .fill_opacity(10)
        .datasource(SOURCE)
        .targets(_targets(panel))
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .calcs([])
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if panel.stacked:
        graph.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    return graph


def _number(panel: Panel) -> stat.Panel:
    assert panel.red is not None
    steps = [Threshold(value=None, color="green"), Threshold(value=panel.red, color="red")]
    return (
        stat.Panel()
        .title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .span(panel.span)
        .height(4)
        .datasource(SOURCE)
        .targets(_targets(panel))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    )


def _targets(panel: Panel) -> list[Builder[Dataquery]]:
    return [
        prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(chr(ord("A") + number)).range()
        for number, (legend, expr) in enumerate(panel.queries.items())
    ]


if __name__ == "__main__":
    PATH.write_text(built())
