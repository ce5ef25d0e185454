"""What all dashboards are made of: panels with a description, variables, links, annotations."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dsobs.config import Config
from dsobs.indicators import INDICATORS, Better, Class, Indicator

PROMETHEUS = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
ELASTICSEARCH = dashboard.DataSourceRef(type_val="elasticsearch", uid="${elasticsearch}")
SERVER = 'cluster=~"$cluster",namespace=~"$namespace",tenant=~"$tenant",instance=~"$instance"'
"""Which servers: labels that a target does not have match, so that this holds for a bare sidecar too."""
MODEL = f'{SERVER},model_name=~"$model"'
WORST = 20
"""Series in one panel, at most: of 1,000 servers the worst."""
TAG = "dsobs"
_ANY = ".*"
_UNITS = {
    "ratio": "percentunit",
    "seconds": "s",
    "celsius": "celsius",
    "bool": "none",
    "requests/s": "reqps",
    "tokens/s": "suffix: tokens/s",
    "tokens/J": "suffix: tokens/J",
    "preemptions/s": "suffix: /s",
    "cores": "suffix: cores",
    "bytes": "bytes",
    "bytes/s": "Bps",
    "watts": "watt",
    "hertz": "hertz",
    "joules": "joule",
    "time": "dateTimeAsIso",
}
_COLOURS = {True: "red", False: "green"}
_READY = (("1", "ready", "green"), ("0", "not ready", "red"))

AnyPanel = TypeVar(
    "AnyPanel", timeseries.Panel, stat.Panel, table.Panel, statetimeline.Panel, heatmap.Panel, builders.Panel
)


def unit(name: str) -> str:
    """Grafana's name of a unit; what is counted has none."""
    return _UNITS.get(name, "none")


def described(question: str, bad: str) -> str:
    """The text behind a panel's i."""
    return f"{question}\n\n**A bad value:** {bad}"


def query(expr: str, legend: str = "", *, now: bool = False, as_table: bool = False) -> prometheus.Dataquery:
    """PromQL, over the dashboard's time or `now`."""
    made = prometheus.Dataquery().expr(expr).datasource(PROMETHEUS)
    made = made.legend_format(legend or "__auto")
    made = made.instant() if now else made.range()
    return made.format(PromQueryFormat.TABLE) if as_table else made


def _asked(panel: AnyPanel, queries: Iterable[prometheus.Dataquery]) -> AnyPanel:
    for number, one in enumerate(queries):
        panel.with_target(one.ref_id(chr(ord("A") + number)))
    return panel


def limits(bad: float | None, better: Better, unit_name: str) -> builders.ThresholdsConfig:
    """Green and red on both sides of a threshold, beyond which a value is bad; one colour without one.

    Grafana colours from a step's own value on. So what is counted, and too many above the threshold, is red from the
    next whole number on: 0 alerts, or 3 restarts where 3 are allowed, are green.
    """
    steps = [dashboard.Threshold(value=None, color=_COLOURS[bad is not None and better is Better.HIGHER])]
    if bad is not None:
        counted = unit_name not in _UNITS and float(bad).is_integer() and better is Better.LOWER
        steps.append(dashboard.Threshold(value=bad + counted, color=_COLOURS[better is Better.LOWER]))
    return builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps)


def _mapped(values: Sequence[tuple[str, str, str]]) -> list[dashboard.ValueMapping]:
    options = {
        value: dashboard.ValueMappingResult(text=words, color=colour, index=number)
        for number, (value, words, colour) in enumerate(values)
    }
    return [dashboard.ValueMap(options=options)]


