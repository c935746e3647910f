"""Services are followed through the real client, and everything that an API server may do to it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import time
from dataclasses import replace

import pytest

from slipstream.core.errors import ConfigurationError
from slipstream.discovery import endpoints as endpoints_module
from slipstream.discovery.endpoints import Endpoints
from slipstream.discovery.fakes import FakeApiServer, endpoint, endpoint_slice
from slipstream.discovery.watch import Patience
from slipstream.discovery.zone import Zone
from tests.gateway.conftest import eventually

QUICK = Patience(answer=20.0, watch=300.0, first=0.05, most=0.1, lasting=0.0, stale=300.0)
VERIFIERS = "k8s:///v:50051"


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """The first answer may take its time on a busy machine, and so may the client's import."""
    monkeypatch.setattr(endpoints_module, "_LOOKUP_SECONDS", 20.0)


@contextlib.asynccontextmanager
async def following(spec=VERIFIERS, role="verifier", patience=QUICK):
    found = Endpoints(spec, "--verifier", role, patience)
    try:
        yield found
    finally:
        await found.close()


async def hosts(found):
    return [one.address.partition(":")[0] for one in await found.resolve()]


async def until_hosts(found, *wanted):
    """Looks when it is told, as those who use it do."""
    async with asyncio.timeout(20.0):
        while True:
            seen = found.changes
            if await hosts(found) == list(wanted):
                return
            await found.changed(seen, 5.0)


def state(found):
    [one] = found.describe()
    return one


async def watching(api, times=1):
    await eventually(lambda: len([one for one in api.requests if one.verb == "watch"]) >= times)


def put(api, *pods, **how):
    api.put(endpoint_slice("v", list(pods), component="verifier", **how))


def lists(api):
    return sum(one.verb == "list" for one in api.requests)


def watches(api):
    return [one for one in api.requests if one.verb == "watch"]


async def test_what_comes_changes_and_goes(api):
    """Listed, added, draining, deleted: each is known as it happens, and told; nobody else's is."""
    put(api, endpoint("10.0.0.1", zone="a", pod="v-0"))
    put(api, "10.0.9.9", namespace="elsewhere")
    api.put(endpoint_slice("w", ["10.0.9.8"]))
    async with following() as found:
        assert await hosts(found) == ["10.0.0.1"], "the first answer is waited for"
        [one] = await found.resolve()
        assert (one.zone, one.pod, one.draining) == ("a", "v-0", False)
        put(api, "10.0.0.2", name="second")
        await until_hosts(found, "10.0.0.1", "10.0.0.2")
        put(api, endpoint("10.0.0.1", terminating=True, serving=True))
        await until(found, lambda known: known[0].draining)
        assert (state(found).ready, state(found).draining) == (1, 1)
        api.delete("EndpointSlice", "default", "second")
        await until_hosts(found, "10.0.0.1")
        assert state(found).source == "endpointslices"
        assert not state(found).detail
        assert lists(api) == 1
        [watch] = watches(api)
        assert watch.query["labelSelector"] == "kubernetes.io/service-name=v"
        assert watch.query["allowWatchBookmarks"] == "true"
        assert int(watch.query["timeoutSeconds"]) == QUICK.watch


async def until(found, holds):
    async with asyncio.timeout(20.0):
        while True:
            seen = found.changes
            if holds(await found.resolve()):
                return
            await found.changed(seen, 5.0)


@pytest.mark.parametrize("as_status", [True, False], ids=["status", "event"])
async def test_expired(api, as_status):
    """410 Gone, as the HTTP status or as an event: it lists again, at once, and misses nothing."""
    put(api, "10.0.0.1")
    async with following() as found:
        await until_hosts(found, "10.0.0.1")
        await watching(api)
        api.stop()
        put(api, "10.0.0.2")
        api.expire(as_status=as_status)
        api.start()
        await until_hosts(found, "10.0.0.2")
        assert lists(api) == 2
        put(api, "10.0.0.3")
        await until_hosts(found, "10.0.0.3")


