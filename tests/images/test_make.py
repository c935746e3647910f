from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.images.conftest import ROOT

_FAKE = """#!/bin/sh
[ "$1" != info ] || exit {info}
echo "{name} $@"
"""


def make(folder: Path, engines: dict[str, int], *options: str) -> subprocess.CompletedProcess[str]:
    """`make images` where only these engines are, with what their `info` ends with."""
    for name, info in {"docker": 1, "podman": 1, "buildah": 1, **engines}.items():
        (folder / name).write_text(_FAKE.format(name=name, info=info))
        (folder / name).chmod(0o755)
    return subprocess.run(
        ["make", "--no-print-directory", "images", *options],
        check=False,
        cwd=ROOT,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_each_service_by_the_engine_that_answers(tmp_path: Path) -> None:
    """The commands name file, tag and variant; the gateway's image is one for all variants."""
    ended = make(
        tmp_path, {"podman": 0}, "VARIANT=cu130", "REGISTRY=r.example/x/", "TAG=9", "BUILD_ARGS=--q"
    )
    assert ended.returncode == 0, ended.stderr
    commands = [line for line in ended.stdout.splitlines() if line.startswith("podman build ")]
    assert [line.split(" --build-arg")[0].removeprefix("podman build ") for line in commands] == [
        "--file gateway/Dockerfile --tag r.example/x/slipstream/gateway:9",
        "--file verifier_service/Dockerfile --tag r.example/x/slipstream/verifier:9-cuda",
        "--file drafter_service/Dockerfile --tag r.example/x/slipstream/drafter:9-cuda",
    ]
    for line in commands:
        assert " VARIANT=cu130 " in line
        assert line.endswith(" --q .")
        assert len(line.partition(" REVISION=")[2].split()[0]) == 40


def test_a_build_that_fails_is_the_last(tmp_path: Path) -> None:
    """make fails with it and does not go on."""
    (tmp_path / "docker").write_text('#!/bin/sh\n[ "$1" = info ]\n')
    (tmp_path / "docker").chmod(0o755)
    ended = subprocess.run(
        ["make", "images"],
        check=False,
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode != 0
    assert "slipstream/gateway:0.1.0" in ended.stdout
    assert "verifier" not in ended.stdout


def test_where_there_is_no_engine(tmp_path: Path) -> None:
    """One line says what is needed."""
    ended = make(tmp_path, {})
    assert ended.returncode != 0
    assert "docker (with its daemon running), podman or buildah" in ended.stderr
