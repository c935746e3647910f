"""Which configuration of the API is taken, and that of a pod in particular."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from kubernetes.aio import client
from kubernetes.aio.config import incluster_config

from slipstream.discovery import api as api_module
from slipstream.discovery import settings


@pytest.fixture
def account(tmp_path, monkeypatch):
    """A pod's service account."""
    (tmp_path / "token").write_text("secret")
    (tmp_path / "ca.crt").write_text("certificate")
    (tmp_path / "namespace").write_text("prod\n")
    monkeypatch.setattr(settings, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    for name in ("KUBECONFIG", "POD_NAMESPACE", "POD_NAME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


async def test_in_a_pod(account):
    """The service account's token, certificate and namespace; the token is read again."""
    assert settings.kubeconfig() is None
    assert settings.default_namespace() == "prod"
    made = client.Configuration()
    await api_module._configure(made)
    assert made.host == "https://10.96.0.1:443"
    assert made.ssl_ca_cert == str(account / "ca.crt")
    assert await made.get_api_key_with_prefix("BearerToken") == "bearer secret"
    assert made.refresh_api_key_hook is not None


def test_the_order(account, monkeypatch):
    """A kubeconfig that is named comes first, that of the home folder last."""
    monkeypatch.setenv("KUBECONFIG", "/a/b:/c")
    assert settings.kubeconfig() == Path("/a/b")
    monkeypatch.delenv("KUBECONFIG")
    (account / "token").unlink()
    assert settings.kubeconfig() == Path.home() / ".kube" / "config"
    monkeypatch.setenv("KUBECONFIG", str(account / "broken"))
    (account / "broken").write_text("[")
    assert settings.default_namespace() == "default"


def test_who_does_not_use_it_does_not_load_it():
    """Neither the gateway nor an API double imports the client; DNS and addresses need none."""
    code = (
        "import asyncio, sys, gateway.server, slipstream.discovery.fakes;"
        "from slipstream.discovery.endpoints import Endpoints;"
        "asyncio.run(Endpoints('a:1,dns:///localhost:1', '--verifier').resolve());"
        "sys.exit('kubernetes' in sys.modules or 'aiohttp' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
