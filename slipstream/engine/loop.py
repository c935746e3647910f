"""The shell of an engine: an inbox that anyone may fill, and the one thread that empties it."""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_IDLE_WAIT_SECONDS = 1.0
T = TypeVar("T")


def model_thread() -> ThreadPoolExecutor:
    """The one thread of a process that may compute: it loads the model, then runs its engine.

    OpenMP gives every thread that computes a team of its own, and once there are more threads
    than cores they no longer spin between products: a step on two cores took 22 ms instead of 16
    when another thread had loaded the model.
    """
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")


class EngineLoop(ABC):
    """Runs `step` until stopped. Owned by its thread, but for `post`, `start`, `stop`, `alive`.

    Attributes:
        patience: a step that returns False may say how many seconds later it wants to look again;
            0 for when something has come in.
    """

    def __init__(self) -> None:
        self.patience = 0.0
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._done: Future[None] | None = None
        # When the step in progress began; none is.
        self._step_since = math.inf

    @abstractmethod
    def step(self) -> bool:
        """One step; False where there was nothing to do."""

    @abstractmethod
    def close(self) -> None:
        """What is left to say when the loop ends; on the engine's thread."""

    def start(self, thread: ThreadPoolExecutor | None = None) -> Future[None]:
        """Runs on `thread`; the future is done when the loop has ended, or holds why it failed."""
        self._done = (thread or model_thread()).submit(self._run)
        return self._done

    def stop(self, timeout: float = 10.0) -> None:
        """Ends the loop and waits for it. Raises TimeoutError, or what the loop failed of."""
        self._stopping = True
        self._wake.set()
        if self._done is not None:
            self._done.result(timeout)

    @property
    def alive(self) -> bool:
        return self._done is not None and not self._done.done()

    def trouble(self, hung_step: float) -> str:
        """Why it will not go on by itself; empty while it is well, or was told to stop.

        Args:
            hung_step: seconds after which a step counts as one that never ends.
        """
        if self._stopping or self._done is None:
            return ""
        if self._done.done():
            return "the engine's thread has ended"
        took = time.monotonic() - self._step_since
        return f"a step of the engine has not ended for {took:.0f} s" if took > hung_step else ""

    def call(self, action: Callable[[], T]) -> Future[T]:
        """Runs `action` on the engine's thread between two steps; from any thread.

        The future never ends where the engine does first: wait with a deadline.
        """
        result: Future[T] = Future()

        def run() -> None:
            if not result.set_running_or_notify_cancel():
                return
            try:
                result.set_result(action())
            except Exception as failure:
                result.set_exception(failure)

        self.post(run)
        return result

    def post(self, action: Callable[[], None]) -> None:
        """Runs `action` on the engine's thread, before its next step; from any thread."""
        self._inbox.append(action)
        self._wake.set()

    def _read_inbox(self) -> None:
        while self._inbox:
            self._inbox.popleft()()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            self._step_since = time.monotonic()
            worked = self.step()
            self._step_since = math.inf
            if not worked:
                self._wake.wait(self.patience or _IDLE_WAIT_SECONDS)
        self._read_inbox()
        self.close()
