"""The images, built once without a container engine."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.images.builder import Builder, Image
from tests.images.context import Context
from tests.images.dockerfile import read
from tests.images.seeding import Seeds

ROOT = Path(__file__).parents[2]
FILES = {
    "gateway": ROOT / "gateway/Dockerfile",
    "verifier": ROOT / "verifier_service/Dockerfile",
    "drafter": ROOT / "drafter_service/Dockerfile",
}
ARGUMENTS = {
    "PREFIX": "/opt/slipstream",
    "CACHE": "/cache",
    "STAGING": "/staging",
    "VERSION": "1.2.3",
    "REVISION": "abc",
}


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """A folder that every user may enter, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp(prefix="slipstream-images-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def build(scratch: Path) -> Callable[[str], Image]:
    """Builds a service's image; the one before is gone then.

    Packages of this environment are not fetched again, which takes minutes. With
    SLIPSTREAM_TEST_WHOLE_IMAGES=1 they are, torch from where pip is told to look.
    """
    arguments, watch = dict(ARGUMENTS), Seeds(ARGUMENTS["PREFIX"], ROOT / "constraints.txt")
    if os.environ.get("SLIPSTREAM_TEST_WHOLE_IMAGES"):
        builder = Builder(scratch, Context(ROOT), {**arguments, "TORCH_INDEX": ""})
    else:
        builder = Builder(scratch, Context(ROOT), arguments, watch)
    return lambda service: builder.build(read(FILES[service]))
