"""docs/observability.md, dashboard and alerts speak of what is exported, and of all of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from slipstream.core import errors

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "slipstream"
_SUFFIXES = ("_total", "_bucket", "_sum", "_count")
# Of the process, from Prometheus' own library.
_PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"}


def rows(exported, component):
    """The table of a component's metrics as the page should have it."""
    for name, family in sorted(exported[component].items()):
        shown = f"{name}_total" if family.type == "counter" else name
        labels = ", ".join(family._labelnames)
        yield f"| `{shown}` | {family.type} | {labels} | {family.documentation} |"


@pytest.mark.parametrize("component", ["gateway", "verifier", "drafter"])
def test_the_page_lists_every_metric(exported, component):
    """Name, type, labels and meaning of each, as the service itself says them."""
    page = (ROOT / "docs" / "observability.md").read_text()
    section = re.search(
        rf"^### {component.title()}\n(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL
    )
    assert section is not None
    found = [line for line in section[1].splitlines() if line.startswith("| `")]
    assert sorted(found) == sorted(rows(exported, component))


@pytest.fixture(scope="module")
def dashboard():
    return json.loads((CHART / "dashboards" / "slipstream.json").read_text())


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def asked(exported, expression, also=frozenset()):
    """How many series of ours are asked for; each is exported, by every component that is named."""
    found = re.findall(r"slipstream:([a-z0-9_]+)\{([^}]*)\}", expression)
    assert len(found) == expression.count("slipstream:"), expression
    for name, selector in found:
        for component in re.search(r'component=~?"([\w|]+)"', selector)[1].split("|"):
            families = exported[component]
            plain = next((name.removesuffix(s) for s in _SUFFIXES if name.endswith(s)), name)
            family = families.get(name) or families.get(plain)
            assert family is not None, f"{component} exports no {name}: {expression}"
            grouped = re.findall(r"by \(([^)]*)\)", expression)
            used = {label.strip() for group in grouped for label in group.split(",")}
            used |= set(re.findall(r'(\w+)(?:=~|!=|!~|=)"', selector))
            known = {*family._labelnames, "le", "job", "instance", "component", "model_name"}
            assert used <= known | also, expression
    return len(found)


def test_panels_ask_for_what_there_is(exported, dashboard):
    """Every name in every expression is exported, by the component that the expression names."""
    expressions = [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
    for expression in expressions:
        for name in re.findall(r"\bprocess_\w+", expression):
            assert name in _PROCESS, expression
    assert sum(asked(exported, expression) for expression in expressions) > 40


def test_panels_can_be_read(dashboard):
    """Each has a title, a unit and legends, and asks the chosen source, job and instance."""
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels(dashboard):
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        for target in panel["targets"]:
            assert target["legendFormat"], panel["title"]
            selectors = re.findall(r"\{([^}]*)\}", target["expr"])
            assert selectors
            for selector in selectors:
                assert 'job=~"$job"' in selector, target["expr"]
                assert 'instance=~"$instance"' in selector, target["expr"]
    variables = {v["name"]: v["type"] for v in dashboard["templating"]["list"]}
    assert variables == {"datasource": "datasource", "job": "query", "instance": "query"}


def test_what_matters_is_on_the_dashboard(exported, dashboard):
    """Every histogram of a request and what no other server has can be seen."""
    text = json.dumps(dashboard)
    for name in (
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "spec_decode_overlap_seconds",
        "spec_decode_pre_verify_hits",
        "spec_decode_num_wasted_tokens",
        "spec_decode_round_trip_seconds",
        "drafter_rollback_depth",
        "without_drafter_seconds",
        "drafter_kv_fallbacks",
        "kv_cache_usage_perc",
        "num_requests_waiting",
        "request_queue_time_seconds",
    ):
        assert f"slipstream:{name}" in text
        assert any(name in families for families in exported.values())


@pytest.fixture(scope="module")
def alerts():
    return yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())


def test_alerts_ask_for_what_there_is(exported, alerts):
    """Every name in every rule is exported by the component it names, with the labels it uses."""
    targets = {"namespace", "pod", "app_kubernetes_io_component"}
    series = 0
    for alert in alerts:
        expression = alert["expr"].replace("@selector@", 'namespace="n",job="j"')
        found = asked(exported, expression, also=targets)
        assert found or expression.count("up{") == 1, expression
        series += found
    assert series > 20


def test_alerts_name_error_codes_that_there_are(alerts):
    """And only those of the server's own fault, by their HTTP status, that a client can be told."""
    (expression,) = (a["expr"] for a in alerts if a["alert"] == "SlipstreamErrors")
    named = set(re.search(r'code=~"([^"]*)"', expression)[1].split("|"))
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    kinds = [kind for kind in kinds if issubclass(kind, errors.SlipstreamError)]
    ours = {kind.code for kind in kinds if kind.http_status >= 500} | {errors.ModelMismatch.code}
    assert named == ours - {errors.StreamUnread.code, errors.ClusterUnavailable.code}


def test_alerts_take_every_threshold_of_the_chart(alerts):
    """None that a value does not set, and no value that nothing reads."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    thresholds = values["monitoring"]["prometheusRule"]["thresholds"]
    text = json.dumps(alerts)
    assert set(re.findall(r"@(\w+)@", text)) - {"selector"} == set(thresholds)


def test_every_alert_says_what_to_do(alerts):
    """A section of docs/alerts.md for each, in the same order, and nothing beside them."""
    page = (ROOT / "docs" / "alerts.md").read_text()
    names = [alert["alert"] for alert in alerts]
    assert re.findall(r"^## (Slipstream\w+)$", page, re.MULTILINE) == names
    for alert in alerts:
        assert alert["severity"] in {"critical", "warning", "info"}
        assert re.fullmatch(r"\d+[mh]|@\w+@", alert["for"])
        for label in re.findall(r"\$labels\.(\w+)", alert["description"]):
            grouped = re.findall(r"by \(([^)]*)\)", alert["expr"])
            assert not grouped or any(label in group for group in grouped), alert["alert"]
