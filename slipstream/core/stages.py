"""What a process is doing while it starts, for whoever started it and waits."""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)
_listeners: list[Callable[[str], None]] = []


def tell(stage: str) -> None:
    """Says what comes next and may take seconds, in a few words: `loading the model`."""
    log.info("%s", stage)
    for listener in _listeners:
        listener(stage)


def listen(listener: Callable[[str], None]) -> None:
    """Has it called with every stage from now on, on the thread that tells it."""
    _listeners.append(listener)
