"""An API server to test against: it speaks Kubernetes' protocol, and does what a test wants."""

from __future__ import annotations

import json
import math
import socket
import tempfile
import threading
import uuid
from collections.abc import Mapping, Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from slipstream.discovery.fake_http import Handler
from slipstream.discovery.fake_messages import ApiRequest
from slipstream.discovery.fake_objects import Object, Objects, Rule
from slipstream.discovery.fake_port_forward import PodDoors

__all__ = ["ApiRequest", "FakeApiServer", "endpoint", "endpoint_slice"]


class FakeApiServer:
    """Serves on a loopback port, from threads of its own: for tests with and without an event loop,
    and for child processes, which get its `kubeconfig` as KUBECONFIG.

    It has get, list, watch (resourceVersion, timeoutSeconds, bookmarks, sendInitialEvents), label
    and field selectors, create, update, merge patch, server-side apply, delete, dryRun, API
    discovery (`kubectl get` works) and access reviews, all as JSON. It does not validate objects,
    page lists, run controllers, or speak TLS; a strategic merge patch is taken as a merge patch.
    Use it as a context manager.

    Args:
        namespace: of the context of its kubeconfig.
        user: who its requests come from.

    Attributes:
        kubeconfig: a file that leads here.
        requests: what was asked, in order.
        token: a request with another one is answered 401; one without any is let in, as `kubectl`
            sends none over plain HTTP.
        delay: seconds until a request gets an answer; `math.inf`: none ever. Assign 0 and call
            `wake` to release those that wait.
        longest_watch: seconds after which a watch ends, whatever was asked for.
        failing: an HTTP status that all requests get instead; 0: none.
        doors: logs and ports of pods, which `kubectl logs` and `port-forward` ask for.
    """

    def __init__(
        self,
        *,
        namespace: str = "default",
        user: str = "system:serviceaccount:default:slipstream",
    ) -> None:
        self.user = user
        self.requests: list[ApiRequest] = []
        self.token = uuid.uuid4().hex
        self.delay = 0.0
        self.longest_watch = math.inf
        self.failing = 0
        self.doors = PodDoors()
        # What the handler uses, from its threads.
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.objects = Objects()
        self.connections: set[socket.socket] = set()
        self.bookmarks = 0
        self.gone_as_status = False
        self.running = False
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._port = 0
        self._folder = tempfile.TemporaryDirectory(prefix="slipstream-api-")
        self.start()
        self.kubeconfig = Path(self._folder.name) / "config"
        self.kubeconfig.write_text(json.dumps(self._config(namespace)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops it for good; the kubeconfig is gone."""
        self.stop()
        self._folder.cleanup()

    def put(self, found: Object) -> Object:
        """Creates the object, or takes the place of the one that has its name. In namespace
        `default` where it names none. Returns it as it is stored."""
        with self.changed:
            resource = self.objects.resource(found["kind"], found.get("apiVersion", ""))
            meta = found["metadata"]
            namespace = meta.get("namespace", "default") if resource.namespaced else ""
            stored = self.objects.set(resource, namespace, meta["name"], found)
            self.changed.notify_all()
            return stored

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """The object as it is now."""
        with self.lock:
            return self.objects.get(self.objects.resource(kind), namespace, name)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Removes the object.

        Args:
            kind: or its plural, in any case of letters; the namespace is empty for those without.
        """
        with self.changed:
            resource = self.objects.resource(kind)
            if self.objects.get(resource, namespace, name) is None:
                raise KeyError(f"there is no {kind} {namespace}/{name}")
            self.objects.set(resource, namespace, name, None)
            self.changed.notify_all()

    def forbid(self, verb: str, resource: str, *, namespace: str = "*", user: str = "*") -> None:
        """From now on: 403 for requests, and reviews that say no. `*` stands for all."""
        with self.lock:
            self.objects.rules.append(Rule(False, verb, resource, namespace, user))

    def allow(self, verb: str, resource: str, *, namespace: str = "*", user: str = "*") -> None:
        """Takes back what was forbidden. With no rule at all, all is allowed; the last rule that
        covers a request holds."""
        with self.lock:
            self.objects.rules.append(Rule(True, verb, resource, namespace, user))

    def expire(self, *, as_status: bool = False) -> None:
        """All resourceVersions that anybody has are too old from now on: a watch from one of them
        gets 410 Gone, as an ERROR event or as the HTTP status. Running watches go on."""
        with self.changed:
            self.objects.version += 1
            self.objects.oldest = self.objects.version
            self.gone_as_status = as_status

    def bookmark(self) -> None:
        """Sends a BOOKMARK to every watch that allows it; without this, one at its end."""
        with self.changed:
            self.bookmarks += 1
            self.changed.notify_all()

    def disconnect(self) -> None:
        """Cuts all connections."""
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # It has just ended by itself.

    def wake(self) -> None:
        """Lets requests that wait look at `delay` again."""
        with self.changed:
            self.changed.notify_all()

    def start(self) -> None:
        """Serves, at the same port as before."""
        handler = type("BoundHandler", (Handler,), {"api": self})
        self._server = _Server(("127.0.0.1", self._port), handler)
        self._port = self._server.server_port
        self.running = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True, name="fake-api-server"
        )
        self._thread.start()

    def stop(self) -> None:
        """Nobody listens any more, and all connections are cut. What it holds stays."""
        if self._server is None or self._thread is None:
            return
        with self.changed:
            self.running = False
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.disconnect()
        self._server = None

    def _config(self, namespace: str) -> Object:
        name = "fake"
        context = {"cluster": name, "user": name, "namespace": namespace}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [{"name": name, "cluster": {"server": self.url}}],
            "users": [{"name": name, "user": {"token": self.token}}],
            "contexts": [{"name": name, "context": context}],
        }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A watch may be silent for long: its thread is not waited for.
    block_on_close = False


def endpoint(
    address: str,
    *,
    ready: bool = True,
    serving: bool | None = None,
    terminating: bool = False,
    zone: str = "",
    node: str = "",
    pod: str = "",
) -> Object:
    """One endpoint of a slice, as the control plane writes it.

    Args:
        serving: as `ready` where it is None; true for one that terminates and is still there.
    """
    conditions = {
        "ready": ready and not terminating,
        "serving": ready if serving is None else serving,
        "terminating": terminating,
    }
    found: Object = {"addresses": [address], "conditions": conditions}
    if zone:
        found["zone"] = zone
    if node:
        found["nodeName"] = node
    if pod:
        found["targetRef"] = {"kind": "Pod", "name": pod}
    return found


def endpoint_slice(
    service: str,
    endpoints: Sequence[str | Mapping[str, Any]],
    *,
    component: str = "",
    namespace: str = "default",
    name: str = "",
    ports: Mapping[str, int] | None = None,
    family: str = "IPv4",
) -> Object:
    """An EndpointSlice of a Service, to `put`.

    Args:
        endpoints: made by `endpoint`, or addresses of pods that are ready.
        component: the label `app.kubernetes.io/component`, which a Service hands on.
        name: for a second slice of the service.
        ports: numbers by names; by default `grpc`, 50051.
    """
    labels = {"kubernetes.io/service-name": service}
    if component:
        labels["app.kubernetes.io/component"] = component
    ports = {"grpc": 50051} if ports is None else ports
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name or f"{service}-abcde", "namespace": namespace, "labels": labels},
        "addressType": family,
        "ports": [{"name": n, "port": port, "protocol": "TCP"} for n, port in ports.items()],
        "endpoints": [endpoint(e) if isinstance(e, str) else dict(e) for e in endpoints],
    }
