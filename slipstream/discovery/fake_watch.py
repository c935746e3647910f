"""A watch of a `FakeApiServer`: the lines that it sends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slipstream.discovery.fake_messages import ApiRequest, Refused, failure
from slipstream.discovery.fake_objects import Change, Object, Resource
from slipstream.discovery.fake_selectors import Matches

if TYPE_CHECKING:
    from slipstream.discovery.fakes import FakeApiServer


@dataclass(frozen=True, slots=True)
class _News:
    """What has happened, and up to where that is known."""

    changes: list[Change]
    version: int
    bookmarks: int


class Watch:
    """Sends events to one client.

    Args:
        matches: which objects are asked for.
        send: writes one line.
    """

    def __init__(
        self,
        api: FakeApiServer,
        asked: ApiRequest,
        resource: Resource,
        matches: Matches,
        send: Callable[[bytes], None],
    ) -> None:
        self._api, self._asked, self._resource = api, asked, resource
        self._matches, self._send = matches, send

    def follow(self, seconds: float) -> None:
        """What is there, where the watch begins anywhere; then what changes, for so long.

        Raises:
            OSError: the client has gone, or the server stops.
        """
        until, seen = time.monotonic() + seconds, self._begin()
        bookmarks = self._asked.query.get("allowWatchBookmarks") in ("1", "true", "True")
        told = self._api.bookmarks
        while news := self._news(seen, told if bookmarks else None, until):
            for change in news.changes:
                if change.resource == self._resource:
                    self._changed(change)
            if news.bookmarks != told and bookmarks:
                self._bookmark(news.version)
            seen, told = news.version, news.bookmarks
        if bookmarks:
            self._bookmark(seen)

    def refuse(self, refused: Refused) -> None:
        """Sends an ERROR."""
        self._event("ERROR", failure(refused))

    def _begin(self) -> int:
        """Sends what is there if that is asked for. Returns the version that is known then."""
        api, query = self._api, self._asked.query
        since, initial = query.get("resourceVersion", ""), query.get("sendInitialEvents") == "true"
        if since not in ("", "0") and not initial:
            return int(since)
        with api.lock:
            version = api.objects.version
            there = list(api.objects.all(self._resource, self._asked.namespace))
        for found in filter(self._matches, there):
            self._event("ADDED", found)
        if initial:
            self._bookmark(version, {"k8s.io/initial-events-end": "true"})
        return version

    def _news(self, seen: int, told: int | None, until: float) -> _News | None:
        """Waits for changes behind `seen`, or another number of bookmarks; None: time is over."""
        api = self._api
        with api.changed:
            while api.running:
                changes = [change for change in api.objects.history if change.version > seen]
                if changes or told not in (None, api.bookmarks):
                    return _News(changes, api.objects.version, api.bookmarks)
                if (left := until - time.monotonic()) <= 0:
                    return None
                api.changed.wait(min(left, 3600.0))
        raise ConnectionError("the server stops")

    def _changed(self, change: Change) -> None:
        """For whoever watches, one that is not selected any more is deleted; and added likewise."""
        found = change.after or change.before or {}
        if self._asked.namespace not in ("", found["metadata"].get("namespace", "")):
            return
        was = change.before is not None and self._matches(change.before)
        now = change.after is not None and self._matches(change.after)
        if was or now:
            kind = "MODIFIED" if was and now else "ADDED" if now else "DELETED"
            meta = {**found["metadata"], "resourceVersion": str(change.version)}
            self._event(kind, {**found, "metadata": meta})

    def _bookmark(self, version: int, notes: dict[str, str] | None = None) -> None:
        meta: Object = {"resourceVersion": str(version)}
        if notes:
            meta["annotations"] = notes
        of = self._resource
        self._event("BOOKMARK", {"kind": of.kind, "apiVersion": of.version, "metadata": meta})

    def _event(self, kind: str, found: Object) -> None:
        self._send(json.dumps({"type": kind, "object": found}).encode() + b"\n")
