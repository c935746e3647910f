"""One verifier of a tiny model, and a drafter beside it that tests may end and start again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from slipstream.core.layer_plan import LayerPlan
from tests.integration.processes import Service, free_address
from tests.verifier.rig import write_checkpoint

CONTEXT = 4096
# Two processes and a client share the cores: one thread each keeps them from fighting.
COMMON = ("--threads", "1", "--stop-grace", "0.5")
# Seconds for which a client may leave the pair's verifier unread.
SEND_TIMEOUT = 3.0
TINY = (*COMMON, "--dtype", "float32", "--kv-cache-gib", "0.0625")

# A fixed length: on a model this small, or a busy machine, the automatic one would find that drafts
# are not worth it.
LOOK = ("--draft-length", "8")

Start = Callable[..., Service]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts a service; all are killed in the end."""
    folder, started = tmp_path_factory.mktemp("logs"), []
    numbers = itertools.count()

    def begin(role: str, model: Path, options: Sequence[str], address: str = "") -> Service:
        log = folder / f"{next(numbers)}-{role}.log"
        arguments = ["--model", str(model), *options]
        started.append(Service(role, address or free_address(), arguments, log))
        return started[-1]

    yield begin
    for service in started:
        service.kill()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), context=CONTEXT)


@pytest.fixture(scope="session")
def other_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shapes, other weights."""
    return write_checkpoint(tmp_path_factory.mktemp("other"), context=CONTEXT, seed=2)


@pytest.fixture(scope="session")
def exact_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of a drafter that is nearly always right: everything as it is."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    LayerPlan().save(path)
    return path


class Pair:
    """A verifier, and the place of its drafter."""

    def __init__(self, start: Start, tiny: Path, plan: Path) -> None:
        self._start, self._tiny = start, tiny
        self._options = (*TINY, "--layer-plan", str(plan))
        self.drafter_address = free_address()
        self.drafter: Service | None = None
        options = (*TINY, "--drafter", self.drafter_address, "--exactness", "strict")
        options = (*options, *LOOK, "--send-timeout", str(SEND_TIMEOUT))
        self.verifier = start("verifier", tiny, options)

    def start_drafter(self, model: Path | None = None) -> Service:
        """Starts one and does not wait for it."""
        self.end_drafter()
        place = self.drafter_address
        self.drafter = self._start("drafter", model or self._tiny, self._options, place)
        return self.drafter

    def end_drafter(self) -> None:
        if self.drafter is not None:
            self.drafter.kill()
        self.drafter = None


@pytest.fixture(scope="session")
def pair(start: Start, tiny: Path, exact_plan: Path) -> Iterator[Pair]:
    """Verifier and drafter, both ready when first handed out."""
    made = Pair(start, tiny, exact_plan)
    made.start_drafter().wait_ready()
    made.verifier.wait_ready()
    yield made
    made.end_drafter()
    made.verifier.kill()
