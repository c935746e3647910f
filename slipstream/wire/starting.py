"""The time from a service's start until it serves: how it ends then, and what it says.

Until a service serves there is nothing to lose, so SIGTERM and SIGINT end it where it stands, in
the middle of a compilation or of reading weights. From `orderly_stop` on they ask it to stop.

Imports make hundreds of thousands of objects and next to no garbage. The collector rests meanwhile,
which saves a fifth of a start; and what they made it never looks at again: a full collection of all
that torch brings would hold up the event loop for a quarter of a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from slipstream.core import stages
from slipstream.core.errors import ConfigurationError
from slipstream.core.extras import require
from slipstream.wire.telemetry.logs import fatal

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def starting() -> None:
    """For the first lines of a service's own process, before imports that take seconds.

    A process that is the first of its container has no default action for signals: without this a
    stop would be lost to it. `imported` ends what this begins.
    """
    gc.disable()
    _end_at_once()
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        stages.listen(_Notify(address))


def with_engine(role: str) -> None:
    """For the line after `starting`, in a service that loads a model: where the packages for that
    are not installed, one line says so and the process ends with exit code 2."""
    try:
        require("engine", f"the {role}", made=True)
    except ConfigurationError as failure:
        fatal(role, failure.message)
        sys.exit(2)


def imported() -> None:
    """For the line after the imports: the collector begins to work, on what comes from here on."""
    gc.freeze()
    gc.enable()


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """SIGTERM and SIGINT end the process until `orderly_stop`; afterwards they are as before."""
    before = _end_at_once()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def orderly_stop() -> asyncio.Event:
    """From here on SIGTERM and SIGINT set the event that this returns, and do nothing else."""
    stop = asyncio.Event()
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _end_at_once() -> dict[signal.Signals, Any]:
    return {number: signal.signal(number, _leave) for number in _SIGNALS}


def _leave(number: int, frame: Any) -> NoReturn:  # noqa: ARG001 the signature of a signal handler
    # Not by an exception: the interpreter would wait for the thread that loads the model.
    os._exit(0)


class _Notify:
    """Sends stages to a service manager, in systemd's way (sd_notify): STATUS=loading the model."""

    def __init__(self, address: str) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def __call__(self, stage: str) -> None:
        # Nobody who listens, or too slowly, holds up a start.
        with contextlib.suppress(OSError):
            self._socket.sendto(f"STATUS={stage}".encode(), self._address)
