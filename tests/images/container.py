"""Starts a command of an image as its container would: its user, its environment, nothing else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.images.builder import Image


def seal(image: Image) -> None:
    """Makes the tree read-only for whoever runs in it, but for the volume, as the chart mounts it.

    Root's files are nobody else's to write. Where there is no root to hand them to, folders are
    made read-only: files may have a second name elsewhere, and nobody writes to them in place.
    """
    cache = Path(image.env["SLIPSTREAM_CACHE"])
    if os.getuid() == 0:
        return
    for folder, _, __ in os.walk(image.root):
        if not Path(folder).is_relative_to(cache):
            Path(folder).chmod(0o555)


def unseal(image: Image) -> None:
    """So that it can be removed."""
    for folder, _, __ in os.walk(image.root):
        Path(folder).chmod(0o755)


def start(
    image: Image,
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    **options: Any,
) -> subprocess.Popen[str]:
    """Whatever is not given is that of the image; as root it runs as the image's user."""
    user, group = map(int, image.user.split(":"))
    if os.getuid() == 0:
        options |= {"user": user, "group": group, "extra_groups": []}
    return subprocess.Popen(
        command,
        cwd=image.workdir,
        env={**image.env, **(env or {})},
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        **options,
    )


def run(image: Image, command: Sequence[str], seconds: float = 90.0) -> tuple[int, str]:
    """Exit code, and stdout with stderr."""
    process = start(image, command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()
        process.wait()
    return process.returncode, output
