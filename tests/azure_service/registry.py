"""A registry: where it is found, and its assets, which have no workspace, nor their code a data store."""

import re
from typing import TYPE_CHECKING

from tests.azure_service.names import GROUP, REGISTRY, SUBSCRIPTION, Answer, Json, Request, missing, upload_place

if TYPE_CHECKING:
    from tests.azure_service.service import Service

ASSET = re.compile(r"(environments|codes|components)/([^/]+)/versions/([^/]+)")
REFERENCE = re.compile(r"tempdatarefs/([^/]+)/versions/([^/]+)")
ASSET_ID = re.compile(rf"azureml://registries/{REGISTRY}/(.+)")


def discovery(service: "Service", request: Request) -> Answer:
    """Answer where a registry is."""
    name = request.parts[4]
    if name != REGISTRY:
        return missing(f"registry {name}")
    where = {"subscriptionId": SUBSCRIPTION, "resourceGroup": GROUP, "primaryRegion": "westus", "regions": ["westus"]}
    return Answer(body={"registryName": name, **where, "primaryRegionResourceProviderUri": f"{service.url}/"})


def assets(service: "Service", request: Request) -> Answer:
    """Answer a request for an asset, whose path begins behind the registry."""
    if request.method == "PUT" and REFERENCE.fullmatch(request.path):
        return reference(service, request.body)
    if not ASSET.fullmatch(request.path):
        return missing(request.path)
    path = f"registries/{REGISTRY}/{request.path}"
    if request.method == "PUT":
        kind, name, version = ASSET.fullmatch(request.path).groups()  # type: ignore[union-attr]
        about = {"id": f"azureml://registries/{REGISTRY}/{kind}/{name}/versions/{version}", "name": version}
        service.resources[path] = {**request.body, **about, "type": kind}
        return Answer(201, service.resources[path])
    return Answer(body=service.resources[path]) if path in service.resources else missing(path)


def reference(service: "Service", asked: Json) -> Answer:
    """Answer where an asset's files are to be uploaded; 409 where the asset is there."""
    match = ASSET_ID.fullmatch(asked["assetId"])
    if match is None:
        return Answer(400, {"error": {"code": "UserError", "message": f"{asked['assetId']} is of another registry"}})
    if f"registries/{REGISTRY}/{match[1]}" in service.resources:
        return Answer(409, {"error": {"code": "Conflict", "message": f"{match[1]} is there"}})
    return Answer(body=upload_place(service.url, service.folder))
