"""The requests that azure-ai-ml makes, and their answers."""

import json
import re
import time
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.azure_service import batch, registry
from tests.azure_service.names import (
    CONTAINERS,
    KEY,
    REGISTRY,
    ROOT,
    WORKSPACE,
    Answer,
    Json,
    Request,
    missing,
    resource,
    upload_place,
)

if TYPE_CHECKING:
    from tests.azure_service.service import Service

ASSETS = "environments|codes|components|models|data"
SIZES = {"Standard_DS3_v2": 0, "STANDARD_NC4AS_T4_V3": 1}  # of a machine -> its GPUs
ENDPOINTS = "(online|batch)Endpoints"
ENDPOINT = f"{ENDPOINTS}/[^/]+"
DEPLOYMENT = f"{ENDPOINT}/deployments/[^/]+"


def workspace(service: "Service", request: Request) -> Answer:
    values = {"discoveryUrl": f"{service.url}/discovery", "workspaceId": "w", "mlFlowTrackingUri": service.tracking_uri}
    about = resource("", {"properties": values, "location": "westus", "identity": {"type": "SystemAssigned"}})
    return Answer(body={**about, "id": f"{ROOT}/workspaces/{WORKSPACE}", "name": WORKSPACE})


def get_compute(service: "Service", request: Request) -> Answer:
    """One that was made, or a machine of no known size: jobs may name any."""
    made = {"properties": {"computeType": "AmlCompute", "properties": {"vmSize": "Standard_DS3_v2"}}}
    return Answer(body=service.resources.get(request.path) or resource(request.path, {**made, "location": "westus"}))


def put_compute(service: "Service", request: Request) -> Answer:
    made = put(service, request)
    made.body["properties"]["provisioningState"] = "Succeeded"
    return made


def datastores(service: "Service", request: Request) -> Answer:
    def store(name: str) -> Json:
        values = {
            "datastoreType": "AzureBlob",
            "accountName": f"localhost:{service.port}/acct",
            "containerName": CONTAINERS[name],
            "endpoint": "local/",
            "protocol": "https",
            "credentials": {"credentialsType": "Sas"},
            "isDefault": name == "workspaceblobstore",
        }
        return resource(f"datastores/{name}", {"properties": values})

    if len(request.parts) == 2:
        return Answer(body=store(request.parts[1]))
    default = request.query.get("isDefault", "").lower() == "true"
    return Answer(body={"value": [store(name) for name in CONTAINERS if name == "workspaceblobstore" or not default]})


def secrets(service: "Service", request: Request) -> Answer:
    return Answer(body={"secretsType": "Sas", "sasToken": "sig=1"})


def keys(service: "Service", request: Request) -> Answer:
    return Answer(body={"primaryKey": KEY, "secondaryKey": KEY})


def pending_upload(service: "Service", request: Request) -> Answer:
    return Answer(body=upload_place(service.url, service.folder))


def put(service: "Service", request: Request) -> Answer:
    known = service.resources[request.path] = resource(request.path, request.body)
    return Answer(body=known)


def put_model(service: "Service", request: Request) -> Answer:
    made = put(service, request)
    made.body["properties"]["flavors"] = {}  # the client reads them of every model
    return made


def get(service: "Service", request: Request) -> Answer:
    known = service.resources.get(request.path)
    return Answer(body=known) if known else missing(request.path)


def delete(service: "Service", request: Request) -> Answer:
    service.remove(request.path)
    return Answer()


def put_job(service: "Service", request: Request) -> Answer:
    if any("uri" in output for output in (request.body["properties"].get("outputs") or {}).values()):
        return Answer(400, {"error": {"code": "UserError", "message": "this stand-in chooses where outputs lie"}})
    if known := service.resources.get(request.path):  # the client asks again where it has lost an answer
        return Answer(body=known)
    answer = put(service, request)
    service.start_job(request.parts[1], answer.body)
    return answer


def get_job(service: "Service", request: Request) -> Answer:
    return Answer(body=service.job(request.parts[1]))


def jobs(service: "Service", request: Request) -> Answer:
    return Answer(body={"value": [service.job(name) for name in reversed(service.runners)]})


def cancel(service: "Service", request: Request) -> Answer:
    service.cancel(request.parts[1])
    return Answer(body={})


