"""What `helm package` makes is the chart: complete, and without what does not belong to it."""

from __future__ import annotations

import tarfile
import tomllib
from pathlib import Path

import yaml

from tests.chart.helm import CHART, ROOT, run, template, value_files


def test_package(tmp_path: Path) -> None:
    """The packed chart renders what the folder renders, value files and dashboard included."""
    run("package", CHART, f"--destination={tmp_path}")
    (packed,) = tmp_path.glob("*.tgz")
    with tarfile.open(packed) as archive:
        names = {name.removeprefix("slipstream/") for name in archive.getnames()}
    assert {"values.schema.json", "README.md", "templates/NOTES.txt"} <= names
    assert {f"values/{name}.yaml" for name in value_files()} <= names
    assert not [
        name for name in names if "__pycache__" in name or name.endswith((".py", ".gotmpl"))
    ]
    files = [value_files()["ha"]]
    here, there = template(files=files), template(files=files, chart=packed)
    assert here.fixed == there.fixed


def test_version() -> None:
    """The chart installs the version of Slipstream that it lies beside."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == project["version"]
    assert chart["kubeVersion"] == ">=1.32.0-0"
