"""Telling a waiting person what is going on: a bar on a terminal, one line each elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

# Called with the bytes done so far.
Report = Callable[[int], None]


class Progress(Protocol):
    """Shows one piece of work at a time."""

    def work(self, title: str, total: int | None = None) -> AbstractContextManager[Report]:
        """Shows `title` while the block runs; `total` is in bytes, None where it is not known."""


class Quiet:
    """Shows nothing."""

    @contextmanager
    def work(self, title: str, total: int | None = None) -> Iterator[Report]:  # noqa: ARG002
        yield lambda _: None


class Lines:
    """One line when a piece of work starts."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextmanager
    def work(self, title: str, total: int | None = None) -> Iterator[Report]:
        size = f" ({total / 1e6:.0f} MB)" if total else ""
        self._stream.write(f"{title}{size}\n")
        self._stream.flush()
        yield lambda _: None


class Bar:
    """A bar with bytes and speed, or a moving one where the total is not known."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextmanager
    def work(self, title: str, total: int | None = None) -> Iterator[Report]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            ProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn()]
        columns += [DownloadColumn(), TransferSpeedColumn()] if total else [TimeElapsedColumn()]
        with RichProgress(*columns, console=Console(file=self._stream)) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done: bar.update(task, completed=done)
            bar.update(task, total=total or 1, completed=total or 1)


def progress_on(stream: TextIO | None = None) -> Progress:
    """What fits the stream (default: stderr)."""
    stream = sys.stderr if stream is None else stream
    return Bar(stream) if stream.isatty() else Lines(stream)
