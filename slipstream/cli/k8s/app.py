"""The commands of `slipstream k8s`."""

from __future__ import annotations

import typer

from slipstream.cli.k8s.doctor import doctor
from slipstream.cli.k8s.save_plan import save_plan

app = typer.Typer(
    help="Commands for a release on Kubernetes.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("doctor")(doctor)
app.command("save-plan")(save_plan)
