"""`python -m gateway`: exit code 0 after a clean stop, 2 on a configuration error."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence

from prometheus_client import disable_created_metrics

from gateway.server import run
from gateway.settings import load
from slipstream.core.errors import ConfigurationError


def main(arguments: Sequence[str]) -> int:
    try:
        settings = load(arguments)
        logging.basicConfig(
            level=settings.log_level.upper(),
            format="%(asctime)s gateway %(levelname)s %(message)s",
            stream=sys.stderr,
        )
        # A timestamp beside each counter would double what a scrape carries.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        asyncio.run(run(settings))
    except ConfigurationError as failure:
        sys.stderr.write(f"gateway: error: {failure.message}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