async def test_cut_in_mid_watch(api):
    """A watch that breaks goes on from the last version, without another list: what happened in
    between comes."""
    put(api, "10.0.0.1")
    async with following() as found:
        await until_hosts(found, "10.0.0.1")
        await watching(api)
        version = put_version(api, "10.0.0.2")
        await until_hosts(found, "10.0.0.2")
        api.disconnect()
        put(api, "10.0.0.3")
        await until_hosts(found, "10.0.0.3")
        assert lists(api) == 1
        assert watches(api)[1].query["resourceVersion"] == version
        assert not state(found).detail


def put_version(api, *pods):
    stored = api.put(endpoint_slice("v", list(pods), component="verifier"))
    return stored["metadata"]["resourceVersion"]


async def test_bookmarks_move_on(api):
    """After a bookmark a watch goes on from there: changes of others do not make it too old."""
    put(api, "10.0.0.1")
    async with following() as found:
        await until_hosts(found, "10.0.0.1")
        await watching(api)
        api.expire()
        api.bookmark()
        version = str(api.objects.version)
        await eventually(lambda: next(iter(found._watches.values()))._version == version)
        api.disconnect()
        await watching(api, 2)
        assert watches(api)[1].query["resourceVersion"] == version
        put(api, "10.0.0.2")
        await until_hosts(found, "10.0.0.2")
        assert lists(api) == 1


async def test_watches_end_and_lists_are_repeated(api):
    """A watch that ends in time is followed by the next; a list comes when one is due, and heals
    what was never told."""
    put(api, "10.0.0.1")
    patience = Patience(watch=1.0, resync=0.5, first=0.05, lasting=0.0)
    async with following(patience=patience) as found:
        await until_hosts(found, "10.0.0.1")
        await watching(api)
        next(iter(found._watches.values()))._slices.clear()
        await until_hosts(found, "10.0.0.1")
        assert lists(api) >= 2
        assert not state(found).detail


async def test_forbidden(api, caplog, dns):
    """Without the right: one message that names Role and verbs, DNS instead, and the slices as soon
    as the right is there."""
    dns["v.default.svc"] = ["10.0.0.7"]
    put(api, "10.0.0.1")
    api.forbid("list", "endpointslices")
    async with following() as found:
        assert await hosts(found) == ["10.0.0.7"]
        await eventually(lambda: lists(api) >= 3)
        assert caplog.text.count("forbids to list the EndpointSlices of Service default/v") == 1
        for words in ("Role of namespace default", "discovery.k8s.io", "[get, list, watch]"):
            assert words in caplog.text
        assert "DNS is asked" in caplog.text
        await hosts(found)
        assert state(found).source == "dns"
        assert state(found).short == "forbidden, using DNS"
        assert state(found).ready == 1
        api.allow("list", "endpointslices")
        await until_hosts(found, "10.0.0.1")
        await eventually(lambda: not state(found).detail)


async def test_list_without_watch(api):
    """Where only the watch is forbidden, lists bring what there is, and it is said."""
    put(api, "10.0.0.1")
    api.forbid("watch", "endpointslices")
    async with following() as found:
        await until_hosts(found, "10.0.0.1")
        put(api, "10.0.0.2")
        await until_hosts(found, "10.0.0.2")
        await eventually(lambda: "forbids to watch" in state(found).detail)


async def test_unknown_user(api, caplog, dns):
    """401 is said, and the configuration is read again each time, so a new token helps."""
    put(api, "10.0.0.1")
    api.token = "another"
    async with following() as found:
        assert await hosts(found) == []
        assert "the token of the service account, or of the kubeconfig" in caplog.text
        rewritten = api._config("default")
        api.kubeconfig.write_text(str(rewritten).replace("'", '"'))
        await until_hosts(found, "10.0.0.1")


async def test_server_down_and_up(api, dns):
    """What is known holds while it is down, until it is old and DNS knows better; it is followed
    again when it is back."""
    dns["v.default.svc"] = ["10.0.0.7"]
    put(api, "10.0.0.1")
    async with following() as found:
        await until_hosts(found, "10.0.0.1")
        await watching(api)
        api.stop()
        await eventually(lambda: "cannot be reached" in state(found).detail)
        assert await hosts(found) == ["10.0.0.1"]
        assert "what was known holds" in state(found).short
        put(api, "10.0.0.2")
        watch = next(iter(found._watches.values()))
        watch._patience = replace(QUICK, stale=0.0)
        assert await hosts(found) == ["10.0.0.7"]
        assert state(found).source == "dns"
        del dns["v.default.svc"]
        endpoints_module_known(found).clear()
        assert await hosts(found) == ["10.0.0.1"], "rather old than nothing"
        api.start()
        await until_hosts(found, "10.0.0.2")
        assert state(found).source == "endpointslices"


