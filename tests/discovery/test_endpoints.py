"""Lists of addresses, and names that stand for many."""

from __future__ import annotations

import asyncio
import socket

import pytest

from slipstream.core.errors import ConfigurationError
from slipstream.discovery import endpoints
from slipstream.discovery.endpoints import Endpoints


class Dns:
    """Stands in for the loop's getaddrinfo."""

    def __init__(self, monkeypatch):
        self.hosts: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self.look, raising=False)

    async def look(self, host, port, **_):
        self.asked.append(host)
        await self.gate.wait()
        if host not in self.hosts:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [
            (socket.AF_INET6, 1, 6, "", (ip, port, 0, 0))
            if ":" in ip
            else (socket.AF_INET, 1, 6, "", (ip, port))
            for ip in self.hosts[host]
        ]


async def addresses(found):
    return tuple(endpoint.address for endpoint in await found.resolve())


@pytest.fixture
async def dns(monkeypatch):
    return Dns(monkeypatch)


async def test_a_list_is_what_it_says():
    """Addresses in the order given; spaces do not matter."""
    listed = Endpoints("b:2, a:1 ,[::1]:3", "--verifier")
    assert listed.static
    assert await addresses(listed) == ("b:2", "a:1", "[::1]:3")
    assert str(listed) == "b:2, a:1, [::1]:3"


@pytest.mark.parametrize(
    "spec",
    ["", "a", "a:1,", ",a:1", "a:1,a:1", "a:x", "a:70000", ":1", "dns:///", "dns:///a",
     "dns:///a:1,dns:///a:1", "dns://a:1", "http://a:1", "k8s:///a", "k8s:///:1", "k8s:///a:0",
     "k8s:///a:70000", "k8s:///A:1", "k8s://a:1", "k8s:///a/b:1", "k8s:///a:1,k8s:///a:1"],
)  # fmt: skip
def test_what_cannot_be(spec):
    """Malformed, empty or repeated entries are errors that name the option."""
    with pytest.raises(ConfigurationError, match="--verifier"):
        Endpoints(spec, "--verifier")


async def test_a_name_is_all_its_addresses(dns):
    """Each address once, in an order that is not DNS's own; with others in a mix."""
    dns.hosts["v"] = ["10.0.0.2", "fd00::1", "10.0.0.1", "10.0.0.2"]
    found = Endpoints("x:9,dns:///v:50051,10.0.0.1:50051", "--verifier")
    assert not found.static
    expected = ("x:9", "10.0.0.1:50051", "10.0.0.2:50051", "[fd00::1]:50051")
    assert await addresses(found) == expected
    dns.hosts["v"].reverse()
    assert await addresses(found) == expected
    dns.hosts["v"] = ["10.0.0.3"]
    assert await addresses(found) == ("x:9", "10.0.0.3:50051", "10.0.0.1:50051")


async def test_a_name_that_is_lost_keeps_its_addresses(dns, caplog):
    """Where DNS fails, the last answer holds; before there was one, there is nobody."""
    found = Endpoints("dns:///v:1", "--verifier")
    assert await addresses(found) == ()
    dns.hosts["v"] = ["10.0.0.1"]
    assert await addresses(found) == ("10.0.0.1:1",)
    del dns.hosts["v"]
    caplog.clear()
    for _ in range(3):
        assert await addresses(found) == ("10.0.0.1:1",)
    assert caplog.text.count("cannot be looked up") == 1, "it is said once"


async def test_dns_that_hangs(dns, monkeypatch):
    """A lookup without an answer holds nobody up, and is not begun a second time beside itself."""
    monkeypatch.setattr(endpoints, "_LOOKUP_SECONDS", 0.02)
    dns.hosts["v"] = ["10.0.0.1"]
    dns.gate.clear()
    found = Endpoints("dns:///v:1", "--verifier")
    assert await addresses(found) == ()
    assert await addresses(found) == ()
    assert dns.asked == ["v"]
    monkeypatch.setattr(endpoints, "_LOOKUP_SECONDS", 20.0)
    dns.gate.set()
    assert await addresses(found) == ("10.0.0.1:1",)
