from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.images.conftest import FILES, ROOT
from tests.images.context import Context
from tests.images.dockerfile import expand, read

HADOLINT = Path(sys.executable).with_name("hadolint")
BORDER = "# ---"
# For which CUDA releases torch comes: to look up anew with each version that is pinned.
TORCH, CUDA = "2.13.0", {"cu126", "cu130"}


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HADOLINT, "--no-color", "--config", ROOT / ".hadolint.yaml", path],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    """Every rule holds, the mere style included, and none is switched off in the file."""
    ended = lint(path)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert "hadolint ignore" not in path.read_text()
    assert "ignored" not in (ROOT / ".hadolint.yaml").read_text()


def test_hadolint_would_say_so(tmp_path: Path) -> None:
    """The configuration that we use finds an image without a fixed tag, and an untrusted one."""
    path = tmp_path / "Dockerfile"
    path.write_text("FROM example.org/python:latest\nUSER 1\n")
    ended = lint(path)
    assert ended.returncode == 1
    assert {"DL3007", "DL3026"} <= set(ended.stdout.split())


def common(path: Path) -> str:
    before, part, _ = path.read_text().split(f"\n{BORDER}")
    assert before
    return part


def test_the_files_do_not_drift_apart() -> None:
    """What is said to be the same in all three is the same."""
    parts = {common(path) for path in FILES.values()}
    assert len(parts) == 1
    assert "USER" in parts.pop()


@pytest.mark.parametrize("service", FILES)
def test_what_is_a_service_of_its_own(service: str) -> None:
    """Ports, labels, entry point in exec form and the extra are those of the service."""
    file = read(FILES[service])
    ports = {
        "gateway": "8000 50050",
        "verifier": "50051 50061 9400",
        "drafter": "50052 50062 9401",
    }
    module = FILES[service].parent.name
    assert [step.value for step in file.all("EXPOSE")] == [ports[service]]
    assert [step.command for step in file.all("ENTRYPOINT")] == [["python", "-m", module]]
    extras = {"gateway": "", "verifier": "engine", "drafter": "tune"}
    assert file.arguments["EXTRA"] == extras[service]
    (labels,) = (step.pairs for step in file.all("LABEL"))
    names = ("title", "description", "version", "revision", "created")
    assert list(labels) == [f"org.opencontainers.image.{name}" for name in names]
    assert labels["org.opencontainers.image.title"] == f"slipstream-{service}"


def test_what_is_said_of_cuda_can_be_built() -> None:
    """Every variant that is named anywhere is one that the pinned torch comes in."""
    assert f"torch=={TORCH}" in (ROOT / "constraints.txt").read_text().splitlines()
    places = [*FILES.values(), ROOT / "Makefile", *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    named = {name for path in places for name in re.findall(r"\bcu1\d\d\b", path.read_text())}
    assert named
    assert named <= CUDA


def test_nothing_but_the_sources_gets_into_a_build() -> None:
    """Neither secrets, tests, caches nor what was built lie in the context."""
    files = Context(ROOT).files()
    tops = {name.split("/")[0] for name in files}
    packages = {"slipstream", "gateway", "verifier_service", "drafter_service"}
    assert tops == packages | {"README.md", "constraints.txt", "pyproject.toml"}
    assert not [name for name in files if "__pycache__" in name or name.endswith("Dockerfile")]
    assert {"slipstream/models/default_tokenizer.tar.xz", "gateway/py.typed"} & set(files)


def test_variables() -> None:
    """The forms that Dockerfiles have: plain, in braces, with a default, with a substitute."""
    variables = {"A": "1", "EMPTY": ""}
    assert expand("$A ${A}2 ${B}", variables) == "1 12 "
    assert expand("${A:-x} ${EMPTY:-x} ${A:+y}${EMPTY:+y}", variables) == "1 x y"
