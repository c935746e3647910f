"""Monitors, alerts and the dashboard of a release."""

from __future__ import annotations

import json
import re

from tests.chart.helm import CHART, NAMESPACE, RELEASE, Render, merged, refusal, template

ON = {
    "monitoring": {
        name: {"enabled": True}
        for name in ("serviceMonitor", "podMonitor", "prometheusRule", "dashboard")
    }
}


def _rule(**values: object) -> dict[str, object]:
    return {"monitoring": {"prometheusRule": values}}


def _alerts(render: Render) -> dict[str, dict[str, object]]:
    (rule,) = render.of("PrometheusRule")
    (group,) = rule["spec"]["groups"]
    return {alert["alert"]: alert for alert in group["rules"]}


def test_alerts_are_about_this_release_alone() -> None:
    """Every series is selected by namespace and job, and no placeholder is left."""
    for alert in _alerts(template(ON)).values():
        expression = str(alert["expr"])
        assert "@" not in json.dumps(alert)
        selectors = re.findall(r"\{([^}]*)\}", expression)
        assert selectors
        for selector in selectors:
            assert f'namespace="{NAMESPACE}",job="{RELEASE}"' in selector, expression


def test_monitors_give_the_labels_that_alerts_select_by() -> None:
    """The job is a label of Service and pods that has the release's name; so is the component."""
    render = template(ON)
    (gateway,) = render.of("ServiceMonitor")
    (models,) = render.of("PodMonitor")
    label, component = "app.kubernetes.io/instance", "app.kubernetes.io/component"
    for monitor in (gateway, models):
        assert monitor["spec"]["jobLabel"] == label
        assert monitor["spec"]["podTargetLabels"] == [component]
    service = render.get("Service", f"{RELEASE}-gateway")
    assert service["metadata"]["labels"][label] == RELEASE
    for role in ("verifier", "drafter"):
        pod = render.get("StatefulSet", f"{RELEASE}-{role}")["spec"]["template"]
        assert pod["metadata"]["labels"].items() >= {label: RELEASE, component: role}.items()
        ports = pod["spec"]["containers"][0]["ports"]
        assert models["spec"]["podMetricsEndpoints"][0]["port"] in {p["name"] for p in ports}


def test_the_gateway_is_scraped_with_a_key_that_it_takes() -> None:
    """The Secret that is made holds the key in the clear where the ServiceMonitor looks for it."""
    render = template(ON)
    (monitor,) = render.of("ServiceMonitor")
    credentials = monitor["spec"]["endpoints"][0]["authorization"]["credentials"]
    assert credentials["key"] in render.get("Secret", credentials["name"])["data"]


def test_alerts_leave_out_what_a_release_has_not() -> None:
    """No drafter, no store, nothing collected of a role, or told so by name."""
    everything = set(_alerts(template(ON)))

    def left_out(values: dict[str, object]) -> set[str]:
        return everything - set(_alerts(template(merged(ON, values))))

    drafters = {
        "SlipstreamWithoutDrafter",
        "SlipstreamAcceptanceLow",
        "SlipstreamSpeculationNotWorth",
        "SlipstreamDraftersComputeContexts",
    }
    assert left_out({"drafter": {"enabled": False}}) == drafters
    store = {"SlipstreamStoreDown", "SlipstreamJournalBehind"}
    assert left_out({"redis": {"mode": "none"}}) == store
    models = left_out({"monitoring": {"podMonitor": {"enabled": False}}})
    assert models == drafters | {
        "SlipstreamEngineUnreachable",
        "SlipstreamQueueLong",
        "SlipstreamKvCacheFull",
    }
    assert left_out(_rule(disabled=["SlipstreamErrors"])) == {"SlipstreamErrors"}


def test_alerts_need_something_to_watch() -> None:
    """Alerts on what nobody collects would be silence, or a false alarm for ever."""
    alone = merged(_rule(enabled=True))
    assert "enable monitoring.serviceMonitor and monitoring.podMonitor" in refusal(alone)
    own = template(merged(alone, _rule(selector='job="llm"')))
    assert all('job="llm"' in str(alert["expr"]) for alert in _alerts(own).values())


def test_alerts_lead_to_their_sections() -> None:
    """As a link where it is known where the pages are, else as the name of the page."""
    plain = _alerts(template(ON))["SlipstreamErrors"]["annotations"]
    assert plain["runbook"] == "docs/alerts.md#slipstreamerrors"
    linked = template(merged(ON, _rule(runbookBaseUrl="https://example.org/docs/")))
    annotations = _alerts(linked)["SlipstreamErrors"]["annotations"]
    assert annotations["runbook_url"] == "https://example.org/docs/alerts.md#slipstreamerrors"


def test_thresholds_are_values() -> None:
    """A threshold appears in the rule as it is given, fractions and times included."""
    values = _rule(thresholds={"errorShare": 0.125, "withoutDrafterFor": "42m", "failovers": 9})
    alerts = _alerts(template(merged(ON, values)))
    assert str(alerts["SlipstreamErrors"]["expr"]).endswith("> 0.125")
    assert alerts["SlipstreamWithoutDrafter"]["for"] == "42m"
    assert str(alerts["SlipstreamFailovers"]["expr"]).endswith("> 9")


def test_the_dashboard_arrives_whole() -> None:
    """What Grafana gets is the file, whose own braces Helm leaves alone."""
    render = template(ON)
    config = render.get("ConfigMap", f"{RELEASE}-dashboard")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    shipped = json.loads((CHART / "dashboards" / "slipstream.json").read_text())
    assert json.loads(config["data"]["slipstream.json"]) == shipped
