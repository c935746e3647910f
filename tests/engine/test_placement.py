"""Devices by name: what may be asked for, and what is there."""

from __future__ import annotations

import pytest
import torch

from slipstream.core.errors import ConfigurationError
from slipstream.engine.placement import resolve_device


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
