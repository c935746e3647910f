"""The `slipstream` command."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, NoReturn

import typer

from slipstream.cli.chat import chat
from slipstream.cli.check import check
from slipstream.cli.fetch import fetch
from slipstream.cli.up import up
from slipstream.core.errors import (
    ConfigurationError,
    InvalidRequest,
    ModelMismatch,
    SlipstreamError,
)
from slipstream.core.extras import require

app = typer.Typer(
    name="slipstream",
    help="Serves language models with lossless speculative decoding.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(up)
app.command()(chat)
app.command()(fetch)
app.command()(check)


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"slipstream {version('slipstream-serve')}")
        except PackageNotFoundError:
            typer.echo("slipstream (not installed)")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command(
    # All arguments, --help among them, go to the command proper.
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    },
)
def bench(context: typer.Context) -> None:
    """Measure tokens per second; `bench link` over a slow network, `bench kv` by KV context."""
    require("engine", "slipstream bench")
    # Imported here: no other command needs what it brings.
    from slipstream.cli import bench as command

    command.app(args=list(context.args), prog_name="slipstream bench")


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    },
)
def tune(context: typer.Context) -> None:
    """Find the drafter's layer plan by measuring; `tune compare` judges plans."""
    from slipstream.cli import tune as command

    command.app(args=list(context.args), prog_name="slipstream tune")


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    },
)
def k8s(context: typer.Context) -> None:
    """On Kubernetes: `k8s doctor` examines a release, `k8s save-plan` stores a layer plan."""
    # The Kubernetes client takes a second to import.
    from slipstream.cli.k8s import app as command

    command.app(args=list(context.args), prog_name="slipstream k8s")


def run() -> NoReturn:
    """Runs the command line; every error that we raise on purpose is one message, no traceback.

    Exit codes: 0, 2 for a setting or input that cannot be used, 1 for everything else that
    failed, 130 when interrupted.
    """
    try:
        app()
    except (ConfigurationError, InvalidRequest, ModelMismatch) as failure:
        _fail(failure, 2)
    except SlipstreamError as failure:
        _fail(failure, 1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _fail(failure: SlipstreamError, code: int) -> NoReturn:
    sys.stderr.write(f"slipstream: {failure.message}\n")
    sys.exit(code)