def put_endpoint(service: "Service", request: Request) -> Answer:
    known = put(service, request).body
    kind = "score" if request.parts[0] == "onlineEndpoints" else "batch"
    known["properties"] |= {"provisioningState": "Succeeded", "scoringUri": f"{service.url}/{kind}/{request.parts[1]}"}
    return Answer(body=known)


def put_deployment(service: "Service", request: Request) -> Answer:
    """Start the model; the client learns from an operation of the service how that went."""
    known = put(service, request).body
    if request.parts[0] == "batchEndpoints":  # nothing is started before it is invoked
        known["properties"]["provisioningState"] = "Succeeded"
        return Answer(body=known)
    service.deploy(request.path, known)
    known["properties"].setdefault("scaleSettings", {"scaleType": "Default"})
    operation = {"Azure-AsyncOperation": f"{service.url}/operation/{request.path}", "Retry-After": 1}
    return Answer(201, known, operation)


def listed(service: "Service", request: Request) -> Answer:
    """The resources directly under a path, the newest first, as $orderBy asks."""
    start = f"{request.path}/"
    found = [r for path, r in service.resources.items() if path.startswith(start) and "/" not in path[len(start) :]]
    found.reverse()
    return Answer(body={"value": found[: int(request.query.get("$top", len(found)))]})


def versions(service: "Service", request: Request) -> Answer:
    """The versions of an asset, or the code of any name that has a hash."""
    if "hash" not in request.query:
        return listed(service, request)
    code = [known for path, known in service.resources.items() if path.startswith("codes/")]
    found = [known for known in code if known["properties"]["properties"]["hash_sha256"] == request.query["hash"]]
    return Answer(body={"value": found})


def containers(service: "Service", request: Request) -> Answer:
    """The assets of a kind, each of which has versions."""
    start = f"{request.path}/"
    names = dict.fromkeys(path.split("/")[1] for path in service.resources if path.startswith(start))
    return Answer(body={"value": [asset(service, start + name) for name in names]})


def container(service: "Service", request: Request) -> Answer:
    found = asset(service, request.path)
    return Answer(body=found) if found else missing(request.path)


def asset(service: "Service", path: str) -> Json:
    """An asset with its versions; nothing if there are none."""
    found = [name.rpartition("/")[2] for name in service.resources if name.startswith(f"{path}/versions/")]
    if not found:
        return {}
    following = max((int(version) for version in found if version.isdigit()), default=0) + 1
    values = {"latestVersion": found[-1], "nextVersion": str(following), "isArchived": False}
    return resource(path, {"properties": values})


Route = Callable[["Service", Request], Answer]
# Method, path behind the workspace, answer: the first that matches
ROUTES: tuple[tuple[str, str, Route], ...] = (
    ("GET", "", workspace),
    ("GET", "computes/[^/]+", get_compute),
    ("PUT", "computes/[^/]+", put_compute),
    ("GET", "datastores(/[^/]+)?", datastores),
    ("POST", "datastores/[^/]+/listSecrets", secrets),
    ("GET", f"({ASSETS})", containers),
    ("GET", f"({ASSETS})/[^/]+", container),
    ("GET", f"({ASSETS})/[^/]+/versions", versions),
    ("GET", f"({ASSETS})/[^/]+/versions/[^/]+", get),
    ("PUT", "models/[^/]+/versions/[^/]+", put_model),
    ("PUT", f"({ASSETS})/[^/]+/versions/[^/]+", put),
    ("POST", f"({ASSETS})/[^/]+/versions/[^/]+/startPendingUpload", pending_upload),
    ("GET", "jobs", jobs),
    ("GET", "jobs/[^/]+", get_job),
    ("PUT", "jobs/[^/]+", put_job),
    ("POST", "jobs/[^/]+/cancel", cancel),
    ("GET", f"{ENDPOINTS}(/[^/]+/deployments)?", listed),
    ("GET", f"{ENDPOINT}|{DEPLOYMENT}", get),
    ("PUT", ENDPOINT, put_endpoint),
    ("PUT", DEPLOYMENT, put_deployment),
    ("DELETE", f"{ENDPOINT}|{DEPLOYMENT}", delete),
    ("POST", "onlineEndpoints/[^/]+/listKeys", keys),
)


def arm(service: "Service", request: Request) -> Answer:
    """Answer a request to ARM."""
    for method, pattern, route in ROUTES:
        if request.method == method and re.fullmatch(pattern, request.path):
            return route(service, request)
    return missing(f"{request.method} {request.path}")


