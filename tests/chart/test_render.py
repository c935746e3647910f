"""Every combination renders, passes helm's linter, and is what the API servers take."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.chart import combos, schemas
from tests.chart.helm import CHART, Render, each, refusal, run, template, value_files
from tests.chart.policies import availability, references, security, wiring

Policy = Callable[[Render], Iterator[str]]
POLICIES = [*security.POLICIES, *availability.POLICIES, *wiring.POLICIES, *references.POLICIES]


@pytest.mark.parametrize("name", ["defaults", *value_files()])
def test_lint(name: str) -> None:
    """`helm lint --strict` has nothing against the chart with its defaults and each value file."""
    files = [] if name == "defaults" else [f"--values={value_files()[name]}"]
    report = run("lint", CHART, "--strict", *files)
    assert "0 chart(s) failed" in report
    assert "[WARNING]" not in report


def test_the_ready_value_files_are_those_that_the_documents_name() -> None:
    """Each of the four ready setups is there, and no other."""
    assert set(value_files()) == {"cpu-trial", "one-big-gpu-plus-small", "sharded-drafter", "ha"}


@pytest.mark.parametrize("version", schemas.VERSIONS)
def test_schemas(renders: dict[str, Render], version: str) -> None:
    """Every object fits the strict schema of its kind in that version of Kubernetes."""
    faults = {
        f"{label}: {fault}"
        for label, _, item in each(renders)
        for fault in schemas.faults(item, version)
    }
    assert not faults, "\n".join(sorted(faults))


# (combination, policy) that a ready value file departs from on purpose, and why.
DEPARTURES = {
    ("cpu-trial", "drafters_seek_their_verifiers"): "there is one node",
    ("sharded-drafter", "replicas_are_spread"): "the shards of a drafter belong close together",
}


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.__name__)
def test_policies(renders: dict[str, Render], policy: Policy) -> None:
    """Every object of every combination keeps the policy, but for departures that are listed."""
    faults = []
    for label, render in renders.items():
        found = list(policy(render))
        if (label, policy.__name__) in DEPARTURES:
            assert found, f"{label} keeps it after all: no departure"
        else:
            faults += [f"{label}: {fault}" for fault in found]
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults[:20])


def test_a_cluster_without_add_ons(renders: dict[str, Render]) -> None:
    """The defaults ask for nothing that a plain cluster does not serve."""
    plain = template(add_ons=())
    assert [item for item in plain.objects if not schemas.is_built_in(item["apiVersion"])] == []
    assert plain.fixed == renders["defaults"].fixed


@pytest.mark.parametrize("version", schemas.VERSIONS)
def test_versions(version: str) -> None:
    """What is rendered does not depend on the version of Kubernetes."""
    assert template(kube=f"{version}.0").fixed == template().fixed


def test_older_versions_are_refused() -> None:
    """Kubernetes 1.31 has no pod index by default: helm says that the chart does not fit."""
    assert "kubeVersion: >=1.32.0-0" in refusal({}, kube="1.31.9")


def test_pairs_cover() -> None:
    """Every two settings that may come together do so in some row, and no others do."""
    rows = combos.rows()
    for one, ones in combos.OPTIONS.items():
        for two, twos in combos.OPTIONS.items():
            for a, b in ((a, b) for a in ones for b in twos if one < two):
                met = any(row[one] == a and row[two] == b for row in rows)
                assert met != (frozenset({(one, a), (two, b)}) in combos.REFUSED), (one, a, two, b)
