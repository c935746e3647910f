"""Log lines: for people, or as one JSON object each, with the request that they are about."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

# Of the request that the current task serves; a record's own (extra=...) go first.
request_id: ContextVar[str] = ContextVar("request_id", default="")
trace_id: ContextVar[str] = ContextVar("trace_id", default="")


class JsonFormatter(logging.Formatter):
    """One line a record: time, level, logger, service, message; request_id, trace_id and exception
    where there are any. Nothing but ASCII, whatever the message holds."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC)
        entry: dict[str, Any] = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for variable in (request_id, trace_id):
            value = getattr(record, variable.name, "") or variable.get()
            if value:
                entry[variable.name] = value
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def fatal(service: str, message: str) -> None:
    """The one line of a process that cannot go on, in the form of its other lines."""
    # What other libraries say may have several.
    message = " ".join(message.split())
    as_json = any(isinstance(h.formatter, JsonFormatter) for h in logging.getLogger().handlers)
    if as_json:
        logging.getLogger(service).critical(message)
    else:
        sys.stderr.write(f"{service}: error: {message}\n")


def configure(service: str, level: LogLevel, form: LogFormat) -> None:
    """Sends all that is logged in this process to stderr, warnings included."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(JsonFormatter(service))
    else:
        handler.setFormatter(logging.Formatter(f"%(asctime)s {service} %(levelname)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(form == "json")
