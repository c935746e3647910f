"""Who of several processes, on one machine or many, works on something that lies on a volume."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from slipstream.core.errors import DeadlineExceeded

STALE_SECONDS = 60.0
_BEATS = 4


@dataclass(frozen=True, slots=True)
class _Seen:
    owner: str
    # In the clock of the volume, as all times here: those of two machines may differ.
    beat: float


class Lease:
    """The right to do some work, held by one process while the block runs.

    It is a file, made so that only one can succeed, whose time its holder renews. Of locks network
    file systems may know nothing, or nothing of other machines, and one whose machine is gone may
    stay; a lease that is not renewed for `stale` seconds is taken over.

    A holder that stood still that long may find itself beside another one. What is done under a
    lease must therefore be right, if wasteful, when two do it.

    Args:
        path: the file; its folder exists.
        waiting: called once, if there is a holder to wait for.

    Raises:
        DeadlineExceeded: another process held it for `seconds`.
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        seconds: float,
        stale: float = STALE_SECONDS,
        poll: float = 1.0,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self.owner = uuid.uuid4().hex
        self._path, self._stale, self._poll = path, stale, poll
        self._seconds, self._waiting = seconds, waiting
        self._end = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Self:
        deadline = time.monotonic() + self._seconds
        told = False
        while not self._take():
            seen = self._look(self._path)
            if seen is not None and self._now() - seen.beat > self._stale:
                self._take_away(seen)
                continue
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"another process has held {self._path} for {self._seconds:.0f} s"
                )
            if not told:
                self._waiting()
                told = True
            time.sleep(self._poll)
        self._beating.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._beating.join()
        seen = self._look(self._path)
        if seen is not None and seen.owner == self.owner:
            self._path.unlink(missing_ok=True)

    def _take(self) -> bool:
        try:
            with self._path.open("x", encoding="ascii") as file:
                file.write(self.owner)
        except FileExistsError:
            # Over a network a file may be made and the answer lost.
            seen = self._look(self._path)
            return seen is not None and seen.owner == self.owner
        return True

    def _look(self, path: Path) -> _Seen | None:
        """None where it is gone. Opened anew each time, which makes a network client ask."""
        try:
            with path.open(encoding="ascii") as file:
                return _Seen(file.read(), os.fstat(file.fileno()).st_mtime)
        except FileNotFoundError:
            return None

    def _now(self) -> float:
        """The volume's time: what it gives to a new file."""
        clock = self._path.with_name(f"{self._path.name}.{self.owner}")
        with clock.open("x") as file:
            clock.unlink()
            return os.fstat(file.fileno()).st_mtime

    def _take_away(self, seen: _Seen) -> None:
        """Removes the lease if it is still the one that was seen to be stale."""
        aside = self._path.with_name(f"{self._path.name}.{self.owner}-aside")
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return
        # Somebody else may have been quicker, and this be a fresh one.
        if (now := self._look(aside)) is not None and now.owner != seen.owner:
            with contextlib.suppress(OSError):
                os.link(aside, self._path)
        aside.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._end.wait(self._stale / _BEATS):
            # A volume that cannot be reached now may be there again at the next beat.
            with contextlib.suppress(OSError):
                seen = self._look(self._path)
                if seen is None or seen.owner != self.owner:
                    return
                os.utime(self._path)
