"""A release with a drafter in shards, and TLS between the services."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipstream.wire.transport import is_serving
from tests.certificates import Authority
from tests.integration.processes import until
from tests.rendered.api import ReleaseApi
from tests.rendered.client import Client, metric, paired
from tests.rendered.cluster import Cluster
from tests.rendered.hub import hub
from tests.rendered.manifests import Manifests
from tests.rendered.releases import DRAFTER, GATEWAY, VERIFIER, added_secret, rendered

pytestmark = pytest.mark.slow
_VALUES = {
    "drafter": {"shards": 2},
    "tls": {"enabled": True, "existingSecret": "peers"},
    "redis": {"mode": "none"},
}


def _with_certificates(manifests: Manifests) -> Manifests:
    """The Secret as cert-manager would write it."""
    authority = Authority.new()
    certificate, key = authority.sign()
    files = {"tls.crt": certificate, "tls.key": key, "ca.crt": authority.pem}
    return added_secret(manifests, "peers", files)


async def test_shards_by_ordinal_and_tls(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Ordinals find their row by the names of pods; drafts go through both shards, over TLS; who
    has no certificate is not served, and probes need none."""
    with hub(tiny_model_dir) as url:
        manifests = _with_certificates(rendered(url, _VALUES))
        api = ReleaseApi(manifests)
        cluster = Cluster(manifests, tmp_path / "pods", api)
        try:
            await cluster.start(100)
            (gateway,), (verifier,) = cluster.of(GATEWAY), cluster.of(VERIFIER)
            await until(lambda: paired(Client(gateway)))
            (test,) = manifests.hooks("test")
            code, output = await cluster.run_hook(test, 100)
            assert code == 0, output
            for shard in cluster.of(DRAFTER):
                assert await metric(shard, "slipstream:drafter_shard_passes_total") > 0
            assert not await is_serving(f"{verifier.ip}:50051"), "without a certificate"
            assert api.refused() == []
            assert cluster.failures() == []
            for name, end in (await cluster.stop()).items():
                assert set(end.codes.values()) == {0}, name
        finally:
            await cluster.close()
            api.close()
