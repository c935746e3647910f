"""What a storm must leave behind: everybody well, nothing held, and every acknowledged turn."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import grpc
import httpx

from slipstream.bench.leaks import Watched, leaked, levels
from tests.chaos.history import StoreHistory
from tests.chaos.session_client import SessionLog
from tests.chaos.stack import Stack
from tests.chaos.verdict import Finding, Turn, Verdict, judge_session

_SETTLE = 40.0
_TRIES = 20


async def held(stack: Stack) -> list[dict[str, float]]:
    """What every process of the stack holds now."""
    return [await levels(watched) for watched in _watched(stack)]


async def still_held(stack: Stack, before: Sequence[Mapping[str, float]]) -> list[str]:
    """What is held beyond `before`, once there was time to let go of it; what cannot be asked is
    told, too."""

    async def one(number: int, watched: Watched) -> list[str]:
        try:
            found = await leaked(watched, before[number], seconds=_SETTLE)
        except (OSError, httpx.HTTPError, grpc.aio.AioRpcError) as failure:
            return [f"stack part {number} does not answer: {type(failure).__name__}"]
        return [f"{number}: {each}" for each in found]

    parts = await asyncio.gather(*(one(i, each) for i, each in enumerate(_watched(stack))))
    return [line for lines in parts for line in lines]


def _watched(stack: Stack) -> list[Watched]:
    """One gateway, verifier and drafter each, as far as there are so many."""
    addresses, topology = stack.addresses, stack.topology
    return [
        Watched(
            gateway=f"http://{addresses[gateway]}" if gateway else None,
            verifier=addresses[verifier] if verifier else None,
            drafter=addresses[drafter] if drafter else None,
        )
        for gateway, verifier, drafter in zip_longest(
            topology.of("gateway"), topology.of("verifier"), topology.of("drafter")
        )
    ]


async def sessions_kept(
    stack: Stack, sessions: Sequence[SessionLog], history: StoreHistory
) -> dict[str, Finding]:
    """Compares every session with what its client knows, at each gateway in turn, by id."""
    doors = [stack.addresses[name] for name in stack.topology.of("gateway")]
    found: dict[str, Finding] = {}
    now = asyncio.get_running_loop().time()
    async with httpx.AsyncClient(timeout=5.0, trust_env=False) as web:
        for place, session in enumerate(sessions):
            url = f"http://{doors[place % len(doors)]}/v1/sessions/{session.id}"
            try:
                stored = await _turns(web, url)
            except (httpx.HTTPError, KeyError, TypeError, ValueError) as failure:
                found[session.id] = Finding(Verdict.LOST, f"{type(failure).__name__}: {failure}")
                continue
            if stored is None and history.was_emptied(session.began, now):
                continue
            found[session.id] = judge_session(stored, session.acknowledged, session.pending)
    return found


async def _turns(web: httpx.AsyncClient, url: str) -> list[Turn] | None:
    """Of a session; None where there is none. Raises httpx.HTTPError, and others for what is no
    session."""
    for _ in range(_TRIES):
        answer = await web.get(url)
        if answer.status_code == 404:
            return None
        if answer.status_code != 503:
            break
        await asyncio.sleep(0.5)
    return [_turn(each) for each in answer.raise_for_status().json()["turns"]]


def _turn(content: dict[str, Any]) -> Turn:
    """What was said last in a turn, and the answer."""
    return Turn(content["input"][-1]["content"], content["output"])
