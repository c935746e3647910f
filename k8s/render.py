"""`python k8s/render.py [--check]`: the manifests of this folder, from the chart.

`base` is what `helm template` makes of the chart with `values.yaml`, one file for each template. An
overlay is the difference between that and the chart with one of its ready value files on top:
objects that are new, JSON patches of those that changed, deletions. With `--check` nothing is
written: exit code 1 says that a file is not what the chart gives, is missing, or is one too many.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

HERE = Path(__file__).parent
CHART = HERE.parent / "helm" / "slipstream"
HELM = Path(sys.executable).with_name("helm")
NAMESPACE = RELEASE = "slipstream"
KUBE = "1.37.0"
OVERLAYS = ("cpu-trial", "one-big-gpu-plus-small", "sharded-drafter", "ha")
HEADER = "# Made from helm/slipstream by `make k8s`; changes belong there.\n"
_SOURCE = "# Source: slipstream/templates/"
# They say that helm looks after the object, and which chart it came with.
_HELM_LABELS = ("helm.sh/chart", "app.kubernetes.io/managed-by")


@dataclass(frozen=True)
class Manifest:
    """An object of a render and the template that it came from."""

    theme: str
    item: Object

    @property
    def key(self) -> tuple[str, str]:
        return self.item["kind"], self.item["metadata"]["name"]

    @property
    def file(self) -> str:
        kind, name = self.key
        return f"{name}-{kind.lower()}.yaml"


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they are, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 PyYAML states it
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _dump(items: Iterable[Any]) -> str:
    body = yaml.dump_all(
        list(items), Dumper=_Dumper, sort_keys=False, width=100, default_flow_style=False
    )
    return HEADER + body


def _without_helm(value: Any) -> None:
    """Takes helm's labels out of every mapping of labels in `value`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("labels", "matchLabels") and isinstance(inner, dict):
                for label in _HELM_LABELS:
                    inner.pop(label, None)
            _without_helm(inner)
    elif isinstance(value, list):
        for inner in value:
            _without_helm(inner)


def rendered(files: Sequence[Path]) -> list[Manifest]:
    """The chart's objects with these value files, in the namespace, as if helm had no part in it.

    Raises subprocess.CalledProcessError: helm refused; its message went to stderr.
    """
    command = [str(HELM), "template", RELEASE, str(CHART), f"--namespace={NAMESPACE}"]
    command += [f"--kube-version={KUBE}", "--no-hooks", *(f"--values={path}" for path in files)]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = []
    for document in text.split("\n---\n"):
        item = yaml.load(document, Loader=yaml.CSafeLoader)
        if item:
            _without_helm(item)
            item["metadata"].setdefault("namespace", NAMESPACE)
            theme = document.partition(_SOURCE)[2].partition("\n")[0]
            found.append(Manifest(theme.replace("/", "-"), item))
    return found


def value_files(overlay: str | None = None) -> list[Path]:
    """The last one wins: what stands in k8s/values.yaml holds in every overlay."""
    own = HERE / "values.yaml"
    return [own] if overlay is None else [CHART / "values" / f"{overlay}.yaml", own]


def _by_theme(manifests: Iterable[Manifest]) -> dict[str, list[Object]]:
    themes: dict[str, list[Object]] = {}
    for manifest in manifests:
        themes.setdefault(manifest.theme, []).append(manifest.item)
    return themes


def _kustomization(resources: Iterable[str], patches: Iterable[Object] = ()) -> str:
    content: Object = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(resources),
    }
    listed = list(patches)
    return _dump([content | ({"patches": listed} if listed else {})])


def base_files(base: Sequence[Manifest]) -> Iterator[tuple[Path, str]]:
    themes = _by_theme(base)
    for theme, items in themes.items():
        yield HERE / "base" / theme, _dump(items)
    yield HERE / "base" / "kustomization.yaml", _kustomization(themes)


def difference(old: Any, new: Any, pointer: str = "") -> Iterator[Object]:
    """The steps of a JSON patch (RFC 6902) from `old` to `new`, always the same ones in one order.

    A list that has another length is replaced, or appended to where its beginning stays.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in old.items():
            place = f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}"
            if key in new:
                yield from difference(value, new[key], place)
            else:
                yield {"op": "remove", "path": place}
        for key in [key for key in new if key not in old]:
            place = f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}"
            yield {"op": "add", "path": place, "value": new[key]}
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, two) in enumerate(zip(old, new, strict=True)):
            yield from difference(one, two, f"{pointer}/{index}")
    elif isinstance(old, list) and isinstance(new, list) and old and new[: len(old)] == old:
        for value in new[len(old) :]:
            yield {"op": "add", "path": f"{pointer}/-", "value": value}
    elif old != new:
        yield {"op": "replace", "path": pointer, "value": new}


def _target(item: Object) -> Object:
    group, _, version = item["apiVersion"].rpartition("/")
    named = {"kind": item["kind"], "name": item["metadata"]["name"]}
    return ({"group": group} if group else {}) | {"version": version} | named


def _deletion(item: Object) -> Object:
    name = {"name": item["metadata"]["name"], "namespace": NAMESPACE}
    head = {"apiVersion": item["apiVersion"], "kind": item["kind"], "metadata": name}
    return {"$patch": "delete", **head}


def overlay_files(name: str, base: Sequence[Manifest]) -> Iterator[tuple[Path, str]]:
    """The files of an overlay: patches/*.yaml, one for each object, and new objects by theme."""
    folder = HERE / "overlays" / name
    wanted = {manifest.key: manifest for manifest in rendered(value_files(name))}
    there = {manifest.key: manifest for manifest in base}
    patches: list[Object] = []
    for key, manifest in there.items():
        path = f"patches/{manifest.file}"
        if key not in wanted:
            yield folder / path, _dump([_deletion(manifest.item)])
            patches.append({"path": path})
        elif steps := list(difference(manifest.item, wanted[key].item)):
            yield folder / path, _dump([steps])
            patches.append({"path": path, "target": _target(manifest.item)})
    added = _by_theme(manifest for key, manifest in wanted.items() if key not in there)
    for theme, items in added.items():
        yield folder / theme, _dump(items)
    yield folder / "kustomization.yaml", _kustomization(["../../base", *added], patches)


def files() -> dict[Path, str]:
    """Everything that is made: path -> content."""
    base = rendered(value_files())
    made = dict(base_files(base))
    for name in OVERLAYS:
        made |= overlay_files(name, base)
    return made


def _there() -> set[Path]:
    return {path for part in ("base", "overlays") for path in (HERE / part).rglob("*.yaml")}


def drift(made: dict[Path, str]) -> list[str]:
    """What is not as the chart gives it, a line each."""
    faults = [f"{path} is not made by the chart" for path in sorted(_there() - made.keys())]
    for path, content in sorted(made.items()):
        if not path.is_file():
            faults.append(f"{path} is missing")
        elif path.read_text() != content:
            faults.append(f"{path} is not what the chart gives")
    return faults


def write(made: dict[Path, str]) -> None:
    for path in _there() - made.keys():
        path.unlink()
    for path, content in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def main(arguments: Sequence[str]) -> int:
    made = files()
    if "--check" not in arguments:
        write(made)
        return 0
    faults = drift(made)
    for fault in faults:
        sys.stderr.write(f"{fault.removeprefix(f'{HERE.parent}/')}: run make k8s\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
