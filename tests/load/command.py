"""The command line of Locust that runs this folder's locustfile."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
# After the end of the load, for answers that are under way.
STOP_SECONDS = 180


def locust_command(
    users: Sequence[str], count: int, seconds: float, book: Path, out: Path, more: Sequence[str]
) -> list[str]:
    """`count` users of these classes for so long, headless; `out` is the prefix of its files."""
    words = [sys.executable, "-m", "locust", "-f", str(ROOT / "tests/load/locustfile.py"), *users]
    words += ["--headless", "-u", str(count), "-r", str(count), "-t", f"{seconds:.0f}s"]
    words += ["--stop-timeout", str(STOP_SECONDS), "--only-summary"]
    words += ["--csv", str(out), "--html", f"{out}.html", "--figures", str(out)]
    return [*words, "--book", str(book), *more]
