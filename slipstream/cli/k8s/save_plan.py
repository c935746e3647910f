"""`slipstream k8s save-plan`: a layer plan goes into a ConfigMap, where drafters find it."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli.k8s.api import Cluster
from slipstream.core.errors import ClusterForbidden, ClusterNotFound, ConfigurationError
from slipstream.core.layer_plan import LayerPlan

_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")


def save_plan(
    file: Annotated[Path, typer.Argument(help="Layer plan, as `slipstream tune --out` writes it.")],
    configmap: Annotated[str, typer.Option(help="Name of the ConfigMap.")],
    key: Annotated[str, typer.Option(help="Its key.")] = "plan.json",
    namespace: Annotated[
        str | None, typer.Option(help="Default: the pod's, or the kubeconfig context's.")
    ] = None,
    kubeconfig: Annotated[Path | None, typer.Option(help="Default: the pod's account.")] = None,
    context: Annotated[str | None, typer.Option(help="Of the kubeconfig.")] = None,
) -> None:
    """Create or update a ConfigMap with a layer plan, which is checked first."""
    if _NAME.fullmatch(configmap) is None:
        raise ConfigurationError(f"--configmap {configmap!r} is no name of a ConfigMap")
    if _KEY.fullmatch(key) is None:
        raise ConfigurationError(f"--key {key!r} is no key of a ConfigMap")
    plan = LayerPlan.load(file)
    with contextlib.closing(Cluster(kubeconfig, context)) as cluster:
        where = namespace or cluster.namespace
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": configmap, "namespace": where},
            # As it was read: what is mounted later is byte for byte the file.
            "data": {key: file.read_text()},
        }
        try:
            # An owner for each key: plans under other keys of the ConfigMap stay.
            cluster.apply("configmaps", where, body, f"slipstream-{key}")
        except ClusterForbidden as failure:
            raise ClusterForbidden(
                f"{failure.message}. Grant it: a Role in {where} with apiGroups [''], resources"
                f" [configmaps], resourceNames [{configmap}], verbs [patch], and, as long as there"
                " is no such ConfigMap, the verb [create] without resourceNames; and a"
                " RoleBinding of it"
            ) from failure
        except ClusterNotFound as failure:
            raise ClusterNotFound(f"{failure.message}: is there a namespace {where}?") from failure
    typer.echo(f"{where}/{configmap}, key {key}: {plan.describe()}")
