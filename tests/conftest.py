"""Models that tests everywhere share: the real default one and a tiny random one."""

from __future__ import annotations

import contextlib
import functools
import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

# Before anything loads torch, whatever is tested: it bounds how long OpenMP's threads spin, which
# costs several times what the tests' small products do.
import slipstream.engine  # noqa: F401
from slipstream.core.errors import SlipstreamError
from slipstream.models import resolve
from tests.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from tests.golden.reference import Reference


# How long an example takes, or is drawn for, says how busy the machine is.
settings.register_profile("slipstream", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("slipstream")

# Collecting the tests imports torch and all of ours, and makes next to no garbage: with the
# collector at rest it takes three quarters of the time. See `pytest_collection_finish`.
gc.disable()


@pytest.fixture(scope="session", autouse=True)
def _own_state() -> Iterator[None]:
    """Gateways that are told of no session store keep theirs here, not in the user's folder."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", folder)
        yield


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """The default model's folder in the user's cache, prepared if it is not there yet."""
    return resolve("default")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where tests marked `alone` are asked for, files that have none are not imported: all of them
    would take longer than some of the tests."""
    if config.option.markexpr != "alone" or not collection_path.match("test_*.py"):
        return None
    return not _marks_alone(collection_path) or None


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.get_closest_marker("alone") and not _marks_alone(item.path):
        raise pytest.UsageError(f"{item.path} must say mark.alone itself, or nobody runs it")


@functools.cache
def _marks_alone(file: Path) -> bool:
    return "mark.alone" in file.read_text()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who waits for `transformers` comes last."""
    items.sort(key=_wants_reference)


def _wants_reference(item: pytest.Item) -> bool:
    return "reference" in getattr(item, "fixturenames", ())


def pytest_collection_finish(session: pytest.Session) -> None:
    """What `transformers` takes minutes for begins at once, beside the tests that come before."""
    # No later collection goes over what is there from here on until the end.
    gc.freeze()
    gc.enable()
    wanted = any(map(_wants_reference, session.items))
    if wanted and not session.config.option.collectonly:
        from tests.golden.reference import begin_reference

        # Who asks for the fixture is told what is wrong with the model.
        with contextlib.suppress(SlipstreamError):
            begin_reference(resolve("default"))


@pytest.fixture(scope="session")
def reference(model_dir: Path) -> Reference:
    """What `transformers` answers to the prompts of `tests.golden.reference`."""
    from tests.golden.reference import begin_reference

    return begin_reference(model_dir)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 4 layers, with a context of 1,024 tokens."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))
