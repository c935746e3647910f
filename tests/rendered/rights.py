"""What the rendered Roles and RoleBindings let a service account do."""

from __future__ import annotations

from collections.abc import Iterator

from tests.rendered.manifests import Manifests


def granted(manifests: Manifests, account: str) -> Iterator[tuple[str, str, str]]:
    """(verb, resource, namespace) for each; a namespace of `*` is all of them."""
    for binding in manifests.of("RoleBinding", "ClusterRoleBinding"):
        subjects = [
            subject
            for subject in binding.get("subjects") or []
            if subject["kind"] == "ServiceAccount"
            and subject["name"] == account
            and subject.get("namespace", manifests.namespace) == manifests.namespace
        ]
        role = manifests.find(binding["roleRef"]["kind"], binding["roleRef"]["name"])
        if not subjects or role is None:
            continue
        everywhere = binding["kind"] == "ClusterRoleBinding"
        where = "*" if everywhere else binding["metadata"].get("namespace", manifests.namespace)
        for rule in role.get("rules") or []:
            for resource in rule.get("resources") or []:
                for verb in rule["verbs"]:
                    yield verb, resource, where
