"""A double of the API server, and what asks it."""

from __future__ import annotations

import pytest

from slipstream.discovery.fakes import FakeApiServer


@pytest.fixture
def api(monkeypatch):
    """The double, with KUBECONFIG set to it."""
    with FakeApiServer() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        monkeypatch.delenv("POD_NAMESPACE", raising=False)
        yield server
