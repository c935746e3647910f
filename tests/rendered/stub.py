"""`python -m tests.rendered.stub HOST PORT`: a service for tests of the kubelet alone.

HTTP `/ready` is 200 until SIGTERM and 503 after it, `/health` always 200, `/env/NAME` and
`/file/NAME` (of the folder $FILES) say what it was given. It ends 0.5 s after SIGTERM, with 0, or
not at all where $STUBBORN is set.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    stopping = False

    def do_GET(self) -> None:
        what, _, name = self.path.lstrip("/").partition("/")
        code, text = 200, ""
        if what == "ready":
            code = 503 if Handler.stopping else 200
        elif what == "env":
            text = os.environ.get(name, "")
        elif what == "file":
            text = (Path(os.environ["FILES"]) / name).read_text()
        elif what != "health":
            code = 404
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


def main(host: str, port: str) -> None:
    server = ThreadingHTTPServer((host, int(port)), Handler)

    def stop(*_: object) -> None:
        Handler.stopping = True
        if "STUBBORN" not in os.environ:
            threading.Timer(0.5, server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    server.serve_forever(0.05)


if __name__ == "__main__":
    main(*sys.argv[1:])
