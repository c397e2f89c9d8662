"""
The dashboards of dashboards/*.json: ``python ops/grafana/dashboards.py`` writes them anew.

Grafana needs the JSON only, and a test holds it to this file.  Every exporter
tells the whole cluster's numbers, so ``max without (instance)`` joins several.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Final, TypeAlias

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

__all__ = ["DASHBOARDS", "FOLDER", "circuit", "encode", "overview"]

FOLDER: Final = Path(__file__).parent / "dashboards"

#: Values a gauge can have -> what the panel says, in which colour.
Words: TypeAlias = Mapping[str, tuple[str, str]]
#: What a series is called in the legend -> its expression.
Lines: TypeAlias = Mapping[str, str]
Panel: TypeAlias = stat.Panel | statetimeline.Panel | table.Panel | timeseries.Panel

STATES: Final[Words] = {"0": ("closed", "green"), "1": ("open", "red"), "2": ("half open", "yellow")}
OVERRIDES: Final[Words] = {"0": ("none", "green"), "1": ("forced open", "red"), "2": ("forced closed", "orange")}
ANSWERS: Final[Words] = {"0": ("no answer", "red"), "1": ("answers", "green")}
YES: Final[Words] = {"0": ("no", "green"), "1": ("yes", "red")}

_SOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="${datasource}")


# ---------------------------------------------------------------- kinds of panels


def number(title: str, expression: str, *, unit: str = "short", words: Words | None = None, span: int = 4) -> Panel:
    """
    Show the last value; nothing, not 0, where there is none.
    """
    return _stat(title, span).unit(unit).mappings(_mappings(words or {})).with_target(_query(expression).instant())


def label(title: str, expression: str, name: str, *, span: int = 4) -> Panel:
    """
    Show a label of the last series.
    """
    target = _query(expression).instant().legend_format(f"{{{{{name}}}}}")
    return _stat(title, span).text_mode(options.BigValueTextMode.NAME).with_target(target)


def bands(title: str, lines: Lines, words: Words, *, span: int = 24) -> Panel:
    """
    Show values that have names, as bands over time.
    """
    panel = statetimeline.Panel().title(title).datasource(_SOURCE).span(span).height(6)
    panel = panel.mappings(_mappings(words)).show_value(options.VisibilityMode.NEVER)
    return panel.targets(_queries(lines))


def graph(title: str, lines: Lines, *, unit: str = "short", span: int = 8, about: str = "") -> Panel:
    """
    Show lines over time.
    """
    legend = common.VizLegendOptions().display_mode(options.LegendDisplayMode.LIST).show_legend(show_legend=True)
    panel = timeseries.Panel().title(title).datasource(_SOURCE).span(span).height(8).unit(unit).min(0)
    panel = panel.description(about).legend(legend.placement(options.LegendPlacement.BOTTOM)).fill_opacity(10)
    return panel.targets(_queries(lines))


def rows(title: str, expression: str, *, span: int = 12) -> Panel:
    """
    Show the labels of the present series as a table.
    """
    target = _query(expression).instant().format(PromQueryFormat.TABLE)
    return table.Panel().title(title).datasource(_SOURCE).span(span).height(8).with_target(target)


def _stat(title: str, span: int) -> stat.Panel:
    # All are asked for now only: over a range, the last value would stay when its series is gone.
    shown = common.ReduceDataOptions().calcs(["last"])
    panel = stat.Panel().title(title).datasource(_SOURCE).span(span).height(4).reduce_options(shown)
    return panel.graph_mode(options.BigValueGraphMode.NONE).no_value("unknown")


def _query(expression: str, letter: str = "A") -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expression).ref_id(letter)


def _queries(lines: Lines) -> list[Builder[Dataquery]]:
    return [
        _query(expression, letter).range().legend_format(name)
        for letter, (name, expression) in zip(ascii_uppercase, lines.items(), strict=False)
    ]


def _mappings(words: Words) -> list[model.ValueMapping]:
    named = {
        value: model.ValueMappingResult(text=text, color=color, index=index)
        for index, (value, (text, color)) in enumerate(words.items())
    }
    return [model.ValueMap(options=named)] if named else []


# ---------------------------------------------------------------- the two dashboards


def overview() -> model.Dashboard:
    """
    All circuits at once, and whether the watchers watch.
    """
    return _lay_out(
        _dashboard("omni_tasks: all circuits", "omni-tasks-overview"),
        number("Away from closed", "sum(max by (component) (circuit_breaker_state) > bool 0)"),
        number("Held tasks", "sum(max by (component) (circuit_breaker_held_tasks))"),
        # 0 only where the store has answered that there is none.
        number(
            "Alerts of the monitor", "count(circuit_breaker_alerts_firing) or 0 * max(circuit_breaker_store_up == 1)"
        ),
        number("Store", "min(circuit_breaker_store_up)", words=ANSWERS),
        number("Broker, for held tasks", "min(circuit_breaker_lot_up)", words=ANSWERS),
        number("Last tick", "time() - max(circuit_breaker_monitor_last_tick_timestamp_seconds)", unit="s"),
        bands("State", {"{{component}}": "max by (component) (circuit_breaker_state)"}, STATES),
        graph("Calls", {"{{component}}": _rate("requests")}, unit="reqps"),
        graph("Failed share", {"{{component}}": "component:circuit_breaker_failures:ratio_rate5m"}, unit="percentunit"),
        graph(
            "Refused", {"{{component}}": _rate("rejected")}, unit="reqps", about="Calls refused, held tasks included."
        ),
        graph("Held tasks", {"{{component}}": "max without (instance) (circuit_breaker_held_tasks)"}),
        graph(
            "Oldest held task",
            {"{{component}}": "max without (instance) (circuit_breaker_held_oldest_age_seconds)"},
            unit="s",
        ),
        graph(
            "Away from closed", {"{{component}}": "max without (instance) (circuit_breaker_outage_seconds)"}, unit="s"
        ),
        rows("Alerts of Prometheus", 'ALERTS{alertname=~"Circuit.+|HeldTasks.+", alertstate="firing"}'),
        rows("Alerts of the monitor", "max without (instance) (circuit_breaker_alerts_firing)"),
        graph(
            "The watchers' own time",
            {
                "scrape": "max(circuit_breaker_scrape_duration_seconds)",
                "tick": "max(circuit_breaker_monitor_tick_duration_seconds)",
            },
            unit="s",
        ),
        graph(
            "Store errors", {"{{instance}}": "rate(circuit_breaker_store_errors_total[$__rate_interval])"}, unit="cps"
        ),
        graph(
            "Deliveries of alerts",
            {"{{sink}} {{result}}": _rate("alert_deliveries")},
            unit="cps",
        ),
        graph(
            "Away from closed, by the hour",
            {"{{component}}": "component:circuit_breaker_away:ratio1h"},
            unit="percentunit",
            span=12,
        ),
        graph("Openings, by the hour", {"{{component}}": "component:circuit_breaker_opened:increase1h"}, span=12),
    )


def circuit() -> model.Dashboard:
    """
    One circuit: what it decides, on what grounds, what waits for it.
    """
    return _lay_out(
        _dashboard("omni_tasks: one circuit", "omni-tasks-circuit").with_variable(_component()),
        number("State", _last("state"), words=STATES),
        number("Away from closed for", _last("outage_seconds"), unit="s"),
        number("Lets a call through in", _last("retry_after_seconds"), unit="s"),
        number("Operator's override", _last("override"), words=OVERRIDES),
        number("Provider refuses the account", _last("blocked"), words=YES),
        number("Provider asks for fewer calls", _last("rate_limited"), words=YES),
        label("Mode", _last("info"), "mode"),
        number("Failed, since the last reset", _last("failure_rate"), unit="percentunit"),
        number("Failures in a row", _last("consecutive_failures")),
        number("Failures in a row that open it", _last("failure_threshold")),
        number("Stays open for", _last("recovery_timeout_seconds"), unit="s"),
        number("Last success", f"time() - {_last('last_success_timestamp_seconds')}", unit="s"),
        number("Last failure", f"time() - {_last('last_failure_timestamp_seconds')}", unit="s"),
        bands("State", {"state": _last("state")}, STATES),
        graph(
            "Calls, by outcome",
            {name: _rate(name, _ONE) for name in ("successes", "failures", "ignored", "expired")},
            unit="reqps",
        ),
        graph("Slow calls", {"slow": _rate("slow", _ONE)}, unit="reqps", about="At least slow_call_duration."),
        graph("Refusals", {"all": _rate("rejected", _ONE), "tasks, held": _rate("held", _ONE)}, unit="reqps"),
        graph(
            "Duration of calls",
            {f"p{part}": _quantile(part) for part in (50, 95, 99)},
            unit="s",
            about="Read from buckets, the last of which begins at 60 s.",
        ),
        graph(
            "Transitions",
            {"{{from}} to {{to}}": _rate("transitions", _ONE)},
            unit="cps",
        ),
        graph(
            "In flight",
            {"calls": _last("calls_outstanding"), "probes": _last("probes_outstanding")},
            about="Calls and probes that hold a permit.",
        ),
        graph("Held tasks", {"held": _last("held_tasks")}),
        graph(
            "Oldest held task, oldest probe",
            {"task": _last("held_oldest_age_seconds"), "probe": _last("probe_age_seconds")},
            unit="s",
        ),
        graph("Starts allowed by the ramp", {"ramp": _last("ramp_starts_per_second")}, unit="cps"),
        graph("Time in this state", {"seconds": _last("time_in_state_seconds")}, unit="s", span=12),
        graph(
            "p95 of calls, by the hour",
            {"p95": f"component:circuit_breaker_call_duration_seconds:p95_1h{_ONE}"},
            unit="s",
            span=12,
        ),
    )


#: The circuit that is chosen on the second dashboard.
_ONE: Final = '{component="$component"}'


def _last(name: str) -> str:
    return f"max without (instance) (circuit_breaker_{name}{_ONE})"


def _rate(name: str, which: str = "") -> str:
    return f"max without (instance) (rate(circuit_breaker_{name}_total{which}[$__rate_interval]))"


def _quantile(part: int) -> str:
    buckets = f"rate(circuit_breaker_call_duration_seconds_bucket{_ONE}[$__rate_interval])"
    return f"histogram_quantile({part / 100:g}, max without (instance) ({buckets}))"


def _component() -> dashboard.QueryVariable:
    variable = dashboard.QueryVariable("component").label("Circuit").datasource(_SOURCE)
    return variable.query("label_values(circuit_breaker_info, component)").refresh(
        model.VariableRefresh.ON_TIME_RANGE_CHANGED
    )


def _dashboard(title: str, uid: str) -> dashboard.Dashboard:
    source = dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    made = dashboard.Dashboard(title).uid(uid).tags(["omni_tasks"]).readonly().refresh("15s").time("now-3h", "now")
    # The other one of the two, for the same time.
    other = dashboard.DashboardLink("omni_tasks").type(model.DashboardLinkType.DASHBOARDS).tags(["omni_tasks"])
    return made.with_variable(source).link(other.keep_time(keep_time=True))


def _lay_out(board: dashboard.Dashboard, *panels: Panel) -> model.Dashboard:
    for place, panel in enumerate(panels, start=1):
        board = board.with_panel(panel.id(place))
    return board.build()


# ---------------------------------------------------------------- the files


DASHBOARDS: Final = {"overview.json": overview, "circuit.json": circuit}


def encode(board: model.Dashboard) -> str:
    """
    Write a dashboard as Grafana reads it.
    """
    return json.dumps(board, cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    for name, make in DASHBOARDS.items():
        (FOLDER / name).write_text(encode(make()))
