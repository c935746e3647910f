"""What stands between a rendered container and a process of this machine: all of it, in one place.

- A pod's IP is a loopback address of its own. An ordinal of a StatefulSet keeps its address, as it
  keeps its name.
- To listen on 0.0.0.0 is to listen on that address, as all pods share the ports of one machine.
- A mount path is the folder of its volume; `/tmp`, where it is mounted, is `TMPDIR`, too.
- The DNS name of a Service or a pod, `{}` for an ordinal included, is the address of a pod behind
  it, with that pod's port.
- `python`, `slipstream`, `redis-server` and `redis-cli` of the images are those of this virtual
  environment; where redis-cli is not told a host, it is the pod's own, there as here.
- The compiled kernels in a model cache are those of the user's: to compile them takes a minute.
- A service account's token is a `KUBECONFIG`, for pods that get a token.

Users, security contexts, resources, images and NetworkPolicies have no effect here; `tests/chart`
is about them. A check stands in for the read-only root filesystem: a path that no volume covers is
refused before the process starts.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slipstream.bench.redis_server import redis_executable
from tests.rendered.manifests import Failed
from tests.rendered.volumes import Mounts

ROOT = Path(__file__).parents[2]
_PATH = re.compile(r"(?:^|=)(/[^\s,:=]+)")
# A path of a container: at the beginning of a word, and at the end of its last step.
_BEFORE, _AFTER = r"(?<![\w./-])", r"(?=[/\s,:;\"']|$)"
# It names a Service to the API server, not to the DNS.
_DISCOVERY = r"k8s://[^\s,\"']*"


@dataclass
class Names:
    """DNS names of the release, as patterns, and the addresses that stand for them; the first entry
    that matches counts."""

    entries: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, namespace: str, address: str, *, port: int = 0, to: int = 0) -> None:
        """`name` alone, or with the namespace behind it and so on; with `port`: only before this
        port, which becomes `to`."""
        suffix = rf"(?:\.{re.escape(namespace)}(?:\.svc(?:\.cluster\.local)?)?)?\.?"
        behind = rf":{port}(?!\d)" if port else r"(?=:\d)"
        pattern = rf"(?<![\w.-]){re.escape(name)}{suffix}{behind}"
        self.entries.append((pattern, f"{address}:{to}" if port else address))


@dataclass(frozen=True)
class Translation:
    """For one container.

    Attributes:
        where: pod and container, in messages.
    """

    where: str
    ip: str
    mounts: Mounts
    names: Names

    def text(self, text: str) -> str:
        """One pass over an argument, a value or a configuration: nothing is replaced twice."""
        groups = [
            (_DISCOVERY, None),
            *self.names.entries,
            (r"(?<![\d.])0\.0\.0\.0(?![\d.])", self.ip),
        ]
        groups += [
            (f"{_BEFORE}{re.escape(mount)}{_AFTER}", str(folder))
            for mount, folder in self.mounts.folders.items()
        ]
        joined = "|".join(f"(?P<g{place}>{pattern})" for place, (pattern, _) in enumerate(groups))

        def one(match: re.Match[str]) -> str:
            place = int((match.lastgroup or "g0").removeprefix("g"))
            replacement = groups[place][1]
            return match[0] if replacement is None else replacement

        return re.sub(joined, one, text)

    def command(self, words: Sequence[str]) -> list[str]:
        """Raises Failed: no such program in our images, or a path that no volume covers."""
        for word in words[1:]:
            self._check_paths(word)
        return [*self._program(words[0]), *map(self.text, words[1:])]

    def environment(self, values: Mapping[str, str]) -> dict[str, str]:
        """The container's variables and nothing of ours but what finds the programs.

        Raises:
            Failed: a path that no volume covers.
        """
        for value in values.values():
            self._check_paths(value)
        binaries = str(Path(sys.executable).parent)
        mine = {"PATH": f"{binaries}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}
        temporary = self.mounts.under("/tmp")
        if temporary is not None:
            mine["TMPDIR"] = str(temporary)
        # Nobody can make a folder there, as in an image whose root is read-only.
        mine["HOME"] = "/dev/null/home"
        return mine | {name: self.text(value) for name, value in values.items()}

    def files(self) -> None:
        """Mounted configuration says addresses and paths, too."""
        for folder in self.mounts.folders.values():
            for path in folder.rglob("*.conf"):
                path.write_text(self.text(path.read_text()))

    def _check_paths(self, word: str) -> None:
        for path in _PATH.findall(word):
            if self.mounts.under(path) is None:
                message = f"{path} (in {word!r}) is under none of {list(self.mounts.folders)}"
                raise Failed(self.where, "ReadOnlyFileSystem", message)

    def _program(self, name: str) -> list[str]:
        if name in ("python", "python3"):
            return [sys.executable]
        if name == "slipstream":
            return [str(Path(sys.executable).with_name("slipstream"))]
        if name == "redis-server":
            return [str(redis_executable())]
        if name == "redis-cli":
            # Its default host, which a later -h overrides, is 127.0.0.1.
            return [str(redis_executable().with_name(name)), "-h", self.ip]
        raise Failed(
            self.where, "StartError", f'exec: "{name}": executable file not found in $PATH'
        )
