"""Carries out the steps of a Dockerfile as processes of this machine, without a container.

A stage's file system is a folder, always of the same path while the stage is built, so that paths
given as build arguments (PREFIX, CACHE, ...) are the same for every command. What the base image
brings is a copy of this interpreter in it, and the machine's own shell and libraries. RUN gets the
very command line. What COPY does not bring from another stage is not there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import Distribution, distribution
from pathlib import Path

from tests.images.context import Context
from tests.images.dockerfile import Dockerfile, Stage, Step, expand

_RUN_SECONDS = 600.0
# How pip is told here where packages come from; a container's pip would be told in its own way.
_PASSED = ("PIP_", "SSL_", "REQUESTS_", "HTTP_", "HTTPS_", "NO_PROXY", "http", "no_proxy")
# Of the standard library, what is not its own or what nobody runs.
_OTHERS = ("site-packages", "dist-packages", "test", "tests", "idlelib", "config-*")
_HOST_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass
class Image:
    """What a stage has come to: its folder, and how its container would be started."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = ""
    entrypoint: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    ports: list[int] = field(default_factory=list)
    stop_signal: str = "SIGTERM"


class Builder:
    """Builds what is asked of it, one stage after the other, each once.

    Args:
        scratch: an empty folder, which every user may enter.
        context: what COPY copies from.
        arguments: --build-arg; `/...` stands for the root folder of the stage.
        watch: called before the first step of a stage with "", behind each RUN with what it wrote,
            and in the end with None.
    """

    def __init__(
        self,
        scratch: Path,
        context: Context,
        arguments: Mapping[str, str],
        watch: Callable[[Stage, Image, str | None], None] = lambda _, __, ___: None,
    ) -> None:
        self._root = scratch / "root"
        self._scratch, self._context, self._watch = scratch, context, watch
        self._given = {
            name: f"{self._root}{value}" if value.startswith("/") else value
            for name, value in arguments.items()
        }
        # Stages by all that went into them, as a builder's cache has them.
        self._cache: dict[str, Image] = {}
        self._base = scratch / "base"
        _make_base(self._base)

    def build(self, file: Dockerfile) -> Image:
        """Builds every stage; the last is returned and is where it was built, until the next
        call."""
        built: dict[str, Image] = {}
        keys: dict[str, str] = {}
        for stage in file.stages:
            key = keys[stage.name] = self._key(stage, file, keys)
            if key not in self._cache:
                self._clear()
                self._cache[key] = self._build(stage, file, built)
            built[stage.name] = self._cache[key]
        return built[stage.name]

    def _key(self, stage: Stage, file: Dockerfile, keys: Mapping[str, str]) -> str:
        before = keys.get(stage.image, stage.image)
        copied = [keys[step.options["from"]] for step in stage.steps if "from" in step.options]
        values = {
            name: self._given.get(name, file.arguments.get(name, ""))
            for name in (step.value for step in stage.steps if step.word == "ARG")
        }
        return sha256(f"{before} {copied} {values} {stage.steps}".encode()).hexdigest()

    def _build(self, stage: Stage, file: Dockerfile, built: Mapping[str, Image]) -> Image:
        image = self._start(stage, built)
        self._watch(stage, image, "")
        scope: dict[str, str] = {}
        for step in stage.steps:
            output = self._do(step, image, scope, file.arguments, built)
            if step.word == "RUN":
                self._watch(stage, image, output)
        self._watch(stage, image, None)
        return image

    def _clear(self) -> None:
        """Puts the stage that was built last out of the way."""
        for number, image in enumerate(self._cache.values()):
            if image.root == self._root:
                image.root = self._root.rename(self._scratch / f"stage-{number}")

    def _start(self, stage: Stage, built: Mapping[str, Image]) -> Image:
        before = built.get(stage.image)
        if before is None:
            assert stage.image.startswith("python:"), f"no image {stage.image}"
            system = self._root / "usr/local"
            link_tree(self._base, system)
            # In a container the loader knows this folder.
            env = {"PATH": f"{system / 'bin'}:{_HOST_PATH}", "LD_LIBRARY_PATH": f"{system / 'lib'}"}
            return Image(self._root, env)
        link_tree(before.root, self._root)
        return Image(self._root, dict(before.env), before.workdir, before.user)

    def _do(
        self,
        step: Step,
        image: Image,
        scope: dict[str, str],
        defaults: Mapping[str, str],
        built: Mapping[str, Image],
    ) -> str:
        """Returns what the step wrote."""
        variables = {**scope, **image.env}
        match step.word:
            case "ARG":
                name, has, default = step.value.partition("=")
                known = self._given.get(name, default.strip('"') if has else defaults.get(name, ""))
                scope[name] = known
            case "ENV":
                image.env |= {k: expand(v, variables) for k, v in step.pairs.items()}
            case "LABEL":
                image.labels |= {k: expand(v, variables) for k, v in step.pairs.items()}
            case "WORKDIR":
                image.workdir = str(self._path(expand(step.value, variables), image))
                Path(image.workdir).mkdir(parents=True, exist_ok=True)
            case "COPY":
                self._copy(step, image, variables, built)
            case "RUN":
                assert not image.user, "RUN behind USER is not carried out here"
                return self._run(step, image, variables)
            case "USER":
                image.user = step.value
            case "EXPOSE":
                image.ports = [int(port) for port in step.value.split()]
            case "STOPSIGNAL":
                image.stop_signal = step.value
            case "ENTRYPOINT":
                image.entrypoint = step.command
            case _:
                raise AssertionError(f"{step.word} is not carried out here")
        return ""

    def _path(self, text: str, image: Image) -> Path:
        """Where a path of the container lies."""
        if Path(text).is_relative_to(self._root):
            return Path(text)
        return self._root / text.lstrip("/") if text.startswith("/") else Path(image.workdir) / text

    def _copy(
        self,
        step: Step,
        image: Image,
        variables: Mapping[str, str],
        built: Mapping[str, Image],
    ) -> None:
        assert set(step.options) <= {"from", "chown"}, f"COPY with {step.options}"
        *sources, text = expand(step.value, variables).split()
        target = self._path(text, image)
        for source in sources:
            if "from" not in step.options:
                self._context.copy(source, target, text.endswith("/"))
                continue
            other = built[step.options["from"]]
            found = other.root / self._path(source, image).relative_to(self._root)
            assert found.is_dir(), f"COPY --from={step.options['from']} {source}: not there"
            link_tree(found, target)
        if "chown" in step.options and os.getuid() == 0:
            user, group = map(int, step.options["chown"].split(":"))
            for path in [target, *target.rglob("*")]:
                os.chown(path, user, group, follow_symlinks=False)

    def _run(self, step: Step, image: Image, variables: Mapping[str, str]) -> str:
        assert set(step.options) <= {"mount"}, f"RUN with {step.options}"
        passed = {k: v for k, v in os.environ.items() if k.startswith(_PASSED) or k == "HOME"}
        ended = subprocess.run(
            ["/bin/sh", "-c", step.value],
            check=False,
            cwd=image.workdir if image.workdir != "/" else self._root,
            env={**passed, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_RUN_SECONDS,
        )
        assert ended.returncode == 0, f"RUN {step.value}\n{ended.stdout}"
        return ended.stdout


def _make_base(folder: Path) -> None:
    """What the image python:... brings: this interpreter, with pip and setuptools.

    A copy, as another user may not be let into the folder where it is installed.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library, site = folder / "lib" / version, folder / "lib" / version / "site-packages"
    shutil.copytree(
        sysconfig.get_path("stdlib"),
        library,
        symlinks=True,
        ignore=shutil.ignore_patterns(*_OTHERS),
    )
    (folder / "bin").mkdir()
    shutil.copy(Path(sys.executable).resolve(), folder / "bin" / version)
    # An interpreter that was built as a shared library brings that along.
    for shared in Path(sys.base_prefix, "lib").glob(f"lib{version}*.so*"):
        shutil.copy(shared, folder / "lib")
    for name in ("python", "python3"):
        (folder / "bin" / name).symlink_to(version)
    for name in ("pip", "setuptools"):
        link_distribution(distribution(name), site, lambda _: True)


def link_distribution(found: Distribution, site: Path, wanted: Callable[[str], bool]) -> None:
    """Adds those files of a package whose first folder is wanted; none outside of site-packages."""
    for file in found.files or []:
        source = Path(str(file.locate()))
        if file.parts[0] != ".." and wanted(file.parts[0]) and source.is_file():
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            link(str(source), str(target))


def link_tree(source: Path, target: Path) -> None:
    """Adds a copy of a folder's content, whose files are the same as long as nobody writes."""
    shutil.copytree(source, target, symlinks=True, copy_function=link, dirs_exist_ok=True)
    if os.getuid() == 0:
        for folder, _, __ in os.walk(source):
            owner = Path(folder).stat()
            os.chown(target / Path(folder).relative_to(source), owner.st_uid, owner.st_gid)


def link(source: str, target: str) -> str:
    """A second name of the file, or where that cannot be a copy."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
    return target
