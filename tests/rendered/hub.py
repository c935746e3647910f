"""A double of the model hub, for init containers that fetch a model as they do in a cluster."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPOSITORY = "tests/tiny"
_COMMIT = "0" * 39 + "1"


def _hash(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{REPOSITORY}"):
            found = self._tree() if "/tree/" in path else self._listing()
            self._send(json.dumps(found).encode(), "application/json")
            return
        name = path.removeprefix(f"/{REPOSITORY}/resolve/{_COMMIT}/")
        if name not in {file.name for file in self.folder.iterdir()}:
            self.send_error(404)
            return
        self._send((self.folder / name).read_bytes(), "application/octet-stream")

    do_HEAD = do_GET  # noqa: N815 (the name that http.server looks for)

    def _listing(self) -> dict[str, object]:
        files = [{"rfilename": f.name, "size": f.stat().st_size} for f in self.folder.iterdir()]
        return {"id": REPOSITORY, "sha": _COMMIT, "siblings": files, "private": False}

    def _tree(self) -> list[dict[str, object]]:
        files = [(file.name, file.read_bytes()) for file in self.folder.iterdir()]
        return [
            {"type": "file", "path": name, "size": len(body), "oid": _hash(body)}
            for name, body in files
        ]

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", _COMMIT)
        self.send_header("ETag", f'"{_hash(body)}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def hub(model: Path) -> Iterator[str]:
    """Serves the folder as `REPOSITORY`; the URL for HF_ENDPOINT."""
    handler = type("_BoundHandler", (_Handler,), {"folder": model})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
