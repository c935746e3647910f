"""Real processes: they die with their parent, and are otherwise as if they were started plainly."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slipstream.core.child_processes import dying_with_us

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the kernel's help exists on Linux only"
)
ROOT = Path(__file__).parents[2]
SECONDS = 60.0
# Starts a child, with our stdin and stdout, that becomes the command when it is told to.
PARENT = """
import subprocess, sys
from slipstream.core.child_processes import dying_with_us
wait = ["sh", "-c", 'echo waits; read go; exec "$@"', "sh"]
subprocess.run([*wait, *dying_with_us(sys.argv[1:])])
"""
# What a process can see of how it was started; ends with 7.
LOOK = "env; pwd; umask; grep '^Sig[BIC]' /proc/self/status; ls /proc/self/fd; exit 7"


@pytest.fixture
def parent():
    """A process that starts `dying` as `PARENT` says; the child waits."""
    dying = ["sh", "-c", "echo runs; exec sleep 600"]
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, *dying],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == b"waits\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def tool(tmp_path):
    """The folder of a file that somebody may run, and of some that nobody can."""
    folder = tmp_path / "tools"
    (folder / "folder").mkdir(parents=True)
    for name, mode in (("tool", 0o755), ("text", 0o644)):
        (folder / name).write_text("#!/bin/sh\necho at $0\n")
        (folder / name).chmod(mode)
    (folder / "foreign").write_bytes(b"\x7fELF of another machine")
    (folder / "foreign").chmod(0o755)
    return folder


def test_a_killed_parent_takes_it_along(parent):
    """What the command has become with another exec is gone, too: nobody holds its stdout."""
    parent.stdin.write(b"go\n")
    parent.stdin.flush()
    assert parent.stdout.readline() == b"runs\n"
    parent.kill()
    assert parent.communicate(timeout=SECONDS)[0] == b""
    assert parent.returncode == -signal.SIGKILL


def test_a_parent_that_is_dead_already(parent):
    """Then the command never runs: its first word is not said."""
    parent.kill()
    parent.wait(SECONDS)
    assert parent.communicate(b"go\n", timeout=SECONDS)[0] == b""


def test_it_sees_what_it_would_see_without(tmp_path):
    """Environment, folder, umask, signals, open files and its exit code are the same."""
    read, write = os.pipe()
    environment = {"PATH": os.environ["PATH"], "WORDS": "größer = 1\n2", "EMPTY": ""}
    plain, behind = (
        subprocess.run(
            command,
            check=False,
            cwd=tmp_path,
            env=environment,
            pass_fds=[write],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
        )
        for command in (["sh", "-c", LOOK], dying_with_us(["sh", "-c", LOOK], environment))
    )
    os.close(read)
    os.close(write)
    assert b"WORDS" in plain.stdout
    assert str(write).encode() in plain.stdout.split()
    assert behind.stdout == plain.stdout
    assert (behind.returncode, behind.stderr) == (plain.returncode, plain.stderr) == (7, b"")


def test_it_is_the_process_that_was_started():
    """It has that pid, leads the session, and is ended by the signal that was sent there."""
    process = subprocess.Popen(
        dying_with_us(["sh", "-c", "cut -d ' ' -f 1,5,6 /proc/$$/stat; exec sleep 600"]),
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout.readline().split() == [b"%d" % process.pid] * 3
    process.terminate()
    process.communicate(timeout=SECONDS)
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    "program",
    ["nothing", "text", "folder", "/no/such", "./nothing", "./text", "./folder", "./tool/below"],
)
def test_a_program_that_does_not_run(tool, program):
    """The error is the one of starting it plainly: by the child's PATH, from the child's folder."""
    environment = {"PATH": f"{tool.name}:/usr/bin"}
    folder = tool if program.startswith(".") else tool.parent
    with pytest.raises(OSError) as plain:  # noqa: PT011 (compared below)
        subprocess.run([program], check=False, env=environment, cwd=folder)
    with pytest.raises(type(plain.value)) as ours:
        dying_with_us([program], environment, folder)
    assert str(ours.value) == str(plain.value)


def test_a_program_is_found_where_it_would_be(tool):
    """By the child's PATH, whose folders may be relative to the child's."""
    environment = {"PATH": f"/no/such:{tool.name}:/usr/bin:/bin"}
    ended = subprocess.run(
        dying_with_us(["tool"], environment, tool.parent),
        env=environment,
        cwd=tool.parent,
        capture_output=True,
        timeout=SECONDS,
        check=True,
    )
    assert ended.stdout == b"at tools/tool\n"


def test_a_file_that_the_kernel_refuses(tool):
    """Only the process itself finds that out; its last words name the file and say why."""
    command = [str(tool / "foreign")]
    ended = subprocess.run(
        dying_with_us(command), check=False, capture_output=True, timeout=SECONDS
    )
    assert ended.returncode == 1
    assert f"cannot run {command[0]}: [Errno 8]" in ended.stderr.decode()
    assert b"Traceback" not in ended.stderr


def test_elsewhere_than_on_linux(monkeypatch):
    """The command is run as it is."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert dying_with_us(["/no/such/program", "-x"]) == ["/no/such/program", "-x"]
