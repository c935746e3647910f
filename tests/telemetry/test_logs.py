"""JSON log lines."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

from slipstream.wire.telemetry import logs


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("some.logger", logging.WARNING, __file__, 1, message, args, None)
    made.__dict__.update(extra)
    return made


def test_a_record_is_one_object():
    """Time in UTC, level, service, logger and message; nothing about requests where there is none.

    Line breaks, quotes and lone surrogates cannot break a line.
    """
    line = logs.JsonFormatter("verifier").format(record("a\n%s\ud800", '"b"'))
    assert "\n" not in line
    assert line.isascii()
    entry = json.loads(line)
    assert entry.pop("time").endswith("Z")
    assert entry == {
        "level": "warning",
        "service": "verifier",
        "logger": "some.logger",
        "message": 'a\n"b"\ud800',
    }


def test_a_record_names_its_request():
    """The task's request and trace, unless the record names its own."""
    formatter = logs.JsonFormatter("gateway")
    tokens = [(logs.request_id, logs.request_id.set("r1")), (logs.trace_id, logs.trace_id.set("t"))]
    try:
        task = json.loads(formatter.format(record("m")))
        own = json.loads(formatter.format(record("m", request_id="r2")))
    finally:
        for variable, token in tokens:
            variable.reset(token)
    assert (task["request_id"], task["trace_id"]) == ("r1", "t")
    assert own["request_id"] == "r2"


def test_an_exception_is_a_field():
    """The traceback is inside the object, not on lines of its own."""
    try:
        raise ValueError("bad\nvalue")
    except ValueError:
        made = record("failed")
        made.exc_info = sys.exc_info()
    entry = json.loads(logs.JsonFormatter("drafter").format(made))
    assert "ValueError: bad\nvalue" in entry["exception"]


def test_what_ends_a_process_is_a_line_like_the_others():
    """An error of configuration is an object too, where lines are; else one plain line."""
    arguments = ["--model", "nowhere", "--listen", "127.0.0.1:x", "--log-format"]
    command = [sys.executable, "-m", "verifier_service", *arguments]
    begun = {
        form: subprocess.Popen([*command, form], stderr=subprocess.PIPE, text=True)
        for form in ("json", "text")
    }
    for form, process in begun.items():
        with process:
            _, said = process.communicate(timeout=110)
        assert process.returncode == 2
        line = said.strip().splitlines()[-1]
        if form == "json":
            entry = json.loads(line)
            assert entry["level"] == "critical"
            assert "127.0.0.1:x" in entry["message"]
        else:
            assert line.startswith("verifier: error: ")


def test_without_traces_nothing_of_opentelemetry_is_imported():
    """What the model services import leaves OpenTelemetry on the disk."""
    code = (
        "import sys, slipstream.wire.process, slipstream.wire.telemetry.metrics;"
        "from slipstream.wire.telemetry.tracing import tracing_to;"
        "tracing_to('verifier', '').__enter__().span('x').end();"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=110).returncode == 0
