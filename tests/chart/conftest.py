"""What the chart's tests share: one render of each combination."""

from __future__ import annotations

import pytest

from tests.chart import combos
from tests.chart.helm import Render


@pytest.fixture(scope="session")
def renders() -> dict[str, Render]:
    """By what differs from the defaults."""
    return combos.renders()
