"""The protocol of a `FakeApiServer`: paths, verbs, watches and errors as a real API server's."""

from __future__ import annotations

import json
import math
import time
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from slipstream.discovery.fake_answers import REVIEWS, other
from slipstream.discovery.fake_messages import ApiRequest, Refused, failure, gone
from slipstream.discovery.fake_objects import Object, Resource, merge
from slipstream.discovery.fake_port_forward import forward
from slipstream.discovery.fake_selectors import Matches, selected
from slipstream.discovery.fake_watch import Watch

if TYPE_CHECKING:
    from slipstream.discovery.fakes import FakeApiServer


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    # Head and body are two writes: with it each answer would wait for an acknowledgement, 40 ms.
    disable_nagle_algorithm = True
    api: FakeApiServer

    def setup(self) -> None:
        super().setup()
        self.api.connections.add(self.connection)

    def finish(self) -> None:
        self.api.connections.discard(self.connection)
        super().finish()

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ValueError):
            # It was cut, by whoever asked or by `disconnect`.
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def _do(self) -> None:
        split = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(length) if length else b""
        query = dict(parse_qsl(split.query, keep_blank_values=True))
        try:
            asked, resource = self._understood(split.path, query, text)
            with self.api.lock:
                self.api.requests.append(asked)
            self._wait()
            # kubectl sends no token over plain HTTP.
            if self.headers.get("Authorization", own := f"Bearer {self.api.token}") != own:
                raise Refused(401, "Unauthorized")
            if self.api.failing:
                raise Refused(self.api.failing, "the double was told to fail")
            if resource is None:
                self._answer(*other(self.api, asked))
                return
            if asked.resource == "pods" and asked.path.endswith(("/log", "/portforward")):
                self._pod_door(asked)
                return
            self._check(asked, resource)
            if asked.verb == "watch":
                self._watch(asked, resource)
                return
            with self.api.changed:
                code, body = getattr(self, f"_{asked.verb}")(asked, resource)
                self.api.changed.notify_all()
            self._answer(code, body)
        except Refused as refused:
            self._answer(refused.code, failure(refused))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _do  # noqa: N815 the base class's names

    def _wait(self) -> None:
        """As long as the double is told to be slow."""
        began, api = time.monotonic(), self.api
        with api.changed:
            while (left := began + api.delay - time.monotonic()) > 0:
                if not api.running:
                    raise ConnectionError
                api.changed.wait(min(left, 3600.0))

    def _understood(
        self, path: str, query: dict[str, str], text: bytes
    ) -> tuple[ApiRequest, Resource | None]:
        body = _parsed(text)
        parts = [unquote(part) for part in path.strip("/").split("/")]
        core = parts[0] == "api"
        version = "/".join(parts[1:2] if core else parts[1:3])
        rest = parts[2:] if core else parts[3:]
        plain = ApiRequest(self.command, path, "", "", "", "", query, body)
        if parts[0] not in ("api", "apis") or not rest or path.startswith(REVIEWS):
            return plain, None
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        with self.api.lock:
            known = self.api.objects.resources
            found = [r for r in known if (r.plural, r.version) == (rest[0], version)]
        if not found or len(rest) > 3:
            raise Refused(404, "the server could not find the requested resource")
        name = rest[1] if len(rest) > 1 else ""
        verbs = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
        watched = query.get("watch", "") in ("1", "true", "True")
        read = "watch" if watched else "get" if name else "list"
        verb = verbs.get(self.command, read)
        asked = ApiRequest(self.command, path, verb, found[0].plural, namespace, name, query, body)
        return asked, found[0]

    def _check(self, asked: ApiRequest, resource: Resource) -> None:
        user = self.api.user
        with self.api.lock:
            if self.api.objects.allowed(asked.verb, resource.plural, asked.namespace, user):
                return
        named = f' "{asked.name}"' if asked.name and asked.verb not in ("list", "watch") else ""
        where = (
            f'in the namespace "{asked.namespace}"' if asked.namespace else "at the cluster scope"
        )
        raise Refused(
            403,
            f"{resource.plural}{'.' if resource.group else ''}{resource.group}{named} is forbidden:"
            f' User "{user}" cannot {asked.verb} resource "{resource.plural}" in API group'
            f' "{resource.group}" {where}',
        )

    def _pod_door(self, asked: ApiRequest) -> None:
        """A pod's log or port."""
        doors, what = self.api.doors, asked.path.rpartition("/")[2]
        with self.api.lock:
            if not self.api.objects.allowed("get", f"pods/{what}", asked.namespace, self.api.user):
                raise Refused(403, f'pods "{asked.name}" is forbidden: cannot get pods/{what}')
        if what == "portforward":
            forward(self, doors, asked.name, int(asked.query["ports"]))
            return
        key = (asked.name, asked.query["container"], asked.query.get("previous") == "true")
        if key not in doors.logs:
            raise Refused(400, f"{what}: there is none of container {key[1]}")
        data = doors.logs[key].encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _answer(self, code: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if code == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(data)

    # Verbs. All but watch are called with the lock held, and return status and body.

    def _found(self, asked: ApiRequest, resource: Resource) -> Object:
        found = self.api.objects.get(resource, asked.namespace, asked.name)
        if found is None:
            group = f".{resource.group}" if resource.group else ""
            raise Refused(404, f'{resource.plural}{group} "{asked.name}" not found')
        return found

    def _get(self, asked: ApiRequest, resource: Resource) -> tuple[int, Object]:
        return 200, self._found(asked, resource)

    def _list(self, asked: ApiRequest, resource: Resource) -> tuple[int, Object]:
        matches = _matches(asked)
        objects = self.api.objects
        wanted = asked.query.get("resourceVersion", "")
        if asked.query.get("resourceVersionMatch") == "Exact" and int(wanted) < objects.oldest:
            raise gone(objects.oldest, wanted)
        items = [found for found in objects.all(resource, asked.namespace) if matches(found)]
        return 200, {
            "kind": f"{resource.kind}List",
            "apiVersion": resource.version,
            "metadata": {"resourceVersion": str(objects.version)},
            "items": items,
        }

    def _create(self, asked: ApiRequest, resource: Resource) -> tuple[int, Object]:
        meta = asked.body.get("metadata") or {}
        objects = self.api.objects
        name = meta.get("name") or f"{meta.get('generateName', '')}{objects.version:05d}"
        if objects.get(resource, asked.namespace, name) is not None:
            message = f'{resource.plural} "{name}" already exists'
            raise Refused(409, message, "AlreadyExists")
        return 201, self._store(asked, resource, name, asked.body)

    def _update(self, asked: ApiRequest, resource: Resource) -> tuple[int, Object]:
        before = self._found(asked, resource)
        version = (asked.body.get("metadata") or {}).get("resourceVersion")
        if version and version != before["metadata"]["resourceVersion"]:
            message = (
                "the object has been modified; please apply your changes to the latest version"
            )
            raise Refused(409, f'Operation cannot be fulfilled on "{asked.name}": {message}')
        return 200, self._store(asked, resource, asked.name, asked.body)

    def _patch(self, asked: ApiRequest, resource: Resource) -> tuple[int, Object]:
        kind = (self.headers.get("Content-Type") or "").partition(";")[0]
        if kind == "application/apply-patch+yaml":
            return self._apply(asked, resource)
        if kind not in ("application/merge-patch+json", "application/strategic-merge-patch+json"):
            raise Refused(415, f"the body of the request was in an unknown format: {kind}")
        patched = merge(self._found(asked, resource), asked.body)
        return 200, self._store(asked, resource, asked.name, patched)

    def _apply(self, asked: ApiRequest, resource: Resource) -> tuple[int, Object]:
        manager = asked.query.get("fieldManager")
        if not manager:
            raise Refused(400, "PatchOptions.meta.k8s.io is invalid: fieldManager: Required value")
        objects, where = self.api.objects, (resource, asked.namespace, asked.name)
        there = objects.get(*where) is not None
        result, conflicts = objects.applied(*where, manager, asked.body)
        if conflicts and asked.query.get("force") not in ("true", "True"):
            raise Refused(409, f"Apply failed with {len(conflicts)} conflict: {conflicts[0]}")
        stored = self._store(asked, resource, asked.name, result)
        if asked.query.get("dryRun") != "All":
            objects.own(*where, manager, asked.body)
        return (200 if there else 201), stored

    def _store(self, asked: ApiRequest, resource: Resource, name: str, body: Object) -> Object:
        if asked.query.get("dryRun") == "All":
            return body
        return self.api.objects.set(resource, asked.namespace, name, body)

    def _delete(self, asked: ApiRequest, resource: Resource) -> tuple[int, Object]:
        self._found(asked, resource)
        if asked.query.get("dryRun") != "All":
            self.api.objects.set(resource, asked.namespace, asked.name, None)
        return 200, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}

    def _watch(self, asked: ApiRequest, resource: Resource) -> None:
        watch = Watch(self.api, asked, resource, _matches(asked), self._line)
        wanted = asked.query.get("resourceVersion", "")
        longest = self.api.longest_watch
        seconds = min(float(asked.query.get("timeoutSeconds") or math.inf), longest)
        with self.api.lock:
            oldest, gone_as_status = self.api.objects.oldest, self.api.gone_as_status
        expired = wanted not in ("", "0") and int(wanted) < oldest
        if expired and gone_as_status:
            raise gone(oldest, wanted)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if expired:
            watch.refuse(gone(oldest, wanted))
        else:
            watch.follow(seconds)
        self.wfile.write(b"0\r\n\r\n")

    def _line(self, line: bytes) -> None:
        """One chunk of an answer in chunks."""
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.flush()


def _parsed(text: bytes) -> Any:
    """The body: JSON, or YAML as server-side apply may send it."""
    if not text:
        return None
    try:
        return json.loads(text)
    except ValueError:
        import yaml

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as wrong:
            raise Refused(415, "the body of the request is neither JSON nor YAML") from wrong


def _matches(asked: ApiRequest) -> Matches:
    try:
        return selected(asked.query.get("labelSelector", ""), asked.query.get("fieldSelector", ""))
    except ValueError as wrong:
        raise Refused(400, str(wrong)) from wrong
