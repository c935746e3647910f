"""EndpointSlices by the official client: the only module of the services that imports it.

It is `kubernetes.aio`, in the event loop of the service: `kubernetes.informer` runs a thread for
each watch, whose first list has no deadline and which `stop` waits for while it reads from a server
that says nothing. Of the client, its configuration, authentication and calls are used, and lines
are read here: `kubernetes.aio.watch.Watch` connects again by itself without a pause, hides when a
watch has begun, and reads the system's certificates, which takes tens of milliseconds, for each.

Importing this takes half a second and some 46 MB: import it in another thread, where it is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from typing import Any

import aiohttp
import yaml
from kubernetes.aio import client, config

# The package loads it when it is first asked for, which would be in the event loop.
from kubernetes.aio.client import DiscoveryV1Api

from slipstream.core.errors import ClusterUnavailable
from slipstream.discovery.failure import refused
from slipstream.discovery.service import Service
from slipstream.discovery.settings import kubeconfig
from slipstream.discovery.slices import Slice

# How long the server may be late with the end of a watch.
_LATE_SECONDS = 10.0
_SERVICE_LABEL = "kubernetes.io/service-name"


class Slices:
    """The slices of one Service. Made by `connected`."""

    def __init__(self, link: client.ApiClient, service: Service) -> None:
        self._api = DiscoveryV1Api(link)
        self._service = service

    async def list(self, seconds: float) -> tuple[dict[str, Slice], str]:
        """All of them by name, and the version that a watch begins at.

        Raises:
            ClusterUnavailable: they could not be had in so many seconds.
        """
        with _told(self._api.api_client.configuration.host):
            response = await self._call("list", _request_timeout=seconds)
            body = await response.json(content_type=None)
            found = {each["metadata"]["name"]: each for each in body.get("items") or ()}
            return found, str(body["metadata"]["resourceVersion"])

    @contextlib.asynccontextmanager
    async def watch(
        self, version: str, seconds: float
    ) -> AsyncGenerator[AsyncIterator[tuple[str, Slice]], None]:
        """Events (type, object) since `version`, for so many seconds; begun when it is entered.

        Raises:
            ClusterUnavailable: it cannot be had, or broke; status 410: `version` is too old.
        """
        with _told(self._api.api_client.configuration.host):
            response = await self._call(
                "watch",
                watch=True,
                allow_watch_bookmarks=True,
                resource_version=version,
                timeout_seconds=max(1, round(seconds)),
                _request_timeout=seconds + _LATE_SECONDS,
            )
            try:
                yield self._events(response)
            finally:
                response.close()

    async def _events(self, response: Any) -> AsyncIterator[tuple[str, Slice]]:
        async for line in response.content:
            event = json.loads(line)
            kind, found = event["type"], event["object"]
            if kind == "ERROR":
                code, message = int(found.get("code") or 0), str(found.get("message"))
                raise refused(code, message, "watch", self._service)
            yield kind, found

    async def _call(self, verb: str, **fields: Any) -> Any:
        response = await self._api.list_namespaced_endpoint_slice_without_preload_content(
            self._service.namespace,
            label_selector=f"{_SERVICE_LABEL}={self._service.name}",
            **fields,
        )
        if response.status != 200:
            text = await response.text()
            try:
                message = str(json.loads(text)["message"])
            except (ValueError, KeyError, TypeError):
                message = text[:200].strip() or str(response.reason)
            raise refused(response.status, message, verb, self._service)
        return response


@contextlib.asynccontextmanager
async def connected(service: Service, seconds: float) -> AsyncGenerator[Slices, None]:
    """With a client of the configuration as it is now.

    Args:
        seconds: that a program which the kubeconfig names for a token may take.

    Raises:
        ClusterUnavailable: there is no configuration that can be used.
    """
    settings = client.Configuration()
    try:
        async with asyncio.timeout(seconds):
            await _configure(settings)
        # It reads certificates.
        link = await asyncio.to_thread(client.ApiClient, settings)
    except (config.ConfigException, yaml.YAMLError, OSError, ValueError, TypeError) as wrong:
        raise ClusterUnavailable(
            "there is no configuration of the Kubernetes API that can be used"
            f" ({str(wrong) or type(wrong).__name__}): give the pod a service account token"
            " (automountServiceAccountToken), or name a file with KUBECONFIG",
            short="no configuration",
        ) from wrong
    async with link:
        yield Slices(link, service)


async def _configure(settings: client.Configuration) -> None:
    path = kubeconfig()
    if path is None:
        # Tokens change; this reads the file again.
        config.load_incluster_config(client_configuration=settings)
        return
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    await config.load_kube_config(
        config_file=str(path), client_configuration=settings, persist_config=False
    )


@contextlib.contextmanager
def _told(host: str) -> Generator[None]:
    """Failures of transport and of form, as ClusterUnavailable."""
    try:
        yield
    except ClusterUnavailable:
        raise
    except TimeoutError as late:
        message = f"the API server at {host} did not answer in time"
        raise ClusterUnavailable(message, short="no answer in time") from late
    except (aiohttp.ClientError, OSError) as broken:
        why = str(broken) or type(broken).__name__
        message = f"the API server at {host} cannot be reached, or broke off: {why}"
        raise ClusterUnavailable(message, short="unreachable") from broken
    except (ValueError, KeyError, TypeError, AttributeError) as wrong:
        message = f"what the API server at {host} sent cannot be read: {wrong!r}"
        raise ClusterUnavailable(message, short="unreadable") from wrong
