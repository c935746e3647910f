"""Memory of a load's processes over time."""

from __future__ import annotations

from slipstream.bench.load.watch import Watch, early_and_late

MIB = 2**20


def test_memory_is_flat_or_not():
    """Growth after the first two fifths counts, growth before it is warming up."""
    warming = [min(100 + 10 * i, 300) * MIB for i in range(100)]
    leaking = [(300 + 2 * i) * MIB for i in range(100)]
    assert early_and_late(leaking[:89]) is None
    watch = Watch()
    watch.samples["verifier", 1] = warming
    watch.samples["drafter", 2] = leaking
    (line,) = watch.growth()
    assert line.startswith("drafter: memory grew from ")
