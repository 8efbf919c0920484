"""What `kubectl kustomize` makes of a folder, for machines without kubectl: as much of it as deploy/kubernetes uses.

A word that is not known here is an error. Names get no hash: whoever compares with kustomize's own output takes it away
there. `nameReference`, which is about hashes, has no effect for the same reason.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]
KNOWN = {
    *("apiVersion", "kind", "resources", "components", "images", "labels", "patches", "configurations"),
    *("configMapGenerator", "secretGenerator"),
}


def build(folder: Path) -> list[Resource]:
    """All resources of the kustomization in `folder`. Raises OSError naming a file that is missing."""
    content = _read(folder)
    resources: list[Resource] = []
    for name in content.get("resources", []):
        path = folder / name
        resources += build(path) if path.is_dir() else yaml.safe_load_all(path.read_text(encoding="utf-8"))
    _apply(content, folder, resources)
    return resources


def _read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    if unknown := set(content) - KNOWN:
        raise ValueError(f"{folder}: not known here: {', '.join(sorted(unknown))}")
    return content


def _apply(content: dict[str, Any], folder: Path, resources: list[Resource]) -> None:
    """In kustomize's order: what is generated, components, patches, labels, images."""
    for generator in content.get("configMapGenerator", []):
        data = dict(_lines(folder, generator.get("envs", []), generator.get("literals", [])))
        _generate("ConfigMap", generator, data, resources)
    for generator in content.get("secretGenerator", []):
        files = [folder / name for name in generator["files"]]
        data = {file.name: base64.b64encode(file.read_bytes()).decode() for file in files}
        _generate("Secret", generator, data, resources)
    for name in content.get("components", []):
        component = _read(folder / name)
        for file in component.get("resources", []):
            resources += yaml.safe_load_all((folder / name / file).read_text(encoding="utf-8"))
        _apply(component, folder / name, resources)
    for patch in content.get("patches", []):
        targets = [r for r in resources if (r["kind"], r["metadata"]["name"]) == tuple(patch["target"].values())]
        for resource in targets:
            for operation in yaml.safe_load(patch["patch"]):
                _patch(resource, **operation)
    for label in content.get("labels", []):
        for resource in resources:
            _label(resource, label["pairs"])
    for image in content.get("images", []):
        for container in _containers(resources):
            if container["image"] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"


def _lines(folder: Path, envs: list[str], literals: list[str]) -> list[tuple[str, str]]:
    lines = [line for name in envs for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    pairs = [line.partition("=") for line in (*lines, *literals) if line and not line.startswith("#")]
    return [(name, value) for name, _, value in pairs]


def _generate(kind: str, generator: dict[str, Any], data: dict[str, str], resources: list[Resource]) -> None:
    if generator.get("behavior") == "merge":
        (known,) = [r for r in resources if (r["kind"], r["metadata"]["name"]) == (kind, generator["name"])]
        known["data"] |= data
        return
    resource = {"apiVersion": "v1", "kind": kind, "metadata": {"name": generator["name"]}, "data": data}
    resources.append(resource | ({"type": "Opaque"} if kind == "Secret" else {}))


def _patch(resource: Resource, op: str, path: str, value: Any = None) -> None:
    """One operation of RFC 6902. Raises LookupError where there is nothing at its path."""
    *parents, last = path.removeprefix("/").split("/")
    inner: Any = resource
    for name in parents:
        inner = inner[int(name) if isinstance(inner, list) else name]
    if isinstance(inner, list) and op == "add" and last == "-":
        inner.append(value)
        return
    key: Any = int(last) if isinstance(inner, list) else last
    if op == "remove":
        del inner[key]
    elif op == "replace":
        _ = inner[key]
        inner[key] = value
    else:
        raise ValueError(f"not known here: {op} {path}")


def _label(resource: Resource, pairs: dict[str, str]) -> None:
    """`includeTemplates`: the resource's own and its pods'; no selector."""
    resource["metadata"].setdefault("labels", {}).update(pairs)
    template = resource.get("spec", {}).get("template")
    if template is not None:
        template["metadata"].setdefault("labels", {}).update(pairs)


def _containers(resources: list[Resource]) -> list[dict[str, Any]]:
    pods = [resource["spec"]["template"]["spec"] for resource in resources if "template" in resource.get("spec", {})]
    return [container for pod in pods for container in (*pod.get("initContainers", []), *pod["containers"])]