def endpoints_module_known(found):
    return found._known


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_errors_of_the_server(api, dns, status):
    """An error is said by its status, and tried again."""
    api.failing = status
    put(api, "10.0.0.1")
    async with following() as found:
        assert await hosts(found) == []
        assert state(found).short == f"HTTP {status}, using DNS"
        api.failing = 0
        await until_hosts(found, "10.0.0.1")


async def test_an_answer_that_cannot_be_read(api, dns):
    """Something else than slices, as of a proxy in between: said, and tried again."""
    api.objects.set(api.objects.resource("EndpointSlice"), "default", "v-abcde", {})
    labels = {"kubernetes.io/service-name": "v"}
    broken = api.get("EndpointSlice", "default", "v-abcde")
    broken["metadata"] = {"labels": labels}
    async with following() as found:
        assert await hosts(found) == []
        assert state(found).short == "unreadable, using DNS"
        broken["metadata"] |= {"name": "v-abcde"}
        put(api, "10.0.0.1")
        await until_hosts(found, "10.0.0.1")


async def test_no_answer(api, dns, monkeypatch):
    """A server that says nothing holds nobody up for long, in the first list or later."""
    monkeypatch.setattr(endpoints_module, "_LOOKUP_SECONDS", 0.2)
    dns["v.default.svc"] = ["10.0.0.7"]
    put(api, "10.0.0.1")
    api.delay = math.inf
    patience = Patience(answer=0.3, first=0.05, most=0.1)
    async with following(patience=patience) as found, asyncio.timeout(60.0):
        assert await hosts(found) == ["10.0.0.7"]
        await eventually(lambda: "did not answer in time" in state(found).detail)
        api.delay = 0
        api.wake()
        await until_hosts(found, "10.0.0.1")


async def test_a_watch_that_leads_nowhere(api, monkeypatch):
    """One that neither tells anything nor ends is given up by its deadline."""
    monkeypatch.setattr("slipstream.discovery.api._LATE_SECONDS", -59.5)
    put(api, "10.0.0.1")
    async with following(patience=Patience(watch=60.0, first=0.05, most=0.1)) as found:
        await until_hosts(found, "10.0.0.1")
        await watching(api, 2)
        put(api, "10.0.0.2")
        await until_hosts(found, "10.0.0.2")
        assert lists(api) == 1


async def test_a_server_that_ends_every_watch(api):
    """It is not asked without a pause, and what it lists is used."""
    put(api, "10.0.0.1")
    api.longest_watch = 0.0
    # The shortest pause is half of that.
    patience = Patience(first=1.0, most=1.0)
    async with following(patience=patience) as found, asyncio.timeout(60.0):
        await until_hosts(found, "10.0.0.1")
        await eventually(lambda: "ends each watch at once" in state(found).detail)
        began, before = time.monotonic(), len(watches(api))
        await asyncio.sleep(1.2)
        assert len(watches(api)) - before <= (time.monotonic() - began) / 0.5 + 1
        put(api, "10.0.0.2")
        await until_hosts(found, "10.0.0.2")


async def test_no_configuration(tmp_path, monkeypatch, dns, caplog):
    """Neither kubeconfig nor service account: said in words that help, and DNS is used."""
    dns["v.default.svc"] = ["10.0.0.7"]
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("POD_NAMESPACE", raising=False)
    async with following() as found:
        assert await hosts(found) == ["10.0.0.7"]
        assert "automountServiceAccountToken" in caplog.text
        assert f"there is no file {tmp_path / 'none'}" in caplog.text
        assert state(found).short == "no configuration, using DNS"
    for content in ("[", "{}", "a: [", '{"clusters": 1}'):
        (tmp_path / "none").write_text(content)
        async with following() as found:
            assert await hosts(found) == ["10.0.0.7"], content
            assert state(found).short == "no configuration, using DNS"


