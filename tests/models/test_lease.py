from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slipstream.core.errors import DeadlineExceeded
from slipstream.models.lease import Lease


def lease(path: Path, **options: float) -> Lease:
    return Lease(path, **{"seconds": 60.0, "poll": 0.02, **options})


def test_one_at_a_time(tmp_path: Path) -> None:
    """Of five holders no two are in at once, and nothing is left behind."""
    inside, most = [0], [0]
    lock = threading.Lock()

    def work(_: int) -> None:
        with lease(tmp_path / "lease"):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            with lock:
                inside[0] -= 1

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(work, range(5)))
    assert most == [1]
    assert list(tmp_path.iterdir()) == []


def test_given_back_by_a_failure(tmp_path: Path) -> None:
    """The next has it at once."""
    with pytest.raises(ValueError, match="x"), lease(tmp_path / "lease"):
        raise ValueError("x")
    with lease(tmp_path / "lease", seconds=0.0):
        pass


def test_that_of_a_dead_holder_is_taken_over(tmp_path: Path) -> None:
    """A file that nobody renews counts no more, whatever this machine's clock says."""
    (tmp_path / "lease").write_text("somebody")
    told = []
    with Lease(
        tmp_path / "lease", seconds=60, stale=0.3, poll=0.02, waiting=lambda: told.append(1)
    ):
        assert (tmp_path / "lease").read_text() != "somebody"
    assert told == [1]
    assert list(tmp_path.iterdir()) == []


def test_a_living_holder_keeps_it(tmp_path: Path) -> None:
    """It is renewed while the block runs, however long; who waits has a deadline."""
    path = tmp_path / "lease"
    with lease(path, stale=0.4) as held:
        for _ in range(3):
            os.utime(path, (1.0, 1.0))
            deadline = time.monotonic() + 60
            while path.stat().st_mtime < 2.0:
                assert time.monotonic() < deadline, "nobody renews it"
                time.sleep(0.01)
        with pytest.raises(DeadlineExceeded, match="has held"):
            lease(path, seconds=0.2).__enter__()
        assert path.read_text() == held.owner


def test_a_fresh_lease_is_not_taken_for_the_stale_one(tmp_path: Path) -> None:
    """Who saw a dead holder's, and acts after somebody else took it over, puts it back."""
    path = tmp_path / "lease"
    path.write_text("dead")
    late = lease(path)
    seen = late._look(path)
    path.write_text("fresh")
    late._take_away(seen)
    assert path.read_text() == "fresh"
    path.write_text("dead")
    late._take_away(seen)
    assert list(tmp_path.iterdir()) == []


def test_who_lost_it_leaves_the_other_ones(tmp_path: Path) -> None:
    """A holder that stood still does not give back what is another's by now."""
    with lease(tmp_path / "lease"):
        (tmp_path / "lease").write_text("other")
    assert (tmp_path / "lease").read_text() == "other"


def test_made_though_the_answer_was_lost(tmp_path: Path) -> None:
    """A file with our own name in it is ours, as after a request that a network sent twice."""
    held = lease(tmp_path / "lease", seconds=0.0)
    (tmp_path / "lease").write_text(held.owner)
    with held:
        pass
    assert list(tmp_path.iterdir()) == []
