"""What a restricted namespace and a careful reviewer ask of every pod, role and secret."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator

from tests.chart.helm import Render, name_of
from tests.chart.pods import Pod, containers, pods

USER = 10001
# (API group, resource) -> verbs: all that any pod of the chart may do.
RIGHTS = {
    ("discovery.k8s.io", "endpointslices"): {"get", "list", "watch"},
    ("", "configmaps"): {"get", "create", "patch", "update"},
}
_SECRET_NAME = re.compile(r"TOKEN|PASSWORD|SECRET|CREDENTIAL|API_?KEY")
_PASSWORD_IN_URL = re.compile(r"://[^/\s@]*:(?!\$\()[^/\s@]+@")


def pods_are_restricted(render: Render) -> Iterator[str]:
    for pod in pods(render):
        context = pod.spec.get("securityContext", {})
        wanted = {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        for key, value in wanted.items():
            if context.get(key) != value:
                yield f"{pod.name}: securityContext.{key} is {context.get(key)}, not {value}"
        for key in ("hostNetwork", "hostPID", "hostIPC", "hostUsers", "shareProcessNamespace"):
            if pod.spec.get(key):
                yield f"{pod.name}: {key}"
        for volume in pod.spec.get("volumes", []):
            if "hostPath" in volume:
                yield f"{pod.name}: hostPath {volume['name']}"


def containers_are_restricted(render: Render) -> Iterator[str]:
    for where, pod, container in containers(render):
        context = container.get("securityContext", {})
        wanted = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        for key, value in wanted.items():
            if context.get(key) != value:
                yield f"{where}: securityContext.{key} is {context.get(key)}, not {value}"
        for key, value in context.items():
            if key not in wanted and pod.spec.get("securityContext", {}).get(key) != value:
                yield f"{where}: securityContext.{key} {value} differs from the pod's"


def no_shell_is_run(render: Render) -> Iterator[str]:
    shells = {"sh", "bash", "ash", "dash", "/bin/sh", "/bin/bash", "-c"}
    for where, _, container in containers(render):
        lines = [container.get("command", []), container.get("args", [])]
        lines += [
            probe["exec"]["command"]
            for key in ("startupProbe", "livenessProbe", "readinessProbe")
            if "exec" in (probe := container.get(key, {}))
        ]
        for hook in container.get("lifecycle", {}).values():
            lines.append(hook.get("exec", {}).get("command", []))
        if not container.get("command"):
            yield f"{where}: no command: what the image runs by itself is not in the manifest"
        for line in lines:
            if shells & set(map(str, line)):
                yield f"{where}: a shell in {line}"


def images_are_pinned(render: Render) -> Iterator[str]:
    for where, _, container in containers(render):
        name, _, digest = container["image"].partition("@")
        tag = name.rpartition("/")[2].partition(":")[2]
        if not digest and tag in ("", "latest"):
            yield f"{where}: {container['image']} is another image tomorrow"
        if digest and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            yield f"{where}: {digest} is no digest"
        if container.get("imagePullPolicy") not in ("IfNotPresent", "Always", "Never"):
            yield f"{where}: no imagePullPolicy"


def _bound_accounts(render: Render) -> set[str]:
    return {
        subject["name"]
        for binding in render.of("RoleBinding")
        for subject in binding["subjects"]
        if subject["kind"] == "ServiceAccount"
    }


def tokens_are_mounted_only_with_rights(render: Render) -> Iterator[str]:
    bound = _bound_accounts(render)
    for account in render.of("ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"{name_of(account)}: mounts its token unless a pod says otherwise"
    for pod in pods(render):
        mounts = pod.spec.get("automountServiceAccountToken")
        wanted = pod.spec.get("serviceAccountName", "default") in bound
        if mounts is not wanted:
            yield f"{pod.name}: automountServiceAccountToken is {mounts}, not {wanted}"


def rights_are_least(render: Render) -> Iterator[str]:
    for item in render.of("ClusterRole", "ClusterRoleBinding"):
        yield f"{name_of(item)}: rights beyond the namespace"
    for role in render.of("Role"):
        for rule in role["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    extra = set(rule["verbs"]) - RIGHTS.get((group, resource), set())
                    if extra:
                        yield f"{name_of(role)}: {sorted(extra)} of {group}/{resource}"
                    unnamed = set(rule["verbs"]) - {"create"}
                    if resource == "configmaps" and unnamed and not rule.get("resourceNames"):
                        yield f"{name_of(role)}: {sorted(unnamed)} of every ConfigMap"


def roles_are_bound_to_accounts_that_exist(render: Render) -> Iterator[str]:
    bound = set()
    for binding in render.of("RoleBinding"):
        bound.add(binding["roleRef"]["name"])
        if render.find("Role", binding["roleRef"]["name"]) is None:
            yield f"{name_of(binding)}: no Role {binding['roleRef']['name']}"
        used = {pod.spec.get("serviceAccountName") for pod in pods(render)}
        for subject in binding["subjects"]:
            if subject["name"] not in used:
                yield f"{name_of(binding)}: no pod runs as {subject['name']}"
    for role in render.of("Role"):
        if role["metadata"]["name"] not in bound:
            yield f"{name_of(role)}: bound to no one"


def _secret_texts(render: Render) -> set[str]:
    texts: set[str] = set()
    for secret in render.of("Secret"):
        texts |= {str(value) for value in secret.get("stringData", {}).values()}
        for value in secret.get("data", {}).values():
            texts |= {value, base64.b64decode(value).decode(errors="replace")}
    words = {word for text in texts for word in re.split(r"[\s,:/@]+", text)}
    return {word for word in texts | words if len(word) >= 12}


def secrets_are_nowhere_else(render: Render) -> Iterator[str]:
    secrets = _secret_texts(render)
    for item in render.objects:
        text = json.dumps(item)
        if item["kind"] != "Secret" and any(secret in text for secret in secrets):
            yield f"{name_of(item)}: holds what a Secret of the release holds"
        if item["kind"] != "Secret" and (found := _PASSWORD_IN_URL.search(text)):
            yield f"{name_of(item)}: a password in {found.group(0)}"


def secret_variables_are_references(render: Render) -> Iterator[str]:
    for where, _, container in containers(render):
        for entry in container.get("env", []):
            plain = not str(entry.get("value", "")).startswith("/")
            named = _SECRET_NAME.search(entry["name"])
            if named and plain and "secretKeyRef" not in entry.get("valueFrom", {}):
                yield f"{where}: {entry['name']} is no reference to a Secret"


def every_pod_has_an_account_of_its_own_role(render: Render) -> Iterator[str]:
    users: dict[str, list[Pod]] = {}
    for pod in pods(render):
        account = pod.spec.get("serviceAccountName", "default")
        users.setdefault(account, []).append(pod)
        if account == "default":
            yield f"{pod.name}: runs as the namespace's default account"
    for account, of in users.items():
        if len({pod.component for pod in of}) > 1:
            yield f"{account}: shared by {sorted(pod.component for pod in of)}"


POLICIES = (
    pods_are_restricted,
    containers_are_restricted,
    no_shell_is_run,
    images_are_pinned,
    tokens_are_mounted_only_with_rights,
    rights_are_least,
    roles_are_bound_to_accounts_that_exist,
    secrets_are_nowhere_else,
    secret_variables_are_references,
    every_pod_has_an_account_of_its_own_role,
)
