"""How options name a Kubernetes Service: `k8s:///SERVICE:PORT`, `k8s://NAMESPACE/SERVICE:PORT`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from slipstream.core.errors import ConfigurationError
from slipstream.discovery.settings import default_namespace

SCHEME = "k8s://"
# Names of DNS, as Kubernetes wants them; a port is a number or a name.
_NAME = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_FORM = re.compile(rf"k8s://({_NAME})?/({_NAME})(?::({_NAME}))?")


@dataclass(frozen=True, slots=True)
class Service:
    """A Service, and which of its pods' ports.

    Attributes:
        port: its number or its name; empty where none is asked for.
    """

    namespace: str
    name: str
    port: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def dns(self) -> tuple[str, int] | None:
        """Name and port in DNS; None for a named port, as an address record has none."""
        if not self.port.isdecimal():
            return None
        return f"{self.name}.{self.namespace}.svc", int(self.port)

    @classmethod
    def parse(cls, entry: str, option: str, *, port: bool = True) -> Service:
        """From an entry that begins with `SCHEME`.

        Args:
            option: what errors call it.
            port: whether one must be named; else none may.

        Raises:
            ConfigurationError: it has another form.
        """
        match = _FORM.fullmatch(entry)
        number = match[3] or "" if match else ""
        too_high = number.isdecimal() and not 0 < int(number) < 65536
        if match is None or bool(number) != port or too_high:
            tail = ":PORT" if port else ""
            raise ConfigurationError(
                f"{option} takes k8s:///SERVICE{tail} or k8s://NAMESPACE/SERVICE{tail},"
                f"{' where PORT is a number or a name,' if port else ''} got {entry!r}"
            )
        return cls(match[1] or default_namespace(), match[2], number)
