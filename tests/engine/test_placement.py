"""Devices by name: what may be asked for, and what is there."""

from __future__ import annotations

import os

import pytest
import torch

from slipstream.core.errors import ConfigurationError
from slipstream.engine.placement import compute_on, resolve_device, thread_counts


@pytest.mark.parametrize("device", ["", "nonsense", "cpu:3", "mps", "cuda:", "cuda:-1", "CPU"])
def test_no_devices(device) -> None:
    """What is no device of ours is refused by name."""
    with pytest.raises(ConfigurationError, match="--device is auto, cpu, cuda or cuda:N"):
        resolve_device(device)


@pytest.mark.parametrize("there", [0, 2])
def test_devices_that_are_there(monkeypatch, there) -> None:
    """`auto` takes a GPU where there is one; a GPU beyond the last is refused."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == ("cuda" if there else "cpu")
    for device in ("cuda", "cuda:1", "cuda:2"):
        if there and device != "cuda:2":
            assert resolve_device(device) == device
        else:
            with pytest.raises(ConfigurationError, match=f"{device}.* CUDA device"):
                resolve_device(device)


@pytest.mark.parametrize(
    ("placed", "cores", "threads"),
    [(1, 1, 1), (1, 2, 1), (2, 2, 2), (2, 1, 1), (3, 2, 2), (4, 3, 2), (4, 8, 4), (8, 6, 4)],
)
def test_moving_keeps_to_the_numbers_of_threads_that_were_probed(
    monkeypatch, placed, cores, threads
) -> None:
    """However many cores a process is moved to, it computes with as many threads as it was placed
    with, or a half of them and so on: results have the same bits with those only."""
    chosen: list[int] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda task, wanted: None, raising=False)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    compute_on(tuple(range(cores)), placed)
    assert chosen == [threads]
    assert threads in thread_counts(placed)