def history(service: "Service", request: Request) -> Answer:
    """Answer a request to the run history."""
    if request.path == "rundata":
        return Answer(body={"runMetadata": service.run(request.body["runId"])})
    _, name, what = request.parts
    if what == "children":
        return Answer(body={"value": [service.run(child["name"]) for child in service.state(name)["children"]]})
    return Answer(body=service.run(name))


def data(service: "Service", request: Request) -> Answer:
    """Answer where the outputs of a job are."""
    found = {}
    for output in request.body["values"]:
        name, _, key = output.partition("|")
        found[output] = {"uri": service.outputs(name)[key], "type": "uri_folder"}
    return Answer(body={"values": found})


PLANES: dict[str | None, Route] = {None: arm, "/history/v1.0": history, "/data/v1.0": data}
IN_REGISTRY = re.compile(rf"/mferp/managementfrontend/subscriptions/.*?/registries/{REGISTRY}/(.*?)/?")


def outside(service: "Service", request: Request) -> Answer:
    """Answer what has no workspace in its path."""
    named = {"name": service.cloud, "portal": f"{service.url}/", "resourceManager": f"{service.url}/"}
    login = {"loginEndpoint": f"{service.url}/", "audiences": [service.url]}
    until = {"expires_on": str(int(time.time()) + 3600), "resource": service.url, "token_type": "Bearer"}
    known: dict[str, Any] = {
        "/metadata/endpoints": [{**named, "authentication": login, "suffixes": {"storage": "local/"}}],
        "/discovery": {"api": service.url},
        "/token": {"access_token": service.token(request.query.get("resource", "").rstrip("/")), **until},
    }
    if request.path in known:
        return Answer(body=known[request.path])
    if request.path.endswith("/vmSizes"):
        return Answer(body={"value": [{"name": name, "gpus": gpus} for name, gpus in SIZES.items()]})
    route = OUTSIDE.get(request.parts[1])
    return route(service, request) if route else missing(request.path)


def operation(service: "Service", request: Request) -> Answer:
    return Answer(body=service.deployed(request.path.removeprefix("/operation/")))


def score(service: "Service", request: Request) -> Answer:
    return service.score(request.parts[2], request.headers, request.body)


def log(service: "Service", request: Request) -> Answer:
    _, _, name, file = request.path.split("/", 3)
    return Answer(200, service.state(name)["logs"][file].read_bytes(), {"Content-Type": "text/plain"})


OUTSIDE: dict[str, Route] = {
    "operation": operation,
    "score": score,
    "batch": batch.invoke,
    "log": log,
    "registrymanagement": registry.discovery,
}


def answered(service: "Service", method: str, target: str, headers: dict[str, str], raw: bytes) -> Answer:
    """Answer any request."""
    if target.startswith("/acct.blob.local/"):
        status, about, content = service.blobs.answer(method, target.removeprefix("/acct.blob.local"), headers, raw)
        return Answer(status, content, about)
    url = urlsplit(target)
    path = unquote(url.path)
    match = re.fullmatch(rf"(/[a-z]+/v1\.0)?/subscriptions/.*?/workspaces/{WORKSPACE}(?![^/])/?(.*?)/?", path, re.I)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    asset = IN_REGISTRY.fullmatch(path)
    rest = asset[1] if asset else match[2] if match else path
    request = Request(method, rest, query, headers, json.loads(raw) if raw else None)
    try:
        if asset:
            return registry.assets(service, request)
        return PLANES[match[1]](service, request) if match else outside(service, request)
    except KeyError as error:
        return missing(str(error))


def handler(service: "Service") -> type[BaseHTTPRequestHandler]:
    """The handler of one service's requests."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            self.request.do_handshake()  # in the thread of the connection
            super().setup()

        def reply(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            found = answered(service, self.command, self.path, headers, raw)
            if found.status == 404:
                service.unknown.append(f"{self.command} {self.path}")
            content = found.body if isinstance(found.body, bytes) else json.dumps(found.body).encode()
            about = {"Content-Type": "application/json", "Content-Length": len(content), **found.headers}
            self.send_response(found.status)
            for name, value in {**about, "x-ms-request-id": uuid.uuid4().hex}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = reply

        def log_message(self, *_: object) -> None:
            pass

    return Handler