async def test_no_pods(api, caplog):
    """A Service of no pods, or none at all yet: no error, no warning; the first pod is told."""
    async with following() as found:
        assert await hosts(found) == []
        put(api)
        await until_hosts(found)
        assert not state(found).detail
        assert state(found).source == "endpointslices"
        put(api, "10.0.0.1")
        await until_hosts(found, "10.0.0.1")
    assert not [one for one in caplog.records if one.levelname == "WARNING"]


async def test_the_wrong_service(api, dns):
    """Of another role, or port: no endpoint, DNS is no way around it, and it is said."""
    dns["v.default.svc"] = ["10.0.0.7"]
    api.put(endpoint_slice("v", ["10.0.0.1"], component="drafter"))
    async with following() as found:
        assert await hosts(found) == []
        assert (
            state(found).detail == "it is a Service of component drafter, and a verifier is wanted"
        )
    async with following("k8s:///v:http", role="") as found:
        assert await hosts(found) == []
        assert "no port http" in state(found).detail


async def test_a_mix(api, dns):
    """Addresses, names and Services together: each address once, with all that is known of it."""
    dns["x"] = ["10.0.0.1", "10.0.0.3"]
    put(api, endpoint("10.0.0.1", zone="a"), endpoint("10.0.0.2", terminating=True, serving=True))
    spec = "10.0.0.2:50051,dns:///x:50051,k8s://default/v:grpc,y:1"
    async with following(spec) as found:
        known = await found.resolve()
        assert [(one.address, one.zone, one.draining) for one in known] == [
            ("10.0.0.2:50051", "", True), ("10.0.0.1:50051", "a", False),
            ("10.0.0.3:50051", "", False), ("y:1", "", False),
        ]  # fmt: skip
        assert not found.static
        assert [one.entry for one in found.describe()] == ["k8s://default/v:grpc"]


async def test_a_named_port_has_no_dns(api, dns):
    """Where a port is named, DNS cannot stand in, which is said."""
    api.forbid("*", "endpointslices")
    async with following("k8s:///v:grpc") as found:
        assert await hosts(found) == []
        assert state(found).short == "forbidden, DNS cannot stand in for a named port"


async def test_own_namespace(api, monkeypatch):
    """$POD_NAMESPACE, then the context's, then default; one that is named is taken as it is."""
    put(api, "10.0.0.1", namespace="mine")
    with FakeApiServer(namespace="theirs") as other:
        monkeypatch.setenv("KUBECONFIG", str(other.kubeconfig))
        assert "theirs/v" in str(Endpoints(VERIFIERS, "--verifier")._watches[VERIFIERS].service)
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig))
    monkeypatch.setenv("POD_NAMESPACE", "mine")
    async with following() as found:
        await until_hosts(found, "10.0.0.1")
    named = Endpoints("k8s://x/v:1", "--verifier")._watches["k8s://x/v:1"].service
    assert (named.namespace, named.dns) == ("x", ("v.x.svc", 1))


async def test_zone(api, monkeypatch):
    """The own pod's, once it is told; the watch ends with it. Other text is the zone itself."""
    monkeypatch.setenv("POD_NAME", "me")
    put(api, endpoint("10.0.0.1", zone="b", pod="other"))
    async with contextlib.aclosing(Zone("k8s:///v", QUICK)) as zone:
        zone.start()
        await watching(api)
        assert zone.name == ""
        put(api, endpoint("10.0.0.2", zone="a", pod="me", ready=False))
        await eventually(lambda: zone.name == "a")
        await eventually(zone._watch._task.done)
    assert Zone("here").name == "here"
    assert Zone().name == ""
    for wrong in ("k8s:///v:1", "k8s:///", "k8s://v"):
        with pytest.raises(ConfigurationError, match=r"--zone takes k8s:///SERVICE or"):
            Zone(wrong)


@pytest.fixture
async def dns(monkeypatch):
    """What names have; others have nothing."""
    names = {}

    async def look(host, port, **_):
        if host not in names:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(socket.AF_INET, 1, 6, "", (ip, port)) for ip in names[host]]

    loop = asyncio.get_running_loop()
    real = loop.getaddrinfo

    async def chosen(host, port, **how):
        if host in ("127.0.0.1", "localhost"):
            return await real(host, port, **how)
        return await look(host, port)

    monkeypatch.setattr(loop, "getaddrinfo", chosen, raising=False)
    return names
