"""Mutual TLS between services: who is let in, what the others are told, and new certificates."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from gateway.settings import load
from gateway.verifiers.pool import VerifierPool
from slipstream.core.errors import ConfigurationError, NotAuthenticated, Unavailable
from slipstream.discovery.endpoints import Endpoints
from slipstream.wire.peer_name import _covers
from slipstream.wire.status import error_of
from slipstream.wire.tls import Tls, among_peers
from slipstream.wire.tls_files import TlsFiles
from slipstream.wire.transport import Server, channel
from tests.certificates import DAY, Authority, key_pem, options, put
from tests.integration.processes import until
from tests.wire.echo import SERVICE, Echo, Stub

SECONDS = 20.0


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.new()


@pytest.fixture(scope="module")
def stranger() -> Authority:
    """Of another cluster."""
    return Authority.new("another CA")


@pytest.fixture
def ours(authority: Authority, tmp_path: Path) -> TlsFiles:
    return authority.files(tmp_path / "ours")


@contextlib.asynccontextmanager
async def serving(tls: Tls | None) -> AsyncIterator[str]:
    """An echo's address."""
    server = Server("127.0.0.1:0", [SERVICE], tls=tls)
    server.grpc.add_generic_rpc_handlers((Echo().handlers(),))
    port = await server.start()
    await server.set_serving(True)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def asked(address: str, tls: Tls | None) -> str:
    """What a peer hears that asks once: the echo, or why there is none."""
    with among_peers(tls):
        async with channel(address) as link:
            try:
                return (await Stub(link).one(b"hello", timeout=SECONDS)).decode()
            except grpc.aio.AioRpcError as failure:
                error = error_of(failure)
                assert isinstance(error, Unavailable | NotAuthenticated), error
                return error.message


def _paths(files: TlsFiles) -> tuple[Path, Path, Path]:
    return files.cert, files.key, files.ca


def _pair(signed: tuple[bytes, bytes]) -> dict[str, bytes]:
    return {"cert": signed[0], "key": signed[1]}


def broken(files: TlsFiles, **wrong: bytes) -> TlsFiles:
    """The files, some with another content."""
    old = {name: getattr(files, name).read_bytes() for name in ("cert", "key", "ca")}
    put(files.cert.parent, **(old | wrong))
    return files


def trusting(files: TlsFiles, name: str) -> Tls:
    """An identity that a check against its own files would refuse, as peers may have one."""
    tls = Tls(files)
    tls.name = name
    return tls


async def test_peers_of_one_ca_talk(ours, authority, tmp_path) -> None:
    """Two certificates of one CA, and an address that neither carries: calls of all kinds."""
    theirs = authority.files(tmp_path / "theirs")
    async with serving(Tls(theirs)) as address:
        with among_peers(Tls(ours)):
            link = channel(address)
        # What a channel is was decided when it was made.
        async with link:
            stub = Stub(link)
            assert await stub.one(b"hello") == b"hello"
            got = [each.value async for each in stub.unary_stream(_bytes(b"twice"))]
            assert got == [b"twice"] * 2
            stream = stub.stream_stream()
            await stream.write(_bytes(b"by turns"))
            assert (await stream.read()).value == b"by turns"
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF


def _bytes(value: bytes):
    from google.protobuf.wrappers_pb2 import BytesValue

    return BytesValue(value=value)


async def test_who_is_refused(ours, authority, stranger, tmp_path) -> None:
    """Another CA, another name, no TLS, each on either side: no call comes through, and the caller
    is told which it was, at once."""
    tls, foreign = Tls(ours), Tls(stranger.files(tmp_path / "foreign"))
    hybrid = stranger.files(tmp_path / "hybrid")
    # It believes our CA and shows another's certificate: only the server can refuse it.
    unsigned = Tls(hybrid)
    unsigned._content = (hybrid.cert.read_bytes(), hybrid.key.read_bytes(), authority.pem)
    unsigned._credentials = unsigned._made()
    async with asyncio.timeout(5 * SECONDS), serving(tls) as address:
        assert await asked(address, tls) == "hello"
        assert "certificate is not accepted" in await asked(address, foreign)
        assert "hung up during the TLS handshake" in await asked(address, unsigned)
        assert "hung up on a plain connection" in await asked(address, None)
        assert "does not carry the name" in await asked(address, trusting(ours, "other"))
        nobody = Tls(TlsFiles(*_paths(authority.files(tmp_path / "job", "job")), "job"))
        nobody.name = tls.name
        assert "must carry the DNS name slipstream, and this one has job" in await asked(
            address, nobody
        )
    async with serving(None) as address:
        assert "speaks no TLS" in await asked(address, tls)


