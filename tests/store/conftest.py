"""Every kind of store, real ones on real servers."""

from __future__ import annotations

import pytest

from slipstream.bench.redis_server import RedisServer, cluster_node, make_cluster
from slipstream.store import MemoryStore, open_store

KINDS = ["memory", "sqlite", "redis", "cluster"]
PATIENT = 30.0


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    """A server that tests share, and empty; who breaks one starts one."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def cluster_nodes(tmp_path_factory):
    """Three masters without replicas, which tests share."""
    folder = tmp_path_factory.mktemp("cluster")
    nodes = []
    for number in range(3):
        # Each writes a nodes.conf.
        node = cluster_node(folder / str(number))
        nodes.append(node)
        node.launch()
    try:
        for node in nodes:
            node.wait()
        make_cluster(nodes)
        yield nodes
    finally:
        for node in nodes:
            node.kill()


def cluster_url(nodes):
    return "redis+cluster://" + ",".join(node.address for node in nodes)


@pytest.fixture
def url_of(request, tmp_path):
    """The URL of an empty store by its kind."""

    def url(kind):
        if kind == "sqlite":
            return f"sqlite://{tmp_path}/folder/store.db"
        if kind == "redis":
            server = request.getfixturevalue("redis_server")
            server.command("FLUSHALL")
            return server.url
        nodes = request.getfixturevalue("cluster_nodes")
        for node in nodes:
            node.command("FLUSHALL")
        return cluster_url(nodes)

    return url


@pytest.fixture(params=KINDS)
def opened(request, url_of):
    """A function that opens one more store over the same data, as another gateway would."""
    if request.param == "memory":
        shared = MemoryStore()
        return lambda: shared
    url = url_of(request.param)
    # A busy machine's delays are no failures.
    return lambda: open_store(url, timeout=PATIENT)


@pytest.fixture
async def store(opened):
    store = opened()
    yield store
    await store.close()
