"""What the benchmark reads from a Redis server of its own."""

from __future__ import annotations

import asyncio

import pytest

from slipstream.bench.reliability.redis import kind_of, running_redis


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("session/ada/x", "session"),
        ("slipstream:gen/chatcmpl-1", "gen"),
        ("slipstream:log:gen/chatcmpl-1/0", "gen"),
        ("slipstream:index:{sessions/ada}", "sessions"),
        ("background", "background"),
    ],
)
def test_kinds_of_keys(key, kind):
    """What a store puts in front of a key is not its kind."""
    assert kind_of(key) == kind


async def test_a_real_server_is_counted(tmp_path):
    """Its keys, its kinds and its memory; what expires is gone; it ends with the context."""
    async with running_redis(tmp_path) as redis:
        before = await redis.used_memory()
        for number in range(300):
            redis.server.command("SET", f"slipstream:session//{number}", "x" * 200)
        redis.server.command("SET", "slipstream:gen/a", "x", "PX", "1")
        assert await redis.used_memory() - before > 300 * 200
        async with asyncio.timeout(60):
            while await redis.size() > 300:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert await redis.kinds() == {"session": 300}
    assert not redis.server.answers()
