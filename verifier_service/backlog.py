"""What a newcomer finds before it, and how long that leaves it without a first token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from verifier_service.drain import Drain
from verifier_service.generation import Generation

# Priority and tenant.
Key = tuple[int, str]


@dataclass(slots=True)
class Line:
    """Requests of one priority and tenant.

    Attributes:
        prompt: tokens of theirs that are to be computed.
        work: weighted tokens that are expected of them.
    """

    count: int = 0
    prompt: float = 0.0
    work: float = 0.0


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Prompts that have begun and are not computed; a snapshot that any thread may read.

    Attributes:
        serving: the key of the one whose turn it is, and the tokens that it lacks; None: there is
            none.
    """

    lines: dict[Key, Line] = field(default_factory=dict)
    serving: tuple[Key, int] | None = None
    tokens: int = 0

    @classmethod
    def of(cls, generations: Iterable[Generation]) -> Unfinished:
        """In the order in which they are computed."""
        lines: dict[Key, Line] = {}
        serving = None
        tokens = 0
        for generation in generations:
            key = key_of(generation)
            todo = generation.sequence.todo
            serving = serving or (key, todo)
            line = lines.setdefault(key, Line())
            line.count += 1
            line.prompt += todo
            tokens += todo
        return cls(lines, serving, tokens)


class Backlog:
    """Those that were taken and have not started, and the prompts of those that have.

    Not thread-safe, but for `begun`, which is replaced as a whole.

    Attributes:
        places: how many requests could start at once.
        begun: prompts that are not computed yet.
    """

    def __init__(self, drain: Drain, places: int) -> None:
        self.places = places
        self.begun = Unfinished()
        self._drain = drain
        self._count = 0
        self._lines: dict[Key, Line] = {}

    def __len__(self) -> int:
        """Requests that have not started."""
        return self._count

    def add(self, key: Key, prompt: float, work: float) -> None:
        """One was taken."""
        self._count += 1
        line = self._lines.setdefault(key, Line())
        line.count += 1
        line.prompt += prompt
        line.work += work

    def remove(self, key: Key, prompt: float, work: float) -> None:
        """It has started, or will not."""
        self._count -= 1
        line = self._lines[key]
        line.count -= 1
        line.prompt -= prompt
        line.work -= work
        if not line.count:
            del self._lines[key]

    def waiting(self, priority: int | None = None, tenant: str | None = None) -> int:
        """How many will not start in the next step, of those of this priority or a lower number,
        and of this tenant; None: of all."""
        count = sum(
            line.count
            for (p, t), line in self._lines.items()
            if (priority is None or p <= priority) and (tenant is None or t == tenant)
        )
        return max(0, count - self.places)

    def seconds(self, tenant: str, priority: int) -> float:
        """Until the first token of a newcomer is computed, but for what its own prompt takes.

        Tenants are served in turn: until its turn has come, each of the others gets as much as
        this one has there already, and one request more. 0: nothing is known.
        """
        own = self._of((priority, tenant))
        before = 0.0
        for key, count in self._counts().items():
            if key[0] < priority:
                before += self._of(key)
            elif key[0] == priority and key[1] != tenant:
                there = self._of(key)
                before += min(there, own + there / count)
        return before + own

    def residual(self, priority: int) -> float:
        """Seconds that the prompt whose turn it is still takes, where it goes before a newcomer."""
        serving = self.begun.serving
        if serving is None or serving[0][0] > priority:
            return 0.0
        return _over(serving[1], self._drain.prompt_rate)

    def takes(self, prompt: float, work: float) -> float:
        """Seconds that a request which came now would keep others waiting."""
        if self._count >= self.places:
            return _over(work, self._drain.rate)
        return _over(prompt, self._drain.prompt_rate)

    def _counts(self) -> Counter[Key]:
        counts: Counter[Key] = Counter()
        for lines in (self._lines, self.begun.lines):
            for key, line in lines.items():
                counts[key] += line.count
        return counts

    def _of(self, key: Key) -> float:
        """Seconds for what one line has there: who has a place takes the time of his prompt from
        those behind, and who has none, of his answer as well."""
        begun, line = self.begun.lines.get(key), self._lines.get(key)
        seconds = _over(begun.prompt, self._drain.prompt_rate) if begun else 0.0
        return seconds + (self.takes(line.prompt, line.work) if line else 0.0)


def key_of(generation: Generation) -> Key:
    return generation.request.priority, generation.request.tenant


def _over(tokens: float, rate: float) -> float:
    return tokens / rate if rate else 0.0
