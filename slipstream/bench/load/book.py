"""The known answers: every dialogue asked once, alone, before any load; kept in a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slipstream.bench.load.asks import Ask, Dialogue, Extras
from slipstream.bench.load.doors import GrpcDoor
from slipstream.bench.load.outcomes import Known
from slipstream.bench.load.workload import digest
from slipstream.bench.report import write
from slipstream.core.errors import ConfigurationError, InternalError
from slipstream.wire.proto import verifier_pb2

# Plain decoding, and what it leaves in a prefix cache is of no use to the load.
_ALONE = Extras(speculative=False, cache_salt="known answers")
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """A request and the answer that it must get."""

    ask: Ask
    known: Known


@dataclass(frozen=True, slots=True)
class Book:
    """Entries by dialogue, in the order of its turns: each turn's history is the known answers
    before it, so that what is asked is the same whoever answers.

    Attributes:
        name: of what the answers depend on: model, precision, exactness, dialogues.
    """

    name: str
    dialogues: tuple[tuple[Entry, ...], ...]

    @property
    def entries(self) -> list[Entry]:
        return [entry for dialogue in self.dialogues for entry in dialogue]


def book_name(model: verifier_pb2.GetModelResponse, dialogues: Sequence[Dialogue]) -> str:
    """Raises ConfigurationError where the verifier does not give the same tokens in any company."""
    if model.exactness != "strict":
        raise ConfigurationError(
            f"known answers need exactness strict, and the verifier's is {model.exactness}"
        )
    parts = (model.fingerprint[:16], model.dtype, model.precision, digest(dialogues))
    return "-".join(part.replace("/", "_") for part in parts)


async def known_answers(
    door: GrpcDoor,
    model: verifier_pb2.GetModelResponse,
    dialogues: Sequence[Dialogue],
    folder: Path,
    progress: Progress,
) -> Book:
    """The book of these dialogues: read from `folder`, or computed now, one at a time, and kept.

    Raises:
        ConfigurationError: the verifier's exactness is not strict.
        InternalError: an answer could not be had, though nothing else ran.
    """
    name = book_name(model, dialogues)
    path = folder / f"known-{name}.json"
    if (found := read(path)) is not None and found.name == name:
        return found
    written = []
    for place, dialogue in enumerate(dialogues, start=1):
        progress(f"known answers, {place}/{len(dialogues)}: {dialogue.name}")
        written.append(await _play(door, dialogue))
    book = Book(name, tuple(written))
    write(path, asdict(book))
    return book


async def know(door: GrpcDoor, ask: Ask) -> Entry:
    """The answer to one request, alone. Raises InternalError where there is none."""
    reading = await door.ask(ask, extras=_ALONE)
    if reading.failure or not reading.finish_reason or reading.prompt_tokens is None:
        raise InternalError(f"no known answer to {ask.name}: {reading.failure or 'it was cut off'}")
    ids = tuple(reading.token_ids)
    return Entry(ask, Known(reading.text, ids, reading.finish_reason, reading.prompt_tokens))


async def _play(door: GrpcDoor, dialogue: Dialogue) -> tuple[Entry, ...]:
    """Raises InternalError as `know` does."""
    entries: list[Entry] = []
    history: tuple[tuple[str, str], ...] = ()
    for turn, (text, length) in enumerate(zip(dialogue.turns, dialogue.max_tokens, strict=True)):
        history = (*history, ("user", text))
        name, kind, seed = f"{dialogue.name}/{turn}", dialogue.kind, dialogue.seed + turn
        temperature, ignore_eos = dialogue.temperature, dialogue.ignore_eos
        ask = Ask(name, kind, history, length, temperature, seed, ignore_eos)
        entries.append(await know(door, ask))
        history = (*history, ("assistant", entries[-1].known.text))
    return tuple(entries)


def read(path: Path) -> Book | None:
    """None where there is no such file, or it is of another version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        dialogues = tuple(tuple(map(_entry, dialogue)) for dialogue in content["dialogues"])
        return Book(str(content["name"]), dialogues)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _entry(content: dict[str, Any]) -> Entry:
    ask, known = content["ask"], content["known"]
    messages = tuple((role, text) for role, text in ask["messages"])
    return Entry(
        Ask(**{**ask, "messages": messages}),
        Known(**{**known, "token_ids": tuple(known["token_ids"])}),
    )
