"""Logs and ports of a `FakeApiServer`'s pods: the log, and the websocket that carries a port.

The websocket is what an API server speaks with `v4.channel.k8s.io`: two channels for each port, one
for its bytes and one for an error, and the port's number as the first message of both.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_BINARY, _CLOSE, _PING, _PONG = 2, 8, 9, 10
_CHUNK = 16 * 1024


@dataclass(slots=True)
class PodDoors:
    """What pods listen on and have written. Namespaces are left out: names differ.

    Attributes:
        ports: where a pod's port really is, as host:port, by pod and number.
        logs: by pod, container, and whether of its run before.
        forwards: pods and ports that were asked for, in order.
    """

    ports: dict[tuple[str, int], str] = field(default_factory=dict)
    logs: dict[tuple[str, str, bool], str] = field(default_factory=dict)
    forwards: list[tuple[str, int]] = field(default_factory=list)


def forward(handler: Any, doors: PodDoors, pod: str, port: int) -> None:
    """Takes a connection over as a websocket, and carries the port until either end is closed.

    Args:
        handler: of the request, an `http.server.BaseHTTPRequestHandler`.
    """
    doors.forwards.append((pod, port))
    key = handler.headers["Sec-WebSocket-Key"] + _GUID
    handler.send_response(101)
    handler.send_header("Upgrade", "websocket")
    handler.send_header("Connection", "Upgrade")
    digest = hashlib.sha1(key.encode(), usedforsecurity=False).digest()
    handler.send_header("Sec-WebSocket-Accept", base64.b64encode(digest).decode())
    handler.send_header("Sec-WebSocket-Protocol", "v4.channel.k8s.io")
    handler.end_headers()
    handler.close_connection = True
    lock = threading.Lock()

    def send(payload: bytes, kind: int = _BINARY) -> None:
        with lock:
            handler.wfile.write(_frame(payload, kind))
            handler.wfile.flush()

    for channel in (0, 1):
        send(bytes([channel]) + struct.pack("<H", port))
    host, _, number = doors.ports.get((pod, port), ":0").rpartition(":")
    try:
        far = socket.create_connection((host, int(number)), timeout=5)
    except OSError as failure:
        send(b"\x01" + f"error forwarding port {port} to pod {pod}: {failure}".encode())
        send(b"", _CLOSE)
        return
    far.settimeout(None)
    with far:
        back = threading.Thread(target=_carry_back, args=(far, send), daemon=True)
        back.start()
        _carry(handler.rfile.read, far, send)
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_RDWR)
        back.join()


def _carry(read: Callable[[int], bytes], far: socket.socket, send: Callable[..., None]) -> None:
    """From the client to the port, until the client closes."""
    with contextlib.suppress(OSError, struct.error):
        while True:
            kind, payload = _read_frame(read)
            if kind == _CLOSE:
                return
            if kind == _PING:
                send(payload, _PONG)
            elif kind == _BINARY and payload[:1] == b"\x00":
                far.sendall(payload[1:])


def _carry_back(far: socket.socket, send: Callable[..., None]) -> None:
    with contextlib.suppress(OSError, ValueError):
        while data := far.recv(_CHUNK):
            send(b"\x00" + data)
        send(b"", _CLOSE)


def _frame(payload: bytes, kind: int) -> bytes:
    """A whole message from server to client."""
    size = len(payload)
    if size < 126:
        return bytes([0x80 | kind, size]) + payload
    return bytes([0x80 | kind, 126]) + struct.pack(">H", size) + payload


def _read_frame(read: Callable[[int], bytes]) -> tuple[int, bytes]:
    """Kind and content of a client's next frame. Raises struct.error where it ended."""
    first, second = struct.unpack("BB", read(2))
    size = second & 0x7F
    if size == 126:
        (size,) = struct.unpack(">H", read(2))
    elif size == 127:
        (size,) = struct.unpack(">Q", read(8))
    mask = read(4) if second & 0x80 else b"\0\0\0\0"
    payload = read(size)
    key = (mask * (size // 4 + 1))[:size]
    whole = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return first & 0x0F, whole.to_bytes(size, "big")
