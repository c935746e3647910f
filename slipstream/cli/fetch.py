"""`slipstream fetch`: download and convert a model now, for a later start without network."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from slipstream.core.errors import ConfigurationError
from slipstream.models import resolve
from slipstream.models.place import place
from slipstream.models.progress import progress_on


def fetch(
    model: Annotated[
        str,
        typer.Argument(
            help="`default`, a folder, a .gguf file or a hub name owner/name[@revision]."
        ),
    ] = "default",
    to: Annotated[
        Path | None,
        typer.Option(
            help="Put the model into this folder, which then is there whole or not at all; safe"
            " with several at once on one volume. Default: a cache of the user's."
        ),
    ] = None,
    tokenizer_only: Annotated[
        bool,
        typer.Option(
            "--tokenizer-only", help="With --to: only what a gateway reads, without the weights."
        ),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the hashes of a model prepared before.")
    ] = False,
) -> None:
    """Prepare a model and print its folder."""
    if to is not None:
        # The first process of a container has no default action for it, and the hub's client would
        # wait for its threads. What is there then is what a kill leaves.
        signal.signal(signal.SIGTERM, _leave)
        options = {"tokenizer_only": tokenizer_only, "verify": verify}
        typer.echo(place(model, to, progress=progress_on(), **options))
    elif tokenizer_only:
        raise ConfigurationError("--tokenizer-only needs a folder to put the files into: --to")
    else:
        typer.echo(resolve(model, progress=progress_on(), verify=verify))


def _leave(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)
