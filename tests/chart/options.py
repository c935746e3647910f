"""Whether the real programs take a container's command line: by its settings and commands."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

import pytest
import typer.main

from slipstream.wire.process import read_settings
from tests.chart.helm import Object
from tests.chart.pods import environment

SERVICES = {
    "gateway": "gateway.settings",
    "verifier_service": "verifier_service.settings",
    "drafter_service": "drafter_service.settings",
}
# What a kubelet would know.
_FIELDS = {
    "metadata.name": "slipstream-pod-0",
    "metadata.namespace": "models",
    "status.podIP": "10.244.0.1",
    "metadata.labels['apps.kubernetes.io/pod-index']": "0",
    "spec.nodeName": "node-1",
}
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")


def values_of(container: Mapping[str, Any]) -> dict[str, str]:
    """A container's environment as a kubelet sets it; what comes from a Secret is "secret"."""
    known: dict[str, str] = {}
    for name, entry in environment(container).items():
        if "value" in entry:
            known[name] = expand(str(entry["value"]), known)
        elif "fieldRef" in entry.get("valueFrom", {}):
            known[name] = _FIELDS[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        else:
            known[name] = "secret"
    return known


def expand(text: str, known: Mapping[str, str]) -> str:
    """Kubernetes' own expansion of $(NAME) and $$. Raises AssertionError: NAME is not known, where
    Kubernetes would leave the text as it is."""

    def replace(match: re.Match[str]) -> str:
        if match.group(1) is None:
            return "$"
        assert match.group(1) in known, f"{match.group(0)} is no variable of {sorted(known)}"
        return known[match.group(1)]

    return _REFERENCE.sub(replace, text)


def settings_of(container: Object, patch: pytest.MonkeyPatch) -> Any:
    """The settings that a service would start with. Raises slipstream's ConfigurationError, or
    AssertionError for a variable that no field of the settings reads."""
    known = values_of(container)
    command = [expand(str(part), known) for part in container["command"]]
    assert command[:2] == ["python", "-m"], command
    module = importlib.import_module(SERVICES[command[2]])
    prefix = module.Settings.model_config["env_prefix"]
    for name, value in known.items():
        patch.setenv(name, value)
        if name.upper().startswith(prefix):
            field = name[len(prefix) :].lower()
            assert field in module.Settings.model_fields, f"{name} is no setting of {command[2]}"
    given = [expand(str(part), known) for part in container.get("args", [])]
    settings = read_settings(module.Settings, given)
    # The gateway has a check of its own beside the fields'.
    getattr(settings, "check", lambda: None)()
    return settings


# Commands that hand all of their arguments on to a program of their own.
_PASSED_ON = ("bench", "tune")
CLI = ["python", "-m", "slipstream.cli"]


def parse_command(container: Object) -> None:
    """Parses a command line of `slipstream` down to the last command, without running it.

    Raises click's UsageError: what the real command would refuse.
    """
    known = values_of(container)
    assert container["command"] == CLI, container["command"]
    given = [expand(str(part), known) for part in container["args"]]
    module = "slipstream.cli.main"
    if given[0] in _PASSED_ON:
        module, given = f"slipstream.cli.{given[0]}", given[1:]
    _parse(typer.main.get_command(importlib.import_module(module).app), given)


def _parse(command: Any, given: list[str]) -> None:
    context = command.make_context(command.name or "slipstream", given)
    rest = [*context._protected_args, *context.args] if hasattr(command, "commands") else []
    if rest:
        _, inner, inner_given = command.resolve_command(context, rest)
        _parse(inner, inner_given)
