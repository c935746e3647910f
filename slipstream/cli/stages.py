"""What services say of their start, in systemd's way: datagrams to a socket that is theirs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

Tell = Callable[[str, str], None]
_STATUS = b"STATUS="


class _Reader(asyncio.DatagramProtocol):
    def __init__(self, name: str, tell: Tell) -> None:
        self._name, self._tell = name, tell

    def datagram_received(self, data: bytes, address: object) -> None:  # noqa: ARG002 asyncio's
        for line in data.splitlines():
            if line.startswith(_STATUS):
                self._tell(self._name, line.removeprefix(_STATUS).decode(errors="replace"))


@contextlib.asynccontextmanager
async def heard(names: Sequence[str], tell: Tell) -> AsyncIterator[dict[str, str]]:
    """Calls `tell(name, stage)` with what the services say while the block runs.

    Yields:
        The socket of each, for the environment variable NOTIFY_SOCKET of its process.
    """
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slipstream-")))
        sockets = {name: str(folder / str(index)) for index, name in enumerate(names)}
        for name, path in sockets.items():
            transport, _ = await loop.create_datagram_endpoint(
                lambda name=name: _Reader(name, tell),  # type: ignore[misc]
                local_addr=path,
                family=socket.AF_UNIX,
            )
            stack.callback(transport.close)
        yield sockets
