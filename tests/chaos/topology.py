"""Names of all processes of a stack, and of the links between them on which faults can happen."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

STORE = "store"


@dataclass(frozen=True, slots=True)
class Topology:
    """How many of each there are.

    Attributes:
        redis: whether the store is a process of its own; else it is a file.
    """

    gateways: int = 2
    verifiers: int = 2
    drafters: int = 2
    redis: bool = True

    def of(self, role: str) -> list[str]:
        """Names of the processes of a role: gateway, verifier, drafter or store."""
        if role == STORE:
            return [STORE] if self.redis else []
        counts = {"gateway": self.gateways, "verifier": self.verifiers, "drafter": self.drafters}
        return [f"{role}-{number}" for number in range(counts[role])]

    @property
    def processes(self) -> list[str]:
        return [
            name for role in (STORE, "drafter", "verifier", "gateway") for name in self.of(role)
        ]

    @property
    def links(self) -> list[str]:
        """Links by their ends, who connects first. One for each pair, but for keys and values: a
        verifier advertises one address to all that pull from it."""
        gateways, verifiers = self.of("gateway"), self.of("verifier")
        return [
            *(link("client", each) for each in gateways),
            *(link("grpc-client", each) for each in gateways),
            *(link(*pair) for pair in product(gateways, verifiers)),
            *(link(*pair) for pair in product(verifiers, self.of("drafter"))),
            *(link("kv", each) for each in verifiers),
            *(link(*pair) for pair in product(gateways, self.of(STORE))),
        ]


def link(one: str, other: str) -> str:
    return f"{one}>{other}"


def role_of(target: str) -> str:
    """The role of a process, or "link"."""
    return "link" if ">" in target else target.partition("-")[0]


def ends(name: str) -> tuple[str, str]:
    """Of a link."""
    one, _, other = name.partition(">")
    return one, other


def is_sealed(name: str) -> bool:
    """Whether what this link carries has checksums: corrupted bytes are noticed there. Neither
    HTTP nor Redis' protocol has any; TLS would bring them."""
    one, other = ends(name)
    return one not in ("client", "grpc-client") and other != STORE