def chart(
    title: str,
    question: str,
    bad: str,
    unit_name: str,
    *queries: prometheus.Dataquery,
    threshold: float | None = None,
    better: Better = Better.NEITHER,
    stacked: bool = False,
    span: int = 8,
) -> timeseries.Panel:
    """Lines over time. Where a value begins to be bad is a dashed line."""
    made = (
        timeseries.Panel()
        .title(title)
        .description(described(question, bad))
        .datasource(PROMETHEUS)
        .unit(unit(unit_name))
        .span(span)
        .height(8)
        .fill_opacity(25 if stacked else 0)
        .line_width(1)
        .show_points(common.VisibilityMode.NEVER)
        .no_value("unknown")
        .legend(
            common_builders.VizLegendOptions()
            .show_legend(True)
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(
            common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
        )
        .thresholds(limits(threshold, better, unit_name))
    )
    if threshold is not None:
        style = common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        made = made.thresholds_style(style)
    if stacked:
        made = made.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    return _asked(made, queries)


def number(
    title: str,
    question: str,
    bad: str,
    unit_name: str,
    expr: str,
    *,
    threshold: float | None = None,
    better: Better = Better.LOWER,
    words: Sequence[tuple[str, str, str]] = (),
    span: int = 4,
) -> stat.Panel:
    """One number now, coloured by its threshold; `words` are (value, word, colour)."""
    made = (
        stat.Panel()
        .title(title)
        .description(described(question, bad))
        .datasource(PROMETHEUS)
        .unit(unit(unit_name))
        .span(span)
        .height(4)
        .no_value("unknown")
        .color_mode(common.BigValueColorMode.BACKGROUND if threshold is not None else common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.AREA)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(limits(threshold, better, unit_name))
    )
    if words:
        made = made.mappings(_mapped(words))
    return _asked(made, [query(expr)])


def states(
    title: str,
    question: str,
    bad: str,
    *queries: prometheus.Dataquery,
    words: Sequence[tuple[str, str, str]],
    span: int = 24,
) -> statetimeline.Panel:
    """A band for each series, coloured by what its values mean."""
    made = (
        statetimeline.Panel()
        .title(title)
        .description(described(question, bad))
        .datasource(PROMETHEUS)
        .span(span)
        .height(8)
        .merge_values(True)
        .show_value(common.VisibilityMode.NEVER)
        .no_value("unknown")
        .mappings(_mapped(words))
    )
    return _asked(made, queries)


def rows(
    title: str,
    question: str,
    bad: str,
    *queries: prometheus.Dataquery,
    left_out: Sequence[str] = (),
    named: Sequence[tuple[str, str, str]] = (),
    link: tuple[str, str] | None = None,
    span: int = 24,
) -> table.Panel:
    """A table of what holds now; `named` are (column of Grafana, title, unit), `link` (column, dashboard)."""
    hidden = dict.fromkeys(("Time", "__name__", "job", *left_out), True)
    organize = {"excludeByName": hidden, "renameByName": {column: words for column, words, _ in named}}
    made = (
        table.Panel()
        .title(title)
        .description(described(question, bad))
        .datasource(PROMETHEUS)
        .span(span)
        .height(9)
        .no_value("nothing")
        .with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(dashboard.DataTransformerConfig(id_val="organize", options=organize))
    )
    for _, words, unit_name in named:
        made = made.override_by_name(words, [dashboard.DynamicConfigValue(id_val="unit", value=unit(unit_name))])
    if link is not None:
        column, target = link
        chosen = "${datasource:queryparam}&var-instance=${__data.fields.instance}&${__url_time_range}"
        url = f"/d/dsobs-{target}?{chosen}"
        value = [{"title": f"To {target}", "url": url}]
        made = made.override_by_name(column, [dashboard.DynamicConfigValue(id_val="links", value=value)])
    return _asked(made, queries)


def heat(title: str, question: str, bad: str, histogram: str, span: int = 24) -> heatmap.Panel:
    """How a histogram's requests spread over its buckets, over time."""
    made = (
        heatmap.Panel()
        .title(title)
        .description(described(question, bad))
        .datasource(PROMETHEUS)
        .span(span)
        .height(9)
        .calculate(False)
        .unit("s")
    )
    expr = f"sum by (le) (increase({histogram}_bucket{{{MODEL}}}[$__rate_interval]))"
    return _asked(made, [query(expr, "{{le}}").format(PromQueryFormat.HEATMAP)])


# Of indicators.


def series_of(indicator: Indicator) -> str:
    """Its recorded series of the servers that are chosen."""
    by_model = indicator.class_ is Class.PERFORMANCE or indicator.name == "kv_cache_usage"
    return f"{indicator.record}{{{MODEL if by_model else SERVER}}}"


def worst(indicator: Indicator, count: int = WORST) -> str:
    """Of the servers that are chosen those where it is worst."""
    return f"{'bottomk' if indicator.better is Better.HIGHER else 'topk'}({count}, {series_of(indicator)})"


def indicator_chart(name: str, expr: str = "", legend: str = "{{instance}} {{model_name}}", span: int = 8) -> Any:
    """An indicator over time, with its documented threshold."""
    one = INDICATORS[name]
    threshold = one.threshold_of(Config())
    return chart(
        one.title,
        one.question,
        one.bad,
        one.unit,
        query(expr or worst(one), legend),
        threshold=threshold,
        better=one.better,
        span=span,
    )


def indicator_number(name: str, how: str, span: int = 4) -> stat.Panel:
    """An indicator of all servers that are chosen as one number: `how` is the aggregation."""
    one = INDICATORS[name]
    words = _READY if one.unit == "bool" else ()
    return number(
        one.title,
        one.question,
        one.bad,
        one.unit,
        f"{how}({series_of(one)})",
        threshold=one.threshold_of(Config()),
        better=one.better,
        words=words,
        span=span,
    )


# Of the whole dashboard.


def _choice(name: str, label: str, metric: str, chosen: Sequence[str]) -> builders.QueryVariable:
    before = ",".join(f'{one}=~"${one}"' for one in chosen)
    asked = f"label_values({metric}{{{before}}}, {label})" if before else f"label_values({metric}, {label})"
    return (
        builders.QueryVariable(name)
        .label(name.capitalize())
        .datasource(PROMETHEUS)
        .query({"query": asked, "refId": name})
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(_ANY)
        .current(dashboard.VariableOption(text="All", value="$__all"))
    )


SEEN = "dsobs_engine_seen"
"""What every sidecar exports from its first turn on."""


def board(name: str, title: str, description: str, *, models: bool = True) -> builders.Dashboard:
    """A dashboard with its variables, links to the others and marks of incidents."""
    made = (
        builders.Dashboard(f"dsobs / {title}")
        .uid(f"dsobs-{name}")
        .description(description)
        .tags([TAG])
        .timezone("browser")
        .refresh("15s")
        .time("now-1h", "now")
        .readonly()
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_choice("cluster", "cluster", SEEN, []))
        .with_variable(_choice("namespace", "namespace", SEEN, ["cluster"]))
        .with_variable(_choice("tenant", "tenant", SEEN, ["cluster", "namespace"]))
        .with_variable(_choice("instance", "instance", SEEN, ["cluster", "namespace", "tenant"]))
        .link(
            builders.DashboardLink("dsobs")
            .type(dashboard.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
            .icon("external link")
            .tooltip("The other dashboards of dsobs, with the same choice and time")
        )
    )
    if models:
        chosen = ["cluster", "namespace", "tenant", "instance"]
        made = made.with_variable(_choice("model", "model_name", "dsobs_engine_requests_running", chosen))
    for words, colour, expr in MARKS:
        made = made.annotation(
            builders.AnnotationQuery().name(words).datasource(PROMETHEUS).enable(True).icon_color(colour).expr(expr)
        )
    return made


MARKS = (
    ("Incident", "red", f"dsobs_engine_fault{{{SERVER}}} == 1"),
    (
        "Action of dsobs",
        "blue",
        f"increase(dsobs_remediation_steps_total{{{SERVER}}}[1m]) > 0 "
        f"or (dsobs_remediation_steps_total{{{SERVER}}} unless dsobs_remediation_steps_total{{{SERVER}}} offset 1m)",
    ),
    ("Another instance", "yellow", f"changes(dsobs_container_start_time_seconds{{{SERVER}}}[1m]) > 0"),
)
"""Marks on every chart: name, colour, PromQL. An incident lasts from the alert of the engine until it is ready."""


def row(title: str) -> builders.Row:
    """A heading."""
    return builders.Row(title)
