"""Lets a schedule of faults loose on a stack, and brings back what they took."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from slipstream.bench.faults import Direction, FaultProxy
from slipstream.core.errors import DeadlineExceeded
from tests.chaos.history import StoreHistory
from tests.chaos.processes import Process
from tests.chaos.schedule import Fault, hits_store, verifier_lost
from tests.chaos.stack import READY_SECONDS, Stack
from tests.chaos.topology import role_of

# What freezes and lateness do to a link.
_DIRECTIONS: tuple[Direction, ...] = ("both", "both", "outward", "homeward")
_LEAST_DELAY, _MOST_DELAY = 0.05, 0.6
_FLIPS_PER_KIB = 1.0


@dataclass(frozen=True, slots=True)
class Struck:
    """A fault that was due; `skipped` says why it was left out, and is empty where it was not."""

    fault: Fault
    skipped: str = ""


@dataclass(slots=True)
class Storm:
    """Strikes a stack. Lives on one event loop.

    Attributes:
        struck: all faults that were due, in order.
        failures: where a process could not be brought back.
        abandoned: nobody needs the stack any more: nothing is brought back.
    """

    stack: Stack
    history: StoreHistory
    say: Callable[[str], None]
    struck: list[Struck] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    abandoned: bool = False
    _hit: set[str] = field(default_factory=set)
    _strikes: set[asyncio.Task[None]] = field(default_factory=set)

    @asynccontextmanager
    async def blowing(self, faults: Iterable[Fault]) -> AsyncIterator[None]:
        """Strikes for the length of the block; then nothing is disturbed any more."""
        blowing = asyncio.create_task(self._blow(faults))
        try:
            yield
        finally:
            blowing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await blowing
            if self.abandoned:
                for strike in self._strikes:
                    strike.cancel()
            await asyncio.gather(*self._strikes, return_exceptions=self.abandoned)
            self.stack.heal()

    async def _blow(self, faults: Iterable[Fault]) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        for fault in faults:
            await asyncio.sleep(max(0.0, began + fault.at - clock()))
            skipped = await self._objection(fault)
            self.struck.append(Struck(fault, skipped))
            self.say(f"{fault}{f'  left out: {skipped}' if skipped else ''}")
            if not skipped:
                strike = asyncio.create_task(self._strike(fault))
                self._strikes.add(strike)
                strike.add_done_callback(self._strikes.discard)

    async def _objection(self, fault: Fault) -> str:
        """Why the stack, as it is, must be spared this fault; empty where it need not."""
        verifiers = self.stack.topology.of("verifier")
        targets = verifiers if fault.kind == "blackout" else [fault.target]
        if busy := self._hit.intersection(targets):
            return f"{', '.join(sorted(busy))} is hit already"
        hit = verifier_lost(fault)
        others = [name for name in verifiers if name != hit]
        if hit is None or not others:
            return ""
        ready = await asyncio.gather(
            *(self.stack.processes[name].is_ready() for name in others if name not in self._hit)
        )
        return "" if any(ready) else "no other verifier serves now"

    async def _strike(self, fault: Fault) -> None:
        verifiers = self.stack.topology.of("verifier")
        names = verifiers if fault.kind == "blackout" else [fault.target]
        self._hit.update(names)
        try:
            if role_of(fault.target) == "link":
                await self._strike_link(self.stack.links[fault.target], fault)
            else:
                await self._strike_processes([self.stack.processes[each] for each in names], fault)
        finally:
            self._hit.difference_update(names)

    async def _strike_processes(self, processes: list[Process], fault: Fault) -> None:
        with self._noted(fault):
            match fault.kind:
                case "stop":
                    processes[0].stop()
                case "term":
                    await processes[0].terminate()
                case _:
                    await asyncio.gather(*(process.kill() for process in processes))
            if fault.kind == "empty":
                self.stack.forget()
                self.history.emptied.append(asyncio.get_running_loop().time())
            await asyncio.sleep(fault.seconds)
            if fault.kind == "stop":
                processes[0].go_on()
                return
            for process in processes:
                await process.start()
            try:
                await asyncio.gather(*(process.wait_ready(READY_SECONDS) for process in processes))
            except DeadlineExceeded as failure:
                self.failures.append(failure.message)

    async def _strike_link(self, proxy: FaultProxy, fault: Fault) -> None:
        direction = _DIRECTIONS[int(fault.shade * len(_DIRECTIONS))]
        with self._noted(fault):
            match fault.kind:
                case "cut":
                    proxy.refuse()
                    proxy.cut("reset" if fault.shade < 0.5 else "end")
                case "freeze":
                    proxy.freeze(direction=direction)
                case "delay":
                    late = _LEAST_DELAY + fault.shade * (_MOST_DELAY - _LEAST_DELAY)
                    proxy.delay(late, late / 2)
                case _:
                    proxy.corrupt(_FLIPS_PER_KIB, direction)
            await asyncio.sleep(fault.seconds)
            proxy.heal()

    @contextmanager
    def _noted(self, fault: Fault) -> Iterator[None]:
        """Tells the history while the store, or a way to it, is disturbed."""
        if not hits_store(fault):
            yield
            return
        clock = asyncio.get_running_loop().time
        number = self.history.leaves(clock())
        try:
            yield
        finally:
            self.history.is_back(number, clock())
