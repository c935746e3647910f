"""From an engine's thread to the event loop, waking it once for all that is said meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

Action = Callable[[], None]


class Mailbox:
    """Runs actions on the event loop in the order posted. `post` is for any thread.

    Waking the loop is a system call and, where both threads share a core, a switch of threads; an
    engine has something to say to each of its clients in one step.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._actions: deque[Action] = deque()
        self._woken = False

    def post(self, action: Action) -> None:
        """Raises RuntimeError where the loop is closed."""
        self._actions.append(action)
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        # First of all, so that whatever is posted from here on wakes the loop again.
        self._woken = False
        while self._actions:
            try:
                self._actions.popleft()()
            except Exception as failure:  # noqa: BLE001 as the loop itself would
                context = {"message": "an action of a mailbox failed", "exception": failure}
                self._loop.call_exception_handler(context)
