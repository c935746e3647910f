"""The garbage collector while a service's process imports what it needs."""

from __future__ import annotations

import runpy
import sys
from functools import partial
from types import SimpleNamespace

import pytest

from slipstream.wire import starting


@pytest.mark.parametrize("module", ["gateway", "verifier_service", "drafter_service"])
def test_the_collector_rests_during_imports_alone(module, monkeypatch):
    """It is off for the imports, works again before anything is served, and leaves out what the
    imports made."""
    calls = []

    gc = {name: partial(calls.append, name) for name in ("disable", "freeze", "enable")}
    monkeypatch.setattr(starting, "gc", SimpleNamespace(**gc))
    # The signals of the tests' own process stay as they are.
    monkeypatch.setattr(starting, "_end_at_once", dict)
    monkeypatch.setattr(sys, "argv", [module, "--no-such-option"])
    with pytest.raises(SystemExit) as raised:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert raised.value.code == 2
    assert calls == ["disable", "freeze", "enable"]
