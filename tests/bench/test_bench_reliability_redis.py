"""The benchmark's own Redis server: started, asked by hand, ended."""

from __future__ import annotations

import asyncio

import pytest

from slipstream.bench.reliability import redis
from slipstream.bench.reliability.redis import Redis, answer, encoded, kind_of, running_redis
from slipstream.core.errors import ConfigurationError, InternalError


async def read(content: bytes):
    reader = asyncio.StreamReader()
    reader.feed_data(content)
    reader.feed_eof()
    return await answer(reader)


async def test_answers_of_every_kind_are_read():
    """Words, numbers, texts with line ends in them, nothing, and lists of lists."""
    assert await read(b"+PONG\r\n") == "PONG"
    assert await read(b":42\r\n") == 42
    assert await read(b"$4\r\na\r\nb\r\n") == "a\r\nb"
    assert await read(b"$-1\r\n") is None
    assert await read(b"*2\r\n$1\r\n0\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n") == ["0", ["a", "b"]]
    with pytest.raises(InternalError, match="OOM"):
        await read(b"-OOM command not allowed\r\n")


def test_commands_count_bytes():
    """Lengths are of what is sent, not of characters."""
    assert encoded(("GET", "ä")) == b"*2\r\n$3\r\nGET\r\n$2\r\n\xc3\xa4\r\n"


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("session/ada/x", "session"),
        ("slipstream:gen/chatcmpl-1", "gen"),
        ("slipstream:log:{gen/chatcmpl-1/0}:data", "gen"),
        ("background", "background"),
    ],
)
def test_kinds_of_keys(key, kind):
    """What a store puts in front of a key is not its kind."""
    assert kind_of(key) == kind


async def test_a_real_server_is_counted(tmp_path):
    """Its keys, its kinds and its memory; what expires is gone; it ends with the context."""
    async with running_redis(tmp_path) as server:
        before = await server.used_memory()
        for number in range(300):
            await server.ask("SET", f"slipstream:session//{number}", "x" * 200)
        await server.ask("SET", "slipstream:gen/a", "x", "PX", "1")
        assert await server.used_memory() - before > 300 * 200
        async with asyncio.timeout(10):
            while await server.size() > 300:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert await server.kinds() == {"session": 300}
        with pytest.raises(InternalError, match="unknown command"):
            await server.ask("NOTHING")
    with pytest.raises(ConnectionRefusedError):
        await Redis(server.address, server.url).ask("PING")


def test_without_a_program_there_is_a_message(monkeypatch):
    """It says what to install."""
    monkeypatch.setattr(redis.shutil, "which", lambda _: None)
    monkeypatch.setattr(redis, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match="redis-server on the PATH, or pip install"):
        redis.find_server()
