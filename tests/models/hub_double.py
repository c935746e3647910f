"""A hub of one model on this machine, which the real client of the hub downloads from."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """`owner/name` with these files; use as a context manager.

    Attributes:
        served: how often each file's content was asked for.
        hold: names of files whose content is not sent before `release` is set.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.served: Counter[str] = Counter()
        self.requests = 0
        self.hold: set[str] = set()
        self.release = threading.Event()
        # What the hub says that the content's hash is, where that is not the truth.
        self.claimed: dict[str, str] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub._answer(self, body=False)

            def do_GET(self) -> None:
                hub._answer(self, body=True)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()

    def _hash(self, name: str) -> str:
        return self.claimed.get(name, hashlib.sha256(self.files[name]).hexdigest())

    def _answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        self.requests += 1
        path = urlsplit(request.path).path
        content, headers = b"", {}
        if (
            path in ("/api/models/owner/name", "/api/models/owner/name/revision/v1")
            or path == f"/api/models/owner/name/revision/{COMMIT}"
        ):
            content = json.dumps(self._info()).encode()
        elif path == f"/api/models/owner/name/tree/{COMMIT}":
            content = json.dumps(self._tree()).encode()
        elif path.startswith(f"/owner/name/resolve/{COMMIT}/"):
            name = path.rpartition("/")[2]
            content = self.files[name]
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{self._hash(name)}"'}
            if body:
                self.served[name] += 1
                if name in self.hold:
                    self.release.wait(120)
        else:
            request.send_response(404)
            request.send_header("X-Error-Code", "RepoNotFound")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            request.send_header(key, value)
        request.end_headers()
        if body:
            request.wfile.write(content)

    def _info(self) -> dict[str, object]:
        files = [
            {
                "rfilename": name,
                "size": len(content),
                "blobId": "0" * 40,
                "lfs": {"sha256": self._hash(name), "size": len(content), "pointerSize": 100},
            }
            for name, content in self.files.items()
        ]
        return {"id": "owner/name", "sha": COMMIT, "siblings": files}

    def _tree(self) -> list[dict[str, object]]:
        return [
            {
                "type": "file",
                "path": name,
                "size": len(content),
                "oid": "0" * 40,
                "lfs": {"oid": self._hash(name), "size": len(content), "pointerSize": 100},
            }
            for name, content in self.files.items()
        ]
