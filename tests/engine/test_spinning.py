"""How long OpenMP's threads spin is decided before torch is loaded, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_SCRIPT = """
import importlib, os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("spin", os.environ.get("GOMP_SPINCOUNT"))
            sys.exit(0)

sys.meta_path.insert(0, Watch())
importlib.import_module(sys.argv[1])
"""


@pytest.mark.parametrize("service", ["drafter_service", "verifier_service"])
def test_a_service_bounds_the_spin_before_it_loads_torch(service: str) -> None:
    """OpenMP reads GOMP_SPINCOUNT once, so a service that loads torch first spins for 6 ms."""
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    result = subprocess.run(
        [sys.executable, "-c", _SCRIPT, f"{service}.__main__"],
        check=False, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert result.stdout.strip() == "spin 10000", result.stderr
