"""`python -m gateway`: exit code 0 after a clean stop, 2 on a configuration error."""

from __future__ import annotations

from slipstream.wire.starting import imported, starting

if __name__ == "__main__":
    # Before the imports that take seconds.
    starting()

import asyncio
import sys
from collections.abc import Sequence

from gateway.server import run
from gateway.settings import load
from slipstream.core.errors import ConfigurationError
from slipstream.wire.starting import ending_at_once
from slipstream.wire.telemetry.logs import configure, fatal


def main(arguments: Sequence[str]) -> int:
    try:
        settings = load(arguments)
        configure("gateway", settings.log_level, settings.log_format)
        with ending_at_once():
            asyncio.run(run(settings))
    except ConfigurationError as failure:
        fatal("gateway", failure.message)
        return 2
    return 0


if __name__ == "__main__":
    imported()
    sys.exit(main(sys.argv[1:]))
