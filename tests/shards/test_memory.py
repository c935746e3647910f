"""What a process holds falls with the number of shards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden.families import build_config

# A process of its own, because memory that was ever used is not all given back. It forks for each
# part, after the imports: what a child adds is the part's own.
_PROGRAM = """
import json, os, sys
from pathlib import Path
from slipstream.engine.checkpoint import load_model
from slipstream.engine.memory import resident_bytes
from slipstream.engine.runner import ModelRunner
from slipstream.engine.batch import Segment

def part(index, count):
    out, into = os.pipe()
    if os.fork() == 0:
        before = resident_bytes()
        loaded = load_model(Path(sys.argv[1]), dtype="float32", shard=(index, count))
        runner = ModelRunner(loaded, 64 << 20)
        for keys in runner.pool.keys + runner.pool.values:
            keys.zero_()
        added = resident_bytes() - before
        os.write(into, json.dumps([added, loaded.weight_bytes, runner.pool.total_bytes]).encode())
        os._exit(0)
    os.wait()
    return json.loads(os.read(out, 1000))

print(json.dumps([[part(i, n) for i in range(n)] for n in (1, 2, 4)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory through /proc")
def test_memory_of_a_shard_falls_with_their_number(tmp_path: Path) -> None:
    """Weights, pool and the memory of the process: of two shards 0.6 of the whole at most, of four
    0.35; together they hold what the whole does."""
    shape = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12}
    build_config("LlamaConfig", shape, tmp_path)
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        timeout=200,
    )
    (whole,), *rows = json.loads(ended.stdout)
    assert whole[0] > 0.9 * (whole[1] + whole[2])
    for shards, most in zip(rows, (0.6, 0.35), strict=True):
        for kind in range(3):
            assert max(shard[kind] for shard in shards) < most * whole[kind]
        assert sum(shard[1] for shard in shards) == whole[1]
        assert sum(shard[2] for shard in shards) == whole[2]
