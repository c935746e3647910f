"""`slipstream chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import typer
from rich.console import Console

from slipstream.cli.client import Answer, ChatClient
from slipstream.core.errors import NotAuthenticated, SlipstreamError

Message = dict[str, str]


def chat(
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Model name; default: what is served.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="SLIPSTREAM_API_KEY", help="API key of the server.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0)] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0)] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    speculative: Annotated[
        bool | None, typer.Option("--speculative/--no-speculative", help="Use the drafter.")
    ] = None,
) -> None:
    """Talk to a served model. Ctrl-C stops an answer, Ctrl-D ends the conversation."""
    console = Console(highlight=False)
    options = {
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "max_tokens": max_tokens,
        "speculative": speculative,
    }
    with ChatClient(url, api_key) as client:
        name = model or client.model()
        body: dict[str, Any] = {"model": name}
        body |= {option: value for option, value in options.items() if value is not None}
        console.print(f"{name} at {url}. Ctrl-C stops an answer, Ctrl-D ends.", style="dim")
        history: list[Message] = [{"role": "system", "content": system}] if system else []
        while (line := _ask(console)) is not None:
            if line.strip():
                turn(client, console, body, history, line)


def turn(
    client: ChatClient, console: Console, body: dict[str, Any], history: list[Message], line: str
) -> None:
    """One question and its answer, which are appended to `history`.

    An answer that was stopped stays in the history as far as it came; a question that was
    refused does not. Raises NotAuthenticated; other refusals are shown.
    """
    question = {"role": "user", "content": line}
    answer = Answer()
    try:
        _show(client, console, {**body, "messages": [*history, question]}, answer)
    except NotAuthenticated:
        raise
    except SlipstreamError as failure:
        console.print(f"\n{failure.message}", style="red", markup=False)
        return
    history += [question, {"role": "assistant", "content": answer.text}]


def _show(client: ChatClient, console: Console, body: dict[str, Any], answer: Answer) -> None:
    stopped = ""
    # Closed here and not by the garbage collector: that is what tells the server to stop.
    with contextlib.closing(client.stream(body, answer)) as pieces:
        try:
            for piece in pieces:
                console.print(piece, end="", markup=False, soft_wrap=True)
        except KeyboardInterrupt:
            stopped = "stopped; "
    console.print()
    console.print(f"[{stopped}{answer.summary()}]", style="dim", markup=False, soft_wrap=True)


def _ask(console: Console) -> str | None:
    """The next line typed; None at its end (Ctrl-D)."""
    # Importing it gives the prompt line editing and a history.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    while True:
        try:
            return console.input("[bold]> [/bold]")
        except EOFError:
            console.print()
            return None
        except KeyboardInterrupt:
            console.print("\n(Ctrl-D ends the conversation)", style="dim")