async def test_new_certificates(ours, stranger, caplog) -> None:
    """Files that change serve the next connection on both sides, whatever CA they are of by then;
    what runs goes on; ones that do not fit together change nothing, and that is said."""
    caplog.set_level(logging.INFO, "slipstream.wire.tls")
    server_side, client_side = Tls(ours), Tls(ours)
    async with serving(server_side) as address:
        with among_peers(client_side):
            link = channel(address)
        async with link:
            stub = Stub(link)
            running = stub.stream_stream()
            await running.write(_bytes(b"before"))
            assert (await running.read()).value == b"before"

            broken(ours, key=stranger.sign()[1])
            assert await stub.one(b"still") == b"still"
            assert "stays the one from before: the key in" in caplog.text

            put(ours.cert.parent, *stranger.sign(), stranger.pem)
            assert await stub.one(b"now", timeout=SECONDS) == b"now"
            new = link._plain._now.number
            assert new == client_side.number == 1
            await running.write(_bytes(b"and after"))
            assert (await running.read()).value == b"and after"
            await running.done_writing()
            assert await running.read() is grpc.aio.EOF
            await until(lambda: not (link._plain._replaced or link._plain._closing))
        assert server_side.number == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda a, b: {"cert": b"nonsense"}, "tls.crt .--tls-cert. holds no certificate in PEM"),
        (lambda a, b: {"key": b""}, "tls.key .--tls-key. holds no private key in PEM"),
        (lambda a, b: {"ca": b"nonsense"}, "ca.crt .--tls-ca. holds no certificate in PEM"),
        (lambda a, b: {"key": a.sign()[1]}, "the key in .*tls.key .* is not that of"),
        (lambda a, b: {"key": key_pem(a.key, b"secret")}, "tls.key .* is encrypted"),
        (lambda a, b: {"cert": a.pem[:100] + a.pem[140:]}, "is damaged"),
        (lambda a, b: {"ca": b.pem}, "no peer would accept .*issuer"),
        (lambda a, b: _pair(a.sign(lasts=-DAY)), "no peer.*expired"),
        (lambda a, b: _pair(a.sign("other")), "no peer.*'slipstream'"),
    ],
)
def test_files_that_cannot_be_used(ours, authority, stranger, wrong, said) -> None:
    """Each is refused before anything starts, with the file and what is wrong with it."""
    with pytest.raises(ConfigurationError, match=said):
        Tls(broken(ours, **wrong(authority, stranger)))


def test_files_that_cannot_be_read(ours) -> None:
    """One that is missing is named, with its option."""
    ours.key.unlink()
    with pytest.raises(ConfigurationError, match=r"--tls-key .*tls.key cannot be read: no such"):
        Tls(ours)


def test_settings(ours) -> None:
    """All three files or none; with them a service has an identity."""
    assert load(["--model", "m"]).tls() is None
    with pytest.raises(ConfigurationError, match="belong together"):
        load(["--model", "m", *options(ours)[:2]])
    with pytest.raises(ConfigurationError, match="no peer.*'sidestream'"):
        load(["--model", "m", *options(ours), "--tls-name", "sidestream"]).tls()
    tls = load(["--model", "m", *options(ours)]).tls()
    assert tls is not None
    assert tls.name == "slipstream"


async def test_the_gateway_says_why(ours, stranger, tmp_path, caplog) -> None:
    """A verifier that is refused: readiness tells the reason, and the log does once."""
    server = Server("127.0.0.1:0", ["slipstream.v1.VerifierService"], tls=Tls(ours))
    address = f"127.0.0.1:{await server.start()}"
    with among_peers(Tls(stranger.files(tmp_path / "foreign"))):
        pool = VerifierPool(Endpoints(address, "--verifier"))
        pool.start()
        try:
            await until(
                lambda: any("not accepted" in str(one.describe("")) for one in pool._links.values())
            )
            (missing,) = (await pool.readiness()).missing
        finally:
            await pool.close()
            await server.stop(0)
    assert "its certificate is not accepted, by the CA of --tls-ca" in missing
    said = [r.getMessage() for r in caplog.records if r.name == "gateway.verifiers.link"]
    assert len([line for line in said if "cannot be reached: its certificate" in line]) == 1


@pytest.mark.parametrize(
    ("pattern", "covered"),
    [("slipstream", False), ("A.b.c", True), ("*.b.c", True), ("*.c", False), ("*.a.b.c", False)],
)
def test_names_with_a_star(pattern, covered) -> None:
    """A star stands for the first label, whole, as it does for those who dial."""
    assert _covers(pattern, "a.b.c") is covered
