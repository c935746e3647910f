"""What a gateway keeps beyond a request: the session store, and what is built on it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from gateway.generation import GenerationService
from gateway.runs.background import Background
from gateway.runs.background import Limits as BackgroundLimits
from gateway.runs.options import Options
from gateway.runs.service import Runs
from gateway.sessions import Conversations, Limits, Sessions
from gateway.settings import Settings
from slipstream.store import GuardedStore, Store, default_url, describe, open_store

_LEAST_FLUSH_SECONDS = 1.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kept:
    """Attributes:
    runs, background: generations that outlive their connection.
    conversations: makes requests the turns of sessions.
    store: None where nothing is kept, or it is not ours to watch.
    """

    runs: Runs
    background: Background
    conversations: Conversations
    store: GuardedStore | None

    def standing(self) -> dict[str, Any]:
        """How the store is, for `/ready`: "ok", "degraded" with what is wrong, or "off"; and the
        seconds that its last answer took, where it is a store of ours to watch."""
        if self.store is None:
            return {"state": "ok" if self.runs.keeps else "off", "detail": ""}
        return {
            "state": self.store.state,
            "detail": self.store.detail,
            "answer_seconds": self.store.answer_seconds,
        }


@contextlib.asynccontextmanager
async def keeping(
    settings: Settings, service: GenerationService, given: Store | None = None
) -> AsyncIterator[Kept]:
    """While the block runs things are kept; in the end what is not written yet is.

    Args:
        given: a store of the caller's, used as it is; None: the one that the settings name.

    Raises:
        ConfigurationError: there is no such store.
    """
    async with contextlib.AsyncExitStack() as stack:
        guarded = None if given is not None else await _opened(settings, service, stack)
        store = guarded if given is None else given
        sessions = None
        if store is not None:
            limits = Limits(
                settings.session_ttl,
                settings.max_session_ttl,
                settings.max_session_bytes,
                settings.max_sessions_per_key,
            )
            sessions = Sessions(store, limits)
            sessions.desk.refused = service.metrics.refused
            stack.push_async_callback(sessions.close)
        conversations = Conversations(sessions)
        options = Options(
            resume=settings.resume == "on",
            log_ttl=settings.log_ttl,
            background_ttl=settings.background_ttl,
            patience=settings.store_timeout,
            most_per_key=settings.max_generations_per_key,
        )
        runs = Runs(service, store, options, conversations)
        stack.push_async_callback(runs.close, max(_LEAST_FLUSH_SECONDS, settings.stop_grace))
        most = BackgroundLimits(
            settings.max_background, settings.max_requests_per_key, settings.background_timeout
        )
        yield Kept(runs, Background(runs, most), conversations, guarded)


async def _opened(
    settings: Settings, service: GenerationService, stack: contextlib.AsyncExitStack
) -> GuardedStore | None:
    if settings.session_store == "off":
        return None
    url = default_url() if settings.session_store == "sqlite" else settings.session_store
    store = GuardedStore(
        open_store(url),
        settings.store_timeout,
        on_call=service.metrics.store.call,
    )
    service.metrics.store.guard = store
    await store.start()
    stack.push_async_callback(store.close)
    log.info("session store: %s", describe(url))
    return store
