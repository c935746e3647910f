"""Who has a place, who waits for one, and who gives his back when the KV pool is full."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from verifier_service.fairness import Accounts, FairQueue, service
from verifier_service.generation import Generation
from verifier_service.plan import Limits, StepPlan, Turn, next_turn
from verifier_service.rooms import Rooms

Told = Callable[[Generation], None]


class Scheduler:
    """Owned by the engine's thread.

    Sequences start with room for what they have and grow by blocks. When there is no room to grow,
    the running sequence that matters least (the highest priority number, of those the latest) gives
    its room back, keeps its tokens, and waits at the head of its queue to be computed again. The
    one that matters most is never asked to, so it ends, whatever the others do.

    Args:
        max_running: most sequences with a place.
        started, preempted: are told of a sequence that got a place, and of one that lost it.
    """

    def __init__(
        self, rooms: Rooms, limits: Limits, max_running: int, started: Told, preempted: Told
    ) -> None:
        self.accounts = Accounts()
        self.waiting = FairQueue(self.accounts)
        self._rooms = rooms
        self._limits = limits
        self._max_running = max_running
        self._started = started
        self._preempted = preempted
        self._running: dict[int, Generation] = {}
        self._prefilled_last = False
        self._turns = itertools.count(1)

    def __iter__(self) -> Iterator[Generation]:
        """All that run and wait."""
        yield from self._running.values()
        yield from self.waiting

    @property
    def running(self) -> tuple[Generation, ...]:
        return tuple(self._running.values())

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def places(self) -> int:
        """Requests that could start at once."""
        return 0 if len(self.waiting) else self._max_running - len(self._running)

    @property
    def unfinished(self) -> list[Generation]:
        """Those that have had a place and lack tokens of their prompt, or of what they must compute
        again, in the order of their turns."""
        begun = [g for g in self if g.started and g.sequence.todo > 1]
        return sorted(begun, key=self._prompt_order)

    def add(self, generation: Generation) -> None:
        """Queues a new one."""
        self.accounts.join(generation.request.tenant)
        self.waiting.push(generation)

    def remove(self, generation: Generation) -> None:
        """One has ended, wherever it was; frees all that it had here."""
        if self._running.pop(generation.number, None) is not None:
            self._rooms.free(generation)
        else:
            self.waiting.remove(generation)
        self.accounts.leave(generation.request.tenant)

    def next_turn(self) -> Turn:
        """Gives places to those who wait, and room to those whose turn it is."""
        self._start()
        while True:
            turn = next_turn(
                self.running, self._limits, not self._prefilled_last, self._prompt_order
            )
            # Whoever gave his room back may have been one of them.
            if all(self._grow(generation) for generation in turn.decoding):
                for generation in turn.prompts:
                    self._rooms.share(generation)
                return turn

    def stepped(self, plan: StepPlan) -> None:
        """The step `plan` is over."""
        self._prefilled_last = plan.prompt_rows > 0
        # No two are alike: those who shared a step go on in the order in which they had rows, else
        # the first of them would be first again, and have more turns than others.
        for item in plan.work:
            item.generation.turn = next(self._turns)

    def generated(self, generation: Generation, tokens: int) -> None:
        """Puts output on the account of a sequence that runs."""
        self.accounts.charge(generation.request.tenant, service(0, tokens))

    def _prompt_order(self, generation: Generation) -> tuple[int, float, int]:
        """Prompts of tenants that were served less come first."""
        request = generation.request
        return request.priority, self.accounts.served(request.tenant), generation.number

    def _start(self) -> None:
        """The first who lacks room waits, and all behind him, or a large one would never start."""
        while self.waiting and len(self._running) < self._max_running:
            generation = self.waiting.head()
            # A block for each that runs: else they would soon take it away again.
            if not self._rooms.take(generation, spare=len(self._running)):
                return
            self.waiting.remove(generation)
            self._running[generation.number] = generation
            if not generation.started:
                todo = generation.sequence.todo
                self.accounts.charge(generation.request.tenant, service(todo, 0))
            self._started(generation)
            generation.started = True

    def _grow(self, generation: Generation) -> bool:
        """Whether it has room for its next token; if not, somebody has just made some."""
        if self._rooms.grow(generation):
            return True
        least = max(self._running.values(), key=lambda g: g.rank)
        del self._running[least.number]
        self._rooms.free(least)
        least.sequence.computed = 0
        self.waiting.push_back(least)
        self._preempted(least)
        return False
