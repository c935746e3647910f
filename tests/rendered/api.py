"""The API server of a release: a double for each service account, with what its Roles grant."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from slipstream.discovery.fakes import ApiRequest, FakeApiServer
from tests.rendered.manifests import Manifests, Object
from tests.rendered.rights import granted


@dataclass
class ReleaseApi:
    """All doubles hold the same objects, and each answers 403 to what its account may not do."""

    manifests: Manifests
    accounts: dict[str, FakeApiServer] = field(default_factory=dict)
    _objects: dict[tuple[str, str], Object] = field(default_factory=dict)

    def publish(self, item: Object) -> None:
        self._objects[item["kind"], item["metadata"]["name"]] = item
        for api in self.accounts.values():
            api.put(item)

    def kubeconfig(self, account: str) -> Path:
        if account not in self.accounts:
            namespace = self.manifests.namespace
            user = f"system:serviceaccount:{namespace}:{account}"
            api = FakeApiServer(namespace=namespace, user=user)
            api.forbid("*", "*")
            for verb, resource, where in granted(self.manifests, account):
                api.allow(verb, resource, namespace=where)
            for item in self._objects.values():
                api.put(item)
            self.accounts[account] = api
        return self.accounts[account].kubeconfig

    def asked(self) -> Iterator[tuple[str, ApiRequest]]:
        """Every request for objects so far, and the account that it came from."""
        for account, api in self.accounts.items():
            with api.lock:
                yield from ((account, asked) for asked in api.requests if asked.verb)

    def states(self, pod: str) -> list[tuple[bool, bool, bool]]:
        """(ready, serving, terminating) of a pod's endpoint, each time that they changed."""
        (api, *_) = self.accounts.values()
        with api.lock:
            slices = [change.after for change in api.objects.history if change.after]
        found = [
            tuple(end["conditions"][key] for key in ("ready", "serving", "terminating"))
            for item in slices
            for end in item.get("endpoints", [])
            if end["targetRef"]["name"] == pod
        ]
        return [state for state, _ in itertools.groupby(found)]

    def refused(self) -> list[str]:
        """What somebody asked for and may not have."""
        rights = {account: set(granted(self.manifests, account)) for account in self.accounts}
        return [
            f"{account}: {asked.verb} {asked.resource} in {asked.namespace or 'all namespaces'}"
            for account, asked in self.asked()
            if not rights[account]
            & {(asked.verb, asked.resource, where) for where in ("*", asked.namespace)}
        ]

    def close(self) -> None:
        for api in self.accounts.values():
            api.close()
