"""What options of `slipstream up` must be, beyond what each says by itself."""

from __future__ import annotations

import ipaddress
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from slipstream.cli.choices import Placement
from slipstream.cli.services import usable_cores
from slipstream.core.errors import ConfigurationError
from slipstream.core.layer_plan import LayerPlan
from slipstream.wire.address import join, split

# Most drafts ahead of the last commit.
MOST_AHEAD = 64
_CHECK_SECONDS = 30.0


def words(option: str, given: str | None) -> tuple[str, ...]:
    """Options of a service as a shell would take them apart.

    Raises:
        ConfigurationError: a quote is open.
    """
    try:
        return tuple(shlex.split(given or ""))
    except ValueError as failure:
        raise ConfigurationError(f"{option} {given!r}: {str(failure).lower()}") from failure


def unused_without_drafter(given: Mapping[str, object | None]) -> None:
    for option, value in given.items():
        if value is not None:
            raise ConfigurationError(
                f"{option} is for the drafter, and --drafter is off: leave one of them out"
            )


def metrics_addresses(first: str | None, processes: int) -> dict[str, str]:
    """Addresses by the words that name them in an error: one for each process, in a row.

    Raises:
        ConfigurationError: there are not so many ports behind the first.
    """
    if first is None:
        return {}
    host, port = split(first, "--metrics")
    if port and port + processes > 2**16:
        raise ConfigurationError(f"--metrics {first}: {processes} ports in a row are needed")
    ports = [port and port + index for index in range(processes)]
    names = ("--metrics", *(f"--metrics ({index})" for index in range(1, processes)))
    return {name: join(host, port) for name, port in zip(names, ports, strict=True)}


def inner_on_loopback(addresses: Mapping[str, str]) -> None:
    """Verifier and drafter know no keys: whoever reaches them can use them.

    Raises:
        ConfigurationError: another machine could.
    """
    for option in ("--verifier-listen", "--drafter-listen", "--metrics"):
        if option in addresses and not _is_loopback(split(addresses[option], option)[0]):
            raise ConfigurationError(
                f"{option} {addresses[option]} is open to other machines, and what listens there"
                " asks for no keys: use 127.0.0.1; on a cluster start the services by themselves,"
                " behind network policies"
            )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_keys(file: Path) -> None:
    """Asks the gateway's own check, so that the error comes once and before anything starts.

    Raises:
        ConfigurationError: what is wrong with the file.
    """
    command = [sys.executable, "-m", "gateway.keys", "check", str(file)]
    try:
        ended = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_CHECK_SECONDS
        )
    except subprocess.TimeoutExpired as failure:
        raise ConfigurationError(
            f"--api-keys: {file} could not be read in {_CHECK_SECONDS:g} s"
        ) from failure
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        raise ConfigurationError(f"--api-keys: {lines[-1].removeprefix('error: ')}")


def cores(option: str, given: str | None, default: tuple[int, ...]) -> tuple[int, ...]:
    if given is None:
        return default
    try:
        cores = tuple(int(core) for core in given.split(","))
    except ValueError:
        raise ConfigurationError(f"{option} must be core numbers as 0,1, got {given!r}") from None
    missing = sorted(set(cores) - set(usable_cores()))
    if missing:
        raise ConfigurationError(f"{option}: there is no core {missing[0]} for this process")
    return cores


def check_lengths(draft_length: str | None, window: int | None, placement: Placement) -> None:
    """Where no window is given the verifier knows its own.

    Raises:
        ConfigurationError: no number of drafts, more than there can be, or not in that placement.
    """
    if draft_length in (None, "auto"):
        return
    most = MOST_AHEAD if window is None else window
    if re.fullmatch("[0-9]{1,4}", draft_length) is None or not 1 <= int(draft_length) <= most:
        limit = f"{most}" if window is None else f"{most}, which is --window"
        raise ConfigurationError(
            f"--draft-length must be auto or a number from 1 to {limit}, got {draft_length!r}"
        )
    if placement is Placement.shared:
        raise ConfigurationError(
            "--draft-length N takes what is there without waiting, and --placement shared lets the"
            " verifier wait: leave one of the two at auto"
        )


def check_shards(layer_plan: str | None, placement: Placement) -> None:
    """Raises ConfigurationError where a drafter in shards cannot do what was asked for."""
    if layer_plan == "adaptive":
        raise ConfigurationError(
            "--layer-plan adaptive needs a drafter in one piece: leave out --drafter-shards, or "
            "take a file or auto"
        )
    if placement is Placement.shared:
        raise ConfigurationError(
            "--placement shared needs a drafter in one piece, as shards are processes with cores of"
            " their own: leave out --drafter-shards, or take separate or auto"
        )


def given_plan(layer_plan: str | None) -> LayerPlan | None:
    """Raises ConfigurationError where the file is missing or is no layer plan."""
    if layer_plan in (None, "auto", "adaptive"):
        return None
    return LayerPlan.load(Path(layer_plan))
