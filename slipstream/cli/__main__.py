"""`python -m slipstream.cli` is the `slipstream` command."""

from slipstream.cli.main import run

run()
