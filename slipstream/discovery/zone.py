"""Where this process runs: as it was told, or as the EndpointSlices of its own Service say."""

from __future__ import annotations

import logging

from slipstream.discovery.service import SCHEME, Service
from slipstream.discovery.settings import pod_name
from slipstream.discovery.slices import zone_of
from slipstream.discovery.watch import Patience, ServiceWatch

log = logging.getLogger(__name__)


class Zone:
    """A zone by its name, or, of `k8s:///SERVICE`, that of this pod among those of the Service.

    Args:
        spec: as `--zone` has it; empty: none.

    Attributes:
        name: empty until it is known. From then on it stays, as a pod never moves.

    Raises:
        ConfigurationError: it begins as a Service and is none.
    """

    def __init__(self, spec: str = "", patience: Patience | None = None) -> None:
        self.name = spec
        self._watch: ServiceWatch | None = None
        if spec.startswith(SCHEME):
            self.name = ""
            service = Service.parse(spec, "--zone", port=False)
            self._watch = ServiceWatch(service, self._look, patience)
        self._pod = pod_name()

    def start(self) -> None:
        """Begins to look, where it is not known. Needs the event loop."""
        if self._watch is not None:
            self._watch.start()

    async def aclose(self) -> None:
        """Ends the search."""
        if self._watch is not None:
            await self._watch.close()

    def _look(self) -> None:
        assert self._watch is not None
        if not self.name and (found := zone_of(self._watch.slices, self._pod)):
            self.name = found
            log.info("pod %s runs in zone %s", self._pod, found)
            self._watch.stop()
