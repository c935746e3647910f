"""`slipstream check`: real generations against a running server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from slipstream.cli.client import ChatClient
from slipstream.cli.generation_check import SAMPLINGS, GenerationCheck, Wrong, until_ready
from slipstream.core.errors import ConfigurationError, SlipstreamError


def check(
    url: Annotated[str, typer.Argument(help="The server, as http://127.0.0.1:8000.")],
    api_key_file: Annotated[
        Path | None, typer.Option(help="File that holds the API key and nothing else.")
    ] = None,
    api_key_env: Annotated[
        str, typer.Option(help="Environment variable that holds the API key, where it is set.")
    ] = "SLIPSTREAM_API_KEY",
    model: Annotated[str | None, typer.Option(help="Model name; default: what is served.")] = None,
    expect_drafts: Annotated[
        bool, typer.Option("--expect-drafts", help="Fail unless a drafter's drafts were verified.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(min=4, help="Length of each answer.")] = 32,
    timeout: Annotated[
        float, typer.Option(min=5.0, help="Seconds in all, for getting ready and for drafts, too.")
    ] = 180.0,
) -> None:
    """Ask a server in every way and compare: streamed and whole, with speculation and without.

    Greedy and at temperature 1 with a seed. Exit code 0: all equal; 1: not, or no answer; 2: an
    option cannot be used.
    """
    deadline = time.monotonic() + timeout
    with ChatClient(_checked(url), api_key(api_key_file, api_key_env), silence=timeout) as client:
        if not _run(client, model, deadline, max_tokens, expect_drafts):
            raise typer.Exit(1)


def _run(
    client: ChatClient, model: str | None, deadline: float, max_tokens: int, expect_drafts: bool
) -> bool:
    """Does all checks, a line for each. True: all is well."""
    try:
        ready = until_ready(client, deadline)
        name = model or client.model()
    except SlipstreamError as failure:
        typer.echo(f"FAIL  ready: {failure.message}")
        return False
    typer.echo(f"ok    ready: {_standing(ready)}, model {name}")
    work = GenerationCheck(client, name, deadline, max_tokens, fast=_fast(ready), note=_note)
    well = [_line(each.name, partial(work.equal, each)) for each in SAMPLINGS]
    if expect_drafts:
        well.append(_line("drafts", work.expect_drafts))
    return all(well)


def _line(name: str, work: Callable[[], str]) -> bool:
    try:
        typer.echo(f"ok    {name}: {work()}")
        return True
    except Wrong as wrong:
        typer.echo(f"FAIL  {name}: {wrong}")
    except SlipstreamError as failure:
        typer.echo(f"FAIL  {name}: {failure.message}")
    return False


def _note(text: str) -> None:
    typer.echo(f"note  {text}")


def _standing(ready: dict[str, Any] | None) -> str:
    if ready is None:
        return "there is no /ready here, so requests will tell"
    states = [one.get("state") for one in ready.get("verifiers", ())]
    store = (ready.get("store") or {}).get("state", "not told")
    return f"{states.count('serving')} of {len(states)} verifiers serve, session store {store}"


def _fast(ready: dict[str, Any] | None) -> bool:
    """Whether a verifier that serves does not promise the same tokens at near-ties."""
    verifiers = (ready or {}).get("verifiers", ())
    return any(one.get("exactness") == "fast" for one in verifiers)


def _checked(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as failure:
        raise ConfigurationError(f"{url!r} is no URL: {failure}") from failure
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ConfigurationError(f"{url!r} is no URL: give one as http://127.0.0.1:8000")
    return url


def api_key(file: Path | None, variable: str) -> str | None:
    """The API key to use; None: there is none.

    Raises:
        ConfigurationError: the file cannot be read, or holds something else.
    """
    if file is None:
        # A Secret that was made from a file may end with a line break.
        return os.environ.get(variable, "").strip() or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as failure:
        raise ConfigurationError(f"--api-key-file: cannot read {file}: {failure}") from failure
    if not key or len(key.split()) != 1 or not key.isascii():
        raise ConfigurationError(f"--api-key-file: {file} must hold one API key and nothing else")
    return key
