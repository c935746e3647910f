"""Every value in values.yaml has an effect on what is rendered."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.chart import values_schema
from tests.chart.combos import OPTIONS, ROLES
from tests.chart.helm import merged, refusal, template
from tests.chart.values_schema import Path


def _dotted(path: Path) -> str:
    return ".".join(path)


# States of a release in which values have their effect; the first one is the defaults.
STATES: tuple[dict[str, Any], ...] = (
    {},
    merged(
        {role: {"autoscaling": {"enabled": True}} for role in ROLES},
        OPTIONS["cache"]["per pod"],
        OPTIONS["tls"]["secret"],
        OPTIONS["routes"]["ingress"],
        OPTIONS["monitoring"]["on"],
        OPTIONS["traces"]["on"],
        OPTIONS["device"]["gpu"],
    ),
    merged(
        OPTIONS["replicas"]["keda"],
        OPTIONS["cache"]["shared"],
        OPTIONS["routes"]["gateway api"],
        OPTIONS["redis"]["external"],
        OPTIONS["hub"]["token"],
        OPTIONS["plan"]["tune"],
        {"tls": {"enabled": True, "certManager": {"enabled": True}}},
        {"tune": {"gpu": {"count": 1}}},
    ),
    merged(OPTIONS["plan"]["config map"], OPTIONS["tls"]["cert-manager"], OPTIONS["shards"]["2"]),
)

# Values that say something about others, so that not any will do: they are changed one at a time.
OWN: dict[str, Any] = {
    "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "more"}}],
    "model.name": "org/model",
    "model.path": "/opt/model",
    "model.cache.accessModes": ["ReadWriteOnce"],
    "model.cache.existingClaim": "given-models",
    "gateway.pdb.minAvailable": "0%",
    "verifier.pdb.minAvailable": "0%",
    "drafter.pdb.minAvailable": "0%",
    "redis.bundled.pdb.minAvailable": "0%",
    "gateway.apiKeys.existingSecret": "given-keys",
    "redis.external.url": "redis://:$(REDIS_PASSWORD)@other:6379",
    "redis.external.existingSecret": "given-other",
    "redis.bundled.auth.existingSecret": "given-redis",
    "tls.existingSecret": "given-other",
    "tls.certManager.renewBefore": "100h",
    "monitoring.serviceMonitor.scrapeTimeout": "5s",
    "monitoring.podMonitor.scrapeTimeout": "5s",
    "redis.bundled.maxMemory": "100mb",
    "redis.bundled.persistence.size": "9Gi",
    "tune.budget": "10m",
    "verifier.kvCacheGib": 1,
    "drafter.kvCacheGib": 1,
    "monitoring.prometheusRule.selector": 'job="other"',
    "monitoring.prometheusRule.disabled": ["SlipstreamGatewayDown"],
    "tls.certManager.issuerRef.name": "given-other",
    "tune.activeDeadlineSeconds": 20000,
}

# Values without an effect on what is rendered, and why.
WITHOUT = {
    "gateway.apiKeys.generate": "off is refused where no Secret is given, and idle where one is",
    "tls.certManager.enabled": "goes with tls.enabled: either alone is refused (test_refusals.py)",
}


# These are changed alone: they show in other templates than their block's.
ALONE = {("gateway", name) for name in ("ingress", "httpRoute", "grpcRoute")}
ALONE |= {("drafter", "enabled")}
# Which template is a block's own: several blocks can be changed at once, each told by its own file.
OWNERS: dict[Path, str] = {
    ("gateway",): "gateway.yaml",
    ("verifier",): "verifier.yaml",
    ("drafter",): "drafter.yaml",
    ("redis", "bundled"): "redis.yaml",
    ("tune",): "tune.yaml",
    ("tests",): "tests/generation.yaml",
    ("model", "download", "job"): "model.yaml",
}


def _texts(values: dict[str, Any]) -> dict[str, str]:
    """What each template rendered, without what is made up anew each time."""
    text = re.sub(r"[A-Za-z0-9+/]{40,}={0,2}", "", template(values).text)
    found: dict[str, str] = {}
    for document in text.split("\n---\n"):
        source = document.partition("/templates/")[2].partition("\n")[0]
        found[source] = found.get(source, "") + document
    return found


def _shown(state: dict[str, Any], open_: dict[Path, Any]) -> set[Path]:
    """Those leaves whose marked values a render in that state shows; all are given at once."""
    marks = {path: 7001 + 2 * index for index, path in enumerate(open_)}
    given = [state]
    for path, mark in marks.items():
        value = values_schema.marked(path, mark)
        if value is not None and _dotted(path) not in OWN:
            given.append(values_schema.nested(path, value))
    text = template(merged(*given)).text
    return {path for path, mark in marks.items() if re.search(rf"(?<!\d)0*{mark}(?!\d)", text)}


def _split(path: Path) -> tuple[str, Path]:
    """A leaf's own template ("": any) and its place in the block that this belongs to."""
    if path[:2] in ALONE:
        return "", path
    for block, source in OWNERS.items():
        if path[: len(block)] == block:
            return source, path[len(block) :]
    return "", path


def _other(state: dict[str, Any], path: Path, turn: int) -> Any:
    """The leaf's `turn`-th value that is another one than in the state; None: there are no more."""
    own = OWN.get(_dotted(path))
    now = values_schema.at(merged(values_schema.defaults(), state), path)
    values = [own] if own else values_schema.others(path, now)
    return values[turn] if turn < len(values) else None


def _effective(state: dict[str, Any], group: list[Path], turn: int) -> set[Path]:
    """Those leaves of a group whose other values show in their blocks' templates; all at once, or
    one at a time where they are refused together."""
    chosen = {path: _other(state, path, turn) for path in group}
    given = {path: value for path, value in chosen.items() if value is not None}
    values = merged(state, *(values_schema.nested(*item) for item in given.items()))
    if not given:
        return set()
    if refusal(values):
        alone = [[path] for path in given if len(given) > 1]
        return {path for one in alone for path in _effective(state, one, turn)}
    before, after = _texts(state), _texts(values)
    return {
        path
        for path in given
        if before.get(_split(path)[0]) != after.get(_split(path)[0])
        or (not _split(path)[0] and before != after)
    }


def _idle(leaves: list[Path]) -> set[Path]:
    """Those leaves that no other value of theirs shows of, in any state."""
    left = set(leaves)
    for state in STATES:
        for turn in range(3):
            groups: dict[Path, list[Path]] = {}
            for path in sorted(left):
                groups.setdefault(_split(path)[1], []).append(path)
            for group in groups.values():
                left -= _effective(state, group, turn)
    return left


@pytest.mark.slow
@pytest.mark.timeout(300)  # a hundred renders: a minute where the machine is busy
def test_every_value_has_an_effect() -> None:
    """Whatever is changed in values.yaml changes what is rendered, in one state or another."""
    left = values_schema.leaves()
    # Twice, as one value may hide another: a digest stands for a tag.
    for state in STATES * 2:
        for path in _shown(state, left):
            del left[path]
    assert {_dotted(path) for path in _idle(list(left))} == WITHOUT.keys()
