"""Every command line in a render is one that the real program takes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from slipstream.core.errors import ConfigurationError
from tests.chart import options
from tests.chart.helm import Object, Render, template
from tests.chart.pods import containers, pod_of

Ours = dict[str, tuple[str, Object]]


def _ours(renders: dict[str, Render], chosen: Callable[[Object], bool]) -> Ours:
    """(where, container) of each different command line and environment."""
    found: Ours = {}
    for label, render in renders.items():
        for where, _, container in containers(render):
            if chosen(container):
                key = json.dumps([container.get(k) for k in ("command", "args", "env")])
                found.setdefault(key, (f"{label}: {where}", container))
    return found


def _is_service(container: Object) -> bool:
    return container["command"][:2] == ["python", "-m"] and (
        container["command"][2] in options.SERVICES
    )


def test_services_take_their_options(renders: dict[str, Render]) -> None:
    """Gateway, verifier and drafter start with the options and variables of every combination."""
    faults: dict[str, str] = {}
    found = _ours(renders, _is_service)
    for where, container in found.values():
        with pytest.MonkeyPatch.context() as patch:
            try:
                options.settings_of(container, patch)
            except (ConfigurationError, AssertionError) as error:
                faults.setdefault(f"{container['name']}: {error}", where)
    assert not faults, "\n".join(f"{fault} ({where})" for fault, where in faults.items())
    assert {container["command"][2] for _, container in found.values()} == {*options.SERVICES}


def test_commands_take_their_options(renders: dict[str, Render]) -> None:
    """Fetching, tuning, saving the plan and the release's test are commands that there are."""
    faults = []
    found = _ours(renders, lambda container: container["command"] == options.CLI)
    for where, container in found.values():
        try:
            options.parse_command(container)
        except Exception as error:  # noqa: BLE001 click's are of no one class here
            faults.append(f"{where}: {container['args']}: {error}")
    assert not faults, "\n".join(faults)
    commands = {container["args"][0] for _, container in found.values()}
    assert commands == {"fetch", "tune", "k8s", "check"}


def test_nothing_else_is_run(renders: dict[str, Render]) -> None:
    """The only program that is not ours is Redis."""
    others = _ours(renders, lambda each: not _is_service(each) and each["command"] != options.CLI)
    assert {container["command"][0] for _, container in others.values()} == {"redis-server"}


def test_a_wrong_flag_shows() -> None:
    """An option that no service has, a value that it cannot take and an unknown variable fail."""
    container = dict(pod_of(template(), "verifier").main)
    container["args"] = [*container["args"], "--kv-cache=2"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ConfigurationError, match="kv-cache"):
        options.settings_of(container, patch)
    container["args"] = [*container["args"][:-1], "--exactness=$(EXACTNESS)"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match="EXACTNESS"):
        options.settings_of(container, patch)
    container["args"] = container["args"][:-1]
    container["env"] = [*container["env"], {"name": "SLIPSTREAM_VERIFIER_WINDOWS", "value": "3"}]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match="WINDOWS"):
        options.settings_of(container, patch)


@pytest.mark.parametrize(
    "role",
    ["gateway", "verifier", "drafter"],
)
def test_a_value_reaches_the_setting(role: str) -> None:
    """What a values file says is what the process reads, through `extraArgs` and `extraEnv` too."""
    known = template(
        {
            role: {
                "stopGraceSeconds": 17,
                "zone": "rack-7",
                "extraArgs": ["--log-level=debug"],
                "extraEnv": [{"name": f"SLIPSTREAM_{role.upper()}_OTLP_ENDPOINT", "value": "x:1"}],
            }
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        settings = options.settings_of(pod_of(known, role).main, patch)
    assert (settings.stop_grace, settings.zone) == (17, "rack-7")
    assert (settings.log_level, settings.otlp_endpoint) == ("debug", "x:1")
