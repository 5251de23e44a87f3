"""A stand-in for Azure Machine Learning: what azure-ai-ml asks of the service, on one HTTPS port of this machine.

It keeps what it is sent, runs jobs from that alone (executor.py) and serves models (scoring.py). It is no emulator:
what no test asks of it isn't there, and an unknown request is answered with 404 and noted in `Service.unknown`.
"""

import base64
import json
import os
import re
import signal
import ssl
import subprocess
import threading
import time
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from tests.azure_service.blob import Blobs
from tests.azure_service.certificate import write_certificate
from tests.azure_service.names import (
    CONTAINERS,
    FINISHED,
    GROUP,
    KEY,
    ROOT,
    SUBSCRIPTION,
    WORKSPACE,
    Answer,
    Json,
    logs_of,
)
from tests.azure_service.routes import handler

CHECKOUT = Path(__file__).resolve().parents[2]


class Token(NamedTuple):
    """What azure-core reads of an access token."""

    token: str
    expires_on: int


class Service:
    """The service, listening while it is a context. `resources` has what was sent, by its path in the workspace."""

    def __init__(self, folder: Path, python: Path) -> None:
        """`python` is what runs jobs and serves models."""
        self.folder, self.python = folder, str(python)
        self.resources: dict[str, Json] = {}
        self.unknown: list[str] = []
        self.runners: dict[str, subprocess.Popen[bytes]] = {}
        self.scorers: dict[str, subprocess.Popen[str]] = {}
        self.lock = threading.RLock()
        self.blobs = Blobs(folder / "blob")
        for container in CONTAINERS.values():
            (folder / "blob" / container).mkdir(parents=True)
        self.certificate = write_certificate(folder)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, folder / "key.pem")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self.server.server_port
        self.url = f"https://localhost:{self.port}"
        self.cloud = f"here-{self.port}"  # azure-ai-ml keeps what it knows of a cloud by its name
        self.tracking_uri = f"sqlite:///{folder}/mlflow.db"

    def __enter__(self) -> "Service":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.runners.values(), *self.scorers.values()):
            if process.poll() is None:
                process.terminate()
                process.wait()
        self.server.shutdown()
        self.server.server_close()

    # What a client needs

    def environment(self) -> dict[str, str]:
        """The variables with which a process (azure-ai-ml, DefaultAzureCredential) finds this service."""
        return {
            "REQUESTS_CA_BUNDLE": str(self.certificate),
            "ARM_CLOUD_METADATA_URL": f"{self.url}/metadata/endpoints",
            "AZUREML_CURRENT_CLOUD": self.cloud,
            "REGISTRY_DISCOVERY_ENDPOINT_URL": f"{self.url}/",
            "IDENTITY_ENDPOINT": f"{self.url}/token",  # as of an App Service: DefaultAzureCredential asks it
            "IDENTITY_HEADER": "secret",
        }

    def get_token(self, *_: str, **__: object) -> Token:
        """Be a credential."""
        return Token(self.token(), int(time.time()) + 3600)

    def token(self, audience: str = "") -> str:
        parts = ({"alg": "none"}, {"aud": audience or self.url, "exp": int(time.time()) + 3600, "tid": "t", "oid": "o"})
        words = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
        return ".".join([*words, "none"])

    def client(self) -> Any:
        """An MLClient of the workspace. REQUESTS_CA_BUNDLE must be set (`environment`)."""
        from azure.ai.ml import MLClient

        cloud = {
            "resource_manager": f"{self.url}/",
            "active_directory": f"{self.url}/",
            "aml_resource_id": self.url,
            "azure_portal": f"{self.url}/",
            "storage_endpoint": "local/",
            "registry_discovery_endpoint": f"{self.url}/",
        }
        return MLClient(self, SUBSCRIPTION, GROUP, WORKSPACE, cloud=self.cloud, cloud_metadata=cloud)

    # Places

    def local(self, uri: str) -> Path:
        """The file or folder of an azureml:// or https:// address, or of an asset's id."""
        if match := re.search(r"/datastores/([^/]+)/(?:paths/)?(.*)", uri):
            return self.folder / "blob" / CONTAINERS[match[1]] / match[2]
        if match := re.search(r"/acct\.blob\.local/([^?]*)", uri):
            return self.folder / "blob" / unquote(match[1])
        if match := re.match(r"azureml://jobs/([^/]+)/outputs/([^/]+)/?(?:paths/)?(.*)", uri):
            job = self.resources[f"jobs/{match[1]}"]
            return self.local(job["properties"]["outputs"][match[2]]["uri"]) / match[3]
        if match := re.search(r"((?:codes|data|models)/[^/]+/versions/[^/]+)$", uri):
            properties = self.resources[match[1]]["properties"]
            return self.local(next(properties[key] for key in ("codeUri", "dataUri", "modelUri") if key in properties))
        raise ValueError(f"{uri} is not an address of this service")

    def mounted(self, value: Any) -> Any:
        """A job's body with the value of each file and folder handed in: its place on this machine."""
        if isinstance(value, list):
            return [self.mounted(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "uri" in value and ("jobInputType" in value or "job_input_type" in value):
            return {**value, "value": str(self.local(value["uri"])).rstrip("/")}
        return {key: self.mounted(item) for key, item in value.items()}

    # Jobs

    def start_job(self, name: str, job: Json) -> None:
        """Start the process that runs a job, with all that it may know of it."""
        properties = job["properties"]
        properties["properties"] = {**(properties.get("properties") or {}), "azureml.service": "stand-in"}
        properties["status"] = "NotStarted"
        properties["services"] = {
            "Studio": {"jobServiceType": "Studio", "endpoint": f"{self.url}/runs/{name}?wsid={ROOT}"},
            "Tracking": {"jobServiceType": "Tracking", "endpoint": f"azureml://localhost:{self.port}{ROOT}"},
        }
        for output, entry in (properties.get("outputs") or {}).items():
            entry["uri"] = f"azureml://datastores/workspaceblobstore/paths/azureml/{name}/{output}/"
        run = self.folder / "runs" / name
        run.mkdir(parents=True)
        known = {path: r for path, r in self.resources.items() if path.split("/")[0] in ("codes", "components")}
        code = {path: str(self.local(r["properties"]["codeUri"])) for path, r in known.items() if path[:5] == "codes"}
        request = {
            "name": name,
            "job": self.mounted(properties),
            "components": {path: r["properties"]["componentSpec"] for path, r in known.items() if path not in code},
            "code": code,
            "output": str(self.folder / "blob" / CONTAINERS["workspaceblobstore"] / "azureml" / name),
            "artifacts": str(self.folder / "blob" / CONTAINERS["workspaceartifactstore"] / "ExperimentRun"),
        }
        (run / "request.json").write_text(json.dumps(request, indent=1))
        own = set(self.environment())
        env = {key: value for key, value in os.environ.items() if key not in own and not key.startswith("MLFLOW_")}
        with (run / "runner.txt").open("wb") as log:
            self.runners[name] = subprocess.Popen(
                [self.python, "-m", "tests.azure_service.executor", str(run)],
                env={**env, "MLFLOW_TRACKING_URI": self.tracking_uri, "PYTHONPATH": f"{CHECKOUT / 'src'}:{CHECKOUT}"},
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def state(self, name: str) -> Json:
        """How a job or a child of one stands, from what its runner has written."""
        runs = self.folder / "runs"
        job = name if (runs / name).is_dir() else next((p.parent.name for p in runs.glob(f"*/{name}")), None)
        if job is None:
            raise KeyError(name)
        process = self.runners[job]
        ended = process.poll() is not None
        file = runs / job / "state.json"
        state: Json = json.loads(file.read_text()) if file.is_file() else {"status": "NotStarted", "children": []}
        if ended and state["status"] not in FINISHED:
            canceled = process.returncode in (-signal.SIGTERM, 130)
            state["status"] = "Canceled" if canceled else "Failed"
            state["error"] = (runs / job / "runner.txt").read_text()[-2000:]
        if name == job and self.resources[f"jobs/{job}"]["properties"]["jobType"] == "Command":
            return {**state, "job": job, "children": [], "logs": logs_of(runs / job / job)}
        if name == job:
            return {**state, "job": job, "logs": {"logs/azureml/executionlogs.txt": runs / job / "executionlogs.txt"}}
        child: Json = next(child for child in state["children"] if child["name"] == name)
        return {**child, "job": job, "logs": logs_of(Path(child["home"]))}

    def run(self, name: str) -> Json:
        """What the run history says of a job or of a child."""
        state = self.state(name)
        job = self.resources[f"jobs/{state['job']}"]["properties"]
        kind = "azureml.PipelineRun" if job["jobType"] == "Pipeline" else "azureml.StepRun"
        run: Json = {
            "runId": name,
            "status": state["status"],
            "displayName": state.get("node", job.get("displayName", name)),
            "rootRunId": state["job"],
            "runType": kind if name == state["job"] else "azureml.StepRun",
            "properties": {} if name == state["job"] else {"azureml.pipelinerunid": state["job"]},
            "tags": {},
            "startTimeUtc": "2026-01-01T00:00:00Z",
            "logFiles": {key: f"{self.url}/log/{name}/{key}" for key, file in state["logs"].items() if file.is_file()},
            "outputs": {key: {"assetId": f"{name}|{key}", "type": "uri_folder"} for key in self.outputs(name)},
        }
        if name != state["job"]:
            run |= {"parentRunId": state["job"], "description": "", "experimentId": "e"}
        if state.get("error"):
            run["error"] = {"error": {"code": "UserError", "message": state["error"]}}
        return run

    def outputs(self, name: str) -> dict[str, str]:
        """The addresses of a job's outputs, or of a child's."""
        state = self.state(name)
        if name == state["job"]:
            outputs = self.resources[f"jobs/{name}"]["properties"].get("outputs") or {}
            return {key: entry["uri"] for key, entry in outputs.items()}
        store = self.folder / "blob" / CONTAINERS["workspaceblobstore"]
        paths = {key: Path(path).relative_to(store) for key, path in state["outputs"].items()}
        return {key: f"azureml://datastores/workspaceblobstore/paths/{path}/" for key, path in paths.items()}

    def job(self, name: str) -> Json:
        """The resource of a job, or of a child of one."""
        state = self.state(name)
        parent = self.resources[f"jobs/{state['job']}"]
        if name == state["job"]:
            parent["properties"]["status"] = state["status"]
            return parent
        outputs = {key: {"uri": uri, "jobOutputType": "uri_folder"} for key, uri in self.outputs(name).items()}
        properties = {
            "jobType": "Command",
            "status": state["status"],
            "displayName": state["node"],
            "experimentName": parent["properties"].get("experimentName", "Default"),
            "command": state["command"],
            "environmentId": "azureml:unknown:1",
            "outputs": outputs,
            "services": parent["properties"]["services"],
            "properties": {"azureml.pipelinerunid": state["job"]},
            "tags": {},
        }
        return {"id": f"{ROOT}/workspaces/{WORKSPACE}/jobs/{name}", "name": name, "properties": properties}

    def cancel(self, name: str) -> None:
        process = self.runners[name]
        if process.poll() is None:
            process.terminate()

    # Deployments

    def remove(self, path: str) -> None:
        """Forget a resource and all in it, and end the processes that served them."""
        for known in [known for known in self.resources if f"{known}/".startswith(f"{path}/")]:
            del self.resources[known]
            self.stop(known)

    def stop(self, path: str) -> None:
        if scorer := self.scorers.pop(path, None):
            scorer.terminate()
            scorer.wait()

    def deploy(self, path: str, deployment: Json) -> None:
        """Start a process that serves the model, with the scoring script of the user's if there is one."""
        self.stop(path)
        properties = deployment["properties"]
        words = [str(self.local(properties["model"]))]
        if code := properties.get("codeConfiguration"):
            words.append(str(self.local(code["codeId"]) / code["scoringScript"]))
        with self.deployment_log(path).open("w") as log:
            scorer = self.scorers[path] = subprocess.Popen(
                [self.python, "-m", "tests.azure_service.scoring", *words],
                env={**os.environ, "PYTHONPATH": str(CHECKOUT)},  # without src: a model brings its code along
                cwd=CHECKOUT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert scorer.stdout is not None
        ready = scorer.stdout.readline() == "ready\n"
        deployment["properties"]["provisioningState"] = "Succeeded" if ready else "Failed"

    def deployment_log(self, path: str) -> Path:
        return self.folder / f"{path.replace('/', '_')}.txt"

    def deployed(self, path: str) -> Json:
        """How a deployment went, with the end of its log if it failed."""
        status = self.resources[path]["properties"]["provisioningState"]
        last = self.deployment_log(path).read_text()[-2000:]
        return (
            {"status": status}
            if status == "Succeeded"
            else {"status": status, "error": {"code": "UserError", "message": last}}
        )

    def score(self, endpoint: str, headers: dict[str, str], body: Json) -> Answer:
        """Answer a scoring request by the deployment that it names, or that has all the traffic."""
        if headers.get("authorization") != f"Bearer {KEY}":
            return Answer(401, {"error": "key_auth_access_denied"})
        path = f"onlineEndpoints/{endpoint}"
        traffic = self.resources[path]["properties"].get("traffic") or {}
        chosen = headers.get("azureml-model-deployment") or next((n for n, share in traffic.items() if share), None)
        scorer = self.scorers.get(f"{path}/deployments/{chosen}")
        if scorer is None or scorer.stdin is None or scorer.stdout is None:
            return Answer(404, {"error": f"no deployment {chosen}"})
        with self.lock:
            scorer.stdin.write(json.dumps(body) + "\n")
            scorer.stdin.flush()
            answer = json.loads(scorer.stdout.readline())
        return Answer(answer["status"], answer["body"])
