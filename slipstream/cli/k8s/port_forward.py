"""A pod's port on this machine, through the API server."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from kubernetes import client
from kubernetes.stream import portforward

from slipstream.cli.k8s.api import Cluster

_CHUNK = 64 * 1024
_ACCEPT_SECONDS = 0.2


class Forwarded:
    """A loopback port whose connections lead to a pod's.

    Each connection has a stream to the API server of its own, as the protocol carries one for each
    port. Threads move the bytes; they end with their connection, and none is waited for.

    Attributes:
        failure: why the last connection did not come to be; empty: none failed.
    """

    def __init__(self, cluster: Cluster, namespace: str, pod: str, port: int) -> None:
        self.failure = ""
        self._cluster, self._namespace, self._pod, self._port = cluster, namespace, pod, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(_ACCEPT_SECONDS)
        self._closed = threading.Event()
        self._open: set[Any] = set()
        threading.Thread(target=self._accept, daemon=True, name=f"forward {pod}").start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        """No new connections; those there are are cut."""
        self._closed.set()
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with self._listener:
            while not self._closed.is_set():
                try:
                    near, _ = self._listener.accept()
                except TimeoutError:
                    continue
                near.settimeout(None)
                threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near:
            try:
                # The library takes a client over while it opens a stream.
                api = client.CoreV1Api(self._cluster.client())
                stream = portforward(
                    api.connect_get_namespaced_pod_portforward,
                    self._pod,
                    self._namespace,
                    ports=str(self._port),
                )
            except Exception as failure:  # noqa: BLE001 whatever the library raises is told
                self.failure = _reason(failure)
                return
            far = stream.socket(self._port)
            self._open |= {near, far}

            def ended() -> None:
                # Before the near end hears of it: whoever is there asks why.
                self.failure = str(stream.error(self._port) or "") or self.failure

            try:
                back = threading.Thread(target=_pump, args=(far, near, ended), daemon=True)
                back.start()
                _pump(near, far, ended)
                back.join()
            finally:
                self._open -= {near, far}
                stream.close()


@contextlib.contextmanager
def forwarded(cluster: Cluster, namespace: str, pod: str, port: int) -> Iterator[Forwarded]:
    """While the block runs."""
    found = Forwarded(cluster, namespace, pod, port)
    try:
        yield found
    finally:
        found.close()


def _pump(source: Any, sink: Any, ended: Callable[[], None]) -> None:
    """Moves bytes until either end is closed, calls `ended`, and closes the other."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            sink.sendall(data)
    ended()
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _reason(failure: Exception) -> str:
    """In one line: the library puts a whole HTTP answer into it."""
    text = str(getattr(failure, "reason", "") or failure)
    if "403" in text:
        return (
            "the API server refuses it: a Role needs the verbs get and create on pods/portforward"
        )
    return text.splitlines()[0][:200] if text else type(failure).__name__
