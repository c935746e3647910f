"""Chat templates, rendered as `apply_chat_template` does, without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from slipstream.core.errors import CheckpointError, InvalidParameter


class _GenerationBlock(Extension):
    """`{% generation %}` marks what the assistant wrote, for training; it renders as its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> Any:
        return caller()


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    # Templates tell the model the local date, without a zone.
    return datetime.now().strftime(pattern)  # noqa: DTZ005


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes characters for HTML, which a model would see.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class ChatTemplate:
    """A compiled chat template. Templates come with the model, so they run in a sandbox.

    Args:
        source: the Jinja source.
        special_tokens: what the template may name: `bos_token`, `eos_token`, ...

    Raises:
        CheckpointError: the source does not compile.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as failure:
            raise CheckpointError(
                f"the model's chat template does not compile: {failure}"
            ) from failure
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt that asks for the assistant's next turn.

        Raises:
            InvalidParameter: the template refuses these messages (roles in a wrong order, ...).
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
        ) as failure:
            raise InvalidParameter(
                f"the model's chat template does not accept these messages: {failure}",
                param="messages",
            ) from failure


def choose(found: Any) -> str | None:
    """The template among what `tokenizer_config.json` holds: a string, or a list of named ones."""
    if isinstance(found, str):
        return found
    if isinstance(found, list):
        named = {
            entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)
        }
        template = named.get("default", next(iter(named.values()), None))
        return template if isinstance(template, str) else None
    return None
