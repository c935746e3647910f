"""Starts a command of an image as its container would: its user, its environment, nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.images.builder import Image

# Becomes another user behind exec: subprocess does so between fork and exec, and a fork of a
# process that has gRPC's threads runs gRPC's handlers, which can crash the child.
_AS = """
import os, sys, warnings  # the last for execvp: the library may be no other user's to read
user, group, *command = sys.argv[1:]
os.setgroups([])
os.setgid(int(group))
os.setuid(int(user))
os.execvp(command[0], command)
"""


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
    become = [sys.executable, "-I", "-S", "-c", _AS, *image.user.split(":")]
    return subprocess.Popen(
        [*become, *command] if os.getuid() == 0 else command,
        cwd=image.workdir,
        env={**image.env, **(env or {})},
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        **options,
    )


def run(image: Image, command: Sequence[str], seconds: float = 300.0) -> tuple[int, str]:
    """Exit code, and stdout with stderr."""
    process = start(image, command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()
        process.wait()
    return process.returncode, output
