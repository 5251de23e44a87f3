"""The environments and components of a checkout, in one version that follows from their content."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml

from finetune import __version__
from finetune.azure import snapshot
from finetune.azure.service.connection import explained
from finetune.core.errors import Fault, ParameterError
from finetune.core.types import Json

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import Component, Environment

DIGITS = 12
ENVIRONMENT = "environment.yaml"  # in a folder with its Dockerfile; it has no name, since components take it inline


@dataclass(frozen=True)
class Asset:
    """What is registered: a YAML of the checkout."""

    kind: Literal["environment", "component"]
    name: str
    path: Path
    needs: Mapping[str, Path]  # place in the YAML, as jobs.first.component -> the YAML that stands there


@dataclass(frozen=True)
class Release:
    """All that is registered, each after what it needs, and the version that they share."""

    version: str
    assets: tuple[Asset, ...]


def find_release(root: Path) -> Release:
    """Return what a checkout has to register. Raises: ParameterError if it has no components, or files are missing."""
    waiting = sorted(root.glob("components/*/*.yaml"))
    if not waiting:
        why = "register takes the YAMLs of its folder components"
        raise ParameterError(
            Fault(f"{root} is not a checkout of the project", why=why, fix="pip install -e . in a clone")
        )
    waiting += sorted(root.glob(f"environments/*/{ENVIRONMENT}"))
    found: dict[Path, Asset] = {}
    while waiting:
        path = waiting.pop().resolve()
        if path not in found:
            found[path] = _asset(path)
            waiting += found[path].needs.values()
    order = TopologicalSorter({path: sorted(found[path].needs.values()) for path in sorted(found)}).static_order()
    return Release(
        f"{__version__}-{_digest(root.resolve(), list(found))[:DIGITS]}", tuple(found[path] for path in order)
    )


def _asset(path: Path) -> Asset:
    spec = _spec(path)
    places = {"environment": spec.get("environment")}
    places |= {f"jobs.{name}.component": job.get("component") for name, job in (spec.get("jobs") or {}).items()}
    needs = {
        place: (path.parent / value.removeprefix("file:")).resolve()
        for place, value in places.items()
        if isinstance(value, str) and value.startswith("file:")
    }
    if path.name == ENVIRONMENT:
        return Asset("environment", f"finetune-{path.parent.name}", path, needs)
    return Asset("component", spec["name"], path, needs)


def _spec(path: Path) -> Json:
    if not path.is_file():
        raise ParameterError(Fault(f"{path} is missing", fix=f"git restore {path}"))
    # The parser of libyaml takes a tenth of the time: there are half a hundred files, all of this project.
    spec: Json = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return spec


def _digest(root: Path, paths: list[Path]) -> str:
    """Return a digest of the YAMLs and of all files that go with them: neither times nor the checkout's place count."""
    content = hashlib.sha256()
    codes: dict[frozenset[tuple[Path, Path]], str] = {}  # components share their code, which is read once
    for path in sorted(paths):
        spec = _spec(path)
        beside = snapshot.tree(path.parent) if path.name == ENVIRONMENT else {Path(path.name): path}
        content.update(f"{path.relative_to(root).as_posix()}\0{snapshot.digest(beside)}\0".encode())
        if "code" in spec:
            files = snapshot.of_component(path, spec)
            key = frozenset(files.items())
            codes[key] = codes.get(key) or snapshot.digest(files)
            content.update(codes[key].encode())
    return content.hexdigest()


def register(client: "MLClient", release: Release, registry: str = "") -> Iterator[tuple[Asset, bool]]:
    """Register what isn't there, and yield each asset with whether it is new. Raises: ServiceError."""
    from azure.core.exceptions import ResourceNotFoundError

    for asset in release.assets:
        operations = client.environments if asset.kind == "environment" else client.components
        with explained(f"{asset.kind} {asset.name}"):
            try:
                operations.get(asset.name, release.version)
                new = False
            except ResourceNotFoundError:
                operations.create_or_update(_entity(asset, release, registry))
                new = True
        yield asset, new


def _entity(asset: Asset, release: Release, registry: str) -> "Component | Environment":
    """Return azure-ai-ml's object of the asset, in whose YAML what it needs stands by its registered name."""
    from azure.ai.ml import load_component, load_environment

    named = {each.path: each for each in release.assets}
    changes = {place: reference(named[path], release.version, registry) for place, path in asset.needs.items()}
    named_here = {"name": asset.name, "version": release.version}
    overrides = [{place: value} for place, value in (named_here | changes).items()]
    load = load_environment if asset.kind == "environment" else load_component
    return load(asset.path, params_override=overrides)


def reference(asset: Asset, version: str, registry: str = "") -> str:
    """Return how a YAML names a registered asset."""
    if registry:
        return f"azureml://registries/{registry}/{asset.kind}s/{asset.name}/versions/{version}"
    return f"azureml:{asset.name}:{version}"
