"""`slipstream fetch`: download and convert a model now, for a later start without network."""

from __future__ import annotations

from typing import Annotated

import typer

from slipstream.models import resolve
from slipstream.models.progress import progress_on


def fetch(
    model: Annotated[
        str, typer.Argument(help="`default`, a folder, a .gguf file or a hub name owner/name.")
    ] = "default",
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the hashes of a model prepared before.")
    ] = False,
) -> None:
    """Prepare a model and print its folder."""
    typer.echo(resolve(model, progress=progress_on(), verify=verify))
